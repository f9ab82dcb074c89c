"""Words and regions hidden in the same pass, where UNITER hides one of the two."""

from __future__ import annotations

import numpy as np

from intarsia.batch import Example, Pick
from intarsia.objectives import mlm, mrm
from intarsia.text import Vocab


def hide(
    example: Example,
    vocab: Vocab,
    rng: np.random.Generator,
    goals: list[str],
    words: float,
    regions: float = 0.0,
    told: bool = True,
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
    """
    if "mlm" in goals:
        mlm.hide_any(example, vocab, rng, words)
    if regional := tuple(goal for goal in goals if goal in ("mrfr", *mrm.NEED_CLASSES)):
        mrm.hide_most(example, rng, regional, regions)
    if not told:
        for goal, pick in example.targets.items():
            assert isinstance(pick, Pick)
            example.targets[goal] = Pick(pick.stream, pick.rows[:0], pick.labels[:0])
    return example
