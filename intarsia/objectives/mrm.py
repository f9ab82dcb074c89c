"""MRM, masked region modelling: hide regions, then give back features or classes.

Features: mrfr, mpm (regressed), mrnce (told from others), vis (told apart by their places). Classes: mrc, moc (hard), mrc_kl, mvrc (soft).
Source: UNITER, sec. 3.2; moc: Unicoder-VL and ImageBERT; mvrc: VL-BERT; mrnce: the code of ViLBERT; mpm: FashionBERT; vis: the code of VLP.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intarsia import boxes
from intarsia.batch import Array, Example, Pick, RegionRows, Regions
from intarsia.errors import BadInput
from intarsia.packed import Packing

NEED_CLASSES = ("mrc", "mrc_kl", "moc", "mvrc")
"""Goals that need the soft labels of a detector."""
GOALS = ("mrfr", "mrnce", *NEED_CLASSES)


def hide(example: Example, rng: np.random.Generator, goal: str, rate: float = 0.15) -> Example:
    """Hides regions, each with probability `rate`, at least one. Changes and returns the example.

    The target is what `target` says.

    Raises:
        BadInput: there is no region, or no soft label where one is needed.
    """
    regions = _regions(example, goal)
    if not len(regions):
        raise BadInput(f"sample {example.key}: {goal} needs at least one region, there is none")
    hidden = rng.random(len(regions)) < rate
    if not hidden.any():
        hidden[rng.integers(len(regions))] = True
    rows = np.flatnonzero(hidden)
    regions.masked = hidden
    example.targets[goal] = Pick("regions", rows, target(example, goal, rows))
    return example


def hide_most(
    example: Example, rng: np.random.Generator, goals: tuple[str, ...], rate: float = 0.15, spare: int = 0
) -> Example:
    """Chooses regions, each with probability `rate`, perhaps none; 90 % of the chosen are hidden, 10 % stay, all are to be given back.

    Args:
        example: laid out, with regions. Changed and returned.
        rng: source of randomness.
        goals: the targets to set on the chosen regions.
        rate: probability of each region.
        spare: so many of the last regions are never chosen.

    Raises:
        BadInput: no soft label where one is needed.
    """
    regions = _regions(example, goals[0])
    chosen = rng.random(len(regions)) < rate
    chosen[len(chosen) - spare :] = False
    rows = np.flatnonzero(chosen)
    regions.masked = np.zeros(len(regions), np.bool_)
    regions.masked[rows[rng.random(len(rows)) < 0.9]] = True
    for goal in goals:
        told = rows if goal != "mvrc" else rows[_sums_to_one(regions, rows)]
        example.targets[goal] = Pick("regions", told, target(example, goal, told))
    return example


def hide_count(example: Example, rng: np.random.Generator, goal: str, count: int) -> Example:
    """Hides so many regions, but at most half of them and at least one, each as likely. Changes and returns the example.

    Raises:
        BadInput: there is no region.
    """
    regions = _regions(example, goal)
    if not len(regions):
        raise BadInput(f"sample {example.key}: {goal} needs at least one region, there is none")
    rows = np.sort(rng.permutation(len(regions))[: min(count, max(1, len(regions) // 2))])
    regions.masked = np.isin(np.arange(len(regions)), rows)
    example.targets[goal] = Pick("regions", rows, target(example, goal, rows))
    return example


def hide_from_all(example: Example, rng: np.random.Generator, goal: str, rate: float) -> Example:
    """Hides int(rate * R) regions, each as likely and perhaps none, from every row that is not hidden. Changes and returns the example.

    Their features are hidden and their levels are above those of all text rows. The target is as for mrfr. Source: the code of VLP (vis_mask_prob).
    """
    regions, text = _regions(example, goal), example.text
    rows = np.sort(rng.permutation(len(regions))[: int(len(regions) * rate)])
    regions.masked = np.isin(np.arange(len(regions)), rows)
    above = 1 if text is None or text.levels is None else 1 + int(text.levels.max(initial=0))
    regions.levels = (above * regions.masked).astype(np.int32)
    example.targets[goal] = Pick("regions", rows, target(example, "mrfr", rows))
    return example


def _sums_to_one(regions: RegionRows, rows: Array) -> Array:
    """(M) bool: within .1, as VL-BERT's code has it; soft labels of nothing are no labels."""
    return np.ones(len(rows), np.bool_) if regions.probs is None else abs(regions.probs[rows].sum(-1) - 1) < 0.1


