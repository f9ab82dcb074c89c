"""SNLI-VE, its published files. Data: Xie et al. 2019."""

from __future__ import annotations

from pathlib import Path

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import Annotations, Item, at, find_file, of_split, read_lines
from intarsia.tasks.benchmarks.table import Predictions
from intarsia.tasks.entail import LABELS
from intarsia.tasks.metrics import choices

SPLITS = {"train": "train", "dev": "dev", "test": "test"}
_PICTURE = ("Flikr30kID", "Flickr30K_ID", "Flickr30kID")  # the released files spell the first


def read(root: Path, split: str) -> Annotations:
    """`snli_ve_SPLIT.jsonl`; lines whose label is "-" have no majority and are passed over."""
    items, gold = [], {}
    for where, x in read_lines(find_file(root, f"snli_ve_{of_split(SPLITS, split, 'snli-ve')}.jsonl")):
        label, key = str(at(x, "gold_label", where)), str(at(x, "pairID", where))
        if label == "-":
            continue
        if label not in LABELS:
            raise BadInput(f"{where}: gold_label {label!r} is not one of {', '.join(LABELS)}")
        picture = str(at(x, next((name for name in _PICTURE if name in x), _PICTURE[0]), where))
        name = picture if picture.endswith(".jpg") else f"{picture}.jpg"
        items.append(Item(key, (str(at(x, "sentence2", where)),), (name,), ((label, 1.0),)))
        gold[key] = label
    return Annotations("snli-ve", split, tuple(items), gold, LABELS)


def measure(annotations: Annotations, predictions: Predictions) -> dict[str, float]:
    """Accuracy."""
    keys = list(predictions)
    right = [LABELS.index(annotations.gold[key]) for key in keys]
    return {"accuracy": choices.accuracy([predictions[key] for key in keys], right)}


def chance(annotations: Annotations) -> float:
    """One in three."""
    return 1 / len(LABELS)
