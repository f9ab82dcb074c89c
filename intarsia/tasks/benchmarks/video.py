"""Videos: what is said of them (YouCook2, MSR-VTT), what is done in them (UCF101, HMDB51, at every moment: COIN), and what will be done next (Breakfast, 50Salads, ActivityNet).

An item names its video in place of a picture, and the seconds of it that it shows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import Annotations, Item, at, each, find_file, of_split, read_json, read_table

ALL = (0.0, math.inf)
YOUCOOK2 = {"train": "training", "val": "validation"}
MSR_VTT = {"train": "train", "val": "validate", "test": "test"}
ACTIVITYNET = {"train": "training", "val": "validation"}
COIN = {"train": "training", "test": "testing"}
MOMENT, AROUND = 1.5, 5.0
"""Seconds between moments that are labelled, and seen on each side."""
HORIZON, PAST = 1.0, 70.5
"""Seconds before an action that anticipation stops at, and seconds of past it sees: 47 or 48 clips of 1.5 s. Source: CBT, from memory of the paper."""
NO_ACTION = frozenset(("SIL", "action_start", "action_end", "background"))
FRAMES = {"breakfast": (15.0, 4), "50salads": (30.0, 5)}
"""Frames a second of the labels, and how many splits there are."""


def lists(count: int) -> tuple[str, ...]:
    """The splits of a benchmark that has several: train1, test1, train2, .."""
    return tuple(f"{side}{i}" for i in range(1, count + 1) for side in ("train", "test"))


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if line.strip():
                yield f"{path}: line {number}", line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None


def _seconds(entry: Any, where: str) -> tuple[float, float]:
    try:
        start, end = map(float, at(entry, "segment", where))
    except (TypeError, ValueError):
        raise BadInput(f"{where}: segment {entry['segment']!r} is not two numbers") from None
    if not 0 <= start < end:
        raise BadInput(f"{where}: a segment from {start:g} s to {end:g} s")
    return start, end


# ---------------------------------------------------------------------------------------------------------------- sentences


def youcook2(name: str, root: Path, split: str) -> Annotations:
    """`youcookii_annotations_trainval.json`: a sentence a segment. Data: Zhou et al. 2018."""
    path, items, gold = find_file(root, "youcookii_annotations_trainval.json"), list[Item](), dict[str, Any]()
    part = of_split(YOUCOOK2, split, name)
    for video, about in at(read_json(path), "database", str(path), dict).items():
        where = f"{path}: video {video}"
        if at(about, "subset", where) != part:
            continue
        for number, x in enumerate(each(about, "annotations", where)):
            text = str(at(x, "sentence", where)).strip()
            key = f"{video}@{x.get('id', number)}"
            items.append(Item(key, (text,), (video,), span=_seconds(x, where)))
            gold[key] = ((text,), "")
    return Annotations(name, split, tuple(items), gold)


def _msr_vtt(root: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The part of each clip, and its captions."""
    path = find_file(root, "MSRVTT_data.json", "train_val_videodatainfo.json", "videodatainfo*.json")
    content, parts, said = read_json(path), dict[str, str](), dict[str, list[str]]()
    for x in each(content, "videos", str(path)):
        parts[str(at(x, "video_id", str(path)))] = str(at(x, "split", f"{path}: video {x.get('video_id')}"))
    for x in each(content, "sentences", str(path)):
        video, where = str(at(x, "video_id", str(path))), f"{path}: sentence {x.get('sen_id')}"
        if video not in parts:
            raise BadInput(f"{where}: there is no video {video!r}")
        said.setdefault(video, []).append(str(at(x, "caption", where)).strip())
    return parts, said


