"""A data set of lines by number: which line, which text, which picture, without holding the lines parsed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from intarsia.batch import Picture, Sample
from intarsia.data.formats.lines import SPLITS, Line, parse_line
from intarsia.data.source import Provenance
from intarsia.errors import BadInput

Array = NDArray[Any]
OnError = Literal["stop", "skip"]


@dataclass(frozen=True)
class LineIndex:
    """Where everything is, as arrays of the smallest unsigned integers that hold it: L usable lines, N texts, P different pictures."""

    lines: Array
    """(L) the number of each usable line in its file or files."""
    texts: Array
    """(L + 1) cumulative number of texts."""
    first_line: Array
    """(P) the first usable line (0 .. L - 1) that names each picture."""
    first_slot: Array
    """(P) which picture of that line it is."""
    pictures: Array
    """Picture numbers of all lines, one line behind another."""
    slots: Array
    """(L + 1) cumulative number of pictures of the lines."""
    splits: dict[str, int]
    """Lines of each split, those of other splits than the one opened included."""
    ignored: dict[str, int]
    """Fields that no reader uses, and on how many lines they were found."""
    skipped: tuple[str, ...]
    """One message for every line left out because it cannot be used."""

    def place(self, text: int) -> tuple[int, int]:
        """The usable line of a text, and which text of the line it is."""
        line = int(self.texts.searchsorted(self.texts.dtype.type(text), "right")) - 1
        return line, text - int(self.texts[line])


class _Table:
    """What is kept of every usable line while the lines are read: numbers, and 64-bit hashes of its key and its pictures' names."""

    def __init__(self) -> None:
        self.numbers, self.texts, self.slots = array("I"), array("I"), array("I")
        self.splits = array("B")
        self.keys, self.names = array("q"), array("q")

    def add(self, number: int, line: Line) -> None:
        self.numbers.append(number)
        self.texts.append(len(line.texts))
        self.slots.append(len(line.entries))
        self.splits.append(SPLITS.index(line.split))
        self.keys.append(hash(line.key))
        self.names.extend(hash(entry.name) for entry in line.entries)


def build_index(
    total: int, read: Callable[[int], Line], split: str | None, on_error: OnError
) -> tuple[LineIndex, Array]:
    """Reads every line once and keeps only numbers, some 60 bytes a line meanwhile and 30 at the end.

    Keys that come twice are found by hashes and then compared; pictures are told apart by the hashes of their names alone (of ten million names two different
    ones fall together with a chance of 3 in a million).

    Args:
        total: how many lines there are.
        read: gives a line by number; raises BadInput if it cannot be used.
        split: lines of other splits are left out; None = take all.
        on_error: "stop" raises at the first line that cannot be used, "skip" leaves it out and keeps its message.

    Returns:
        The index, and (P) int64 the hashes of the pictures' names.

    Raises:
        BadInput: a line cannot be used or its key was given before ("stop"); or an unknown split, or no usable line.
    """
    if split is not None and split not in SPLITS:
        raise BadInput(f"split {split!r} is not one of train, val, test")
    if on_error not in ("stop", "skip"):
        raise BadInput(f"on_error {on_error!r} is not one of stop, skip")
    table = _Table()
    ignored: Counter[str] = Counter()
    skipped: dict[int, str] = {}
    for number in range(total):
        try:
            line = read(number)
        except BadInput as error:
            if on_error == "stop":
                raise
            skipped[number] = str(error)
            continue
        table.add(number, line)
        if split is None or line.split == split:
            ignored.update(line.ignored)
    again = _given_again(table, read)
    for place, (line, message) in again.items():
        if on_error == "stop":
            raise BadInput(message)
        skipped[table.numbers[place]] = message
        if split is None or line.split == split:
            ignored.subtract(line.ignored)
    told = tuple(skipped[number] for number in sorted(skipped))
    table.keys = array("q")
    return _arrays(table, list(again), split, dict(+ignored), told)


def _given_again(table: _Table, read: Callable[[int], Line]) -> dict[int, tuple[Line, str]]:
    """The lines whose key a line before them gave: by their places in the table, with a message each."""
    keys = np.sort(table.keys)
    twice = keys[1:][keys[1:] == keys[:-1]]
    known: dict[str, str] = {}
    again: dict[int, tuple[Line, str]] = {}
    for place in np.flatnonzero(np.isin(table.keys, twice)).tolist() if len(twice) else ():
        line = read(table.numbers[place])
        if line.key in known:
            again[place] = line, f"{line.where}: key {line.key!r} was already given by {known[line.key]}"
        else:
            known[line.key] = line.where
    return again


