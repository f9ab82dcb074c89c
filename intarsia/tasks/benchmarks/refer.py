"""RefCOCO, RefCOCO+, RefCOCOg: UNC's pickles of expressions, or the same as JSON, and COCO's instances. Data: Yu et al. 2016, Mao et al. 2016."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Array
from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import (
    Annotations,
    Box,
    Item,
    Phrase,
    at,
    each,
    find_file,
    number,
    objects_of,
    read_json,
    xyxy,
)
from intarsia.tasks.benchmarks.table import Predictions
from intarsia.tasks.metrics import overlap
from intarsia.weights.pickles import read_pickle

SPLITS = {
    "refcoco": ("unc", ("train", "val", "testA", "testB")),
    "refcoco+": ("unc", ("train", "val", "testA", "testB")),
    "refcocog": ("umd", ("train", "val", "test")),
}


def _read(name: str, root: Path, split: str) -> Annotations:
    """`NAME/refs(unc).p` (RefCOCOg: umd), or .json, and `NAME/instances.json`. An item a sentence.

    A split's name may stand within that of a reference: one of "testAB" is in testA and testB.
    """
    who, splits = SPLITS[name]
    if split not in splits:
        raise BadInput(f"{name}: no split {split!r} (it has {', '.join(splits)})")
    folder = root / name if (root / name).is_dir() else root
    path = find_file(folder, f"refs({who}).p", f"refs({who}).json")
    refs = read_pickle(path) if path.suffix == ".p" else read_json(path)
    boxes, around, sizes = _instances(find_file(folder, "instances.json"))
    items, gold = [], {}
    for ref in objects_of(refs, str(path)):
        where = f"{path}: reference {ref.get('ref_id')}"
        own = str(at(ref, "split", where))
        if split not in own and not (split in ("testA", "testB") and own.startswith("test") and split[-1] in own[4:]):
            continue
        ann, image = number(ref, "ann_id", where), number(ref, "image_id", where)
        if ann not in boxes or image not in sizes:
            raise BadInput(f"{where}: annotation {ann} or picture {image} is not in instances.json")
        picture = re.sub(r"_\d+(\.\w+)$", r"\1", str(at(ref, "file_name", where)))
        for sentence in each(ref, "sentences", where):
            text, key = str(at(sentence, "sent", where)), str(at(sentence, "sent_id", where))
            meant = (Phrase(0, len(text), (boxes[ann],)),)
            items.append(Item(key, (text,), (picture,), objects=around[image], phrases=meant, size=sizes[image]))
            gold[key] = boxes[ann]
    return Annotations(name, split, tuple(items), gold)


def _instances(path: Path) -> tuple[dict[int, Box], dict[int, tuple[Box, ...]], dict[int, tuple[int, int]]]:
    """Boxes by annotation, all of a picture, sizes of pictures."""
    content = read_json(path)
    boxes, around = dict[int, Box](), dict[int, tuple[Box, ...]]()
    for x in each(content, "annotations", str(path)):
        where = f"{path}: annotation {x.get('id')}"
        ann, image = number(x, "id", where), number(x, "image_id", where)
        boxes[ann] = box = xyxy(at(x, "bbox", where), where)
        around[image] = (*around.get(image, ()), box)
    sizes = {}
    for x in each(content, "images", str(path)):
        where = f"{path}: picture {x.get('id')}"
        sizes[number(x, "id", where)] = (number(x, "width", where), number(x, "height", where))
    return boxes, around, sizes


READERS = {name: partial(_read, name) for name in SPLITS}


def measure(
    annotations: Annotations,
    predictions: Predictions,
    regions: Mapping[str, Array],
    convention: overlap.Convention = "exclusive",
) -> dict[str, float]:
    """Accuracy: the best region overlaps the gold box by half or more; and the best that these regions allow.

    Args:
        annotations: the gold boxes.
        predictions: scores of the regions, the whole picture perhaps after them.
        regions: by item, (R, 4) boxes in pixels.
        convention: whose overlaps, see `overlap`.
    """
    keys = list(predictions)
    gold = np.array([annotations.gold[key] for key in keys])
    best: list[Any] = [
        regions[key][int(np.argmax(predictions[key][: len(regions[key])]))] if len(regions[key]) else None
        for key in keys
    ]
    reach = [
        bool(overlap.is_right(overlap.iou(regions[key], box[None], convention), convention).any())
        for key, box in zip(keys, gold, strict=True)
    ]
    return {"accuracy": overlap.refer(best, gold, convention), "reachable": float(np.mean(reach))}
