"""Records of corpora by number, made when they are asked for: what stays in memory is where they begin, or their text in one block."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from intarsia.data.formats.copies import at_hand
from intarsia.data.formats.files import RandomAccess
from intarsia.data.formats.pairs import LineFile
from intarsia.errors import BadInput

Record = dict[str, Any]


class Records(ABC):
    """The records of a corpus; they pickle."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, number: int) -> Record:
        """A record as a line of `pairs.jsonl`.

        Raises:
            BadInput: it cannot be used.
        """


class Rows(Protocol):
    """Texts cut into cells, by number."""

    path: Path | str

    def __len__(self) -> int: ...

    def place(self, number: int) -> int:
        """Its number in the file, from 1."""

    def cells(self, number: int) -> list[str]:
        """Its cells.

        Raises:
            BadInput: it is not UTF-8.
        """


class RowRecords(Records):
    """A record a row.

    Args:
        rows: lines with tabs, or a CSV file's rows.
        make: a record of a file's name, a row's number in it, and its cells; raises BadInput.
        skip: rows at the beginning that are no records.
    """

    def __init__(self, rows: Rows, make: Callable[[Path | str, int, list[str]], Record], skip: int = 0) -> None:
        self.rows, self.make, self.skip = rows, make, skip

    def __len__(self) -> int:
        return len(self.rows) - self.skip

    def __getitem__(self, number: int) -> Record:
        row = number + self.skip
        return self.make(self.rows.path, self.rows.place(row), self.rows.cells(row))


class HeldRecords(Records):
    """Records kept as JSON text in one block: for corpora whose file is one tree, or that put lines together."""

    def __init__(self, records: Iterable[Record]) -> None:
        block, ends = bytearray(), array("q", [0])
        for record in records:
            block += json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")
            ends.append(len(block))
        self._block, self._ends = block, np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> Record:
        record: Record = json.loads(self._block[self._ends.item(number) : self._ends.item(number + 1)])
        return record


class TabRows(LineFile):
    """Lines cut at tabs; blank ones are left out. Quotes quote nothing."""

    def cells(self, number: int) -> list[str]:
        """The cells of a line."""
        return self.text(number).split("\t")


class AlignedRows:
    """Lines of several files as the cells of one row.

    Raises:
        BadInput: the files have not as many lines.
    """

    def __init__(self, *paths: Path | str) -> None:
        self.files = [LineFile(path) for path in paths]
        self.path = paths[0]
        for file in self.files[1:]:
            if len(file) != len(self.files[0]):
                raise BadInput(f"{file.path}: {len(file)} lines for {len(self.files[0])} lines of {self.path}")

    def __len__(self) -> int:
        return len(self.files[0])

    def place(self, number: int) -> int:
        """Its number in the first file."""
        return self.files[0].place(number)

    def cells(self, number: int) -> list[str]:
        """The lines of this number."""
        return [file.text(number) for file in self.files]


class CsvRows:
    """Rows of a CSV file; cells in quotes may hold line ends. Blank lines are left out.

    Raises:
        BadInput: it cannot be read, is not UTF-8, or no CSV.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        file = at_hand(path)
        spans, numbers, at = array("q"), array("q"), 0

        def lines(handle: Iterable[bytes]) -> Iterator[str]:
            nonlocal at
            for raw in handle:
                at += len(raw)
                yield raw.decode()

        try:
            with open(file, "rb") as handle:
                start = 0
                for number, cells in enumerate(csv.reader(lines(handle)), 1):
                    if cells:
                        spans.extend((start, at))
                        numbers.append(number)
                    start = at
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise BadInput(f"{path}: cannot be read: {error}") from None
        self._spans, self._numbers = np.array(spans, np.int64).reshape(-1, 2), np.array(numbers, np.int64)
        self._file = RandomAccess(file)

    def __len__(self) -> int:
        return len(self._spans)

    def place(self, number: int) -> int:
        """Which row of the file it is."""
        return self._numbers.item(number)

    def cells(self, number: int) -> list[str]:
        """The cells of a row."""
        start, end = self._spans[number].tolist()
        text = self._file.read(start, end - start).decode().removeprefix("\ufeff")
        return next(csv.reader(io.StringIO(text, newline="")))
