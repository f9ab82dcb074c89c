"""NLVR2, its published files. Data: Suhr et al. 2019."""

from __future__ import annotations

from pathlib import Path

from intarsia.tasks.benchmarks.items import Annotations, Item, at, find_file, of_split, read_lines
from intarsia.tasks.benchmarks.table import Predictions
from intarsia.tasks.metrics import choices, submissions

SPLITS = {"train": "train", "dev": "dev", "test1": "test1", "test2": "test2"} | {
    f"{split}-{kind}": f"{kind}_{split}" for split in ("dev", "test1") for kind in ("balanced", "unbalanced")
}
"""Names of files; of dev and test1 also the part whose pairs of pictures come with both labels, and the rest."""


def read(root: Path, split: str) -> Annotations:
    """`SPLIT.json`, an example a line; pictures are `split-set-pair-img0.png` (left) and `-img1.png`."""
    items, gold = [], {}
    for where, x in read_lines(find_file(root, f"{of_split(SPLITS, split, 'nlvr2')}.json")):
        key, label = str(at(x, "identifier", where)), str(at(x, "label", where))
        pair = key.rpartition("-")[0]
        items.append(
            Item(key, (str(at(x, "sentence", where)),), tuple(f"{pair}-img{i}.png" for i in (0, 1)), ((label, 1.0),))
        )
        gold[key] = label
    return Annotations("nlvr2", split, tuple(items), gold)


def _said(predictions: Predictions) -> dict[str, bool]:
    return {key: bool(x[1] > x[0]) for key, x in predictions.items()}


def measure(annotations: Annotations, predictions: Predictions) -> dict[str, float]:
    """Accuracy and consistency."""
    said = {key: str(x) for key, x in _said(predictions).items()}
    found = choices.nlvr2(said, {key: annotations.gold[key] for key in said})
    return {"accuracy": found.accuracy, "consistency": found.consistency}


def chance(annotations: Annotations) -> float:
    """A coin's."""
    return 0.5


def submit(path: Path, annotations: Annotations, predictions: Predictions) -> None:
    """The server's file."""
    submissions.write_nlvr2(path, _said(predictions))
