"""VLP: Unified Vision-Language Pre-Training for Image Captioning and VQA (Zhou et al., AAAI 2020).

New: one encoder reads and writes. The same masked words are trained under two visibilities, all of the document or only what stands before, so that it
both answers and generates.
Unusual: regions stand between [CLS] and the first [SEP]; what a region has of place and class takes the place of a position embedding. Boxes are scaled
by the furthest box, not by the picture. At most three words of a caption are hidden, its closing [SEP] may be one of them. LayerNorm's epsilon is 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia import boxes
from intarsia.batch import Batch, Encoded, Example, Picks, RegionRows, Regions, Sample, TextRows
from intarsia.errors import BadInput
from intarsia.layout import link_rows, region_rows
from intarsia.objectives import lm, mrm
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder
from intarsia.parts.heads import Pooler, TiedHead
from intarsia.parts.numbers import TINY, RegionNumbers
from intarsia.parts.sliced_head import SlicedHead, is_sliced, resliced
from intarsia.parts.stream import encode_joined
from intarsia.recipe import TINY_RUN, Batching, Card, Mix, Recipe, Schedule, bert_adam
from intarsia.system import Captioning, Finetune, System, Tuning
from intarsia.tasks import HeadConfig
from intarsia.tasks.vqa import VQA
from intarsia.text import Vocab
from intarsia.weights import bert
from intarsia.weights.detectron import read_fc7
from intarsia.weights.files import fill
from intarsia.weights.keymap import Drop, KeyMap, Tied


@dataclass(frozen=True)
class VLPConfig(RegionNumbers):
    """The numbers of the one published size; its region features are fc6 of the detector."""

    vocab_size: int = 28996
    """Pieces of the vocabulary (bert-base-cased)."""
    layer_norm_eps: float = 1e-5
    type_vocab_size: int = 6
    """Segments: 0 and 1 where all is seen, 4 and 5 where a caption is written."""
    max_pieces: int = 20
    """Longer texts are cut at their end, as by all commands the authors give."""
    lm_rate: float = 0.15
    lm_most: int = 3
    """At most so many words of a caption are hidden."""
    s2s_share: float = 0.75
    """Share of documents whose caption sees only what stands before."""
    drop_worst: float = 0.0
    """Share of documents left out of the loss, the worst ones."""
    label_smoothing: float = 0.0
    relax_projection: bool = False
    """The word head is four times as wide, and a document's visibility chooses the slice that counts."""
    vis_mask_prob: float = 0.0
    """Of R regions int(R * this) are hidden from every row, and told apart by their places and what is pooled."""


class RegionEmbeddings(nn.Module):
    """Features through two layers; box, confidence and soft label through one, in place of a position. Source: sec. 3.1."""

    def __init__(self, config: VLPConfig) -> None:
        super().__init__()
        width, size = config.hidden_size, config.feature_size
        self.fc7 = nn.Linear(size, size)
        self.feature = nn.Linear(size, width)
        self.place = nn.Linear(6 + config.classes, width)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, regions: Regions, words: Words) -> Tensor:
        """Embeds packed regions: (R, H). Args: words, whose segments and norm the regions share."""
        seen, place = self.parts(regions)
        summed = self.dropout(seen) + self.dropout(place) + words.segment(regions.segment_ids)
        return words.dropout(words.norm(summed))  # type: ignore[no-any-return]

    def parts(self, regions: Regions, hidden: Picks | None = None) -> tuple[Tensor, Tensor]:
        """Feature part and place part, each (R, H), before dropout; given hidden rows and their features, (M, H) of those alone."""
        codes = place_codes(regions)
        feats, codes = (regions.feats, codes) if hidden is None else (hidden.labels, codes[hidden.rows])
        seen = F.relu(self.feature(F.relu(self.fc7(feats.to(self.fc7.weight.dtype)))))
        return seen, F.relu(self.place(codes.to(seen.dtype)))


