"""Large tables of scores computed in blocks, each on disk as soon as it is there: a pass that was killed goes on, to the same scores.

A folder with `parts.json`, which says what the scores are of, and `TEXT-PICTURE.npy`, (k, m) float32, for each block that is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from intarsia.batch import Array
from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput

TEXTS, PICTURES = 256, 256
"""Most texts and pictures of a block, whether or not it is stored: what a kill costs, and what is laid out at once."""
SPARSE = 4
"""Blocks are so much longer and wider where only some pairs are read."""
INDEX = "parts.json"


def blocks(count: int, size: int) -> Iterator[slice]:
    """0 .. count in parts of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def fingerprint(module: nn.Module, *said: Iterable[str]) -> str:
    """The sha256 of a module's tensors, by name, and of texts."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for texts in said:
        found.update(json.dumps(list(texts)).encode())
    return found.hexdigest()


class Parts:
    """The blocks in a folder.

    Args:
        folder: made if it is not there; None = nothing is stored.
        mark: of what the scores are, see `fingerprint`.

    Raises:
        BadInput: the folder holds scores of something else.
    """

    def __init__(self, folder: Path | None, mark: str) -> None:
        self.folder = folder
        if folder is None:
            return
        about = folder / INDEX
        if about.is_file() and json.loads(about.read_text()) != {"scores of": mark}:
            raise BadInput(f"{folder}: scores of other weights, items or settings; remove it to begin anew")
        with write_whole(about) as temporary:
            temporary.write_text(json.dumps({"scores of": mark}), encoding="utf-8")

    def table(self, shape: tuple[int, int]) -> Array:
        """A table for all scores, NaN: in memory, or with a folder in a file there, so that memory holds no more of it than it is asked for."""
        if self.folder is None:
            return np.full(shape, np.nan, np.float32)
        found: Array = np.lib.format.open_memmap(self.folder / "scores.npy", "w+", np.float32, shape)
        found[:] = np.nan
        return found

    def get(self, block: tuple[slice, slice]) -> Array | None:
        """A block that is done.

        Raises:
            BadInput: its file is broken.
        """
        path = self._path(block)
        if path is None or not path.is_file():
            return None
        try:
            found: Array = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise BadInput(f"{path}: not a block of scores: {error}") from None
        shape = tuple(x.stop - x.start for x in block)
        if found.shape != shape:
            raise BadInput(f"{path}: {found.shape} scores, not {shape}")
        return found

    def put(self, block: tuple[slice, slice], scores: Array) -> None:
        """Stores a block, whole or not at all."""
        path = self._path(block)
        if path is not None:
            with write_whole(path) as temporary, open(temporary, "wb") as file:
                np.save(file, scores, allow_pickle=False)

    def _path(self, block: tuple[slice, slice]) -> Path | None:
        return None if self.folder is None else self.folder / f"{block[0].start:07d}-{block[1].start:07d}.npy"
