"""The "patches" extractor: a picture cut into k x k equal cells, each described by its own shrunk pixels. No network, no download."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.features import pixels
from intarsia.features.blob_regions import BlobRegions
from intarsia.features.extractor import Array, Found


def cell_boxes(cells: int) -> Array:
    """(k * k, 4) float32: the cells of a k x k grid in reading order, as fractions of width and height."""
    rows, columns = np.divmod(np.arange(cells * cells), cells)
    boxes: Array = (np.stack([columns, rows, columns + 1, rows + 1], 1) / cells).astype(np.float32)
    return boxes


class Patches(BlobRegions):
    """k x k cells in reading order, without the whole picture; a cell sees nothing of its neighbours. Runs on the CPU.

    Args:
        cells: k.
    """

    name = "patches"

    def __init__(self, cells: int = 8) -> None:
        if cells < 1:
            raise BadInput(f"extractor patches: {cells} cells a side, expected at least 1")
        self.boxes = cell_boxes(cells)
        self.provenance = Provenance(self.name, pixels.WIDTH, settings={"cells": str(cells), **pixels.SETTINGS})

    def __call__(self, images: Sequence[Array]) -> list[Found]:
        """The cells of each picture."""
        return self.features_at(images, [self.boxes] * len(images))
