"""FashionGen's HDF5 files, `fashiongen_256_256_{train,validation}.h5`: a row a pose of a product, pixels included. Data: Rostamzadeh et al. 2018.

Texts are fixed-length bytes in latin-1, (N, 1) or (N). Several rows show one product; all say the same of it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Array, Picture
from intarsia.data.formats.hdf5 import Hdf5File
from intarsia.data.formats.index import LineSource, OnError, build_index
from intarsia.data.formats.lines import Line
from intarsia.data.formats.pairs import empty_picture
from intarsia.errors import BadInput

FILE = re.compile(r"fashiongen_\w*?(?P<split>train|validation)\.h5")
TEXTS = ("input_description", "input_category", "input_subcategory", "input_productID")


class FashionRows:
    """The texts of a file, by row.

    Raises:
        BadInput: not a FashionGen file by its name, not HDF5, or its columns differ in length; names the column.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, match = Path(path), FILE.fullmatch(Path(path).name)
        if match is None:
            raise BadInput(
                f"{path}: not named as FashionGen's files are, fashiongen_256_256_train.h5 or .._validation.h5"
            )
        self.split = match["split"]
        self.file = Hdf5File(self.path)
        self._columns = {name: np.asarray(self.file.array(name, str(path))).reshape(-1) for name in TEXTS}
        self.size = len(self._columns[TEXTS[0]])
        for name, column in self._columns.items():
            if len(column) != self.size:
                raise BadInput(f"{path}: {name} has {len(column)} rows, {TEXTS[0]} has {self.size}")

    def text(self, name: str, row: int) -> str:
        """What a column of `TEXTS` says."""
        value = self._columns[name][row]
        return (value.decode("latin-1") if isinstance(value, bytes) else str(value)).strip()

    def picture(self, row: int) -> str:
        """The name of the picture of a row."""
        return f"{self.split}/{row:06d}"

    def pixels(self, row: int) -> Array:
        """(H, W, 3) uint8 RGB.

        Raises:
            BadInput: no such row, or it is no picture.
        """
        where = f"{self.path}, row {row}"
        found: Array = np.asarray(self.file.array("input_image", where, row))
        if found.ndim != 3 or found.shape[2] != 3 or found.dtype != np.uint8:
            raise BadInput(f"{where}: input_image is {found.dtype} of shape {found.shape}, not uint8 (H, W, 3)")
        return found


class FashionGen(LineSource):
    """A file as a data set: a description with its picture a row; the picture's tags are the sub-category and the category.

    Args:
        path: the HDF5 file; its name says the split.
        split: "train" or "val"; None = the file's own.
        on_error: "stop" raises at the first row that cannot be used, "skip" leaves it out and keeps the message.

    Raises:
        BadInput: see `FashionRows`; or a row that cannot be used.
    """

    def __init__(self, path: str | Path, split: str | None = None, on_error: OnError = "stop") -> None:
        self.rows = FashionRows(path)
        self.index, _ = build_index(self.rows.size, self.parse, split, on_error)

    def read(self, number: int) -> tuple[dict[str, Any], str, str]:
        """A row as a line."""
        rows = self.rows
        record = {
            "image": rows.picture(number),
            "caption": rows.text("input_description", number),
            "tags": [rows.text("input_subcategory", number), rows.text("input_category", number)],
            "split": "val" if rows.split == "validation" else "train",
        }
        return record, f"{rows.path}, row {number}", rows.picture(number)

    def picture_of(self, line: Line, slot: int, number: int) -> Picture:
        """The picture of a row; its pixels are read from the file when they are asked for."""
        row, entry = int(self.index.lines[number]), line.entries[slot]
        found = empty_picture(line, slot, (0, 0), "")
        return replace(found, tags=entry.tags, pixels=partial(self.rows.pixels, row))
