"""What is allowed of region features and yet is nearly always a mistake: counted by `data check`, not refused."""

from __future__ import annotations

import numpy as np

from intarsia.batch import Array, Picture

DETECTORS = ("butd", "vinvl")
"""Extractors whose features are means of what a ReLU gave."""
BELOW = "with features below 0, which a detector's pooled features are not (another type of numbers?)"
SUMS = "whose class probabilities do not sum to 1"
SHIFTED = "whose labels are one beside their likeliest classes (background counted once too often, or not at all?)"


def odd(picture: Picture, detected: bool) -> list[str]:
    """What is odd about a picture.

    Args:
        picture: with features.
        detected: they are a region detector's.
    """
    found = [BELOW] if detected and picture.features.size and float(picture.features.min()) < 0 else []
    if picture.probs is None or not len(picture.probs):
        return found
    probs = picture.probs.astype(np.float32)
    found += [SUMS] if float(np.abs(probs.sum(1) - 1).max()) > 0.05 else []
    if picture.labels is not None and _fit(probs, picture.labels) < 0.5:
        found += [SHIFTED] if max(_fit(probs, picture.labels + 1), _fit(probs, picture.labels - 1)) > 0.5 else []
    return found


def _fit(probs: Array, labels: Array) -> float:
    """The share of regions (R) whose label is their likeliest class but the background, which is column 0 of (R, C)."""
    inside = (labels >= 1) & (labels < probs.shape[1])
    own = probs[np.arange(len(probs)), np.where(inside, labels, 0)]
    return float((inside & (own >= probs[:, 1:].max(1, initial=0) - 1e-3)).mean())
