"""Search among many pictures: their vectors in a memory-mapped file, and the nearest of them to the vector of a text.

An index is a folder: `vectors.f32` (N, D) little-endian float32 of length 1, `names.txt` with a JSON string a line, `about.json`. While it is made it has
`begun.json` in place of `about.json`; a run that was killed goes on behind the last block that is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Array
from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput
from intarsia.recipe import from_json

VECTORS, NAMES, ABOUT, BEGUN, CELLS = "vectors.f32", "names.txt", "about.json", "begun.json", "cells.faiss"
BLOCK = 65_536
"""Vectors compared at once, so that memory does not grow with the index."""


@dataclass(frozen=True)
class About:
    """What an index holds and what made it."""

    system: str
    weights: str
    """Folder of the run that made the vectors."""
    checksum: str
    """SHA-256 of its weights."""
    root: str
    """Folder of the pictures; names are relative to it."""
    pictures: str
    """SHA-256 of the list of pictures."""
    width: int
    """D"""
    skipped: int = 0
    """Pictures that could not be read."""


@dataclass(frozen=True)
class Hit:
    """One picture that was found."""

    name: str
    score: float
    """Cosine of both vectors."""


class Writer:
    """Writes an index, block by block; goes on where an earlier run of the same ended.

    Args:
        folder: of the index.
        about: what it is to hold.

    Raises:
        BadInput: the folder has another index, finished or begun.
    """

    def __init__(self, folder: Path, about: About) -> None:
        self.folder, self.about = folder, about
        folder.mkdir(parents=True, exist_ok=True)
        for name in (ABOUT, BEGUN):
            if (folder / name).exists() and _told(folder / name) != about:
                raise BadInput(f"{folder}: holds an index of other pictures or weights; take another folder")
        self.finished = (folder / ABOUT).exists()
        self.names: list[str] = []
        if not self.finished:
            _write(folder / BEGUN, json.dumps(asdict(about)))
            self._go_on()

    def _go_on(self) -> None:
        """Cuts both files to the pictures that both have whole."""
        vectors, names = self.folder / VECTORS, self.folder / NAMES
        vectors.touch()
        names.touch()
        lines = names.read_bytes().split(b"\n")[:-1]
        count = min(len(lines), vectors.stat().st_size // (4 * self.about.width))
        os.truncate(vectors, 4 * self.about.width * count)
        os.truncate(names, sum(len(line) + 1 for line in lines[:count]))
        self.names = [json.loads(line) for line in lines[:count]]

    def add(self, names: Sequence[str], vectors: Array) -> None:
        """Appends pictures and their vectors (n, D), which need not have length 1."""
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        with (self.folder / VECTORS).open("ab") as file:
            file.write(unit.astype("<f4").tobytes())
        with (self.folder / NAMES).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(name, ensure_ascii=False) + "\n" for name in names)
        self.names += names

    def finish(self, skipped: Sequence[str] = ()) -> None:
        """Says that the index is whole.

        Args:
            skipped: a message for every picture left out, written to `skipped.txt`.

        Raises:
            BadInput: it has no picture.
        """
        if not self.names:
            raise BadInput(
                f"{self.folder}: no picture could be used" + (f"; the first: {skipped[0]}" if skipped else "")
            )
        if skipped:
            _write(self.folder / "skipped.txt", "".join(f"{line}\n" for line in skipped))
        _write(self.folder / ABOUT, json.dumps({**asdict(self.about), "skipped": len(skipped)}))
        (self.folder / BEGUN).unlink()
        self.finished = True


def _write(path: Path, text: str) -> None:
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def _told(path: Path) -> About:
    return About(**{**json.loads(path.read_text(encoding="utf-8")), "skipped": 0})


class Index:
    """A finished index, opened.

    Args:
        folder: what `Writer` made.

    Raises:
        BadInput: there is none, it is not finished, or its files do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / ABOUT).is_file():
            begun = (folder / BEGUN).is_file()
            raise BadInput(f"{folder}: " + ("not finished; `intarsia index` goes on with it" if begun else "no index"))
        self.folder = folder
        self.about = from_json(About, (folder / ABOUT).read_text(encoding="utf-8"), str(folder / ABOUT))
        self.names: list[str] = [json.loads(x) for x in (folder / NAMES).read_text(encoding="utf-8").split("\n")[:-1]]
        size, due = (folder / VECTORS).stat().st_size, 4 * self.about.width * len(self.names)
        if size != due:
            raise BadInput(
                f"{folder / VECTORS}: {size} bytes, {len(self.names)} names of width {self.about.width} need {due}"
            )
        self.vectors: Array = np.memmap(folder / VECTORS, "<f4", "r", shape=(len(self.names), self.about.width))

    def search(self, query: Array, top: int = 10) -> list[Hit]:
        """The nearest pictures, best first, by comparing all of them.

        Args:
            query: (D) vector, of any length.
            top: how many at most.
        """
        query = self._unit(query)
        scores = np.concatenate([self.vectors[i : i + BLOCK] @ query for i in range(0, len(self.names), BLOCK)])
        top = min(top, len(scores))
        best = np.argpartition(-scores, top - 1)[:top]
        return self._hits(best, scores[best])

    def _unit(self, query: Array) -> Array:
        if query.shape != (self.about.width,):
            raise BadInput(f"{self.folder}: has vectors of width {self.about.width}, the query has shape {query.shape}")
        unit: Array = (query / np.linalg.norm(query)).astype(np.float32)
        return unit

    def _hits(self, numbers: Array, scores: Array) -> list[Hit]:
        order = np.lexsort((numbers, -scores))
        return [Hit(self.names[numbers[i]], float(scores[i])) for i in order]