def _arrays(
    table: _Table, left_out: list[int], split: str | None, ignored: dict[str, int], skipped: tuple[str, ...]
) -> tuple[LineIndex, Array]:
    splits = np.asarray(table.splits)
    usable = np.ones(len(splits), bool)
    usable[left_out] = False
    chosen = usable if split is None else usable & (splits == SPLITS.index(split))
    slots = np.asarray(table.slots)
    hashes, first, pictures = _as_first_named(np.asarray(table.names)[np.repeat(chosen, slots)])
    ends = _ends(slots[chosen])
    first_line = ends.searchsorted(first, "right") - 1
    counts = np.bincount(splits[usable], minlength=len(SPLITS)).tolist()
    index = LineIndex(
        lines=_small(np.asarray(table.numbers)[chosen]),
        texts=_small(_ends(np.asarray(table.texts)[chosen])),
        first_line=_small(first_line),
        first_slot=_small(first - ends[first_line]),
        pictures=pictures,
        slots=_small(ends),
        splits={name: count for name, count in zip(SPLITS, counts, strict=True) if count},
        ignored=ignored,
        skipped=skipped,
    )
    return index, hashes


def _as_first_named(names: Array) -> tuple[Array, Array, Array]:
    """Numbers pictures in the order in which they are first named: (P) hashes, (P) where each is first named, and the number of each name."""
    hashes, first, pictures = np.unique(names, return_index=True, return_inverse=True)
    order = first.argsort()
    rank = np.empty(len(order), np.min_scalar_type(len(order)))
    rank[order] = np.arange(len(order))
    return hashes[order], first[order], rank[pictures]


def _ends(counts: Array) -> Array:
    """(n + 1) int64, cumulative sums of (n) counts, from 0."""
    return np.concatenate([np.zeros(1, np.int64), counts.cumsum(dtype=np.int64)])


def _small(numbers: Array) -> Array:
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


class LineSource(ABC):
    """A Source whose data set is lines as in `lines.py`, wherever they and their pictures are kept."""

    provenance: Provenance | None = None
    index: LineIndex

    def __len__(self) -> int:
        return int(self.index.texts[-1])

    def __getitem__(self, index: int) -> Sample:
        total = len(self)
        if not -total <= index < total:
            raise IndexError(f"sample {index} of {total}")
        number, text = self.index.place(index % total)
        line = self.line(number)
        return line.sample(text, tuple(self.picture_of(line, slot, number) for slot in range(len(line.entries))))

    @property
    def skipped(self) -> tuple[str, ...]:
        """One message for every line left out."""
        return self.index.skipped

    @property
    def picture_count(self) -> int:
        """How many different pictures the lines name."""
        return len(self.index.first_line)

    def picture(self, number: int) -> Picture:
        """A picture by number, 0 .. picture_count - 1, in the order in which the lines first name them.

        Raises:
            BadInput: its files are missing or broken.
        """
        line = int(self.index.first_line[number])
        return self.picture_of(self.line(line), int(self.index.first_slot[number]), line)

    def pictures(self) -> Iterator[Picture]:
        """Every picture once, in the order of `picture`: what an extractor runs over."""
        return (self.picture(number) for number in range(self.picture_count))

    def line(self, number: int) -> Line:
        """A usable line, 0 .. L - 1, parsed."""
        return self.parse(int(self.index.lines[number]))

    def records(self) -> Iterator[dict[str, Any]]:
        """The usable lines as JSON objects, key included; a reader's own fields (they start with a dot) left out."""
        for number in self.index.lines.tolist():
            record, _, key = self.read(number)
            yield {"key": key, **{name: value for name, value in record.items() if not name.startswith(".")}}

    def parse(self, number: int) -> Line:
        """A line by its number in the file or files, checked.

        Raises:
            BadInput: it cannot be used.
        """
        return parse_line(*self.read(number))

    @abstractmethod
    def read(self, number: int) -> tuple[dict[str, Any], str, str]:
        """A line by its number in the files: the JSON object, its name in errors, its key by default."""

    @abstractmethod
    def picture_of(self, line: Line, slot: int, number: int) -> Picture:
        """A picture of a usable line: which one, and the line's number.

        Raises:
            BadInput: its files are missing or broken.
        """
