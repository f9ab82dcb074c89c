"""A folder of pictures and a file of lines: `pairs.jsonl` beside `images/`.

What a user with pictures and captions writes by hand.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intarsia.batch import Picture, Sample
from intarsia.data.decode import image_size, read_bytes
from intarsia.data.formats.copies import at_hand
from intarsia.data.formats.files import RandomAccess, is_file, is_remote, join, parent_of, write_whole
from intarsia.data.formats.index import LineSource, OnError, build_index
from intarsia.data.formats.lines import Line, parse_json, parse_line
from intarsia.data.formats.regions import read_picture, to_fractions
from intarsia.data.source import Source
from intarsia.errors import BadInput

Array = NDArray[Any]
LINES = "pairs.jsonl"
BOM = b"\xef\xbb\xbf"


class LineFile:
    """A text file read line by line number, by byte offsets found once. Blank lines are no lines. Of a remote file the local copy is read.

    Args:
        path: the file, local or remote.

    Raises:
        BadInput: it cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        file = at_hand(path)
        starts, before = array("q"), array("q")
        at = 0
        try:
            with open(file, "rb") as handle:
                for raw in handle:
                    if raw.strip(b" \t\r\n" + BOM):
                        starts.append(at)
                    else:
                        before.append(len(starts))
                    at += len(raw)
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
        starts.append(at)
        self._starts, self._before = np.array(starts, dtype=np.int64), np.array(before, dtype=np.int64)
        self._file = RandomAccess(file)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def place(self, number: int) -> int:
        """The number of a line in the file, from 1, blank ones counted."""
        return number + 1 + int(self._before.searchsorted(number, "right"))

    def read(self, number: int) -> tuple[dict[str, Any], str, str]:
        """The JSON object of a line, its name in errors, and its 1-based number in the file as a key.

        Raises:
            BadInput: the line is not a JSON object.
        """
        key = str(self.place(number))
        where = f"{self.path}, line {key}"
        return parse_json(self.raw(number), where), where, key

    def raw(self, number: int) -> bytes:
        """The bytes of a line that is not blank, without its end."""
        start = self._starts.item(number)
        raw = self._file.read(start, self._starts.item(number + 1) - start)
        return raw.partition(b"\n")[0].removeprefix(BOM).rstrip(b"\r")

    def text(self, number: int) -> str:
        """A line that is not blank, without its end.

        Raises:
            BadInput: it is not UTF-8.
        """
        try:
            return self.raw(number).decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"{self.path}, line {self.place(number)}: not UTF-8 at byte {error.start + 1}") from None


class PairsFolder(LineSource):
    """A folder with `pairs.jsonl`, or a file of such lines whose pictures lie beside it; local, or remote, then pictures are fetched one by one.

    Samples carry features only if their line names a regions file; else features has shape (0, 0), and boxes is what
    the line gives.

    Args:
        root: the folder, or the file of lines.
        split: "train", "val" or "test"; None = all lines.
        on_error: "stop" raises at the first line that cannot be used; "skip" leaves such lines out, and those whose
            pictures or region files are not there, and keeps the messages in `skipped`.

    Raises:
        BadInput: no such file, a line that cannot be used, or a key given twice; names file, line and value.
    """

    def __init__(self, root: str | Path, split: str | None = None, on_error: OnError = "stop") -> None:
        whole = not str(root).endswith(".jsonl") if is_remote(root) else Path(root).is_dir()
        self.lines = LineFile(join(root, LINES) if whole else root)
        self.root = parent_of(self.lines.path)
        self.index, _ = build_index(
            len(self.lines), self.parse if on_error == "stop" else self._parse_present, split, on_error
        )

    def read(self, number: int) -> tuple[dict[str, Any], str, str]:
        """A line of the file."""
        return self.lines.read(number)

    def picture_of(self, line: Line, slot: int, number: int) -> Picture:
        """A picture of a line, with its boxes or its regions."""
        entry = line.entries[slot]
        file = join(self.root, entry.name)
        path = str(file) if is_remote(file) or is_file(file) else ""
        if not path and not entry.regions:
            raise BadInput(f"{line.where}: picture {file} does not exist")
        width, height = entry.size
        if not (width and height) and (entry.regions or entry.boxes is not None):
            if not path:
                raise BadInput(f"{line.where}: width and height are not given and picture {file} does not exist")
            width, height = image_size(path)
        if entry.regions:
            file = join(self.root, entry.regions)
            if not is_remote(file) and not is_file(file):
                raise BadInput(f"{line.where}: regions file {file} does not exist")
            kind = entry.regions.rpartition(".")[2]
            found = read_picture(read_bytes(file), kind, (width, height), entry.name, path, f"{line.where}: {file}")
            if entry.labels and len(entry.labels) != len(found.boxes):
                raise BadInput(f"{line.where}: {len(entry.labels)} labels for {len(found.boxes)} regions of {file}")
            return found
        return empty_picture(line, slot, (width, height), path)

    def _parse_present(self, number: int) -> Line:
        line = self.parse(number)
        for entry in line.entries:
            file = join(self.root, entry.regions or entry.name)
            if not is_file(file):
                what = "regions file" if entry.regions else "picture"
                raise BadInput(f"{line.where}: {what} {file} does not exist")
        return line


