"""Which benchmarks' files a folder holds, and whether they can be read: `intarsia data inspect` and `check` of such a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks import BENCHMARKS
from intarsia.tasks.benchmarks.items import Missing

ANNOTATIONS = frozenset({".json", ".jsonl", ".p", ".txt", ".gz", ".csv"})
"""Endings of benchmarks' files."""


@dataclass(frozen=True)
class Split:
    """One split of a benchmark that is there."""

    benchmark: str
    """Name, as `intarsia finetune --benchmark` takes it."""
    title: str
    split: str
    items: int
    pictures: int
    """Different ones."""
    gold: bool
    """Right answers are published."""

    def __str__(self) -> str:
        answers = "with" if self.gold else "without"
        return f"{self.title} ({self.benchmark}), {self.split}: {self.items:,} items of {self.pictures:,} pictures, {answers} answers"


@dataclass(frozen=True)
class Survey:
    """What was found."""

    splits: tuple[Split, ...]
    problems: tuple[str, ...]
    """Files of those benchmarks that cannot be read, one line each."""

    def lines(self) -> list[str]:
        """A line a split, then the problems."""
        return [*map(str, self.splits), *self.problems]


def survey(root: Path) -> Survey:
    """Reads every split of every benchmark whose files lie under a folder.

    A file that cannot be read is a problem if another split of its benchmark can: files of many data sets are called `train.json`.
    """
    if not any(Path(name).suffix in ANNOTATIONS for _, _, names in os.walk(root) for name in names):
        return Survey((), ())  # sixty searches through a folder of pictures take long
    splits: list[Split] = []
    problems: list[str] = []
    for benchmark in BENCHMARKS.values():
        found: list[Split] = []
        broken: list[str] = []
        for split in benchmark.splits:
            try:
                read = benchmark.read(root, split)
            except Missing:
                continue
            except BadInput as error:
                broken.append(str(error))
                continue
            pictures = len({name for item in read.items for name in item.pictures})
            gold = bool(read.gold) or any(x.answers for x in read.items)
            found.append(Split(benchmark.name, benchmark.title, split, len(read.items), pictures, gold))
        splits += found
        problems += broken if found else []
    return Survey(tuple(splits), tuple(dict.fromkeys(problems)))
