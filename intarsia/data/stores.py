"""From a path to a store of region features: looks at what lies there. And our own shards as one."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from intarsia.batch import Picture
from intarsia.data.formats.b2t2 import is_b2t2
from intarsia.data.formats.butd_tsv import ButdTsv
from intarsia.data.formats.ernie_vil import COLUMNS as ERNIE_COLUMNS
from intarsia.data.formats.ernie_vil import ErnieTsv
from intarsia.data.formats.fashiongen import FILE as FASHIONGEN
from intarsia.data.formats.files import is_file, is_remote, join
from intarsia.data.formats.films import INDEX as FILMS
from intarsia.data.formats.hdf5 import VLPH5, GqaGridH5, GqaH5, Hdf5File, VoltaH5
from intarsia.data.formats.line_index import parts_of
from intarsia.data.formats.lmdb_file import LmdbFile
from intarsia.data.formats.mirror import as_remote, listing, mirrored
from intarsia.data.formats.npz_folder import NpzFolder
from intarsia.data.formats.oscar_corpus import OscarCorpus
from intarsia.data.formats.oscar_tsv import OscarTsv, read_yaml
from intarsia.data.formats.pairs import LINES
from intarsia.data.formats.recognise import holds_objects
from intarsia.data.formats.shard_files import INDEX
from intarsia.data.formats.shards import ShardSource
from intarsia.data.formats.store import RegionStore
from intarsia.data.formats.stored import StoredPictures
from intarsia.data.formats.tensorpack import TensorpackLmdb
from intarsia.data.formats.tfrecord import FashionBERTRecords, is_lined, is_records
from intarsia.data.formats.torch_features import TorchFeatures, is_features, read_content
from intarsia.data.formats.uniter_lmdb import NAMES as UNITER_NAMES
from intarsia.data.formats.uniter_lmdb import UniterLmdb
from intarsia.data.formats.uniter_text import META, is_text_db
from intarsia.data.formats.vilbert import NAMES as VILBERT_NAMES
from intarsia.data.formats.vilbert import NpyFolder, ViLBERTLmdb
from intarsia.data.formats.vlbert_zip import VLBERTLines, VLBERTRegions
from intarsia.errors import BadInput

DATA_SETS = (".tar", ".parquet", ".arrow", LINES)
"""Endings of what is never a store."""
OURS = (LINES, FILMS, META)
"""What a folder that is a data set holds."""
ENVIRONMENT, ARRAYS = "data.mdb", (".npy", ".npz")
INFORMED = ("gqa_objects_info.json", "gqa_spatial_info.json")
NUMBERED = re.compile(r"[^/]*_feat\d{3}\.h5")
TSV = re.compile(r"\.(tsv|txt|csv)(\.\d+|\.gz)?$")


class ShardStore(RegionStore):
    """Our own region shards as a store, with their captions in `source`."""

    kind = "region shards"

    def __init__(self, path: str | Path) -> None:
        self.path, self.address = Path(path), str(path)
        self.source, self.stored = ShardSource(path), StoredPictures(path)
        self.provenance = self.source.provenance
        self.names = self.stored.names

    def picture(self, number: int) -> Picture:
        """A picture, captions or not; a view into its shard. Its tags are the classes of its regions, one each, where they are known."""
        picture, classes = self.stored[number].pictures[0], self.provenance.classes if self.provenance else ()
        if picture.labels is None or not classes:
            return picture
        return replace(picture, tags=tuple(classes[i] for i in picture.labels.tolist()))


def open_store(
    spec: str | Path, *, boxes: str = "xyxy", width: int = 2048, sizes: Mapping[str, tuple[int, int]] | None = None
) -> RegionStore | None:
    """Opens region features of any known layout.

    Args:
        spec: the file or folder; X.tsv also where it lies in parts X.tsv.0, X.tsv.1, ..; an address of fsspec's too, which is copied first.
        boxes: "xyxy" or "xywh", where the layout does not settle it (GQA's); "none" takes features without boxes as whole pictures.
        width: F of Oscar's features, without the geometry behind them.
        sizes: pixels wide and high by `picture_key`, for layouts that do not say them.

    Returns:
        The store; None if what lies there is none.

    Raises:
        BadInput: it is of a known layout but cannot be read.
    """
    if is_remote(spec):
        return _remote(str(spec), boxes=boxes, width=width, sizes=sizes)
    path = Path(spec)
    if path.is_dir():
        found = _folder(path, boxes)
    elif path.is_file() or parts_of(path):
        found = _file(path, boxes, width)
    else:
        return None
    if found is not None and sizes:
        found.sizes = sizes
    return found


def _remote(spec: str, **options: Any) -> RegionStore | None:
    """A store on another machine, of which a copy is taken; None where what lies there, by its names, is a data set or nothing known."""
    if "*" in spec or spec.endswith(DATA_SETS):
        return None
    if is_file(join(spec, INDEX)):
        return ShardStore(spec)
    if is_file(spec):
        return _copied(spec, spec, **options)
    if is_file(f"{spec}.0"):  # in parts
        return _copied(f"{spec}.0", spec, **options)
    if any(is_file(join(spec, name)) for name in OURS):
        return None  # without listing it, which takes long where pictures lie in it
    return _copied(spec, spec, **options) if _is_store(listing(spec)) else None


def _is_store(names: Sequence[str]) -> bool:
    """Whether a folder with these files is one that `_folder` opens, told by the names alone."""
    if any(x.endswith(DATA_SETS) for x in names):
        return False
    return any(x in (ENVIRONMENT, *INFORMED) or x.endswith(ARRAYS) or NUMBERED.fullmatch(x) for x in names)


def _copied(address: str, spec: str, **options: Any) -> RegionStore | None:
    here = mirrored(address)
    here = here.with_suffix("") if address != spec else here
    with as_remote(here, spec):
        found = open_store(here, **options)
    if found is not None:
        found.address = spec
    return found


def open_foreign(spec: str | Path, **options: Any) -> RegionStore | None:
    """As `open_store`, but None for our own shards, which are a data set with captions."""
    return None if is_file(join(spec, INDEX)) else open_store(spec, **options)


def _file(path: Path, boxes: str, width: int) -> RegionStore | None:
    match path.suffix:
        case ".mdb":
            return _lmdb(path)
        case ".h5" | ".hdf5":
            return _hdf5(path)
        case ".yaml" | ".yml":
            return OscarCorpus(path, width) if "corpus_file" in read_yaml(path) else OscarTsv(path, width)
        case ".tfrecord" | ".tfrecords":
            return None if is_b2t2(path) else FashionBERTRecords(path)
        case ".zip":
            return VLBERTRegions(path)
        case ".pt" | ".pth" | ".th":
            return TorchFeatures(path, width, boxes) if is_features(read_content(path)) else None
        case ".npy":
            return TorchFeatures(path, width, boxes) if holds_objects(path, one=True) else None
        case ".json" | ".jsonl":
            with open(path, "rb") as handle:
                return VLBERTLines(path) if b'"frcnn"' in handle.readline(65536) else None
        case _:
            return _tsv(path, width) if TSV.search(path.name) else _records(path)


def _records(path: Path) -> RegionStore | None:
    """Of files without a name that says it: shards of records, `NAME-00000-of-00020`."""
    return FashionBERTRecords(path) if path.is_file() and is_records(path) and not is_b2t2(path) else None


def _folder(path: Path, boxes: str) -> RegionStore | None:
    if (path / INDEX).exists():
        return ShardStore(path)
    if is_text_db(path):
        return None
    if (path / ENVIRONMENT).exists():
        return _lmdb(path)
    if (path / INFORMED[0]).exists():
        return GqaH5(path, boxes)
    if (path / INFORMED[1]).exists():
        return GqaGridH5(path)
    if any(path.glob("*_feat[0-9][0-9][0-9].h5")):
        return VLPH5(path)
    if any(path.glob("*.tar")) or (path / "pairs.jsonl").exists():
        return None
    for pattern, kind in (("*.npz", NpzFolder), ("*.npy", partial(NpyFolder, boxes=boxes))):
        if next(path.rglob(pattern), None) is not None:
            return kind(path)
    first = next(path.glob("*.json"), None)
    if first is not None and _holds_regions(first):
        return VLBERTRegions(path)
    return None


def _holds_regions(path: Path) -> bool:
    """Whether a .json file is one picture's regions of VL-BERT's."""
    with open(path, "rb") as handle:
        head = handle.read(1 << 20)
    return head[:1] == b"{" and b'"num_boxes"' in head and b'"boxes"' in head


def _lmdb(path: Path) -> RegionStore:
    file = LmdbFile(path)
    listed = file.get(UNITER_NAMES)
    if listed is not None:
        return UniterLmdb(path) if listed[:1] == b"[" else TensorpackLmdb(path)
    if file.get(VILBERT_NAMES) is not None:
        return ViLBERTLmdb(path)
    record = file.first()
    if record is None:
        raise BadInput(f"{path}: an LMDB environment with nothing in it")
    value = record[1]
    if value[:1] in (b"\x98", b"\x9d"):  # a list of 8 or 13
        return TensorpackLmdb(path)
    msgpack = value[0] & 0xF0 == 0x80 and value[0] != 0x80
    return UniterLmdb(path) if value[:2] == b"PK" or msgpack else ViLBERTLmdb(path)


def _hdf5(path: Path) -> RegionStore | None:
    if FASHIONGEN.fullmatch(path.name):
        return None  # a data set with pixels
    file = Hdf5File(path).open()
    first = next(iter(file.values()), None)
    if first is not None and hasattr(first, "keys") and "features" in first:
        return VoltaH5(path)
    raise BadInput(
        f"{path}: HDF5 of no known layout: expected groups with 'features' (volta); give the folder for VLP's or GQA's files"
    )


def _tsv(path: Path, width: int) -> RegionStore | None:
    head = parts_of(path)[0] if not path.exists() else path
    try:
        with gzip.open(head, "rb") if head.suffix == ".gz" else open(head, "rb") as handle:
            cells = handle.readline().rstrip(b"\r\n").split(b"\t")
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{head}: cannot be read: {error}") from None
    if is_lined(cells):
        return FashionBERTRecords(path)
    if len(cells) == ERNIE_COLUMNS and all(x.isdigit() for x in cells[1:5]):
        return ErnieTsv(path)
    if len(cells) in (6, 8, 10, 13) and cells[1].isdigit():
        return ButdTsv(path)
    if head.suffix == ".gz":
        return None
    if len(cells) >= 2 and cells[1][:1] == b"{" and b'"features"' in cells[1]:
        return OscarTsv(path, width)
    if len(cells) >= 3 and cells[1].isdigit() and len(cells[-1]) > 1000:
        return OscarTsv(path, width)
    return None
