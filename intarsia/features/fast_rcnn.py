"""Fast R-CNN on given boxes: a ResNet up to layer 3, RoIAlign, layer 4 on each region, the mean. Trained together with the system that reads it.

Source: VL-BERT, sec. 3.2 and its code, common/fast_rcnn.py: strides in the 1x1 convolutions, layer 4 dilated instead of strided, regions of 14 x 14 cells with
one read each. Batch norms never change; the stem and layer 1 do not train. Pixels are blue, green, red, 0..255 less Caffe's mean.
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
from intarsia.features.resnet import ResNet, ResNetConfig, layer, resnet_state
from intarsia.features.roi import roi_align_unshifted
from intarsia.weights.files import fill, read_weights

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

    def train(self, mode: bool = True) -> FastRCNN:
        """Batch norms go by their stored statistics in training too."""
        return super().train(False)

    def fill(self, path: Path) -> None:
        """Starts from a ResNet's published weights, layer 4 as the head.

        Raises:
            BadInput: as `resnet.resnet_state` and `weights.files.fill`.
        """
        with torch.device("meta"):
            whole = ResNet(self.config)
        state = resnet_state(read_weights(path), whole, str(path))
        named = {f"backbone.{key}".replace("backbone.layer4.", "head."): value for key, value in state.items()}
        fill(self, named, str(path))

    def forward(self, images: Images | None, regions: Regions) -> Tensor:
        """(R, F) what the boxes show, each off the image of its document; documents have one image, or no regions.

        Args:
            images: I images, see `framed`; None if there are no regions.
            regions: boxes as fractions of the images.
        """
        if images is None:
            return regions.boxes.new_zeros(len(regions.boxes), self.width)
        maps = self.backbone.features(images.pixels)
        number = torch.searchsorted(images.doc, regions.packing.doc)  # (R) the image of each
        sides = images.valid.flip(1)[number].to(maps.dtype)  # (R, 2) wide, high
        boxes = regions.boxes.to(maps.dtype) * torch.cat([sides, sides], 1)
        cells = roi_align_unshifted(maps, boxes, number, SIZE, 1 / STRIDE, samples=1)
        return self.head(cells).mean((2, 3))  # type: ignore[no-any-return]


def framed(key: str, picture: Picture, short: int, long: int, blank: Sequence[Array] | Array = ()) -> Pixels:
    """A picture as `FastRCNN` takes it: its shorter side resized to `short` pixels, or less where the longer one would pass `long`.

    Args:
        key: of the sample, for errors.
        picture: decoded only when it is packed, unless nothing else says how large it is.
        short: pixels.
        long: pixels.
        blank: boxes (4) as fractions; the pixels inside become 0, which is the mean.
    """
    width, height = size_of(picture, key)
    size = frcnn_pixels.shortest_edge(height, width, short, long)
    return Pixels(partial(_read, key, picture, short, long, tuple(blank)), *size)


def _read(key: str, picture: Picture, short: int, long: int, blank: Sequence[Array]) -> Array:
    turned = np.ascontiguousarray(pixels_of(picture, key)[:, :, ::-1])
    pixels = frcnn_pixels.pillow(turned, short=short, longest=long).numpy()
    high, wide = pixels.shape[1:]
    for x1, y1, x2, y2 in blank:
        pixels[:, int(y1 * high) : int(y2 * high) + 1, int(x1 * wide) : int(x2 * wide) + 1] = 0
    found: Array = pixels
    return found
