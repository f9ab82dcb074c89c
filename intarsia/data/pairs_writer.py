"""Any data set of lines as `pairs.jsonl`: what people edit by hand, and what everything here takes.

Pictures that are files of this machine stay where they are; those inside tars, tables and records are written to `images`, stored regions to `regions`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intarsia.batch import Picture
from intarsia.data.decode import ADDRESS
from intarsia.data.formats.columns import CELL
from intarsia.data.formats.files import is_remote, write_whole
from intarsia.data.formats.index import LineSource, OnError
from intarsia.data.formats.pairs import write_pairs
from intarsia.data.formats.regions import encode_regions
from intarsia.data.tar_writer import image_bytes
from intarsia.errors import BadInput


@dataclass(frozen=True)
class WrittenPairs:
    """What `write_folder` did."""

    lines: int
    files: int
    """Pictures and region files that were written."""
    problems: tuple[str, ...]
    """Lines left out, one message each."""

    def lines_of_text(self) -> list[str]:
        """The report."""
        text = f"{self.lines:,} lines written, {self.files:,} files beside them, {len(self.problems):,} left out"
        return [text, *self.problems[:20]]


class _Folder:
    """The files of the folder that is written."""

    def __init__(self, target: Path) -> None:
        self.target, self.files = target, 0
        self._taken: dict[str, str] = {}
        """File -> the picture it is of."""

    def image(self, picture: Picture, where: str) -> str:
        """What a line says of a picture; its bytes are written unless it is a file."""
        path = picture.path
        if path and not CELL.fullmatch(path) and not ADDRESS.fullmatch(path):
            return path if is_remote(path) else os.path.relpath(path, self.target)
        kind, data = image_bytes(picture, where)
        return self._put("images", picture.name, kind, data)

    def regions(self, picture: Picture) -> str:
        """What a line says of a picture's regions, which are written."""
        return self._put("regions", picture.name, "npz", encode_regions(picture, "npz"))

    def _put(self, folder: str, name: str, kind: str, data: bytes) -> str:
        plain = re.sub(r"[^\w-]+", "_", re.sub(r"\.\w+$", "", name)).strip("_") or "picture"
        file, number = f"{folder}/{plain}.{kind}", 1
        while self._taken.setdefault(file, name) != name:
            file, number = f"{folder}/{plain}-{number}.{kind}", number + 1
        if not (self.target / file).exists():
            with write_whole(self.target / file) as temporary:
                temporary.write_bytes(data)
            self.files += 1
        return file


def write_folder(source: LineSource, target: Path, on_error: OnError = "stop") -> WrittenPairs:
    """Writes `TARGET/pairs.jsonl`, whole or not at all, and the files it needs; files that are there are left as they are, so a killed run goes on.

    Args:
        source: the lines.
        target: the folder.
        on_error: "stop" raises at the first line whose pictures are not at hand; "skip" leaves it out.

    Raises:
        BadInput: a line cannot be used, or none can.
    """
    problems: list[str] = []
    folder = _Folder(target)

    def records() -> Iterator[dict[str, Any]]:
        for number in range(len(source.index.lines)):
            try:
                yield _record(source, number, folder)
            except BadInput as error:
                if on_error == "stop":
                    raise
                problems.append(str(error))
        if len(problems) == len(source.index.lines):
            raise BadInput(f"{target}: no line can be used; the first: {problems[0]}")

    count = write_pairs(target, records())
    return WrittenPairs(count, folder.files, tuple(problems))


def _record(source: LineSource, number: int, folder: _Folder) -> dict[str, Any]:
    line = source.line(number)
    record, _, key = source.read(int(source.index.lines[number]))
    kept = {x: y for x, y in record.items() if not x.startswith(".") and x not in ("image", "regions")}
    pictures = [source.picture_of(line, slot, number) for slot in range(len(line.entries))]
    stored = [bool(x.features.shape[-1]) for x in pictures]
    bare = all(stored) and not any(x.path or x.pixels is not None for x in pictures)
    images = [
        entry.name if bare else folder.image(x, line.where) for entry, x in zip(line.entries, pictures, strict=True)
    ]
    found: dict[str, Any] = {"key": key, **kept, "image": images if len(images) > 1 else images[0]}
    if all(stored):
        regions = [folder.regions(x) for x in pictures]
        sizes: list[dict[str, Any]] = [
            {"width": x.width, "height": x.height, "regions": file} for x, file in zip(pictures, regions, strict=True)
        ]
        found.pop("boxes", None)
        found |= sizes[0] if len(sizes) == 1 else {name: [x[name] for x in sizes] for name in sizes[0]}
    return found
