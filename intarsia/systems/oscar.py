"""Oscar: Object-Semantics Aligned Pre-training for Vision-Language Tasks (Li et al., ECCV 2020); Oscar+ of VinVL (Zhang et al., CVPR 2021).

New: the names of the detected objects stand between caption and regions, as anchors; a pooled vector tells whether they were exchanged. Oscar+ tells
exchanged captions too and normalises the projected regions.
Unusual: regions have neither position nor segment nor a norm of their own in Oscar; class 0 of the contrast is the clean triple. Captions are written by
masked words that see what stands before, all tags and all regions. The captioner's word table is not that of its embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia import boxes
from intarsia.batch import Batch, Encoded, Example, RegionRows, Regions, Sample, TextRows
from intarsia.errors import BadInput
from intarsia.features.vqgan import read_codec
from intarsia.layout import bert_rows, document_key, link_rows, region_rows
from intarsia.objectives import beside, lm, mlm, triples
from intarsia.packed import join, joined_rows
from intarsia.parts.code_rows import CodeNumbers, CodeRows, code_rows
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder
from intarsia.parts.heads import Pooler, TiedHead
from intarsia.parts.numbers import LARGE, TINY
from intarsia.parts.stream import Reader, apart, encode_joined
from intarsia.recipe import TINY_RUN, Batching, Card, Mix, Recipe, Schedule, adam
from intarsia.system import Captioning, Finetune, System, Tuning
from intarsia.tasks import linear, two_layers
from intarsia.tasks.nlvr2 import NLVR2Pair, pair_of
from intarsia.tasks.retrieval import RetrievalTwoWay
from intarsia.tasks.vqa import VQA, one_answer_loss
from intarsia.text import Vocab
from intarsia.weights import bert
from intarsia.weights.keymap import KeyMap, Tied


@dataclass(frozen=True)
class OscarConfig(CodeNumbers):
    """The numbers of Oscar-base; the recipes replace some."""

    feature_size: int = 2048
    """Numbers of a region feature; six box numbers are appended."""
    use_img_layernorm: bool = False
    """Projected regions are normalised (Oscar+)."""
    img_layer_norm_eps: float = 1e-12
    num_contrast_classes: int = 2
    """2: clean, second text exchanged. 3: caption exchanged as well (Oscar+)."""
    texta_false_prob: float = 0.0
    """Share of documents whose caption is exchanged; .25 in Oscar+."""
    textb_sample_mode: Literal[0, 1, 2] = 0
    """What takes the place of the tags: 0 = another picture's caption or tags, one as often as the other; 1 = its tags; 2 = the answers of a question, if one is drawn in
    ten tries."""
    use_b: bool = True
    """False = captions stand alone, and half of them are exchanged; `num_contrast_classes` is then 3, unless `texta_false_prob` is .5."""
    extra_loss_weight: float = 0.0
    """Weight of the losses of a second corpus (--extra), whose documents are as many; the first one's have the rest."""
    extra_textb_sample_mode: Literal[0, 1, 2] = 1
    """`textb_sample_mode` in the second corpus."""
    mask_loss_for_unmatched: bool = True
    """Words of exchanged tags are hidden too."""
    max_pieces: int = 32
    """Caption and tags together; the longer of the two is cut until they fit."""
    max_regions: int = 50
    """More regions are left out, from the end of the detector's order."""
    mlm_rate: float = 0.15
    freeze_embedding: bool = False
    """The table of words does not train (VinVL's captioning)."""
    untied_words: bool = False
    """The words are told by a table of their own (captioning)."""
    max_caption_rows: int = 40
    """In captioning: rows of a caption, a longer one is cut at its end; the tags' positions begin here."""
    lm_most: int = 3
    """In captioning: at most so many words are hidden."""
    label_smoothing: float = 0.0
    drop_worst: float = 0.0
    """In captioning: share of hidden words left out of the loss, the worst ones."""
    drop_worst_after: int = 0
    """None are left out in so many first forward passes of a process; with `accumulate` a step has several."""
    attention: Literal["CLR", "CL", "CR", "LR"] = "CLR"
    """Who sees whom of caption (C), tags (L) and regions (R): all, or what is not named is alone (the authors' ablation)."""


