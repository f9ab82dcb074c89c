"""Twins of benchmarks of videos: generated films as vectors, in film shards, with the published annotation files beside them.

The actions of a film come in one order, so that what is done next can be guessed by what was done, though not always.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Array
from intarsia.data.formats.files import write_json, write_lines
from intarsia.data.formats.films import FilmRecord, FilmWriter
from intarsia.data.source import Provenance
from intarsia.worlds.film_features import ACTIONS, LENGTH, SHAPES, WIDTH, FilmWorld

PROVENANCE = Provenance("film-twin", WIDTH, settings={"fps": "20", "frames": "30"})  # 1.5 s a clip
"""Of the clips: vectors of `FilmWorld` as they are, with a rate, which its own need not."""


@dataclass(frozen=True)
class Part:
    """One action of a film."""

    action: str
    text: str
    features: Array
    """(V, F)"""


Shot = tuple[str, str, Sequence[Part]]
"""A film: split, name, actions."""


def _shots(split: str, count: int, seed: int) -> list[Shot]:
    world = FilmWorld(count, seed, split)
    found: list[Shot] = []
    for i in range(count):
        film, told, texts = world[i].film, world.told(i), world[i].texts
        assert film is not None
        parts = [
            Part(
                action,
                text,
                film.features[(film.seconds >= start) & (film.seconds < end)],
            )
            for (action, _, _), text, (start, end) in zip(told, texts, film.spans.tolist(), strict=True)
        ]
        found.append((split, f"{split}{i:05d}", sorted(parts, key=lambda x: ACTIONS.index(x.action))))
    return found


def _times(parts: Sequence[Part]) -> list[tuple[float, float]]:
    ends = np.cumsum([len(x.features) * LENGTH for x in parts]).tolist()
    return list(zip([0.0, *ends[:-1]], ends, strict=True))


def write_films(benchmark: str, folder: Path, train: int, val: int, seed: int) -> Path:
    """Writes the files of a benchmark and the clips of its films.

    Args:
        benchmark: one of `FILMS`.
        folder: where; film shards go to its regions/.
        train: films to train on.
        val: films held out.
        seed: of the films.

    Returns:
        The folder of the shards.
    """
    films = FILMS[benchmark](folder, _shots("train", train, seed) + _shots("val", val, seed))
    writer = FilmWriter(folder / "regions", PROVENANCE)
    for name, features in films:
        if name not in writer.done():
            starts = np.arange(len(features), dtype=np.float32) * LENGTH
            writer.add(FilmRecord(name, len(features) * LENGTH, features, starts))
    writer.finish()
    return folder / "regions"


Films = Iterable[tuple[str, Array]]
"""Names and the features of their clips."""


def _whole(shots: Sequence[Shot], ending: str = ".mp4") -> Films:
    return [(f"{name}{ending}", np.concatenate([x.features for x in parts])) for _, name, parts in shots]


def _youcook2(folder: Path, shots: Sequence[Shot]) -> Films:
    said = {
        name: {
            "subset": {"train": "training", "val": "validation"}[split],
            "duration": _times(parts)[-1][1],
            "recipe_type": "0",
            "annotations": [
                {"segment": list(span), "id": i, "sentence": x.text}
                for i, (x, span) in enumerate(zip(parts, _times(parts), strict=True))
            ],
        }
        for split, name, parts in shots
    }
    write_json(folder / "youcookii_annotations_trainval.json", {"database": said})
    return _whole(shots)


def _named(folder: Path, shots: Sequence[Shot]) -> Films:
    """With the lists of words that name what is done, and with what."""
    write_lines(folder / "verbs.txt", ACTIONS)
    write_lines(folder / "objects.txt", SHAPES)
    return _youcook2(folder, shots)


def _msr_vtt(folder: Path, shots: Sequence[Shot]) -> Films:
    """The test is the validation films once more, a caption each."""
    videos, sentences, test = list[Any](), list[Any](), list[Any]()
    for split, name, parts in shots:
        end = _times(parts)[-1][1]
        part = {"train": "train", "val": "validate"}[split]
        videos.append({"video_id": name, "start time": 0.0, "end time": end, "split": part, "category": 0})
        for x in parts:
            sentences.append({"sen_id": len(sentences), "video_id": name, "caption": x.text})
        if split == "val":
            test.append((f"ret{len(test)}", f"msr{len(test)}", name, parts[0].text))
    write_json(folder / "MSRVTT_data.json", {"info": {}, "videos": videos, "sentences": sentences})
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("key", "vid_key", "video_id", "sentence"), *test])
    write_lines(folder / "MSRVTT_JSFUSION_test.csv", table.getvalue().splitlines())
    return _whole(shots)


def _cut(shots: Sequence[Shot]) -> list[tuple[str, str, str, Array]]:
    """Split, name, class and clips of each action by itself."""
    return [
        (s, f"v_{x.action}_{name}_{i}.avi", x.action, x.features)
        for s, name, parts in shots
        for i, x in enumerate(parts)
    ]


def _ucf101(folder: Path, shots: Sequence[Shot]) -> Films:
    pieces, number = _cut(shots), {x: i for i, x in enumerate(ACTIONS, start=1)}
    for k in (1, 2, 3):
        train = [f"{kind}/{name} {number[kind]}" for split, name, kind, _ in pieces if split == "train"]
        write_lines(folder / f"trainlist{k:02d}.txt", train)
        write_lines(
            folder / f"testlist{k:02d}.txt", [f"{kind}/{name}" for split, name, kind, _ in pieces if split == "val"]
        )
    write_lines(folder / "classInd.txt", [f"{i} {x}" for x, i in number.items()])
    return [(name, features) for _, name, _, features in pieces]


def _hmdb51(folder: Path, shots: Sequence[Shot]) -> Films:
    pieces = _cut(shots)
    for kind in {x[2] for x in pieces}:
        mine = [f"{name} {1 if split == 'train' else 2}" for split, name, k, _ in pieces if k == kind]
        for k in (1, 2, 3):
            write_lines(folder / f"{kind}_test_split{k}.txt", mine)
    return [(name, features) for _, name, _, features in pieces]


def _framewise(rate: int, count: int) -> Callable[[Path, Sequence[Shot]], Films]:
    def write(folder: Path, shots: Sequence[Shot]) -> Films:
        for _, name, parts in shots:
            frames = [x.action for x in parts for _ in range(round(len(x.features) * LENGTH * rate))]
            write_lines(folder / "groundTruth" / f"{name}.txt", frames)
        for k in range(1, count + 1):
            for side, part in (("train", "train"), ("test", "val")):
                write_lines(
                    folder / "splits" / f"{side}.split{k}.bundle", [f"{name}.txt" for s, name, _ in shots if s == part]
                )
        return _whole(shots)

    return write


def _activitynet(folder: Path, shots: Sequence[Shot]) -> Films:
    said = {
        name: {
            "subset": {"train": "training", "val": "validation"}[split],
            "duration": _times(parts)[-1][1],
            "annotations": [
                {"segment": list(span), "label": x.action} for x, span in zip(parts, _times(parts), strict=True)
            ],
        }
        for split, name, parts in shots
    }
    write_json(folder / "activity_net.v1-3.min.json", {"version": "1.3", "taxonomy": [], "database": said})
    return [(f"v_{name}", features) for name, features in _whole(shots)]


def _coin(folder: Path, shots: Sequence[Shot]) -> Films:
    """Every other action is a step; what lies between is background."""
    said = {
        name: {
            "subset": {"train": "training", "val": "testing"}[split],
            "class": "Film",
            "duration": _times(parts)[-1][1],
            "annotation": [
                {"id": str(i), "segment": list(span), "label": x.action}
                for i, (x, span) in enumerate(zip(parts, _times(parts), strict=True))
                if i % 2 == 0
            ],
        }
        for split, name, parts in shots
    }
    write_json(folder / "COIN.json", {"database": said})
    return _whole(shots)


FILMS: dict[str, Callable[[Path, Sequence[Shot]], Films]] = {
    "youcook2": _youcook2,
    "youcook2-captions": _youcook2,
    "youcook2-words": _named,
    "msr-vtt": _msr_vtt,
    "msr-vtt-captions": _msr_vtt,
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "breakfast": _framewise(15, 4),
    "50salads": _framewise(30, 5),
    "activitynet": _activitynet,
    "coin": _coin,
}
"""By benchmark."""
