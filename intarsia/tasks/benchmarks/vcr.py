"""VCR, its published files: a line a question, and the boxes of its objects beside the picture. Data: Zellers et al. 2019."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Array, Covering
from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import (
    Annotations,
    Box,
    Item,
    Mention,
    at,
    find_file,
    number,
    of_split,
    read_json,
    read_lines,
)
from intarsia.tasks.benchmarks.table import Predictions
from intarsia.tasks.metrics import choices, submissions

SPLITS = {"train": "train", "val": "val", "test": "test"}
CHOICES = 4
NAMES = (
    *("Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry"),
    *("Jody", "Kendall", "Peyton", "Skyler", "Frankie", "Pat", "Quinn"),
)
"""What people are called, in the order in which a question and its choices name them. Source: the code of VisualBERT."""


class Speaker:
    """Texts of one question: objects are called by their class, people by a name of `NAMES`."""

    def __init__(self, objects: Sequence[str]) -> None:
        self.objects = objects
        self.named: dict[int, str] = {}

    def name(self, number: int, where: str) -> str:
        """What an object is called.

        Raises:
            BadInput: there is none of that number.
        """
        if not 0 <= number < len(self.objects):
            raise BadInput(f"{where}: object {number} of {len(self.objects)}")
        if self.objects[number] != "person":
            return self.objects[number]
        return self.named.setdefault(number, NAMES[len(self.named) % len(NAMES)])

    def say(self, tokens: Sequence[Any], text: int, where: str) -> tuple[str, list[Mention]]:
        """A text from its tokens, in which a list of numbers stands for objects; and what it mentions."""
        said, mentions = "", list[Mention]()
        for token in tokens:
            said += " " if said else ""
            if not isinstance(token, list):
                said += str(token)
                continue
            for i, thing in enumerate(token):
                said += " and " if i else ""
                if not isinstance(thing, int):
                    raise BadInput(f"{where}: {thing!r} is no number of an object")
                name = self.name(thing, where)
                mentions.append(Mention(text, len(said), len(said) + len(name), thing))
                said += name
        return said, mentions


def answers(root: Path, split: str) -> Annotations:
    """Question to answer."""
    return _read(root, split, ("qa",))


def rationales(root: Path, split: str) -> Annotations:
    """Question and right answer to rationale."""
    return _read(root, split, ("qar",))


def both(root: Path, split: str) -> Annotations:
    """Both questions, two items a line."""
    return _read(root, split, ("qa", "qar"))


def _read(root: Path, split: str, parts: tuple[str, ...]) -> Annotations:
    """`SPLIT.jsonl`, and the boxes of `metadata_fn` where it is there; in the test each rationale is asked beside every answer."""
    path = find_file(root, f"{of_split(SPLITS, split, 'vcr')}.jsonl")
    folders = [x for x in (root / "vcr1images", path.parent / "vcr1images", path.parent, root) if x.is_dir()]
    items, gold, people = [], {}, 0
    for where, x in read_lines(path):
        key, objects = str(at(x, "annot_id", where)), at(x, "objects", where, list)
        if odd := [y for y in objects if not isinstance(y, str)]:
            raise BadInput(f"{where}: object {odd[0]!r} has no name")
        shown = str(at(x, "img_fn", where))
        known = _about(folders, x, where) | {"people": people}
        people += objects.count("person")
        label, reason = (_label(x, name, where) for name in ("answer_label", "rationale_label"))
        gold[key] = (label, reason)
        if "qa" in parts:
            texts, mentions = _texts(x, _choices(x, "answer", where), None, where)
            right = () if label is None else ((str(label), 1.0),)
            items.append(Item(f"{key}/qa", texts, (shown,), right, mentions=mentions, **known))
        for answer in (range(4) if label is None else [label]) if "qar" in parts else ():
            texts, mentions = _texts(x, _choices(x, "rationale", where), _choices(x, "answer", where)[answer], where)
            right = () if reason is None else ((str(reason), 1.0),)
            name = f"{key}/qar" if label is not None else f"{key}/qar{answer}"
            items.append(Item(name, texts, (shown,), right, mentions=mentions, **known))
    return Annotations("vcr", split, tuple(items), {} if None in next(iter(gold.values()), (None,)) else gold)


def _label(x: Any, name: str, where: str) -> int | None:
    """The number of the right choice of four; None in the test."""
    if x.get(name) is None:
        return None
    found = number(x, name, where)
    if not 0 <= found < CHOICES:
        raise BadInput(f"{where}: {name} {found} is none of 0 to {CHOICES - 1}")
    return found


def _choices(x: Any, kind: str, where: str) -> list[Any]:
    found: list[Any] = at(x, f"{kind}_choices", where, list)
    if len(found) != CHOICES or not all(isinstance(y, list) for y in found):
        raise BadInput(f"{where}: {kind}_choices are not {CHOICES} lists of tokens")
    return found


def _texts(x: Any, offered: list[Any], answer: Any, where: str) -> tuple[tuple[str, ...], tuple[Mention, ...]]:
    speaker = Speaker(at(x, "objects", where))
    tokens = [at(x, "question", where, list), *([] if answer is None else [answer]), *offered]
    said = [speaker.say(part, i, where) for i, part in enumerate(tokens)]
    return tuple(text for text, _ in said), tuple(m for _, mentions in said for m in mentions)


def _about(folders: Sequence[Path], x: Any, where: str) -> dict[str, Any]:
    """What the objects are called and what `metadata_fn` says of them, where it is there, as fields of an item."""
    names = tuple(map(str, at(x, "objects", where)))
    path = next((y for y in (folder / str(x.get("metadata_fn", "")) for folder in folders) if y.is_file()), None)
    if path is None:
        return {"names": names}
    about = read_json(path)
    boxes = _boxes(about, path)
    if len(boxes) != len(names):
        raise BadInput(f"{where}: {len(names)} objects, {path} has {len(boxes)} boxes")
    covers: Callable[[Covering], Array] | None = partial(_covers, path) if boxes and "segms" in about else None
    size = (number(about, "width", str(path)), number(about, "height", str(path)))
    return {"objects": boxes, "names": names, "covers": covers, "size": size}


def _boxes(about: Any, path: Path) -> tuple[Box, ...]:
    found = []
    for b in at(about, "boxes", str(path), list):
        try:
            x1, y1, x2, y2 = map(float, b[:4])
        except (TypeError, ValueError, KeyError):
            raise BadInput(f"{path}: box {str(b)[:60]} is not x1, y1, x2, y2") from None
        found.append((x1, y1, x2, y2))
    return tuple(found)


def _covers(path: Path, rule: Covering) -> Array:
    """(objects, n, n) bool: what of each box its outlines cover by the rule; nothing of an object that has none.

    Raises:
        BadInput: outlines are missing, or one is no list of points.
    """
    about = read_json(path)
    boxes, outlines = _boxes(about, path), at(about, "segms", str(path))
    if len(outlines) != len(boxes):
        raise BadInput(f"{path}: {len(boxes)} boxes, segms of {len(outlines)} objects")
    found = []
    for i, (box, each) in enumerate(zip(boxes, outlines, strict=True)):
        try:
            found.append(rule([np.array(x, np.float64).reshape(len(x), 2) for x in each], box))
        except (TypeError, ValueError):
            raise BadInput(f"{path}: segms of object {i}: {str(each)[:60]} is not a list of [x, y]") from None
    return np.stack(found)


def measure(annotations: Annotations, predictions: Predictions) -> dict[str, float]:
    """Accuracies of what was asked; Q to AR where both were."""
    found: dict[str, float] = {}
    asked = {part: [x for x in annotations.gold if f"{x}/{part}" in predictions] for part in ("qa", "qar")}
    for part, name in (("qa", "Q->A"), ("qar", "QA->R")):
        if keys := asked[part]:
            right = [int(annotations.gold[x][part == "qar"]) for x in keys]
            found[name] = choices.accuracy([predictions[f"{x}/{part}"] for x in keys], right)
    if keys := [x for x in asked["qa"] if x in set(asked["qar"])]:
        labels = np.array([annotations.gold[x] for x in keys], np.int64)
        given = [np.stack([predictions[f"{x}/{part}"] for x in keys]) for part in ("qa", "qar")]
        found["Q->AR"] = choices.vcr(given[0], given[1], labels[:, 0], labels[:, 1]).joint
    return found


def chance(annotations: Annotations) -> float:
    """One in four."""
    return 0.25


def submit(path: Path, annotations: Annotations, predictions: Predictions) -> None:
    """The server's file, from the test with both questions."""
    keys = list(dict.fromkeys(x.key.rsplit("/", 1)[0] for x in annotations.items))
    lacking = next((x for key in keys for x in _names(key) if x not in predictions), None)
    if lacking:
        raise BadInput(
            f"{path}: the server wants answers and rationales beside every answer; {lacking} has no prediction"
        )
    first = {key: _shares(predictions[f"{key}/qa"]) for key in keys}
    second = {key: np.stack([_shares(predictions[x]) for x in _names(key)[1:]]) for key in keys}
    submissions.write_vcr(path, first, second)


def _names(key: str) -> list[str]:
    return [f"{key}/qa", *(f"{key}/qar{i}" for i in range(4))]


def _shares(scores: Any) -> Any:
    likely = np.exp(np.asarray(scores, np.float64) - np.max(scores))
    return likely / likely.sum()
