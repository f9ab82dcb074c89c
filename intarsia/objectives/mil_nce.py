"""MIL-NCE: a video against several sentences, any of which may be its own.

Source: Miech et al., End-to-End Learning of Visual Representations from Uncurated Instructional Videos (CVPR 2020), eq. 1, as the authors' loss.py has it.
Unusual: no temperature, no norm; a video's own sentences stand twice in the denominator, once in each direction.
"""

from __future__ import annotations

import torch
from torch import Tensor


def score(videos: Tensor, sentences: Tensor) -> Tensor:
    """The mean loss over videos.

    Args:
        videos: (B, D) float.
        sentences: (B * C, D) float; rows b * C .. b * C + C - 1 are candidates of video b.

    Returns:
        A scalar, float32.
    """
    table = (videos @ sentences.t()).float().view(len(videos), len(videos), -1)  # (B, B, C)
    own = torch.diagonal(table).t()  # (B, C)
    every = torch.cat([table.flatten(1), table.transpose(0, 1).flatten(1)], 1)
    return (every.logsumexp(1) - own.logsumexp(1)).mean()
