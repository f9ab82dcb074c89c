"""The "grid" extractor: the picture cut into k x k cells, patches. Needs no detector, and by default no download.

The features are reads of one map of the whole picture, so a cell sees its surroundings. The map comes from EfficientNet-Lite0 when its weights are
asked for, else from a small convolutional network with fixed random weights: those tell colours, edges and textures apart, and nothing more.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from intarsia.data.fetch import fetched
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.features.efficientnet_lite import FEATURES, load_efficientnet, normalised
from intarsia.features.extractor import WHOLE, Array, Found, given_boxes, where_to_run, whole_floats
from intarsia.features.roi import roi_align, stretched

WIDTHS = (32, 64, 128, 256)


class RandomTrunk(nn.Module):
    """Four 3 x 3 convolutions of stride 2 with fixed Gaussian weights, each followed by ReLU. (B, 3, H, W) to (B, 256, H/16, W/16).

    Args:
        seed: keys the weights; the same on every machine.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = np.random.default_rng([seed, 0x671D])
        before = 3
        for i, width in enumerate(WIDTHS):
            kernel = rng.standard_normal((width, before, 3, 3)) * math.sqrt(2 / (9 * before))
            self.register_buffer(f"kernel{i}", torch.from_numpy(kernel.astype(np.float32)))
            before = width

    def features(self, pixels: Tensor) -> Tensor:
        """The last map."""
        for i in range(len(WIDTHS)):
            pixels = torch.relu(functional.conv2d(pixels, getattr(self, f"kernel{i}"), stride=2, padding=1))
        return pixels


class Grid:
    """k x k cells in reading order, after the whole picture or without it.

    Args:
        cells: k.
        side: the picture is stretched to a square of this many pixels.
        trunk: "random" (no download) or "efficientnet" (weights of the part "light").
        seed: of the random trunk.
        device: "auto", "cpu", "cuda", ..
        cache: folder of fetched parts; the default one when empty.
        whole: "yes" or "no": whether the whole picture comes first.
    """

    name, by_shape, adds_whole = "grid", False, False

    def __init__(
        self,
        cells: int = 6,
        side: int = 224,
        trunk: Literal["random", "efficientnet"] = "random",
        seed: int = 0,
        device: str = "auto",
        cache: str = "",
        whole: Literal["yes", "no"] = "yes",
    ) -> None:
        if whole not in ("yes", "no"):
            raise BadInput(f"extractor grid: whole {whole!r} is not one of yes, no")
        if trunk not in ("random", "efficientnet"):
            raise BadInput(f"extractor grid: trunk {trunk!r} is not one of random, efficientnet")
        if cells < 1 or side < 32:
            raise BadInput(f"extractor grid: {cells} cells a side of {side} pixels, expected at least 1 and 32")
        self.device = where_to_run(device)
        self.side = side
        settings = {"cells": str(cells), "side": str(side), "trunk": trunk}
        weights = ""
        if trunk == "efficientnet":
            path = fetched("light", "efficientnet-lite0.pth", Path(cache) if cache else None)
            weights = hashlib.sha256(path.read_bytes()).hexdigest()
            self.trunk: nn.Module = load_efficientnet(path).to(self.device)
        else:
            settings["seed"] = str(seed)
            self.trunk = RandomTrunk(seed).to(self.device)
        edges = np.arange(cells + 1, dtype=np.float32) / cells
        rows, columns = np.divmod(np.arange(cells * cells), cells)
        grid = np.stack([edges[columns], edges[rows], edges[columns + 1], edges[rows + 1]], 1)
        self.boxes = np.concatenate([WHOLE, grid]) if whole == "yes" else grid
        if whole == "no":
            settings["whole"] = whole
        self.provenance = Provenance(
            self.name, FEATURES if trunk == "efficientnet" else WIDTHS[-1], weights, settings=settings
        )

    def __call__(self, images: Sequence[Array]) -> list[Found]:
        """The cells, and before them the whole picture if it is asked for."""
        return self.features_at(images, [self.boxes] * len(images))

    @whole_floats()
    @torch.inference_mode()
    def features_at(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Found]:
        """The map's mean inside each given box, by RoIAlign with 4 x 4 reads."""
        if not images:
            return []
        asked = [given_boxes(x, i) for i, x in enumerate(boxes)]
        pixels = torch.from_numpy(np.stack([stretched(x, self.side) for x in images])).to(self.device)
        maps: Tensor = self.trunk.features(normalised(pixels))  # type: ignore[operator]
        owner = torch.repeat_interleave(torch.arange(len(asked)), torch.tensor([len(x) for x in asked])).to(self.device)
        flat = torch.from_numpy(np.concatenate(asked)).to(self.device)
        rows = roi_align(maps, flat, owner, size=1, samples=4)[:, :, 0, 0].cpu().numpy()
        split = np.split(rows, np.cumsum([len(x) for x in asked])[:-1])
        return [Found(b, f, np.ones(len(b), np.float32)) for b, f in zip(asked, split, strict=True)]
