"""Runs a clip extractor over a folder of videos once and writes film shards, which is what training reads.

One thread decodes ahead of the network, a few batches of clips at the most. Batches are cut inside a film, so what else is in the folder, and where a run
was killed, change nothing. A film is stored as soon as it was read to its end.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os.path import relpath
from pathlib import Path

import numpy as np
import torch

from intarsia.data.annotations import read_annotations
from intarsia.data.formats.films import SPLITS, FilmRecord, FilmWriter, Track
from intarsia.data.formats.index import OnError
from intarsia.data.subtitles import Segmentation, find_subtitles, read_subtitles
from intarsia.data.video import SUFFIXES, Array, Clip, Tally, clips, find_videos, stacked
from intarsia.errors import BadInput
from intarsia.extract import SKIPPED, Bar, note
from intarsia.features.clips import ClipExtractor, StoredClips

AHEAD = 2
"""Batches decoded before they are needed."""


@dataclass(frozen=True)
class FilmReport:
    """What an extraction of videos did."""

    films: int
    """Films stored now, those of earlier runs included."""
    resumed: int
    """Films that earlier runs had stored."""
    clips: int
    """Clips this run described."""
    frames: int
    """Frames this run decoded."""
    sentences: dict[str, int]
    """Sentences of this run's films, by language."""
    without_speech: int
    """Films of this run beside which there are no subtitles, or empty ones."""
    outside: int
    """Sentences left out as their film is over when they begin."""
    left_over: float
    """Seconds at the ends of films that are less than half a clip."""
    skipped: tuple[str, ...]
    """One message for every film that could not be used; also in `skipped.txt`."""
    seconds: float

    def lines(self) -> list[str]:
        """The report in words."""
        said = ", ".join(f"{count:,} {language or 'of no language'}" for language, count in self.sentences.items())
        return [
            f"{self.films:,} films ({self.resumed:,} from before), {self.clips:,} clips of {self.frames:,} frames in {self.seconds:.1f} s",
            f"sentences: {said or 'none'}; {self.outside:,} begin after their film's end and are left out",
            f"{self.without_speech:,} films without speech; {self.left_over:.1f} s at films' ends make no clip",
            *([f"{len(self.skipped):,} films skipped, see {SKIPPED}"] if self.skipped else []),
        ]


@dataclass
class _Counts:
    clips: int = 0
    frames: int = 0
    sentences: Counter[str] = field(default_factory=Counter)
    without_speech: int = 0
    outside: int = 0
    left_over: float = 0.0

    def report(self, done: int, todo: int, skipped: Sequence[str], seconds: float) -> FilmReport:
        """What an extraction did that found `done` films stored and `todo` to do."""
        return FilmReport(
            films=done + todo - len(skipped),
            resumed=done,
            clips=self.clips,
            frames=self.frames,
            sentences=dict(self.sentences),
            without_speech=self.without_speech,
            outside=self.outside,
            left_over=self.left_over,
            skipped=tuple(skipped),
            seconds=seconds,
        )


