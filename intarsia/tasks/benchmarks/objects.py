"""Objects that a caption is to name, from a detector's boxes, for NoCaps' constrained beam search.

Source: Agrawal et al. 2019; nocaps, updown-baseline, utils/constraints.py; Oscar, utils/cbs.py, whose files these are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import at, read_json, spellings
from intarsia.text import Vocab

MOST, OVERLAP, PIECES = 3, 0.85, 4
"""Objects of a picture, the best of the detector's; IoU from which a particular class puts a general one aside; pieces of a class."""
_NEVER = """auto part, bathroom accessory, bicycle wheel, boy, building, clothing, door handle, fashion accessory, footwear, girl, hiking equipment,
human arm, human beard, human body, human ear, human eye, human face, human foot, human hair, human hand, human head, human leg, human mouth, human nose,
land vehicle, mammal, man, person, personal care, plant, plumbing fixture, seat belt, skull, sports equipment, tire, tree, vehicle registration plate,
wheel, woman, __background__"""
NEVER = frozenset(re.split(r",\s+", _NEVER))
"""Classes that are too rare, that nobody says, or that COCO knows well."""
SAID = {
    "band-aid": "bandaid",
    "wood-burning stove": "wood burning stove",
    "kitchen & dining room table": "table",
    "salt and pepper shakers": "salt and pepper",
    "power plugs and sockets": "power plugs",
    "luggage and bags": "luggage",
}
"""Classes by other words."""


@dataclass(frozen=True, slots=True)
class Detected:
    """A box of a detector."""

    name: str
    score: float
    box: tuple[float, float, float, float]
    """xyxy in pixels."""


def read_objects(path: Path) -> dict[str, list[Detected]]:
    """Lines of picture, tab, JSON list of `{"class", "conf", "rect": [x1, y1, x2, y2]}`; by all spellings of the picture's name.

    Raises:
        BadInput: a line is not of that form.
    """
    found: dict[str, list[Detected]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        name, _, rest = line.partition("\t")
        where = f"{path}: line {number}"
        try:
            rows = json.loads(rest)
            boxes = [Detected(_text(x, "class", where), *_numbers(x, where)) for x in rows]
        except (ValueError, TypeError) as error:
            raise BadInput(f"{where}: {line[:60]!r} is not picture TAB detections: {error}") from None
        found |= dict.fromkeys(spellings(name), boxes)
    return found


def _text(entry: Any, name: str, where: str) -> str:
    return str(at(entry, name, where)).lower()


def _numbers(entry: Any, where: str) -> tuple[float, tuple[float, float, float, float]]:
    x1, y1, x2, y2 = map(float, at(entry, "rect", where))
    return float(at(entry, "conf", where)), (x1, y1, x2, y2)


def read_heights(path: Path) -> dict[str, int]:
    """How many levels of classes lie under each class of Open Images' tree, `{"LabelName", "Subcategory": [..]}`, in the order of its reading."""
    found: dict[str, int] = {}

    def height(node: Any) -> int:
        name = _text(node, "LabelName", str(path))
        found.setdefault(name, 0)
        below = [height(x) for x in node.get("Subcategory", ())]
        mine = 1 + max(below) if below else 0
        found[name] = max(found[name], mine)
        return mine

    height(read_json(path))
    return found


def read_forms(path: Path) -> dict[str, tuple[str, ...]]:
    """Lines of word, tab, its forms with commas between.

    Raises:
        BadInput: it cannot be read, or a line has no tab.
    """
    found = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        word, tab, forms = line.strip().partition("\t")
        if not tab:
            raise BadInput(f"{path}: line {number}: {line[:60]!r} is not word TAB forms")
        found[word] = tuple(forms.split(","))
    return found


def to_name(boxes: Sequence[Detected], heights: Mapping[str, int] | None = None) -> list[str]:
    """The objects of a picture that its caption is to name, the surest first.

    Args:
        boxes: of the detector.
        heights: of the classes, see `read_heights`: of two boxes in one place the more particular stays; None = both stay.
    """
    kept = [x for x in boxes if x.score > 0 and x.name not in NEVER]
    if heights is not None:
        kept = list(_particular(kept, heights))
    best = sorted(kept, key=lambda x: -x.score)[:MOST]
    return list(dict.fromkeys(SAID.get(x.name, x.name) for x in best))


def _particular(boxes: Sequence[Detected], heights: Mapping[str, int]) -> Iterator[Detected]:
    """Boxes less those of a class with more levels under it that lie on one that stays. A class the tree lacks is known by the first name within its own."""
    level = {x.name: next((n for name, n in heights.items() if name in x.name), None) for x in boxes}
    if lost := next((x for x, n in level.items() if n is None), None):
        raise BadInput(f"detected class {lost!r} is not in the tree of classes")
    waiting = sorted(boxes, key=lambda x: level[x.name] or 0)
    while waiting:
        first, *waiting = waiting
        yield first
        mine = level[first.name] or 0
        waiting = [x for x in waiting if (level[x.name] or 0) <= mine or _iou(first, x) <= OVERLAP]


def _iou(a: Detected, b: Detected) -> float:
    """With one pixel added to every side, as in their code."""
    wide = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0]) + 1
    high = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1]) + 1
    both = max(0.0, wide) * max(0.0, high)
    areas = [(x.box[2] - x.box[0] + 1) * (x.box[3] - x.box[1] + 1) for x in (a, b)]
    return both / (sum(areas) - both)


def places_of(names: Sequence[str], vocab: Vocab, forms: Mapping[str, Sequence[str]]) -> list[list[list[int]]]:
    """Objects as `naming.Machine.of` takes them: the pieces of each, and for a word of one piece also its forms of one."""
    found = []
    for name in names:
        places: list[list[int]] = []
        for word in name.split():
            ids = vocab.encode(word).ids.tolist()
            others = [vocab.encode(x).ids.tolist() for x in forms.get(word, ())]
            alike = [x[0] for x in others if len(x) == 1] if len(ids) == 1 else []
            places += [sorted({piece, *alike}) for piece in ids]
        found.append(places[:PIECES])
    return [x for x in found if x]
