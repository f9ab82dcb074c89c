"""Pictures in a table, `id TAB base64` a line: MUGE's `*_imgs.tsv`, `IC_*.tsv` and `T2I_*.img.tsv`, and others of Chinese-CLIP's layout.

They come without texts, which lie in files of their own: here a picture's text is its id.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from intarsia.batch import Array, Picture
from intarsia.data.decode import decode_image
from intarsia.data.formats.index import LineSource, OnError, build_index
from intarsia.data.formats.line_index import IndexedLines
from intarsia.data.formats.lines import Line
from intarsia.data.formats.pairs import empty_picture
from intarsia.errors import BadInput

FILE = re.compile(r".+_imgs\.tsv|IC_\w+\.tsv|T2I_\w+\.img\.tsv")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def is_picture_table(path: Path) -> bool:
    """Whether a file is called like one."""
    return FILE.fullmatch(path.name) is not None


class PictureTable(LineSource):
    """A table as a data set, to be extracted.

    Args:
        path: the file; it is one split of its benchmark, all of which is read.
        split: passed over.
        on_error: "stop" raises at the first line that cannot be used, "skip" leaves it out and keeps the message.

    Raises:
        BadInput: it cannot be read, or a line has no id or that of a line before.
    """

    def __init__(self, path: str | Path, split: str | None = None, on_error: OnError = "stop") -> None:
        self.table = IndexedLines(Path(path))
        self.index, _ = build_index(len(self.table), self.parse, None, on_error)

    def read(self, number: int) -> tuple[dict[str, Any], str, str]:
        """A line's id as a line."""
        name, where = self.table.first_column(number).strip(), self._where(number)
        if not name:
            raise BadInput(f"{where}: has no id before its tab")
        return {"image": name, "caption": name}, where, name

    def picture_of(self, line: Line, slot: int, number: int) -> Picture:
        """The picture of a line; its pixels are decoded when they are asked for."""
        row = int(self.index.lines[number])
        return replace(empty_picture(line, slot, (0, 0), ""), pixels=partial(self.pixels, row))

    def pixels(self, number: int) -> Array:
        """(H, W, 3) uint8 RGB.

        Raises:
            BadInput: there is no base64, or no picture in it.
        """
        where = self._where(number)
        _, _, text = self.table[number].partition(b"\t")
        try:
            data = base64.b64decode(text.strip().translate(_URL_SAFE), validate=True)
        except binascii.Error as error:
            raise BadInput(f"{where}: not base64: {error}") from None
        return decode_image(data, where)

    def _where(self, number: int) -> str:
        return f"{self.table.path}, line {number + 1}"
