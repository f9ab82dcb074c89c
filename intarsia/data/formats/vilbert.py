"""ViLBERT's, 12-in-1's, mmf's and volta's records: dicts in pickles, in LMDB (names under `keys`) or one .npy a picture.

Read through the allow-list unpickler. Arrays may be base64 text or arrays. mmf's `NAME.npy` of plain features has
`NAME_info.npy` beside it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Picture
from intarsia.data.formats.lmdb_file import LmdbFile
from intarsia.data.formats.store import (
    Array,
    RegionStore,
    decode_array,
    in_pixels,
    make_picture,
    whole_number,
    whole_picture,
)
from intarsia.errors import BadInput
from intarsia.weights.pickles import loads_pickle, read_object_npy

NAMES = b"keys"
INFO, PROBS = "_info", "_cls_prob"
OTHER_NAMES = {
    "width": ("image_width", "image_w", "img_w"),
    "height": ("image_height", "image_h", "img_h"),
    "boxes": ("boxes", "bbox"),
}
IDS = {"labels": "objects_id", "attributes": "attrs_id"}
SCORES = {"scores": "objects_conf", "attribute_scores": "attrs_conf"}
KEPT = {x for names in OTHER_NAMES.values() for x in names} | {*IDS.values(), *SCORES.values()}
KEPT |= {"image_id", "img_id", "num_boxes", "features", "cls_prob"}


class ViLBERTLmdb(RegionStore):
    """An LMDB of pickled dicts as a store.

    Raises:
        BadInput: no environment, or no list of names that can be read.
    """

    kind = "ViLBERT / volta LMDB"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file = LmdbFile(self.path)
        listed = self.file.get(NAMES)
        keys = self.file.listed() if listed is None else loads_pickle(listed, f"{path}, key {NAMES.decode()}")
        if not isinstance(keys, list) or not all(isinstance(x, bytes | str) for x in keys):
            raise BadInput(f"{path}: its {NAMES.decode()} is not a list of names")
        # numpy and Python 2 may hand bytes over as latin-1 text
        self.names = [x.decode() if isinstance(x, bytes) else x for x in keys]

    def picture(self, number: int) -> Picture:
        """A record as a picture."""
        where = self.where(number)
        value = self.file.get(self.names[number].encode())
        if value is None:
            raise BadInput(f"{where}: listed, but not there")
        record = loads_pickle(value, where)
        self.leave(_strange(record))
        return of_dict(record, self.names[number], where)


class NpyFolder(RegionStore):
    """A folder of .npy files, one a picture: dicts, mmf's pairs of features and `_info`, or features alone (VisualBERT; VLP's with `_cls_prob`).

    Args:
        path: the folder.
        boxes: "none" takes features without boxes, each region as the whole picture.

    Raises:
        BadInput: no .npy file in it.
    """

    kind = "folder of .npy"

    def __init__(self, path: str | Path, boxes: str = "xyxy") -> None:
        self.path, self.whole = Path(path), boxes == "none"
        found = sorted(x.relative_to(self.path).with_suffix("").as_posix() for x in self.path.rglob("*.npy"))
        self.names = [x for x in found if not x.endswith((INFO, PROBS))]
        if not self.names:
            raise BadInput(f"{path}: no .npy file of features")

    def picture(self, number: int) -> Picture:
        """A file as a picture."""
        name, where = self.names[number], self.where(number)
        content = read_object_npy(self.path / f"{name}.npy")
        if isinstance(content, np.ndarray):
            beside = self.path / f"{name}{INFO}.npy"
            if not beside.is_file():
                return self._alone(name, where, content)
            info = read_object_npy(beside)
            if not isinstance(info, dict):
                raise BadInput(f"{where}: {name}{INFO}.npy holds no dict")
            content = {**info, "features": content}
        self.leave(_strange(content))
        return of_dict(content, name, where)

    def _alone(self, name: str, where: str, features: Array) -> Picture:
        if not self.whole:
            raise BadInput(
                f"{where}: features without {name}{INFO}.npy have no boxes; --boxes none takes them as whole pictures"
            )
        probs = self.path / f"{name}{PROBS}.npy"
        found = whole_picture(name, where, features, self.size_of(name))
        return replace(found, probs=read_object_npy(probs)) if probs.is_file() else found


def of_dict(record: Any, name: str, where: str) -> Picture:
    """A picture from such a dict.

    Raises:
        BadInput: a field is missing or does not fit.
    """
    if not isinstance(record, dict):
        raise BadInput(f"{where}: holds a {type(record).__name__}, expected a dict")
    size = (
        whole_number(_field(record, "width", where), f"{where}: width"),
        whole_number(_field(record, "height", where), f"{where}: height"),
    )
    rows = whole_number(_field(record, "num_boxes", where), f"{where}: num_boxes")
    features, boxes = (_array(_field(record, x, where), rows, f"{where}: {x}") for x in ("features", "boxes"))
    if len(boxes) != rows or len(features) < rows:
        raise BadInput(f"{where}: {len(features)} features and {len(boxes)} boxes, num_boxes is {rows}")
    probs = record.get("cls_prob")
    extras: dict[str, Any] = {
        ours: _ids(record, theirs, rows, where) for ours, theirs in IDS.items() if record.get(theirs) is not None
    }
    extras |= {
        ours: _column(record, theirs, np.float32, rows, where)
        for ours, theirs in SCORES.items()
        if record.get(theirs) is not None
    }
    return make_picture(
        name,
        where,
        features[:rows],  # mmf pads features to 100 rows
        boxes,
        size,
        probs=None if probs is None else _array(probs, rows, f"{where}: cls_prob")[:rows],
        **extras,
    )


def _strange(record: Any) -> set[str]:
    """Fields that are not kept: `objects`, whose ids count background or not by version, and what is unknown."""
    return (
        {str(x) for x, value in record.items() if x not in KEPT and value is not None}
        if isinstance(record, dict)
        else set()
    )


def _ids(record: Mapping[str, Any], field: str, rows: int, where: str) -> Array:
    """Ids that leave background out, as they are with it: from 1."""
    return _column(record, field, np.int64, rows, where) + 1


def _column(record: Mapping[str, Any], field: str, kind: Any, rows: int, where: str) -> Array:
    value = record[field]
    found = (
        decode_array(value, kind, f"{where}: {field}") if isinstance(value, bytes | str) else np.asarray(value, kind)
    )
    if found.ndim != 1 or len(found) < rows:
        raise BadInput(f"{where}: {field} of shape {found.shape}, num_boxes is {rows}")
    return found[:rows]


def _field(record: Mapping[str, Any], name: str, where: str) -> Any:
    for key in OTHER_NAMES.get(name, (name,)):
        if key in record:
            return record[key]
    raise BadInput(f"{where}: has no {name} (has: {', '.join(map(str, record))})")


def _array(value: Any, rows: int, where: str) -> Array:
    if isinstance(value, bytes | str):
        return decode_array(value, np.float32, where, rows)
    array = np.asarray(value)
    return array if array.dtype in (np.float16, np.float32) else array.astype(np.float32)


def pack_dict(picture: Picture) -> bytes:
    """A picture as a pickled dict of plain arrays, as 12-in-1 and volta read it.

    Raises:
        BadInput: its size is not known.
    """
    record: dict[str, Any] = {
        "image_id": picture.name,
        "image_h": picture.height,
        "image_w": picture.width,
        "num_boxes": len(picture.boxes),
        "boxes": in_pixels(picture),
        "features": np.ascontiguousarray(picture.features, np.float32),
    }
    record |= {"img_id": picture.name, "img_h": picture.height, "img_w": picture.width}  # volta's names
    if picture.probs is not None:
        record["cls_prob"] = np.ascontiguousarray(picture.probs, np.float32)
    return pickle.dumps(record, protocol=4)
