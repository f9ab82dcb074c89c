"""SCST, self-critical sequence training: captions that score above the greedy one become likelier. Source: Rennie et al. 2017; the code of Oscar and VLP.

What is drawn and what it is worth is decided elsewhere (`decode.sample`, a metric); here is the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Reward = Callable[[Sequence[str], Sequence[int]], Sequence[float]]
"""Captions and the number of the sample that each is of -> what each is worth (CIDEr-D against that sample's references)."""


def advantages(drawn: Tensor, greedy: Tensor) -> Tensor:
    """(B, S) how much better than the greedy caption each drawn one is.

    Args:
        drawn: (B, S) rewards of S drawn captions of each of B samples.
        greedy: (B) rewards of their greedy captions.
    """
    return drawn - greedy[:, None]


def score(
    logs: Tensor, captions: Tensor, advantage: Tensor, over: Literal["captions", "pieces"] = "captions"
) -> Tensor:
    """Minus the log probabilities of what was drawn, weighed by its advantage.

    Args:
        logs: (M) log probabilities of all pieces drawn, closing ones included, with gradient.
        captions: (M) the caption of each piece, from 0; each caption has one piece at least.
        advantage: (K) of each caption; a constant.
        over: captions = the mean over captions of their mean log probability (Oscar); pieces = the mean over all pieces (VLP).
    """
    weight = advantage.detach().to(logs.dtype)[captions]
    if over == "pieces":
        return -(logs * weight).mean()
    pieces = logs.new_zeros(len(advantage)).index_add(0, captions, torch.ones_like(logs))
    return -(logs * weight / pieces[captions]).sum() / len(advantage)