def msr_vtt(root: Path, split: str) -> Annotations:
    """Retrieval: 9,000 clips to train on and 1,000 captions of as many (1k-A) where their lists are there. Data: Xu et al. 2016, Yu et al. 2018.

    `MSRVTT_train.9k.csv` names the former; `MSRVTT_JSFUSION_test.csv`, the split "test", has the latter with one caption each. Without the first, and for "val",
    the parts are those of the annotation file.
    """
    part = of_split(MSR_VTT, split, "msr-vtt")
    if split == "test":
        path = find_file(root, "MSRVTT_JSFUSION_test.csv")
        rows = [(str(at(x, "video_id", str(path))), str(at(x, "sentence", str(path)))) for x in read_table(path)]
        items = [Item(f"{video}#0", (text,), (video,), span=ALL) for video, text in rows]
        return Annotations("msr-vtt", split, tuple(items), {x.key: x.pictures[0] for x in items})
    parts, said = _msr_vtt(root)
    some = sorted(root.rglob("MSRVTT_train.9k.csv")) if split == "train" else []
    wanted = (
        [str(at(x, "video_id", str(some[0]))) for x in read_table(some[0])]
        if some
        else [x for x in parts if parts[x] == part]
    )
    if lost := next((x for x in wanted if x not in said), None):
        raise BadInput(f"{root}: clip {lost!r} of split {split!r} has no captions")
    items = [
        Item(f"{video}#{i}", (text,), (video,), also=tuple(said[video][:i] + said[video][i + 1 :]), span=ALL)
        for video in wanted
        for i, text in enumerate(said[video])
    ]
    return Annotations("msr-vtt", split, tuple(items), {x.key: x.pictures[0] for x in items})


def msr_vtt_captions(root: Path, split: str) -> Annotations:
    """Captions to be written: 6,513, 497 and 2,990 clips, 20 captions each."""
    part = of_split(MSR_VTT, split, "msr-vtt-captions")
    parts, said = _msr_vtt(root)
    wanted = [x for x in parts if parts[x] == part and x in said]
    items = [
        Item(f"{video}#{i}", (text,), (video,), also=tuple(said[video][:i] + said[video][i + 1 :]), span=ALL)
        for video in wanted
        for i, text in enumerate(said[video])
    ]
    return Annotations("msr-vtt-captions", split, tuple(items), {x: (tuple(said[x]), "") for x in wanted})


# ------------------------------------------------------------------------------------------------------------------ actions


def _side(name: str, split: str, count: int) -> tuple[str, int]:
    of_split({x: x for x in lists(count)}, split, name)
    return split.rstrip("0123456789"), int(split[-1])


def _classified(name: str, split: str, found: Mapping[str, tuple[str, str]]) -> Annotations:
    """Items by key: the video and its class."""
    items = [Item(key, (), (video,), ((kind, 1.0),), span=ALL) for key, (video, kind) in found.items()]
    return Annotations(name, split, tuple(items), {key: kind for key, (_, kind) in found.items()})


def ucf101(root: Path, split: str) -> Annotations:
    """`trainlist01.txt`, `testlist01.txt`: class/video.avi a line, in training its number behind. Data: Soomro et al. 2012."""
    side, number = _side("ucf101", split, 3)
    found = {}
    for where, line in _lines(find_file(root, f"{side}list{number:02d}.txt")):
        kind, slash, video = line.split()[0].partition("/")
        if not slash or not video:
            raise BadInput(f"{where}: {line[:60]!r} is not class/video")
        found[video] = (video, kind)
    return _classified("ucf101", split, found)


def hmdb51(root: Path, split: str) -> Annotations:
    """`CLASS_test_split1.txt`: video.avi and 1 = training, 2 = test, 0 = neither, a line. Data: Kuehne et al. 2011."""
    side, number = _side("hmdb51", split, 3)
    paths = sorted(root.rglob(f"*_test_split{number}.txt"))
    if not paths:
        raise BadInput(f"{root}: holds no CLASS_test_split{number}.txt")
    found = {}
    for path in paths:
        for where, line in _lines(path):
            video, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2") or not video:
                raise BadInput(f"{where}: {line[:60]!r} is not video and 0, 1 or 2")
            if use == {"train": "1", "test": "2"}[side]:
                found[video.strip()] = (video.strip(), path.name.partition("_test_split")[0])
    return _classified("hmdb51", split, found)


# ------------------------------------------------------------------------------------------------------------- anticipation


