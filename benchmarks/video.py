"""Reading videos: frames a second and memory, by the length of the film.

    python benchmarks/video.py                          generated films: 320 x 240 of 1 and 8 minutes, 1280 x 720 of half a minute
    python benchmarks/video.py FILE ..                  your own files
    python benchmarks/video.py --extractor frames       with a clip extractor behind it
    python benchmarks/video.py --folders 8 64           memory of `extract video` and `data cluster` by the number of films

Every film is read in a process of its own, so that the peak of its memory is its own (Linux).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from intarsia.data.formats.films import FilmSource
from intarsia.data.video import Sampling, Tally, clips, stacked, write_video
from intarsia.extract_video import extract_video
from intarsia.features.clips import open_clip_extractor
from intarsia.features.kmeans import drawn, fit, quantised
from intarsia.worlds.films import FilmConfig, FilmWorld, write_films

FILMS, FPS = ((320, 240, 60), (320, 240, 480), (1280, 720, 30)), 25


def main() -> None:
    """Makes films where none are named, and reads each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--extractor", default="")
    parser.add_argument("--folders", type=int, nargs="*", default=[], help="numbers of films")
    parser.add_argument("--alone", action="store_true", help="read one file or folder in this process")
    options = parser.parse_args()
    if options.alone:
        path = options.files[0]
        extract(path, options.extractor) if Path(path).is_dir() else read(path, options.extractor)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for count in options.folders:
            folder = write_films(FilmWorld(FilmConfig(fps=8), count=count), Path(scratch) / str(count))
            subprocess.run([sys.executable, __file__, "--alone", "--extractor", "motion", str(folder)], check=True)
        if options.folders:
            return
        for path in options.files or made(Path(scratch)):
            subprocess.run([sys.executable, __file__, "--alone", "--extractor", options.extractor, path], check=True)


def read(path: str, name: str) -> None:
    """Reads a film at 20 frames a second in clips of 30, every third frame shrunk, or with an extractor."""
    tally = Tally()
    extractor = open_clip_extractor(name) if name else None
    before = peak()
    began = time.perf_counter()
    if extractor is None:
        for _ in clips(path, Sampling(look=tuple(range(0, 30, 3))), lambda x: x[::4, ::4].copy(), tally, 1):
            pass
    else:
        for clip in clips(path, extractor.sampling, extractor.shrink, tally, 1):
            extractor(stacked([clip]))
    took = time.perf_counter() - began
    print(
        f"{Path(path).name}: {tally.seconds:.0f} s, {tally.frames:,} frames, {tally.clips:,} clips: "
        f"{tally.frames / took:,.0f} frames/s, {tally.seconds / took:.1f} times real time, memory +{peak() - before:.0f} MB"
    )


def extract(folder: str, name: str) -> None:
    """Extracts a folder of films and grows a tree on 500 of their clips."""
    out, extractor = Path(folder) / "clips", open_clip_extractor(name)
    before = peak()
    report = extract_video(folder, out, extractor, show=False)
    after = peak()
    clips, total = drawn(FilmSource(out), 500)
    quantised(FilmSource(out), fit(clips, 8, 3))
    print(
        f"{report.films} films, {total:,} clips: extraction memory +{after - before:.0f} MB, "
        f"then clustering +{peak() - after:.0f} MB"
    )


def peak() -> float:
    """The most memory this process has held, MB; not what the one that started it had, as getrusage would say."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s*(\d+)", status)[0]) / 1024


def made(folder: Path) -> Iterator[str]:
    """Films of drifting noise: hard to compress, cheap to draw."""
    for wide, high, seconds in FILMS:
        noise = np.random.default_rng(0).integers(0, 256, (high // 8, wide // 8, 3), dtype=np.uint8)
        path, picture = folder / f"{wide}x{high}.mp4", noise.repeat(8, 0).repeat(8, 1)
        write_video(path, (np.roll(picture, i % wide, 1) for i in range(seconds * FPS)), FPS)
        yield str(path)


if __name__ == "__main__":
    main()
