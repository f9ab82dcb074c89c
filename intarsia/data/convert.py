"""Region features from any layout into any other, by way of canonical pictures: `intarsia data convert`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intarsia.batch import Picture
from intarsia.boxes import iou
from intarsia.data.formats.index import LineSource, OnError
from intarsia.data.formats.names import by_key, picture_key
from intarsia.data.formats.oscar_tsv import write_oscar_texts
from intarsia.data.formats.shards import ShardWriter, check_fractions
from intarsia.data.formats.store import RegionStore
from intarsia.data.line_writers import BriVLWriter, PictureFiles, VLBERTWriter, write_lines
from intarsia.data.opening import open_source
from intarsia.data.source import Provenance
from intarsia.data.store_writers import LmdbWriter, StoreWriter, TsvWriter, VoltaWriter
from intarsia.data.stores import ShardStore, open_store
from intarsia.errors import BadInput

ENOUGH = 0.5
"""Overlap from which a region of the source is what a link to another box means."""
LAYOUTS = ("shards", "butd", "lxmert", "oscar", "uniter", "uniter-npz", "vilbert", "volta-h5", "vl-bert", "brivl")
WITH_CAPTIONS = ("oscar", "vl-bert", "brivl")
"""Layouts beside shards that keep captions."""


@dataclass(frozen=True)
class Converted:
    """What `convert` did."""

    written: int
    """Pictures written by this run."""
    before: int
    """Pictures that an earlier run had written."""
    lines: int | None
    """Lines of captions kept; None where the layout has no captions."""
    lines_left_out: int
    """Lines whose picture has no regions."""
    problems: tuple[str, ...]
    """Pictures left out, one message each."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """Fields of the source that are not kept: of how many pictures."""
    links_left_out: int = 0
    """Links of captions to boxes that no region of the source overlaps by half."""

    def lines_of_text(self) -> list[str]:
        """The report."""
        text = f"{self.written:,} pictures written, {self.before:,} were there, {len(self.problems):,} left out"
        if self.lines is not None:
            text += f"; {self.lines:,} lines of captions, {self.lines_left_out:,} without regions left out"
            text += f"; {self.links_left_out:,} links without a region left out" if self.links_left_out else ""
        unused = ", ".join(f"{name} {count:,}" for name, count in self.unused.items())
        return [text, *([f"fields not kept: {unused}"] if unused else []), *self.problems[:20]]


def convert(
    source: str | Path,
    target: Path,
    layout: str,
    *,
    extractor: str = "",
    pairs: str = "",
    sizes: Path | None = None,
    boxes: str = "xyxy",
    width: int = 2048,
    on_error: OnError = "stop",
) -> Converted:
    """Converts; goes on where a killed run stopped (volta-h5 starts again).

    Args:
        source: region features of any layout that `open_store` knows.
        target: what to write.
        layout: one of LAYOUTS.
        extractor: what made the features; for shards, unless the source says so itself.
        pairs: captions for shards and Oscar's, any data set with pictures of the same names ("COCO_val2014_000000000042.jpg" and 42 are the
            same); without them the source's own.
        sizes: JSON object {picture: [width, height]} in pixels, for sources that do not say it.
        boxes: "xyxy" or "xywh", where the source's layout does not settle it; "none" takes features without boxes as whole pictures.
        width: F of Oscar's features.
        on_error: "stop" raises at the first picture that cannot be used; "skip" leaves it out.

    Raises:
        BadInput: no such source or layout, the target is there or was begun with other pictures, or a picture cannot be used.
    """
    known = read_sizes(sizes)
    store = open_store(source, boxes=boxes, width=width, sizes=known)
    if store is None:
        raise BadInput(f"{source}: no region features of a known layout")
    if layout not in LAYOUTS:
        raise BadInput(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    if sizes is not None and not store.true_fractions:
        raise BadInput(f"{source}: {store.kind} gives boxes as fractions of an estimated size; sizes cannot be put in")
    pictures = _Pictures(store, known, on_error)
    if layout == "shards":
        return _to_shards(store, pictures, target, extractor, pairs)
    if extractor or (pairs and layout not in WITH_CAPTIONS):
        raise BadInput(f"layout {layout}: keeps no {'provenance' if extractor else 'captions'}; shards do")
    with _writer(target, layout) as writer:
        named = {f"{x}.npz": x for x in store.names} if layout.startswith("uniter") else {}
        before = {named.get(x, x) for x in writer.done}
        strange = sorted(before - set(store.names))
        if strange:
            raise BadInput(f"{writer.partial}: begun with other pictures ({strange[0]}); remove it to start again")
        for picture in pictures.but(before):
            pictures.guarded(writer.add, picture)
        if not pictures.written and not before:
            raise BadInput(
                f"{source}: no picture can be used; the first: {pictures.problems[0] if pictures.problems else 'there is none'}"
            )
        writer.finish()
    if layout in WITH_CAPTIONS:
        records = _records(store, pairs, Counter())
        if isinstance(writer, PictureFiles):
            lines, gone = write_lines(writer, records)
        else:
            lines, gone = write_oscar_texts(target, records)
        told = tuple(pictures.problems), dict(store.left)
        return Converted(pictures.written, len(before), lines, gone, *told)
    return Converted(pictures.written, len(before), None, 0, tuple(pictures.problems), dict(store.left))


def _writer(target: Path, layout: str) -> StoreWriter:
    if layout in ("butd", "lxmert", "oscar"):
        return TsvWriter(target, layout)
    own: dict[str, Callable[[Path], StoreWriter]] = {
        "volta-h5": VoltaWriter,
        "vl-bert": VLBERTWriter,
        "brivl": BriVLWriter,
    }
    return own[layout](target) if layout in own else LmdbWriter(target, layout)


class _Pictures:
    """The pictures of a store, their sizes filled in; counts."""

    def __init__(self, store: RegionStore, sizes: dict[str, tuple[int, int]], on_error: OnError) -> None:
        self.store, self.sizes, self.on_error = store, sizes, on_error
        self.written = 0
        self.problems: list[str] = []

    def but(self, done: Iterable[str]) -> Iterator[Picture]:
        """Those not done, in order."""
        known = set(done)
        for number, name in enumerate(self.store.names):
            if name in known:
                continue
            try:
                picture = self.store.picture(number)
                check_fractions(picture.boxes, self.store.where(number))
            except BadInput as error:
                self._note(error)
                continue
            size = self.sizes.get(picture_key(name))
            yield replace(picture, width=size[0], height=size[1]) if size and not picture.width else picture

    def guarded(self, add: Any, picture: Picture) -> None:
        """Gives a picture to a writer."""
        try:
            add(picture)
            self.written += 1
        except BadInput as error:
            self._note(error)

    def _note(self, error: BadInput) -> None:
        if self.on_error == "stop":
            raise error
        self.problems.append(str(error))


def read_sizes(path: Path | None) -> dict[str, tuple[int, int]]:
    """Pixels wide and high by `picture_key`, from a JSON object {picture: [width, height]}; empty without a file.

    Raises:
        BadInput: not such a file.
    """
    if path is None:
        return {}
    try:
        return {picture_key(name): (int(x[0]), int(x[1])) for name, x in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise BadInput(f"{path}: not a JSON object of [width, height] by picture: {error}") from None


def _to_shards(store: RegionStore, pictures: _Pictures, target: Path, extractor: str, pairs: str) -> Converted:
    first = next(pictures.but(()), None)
    if first is None:
        raise BadInput(
            f"{store.shown}: no picture can be used; the first: {pictures.problems[0] if pictures.problems else 'there is none'}"
        )
    pictures.problems.clear()
    made = store.provenance
    if made is None:
        if not extractor:
            raise BadInput(
                f"{store.shown}: does not say what made its features; say it: --extractor butd, vinvl or another name"
            )
        settings = {"converted from": store.kind}
        made = Provenance(extractor, first.features.shape[1], settings=settings)
    elif extractor and extractor != made.extractor:
        raise BadInput(f"{store.shown}: its features are from {made.extractor}, not {extractor}")
    lost: Counter[str] = Counter()
    records = _records(store, pairs, lost)
    head = next(records, None)
    if head is None:
        raise BadInput(f"{pairs or store.shown}: no captions; give --pairs, a data set that names these pictures")
    writer = ShardWriter(target, made)
    before = writer.done()
    for picture in pictures.but(before):
        pictures.guarded(writer.add, picture)
    count = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal count
        places = {name: i for i, name in enumerate(store.names)}
        for record in chain([head], records):
            count += 1
            yield _tagged(record, store, places)

    left_out = writer.finish(counted(), "skip")
    told = tuple(pictures.problems), dict(store.left)
    return Converted(pictures.written, len(before), count - left_out, left_out, *told, lost["links"])


def _tagged(record: dict[str, Any], store: RegionStore, places: Mapping[str, int]) -> dict[str, Any]:
    """A line with the tags that the store has of its pictures, unless it has its own."""
    if record.keys() & {"tags", "labels"}:
        return record
    names = record["image"] if isinstance(record["image"], list) else [record["image"]]
    tags = [list(store.tags(places[x])) if x in places else [] for x in names]
    return record | ({"tags": tags if isinstance(record["image"], list) else tags[0]} if any(tags) else {})


def _records(store: RegionStore, pairs: str, lost: Counter[str]) -> Iterator[dict[str, Any]]:
    if not pairs:
        if isinstance(store, ShardStore):
            yield from store.source.records()
            return
        for number, name in enumerate(store.names):
            lines = store.said(number)
            for i, said in enumerate(lines):
                yield {"key": f"{number}.{i}" if len(lines) > 1 else str(number), "image": name, **said}
        return
    source = open_source(pairs)
    if not isinstance(source, LineSource):
        raise BadInput(f"{pairs}: its captions cannot be taken line by line")
    known = by_key(store.names, store.shown)
    places = {name: i for i, name in enumerate(store.names)}
    for number, record in enumerate(source.records()):
        kept = {x: y for x, y in record.items() if x not in ("boxes", "labels", "regions")}
        names = record["image"] if isinstance(record["image"], list) else [record["image"]]
        ours = [known.get(picture_key(x), x) for x in names]
        if record.get("links") and record.keys() & {"boxes", "regions"} and all(x in places for x in ours):
            kept["links"] = _relinked(source, number, [store.picture(places[str(x)]).boxes for x in ours])
            lost["links"] += len(record["links"]) - len(kept["links"])
        yield kept | {"image": ours if isinstance(record["image"], list) else ours[0]}


def _relinked(source: LineSource, number: int, boxes: list[Any]) -> list[list[int]]:
    """The links of a line to its own boxes, as links to those of the store: the one that overlaps most, if by half.

    Args:
        source: the lines.
        number: which one.
        boxes: of each of its pictures, (R, 4) in the store.
    """
    line = source.line(number)
    theirs = [source.picture_of(line, slot, number).boxes for slot in range(len(line.entries))]
    found = []
    for link in line.links:
        mine = torch.from_numpy(np.array(boxes[link.picture], np.float64))
        fits = iou(torch.from_numpy(np.array(theirs[link.picture][link.region], np.float64))[None], mine)[0]
        if len(fits) and float(fits.max()) >= ENOUGH:
            found.append([link.text, link.start, link.end, int(fits.argmax()), link.picture])
    return found
