"""VL-BERT: Pre-training of Generic Visual-Linguistic Representations (Su et al., ICLR 2020).

New: every element has a word part and a picture part, added. Words carry the whole picture, regions carry a learnt word; text without pictures is
trained beside the pairs. Nothing tells whether text and picture belong together.
Unusual: the whole picture is the first region, the mean of those that are not hidden. All regions share one position, [END] takes the next. Geometry is
sines and cosines, fused into the feature. The picture part's norm starts with a gain of 0: at the first step the system is BERT. Whole words are hidden.
Weight decay spares nothing. Only region features made beforehand are read here, not the authors' variant that trains its detector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia import boxes
from intarsia.batch import (
    Array,
    Batch,
    Encoded,
    Example,
    Pick,
    Picks,
    Picture,
    RegionRows,
    Regions,
    Sample,
    Text,
    TextRows,
)
from intarsia.errors import BadInput
from intarsia.layout import before_last_sep, bert_rows, link_rows, region_rows
from intarsia.objectives import mlm, mrm
from intarsia.packed import Packing, join, joined_rows
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder
from intarsia.parts.heads import Pooler, TiedHead, Transform
from intarsia.parts.numbers import LARGE, TINY, BertNumbers
from intarsia.recipe import TINY_RUN, Batching, Card, Mix, Optim, Recipe, Schedule
from intarsia.system import Finetune, System, Tuning
from intarsia.tasks import HeadConfig, before_last
from intarsia.tasks.refer import ReferEach
from intarsia.tasks.vcr import VCREach
from intarsia.tasks.vqa import VQA
from intarsia.text import Vocab
from intarsia.weights import bert
from intarsia.weights.keymap import KeyMap, Tied


@dataclass(frozen=True)
class VLBERTConfig(BertNumbers):
    """The numbers of VL-BERT-base on features made beforehand; the recipes replace some."""

    type_vocab_size: int = 3
    """Segments: 0 and 1 for texts, 2 for regions and [END]."""
    visual_scale: float = 0.0
    """Gain of the picture part's norms at the start."""
    feature_size: int = 2048
    """Numbers of a region feature."""
    geometry_waves: int = 256
    """Sines a box number, and as many cosines."""
    classes: int = 1601
    """Classes of the detector's soft labels, background first."""
    max_rows: int = 64
    """Text rows and regions, the whole picture among them; the longer of the two is cut until they fit."""
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