def empty_picture(line: Line, slot: int, size: tuple[int, int], path: str) -> Picture:
    """The picture of a line that has pixels and perhaps boxes, but no features yet."""
    entry = line.entries[slot]
    boxes = np.zeros((0, 4), np.float32) if entry.boxes is None else to_fractions(entry.boxes, *size, line.where)
    return Picture(
        name=entry.name,
        features=np.zeros((0, 0), np.float32),
        boxes=boxes,
        width=size[0],
        height=size[1],
        path=path,
        names=entry.labels,
    )


def write_pairs(path: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes a file of lines, whole or not at all; every record is checked as a reader would.

    Args:
        path: the file, or the folder that is to hold `pairs.jsonl`.
        records: JSON objects as in `lines.py`.

    Returns:
        How many were written.

    Raises:
        BadInput: a record cannot be used (names its number and the value), or gives a key a second time.
    """
    path = Path(path) if Path(path).suffix == ".jsonl" else Path(path) / LINES
    keys: set[str] = set()
    with write_whole(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as handle:
        for number, record in enumerate(records, start=1):
            raw = json.dumps(record, ensure_ascii=False)
            line = parse_line(json.loads(raw), f"{path}, record {number}", str(number))
            if line.key in keys:
                raise BadInput(f"{line.where}: key {line.key!r} was already given")
            keys.add(line.key)
            handle.write(raw + "\n")
    return len(keys)


def to_records(source: Source) -> Iterator[dict[str, Any]]:
    """The lines of any source as JSON objects.

    Texts that follow one another with keys K#0, K#1, .. over the same pictures are one line.

    Pictures are named, not described: boxes and features are the region shards' to keep.
    """
    held: list[Sample] = []
    for number in range(len(source)):
        sample = source[number]
        if held and not _continues(held, sample):
            yield _record(held)
            held = []
        held.append(sample)
    if held:
        yield _record(held)


def _continues(held: list[Sample], sample: Sample) -> bool:
    first = held[0]
    stem = first.key.removesuffix("#0")
    if stem == first.key or sample.key != f"{stem}#{len(held)}":
        return False
    same = all(getattr(first, name) == getattr(sample, name) for name in ("false_texts", "answers"))
    return same and [(x.name, x.tags) for x in first.pictures] == [(x.name, x.tags) for x in sample.pictures]


def _record(held: list[Sample]) -> dict[str, Any]:
    first = held[0]
    names = [x.name for x in first.pictures]
    record: dict[str, Any] = {
        "key": first.key.removesuffix("#0"),
        "image": names[0] if len(names) == 1 else names,
        "captions": [{"text": x.texts[0], "language": x.language} for x in held],
    }
    links = [[number, x.start, x.end, x.region, x.picture] for number, sample in enumerate(held) for x in sample.links]
    record |= {"links": links} if links else {}
    tags = [list(x.tags) for x in first.pictures]
    record |= {"tags": tags[0] if len(tags) == 1 else tags} if any(tags) else {}
    record |= {"answers": [list(x) for x in first.answers]} if first.answers else {}
    return record | ({"false_captions": list(first.false_texts)} if first.false_texts else {})
