"""Unicoder-VL: A Universal Encoder for Vision and Language by Cross-modal Pre-training (Li et al., AAAI 2020).

New: regions are hidden and their object class is told (a hard label); trained on web captions only, for retrieval.
Unusual: no code and no weights were published. What the paper is known to say is followed; what is not known is a field of the config, named in
`card.unverified`. Every region is the word [IMG]. Words and regions are hidden in the same pass; in a broken pair they are hidden
as well, but not asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia import boxes
from intarsia.batch import Batch, Encoded, Example, Regions, Sample
from intarsia.layout import bert_rows, document_key, link_rows, region_rows
from intarsia.objectives import itm, joint, mlm, mrm
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder
from intarsia.parts.heads import ClassHead, Pooler, TiedHead
from intarsia.parts.numbers import TINY, BertNumbers
from intarsia.parts.stream import encode_joined
from intarsia.recipe import TINY_RUN, Batching, Card, Mix, Recipe, Schedule, adam
from intarsia.system import Finetune, System, Tuning
from intarsia.tasks.retrieval import RetrievalBinary, match_row
from intarsia.tasks.vcr import VCROneOf
from intarsia.text import Vocab
from intarsia.weights import bert
from intarsia.weights.keymap import KeyMap


@dataclass(frozen=True)
class UnicoderVLConfig(BertNumbers):
    """The numbers of the one published size."""

    feature_size: int = 2048
    """Numbers of a region feature."""
    classes: int = 1601
    """Classes of the detector, background first; the head tells the others only."""
    max_pieces: int = 42
    """Longer texts are left out (of VCR cut): 144 rows less 100 regions, [CLS] and [SEP]."""
    region_position: Literal["shared", "sequential", "first", "none"] = "shared"
    """Position of the regions: row 0 for all; 0, 1, 2, .. in the detector's order; the same with the text behind them, as M3P does; none. Not known."""
    l2_normalise_features: bool = False
    """Features are scaled to length 1 first, as M3P does. Not known."""
    l2_normalise_boxes: bool = False
    """The five location numbers are scaled to length 1, as M3P does. Not known."""
    mlm_rate: float = 0.15
    moc_rate: float = 0.15
    vlm_rate: float = 0.5
    """Share of broken pairs."""


class RegionEmbeddings(nn.Module):
    """LN(feature + location) plus the word [IMG], a segment and a position, normalised again. Source: sec. 3.1."""

    def __init__(self, config: UnicoderVLConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.config = config
        self.feature = nn.Linear(config.feature_size, width)
        self.location = nn.Linear(5, width)
        self.norm = nn.LayerNorm(width, eps)
        self.image_word = nn.Parameter(torch.zeros(width))
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, regions: Regions, words: Words) -> Tensor:
        """Embeds packed regions: (R, H). Args: words, whose segments, positions and last norm the regions share."""
        feats, codes = regions.feats.to(self.feature.weight.dtype), boxes.five(regions.boxes)
        if self.config.l2_normalise_features:
            feats = F.normalize(feats, dim=-1)
        if self.config.l2_normalise_boxes:
            codes = F.normalize(codes, dim=-1)
        seen = self.dropout(self.norm(self.feature(feats) + self.location(codes)))  # (R, H)
        place = words.segment(regions.segment_ids)
        if self.config.region_position != "none":
            place = place + words.position(regions.position_ids)
        return words.dropout(words.norm(seen + self.image_word + place))  # type: ignore[no-any-return]


def _recipes() -> dict[str, Recipe[UnicoderVLConfig]]:
    """The published run as far as it is known, and a tiny one."""
    base = Recipe(
        config=UnicoderVLConfig(),
        mix=Mix(share={"mlm+moc+vlm": 1}),
        optim=adam(1e-4),
        schedule=Schedule(steps=200_000, warmup=10_000),
        batching=Batching(rows=1400, window=8192, accumulate=4),
        precision="bf16",
        note="Conceptual Captions and SBU, 3.8 M pairs, 4 GPUs, batch 192 with accumulation 4; steps, warm-up, decay and clipping are not known.",
    )
    tiny = replace(
        base,
        config=UnicoderVLConfig(
            **TINY,
            mlm_rate=0.25,
        ),
        mix=Mix(share={"mlm+moc": 1, "mlm+moc+vlm": 2}, begin={"mlm+moc+vlm": 0.3}),
        **TINY_RUN,
        note="Not a published recipe: learns generated scenes from scratch in minutes on two CPU cores.",
    )
    return {"tiny": tiny, "base": base}


def _finetune() -> dict[str, Finetune]:
    """Retrieval and VCR; the numbers are those of M3P, which goes on from this system, where the paper's are not known."""
    retrieval = Tuning(
        optim=adam(5e-5),
        schedule=Schedule(steps=30_000, warmup=3000),
        batching=Batching(rows=3000, accumulate=4),
        samples=24,
        note="beside each true pair three broken ones, by picture and by text; steps not known",
    )
    vcr = replace(retrieval, note="not known")
    return {
        "retrieval": Finetune(
            RetrievalBinary(broken_by=("ppp", "ttt")),
            {"base": retrieval},
            KeyMap(("head.", "head.")),
            head_from=match_row(0),
        ),
        "vcr": Finetune(VCROneOf(), {"base": vcr}, KeyMap(("head.", "head."))),
    }


