"""What a benchmark is to the commands: how it is read, scored and sent in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from intarsia.batch import Array
from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import Annotations
from intarsia.tasks.metrics.folding import complete

Predictions = Mapping[str, Array]
"""By item, what its choices score: (C); of each phrase, (M, C)."""
Lists = Mapping[str, Sequence[str]]
"""By text, the pictures that fit it best, the best first."""
Kind = Literal["answers", "regions", "captions", "pairs", "words", "cloze"]
LONG = 10
"""Pictures of a list."""


@dataclass(frozen=True)
class Candidates:
    """What is ranked where a query has candidates of its own."""

    asked: Sequence[tuple[int, Sequence[int]]]
    """Item, and the items whose texts or pictures are its candidates, itself among them; by number."""
    told: str
    """The protocol in words: scores depend on what is drawn."""


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
    measure: Callable[..., dict[str, float]] | None = None
    """The official numbers, fractions, of annotations and predictions."""
    measure_regions: Callable[..., dict[str, float]] | None = None
    """The same where predictions are scores of regions: by item, (R, 4) boxes in pixels."""
    measure_captions: Callable[[Annotations, Mapping[str, str]], dict[str, float]] | None = None
    """The same where a caption is written for each picture. None of the three = pairs are ranked, both ways unless there are `measure_lists`."""
    conventions: tuple[str, ...] = ()
    """Where papers count in several ways, their names, the default first: `measure` and `measure_regions` then take `convention=`, pairs are ranked by it."""
    labels: Callable[[Path], tuple[str, ...]] | None = None
    """The list of answers of the training files."""
    chance: Callable[[Annotations], float] | None = None
    """Expected `main` of a guess."""
    submit: Callable[[Path, Annotations, Predictions], None] | None = None
    """Writes the server's file."""
    submit_captions: Callable[[Path, Annotations, Mapping[str, str]], None] | None = None
    """The same of captions by picture."""
    submit_regions: Callable[[Path, Annotations, Predictions, Mapping[str, Array]], None] | None = None
    """The same of scores of regions, with the boxes that `measure_regions` takes."""
    groups: Callable[[Annotations], Mapping[str, tuple[str, str]]] | None = None
    """By item, the thing it shows and its group, where hard negatives are other things of the group."""
    candidates: Callable[[Annotations], Candidates] | None = None
    """Where pairs are ranked, each among candidates of its own instead of all."""
    measure_lists: Callable[[Annotations, Lists], dict[str, float]] | None = None
    """The official numbers where each text is given the pictures that fit it best, out of `Annotations.candidates`; never the other way round."""
    submit_lists: Callable[[Path, Annotations, Lists], None] | None = None
    """Writes the server's file of them."""
    sentence: tuple[str | None, ...] = ()
    """Asked of a system as pre-training left it: a sentence, None for each gap; predictions are scores of the labels."""
    hides: bool = False
    """Asked of a system as pre-training left it: words of each text that are hidden; `Annotations.gold` says which."""
    fold: int = 0
    """Pictures of a fold: where pairs are ranked, papers also give the mean over consecutive folds of the test; 0 = they do not."""

    def counting(self, convention: str = "") -> dict[str, str]:
        """The keyword that says how is counted; empty where all papers count alike. Args: convention: one of `conventions`, "" = the first.

        Raises:
            BadInput: there is none of that name.
        """
        if convention and convention not in self.conventions:
            raise BadInput(
                f"{self.name}: no convention {convention!r} (it has {', '.join(self.conventions) or 'one way to count'})"
            )
        return {"convention": convention or self.conventions[0]} if self.conventions else {}

    @property
    def kind(self) -> Kind:
        """What is asked for."""
        if self.hides:
            return "cloze"
        if self.sentence:
            return "words"
        if self.measure_captions is not None:
            return "captions"
        if self.measure_regions is not None:
            return "regions"
        return "pairs" if self.measure is None else "answers"

    @property
    def ranks(self) -> bool:
        """Whether texts and pictures are ranked by each other, instead of an item at a time."""
        return self.kind == "pairs"


def chosen(annotations: Annotations, predictions: Predictions) -> dict[str, str]:
    """The best answer of the list for each item that has a prediction.

    Raises:
        BadInput: none has one, or a prediction is of no item.
    """
    keys = [x.key for x in annotations.items if x.key in predictions]
    complete(keys, predictions, annotations.benchmark + " item")
    return {key: annotations.labels[int(np.argmax(predictions[key]))] for key in keys}
