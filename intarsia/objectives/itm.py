"""ITM, image-text matching: does this text belong to this picture? Source: UNITER, sec. 3.2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from intarsia.batch import Sample


def swap(
    sample: Sample,
    rng: np.random.Generator,
    draw: Callable[[], Sample],
    rate: float = 0.5,
    false_text_share: float = 0.0,
) -> tuple[Sample, int]:
    """Keeps a pair or breaks it.

    Args:
        sample: a matched pair.
        rng: source of randomness.
        draw: another sample, with another picture.
        rate: probability of breaking the pair.
        false_text_share: of the broken pairs that know false captions, how many keep the picture and take one of those instead of taking
            another picture.

    Returns:
        The pair to lay out and its label: 1 matched, 0 broken. A broken pair has no gold links.
    """
    if rng.random() >= rate:
        return sample, 1
    if sample.false_texts and rng.random() < false_text_share:
        false = str(rng.choice(sample.false_texts))
        return replace(sample, texts=(false, *sample.texts[1:]), links=(), also=()), 0
    return replace(sample, pictures=draw().pictures, links=(), also=()), 0


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of (B, 2) logits against (B) labels, 1 = matched."""
    return F.cross_entropy(logits.float(), labels)
