"""What a benchmark is to the commands: how it is read, scored and sent in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intarsia.batch import Array
from intarsia.tasks.benchmarks.items import Annotations
from intarsia.tasks.metrics.folding import complete

Predictions = Mapping[str, Array]
"""By item, what its choices score: (C); of each phrase, (M, C)."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's files, numbers and server."""

    name: str
    title: str
    splits: tuple[str, ...]
    """As the commands name them; the first one is trained on."""
    read: Callable[[Path, str], Annotations]
    """Its files under a folder, one split."""
    main: str
    """The number that papers give."""
    measure: Callable[[Annotations, Predictions], dict[str, float]] | None = None
    """The official numbers, fractions; None = pairs that are ranked both ways."""
    labels: Callable[[Path], tuple[str, ...]] | None = None
    """The list of answers of the training files."""
    chance: Callable[[Annotations], float] | None = None
    """Expected `main` of a guess."""
    submit: Callable[[Path, Annotations, Predictions], None] | None = None
    """Writes the server's file."""
    regions: bool = False
    """Predictions are scores of regions, which the metric needs the boxes of."""


def chosen(annotations: Annotations, predictions: Predictions) -> dict[str, str]:
    """The best answer of the list for each item that has a prediction.

    Raises:
        BadInput: none has one, or a prediction is of no item.
    """
    keys = [x.key for x in annotations.items if x.key in predictions]
    complete(keys, predictions, annotations.benchmark + " item")
    return {key: annotations.labels[int(np.argmax(predictions[key]))] for key in keys}
