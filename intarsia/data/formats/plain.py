"""Plain text, a sentence or paragraph a line: what systems that also learn from words alone read (VL-BERT: books and Wikipedia)."""

from __future__ import annotations

from pathlib import Path, PurePath

from intarsia.batch import Sample
from intarsia.data.formats.pairs import LineFile
from intarsia.data.source import Provenance
from intarsia.errors import BadInput


class TextLines:
    """Passages of a text file: sample i begins at line i and takes in the following lines until it has enough words.

    Args:
        path: UTF-8, local or remote; blank lines are no lines.
        words: enough, counted by white space. Source: the code of VL-BERT, which then cuts at as many pieces.

    Raises:
        BadInput: no such file, or nothing in it; on reading, a line that is not UTF-8.
    """

    provenance: Provenance | None = None

    def __init__(self, path: Path | str, words: int = 64) -> None:
        self.lines, self.words = LineFile(path), words
        if not len(self.lines):
            raise BadInput(f"{path}: holds no line of text")

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"line {index} of {len(self)}")
        taken: list[str] = []
        for number in range(index, len(self)):
            taken += self.lines.text(number).split()
            if len(taken) >= self.words:
                break
        return Sample(key=f"{PurePath(self.lines.path).name}:{index}", texts=(" ".join(taken),))
