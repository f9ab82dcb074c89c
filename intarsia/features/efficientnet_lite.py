"""EfficientNet-Lite0: a small ImageNet trunk without squeeze-and-excitation, its parameters named as in the published PyTorch weights.

Source: Tan and Le, EfficientNet (ICML 2019), and its Lite variant: ReLU6 everywhere, no squeeze-and-excitation, stem and head not scaled.
Unusual: convolutions pad as TensorFlow's SAME (the odd pixel right and bottom), batch norm eps is 1e-3, pixels are (x - 127) / 128.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from intarsia.errors import BadInput
from intarsia.features.roi import conv_same

STAGES = (  # repeats, kernel, first stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
EPS = 1e-3
FEATURES = 1280
STRIDE = 32


class SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        return conv_same(x, self.weight, None, (self.stride[0], self.stride[1]), (1, 1), self.groups)


class Block(nn.Module):
    """A mobile inverted bottleneck: widen, filter each channel, narrow; added to its input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        if expansion > 1:
            self._expand_conv = SameConv(inputs, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, EPS)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, EPS)
        self._project_conv = SameConv(inner, outputs, 1)
        self._bn2 = nn.BatchNorm2d(outputs, EPS)
        self.widens = expansion > 1
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        y = functional.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.widens else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y  # type: ignore[no-any-return]


class EfficientNetLite0(nn.Module):
    """The whole classifier; `features` is its trunk."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2)
        self._bn0 = nn.BatchNorm2d(32, EPS)
        blocks: list[Block] = []
        width = 32
        for repeats, kernel, stride, expansion, channels in STAGES:
            for i in range(repeats):
                blocks.append(Block(width, channels, kernel, stride if i == 0 else 1, expansion))
                width = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(width, FEATURES, 1)
        self._bn1 = nn.BatchNorm2d(FEATURES, EPS)
        self._fc = nn.Linear(FEATURES, 1000)

    def features(self, pixels: Tensor) -> Tensor:
        """The last map, (B, 1280, ceil(H / 32), ceil(W / 32)), of pixels (B, 3, H, W) as `normalised` gives them."""
        x = functional.relu6(self._bn0(self._conv_stem(pixels)))
        for block in self._blocks:
            x = block(x)
        return functional.relu6(self._bn1(self._conv_head(x)))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 1000) ImageNet logits."""
        logits: Tensor = self._fc(self.features(pixels).mean((2, 3)))
        return logits


def normalised(images: NDArray[Any] | Tensor) -> Tensor:
    """(B, H, W, 3) uint8, RGB, to (B, 3, H, W) float32 in about -1..1."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)) if not isinstance(images, Tensor) else images
    return (pixels.permute(0, 3, 1, 2).float() - 127) / 128


def load_efficientnet(path: Path) -> EfficientNetLite0:
    """The classifier with weights from a state dict file, in evaluation mode. Nothing is unpickled but tensors.

    Raises:
        BadInput: the file is not a state dict of this network; lists what differs.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        net = EfficientNetLite0()
        net.load_state_dict(state, strict=True)
    except Exception as error:  # torch raises many kinds on a damaged file
        raise BadInput(f"{path}: not EfficientNet-Lite0 weights: {error}") from None
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]