def target(example: Example, goal: str, rows: Array) -> Array:
    """What should be found at hidden regions.

    mrfr, mrnce, mpm: the original feature, (M, F). mrc: the likeliest class that is not background, from 1 up, (M). moc: the same, from 0 up, (M). mrc_kl, mvrc:
    the soft label, (M, C).

    Raises:
        BadInput: no soft label where one is needed.
    """
    regions = _regions(example, goal)
    if goal in ("mrfr", "mrnce", "mpm"):
        return regions.feats[rows].astype(np.float32)
    if regions.probs is None:
        raise BadInput(f"sample {example.key}: {goal} needs soft labels of the detector, there are none")
    match goal:
        case "mrc":
            return np.asarray(regions.probs[rows, 1:].argmax(-1) + 1)
        case "moc":
            return np.asarray(regions.probs[rows, 1:].argmax(-1))
        case _:
            return np.asarray(regions.probs[rows], np.float32)


def _regions(example: Example, goal: str) -> RegionRows:
    if example.regions is None:
        raise BadInput(f"sample {example.key}: {goal} needs at least one region, there is none")
    return example.regions


def whole_of_rest(rows: RegionRows, chosen: Array, size: tuple[int, int], padded: int | None = None) -> Array:
    """(F) the feature of the whole picture once regions were hidden, which are summed as zeros.

    Args:
        rows: the regions and, last, the whole picture.
        chosen: (M) regions that are to be given back, hidden or not.
        size: pixels wide, high; 0 = unknown.
        padded: rows that the authors' loader pads regions to: the sum is divided by so many, or by all regions if they are more, less those that
            overlap a chosen one by more than .4. None = it is divided by all regions.

    Source: the code of ViLBERT.
    """
    kept = ~rows.masked[:-1]
    count = len(kept)
    if padded is not None:
        known = all(size)
        scale = np.array(size if known else (1, 1), np.float32)
        corner = np.array([0, 0, known, known], np.float32)  # the authors count the last pixel in
        places = torch.from_numpy(rows.boxes[:-1] * np.tile(scale, 2) + corner)
        count = max(count, padded) - int((boxes.iou(places, places[chosen]) > 0.4).any(1).sum())
    total: Array = rows.feats[:-1][kept].astype(np.float32).sum(0)
    return total / max(count, 1)


def regress(predicted: Tensor, features: Tensor) -> Tensor:
    """Mean squared error over regions and feature numbers, both (M, F)."""
    return F.mse_loss(predicted.float(), features.float(), reduction="sum") / max(features.numel(), 1)


