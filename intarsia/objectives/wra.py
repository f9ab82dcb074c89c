"""WRA, word-region alignment by optimal transport. Source: UNITER, sec. 3.2 and appendix; IPOT: Xie et al. 2018, algorithm 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from intarsia.packed import Packing, pad


def costs(words: Tensor, regions: Tensor, word_here: Tensor, region_here: Tensor) -> Tensor:
    """1 - cosine of every word with every region, 0 at padding.

    Args:
        words: (B, Lt, H) float.
        regions: (B, Lr, H) float.
        word_here: (B, Lt) bool, True = a word.
        region_here: (B, Lr) bool, True = a region.

    Returns:
        (B, Lt, Lr) float32.
    """
    with torch.autocast(words.device.type, enabled=False):  # in fp32, as the authors run it
        words, regions = (F.normalize(x.float(), dim=-1, eps=1e-5) for x in (words, regions))
        cost = 1 - words @ regions.transpose(1, 2)
    return cost * (word_here[:, :, None] & region_here[:, None, :])


@torch.no_grad()
def transport(cost: Tensor, word_here: Tensor, region_here: Tensor, beta: float = 0.5, iterations: int = 50) -> Tensor:
    """The transport plan between words and regions, by IPOT with one inner pass.

    Args:
        cost: (B, Lt, Lr) float32, 0 at padding.
        word_here: (B, Lt) bool.
        region_here: (B, Lr) bool.
        beta: step of the proximal method.
        iterations: outer passes.

    Returns:
        (B, Lr, Lt) float32, sums to 1 in each document with words and regions, 0 at padding.
    """
    here = (region_here[:, :, None] & word_here[:, None, :]).to(cost.dtype)  # (B, Lr, Lt)
    count_words, count_regions = (x.sum(1, keepdim=True).to(cost.dtype) for x in (word_here, region_here))  # (B, 1)
    kernel = torch.exp(-cost.transpose(1, 2) / beta) * here
    plan = here
    sigma = word_here.to(cost.dtype) / count_words.clamp(min=1)  # (B, Lt)
    for _ in range(iterations):
        q = kernel * plan
        delta = region_here / (count_regions * (q * sigma[:, None, :]).sum(2) + (~region_here | (count_words == 0)))
        sigma = word_here / (count_words * (q * delta[:, :, None]).sum(1) + (~word_here | (count_regions == 0)))
        plan = delta[:, :, None] * q * sigma[:, None, :]
    return plan


def align(words: Tensor, regions: Tensor, text: Packing, visual: Packing, iterations: int) -> tuple[Tensor, Tensor]:
    """Cost (B, Lt, Lr) and plan (B, Lr, Lt) of packed words (T, H) and regions (R, H)."""
    word_here, region_here = (pad(torch.ones_like(x.pos, dtype=torch.bool), x) for x in (text, visual))
    cost = costs(pad(words, text), pad(regions, visual), word_here, region_here)
    return cost, transport(cost, word_here, region_here, iterations=iterations)


def distances(cost: Tensor, plan: Tensor) -> Tensor:
    """trace(cost @ plan) of each document: (B). The gradient flows through the cost only."""
    return (cost * plan.detach().transpose(1, 2)).sum((1, 2))


def score(distance: Tensor, matched: Tensor) -> Tensor:
    """(sum of matched distances - sum of broken ones) / B; `matched` is (B), 1 or 0. The paper minimises matched only; the code does this."""
    sign = torch.where(matched > 0, 1.0, -1.0)
    return (distance * sign).mean()
