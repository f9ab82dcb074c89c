"""HDF5 stores: volta's (a group a picture), VLP's (features, classes and boxes in files of their own), GQA's objects and grid."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Picture
from intarsia.data.formats.store import RegionStore, make_picture, whole_number
from intarsia.errors import BadInput, needs_extra

ENDS = re.compile(r"(?P<prefix>.*)_feat(?P<digits>\d{3})\.h5")


class Hdf5File:
    """An HDF5 file, read only; pickles without its handle and is opened anew in every process.

    Raises:
        BadInput: no such file, not HDF5, or the package h5py is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid, self._file = -1, None
        self.open()

    def open(self) -> Any:
        """The h5py file of this process."""
        if self._pid != os.getpid():
            try:
                import h5py
            except ImportError:
                raise needs_extra("formats", "h5py") from None
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                raise BadInput(f"{self.path}: not a readable HDF5 file: {error}") from None
            self._pid = os.getpid()
        return self._file

    def array(self, name: str, where: str, row: int | None = None) -> Any:
        """A dataset, or one row of it.

        Raises:
            BadInput: there is none of this name, or it cannot be read.
        """
        try:
            item = self.open()[name]
            return item[() if row is None else row]
        except (KeyError, OSError, ValueError, AttributeError, TypeError) as error:
            raise BadInput(f"{where}: {self.path.name} has no readable {name}: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_pid": -1, "_file": None}


class VoltaH5(RegionStore):
    """volta's HDF5 of LXMERT features as a store: a group a picture; ids leave background out.

    Raises:
        BadInput: no HDF5 file.
    """

    kind = "volta HDF5"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file = Hdf5File(self.path)
        self.names = list(self.file.open())

    def picture(self, number: int) -> Picture:
        """A group as a picture."""
        name, where = self.names[number], self.where(number)
        group = self.file.open()[name]

        def array(field: str) -> Any:
            return self.file.array(f"{name}/{field}", where)

        size = whole_number(array("img_w"), f"{where}: img_w"), whole_number(array("img_h"), f"{where}: img_h")
        fields = {
            "labels": ("obj_id", 1),
            "scores": ("obj_conf", 0),
            "attributes": ("attr_id", 1),
            "attribute_scores": ("attr_conf", 0),
        }
        extras = {ours: array(theirs) + shift for ours, (theirs, shift) in fields.items() if theirs in group}
        return make_picture(name, where, array("features"), array("boxes"), size, **extras)


class VLPH5(RegionStore):
    """VLP's features as a store: `{prefix}_feat{ddd}.h5`, `{prefix}_cls{ddd}.h5`, and one file of boxes.

    ddd are the last three characters of a picture's id. Sizes are not stored: as VLP does, they are taken to be the largest
    x and y of the boxes, plus 1e-5, and boxes are fractions of that.

    Args:
        path: the folder of the feature files.
        boxes: the file of boxes; None = the one .h5 in `bbox` beside or inside the folder.

    Raises:
        BadInput: no feature files, or no or several files of boxes.
    """

    kind = "VLP HDF5"
    true_fractions = False

    def __init__(self, path: str | Path, boxes: str | Path | None = None) -> None:
        self.path = Path(path)
        parts = sorted(x for x in self.path.glob("*_feat[0-9][0-9][0-9].h5"))
        if not parts:
            raise BadInput(f"{path}: no *_feat000.h5 in it")
        if boxes is None:
            found = [*self.path.glob("bbox/*.h5"), *self.path.parent.glob("bbox/*.h5"), *self.path.glob("*bbox*.h5")]
            if len(found) != 1:
                raise BadInput(f"{path}: {len(found)} files of boxes (bbox/*.h5) found, one expected")
            boxes = found[0]
        self.boxes = Hdf5File(Path(boxes))
        self.feats = [Hdf5File(x) for x in parts]
        classes = [x.with_name(ENDS.sub(r"\g<prefix>_cls\g<digits>.h5", x.name)) for x in parts]
        self.classes = [Hdf5File(x) if x.is_file() else None for x in classes]
        self._places = [(part, name) for part, file in enumerate(self.feats) for name in file.open()]
        self.names = [name for _, name in self._places]

    def picture(self, number: int) -> Picture:
        """A picture of its three datasets."""
        (part, name), where = self._places[number], self.where(number)
        table = self.boxes.array(name, where)
        if table.ndim != 2 or table.shape[1] < 6:
            raise BadInput(f"{where}: boxes of shape {table.shape}, expected (R, 6)")
        estimate = np.array([table[:, [0, 2]].max(initial=0), table[:, [1, 3]].max(initial=0)] * 2) + 1e-5
        classes = self.classes[part]
        return make_picture(
            name,
            where,
            self.feats[part].array(name, where),
            table[:, :4] / estimate,
            (0, 0),
            pixels=False,
            labels=table[:, 4].astype(np.int64),
            scores=table[:, 5],
            probs=None if classes is None else classes.array(name, where),
        )


