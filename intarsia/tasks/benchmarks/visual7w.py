"""Visual7W, pointing: which of four boxes answers the question? Data: Zhu et al. 2016."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Array
from intarsia.errors import BadInput
from intarsia.tasks import overlaps
from intarsia.tasks.benchmarks.items import Annotations, Item, Phrase, at, each, find_file, number, read_json, xyxy
from intarsia.tasks.benchmarks.table import Predictions
from intarsia.tasks.metrics import choices, submissions

SPLITS = ("train", "val", "test")


def read(root: Path, split: str) -> Annotations:
    """`dataset_v7w_pointing.json`. The four boxes stand in an order drawn from the question's number, so that the place of the right one says nothing."""
    if split not in SPLITS:
        raise BadInput(f"visual7w: no split {split!r} (it has {', '.join(SPLITS)})")
    path = find_file(root, "dataset_v7w_pointing.json")
    content = read_json(path)
    boxes = {}
    for x in each(content, "boxes", str(path)):
        where = f"{path}: box {x.get('box_id')}"
        boxes[number(x, "box_id", where)] = xyxy([at(x, n, where) for n in ("x", "y", "width", "height")], where)
    items, gold = [], {}
    for image in each(content, "images", str(path)):
        if at(image, "split", str(path)) != split:
            continue
        shown = _objects(image, str(path))
        for pair in each(image, "qa_pairs", str(path)):
            key, where = str(number(pair, "qa_id", str(path))), f"{path}: question {pair.get('qa_id')}"
            offered = _offered(pair, where)
            if missing := [x for x in offered if x not in boxes]:
                raise BadInput(f"{where}: box {missing[0]} is not in the file")
            order = np.random.default_rng([0x7777, zlib.crc32(key.encode())]).permutation(len(offered)).tolist()
            ids = [offered[i] for i in order]
            meant = tuple(Phrase(0, 0, (boxes[x],)) for x in ids)
            answer = ((str(order.index(0)), 1.0),)
            name = str(at(image, "filename", where))
            objects = tuple(boxes[x] for x in shown if x in boxes)
            question = str(at(pair, "question", where))
            items.append(Item(key, (question,), (name,), answer, objects=objects, phrases=meant))
            gold[key] = pair | {"boxes": [boxes[x] for x in ids], "ids": ids}
    return Annotations("visual7w", split, tuple(items), gold)


def _chosen(annotations: Annotations, predictions: Predictions, regions: Mapping[str, Array]) -> dict[int, int]:
    """By question, the number of the box whose region scores best."""
    said: dict[int, int] = {}
    for key, scores in predictions.items():
        gold = annotations.gold[key]
        rows = [int(overlaps(regions[key], np.array([x])).argmax()) for x in gold["boxes"]]
        said[int(key)] = gold["ids"][int(np.argmax(scores[rows]))]
    return said


def _objects(image: Any, where: str) -> list[int]:
    """The boxes that any question about a picture offers, by their numbers."""
    return sorted({x for pair in each(image, "qa_pairs", where) for x in _offered(pair, where)})


def _offered(pair: Any, where: str) -> list[int]:
    """The right box and the others, by number."""
    others = at(pair, "multiple_choices", where, list)
    return [
        number(pair, "answer", where),
        *(number({"multiple_choices": x}, "multiple_choices", where) for x in others),
    ]


def measure(annotations: Annotations, predictions: Predictions, regions: Mapping[str, Array]) -> dict[str, float]:
    """Accuracy of the box whose region scores best.

    Args:
        annotations: the questions.
        predictions: scores of the regions, the whole picture perhaps after them.
        regions: by question, (R, 4) boxes in pixels.
    """
    said = _chosen(annotations, predictions, regions)
    return {"accuracy": choices.visual7w(said, [annotations.gold[str(key)] for key in said]).overall}


def submit(path: Path, annotations: Annotations, predictions: Predictions, regions: Mapping[str, Array]) -> None:
    """The result file that the authors' toolkit scores; see `measure`."""
    submissions.write_visual7w(path, _chosen(annotations, predictions, regions))


def chance(annotations: Annotations) -> float:
    """One in four."""
    return 0.25
