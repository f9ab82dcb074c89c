"""Film shards: videos as clips with features, and the sentences said in them; each stored once and read as passages.

A folder with

    films.json                 what made the features, and every shard with its counts and sha256
    shard-00000.safetensors    of n films: features (V, F) float16, starts (V) float32 seconds, cu_clips (n + 1) int64; of
                               their tracks (a film has one for each language it is told in): cu_tracks (n + 1) int64,
                               cu_sentences (tracks + 1) int64, spans (S, 2) float32 seconds, text uint8 (UTF-8),
                               cu_text (S + 1) int64
    shard-00000.json           name, seconds, split and languages of its n films

A passage is some consecutive sentences of a track with the clips they are said in. The shards are mapped into memory: a passage's features are a view.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from intarsia.batch import Film, Sample
from intarsia.data.formats.copies import at_hand
from intarsia.data.formats.files import join, sha256_of, write_whole
from intarsia.data.formats.shard_files import check_shard, map_whole
from intarsia.data.source import Provenance
from intarsia.data.subtitles import Sentence
from intarsia.data.video import passages, sampling_of
from intarsia.errors import BadInput

Array = NDArray[Any]
INDEX = "films.json"
VERSION = 1
SPLITS = ("train", "val", "test")
MOST = 72.0
"""Seconds a passage spans at the most: 48 clips of VideoBERT's 1.5 s."""
SILENT = 16
"""Clips of a passage where nobody speaks. Source: VideoBERT, sec. 4.1."""


@dataclass(frozen=True)
class Track:
    """What is said in a film in one language."""

    language: str
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class FilmRecord:
    """A whole film, as it is stored."""

    name: str
    seconds: float
    features: Array
    """(V, F)"""
    starts: Array
    """(V) seconds when each clip begins."""
    tracks: tuple[Track, ...] = ()
    split: str = "train"


@dataclass(frozen=True)
class FilmShard:
    """One shard as `films.json` lists it."""

    name: str
    films: int
    clips: int
    sentences: int
    size: int
    sha256: str
    names_sha256: str


@dataclass(frozen=True)
class FilmIndex:
    """`films.json`."""

    provenance: Provenance
    shards: tuple[FilmShard, ...] = ()
    videos: str = ""
    """Folder that the films' names are relative to, itself relative to the shards' folder; "" = not at hand."""
    finished: bool = False

    @classmethod
    def read(cls, root: Path | str) -> FilmIndex:
        """The index of a folder, local or remote.

        Raises:
            BadInput: no such file, or not an index of this version.
        """
        path = join(root, INDEX)
        try:
            tree = json.loads(at_hand(path).read_bytes())
            if tree.pop("format") != "intarsia film shards" or tree.pop("version") != VERSION:
                raise ValueError(f"not film shards of version {VERSION}")
            made = tree.pop("provenance")
            names = {name: tuple(made.get(name, ())) for name in ("classes", "attributes")}
            provenance = Provenance(**{**made, **names})
            sampling_of(provenance.settings)
            return cls(provenance, tuple(FilmShard(**x) for x in tree.pop("shards")), **tree)
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path}: not an index of film shards: {error}") from None

    def text(self) -> str:
        """The file's text."""
        tree = {"format": "intarsia film shards", "version": VERSION, **asdict(self)}
        return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


# -------------------------------------------------------------------------------------------------------------- writing


