"""What a detector says of regions, asked of all of them (obj: class, attr: attribute), and the features of hidden ones (feat). Source: LXMERT, sec. 3.1.2."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from intarsia.batch import Example, Pick, RegionRows, Sample
from intarsia.errors import BadInput


def hide_or_exchange(
    example: Example, rng: np.random.Generator, draw: Callable[[], Sample], rate: float = 0.15, goal: str = "feat"
) -> Example:
    """Chooses regions, each with probability `rate`, perhaps none; of the chosen 80 % are hidden, 10 % get the feature of a region elsewhere, 10 % stay.

    Boxes stay. The target is the feature as it was, (M, F). Changes and returns the example.

    Args:
        example: laid out, with regions.
        rng: source of randomness.
        draw: another sample, with another picture.
        rate: probability of each region.
        goal: name of the target.

    Source: the code of LXMERT.

    Raises:
        BadInput: there is no region, or features of another width in the other picture.
    """
    regions = _regions(example, goal)
    rows = np.flatnonzero(rng.random(len(regions)) < rate)
    share = rng.random(len(rows))
    example.targets[goal] = Pick("regions", rows, regions.feats[rows].astype(np.float32))
    regions.masked = np.zeros(len(regions), np.bool_)
    regions.masked[rows[share < 0.8]] = True
    exchanged = rows[(share >= 0.8) & (share < 0.9)]
    regions.feats = regions.feats.copy() if len(exchanged) else regions.feats
    for row in exchanged:
        other = draw()
        found = other.pictures[0].features
        if found.shape[1:] != regions.feats.shape[1:] or not len(found):
            raise BadInput(f"sample {other.key}: features of shape {found.shape}, needed (R, {regions.feats.shape[1]})")
        regions.feats[row] = found[rng.integers(len(found))]
    return example


def told(example: Example, goal: str) -> Pick:
    """What the detector says of every region: (R, 2) float32, a class ("obj") or attribute ("attr") from 0 up and how sure it is.

    Background and regions without attribute weigh nothing. Without labels the class is the likeliest of the soft labels that is not background.

    Raises:
        BadInput: there is no region, or the detector did not say it.
    """
    regions = _regions(example, goal)
    ids, sure = (regions.labels, regions.scores) if goal == "obj" else (regions.attributes, regions.attribute_scores)
    if ids is None and goal == "obj" and regions.probs is not None:
        ids, sure = 1 + regions.probs[:, 1:].argmax(-1), regions.probs[:, 1:].max(-1)
    if ids is None:
        what = "classes" if goal == "obj" else "attributes"
        raise BadInput(f"sample {example.key}: {goal} needs the {what} of regions, there are none")
    weight = np.where(ids > 0, 1.0 if sure is None else sure, 0.0)
    return Pick("regions", np.arange(len(regions)), np.stack([np.maximum(ids - 1, 0), weight], 1).astype(np.float32))


def _regions(example: Example, goal: str) -> RegionRows:
    if example.regions is None or not len(example.regions):
        raise BadInput(f"sample {example.key}: {goal} needs at least one region, there is none")
    return example.regions


def classify(logits: Tensor, told: Tensor) -> Tensor:
    """Mean over regions of the cross entropy of (R, C) logits against `told`'s (R, 2) classes, times their confidence. Source: LXMERT's code."""
    each = F.cross_entropy(logits.float(), told[:, 0].long(), reduction="none")
    return (each * told[:, 1]).sum() / max(len(told), 1)


def regress(predicted: Tensor, features: Tensor, regions: int) -> Tensor:
    """Smooth L1 error (Huber's, 1 wide), the mean over feature numbers of (M, F), summed over hidden regions and divided by `regions`, all there are.

    Source: LXMERT's code.
    """
    each = F.smooth_l1_loss(predicted.float(), features.float(), reduction="sum")
    return each / (max(regions, 1) * features.shape[1])