class RegionEmbeddings(nn.Module):
    """Feature and six box numbers, projected, in Oscar+ normalised; nothing else. Source: sec. 3; VinVL, sec. 3."""

    def __init__(self, config: OscarConfig) -> None:
        super().__init__()
        self.feature = nn.Linear(config.feature_size + 6, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.img_layer_norm_eps) if config.use_img_layernorm else None
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, regions: Regions) -> Tensor:
        """Embeds packed regions: (R, H)."""
        feats = torch.cat([regions.feats.float(), boxes.six(regions.boxes.float())], -1)
        x = self.feature(feats.to(self.feature.weight.dtype))
        return self.dropout(x if self.norm is None else self.norm(x))  # type: ignore[no-any-return]


PLUS: dict[str, Any] = {
    "use_img_layernorm": True,
    "num_contrast_classes": 3,
    "texta_false_prob": 0.25,
    "textb_sample_mode": 1,
}


def _recipes() -> dict[str, Recipe[OscarConfig]]:
    """Oscar, Oscar+, their captioners, and a tiny run."""
    base = Recipe(
        config=OscarConfig(),
        mix=Mix(share={"mlm+contrast": 1}),
        optim=adam(5e-5, max_norm=10.0),
        schedule=Schedule(steps=1_000_000, warmup=0),
        batching=Batching(rows=16_000, accumulate=4),
        note="6.5 M triples of COCO, CC, SBU, Flickr30k, GQA and VG-QA; batch 768, at least 1 M steps (from the paper); fp32.",
    )
    large = replace(
        base,
        config=OscarConfig(**LARGE),
        optim=adam(1e-5, max_norm=10.0),
        schedule=Schedule(steps=900_000, warmup=0),
        batching=Batching(rows=10_000, accumulate=4),
        note="As base; batch 512, at least 900,000 steps.",
    )
    base_plus = replace(
        base,
        config=OscarConfig(**PLUS),
        optim=adam(1e-4, max_norm=10.0),
        batching=Batching(rows=20_000, accumulate=4),
        note="Oscar+ (VinVL): 8.85 M triples; batch 1,024, at least 1 M steps; features of X152-C4.",
    )
    large_plus = replace(base_plus, config=OscarConfig(**LARGE, **PLUS), optim=adam(3e-5, max_norm=10.0))
    caption = replace(
        base,
        config=OscarConfig(untied_words=True, max_pieces=67),
        mix=Mix(share={"caption": 1}),
        optim=adam(3e-5, decay=0.05),
        schedule=Schedule(steps=66_000, warmup=0),
        batching=Batching(rows=7000),
        note="COCO captions (Karpathy), 30 epochs at batch 64 on each of 4 GPUs, from `base` (--weights); cross entropy. Self-critical: decode.self_critical.",
    )
    worst: dict[str, Any] = {"drop_worst": 0.2, "drop_worst_after": 20_000}
    caption_plus = replace(
        caption,
        config=OscarConfig(**PLUS, max_pieces=67, label_smoothing=0.1, **worst, freeze_embedding=True),
        note="VinVL: 60 epochs at batch 64 on each of 8 GPUs, word table tied and fixed, the worst words dropped after 20,000 forward passes of a process.",
    )
    long, note = replace(caption.config, **LARGE), "As caption, 32 on each of 8 GPUs."
    caption_large = replace(caption, config=long, optim=adam(1e-5, decay=0.05), batching=Batching(rows=3500), note=note)
    caption_large_plus = replace(caption_plus, config=replace(caption_plus.config, **LARGE), optim=caption_large.optim)
    tiny = replace(
        base,
        config=OscarConfig(**TINY, **PLUS, mlm_rate=0.25),
        mix=Mix(share={"mlm": 1, "mlm+contrast": 2}, begin={"mlm+contrast": 0.3}),
        **TINY_RUN,
        note="Not a published recipe: Oscar+ on generated scenes from scratch, in minutes on two CPU cores.",
    )
    sizes = {"tiny": tiny, "base": base, "large": large, "base_plus": base_plus, "large_plus": large_plus}
    captioners = {"caption": caption, "caption_plus": caption_plus, "caption_large": caption_large}
    return sizes | captioners | {"caption_large_plus": caption_large_plus}


