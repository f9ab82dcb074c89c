"""Contrast of two towers: a query must find its key among those of other pairs, which lie in a queue. Source: He et al., MoCo (CVPR 2020), sec. 3.

Keys come from slow copies of the towers, which `follow` moves. The queue of a step is the one before it: keys are put in after the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from intarsia.errors import BadInput

Gather = Callable[[Tensor], Tensor]


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


@torch.no_grad()
def enqueue(queue: Tensor, pointer: Tensor, keys: Tensor, gather: Gather = alone) -> None:
    """Overwrites the oldest columns of a queue, in place, with the keys of all processes; nothing waits for the device.

    Args:
        queue: (D, K), the same on all processes.
        pointer: (1) int64, the oldest column; moves on, modulo K.
        keys: (B, D) of this process.
        gather: keys of this process to those of all.

    Raises:
        BadInput: more keys than columns.
    """
    whole = gather(keys)
    count, room = len(whole), queue.shape[1]
    if count > room:
        raise BadInput(f"a queue of {room} keys is shorter than a step's {count} pairs: a longer queue or fewer pairs")
    columns = (pointer + torch.arange(count, device=queue.device)) % room
    queue.index_copy_(1, columns, whole.T.to(queue.dtype))
    pointer.add_(count).remainder_(room)


@torch.no_grad()
def follow(followers: Sequence[Tensor], leaders: Sequence[Tensor], momentum: float) -> None:
    """Moves each follower, which is whole, in place: momentum times itself plus the rest of its leader, which may be sharded."""
    if followers:
        whole = [x.full_tensor() if isinstance(x, DTensor) else x for x in (leader.detach() for leader in leaders)]
        torch._foreach_mul_([*followers], momentum)
        torch._foreach_add_([*followers], whole, alpha=1 - momentum)
