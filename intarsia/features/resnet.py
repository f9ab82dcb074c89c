"""ResNet and ResNeXt with bottlenecks, as published weights have them: the trunk of Pixel-BERT, VL-BERT and the region detectors.

Source: He et al., Deep Residual Learning (CVPR 2016); Xie et al., Aggregated Residual Transformations (CVPR 2017); torchvision's resnet.py.

Unusual:
- One set of weights fits several networks: where the stride of a layer sits (its 3x3 convolution in torchvision, its first 1x1 in Caffe, VL-BERT and
  the bottom-up-attention detector), how the stem pools, and what replaces layer 4's stride have no trace in the shapes. A wrong choice loads and gives
  wrong features.
- Two dilated layer 4s: torchvision leaves the first block at dilation 1, VL-BERT and the detectors dilate every block.
- A batch norm is trained or frozen (`features.norm`); maskrcnn-benchmark's frozen one adds no eps.
- ResNeXt "32x8d" is four times as wide inside the block, and not outside.

Parameters are named as torchvision names them; `LAYOUTS` has the rules of other files, both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from intarsia.errors import BadInput
from intarsia.features.norm import Norm, norm2d
from intarsia.weights.files import counted, fill, read_weights
from intarsia.weights.keymap import KeyMap

EXPANSION = 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in 0..1, red, green, blue."""


@dataclass(frozen=True)
class ResNetConfig:
    """ResNet-50 of torchvision, unless said otherwise."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of layer 1, 2, ..; three numbers make a trunk without layer 4."""
    planes: tuple[int, ...] = (64, 128, 256, 512)
    """A quarter of each layer's output channels."""
    stem: int = 64
    """Channels of the stem."""
    groups: int = 1
    """Of the 3x3 convolutions; 32 in ResNeXt 32x8d."""
    group_width: int = 64
    """Channels a group where planes are 64; 8 in ResNeXt 32x8d."""
    stride_in: Literal["3x3", "1x1"] = "3x3"
    """The convolution that has a layer's stride."""
    pool: Literal["padded", "ceil"] = "padded"
    """The stem's 3x3 / 2 max-pool: padding 1, floor (torchvision); or no padding, ceil (Caffe)."""
    layer4: Literal["strided", "unstrided", "dilated", "dilated_after_first"] = "strided"
    """Stride 2; stride 1 (R2C); or stride 1 and dilation 2, in every block (VL-BERT, the detectors) or in all but the first (torchvision)."""
    norm: Norm = "batch"
    """Batch norms trained or frozen."""
    eps: float = 1e-5
    """Of the batch norms."""
    momentum: float = 0.1
    """Of the running statistics, where they move."""
    num_classes: int = 1000
    """0 for no classifier."""


SIZES = {
    "resnet50": ResNetConfig(),
    "resnet101": ResNetConfig(depths=(3, 4, 23, 3)),
    "resnet152": ResNetConfig(depths=(3, 8, 36, 3)),
    "resnext101_32x8d": ResNetConfig(depths=(3, 4, 23, 3), groups=32, group_width=8),
    "resnext152_32x8d": ResNetConfig(depths=(3, 8, 36, 3), groups=32, group_width=8),
}
"""Published sizes by name."""


