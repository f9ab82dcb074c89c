"""What is in a data set (`inspect`) and whether it can be used (`check`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from intarsia.batch import Picture, Sample
from intarsia.data.decode import decode_image
from intarsia.data.formats.films import FilmSource, check_passage
from intarsia.data.formats.index import LineSource, OnError
from intarsia.data.formats.regions import EXTRAS, check_shapes
from intarsia.data.formats.shard_files import check_shard
from intarsia.data.formats.shards import ShardSource, check_fractions
from intarsia.data.formats.store import RegionStore
from intarsia.data.oddities import DETECTORS, odd
from intarsia.data.opening import open_source
from intarsia.data.source import Provenance, Source
from intarsia.data.stores import open_foreign
from intarsia.data.sums import check_sums
from intarsia.errors import BadInput


@dataclass(frozen=True)
class Spread:
    """Least, mean and greatest of some numbers."""

    least: float = 0.0
    mean: float = 0.0
    most: float = 0.0

    @classmethod
    def of(cls, values: list[int]) -> Spread:
        """The spread of a list; zeros if it is empty."""
        return cls(float(min(values)), float(np.mean(values)), float(max(values))) if values else cls()

    def __str__(self) -> str:
        return f"{self.least:g} to {self.most:g}, mean {self.mean:.1f}"


@dataclass(frozen=True)
class Report:
    """What a data set holds."""

    spec: str
    kind: str
    """Class of the reader."""
    samples: int
    """Image-text pairs: one a caption."""
    pictures: int | None
    """Different pictures; None when the reader cannot say without reading everything."""
    looked_at: int
    """Samples, spread evenly, that everything below but `splits`, `ignored`, `skipped` and `sizes` was measured on."""
    words: Spread
    """Words a caption (characters where a caption has no spaces)."""
    regions: Spread
    """Regions a picture."""
    languages: dict[str, int]
    widths: dict[int, int]
    """Feature width: in how many pictures or passages."""
    with_pixels: int
    """Pictures whose pixels can be found."""
    links: int
    provenance: Provenance | None
    films: int = 0
    """Different videos among those looked at."""
    clips: Spread = Spread()
    """Clips a passage of video."""
    sentences: Spread = Spread()
    """Sentences a passage of video."""
    outside: int = 0
    """Clips of all videos that are in no passage, as nothing is said around them."""
    splits: dict[str, int] = field(default_factory=dict)
    """Lines of each split, all of them."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Fields that are not used: on how many lines."""
    skipped: tuple[str, ...] = ()
    """Lines that cannot be used, and samples of those looked at that cannot be read."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of the files at the path, by suffix."""
    first: tuple[str, ...] = ()
    """The first samples in words."""
    unit: str = "pairs"
    """What was looked at."""

    def lines(self) -> list[str]:
        """The report, a line a fact."""
        made = self.provenance
        facts = {
            "data": f"{self.spec} ({self.kind})",
            "pairs": f"{self.samples:,}",
            "pictures": "not counted" if self.pictures is None else f"{self.pictures:,}",
            "splits (lines)": _counts(self.splits),
            "looked at": f"{self.looked_at:,} of {self.samples if self.unit == 'pairs' else self.pictures:,} {self.unit}",
            "words a caption": str(self.words),
            "languages": _counts(self.languages),
            "regions a picture": str(self.regions),
            **({} if not self.films else self._of_films()),
            "feature width": _counts(self.widths),
            "with pixels": f"{self.with_pixels:,} pictures",
            "gold links": f"{self.links:,}",
            "features from": "not said"
            if made is None
            else f"{made.extractor}, {made.width} wide, {len(made.classes)} classes",
            "files": ", ".join(f"{suffix} {_bytes(size)}" for suffix, size in sorted(self.sizes.items())) or "none",
            "unused fields": _counts(self.ignored),
            "cannot be used": f"{len(self.skipped):,}",
        }
        listed = [f"{name:<18} {value}" for name, value in facts.items()]
        return [*listed, *(f"  {x}" for x in self.skipped[:10]), *(f"{'':<18} {x}" for x in self.first)]

    def _of_films(self) -> dict[str, str]:
        outside = f"{self.outside:,}"
        return {
            "videos": f"{self.films:,}",
            "clips a passage": str(self.clips),
            "sentences": f"{self.sentences} a passage",
            "clips in none": outside,
        }


