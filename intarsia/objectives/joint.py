"""Words and regions hidden in the same pass, where UNITER hides one of the two."""

from __future__ import annotations

import numpy as np

from intarsia.batch import Example
from intarsia.objectives import mlm, mrm
from intarsia.text import Vocab


def hide(
    example: Example, vocab: Vocab, rng: np.random.Generator, goals: list[str], words: float, regions: float
) -> Example:
    """Hides words for "mlm" and regions for the region goals among `goals`. Changes and returns the example.

    Args:
        example: laid out.
        vocab: gives [MASK] and random pieces.
        rng: source of randomness.
        goals: objectives; those that hide nothing are passed over.
        words: probability of each piece; 0 = none is hidden, and the target is empty.
        regions: probability of each region, as `words`.
    """
    if "mlm" in goals:
        mlm.hide_any(example, vocab, rng, words)
    if regional := tuple(goal for goal in goals if goal in ("mrfr", *mrm.NEED_CLASSES)):
        mrm.hide_most(example, rng, regional, regions)
    return example
