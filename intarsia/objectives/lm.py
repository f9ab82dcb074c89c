"""LM, caption generation trained by masked words: hide a few words of a caption that sees only what stands before, name them.

Source: VLP, sec. 3.2; Oscar, sec. 5 and code.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intarsia.batch import Array, Example
from intarsia.objectives import mlm
from intarsia.text import Vocab


def hide_few(
    example: Example,
    vocab: Vocab,
    rng: np.random.Generator,
    rows: Array,
    pieces: int,
    rate: float,
    most: int,
    goal: str,
) -> Example:
    """Hides round(rate * pieces) of some text rows, at least one and at most `most`; 80 % [MASK], 10 % any piece, 10 % left.

    Args:
        example: laid out, with text. Changed and returned.
        vocab: gives [MASK] and random pieces.
        rng: source of randomness.
        rows: text rows to choose from; the closing [SEP] among them, so that the end is learnt.
        pieces: the number that the rate is of.
        rate: share to hide.
        most: at most so many.
        goal: name of the target.
    """
    count = min(most, max(1, round(rate * pieces)), len(rows))
    chosen = np.sort(rng.permutation(rows)[:count])
    return mlm.write(example, vocab, rng, chosen, rng.random(count), 0, goal)


def smoothed(logits: Tensor, labels: Tensor, smoothing: float = 0.0, padding: int | None = None) -> Tensor:
    """(M) cross entropy of logits (M, V) against labels (M); with smoothing the divergence from softened labels.

    Args:
        logits: of the hidden words.
        labels: their ids.
        smoothing: what the true word gives up, shared out evenly over the others.
        padding: a word that gets no share and whose rows count nothing (VLP); None = all words share (Oscar).
    """
    logs = F.log_softmax(logits.float(), -1)
    true = logs.gather(1, labels[:, None]).squeeze(1)
    if not smoothing:
        return -true
    count = logits.shape[1]
    others = count - 1 if padding is None else count - 2
    share = torch.full_like(logs, smoothing / others)
    if padding is not None:
        share[:, padding] = 0.0
    share = share.scatter(1, labels[:, None], 1 - smoothing)
    each = F.kl_div(logs, share, reduction="none").sum(1)
    return each if padding is None else each.masked_fill(labels == padding, 0.0)


def best_documents(each: Tensor, documents: Tensor, count: int, drop: float) -> Tensor:
    """Mean loss over the hidden words of all documents but the worst. Source: VLP, loss.py.

    Args:
        each: (M) losses of hidden words.
        documents: (M) the document of each.
        count: documents of the batch.
        drop: share of documents left out, those with the largest sums.
    """
    sums = each.new_zeros(count).index_add(0, documents, each)
    words = each.new_zeros(count).index_add(0, documents, torch.ones_like(each))
    if drop:
        kept = sums.topk(int(count * (1 - drop)), largest=False).indices
        sums, words = sums[kept], words[kept]
    return sums.sum() / (words.sum() + 1e-5)


def best_words(each: Tensor, drop: float) -> Tensor:
    """Mean loss over all hidden words (M) but the worst share `drop` of them. Source: Oscar, modeling_bert.py."""
    if drop:
        each = each.topk(int(len(each) * (1 - drop)), largest=False).values
    return each.sum() / max(len(each), 1)
