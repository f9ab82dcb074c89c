"""ResNet-v2 as TensorFlow-Slim has it: the trunk of B2T2, whose picture vectors are the mean of its last map.

Source: He et al., Identity Mappings in Deep Residual Networks (ECCV 2016); tf_slim's nets/resnet_v2.py.

Unusual:
- Norm and ReLU come before the convolutions; the shortcut of a block's first unit reads what they give, the others read the raw input.
- The stride of block 1, 2 and 3 sits in their last unit; block 4 has none. A shortcut without weights takes every second pixel.
- The stem has a bias and neither norm nor ReLU; the last convolution of a unit and the shortcut have biases and no norm.
- The stem's max-pool pads as TensorFlow's SAME, the convolutions by one pixel on both sides even where they stride.
- The published vectors' module takes pixels in 0..1; that it moves them to -1..1 inside is inferred, not seen, so `pixel_range` can be set.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from intarsia.errors import BadInput
from intarsia.features.norm import Norm, norm2d
from intarsia.features.roi import same_pads
from intarsia.weights.files import COUNTER, counted, fill, read_weights
from intarsia.weights.keymap import KeyMap, Move

EXPANSION = 4


@dataclass(frozen=True)
class ResNetV2Config:
    """ResNet-v2-152."""

    units: tuple[int, ...] = (3, 8, 36, 3)
    """Of block 1, 2, .."""
    base_depth: tuple[int, ...] = (64, 128, 256, 512)
    """A quarter of each block's output channels."""
    stem_channels: int = 64
    num_classes: int = 0
    """1001 in the published classifier, background first; 0 for none."""
    norm: Norm = "frozen"
    """B2T2 leaves the trunk as it is; where it trains, statistics are the stored ones."""
    eps: float = 1e-5
    momentum: float = 0.003
    """Of the running statistics, where they move: 1 less their decay."""
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    """What 0 and 1 become before the first convolution."""

    @property
    def width(self) -> int:
        """Channels of the last map."""
        return self.base_depth[-1] * EXPANSION


SIZES = {
    "resnet_v2_50": ResNetV2Config(units=(3, 4, 6, 3)),
    "resnet_v2_101": ResNetV2Config(units=(3, 4, 23, 3)),
    "resnet_v2_152": ResNetV2Config(),
}
"""By TensorFlow's scope."""