class UnicoderVL(System):
    """Unicoder-VL; see the module's docstring."""

    Config = UnicoderVLConfig
    needs = ("text", "regions")
    card = Card(
        name="unicoder_vl",
        title="Unicoder-VL: A Universal Encoder for Vision and Language by Cross-modal Pre-training",
        venue="AAAI 2020",
        paper="arXiv:1908.06066",
        code="none published; read beside microsoft/M3P 8d677d8, its successor",
        streams="single",
        new="tells the object class of hidden regions; trained on web captions only",
        objectives=("mlm", "moc", "vlm"),
        tasks=("retrieval", "vcr"),
        weights=(),
        unverified=(
            "start from BERT-base",
            "rows of a document (44 of text, 100 regions)",
            "order and positions of the regions",
            "normalised features and boxes",
            "share of broken pairs and which side is broken",
            "losses of broken pairs",
            "optimizer, batch, steps, warm-up, decay and clipping",
            "fine-tuning of retrieval and VCR",
            "published scores",
        ),
    )

    def __init__(self, config: UnicoderVLConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width, eps = config.hidden_size, config.layer_norm_eps
        self.words = Words(config)
        self.regions = RegionEmbeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(width)
        self.word_head = TiedHead(width, config.vocab_size, eps)
        self.class_head = ClassHead(width, config.classes - 1, eps)
        self.match_head = nn.Linear(width, 1)
        initialise(self, config.initializer_range)
        nn.init.normal_(self.regions.image_word, 0.0, config.initializer_range)

    # 1 -- inputs: [CLS] words [SEP], then the regions, each the word [IMG] -------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """[CLS] words [SEP] in segment 0, regions in segment 1. vcr: texts are the question and the choices, `form` says which; the longer one is cut."""
        parts = [(sample.texts[0], 0)]
        if task == "vcr":
            parts.append((sample.texts[1 + form], 0))
        text, pieces = bert_rows(self.vocab, sample.key, parts, self.config.max_pieces, cut=task == "vcr")
        regions = region_rows(sample.key, sample.pictures[0], self.config.feature_size, 1)
        if self.config.region_position in ("sequential", "first"):
            regions.position_ids = np.arange(len(regions))
        if self.config.region_position == "first":
            text.position_ids += len(regions)
        return Example(
            key=document_key(sample, task, form),
            text=text,
            regions=regions,
            links=link_rows(sample, pieces[0]),
            sample=sample.key,
        )

    # 2 -- stream: one encoder over words and regions ---------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds, joins and encodes; pools the output of [CLS]."""
        text, regions = batch.text, batch.regions
        assert text is not None and regions is not None, "Unicoder-VL needs text and regions"
        seen = self.regions(regions, self.words)
        return encode_joined(
            self.encoder, self.pooler, self.words(text), text.packing, seen, regions.packing, self.read(batch)
        )

    # 3 -- objectives -----------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Words and regions; in a broken pair (another picture or another text) nothing is asked for."""
        config = self.config
        rates = (config.mlm_rate, config.moc_rate, config.vlm_rate)
        return joint.hide_pair(self.lay_out, sample, goal, "vlm", self.vocab, rng, draw, rates)

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal; the sum of all three is trained."""
        assert encoded.visual is not None
        found: dict[str, Tensor] = {}
        for goal in batch.targets:
            match goal:
                case "mlm":
                    picks = batch.picks(goal)
                    found[goal] = mlm.score(self.word_logits(encoded, picks.rows), picks.labels)
                case "moc":
                    picks = batch.picks(goal)
                    logits = self.class_head(encoded.visual.index_select(0, picks.rows))
                    found[goal] = mrm.classify(logits, picks.labels)
                case "vlm":
                    found[goal] = itm.score_one(self.match_scores(encoded), batch.labels(goal))
        return found

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) logits that text and picture belong together."""
        return self.match_head(encoded.pooled).squeeze(-1).float()  # type: ignore[no-any-return]

    # 4 -- recipes ----------------------------------------------------------------------------------------------------

    recipes = _recipes()
    from_bert = bert.FromBert()

    # 5 -- downstream -------------------------------------------------------------------------------------------------

    picked_goals = ("mlm", "moc", "vlm")
    heads = ("word_head", "class_head", "match_head")
    finetune = _finetune()

    # 6 -- checkpoint: none was published; the text part has BERT's names, so that BERT can begin it -------------------

    sizes = bert.SIZES | {"feature_size": ("regions.feature.weight", 1)}
    keys = KeyMap(
        *bert.body("bert."),
        *bert.word_head(),
        ("bert.pooler.dense.", "pooler.dense."),
        ("regions.", "regions."),
        ("class_head.", "class_head."),
        ("match_head.", "match_head."),
        optional=("regions.", "word_head.", "class_head.", "match_head."),
    )
