"""EfficientNet, the trunk of WenLan, with the key names of timm's `tf_efficientnet_*` weights, so that such files load as they are.

Source: Tan and Le, EfficientNet (ICML 2019). Unusual: strided convolutions pad as TensorFlow's SAME, reckoned at run time from the size of their input
(the odd pixel right and bottom); batch norm eps is 1e-3; squeeze-and-excitation narrows to a quarter of what enters the block, before it is widened.
The Lite variant has ReLU6, no squeeze-and-excitation, and a stem, a head and outer stages that are not scaled (`efficientnet_lite.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from intarsia.errors import BadInput
from intarsia.features.roi import conv_same
from intarsia.weights.files import fill, read_weights

STAGES = (  # repeats, kernel, first stride, expansion, channels of B0
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
EPS = 1e-3
STRIDE = 32
"""Pixels a side of what one cell of the last map stands for."""


@dataclass(frozen=True)
class Shape:
    """What tells one EfficientNet from another."""

    width: float = 1.0
    """Factor on the channels of B0, then rounded to a multiple of 8."""
    depth: float = 1.0
    """Factor on the repeats of a stage, rounded up."""
    stem: int = 0
    """Channels of the first convolution; 0 = 32 by the width."""
    head: int = 0
    """Channels of the last map; 0 = 1280 by the width."""
    classes: int = 1000
    lite: bool = False
    """ReLU6, no squeeze-and-excitation; stem, head, and repeats of the first and last stage as in B0."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the pixels in 0..1 that its weights were trained on, by channel; ImageNet's."""
    spread: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """What they are divided by less their mean."""

    @property
    def normal(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and spread of its pixels."""
        return self.mean, self.spread

    @property
    def channels(self) -> int:
        """Channels of the last map."""
        return self.head or (1280 if self.lite else rounded(1280, self.width))


SHAPES = {
    "b0": Shape(1.0, 1.0),
    "b1": Shape(1.0, 1.1),
    "b2": Shape(1.1, 1.2),
    "b3": Shape(1.2, 1.4),
    "b4": Shape(1.4, 1.8),
    "b5": Shape(1.6, 2.2),
    "b6": Shape(1.8, 2.6),
    "b7": Shape(2.0, 3.1),
    "lite0": Shape(lite=True, mean=(127 / 255,) * 3, spread=(128 / 255,) * 3),
}
"""The published sizes. Source: the paper's compound scaling, as in TensorFlow's reference code."""


def rounded(channels: int, factor: float) -> int:
    """Channels times a factor, to the nearest multiple of 8 that is not below nine tenths of it."""
    wanted = channels * factor
    found = max(8, int(wanted + 4) // 8 * 8)
    return found + 8 if found < 0.9 * wanted else found


class SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        return conv_same(x, self.weight, None, (self.stride[0], self.stride[1]), (1, 1), self.groups)


class SqueezeExcite(nn.Module):
    """Every channel times a gate reckoned from the means of all."""

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, narrow, 1)
        self.conv_expand = nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), kept."""
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.conv_expand(functional.silu(self.conv_reduce(means))))


