"""Conceptual Captions as ViLBERT and volta train on it: tensorpack's LMDB, a msgpack list a picture, its caption among it.

ViLBERT: features, class probabilities, boxes, num_boxes, image_h, image_w, image_id, caption. volta: features, class probabilities, objects_id,
objects_conf, attrs_id, attrs_conf, attribute probabilities (not kept), boxes, num_boxes, image_h, image_w, image_id, caption. Keys are numbers;
`__keys__` is a msgpack list of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Picture
from intarsia.data.formats.lmdb_file import LmdbFile
from intarsia.data.formats.store import RegionStore, make_picture, whole_number
from intarsia.data.formats.uniter_lmdb import unpack, unpack_array
from intarsia.errors import BadInput

NAMES = b"__keys__"
VILBERT = ("features", "probs", "boxes", "rows", "height", "width", "name", "caption")
VOLTA = ("features", "probs", "labels", "scores", "attributes", "attribute_scores", "attrs", *VILBERT[2:])
LAYOUTS = {len(x): x for x in (VILBERT, VOLTA)}


class TensorpackLmdb(RegionStore):
    """Such an environment as a store with captions. Names are read in one pass over it; a picture that comes twice is called by its key too.

    Raises:
        BadInput: no environment, or a record of another kind.
    """

    kind = "ViLBERT / volta tensorpack LMDB"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file = LmdbFile(self.path)
        listed = self.file.get(NAMES)
        keys = self.file.listed() if listed is None else unpack(listed, f"{path}, key {NAMES.decode()}")
        if not isinstance(keys, list) or not all(isinstance(x, bytes | str) for x in keys):
            raise BadInput(f"{path}: its {NAMES.decode()} is not a list of keys")
        self._keys = [x.encode() if isinstance(x, str) else x for x in keys]
        names, seen = [], set[str]()
        for i in range(len(self._keys)):
            name = str(self._record(i)["name"])
            names.append(f"{self._keys[i].decode()}/{name}" if name in seen else name)
            seen.add(name)
        self.names = names

    def where(self, number: int) -> str:
        """Names a record in errors."""
        return f"{self.shown}, record {self._keys[number].decode()}"

    def _record(self, number: int) -> dict[str, Any]:
        where, value = self.where(number), self.file.get(self._keys[number])
        if value is None:
            raise BadInput(f"{where}: listed, but not there")
        parts = unpack(value, where)
        if not isinstance(parts, list) or len(parts) not in LAYOUTS:
            size = f"a list of {len(parts)}" if isinstance(parts, list) else f"a {type(parts).__name__}"
            raise BadInput(f"{where}: holds {size}, expected a list of 8 (ViLBERT) or 13 (volta)")
        return dict(zip(LAYOUTS[len(parts)], parts, strict=True))

    def picture(self, number: int) -> Picture:
        """A record as a picture."""
        where, record = self.where(number), self._record(number)
        width, height, rows = (whole_number(record[x], f"{where}: {x}") for x in ("width", "height", "rows"))

        def array(field: str) -> Any:
            return unpack_array(record[field], f"{where}: {field}")[:rows]

        shifts = {"labels": 1, "scores": 0, "attributes": 1, "attribute_scores": 0}  # ids leave background out
        extras = {field: array(field) + shift for field, shift in shifts.items() if field in record}
        self.leave(x for x in ("attrs",) if x in record)
        boxes = array("boxes").astype(np.float32, copy=False)
        return make_picture(
            self.names[number], where, array("features"), boxes, (width, height), probs=array("probs"), **extras
        )

    def said(self, number: int) -> list[dict[str, Any]]:
        """The caption of a record."""
        caption = self._record(number)["caption"]
        if not isinstance(caption, str) or not caption.strip():
            raise BadInput(f"{self.where(number)}: caption is {caption!r}, expected text")
        return [{"captions": [caption.strip()]}]
