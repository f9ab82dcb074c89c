"""NLVR2: is a sentence true of two pictures? Data: Suhr et al. 2019.

Two documents a sample, the sentence with the left picture and the sentence with the right one, in this order in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Sample
from intarsia.packed import join, joined_rows, pad
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import initialise
from intarsia.parts.heads import AnswerHead
from intarsia.system import Lay
from intarsia.tasks import HeadConfig, Scorer, answer_of, groups, linear, with_target
from intarsia.tasks.vqa import transform_linear


class CrossAttention(nn.Module):
    """Multi-head attention of one padded block on another; the weights of query, key and value are stacked, as in torch's MultiheadAttention."""

    def __init__(self, hidden_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, other: Tensor, other_here: Tensor) -> Tensor:
        """Args: x (S, L, H); other (S, M, H); other_here (S, M) bool, True = may be seen. Returns: (S, L, H)."""
        width = x.shape[-1]
        query, key_value = self.qkv.weight.split([width, 2 * width])  # type: ignore[no-untyped-call]
        bias_query, bias_key_value = self.qkv.bias.split([width, 2 * width])  # type: ignore[no-untyped-call]
        q = F.linear(x, query, bias_query)
        k, v = F.linear(other, key_value, bias_key_value).chunk(2, -1)
        q, k, v = (x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2) for x in (q, k, v))  # (S, heads, L, D)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, other_here[:, None, None], dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class PairedAttention(nn.Module):
    """The two documents attend to each other, each is pooled by attention, both pooled vectors are classified. Source: UNITER, sec. 4.1."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        width, dropout = config.hidden_size, config.attention_probs_dropout_prob
        self.left = CrossAttention(width, config.num_attention_heads, dropout)
        self.right = CrossAttention(width, config.num_attention_heads, dropout)
        self.fuse = nn.Linear(2 * width, width)
        self.weigh = nn.Linear(width, 1)
        self.out = nn.Linear(2 * width, 2)
        self.fuse_dropout = Dropout(config.hidden_dropout_prob)
        self.pool_dropout = Dropout(dropout)

    def forward(self, left: Tensor, right: Tensor, left_here: Tensor, right_here: Tensor) -> Tensor:
        """Args: left, right (S, L, H); left_here, right_here (S, L) bool, False = padding. Returns: (S, 2) logits."""
        from_left = torch.cat([self.left(left, right, right_here), left], -1)
        from_right = torch.cat([self.right(right, left, left_here), right], -1)
        pooled = [self._pool(x, here) for x, here in ((from_left, left_here), (from_right, right_here))]
        return self.out(torch.cat(pooled, -1))  # type: ignore[no-any-return]

    def _pool(self, x: Tensor, here: Tensor) -> Tensor:
        x = self.fuse_dropout(F.relu(self.fuse(x)))
        scores = F.relu(self.weigh(x)).squeeze(-1).float().masked_fill(~here, -1e4)
        weights = self.pool_dropout(scores.softmax(-1)).to(x.dtype)  # (S, L)
        return (weights[:, None] @ x)[:, 0]  # type: ignore[no-any-return]


class Pair:
    """Two documents a sample."""

    count = 2

    def forms(self, lay: Lay, sample: Sample) -> list[Example]:
        """The sentence with the left picture, and with the right one."""
        return [lay(sample, i) for i in range(self.count)]

    def documents(
        self, lay: Lay, sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """With 1 where the sentence is true of both, the same for all documents."""
        return with_target(self.forms(lay, sample), "nlvr2", [int(answer_of(sample).lower() == "true")] * self.count)

    def predict(self, scores: Tensor, batch: Batch) -> list[Tensor]:
        """(2) of each sample: false, true."""
        return list(scores.float())


@dataclass(frozen=True)
class NLVR2(Pair):
    """Both documents see each other before they are pooled. Batch.targets["nlvr2"]: (B) int64, 1 = true, the same for both documents."""

    def head(self, config: HeadConfig) -> nn.Module:
        """See `PairedAttention`; the stacked attention weights are drawn as torch's MultiheadAttention draws them."""
        head = PairedAttention(config)
        initialise(head, config.initializer_range)
        for attention in (head.left, head.right):
            nn.init.xavier_uniform_(attention.qkv.weight)
        return head

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(S, 2) logits, one row a sample."""
        assert batch.text is not None and encoded.text is not None, "NLVR2 needs text"
        assert encoded.visual is not None and encoded.visual_packing is not None, "NLVR2 needs regions"
        joined = join(batch.text.packing, encoded.visual_packing)
        block = pad(joined_rows(joined, encoded.text, encoded.visual), joined.packing)  # (B, L, H)
        here = pad(torch.ones_like(joined.packing.pos, dtype=torch.bool), joined.packing)
        left, right = groups(batch.sample, 2).unbind(1)
        return head(block[left], block[right], here[left], here[right])  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy over samples."""
        return _pair_loss(scores, batch)