def _finetune() -> dict[str, Finetune]:
    """The downstream tasks of both papers; captions are in `_captioning`."""

    def tuning(lr: float, steps: int, rows: int, samples: int, note: str, warmup: int = 0) -> Tuning:
        schedule = Schedule(steps=steps, warmup=warmup)
        return Tuning(adam(lr, decay=0.05), schedule, Batching(rows=rows), samples=samples, note=note)

    drop = {"hidden_dropout_prob": 0.3}
    vqa = {
        "base": tuning(5e-5, 125_000, 4000, 32, "25 epochs, batch 32 a GPU; dropout .3"),
        "large": tuning(3e-5, 167_000, 3000, 24, "25 epochs, batch 24 a GPU; dropout .3"),
    }
    gqa = {"base": tuning(5e-5, 98_000, 6000, 48, "5 epochs of the balanced questions, batch 48; dropout .3")}
    nlvr2 = {
        "base": tuning(3e-5, 24_000, 7000, 72, "20 epochs, batch 72; dropout .3", warmup=10_000),
        "large": tuning(3e-5, 72_000, 3000, 24, "20 epochs, batch 24; dropout .3", warmup=5000),
    }
    note = "30 epochs of COCO, batch 32 on each of 4 GPUs; one true and one broken pair"
    retrieval = {"base": tuning(2e-5, 133_000, 4500, 32, note), "large": tuning(1e-5, 266_000, 2500, 16, "as base")}
    more = {"base": tuning(2e-5, 133_000, 5000, 32, note), "large": tuning(7.5e-6, 266_000, 2700, 16, "as base")}
    for each in (vqa, nlvr2, retrieval, more):
        each |= {f"{size}_plus": each[size] for size in ("base", "large")}
    one = KeyMap(("classifier.", "head.1."))
    two = KeyMap(("classifier.0.", "head.1."), ("classifier.2.", "head.3."))
    three = KeyMap(("classifier.0.", "head.1."), ("classifier.2.", "head.3."), ("classifier.3.", "head.4."))
    long, longest = {"max_pieces": 125}, {"max_pieces": 162, "max_regions": 45}
    pair = {"max_pieces": 52, "max_regions": 40}
    return {
        "vqa": Finetune(VQA(scorer=linear), vqa, one, config=drop | long),
        "vqa_mlp": Finetune(VQA(scorer=two_layers(3)), vqa, two, config=drop | long),
        "gqa": Finetune(VQA(1853, scorer=linear, criterion=one_answer_loss), gqa, one, config=drop | longest),
        "nlvr2": Finetune(NLVR2Pair(pair_of(3, norm=False, large=2)), nlvr2, two, config=drop | pair),
        "nlvr2_plus": Finetune(NLVR2Pair(pair_of(3, norm=True, large=2)), nlvr2, three, config=drop | pair),
        "retrieval": Finetune(RetrievalTwoWay(), retrieval, one, config={"max_pieces": 67}),
        "retrieval_plus": Finetune(RetrievalTwoWay(), more, one, config={"max_pieces": 67, "max_regions": 70}),
    }


