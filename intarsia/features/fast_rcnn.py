"""Fast R-CNN on given boxes: a ResNet up to layer 3, RoIAlign, layer 4 on each region, the mean. Trained together with the system that reads it.

Source: VL-BERT, sec. 3.2 and its code, common/fast_rcnn.py: strides in the 1x1 convolutions, layer 4 dilated instead of strided, regions of 14 x 14 cells with
one read each. Where it is known which cells of a box its object covers, the others are 0 after layer 4 (common/utils/mask.py). Batch norms never change;
the stem and layer 1 do not train. Pixels are blue, green, red, 0..255 less Caffe's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from intarsia.batch import Array, Images, Picture, Pixels, Regions
from intarsia.data.decode import pixels_of, size_of
from intarsia.features import frcnn_pixels
from intarsia.features.resnet import ResNet, ResNetConfig, fill_split, layer
from intarsia.features.roi import roi_align_unshifted

SIZE = 14
"""Cells a side of a region."""
STRIDE = 16
"""Pixels a side of what a cell of layer 3's map stands for."""
RESNET101 = ResNetConfig((3, 4, 23, 3), stride_in="1x1", layer4="dilated", num_classes=0)
KEPT = ("conv1.", "layer1.")
"""Stages that do not train, beside all batch norms."""


class FastRCNN(nn.Module):
    """Pixels and boxes to a feature a box.

    Args:
        config: layers 1 to 4; the fourth reads regions.
    """

    def __init__(self, config: ResNetConfig = RESNET101) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(replace(config, depths=config.depths[:3], planes=config.planes[:3]))
        self.head = layer(4, config)
        self.width = 4 * config.planes[3]
        """F, numbers a feature."""
        for name, parameter in self.named_parameters():
            if ".bn" in name or ".downsample.1." in name or name.startswith(tuple(f"backbone.{x}" for x in KEPT)):
                parameter.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FastRCNN:
        """Batch norms go by their stored statistics in training too."""
        return super().train(False)

    def fill(self, path: Path) -> None:
        """Starts from a ResNet's published weights, layer 4 as the head.

        Raises:
            BadInput: as `resnet.fill_split`.
        """
        fill_split(self, self.config, path)

    def forward(self, images: Images | None, regions: Regions) -> Tensor:
        """(R, F) what the boxes show, each off the image of its document or, where it has none, of the last before it that has (VCR's choices).

        Args:
            images: I images, see `framed`; None if there are no regions.
            regions: boxes as fractions of the images; perhaps the cells that their objects cover.

        Raises:
            ValueError: regions, but no image.
        """
        if images is None:
            if len(regions.boxes):
                raise ValueError(f"{len(regions.boxes)} regions, and no image to read them off")
            return regions.boxes.new_zeros(0, self.width)
        maps, (once, again) = self.backbone.features(images.pixels), images.shared
        number = torch.searchsorted(images.doc, regions.packing.doc[once])  # (K) the image of each
        sides = images.valid.flip(1)[number].to(maps.dtype)  # (K, 2) wide, high
        boxes = regions.boxes[once].to(maps.dtype) * torch.cat([sides, sides], 1)
        seen: Tensor = self.head(roi_align_unshifted(maps, boxes, number, SIZE, 1 / STRIDE, samples=1))[again]
        if regions.covers is not None:
            seen = seen * regions.covers[:, None]
        return seen.mean((2, 3))


def frame(width: int, height: int, short: int, long: int) -> tuple[int, int]:
    """(height, width) of a picture whose shorter side is resized to `short` pixels, or less where the longer one would pass `long`; all cut to whole numbers."""
    low, top = min(width, height), max(width, height)
    side = int(long * low / top) if top / low * short > long else short
    return (side, int(side * width / height)) if width >= height else (int(side * height / width), side)


def framed(key: str, picture: Picture, short: int, long: int, blank: Sequence[Array] | Array = ()) -> Pixels:
    """A picture as `FastRCNN` takes it, resized as `frame` says.

    Args:
        key: of the sample, for errors.
        picture: decoded only when it is packed, unless nothing else says how large it is.
        short: pixels.
        long: pixels.
        blank: boxes (4) as fractions; the pixels inside become 0, which is the mean.
    """
    size = frame(*size_of(picture, key), short, long)
    return Pixels(partial(_read, key, picture, size, tuple(blank)), *size)


def _read(key: str, picture: Picture, size: tuple[int, int], blank: Sequence[Array]) -> Array:
    colours = np.ascontiguousarray(pixels_of(picture, key)[:, :, ::-1])
    found: Array = frcnn_pixels.resized(colours, *size).numpy()
    high, wide = size
    for x1, y1, x2, y2 in blank:
        found[:, int(y1 * high) : int(y2 * high) + 1, int(x1 * wide) : int(x2 * wide) + 1] = 0
    return found


def covered(outlines: Sequence[Array], box: Sequence[float]) -> Array:
    """(SIZE, SIZE) bool: the cells of a box that lie in one of an object's outlines.

    Outlines are brought to cells and into 0 .. SIZE - 1; a cell is where its number is. As scikit-image drew polygons when the authors trained (before 0.18), a
    cell on a left or upper edge lies inside, on a right or lower one outside, so the last row and column are never covered.

    Args:
        outlines: (N, 2) corners x, y in pixels.
        box: x1, y1, x2, y2 in pixels, both ends inside.

    Source: VL-BERT, common/utils/mask.py, in float32 as there.
    """
    corner, extent = np.array(box[:2], np.float32), np.array(box[2:4], np.float64) - np.array(box[:2], np.float64) + 1
    down, across = np.mgrid[:SIZE, :SIZE]
    found = np.zeros((SIZE, SIZE), np.bool_)
    for outline in outlines:
        points = ((outline.astype(np.float32) - corner) * (SIZE / extent).astype(np.float32)).clip(0, SIZE - 1)
        x, y = points.T.astype(np.float64)[:, :, None, None]  # (N, 1, 1) each
        x0, y0 = np.roll(x, 1, 0), np.roll(y, 1, 0)
        between = (np.minimum(y, y0) <= down) & (down < np.maximum(y, y0))  # (N, SIZE, SIZE)
        crossed = (x0 - x) * (down - y) / np.where(y == y0, 1, y0 - y) + x
        found |= (between & (across < crossed)).sum(0) % 2 == 1
    return found