class FilmWriter:
    """Writes film shards. Every film is on disk as soon as it was added, so a kill costs the one in hand.

    Killed at any moment it leaves whole films only, and a new writer on the same folder goes on from them and makes the same files.

    Args:
        root: the folder; made if it is not there.
        provenance: what makes the features; settings must say `fps` and `frames`. A folder begun with another is refused.
        videos: folder that films' names are relative to, relative to `root`; "" when they are not to be found later.
        films_per_shard: films a file.

    Raises:
        BadInput: the folder was begun by another extractor or with other settings.
    """

    def __init__(self, root: str | Path, provenance: Provenance, videos: str = "", films_per_shard: int = 64) -> None:
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self._per_shard = films_per_shard
        self._index = FilmIndex(provenance, videos=videos)
        if (self.root / INDEX).exists():
            self._index = FilmIndex.read(self.root)
        for field in fields(Provenance):
            before, now = getattr(self._index.provenance, field.name), getattr(provenance, field.name)
            if before != now:
                raise BadInput(f"{self.root}: begun with {field.name} {before!r}, now {now!r}; use another folder")
        if not (self.root / INDEX).exists():
            self._save(self._index)
        self._stored = sum(x.films for x in self._index.shards)
        self._done = {x["name"] for shard in self._index.shards for x in _films(self.root, shard.name, shard)}
        self._held: list[FilmRecord] = []
        while (self._part(len(self._held)).with_suffix(".json")).exists():
            self._held += _records(self.root, self._part(len(self._held)).stem)
        self._done |= {x.name for x in self._held}
        self._tidy()

    def done(self) -> frozenset[str]:
        """Names of the films that are on disk."""
        return frozenset(self._done)

    def add(self, film: FilmRecord) -> None:
        """Takes a film and writes it.

        Raises:
            BadInput: given before; features not as wide as the provenance says, not finite or too large for float16; a sentence of
                which the times are none; or an unknown split.
        """
        film = _checked(film, self._index.provenance)
        if film.name in self._done:
            raise BadInput(f"film {film.name}: already stored in {self.root}")
        self._write(self._part(len(self._held)).stem, [film])
        self._held.append(film)
        self._done.add(film.name)
        if len(self._held) == self._per_shard:
            self._flush()

    def finish(self) -> None:
        """Writes the last shard and declares the folder whole."""
        self._flush()
        self._save(replace(self._index, finished=True))

    def _part(self, held: int) -> Path:
        return self.root / f"part-{self._stored + held:07d}.safetensors"

    def _flush(self) -> None:
        if not self._held:
            return
        name = f"shard-{len(self._index.shards):05d}"
        self._write(name, self._held)
        arrays = self.root / f"{name}.safetensors"
        shard = FilmShard(
            name,
            len(self._held),
            sum(len(x.features) for x in self._held),
            sum(len(y.sentences) for x in self._held for y in x.tracks),
            arrays.stat().st_size,
            sha256_of(arrays),
            sha256_of(arrays.with_suffix(".json")),
        )
        self._save(replace(self._index, shards=(*self._index.shards, shard), finished=False))
        self._stored += len(self._held)
        self._held = []
        self._tidy()

    def _write(self, name: str, films: Sequence[FilmRecord]) -> None:
        with write_whole(self.root / f"{name}.safetensors") as temporary:
            save_file(_columns(films), temporary)
        said = [
            {"name": x.name, "seconds": x.seconds, "split": x.split, "languages": [y.language for y in x.tracks]}
            for x in films
        ]
        with write_whole(self.root / f"{name}.json") as temporary:  # last: its being there says that both are
            temporary.write_text(json.dumps({"films": said}, ensure_ascii=False) + "\n", encoding="utf-8")

    def _tidy(self) -> None:
        """Removes what is part of no index: films that are in shards now, and what a killed writer left behind."""
        known = {x.name for x in self._index.shards} | {self._part(i).stem for i in range(len(self._held))}
        for pattern in ("shard-*.*", "part-*.*", ".*.tmp"):
            for path in self.root.glob(pattern):
                if path.stem not in known:
                    path.unlink()

    def _save(self, index: FilmIndex) -> None:
        with write_whole(self.root / INDEX) as temporary:
            temporary.write_text(index.text(), encoding="utf-8")
        self._index = index


def _columns(films: Sequence[FilmRecord]) -> dict[str, Array]:
    tracks = [track for film in films for track in film.tracks]
    said = [sentence for track in tracks for sentence in track.sentences]
    texts = [x.text.encode() for x in said]

    def cumulated(counts: Sequence[int]) -> Array:
        return np.cumsum([0, *counts], dtype=np.int64)

    return {
        "features": np.concatenate([x.features for x in films]),
        "starts": np.concatenate([x.starts for x in films]),
        "cu_clips": cumulated([len(x.features) for x in films]),
        "cu_tracks": cumulated([len(x.tracks) for x in films]),
        "cu_sentences": cumulated([len(x.sentences) for x in tracks]),
        "spans": np.array([(x.start, x.end) for x in said], np.float32).reshape(-1, 2),
        "cu_text": cumulated([len(x) for x in texts]),
        "text": np.frombuffer(b"".join(texts), np.uint8),
    }