class Elements(nn.Module):
    """Word part plus picture part of words, regions and [END], normalised together. Source: sec. 3.2."""

    def __init__(self, config: VLBERTConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.waves = config.geometry_waves
        self.downsample = nn.Linear(8 * config.geometry_waves + config.feature_size, width)
        self.region_word = nn.Embedding(1, width)
        self.masked_word = nn.Embedding(1, width)
        self.masked_feature = nn.Embedding(1, config.feature_size)
        self.no_picture = nn.Embedding(1, width)
        self.end = nn.Embedding(1, width)
        self.text_norm = nn.LayerNorm(width, eps)
        self.region_norm = nn.LayerNorm(width, eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def seen(self, regions: Regions) -> Tensor:
        """(R, H) what is seen of regions: geometry and feature, fused."""
        dtype = self.downsample.weight.dtype
        feats = regions.feats.to(dtype) + regions.masked[:, None] * self.masked_feature.weight[0]  # (R, F)
        codes = boxes.sine(regions.boxes.float(), self.waves).to(dtype)
        return F.relu(self.downsample(self.dropout(torch.cat([codes, feats], -1))))

    def forward(
        self, words: Words, text: Text, regions: Regions, links: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeds words (T, H), regions (R, H) and one [END] a document (B, H).

        Args:
            words: the tables of words, positions and segments, and the norm of all elements.
            text: packed text rows.
            regions: packed regions, the first of each document the whole picture; documents may have none.
            links: (P, 2) text row, region row: these words carry that region in place of the whole picture.
        """
        seen = self.seen(regions)
        lengths = regions.packing.lengths
        whole = torch.cat([seen, self.no_picture.weight])[torch.where(lengths > 0, regions.packing.first, len(seen))]
        carried = whole.index_select(0, text.packing.doc)  # (T, H)
        if links is not None and len(links):
            carried = carried.index_copy(0, links[:, 0], seen[links[:, 1]])
        embedded = words.word(text.ids) + self.text_norm(carried)
        x = embedded + words.position(text.position_ids) + words.segment(text.segment_ids)
        named = torch.where(regions.masked[:, None], self.masked_word.weight, self.region_word.weight)
        place = words.position(regions.position_ids) + words.segment(regions.segment_ids)
        y = named + self.region_norm(seen) + place
        after = text.packing.lengths.long() + 1
        z = self.end.weight + words.position(after) + words.segment.weight[-1]
        return tuple(words.dropout(words.norm(each)) for each in (x, y, z))


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
    large = replace(
        base,
        config=VLBERTConfig(**LARGE),
        precision="bf16",
        note="cfgs/pretrain/large_prec_4x16G_fp16.yaml, as base in half precision.",
    )
    tiny = replace(
        base,
        config=VLBERTConfig(
            **TINY,
            visual_scale=1.0,
            geometry_waves=16,
            mlm_rate=0.25,
        ),
        **TINY_RUN,
        note="Not a published recipe: learns generated scenes from scratch in minutes on two CPU cores; with or without --text.",
    )
    return {"tiny": tiny, "base": base, "large": large}


def _adam(lr: float, max_norm: float) -> Optim:
    return Optim(lr=lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=1e-4, no_decay=(), max_norm=max_norm)


def _answers(config: HeadConfig, outputs: int) -> nn.Module:
    """The word head's first half, dropout, answers."""
    width = config.hidden_size
    head = nn.Sequential(
        Transform(width, config.layer_norm_eps), Dropout(config.hidden_dropout_prob), nn.Linear(width, outputs)
    )
    initialise(head, config.initializer_range)
    return head


def _region_score(config: HeadConfig) -> nn.Module:
    """Linear, GELU, dropout, one number."""
    width = config.hidden_size
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), Dropout(config.hidden_dropout_prob), nn.Linear(width, 1))


def _finetune() -> dict[str, Finetune]:
    """The downstream tasks; the authors train the detector along for VCR and RefCOCO+, which is not done here."""

    def tuning(optim: Optim, steps: int, warmup: int, samples: int, note: str) -> dict[str, Tuning]:
        return {"base": Tuning(optim, Schedule(steps, warmup), Batching(rows=64 * samples), samples=samples, note=note)}

    answers = KeyMap(
        ("final_mlp.0.dense.", "head.0.dense."), ("final_mlp.0.LayerNorm.", "head.0.norm."), ("final_mlp.2.", "head.2.")
    )
    pooler = {"with_pooler": True}
    return {
        "vqa": Finetune(
            VQA(reads=before_last, scorer=_answers),
            tuning(_adam(1.6e-4, 1.0), 13_000, 500, 64, "5 epochs, 4 GPUs; train2014 and val2014"),
            answers,
            config=pooler | {"max_rows": 200},
        ),
        "vcr": Finetune(
            VCREach(),
            tuning(
                _adam(4.48e-3, 10.0),
                66_000,
                1000,
                4,
                "20 epochs of SGD with momentum .9, a tenth at 14 and 18, 4 choices each",
            ),
            KeyMap(("final_mlp.1.", "head.1.")),
            config=pooler | {"max_rows": 200},
        ),
        "re": Finetune(
            ReferEach(_region_score),
            tuning(_adam(2.56e-5, 1.0), 75_000, 3750, 8, "20 epochs of RefCOCO+; the whole picture is a candidate"),
            KeyMap(("final_mlp.0.dense.", "head.0."), ("final_mlp.2.", "head.3.")),
            config={"max_rows": 200},
        ),
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
        weights=("jackroos/VL-BERT .model, precomputed-feature variants",),
        unverified=("the end-to-end variant is not built", "steps of fine-tuning", "published scores"),
    )

    def __init__(self, config: VLBERTConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width = config.hidden_size
        self.words = Words(config)
        self.elements = Elements(config)
        self.encoder = Encoder(config)
        if config.with_pooler or config.relation:
            self.pooler = Pooler(width)
        self.word_head = TiedHead(width, config.vocab_size, config.layer_norm_eps)
        self.class_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.classes))
        if config.relation:
            self.match_head = nn.Linear(width, 2)
        initialise(self, config.initializer_range)
        nn.init.zeros_(self.elements.masked_feature.weight)
        for norm in (self.elements.text_norm, self.elements.region_norm):
            nn.init.constant_(norm.weight, config.visual_scale)

    # 1 -- inputs: [CLS] words [SEP], the whole picture, regions, [END] -------------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Texts in segments 0 and 1, the whole picture and the regions in segment 2; [END] is added when encoding.

        A sample without picture is its pieces alone. vqa: the question, then [MASK] as the second text. vcr: question and choice, `form` says which;
        words with a gold link carry their region.
        """
        if not sample.pictures:
            return self._text_alone(sample)
        texts = sample.texts[:1] if task != "vcr" else (sample.texts[0], sample.texts[1 + form])
        picture, most = sample.pictures[0], self.config.max_rows
        count = min(len(picture.boxes), most) + 1
        length = sum(len(self.vocab.encode(x)) for x in texts) + 1 + len(texts) + 2 * (task == "vqa")
        while length + count > most:
            length, count = (length, count - 1) if count > length else (length - 1, count)
        room = length - 1 - len(texts) - 2 * (task == "vqa")
        parts = [(text, i) for i, text in enumerate(texts)]
        text, pieces = bert_rows(self.vocab, sample.key, parts, room, cut=True, own_sep=True)
        if task == "vqa":
            text = _answer_slot(text, self.vocab)
        shown = self._shown(sample.key, picture, count - 1, len(text))
        links = link_rows(sample, pieces[0])
        if task == "vcr":
            links = np.concatenate([links, link_rows(sample, pieces[1], 2 + len(pieces[0]), 1 + form)])
        key = sample.key if task is None else f"{sample.key}@{form}"
        return Example(
            key,
            text,
            shown,
            links[links[:, 1] < count - 1] + [[0, 1]] if task == "vcr" else links[:0],
            sample=sample.key,
        )

    def _shown(self, key: str, picture: Picture, count: int, position: int) -> RegionRows:
        """The whole picture and the first `count` regions."""
        rows = region_rows(key, picture, self.config.feature_size, 2).first(count)
        width, height = max(picture.width, 1), max(picture.height, 1)
        edge = [0, 0, (width - 1) / width if picture.width else 1, (height - 1) / height if picture.height else 1]
        whole = whole_picture(rows.feats, np.zeros(count, np.bool_))
        return replace(
            rows,
            feats=np.concatenate([whole[None].astype(rows.feats.dtype), rows.feats]),
            boxes=np.concatenate([np.array([edge], np.float32), rows.boxes]),
            segment_ids=np.full(count + 1, 2),
            position_ids=np.full(count + 1, position),
            image=np.zeros(count + 1, np.int64),
            masked=np.zeros(count + 1, np.bool_),
            probs=None
            if rows.probs is None
            else np.concatenate([np.zeros_like(rows.probs, shape=(1, rows.probs.shape[1])), rows.probs]),
            labels=None if rows.labels is None else np.concatenate([[0], rows.labels]),
            scores=None,
        )

    def _text_alone(self, sample: Sample) -> Example:
        pieces = self.vocab.encode(sample.texts[0])
        if not len(pieces):
            raise BadInput(f"sample {sample.key}: the text {sample.texts[0]!r} is empty")
        count = min(len(pieces), self.config.max_rows)
        zeros, none = np.zeros(count, np.int64), np.zeros(0, np.int64)
        text = TextRows(pieces.ids[:count], zeros, np.arange(count), pieces.words[:count])
        feats, box = np.zeros((0, self.config.feature_size), np.float16), np.zeros((0, 4), np.float32)
        shown = RegionRows(feats, box, none, none, none, none.astype(np.bool_))
        return Example(sample.key, text, shown, sample=sample.key)

    # 2 -- stream: one encoder ------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds, joins words, regions and [END], encodes. Without a pooler `pooled` is the first row as it is."""
        text, regions = batch.text, batch.regions
        assert text is not None and regions is not None, "VL-BERT needs text and regions"
        words, seen, ends = self.elements(self.words, text, regions, batch.links)
        both = join(text.packing, regions.packing)
        one = torch.arange(text.packing.documents + 1, device=words.device)
        whole = join(both.packing, Packing(one.int(), 1, one[:-1], torch.zeros_like(one[:-1])))
        x = joined_rows(whole, joined_rows(both, words, seen.to(words.dtype)), ends.to(words.dtype))
        x = self.encoder(x, whole.packing)
        inner = x.index_select(0, whole.rows_a)
        pooled = x.index_select(0, whole.packing.first)
        if self.config.with_pooler or self.config.relation:
            pooled = self.pooler(x, whole.packing)
        return Encoded(
            text=inner.index_select(0, both.rows_a),
            visual=inner.index_select(0, both.rows_b),
            visual_packing=regions.packing,
            pooled=pooled,
        )

    # 3 -- objectives -----------------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Whole words and regions of a pair; whole words of a text without picture (sec. 3.3)."""
        config, goals = self.config, goal.split("+")
        label = 1
        if "itm" in goals and sample.pictures and rng.random() < config.itm_rate:
            sample, label = replace(sample, texts=draw().texts, links=()), 0
        example = self.lay_out(sample)
        assert example.regions is not None
        alone = not len(example.regions)
        for name in ("mlm", "mlm_text"):
            if name in goals:
                mlm.hide_words(
                    example, self.vocab, rng, config.mlm_rate if alone == (name == "mlm_text") else 0.0, name
                )
        if "mvrc" in goals and alone:
            none = np.zeros((0, config.classes), np.float32)
            example.targets["mvrc"] = Pick("regions", np.zeros(0, np.int64), none)
        elif "mvrc" in goals:
            mrm.hide_most(example, rng, ("mvrc",), config.mvrc_rate, first=1)
            shown = example.regions
            shown.feats = shown.feats.copy()
            shown.feats[0] = whole_picture(shown.feats[1:], shown.masked[1:])
        if "itm" in goals:
            example.targets["itm"] = np.array(-1 if alone else label)
        return example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal, which are added; none for a goal that no document has."""
        assert encoded.visual is not None and batch.text is not None and batch.regions is not None
        found: dict[str, Tensor] = {}
        for goal in batch.targets:
            if goal == "itm":
                labels = batch.labels(goal)
                found[goal] = F.cross_entropy(self.match_head(encoded.pooled).float(), labels, ignore_index=-1)
                continue
            picks = batch.picks(goal)
            if goal == "mvrc":
                logits = self.class_head(encoded.visual.index_select(0, picks.rows))
                found[goal] = self._classes(logits, picks, batch.regions.packing)
            elif goal == "mlm" or len(picks.rows):
                found[goal] = self._words(self.word_logits(encoded, picks.rows), picks, batch.text.packing)
        return found

    def _words(self, logits: Tensor, picks: Picks, packing: Packing) -> Tensor:
        if not self.config.norm_in_batch_first:
            return mlm.score(logits, picks.labels)
        each = F.cross_entropy(logits.float(), picks.labels, reduction="none")
        return mlm.score_by_document(each, packing.doc[picks.rows], packing.documents)

    def _classes(self, logits: Tensor, picks: Picks, packing: Packing) -> Tensor:
        if not self.config.norm_in_batch_first:
            return mrm.soft_classify(logits, picks.labels)
        each = -(picks.labels.float() * F.log_softmax(logits.float(), -1)).sum(-1)
        return mlm.score_by_document(each, packing.doc[picks.rows], packing.documents)

    def word_logits(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, vocabulary) logits of the words at text rows; the table is that of the word embeddings."""
        assert encoded.text is not None
        return self.word_head(encoded.text.index_select(0, rows), self.words.word.weight)  # type: ignore[no-any-return]

    @property
    def matches(self) -> bool:
        """Only with the optional sentence-image head."""
        return bool(self.config.relation)

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) log odds that caption and picture belong together."""
        if not self.config.relation:
            return super().match_scores(encoded)
        logits = self.match_head(encoded.pooled).float()
        return logits[:, 1] - logits[:, 0]  # type: ignore[no-any-return]

    # 4 -- recipes ------------------------------------------------------------------------------------------------------

    recipes = _recipes()

    # 5 -- downstream ---------------------------------------------------------------------------------------------------

    heads = ("word_head", "class_head", "match_head")
    finetune = _finetune()

    # 6 -- checkpoint: a "module." in front of all keys goes when a file is read ---------------------------------------------------------

    sizes = bert.SIZES | {"feature_size": ("elements.masked_feature.weight", 1), "classes": ("class_head.2.weight", 0)}
    flags = {"with_pooler": "pooler.dense.weight", "relation": "match_head.weight"}  # noqa: RUF012
    keys = KeyMap(
        ("vlbert.word_embeddings.", "words.word."),
        ("vlbert.position_embeddings.", "words.position."),
        ("vlbert.token_type_embeddings.", "words.segment."),
        ("vlbert.embedding_LayerNorm.", "words.norm."),
        ("vlbert.end_embedding.", "elements.end."),
        ("vlbert.visual_ln_text.", "elements.text_norm."),
        ("vlbert.visual_ln_object.", "elements.region_norm."),
        ("image_feature_extractor.obj_downsample.1.", "elements.downsample."),
        ("object_linguistic_embeddings.", "elements.region_word."),
        ("object_mask_word_embedding.", "elements.masked_word."),
        ("object_mask_visual_embedding.", "elements.masked_feature."),
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


def whole_picture(feats: Array, hidden: Array) -> Array:
    """(F) the feature of the whole picture: the mean of the regions (R, F) that are not hidden (R), so that it does not tell of those that are."""
    kept = feats[~hidden].astype(np.float32)
    return np.asarray(
        kept.sum(0) / (len(kept) + 1e-5 * hidden.any()) if len(kept) else np.zeros(feats.shape[1], np.float32)
    )


def _answer_slot(text: TextRows, vocab: Vocab) -> TextRows:
    """[CLS] question [SEP] with [MASK] [SEP] after it, in segment 1."""
    added = before_last_sep(before_last_sep(text, vocab.sep), vocab.mask)
    return replace(added, segment_ids=np.append(text.segment_ids, [1, 1]))
