"""The extractor "resnet_v2": pictures and given boxes as B2T2 sees them, each cut out, put into a square and described by a ResNet-v2 of TensorFlow.

It finds no boxes: alone it gives the whole picture, with boxes of the data (`intarsia extract` of lines that have some) those and, last, the whole picture.
Source: B2T2, sec. 3, and run_b2t2.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.features.extractor import WHOLE, Array, Found, given_boxes, remember_weights, where_to_run, whole_floats
from intarsia.features.letterbox import cut_outs
from intarsia.features.resnet_v2 import SIZES, load_resnet_v2

CROPS = 32
"""Cut-outs described at once."""


class Cutouts:
    """Cut-outs of pictures, described by ResNet-v2.

    Args:
        weights: the trunk's file: a TensorFlow checkpoint, or a torch file with its names.
        size: of the trunk, one of `resnet_v2.SIZES`.
        device: "auto", "cpu", "cuda", "cuda:1", ..
    """

    name, by_shape, adds_whole = "resnet_v2", False, True

    def __init__(self, weights: str = "", size: str = "resnet_v2_152", device: str = "auto") -> None:
        if not weights:
            raise BadInput("extractor resnet_v2: name its weights with --weights FILE")
        if size not in SIZES:
            raise BadInput(f"extractor resnet_v2: size {size!r} is not one of {', '.join(SIZES)}")
        self.device = where_to_run(device)
        self.trunk = load_resnet_v2(weights, SIZES[size]).to(self.device)
        self.provenance = Provenance(
            self.name, self.trunk.width, remember_weights(Path(weights)), settings={"size": size}
        )

    def __call__(self, images: Sequence[Array]) -> list[Found]:
        """The whole picture."""
        return self.features_at(images, [WHOLE] * len(images))

    @whole_floats()
    @torch.inference_mode()
    def features_at(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Found]:
        """Given boxes, cut out in whole pixels as B2T2 cuts them; one without a whole pixel gets one."""
        found = []
        for i, (image, asked) in enumerate(zip(images, boxes, strict=True)):
            given = given_boxes(asked, i)
            squares = cut_outs(image, given)
            rows = [torch.zeros(0, self.provenance.width)]
            for start in range(0, len(squares), CROPS):
                pixels = torch.from_numpy(np.stack(squares[start : start + CROPS])).permute(0, 3, 1, 2)
                rows.append(self.trunk.vectors(pixels.to(self.device)).float().cpu())
            found.append(Found(given, torch.cat(rows).numpy(), np.ones(len(given), np.float32)))
        return found
