"""UNITER's image databases: LMDB environments of .npz (compressed or not) or of msgpack with arrays in it.

Folders are called `feat_th{conf}_max{max}_min{min}`, `feat_numbb{n}` or `all`, with `_compressed` behind where values are .npz.
Boxes are kept as fractions, so a picture's size is not known. Rows are sorted by confidence, and only the first of them
count: as many as `nbb_*.json` beside the folder says, else those above the threshold, within the bounds.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Picture
from intarsia.data.formats.files import write_whole
from intarsia.data.formats.lmdb_file import LmdbFile
from intarsia.data.formats.npz import read_npz
from intarsia.data.formats.store import Array, RegionStore, make_picture
from intarsia.errors import BadInput, needs_extra

NAMES = b"__keys__"
WANTED = frozenset({"features", "norm_bb", "conf", "soft_labels"})
RULE = re.compile(r"feat_(?P<rule>th(?P<threshold>[\d.]+)_max(?P<most>\d+)_min(?P<least>\d+))(_compressed)?")
FIXED = re.compile(r"feat_numbb(?P<count>\d+)(_compressed)?")


class UniterLmdb(RegionStore):
    """A UNITER image database as a store.

    Args:
        path: the environment.
        bounds: confidence, least and most regions of a picture; None = as the folder's name says, or all rows.

    Raises:
        BadInput: no environment, or no list of names that can be read.
    """

    kind = "UNITER LMDB"

    def __init__(self, path: str | Path, bounds: tuple[float, int, int] | None = None) -> None:
        self.path = Path(path)
        self.file = LmdbFile(self.path)
        listed = self.file.get(NAMES)
        try:
            self.names = [x.decode() for x in self.file.listed()] if listed is None else json.loads(listed)
            if not isinstance(self.names, list) or not all(isinstance(x, str) for x in self.names):
                raise ValueError
        except ValueError:
            raise BadInput(f"{path}: its {NAMES.decode()} is not a JSON list of names") from None
        rule, fixed = RULE.fullmatch(self.path.name), FIXED.fullmatch(self.path.name)
        if bounds is None and rule:
            bounds = float(rule["threshold"]), int(rule["least"]), int(rule["most"])
        if bounds is None and fixed:
            bounds = 0.0, int(fixed["count"]), int(fixed["count"])
        self.bounds = bounds
        self.counts = _counts(self.path.parent / f"nbb_{rule['rule']}.json") if rule else {}

    def picture(self, number: int) -> Picture:
        """A record as a picture."""
        name, where = self.names[number], self.where(number)
        value = self.file.get(name.encode())
        if value is None:
            raise BadInput(f"{where}: listed, but not there")
        arrays = read_npz(value, where, WANTED) if value[:2] == b"PK" else unpack_arrays(value, where)
        for field in ("features", "norm_bb"):
            if field not in arrays:
                raise BadInput(f"{where}: has no array {field!r} (has: {', '.join(sorted(arrays)) or 'none'})")
        boxes, conf = arrays["norm_bb"], arrays.get("conf")
        if boxes.ndim != 2 or boxes.shape[1] not in (4, 6, 7):
            raise BadInput(f"{where}: norm_bb of shape {boxes.shape}, expected (R, 6)")
        kept = self._kept(name, len(boxes), conf, where)
        return make_picture(
            name,
            where,
            arrays["features"][:kept],
            boxes[:kept, :4],
            (0, 0),
            pixels=False,
            scores=None if conf is None else conf[:kept],
            probs=arrays["soft_labels"][:kept] if "soft_labels" in arrays else None,
        )

    def _kept(self, name: str, rows: int, conf: Array | None, where: str) -> int:
        if name in self.counts:
            count = self.counts[name]
        elif self.bounds is None:
            return rows
        else:
            threshold, least, most = self.bounds
            if conf is None and least != most:
                raise BadInput(f"{where}: has no array 'conf' to choose regions by")
            above = 0 if conf is None else int((conf > threshold).sum())
            count = min(max(above, least), most, rows)
        if count > rows:
            raise BadInput(f"{where}: {rows} regions, its number of boxes is said to be {count}")
        return count


def write_counts(path: Path) -> None:
    """Writes `nbb_*.json`, how many regions of each picture count, beside an environment whose folder says the rule: UNITER's code reads no such one without."""
    rule = RULE.fullmatch(path.name)
    beside = path.parent / f"nbb_{rule['rule']}.json" if rule else None
    if beside is not None and not beside.exists():
        store = UniterLmdb(path)
        counts = {name: len(store.picture(i).boxes) for i, name in enumerate(store.names)}
        with write_whole(beside) as temporary:
            temporary.write_text(json.dumps(counts))