@dataclass(frozen=True)
class Counts:
    """What `check` found."""

    spec: str
    samples: int
    """Image-text pairs of lines that can be read."""
    usable: int
    """Those of them with nothing wrong."""
    pictures: int
    """Different pictures looked at."""
    decoded: int
    """Pictures whose pixels were decoded."""
    problems: tuple[str, ...]
    """One line for every problem, naming file, sample and value."""
    unit: str = "pairs"
    """What samples are."""
    sums: int = 0
    """Files and shards whose sha256 was compared and is right."""
    unsummed: int = 0
    """Files of which nobody says a sha256."""
    odd: dict[str, int] = field(default_factory=dict)
    """What is allowed and nearly always a mistake: in how many pictures."""

    def lines(self) -> list[str]:
        """The counts and every problem."""
        total = f"{self.spec}: {self.usable:,} of {self.samples:,} {self.unit} can be used"
        sums = f"{self.sums:,} checksums right, {self.unsummed:,} files without one"
        seen = (
            f"{self.pictures:,} pictures looked at, {self.decoded:,} decoded, {sums}, {len(self.problems):,} problems"
        )
        return [total, seen, *(f"{count:,} pictures {what}" for what, count in self.odd.items()), *self.problems]


# -------------------------------------------------------------------------------------------------------------- inspect


def inspect(spec: str, limit: int = 1000, **reading: Any) -> Report:
    """Describes a data set; lines that cannot be used are left out and listed.

    Args:
        spec: as `open_source` takes it.
        limit: how many samples, spread evenly, to measure captions and regions on.
        reading: sizes, boxes and width, as `open_store` takes them.

    Raises:
        BadInput: nothing there can be opened.
    """
    store = open_foreign(spec, **reading)
    if store is not None:
        return _inspect_store(spec, store, limit)
    source = open_source(spec, on_error="skip")
    places = sorted({int(x) for x in np.linspace(0, len(source) - 1, min(limit, len(source)))}) if len(source) else []
    samples, unreadable = [], []
    for place in places:
        try:
            samples.append(source[place])
        except BadInput as error:
            unreadable.append(str(error))
    pictures = list({x.name: x for sample in samples for x in sample.pictures}.values())
    lined = source if isinstance(source, LineSource) else None
    films = [x.film for x in samples if x.film is not None]
    widths = [x.features.shape[1] for x in pictures] + [x.features.shape[1] for x in films]
    return Report(
        spec=str(spec),
        kind=type(source).__name__,
        samples=len(source),
        pictures=lined.picture_count if lined else None,
        looked_at=len(places),
        words=Spread.of([_length(text) for sample in samples for text in sample.texts]),
        regions=Spread.of([len(x.boxes) for x in pictures]),
        languages=dict(Counter(x.language for x in samples)),
        widths=dict(Counter(x for x in widths if x)),
        with_pixels=sum(bool(x.path) or x.pixels is not None for x in pictures),
        links=sum(len(x.links) for x in samples),
        provenance=source.provenance,
        films=len({x.name for x in films}),
        clips=Spread.of([len(x.features) for x in films]),
        sentences=Spread.of([len(x.spans) for x in films]),
        outside=source.outside if isinstance(source, FilmSource) else 0,
        splits=lined.index.splits if lined else source.splits if isinstance(source, FilmSource) else {},
        ignored=lined.index.ignored if lined else {},
        skipped=(*(lined.skipped if lined else ()), *unreadable),
        sizes=_sizes(Path(spec)),
        first=tuple(_in_words(x) for x in samples[:3]),
    )


def _inspect_store(spec: str, store: RegionStore, limit: int) -> Report:
    places = sorted({int(x) for x in np.linspace(0, len(store) - 1, min(limit, len(store)))}) if len(store) else []
    pictures, texts, unreadable = [], list[str](), []
    for place in places:
        try:
            pictures.append(store.picture(place))
            texts += [text for said in store.said(place) for text in said.get("captions", ())]
        except BadInput as error:
            unreadable.append(str(error))
    return Report(
        spec=str(spec),
        kind=f"{type(store).__name__}: {store.kind}",
        samples=0,
        pictures=len(store),
        looked_at=len(places),
        words=Spread.of([_length(text) for text in texts]),
        regions=Spread.of([len(x.boxes) for x in pictures]),
        languages={},
        widths=dict(Counter(x.features.shape[1] for x in pictures)),
        with_pixels=0,
        links=0,
        provenance=None,
        ignored=dict(store.left),
        skipped=tuple(unreadable),
        sizes=_sizes(Path(spec)),
        first=tuple(_picture_in_words(x) for x in pictures[:3]),
        unit="pictures",
    )