def _next(name: str, split: str, videos: Mapping[str, list[tuple[float, str]]]) -> Annotations:
    """An item for each action of each video, by its start, that begins late enough for some past: its class, and the past that ends before it."""
    items, gold = [], {}
    for video, actions in videos.items():
        for number, (start, kind) in enumerate(sorted(actions)):
            end = start - HORIZON
            if end <= 0:
                continue
            key = f"{video}@{number}"
            items.append(Item(key, (), (video,), ((kind, 1.0),), span=(max(0.0, end - PAST), end)))
            gold[key] = kind
    return Annotations(name, split, tuple(items), gold)


def framewise(name: str, root: Path, split: str) -> Annotations:
    """`splits/train.split1.bundle` names files of `groundTruth/`, a label for every frame. Data: Kuehne et al. 2014 (Breakfast), Stein and McKenna 2013 (50Salads)."""
    rate, count = FRAMES[name]
    side, number = _side(name, split, count)
    videos = {}
    for where, line in _lines(find_file(root, f"{side}.split{number}.bundle")):
        file = re.split(r"[\\/]", line)[-1]
        path = next(iter(sorted(root.rglob(f"groundTruth/{file}"))), None)
        if path is None:
            raise BadInput(f"{where}: groundTruth/{file} is not there")
        place, actions = 0, []
        for kind, frames in groupby(label for _, label in _lines(path)):
            if kind not in NO_ACTION:
                actions.append((place / rate, kind))
            place += len(list(frames))
        videos[file.removesuffix(".txt")] = actions
    return _next(name, split, videos)


def activitynet(root: Path, split: str) -> Annotations:
    """`activity_net.v1-3.min.json`: segments with labels; a video is called v_ID. Data: Caba Heilbron et al. 2015."""
    path, part, videos = find_file(root, "activity_net.v1-3.min.json"), of_split(ACTIVITYNET, split, "activitynet"), {}
    for video, about in at(read_json(path), "database", str(path), dict).items():
        where = f"{path}: video {video}"
        if at(about, "subset", where) == part:
            rows = each(about, "annotations", where)
            videos[f"v_{video}"] = [(_seconds(x, where)[0], str(at(x, "label", where))) for x in rows]
    return _next("activitynet", split, videos)


def coin(root: Path, split: str) -> Annotations:
    """`COIN.json`: every moment of a video is labelled by the step that it lies in, or as background; frame accuracy. Data: Tang et al. 2019.

    Asked every 1.5 s, of what is seen up to 5 s before and behind: ours, for how CBT's paper did it could not be read.
    """
    path, part, items, gold = (
        find_file(root, "COIN.json"),
        of_split(COIN, split, "coin"),
        list[Item](),
        dict[str, str](),
    )
    for video, about in at(read_json(path), "database", str(path), dict).items():
        where = f"{path}: video {video}"
        if at(about, "subset", where) != part:
            continue
        steps = [(*_seconds(x, where), str(at(x, "label", where))) for x in each(about, "annotation", where)]
        lasts = at(about, "duration", where)
        if not isinstance(lasts, int | float):
            raise BadInput(f"{where}: duration {str(lasts)[:60]!r} is no number")
        for number in range(int(lasts / MOMENT)):
            middle = (number + 0.5) * MOMENT
            key = f"{video}@{number}"
            gold[key] = next((label for start, end, label in steps if start <= middle < end), "background")
            span = (max(0.0, middle - AROUND), middle + AROUND)
            items.append(Item(key, (), (video,), ((gold[key], 1.0),), span=span))
    return Annotations("coin", split, tuple(items), gold)


CLASSES: dict[str, tuple[str, tuple[str, ...], Callable[[Path, str], Annotations]]] = {
    "ucf101": ("UCF101", lists(3), ucf101),
    "hmdb51": ("HMDB51", lists(3), hmdb51),
    "breakfast": ("Breakfast, next action", lists(4), partial(framewise, "breakfast")),
    "50salads": ("50Salads, next action", lists(5), partial(framewise, "50salads")),
    "activitynet": ("ActivityNet, next action", tuple(ACTIVITYNET), activitynet),
    "coin": ("COIN, every moment", tuple(COIN), coin),
}
"""Benchmarks that ask for one class: title, splits, reader."""