# ------------------------------------------------------------------------------------------------------------ faiss


def sort_into_cells(index: Index) -> int:
    """Sorts the vectors into cells with faiss, so that `search_cells` reads some of them only; kept beside the index.

    Returns:
        How many cells: the square root of the number of pictures.
    """
    faiss, count = _faiss(), max(1, int(len(index.names) ** 0.5))
    cells = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(index.about.width), index.about.width, count, faiss.METRIC_INNER_PRODUCT
    )
    cells.cp.min_points_per_centroid = 1
    cells.train(np.ascontiguousarray(index.vectors))
    for i in range(0, len(index.names), BLOCK):
        cells.add(np.ascontiguousarray(index.vectors[i : i + BLOCK]))
    with write_whole(index.folder / CELLS) as part:
        faiss.write_index(cells, str(part))
    return count


class Cells:
    """The cells of an index, read from its folder; approximate: what lies in a cell that is not read is not found."""

    def __init__(self, index: Index) -> None:
        if not (index.folder / CELLS).is_file():
            raise BadInput(f"{index.folder}: its vectors are not sorted into cells; run `intarsia index` with --faiss")
        self.index, self.cells = index, _faiss().read_index(str(index.folder / CELLS))
        if self.cells.ntotal != len(index.names):
            raise BadInput(f"{index.folder / CELLS}: {self.cells.ntotal} vectors, the index has {len(index.names)}")

    def search(self, query: Array, top: int = 10, read: int = 16) -> list[Hit]:
        """As `Index.search`, among the vectors of the `read` cells nearest to the query."""
        self.cells.nprobe = read
        scores, numbers = self.cells.search(self.index._unit(query)[None], min(top, len(self.index.names)))
        found = numbers[0] >= 0
        return self.index._hits(numbers[0][found], scores[0][found])


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise BadInput("faiss is not installed: pip install 'intarsia[faiss]'") from None
    return faiss


# --------------------------------------------------------------------------------------------------------- measured


def recall(exact: Iterable[Sequence[Hit]], found: Iterable[Sequence[Hit]]) -> float:
    """The share of the exact search's pictures that another search found."""
    pairs = [({x.name for x in a}, {x.name for x in b}) for a, b in zip(exact, found, strict=True)]
    return sum(len(a & b) for a, b in pairs) / sum(len(a) for a, _ in pairs)
