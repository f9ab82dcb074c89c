"""Items of a benchmark as its annotation file says them, and the same with their pictures: a data source that the training loop reads."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from intarsia.batch import Array, Covering, Film, Link, Meant, Picture, Sample
from intarsia.data.source import Provenance, Source
from intarsia.data.video import clips_within
from intarsia.errors import BadInput
from intarsia.layout import whole_feature
from intarsia.tasks import overlaps

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Mention:
    """The characters start..end of a text name an object of the first picture."""

    text: int
    start: int
    end: int
    object: int
    """Its number in `Item.objects`."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """The characters start..end of the first text mean these boxes."""

    start: int
    end: int
    boxes: tuple[Box, ...]
    """xyxy in pixels."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item, before its pictures are found."""

    key: str
    texts: tuple[str, ...]
    pictures: tuple[str, ...]
    """File names, or ids."""
    answers: tuple[tuple[str, float], ...] = ()
    also: tuple[str, ...] = ()
    language: str = "en"
    objects: tuple[Box, ...] = ()
    """Boxes in pixels of the objects that mentions name; empty = region i is object i."""
    names: tuple[str, ...] = ()
    """What each of them is; empty where nobody says."""
    covers: Callable[[Covering], Array] | None = None
    """As `Picture.covers`, of the objects."""
    mentions: tuple[Mention, ...] = ()
    phrases: tuple[Phrase, ...] = ()
    size: tuple[int, int] = (0, 0)
    """Wide, high in pixels; 0 = the region store says."""
    people: int = 0
    """People among the objects of the items before it."""
    span: tuple[float, float] | None = None
    """Of a video, which is named in place of a picture: seconds it is shown from and to."""


@dataclass(frozen=True)
class Annotations:
    """One split of a benchmark."""

    benchmark: str
    split: str
    items: tuple[Item, ...]
    gold: Mapping[str, Any] = field(default_factory=dict)
    """By item or as the metric takes it; empty where answers are not published."""
    labels: tuple[str, ...] = ()
    """The list of answers that are chosen from, where there is one."""
    candidates: tuple[str, ...] = ()
    """Pictures that are ranked for each text, where they are not just those of the items."""

    def __post_init__(self) -> None:
        if not self.items:
            raise Empty(f"{self.benchmark}: split {self.split!r} has no item")
        if len({x.key for x in self.items}) != len(self.items):
            seen: set[str] = set()
            twice = next(x.key for x in self.items if x.key in seen or seen.add(x.key))  # type: ignore[func-returns-value]
            raise BadInput(f"{self.benchmark}: item {twice} comes twice in split {self.split!r}")


# ------------------------------------------------------------------------------------------------------------------ files


class Missing(BadInput):
    """A file is not there."""


class Empty(BadInput):
    """A split has no item."""


