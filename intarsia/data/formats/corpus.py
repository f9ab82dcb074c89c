"""A corpus in its own file as a data set: captions from the file, pictures from a folder beside it where they are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intarsia.batch import Picture
from intarsia.data.decode import image_size
from intarsia.data.formats.corpus_lines import Corpus
from intarsia.data.formats.files import is_file, is_remote, join, parent_of
from intarsia.data.formats.index import LineSource, OnError, build_index
from intarsia.data.formats.lines import Line
from intarsia.data.formats.open_images import FRACTIONS
from intarsia.data.formats.pairs import empty_picture
from intarsia.data.formats.recognise import recognise
from intarsia.data.formats.records import HeldRecords, Records
from intarsia.errors import BadInput


class CorpusSource(LineSource):
    """Captions of a known corpus.

    A picture's pixels are looked for beside the file, as named and in `images`; where they are not there, the picture has a name
    only, which `intarsia data convert --pairs` finds the regions by. Pictures named by an address on the web have a name only.

    Args:
        path: the corpus's file; a remote one with `corpus`.
        split: "train", "val" or "test"; None = all records.
        on_error: "stop" raises at the first record that cannot be used, "skip" leaves it out and keeps the message.
        corpus: what `recognise` says of the file, if it was asked before.

    Raises:
        BadInput: no file of a known corpus, or a record that cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        on_error: OnError = "stop",
        corpus: Corpus | None = None,
    ) -> None:
        self.path = join(path)
        found = corpus or recognise(Path(path))
        if found is None:
            raise BadInput(f"{path}: not a file of a known corpus")
        self.kind, make = found
        made = make(self.path)
        self._records = made if isinstance(made, Records) else HeldRecords(made)
        self.index, _ = build_index(len(self._records), self.parse, split, on_error)

    def read(self, number: int) -> tuple[dict[str, Any], str, str]:
        """A record as a line."""
        record = self._records[number]
        where = f"{self.path}, {self.kind}, record {record['key']}"
        if FRACTIONS in record:
            record = self._in_pixels(record, where)
        return record, where, str(record["key"])

    def _in_pixels(self, record: dict[str, Any], where: str) -> dict[str, Any]:
        """A line whose boxes are fractions, in pixels of its picture."""
        wide, high = self._size(record["image"], where)
        boxes = [[x1 * wide, y1 * high, x2 * wide, y2 * high] for x1, y1, x2, y2 in record["boxes"]]
        return {**record, "boxes": boxes, "width": wide, "height": high}

    def _beside(self, name: str) -> Path | str | None:
        """The file of a picture, if it is at hand."""
        places = () if is_remote(name) else ((name,), ("images", name))
        return next((x for x in (join(parent_of(self.path), *names) for names in places) if is_file(x)), None)

    def _size(self, name: str, where: str) -> tuple[int, int]:
        file = self._beside(name)
        if file is None:
            raise BadInput(f"{where}: has boxes, but picture {name}, whose size they need, is not beside the file")
        return image_size(str(file))

    def picture_of(self, line: Line, slot: int, number: int) -> Picture:
        """A picture of a record, with its boxes if the corpus gives them."""
        entry = line.entries[slot]
        file, size = self._beside(entry.name), entry.size
        if entry.boxes is not None and not all(size):
            size = self._size(entry.name, line.where)
        return empty_picture(line, slot, size, str(file) if file else "")