def place_codes(regions: Regions) -> Tensor:
    """(R, 6 + C): box, area and confidence, and the soft label, each normalised to mean 0 and variance 1."""
    assert regions.probs is not None and regions.scores is not None
    box = boxes.five_by_furthest(regions.boxes.float(), regions.packing.doc, regions.packing.documents)
    codes = torch.cat([box, regions.scores.float()[:, None]], -1)
    return torch.cat([F.layer_norm(x, x.shape[-1:]) for x in (codes, regions.probs.float())], -1)


def _recipes() -> dict[str, Recipe[VLPConfig]]:
    """The authors' runs on Conceptual Captions and on COCO captions, and a tiny one."""
    base = Recipe(
        config=VLPConfig(),
        mix=Mix(share={"lm": 1}),
        optim=bert_adam(1e-4),
        schedule=Schedule(steps=176_000, warmup=17_600, shape="bert"),
        batching=Batching(rows=7360, window=8192),
        note="Conceptual Captions, 30 epochs at batch 64 on each of 8 GPUs, 100 regions; fp32; from UniLM or BERT weights.",
    )
    caption = replace(
        base,
        config=VLPConfig(s2s_share=1.0),
        optim=bert_adam(3e-5),
        schedule=Schedule(steps=33_000, warmup=3300, shape="bert"),
        note="COCO captions (Karpathy's train and restval), 30 epochs at batch 64 on each of 8 GPUs, from `base` (--weights).",
    )
    tiny = replace(
        base,
        config=VLPConfig(**TINY, lm_rate=0.25),
        **TINY_RUN,
        note="Not a published recipe: learns generated scenes from scratch in minutes on two CPU cores.",
    )
    return {"tiny": tiny, "base": base, "caption": caption}


def _cls_times_sep(encoded: Encoded, batch: Batch) -> Tensor:
    """(B, H) the outputs of [CLS] and of the [SEP] after the regions, multiplied."""
    assert batch.text is not None and encoded.text is not None
    first = batch.text.packing.first
    return encoded.text.index_select(0, first) * encoded.text.index_select(0, first + 1)


def _answers(config: HeadConfig, outputs: int) -> nn.Module:
    """Twice the width, ReLU, answers."""
    width = config.hidden_size
    head = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, outputs))
    initialise(head, config.initializer_range)
    return head


def _one_hidden(example: Example, vocab: Vocab, rng: np.random.Generator) -> None:
    """One piece of a question, or its [SEP], by the 80/10/10 rule; nothing is asked of it."""
    assert example.text is not None
    lm.hide_few(example, vocab, rng, np.arange(2, len(example.text)), 0, 0.0, 1, "lm")
    del example.targets["lm"]


def _finetune() -> dict[str, Finetune]:
    """VQA; captions are in `_captioning`."""
    vqa = Tuning(
        optim=bert_adam(2e-5),
        schedule=Schedule(steps=100_000, warmup=10_000, shape="bert"),
        batching=Batching(rows=7360),
        samples=64,
        note="20 epochs at batch 64 on each of 2 GPUs; in training one piece of the question stays hidden by the 80/10/10 rule",
    )
    task = VQA(reads=_cls_times_sep, scorer=_answers, blot=_one_hidden)
    return {"vqa": Finetune(task, {"base": vqa}, KeyMap(("ans_classifier.", "head.")))}


def _captioning() -> Captioning:
    """The authors' caption recipe and its self-critical continuation."""
    critical = Tuning(
        optim=bert_adam(1e-6),
        schedule=Schedule(steps=266_000, warmup=26_600, shape="bert"),
        batching=Batching(rows=7360),
        samples=16,
        note="30 epochs at batch 16 on each of 4 GPUs; one caption drawn for each caption of the data",
    )
    return Captioning(
        recipes={"base": "caption"},
        search="frames",
        length=20,
        critical={"base": critical},
        times=1,
        over="pieces",
        paired=True,
        published="COCO B@4, M, C, S 36.5, 28.4, 116.9, 21.2; self-critical 39.5, 29.3, 129.3, 23.2 (R)",
    )


