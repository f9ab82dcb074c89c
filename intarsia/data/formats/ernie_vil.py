"""ERNIE-ViL's lines of referring expressions: TSV, plain or gzip, an expression and the regions of its picture a line.

text, image_w, image_h, number_boxes, number_boxes_gl, image_loc (base64 float32 (n, 4) xyxy in pixels), image_embeddings (base64 float32
(n, F)), box_label ("x1 y1 x2 y2"), label (an overlap a box); n = number_boxes + number_boxes_gl.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Picture
from intarsia.data.formats.line_index import open_lines
from intarsia.data.formats.store import Array, RegionStore, decode_array, make_picture, whole_number
from intarsia.errors import BadInput

COLUMNS = 9
ENOUGH = 0.5
"""Overlap from which a region is meant. Source: the code of ERNIE-ViL."""


class ErnieTsv(RegionStore):
    """Such a file as a store with captions: the expression, linked to the region that overlaps its box most, where one does by half.

    Lines do not name pictures: a picture is called by the number of its line, from 1, and comes as often as it has expressions.

    Raises:
        BadInput: no such file.
    """

    kind = "ERNIE-ViL TSV"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.lines = open_lines(self.path)
        self.names = [str(i + 1) for i in range(len(self.lines))]

    def where(self, number: int) -> str:
        """Names a line in errors."""
        return f"{self.shown}, line {number + 1}"

    def _cells(self, number: int) -> list[bytes]:
        cells = self.lines[number].split(b"\t")
        if len(cells) != COLUMNS:
            raise BadInput(f"{self.where(number)}: {len(cells)} columns, expected {COLUMNS}")
        return cells

    def picture(self, number: int) -> Picture:
        """The picture of a line."""
        where, cells = self.where(number), self._cells(number)
        width, height, own, more = (
            whole_number(cells[i], f"{where}: {name}")
            for i, name in enumerate(("image_w", "image_h", "number_boxes", "number_boxes_gl"), 1)
        )
        rows = own + more
        boxes = decode_array(cells[5], np.float32, f"{where}: image_loc", rows)
        features = decode_array(cells[6], np.float32, f"{where}: image_embeddings", rows)
        return make_picture(
            self.names[number], where, features, boxes if rows else boxes.reshape(0, 4), (width, height)
        )

    def said(self, number: int) -> list[dict[str, Any]]:
        """The expression, and a link to the region that it means."""
        where, cells = self.where(number), self._cells(number)
        try:
            text = cells[0].decode().strip()
        except UnicodeDecodeError:
            raise BadInput(f"{where}: its text is not UTF-8") from None
        fits = _numbers(cells[8], f"{where}: label")
        rows = sum(whole_number(x, f"{where}: number of boxes") for x in cells[3:5])
        if len(fits) != rows:
            raise BadInput(f"{where}: label holds {len(fits)} numbers for {rows} boxes")
        best = int(fits.argmax()) if rows else 0
        links = [[0, 0, len(text), best]] if rows and fits[best] >= ENOUGH and text else []
        return [{"captions": [text], **({"links": links} if links else {})}]


def _numbers(text: bytes, where: str) -> Array:
    try:
        return np.array([float(x) for x in text.split()], np.float32)
    except ValueError:
        raise BadInput(f"{where}: {text[:40]!r} is not numbers with spaces between") from None
