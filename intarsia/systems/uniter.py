"""UNITER: UNiversal Image-TExt Representation Learning (Chen et al., ECCV 2020).

New: hides one modality at a time, so that the other can explain it; aligns words and regions by optimal transport.
Unusual: one objective a step. Region features and their geometry are projected and normalised apart before they are summed. A hidden region keeps
its geometry. The region losses are means over all numbers, not over regions. Broken pairs change the picture, never the words; the transport cost
of broken pairs is pushed up, which the paper does not say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from intarsia import boxes
from intarsia.batch import Batch, Encoded, Example, Regions, Sample
from intarsia.errors import BadInput
from intarsia.layout import bert_rows, document_key, link_rows, picture_of, region_rows
from intarsia.objectives import itm, mlm, mrm, wra
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder
from intarsia.parts.heads import ClassHead, Pooler, TiedHead
from intarsia.parts.numbers import LARGE, TINY, RegionNumbers
from intarsia.parts.stream import encode_joined
from intarsia.recipe import TINY_RUN, Batching, Card, Mix, Optim, Recipe, Schedule
from intarsia.system import Finetune, System, Tuning
from intarsia.tasks import refer
from intarsia.tasks.entail import Entailment
from intarsia.tasks.nlvr2 import NLVR2, NLVR2Pair
from intarsia.tasks.own import right_text, second_stage
from intarsia.tasks.refer import Refer
from intarsia.tasks.retrieval import Retrieval, RetrievalMined, match_row
from intarsia.tasks.vcr import VCR
from intarsia.tasks.vqa import VQA
from intarsia.text import Vocab
from intarsia.weights import bert
from intarsia.weights.keymap import KeyMap, Tied


@dataclass(frozen=True)
class UNITERConfig(RegionNumbers):
    """The numbers of UNITER-base; the recipes replace some."""

    vocab_size: int = 28996
    """Pieces of the vocabulary (bert-base-cased)."""
    max_pieces: int = 60
    """Longer texts are left out of training."""
    mlm_rate: float = 0.15
    mlm_linked_rate: float | None = None
    """Masking rate of words with a gold link to a region, where it differs."""
    mrm_rate: float = 0.15
    itm_rate: float = 0.5
    """Share of broken pairs."""
    itm_false_text_share: float = 0.0
    """Of the broken pairs that know false captions, how many take one instead of another picture; 0 in the published recipes."""
    ot_iterations: int = 50
    own: Literal["", "vcr"] = ""
    """Pre-training goes on on this task's own texts; empty = captions."""


def _recipes() -> dict[str, Recipe[UNITERConfig]]:
    """The authors' configs by size, and a tiny one."""
    base = Recipe(
        config=UNITERConfig(),
        mix=Mix(share={"itm": 9, "mlm": 12, "mrfr": 6, "mrc_kl": 6}, scale={"wra": 0.1}),
        optim=Optim(lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, no_decay=NO_DECAY, max_norm=5.0),
        schedule=Schedule(steps=200_000, warmup=10_000),
        batching=Batching(rows=10_240, window=8192, accumulate=6, reduce="sum"),
        precision="bf16",
        note="config/pretrain-alldata-base-8gpu.json: 8 GPUs, 10,240 rows each; fp16 there. Goal shares are those of VG and CC, 2/3 as many for COCO and SBU.",
    )
    in_domain = replace(
        base,
        mix=replace(base.mix, share={"itm": 2, "mlm": 2, "mrfr": 1, "mrc_kl": 1}),
        batching=replace(base.batching, accumulate=2),
        note="config/pretrain-indomain-base-8gpu.json: COCO and Visual Genome.",
    )
    large = replace(
        base,
        config=UNITERConfig(**LARGE),
        schedule=Schedule(steps=500_000, warmup=10_000),
        batching=Batching(rows=6144, window=8192, accumulate=4, reduce="sum"),
        note="config/pretrain-alldata-large-16gpu.json: 16 GPUs, 6,144 rows each.",
    )
    own = {"own_vcr": second_stage(base, 2), "own_vcr_large": second_stage(large, 10)}
    numbers = {"mlm_rate": 0.1, "mlm_linked_rate": 0.5, "itm_false_text_share": 0.6, "ot_iterations": 20}
    tiny = Recipe(
        config=UNITERConfig(**(TINY | numbers)),
        mix=Mix(
            share={"mlm": 4, "mrfr": 1, "mrc_kl": 1, "itm": 4, "itm_order": 2},
            begin={"itm": 0.3, "itm_order": 0.5},
            scale={"wra": 0.1},
        ),
        **(TINY_RUN | {"schedule": replace(TINY_RUN["schedule"], steps=3000, warmup=150)}),
        note="Not a published recipe: for generated scenes on two CPU cores. Linked words are hidden more often; false captions of the true one's words (itm_order) come last.",
    )
    return {"tiny": tiny, "base": base, "base_in_domain": in_domain, "large": large} | own