class GqaH5(RegionStore):
    """GQA's object features as a store: `gqa_objects_{i}.h5` and `gqa_objects_info.json`.

    Args:
        path: the folder.
        boxes: "xyxy" or "xywh": what the boxes are, which GQA's own words do not settle.

    Raises:
        BadInput: no such files, or the list of pictures cannot be used.
    """

    kind = "GQA objects HDF5"

    def __init__(self, path: str | Path, boxes: str = "xyxy") -> None:
        self.path, self.xywh = Path(path), boxes == "xywh"
        fields = ("file", "idx", "objectsNum", "width", "height")
        self.names, self._places = _gqa_places(self.path / "gqa_objects_info.json", fields)
        self.files = _gqa_files(self.path, "objects", self._places)

    def picture(self, number: int) -> Picture:
        """A row of the datasets as a picture."""
        (file, row, count, width, height), where = self._places[number], self.where(number)
        boxes = self.files[file].array("bboxes", where, row)[:count]
        if self.xywh:
            boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        return make_picture(
            self.names[number], where, self.files[file].array("features", where, row)[:count], boxes, (width, height)
        )


class GqaGridH5(RegionStore):
    """GQA's grid features as a store: `gqa_spatial_{i}.h5`, (N, F, rows, columns), and `gqa_spatial_info.json`.

    The cells are the regions, row by row from the top left; sizes are not said.

    Raises:
        BadInput: no such files, or the list of pictures cannot be used.
    """

    kind = "GQA grid HDF5"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.names, self._places = _gqa_places(self.path / "gqa_spatial_info.json", ("file", "idx"))
        self.files = _gqa_files(self.path, "spatial", self._places)

    def picture(self, number: int) -> Picture:
        """A row of the datasets as a picture."""
        (file, row), name, where = self._places[number], self.names[number], self.where(number)
        grid = self.files[file].array("features", where, row)
        if grid.ndim != 3:
            raise BadInput(f"{where}: features of shape {grid.shape}, expected (F, rows, columns)")
        high, wide = grid.shape[1:]
        y, x = np.divmod(np.arange(high * wide), wide)
        cells = np.stack([x / wide, y / high, (x + 1) / wide, (y + 1) / high], 1)
        features = np.ascontiguousarray(grid.reshape(len(grid), -1).T)
        return make_picture(name, where, features, cells, self.size_of(name), pixels=False)


def _gqa_places(path: Path, fields: tuple[str, ...]) -> tuple[list[str], list[tuple[int, ...]]]:
    """The pictures of a list of GQA's, and these numbers of each."""
    try:
        tree = json.loads(path.read_bytes())
        return list(tree), [tuple(int(x[name]) for name in fields) for x in tree.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not a list of pictures: {error!r}") from None


def _gqa_files(folder: Path, kind: str, places: list[tuple[int, ...]]) -> dict[int, Hdf5File]:
    return {x: Hdf5File(folder / f"gqa_{kind}_{x}.h5") for x in sorted({place[0] for place in places})}
