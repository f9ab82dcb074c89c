"""MLM, masked language modelling: hide pieces of words, name them. Source: BERT, sec. 3.1, task 1."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from intarsia.batch import Example, Pick
from intarsia.text import Vocab


def hide(
    example: Example,
    vocab: Vocab,
    rng: np.random.Generator,
    rate: float = 0.15,
    linked_rate: float | None = None,
    goal: str = "mlm",
) -> Example:
    """Hides pieces of words: of the chosen, 80 % become [MASK], 10 % a random ordinary piece, 10 % stay. Changes and returns the example.

    If chance chooses none, the first piece becomes [MASK]. Special tokens are never chosen.

    Args:
        example: laid out, with text.
        vocab: gives [MASK] and the range of random pieces.
        rng: source of randomness.
        rate: probability of each piece.
        linked_rate: probability of pieces that a gold link ties to a region, where it differs.
        goal: name of the target.
    """
    text = example.text
    assert text is not None, f"{example.key}: no text to hide"
    chance = np.full(len(text), rate)
    if linked_rate is not None:
        chance[example.links[:, 0]] = linked_rate
    chance[text.words < 0] = 0.0
    draws = rng.random(len(text))
    rows = np.flatnonzero(draws < chance)
    labels = text.ids[rows].copy() if len(rows) else text.ids[:0]
    if len(rows):
        share = draws[rows] / chance[rows]  # uniform in [0, 1) given that the piece was chosen
        text.ids = text.ids.copy()
        text.ids[rows[share < 0.8]] = vocab.mask
        swapped = rows[(share >= 0.8) & (share < 0.9)]
        text.ids[swapped] = rng.integers(vocab.first_ordinary, len(vocab), len(swapped))
    elif (text.words >= 0).any():
        rows = np.flatnonzero(text.words >= 0)[:1]
        labels = text.ids[rows].copy()
        text.ids = text.ids.copy()
        text.ids[rows] = vocab.mask
    example.targets[goal] = Pick("text", rows, labels)
    return example


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over hidden pieces.

    Args:
        logits: (M, vocabulary) float.
        labels: (M), the true pieces.
    """
    return F.cross_entropy(logits.float(), labels)
