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
        return record, f"{self.path}, {self.kind}, record {record['key']}", str(record["key"])

    def picture_of(self, line: Line, slot: int, number: int) -> Picture:
        """A picture of a record, with its boxes if the corpus gives them."""
        entry = line.entries[slot]
        beside = () if is_remote(entry.name) else ((entry.name,), ("images", entry.name))
        file = next((x for x in (join(parent_of(self.path), *names) for names in beside) if is_file(x)), None)
        size = entry.size
        if entry.boxes is not None and not all(size):
            if file is None:
                raise BadInput(
                    f"{line.where}: has boxes, but picture {entry.name}, whose size they need, is not beside the file"
                )
            size = image_size(str(file))
        return empty_picture(line, slot, size, str(file) if file else "")