def _checked(film: FilmRecord, provenance: Provenance) -> FilmRecord:
    where = f"film {film.name}"
    if film.features.ndim != 2 or film.features.shape[1] != provenance.width:
        shape = film.features.shape
        raise BadInput(
            f"{where}: features of shape {shape}, expected (V, {provenance.width}) of {provenance.extractor}"
        )
    with np.errstate(over="ignore"):
        features = film.features.astype(np.float16)
    if not np.isfinite(features).all():
        bad = int(np.argmin(np.isfinite(features).all(1)))
        raise BadInput(f"{where}: the features of clip {bad} are not finite, or too large for float16")
    for track in film.tracks:
        for x in track.sentences:
            if not 0 <= x.start <= x.end < float("inf") or not x.text.strip():
                raise BadInput(f"{where}: sentence {x.text!r} from {x.start:g} s to {x.end:g} s")
    if film.split not in SPLITS:
        raise BadInput(f"{where}: split {film.split!r} is not one of {', '.join(SPLITS)}")
    return replace(film, features=features, starts=film.starts.astype(np.float32))


def _films(root: Path | str, name: str, listed: FilmShard | None = None) -> list[dict[str, Any]]:
    """What NAME.json says of its films."""
    path, count = join(root, f"{name}.json"), None if listed is None else listed.films
    try:
        file = at_hand(path, "" if listed is None else listed.names_sha256)
        films: list[dict[str, Any]] = json.loads(file.read_bytes())["films"]
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: not a list of films") from None
    if count is not None and len(films) != count:
        raise BadInput(f"{path}: {len(films)} films, {INDEX} says {count}")
    return films


def _records(root: Path, name: str) -> list[FilmRecord]:
    shard, found = _Shard.open(root, name), []
    for number, film in enumerate(shard.films):
        first, last = shard.cu_clips[number : number + 2]
        tracks = []
        for track, language in enumerate(film["languages"], shard.cu_tracks[number]):
            low, high = shard.cu_sentences[track : track + 2]
            spans = shard.arrays["spans"][low:high].tolist()
            said = zip(shard.texts(low, high), spans, strict=True)
            tracks.append(Track(language, tuple(Sentence(text, *span) for text, span in said)))
        kept = {x: np.array(shard.arrays[x][first:last]) for x in ("features", "starts")}
        found.append(FilmRecord(film["name"], film["seconds"], **kept, tracks=tuple(tracks), split=film["split"]))
    return found


# -------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class _Shard:
    """An open shard."""

    arrays: dict[str, Array]
    films: list[dict[str, Any]]
    cu_clips: list[int]
    cu_tracks: list[int]
    cu_sentences: list[int]

    @classmethod
    def open(cls, root: Path | str, name: str, listed: FilmShard | None = None) -> _Shard:
        path = join(root, f"{name}.safetensors")
        arrays, _ = map_whole(path, "" if listed is None else listed.sha256)
        cumulated = (arrays[x].tolist() for x in ("cu_clips", "cu_tracks", "cu_sentences"))
        return cls(arrays, _films(root, name, listed), *cumulated)

    def texts(self, low: int, high: int) -> tuple[str, ...]:
        """Some of its sentences."""
        cu = self.arrays["cu_text"][low : high + 1].tolist()
        text = self.arrays["text"]
        return tuple(text[a:b].tobytes().decode() for a, b in pairwise(cu))


