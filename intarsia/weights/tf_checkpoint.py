"""TensorFlow checkpoints (`NAME.index` and `NAME.data-00000-of-00001`), read byte by byte, without TensorFlow and without running anything.

The index is a sorted string table, as of LevelDB: blocks of entries whose keys share beginnings with the key before, an index of blocks, and a footer.
An entry's key is a variable's name, its value a protocol buffer that says type, shape, shard, offset, size and checksum. The shards hold the bare numbers.
Every block and tensor is held to its checksum (CRC-32C). Source: tensorflow/core/util/tensor_bundle, tensorflow/core/lib/io/format.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intarsia.errors import BadInput

MAGIC = 0xDB4775248B80FB57
_FOOTER, _TRAILER = 48, 5
_TYPES = {
    **{1: torch.float32, 2: torch.float64, 3: torch.int32, 4: torch.uint8, 5: torch.int16, 6: torch.int8},
    **{9: torch.int64, 10: torch.bool, 14: torch.bfloat16, 19: torch.float16},
}
"""TensorFlow's numbers of types."""
COUNTERS = frozenset({"global_step", "beta1_power", "beta2_power"})


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a variable's numbers lie."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    """Bytes."""
    checksum: int


def is_checkpoint(path: Path) -> bool:
    """Whether a path names a checkpoint: NAME, NAME.index or one of its NAME.data files."""
    return index_of(path).is_file()


def index_of(path: Path) -> Path:
    """The index file of what `is_checkpoint` takes."""
    name = path.name.partition(".data-")[0].removesuffix(".index")
    return path.with_name(name + ".index")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All variables of a checkpoint by name.

    Raises:
        BadInput: a file is missing or damaged, or holds what this does not read (strings, variables in slices, compressed blocks).
    """
    index = index_of(path)
    entries, shards = read_index(index)
    found: dict[str, Tensor] = {}
    for number in range(shards):
        file = index.with_name(f"{index.stem}.data-{number:05d}-of-{shards:05d}")
        try:
            raw = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
        except OSError as error:
            raise BadInput(f"{file}: {error.strerror or error}") from None
        for name, entry in entries.items():
            if entry.shard == number:
                found[name] = _tensor(file, name, entry, raw)
    return {name: found[name] for name in entries if name in found}


def weights_of(variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The variables of the model: without the optimizer's, which are named below the variable they belong to (kernel/Adam), and its counters."""
    return {
        name: value
        for name, value in variables.items()
        if name.rpartition("/")[0] not in variables and name.rpartition("/")[2] not in COUNTERS
    }


def _tensor(file: Path, name: str, entry: Entry, raw: NDArray[np.uint8]) -> Tensor:
    part = np.asarray(raw[entry.offset : entry.offset + entry.size])
    wanted = int(np.prod(entry.shape, dtype=np.int64)) * entry.dtype.itemsize
    if len(part) != entry.size or wanted != entry.size:
        raise BadInput(
            f"{file}: {name}: {len(part)} bytes of {entry.size} are there, the shape {entry.shape} takes {wanted}"
        )
    if masked(crc32c(part)) != entry.checksum:
        raise BadInput(f"{file}: {name}: damaged: the checksum of its {entry.size} bytes is another")
    bare = torch.from_numpy(part.copy()) if entry.size else torch.zeros(0, dtype=torch.uint8)
    return bare.view(entry.dtype).reshape(entry.shape)


# ------------------------------------------------------------------------------------------------------------- the index


