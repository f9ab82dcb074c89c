"""TSV of bottom-up attention (width before height) and of LXMERT (height before width), base64 columns, no header.

bottom-up attention: image_id, image_w, image_h, num_boxes, boxes, features [, classes (n, 1601), attributes (n, 401)], of which the likeliest is kept
LXMERT, volta: img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features
[, cls_prob (n, 1601), attrs, classes]. Its ids leave background out: 0 .. 1599 become labels 1 .. 1600.
"""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Picture
from intarsia.data.formats.line_index import open_lines
from intarsia.data.formats.store import Array, RegionStore, decode_array, in_pixels, make_picture, needed, whole_number
from intarsia.errors import BadInput


class ButdTsv(RegionStore):
    """A TSV of bottom-up attention or LXMERT as a store; which of them the number of columns says.

    Args:
        path: the file, also as .tsv.gz (read forward), or X.tsv of parts X.tsv.0, X.tsv.1, ..

    Raises:
        BadInput: no such file, a first line of neither layout, or a picture twice.
    """

    kind = "bottom-up attention / LXMERT TSV"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.lines = open_lines(self.path)
        columns = self.lines[0].count(b"\t") + 1
        if columns not in (6, 8, 10, 13):
            raise BadInput(
                f"{path}, line 1: {columns} columns; expected 6 or 8 (bottom-up attention), 10 or 13 (LXMERT)"
            )
        self.columns = columns
        self.names = [self.lines.first_column(i) for i in range(len(self.lines))]

    def picture(self, number: int) -> Picture:
        """A line as a picture."""
        where, line = self.where(number), self.lines[number]
        cells = [memoryview(x) for x in line.split(b"\t")]
        if len(cells) != self.columns:
            raise BadInput(f"{where}: {len(cells)} columns, line 1 has {self.columns}")
        lxmert = self.columns >= 10
        width, height = (2, 1) if lxmert else (1, 2)
        size = (
            whole_number(bytes(cells[width]), f"{where}: width"),
            whole_number(bytes(cells[height]), f"{where}: height"),
        )
        at = 7 if lxmert else 3
        rows = whole_number(bytes(cells[at]), f"{where}: num_boxes")

        def column(place: int, name: str, dtype: type = np.float32, flat: bool = False) -> Array:
            found = decode_array(cells[place], dtype, f"{where}: {name}", None if flat else rows)
            if flat and len(found) != rows:
                raise BadInput(f"{where}: {name} holds {len(found)} numbers, num_boxes is {rows}")
            return found

        extras: dict[str, Any] = {}
        if lxmert:
            extras = {
                "labels": column(3, "objects_id", np.int64, True) + 1,
                "scores": column(4, "objects_conf", flat=True),
                "attributes": column(5, "attrs_id", np.int64, True) + 1,
                "attribute_scores": column(6, "attrs_conf", flat=True),
            }
        if self.columns in (8, 13):
            extras["probs"] = column(10 if lxmert else 6, "class probabilities")
        if self.columns == 13:
            self.leave(("attrs", "classes"))
        if self.columns == 8 and rows:
            attributes = column(7, "attribute probabilities")[:, 1:]  # background is column 0
            extras |= {"attributes": attributes.argmax(1) + 1, "attribute_scores": attributes.max(1)}
        boxes, features = column(at + 1, "boxes"), column(at + 2, "features")
        return make_picture(self.names[number], where, features, boxes if rows else boxes.reshape(0, 4), size, **extras)


def butd_line(picture: Picture) -> bytes:
    """A picture as a line of bottom-up attention's TSV (six columns).

    Raises:
        BadInput: its size is not known, or its name holds a tab.
    """
    return _join(
        [
            _name(picture),
            picture.width,
            picture.height,
            len(picture.boxes),
            _b64(in_pixels(picture)),
            _b64(picture.features),
        ]
    )


def lxmert_line(picture: Picture) -> bytes:
    """A picture as a line of LXMERT's TSV (ten columns).

    Raises:
        BadInput: no size, labels, scores, attributes or their scores; or a label that is background.
    """
    boxes = in_pixels(picture)
    labels, attributes = needed(picture, "labels"), needed(picture, "attributes")
    for field, ids in (("label", labels), ("attribute", attributes)):
        if len(ids) and ids.min() < 1:
            raise BadInput(
                f"picture {picture.name}: {field} 0 of region {int(ids.argmin())} says nothing; LXMERT's files cannot say that"
            )
    cells = [_b64(labels - 1, np.int64), _b64(needed(picture, "scores")), _b64(attributes - 1, np.int64)]
    tail: list[str | int] = [
        _b64(needed(picture, "attribute_scores")),
        len(labels),
        _b64(boxes),
        _b64(picture.features),
    ]
    return _join([_name(picture), picture.height, picture.width, *cells, *tail])


def _name(picture: Picture) -> str:
    if not picture.name or "\t" in picture.name or "\n" in picture.name:
        raise BadInput(f"picture {picture.name!r}: such a name cannot stand in a TSV")
    return picture.name


def _b64(array: Array, dtype: type = np.float32) -> str:
    return b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()


def _join(cells: list[str | int]) -> bytes:
    return "\t".join(map(str, cells)).encode() + b"\n"