def _counts(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    try:
        counts = json.loads(path.read_bytes())
        if not isinstance(counts, dict) or not all(isinstance(x, int) and x >= 0 for x in counts.values()):
            raise ValueError
        return counts
    except ValueError:
        raise BadInput(f"{path}: not a JSON object of numbers of boxes by name") from None


def unpack_arrays(data: bytes, where: str) -> dict[str, Array]:
    """The arrays of a msgpack map as msgpack-numpy writes them: `nd`, `type`, `kind`, `shape`, `data`, bytes as keys.

    Raises:
        BadInput: not such a map, or an array of objects.
    """
    tree = unpack(data, where)
    if not isinstance(tree, dict):
        raise BadInput(f"{where}: not a msgpack map of arrays")
    return {
        name: unpack_array(entry, f"{where}: {name}")
        for name, entry in tree.items()
        if isinstance(entry, dict) and entry.get(b"nd") is not None
    }


def unpack(data: bytes, where: str) -> Any:
    """What msgpack bytes hold.

    Raises:
        BadInput: not msgpack, or the package is missing.
    """
    try:
        import msgpack
    except ImportError:
        raise needs_extra("formats", "msgpack") from None
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BadInput(f"{where}: not msgpack: {error}") from None


def unpack_array(entry: Any, where: str) -> Array:
    """One array, as msgpack-numpy writes it.

    Raises:
        BadInput: not such a map, or an array of objects.
    """
    try:
        dtype = np.dtype(entry[b"type"])
        if entry.get(b"kind") == b"O" or dtype.hasobject:
            raise ValueError("an array of objects, which would have to be unpickled")
        return np.frombuffer(entry[b"data"], dtype).reshape(entry[b"shape"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{where}: not an array in msgpack: {error}") from None


def pack_record(picture: Picture, compressed: bool) -> bytes:
    """A picture as a value of such a database; floats become float16, as in UNITER's own.

    Args:
        picture: its regions.
        compressed: as a compressed .npz; else msgpack.

    Raises:
        BadInput: it has no scores, or msgpack is missing.
    """
    if picture.scores is None:
        raise BadInput(f"picture {picture.name}: has no scores, which UNITER's databases choose regions by")
    order = np.argsort(-picture.scores, kind="stable")
    boxes = picture.boxes[order]
    arrays = {
        "norm_bb": np.concatenate([boxes, boxes[:, 2:] - boxes[:, :2]], 1),
        "features": picture.features[order],
        "conf": picture.scores[order],
    }
    if picture.probs is not None:
        arrays["soft_labels"] = picture.probs[order]
    with np.errstate(over="ignore"):
        halves: Mapping[str, Array] = {name: np.ascontiguousarray(x, np.float16) for name, x in arrays.items()}
    if not all(np.isfinite(x).all() for x in halves.values()):
        raise BadInput(f"picture {picture.name}: holds numbers beyond float16")
    if compressed:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **halves)  # type: ignore[arg-type]
        return buffer.getvalue()
    try:
        import msgpack
    except ImportError:
        raise needs_extra("formats", "msgpack") from None
    tree: dict[str, Any] = {
        name: {b"nd": True, b"type": x.dtype.str, b"kind": b"", b"shape": list(x.shape), b"data": x.tobytes()}
        for name, x in halves.items()
    }
    return bytes(msgpack.packb(tree, use_bin_type=True))