def find_file(root: Path, *names: str) -> Path:
    """The file of one of these names under a folder; the first name that is there, the first place by its path.

    Raises:
        Missing: none is there.
    """
    for name in names:
        if found := sorted(root.rglob(name)):
            return found[0]
    raise Missing(f"{root}: holds no {' nor '.join(names)}")


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{path}: not JSON: {error}") from None


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The objects of a file with one JSON object a line, each with its place for errors.

    Raises:
        BadInput: it cannot be read.
    """
    place = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for place, line in enumerate(file, start=1):
                if line.strip():
                    found = json.loads(line)
                    if not isinstance(found, dict):
                        raise BadInput(f"{path}: line {place}: no object but {line.strip()[:60]!r}")
                    yield f"{path}: line {place}", found
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{path}: line {max(place, 1)}: not JSON: {error}") from None


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a file of comma-separated values, by the names in its first line.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: {error}") from None


def at(entry: Any, name: str, where: str, kind: type = object) -> Any:
    """A field of an entry. Args: entry; its name; where the entry stands; kind, what it must be: list, dict, ..

    Raises:
        BadInput: it is not there, or something else.
    """
    if not isinstance(entry, Mapping) or name not in entry:
        raise BadInput(f"{where}: {str(entry)[:80]} has no field {name!r}")
    if not isinstance(entry[name], kind):
        raise BadInput(f"{where}: {name} is no {kind.__name__} but {str(entry[name])[:60]!r}")
    return entry[name]


def each(entry: Any, name: str, where: str) -> list[dict[str, Any]]:
    """A field that is a list of objects.

    Raises:
        BadInput: it is not there, or something else.
    """
    return objects_of(at(entry, name, where), f"{where}: {name}")


def objects_of(found: Any, where: str) -> list[dict[str, Any]]:
    """A list of objects.

    Raises:
        BadInput: it is something else.
    """
    if not isinstance(found, list):
        raise BadInput(f"{where}: no list but {str(found)[:60]!r}")
    for i, x in enumerate(found):
        if not isinstance(x, dict):
            raise BadInput(f"{where}: entry {i} is no object but {str(x)[:60]!r}")
    return found


def number(entry: Any, name: str, where: str) -> int:
    """A field that is a whole number, or the digits of one.

    Raises:
        BadInput: it is not there, or something else.
    """
    try:
        return int(at(entry, name, where))
    except (TypeError, ValueError):
        raise BadInput(f"{where}: {name} {str(entry[name])[:60]!r} is no number") from None


def of_split(splits: Mapping[str, str], split: str, benchmark: str) -> str:
    """What a split is called in the files.

    Raises:
        BadInput: there is no such split.
    """
    if split not in splits:
        raise BadInput(f"{benchmark}: no split {split!r} (it has {', '.join(splits)})")
    return splits[split]


# --------------------------------------------------------------------------------------------------------------- pictures

_COCO = re.compile(r"(?:COCO_[A-Za-z0-9]+_)?0*(\d+)")


def spellings(name: str) -> tuple[str, ...]:
    """The names under which a picture may be stored: as given, without folders, without ending, and as COCO's bare number."""
    path = PurePosixPath(name.replace("\\", "/"))
    number = _COCO.fullmatch(path.stem)
    return tuple(dict.fromkeys([name, path.name, path.stem, *([number[1]] if number else [])]))


