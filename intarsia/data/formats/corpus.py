"""A corpus in its own file as a data set: captions from the file, pictures from a folder beside it where they are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intarsia.batch import Picture
from intarsia.data.decode import image_size
from intarsia.data.formats.corpus_lines import Record
from intarsia.data.formats.index import LineSource, OnError, build_index
from intarsia.data.formats.lines import Line
from intarsia.data.formats.pairs import empty_picture
from intarsia.data.formats.recognise import recognise
from intarsia.errors import BadInput


class CorpusSource(LineSource):
    """Captions of a known corpus; its records are kept in memory.

    A picture's pixels are looked for beside the file, as named and in `images`; where they are not there, the picture has a name
    only, which `intarsia data convert --pairs` finds the regions by.

    Args:
        path: the corpus's file.
        split: "train", "val" or "test"; None = all records.
        on_error: "stop" raises at the first record that cannot be used, "skip" leaves it out and keeps the message.

    Raises:
        BadInput: no file of a known corpus, or a record that cannot be used.
    """

    def __init__(self, path: str | Path, split: str | None = None, on_error: OnError = "stop") -> None:
        self.path = Path(path)
        found = recognise(self.path)
        if found is None:
            raise BadInput(f"{path}: not a file of a known corpus")
        self.kind, make = found
        self._records: list[Record] = list(make(self.path))
        self.index, _ = build_index(len(self._records), self.parse, split, on_error)

    def read(self, number: int) -> tuple[dict[str, Any], str, str]:
        """A record as a line."""
        record = self._records[number]
        return record, f"{self.path}, {self.kind}, record {record['key']}", str(record["key"])

    def picture_of(self, line: Line, slot: int, number: int) -> Picture:
        """A picture of a record, with its boxes if the corpus gives them."""
        entry = line.entries[slot]
        file = next(
            (x for x in (self.path.parent / entry.name, self.path.parent / "images" / entry.name) if x.is_file()), None
        )
        size = entry.size
        if entry.boxes is not None and not all(size):
            if file is None:
                raise BadInput(
                    f"{line.where}: has boxes, but picture {entry.name}, whose size they need, is not beside the file"
                )
            size = image_size(file)
        return empty_picture(line, slot, size, str(file) if file else "")