class Bottleneck(nn.Module):
    """Narrow, filter, widen; added to the input. (B, C, H, W) to (B, 4 * planes, H / stride, W / stride).

    Args:
        inputs: C.
        planes: a quarter of the output's channels.
        stride: of the first 1x1 or of the 3x3, as the config says, and of the projection.
        dilation: of the 3x3, which is padded by as much.
        config: groups, place of the stride, norm.
    """

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, config: ResNetConfig) -> None:
        super().__init__()
        norm = norm2d(config.norm, config.eps, config.momentum)
        width, outputs = planes * config.group_width // 64 * config.groups, planes * EXPANSION
        first, second = (stride, 1) if config.stride_in == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, dilation, dilation, config.groups, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """ReLU after the sum."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


def layer(number: int, config: ResNetConfig) -> nn.Sequential:
    """Layer 1, 2, 3 or 4 of a network, by itself: (B, C, H, W) to (B, 4 * planes, H', W').

    Layer 4 alone is the head that detectors and VL-BERT run on regions: its keys are `{0,1,2}.conv1.weight` and so on.

    Args:
        number: from 1.
        config: of the whole network.
    """
    planes = config.planes[number - 1]
    before = config.stem if number == 1 else config.planes[number - 2] * EXPANSION
    stride, dilations = (1 if number == 1 else 2), [1] * config.depths[number - 1]
    if number == 4 and config.layer4 != "strided":
        stride = 1
    if number == 4 and config.layer4.startswith("dilated"):
        dilations = [1 if config.layer4 == "dilated_after_first" else 2, *[2] * (len(dilations) - 1)]
    blocks = [Bottleneck(before, planes, stride, dilations[0], config)]
    blocks += [Bottleneck(planes * EXPANSION, planes, 1, dilation, config) for dilation in dilations[1:]]
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """The network; `features` is its trunk, `forward` the classifier.

    Raises:
        BadInput: the config names no such network.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        if len(config.depths) != len(config.planes) or not 1 <= len(config.depths) <= 4:
            raise BadInput(f"ResNet: depths {config.depths} and planes {config.planes}, expected one to four of both")
        if config.groups < 1 or any(p * config.group_width % 64 for p in config.planes):
            raise BadInput(
                f"ResNet: planes {config.planes} cannot be cut into {config.groups} groups of {config.group_width}"
            )
        self.config = config
        self.width = config.planes[-1] * EXPANSION
        """Channels of the last map."""
        self.conv1 = nn.Conv2d(3, config.stem, 7, 2, 3, bias=False)
        self.bn1 = norm2d(config.norm, config.eps, config.momentum)(config.stem)
        for number in range(1, len(config.depths) + 1):
            self.add_module(f"layer{number}", layer(number, config))
        if config.num_classes:
            self.fc = nn.Linear(self.width, config.num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions: normal, scaled by their outputs (He et al. 2015, eq. 10, backward case)."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, stem, about H / 4, about W / 4). Take sizes from the tensor: a ceil pool may give one more than H // 4."""
        x = functional.relu(self.bn1(self.conv1(pixels)))
        if self.config.pool == "ceil":
            return functional.max_pool2d(x, 3, 2, 0, ceil_mode=True)
        return functional.max_pool2d(x, 3, 2, 1)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """The maps of layer 1, 2, .., each (B, 4 * planes, H', W'), of pixels (B, 3, H, W)."""
        x, out = self.stem(pixels), []
        for number in range(1, len(self.config.depths) + 1):
            x = getattr(self, f"layer{number}")(x)
            out.append(x)
        return out

    def features(self, pixels: Tensor) -> Tensor:
        """The last map, (B, width, H', W'); stride 32 with a strided layer 4, 16 with a dilated one or without."""
        return self.maps(pixels)[-1]

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, num_classes) logits of the map's mean."""
        if not self.config.num_classes:
            raise BadInput("ResNet: built without a classifier (num_classes 0)")
        logits: Tensor = self.fc(self.features(pixels).mean((2, 3)))
        return logits


# ---------------------------------------------------------------------------------------------------------------------------------- checkpoints

STATISTICS = (".running_mean", ".running_var")