def _captioning() -> Captioning:
    """The captioners of both papers and their self-critical continuation."""

    def critical(lr: float, steps: int, samples: int, note: str) -> Tuning:
        optim, schedule = adam(lr, decay=0.05), Schedule(steps=steps, warmup=0)
        return Tuning(optim, schedule, Batching(rows=7000), samples=samples, note=f"{note}; 113,287 pictures an epoch")

    sizes = {"base": "caption", "base_plus": "caption_plus"}
    return Captioning(
        recipes=sizes | {"large": "caption_large", "large_plus": "caption_large_plus"},
        search="hypotheses",
        length=19,
        critical={
            "base": critical(5e-6, 8850, 16, "5 epochs, batch 16 on each of 4 GPUs"),
            "base_plus": critical(3e-6, 66_400, 16, "75 epochs, batch 16 on each of 8 GPUs"),
            "large": critical(5e-6, 8850, 8, "5 epochs, batch 8 on each of 8 GPUs"),
            "large_plus": critical(8e-7, 59_000, 6, "25 epochs, batch 6 on each of 8 GPUs"),
        },
        times=5,
        over="captions",
        paired=False,
        copies={"decoder.weight": "words.word.weight"},
        published="COCO B@4, M, C, S 40.5, 29.7, 137.6, 22.8, self-critical (R)",
    )


