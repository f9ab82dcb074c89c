"""The extractor "resnet": a picture cut into k x k equal cells, each stretched to a square and described by a ResNet of its own pass. What FashionBERT and M6 read.

Source: FashionBERT, sec. 3.1, and the answers of its authors (8 x 8 cells, ResNet-50, the mean of its last map); M6, sec. 4 (a trained ResNet on each patch).
The size of the square is not known: that of ImageNet's crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.features.extractor import Array, Found, given_boxes, remember_weights, where_to_run
from intarsia.features.patches import cell_boxes
from intarsia.features.resnet import SIZES, load_resnet, normalised

CROPS = 64
"""Cells described at once."""


class ResNetPatches:
    """k x k cells in reading order, without the whole picture; a cell sees nothing of its neighbours.

    Args:
        weights: the network's file, of any layout that `features.resnet` knows.
        size: of the network, one of `features.resnet.SIZES`.
        cells: k; 8 for FashionBERT, 4 for M6.
        side: of the square in pixels.
        device: "auto", "cpu", "cuda", "cuda:1", ..
    """

    name, by_shape, adds_whole = "resnet", False, False

    def __init__(
        self, weights: str = "", size: str = "resnet50", cells: int = 8, side: int = 224, device: str = "auto"
    ) -> None:
        if not weights:
            raise BadInput("extractor resnet: name its weights with --weights FILE")
        if size not in SIZES:
            raise BadInput(f"extractor resnet: size {size!r} is not one of {', '.join(SIZES)}")
        if cells < 1 or side < 32:
            raise BadInput(f"extractor resnet: {cells} cells a side, of {side} pixels, expected at least 1 and 32")
        self.device, self.side, self.boxes = where_to_run(device), side, cell_boxes(cells)
        self.trunk = load_resnet(weights, SIZES[size]).to(self.device)
        settings = {"size": size, "cells": str(cells), "side": str(side)}
        self.provenance = Provenance(self.name, self.trunk.width, remember_weights(Path(weights)), settings=settings)

    def __call__(self, images: Sequence[Array]) -> list[Found]:
        """The cells of each picture."""
        return self.features_at(images, [self.boxes] * len(images))

    @torch.inference_mode()
    def features_at(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Found]:
        """Given boxes, cut out and described."""
        found = []
        for i, (image, asked) in enumerate(zip(images, boxes, strict=True)):
            given = given_boxes(asked, i)
            squares = np.array([self._square(image, box) for box in given], np.uint8)
            rows = [torch.zeros(0, self.trunk.width)]
            for start in range(0, len(squares), CROPS):
                pixels = normalised(squares[start : start + CROPS]).to(self.device)
                rows.append(self.trunk.features(pixels).mean((2, 3)).float().cpu())
            found.append(Found(given, torch.cat(rows).numpy(), np.ones(len(given), np.float32)))
        return found

    def _square(self, image: Array, box: Array) -> Array:
        """(side, side, 3): a box cut out in whole pixels, at least one, before it is stretched."""
        high, wide = image.shape[:2]
        left, top, right, bottom = np.rint(box * np.array([wide, high, wide, high])).astype(int).tolist()
        left, top = min(left, wide - 1), min(top, high - 1)
        cut = Image.fromarray(image[top : max(bottom, top + 1), left : max(right, left + 1)])
        return np.asarray(cut.resize((self.side, self.side), Image.Resampling.BICUBIC))
