"""Words and regions hidden in the same pass, where UNITER hides one of the two."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from intarsia.batch import Example, Pick, Sample
from intarsia.objectives import itm, mlm, mrm
from intarsia.text import Vocab


def hide(
    example: Example,
    vocab: Vocab,
    rng: np.random.Generator,
    goals: list[str],
    words: float,
    regions: float = 0.0,
    told: bool = True,
    spare: int = 0,
) -> Example:
    """Hides words for "mlm" and regions for the region goals among `goals`. Changes and returns the example.

    Args:
        example: laid out.
        vocab: gives [MASK] and random pieces.
        rng: source of randomness.
        goals: objectives; those that hide nothing are passed over.
        words: probability of each piece.
        regions: probability of each region.
        told: False = as much is hidden, so that it does not tell broken pairs from true ones, but nothing is asked for.
        spare: so many of the last regions are never hidden.
    """
    if "mlm" in goals:
        mlm.hide_any(example, vocab, rng, words)
    if regional := tuple(goal for goal in goals if goal in mrm.GOALS):
        mrm.hide_most(example, rng, regional, regions, spare)
    return example if told else ask_nothing(example)


def ask_nothing(example: Example) -> Example:
    """Takes back what was asked of hidden rows; they stay hidden. Changes and returns the example."""
    for goal, pick in example.targets.items():
        if isinstance(pick, Pick):
            example.targets[goal] = Pick(pick.stream, pick.rows[:0], pick.labels[:0])
    return example


def hide_pair(
    lay_out: Callable[[Sample], Example],
    sample: Sample,
    goal: str,
    match: str,
    vocab: Vocab,
    rng: np.random.Generator,
    draw: Callable[[], Sample],
    rates: tuple[float, float, float],
) -> Example:
    """A pair, broken on either side at times, with words and regions hidden that are asked for in true pairs only.

    Args:
        lay_out: makes the document.
        sample: a true pair.
        goal: such as "mlm+moc+itm".
        match: the goal among them that breaks pairs.
        vocab: gives [MASK] and random pieces.
        rng: source of randomness.
        draw: another sample, with another picture.
        rates: of hidden pieces, of hidden regions, of broken pairs.
    """
    goals, label = goal.split("+"), 1
    if match in goals:
        sample, label = itm.swap_either(sample, rng, draw, rates[2])
    example = hide(lay_out(sample), vocab, rng, goals, *rates[:2], told=bool(label))
    if match in goals:
        example.targets[match] = np.array(label)
    return example
