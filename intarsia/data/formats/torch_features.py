"""Features of many pictures in one file: Oscar's and VisualBERT's `.pt`, `.th`, and `.npy` of a dict.

A dict by picture of tables (R, F + 6), Oscar's, whose last six columns are the geometry; of tuples (features, boxes in pixels, confidence),
VisualBERT's; or of dicts as ViLBERT's. Tensors are read when asked for; arrays of numpy lie inside the pickle and are held in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Picture
from intarsia.data.formats.oscar_tsv import GEOMETRY
from intarsia.data.formats.store import Array, RegionStore, make_picture, whole_picture
from intarsia.data.formats.torch_file import Lazy, read_torch
from intarsia.data.formats.vilbert import of_dict
from intarsia.errors import BadInput
from intarsia.weights.pickles import read_object_npy


class TorchFeatures(RegionStore):
    """Such a file as a store.

    Args:
        path: the file.
        width: F, numbers a region without the geometry.
        boxes: "none" takes features without boxes, each region as the whole picture.

    Raises:
        BadInput: cannot be read, or holds no dict of features.
    """

    kind = "features of many pictures in one file (Oscar, VisualBERT)"

    def __init__(self, path: str | Path, width: int = 2048, boxes: str = "xyxy") -> None:
        self.path, self.width, self.whole = Path(path), width, boxes == "none"
        content = read_content(self.path)
        if not is_features(content):
            raise BadInput(f"{path}: holds no dict of features by picture")
        self.names = [str(x).removesuffix(".npz") for x in content]
        self._values = list(content.values())

    def picture(self, number: int) -> Picture:
        """A picture's entry."""
        name, where, value = self.names[number], self.where(number), self._values[number]
        if isinstance(value, dict):
            return of_dict({key: _plain(x) for key, x in value.items()}, name, where)
        if isinstance(value, list | tuple):
            return self._tuple(name, where, tuple(map(_plain, value)))
        table = np.asarray(_plain(value))
        if table.ndim == 2 and table.shape[1] == self.width + GEOMETRY:
            at = self.width
            return make_picture(name, where, table[:, :at], table[:, at : at + 4], self.size_of(name), pixels=False)
        if table.ndim == 2 and table.shape[1] == self.width and self.whole:
            return whole_picture(name, where, table, self.size_of(name))
        raise BadInput(
            f"{where}: features of shape {table.shape}, expected (R, {self.width + GEOMETRY}), the last {GEOMETRY} the geometry; --width is "
            f"without it, and --boxes none takes (R, {self.width}) without boxes"
        )

    def _tuple(self, name: str, where: str, value: tuple[Any, ...]) -> Picture:
        if len(value) != 3:
            raise BadInput(f"{where}: {len(value)} parts, expected features, boxes and confidence")
        features, boxes, scores = value
        if boxes is None and self.whole:
            return whole_picture(name, where, features, self.size_of(name))
        features, boxes = np.asarray(features), np.asarray(boxes)
        kept = scores if np.ndim(scores) == 1 and len(scores) == len(features) else None  # screened ones say a count
        return make_picture(name, where, features, boxes[:, :4], self.size_of(name), scores=kept)


def read_content(path: Path) -> Any:
    """What such a file holds, tensors still in it."""
    return read_object_npy(path) if path.suffix == ".npy" else read_torch(path)


def is_features(content: Any) -> bool:
    """Whether this is a dict of features by picture."""
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    if isinstance(first, list | tuple):
        return len(first) > 0 and isinstance(first[0], Lazy | np.ndarray)
    return isinstance(first, Lazy | np.ndarray) or (isinstance(first, dict) and "features" in first)


def _plain(value: Any) -> Array | Any:
    return value.array() if isinstance(value, Lazy) else value
