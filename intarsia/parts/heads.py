"""Heads: from a stream's rows to what an objective or a task predicts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.packed import Packing
from intarsia.parts.encoder import Activation
from intarsia.parts.linear import product


class Pooler(nn.Module):
    """tanh of a linear map of each document's first row. Source: BERT, sec. 3."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(N, H) to (B, H)."""
        return torch.tanh(self.dense(x.index_select(0, packing.first)))


class FirstRow(nn.Module):
    """The first row of each document as it is, where there is no pooler."""

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(N, H) to (B, H)."""
        return x.index_select(0, packing.first)


class Transform(nn.Module):
    """Linear, GELU, LayerNorm: the first half of BERT's prediction heads; `times` as wide as its input."""

    def __init__(
        self, hidden_size: int, layer_norm_eps: float, activation: Activation = F.gelu, times: int = 1
    ) -> None:
        super().__init__()
        self.activation = activation
        self.dense = nn.Linear(hidden_size, times * hidden_size)
        self.norm = nn.LayerNorm(times * hidden_size, layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(M, H) to (M, times * H)."""
        return self.norm(self.activation(self.dense(x)))  # type: ignore[no-any-return]


class TiedHead(nn.Module):
    """Transform, then a product with a table that lives elsewhere, plus a bias of its own.

    With the word embeddings as table it predicts words (BERT); with the transposed projection of region features it predicts features (UNITER).
    """

    def __init__(self, hidden_size: int, outputs: int, layer_norm_eps: float, activation: Activation = F.gelu) -> None:
        super().__init__()
        self.transform = Transform(hidden_size, layer_norm_eps, activation)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Args: x (M, H); table (outputs, H). Returns: (M, outputs)."""
        return product(self.transform(x), table, self.bias)


class ClassHead(nn.Module):
    """Transform, then a linear map to classes."""

    def __init__(self, hidden_size: int, classes: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.transform = Transform(hidden_size, layer_norm_eps)
        self.out = nn.Linear(hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(M, H) to (M, classes)."""
        return self.out(self.transform(x))  # type: ignore[no-any-return]


class AnswerHead(nn.Module):
    """Linear to `inner`, activation, LayerNorm, Linear: the classifier of downstream tasks. Source: LXMERT's code; UNITER, sec. 4.1."""

    def __init__(
        self, hidden_size: int, outputs: int, activation: nn.Module, layer_norm_eps: float, inner: int | None = None
    ) -> None:
        super().__init__()
        inner = 2 * hidden_size if inner is None else inner
        self.up = nn.Linear(hidden_size, inner)
        self.activation = activation
        self.norm = nn.LayerNorm(inner, layer_norm_eps)
        self.out = nn.Linear(inner, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H) to (B, outputs)."""
        return self.out(self.norm(self.activation(self.up(x))))  # type: ignore[no-any-return]


class NormedLinear(nn.Module):
    """A linear map whose matrix is a length times a direction, both learnt. Source: Salimans and Kingma 2016; the first code of ViLBERT."""

    def __init__(self, hidden_size: int, outputs: int) -> None:
        super().__init__()
        plain = nn.Linear(hidden_size, outputs)
        self.weight_g = nn.Parameter(plain.weight.detach().norm())
        self.weight_v = plain.weight
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, H) to (B, outputs)."""
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm()), self.bias)
