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
    """Where everything is, as arrays: L usable lines, N texts, P different pictures."""

    lines: Array
    """(L) int64, the number of each usable line in its file or files."""
    texts: Array
    """(L + 1) int64, cumulative number of texts."""
    first_line: Array
    """(P) int64, the first usable line (0 .. L - 1) that names each picture."""
    first_slot: Array
    """(P) int64, which picture of that line it is."""
    pictures: Array
    """Picture numbers of all lines, one line behind another."""
    slots: Array
    """(L + 1) int64, cumulative number of pictures of the lines."""
    splits: dict[str, int]
    """Lines of each split, those of other splits than the one opened included."""
    ignored: dict[str, int]
    """Fields that no reader uses, and on how many lines they were found."""
    skipped: tuple[str, ...]
    """One message for every line left out because it cannot be used."""

    def place(self, text: int) -> tuple[int, int]:
        """The usable line of a text, and which text of the line it is."""
        line = int(self.texts.searchsorted(text, "right")) - 1
        return line, text - int(self.texts[line])


def build_index(
    total: int, read: Callable[[int], Line], split: str | None, on_error: OnError
) -> tuple[LineIndex, tuple[str, ...]]:
    """Reads every line once and keeps only numbers.

    Args:
        total: how many lines there are.
        read: gives a line by number; raises BadInput if it cannot be used.
        split: lines of other splits are left out; None = take all.
        on_error: "stop" raises at the first line that cannot be used, "skip" leaves it out and keeps its message.

    Returns:
        The index, and the names of its P pictures.

    Raises:
        BadInput: a line cannot be used or its key was given before ("stop"); or an unknown split, or no usable line.
    """
    if split is not None and split not in SPLITS:
        raise BadInput(f"split {split!r} is not one of train, val, test")
    if on_error not in ("stop", "skip"):
        raise BadInput(f"on_error {on_error!r} is not one of stop, skip")
    lines, texts, slots, pictures, first_line, first_slot = (array("q") for _ in range(6))
    texts.append(0)
    slots.append(0)
    keys: dict[str, str] = {}
    names: dict[str, int] = {}
    splits: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    skipped: list[str] = []
    for number in range(total):
        try:
            line = read(number)
            if line.key in keys:
                raise BadInput(f"{line.where}: key {line.key!r} was already given by {keys[line.key]}")
        except BadInput as error:
            if on_error == "stop":
                raise
            skipped.append(str(error))
            continue
        keys[line.key] = line.where
        splits[line.split] += 1
        if split is not None and line.split != split:
            continue
        ignored.update(line.ignored)
        for slot, entry in enumerate(line.entries):
            picture = names.setdefault(entry.name, len(names))
            if picture == len(first_line):
                first_line.append(len(lines))
                first_slot.append(slot)
            pictures.append(picture)
        lines.append(number)
        texts.append(texts[-1] + len(line.texts))
        slots.append(len(pictures))
    index = LineIndex(
        lines=np.array(lines, dtype=np.int64),
        texts=np.array(texts, dtype=np.int64),
        first_line=np.array(first_line, dtype=np.int64),
        first_slot=np.array(first_slot, dtype=np.int64),
        pictures=np.array(pictures, dtype=np.int64),
        slots=np.array(slots, dtype=np.int64),
        splits=dict(splits),
        ignored=dict(ignored),
        skipped=tuple(skipped),
    )
    return index, tuple(names)


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
