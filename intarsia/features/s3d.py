"""S3D: Inception with its 3x3x3 convolutions cut into a spatial and a temporal one; VideoBERT's and CBT's vectors of a clip.

Source: Xie et al., Rethinking Spatiotemporal Feature Learning (ECCV 2018). The weights VideoBERT and CBT used were never published; two public networks bear
the name, and they are not the same.

Unusual:
- "milnce" (HowTo100M, Miech et al., CVPR 2020) gates its channels, has its stem as one convolution over 2 x 2 x 2 pixels laid into channels, pads pools
  with zeros behind the picture, norms with eps 1e-5, and takes pixels in 0..1.
- "kinetics" (torchvision's and kylemin's, one function under two sets of names) does none of that: separable stem, padding all round, eps 1e-3, and
  pixels normed (torchvision) or in -1..1 (kylemin).
- ReLU follows both halves of a separable convolution.
- The classifier's mean over windows of two steps counts the first and the last step half; `vectors` is the plain mean.
- A running statistic of "kinetics" moves by 0.001 a step: freeze the norms in a short fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from intarsia.errors import BadInput
from intarsia.features.norm import Norm, norm3d
from intarsia.weights.files import counted, fill, read_weights
from intarsia.weights.keymap import KeyMap

Three = tuple[int, int, int]
BLOCKS: dict[str, tuple[int, ...]] = {  # branch 0; 1 before, after; 2 before, after; 3
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Channels of the Inception blocks."""
POOLS: dict[str, tuple[Three, Three, Three]] = {  # kernel, stride, padding all round
    "maxpool_2a": ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    "maxpool_3a": ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    "maxpool_4a": ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    "maxpool_5a": ((2, 2, 2), (2, 2, 2), (0, 0, 0)),
}
ORDER = (
    *("conv1", "maxpool_2a", "conv_2b", "conv_2c", "maxpool_3a", "mixed_3b", "mixed_3c", "maxpool_4a"),
    *("mixed_4b", "mixed_4c", "mixed_4d", "mixed_4e", "mixed_4f", "maxpool_5a", "mixed_5b", "mixed_5c"),
)
"""The parts as they run; a part's place is its number in torchvision's and kylemin's names."""


@dataclass(frozen=True)
class S3DConfig:
    """The Kinetics network."""

    width_divisor: int = 1
    """All channels are divided by this."""
    stem: Literal["separable", "space_to_depth", "whole"] = "separable"
    """whole: one strided convolution, as the public trainer of MIL-NCE has it; its weights are not those of space_to_depth in another order."""
    gated: bool = False
    """Each channel is multiplied by a sigmoid of the mean of all, behind conv_2c and every branch."""
    pool: Literal["round", "behind"] = "round"
    """Max-pools padded all round, floor; or with zeros behind, ceil: TensorFlow's SAME for even sizes."""
    eps: float = 1e-3
    momentum: float = 0.001
    norm: Norm = "batch"
    num_classes: int = 400
    """0 for no classifier."""
    dropout: float = 0.2
    """Before the classifier."""
    window: Literal["picture", "seven"] = "picture"
    """The classifier's windows: the whole picture (kylemin), or 7 x 7 cells (torchvision). The same at 224 pixels."""
    joint: int = 0
    """Width of the space shared with text; 0 for none."""


