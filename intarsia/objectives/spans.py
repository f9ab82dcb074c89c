"""Denoising: spans of a text become one mask each; the text is to be said again, whole. Source: M6, sec. on pre-training tasks; BART, sec. 2.2."""

from __future__ import annotations

import numpy as np

from intarsia.batch import Array


def hide_spans(ids: Array, mask: int, rng: np.random.Generator, rate: float = 0.15, mean: float = 3.0) -> Array:
    """Replaces spans that cover round(rate * n) pieces, at least one, by one mask each.

    Lengths are Poisson's, 0 drawn again and the last one cut to fit; no two spans touch; every way to place them is as likely.

    Args:
        ids: (n) pieces, n >= 1.
        mask: what stands for a span.
        rng: source of randomness.
        rate: share of pieces covered.
        mean: of the Poisson law.

    Returns:
        (n - covered + spans) pieces.
    """
    covered = min(len(ids), max(1, round(rate * len(ids))))
    kept = len(ids) - covered
    lengths: list[int] = []
    while (left := covered - sum(lengths)) > 0:
        if drawn := int(rng.poisson(mean)):
            lengths.append(min(drawn, left))
    while len(lengths) > kept + 1:  # more spans than places between the pieces that stay
        lengths.append(lengths.pop() + lengths.pop())
    gaps = np.sort(rng.choice(kept + 1, len(lengths), replace=False))
    order = rng.permutation(lengths)
    out: list[int] = []
    at = before = 0
    for gap, length in zip(gaps.tolist(), order.tolist(), strict=True):
        out += [*ids[at : at + gap - before].tolist(), mask]
        at, before = at + gap - before + length, gap
    return np.array([*out, *ids[at:].tolist()], np.int64)