class FilmSource:
    """Film shards as a data set of passages, film by film and language by language.

    A passage's key is "film#seconds" of its start, and "-language" where a film has several. Clips that are in no passage, because nothing is said around
    them in a film with speech, are counted in `outside`.

    Args:
        root: the folder, local or remote; of a remote one each shard is fetched when it is first needed, and its bytes are compared.
        split: "train", "val" or "test"; None = all films.
        verify: compares the sha256 of every file first (reads all of it).
        most: seconds a passage spans at the most.
        silent: clips a passage of a film in which nothing is said.

    Raises:
        BadInput: an unfinished folder, a missing, cut or (`verify`) changed file, or no such split.
    """

    def __init__(
        self, root: str | Path, split: str | None = None, verify: bool = False, most: float = MOST, silent: int = SILENT
    ) -> None:
        self.root = join(root)
        self.films = FilmIndex.read(self.root)
        self.provenance: Provenance | None = self.films.provenance
        self.length = float(sampling_of(self.films.provenance.settings).length)
        if not self.films.finished:
            done = sum(x.films for x in self.films.shards)
            raise BadInput(f"{self.root}: not finished ({done} films in shards); run the extraction again to go on")
        if split is not None and split not in SPLITS:
            raise BadInput(f"split {split!r} is not one of {', '.join(SPLITS)}")
        self.check_files(verify)
        self._opened: list[_Shard | None] = [None] * len(self.films.shards)
        self._starts = np.cumsum([0] + [x.films for x in self.films.shards]).tolist()
        rows: list[tuple[int, ...]] = []
        self.film_count = self.outside = 0
        self.splits: dict[str, int] = {}
        """Films of each split, all of them."""
        for film in range(self._starts[-1]):
            shard, local = self._place(film)
            here = shard.films[local]["split"]
            self.splits[here] = self.splits.get(here, 0) + 1
            if split in (None, here):
                self.film_count += 1
                found, outside = self._passages(shard, local, most, silent)
                rows += [(film, *x) for x in found]
                self.outside += outside
        self._rows = np.array(rows, np.int64).reshape(-1, 6)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": [None] * len(self._opened)}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        film, track, low, high, first, last = self._rows[index].tolist()
        shard, local = self._place(film)
        about, begin = shard.films[local], shard.cu_clips[local]
        starts = shard.arrays["starts"][begin + first : begin + last]
        spans = shard.arrays["spans"][low:high]
        language = "" if track < 0 else about["languages"][track]
        name = about["name"]
        key = f"{name}#{float(spans[0, 0] if len(spans) else starts[0]):.2f}"
        return Sample(
            key=key if len(about["languages"]) < 2 else f"{key}-{language}",
            texts=shard.texts(low, high),
            language=language,
            film=Film(
                name=name,
                features=shard.arrays["features"][begin + first : begin + last],
                seconds=starts,
                length=self.length,
                spans=spans,
                path=str(join(self.root, self.films.videos, name)) if self.films.videos else "",
            ),
        )

    def check_files(self, verify: bool = True) -> None:
        """Checks that the shards are there and whole, and with `verify` that their bytes are as they were written.

        Raises:
            BadInput: one is not; names it.
        """
        for shard in self.films.shards:
            check_shard(self.root, shard, verify, INDEX)

    def _place(self, film: int) -> tuple[_Shard, int]:
        at = bisect_right(self._starts, film) - 1
        shard = self._opened[at]
        if shard is None:
            listed = self.films.shards[at]
            shard = self._opened[at] = _Shard.open(self.root, listed.name, listed)
        return shard, film - self._starts[at]

    def _passages(self, shard: _Shard, local: int, most: float, silent: int) -> tuple[list[tuple[int, ...]], int]:
        """Track, sentences and clips of the passages of a film, and how many of its clips are in none."""
        first, last = shard.cu_clips[local : local + 2]
        starts = shard.arrays["starts"][first:last]
        found: list[tuple[int, ...]] = []
        for number, track in enumerate(range(*shard.cu_tracks[local : local + 2])):
            low, high = shard.cu_sentences[track : track + 2]
            if low < high:
                cut = passages(shard.arrays["spans"][low:high], starts, self.length, most, silent)
                found += [(number, low + a, low + b, c, d) for a, b, c, d in cut]
        if not found:
            cut = passages(np.zeros((0, 2)), starts, self.length, most, silent)
            return [(-1, 0, 0, c, d) for _, _, c, d in cut], 0
        covered = {clip for *_, c, d in found for clip in range(c, d)}
        return found, last - first - len(covered)


def check_passage(sample: Sample, where: str) -> None:
    """Checks the film of a sample.

    Raises:
        BadInput: features that are not finite, clips out of order, or a sentence without a span in order of time.
    """
    film = sample.film
    if film is None:
        return
    if not np.isfinite(film.features).all():
        bad = int(np.argmin(np.isfinite(film.features).all(1)))
        raise BadInput(f"{where}: the features of clip {bad} are not finite")
    if len(film.seconds) != len(film.features) or (np.diff(film.seconds) <= 0).any():
        raise BadInput(f"{where}: its {len(film.features)} clips do not begin one after the other")
    if film.spans.shape != (len(sample.texts), 2):
        raise BadInput(f"{where}: spans of shape {film.spans.shape} for {len(sample.texts)} sentences")
    wrong = ~(np.isfinite(film.spans).all(1) & (film.spans[:, 0] <= film.spans[:, 1]))
    wrong[1:] |= film.spans[1:, 0] < film.spans[:-1, 0]
    if wrong.any():
        bad = int(np.argmax(wrong))
        begin, end = film.spans[bad].tolist()
        raise BadInput(f"{where}: sentence {bad} is said from {begin:g} s to {end:g} s")
