"""Large text files read by line number through byte offsets, kept as `.lineidx` (a decimal offset a line, as Oscar and VinVL do)."""

from __future__ import annotations

import gzip
import mmap
import os
import zlib
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from intarsia.data.formats.files import RandomAccess, write_whole
from intarsia.errors import BadInput


class Lines(Protocol):
    """A file of lines by number."""

    path: Path

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> bytes: ...

    def first_column(self, number: int) -> str:
        """What stands before the first tab."""
        ...


def open_lines(path: Path) -> Lines:
    """A file of lines by number; one that ends in .gz is read forward, one that lies there in parts (X.tsv.0, X.tsv.1, ..) is joined.

    Raises:
        BadInput: no such file, or empty.
    """
    parts = parts_of(path)
    if parts:
        return JoinedLines(path, parts)
    return GzipLines(path) if path.suffix == ".gz" else IndexedLines(path)


def parts_of(path: Path) -> list[Path]:
    """The parts of a file that is itself not there, in order."""
    if path.exists() or not path.parent.is_dir():
        return []
    numbered = {
        int(x.name[len(path.name) + 1 :]): x for x in path.parent.glob(f"{path.name}.*") if x.suffix[1:].isdigit()
    }
    return [numbered[i] for i in sorted(numbered)]


class IndexedLines:
    """A file of lines read at random. Its index is read from, or left as, NAME.lineidx beside it; one of another file is made anew.

    The index of X.tsv is X.lineidx, of any other NAME it is NAME.lineidx (a file in parts is X.tsv.0, X.tsv.1, ..).

    Args:
        path: the file.

    Raises:
        BadInput: no such file, or empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
        if not self.size:
            raise BadInput(f"{path}: is empty")
        beside = path.with_suffix(".lineidx") if path.suffix == ".tsv" else path.with_name(f"{path.name}.lineidx")
        offsets = _kept(beside)
        self._file = RandomAccess(path)
        if offsets is None or not self._fits(offsets):
            offsets = _scan(path)
            # in a folder that cannot be written the index lives in memory only
            with suppress(OSError), write_whole(beside) as temporary:
                temporary.write_text("".join(f"{x}\n" for x in offsets.tolist()))
        self._ends = np.append(offsets, self.size)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> bytes:
        """A line without its end.

        Raises:
            BadInput: the file changed, or its index leaves out lines.
        """
        start, end = self._ends.item(number), self._ends.item(number + 1)
        line = self._file.read(start, end - start)
        if line.find(b"\n", 0, -1) >= 0:
            raise BadInput(
                f"{self.path}, line {number + 1}: holds several lines; its .lineidx is of another file: delete it"
            )
        return line.rstrip(b"\r\n")

    def first_column(self, number: int) -> str:
        """What stands before the first tab."""
        start, end = self._ends.item(number), self._ends.item(number + 1)
        head = self._file.read(start, min(256, end - start))
        return _first(head if b"\t" in head else self[number], self.path, number)

    def _fits(self, offsets: np.ndarray[tuple[int], np.dtype[np.int64]]) -> bool:
        inside = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] < self.size and (np.diff(offsets) > 0).all()
        if not inside:
            return False
        starts = all(self._file.read(x - 1, 1) == b"\n" for x in offsets[1:].tolist())
        last = self._file.read(int(offsets[-1]), self.size - int(offsets[-1]))
        return starts and b"\n" not in last[:-1]


class JoinedLines:
    """Files of lines behind one another.

    Raises:
        BadInput: a part is empty.
    """

    def __init__(self, path: Path, parts: list[Path]) -> None:
        self.path = path
        self._parts = [IndexedLines(x) for x in parts]
        self._ends = np.cumsum([len(x) for x in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, number: int) -> tuple[IndexedLines, int]:
        part = int(np.searchsorted(self._ends, number, side="right"))
        return self._parts[part], number - (int(self._ends[part - 1]) if part else 0)

    def __getitem__(self, number: int) -> bytes:
        part, place = self._place(number)
        return part[place]

    def first_column(self, number: int) -> str:
        """What stands before the first tab."""
        part, place = self._place(number)
        return part.first_column(place)


class GzipLines:
    """A gzip file of lines. Lines asked for in rising order cost one pass; one further back begins the file again.

    Args:
        path: the file, read once to count its lines and take their first columns.

    Raises:
        BadInput: no such file, empty, or not whole gzip.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid, self._handle, self._next = -1, None, 0
        self._firsts = [
            _first(line[:256] if b"\t" in line[:256] else line, path, i) for i, line in enumerate(self._all())
        ]
        if not self._firsts:
            raise BadInput(f"{path}: is empty")

    def _all(self) -> Any:
        try:
            with gzip.open(self.path, "rb") as handle:
                yield from handle
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput(f"{self.path}: not whole gzip: {error}") from None

    def __len__(self) -> int:
        return len(self._firsts)

    def __getitem__(self, number: int) -> bytes:
        if self._pid != os.getpid() or number < self._next:
            self._pid, self._handle, self._next = os.getpid(), self._all(), 0
        line = b""
        while self._next <= number:
            line = next(self._handle, b"")  # type: ignore[call-overload]
            self._next += 1
        if not line:
            raise BadInput(f"{self.path}, line {number + 1}: is gone (changed since it was opened?)")
        return line.rstrip(b"\r\n")

    def first_column(self, number: int) -> str:
        """What stands before the first tab."""
        return self._firsts[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pid": -1, "_handle": None, "_next": 0}


def _first(line: bytes, path: Path, number: int) -> str:
    try:
        return line.split(b"\t", 1)[0].rstrip(b"\r\n").decode()
    except UnicodeDecodeError:
        raise BadInput(f"{path}, line {number + 1}: its first column is not UTF-8") from None


def _kept(path: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    try:
        return np.array([int(x) for x in path.read_text().split()], np.int64)
    except (OSError, ValueError, OverflowError):
        return None


def _scan(path: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    offsets = array("q", [0])
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        while (end := whole.find(b"\n", offsets[-1]) + 1) and end < len(whole):
            offsets.append(end)
    return np.array(offsets, np.int64)
