"""Which region a word means, read off the attention of any system: as it is, rolled out over layers, and times its gradient.

Rollout: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020. Gradient x attention: the positive part, mean over heads, as in Chefer et
al., "Generic Attention-model Explainability", ICCV 2021, without their rules for several layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from intarsia.attend import Seen, watch
from intarsia.batch import Array, Batch
from intarsia.evaluate.grounding import maps_of, streams_of
from intarsia.packed import pad

MAPS = ("dot", "attention", "attention back", "rollout", "gradient x attention")
"""Read-outs of pointing: u . v; attention of words to regions; of regions to words; and the two above."""

TOLD = ("u.v", "attention of words", "attention of regions", "attention rollout", "gradient x attention")
"""How pages call them."""


def attention_maps(system: Any, batch: Batch) -> dict[str, list[Array]]:
    """Of each document a (T, R) map by every read-out but the first of MAPS.

    The gradient is that of the summed logits that the picture supports a word, so `system.encode` must give `support`.
    """
    with torch.enable_grad(), watch() as seen:
        support = system.encode(batch).support.float().sum()
        grads = torch.autograd.grad(support, [out for _, out in seen.flows], allow_unused=True)
    plain = maps_of(seen, batch)
    weighted = [_weighted(seen, i, grad) for i, grad in enumerate(grads)]
    steep = maps_of(Seen(weighted, seen.packings), batch)
    return {
        "attention": [x.words.mean((0, 1)) for x in plain],
        "attention back": [x.regions.mean((0, 1)) for x in plain],
        "rollout": rollout(seen, batch),
        "gradient x attention": [x.words.mean((0, 1)) + x.regions.mean((0, 1)) for x in steep],
    }


def _weighted(seen: Seen, call: int, grad: Tensor | None) -> Tensor:
    """(B, heads, Lq, Lk) probabilities of a call times their gradient, where that is positive; `grad` (Nq, heads, D) is that of the output."""
    if grad is None:
        return torch.zeros_like(seen.maps[call])
    queries, keys = seen.packings[call]
    values = seen.flows[call][0].detach()
    slope = torch.einsum("bqhd,bkhd->bhqk", pad(grad.float(), queries), pad(values.float(), keys))
    return (slope * seen.maps[call]).clamp(min=0)


def rollout(seen: Seen, batch: Batch) -> list[Array]:
    """Of each document (T, R): how much of a word's row comes from each region, if each layer mixes half of what it attends to into half of what was there.

    Layers are taken in the order of their calls, those of one stream too.
    """
    assert batch.text is not None and batch.regions is not None
    lengths = list(zip(*(x.packing.lengths.tolist() for x in (batch.text, batch.regions)), strict=True))
    rolled = [np.eye(t + r, dtype=np.float32) for t, r in lengths]
    for block, packings in zip(seen.maps, seen.packings, strict=True):
        seer, shown = streams_of(*packings, batch)
        if not seer or not shown:
            continue
        means = block.mean(1).numpy()
        for one, mean, (t, r) in zip(rolled, means, lengths, strict=True):
            place = {"words": slice(0, t), "regions": slice(t, t + r), "both": slice(0, t + r)}
            q, k = place[seer], place[shown]
            one[q] = (one[q] + mean[: q.stop - q.start, : k.stop - k.start] @ one[k]) / 2
    return [one[:t, t:] for one, (t, _) in zip(rolled, lengths, strict=True)]
