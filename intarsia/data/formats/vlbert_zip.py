"""VL-BERT's files: lines of JSON that name a picture, its caption and a JSON of regions, all perhaps inside uncompressed zips.

`dir/name.zip@/inner` is a member of a zip; where there is no zip, the folder `dir/name/inner` (the zip unpacked).
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Picture
from intarsia.data.formats.lines import parse_json
from intarsia.data.formats.pairs import LineFile
from intarsia.data.formats.store import RegionStore, decode_array, make_picture, whole_number
from intarsia.errors import BadInput

MEMBER = ".zip@/"


class Zips:
    """Members of zips by VL-BERT's addresses; pickles without its handles."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pid, self._open = -1, dict[str, zipfile.ZipFile]()

    def read(self, address: str, where: str) -> bytes:
        """The bytes at an address.

        Raises:
            BadInput: no such zip, member or file.
        """
        if self._pid != os.getpid():
            self._pid, self._open = os.getpid(), {}
        before, member, inner = address.partition(MEMBER)
        archive = self.root / f"{before}.zip"
        try:
            if member and archive.is_file():
                if str(archive) not in self._open:
                    self._open[str(archive)] = zipfile.ZipFile(archive)
                return self._open[str(archive)].read(inner)
            return (self.root / address.replace(MEMBER, "/")).read_bytes()
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise BadInput(f"{where}: {address} cannot be read: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_pid": -1, "_open": {}}


class VLBERTLines(RegionStore):
    """VL-BERT's `train_frcnn.json` (a JSON object a line) as a store with captions.

    Raises:
        BadInput: no such file, or a line that names no picture or regions.
    """

    kind = "VL-BERT lines and zips"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.lines, self.zips = LineFile(self.path), Zips(self.path.parent)
        self.names = []
        for number in range(len(self.lines)):
            record, where, _ = self.lines.read(number)
            for field in ("image", "frcnn"):
                if not isinstance(record.get(field), str):
                    raise BadInput(f"{where}: {field} is {record.get(field)!r}, expected text")
            self.names.append(record["image"])

    def captions(self, number: int) -> tuple[str, ...]:
        """The caption of a line, its words joined by spaces."""
        record, where, _ = self.lines.read(number)
        caption = record.get("caption")
        caption = (
            " ".join(caption) if isinstance(caption, list) and all(isinstance(x, str) for x in caption) else caption
        )
        if not isinstance(caption, str) or not caption.strip():
            raise BadInput(f"{where}: caption is {caption!r}, expected text or a list of words")
        return (caption,)

    def picture(self, number: int) -> Picture:
        """The picture of a line."""
        record, where, _ = self.lines.read(number)
        regions = parse_json(self.zips.read(record["frcnn"], where), f"{where}: {record['frcnn']}")
        for field in ("image_w", "image_h", "num_boxes", "boxes"):
            if field not in regions:
                raise BadInput(f"{where}: {record['frcnn']} has no {field}")
        if "features" not in regions:
            raise BadInput(f"{where}: {record['frcnn']} has boxes but no features (VL-BERT reads pixels there)")
        size = (
            whole_number(regions["image_w"], f"{where}: image_w"),
            whole_number(regions["image_h"], f"{where}: image_h"),
        )
        rows = whole_number(regions["num_boxes"], f"{where}: num_boxes")
        boxes, features = (decode_array(regions[x], np.float32, f"{where}: {x}", rows) for x in ("boxes", "features"))
        probs = (
            decode_array(regions["classes"], np.float32, f"{where}: classes", rows) if "classes" in regions else None
        )
        return make_picture(record["image"], where, features, boxes.reshape(-1, 4), size, probs=probs)
