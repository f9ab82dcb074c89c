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
KEPT = frozenset({"image_w", "image_h", "num_boxes", "boxes", "features", "classes", "image_id"})


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


class _Regions(RegionStore):
    """Stores of such JSON files."""

    def of_json(self, raw: bytes, name: str, where: str) -> Picture:
        """A picture from such a file.

        Raises:
            BadInput: a field is missing or does not fit.
        """
        regions = parse_json(raw, where)
        for field in ("image_w", "image_h", "num_boxes", "boxes"):
            if field not in regions:
                raise BadInput(f"{where}: has no {field}")
        if "features" not in regions:
            raise BadInput(f"{where}: has boxes but no features (VL-BERT reads pixels there)")
        width, height, rows = (whole_number(regions[x], f"{where}: {x}") for x in ("image_w", "image_h", "num_boxes"))

        def array(field: str, count: int) -> Any:
            return decode_array(regions[field], np.float32, f"{where}: {field}", count)

        features, boxes = array("features", rows), array("boxes", rows).reshape(-1, 4)
        probs = array("classes", rows) if "classes" in regions else None
        self.leave(x for x in regions if x not in KEPT)
        return make_picture(name, where, features, boxes, (width, height), probs=probs)


class VLBERTLines(_Regions):
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

    def said(self, number: int) -> list[dict[str, Any]]:
        """The caption of a line, its words joined by spaces."""
        record, where, _ = self.lines.read(number)
        caption = record.get("caption")
        caption = (
            " ".join(caption) if isinstance(caption, list) and all(isinstance(x, str) for x in caption) else caption
        )
        if not isinstance(caption, str) or not caption.strip():
            raise BadInput(f"{where}: caption is {caption!r}, expected text or a list of words")
        return [{"captions": [caption]}]

    def picture(self, number: int) -> Picture:
        """The picture of a line."""
        record, where, _ = self.lines.read(number)
        return self.of_json(self.zips.read(record["frcnn"], where), record["image"], f"{where}: {record['frcnn']}")


class VLBERTRegions(_Regions):
    """VL-BERT's boxes and features of VQA as a store: a folder, or an uncompressed zip, of JSON files, one a picture.

    A picture is called as its file. `image_box_feature`, the feature of the whole picture, is not kept: systems make their own of the regions.

    Raises:
        BadInput: no such folder or zip, or no .json in it.
    """

    kind = "VL-BERT regions"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            found = [x.relative_to(self.path).as_posix() for x in self.path.rglob("*.json")]
        else:
            found = zip_members(self.path)
        self._files = sorted(x for x in found if x.endswith(".json"))
        self.names = [x.removesuffix(".json") for x in self._files]
        if not self.names:
            raise BadInput(f"{path}: no .json file of regions")
        self.zips = Zips(self.path.parent)

    def picture(self, number: int) -> Picture:
        """A file as a picture."""
        where, inside = self.where(number), self._files[number]
        stem = self.path.name.removesuffix(".zip")
        address = f"{self.path.name}/{inside}" if self.path.is_dir() else f"{stem}{MEMBER}{inside}"
        return self.of_json(self.zips.read(address, where), self.names[number], where)


def zip_members(path: Path) -> list[str]:
    """The names in a zip.

    Raises:
        BadInput: not a zip.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: not a readable zip: {error}") from None
