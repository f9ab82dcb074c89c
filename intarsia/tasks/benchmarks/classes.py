"""What benchmarks that ask for one class of a list have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from intarsia.tasks.benchmarks.items import Annotations
from intarsia.tasks.benchmarks.table import Predictions
from intarsia.tasks.metrics import choices


def labels_of(read: Callable[[Path, str], Annotations], split: str = "train") -> Callable[[Path], tuple[str, ...]]:
    """The classes of the training items, in the order of their names."""
    return lambda root: tuple(sorted({x.answers[0][0] for x in read(root, split).items}))


def measure(annotations: Annotations, predictions: Predictions) -> dict[str, float]:
    """Accuracy and macro F1; a class that is not in the list is never found."""
    keys, place = list(predictions), {label: i for i, label in enumerate(annotations.labels)}
    right = [place.get(annotations.gold[key], -1) for key in keys]
    scores = [predictions[key] for key in keys]
    return {"accuracy": choices.accuracy(scores, right), "macro F1": choices.macro_f1(scores, right)}


def chance(annotations: Annotations) -> float:
    """One of the list."""
    return 1 / max(len(annotations.labels), 1)
