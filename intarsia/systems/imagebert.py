"""ImageBERT: Cross-modal Pre-training with Large-scale Weak-supervised Image-Text Data (Qi et al., arXiv 2020).

New: pre-trains in stages, first on ten million weakly labelled web pairs (LAIT, never released), then on cleaner captions, with the same four objectives.
Unusual: all four losses are added in every step; those on words and regions count for true pairs only. The regions stand at one dummy position, between
the text's [SEP] and a closing one. No code and no weights were published: what is not known is a field of the config, named in `card.unverified`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from intarsia import boxes
from intarsia.batch import Batch, Encoded, Example, Regions, Sample, TextRows
from intarsia.layout import bert_rows, link_rows, region_rows
from intarsia.objectives import itm, joint, mlm, mrm
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder
from intarsia.parts.heads import Pooler, TiedHead
from intarsia.parts.numbers import TINY, BertNumbers
from intarsia.parts.stream import encode_joined
from intarsia.recipe import TINY_RUN, Batching, Card, Mix, Recipe, Schedule, adam
from intarsia.system import Finetune, System, Tuning
from intarsia.tasks import plain
from intarsia.tasks.retrieval import RetrievalBinary, RetrievalOneOf, RetrievalTriplet, match_row
from intarsia.text import Vocab
from intarsia.weights import bert
from intarsia.weights.keymap import KeyMap


@dataclass(frozen=True)
class ImageBERTConfig(BertNumbers):
    """The numbers of the one published size."""

    feature_size: int = 2048
    """Numbers of a region feature."""
    classes: int = 1601
    """Classes of the detector, background first; the head tells the others only."""
    max_pieces: int = 41
    """Longer texts are left out: 144 rows less 100 regions, [CLS] and two [SEP]."""
    closing_sep: bool = True
    """A [SEP] after the regions. Seen in a figure only."""
    region_position: int | None = None
    """The dummy position of all regions; None = the number of text rows before them. Not known."""
    mlm_rate: float = 0.15
    region_rate: float = 0.15
    """Share of regions hidden, for MOC and MRFR alike."""
    itm_rate: float = 0.5
    """Share of broken pairs. Not known."""


class RegionEmbeddings(nn.Module):
    """Feature, location, segment and dummy position, summed and normalised once. Source: sec. 3.1."""

    def __init__(self, config: ImageBERTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.feature = nn.Linear(config.feature_size, width)
        self.location = nn.Linear(5, width)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, regions: Regions, place: Tensor) -> Tensor:
        """Embeds packed regions: (R, H). Args: place (R, H), segment and position embeddings, whose tables are the words'."""
        feats = regions.feats.to(self.feature.weight.dtype)
        summed = self.feature(feats) + self.location(boxes.five(regions.boxes)) + place
        return self.dropout(self.norm(summed))  # type: ignore[no-any-return]


def _recipes() -> dict[str, Recipe[ImageBERTConfig]]:
    """Both stages as far as they are known, and a tiny run."""
    stage1 = Recipe(
        config=ImageBERTConfig(),
        mix=Mix(share={"mlm+moc+mrfr+itm": 1}),
        optim=adam(1e-4),
        schedule=Schedule(steps=3_500_000, warmup=35_000),
        batching=Batching(rows=1400, window=8192, accumulate=1),
        precision="bf16",
        note="Stage 1: 10 M pairs of LAIT or the like; 17 epochs at batch 48 over 4 GPUs, 12 pairs each. Warm-up, decay and clipping are not known.",
    )
    base = replace(
        stage1,
        schedule=Schedule(steps=1_400_000, warmup=14_000),
        note="Stage 2: Conceptual Captions and SBU, 4 M pairs, from the weights of `stage1` (--weights); the same four losses. Epochs of each stage are not known.",
    )
    tiny = replace(
        base,
        config=ImageBERTConfig(
            **TINY,
            mlm_rate=0.25,
        ),
        mix=Mix(
            share={"mlm+moc+mrfr": 1, "mlm+moc+mrfr+itm": 2}, begin={"mlm+moc+mrfr+itm": 0.3}, scale={"mrfr": 1 / 192}
        ),
        **TINY_RUN,
        note="Not a published recipe: learns generated scenes from scratch in minutes on two CPU cores. MRFR is weighed by one over the feature's width.",
    )
    return {"tiny": tiny, "base": base, "stage1": stage1}


def _finetune() -> dict[str, Finetune]:
    """Retrieval, the only task: binary cross entropy was best; a triplet loss and cross entropy over one true pair and three broken ones were tried too."""
    tuning = Tuning(
        optim=adam(5e-5),
        schedule=Schedule(steps=785_000, warmup=7850),
        batching=Batching(rows=3000),
        samples=24,
        note="130 epochs of Flickr30k at batch 24 over 4 GPUs; negatives by picture and by text; warm-up and decay are not known",
    )
    keys, first = KeyMap(("head.", "head.")), match_row(0)
    return {
        "retrieval": Finetune(RetrievalBinary(), {"base": tuning}, keys, head_from=first),
        "retrieval_triplet": Finetune(RetrievalTriplet(), {"base": tuning}, keys, head_from=first),
        "retrieval_one": Finetune(
            RetrievalOneOf(scorer=plain, broken_by=("ppp", "ttt")), {"base": tuning}, keys, head_from=first
        ),
    }


