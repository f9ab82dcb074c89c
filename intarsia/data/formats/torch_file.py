"""Torch files of features (`.pt`, `.pth`, `.th`), old layout and zip: the pickle is read by the allow-list, numbers stay in the file until asked for.

Old layout (torch before 1.6, as the files of 2019 and 2020 are): three small pickles (a magic number, a version, the machine), the pickle of the
content, a pickled list of storage keys, then each storage as an int64 count and its numbers. Zip: `NAME/data.pkl` and, uncompressed, `NAME/data/KEY`.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from intarsia.data.formats.files import RandomAccess
from intarsia.errors import BadInput
from intarsia.weights.pickles import Plain, load_one, no_objects

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
KINDS = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "<?",
}


@dataclass(slots=True)
class Storage:
    """Numbers in a row, somewhere in the file."""

    dtype: str
    count: int
    start: int = -1
    """Byte of the file; -1 while it is not known."""


@dataclass(frozen=True, slots=True)
class Lazy:
    """A tensor that is still in its file."""

    file: RandomAccess
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In numbers, as `offset`."""

    def array(self) -> NDArray[Any]:
        """Its numbers, read now.

        Raises:
            BadInput: the file ends before them.
        """
        kind = np.dtype(self.storage.dtype)
        if 0 in self.shape:
            return np.zeros(self.shape, kind)
        span = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if self.offset < 0 or min(self.strides, default=0) < 0 or self.offset + span > self.storage.count:
            raise BadInput(
                f"{self.file.path}: a tensor of shape {self.shape} reaches out of its {self.storage.count} numbers"
            )
        raw = self.file.read(self.storage.start + self.offset * kind.itemsize, span * kind.itemsize)
        flat = np.frombuffer(raw, kind)
        return np.lib.stride_tricks.as_strided(
            flat, self.shape, [x * kind.itemsize for x in self.strides], writeable=False
        )


class _Reader(Plain):
    """The content's pickle: tensors become `Lazy`."""

    def __init__(self, pickled: BinaryIO, file: RandomAccess) -> None:
        super().__init__(pickled, encoding="latin1")
        self.file = file
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in KINDS:
            return KINDS[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return self._tensor
        return super().find_class(module, name)

    def persistent_load(self, saved: Any) -> Storage:
        """A storage by what the pickle says of it: "storage", type, key, device, count and, in old files, None or its part of another."""
        word, dtype, key, _, count, *view = saved
        if (
            word != "storage"
            or not isinstance(dtype, str)
            or not isinstance(count, int)
            or any(x is not None for x in view)
        ):
            raise ValueError(f"a storage of another kind: {str(saved)[:80]}")
        return self.storages.setdefault(str(key), Storage(dtype, count))

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Lazy:
        if not isinstance(storage, Storage):
            raise ValueError("a tensor without a storage")
        return Lazy(self.file, storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def read_torch(path: Path | str) -> Any:
    """What a torch file holds: plain containers, numbers, names, arrays (in memory) and tensors (`Lazy`).

    Raises:
        BadInput: no such file, no torch file, damaged, or a pickle that wants to run code (named).
    """
    path = Path(path)
    try:
        with path.open("rb") as handle:
            content = _of_zip(path, handle) if zipfile.is_zipfile(handle) else _of_old(path, handle)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None
    no_objects(content, path)
    return content


def _of_old(path: Path, handle: BinaryIO) -> Any:
    handle.seek(0)
    where = str(path)
    head = load_one(Plain(handle), where)
    if (
        head != MAGIC
        or load_one(Plain(handle), where) != VERSION
        or not isinstance(load_one(Plain(handle), where), Mapping)
    ):
        raise BadInput(f"{path}: not a torch file")
    reader = _Reader(handle, RandomAccess(path))
    content, keys, end = load_one(reader, where), load_one(Plain(handle), where), path.stat().st_size
    at = handle.tell()
    for key in keys if isinstance(keys, list) else [keys]:
        storage = reader.storages.get(str(key))
        handle.seek(at)
        count = struct.unpack("<q", handle.read(8).ljust(8, b"\xff"))[0]
        if storage is None or count != storage.count:
            raise BadInput(f"{path}: storage {key} holds {count} numbers, {storage.count if storage else 0} expected")
        storage.start = at + 8
        at += 8 + count * np.dtype(storage.dtype).itemsize
    if at > end or any(x.start < 0 for x in reader.storages.values()):
        raise BadInput(f"{path}: ends after {end} bytes, {at} expected")
    return content


def _of_zip(path: Path, handle: BinaryIO) -> Any:
    try:
        with zipfile.ZipFile(handle) as archive:
            members = {x.filename: x for x in archive.infolist()}
            pickled = next((x for x in members if x.endswith("/data.pkl")), None)
            if pickled is None:
                raise BadInput(f"{path}: a zip without data.pkl, not a torch file")
            folder = pickled.removesuffix("data.pkl")
            if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
                raise BadInput(f"{path}: big-endian numbers are not read")
            reader = _Reader(io.BytesIO(archive.read(pickled)), RandomAccess(path))
            content = load_one(reader, str(path))
    except zipfile.BadZipFile as error:
        raise BadInput(f"{path}: not a whole torch file: {error}") from None
    for key, storage in reader.storages.items():
        member = members.get(f"{folder}data/{key}")
        if (
            member is None
            or member.compress_type
            or member.file_size != storage.count * np.dtype(storage.dtype).itemsize
        ):
            raise BadInput(f"{path}: storage {key} is missing, compressed or not of {storage.count} numbers")
        handle.seek(member.header_offset + 26)
        name, extra = struct.unpack("<HH", handle.read(4))
        storage.start = member.header_offset + 30 + name + extra
    return content
