"""The post-norm Transformer encoder of BERT, on packed rows. Source: Attention Is All You Need, sec. 3; BERT, sec. 3."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.attend import attend
from intarsia.packed import Packing
from intarsia.parts.dropout import Dropout
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
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(N, H) to (N, H)."""
        rows, width = x.shape
        q, k, v = self.qkv(x).view(rows, 3, self.heads, width // self.heads).unbind(1)  # (N, heads, D) each
        mixed = attend(q, k, v, packing, packing, self.dropout if self.training else 0.0)
        return self.out(mixed.reshape(rows, width))  # type: ignore[no-any-return]


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
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(N, H) to (N, H)."""
        return self.after(x, self.attention(x, packing))

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention: (N, H) rows and what they attended to, (N, H), to (N, H)."""
        x = self.attention_norm(x + self.dropout(attended))
        return self.norm(x + self.dropout(self.down(self.activation(self.up(x)))))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """A stack of layers."""

    def __init__(self, config: BertNumbers, activation: Activation = F.gelu) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, activation) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(N, H) to (N, H)."""
        for layer in self.layers:
            x = layer(x, packing)
        return x
