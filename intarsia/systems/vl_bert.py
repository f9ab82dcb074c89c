"""VL-BERT: Pre-training of Generic Visual-Linguistic Representations (Su et al., ICLR 2020).

New: every element has a word part and a picture part, added. Words carry the whole picture, regions carry a learnt word; text without pictures is
trained beside the pairs. Nothing tells whether text and picture belong together.
Unusual: the whole picture is one more region, the mean of those that are not hidden. All regions share one position, [END] takes the next. Geometry is
sines and cosines, fused into the feature. The picture part's norm starts with a gain of 0: at the first step the system is BERT. Whole words are hidden.
Weight decay spares nothing. Region features are made beforehand, or read off the pixels by a Fast R-CNN that trains along (`trunk`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia import layout
from intarsia.batch import Array, Batch, Encoded, Example, Picture, Pixels, RegionRows, Sample, TextRows
from intarsia.features.fast_rcnn import RESNET101, covered, framed
from intarsia.features.resnet import ResNetConfig
from intarsia.objectives import mlm, mrm
from intarsia.parts.elements import Elements, Sight
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder
from intarsia.parts.heads import FirstRow, Pooler, TiedHead
from intarsia.parts.numbers import LARGE, TINY, RegionNumbers
from intarsia.parts.stream import encode_joined
from intarsia.recipe import SGD, TINY_RUN, Batching, Card, Mix, Optim, Recipe, Schedule
from intarsia.system import Finetune, Given, System, Tuning
from intarsia.tasks import evenly, from_end, linear, two_linear
from intarsia.tasks.refer import ReferEach
from intarsia.tasks.vcr import VCRAndObjects, choice_rows
from intarsia.tasks.vqa import VQA, transformed
from intarsia.text import Vocab
from intarsia.weights import bert
from intarsia.weights.keymap import KeyMap, Tied


@dataclass(frozen=True)
class VLBERTConfig(RegionNumbers):
    """The numbers of VL-BERT-base on features made beforehand; the recipes replace some."""

    type_vocab_size: int = 3
    """Segments: 0 and 1 for texts, 2 for regions and [END]."""
    visual_scale: float = 0.0
    """Gain of the picture part's norms at the start."""
    picture_norm: bool = True
    """Whether the picture part is normed; else one learnt number scales it, which starts as visual_scale."""
    picture_size: int = 0
    """Width of the picture part before it is turned into that of words; 0 = H, and it is not turned."""
    trunk: ResNetConfig | None = None
    """The Fast R-CNN that reads regions off the pixels; None = features are made beforehand."""
    short_side: int = 600
    """With `trunk`: pixels of a picture's shorter side .."""
    long_side: int = 1000
    """.. and the most of its longer one."""
    geometry_waves: int = 256
    """Sines a box number, and as many cosines."""
    max_rows: int = 64
    """Text rows and regions, the whole picture among them; the longer of the two is cut until they fit, regions down to the surest."""
    max_pieces: int = 64
    """Pieces of a question and a choice of VCR, special ones not counted; the longer one is cut."""
    flip_rate: float = 0.5
    """Share of pictures whose left and right are exchanged in training; features made beforehand stay."""
    mlm_rate: float = 0.15
    mvrc_rate: float = 0.15
    relation: bool = False
    """A sentence-image head as well, which the paper found to hurt."""
    itm_rate: float = 0.5
    """With `relation`: share of pairs whose caption is another's."""
    with_pooler: bool = False
    """There is one downstream only (and with `relation`)."""
    norm_in_batch_first: bool = False
    """Losses are averaged in each document first."""


