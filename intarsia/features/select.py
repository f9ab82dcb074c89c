"""Which of a picture's proposals become its regions: the selection rules behind the published features.

All scores here have the background in column 0. Source: bottom-up-attention's generate_tsv.py; py-bottom-up-attention's demos; VinVL's box_head inference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from intarsia.features.roi import Clash, nms, overlaps


def survivors(probs: Tensor, clash: Callable[[Tensor], Tensor]) -> Tensor:
    """Greedy suppression of every class by itself, all classes at once.

    Args:
        probs: (R, K) float.
        clash: given for each class a row (K), says which rows that one removes, (K, R) bool.

    Returns:
        (R, K) bool: the rows each class keeps.
    """
    rows, classes = probs.shape
    order = probs.argsort(stable=True, dim=0, descending=True)
    each = torch.arange(classes, device=probs.device)
    alive = torch.ones(classes, rows, dtype=torch.bool, device=probs.device)
    for i in range(rows):
        lives = alive[each, order[i]]
        alive &= ~(clash(order[i]) & lives[:, None])
        alive[each, order[i]] = lives  # no row removes itself
    return alive.t()


def best_confidence(probs: Tensor, boxes: Tensor, overlap: float, clash: Clash) -> Tensor:
    """(R) the highest probability of each row among the classes whose suppression it survives, 0 of none.

    Args:
        probs: (R, C) float, background first.
        boxes: (R, 4), the same for all classes.
        overlap: threshold of the suppression.
        clash: its rule.
    """
    if len(boxes) == 0:
        return probs.new_zeros(0)
    removes = clash(boxes, boxes, overlap)
    kept = survivors(probs[:, 1:], lambda rows: removes[rows])
    return (probs[:, 1:] * kept).amax(1)


def above_or_best(confidence: Tensor, threshold: float, least: int, most: int) -> Tensor:
    """(K) int64 the rows at or above the threshold in their order; where they are fewer than `least` or more than `most`, so many of the best, best first."""
    chosen = (confidence >= threshold).nonzero()[:, 0]
    if least <= len(chosen) <= most:
        return chosen
    return confidence.argsort(stable=True, descending=True)[: least if len(chosen) < least else most]


def tighter_until(boxes: Tensor, scores: Tensor, overlaps_tried: Sequence[float], least: int, most: int) -> Tensor:
    """(K) int64 rows left by one suppression over all classes, best first; thresholds are tried until `least` are left, else the last one counts.

    Args:
        boxes: (R, 4) one box a row, of its best class.
        scores: (R) its probability.
        overlaps_tried: thresholds, from the least.
        least: rows wanted.
        most: rows at the most.
    """
    kept = scores.new_zeros(0, dtype=torch.int64)
    for overlap in overlaps_tried:
        kept = nms(boxes, scores, overlap, most=most)
        if len(kept) >= least:
            break
    return kept


def pairs(
    boxes: Tensor, probs: Tensor, threshold: float, overlaps_tried: Sequence[float], count: int
) -> tuple[Tensor, Tensor]:
    """Rows and classes of the best pairs of a row and a class, class by class suppressed; a row may come twice.

    Args:
        boxes: (R, C - 1, 4) a box a row and class but the background.
        probs: (R, C), background first.
        threshold: pairs at or below it go.
        overlaps_tried: thresholds, from the least, until `count` are left.
        count: pairs at the most.

    Returns:
        rows (K) int64, classes (K) int64 from 1.
    """
    row, column = (probs[:, 1:] > threshold).nonzero().unbind(1)
    kept = row[:0]
    for overlap in overlaps_tried:
        kept = nms(boxes[row, column], probs[row, column + 1], overlap, column, most=count)
        if len(kept) == count:
            break
    return row[kept], column[kept] + 1


def best_class(
    boxes: Tensor, probs: Tensor, overlap: float, threshold: float, least: int, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's best class among those whose suppression it survives; rows at or above the threshold, but `least` .. `most` of them, best first.

    Args:
        boxes: (R, 4), or (R, C - 1, 4) where each class has its own.
        probs: (R, C), background first.
        overlap: threshold of the suppression.
        threshold: of the score.
        least: rows kept if there are any with a score above 0.
        most: rows kept at the most.

    Returns:
        rows (K) int64, classes (K) int64 from 1, scores (K).
    """
    if len(boxes) == 0:
        none = probs.new_zeros(0, dtype=torch.int64)
        return none, none, probs.new_zeros(0)
    if boxes.ndim == 2:
        removes = overlaps(boxes, boxes, overlap)
        kept = survivors(probs[:, 1:], lambda rows: removes[rows])
    else:
        own = boxes.transpose(0, 1)  # (C - 1, R, 4)
        each = torch.arange(len(own), device=boxes.device)
        kept = survivors(probs[:, 1:], lambda rows: _overlap_each(own[each, rows], own) > overlap)
    scores, column = (probs[:, 1:] * kept).max(1)
    order = scores.argsort(stable=True, descending=True)
    order = order[scores[order] > 0]
    count = int((scores >= threshold).sum())
    order = order[: min(max(count, least), most)]
    return order, column[order] + 1, scores[order]


def _overlap_each(one: Tensor, many: Tensor) -> Tensor:
    """(K, R) IoU of box k of (K, 4) with the R boxes of row k of (K, R, 4)."""
    one = one[:, None]
    sides = torch.minimum(one[..., 2:], many[..., 2:]) - torch.maximum(one[..., :2], many[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    area_one, area_many = ((x[..., 2:] - x[..., :2]).clamp(min=0).prod(-1) for x in (one, many))
    return shared / (area_one + area_many - shared).clamp(min=1e-12)


def attribute_hits(probs: Tensor, threshold: float = 0.05, most: int = 100) -> Tensor:
    """Attribute probabilities of one picture's regions with those that VinVL does not count as said set to 0.

    Its code keeps what is above the threshold. Where more than `most` are, it also drops what is below a bound for the picture, but takes that bound from the
    sorted matrix with the dropped ones, zeros, in it: it is above 0 only where the hits outnumber the zeros by as many. This is done here as there, so that the
    same attributes are left. (The sixteen per region that it then lists hold the likeliest, the one that is stored here.)

    Args:
        probs: (K, A - 1) of the attributes but the background.
        threshold: to be passed.
        most: hits in the picture.

    Source: scene_graph_benchmark, attribute_head/inference.py and sgg_configs/vgattr/vinvl_x152c4.yaml.
    """
    said = probs * (probs > threshold)
    hits = int((said > 0).sum())
    if hits > most:
        with_background = torch.cat([said.flatten(), said.new_zeros(len(said))])  # its column 0, zeroed
        said = said * (said >= with_background.kthvalue(hits - most + 1).values)
    return said
