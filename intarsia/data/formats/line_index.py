"""Large text files read by line number through byte offsets, kept as `.lineidx` (a decimal offset a line, as Oscar and VinVL do)."""

from __future__ import annotations

import mmap
from array import array
from contextlib import suppress
from pathlib import Path

import numpy as np

from intarsia.data.formats.files import RandomAccess, write_whole
from intarsia.errors import BadInput


class IndexedLines:
    """A file of lines read at random. Its index is read from, or left as, NAME.lineidx beside it; one of another file is made anew.

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
        beside = path.with_suffix(".lineidx")
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
        if b"\t" not in head:
            head = self[number]
        try:
            return head.split(b"\t", 1)[0].decode()
        except UnicodeDecodeError:
            raise BadInput(f"{self.path}, line {number + 1}: its first column is not UTF-8") from None

    def _fits(self, offsets: np.ndarray[tuple[int], np.dtype[np.int64]]) -> bool:
        inside = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] < self.size and (np.diff(offsets) > 0).all()
        if not inside:
            return False
        starts = all(self._file.read(x - 1, 1) == b"\n" for x in offsets[1:].tolist())
        last = self._file.read(int(offsets[-1]), self.size - int(offsets[-1]))
        return starts and b"\n" not in last[:-1]


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
