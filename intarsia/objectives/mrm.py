"""MRM, masked region modelling: hide regions, then give back their features (mrfr), class (mrc) or class distribution (mrc_kl).

Source: UNITER, sec. 3.2.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from intarsia.batch import Example, Pick
from intarsia.errors import BadInput

Goal = Literal["mrfr", "mrc", "mrc_kl"]


def hide(example: Example, rng: np.random.Generator, goal: Goal, rate: float = 0.15) -> Example:
    """Hides regions, each with probability `rate`, at least one. Changes and returns the example.

    The target is the original feature (mrfr), the likeliest class that is not background, from 1 up (mrc), or the soft label (mrc_kl).

    Raises:
        BadInput: there is no region, or no soft label where one is needed.
    """
    regions = example.regions
    if regions is None or not len(regions):
        raise BadInput(f"sample {example.key}: {goal} needs at least one region, there is none")
    hidden = rng.random(len(regions)) < rate
    if not hidden.any():
        hidden[rng.integers(len(regions))] = True
    rows = np.flatnonzero(hidden)
    regions.masked = hidden
    if goal == "mrfr":
        labels = regions.feats[rows].astype(np.float32)
    elif regions.probs is None:
        raise BadInput(f"sample {example.key}: {goal} needs soft labels of the detector, there are none")
    elif goal == "mrc":
        labels = regions.probs[rows, 1:].argmax(-1) + 1
    else:
        labels = regions.probs[rows].astype(np.float32)
    example.targets[goal] = Pick("regions", rows, labels)
    return example


def regress(predicted: Tensor, features: Tensor) -> Tensor:
    """Mean squared error over regions and feature numbers, both (M, F)."""
    return F.mse_loss(predicted.float(), features.float())


def classify(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean cross entropy of (M, C) logits against (M) classes."""
    return F.cross_entropy(logits.float(), classes)


def divergence(logits: Tensor, probs: Tensor) -> Tensor:
    """KL(probs || softmax(logits)), both (M, C): the mean over all M x C elements, as UNITER's code has it, not over regions."""
    return F.kl_div(F.log_softmax(logits.float(), -1), probs.float(), reduction="none").mean()