class Pictures:
    """The pictures, or videos, of a source by name, each sample read once. A short spelling that fits several of them finds none.

    Args:
        source: any data set with pictures, or of whole videos; its captions do not count.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.provenance = source, source.provenance
        self.places: dict[str, tuple[int, int]] = {}
        names: dict[str, tuple[int, int]] = {}
        for i in range(len(source)):
            sample = source[i]
            shown = (x.name for x in sample.pictures) if sample.film is None else (sample.film.name,)
            for slot, name in enumerate(shown):
                names.setdefault(name, (i, slot))
        short: dict[str, tuple[int, int] | None] = {}
        for name, place in names.items():
            for x in spellings(name)[1:]:
                short[x] = None if x in short else place
        self.places = {x: place for x, place in short.items() if place is not None} | names

    def find(self, name: str) -> tuple[int, int] | None:
        """Where a picture is; None = it is not there."""
        return next((self.places[x] for x in spellings(name) if x in self.places), None)

    def get(self, place: tuple[int, int]) -> Picture:
        """The picture at a place that `find` gave."""
        return self.source[place[0]].pictures[place[1]]

    def film(self, place: tuple[int, int]) -> Film:
        """The video there."""
        found = self.source[place[0]].film
        assert found is not None, "videos and pictures are not in one source"
        return found


class Annotated:
    """A benchmark's items with their pictures; a `Source`. Items without a picture are left out, counted and named.

    Args:
        annotations: the items.
        pictures: where their pictures are.
        given: where the same pictures are with the regions of annotated boxes, which are put behind the others; None = they are not.
        in_whole: see `Given` of `intarsia.system`.

    Raises:
        BadInput: no item has its pictures, or one has no given regions.
    """

    def __init__(
        self, annotations: Annotations, pictures: Pictures, given: Pictures | None = None, in_whole: bool = True
    ) -> None:
        self.annotations, self.pictures = annotations, pictures
        self.given, self.in_whole = given, in_whole
        self.provenance: Provenance | None = pictures.provenance
        self.kept: list[tuple[Item, list[tuple[int, int]]]] = []
        self.missing: dict[str, None] = {}
        """Names of the pictures that are not there, and passages of videos without clips."""
        for item in annotations.items:
            places = [pictures.find(x) for x in item.pictures]
            self.missing.update(dict.fromkeys(x for x, y in zip(item.pictures, places, strict=True) if y is None))
            there = [x for x in places if x is not None]
            if len(there) == len(places) and (item.span is None or self._clips(item, there[0])):
                self.kept.append((item, there))
        if not self.kept:
            some = ", ".join(list(self.missing)[:3])
            raise BadInput(
                f"{annotations.benchmark}: none of its {len(self.missing)} pictures has regions ({some}, ..)"
            )
        for item, _ in self.kept if given is not None else ():
            self._given(item)

    @property
    def told(self) -> str:
        """One line: how many items take part, and whose pictures are missing."""
        whole, what = len(self.annotations.items), f"{self.annotations.benchmark} {self.annotations.split}"
        line = f"{what}: {len(self.kept)} of {whole} items"
        if self.missing:
            line += f"; {len(self.missing)} pictures have no regions: {', '.join(list(self.missing)[:5])}"
            line += ", .." if len(self.missing) > 5 else ""
        return line

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Sample:
        item, places = self.kept[index]
        if item.span is not None:
            return Sample(
                item.key,
                item.texts,
                also=item.also,
                answers=item.answers,
                language=item.language,
                film=self._film(item, places),
            )
        shown, links = tuple(self.pictures.get(x) for x in places), tuple[Link, ...]()
        first = 0
        if self.given is not None:
            first = len(shown[0].boxes)
            shown = (beside(item.key, shown[0], self.given.get(self._given(item)), self.in_whole), *shown[1:])
        if shown and item.objects and self.given is None and not shown[0].features.shape[1]:
            shown = (_objects(item, shown[0]), *shown[1:])
            links = tuple(Link(x.start, x.end, x.object, x.text) for x in item.mentions)
        elif shown and (item.mentions or item.names):
            region = _regions(item, shown[0], first)
            shown = (_named(item, shown[0], region), *shown[1:])
            links = tuple(Link(x.start, x.end, region[x.object], x.text) for x in item.mentions if x.object in region)
        return Sample(
            key=item.key,
            texts=item.texts,
            pictures=shown,
            links=links,
            also=item.also,
            answers=item.answers,
            language=item.language,
            meant=tuple(Meant(x.start, x.end, fractions(x.boxes, item, shown[0])) for x in item.phrases),
            people=item.people,
        )

    def _given(self, item: Item) -> tuple[int, int]:
        """Where the regions of the annotated boxes of its picture are."""
        place = self.given.find(item.pictures[0]) if self.given and item.pictures else None
        if place is None:
            raise BadInput(f"sample {item.key}: picture {', '.join(item.pictures)} has no regions of annotated boxes")
        return place

    def _clips(self, item: Item, place: tuple[int, int]) -> tuple[int, ...]:
        """The first clip of the item's span and the one behind its last; () = its video has no clip then, which is remembered."""
        film = self.pictures.film(place)
        first, last = clips_within(np.array([item.span], np.float64), film.seconds, film.length)[0].tolist()
        if first < last:
            return first, last
        start, end = item.span or (0.0, 0.0)
        self.missing[f"{film.name} from {start:g} s to {end:g} s"] = None
        return ()

    def _film(self, item: Item, places: list[tuple[int, int]]) -> Film:
        """The clips of the video that the item shows."""
        film, some = self.pictures.film(places[0]), slice(*self._clips(item, places[0]))
        said = np.tile(np.array(item.span, np.float32), (len(item.texts), 1))
        ids = None if film.ids is None else film.ids[some]
        return replace(film, features=film.features[some], seconds=film.seconds[some], spans=said, ids=ids)


def fractions(boxes: Iterable[Box], item: Item, picture: Picture) -> Array:
    """(N, 4) float64: boxes in pixels as fractions of their picture.

    Raises:
        BadInput: nobody says how large it is.
    """
    width, height = item.size if all(item.size) else (picture.width, picture.height)
    if not width or not height:
        raise BadInput(f"sample {item.key}: the size of picture {picture.name} is not known")
    found: Array = np.array(list(boxes), np.float64).reshape(-1, 4) / [width, height, width, height]
    return found