def read_index(path: Path) -> tuple[dict[str, Entry], int]:
    """The entries of an index file, sorted by name, and the number of shards.

    Raises:
        BadInput: see `read_checkpoint`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    if len(content) < _FOOTER or struct.unpack("<Q", content[-8:])[0] != MAGIC:
        raise BadInput(f"{path}: not the index of a TensorFlow checkpoint")
    try:
        handles = content[-_FOOTER:]
        _, place = _handle(handles, 0)
        index, _ = _handle(handles, place)
        pairs = [
            pair
            for _, value in _entries(_block(path, content, *index))
            for pair in _entries(_block(path, content, *_handle(value, 0)[0]))
        ]
        return _parse(path, pairs)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: damaged: {error}") from None


def _parse(path: Path, pairs: list[tuple[bytes, bytes]]) -> tuple[dict[str, Entry], int]:
    entries: dict[str, Entry] = {}
    shards = 0
    for key, value in pairs:
        fields = message_fields(value)
        if not key:  # the head
            shards = _number(fields, 1)
            if _number(fields, 2):
                raise BadInput(f"{path}: big-endian numbers are not read")
            continue
        name = key.decode("utf-8")
        kind = _TYPES.get(_number(fields, 1))
        if kind is None:
            raise BadInput(f"{path}: {name}: type {_number(fields, 1)} is not read, only numbers are")
        if 7 in fields:
            raise BadInput(f"{path}: {name}: is stored in slices, which are not read")
        dims = [x for shape in fields.get(2, []) for x in message_fields(_bytes(shape)).get(2, [])]
        sizes = tuple(_number(message_fields(_bytes(dim)), 1) for dim in dims)
        numbers = [_number(fields, i) for i in (3, 4, 5, 6)]
        entries[name] = Entry(kind, sizes, *numbers)
    if not shards:
        raise BadInput(f"{path}: damaged: the index has no head")
    return entries, shards


def _block(path: Path, content: bytes, offset: int, size: int) -> bytes:
    """The bytes of a block, whose trailer says how it is compressed and its checksum."""
    block, trailer = content[offset : offset + size], content[offset + size : offset + size + _TRAILER]
    if len(trailer) < _TRAILER:
        raise BadInput(f"{path}: damaged: a block of {size} bytes at {offset} reaches past the end")
    kind, checksum = struct.unpack("<BI", trailer)
    if masked(crc32c(np.frombuffer(content, np.uint8, size + 1, offset))) != checksum:
        raise BadInput(f"{path}: damaged: the checksum of the block at {offset} is another")
    if kind:
        raise BadInput(f"{path}: the block at {offset} is compressed (kind {kind}), which is not read")
    return block


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a block; a key begins as the one before it."""
    restarts = struct.unpack("<I", block[-4:])[0]
    end, place, key = len(block) - 4 * (restarts + 1), 0, b""
    while place < end:
        shared, place = varint(block, place)
        fresh, place = varint(block, place)
        size, place = varint(block, place)
        key = key[:shared] + block[place : place + fresh]
        place += fresh
        yield key, block[place : place + size]
        place += size


def _handle(content: bytes, place: int) -> tuple[tuple[int, int], int]:
    """The offset and size of a block, and where the next number begins."""
    offset, place = varint(content, place)
    size, place = varint(content, place)
    return (offset, size), place


def varint(content: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where the next begins."""
    value = shift = 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place


def message_fields(message: bytes) -> dict[int, list[int | bytes]]:
    """A protocol buffer by field number: numbers as int, everything else as bytes."""
    found: dict[int, list[int | bytes]] = {}
    place = 0
    while place < len(message):
        tag, place = varint(message, place)
        value: int | bytes
        match tag & 7:
            case 0:
                value, place = varint(message, place)
            case 1:
                value, place = struct.unpack_from("<Q", message, place)[0], place + 8
            case 2:
                size, place = varint(message, place)
                value, place = message[place : place + size], place + size
            case 5:
                value, place = struct.unpack_from("<I", message, place)[0], place + 4
            case kind:
                raise IndexError(f"a field of wire type {kind}")
        found.setdefault(tag >> 3, []).append(value)
    return found


def _number(fields: Mapping[int, list[int | bytes]], field: int) -> int:
    """The last value of a field, 0 where there is none."""
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise IndexError(f"field {field} is no number")
    return value


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise IndexError("a message is a number")
    return value


# ---------------------------------------------------------------------------------------------------------- the checksum

_LANE = 4096
"""Bytes that one lane works through; many lanes go side by side."""
_LANES = 1024


def masked(checksum: int) -> int:
    """A checksum as it is stored."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(content: NDArray[np.uint8]) -> int:
    """CRC-32C (Castagnoli) of bytes, tens of MB a second: lanes are summed side by side and joined by what so many zero bytes do to a sum."""
    state, whole = 0xFFFFFFFF, len(content) // _LANE
    for start in range(0, whole, _LANES):
        lanes = content[start * _LANE : min(start + _LANES, whole) * _LANE].reshape(-1, _LANE)
        columns = np.ascontiguousarray(lanes.T)
        sums = np.zeros(len(lanes), np.uint32)
        for column in columns:
            sums = _table()[(sums ^ column) & 0xFF] ^ (sums >> 8)
        zeros = _zeros()
        for lane in sums.tolist():
            state = (
                zeros[0][state & 0xFF]
                ^ zeros[1][state >> 8 & 0xFF]
                ^ zeros[2][state >> 16 & 0xFF]
                ^ zeros[3][state >> 24]
                ^ lane
            )
    table = _list()
    for byte in content[whole * _LANE :].tolist():
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


@cache
def _table() -> NDArray[np.uint32]:
    """(256) what a byte does to a sum."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    return table


@cache
def _list() -> list[int]:
    found: list[int] = _table().tolist()
    return found


@cache
def _zeros() -> list[list[int]]:
    """(4, 256) what a lane of zero bytes makes of each byte of a sum."""
    sums = np.arange(256, dtype=np.uint32)[None] << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    for _ in range(_LANE):
        sums = _table()[sums & 0xFF] ^ (sums >> 8)
    found: list[list[int]] = sums.tolist()
    return found