def extract_video(
    source: str | Path,
    out: str | Path,
    extractor: ClipExtractor,
    batch: int = 4,
    on_error: OnError = "stop",
    language: str = "en",
    how: Segmentation | None = None,
    films_per_shard: int = 64,
    show: bool = True,
    captions: str | Path = "",
) -> FilmReport:
    """Extracts the clips of all videos in a folder, with the sentences of the subtitles beside them.

    Run again after a kill, or with more videos in the folder, it goes on with the films that are not stored. A film in a folder train, val or test below
    `source` is of this split; others are to train on.

    Args:
        source: folder of the videos, in folders or not; of .npy files where features are there already.
        out: folder of the shards.
        extractor: what describes clips.
        batch: clips at once.
        on_error: "stop" at the first film that cannot be used (what was done is kept), or "skip" it and report it.
        language: of subtitles whose name says none.
        how: where sentences end.
        films_per_shard: films a file.
        show: draws a progress bar on standard error.
        captions: a file of HowTo100M, YouCook2 or MSR-VTT that says what is said, by the videos' names without their endings; videos it does not
            name keep the subtitles beside them.

    Raises:
        BadInput: no videos, one that cannot be used ("stop"), or `out` was begun with another extractor or other settings.
    """
    began = time.monotonic()
    if on_error not in ("stop", "skip") or batch < 1:
        raise BadInput(f"extract video: on_error {on_error!r} (stop or skip), batch {batch} (1 or more)")
    root, out, how, stored = Path(source), Path(out), how or Segmentation(), isinstance(extractor, StoredClips)
    names = find_videos(root, (".npy",)) if stored else find_videos(root)
    writer = FilmWriter(out, extractor.provenance, "" if stored else relpath(root, out), films_per_shard)
    done = writer.done()
    todo = [x for x in names if x not in done]
    told = read_annotations(captions, {_video(x) for x in todo}, how) if captions else {}
    counts, skipped = _Counts(), list[str]()
    with Bar("extract", len(todo), show, "films") as bar:
        for number, name in enumerate(todo):
            try:
                given = told.get(_video(name))
                # first: a bad subtitle file costs no decoding
                tracks = [Track(language, tuple(given))] if given else _tracks(root / name, language, how)
                writer.add(_film(root, name, extractor, batch, tracks, counts))
            except BadInput as error:
                if on_error == "stop":
                    raise
                skipped.append(str(error))
            bar.show(number + 1)
    if not done and len(skipped) == len(todo):
        raise BadInput(f"{root}: none of its {len(names)} videos can be used; the first: {skipped[0]}")
    writer.finish()
    note(out / SKIPPED, skipped)
    return counts.report(len(done), len(todo), skipped, time.monotonic() - began)


def _video(name: str) -> str:
    """What a film is called in annotations: its name without endings, VIDEO.mp4.npy included."""
    stem = Path(name).stem
    return Path(stem).stem if Path(stem).suffix in SUFFIXES else stem


def _film(
    root: Path, name: str, extractor: ClipExtractor, batch: int, tracks: Sequence[Track], counts: _Counts
) -> FilmRecord:
    """One film, read to its end."""
    tally, features, starts, length = Tally(), list[Array](), list[float](), float(extractor.sampling.length)
    if isinstance(extractor, StoredClips):
        features = [extractor.read(root / name)]
        starts = [i * length for i in range(len(features[0]))]
        tally = Tally(len(starts) * length, clips=len(starts))
    else:
        for some in _ahead(root / name, extractor, batch, tally):
            features.append(extractor(stacked(some)))
            starts += [x.start for x in some]
    end = starts[-1] + length
    kept = tuple(Track(x.language, tuple(y for y in x.sentences if y.start < end)) for x in tracks)
    kept = tuple(x for x in kept if x.sentences)
    counts.clips += tally.clips
    counts.frames += tally.frames
    counts.left_over += tally.left_over
    counts.without_speech += not kept
    counts.outside += sum(len(x.sentences) for x in tracks) - sum(len(x.sentences) for x in kept)
    for track in kept:
        counts.sentences[track.language] += len(track.sentences)
    first = name.split("/")[0]
    split = first if first in SPLITS and "/" in name else "train"
    return FilmRecord(name, tally.seconds, np.concatenate(features), np.array(starts), kept, split)


def _tracks(video: Path, language: str, how: Segmentation) -> list[Track]:
    found: dict[str, Track] = {}
    for said, path in find_subtitles(video).items():
        name = said or language
        if name in found:
            raise BadInput(
                f"{path}: {video.name} has subtitles in {name} already; name the language in the file's name"
            )
        found[name] = Track(name, tuple(read_subtitles(path, how)))
    return list(found.values())


def _ahead(path: Path, extractor: ClipExtractor, batch: int, tally: Tally) -> Iterator[list[Clip]]:
    """Batches of a film's clips, decoded by a thread that is at most AHEAD of them in front."""
    ready: queue.Queue[list[Clip] | Exception | None] = queue.Queue(AHEAD)
    stop = threading.Event()

    def give(item: list[Clip] | Exception | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                pass

    def decode() -> None:
        held: list[Clip] = []
        try:
            for clip in clips(path, extractor.sampling, extractor.shrink, tally, max(1, torch.get_num_threads())):
                held.append(clip)
                if len(held) == batch:
                    give(held)
                    held = []
                if stop.is_set():
                    return
            if held:
                give(held)
            give(None)
        except Exception as error:
            give(error)

    thread = threading.Thread(target=decode, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
