"""From a path to a store of region features: looks at what lies there. And our own shards as one."""

from __future__ import annotations

from pathlib import Path

from intarsia.batch import Picture
from intarsia.data.formats.butd_tsv import ButdTsv
from intarsia.data.formats.hdf5 import VLPH5, GqaH5, Hdf5File, VoltaH5
from intarsia.data.formats.lmdb_file import LmdbFile
from intarsia.data.formats.npz_folder import NpzFolder
from intarsia.data.formats.oscar_tsv import OscarTsv
from intarsia.data.formats.shard_files import INDEX
from intarsia.data.formats.shards import ShardSource
from intarsia.data.formats.store import RegionStore
from intarsia.data.formats.uniter_lmdb import NAMES as UNITER_NAMES
from intarsia.data.formats.uniter_lmdb import UniterLmdb
from intarsia.data.formats.vilbert import NAMES as VILBERT_NAMES
from intarsia.data.formats.vilbert import NpyFolder, ViLBERTLmdb
from intarsia.data.formats.vlbert_zip import VLBERTLines
from intarsia.errors import BadInput


class ShardStore(RegionStore):
    """Our own region shards as a store, with their captions in `source`."""

    kind = "region shards"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.source = ShardSource(path)
        self.provenance = self.source.provenance
        self.names = [self.source.picture(i).name for i in range(self.source.picture_count)]

    def picture(self, number: int) -> Picture:
        """A picture; a view into its shard."""
        return self.source.picture(number)


def open_store(spec: str | Path, *, boxes: str = "xyxy", width: int = 2048) -> RegionStore | None:
    """Opens region features of any known layout.

    Args:
        spec: the file or folder.
        boxes: "xyxy" or "xywh", where the layout does not settle it (GQA's).
        width: F of Oscar's features, without the geometry behind them.

    Returns:
        The store; None if what lies there is none.

    Raises:
        BadInput: it is of a known layout but cannot be read.
    """
    path = Path(spec)
    if path.is_dir():
        return _folder(path, boxes)
    if not path.is_file():
        return None
    match path.suffix:
        case ".mdb":
            return _lmdb(path)
        case ".h5" | ".hdf5":
            return _hdf5(path)
        case ".yaml" | ".yml":
            return OscarTsv(path, width)
        case ".tsv":
            return _tsv(path, width)
        case ".json" | ".jsonl":
            with open(path, "rb") as handle:
                return VLBERTLines(path) if b'"frcnn"' in handle.readline(65536) else None
        case _:
            return None


def open_foreign(spec: str | Path) -> RegionStore | None:
    """As `open_store`, but None for our own shards, which are a data set with captions."""
    return None if (Path(spec) / INDEX).exists() else open_store(spec)


def _folder(path: Path, boxes: str) -> RegionStore | None:
    if (path / INDEX).exists():
        return ShardStore(path)
    if (path / "data.mdb").exists():
        return _lmdb(path)
    if (path / "gqa_objects_info.json").exists():
        return GqaH5(path, boxes)
    if any(path.glob("*_feat[0-9][0-9][0-9].h5")):
        return VLPH5(path)
    if any(path.glob("*.tar")) or (path / "pairs.jsonl").exists():
        return None
    for pattern, kind in (("*.npz", NpzFolder), ("*.npy", NpyFolder)):
        if next(path.rglob(pattern), None) is not None:
            return kind(path)
    return None


def _lmdb(path: Path) -> RegionStore:
    file = LmdbFile(path)
    if file.get(UNITER_NAMES) is not None:
        return UniterLmdb(path)
    if file.get(VILBERT_NAMES) is not None:
        return ViLBERTLmdb(path)
    record = file.first()
    if record is None:
        raise BadInput(f"{path}: an LMDB environment with nothing in it")
    value = record[1]
    return (
        UniterLmdb(path) if value[:2] == b"PK" or (value[0] & 0xF0 == 0x80 and value[0] != 0x80) else ViLBERTLmdb(path)
    )


def _hdf5(path: Path) -> RegionStore:
    file = Hdf5File(path).open()
    first = next(iter(file.values()), None)
    if first is not None and hasattr(first, "keys") and "features" in first:
        return VoltaH5(path)
    raise BadInput(
        f"{path}: HDF5 of no known layout: expected groups with 'features' (volta); give the folder for VLP's or GQA's files"
    )


def _tsv(path: Path, width: int) -> RegionStore | None:
    with open(path, "rb") as handle:
        cells = handle.readline().rstrip(b"\r\n").split(b"\t")
    if len(cells) >= 2 and cells[1][:1] == b"{" and b'"features"' in cells[1]:
        return OscarTsv(path, width)
    if len(cells) in (6, 8, 10, 13) and cells[1].isdigit():
        return ButdTsv(path)
    if len(cells) >= 3 and cells[1].isdigit() and len(cells[-1]) > 1000:
        return OscarTsv(path, width)
    return None