NO_DECAY = ("bias", r"words\.norm", r"regions\.norm", r"layers\.\d+\.(attention_)?norm", r"word_head\.transform\.norm")
"""What the authors' rule spares: its LayerNorm substrings miss the norms of features, geometry and of the region heads, which are decayed."""


def _tuning(lr: float, steps: int, rows: int, accumulate: int, note: str, warmup: int = 0, **more: Any) -> Tuning:
    """What the authors' downstream configs share; one tenth of the steps warms up unless said otherwise. Args: more, other fields."""
    optim = Optim(lr=lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, no_decay=NO_DECAY, max_norm=2.0)
    batching = Batching(rows=rows, window=8192, accumulate=accumulate, reduce="sum")
    return Tuning(optim, Schedule(steps, warmup or steps // 10), batching, note=note, **more)


def _summed(tuning: Tuning) -> Tuning:
    """The code sums this loss over the batch; Adam cannot tell but for clipping and epsilon, so both are scaled to our mean."""
    share, optim = 1 / tuning.samples, tuning.optim
    return replace(tuning, optim=replace(optim, eps=optim.eps * share, max_norm=optim.max_norm * share))


def _finetune() -> dict[str, Finetune]:
    """The downstream tasks, by size: rate, steps, rows of a micro-batch, micro-batches, note, and what else differs; of the authors' configs."""
    asked, boxes_given = "4 GPUs; train + trainval + Visual Genome questions", "1 GPU; annotated boxes"
    again = "4 GPUs, from weights pre-trained a second time, on the texts of VCR; regions of its people first"
    ranked = "8 GPUs; beside each true pair one with another picture and one with another text"
    mined = "16 GPUs; from a run of `retrieval`; 399 broken pairs are read, the 31 best of them train"
    vqa = {
        "base": _tuning(8e-5, 6000, 5120, 5, asked, head_lr=10.0),
        "large": _tuning(5e-5, 5000, 3072, 4, "8 GPUs", head_lr=10.0),
    }
    ve = {"base": _tuning(8e-5, 4000, 4096, 4, "2 GPUs"), "large": _tuning(3e-5, 4000, 4096, 2, "4 GPUs")}
    nlvr2 = {"base": _tuning(3e-5, 8000, 10_240, 1, "1 GPU"), "large": _tuning(2e-5, 5000, 5120, 2, "2 GPUs")}
    vcr = dict.fromkeys(("base", "large"), _tuning(6e-5, 8000, 4000, 5, again))
    retrieval = {"base": _tuning(5e-5, 20_000, 10_240, 4, ranked, samples=40)}
    hard = {"base": _tuning(5e-5, 5000, 10_240, 8, mined, samples=1)}
    re = _tuning(1e-4, 24_000, 10_240, 1, boxes_given + "; RefCOCO and RefCOCOg", 1500, samples=128)
    re_plus = _tuning(6e-5, 10_000, 10_240, 1, boxes_given + "; RefCOCO+", 1000, samples=128)
    third = {"type_vocab_size": ("words.segment.weight", (1,))}
    wider = {"type_vocab_size": ("words.segment.weight", (0, 0)), "vocab_size": ("words.word.weight", (None,) * 81)}
    of_vcr: dict[str, Any] = {"config": {"max_pieces": 220}, "grows": wider, "grown": ("type_vocab_size", 4)}
    answer, answer_vcr = (KeyMap(*bert.numbered(f"{x}_output.", "head.", bert.ANSWER_HEAD)) for x in ("vqa", "vcr"))
    scorer, rank = KeyMap(*bert.numbered("re_output.", "head.", bert.CLASS_HEAD)), KeyMap(("rank_output.", "head."))
    of_match: dict[str, Any] = {"keeps": ("match_head",), "head_from": match_row(1)}
    return {
        "vqa": Finetune(VQA(), vqa, answer, extra=("genome-qa", 0)),
        "ve": Finetune(Entailment(), ve, answer),
        "nlvr2": Finetune(NLVR2(), nlvr2, PAIRED, grows=third),
        "nlvr2_pair": Finetune(NLVR2Pair(), nlvr2, KeyMap(("nlvr2_output.", "head.")), grows=third),
        "vcr": Finetune(VCR(layouts=("vcr_qa", "vcr_qar")), vcr, answer_vcr, **of_vcr),
        "retrieval": Finetune(Retrieval(), retrieval, rank, **of_match),
        "retrieval_hard": Finetune(RetrievalMined(), hard, rank, **of_match),
        "re": Finetune(Refer(), {"base": _summed(re)}, KeyMap(("re_output.", "head."))),
        "re_plus": Finetune(Refer(refer.two_layers), {"base": _summed(re_plus)}, scorer),
    }


PAIRED = KeyMap(
    *(
        (f"attn{i}.{theirs}", f"head.{side}.{ours}")
        for i, side in ((1, "left"), (2, "right"))
        for theirs, ours in (("in_proj_weight", "qkv.weight"), ("in_proj_bias", "qkv.bias"), ("out_proj.", "out."))
    ),
    ("fc.0.", "head.fuse."),
    ("attn_pool.fc.0.", "head.weigh."),
    ("nlvr2_output.", "head.out."),
)
"""The authors' names of the head that reads both pictures of NLVR2."""


class RegionEmbeddings(nn.Module):
    """Features and geometry, projected and normalised apart, summed with a segment and normalised again. Source: sec. 3.1."""

    def __init__(self, config: UNITERConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.feature = nn.Linear(config.feature_size, width)
        self.feature_norm = nn.LayerNorm(width, eps)
        self.geometry = nn.Linear(7, width)
        self.geometry_norm = nn.LayerNorm(width, eps)
        self.mask = nn.Embedding(2, config.feature_size)
        self.norm = nn.LayerNorm(width, eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, regions: Regions, segments: Tensor) -> Tensor:
        """Embeds packed regions: (R, H). Args: segments (R, H), their segment embeddings, a table shared with the words."""
        feats = regions.feats.to(self.feature.weight.dtype) + regions.masked[:, None] * self.mask.weight[1]  # (R, F)
        codes = self.geometry_norm(self.geometry(boxes.seven(regions.boxes)))
        return self.dropout(self.norm(self.feature_norm(self.feature(feats)) + codes + segments))  # type: ignore[no-any-return]


class UNITER(System):
    """UNITER at any size; see the module's docstring."""

    Config = UNITERConfig
    needs = ("text", "regions")
    card = Card(
        name="uniter",
        title="UNITER: UNiversal Image-TExt Representation Learning",
        venue="ECCV 2020",
        paper="arXiv:1909.11740",
        code="github.com/ChenRocks/UNITER 1dbfa62",
        streams="single",
        new="hides words or regions, never both, and aligns words with regions by optimal transport",
        objectives=("mlm", "mrfr", "mrc", "mrc_kl", "itm", "itm_order", "wra"),
        tasks=("vqa", "ve", "nlvr2", "nlvr2_pair", "vcr", "retrieval", "retrieval_hard", "re", "re_plus"),
        weights=("ChenRocks/UNITER .pt",),
        unverified=("corpus sizes", "removal of overlapping pictures", "published scores"),
        features=(("butd", "10-100"),),
    )

    def __init__(self, config: UNITERConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width, eps = config.hidden_size, config.layer_norm_eps
        self.words = Words(config)
        self.regions = RegionEmbeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(width)
        self.word_head = TiedHead(width, config.vocab_size, eps)
        self.feature_head = TiedHead(width, config.feature_size, eps)
        self.class_head = ClassHead(width, config.classes, eps)
        self.match_head = nn.Linear(width, 2)
        initialise(self, config.initializer_range)

    # 1 -- inputs: [CLS] words [SEP], then the regions, which have no positions --------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """[CLS] words [SEP] in segment 0, regions in segment 1.

        Tasks differ. nlvr2: one document a picture, `form` says which, its regions in segment `form` + 1. vcr_qa: texts are the question and the
        choices, `form` says which; vcr_qar: question, right answer, then the rationales. vcr_own: what is true. Answers are segment 2, rationales 3.
        """
        match task:
            case "vcr_qa":
                parts = [(sample.texts[0], 0), (sample.texts[1 + form], 2)]
            case "vcr_qar":
                parts = [(sample.texts[0], 0), (sample.texts[1], 2), (sample.texts[2 + form], 3)]
            case "vcr_own":
                parts = list(zip(sample.texts, (0, 2, 3), strict=False))
            case _:
                parts = [(sample.texts[0], 0)]
        second = form if task in ("nlvr2", "nlvr2_pair") else 0
        text, pieces = bert_rows(self.vocab, sample.key, parts, self.config.max_pieces, own_sep=task == "vcr_own")
        return Example(
            key=document_key(sample, task, form),
            text=text,
            regions=region_rows(sample.key, picture_of(sample, second), self.config.feature_size, 1 + second, second),
            links=link_rows(sample, pieces[0]),
            sample=sample.key,
        )

    # 2 -- stream: one encoder over words and regions ---------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds, joins and encodes; pools the output of [CLS]."""
        text, regions = batch.text, batch.regions
        assert text is not None and regions is not None, "UNITER needs text and regions"
        seen = self.regions(regions, self.words.segment(regions.segment_ids))  # (R, H)
        return encode_joined(
            self.encoder, self.pooler, self.words(text), text.packing, seen, regions.packing, self.read(batch)
        )

    # 3 -- objectives -----------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Conditional masking (sec. 3.2): words or regions, never both; or a broken pair for matching and alignment."""
        config, task = self.config, "vcr_own" if self.config.own else None
        shown, rates = right_text(sample) if task else sample, (config.mlm_rate, config.mlm_linked_rate)
        match goal:
            case "mlm":
                return mlm.hide(self.lay_out(shown, task), self.vocab, rng, *rates, apart=bool(task))
            case "mrfr" | "mrc" | "mrc_kl":
                return mrm.hide(self.lay_out(shown, task), rng, goal, config.mrm_rate)
            case "itm" | "itm_order":
                share, reordered = config.itm_false_text_share, goal == "itm_order"
                pair, label = itm.swap(shown, rng, draw, config.itm_rate, share, reordered)
                example = self.lay_out(pair, task)
                example.targets["itm"] = np.array(label)
                return example
        raise BadInput(f"uniter has no objective {goal!r}; it has mlm, mrfr, mrc, mrc_kl, itm (with wra), itm_order")

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal; matching brings the alignment loss along."""
        found: dict[str, Tensor] = {}
        hidden = {
            "mlm": (self.word_logits, mlm.score),
            "mrfr": (self.region_features, mrm.regress),
            "mrc": (self.region_classes, mrm.classify),
            "mrc_kl": (self.region_classes, mrm.divergence),
        }
        for goal in batch.targets:
            if goal == "itm":
                found[goal] = itm.score(self.match_head(encoded.pooled), batch.labels(goal))
                cost, plan = self._transport(encoded, batch)
                found["wra"] = wra.score(wra.distances(cost, plan), batch.labels(goal))
            else:
                picks, (guess, score) = batch.picks(goal), hidden[goal]
                found[goal] = score(guess(encoded, picks.rows), picks.labels)
        return found

    def region_features(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, F) features foretold at region rows; the table is the transposed feature projection."""
        assert encoded.visual is not None
        return self.feature_head(encoded.visual.index_select(0, rows), self.regions.feature.weight.t())  # type: ignore[no-any-return]

    def region_classes(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, C) class logits at region rows."""
        assert encoded.visual is not None
        return self.class_head(encoded.visual.index_select(0, rows))  # type: ignore[no-any-return]

    def alignments(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """The transport plan of WRA, (B, Lt, Lr), and its similarity 1 - cost."""
        cost, plan = self._transport(encoded, batch)
        return {"transport": plan.transpose(1, 2), "similarity": 1 - cost}

    def _transport(self, encoded: Encoded, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cost (B, Lt, Lr) and plan (B, Lr, Lt) between all words, [CLS] and [SEP] among them, and all regions."""
        text, regions = batch.text, batch.regions
        assert text is not None and regions is not None and encoded.text is not None and encoded.visual is not None
        return wra.align(encoded.text, encoded.visual, text.packing, regions.packing, self.config.ot_iterations)

    # 4 -- recipes and downstream: the authors' configs, and one that a laptop core learns from generated scenes ------

    recipes = _recipes()
    from_bert = bert.FromBert()
    picked_goals = ("mlm", "mrfr", "mrc", "mrc_kl")
    heads = ("word_head", "feature_head", "class_head", "match_head")
    finetune, chosen = _finetune(), ("own", "max_pieces")

    # 5 -- checkpoint -----------------------------------------------------------------------------------------------

    sizes = bert.SIZES | {"feature_size": ("regions.feature.weight", 1), "classes": ("class_head.out.weight", 0)}
    keys = KeyMap(
        *bert.body("uniter."),
        ("uniter.img_embeddings.img_linear.", "regions.feature."),
        ("uniter.img_embeddings.img_layer_norm.", "regions.feature_norm."),
        ("uniter.img_embeddings.pos_linear.", "regions.geometry."),
        ("uniter.img_embeddings.pos_layer_norm.", "regions.geometry_norm."),
        ("uniter.img_embeddings.mask_embedding.", "regions.mask."),
        ("uniter.img_embeddings.LayerNorm.", "regions.norm."),
        ("uniter.pooler.dense.", "pooler.dense."),
        *bert.word_head(),
        *bert.numbered("feat_regress.net.", "feature_head.", bert.CLASS_HEAD[:2]),
        ("feat_regress.bias", "feature_head.bias"),
        *bert.numbered("region_classifier.net.", "class_head.", bert.CLASS_HEAD),
        ("itm_output.", "match_head."),
        Tied("cls.predictions.decoder.weight", "uniter.embeddings.word_embeddings.weight"),
        Tied("feat_regress.weight", "uniter.img_embeddings.img_linear.weight"),
        optional=("regions.", "word_head.", "feature_head.", "class_head.", "match_head."),
    )
