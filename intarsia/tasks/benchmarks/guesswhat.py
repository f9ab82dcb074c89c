"""GuessWhat?!, the guesser: which object is the dialogue about? Data: de Vries et al. 2017."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from intarsia.batch import Array
from intarsia.errors import BadInput
from intarsia.tasks import overlaps
from intarsia.tasks.benchmarks.items import (
    Annotations,
    Item,
    Phrase,
    at,
    each,
    find_file,
    number,
    objects_of,
    of_split,
    xyxy,
)
from intarsia.tasks.benchmarks.table import Predictions
from intarsia.tasks.metrics.folding import mean


def read(root: Path, split: str) -> Annotations:
    """`guesswhat.SPLIT.jsonl.gz`; only games that succeeded."""
    part = of_split({"train": "train", "val": "valid", "test": "test"}, split, "guesswhat")
    path = find_file(root, f"guesswhat.{part}.jsonl.gz")
    items, gold = [], {}
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            games = [json.loads(line) for line in file if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise BadInput(f"{path}: {error}") from None
    for game in objects_of(games, str(path)):
        key = str(at(game, "id", str(path)))
        if at(game, "status", str(path)) != "success":
            continue
        where = f"{path}: game {key}"
        image, things = at(game, "image", where, dict), each(game, "objects", where)
        boxes = [xyxy(at(x, "bbox", where), where) for x in things]
        ids, wanted = [at(x, "id", where) for x in things], at(game, "object_id", where)
        if wanted not in ids:
            raise BadInput(f"{where}: object {wanted} is none of {', '.join(map(str, ids))}")
        right = ids.index(wanted)
        said = " ".join(f"{at(x, 'question', where)} {at(x, 'answer', where)}" for x in each(game, "qas", where))
        name = str(image.get("file_name") or at(image, "id", where))
        size = (number(image, "width", where), number(image, "height", where))
        meant = tuple(Phrase(0, 0, (x,)) for x in boxes)
        answer = ((str(right), 1.0),)
        items.append(Item(key, (said,), (name,), answer, objects=tuple(boxes), phrases=meant, size=size))
        gold[key] = (boxes, right)
    return Annotations("guesswhat", split, tuple(items), gold)


def measure(annotations: Annotations, predictions: Predictions, regions: Mapping[str, Array]) -> dict[str, float]:
    """Accuracy of the object whose region scores best; regions as for Visual7W."""
    right = []
    for key, scores in predictions.items():
        boxes, gold = annotations.gold[key]
        rows = [int(overlaps(regions[key], np.array([x])).argmax()) for x in boxes]
        right.append(int(np.argmax(scores[rows])) == gold)
    return {"accuracy": mean(right)}


def chance(annotations: Annotations) -> float:
    """One in as many as there are objects."""
    return mean(1 / len(boxes) for boxes, _ in annotations.gold.values())
