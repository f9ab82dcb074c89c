"""A folder with nothing but pictures."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from intarsia.batch import Picture
from intarsia.data.formats.files import file_system, join
from intarsia.data.formats.pairs import LINES
from intarsia.errors import BadInput

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


class PictureFolder:
    """Pictures with no captions, by the order of their names; of a folder here or on another machine."""

    skipped: tuple[str, ...] = ()

    def __init__(self, root: Path | str) -> None:
        self.root = join(root)
        system, inside = file_system(str(self.root))
        self.names = sorted(
            PurePosixPath(x).relative_to(inside).as_posix()
            for x in map(str, system.find(inside))
            if x.lower().endswith(SUFFIXES)
        )
        if not self.names:
            raise BadInput(f"{root}: no {LINES}, no .tar and no picture ({', '.join(SUFFIXES)}) in it")
        self.picture_count = len(self.names)

    def picture(self, number: int) -> Picture:
        """A picture by number, without regions."""
        name = self.names[number]
        none = np.zeros((0, 0), np.float32), np.zeros((0, 4), np.float32)
        return Picture(name, *none, path=str(join(self.root, name)))