class VLP(System):
    """VLP; see the module's docstring."""

    Config = VLPConfig
    needs = ("text", "regions")
    card = Card(
        name="vlp",
        title="VLP: Unified Vision-Language Pre-Training for Image Captioning and VQA",
        venue="AAAI 2020",
        paper="arXiv:1909.11059",
        code="github.com/LuoweiZhou/VLP 74c4d85",
        streams="single",
        new="one encoder that reads and writes, by what a caption may see",
        objectives=("lm",),
        tasks=("vqa", "caption"),
        weights=("LuoweiZhou/VLP .bin",),
        unverified=("pictures with fewer than 100 regions", "size of the corpus, so all steps", "steps of VQA"),
    )

    def __init__(self, config: VLPConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        if not 0 <= config.vis_mask_prob <= 1:
            raise BadInput(f"config.vis_mask_prob {config.vis_mask_prob}: must be from 0 to 1")
        self.config, self.vocab = config, vocab
        self.words = Words(config)
        self.regions = RegionEmbeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config.hidden_size).requires_grad_(config.vis_mask_prob > 0)  # else no loss reads it
        head = SlicedHead if config.relax_projection else TiedHead
        self.word_head = head(config.hidden_size, config.vocab_size, config.layer_norm_eps)
        initialise(self, config.initializer_range)

    def fill_trunk(self, path: Path) -> None:
        """The first layer over features starts as the fc7 of the detector whose fc6 they are; it trains. See `weights.detectron`."""
        fill(self.regions.fc7, read_fc7(path), str(path))

    # 1 -- inputs: [CLS] regions [SEP] caption [SEP] --------------------------------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Everything sees everything; `lay_out_caption` is the other visibility."""
        return self._document(sample, writes=False)

    def lay_out_caption(self, sample: Sample) -> Example:
        """The caption sees what stands before; nothing sees the caption."""
        return self._document(sample, writes=True)

    def lay_out_next(self, sample: Sample, said: Sequence[int]) -> tuple[Example, int]:
        """[CLS] regions [SEP], what was said, [MASK]."""
        text = self._rows(sample, np.array([*said, self.vocab.mask]), np.full(len(said) + 1, -1), writes=True)
        return Example(sample.key, text, self._regions(sample, 4), sample=sample.key), len(text) - 1

    def _document(self, sample: Sample, writes: bool) -> Example:
        pieces = self.vocab.encode(sample.texts[0])
        if not len(pieces):
            raise BadInput(f"sample {sample.key}: the caption {sample.texts[0]!r} is empty")
        whole, pieces = len(pieces), pieces.part(0, self.config.max_pieces)
        ids, words = np.append(pieces.ids, self.vocab.sep), np.append(pieces.words, -1)
        text = self._rows(sample, ids, words, writes)
        text.cut = whole - len(pieces)
        return Example(
            sample.key, text, self._regions(sample, 4 * writes), link_rows(sample, pieces, 2), sample=sample.key
        )

    def _rows(self, sample: Sample, ids: np.ndarray, words: np.ndarray, writes: bool) -> TextRows:
        """[CLS], the [SEP] after the regions, then the caption's rows."""
        count, after = len(ids), len(sample.pictures[0].boxes) + 1
        return TextRows(
            ids=np.concatenate([[self.vocab.cls, self.vocab.sep], ids]),
            segment_ids=np.repeat([4 * writes, 1 + 4 * writes], [2, count]),
            position_ids=np.concatenate([[0], np.arange(after, after + count + 1)]),
            words=np.concatenate([[-1, -1], words]),
            levels=np.concatenate([[0, 0], np.arange(1, count + 1)]).astype(np.int32) if writes else None,
        )

    def _regions(self, sample: Sample, segment: int) -> RegionRows:
        picture = sample.pictures[0]
        if picture.probs is None:
            raise BadInput(
                f"sample {sample.key}: VLP reads the soft labels of its regions, picture {picture.name} has none"
            )
        rows = region_rows(sample.key, picture, self.config.feature_size, segment)
        rows.scores = picture.probs.max(-1) if picture.scores is None else picture.scores
        return rows

    # 2 -- stream: one encoder ------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds, joins and encodes; who sees whom is in the rows' levels."""
        text, regions = batch.text, batch.regions
        assert text is not None and regions is not None, "VLP needs text and regions"
        seen = self.regions(regions, self.words)
        encoded = encode_joined(
            self.encoder, self.pooler, self.words(text), text.packing, seen, regions.packing, self.read(batch)
        )
        return replace(encoded, segments=text.segment_ids)

    def word_logits(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, vocabulary); with slices, by that of each row's document."""
        if not isinstance(self.word_head, SlicedHead):
            return super().word_logits(encoded, rows)
        assert encoded.text is not None and encoded.segments is not None
        return self.word_head(encoded.text[rows], self.words.word.weight, encoded.segments[rows] >= 4)  # type: ignore[no-any-return]

    # 3 -- objectives ---------------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """A few words, the closing [SEP] among the candidates, in a document that is read or written (sec. 3.2)."""
        if goal != "lm":
            raise BadInput(f"vlp has no objective {goal!r}; it has lm")
        example = self._document(sample, writes=rng.random() < self.config.s2s_share)
        assert example.text is not None
        rows = np.arange(2, len(example.text))
        lm.hide_few(example, self.vocab, rng, rows, len(rows) - 1, self.config.lm_rate, self.config.lm_most, goal)
        if not self.config.vis_mask_prob:
            return example
        return mrm.hide_from_all(example, rng, "vis", self.config.vis_mask_prob)

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """That of words, and where regions are hidden that of their places."""
        assert batch.text is not None
        if "lm" not in batch.targets:
            return {}
        config, picks = self.config, batch.picks("lm")
        each = lm.smoothed(self.word_logits(encoded, picks.rows), picks.labels, config.label_smoothing, self.vocab.pad)
        documents = batch.text.packing.doc[picks.rows]
        found = {"lm": lm.best_documents(each, documents, len(batch.keys), config.drop_worst)}
        return found | ({"vis": self._placed(encoded, batch)} if "vis" in batch.targets else {})

    def _placed(self, encoded: Encoded, batch: Batch) -> Tensor:
        """Dropout is drawn anew: the rows of hidden regions, which no other row sees, need not be these. Source: modeling.py."""
        regions, hidden = batch.regions, batch.picks("vis")
        assert regions is not None
        documents = regions.packing.doc[hidden.rows]
        seen, places = map(self.regions.dropout, self.regions.parts(regions, hidden))
        return mrm.placed(places + encoded.pooled[documents], seen, documents, len(batch.keys))

    # 4 -- recipes ------------------------------------------------------------------------------------------------------

    recipes = _recipes()
    chosen = ("s2s_share", "lm_rate", "lm_most", "drop_worst", "label_smoothing", "relax_projection", "vis_mask_prob")
    from_bert = bert.FromBert(segments=(0, 1, 0, 0, 0, 1))

    # 5 -- downstream ---------------------------------------------------------------------------------------------------

    picked_goals = ("lm", "vis")
    heads = ("word_head",)
    finetune = _finetune()
    captioning = _captioning()

    # 6 -- checkpoint ---------------------------------------------------------------------------------------------------

    sizes = bert.SIZES | {"feature_size": ("regions.fc7.weight", 1)}
    flags = {"relax_projection": is_sliced}  # noqa: RUF012
    keys = KeyMap(
        *bert.body("bert."),
        ("bert.pooler.dense.", "pooler.dense."),
        *bert.word_head(),
        ("vis_embed.0.", "regions.fc7."),
        ("vis_embed.2.", "regions.feature."),
        ("vis_pe_embed.0.", "regions.place."),
        Tied("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        Drop("crit_mask_lm_smoothed.one_hot"),  # a constant, where labels were smoothed
        optional=("word_head.",),
    )

    def fitted(self, state: Mapping[str, Tensor], where: str) -> Mapping[str, Tensor]:
        """One word head serves for four slices, of four the one that writes is taken."""
        return resliced(state, self.config.relax_projection, where)
