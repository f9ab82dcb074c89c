"""Video files: decoded once from front to back, sampled at an exact rate by their time stamps, cut into clips.

Time 0 is where a player's clock starts (the container's start), so that subtitles fit. Tick n of a rate is the frame on the screen nearest to n / rate
seconds: the last one whose time stamp, in ticks and rounded, is at most n, which is what ffmpeg's `fps` filter keeps. Frames of variable rate, of a rate
that does not divide, or that are missing change nothing but which picture is repeated.

Memory does not grow with a video's length: what is held is one decoded frame and the pictures of one clip. PyAV does the decoding (extra `video`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intarsia.batch import Sample
from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput, needs_extra

Array = NDArray[Any]
SUFFIXES = (".mp4", ".mkv", ".webm", ".m4v", ".mov", ".avi")
SHORT = Fraction(1)
"""A video that ends so many seconds before its header says is cut short."""


@dataclass(frozen=True)
class Sampling:
    """How a video is cut into clips, one behind the other."""

    fps: Fraction = Fraction(20)
    """Ticks a second."""
    frames: int = 30
    """Ticks a clip."""
    look: tuple[int, ...] = ()
    """Which ticks of a clip are wanted; empty = all. The others are never made into pictures."""

    def __post_init__(self) -> None:
        if self.fps <= 0 or self.frames < 1 or not all(0 <= x < self.frames for x in self.look):
            raise BadInput(
                f"clips of {self.frames} frames at {self.fps} a second, of which {self.look or 'all'} wanted"
            )

    @property
    def length(self) -> Fraction:
        """Seconds a clip lasts."""
        return self.frames / self.fps

    @property
    def ticks(self) -> tuple[int, ...]:
        """The ticks of a clip that are wanted."""
        return self.look or tuple(range(self.frames))


@dataclass(frozen=True)
class Clip:
    """One clip of a video."""

    start: float
    """Seconds from the start of the video."""
    pixels: Array
    """(T, H, W, 3) uint8, the wanted ticks, as `shrink` left them."""


@dataclass
class Tally:
    """What was read of a video; right once it was read to its end."""

    seconds: float = 0.0
    """Where its last frame ends."""
    frames: int = 0
    """Frames decoded."""
    clips: int = 0
    left_over: float = 0.0
    """Seconds at the end that are less than half a clip and in none."""


def find_videos(root: Path, suffixes: Sequence[str] = SUFFIXES) -> list[str]:
    """Names of the video files in a folder and those below it, in order; or of files with other endings.

    Raises:
        BadInput: no such folder, or none in it.
    """
    if not root.is_dir():
        raise BadInput(f"{root}: no such folder")
    names = sorted(
        x.relative_to(root).as_posix() for x in root.rglob("*") if x.suffix.lower() in suffixes and x.is_file()
    )
    if not names:
        raise BadInput(f"{root}: no video in it ({', '.join(suffixes)})")
    return names


# -------------------------------------------------------------------------------------------------------------- reading


def frames(path: str | Path, tally: Tally | None = None, threads: int = 0) -> Iterator[tuple[Fraction, Fraction, Any]]:
    """Every frame of a video, decoded once, in order of time.

    Args:
        path: the file.
        tally: counts along.
        threads: of the decoder; 0 = as many as it likes.

    Yields:
        When the frame begins and how long it stays, in seconds, and the frame (PyAV's).

    Raises:
        BadInput: not a video, no pictures in it (audio only), a damaged frame, time running back, or cut short.
    """
    tally = Tally() if tally is None else tally
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        zero = Fraction(container.start_time or 0, 1_000_000)
        begins: Fraction | None = None
        ends = Fraction(0)
        usual = Fraction(1) / stream.average_rate if stream.average_rate else Fraction(1, 25)
        for frame in container.decode(stream):
            stamp = frame.pts if frame.pts is not None else frame.dts
            now = ends if stamp is None else stamp * frame.time_base - zero
            if frame.is_corrupt:
                raise BadInput(f"{path}: the frame at {float(now):.3f} s is damaged")
            if begins is not None and now < begins:
                raise BadInput(f"{path}: time runs back from {float(begins):.3f} s to {float(now):.3f} s")
            stays = frame.duration * frame.time_base if frame.duration else usual
            begins, ends = now, now + stays
            tally.frames += 1
            tally.seconds = float(ends)
            yield now, stays, frame
        if begins is None:
            raise BadInput(f"{path}: not one frame can be decoded")
        said = _said(container, stream)
        if said is not None and said - ends > SHORT:
            raise BadInput(f"{path}: cut short: its last frame ends at {float(ends):.2f} s of {float(said):.2f} s")


def _said(container: Any, stream: Any) -> Fraction | None:
    """Seconds of pictures that the header promises, as far as it speaks of the pictures alone."""
    if stream.duration is not None:
        start = stream.start_time or 0
        zero = Fraction(container.start_time or 0, 1_000_000)
        return Fraction((stream.duration + start) * stream.time_base) - zero
    alone = all(x.type == "video" for x in container.streams)
    return Fraction(container.duration, 1_000_000) if container.duration and alone else None


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    try:
        import av
    except ImportError:
        raise needs_extra("video", "av") from None
    if not Path(path).is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                kinds = ", ".join(sorted({x.type for x in container.streams})) or "nothing"
                raise BadInput(f"{path}: has no pictures, only {kinds}")
            yield container
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be decoded: {getattr(error, 'strerror', None) or error}") from None


def sampled(
    path: str | Path,
    fps: Fraction,
    wanted: Callable[[int], bool] = lambda tick: True,
    shrink: Callable[[Array], Array] = lambda pixels: pixels,
    tally: Tally | None = None,
    threads: int = 0,
) -> Iterator[tuple[int, Array | None]]:
    """The ticks of a rate, in order, each with the picture on the screen then.

    Args:
        path: the file.
        fps: ticks a second.
        wanted: whether a tick's picture is needed; frames that none needs are decoded but never converted.
        shrink: what is done with each (H, W, 3) uint8 RGB picture, once however many ticks show it.
        tally: counts along.
        threads: of the decoder; 0 = as many as it likes.

    Yields:
        The tick's number and its picture; None where it is not wanted.

    Raises:
        BadInput: as `frames`.
    """
    held: Any = None
    done: Array | None = None
    next_tick, last = 0, Fraction(0)

    def until(tick: int) -> Iterator[tuple[int, Array | None]]:
        nonlocal next_tick, done
        while next_tick < tick:
            if wanted(next_tick) and done is None:
                done = shrink(_upright(held))
            yield next_tick, done if wanted(next_tick) else None
            next_tick += 1

    for begins, stays, frame in frames(path, tally, threads):
        if held is not None:  # before the first frame its picture stands
            yield from until(_ticks(begins * fps))
        held, done, last = frame, None, begins + stays
    yield from until(_ticks(last * fps))


def _ticks(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def _upright(frame: Any) -> Array:
    pixels: Array = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # counter-clockwise, as a phone notes it
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def clips(
    path: str | Path,
    sampling: Sampling,
    shrink: Callable[[Array], Array] = lambda pixels: pixels,
    tally: Tally | None = None,
    threads: int = 0,
) -> Iterator[Clip]:
    """The clips of a video, one behind the other from time 0.

    A last clip of which at least half is there is filled up with its last picture; less than that is left out and counted.

    Args:
        path: the file.
        sampling: rate and length.
        shrink: what is done with each picture; all must come out of one size.
        tally: counts along.
        threads: of the decoder; 0 = as many as it likes.

    Raises:
        BadInput: as `frames`; or the whole video is shorter than half a clip.
    """
    tally = Tally() if tally is None else tally
    ticks, size = frozenset(sampling.ticks), sampling.frames
    pictures: list[Array] = []
    newest: Array | None = None
    tick = -1

    def made() -> Clip:
        assert tally is not None
        tally.clips += 1
        return Clip(float(tick // size * sampling.length), np.stack(pictures))

    for tick, picture in sampled(path, sampling.fps, lambda t: t % size in ticks, shrink, tally, threads):
        if picture is not None:
            newest = picture
            pictures.append(picture)
        if tick % size == size - 1:
            yield made()
            pictures = []
    rest = (tick + 1) % size
    if rest and newest is not None and 2 * rest >= size:
        pictures += [newest] * (len(ticks) - len(pictures))
        yield made()
    elif rest:
        tally.left_over = float(rest / sampling.fps)
    if not tally.clips:
        raise BadInput(f"{path}: {tally.seconds:.2f} s long, less than half a clip of {float(sampling.length):.2f} s")


# -------------------------------------------------------------------------------------------------------------- writing


def write_video(path: str | Path, pictures: Iterable[Array], fps: int, codec: str = "libx264") -> None:
    """Writes pictures as a video, whole or not at all; the ending of its name says the container.

    Args:
        path: the file.
        pictures: (H, W, 3) uint8 RGB each, all of one size with even sides; at least one.
        fps: pictures a second.
        codec: FFmpeg's name of the encoder.

    Raises:
        BadInput: PyAV has no such encoder, or refuses the pictures.
    """
    try:
        import av
    except ImportError:
        raise needs_extra("video", "av") from None
    path = Path(path)
    with write_whole(path) as temporary:
        try:
            with av.open(str(temporary), "w", format=path.suffix.lstrip(".").replace("mkv", "matroska")) as container:
                stream: Any = container.add_stream(codec, rate=fps)
                stream.pix_fmt = "yuv420p"
                for number, picture in enumerate(pictures):
                    if not number:
                        stream.height, stream.width = picture.shape[:2]
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts, frame.time_base = number, Fraction(1, fps)
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
        except (av.FFmpegError, ValueError) as error:
            raise BadInput(f"{path}: cannot be written: {error}") from None


# ------------------------------------------------------------------------------------------------------------ alignment


def clips_within(spans: Array, starts: Array, length: float) -> Array:
    """Which clips belong to spans of time: those whose middle lies in the span, or else the one that holds the span's middle.

    So spans that follow one another share no clip unless one is shorter than a clip, and a span of k clip lengths has at most k + 1.

    Args:
        spans: (S, 2) seconds.
        starts: (V) seconds, ascending, when each clip begins.
        length: seconds a clip lasts.

    Returns:
        (S, 2) int64, the first clip and the one behind the last; equal where the video has no clip then.
    """
    middles = np.asarray(starts, np.float64) + length / 2
    spans = np.asarray(spans, np.float64).reshape(-1, 2)
    found = np.stack([np.searchsorted(middles, spans[:, 0]), np.searchsorted(middles, spans[:, 1])], 1).astype(np.int64)
    holds = np.searchsorted(middles - length / 2, spans.mean(1), side="right") - 1
    inside = (
        (holds >= 0) & (spans.mean(1) < middles[holds] + length / 2) if len(middles) else np.zeros(len(spans), bool)
    )
    narrow = (found[:, 0] >= found[:, 1]) & inside
    found[narrow] = np.stack([holds, holds + 1], 1)[narrow]
    found[:, 1] = np.maximum(found[:, 0], found[:, 1])
    return found


def passages(spans: Array, starts: Array, length: float, most: float, silent: int) -> list[tuple[int, int, int, int]]:
    """Cuts a video into passages: as many consecutive sentences as fit into `most` seconds, at least one.

    Args:
        spans: (S, 2) seconds, the sentences in order of their starts.
        starts: (V) seconds, when each clip begins.
        length: seconds a clip lasts.
        most: seconds from the first sentence's start to the last one's end, and of clips.
        silent: clips a passage where nobody speaks (S = 0).

    Returns:
        First sentence, the one behind the last, first clip, the one behind the last. Passages without clips are left out.
    """
    count = len(starts)
    if not len(spans):
        return [(0, 0, at, min(at + silent, count)) for at in range(0, count, silent)]
    limit = max(1, int(most / length + 1e-6))
    ends = np.maximum.accumulate(np.asarray(spans[:, 1], np.float64))
    found, at = [], 0
    while at < len(spans):
        begin = float(spans[at, 0])
        after = max(at + 1, int(np.searchsorted(ends, begin + most + 1e-6, side="right")))
        first, last = clips_within(np.array([[begin, ends[after - 1]]]), starts, length)[0].tolist()
        if last > first:
            found.append((at, after, first, min(last, first + limit)))
        at = after
    return found


def sentence(sample: Sample, number: int) -> Sample:
    """One sentence of a passage with the clips of its time, under the key "passage/number"."""
    film = sample.film
    assert film is not None, f"{sample.key}: needs a film"
    span = film.spans[number : number + 1]
    clips = slice(*clips_within(span, film.seconds, film.length)[0].tolist())
    ids = None if film.ids is None else film.ids[clips]
    cut = replace(film, features=film.features[clips], seconds=film.seconds[clips], spans=span, ids=ids)
    return replace(sample, key=f"{sample.key}/{number}", texts=(sample.texts[number],), film=cut)


def picture_at(path: str | Path, second: float) -> Array:
    """The picture (H, W, 3) uint8 RGB on the screen at a moment of a video; the last one behind its end. Decodes all before it.

    Raises:
        BadInput: as `frames`.
    """
    shown: Any = None
    for begins, _, frame in frames(path, threads=1):
        if shown is not None and begins > second:
            break
        shown = frame
    return _upright(shown)


def sampling_of(settings: dict[str, str]) -> Sampling:
    """The sampling that a clip extractor's provenance notes."""
    return Sampling(Fraction(settings["fps"]), int(settings["frames"]))


def evenly(frames: int, count: int) -> tuple[int, ...]:
    """Which `count` ticks of a clip stand for it: the middles of as many equal parts."""
    count = min(count, frames)
    return tuple((2 * i + 1) * frames // (2 * count) for i in range(count))


def stacked(clips: Sequence[Clip]) -> Array:
    """(B, T, H, W, 3) the pixels of clips of one size."""
    return np.stack([x.pixels for x in clips])