def classify(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean cross entropy of (M, C) logits against (M) classes; 0 of none."""
    return F.cross_entropy(logits.float(), classes, reduction="sum") / max(len(classes), 1)


def divergence(logits: Tensor, probs: Tensor) -> Tensor:
    """KL(probs || softmax(logits)), both (M, C): the mean over all M x C elements, as UNITER's code has it, not over regions."""
    return F.kl_div(F.log_softmax(logits.float(), -1), probs.float(), reduction="none").mean()


def feature_divergence(logits: Tensor, features: Tensor) -> Tensor:
    """KL(softmax(features) || softmax(logits)), both (M, F): the mean over regions of the sum over F, shares kept above 1e-7; 0 of none.

    Source: FashionBERT's code, by Keras' KLDivergence.
    """
    wanted, found = (x.float().softmax(-1).clamp(1e-7, 1.0) for x in (features, logits))
    return (wanted * (wanted / found).log()).sum() / max(len(logits), 1)


def placed(places: Tensor, features: Tensor, documents: Tensor, count: int) -> Tensor:
    """Cross entropy of telling which hidden region of a document is at a place: the mean over documents of the mean over their hidden regions.

    A document with one hidden region has nothing to tell apart: it counts 0. So does one with none, where the authors' mean has no value.

    Args:
        places: (M, H), one vector for the place of each hidden region.
        features: (M, H), those of the regions.
        documents: (M), the document of each.
        count: documents of the batch.

    Source: the code of VLP (vis_mask_prob).
    """
    scores = places.float() @ features.float().T  # (M, M)
    scores = scores.masked_fill(documents[:, None] != documents, -torch.inf)
    each = -scores.log_softmax(1).diagonal()
    sums = each.new_zeros(count).index_add(0, documents, each)
    hidden = each.new_zeros(count).index_add(0, documents, torch.ones_like(each))
    return (sums / hidden.clamp(min=1)).mean()


def soft_losses(logits: Tensor, probs: Tensor) -> Tensor:
    """(M) cross entropy of (M, C) logits against (M, C) probs. Source: the code of VL-BERT."""
    return -(probs.float() * F.log_softmax(logits.float(), -1)).sum(-1)


def region_divergence(logits: Tensor, probs: Tensor) -> Tensor:
    """KL(probs || softmax(logits)), both (M, C), summed over classes and averaged over regions; 0 of none. Source: ViLBERT, sec. 3.2."""
    each = F.kl_div(F.log_softmax(logits.float(), -1), probs.float(), reduction="sum")
    return each / max(len(probs), 1)


def draw_negatives(pick: Pick, rng: np.random.Generator, count: int) -> Pick:
    """The target of mrnce with, behind each feature, `count` numbers in [0, 1) that choose the features it is told from: (M, F + count)."""
    return Pick(
        pick.stream, pick.rows, np.concatenate([pick.labels, rng.random((len(pick.rows), count), np.float32)], 1)
    )


def negatives(draws: Tensor, rows: Tensor, packing: Packing, spare: int, inside: float = 0.3) -> Tensor:
    """Which regions hidden ones are told from: (M, K) rows.

    Args:
        draws: (M, K) float in [0, 1).
        rows: (M) hidden regions.
        packing: of all regions.
        spare: so many of the last regions of each document are never chosen.
        inside: share of the K that are other regions of the same document; the others are regions of other documents, each as likely, and of the
            same one where there is no other.
    """
    counts = (packing.lengths.long() - spare).clamp(min=1)  # (B)
    own, documents = packing.doc[rows][:, None], packing.documents  # (M, 1)
    across = draws.shape[1] - int(draws.shape[1] * inside)
    place = draws[:, :across].double() * max(documents - 1, 1)
    other = place.long()
    shift = (other >= own).long() if documents > 1 else 0
    elsewhere = other + shift
    found = packing.first[elsewhere] + ((place - other) * counts[elsewhere]).long().clamp(max=counts[elsewhere] - 1)
    beside = (draws[:, across:].double() * (counts[own] - 1)).long()
    here = packing.pos[rows][:, None]
    beside = (beside + (beside >= here)).clamp(max=counts[own] - 1)
    return torch.cat([found, packing.first[own] + beside], 1)


def contrast(predicted: Tensor, labels: Tensor, rows: Tensor, regions: Regions, spare: int = 0) -> Tensor:
    """NCE: mean cross entropy of telling a region's feature from those of others by their product with the prediction; 0 of none.

    Args:
        predicted: (M, F).
        labels: (M, F + K) as `draw_negatives` makes them.
        rows: (M) the hidden regions.
        regions: all of the batch; what is hidden of them is put back from `labels`.
        spare: so many of the last regions of each document are no negatives.

    Source: the code of ViLBERT (visual_target 2).
    """
    true, draws = labels.float().split([predicted.shape[1], labels.shape[1] - predicted.shape[1]], 1)  # type: ignore[no-untyped-call]
    feats = regions.feats.float().index_copy(0, rows, true)
    others = feats[negatives(draws, rows, regions.packing, spare)]  # (M, K, F)
    scores = torch.cat([true[:, None], others], 1) @ predicted.float()[:, :, None]  # (M, 1 + K, 1)
    return F.cross_entropy(scores.squeeze(-1), rows.new_zeros(len(rows)), reduction="sum") / max(len(rows), 1)
