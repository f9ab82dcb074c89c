"""The post-norm Transformer encoder of BERT, on packed rows. Source: Attention Is All You Need, sec. 3; BERT, sec. 3."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.attend import attend
from intarsia.packed import Packing, subset
from intarsia.parts.dropout import Dropout
from intarsia.parts.linear import Linear, product
from intarsia.parts.numbers import BertNumbers

Activation = Callable[[Tensor], Tensor]

gelu_tanh: Activation = partial(F.gelu, approximate="tanh")
"""GELU by the tanh formula, as BERT's TensorFlow code has it; the others use erf."""


class SelfAttention(nn.Module):
    """Multi-head attention of a stream to itself, with query, key and value in one product."""

    def __init__(self, config: BertNumbers) -> None:
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} is no multiple of num_attention_heads {config.num_attention_heads}"
            )
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, packing: Packing, read: Tensor | None = None) -> Tensor:
        """(N, H) to (N, H), or to the rows `read` (M) of it, (M, H)."""
        return self.mix(*self.project(x, packing, read), packing)

    def project(self, x: Tensor, packing: Packing, read: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Packing]:
        """Queries (N, heads, D), or (M, heads, D) of the rows `read`, keys and values (N, heads, D), and where the queries lie."""
        width = x.shape[1]
        by_head = (self.heads, width // self.heads)
        queries = packing
        if read is None:
            q, k, v = self.qkv(x).view(-1, 3, *by_head).unbind(1)  # (N, heads, D) each
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = product(x.index_select(0, read), weight[:width], bias[:width]).view(-1, *by_head)  # (M, heads, D)
            k, v = product(x, weight[width:], bias[width:]).view(-1, 2, *by_head).unbind(1)
            queries = subset(packing, read)
        return q, k, v, queries

    def mix(self, q: Tensor, k: Tensor, v: Tensor, queries: Packing, packing: Packing) -> Tensor:
        """What `project` returns, and where keys and values lie: (M, H)."""
        mixed = attend(q, k, v, queries, packing, self.dropout if self.training else 0.0)
        return self.out(mixed.flatten(1))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and feed-forward, each with dropout, residual and LayerNorm after the sum."""

    attention: nn.Module

    def __init__(
        self, config: BertNumbers, activation: Activation = F.gelu, attention: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.activation = activation
        self.attention = SelfAttention(config) if attention is None else attention
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.up = Linear(config.hidden_size, config.intermediate_size)
        self.down = Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, packing: Packing, read: Tensor | None = None, *told: Tensor) -> Tensor:
        """(N, H) to (N, H). Of `read` (M), sorted, only those rows are computed; the others are NaN, so that reading one shows.

        What its attention is told besides, such as `GatedAttention`, comes last.
        """
        if read is None:
            return self.after(x, self.attention(x, packing, None, *told))
        some = self.after(x.index_select(0, read), self.attention(x, packing, read, *told))
        return some.new_full(x.shape, torch.nan).index_copy(0, read, some)

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention: (N, H) rows and what they attended to, (N, H), to (N, H)."""
        x = self.attention_norm(x + self.dropout(attended))
        return self.norm(x + self.dropout(self.down(self.up.activated(x, self.activation))))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """A stack of layers."""

    def __init__(self, config: BertNumbers, activation: Activation = F.gelu) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, activation) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, packing: Packing, read: Tensor | None = None, to_last: Tensor | None = None) -> Tensor:
        """(N, H) to (N, H).

        Args:
            x: what the first layer reads.
            packing: where its documents lie.
            read: (M) int64, sorted: the rows that the last layer must give; the others are NaN. None = all.
            to_last: (N, H) added to what the last layer reads.
        """
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            if i == last and to_last is not None:
                x = x + to_last
            x = layer(x, packing, read if i == last else None)
        return x
