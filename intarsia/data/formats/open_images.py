"""Open Images' annotations in CSV: labels of pictures, boxes, relationships; a line a picture.

Known by the names of their columns. Labels are codes ("/m/01g317"); their names are read from the `*class-descriptions*.csv` beside. Boxes are fractions,
so pictures must lie beside the file (as ID.jpg, or in `images`) for boxes to be taken. Rows of a picture follow one another.
Source: the data set's download page, "Data formats".
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from intarsia.data.formats.box_lines import Relations
from intarsia.data.formats.question_lines import split_of
from intarsia.data.formats.records import Record
from intarsia.errors import BadInput

LABELS = ("ImageID", "Source", "LabelName", "Confidence")
BOXES = (*LABELS, "XMin", "XMax", "YMin", "YMax")
PAIRS = (
    "ImageID",
    "LabelName1",
    "LabelName2",
    "XMin1",
    "XMax1",
    "YMin1",
    "YMax1",
    "XMin2",
    "XMax2",
    "YMin2",
    "YMax2",
    "RelationLabel",
)
SURE = 0.5
"""Confidence from which a label counts: people's are 0 or 1, a machine's lie between."""
UNSURE = ".labels not confirmed"
FRACTIONS = ".fractions"
"""Set in lines whose boxes are fractions."""
Row = dict[str, str]


def is_open_images(path: Path) -> bool:
    """Whether a .csv file has these columns."""
    with open(path, "rb") as handle:
        head = handle.readline(4096).decode("utf-8-sig", "replace").strip().split(",")
    return _kind(head) is not None


def _kind(head: Sequence[str]) -> Any:
    kinds = ((PAIRS, _related), (BOXES, _boxed), (LABELS, _labelled))
    return next((make for columns, make in kinds if set(columns) <= set(head)), None)


def open_images(path: Path) -> Iterator[Record]:
    """The lines of one of these files.

    Raises:
        BadInput: not UTF-8, a row that cannot be used, or no names for the labels.
    """
    names = _names(path)
    with open(path, encoding="utf-8-sig", newline="") as handle:
        rows = csv.DictReader(handle)
        make = _kind(rows.fieldnames or ())
        try:
            for image, some in groupby(rows, lambda row: row["ImageID"]):
                record = make(list(some), names)
                if record:
                    yield {"key": image, "image": f"{image}.jpg", "split": split_of(path), **record}
        except (KeyError, TypeError, ValueError, UnicodeDecodeError, csv.Error) as error:
            raise BadInput(f"{path}, line {rows.line_num}: {error}") from None


def _names(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in sorted(path.parent.glob("*class-descriptions*.csv")):
        with open(file, encoding="utf-8-sig", newline="") as handle:
            found |= {row[0]: row[1].strip().lower() for row in csv.reader(handle) if len(row) == 2}
    if not found:
        raise BadInput(f"{path}: its labels are codes: put class-descriptions.csv beside it")
    return found


def _named(names: dict[str, str], code: str) -> str:
    if code not in names:
        raise ValueError(f"label {code!r} has no name among {len(names)} in *class-descriptions*.csv")
    return names[code]


def _labelled(rows: list[Row], names: dict[str, str]) -> Record | None:
    sure = [_named(names, x["LabelName"]) for x in rows if float(x["Confidence"]) >= SURE]
    return _said(sure, len(sure) < len(rows)) if sure else None


def _boxed(rows: list[Row], names: dict[str, str]) -> Record | None:
    labels = [_named(names, x["LabelName"]) for x in rows]
    boxes = [_box(x, "") for x in rows]
    return _said(labels, False) | {"boxes": boxes, "labels": labels, FRACTIONS: ""}


def _said(labels: Iterable[str], unsure: bool) -> Record:
    tags = list(dict.fromkeys(labels))
    return {"caption": ", ".join(tags), "tags": tags} | ({UNSURE: ""} if unsure else {})


def _related(rows: list[Row], names: dict[str, str]) -> Record | None:
    """Relationships ("man at table"); of an attribute ("chair is wooden") only the thing has a box."""
    found = Relations()
    for row in rows:
        ends = _named(names, row["LabelName1"]), _named(names, row["LabelName2"])
        relation = row["RelationLabel"].replace("_", " ")
        found.add(ends, relation, [_box(row, x) for x in ("1", "2")][: 1 if relation == "is" else 2])
    return found.record() | {FRACTIONS: ""}


def _box(row: Row, number: str) -> list[float]:
    return [float(row[f"{side}{number}"]) for side in ("XMin", "YMin", "XMax", "YMax")]
