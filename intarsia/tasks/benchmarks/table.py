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
    """The official numbers, fractions."""
    measure_regions: Callable[[Annotations, Predictions, Mapping[str, Array]], dict[str, float]] | None = None
    """The same where predictions are scores of regions: by item, (R, 4) boxes in pixels."""
    measure_captions: Callable[[Annotations, Mapping[str, str]], dict[str, float]] | None = None
    """The same where a caption is written for each picture. None of the three = pairs that are ranked both ways."""
    labels: Callable[[Path], tuple[str, ...]] | None = None
    """The list of answers of the training files."""
    chance: Callable[[Annotations], float] | None = None
    """Expected `main` of a guess."""
    submit: Callable[[Path, Annotations, Predictions], None] | None = None
    """Writes the server's file."""
    submit_captions: Callable[[Path, Annotations, Mapping[str, str]], None] | None = None
    """The same of captions by picture."""

    fold: int = 0
    """Pictures of a fold: where pairs are ranked, papers also give the mean over consecutive folds of the test; 0 = they do not."""

    @property
    def ranks(self) -> bool:
        """Whether texts and pictures are ranked by each other, instead of an item at a time."""
        return self.measure is None and self.measure_regions is None and self.measure_captions is None


def chosen(annotations: Annotations, predictions: Predictions) -> dict[str, str]:
    """The best answer of the list for each item that has a prediction.

    Raises:
        BadInput: none has one, or a prediction is of no item.
    """
    keys = [x.key for x in annotations.items if x.key in predictions]
    complete(keys, predictions, annotations.benchmark + " item")
    return {key: annotations.labels[int(np.argmax(predictions[key]))] for key in keys}