class Unit(nn.Module):
    """A pre-activated bottleneck: (B, C, H, W) to (B, 4 * depth, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, inputs: int, depth: int, stride: int, config: ResNetV2Config) -> None:
        super().__init__()
        norm, outputs = norm2d(config.norm, config.eps, config.momentum), depth * EXPANSION
        self.stride = stride
        self.preact = norm(inputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else None
        self.conv1 = nn.Conv2d(inputs, depth, 1, bias=False)
        self.bn1 = norm(depth)
        self.conv2 = nn.Conv2d(depth, depth, 3, stride, 1, bias=False)
        self.bn2 = norm(depth)
        self.conv3 = nn.Conv2d(depth, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """No ReLU after the sum."""
        before = functional.relu(self.preact(x))
        y = functional.relu(self.bn1(self.conv1(before)))
        y = self.conv3(functional.relu(self.bn2(self.conv2(y))))
        kept: Tensor = x[:, :, :: self.stride, :: self.stride] if self.shortcut is None else self.shortcut(before)
        out: Tensor = kept + y
        return out


class ResNetV2(nn.Module):
    """The network; `vectors` is what B2T2 reads."""

    def __init__(self, config: ResNetV2Config) -> None:
        super().__init__()
        if len(config.units) != len(config.base_depth) or not config.units:
            raise BadInput(
                f"ResNet-v2: units {config.units} and base_depth {config.base_depth}, expected as many of both"
            )
        self.config = config
        self.width = config.width
        """Channels of the last map."""
        self.conv1 = nn.Conv2d(3, config.stem_channels, 7, 2, 3)
        before, last = config.stem_channels, len(config.units)
        for number, (units, depth) in enumerate(zip(config.units, config.base_depth, strict=True), start=1):
            named: OrderedDict[str, nn.Module] = OrderedDict()
            for unit in range(1, units + 1):
                stride = 2 if unit == units and number != last else 1
                named[f"unit_{unit}"] = Unit(before, depth, stride, config)
                before = depth * EXPANSION
            self.add_module(f"block{number}", nn.Sequential(named))
        self.postnorm = norm2d(config.norm, config.eps, config.momentum)(self.width)
        if config.num_classes:
            self.logits = nn.Conv2d(self.width, config.num_classes, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """TF-Slim's start: convolutions from a normal of variance 2 / fan-in, cut at two deviations (1.3 makes up for the cut), biases 0."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                spread = math.sqrt(1.3 * 2 / part.weight[0].numel())
                nn.init.trunc_normal_(part.weight, std=spread, a=-2 * spread, b=2 * spread)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """What block 1, 2, .. give, neither normed nor cut: (B, 4 * depth, H', W') each, of pixels (B, 3, H, W) in 0..1, RGB."""
        low, high = self.config.pixel_range
        x = self.conv1(pixels * (high - low) + low)
        x = functional.max_pool2d(functional.pad(x, same_pads(x, (3, 3), (2, 2)), value=-torch.inf), 3, 2)
        out = []
        for number in range(1, len(self.config.units) + 1):
            x = getattr(self, f"block{number}")(x)
            out.append(x)
        return out

    def features(self, pixels: Tensor) -> Tensor:
        """The last map, normed and cut at 0: (B, width, about H / 32, about W / 32)."""
        return functional.relu(self.postnorm(self.maps(pixels)[-1]))

    def vectors(self, pixels: Tensor) -> Tensor:
        """(B, width) the mean of the last map: the published feature vector."""
        return self.features(pixels).mean((2, 3))

    def fill(self, path: Path | str) -> None:
        """Takes the weights of a file of TensorFlow's names: a checkpoint, safetensors, or a torch file of plain tensors; strict.

        Raises:
            BadInput: no such file, another network, tensors missing, left over or of another shape.
        """
        fill(self, resnet_v2_state(read_weights(path), self, str(path)), str(path))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, num_classes) logits."""
        if not self.config.num_classes:
            raise BadInput("ResNet-v2: built without a classifier (num_classes 0)")
        logits: Tensor = self.logits(self.vectors(pixels)[:, :, None, None])
        return logits[:, :, 0, 0]


# ---------------------------------------------------------------------------------------------------------------------------------- checkpoints

_NORM = (("gamma", "weight"), ("beta", "bias"), ("moving_mean", "running_mean"), ("moving_variance", "running_var"))


def _norm(theirs: str, ours: str) -> tuple[Move, ...]:
    return tuple(Move(theirs + a, ours + b) for a, b in _NORM)


def _conv(theirs: str, ours: str) -> tuple[Move, Move]:
    return Move(theirs + "weights", ours + "weight", turned=True), Move(theirs + "biases", ours + "bias")


def keys(scope: str = "resnet_v2_152/", blocks: int = 4) -> KeyMap:
    """Rules of TensorFlow's variable names.

    Args:
        scope: their first words, such as "module/resnet_v2_152/" in checkpoints of B2T2.
        blocks: as the config has.
    """
    moves: list[Move] = []
    for n in range(1, blocks + 1):
        theirs, ours = f"{scope}block{n}/unit_{{i}}/bottleneck_v2/", f"block{n}.unit_{{i}}."
        moves += [*_norm(theirs + "preact/", ours + "preact."), *_conv(theirs + "shortcut/", ours + "shortcut.")]
        for i in (1, 2):
            moves += _norm(f"{theirs}conv{i}/BatchNorm/", f"{ours}bn{i}.")
        for i in (1, 2, 3):
            moves += _conv(f"{theirs}conv{i}/", f"{ours}conv{i}.")
    moves += [*_conv(f"{scope}conv1/", "conv1."), *_norm(f"{scope}postnorm/", "postnorm.")]
    return KeyMap(*moves, *_conv(f"{scope}logits/", "logits."))


def resnet_v2_state(state: Mapping[str, Tensor], net: ResNetV2, where: str = "weights") -> dict[str, Tensor]:
    """TensorFlow's variables in our names; the scope is told by the names, the classifier left out where the network has none.

    Raises:
        BadInput: no ResNet-v2 among them, or a name of another network.
    """
    scope = next(
        (key.removesuffix("conv1/weights") for key in state if key.endswith("/conv1/weights") and "/block" not in key),
        None,
    )
    if scope is None:
        raise BadInput(f"{where}: no ResNet-v2 in it: no name ends with conv1/weights outside the blocks")
    ours = keys(scope, len(net.config.units)).to_ours(state, where)
    return counted({k: v for k, v in ours.items() if net.config.num_classes or not k.startswith("logits.")}, net)


def tf_state(net: ResNetV2, scope: str = "resnet_v2_152/") -> dict[str, Tensor]:
    """The network under TensorFlow's names and in its layout, as `resnet_v2_state` reads it."""
    plain = {key: value for key, value in net.state_dict().items() if not key.endswith(COUNTER)}
    return keys(scope, len(net.config.units)).to_theirs(plain)


def load_resnet_v2(path: Path | str, config: ResNetV2Config) -> ResNetV2:
    """A network with the weights of a file, in evaluation mode; see `ResNetV2.fill`."""
    net = ResNetV2(config)
    net.fill(path)
    return net.eval()