class ImageBERT(System):
    """ImageBERT; see the module's docstring."""

    Config = ImageBERTConfig
    needs = ("text", "regions")
    card = Card(
        name="imagebert",
        title="ImageBERT: Cross-modal Pre-training with Large-scale Weak-supervised Image-Text Data",
        venue="arXiv 2020",
        paper="arXiv:2001.07966",
        code="none published",
        streams="single",
        new="pre-trains in stages, from weakly labelled web pairs to cleaner captions",
        objectives=("mlm", "moc", "mrfr", "itm"),
        tasks=("retrieval", "retrieval_triplet", "retrieval_one"),
        weights=(),
        unverified=(
            "dummy position",
            "closing [SEP]",
            "segments of the regions",
            "feature width",
            "what is zeroed of a hidden region",
            "reduction of the losses",
            "share of broken pairs",
            "epsilon, clipping, warm-up and decay; epochs a stage",
            "margin of the triplet loss; broken pairs beside a true one, where they compete",
            "published scores",
        ),
    )

    def __init__(self, config: ImageBERTConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width = config.hidden_size
        self.words = Words(config)
        self.regions = RegionEmbeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(width)
        self.word_head = TiedHead(width, config.vocab_size, config.layer_norm_eps)
        self.class_head = nn.Linear(width, config.classes - 1)
        self.feature_head = nn.Linear(width, config.feature_size)
        self.match_head = nn.Linear(width, 1)
        initialise(self, config.initializer_range)

    # 1 -- inputs: [CLS] words [SEP], regions at one position, [SEP] --------------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """[CLS] words [SEP] in segment 0; regions and the closing [SEP] in segment 1."""
        text, pieces = bert_rows(self.vocab, sample.key, [(sample.texts[0], 0)], self.config.max_pieces)
        regions = region_rows(sample.key, sample.pictures[0], self.config.feature_size, 1)
        regions.position_ids += len(text) if self.config.region_position is None else self.config.region_position
        if self.config.closing_sep:
            text = TextRows(
                ids=np.append(text.ids, self.vocab.sep),
                segment_ids=np.append(text.segment_ids, 1),
                position_ids=np.append(text.position_ids, len(text) + 1),
                words=np.append(text.words, -1),
            )
        links = link_rows(sample, pieces[0])
        return Example(key=sample.key, text=text, regions=regions, links=links, sample=sample.key)

    # 2 -- stream: one encoder over words and regions ---------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds, joins and encodes; pools the output of [CLS]."""
        text, regions = batch.text, batch.regions
        assert text is not None and regions is not None, "ImageBERT needs text and regions"
        place = self.words.segment(regions.segment_ids) + self.words.position(regions.position_ids)  # (R, H)
        seen = self.regions(regions, place)
        return encode_joined(
            self.encoder, self.pooler, self.words(text), text.packing, seen, regions.packing, self.read(batch)
        )

    # 3 -- objectives -----------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Words and regions; they are asked for in true pairs only (sec. 4, "conditional mask")."""
        config = self.config
        rates = (config.mlm_rate, config.region_rate, config.itm_rate)
        return joint.hide_pair(self.lay_out, sample, goal, "itm", self.vocab, rng, draw, rates)

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal; the sum of all four is trained."""
        found: dict[str, Tensor] = {}
        for goal in batch.targets:
            if goal == "itm":
                found[goal] = itm.score_one(self.match_scores(encoded), batch.labels(goal))
                continue
            picks = batch.picks(goal)
            match goal:
                case "mlm":
                    found[goal] = mlm.score(self.word_logits(encoded, picks.rows), picks.labels)
                case "moc":
                    found[goal] = mrm.classify(self.class_head(_at(encoded, picks.rows)), picks.labels)
                case "mrfr":
                    predicted = self.feature_head(_at(encoded, picks.rows))
                    found[goal] = mrm.regress(predicted, picks.labels) * self.config.feature_size
        return found

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) logits that text and picture belong together."""
        return self.match_head(encoded.pooled).squeeze(-1).float()  # type: ignore[no-any-return]

    # 4 -- recipes ----------------------------------------------------------------------------------------------------

    recipes = _recipes()
    from_bert = bert.FromBert()

    # 5 -- downstream -------------------------------------------------------------------------------------------------

    picked_goals = ("mlm", "moc", "mrfr", "itm")
    heads = ("word_head", "class_head", "feature_head", "match_head")
    finetune = _finetune()

    # 6 -- checkpoint: none was published; the text part has BERT's names, so that BERT can begin it -------------------

    sizes = bert.SIZES | {"feature_size": ("regions.feature.weight", 1)}
    keys = KeyMap(
        *bert.body("bert."),
        *bert.word_head(),
        ("bert.pooler.dense.", "pooler.dense."),
        *((f"{name}.", f"{name}.") for name in ("regions", "class_head", "feature_head", "match_head")),
        optional=("regions.", "word_head.", "class_head.", "feature_head.", "match_head."),
    )


def _at(encoded: Encoded, rows: Tensor) -> Tensor:
    """(M, H) outputs of the regions at rows."""
    assert encoded.visual is not None
    return encoded.visual.index_select(0, rows)