def _recipes() -> dict[str, Recipe[VLBERTConfig]]:
    """The authors' configs on features made beforehand, and a tiny one."""
    base = Recipe(
        config=VLBERTConfig(),
        mix=Mix(share={"mlm+mvrc+mlm_text": 1}),
        optim=_adam(2.56e-5, max_norm=10.0),
        schedule=Schedule(steps=250_000, warmup=16_000),
        batching=Batching(rows=4160, window=8192),
        note="cfgs/pretrain/base_prec_4x16G_fp32.yaml: Conceptual Captions beside books and Wikipedia (--text), 10 epochs, 4 GPUs with 32 pairs and 32 texts each.",
    )
    large = replace(base, config=VLBERTConfig(**LARGE), precision="bf16", note="large_prec_4x16G_fp16.yaml, as base.")
    e2e = replace(
        base,
        config=VLBERTConfig(trunk=RESNET101),
        batching=Batching(rows=10_000, window=8192),
        precision="bf16",
        note="base_e2e_16x16G_fp16.yaml: as base with the trunk of bottom-up attention (--trunk) in the loop, 16 GPUs with 8 pairs and 8 texts each.",
    )
    e2e_large = replace(e2e, config=VLBERTConfig(**LARGE, trunk=RESNET101), note="large_e2e_16x16G_fp16.yaml, as e2e.")
    tiny = replace(
        base,
        config=VLBERTConfig(**TINY, visual_scale=1.0, geometry_waves=16, mlm_rate=0.25, flip_rate=0.0),
        **TINY_RUN,
        note="Not a published recipe: learns generated scenes from scratch in minutes on two CPU cores; with or without --text.",
    )
    return {"tiny": tiny, "base": base, "large": large, "e2e": e2e, "e2e_large": e2e_large}


def _adam(lr: float, max_norm: float) -> Optim:
    return Optim(lr=lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=1e-4, no_decay=(), max_norm=max_norm)


def _finetune() -> dict[str, Finetune]:
    """The downstream tasks. VQA was tuned on features made beforehand, the others with the trunk; the heads start from pre-trained ones."""

    def tunings(optim: Optim, how: Schedule, samples: int, note: str, *sizes: str, **more: Any) -> dict[str, Tuning]:
        each = Tuning(optim, how, Batching(rows=64 * samples), samples=samples, note=note, **more)
        return dict.fromkeys(("base", *sizes), each)

    scorer, choice, objects = "final_mlp.0.dense.", "final_mlp.1.", "cnn_loss_reg."
    answers = KeyMap((scorer, "head.0.dense."), ("final_mlp.0.LayerNorm.", "head.0.norm."), ("final_mlp.2.", "head.2."))
    parts = ("dense.weight", "dense.bias", "norm.weight", "norm.bias")
    words = {f"0.{x}": (f"word_head.transform.{x}", None) for x in parts}
    regions = {f"0.{x}": (f"class_head.0.{x}", None) for x in ("weight", "bias")}
    named = {f"objects.{name}": like for name, like in regions.items()}
    vqa = tunings(_adam(1.6e-4, 1.0), Schedule(13_000, 500), 64, "5 epochs, 4 GPUs; train2014 and val2014")
    falls, sgd = Schedule(66_000, 1000, shape="milestones", milestones=(0.7, 0.9)), SGD("", 4.48e-3, weight_decay=1e-4)
    vcr = tunings(_adam(4.48e-3, 10.0), falls, 4, "20 epochs, 64 samples in all", "e2e", sgd=sgd)
    re = tunings(_adam(2.56e-5, 1.0), Schedule(75_000, 3750), 8, "20 epochs of RefCOCO+, 32 samples in all", "e2e")
    long: dict[str, Any] = {"config": {"max_rows": 200, "with_pooler": True}, "fresh": ("pooler.",)}
    to_ask = long | {"config": long["config"] | {"long_side": 1200}, "copies": {"words.segment.weight": (1, 0)}}
    moves = (choice, "choice.1."), (objects + "0.dense.", "objects.0."), (objects + "2.", "objects.2.")
    of_vcr, choose = KeyMap(*moves).under("head."), VCRAndObjects(scorer=evenly(linear), layouts=("", "vcr_qar"))
    of_re, given = KeyMap((scorer, "head.0."), ("final_mlp.2.", "head.2.")), Given(tested=False, in_whole=False)
    return {
        "vqa": Finetune(VQA(reads=from_end(3), scorer=evenly(transformed)), vqa, answers, head_from=words, **long),
        "vcr": Finetune(choose, vcr, of_vcr, renames={"vlbert._module.": "vlbert."}, head_from=named, **to_ask),
        "re": Finetune(ReferEach(evenly(two_linear)), re, of_re, head_from=regions, given=given, **long),
    }


