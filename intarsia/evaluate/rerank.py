"""Retrieval in two stages: a cheap first ranking of all pairs, of which a system that reads pairs reads the best candidates of each query.

What the first ranking leaves out cannot be found, so its own recalls are told beside the result. Memory: N x M numbers, twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intarsia.batch import Array, Sample
from intarsia.errors import BadInput
from intarsia.evaluate.baseline import baseline_scores
from intarsia.evaluate.matching import match
from intarsia.evaluate.running import FP32, Inference, Shown
from intarsia.system import System
from intarsia.tasks.metrics import ranking

First = Callable[[Sequence[Sample], Sequence[Shown]], Array]
"""N texts, M pictures -> (N, M) scores, higher = better."""
BASELINES = ("ridge", "nearest")


@dataclass(frozen=True)
class Prefilter:
    """A first ranking, and how many candidates of each query are read after it."""

    first: First
    top: int


def by_baseline(name: str, train: Sequence[Sample]) -> First:
    """One of `BASELINES`, fitted on captions with pictures."""
    return lambda texts, pictures: baseline_scores(train, texts, pictures)[name]


def by_towers(system: System, how: Inference = FP32) -> First:
    """The products of the vectors of a system of two towers.

    Raises:
        BadInput: it has none; and later, if a text is too long for it.
    """
    if not system.towers:
        raise BadInput(f"{system.card.name} has no two towers: it ranks nothing beforehand")

    def first(texts: Sequence[Sample], pictures: Sequence[Shown]) -> Array:
        kept, scores = match(system, texts, pictures, how)
        if len(kept) < len(texts):
            raise BadInput(f"{system.card.name}: {len(texts) - len(kept)} of {len(texts)} texts are too long to rank")
        return scores

    return first


def best(scores: Array, top: int) -> Array:
    """(Q, C) bool: the candidates of each query that score best, as many as there are up to `top`; of equal ones those that come first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    found = np.zeros(scores.shape, bool)
    np.put_along_axis(found, order, True, 1)
    return found


def rerank(
    system: System,
    texts: Sequence[Sample],
    pictures: Sequence[Shown],
    gold: Array,
    prefilter: Prefilter,
    how: Inference = FP32,
    keep: Path | None = None,
) -> tuple[dict[str, float], int]:
    """Recall both ways, each query ranking its own best candidates only; a right one that is not among them is not found.

    Args:
        system: reads pairs.
        texts: N samples, of which the first text counts.
        pictures: M candidates.
        gold: (N) for each text, the number of its picture.
        prefilter: the first ranking.
        how: batch size, precision, bar.
        keep: a folder for scores of the second stage that are done, see `match`.

    Returns:
        Recalls as fractions, their sum in percent, and the recalls of the first ranking at `top`; and how many texts fit the system.
    """
    before = prefilter.first(texts, pictures)
    by_text, by_picture = best(before, prefilter.top), best(before.T, prefilter.top).T
    kept, scores = match(system, texts, pictures, how, by_text | by_picture, keep)
    owns = gold[kept][:, None] == np.arange(len(pictures))[None]
    by_text, by_picture = by_text[kept], by_picture[kept]
    shown = owns.any(0)  # pictures whose captions were all too long rank nothing
    image = ranking.Recall.of(ranking.ranks(np.where(by_text, scores, -np.inf), owns))
    text = ranking.Recall.of(ranking.ranks(np.where(by_picture, scores, -np.inf).T[shown], owns.T[shown]))
    found = ranking.Retrieval(text, image)
    numbers = {f"image R@{k}": x for k, x in image.at.items()} | {f"text R@{k}": x for k, x in text.at.items()}
    numbers |= {"rsum": found.rsum}
    top = prefilter.top
    numbers[f"prefilter image R@{top}"] = float((by_text & owns).any(1).mean())
    numbers[f"prefilter text R@{top}"] = float((by_picture & owns).any(0)[shown].mean())
    return numbers, len(kept)
