"""Predictions of all processes put together, so that a score is counted once, over every sample and no sample twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from intarsia.errors import BadInput

Key = TypeVar("Key", bound=int | str)
Value = TypeVar("Value")


def fold(parts: Iterable[Iterable[tuple[Key, Value]]]) -> dict[Key, Value]:
    """The (id, prediction) pairs of several processes as one table; of an id that a sampler repeated the first prediction counts.

    Scores of processes are never averaged: the table is scored once.
    """
    found: dict[Key, Value] = {}
    for part in parts:
        for key, value in part:
            found.setdefault(key, value)
    return found


def complete(wanted: Iterable[Key], predictions: Mapping[Key, Value], what: str, extra: bool = False) -> list[Key]:
    """The wanted ids, once it is sure that each has a prediction.

    Args:
        wanted: ids that the benchmark scores.
        predictions: what was predicted.
        what: what an id is, for the message.
        extra: whether predictions of other ids are let pass.

    Raises:
        BadInput: an id lacks its prediction, or has one and is not wanted, or nothing is wanted; tells how many and five of them.
    """
    asked = list(wanted)
    if not asked:
        raise BadInput(f"no {what} to score")
    missing = [x for x in asked if x not in predictions]
    if missing:
        raise BadInput(f"{len(missing)} of {len(asked)} {what}s have no prediction: {_some(missing)}")
    known = set(asked)
    strange = [] if extra else [x for x in predictions if x not in known]
    if strange:
        raise BadInput(f"{len(strange)} predictions are of no {what} that is scored: {_some(strange)}")
    return asked


def _some(ids: list[Key]) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")


def mean(values: Iterable[float]) -> float:
    """The mean, 0 of nothing, as the official scripts have it."""
    numbers = [float(x) for x in values]
    return sum(numbers) / len(numbers) if numbers else 0.0
