"""Runs a region extractor over a data folder once and writes region shards, which is what training reads.

A few threads decode pictures ahead of the network. Batches are cut by a picture's number, not by what is left to do, so a run that was killed and
started again writes the same shards as one that was not. Of several processes each takes every n-th batch into a folder of its own, `part-0`, `part-1`, ..;
the first one makes one data set of them in the end, or at the next start.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from os.path import relpath
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from safetensors import safe_open

from intarsia.batch import Picture
from intarsia.boxes import iou
from intarsia.data.decode import decode_image, image_size
from intarsia.data.formats.b2t2 import B2T2Examples, b2t2_files, is_b2t2
from intarsia.data.formats.columns import SUFFIXES as TABLES
from intarsia.data.formats.fashiongen import FILE as FASHIONGEN
from intarsia.data.formats.fashiongen import FashionGen
from intarsia.data.formats.files import find_files, is_file, is_remote, join, write_whole
from intarsia.data.formats.index import LineSource, OnError
from intarsia.data.formats.pairs import LINES, PairsFolder
from intarsia.data.formats.picture_folder import PictureFolder
from intarsia.data.formats.picture_table import PictureTable, is_picture_table
from intarsia.data.formats.shard_files import ShardIndex
from intarsia.data.formats.shards import ShardWriter
from intarsia.data.formats.table import TableSource, is_table_folder
from intarsia.data.formats.tar import TarSource
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.features.extractor import WHOLE, Extractor, Found

Array = NDArray[Any]
T = TypeVar("T")
Boxes = Literal["found", "given"]
SKIPPED = "skipped.txt"
AHEAD = 3
"""Batches decoded before they are needed."""
WINDOW = 64
"""Batches whose pictures are sorted by shape at once, for an extractor that runs pictures of one shape together."""
PART = "part-"
SAME = 0.5
"""A gold link moves to the region that overlaps its box most, if by at least this (IoU)."""


@dataclass(frozen=True)
class Report:
    """What an extraction did."""

    pictures: int
    """Pictures stored now, those of earlier runs included."""
    resumed: int
    """Pictures that earlier runs had stored."""
    regions: int
    """Regions this run made."""
    skipped: tuple[str, ...]
    """One message for every picture or line that could not be used; also in `skipped.txt`."""
    lines_left_out: int
    """Lines of captions not written because a picture of theirs has no regions."""
    links_lost: int
    """Gold links whose box no region matches."""
    seconds: float


class Ranks(Protocol):
    """The processes of a run, seen from one of them; `train.parallel.World` is one."""

    @property
    def rank(self) -> int:
        """Number of this process."""

    @property
    def size(self) -> int:
        """How many there are."""

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in order of rank. All must call it."""

    def on_first(self, work: Callable[[], T]) -> T:
        """Does something in the first process only and gives its result, or its BadInput, to all. All must call it."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def gather(self, value: T) -> list[T]:
        """Its own value."""
        return [value]

    def on_first(self, work: Callable[[], T]) -> T:
        """Does it."""
        return work()


def extract(
    source: str | Path,
    out: str | Path,
    extractor: Extractor,
    batch: int = 8,
    on_error: OnError = "stop",
    boxes: Boxes = "found",
    workers: int = 2,
    pictures_per_shard: int = 256,
    show: bool = True,
    ranks: Ranks | None = None,
) -> Report:
    """Extracts the regions of all pictures of a data set; run again after a kill, it goes on where whole shards end, with as many processes as you like.

    Args:
        source: a folder with `pairs.jsonl`, tars, tables, or nothing but pictures (in folders or not); local or remote ("s3://bucket/photos").
        out: folder of the shards.
        extractor: what finds and describes regions.
        batch: pictures at once.
        on_error: "stop" at the first picture or line that cannot be used, or "skip" it and report it.
        boxes: "found" by the extractor, or those "given" by the lines.
        workers: threads that decode.
        pictures_per_shard: pictures a file; what a kill may cost.
        show: draws a progress bar on standard error.
        ranks: the processes that share the work; all call this, with the same arguments, and get the same report.

    Raises:
        BadInput: no pictures, one that cannot be used ("stop"), no boxes ("given"), or `out` was begun with another extractor or other settings.
    """
    began = time.monotonic()
    if boxes not in ("found", "given") or on_error not in ("stop", "skip"):
        raise BadInput(f"extract: boxes {boxes!r} (found or given), on_error {on_error!r} (stop or skip)")
    out, ranks, pictures = Path(out), ranks or Alone(), _open(source, on_error)
    if pictures.picture_count == 0:
        raise BadInput(f"{source}: no picture in it")
    target = _Target(out, extractor.provenance, _images(pictures, out), pictures_per_shard, boxes)
    done = ranks.on_first(target.whole)
    writer = target.writer(out if ranks.size == 1 else out / f"{PART}{ranks.rank}")
    mine = _store(pictures, writer, extractor, (batch, workers, boxes), on_error, show, done, ranks)
    if ranks.size > 1:
        writer.close()
    shares = ranks.gather(mine)
    skipped = [*pictures.skipped, *(x for share in shares for x in share[0])]
    stored, regions = sum(x[1] for x in shares), sum(x[2] for x in shares)
    if not done and not stored:
        raise BadInput(f"{source}: none of its {pictures.picture_count} pictures can be used; the first: {skipped[0]}")
    lines = _Lines(pictures, out, boxes) if isinstance(pictures, LineSource) else None
    left_out, links_lost = ranks.on_first(
        partial(target.finish, writer if ranks.size == 1 else None, lines, skipped, on_error)
    )
    return Report(
        pictures=len(done) + stored,
        resumed=len(done),
        regions=regions,
        skipped=tuple(skipped),
        lines_left_out=left_out,
        links_lost=links_lost,
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True)
class _Target:
    """The folder of shards that all processes write for."""

    out: Path
    provenance: Provenance
    images: str
    """Where the pictures lie, relative to the folder, or an address; "" = they are in tars or tables."""
    pictures_per_shard: int
    boxes: Boxes

    def writer(self, folder: Path) -> ShardWriter:
        """A writer of shards into the folder, or into a part of it."""
        return ShardWriter(folder, self.provenance, self.images, self.pictures_per_shard, self.boxes)

    def whole(self) -> frozenset[str]:
        """Names of the pictures that are stored, once the shards of all parts have been taken over."""
        writer = self.writer(self.out)
        for part in sorted(self.out.glob(f"{PART}*")):
            writer.take_over(part)
        return writer.done()

    def finish(
        self, writer: ShardWriter | None, lines: _Lines | None, skipped: Sequence[str], on_error: OnError
    ) -> tuple[int, int]:
        """Takes over all parts if there is no one writer, writes captions and what was skipped; gives lines left out and links lost."""
        if writer is None:
            self.whole()
            writer = self.writer(self.out)
        left_out = writer.finish(iter(lines) if lines else (), on_missing=on_error)
        note(self.out / SKIPPED, skipped)
        return left_out, lines.lost if lines else 0


def _images(pictures: Pictures, out: Path) -> str:
    if not isinstance(pictures, PairsFolder | PictureFolder):
        return ""
    return str(pictures.root) if is_remote(pictures.root) else relpath(pictures.root, out)


def _store(
    pictures: Pictures,
    writer: ShardWriter,
    extractor: Extractor,
    how: tuple[int, int, Boxes],
    on_error: OnError,
    show: bool,
    done: frozenset[str],
    ranks: Ranks,
) -> tuple[list[str], int, int]:
    """Hands the regions of this process's pictures still to do to the writer: messages of those left out, pictures, regions."""
    batch, workers, boxes = how
    skipped: list[str] = []
    stored = regions = 0
    batches = _batches(pictures, batch, extractor.by_shape)
    mine = (numbers for place, numbers in enumerate(batches) if place % ranks.size == ranks.rank)
    with Bar("extract", (pictures.picture_count - len(done)) // ranks.size, show and ranks.rank == 0) as bar:
        for members, failed in _decoded(pictures, done, mine, workers, boxes):
            made = [*failed, *_described(extractor, writer, members, boxes)]
            for picture in made:
                if isinstance(picture, BadInput):
                    if on_error == "stop":
                        raise picture
                    skipped.append(str(picture))
                elif picture.name not in done:
                    writer.add(picture)
                    regions += len(picture.boxes)
                    stored += 1
            bar.show(stored + len(skipped))
    return skipped, stored, regions


# ------------------------------------------------------------------------------------------------------------------------------ what to read


Pictures = PairsFolder | TarSource | TableSource | FashionGen | PictureTable | B2T2Examples | PictureFolder


def _open(source: Path | str, on_error: OnError) -> Pictures:
    if is_remote(source):
        return _open_remote(str(source), on_error)
    source = Path(source)
    if not source.exists():
        raise BadInput(f"{source}: no such file or folder")
    if source.suffix == ".tar" or (source.is_dir() and not (source / LINES).exists() and any(source.glob("*.tar"))):
        return TarSource(source, on_error=on_error)
    if source.suffix in TABLES or is_table_folder(source):
        return TableSource(source, on_error=on_error)
    if FASHIONGEN.fullmatch(source.name):
        return FashionGen(source, on_error=on_error)
    if is_picture_table(source):
        return PictureTable(source, on_error=on_error)
    if b2t2_files(source) if source.is_dir() else is_b2t2(source):
        return B2T2Examples(source, on_error=on_error)
    if source.is_file() or (source / LINES).exists():
        return PairsFolder(source, on_error=on_error)
    return PictureFolder(source)


def _open_remote(source: str, on_error: OnError) -> Pictures:
    if source.endswith(".jsonl") or is_file(join(source, LINES)):
        return PairsFolder(source, on_error=on_error)
    if source.endswith(".tar") or find_files(source, (".tar",)):
        return TarSource(source, on_error=on_error)
    if source.endswith(TABLES) or find_files(source, TABLES):
        return TableSource(source, on_error=on_error)
    return PictureFolder(source)


Member = tuple[Picture, Array]


def _batches(pictures: Pictures, batch: int, by_shape: bool) -> Iterator[Sequence[int]]:
    """Numbers of pictures, so many at once; `by_shape`: sorted by width / height within a window, so that most batches hold one shape."""

    def shape(number: int) -> float:
        try:
            wide, high = image_size(pictures.picture(number).path)
        except BadInput:
            return 0.0  # whoever decodes it will say what is wrong
        return wide / high

    window = batch * (WINDOW if by_shape else 1)
    for start in range(0, pictures.picture_count, window):
        numbers = range(start, min(start + window, pictures.picture_count))
        ordered = sorted(numbers, key=shape) if by_shape else numbers
        yield from (ordered[i : i + batch] for i in range(0, len(ordered), batch))


def _decoded(
    pictures: Pictures,
    done: frozenset[str],
    batches: Iterator[Sequence[int]],
    workers: int,
    boxes: Boxes,
) -> Iterator[tuple[list[Member], list[BadInput]]]:
    """The batches with a picture still to do, decoded ahead by threads: (picture, pixels) of the good ones, errors of the others."""

    def load(number: int) -> Member | BadInput:
        try:
            picture = pictures.picture(number)
            if boxes == "given" and len(picture.boxes) == 0:
                raise BadInput(f"picture {picture.name}: no boxes are given for it")
            if picture.pixels is not None:
                return picture, np.asarray(picture.pixels())
            return picture, decode_image(picture.path, picture.path or picture.name)
        except BadInput as error:
            return error

    def ready(jobs: Sequence[Future[Member | BadInput]]) -> tuple[list[Member], list[BadInput]]:
        results = [job.result() for job in jobs]
        return [x for x in results if not isinstance(x, BadInput)], [x for x in results if isinstance(x, BadInput)]

    def finished(number: int) -> bool:
        try:
            return pictures.picture(number).name in done
        except BadInput:
            return False

    waiting: deque[list[Future[Member | BadInput]]] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for numbers in batches:
                if done and all(finished(x) for x in numbers):
                    continue
                waiting.append([pool.submit(load, x) for x in numbers])
                if len(waiting) > AHEAD:
                    yield ready(waiting.popleft())
            while waiting:
                yield ready(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------------------------------------------------------- what to write


def _described(
    extractor: Extractor, writer: ShardWriter, members: Sequence[Member], boxes: Boxes
) -> list[Picture | BadInput]:
    """The pictures of a batch with their regions, as they are stored; of one that the extractor or the writer cannot use, what is wrong with it."""
    pixels = [x for _, x in members]
    try:
        found = extractor(pixels) if boxes == "found" else extractor.features_at(pixels, _given(extractor, members))
        return [writer.ready(_filled(*member, regions)) for member, regions in zip(members, found, strict=True)]
    except BadInput as error:
        if len(members) == 1:
            name = members[0][0].name
            return [error if name in str(error) else BadInput(f"picture {name}: {error}")]
    return [x for member in members for x in _described(extractor, writer, [member], boxes)]


def _given(extractor: Extractor, members: Sequence[Member]) -> list[Array]:
    """The boxes of the lines, for extractors that want it with the whole picture as one more."""
    given = [x.boxes for x, _ in members]
    if not extractor.adds_whole:
        return given
    return [x if (x == WHOLE).all(1).any() else np.concatenate([x, WHOLE]) for x in given]


def _filled(picture: Picture, pixels: Array, found: Found) -> Picture:
    high, wide = pixels.shape[:2]
    return Picture(
        picture.name,
        found.features,
        found.boxes,
        wide,
        high,
        found.scores,
        found.probs,
        found.labels,
        picture.path,
        attributes=found.attributes,
        attribute_scores=found.attribute_scores,
    )


class _Lines:
    """The caption lines of a data set, made to speak of the stored regions: gold links follow their boxes."""

    def __init__(self, source: LineSource, out: Path, boxes: Boxes) -> None:
        self.source, self.out, self.boxes = source, out, boxes
        self.lost = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        index = ShardIndex.read(self.out)
        places = {}
        for shard in index.shards:
            names = _names(self.out / f"{shard.name}.json")
            places.update({name: (shard.name, row) for row, name in enumerate(names)})
        load = lru_cache(4)(lambda name: _stored_boxes(self.out / f"{name}.safetensors"))
        for number, record in enumerate(self.source.records()):
            line = self.source.line(number)
            if not line.links and self.boxes == "found":
                yield _plain(record, [])
                continue
            if not all(x.name in places for x in line.entries):
                yield record  # the writer says what is missing
                continue
            kept = []
            for slot, entry in enumerate(line.entries):
                name, row = places[entry.name]
                cu, flat = load(name)
                kept.append(flat[cu[row] : cu[row + 1]])
                gold = self.source.picture_of(line, slot, number).boxes
                stored, more = kept[-1][: len(gold)], kept[-1][len(gold) :]
                if self.boxes == "given" and (
                    stored.shape != gold.shape or not np.allclose(gold, stored, atol=1e-5) or (more != WHOLE).any()
                ):
                    raise BadInput(f"{line.where}: gives other boxes for picture {entry.name} than a line before it")
            yield (
                {k: v for k, v in record.items() if k != "regions"}
                if self.boxes == "given"
                else self._moved(number, record, kept)
            )

    def _moved(self, number: int, record: Mapping[str, Any], stored: Sequence[Array]) -> dict[str, Any]:
        line = self.source.line(number)
        gold = [self.source.picture_of(line, slot, number).boxes for slot in range(len(line.entries))]
        links = []
        for link in line.links:
            overlap = iou(
                torch.from_numpy(gold[link.picture][link.region : link.region + 1]),
                torch.from_numpy(stored[link.picture]),
            )[0]
            if len(overlap) and float(overlap.max()) >= SAME:
                links.append([link.text, link.start, link.end, int(overlap.argmax()), link.picture])
            else:
                self.lost += 1
        return _plain(record, links)


def _plain(record: Mapping[str, Any], links: list[list[int]]) -> dict[str, Any]:
    """A line without what it says of boxes; its labels become tags, as they are to readers of the line."""
    out = {k: v for k, v in record.items() if k not in ("boxes", "labels", "regions", "width", "height", "links")}
    if "labels" in record and "tags" not in record:
        out["tags"] = record["labels"]
    return out | ({"links": links} if links else {})


def _names(path: Path) -> list[str]:
    names: list[str] = json.loads(path.read_bytes())["names"]
    return names


def _stored_boxes(path: Path) -> tuple[Array, Array]:
    with safe_open(path, framework="numpy") as arrays:
        return arrays.get_tensor("cu_regions"), arrays.get_tensor("boxes")


def note(path: Path, skipped: Sequence[str]) -> None:
    """Writes what was skipped, a line each; no file when nothing was."""
    if skipped:
        with write_whole(path) as temporary:
            temporary.write_text("".join(f"{x}\n" for x in skipped), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------------------------- progress bar


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.3g} {task.fields['unit']}/s")


class Bar:
    """Pictures (or other things) done of so many, with rate and time left, on standard error."""

    def __init__(self, what: str, total: int, show: bool = True, unit: str = "pictures") -> None:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), disable=not show)
        self.task = self.progress.add_task("", total=total, unit=unit)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def show(self, count: int) -> None:
        """Says how many are done."""
        self.progress.update(self.task, completed=count)
