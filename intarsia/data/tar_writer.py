"""Any data set of lines with its pictures as tar shards: what streams from a disk or a store of objects in order."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from intarsia.batch import Picture
from intarsia.data.decode import read_bytes
from intarsia.data.formats.index import LineSource, OnError
from intarsia.data.formats.tar import members_of, write_tar
from intarsia.errors import BadInput

LINES = 1000
"""Lines of a tar."""
MAGIC = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"GIF8", "gif"), (b"BM", "bmp"))
Made = tuple[str, dict[str, Any], list[tuple[str, bytes]], list[Picture]]


@dataclass(frozen=True)
class WrittenTars:
    """What `write_tars` did."""

    tars: int
    samples: int
    """In tars that this run wrote."""
    before: int
    """In tars that were there."""
    problems: tuple[str, ...]
    """Lines left out, one message each."""

    def lines_of_text(self) -> list[str]:
        """The report."""
        text = f"{self.samples:,} samples written into {self.tars:,} tars, {self.before:,} were there, {len(self.problems):,} left out"
        return [text, *self.problems[:20]]


def write_tars(source: LineSource, target: Path, on_error: OnError = "stop") -> WrittenTars:
    """Writes `TARGET/00000.tar`, ..: a line a sample, with the bytes of its pictures, its fields and, where it has them, its regions.

    Tars that are there are left as they are, each is whole or absent, and the same source gives the same bytes: a killed run goes on.

    Args:
        source: the lines.
        target: the folder.
        on_error: "stop" raises at the first line whose pictures are not at hand; "skip" leaves it out.

    Raises:
        BadInput: a line cannot be used, or none can.
    """
    problems: list[str] = []
    total = len(source.index.lines)
    tars = samples = before = 0
    for number, start in enumerate(range(0, total, LINES)):
        path = target / f"{number:05d}.tar"
        if path.exists():
            before += len(members_of(path)[0].keys)
            continue
        written = write_tar(path, _made(source, range(start, min(start + LINES, total)), on_error, problems))
        if not written:
            path.unlink()
        samples, tars = samples + written, tars + bool(written)
    if not samples and not before:
        raise BadInput(f"{target}: no line can be used; the first: {problems[0] if problems else 'there is none'}")
    return WrittenTars(tars, samples, before, tuple(problems))


def _made(source: LineSource, numbers: range, on_error: OnError, problems: list[str]) -> Iterator[Made]:
    for number in numbers:
        try:
            yield _sample(source, number)
        except BadInput as error:
            if on_error == "stop":
                raise
            problems.append(str(error))


def _sample(source: LineSource, number: int) -> Made:
    line = source.line(number)
    record = source.read(int(source.index.lines[number]))[0]
    kept = {x: y for x, y in record.items() if not x.startswith(".") and x not in ("key", "image", "regions")}
    pictures = [source.picture_of(line, slot, number) for slot in range(len(line.entries))]
    images = [image_bytes(picture, line.where) for picture in pictures]
    regions = [x for x in pictures if x.features.shape[-1]]
    # a dot in a key would begin the member's kind
    return line.key.replace(".", "_"), kept, images, regions


def image_bytes(picture: Picture, where: str) -> tuple[str, bytes]:
    """The kind and the bytes of a picture's file; pixels without a file become a PNG.

    Raises:
        BadInput: they are not at hand, or of another kind than pictures here.
    """
    if picture.pixels is not None and not picture.path:
        buffer = io.BytesIO()
        Image.fromarray(picture.pixels()).save(buffer, "PNG")
        return "png", buffer.getvalue()
    if not picture.path:
        raise BadInput(f"{where}: the pixels of picture {picture.name} are not at hand")
    data = read_bytes(picture.path)
    kind = next((suffix for magic, suffix in MAGIC if data.startswith(magic)), None)
    if kind is None:
        raise BadInput(f"{where}: picture {picture.name} is neither JPEG, PNG, WebP, GIF nor BMP")
    return kind, data