def detectron_layer(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Rules of one layer in detectron2's names: `conv1.norm`, `shortcut`. Both names end with a dot."""
    moves = [(f"conv{n}.norm.", f"bn{n}.") for n in (1, 2, 3)] + [(f"conv{n}.", f"conv{n}.") for n in (1, 2, 3)]
    moves += [("shortcut.norm.", "downsample.1."), ("shortcut.", "downsample.0.")]
    return tuple((theirs + "{i}." + a, ours + "{i}." + b) for a, b in moves)


def _transformers_layer(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    moves = [(f"layer.{n - 1}.convolution.", f"conv{n}.") for n in (1, 2, 3)]
    moves += [(f"layer.{n - 1}.normalization.", f"bn{n}.") for n in (1, 2, 3)]
    moves += [("shortcut.convolution.", "downsample.0."), ("shortcut.normalization.", "downsample.1.")]
    return tuple((theirs + "{i}." + a, ours + "{i}." + b) for a, b in moves)


LAYOUTS = {
    "torchvision": KeyMap(("conv1.", "conv1."), ("bn1.", "bn1."), ("layer", "layer"), ("fc.", "fc.")),
    "maskrcnn": KeyMap(("stem.conv1.", "conv1."), ("stem.bn1.", "bn1."), ("layer", "layer")),
    "detectron": KeyMap(
        ("stem.conv1.norm.", "bn1."),
        ("stem.conv1.", "conv1."),
        *(rule for n in (1, 2, 3, 4) for rule in detectron_layer(f"res{n + 1}.", f"layer{n}.")),
    ),
    "transformers": KeyMap(
        ("embedder.embedder.convolution.", "conv1."),
        ("embedder.embedder.normalization.", "bn1."),
        *(rule for n in (1, 2, 3, 4) for rule in _transformers_layer(f"encoder.stages.{n - 1}.layers.", f"layer{n}.")),
        ("classifier.1.", "fc."),
    ),
}
"""Rules of published files, by the code that reads them there: torchvision's own names (also of Caffe weights that were converted for VL-BERT),
maskrcnn-benchmark's backbone, detectron2's, Hugging Face's."""
PREFIXES = ("backbone.body.", "backbone.", "resnet.")


def resnet_state(state: Mapping[str, Tensor], net: ResNet, where: str = "weights") -> dict[str, Tensor]:
    """A published state dict in our names: layout and prefix are told by the keys.

    Layers that the config leaves out are left out, the classifier too; statistics that a frozen file does without are those of no change.

    Raises:
        BadInput: keys of no known layout.
    """
    bare = _without_prefix(state)
    chosen = next((keys for keys in LAYOUTS.values() if all(_placed(keys, key) for key in bare)), None)
    if chosen is None:
        chosen = LAYOUTS["torchvision"]  # says what is wrong
    ours = chosen.to_ours(bare, where)
    spare = tuple(f"layer{n}." for n in range(len(net.config.depths) + 1, 5))
    ours = {key: value for key, value in ours.items() if not key.startswith(spare or ("\0",))}
    if not net.config.num_classes:
        ours = {key: value for key, value in ours.items() if not key.startswith("fc.")}
    return counted(with_statistics(ours, net, net.config.eps), net)


def fill_split(module: nn.Module, config: ResNetConfig, path: Path, drawn: tuple[str, ...] = ()) -> None:
    """Starts a detector's `backbone` (up to layer 3) and `head` (layer 4) from a whole ResNet's published weights.

    Args:
        module: has both.
        config: of the whole.
        path: of the weights.
        drawn: beginnings of names that stay as they were drawn.

    Raises:
        BadInput: as `resnet_state` and `weights.files.fill`.
    """
    with torch.device("meta"):
        whole = ResNet(config)
    state = resnet_state(read_weights(path), whole, str(path))
    named = {f"backbone.{key}".replace("backbone.layer4.", "head."): value for key, value in state.items()}
    fill(module, named, str(path), drawn)


def with_statistics(state: Mapping[str, Tensor], net: nn.Module, eps: float) -> dict[str, Tensor]:
    """Adds the statistics that a file of frozen norms leaves out when they are folded into weight and bias: mean 0, variance 1 - eps; only when it has none at all."""
    if any(key.endswith(STATISTICS) for key in state):
        return dict(state)
    wanted = {key: value for key, value in net.state_dict().items() if key.endswith(STATISTICS)}
    return dict(state) | {k: torch.full_like(v, 0.0 if k.endswith("mean") else 1 - eps) for k, v in wanted.items()}


def load_resnet(path: Path | str, config: ResNetConfig) -> ResNet:
    """A network with weights from a file of any known layout, in evaluation mode. Strict: what lacks or is left over is an error.

    Raises:
        BadInput: no such file, keys of no known layout, tensors missing, left over or of another shape.
    """
    net = ResNet(config)
    fill(net, resnet_state(read_weights(path), net, str(path)), str(path))
    return net.eval()


def normalised(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """(B, H, W, 3) uint8 RGB to (B, 3, H, W) float32, less ImageNet's mean and over its deviation."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)) if not isinstance(images, Tensor) else images
    mean, std = (torch.tensor(x, device=pixels.device) for x in (MEAN, STD))
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = next((x for x in PREFIXES if any(key.startswith(x) for key in state)), "")
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _placed(keys: KeyMap, name: str) -> bool:
    return keys.knows({name: torch.empty(0)})