def _picture_in_words(picture: Picture) -> str:
    has = ", ".join(x for x in EXTRAS if getattr(picture, x) is not None) or "nothing else"
    size = f"{picture.width}x{picture.height}" if picture.width else "size not said"
    return f"{picture.name} {size}, {len(picture.boxes)} regions of {picture.features.dtype}, and {has}"


def _length(text: str) -> int:
    words = text.split()
    return len(words) if len(words) > 1 or text.isascii() else len(text.strip())


def _in_words(sample: Sample) -> str:
    pictures = "; ".join(f"{x.name} {x.width}x{x.height}, {len(x.boxes)} regions" for x in sample.pictures)
    if sample.film is not None:
        pictures = f"{len(sample.film.features)} clips, {len(sample.texts)} sentences"
    return f"{sample.key} [{sample.language}] {' '.join(sample.texts[:1])!r} | {pictures}"


def _sizes(path: Path) -> dict[str, int]:
    files = [path] if path.is_file() else (x for x in path.rglob("*") if x.is_file()) if path.is_dir() else []
    sizes: Counter[str] = Counter()
    for file in files:
        sizes[file.suffix or file.name] += file.stat().st_size
    return dict(sizes)


def _counts(counts: dict[str, int] | dict[int, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


# ---------------------------------------------------------------------------------------------------------------- check


class _Seen(NamedTuple):
    """What is remembered of a picture."""

    good: bool
    regions: int
    description: int
    """Hash of what the line says of its regions."""
    where: str


@dataclass
class _Findings:
    on_error: OnError
    problems: list[str] = field(default_factory=list)
    width: tuple[int, str] | None = None
    """Feature width of the first picture that has features, and its name."""
    seen: dict[str, _Seen] = field(default_factory=dict)
    decoded: int = 0
    sums: int = 0
    """Files, and shards, whose bytes are those that their sha256 was made of."""
    unsummed: int = 0
    """Files of which nobody says one."""
    odd: Counter[str] = field(default_factory=Counter)
    detected: bool = False
    """Whether features are a region detector's."""

    def counts(self, spec: str, samples: int, usable: int, pictures: int, unit: str = "pairs") -> Counts:
        """The report."""
        found = self.decoded, tuple(self.problems), unit, self.sums, self.unsummed, dict(self.odd)
        return Counts(spec, samples, usable, pictures, *found)

    def holds(self, test: Callable[[], object]) -> bool:
        """Whether a test raises nothing; what it raises is noted, or raised again if the check stops at the first."""
        try:
            test()
        except BadInput as error:
            if self.on_error == "stop":
                raise
            self.problems.append(str(error))
            return False
        return True

    def look_at(self, picture: Picture, where: str) -> None:
        """Checks one picture.

        Raises:
            BadInput: the first thing wrong with it.
        """
        if picture.features.shape[-1]:
            arrays = {"features": picture.features, "boxes": picture.boxes}
            arrays |= {x: getattr(picture, x) for x in EXTRAS if getattr(picture, x) is not None}
            check_shapes(arrays, where)
            width = picture.features.shape[1]
            if self.width is None:
                self.width = width, picture.name
            if width != self.width[0]:
                raise BadInput(f"{where}: features are {width} wide, those of {self.width[1]} are {self.width[0]} wide")
            self.odd.update(odd(picture, self.detected))
        check_fractions(picture.boxes, where)
        if picture.path or picture.pixels is not None:
            made = None if picture.path or picture.pixels is None else picture.pixels()
            pixels = decode_image(picture.path, f"{where}: {picture.path}") if made is None else made
            self.decoded += 1
            if picture.width and picture.height and pixels.shape[:2] != (picture.height, picture.width):
                size = f"{pixels.shape[1]}x{pixels.shape[0]}"
                raise BadInput(f"{where}: is {size} pixels, the data set says {picture.width}x{picture.height}")

    def meet(self, name: str, where: str, description: int, read: Callable[[], Picture]) -> bool:
        """Checks a picture where it is first named, and that it is described alike wherever else it is.

        Returns:
            Whether it is good.
        """
        before = self.seen.get(name)
        if before is None:
            regions = 0

            def look() -> None:
                nonlocal regions
                picture = read()
                regions = len(picture.boxes)
                self.look_at(picture, f"{where}: picture {name}")

            good = self.holds(look)
            self.seen[name] = _Seen(good, regions, description, where)
            return good

        def alike() -> None:
            if description != before.description:
                raise BadInput(f"{where}: picture {name} has other boxes or regions than in {before.where}")

        return self.holds(alike) and before.good


def check(spec: str, on_error: OnError = "stop", **reading: Any) -> Counts:
    """Looks at every line, every picture (decoding it where its pixels are at hand) and every region of a data set.

    Finds: lines that cannot be read, keys given twice, empty captions, missing, cut or undecodable pictures, pictures
    of another size than said, boxes without area or outside the picture, features that are not finite or differ in
    width, links out of range, one picture described in two ways, shards whose bytes have changed, and files whose bytes are not those that a SHA256SUMS
    beside them says.

    Args:
        spec: as `open_source` takes it.
        on_error: "stop" raises the first problem; "skip" lists all of them.
        reading: sizes, boxes and width, as `open_store` takes them.

    Raises:
        BadInput: the first problem ("stop"), or nothing there can be opened.
    """
    if "," in str(spec) and not Path(spec).exists():
        open_source(spec, on_error=on_error)  # whether they go together
        return _together(spec, [check(part, on_error) for part in spec.split(",")])
    findings = _Findings(on_error)
    findings.sums, findings.unsummed = check_sums(spec, findings.holds)
    store = open_foreign(spec, **reading)
    if store is not None:
        findings.detected = True
        usable = sum(_check_stored(store, number, findings) for number in range(len(store)))
        return findings.counts(str(spec), len(store), usable, len(store), "pictures")
    source = open_source(spec, on_error=on_error)
    _check_files(source, findings)
    findings.detected = source.provenance is not None and source.provenance.extractor in DETECTORS
    if isinstance(source, LineSource):
        findings.problems.extend(source.skipped)
        usable = _check_lines(source, findings)
    else:
        usable = _check_samples(source, findings)
    return findings.counts(str(spec), len(source), usable, len(findings.seen))


def _check_stored(store: RegionStore, number: int, findings: _Findings) -> bool:
    def look() -> None:
        findings.look_at(store.picture(number), store.where(number))
        store.said(number)

    return findings.holds(look)


def _together(spec: str, parts: list[Counts]) -> Counts:
    def total(name: str) -> int:
        return sum(getattr(x, name) for x in parts)

    return Counts(
        spec=spec,
        samples=total("samples"),
        usable=total("usable"),
        pictures=total("pictures"),
        decoded=total("decoded"),
        problems=tuple(text for x in parts for text in x.problems),
        sums=total("sums"),
        unsummed=total("unsummed"),
        odd=dict(sum((Counter(x.odd) for x in parts), Counter())),
    )


def _check_files(source: Source, findings: _Findings) -> None:
    """Compares the files of shards with their index."""
    match source:
        case ShardSource():
            for shard in source.shards.shards:
                findings.sums += findings.holds(partial(check_shard, source.root, shard, True))
        case FilmSource():
            findings.sums += len(source.films.shards) * findings.holds(source.check_files)


def _check_lines(source: LineSource, findings: _Findings) -> int:
    usable = 0
    for number in range(len(source.index.lines)):
        line = source.line(number)
        good = True
        for slot, entry in enumerate(line.entries):
            boxes = b"" if entry.boxes is None else entry.boxes.tobytes()
            description = 0 if isinstance(source, ShardSource) else hash((entry.regions, boxes))
            read = partial(source.picture_of, line, slot, number)
            good = findings.meet(entry.name, line.where, description, read) and good
        if good:
            counts = [findings.seen[entry.name].regions for entry in line.entries]
            good = findings.holds(partial(line.check_links, counts))
        usable += good * len(line.texts)
    return usable


def _check_samples(source: Source, findings: _Findings) -> int:
    usable = 0
    keys: set[str] = set()
    for number in range(len(source)):
        sample = source[number]
        where = f"sample {sample.key}"
        good = True
        for picture in sample.pictures:
            boxes = hash(picture.boxes.tobytes())
            good = findings.meet(picture.name, where, boxes, lambda x=picture: x) and good  # type: ignore[misc]
        usable += findings.holds(partial(_check_sample, sample, where, sample.key in keys)) and good
        keys.add(sample.key)
    return usable


def _check_sample(sample: Sample, where: str, known: bool) -> None:
    if known:
        raise BadInput(f"{where}: its key was already given")
    if not all(text.strip() for text in sample.texts):
        raise BadInput(f"{where}: a text is empty")
    check_passage(sample, where)
    for link in sample.links:
        length = len(sample.texts[link.text])
        if not 0 <= link.start < link.end <= length:
            raise BadInput(f"{where}: a link spans characters {link.start} to {link.end} of a text of {length}")
        if not 0 <= link.region < len(sample.pictures[link.picture].boxes):
            raise BadInput(f"{where}: a link names region {link.region} of {len(sample.pictures[link.picture].boxes)}")