def beside(key: str, picture: Picture, given: Picture, in_whole: bool) -> Picture:
    """A picture with the regions of its annotated boxes behind the detected ones; what only one of them knows is left out.

    Args:
        key: of the sample, for errors.
        picture: with detected regions.
        given: the same with those of annotated boxes.
        in_whole: the whole picture's feature is weighed from both means, each counted with one row more than its regions; False = the mean of the detected.

    Raises:
        BadInput: no box is given, or features are of another width.

    Source: the code of ViLBERT, vcr_dataset.py and refer_expression_dataset.py, where a row for the whole picture is counted among those of either.
    """
    if not len(given.boxes):
        raise BadInput(f"sample {key}: picture {given.name} has no annotated box")
    if picture.features.shape[1] != given.features.shape[1]:
        raise BadInput(
            f"sample {key}: picture {given.name} has features of {given.features.shape[1]} numbers at annotated boxes, "
            f"{picture.features.shape[1]} at detected ones"
        )
    parts = picture, given
    joined: dict[str, Any] = {}
    for name in ("features", "boxes", "scores", "probs", "labels", "attributes", "attribute_scores"):
        columns = [getattr(x, name) for x in parts]
        joined[name] = None if any(x is None for x in columns) else np.concatenate(columns)
    names = (*picture.names, *given.names) if picture.names and given.names else ()
    shares = np.array([len(x.boxes) + 1 for x in parts]) if in_whole else np.array([1, 0])
    means = [whole_feature(x.features, np.zeros(len(x.boxes), np.bool_)) for x in parts]
    whole = np.average(means, axis=0, weights=shares).astype(np.float32)
    return replace(picture, **joined, names=names, whole=whole, covers=None)


def _objects(item: Item, picture: Picture) -> Picture:
    """A picture without features with the item's objects as its regions: for systems that read pixels."""
    width, height = item.size if all(item.size) else (picture.width, picture.height)
    return replace(
        picture,
        boxes=fractions(item.objects, item, picture).astype(np.float32),
        features=np.zeros((len(item.objects), 0), np.float32),
        width=width,
        height=height,
        names=item.names,
        covers=item.covers,
    )


def _regions(item: Item, picture: Picture, first: int) -> dict[int, int]:
    """The region of each object that has one: that of its number, where there are no boxes to go by or the regions have them; else what overlaps it most and by half.

    Numbers count from the region `first`, where those of annotated boxes begin.
    """
    own, objects = picture.boxes[first:], len(item.objects)
    if not len(own) or not objects:
        return {i: first + i for i in range(len(own))}
    if len(own) >= objects and np.allclose(own[:objects], fractions(item.objects, item, picture), atol=1e-3):
        return {i: first + i for i in range(objects)}
    fits = [overlaps(picture.boxes, fractions([x], item, picture)) for x in item.objects]
    return {i: int(x.argmax()) for i, x in enumerate(fits) if x.max() >= 0.5}


def _named(item: Item, picture: Picture, region: Mapping[int, int]) -> Picture:
    """A picture with the names of the objects that its regions show; of several objects, the first."""
    if not item.names:
        return picture
    names = [""] * len(picture.boxes)
    for number, row in sorted(region.items(), reverse=True):
        names[row] = item.names[number] if number < len(item.names) else names[row]
    return replace(picture, names=tuple(names))


def object_lines(
    items: Iterable[Item], size_of: Callable[[str], tuple[int, int]] = lambda name: (0, 0)
) -> Iterator[dict[str, Any]]:
    """The annotated objects of the first pictures of items as lines of `pairs.jsonl`, a picture once, its objects' names as caption; the others are passed over.

    Args: items; size_of, how wide and high a picture is of which the annotations do not say it, 0 = not known.
    """
    seen: set[str] = set()
    for item in items:
        name = item.pictures[0] if item.pictures else ""
        if name in seen or not (name and item.objects):
            continue
        width, height = item.size if all(item.size) else size_of(name)
        if not (width and height):
            continue
        seen.add(name)
        names = item.names or ("object",) * len(item.objects)
        boxes = np.clip(item.objects, 0, [width, height, width, height]).tolist()
        line = {"key": name, "image": name, "captions": [" ".join(names)], "boxes": boxes, "labels": list(names)}
        yield line | {"width": width, "height": height}


def xyxy(box: Any, where: str) -> Box:
    """COCO's x, y, wide, high as corners.

    Raises:
        BadInput: these are not four numbers.
    """
    try:
        x, y, width, height = (float(v) for v in box)
    except (TypeError, ValueError):
        raise BadInput(f"{where}: box {str(box)[:60]} is not x, y, width, height") from None
    return x, y, x + width, y + height


def relabelled(annotations: Annotations, answers: Mapping[str, tuple[tuple[str, float], ...]]) -> Annotations:
    """The same items with other answers; items that are not named keep theirs."""
    items = tuple(replace(x, answers=answers.get(x.key, x.answers)) for x in annotations.items)
    return replace(annotations, items=items)
