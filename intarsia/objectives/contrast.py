"""Contrast of two towers: a query must find its key among those of other pairs, which lie in a queue. Source: He et al., MoCo (CVPR 2020), sec. 3.

Keys come from slow copies of the towers, which move behind them (`parts.momentum`). The queue of a step is the one before it: keys are put in after the loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def alone(rows: Tensor) -> Tensor:
    """The rows of all processes where there is one."""
    return rows


def logits(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """(B, 1 + K) float32: each query with its own key first, then with the queue.

    Args:
        query: (B, D) of length 1.
        key: (B, D) of length 1, row b the partner of query b.
        queue: (D, K).
        temperature: divides.
    """
    query, key, queue = query.float(), key.float(), queue.float()
    return torch.cat([(query * key).sum(-1, keepdim=True), query @ queue], 1) / temperature


def info_nce(logits: Tensor, also: Tensor | None = None) -> Tensor:
    """Mean over queries of -log p of the first column, and of further positives, which are summed (not averaged).

    Args:
        logits: (B, 1 + K).
        also: (B, K) bool, columns of the queue that count as positives too.
    """
    likely = logits.log_softmax(-1)
    found = likely[:, 0]
    if also is not None:
        found = found + (likely[:, 1:] * also).sum(-1)
    return -found.mean()


def agreed(texts: Tensor, text_queue: Tensor, images: Tensor, image_queue: Tensor, most: int) -> Tensor:
    """(B, K) bool: pairs of the queue near to a pair in both towers, among the `most` nearest in each. Source: BriVL's code, multi_label.

    Args:
        texts: (B, D) keys.
        text_queue: (D, K).
        images: (B, D) keys.
        image_queue: (D, K), column k the partner of that of text_queue.
        most: at the most K.
    """
    near = []
    for keys, queue in ((texts, text_queue), (images, image_queue)):
        scores = keys.float() @ queue.float()
        best = scores.topk(min(most, scores.shape[1]), -1).indices
        near.append(torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True))
    return near[0] & near[1]


def products(query: Tensor, keys: Tensor, left_out: Tensor, temperature: float, normalize: bool) -> Tensor:
    """(M, N) each query with all keys; -inf where a key is no rival. Source: CBT, noise-contrastive estimation of hidden clips.

    Args:
        query: (M, D) float32.
        keys: (N, D) float32.
        left_out: (M, N) bool, keys that are no rivals of a query.
        temperature: divides the products.
        normalize: compare directions alone.
    """
    if normalize:
        query, keys = F.normalize(query, dim=-1), F.normalize(keys, dim=-1)
    return (query @ keys.T / temperature).masked_fill(left_out, -torch.inf)


def among(scores: Tensor, own: Tensor) -> Tensor:
    """Mean over queries of -log p of their own key (M) among all of (M, N) scores; 0 of none."""
    return F.cross_entropy(scores, own, reduction="sum") / max(len(own), 1)


@torch.no_grad()
def found(scores: Tensor, own: Tensor, same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How often a query's own key comes first: among all, among those of its document, and among those of other documents; 0 of none.

    Args:
        scores: (M, N) as `products` gives them.
        own: (M) which key belongs to each query.
        same: (M, N) bool, keys of the query's document, the own one among them.
    """
    others = same.scatter(1, own[:, None], False)
    kinds = scores, scores.masked_fill(~same, -torch.inf), scores.masked_fill(others, -torch.inf)
    every, within, across = ((x.argmax(1) == own).float().sum() / max(len(own), 1) for x in kinds)
    return every, within, across
