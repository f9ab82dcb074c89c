"""The "pixels" extractor: boxes around what stands out from a plain background, described by their shrunk pixels. No network, no download."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intarsia.data.source import Provenance
from intarsia.features import pixels
from intarsia.features.blobs import propose
from intarsia.features.extractor import Array, Found, given_boxes


class BlobRegions:
    """Blobs by size, then two boxes of background; the whole picture where no blob is found. Runs on the CPU.

    Boxes and features are those of drawn worlds, so systems trained on a world read raw pictures through it.
    """

    name, by_shape, adds_whole = pixels.NAME, False, False

    def __init__(self) -> None:
        self.provenance = Provenance(self.name, pixels.WIDTH, settings=dict(pixels.SETTINGS))

    def __call__(self, images: Sequence[Array]) -> list[Found]:
        """Blobs and background."""
        out: list[Found] = []
        for image in images:
            boxes, scores = propose(image)
            out.append(Found(boxes, pixels.pixel_features(image, boxes), scores))
        return out

    def features_at(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Found]:
        """Given boxes, described."""
        asked = [given_boxes(x, i) for i, x in enumerate(boxes)]
        return [
            Found(b, pixels.pixel_features(x, b), np.ones(len(b), np.float32))
            for x, b in zip(images, asked, strict=True)
        ]
