"""Words and visual tokens read apart, with unit vectors to align them by, and what pools a stream to a pair's vector."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia import boxes
from intarsia.attend import attend
from intarsia.batch import Array, Encoded, Regions, Text
from intarsia.packed import Packing, join, joined_rows, pad
from intarsia.parts import align
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder
from intarsia.parts.numbers import BertNumbers

Weighing = Literal["uniform", "content", "idf"]


@dataclass(frozen=True)
class AlignedNumbers(BertNumbers):
    """A BERT for words, and one for visual tokens, of the same width."""

    num_hidden_layers: int = 6
    """Layers of words."""
    v_layers: int = 6
    """Layers of visual tokens."""
    type_vocab_size: int = 1
    feature_size: int = 2048
    """Numbers of a region feature."""
    align_size: int = 256
    """D, width of aligned vectors."""
    pool: Literal["attention", "mean"] = "attention"
    """How the pair's vectors are pooled."""
    query_unit: align.Unit = "word"
    """What asks for its visual tokens: each word, or the mean of a phrase or a caption; all its words then have one vector."""
    text_context: Literal["full", "phrase", "none"] = "full"
    """What a word's aligned vector may know: its caption, its phrase, or nothing but itself. Less than all costs a pass more."""
    align_norm: align.Norm = "softmax"
    """How alignments of the contrastive score are normalised; those that place targets always by softmax."""
    word_weight: Weighing = "idf"
    """idf is counted while training; stop words and punctuation weigh 0 but with uniform."""


@dataclass(frozen=True, slots=True)
class Aligned(Encoded):
    """What the streams return, and what lies before they meet. D documents: those of the batch, or the captions of a training batch, true one first."""

    text: Tensor = field(kw_only=True)
    visual: Tensor = field(kw_only=True)
    visual_packing: Packing = field(kw_only=True)
    pooled_text: Tensor = field(kw_only=True)
    """(D, ..) unit vectors."""
    pooled_visual: Tensor = field(kw_only=True)
    told: Tensor = field(kw_only=True)
    """(T, H + D + 2) words before they meet a picture: row, unit vector, weight, whether a region may show it."""
    seen: Tensor = field(kw_only=True)
    """(R, H) visual tokens before they meet words."""
    slots: Tensor = field(kw_only=True)
    """(R, D) unit vectors of visual tokens."""
    text_packing: Packing = field(kw_only=True)
    token: Tensor = field(kw_only=True)
    """(D) S_tok."""
    support: Tensor = field(kw_only=True)
    """(T) logits: the picture supports this word."""

    @property
    def sentence(self) -> Tensor:
        """(D) S_sent."""
        return (self.pooled_text * self.pooled_visual).sum(-1)


