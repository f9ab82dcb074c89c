"""Triples of caption, second text and picture, whole or with one text exchanged. Source: Oscar, sec. 4; VinVL, sec. 3; the code of Oscar+."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from intarsia.batch import Sample


def second_text(sample: Sample) -> str:
    """What stands behind a text in pre-training: the answers of a question, else the tags of the picture."""
    return " ".join(answer for answer, _ in sample.answers) or " ".join(sample.pictures[0].tags)


def exchange(
    sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample], share: float, mode: int, last: int
) -> tuple[int, str, str]:
    """Keeps a triple or, one as often as the other, exchanges one of its texts.

    Args:
        sample: gives the triple.
        rng: source of randomness.
        draw: another sample, with another picture.
        share: of all triples, how many get another first text; the other exchanged ones get another second text.
        mode: what takes the place of the second text: 0 = the other's first or second text, one as often as the other; 1 = its second; 2 = the answers
            of a question, if one is drawn in ten tries.
        last: label of an exchanged first text; that of a second text is 1, of the whole triple 0.

    Returns:
        The label, the first text and the second.
    """
    first, second = sample.texts[0], second_text(sample)
    if (drawn := rng.random()) > 0.5:
        return 0, first, second
    other = draw()
    if drawn <= share:
        return last, other.texts[0], second
    for _ in range(9 * (mode == 2)):
        other = other if other.answers else draw()
    chosen = second_text(other)
    return 1, first, other.texts[0] if mode == 0 and rng.random() < 0.5 else chosen
