"""Parquet and Arrow files read by row: texts in blocks, pictures one by one."""

from __future__ import annotations

import os
import re
import threading
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.data.formats.files import is_remote, open_file, told
from intarsia.errors import BadInput, needs_extra

BLOCK = 1024
"""Rows whose texts are made Python values at once."""
CELL = re.compile(r"(?P<file>.+\.(?:parquet|arrow))\?column=(?P<column>[^&]+)&row=(?P<row>\d+)")
SUFFIXES = (".parquet", ".arrow")


class Columns:
    """One Parquet file, Arrow file or Arrow stream. A process holds eight row groups of Parquet files in all.

    Raises:
        BadInput: no such file, none of these formats, or the package pyarrow is missing.
    """

    def __init__(self, path: str) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise needs_extra("formats", "pyarrow") from None
        self.path = path
        self._lock = threading.Lock()
        self._block: tuple[tuple[str, ...], int, list[dict[str, Any]]] = ((), -1, [])
        self._parquet: Any = None
        with told(path, "read") if is_remote(path) else nullcontext():
            self._open(path, pa, pq)

    def _open(self, path: str, pa: Any, pq: Any) -> None:
        try:
            if path.endswith(".parquet"):
                self._parquet = pq.ParquetFile(open_file(path) if is_remote(path) else path)
                meta = self._parquet.metadata
                sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
                self.schema = self._parquet.schema_arrow
            else:
                file = pa.PythonFile(open_file(path), "r") if is_remote(path) else pa.memory_map(path)
                self._table = _ipc(pa, file)
                sizes, self.schema = [len(self._table)], self._table.schema
        except (OSError, pa.ArrowException) as error:
            raise BadInput(f"{path}: not a whole Parquet or Arrow file: {' '.join(str(error).split())[:200]}") from None
        self._starts = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, number: int, names: tuple[str, ...]) -> dict[str, Any]:
        """A row's values in these columns ("a.b": field b of the structs in a, called that in the row).

        Raises:
            BadInput: the file is broken there.
        """
        with self._lock:
            if self._block[:2] != (names, number // BLOCK):
                self._block = (names, number // BLOCK, self._values(number // BLOCK, names))
            return self._block[2][number % BLOCK]

    def cell(self, number: int, name: str) -> Any:
        """One value, read alone: what the bytes of a picture are asked for by.

        Raises:
            BadInput: no such row or column, or the file is broken there.
        """
        if not 0 <= number < len(self) or name not in self.schema.names:
            raise BadInput(f"{self.path}: has no row {number} with a column {name}")
        with self._lock:
            return self._slice(number, number + 1, (name,))[0][name]

    def _values(self, block: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
        return self._slice(block * BLOCK, min((block + 1) * BLOCK, len(self)), names)

    def _slice(self, low: int, high: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
        with told(self.path, "read") if is_remote(self.path) else nullcontext():
            return self._rows(low, high, names)

    def _rows(self, low: int, high: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
        import pyarrow as pa

        rows: list[dict[str, Any]] = []
        try:
            while low < high:
                group = int(np.searchsorted(self._starts, low, side="right")) - 1
                start, end = int(self._starts[group]), min(high, int(self._starts[group + 1]))
                rows += _pick(self._group(group, names).slice(low - start, end - low), names)
                low = end
        except (OSError, pa.ArrowException) as error:
            raise BadInput(f"{self.path}, row {low}: cannot be read: {' '.join(str(error).split())[:200]}") from None
        return rows

    def _group(self, group: int, names: tuple[str, ...]) -> Any:
        return self._table if self._parquet is None else _row_group(self, group, names)

    def read_group(self, group: int, names: tuple[str, ...]) -> Any:
        """A row group of a Parquet file, with these columns."""
        return self._parquet.read_row_group(group, columns=list(names), use_threads=False)


@lru_cache(maxsize=8)
def _row_group(columns: Columns, group: int, names: tuple[str, ...]) -> Any:
    return columns.read_group(group, names)


def _ipc(pa: Any, file: Any) -> Any:
    try:
        return pa.ipc.open_file(file).read_all()
    except pa.ArrowInvalid:
        file.seek(0)
        return pa.ipc.open_stream(file).read_all()


def _pick(table: Any, names: tuple[str, ...]) -> list[dict[str, Any]]:
    import pyarrow.compute as pc

    columns = []
    for name in names:
        outer, _, inner = name.partition(".")
        column = table.column(name if name in table.column_names else outer)
        columns.append((pc.struct_field(column, inner) if name not in table.column_names else column).to_pylist())
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


@lru_cache(maxsize=128)
def _opened(path: str, stamp: tuple[int, int], process: int) -> Columns:
    return Columns(path)


def columns_of(path: str) -> Columns:
    """The file, opened once in a process as long as it does not change.

    Raises:
        BadInput: as `Columns`, or no such file.
    """
    stamp = (0, 0)
    if not is_remote(path):
        try:
            about = Path(path).stat()
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
        stamp = (about.st_size, about.st_mtime_ns)
    return _opened(path, stamp, os.getpid())


def cell_address(path: str, column: str, row: int) -> str:
    """The address of a picture in a row: what `Picture.path` says."""
    return f"{path}?column={column}&row={row}"


def cell_bytes(address: str) -> bytes | str | None:
    """What lies at a cell address: the bytes of a picture, or its path where the row has no bytes; None if `address` is none.

    Raises:
        BadInput: the file cannot be read there, or the row has neither.
    """
    match = CELL.fullmatch(address)
    if match is None:
        return None
    value = columns_of(match["file"]).cell(int(match["row"]), match["column"])
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not value:
        raise BadInput(f"{match['file']}, row {match['row']}: {match['column']} holds no picture")
    if isinstance(value, str):
        return value if is_remote(value) else str(Path(match["file"]).parent / value)
    return bytes(value)