class Oscar(System):
    """Oscar and Oscar+; see the module's docstring."""

    Config = OscarConfig
    needs = ("text", "regions")
    card = Card(
        name="oscar",
        title="Oscar: Object-Semantics Aligned Pre-training for Vision-Language Tasks",
        venue="ECCV 2020 (Oscar+: CVPR 2021)",
        paper="arXiv:2004.06165, arXiv:2101.00529",
        code="github.com/microsoft/Oscar 266075f",
        streams="single",
        new="names of detected objects stand between caption and regions",
        objectives=("mlm", "contrast", "caption"),
        tasks=("vqa", "vqa_mlp", "gqa", "nlvr2", "nlvr2_plus", "retrieval", "retrieval_plus", "caption"),
        weights=("microsoft/Oscar pytorch_model.bin (Oscar and Oscar+)",),
        unverified=(
            "batch, rates and steps of pre-training (Oscar+: batch confirmed by an author)",
            "corpus sizes",
            "share of exchanged tags in the paper",
            "number of GQA's answers",
            "steps of fine-tuning",
            "published scores beyond the README",
        ),
        features=(("butd", "10-100"), ("vinvl", "10-100")),
    )

    def __init__(self, config: OscarConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width = config.hidden_size
        self.words = Words(config)
        self.regions = CodeRows(config) if config.code_voc else RegionEmbeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(width)
        self.word_head = TiedHead(width, config.vocab_size, config.layer_norm_eps)
        if config.untied_words:
            self.decoder = nn.Linear(width, config.vocab_size, bias=False)
        self.match_head = nn.Linear(width, config.num_contrast_classes)
        initialise(self, config.initializer_range)
        self.words.word.weight.requires_grad_(not config.freeze_embedding)

    def fill_trunk(self, path: Path) -> None:
        """The table of codes starts as that of the codec that made them (`intarsia data codes`)."""
        if not isinstance(self.regions, CodeRows):
            return super().fill_trunk(path)
        self.regions.fill(read_codec(path).codebook, str(path))

    # 1 -- inputs: [CLS] caption [SEP] tags [SEP], then the regions ---------------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Caption in segment 0, tags in segment 1; in pre-training a question and its answers. nlvr2: one document a picture, `form` says which."""
        second = form if task in ("nlvr2", "nlvr2_plus") else 0
        if second >= len(sample.pictures):
            raise BadInput(f"sample {sample.key}: has {len(sample.pictures)} pictures, needs {second + 1}")
        tags = triples.second_text(sample) if task is None else " ".join(sample.pictures[second].tags)
        example = self._document(sample, sample.texts[0], tags if self.config.use_b or task else "", second)
        example.key = document_key(sample, task, form)
        return example

    def lay_out_caption(self, sample: Sample) -> Example:
        """The caption sees what stands before, tags and regions; nothing sees the caption."""
        whole = self.vocab.encode(sample.texts[0])
        pieces = whole.part(0, self.config.max_caption_rows - 2)
        ids = np.concatenate([[self.vocab.cls], pieces.ids, [self.vocab.sep]])
        example = self._writing(sample, ids, np.concatenate([[-1], pieces.words, [-1]]))
        assert example.text is not None
        example.text.cut = len(whole) - len(pieces)
        return example

    def lay_out_next(self, sample: Sample, said: Sequence[int]) -> tuple[Example, int]:
        """[CLS], what was said, [MASK]; then tags and regions."""
        ids = np.array([self.vocab.cls, *said, self.vocab.mask])
        return self._writing(sample, ids, np.full(len(ids), -1)), len(ids) - 1

    def _document(self, sample: Sample, caption: str, tags: str, picture: int = 0) -> Example:
        parts = [(caption, 0), (tags, 1)] if tags else [(caption, 0)]
        room = self.config.max_pieces + (not self.config.use_b)  # the second [SEP]'s
        text, pieces = bert_rows(self.vocab, sample.key, parts, room, cut=True, own_sep=True)
        links = link_rows(sample, pieces[0])
        regions = self._regions(sample, picture)
        links = links[links[:, 1] < (0 if self.config.code_size else len(regions))]
        return Example(sample.key, text, regions, links, sample=sample.key)

    def _writing(self, sample: Sample, ids: np.ndarray, words: np.ndarray) -> Example:
        """A caption's rows, which see what stands before, and the tags."""
        room = self.config.max_pieces + 3 - self.config.max_caption_rows
        tags = self.vocab.encode(" ".join(sample.pictures[0].tags)).ids[: max(0, room - 1)]
        after = np.append(tags, self.vocab.sep) if len(tags) else tags
        rows = TextRows(
            ids=np.concatenate([ids, after]).astype(np.int64),
            segment_ids=np.repeat([0, 1], [len(ids), len(after)]),
            position_ids=np.concatenate([np.arange(len(ids)), self.config.max_caption_rows + np.arange(len(after))]),
            words=np.concatenate([words, np.full(len(after), -1)]),
            levels=np.concatenate([np.arange(1, len(ids) + 1), np.zeros(len(after))]).astype(np.int32),
        )
        return Example(sample.key, rows, self._regions(sample, 0), sample=sample.key)

    def _regions(self, sample: Sample, picture: int) -> RegionRows:
        config, shown = self.config, sample.pictures[picture]
        rows = region_rows(sample.key, shown, config.feature_size, 0)
        if config.code_voc:
            return code_rows(rows, config, f"sample {sample.key}: picture {shown.name}")
        return rows.first(config.max_regions)

    # 2 -- stream: one encoder ------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds, joins and encodes; pools the output of [CLS]."""
        text, regions = batch.text, batch.regions
        assert text is not None and regions is not None, "Oscar needs text and regions"
        words, seen = self.words(text), self.regions(regions)
        encoder: Reader = self.encoder
        if self.config.attention != "CLR":
            kinds = text.segment_ids, torch.full_like(regions.segment_ids, 2)
            (alone,) = set("CLR") - set(self.config.attention)
            rows = joined_rows(join(text.packing, regions.packing), *kinds) == "CLR".index(alone)
            encoder = apart(encoder, rows)
        return encode_joined(encoder, self.pooler, words, text.packing, seen, regions.packing, self.read(batch))

    # 3 -- objectives -----------------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Words and tags are hidden alike; tags, and in Oscar+ captions, are exchanged (sec. 4). Or a caption is written."""
        config, goals = self.config, goal.split("+")
        if goal == "caption":
            example = self.lay_out_caption(sample)
            assert example.text is not None and example.text.levels is not None
            count = int((example.text.levels > 0).sum())
            return lm.hide_few(
                example, self.vocab, rng, np.arange(1, count), count, config.mlm_rate, config.lm_most, goal
            )
        label, caption, tags = 0, sample.texts[0], triples.second_text(sample)
        if "contrast" in goals:
            share, last = config.texta_false_prob if config.use_b else 0.5, config.num_contrast_classes - 1
            mode = config.extra_textb_sample_mode if sample.extra else config.textb_sample_mode
            label, caption, tags = triples.exchange(sample, rng, draw, share, mode, last)
        kept = sample if label == 0 else replace(sample, links=())
        example = self._document(kept, caption, tags if config.use_b else "")
        assert example.text is not None
        if label == 1 and not config.mask_loss_for_unmatched:
            example.text.words = np.where(example.text.segment_ids == 1, -1, example.text.words)
        if "mlm" in goals:
            mlm.hide_any(example, self.vocab, rng, config.mlm_rate)
        if "contrast" in goals:
            example.targets["contrast"] = np.array(label)
        return beside.share_out(example, sample.extra) if config.extra_loss_weight else example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal; masked words and contrast are added."""
        found: dict[str, Tensor] = {}
        for goal in (x for x in batch.targets if not beside.missing(batch, x)):
            match goal.removesuffix(beside.SUFFIX):
                case "mlm":
                    picks = batch.picks(goal)
                    found[goal] = mlm.score(self.word_logits(encoded, picks.rows), picks.labels)
                case "contrast":
                    logits = self.match_head(encoded.pooled).float()
                    found[goal] = F.cross_entropy(*beside.labelled(batch, goal, logits))
                case "caption":
                    picks = batch.picks(goal)
                    logits = self.word_logits(encoded, picks.rows)
                    each = lm.smoothed(logits, picks.labels, self.config.label_smoothing)
                    late = self.passes >= self.config.drop_worst_after
                    found[goal] = lm.best_words(each, self.config.drop_worst if late else 0.0)
        return found

    def weigh(self, losses: dict[str, Tensor], mix: Mix) -> Tensor:
        """The losses of both corpora, by `extra_loss_weight`."""
        return super().weigh(beside.weighed(losses, self.config.extra_loss_weight), mix)

    def word_logits(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, vocabulary) logits of the words at text rows."""
        assert encoded.text is not None
        table = self.decoder.weight if self.config.untied_words else self.words.word.weight
        return self.word_head(encoded.text.index_select(0, rows), table)  # type: ignore[no-any-return]

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) log odds that caption, tags and regions belong together."""
        logits = self.match_head(encoded.pooled).float()
        return logits[:, 0] - logits[:, 1:].logsumexp(1)  # type: ignore[no-any-return]

    # 4 -- recipes ------------------------------------------------------------------------------------------------------

    recipes = _recipes()
    chosen = ("label_smoothing", "drop_worst", "drop_worst_after", "extra_loss_weight", "extra_textb_sample_mode")
    from_bert = bert.FromBert(matches=True)

    # 5 -- downstream ---------------------------------------------------------------------------------------------------

    picked_goals = ("mlm", "contrast", "caption", "mlm_extra", "contrast_extra")
    heads = ("word_head", "match_head", "decoder")
    finetune, captioning = _finetune(), _captioning()

    # 6 -- checkpoint ---------------------------------------------------------------------------------------------------

    sizes = bert.SIZES | {"num_contrast_classes": ("match_head.weight", 0)}
    flags = {"use_img_layernorm": "regions.norm.weight", "untied_words": "decoder.weight"}  # noqa: RUF012
    _rules = (
        *bert.body("bert."),
        ("bert.img_embedding.", "regions.feature."),
        ("bert.code_embeddings.", "regions.codes."),
        ("bert.LayerNorm.", "regions.norm."),
        ("bert.pooler.dense.", "pooler.dense."),
        *bert.word_head(),
        ("cls.seq_relationship.", "match_head."),
    )
    keys = KeyMap(
        *_rules,
        Tied("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        optional=("word_head.", "match_head."),
    )
    layouts = {  # noqa: RUF012
        "untied": KeyMap(*_rules, ("cls.predictions.decoder.", "decoder."), optional=("word_head.", "match_head."))
    }
