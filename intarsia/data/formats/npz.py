"""Archives of arrays (.npz) read faster than `numpy.load`: the directory is walked by hand, members are inflated in one call.

Uses the package isal where it is installed. Arrays of objects are refused.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Container
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intarsia.errors import BadInput

_fast: Any = importlib.import_module("isal.isal_zlib" if importlib.util.find_spec("isal") else "zlib")
crc32, inflate, error = _fast.crc32, _fast.decompress, _fast.error

MAGIC = b"\x93NUMPY"
END, ENTRY = b"PK\x05\x06", struct.Struct("<4s6H3L5H2L")
FAULTS = (struct.error, ValueError, TypeError, SyntaxError, KeyError, IndexError, error, OverflowError)


def read_npz(data: bytes, where: str, names: Container[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an archive; their memory may be that of `data`, read only.

    Args:
        data: the archive.
        where: names it in errors.
        names: read only these; None = all.

    Raises:
        BadInput: not a whole archive, or an array of objects.
    """
    try:
        end = data.rfind(END, max(0, len(data) - 65_557))
        if end < 0:
            raise ValueError("no zip directory at its end")
        count, _, at = struct.unpack_from("<HLL", data, end + 10)
        arrays: dict[str, NDArray[Any]] = {}
        for _ in range(count):
            (sign, _, _, _, method, _, _, check, packed, size, name, extra, note, _, _, _, start) = ENTRY.unpack_from(
                data, at
            )
            if sign != b"PK\x01\x02" or 0xFFFFFFFF in (packed, size, start):
                raise ValueError("a zip directory of another kind")
            title = data[at + 46 : at + 46 + name].decode().removesuffix(".npy")
            at += 46 + name + extra + note
            if names is None or title in names:
                arrays[title] = _array(_member(data, method, packed, size, start, check))
        return arrays
    except FAULTS as fault:
        raise BadInput(f"{where}: not a readable .npz: {fault}") from None


def _member(data: bytes, method: int, packed: int, size: int, start: int, check: int) -> memoryview:
    name, extra = struct.unpack_from("<HH", data, start + 26)
    begin = start + 30 + name + extra
    body = memoryview(data)[begin : begin + packed]
    if method not in (0, 8):
        raise ValueError(f"compressed by method {method}")
    raw = memoryview(inflate(body, -15, size)) if method else body
    if len(raw) != size:
        raise ValueError(f"a member holds {len(raw)} bytes, {size} expected")
    if crc32(raw) != check:
        raise ValueError("a member's checksum is wrong")
    return raw


def _array(raw: memoryview) -> NDArray[Any]:
    if bytes(raw[:6]) != MAGIC:
        raise ValueError("a member is no array")
    wide = raw[6] > 1
    length = int.from_bytes(raw[8 : 12 if wide else 10], "little")
    begin = (12 if wide else 10) + length
    dtype, fortran, shape = _header(bytes(raw[begin - length : begin]))
    return np.frombuffer(raw, dtype, offset=begin).reshape(shape, order="F" if fortran else "C")


@lru_cache(1024)
def _header(text: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    from ast import literal_eval

    header = literal_eval(text.decode("latin1"))
    dtype = np.dtype(header["descr"])
    if dtype.hasobject:
        raise ValueError("an array of objects, which would have to be unpickled")
    return dtype, header["fortran_order"], header["shape"]
