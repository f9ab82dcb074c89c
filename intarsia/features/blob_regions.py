"""The "pixels" extractor: boxes around uniform blobs of a raw picture, described by hand-made pixel statistics. No network, no download."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.features.blobs import propose
from intarsia.features.extractor import WHOLE, Array, Found, given_boxes
from intarsia.features.pixels import pixel_features

WIDTH = 192


class BlobRegions:
    """Proposed blobs, after the whole picture; runs on the CPU.

    Args:
        most: blobs a picture at the most, best first.
    """

    name = "pixels"

    def __init__(self, most: int = 36) -> None:
        if most < 0:
            raise BadInput(f"extractor pixels: most {most} is below 0")
        self.most = most
        self.provenance = Provenance(self.name, WIDTH, settings={"most": str(most)})

    def __call__(self, images: Sequence[Array]) -> list[Found]:
        """The whole picture and its blobs."""
        out: list[Found] = []
        for image in images:
            boxes, scores = propose(image)
            best = np.argsort(-np.asarray(scores), kind="stable")[: self.most]
            boxes = np.concatenate([WHOLE, np.asarray(boxes, np.float32)[best]])
            scores = np.concatenate([np.ones(1, np.float32), np.asarray(scores, np.float32)[best]])
            out.append(Found(boxes, pixel_features(image, boxes), scores))
        return out

    def features_at(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Found]:
        """Given boxes, described."""
        asked = [given_boxes(x, i) for i, x in enumerate(boxes)]
        return [Found(b, pixel_features(x, b), np.ones(len(b), np.float32)) for x, b in zip(images, asked, strict=True)]
