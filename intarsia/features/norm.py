"""Batch norms of picture and video trunks: trained, trained but for their statistics, or frozen for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["batch", "stored", "frozen"]
"""batch: statistics of the batch in training, running ones in evaluation, weight and bias trained. stored: only these two move. frozen: nothing ever moves."""


class FrozenBatchNorm(nn.Module):
    """A batch norm whose four vectors are buffers: no gradient, no statistics, the same in training and evaluation. (B, C, ..) to the same shape.

    Args:
        channels: C.
        eps: added to the variance; 0 in maskrcnn-benchmark's, 1e-5 elsewhere. Only channels of tiny variance tell the two apart.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        """(x - mean) / sqrt(variance + eps) * weight + bias."""
        if not self.eps:  # some versions of torch refuse a batch norm without
            scale = self.weight * self.running_var.rsqrt()
            shift = self.bias - self.running_mean * scale
            each = (-1, *[1] * (x.ndim - 2))
            return torch.addcmul(shift.view(each), x, scale.view(each))
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def extra_repr(self) -> str:
        """Channels and eps."""
        return f"{len(self.weight)}, eps={self.eps}"


class StoredBatchNorm(FrozenBatchNorm):
    """A batch norm that goes by its stored statistics in training too; weight and bias train. (B, C, ..) to the same shape.

    Args: as of `FrozenBatchNorm`.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)
        for name in ("weight", "bias"):
            value = getattr(self, name)
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(value))


_FIXED = {"stored": StoredBatchNorm, "frozen": FrozenBatchNorm}


def norm2d(kind: Norm, eps: float = 1e-5, momentum: float = 0.1) -> Callable[[int], nn.Module]:
    """What makes a batch norm of pictures from its number of channels."""
    if kind != "batch":
        return lambda channels: _FIXED[kind](channels, eps)
    return lambda channels: nn.BatchNorm2d(channels, eps, momentum)


def norm3d(kind: Norm, eps: float = 1e-5, momentum: float = 0.1) -> Callable[[int], nn.Module]:
    """What makes a batch norm of videos from its number of channels."""
    if kind != "batch":
        return lambda channels: _FIXED[kind](channels, eps)
    return lambda channels: nn.BatchNorm3d(channels, eps, momentum)