class Pool(nn.Module):
    """One learnt query over a stream, then a linear map to a unit vector."""

    def __init__(self, config: AlignedNumbers) -> None:
        super().__init__()
        width = config.hidden_size
        self.mean = config.pool == "mean"
        self.query = nn.Parameter(torch.randn(width) * config.initializer_range)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, config.align_size)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(N, H) to (B, D)."""
        count = torch.arange(packing.documents + 1, device=x.device)
        ones = Packing(count.int(), 16, count[:-1], torch.zeros_like(count[:-1]))
        k, v = self.key_value(x).view(len(x), 2, 4, x.shape[1] // 4).unbind(1)
        q = self.query.to(k.dtype).expand(packing.documents, -1) * (not self.mean)  # equal shares where the query is 0
        return F.normalize(self.out(attend(q.reshape(len(q), 4, -1), k, v, ones, packing).flatten(1)).float(), dim=-1)


class Tower(nn.Module):
    """Words and visual tokens apart, and their unit vectors; slow copies of it place the targets. Args: stops, (V) bool, pieces that no picture shows."""

    content: Tensor
    """(V) bool."""

    def __init__(self, config: AlignedNumbers, stops: Array) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.unit, self.context, self.norms = config.query_unit, config.text_context, config.align_norm
        self.register_buffer("content", torch.from_numpy(~stops), persistent=False)
        self.words = Words(config)
        self.text = Encoder(config)
        self.feature = nn.Linear(config.feature_size, width)
        self.geometry = nn.Linear(7, width)
        self.mask = nn.Parameter(torch.randn(width) * config.initializer_range)
        self.norm = nn.LayerNorm(width, eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.visual = Encoder(replace(config, num_hidden_layers=config.v_layers))
        self.word_vector = nn.Linear(width, config.align_size)
        self.slot_vector = nn.Linear(width, config.align_size)
        self.null = nn.Parameter(torch.randn(config.align_size))
        self.log_temperature = nn.Parameter(torch.tensor(0.1).log())
        initialise(self, config.initializer_range)

    def read(self, text: Text) -> tuple[Tensor, Tensor]:
        """(T, H) words among themselves, and (T, D) the unit vector of each row's word, or of the unit it is in."""
        rows, content = self.words(text), self.content[text.ids]
        x = alone = self.text(rows, text.packing)
        if self.context != "full":
            unit: align.Unit = "phrase" if self.context == "phrase" else "word"
            alone = self.text(rows, align.cut(text.packing, align.units(text, content, unit)))
        means = align.word_means(alone.float(), align.units(text, content, self.unit), text.packing)
        return x, F.normalize(self.word_vector(means).float(), dim=-1)

    def tell(self, text: Text, weights: WordWeights) -> Tensor:
        """(T, H + D + 2) words among themselves, as `Aligned.told`."""
        x, vectors = self.read(text)
        return torch.cat([x.float(), vectors, weights(text)[:, None], weights.content[text.ids, None]], 1)

    def split(self, told: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of what `tell` gave: (T, H) rows, (T, D) unit vectors and (T) weights."""
        weight = self.word_vector.weight
        return told[:, : weight.shape[1]].to(weight.dtype), told[:, weight.shape[1] : -2], told[:, -2]

    def look(self, regions: Regions) -> Tensor:
        """(R, H) visual tokens among themselves."""
        feats = self.feature(regions.feats.to(self.feature.weight.dtype))
        feats = torch.where(regions.masked[:, None], self.mask.to(feats.dtype), feats)
        return self.visual(self.dropout(self.norm(feats + self.geometry(boxes.seven(regions.boxes)))), regions.packing)  # type: ignore[no-any-return]

    def vectors(self, seen: Tensor) -> Tensor:
        """(R, D) unit vectors of visual tokens (R, H)."""
        return F.normalize(self.slot_vector(seen).float(), dim=-1)

    def slots(self, vectors: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """Padded (B, 1 + P, D), the null first, and where there are some."""
        return align.with_null(vectors, packing, F.normalize(self.null.float(), dim=-1))

    def alphas(self, vectors: Tensor, text: Packing, slots: Tensor, visual: Packing) -> tuple[Tensor, Tensor]:
        """Softmax alignment (B, L, 1 + P) of words (T, D) with visual tokens (R, D), the null first, and the padded tokens."""
        block, here = self.slots(slots, visual)
        scores = pad(vectors, text) @ block.transpose(1, 2)
        return align.shares(scores, here, "softmax", True, self.log_temperature.exp()), block

    def scores(self, told: Tensor, text: Packing, slots: Tensor, visual: Packing) -> Tensor:
        """(B) S_tok. Args: told, words as of `tell`; slots, (R, D) vectors of visual tokens."""
        block, here = self.slots(slots, visual)
        words, masses = (pad(x, text) for x in self.split(told)[1:])
        return align.score(words, block, here, masses, self.norms, self.log_temperature.exp())

    def all_scores(
        self, told: Tensor, text: Packing, slots: Tensor, visual: Packing, every: int = 1, most: int = 1 << 24
    ) -> Tensor:
        """(J, I) S_tok of every text with every picture. Args: as of `scores`; every, only each so many-th of both; most, see `align.all_scores`."""
        padded = (*self.slots(slots, visual), *(pad(x, text) for x in self.split(told)[1:]))
        block, here, words, masses = (x[::every] for x in padded)
        return align.all_scores(words, block, here, masses, self.norms, self.log_temperature.exp(), most)


class Fusion(nn.Module):
    """Layers over words and visual tokens together."""

    def __init__(self, config: BertNumbers) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.segment = nn.Embedding(2, config.hidden_size)

    def forward(self, words: Tensor, text: Packing, seen: Tensor, visual: Packing) -> tuple[Tensor, Tensor]:
        """(T, H) and (R, H) to the same."""
        joined = join(text, visual)
        both = joined_rows(joined, words + self.segment.weight[0], (seen + self.segment.weight[1]).to(words.dtype))
        x = self.encoder(both, joined.packing)
        return x.index_select(0, joined.rows_a), x.index_select(0, joined.rows_b)


class WordWeights(nn.Module):
    """How much each word of a caption counts; the pieces of captions are counted while training.

    Args:
        stops: (V) bool, pieces that no picture shows.
        by: uniform; content = 1, 0 for stops; idf = log((1 + captions) / (1 + occurrences)) within 0 and 8, 0 for stops.
    """

    content: Tensor
    """(V) float, 0 for stops."""
    counts: Tensor
    """(1 + V) float, captions seen, then each piece in them."""

    def __init__(self, stops: Array, by: Weighing) -> None:
        super().__init__()
        self.by = by
        self.register_buffer("content", torch.tensor(~stops, dtype=torch.float32))
        self.register_buffer("counts", torch.zeros(1 + len(stops)))

    def count(self, text: Text) -> None:
        """Counts the captions of a batch, in place."""
        self.counts[0] += text.packing.documents
        self.counts[1:].index_add_(0, text.ids, torch.ones_like(self.content[text.ids]))

    def forward(self, text: Text) -> Tensor:
        """(T), a word's weight shared among its pieces; they sum to the pieces of each caption, special tokens get 0."""
        weight = self.content[text.ids]
        if self.by == "uniform":
            weight = torch.ones_like(weight)
        elif self.by == "idf":
            weight = weight * ((1 + self.counts[0]) / (1 + self.counts[1:][text.ids])).log().clamp(0, 8)
        return align.balanced(align.spread(weight, text.words, text.packing), text.words >= 0, text.packing)