def one_layer(config: HeadConfig) -> nn.Module:
    """A linear map of both pooled vectors."""
    head = nn.Linear(2 * config.pooled_size, 2)
    initialise(head, config.initializer_range)
    return head


def two_layers(config: HeadConfig) -> nn.Module:
    """Two layers on both pooled vectors, GELU and LayerNorm between. Source: the code of LXMERT."""
    width = 2 * config.hidden_size
    head = AnswerHead(width, 2, nn.GELU(), config.layer_norm_eps, inner=width)
    initialise(head, config.initializer_range)
    return head


def transformed(config: HeadConfig) -> nn.Module:
    """Dropout, the first half of BERT's word head on both pooled vectors, two classes. Source: MMF, models/visual_bert.py."""
    return transform_linear(replace(config, hidden_size=2 * config.hidden_size), 2)


@dataclass(frozen=True)
class NLVR2Pair(Pair):
    """The two pooled vectors side by side, and nothing else. Batch.targets["nlvr2"] as for `NLVR2`."""

    scorer: Callable[[HeadConfig], nn.Module] = one_layer

    def head(self, config: HeadConfig) -> nn.Module:
        """On both pooled vectors."""
        return self.scorer(config)

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(S, 2) logits, one row a sample."""
        return head(encoded.pooled[groups(batch.sample, 2)].flatten(1))  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy over samples."""
        return _pair_loss(scores, batch)


@dataclass(frozen=True)
class NLVR2PairEach(NLVR2Pair):
    """As `NLVR2Pair`; true and false are each right or wrong by themselves. Source: the code of 12-in-1."""

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean binary cross entropy over samples and both logits."""
        labels = batch.labels("nlvr2")[groups(batch.sample, 2)[:, 0]]
        return F.binary_cross_entropy_with_logits(scores.float(), F.one_hot(labels, 2).float())


@dataclass(frozen=True)
class NLVR2Joint(Pair):
    """One document with the regions of both pictures. Batch.targets["nlvr2"]: (B) int64, 1 = true."""

    count = 1
    scorer: Scorer = linear

    def head(self, config: HeadConfig) -> nn.Module:
        """Two classes from the pooled vector."""
        return self.scorer(config, 2)

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B, 2) logits."""
        return head(encoded.pooled)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        return F.cross_entropy(scores.float(), batch.labels("nlvr2"))


def _pair_loss(scores: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(scores.float(), batch.labels("nlvr2")[groups(batch.sample, 2)[:, 0]])


def pair_of(scale: int, norm: bool, large: int = 0) -> Callable[[HeadConfig], nn.Module]:
    """For NLVR2: a layer on both pooled vectors, ReLU, in Oscar+ a norm, two classes.

    Args:
        scale: width of the layer in H.
        norm: with the norm.
        large: the scale from H = 1024 on; 0 = the same.
    """

    def make(config: HeadConfig) -> nn.Module:
        width = config.hidden_size
        inner = width * (large if large and width >= 1024 else scale)
        middle = [nn.LayerNorm(inner, 1e-12)] if norm else []
        first, last = nn.Linear(2 * width, inner), nn.Linear(inner, 2)
        head = nn.Sequential(Dropout(config.hidden_dropout_prob), first, nn.ReLU(), *middle, last)
        initialise(head, config.initializer_range)
        return head

    return make