class Separable(nn.Module):
    """The block of stage 0: filter each channel, gate, then mix."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, lite: bool) -> None:
        super().__init__()
        self.conv_dw = SameConv(inputs, inputs, kernel, stride, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs, EPS)
        self.se = nn.Identity() if lite else SqueezeExcite(inputs, inputs // 4)
        self.conv_pw = SameConv(inputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs, EPS)
        self.active = functional.relu6 if lite else functional.silu
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        y = self.se(self.active(self.bn1(self.conv_dw(x)), inplace=True))
        y = self.bn2(self.conv_pw(y))
        return x + y if self.adds else y  # type: ignore[no-any-return]


class Inverted(nn.Module):
    """The block of the other stages: widen, filter each channel, gate, narrow; added to its input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, lite: bool) -> None:
        super().__init__()
        inner = inputs * expansion
        self.conv_pw = SameConv(inputs, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner, EPS)
        self.conv_dw = SameConv(inner, inner, kernel, stride, groups=inner)
        self.bn2 = nn.BatchNorm2d(inner, EPS)
        self.se = nn.Identity() if lite else SqueezeExcite(inner, inputs // 4)
        self.conv_pwl = SameConv(inner, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs, EPS)
        self.active = functional.relu6 if lite else functional.silu
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        y = self.active(self.bn1(self.conv_pw(x)), inplace=True)
        y = self.se(self.active(self.bn2(self.conv_dw(y)), inplace=True))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.adds else y  # type: ignore[no-any-return]


class EfficientNet(nn.Module):
    """The whole classifier; `features` is its trunk. Fresh weights are drawn from torch's default generator, as in timm.

    Args:
        shape: one of SHAPES, or any other.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.stem or (32 if shape.lite else rounded(32, shape.width))
        self.conv_stem = SameConv(3, width, 3, 2)
        self.bn1 = nn.BatchNorm2d(width, EPS)
        stages: list[nn.Module] = []
        for number, (repeats, kernel, stride, expansion, base) in enumerate(STAGES):
            channels, blocks = rounded(base, shape.width), list[nn.Module]()
            ends = shape.lite and number in (0, len(STAGES) - 1)
            for i in range(repeats if ends else math.ceil(repeats * shape.depth)):
                sizes = (width, channels, kernel, stride if i == 0 else 1)
                blocks.append(
                    Inverted(*sizes, expansion, shape.lite) if expansion > 1 else Separable(*sizes, shape.lite)
                )
                width = channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.ModuleList(stages)
        self.conv_head = SameConv(width, shape.channels, 1)
        self.bn2 = nn.BatchNorm2d(shape.channels, EPS)
        self.classifier = nn.Linear(shape.channels, shape.classes)
        self.active = functional.relu6 if shape.lite else functional.silu
        self.apply(_fresh)

    def maps(self, pixels: Tensor) -> Iterator[Tensor]:
        """The maps of pixels (B, 3, H, W): after the stem (stride 2), then after each of the seven stages."""
        x = self.active(self.bn1(self.conv_stem(pixels)))
        yield x
        for stage in self.blocks:
            x = stage(x)
            yield x

    def features(self, pixels: Tensor) -> Tensor:
        """The last map, (B, channels, ceil(H / 32), ceil(W / 32)), of pixels (B, 3, H, W)."""
        *_, x = self.maps(pixels)
        return self.active(self.bn2(self.conv_head(x)))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, classes) logits."""
        logits: Tensor = self.classifier(self.features(pixels).mean((2, 3)))
        return logits


def _fresh(part: nn.Module) -> None:
    """Convolutions N(0, 2 / fan out), their biases 0; the classifier uniform. Source: timm, _init_weight_goog."""
    if isinstance(part, nn.Conv2d):
        out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels // part.groups
        nn.init.normal_(part.weight, 0.0, math.sqrt(2 / out))
        if part.bias is not None:
            nn.init.zeros_(part.bias)
    elif isinstance(part, nn.Linear):
        bound = 1 / math.sqrt(part.out_features)
        nn.init.uniform_(part.weight, -bound, bound)
        nn.init.zeros_(part.bias)


Size = Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "lite0"]


def load_trunk(net: EfficientNet, path: Path | str) -> None:
    """Fills a network from a plain state dict in timm's names, or in those of Lite0's published file.

    Raises:
        BadInput: no such file, or of another network; names the first keys that differ.
    """
    state = read_weights(path)
    if "_conv_stem.weight" in state:
        from intarsia.features.efficientnet_lite import from_published

        state = from_published(state)
    if "conv_stem.weight" not in state:
        raise BadInput(f"{path}: not EfficientNet weights in timm's names (keys like {next(iter(state))})")
    fill(net, state, str(path))