class VLBERT(System):
    """VL-BERT; see the module's docstring."""

    Config = VLBERTConfig
    needs = ("text", "regions")
    reads_text_alone = True
    card = Card(
        name="vl_bert",
        title="VL-BERT: Pre-training of Generic Visual-Linguistic Representations",
        venue="ICLR 2020",
        paper="arXiv:1908.08530",
        code="github.com/jackroos/VL-BERT 4373674",
        streams="single",
        new="every element has a word part and a picture part; text without pictures is trained along",
        objectives=("mlm", "mvrc", "mlm_text", "itm (optional)"),
        tasks=("vqa", "vcr", "re"),
        weights=("jackroos/VL-BERT .model, both variants",),
        unverified=("250,000 steps (of the paper)", "steps of fine-tuning", "published scores"),
    )

    def __init__(self, config: VLBERTConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width, seen = config.hidden_size, config.picture_size or config.hidden_size
        self.words = Words(config)
        self.sight = Sight(seen, config.geometry_waves, config.feature_size, config.trunk, config.hidden_dropout_prob)
        self.elements = Elements(width, config.layer_norm_eps if config.picture_norm else None, seen)
        self.encoder = Encoder(config)
        self.pooler = Pooler(width) if config.with_pooler or config.relation else FirstRow()
        self.word_head = TiedHead(width, config.vocab_size, config.layer_norm_eps)
        self.class_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.classes))
        if config.relation:
            self.match_head = nn.Linear(width, 2)
        initialise(self, config.initializer_range)
        if self.sight.masked_feature is not None:
            nn.init.zeros_(self.sight.masked_feature.weight)
        for norm in (self.elements.text_norm, self.elements.region_norm):
            nn.init.constant_(next(norm.parameters()), config.visual_scale)

    def fill_trunk(self, path: Path) -> None:
        """The Fast R-CNN starts from a ResNet's weights."""
        self.sight.trunk.fill(path) if self.sight.trunk else super().fill_trunk(path)

    # 1 -- inputs: [CLS] words [SEP], the whole picture, regions, [END] -------------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Texts in segments 0 and 1; [END], the regions and the whole picture in segment 2. A sample without picture is its pieces and [END].

        vqa: the question, then [MASK] as the second text. vcr, vcr_qar: question (with right answer) and choice, `form` says which; all regions stay.
        """
        config, images = self.config, self._images(sample)
        if not sample.pictures:
            text = self._ended(layout.bare_text(self.vocab, sample.key, sample.texts[0], config.max_rows))
            none = layout.no_regions(0 if config.trunk else config.feature_size, config.classes)
            return Example(sample.key, text, none, sample=sample.key)
        picture, asked = sample.pictures[0], {"vcr": 1, "vcr_qar": 2}.get(task or "", 0)
        if asked:
            room = config.max_position_embeddings - 5  # less [CLS], two [SEP], the regions and [END]
            text, links = choice_rows(self.vocab, sample, asked, form, min(config.max_pieces, room), room)
            key, kept = f"{sample.key}@{form}", np.arange(len(picture.boxes))
        else:
            key, links = sample.key, np.zeros((0, 2), np.int64)
            text, kept = self._caption(sample, picture, task == "vqa")
        regions = self._regions(sample.key, picture, np.append(kept, len(picture.boxes)), images)
        regions.position_ids += len(text)
        return Example(key, self._ended(text), regions, links, images=images, sample=sample.key)

    def _caption(self, sample: Sample, picture: Picture, asks: bool) -> tuple[TextRows, Array]:
        """A text, behind which a question asks [MASK], and the regions that fit beside it."""
        special = 2 + 2 * asks
        length, count = special + len(self.vocab.encode(sample.texts[0])), len(picture.boxes) + 1
        while length + count > self.config.max_rows:
            length, count = (length, count - 1) if count > length else (length - 1, count)
        text, _ = layout.bert_rows(self.vocab, sample.key, [(sample.texts[0], 0)], length - special, cut=True)
        if asks:
            text = layout.before_last_sep(layout.before_last_sep(text, self.vocab.sep), self.vocab.mask)
            text.segment_ids[-2:] = 1
        return text, layout.surest(picture, count - 1)

    def _regions(self, key: str, picture: Picture, kept: Array, images: Sequence[Pixels]) -> RegionRows:
        """Some regions, the last of them the whole picture, whose feature is the mean of all; boxes end at the last pixel that is read."""
        trunk = self.config.trunk
        width = picture.features.shape[1] if trunk else self.config.feature_size
        rows = layout.region_rows(key, picture, width, 2)
        rows.covers = None if picture.covers is None else picture.covers(covered)
        rows = layout.with_whole_picture(rows, picture).take(kept)
        rows.feats = rows.feats[:, : 0 if trunk else width]
        rows.boxes = rows.boxes.clip(0, np.array(2 * layout.last_pixel(picture, images), np.float32))
        return rows

    def _images(self, sample: Sample, hidden: Sequence[Array] | Array = ()) -> tuple[Pixels, ...]:
        """What the trunk reads, black in the boxes (4) that are hidden."""
        config, pictures = self.config, sample.pictures[: self.config.trunk is not None]
        return tuple(framed(sample.key, x, config.short_side, config.long_side, hidden) for x in pictures)

    def _ended(self, text: TextRows) -> TextRows:
        """With [END], whose id does not count; its position is one past the regions'."""
        return layout.with_piece(text, len(text), self.vocab.pad, 2, len(text) + 1)

    # 2 -- stream: one encoder ------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds, joins and encodes. Without a pooler `pooled` is the first row as it is."""
        text, regions = batch.text, batch.regions
        assert text is not None and regions is not None, "VL-BERT needs text and regions"
        seen = self.sight(regions, batch.images)
        words, shown = self.elements(self.words, text, regions, seen, batch.links)
        return encode_joined(self.encoder, self.pooler, words, text.packing, shown, regions.packing, self.read(batch))

    # 3 -- objectives -----------------------------------------------------------------------------------------------------

    def vary(self, sample: Sample, task: str | None, rng: np.random.Generator) -> Sample:
        """Left and right of some pictures are exchanged; of questions and expressions those words too."""
        if not sample.pictures or not self.config.flip_rate or rng.random() >= self.config.flip_rate:
            return sample
        edge = layout.last_pixel(sample.pictures[0], self._images(sample))[0]
        return layout.turned(sample, edge, words=task in ("vqa", "re"))

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Whole words and regions of a pair; whole words of a text without picture (sec. 3.3)."""
        config, goals, label = self.config, goal.split("+"), 1
        if "itm" in goals and sample.pictures and rng.random() < config.itm_rate:
            sample, label = replace(sample, texts=draw().texts, links=()), 0
        sample = self.vary(sample, None, rng)
        example, alone = self.lay_out(sample), not sample.pictures
        for name in [x for x in goals if x in ("mlm", "mlm_text")]:
            rate = config.mlm_rate if alone == (name == "mlm_text") else 0.0
            mlm.hide_words(example, self.vocab, rng, rate, name)
        if "mvrc" in goals:
            regions = mrm.hide_most(example, rng, ("mvrc",), config.mvrc_rate, spare=1).regions
            assert regions is not None
            example.images = self._images(sample, regions.boxes[regions.masked])
            if sample.pictures and regions.feats.shape[1]:
                regions.feats[-1] = layout.rest_feature(sample.pictures[0], regions.masked[:-1])
        if "itm" in goals:
            example.targets["itm"] = np.array(-1 if alone else label)
        return example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal, which are added; none for texts alone where there are none."""
        assert encoded.visual is not None and batch.text is not None and batch.regions is not None
        found: dict[str, Tensor] = {}
        for goal in batch.targets:
            if goal == "itm":
                logits, labels = self.match_head(encoded.pooled).float(), batch.labels(goal)  # -1: a text alone
                each = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
                found[goal] = each.sum() / (labels >= 0).sum().clamp(min=1)
                continue
            picks, packing = batch.picks(goal), (batch.regions if goal == "mvrc" else batch.text).packing
            if goal == "mvrc":
                each = mrm.soft_losses(self.class_head(encoded.visual.index_select(0, picks.rows)), picks.labels)
            else:
                each = F.cross_entropy(self.word_logits(encoded, picks.rows).float(), picks.labels, reduction="none")
            if self.config.norm_in_batch_first:
                found[goal] = mlm.score_by_document(each, packing.doc[picks.rows], packing.documents)
            elif goal != "mlm_text" or len(each):
                found[goal] = each.sum() / max(len(each), 1)
        return found

    @property
    def matches(self) -> bool:
        """Only with the optional sentence-image head."""
        return bool(self.config.relation)

    # 4 -- recipes ------------------------------------------------------------------------------------------------------

    recipes = _recipes()
    from_bert = bert.FromBert()

    # 5 -- downstream ---------------------------------------------------------------------------------------------------

    picked_goals = ("mlm", "mlm_text", "mvrc", "itm")
    heads = ("word_head", "class_head", "match_head")
    finetune = _finetune()

    # 6 -- checkpoint: a "module." in front of all keys goes when a file is read ---------------------------------------------------------

    sizes = bert.SIZES | {
        "feature_size": ("sight.masked_feature.weight", 1),
        "classes": ("class_head.2.weight", 0),
        "picture_size": ("elements.text_turn.weight", 1),
    }
    flags = {"with_pooler": "pooler.dense.weight", "relation": "match_head.weight"}  # noqa: RUF012
    flags["picture_norm"] = "elements.text_norm.bias"
    keys = KeyMap(
        ("vlbert.word_embeddings.", "words.word."),
        ("vlbert.position_embeddings.", "words.position."),
        ("vlbert.token_type_embeddings.", "words.segment."),
        ("vlbert.embedding_LayerNorm.", "words.norm."),
        *((f"vlbert.{theirs}", f"elements.{ours}") for theirs, ours in Elements.KEYS),
        ("image_feature_extractor.obj_downsample.1.", "sight.downsample."),
        ("image_feature_extractor.backbone.", "sight.trunk.backbone."),
        ("image_feature_extractor.roi_head_feature_extractor.", "sight.trunk.head."),
        Tied("image_feature_extractor.head.0.", "image_feature_extractor.roi_head_feature_extractor."),
        ("object_linguistic_embeddings.", "elements.region_word."),
        ("object_mask_word_embedding.", "elements.masked_word."),
        ("object_mask_visual_embedding.", "sight.masked_feature."),
        ("aux_text_visual_embedding.", "elements.no_picture."),
        *bert.layers("vlbert.encoder.layer.{i}.", "encoder.layers.{i}."),
        ("vlbert.pooler.dense.", "pooler.dense."),
        *bert.word_head("vlbert.mlm_head.predictions."),
        ("vlbert.mvrc_head.transform.dense.", "class_head.0."),
        ("vlbert.mvrc_head.region_cls_pred.", "class_head.2."),
        ("vlbert.relationsip_head.caption_image_relationship.", "match_head."),
        Tied("vlbert.mlm_head.predictions.decoder.weight", "vlbert.word_embeddings.weight"),
        optional=("word_head.", "class_head.", "match_head.", "pooler."),
    )