SIZES = {
    "kinetics": S3DConfig(),
    "milnce": S3DConfig(
        stem="space_to_depth", gated=True, pool="behind", eps=1e-5, momentum=0.1, num_classes=0, joint=512
    ),
}
"""The two public networks."""


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Three, config: S3DConfig, stride: Three = (1, 1, 1)) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = norm3d(config.norm, config.eps, config.momentum)(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H', W')."""
        return functional.relu(self.bn(self.conv(x)))


class Separable(nn.Module):
    """A convolution over space, then one over time, each with its norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, config: S3DConfig, stride: int = 1) -> None:
        super().__init__()
        self.spatial = Unit(inputs, outputs, (1, kernel, kernel), config, (1, stride, stride))
        self.temporal = Unit(outputs, outputs, (kernel, 1, 1), config, (stride, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H', W')."""
        out: Tensor = self.temporal(self.spatial(x))
        return out


class Gate(nn.Module):
    """Channels weighed by a sigmoid of the mean of all of them. Source: sec. 4.3 of the paper."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        weight: Tensor = torch.sigmoid(self.fc(x.mean((2, 3, 4))))
        return x * weight[:, :, None, None, None]


class Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self, inputs: int, channels: tuple[int, ...], config: S3DConfig) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3 = channels
        point = (1, 1, 1)
        self.b0 = Unit(inputs, b0, point, config)
        self.b1a, self.b1b = Unit(inputs, b1a, point, config), Separable(b1a, b1b, 3, config)
        self.b2a, self.b2b = Unit(inputs, b2a, point, config), Separable(b2a, b2b, 3, config)
        self.b3 = Unit(inputs, b3, point, config)
        self.gates = nn.ModuleList(Gate(x) for x in (b0, b1b, b2b, b3)) if config.gated else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T, H, W)."""
        pooled = functional.max_pool3d(x, 3, 1, 1)
        out = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3(pooled)]
        if self.gates is not None:
            out = [gate(branch) for gate, branch in zip(self.gates, out, strict=True)]
        return torch.cat(out, 1)


class S3D(nn.Module):
    """The network; `vectors` is what VideoBERT and CBT read."""

    def __init__(self, config: S3DConfig) -> None:
        super().__init__()
        self.config = config
        stem, narrow = 64 // config.width_divisor, 192 // config.width_divisor
        if config.stem == "separable":
            self.conv1: nn.Module = Separable(3, stem, 7, config, 2)
        elif config.stem == "whole":
            self.conv1 = Unit(3, stem, (3, 7, 7), config, (2, 2, 2))
        else:
            self.conv1 = Unit(24, stem, (2, 4, 4), config)
        self.conv_2b = Unit(stem, stem, (1, 1, 1), config)
        self.conv_2c = Separable(stem, narrow, 3, config)
        self.gate = Gate(narrow) if config.gated else None
        before = narrow
        for name, channels in BLOCKS.items():
            own = tuple(x // config.width_divisor for x in channels)
            self.add_module(name, Inception(before, own, config))
            before = own[0] + own[2] + own[4] + own[5]
        self.width = before
        """Channels of the last map: 1024."""
        self.dropout = nn.Dropout(config.dropout)
        if config.num_classes:
            self.classifier = nn.Conv3d(before, config.num_classes, 1)
        if config.joint:
            self.joint = nn.Linear(before, config.joint)

    def maps(self, video: Tensor) -> dict[str, Tensor]:
        """What each part gives, by the names of `ORDER`; "gating" is conv_2c's output once gated.

        Args:
            video: (B, 3, T, H, W) float in the network's range of pixels.

        Raises:
            BadInput: T, H or W is odd where the stem lays pixels into channels.
        """
        out: dict[str, Tensor] = {}
        x = video
        for name in ORDER:
            if name in POOLS:
                x = self._pooled(x, name)
            elif name == "conv1":
                x = self._stem(x)
            else:
                x = getattr(self, name)(x)
            out[name] = x
            if name == "conv_2c" and self.gate is not None:
                x = out["gating"] = self.gate(x)
        return out

    def features(self, video: Tensor) -> Tensor:
        """The last map, (B, 1024, T', H', W'): an eighth in time, a 32nd in space."""
        return self.maps(video)["mixed_5c"]

    def vectors(self, video: Tensor) -> Tensor:
        """(B, 1024) the mean of the last map."""
        return self.features(video).mean((2, 3, 4))

    def windows(self, maps: Tensor) -> Tensor:
        """(B, 1024, T' - 1, H', W') means of two steps and the classifier's window in space, of the last map."""
        space = maps.shape[3:] if self.config.window == "picture" else (7, 7)
        return functional.avg_pool3d(maps, (2, *space), 1)

    def forward(self, video: Tensor) -> Tensor:
        """(B, num_classes) logits."""
        if not self.config.num_classes:
            raise BadInput("S3D: built without a classifier (num_classes 0)")
        logits: Tensor = self.classifier(self.dropout(self.windows(self.features(video))))
        return logits.mean((2, 3, 4))

    def embed(self, vectors: Tensor) -> Tensor:
        """(B, 1024) vectors in the space shared with text: (B, joint), not normed."""
        if not self.config.joint:
            raise BadInput("S3D: built without a space shared with text (joint 0)")
        out: Tensor = self.joint(vectors)
        return out

    def _stem(self, x: Tensor) -> Tensor:
        if self.config.stem != "space_to_depth":
            out: Tensor = self.conv1(x)
            return out
        batch, channels, *sides = x.shape
        if any(side % 2 for side in sides):
            raise BadInput(f"S3D: a clip of {sides[0]} frames, {sides[1]} x {sides[2]} pixels; all three must be even")
        t, h, w = (side // 2 for side in sides)
        x = x.view(batch, channels, t, 2, h, 2, w, 2).permute(0, 3, 5, 7, 1, 2, 4, 6)
        out = self.conv1(x.reshape(batch, 8 * channels, t, h, w))
        return out[:, :, 1:, 1:, 1:]

    def _pooled(self, x: Tensor, name: str) -> Tensor:
        kernel, stride, padding = POOLS[name]
        if self.config.pool == "round":
            return functional.max_pool3d(x, kernel, stride, padding)
        spare = [max(k - s, 0) for k, s in zip(kernel[::-1], stride[::-1], strict=True)]
        pads = [side for n in spare for side in (n // 2, n - n // 2)]
        return functional.max_pool3d(functional.pad(x, pads), kernel, stride, ceil_mode=True)


# ---------------------------------------------------------------------------------------------------------------------------------- checkpoints


def _milnce() -> KeyMap:
    def unit(theirs: str, ours: str) -> list[tuple[str, str]]:
        return [(theirs + "conv1.", ours + "conv."), (theirs + "bn1.", ours + "bn.")]

    def separable(theirs: str, ours: str) -> list[tuple[str, str]]:
        return [
            *((f"{theirs}conv{n}.", f"{ours}{part}.conv.") for n, part in ((1, "spatial"), (2, "temporal"))),
            *((f"{theirs}bn{n}.", f"{ours}{part}.bn.") for n, part in ((1, "spatial"), (2, "temporal"))),
        ]

    rules = [*unit("conv1.", "conv1."), *unit("conv_2b.", "conv_2b."), *separable("conv_2c.", "conv_2c.")]
    for name in BLOCKS:
        for theirs, ours in (("b0", "b0"), ("b1_a", "b1a"), ("b2_a", "b2a"), ("b3_b", "b3")):
            rules += unit(f"{name}.conv_{theirs}.", f"{name}.{ours}.")
        for n in (1, 2):
            rules += separable(f"{name}.conv_b{n}_b.", f"{name}.b{n}b.")
        rules += [(f"{name}.gating_b{n}.", f"{name}.gates.{n}.") for n in range(4)]
    return KeyMap(*rules, ("gating.", "gate."), ("fc.", "joint."))


def _kinetics(first: str, last: str, names: tuple[str, str, str, str, str, str], single: str) -> KeyMap:
    """Rules of the numbered layouts: their first word, their classifier, their conv, bn, and those of space and time; what branch 0 is called."""
    conv, bn, conv_s, bn_s, conv_t, bn_t = names

    def unit(theirs: str, ours: str) -> list[tuple[str, str]]:
        return [(f"{theirs}{conv}.", f"{ours}conv."), (f"{theirs}{bn}.", f"{ours}bn.")]

    def separable(theirs: str, ours: str) -> list[tuple[str, str]]:
        pairs = ((conv_s, "spatial.conv"), (bn_s, "spatial.bn"), (conv_t, "temporal.conv"), (bn_t, "temporal.bn"))
        return [(f"{theirs}{a}.", f"{ours}{b}.") for a, b in pairs]

    rules = separable(f"{first}0.", "conv1.") + unit(f"{first}2.", "conv_2b.") + separable(f"{first}3.", "conv_2c.")
    for name in BLOCKS:
        theirs, ours = f"{first}{ORDER.index(name)}.branch", f"{name}.b"
        rules += unit(f"{theirs}0.{single}", f"{ours}0.") + unit(f"{theirs}3.1.", f"{ours}3.")
        for n in (1, 2):
            rules += unit(f"{theirs}{n}.0.", f"{ours}{n}a.") + separable(f"{theirs}{n}.1.", f"{ours}{n}b.")
    return KeyMap(*rules, (last, "classifier."))


LAYOUTS = {
    "milnce": _milnce(),
    "torchvision": _kinetics("features.", "classifier.1.", ("0", "1", "0.0", "0.1", "1.0", "1.1"), ""),
    "kylemin": _kinetics("base.", "fc.0.", ("conv", "bn", "conv_s", "bn_s", "conv_t", "bn_t"), "0."),
}
"""Rules of the public files."""
TEXT = "text_module."
"""Keys of MIL-NCE's other branch, see `features.s3d_text`."""


def s3d_layout(state: Mapping[str, Tensor], where: str = "weights") -> str:
    """Which of `LAYOUTS` the names are of.

    Raises:
        BadInput: of none.
    """
    for name, sign in (("milnce", "mixed_3b."), ("torchvision", "features.5."), ("kylemin", "base.5.")):
        if any(key.startswith(sign) for key in state):
            return name
    raise BadInput(f"{where}: no S3D in it: no key begins with mixed_3b., features.5. or base.5.")


def s3d_state(state: Mapping[str, Tensor], net: S3D, where: str = "weights") -> dict[str, Tensor]:
    """A public state dict in our names; the text branch is left out, and so are heads that the network has not.

    Raises:
        BadInput: no S3D, or a name that no rule knows.
    """
    video = {key: value for key, value in state.items() if not key.startswith(TEXT)}
    ours = LAYOUTS[s3d_layout(video, where)].to_ours(video, where)
    heads = ("classifier.", "joint.")
    spare = tuple(x for x in heads if not any(key.startswith(x) for key in net.state_dict()))
    return counted({key: value for key, value in ours.items() if not key.startswith((*spare, "\0"))}, net)


def load_s3d(path: Path | str, config: S3DConfig | None = None) -> S3D:
    """A network with weights from a public file, in evaluation mode; strict.

    Args:
        path: the file.
        config: what to build; told by the file where None (with its stem, which only the shape of its first weight tells).

    Raises:
        BadInput: no such file, another network, tensors missing, left over or of another shape.
    """
    state = read_weights(path)
    if config is None:
        whole = tuple(state.get("conv1.conv1.weight", torch.empty(0)).shape)[1:] == (3, 3, 7, 7)
        config = SIZES["milnce" if s3d_layout(state, str(path)) == "milnce" else "kinetics"]
        config = S3DConfig(**{**vars(config), "stem": "whole"}) if whole else config
    net = S3D(config)
    fill(net, s3d_state(state, net, str(path)), str(path))
    return net.eval()
