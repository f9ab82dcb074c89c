"""MLM, masked language modelling: hide pieces of words, name them. Source: BERT, sec. 3.1, task 1."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intarsia.batch import Array, Example, Pick, TextRows
from intarsia.text import Vocab


def hide(
    example: Example,
    vocab: Vocab,
    rng: np.random.Generator,
    rate: float = 0.15,
    linked_rate: float | None = None,
    goal: str = "mlm",
    apart: bool = False,
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
        apart: at least one piece of each segment, not of the whole text.
    """
    text = _text(example)
    chance = np.full(len(text), rate)
    if linked_rate is not None:
        chance[example.links[:, 0]] = linked_rate
    chance[text.words < 0] = 0.0
    draws = rng.random(len(text))
    chosen = draws < chance
    for part in np.unique(text.segment_ids) if apart else (None,):
        within = text.words >= 0 if part is None else (text.words >= 0) & (text.segment_ids == part)
        if not chosen[within].any():
            first = np.flatnonzero(within)[:1]
            chosen[first], draws[first] = True, 0.0
    rows = np.flatnonzero(chosen)
    share = draws[rows] / np.maximum(
        chance[rows], 1e-12
    )  # uniform in [0, 1) given that the piece was chosen; 0: it must be
    return write(example, vocab, rng, rows, share, vocab.first_ordinary, goal)


def hide_any(
    example: Example, vocab: Vocab, rng: np.random.Generator, rate: float = 0.15, goal: str = "mlm"
) -> Example:
    """Hides each piece with probability `rate`, perhaps none; random pieces come from the whole vocabulary. Else as `hide`.

    Source: the code of VisualBERT and Oscar.
    """
    text = _text(example)
    rows = np.flatnonzero((rng.random(len(text)) < rate) & (text.words >= 0))
    return write(example, vocab, rng, rows, rng.random(len(rows)), 0, goal)


def hide_words(
    example: Example, vocab: Vocab, rng: np.random.Generator, rate: float = 0.15, goal: str = "mlm"
) -> Example:
    """Hides whole words, each with probability `rate`, perhaps none; all pieces of a word share its fate, random ones are drawn one by one.

    Source: the code of VL-BERT.
    """
    text = _text(example)
    count = int(text.words.max(initial=-1)) + 1
    chosen, share = rng.random(count) < rate, rng.random(count)
    rows = np.flatnonzero((text.words >= 0) & chosen[text.words]) if count else np.zeros(0, np.int64)
    return write(example, vocab, rng, rows, share[text.words[rows]], 0, goal)


def hide_some_words(
    example: Example, vocab: Vocab, rng: np.random.Generator, rate: float = 0.15, most: int = 20, goal: str = "mlm"
) -> Example:
    """Hides whole words in random order until round(rate * rows) pieces are hidden, at least one and at most `most`; a word that is too long is passed over.

    Special tokens count in the rows and are never chosen; of each piece by itself 80 % become [MASK], 10 % any piece, 10 % stay. Changes and returns the
    example. Source: BERT, create_pretraining_data.py with whole words, as FashionBERT's data were made.
    """
    text = _text(example)
    count, chosen = min(most, max(1, round(rate * len(text)))), np.zeros(len(text), np.bool_)
    for word in rng.permutation(int(text.words.max(initial=-1)) + 1):
        pieces = text.words == word
        if chosen.sum() + pieces.sum() <= count:
            chosen |= pieces
    rows = np.flatnonzero(chosen)
    return write(example, vocab, rng, rows, rng.random(len(rows)), 0, goal)


def write(
    example: Example, vocab: Vocab, rng: np.random.Generator, rows: Array, share: Array, lowest: int, goal: str
) -> Example:
    """Writes [MASK], random pieces or nothing into chosen rows and adds the target. Changes and returns the example.

    Args:
        example: laid out, with text.
        vocab: gives [MASK] and the number of pieces.
        rng: draws the random pieces.
        rows: (M) text rows.
        share: (M) in [0, 1): below .8 the row becomes [MASK], below .9 a random piece, else it stays.
        lowest: random pieces have ids from here up.
        goal: name of the target.
    """
    text = _text(example)
    labels = text.ids[rows].copy()
    text.ids = text.ids.copy()
    text.ids[rows[share < 0.8]] = vocab.mask
    swapped = rows[(share >= 0.8) & (share < 0.9)]
    text.ids[swapped] = rng.integers(lowest, len(vocab), len(swapped))
    example.targets[goal] = Pick("text", rows, labels)
    return example


def _text(example: Example) -> TextRows:
    assert example.text is not None, f"{example.key}: no text to hide"
    return example.text


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over hidden pieces; 0 where there are none.

    Args:
        logits: (M, vocabulary) float.
        labels: (M), the true pieces.
    """
    return F.cross_entropy(logits.float(), labels, reduction="sum") / max(len(labels), 1)


def score_tf(logits: Tensor, labels: Tensor) -> Tensor:
    """As `score`, over the number of pieces plus 1e-5. Source: BERT's TensorFlow code."""
    return F.cross_entropy(logits.float(), labels, reduction="sum") / (len(labels) + 1e-5)


def score_by_document(each: Tensor, documents: Tensor, count: int) -> Tensor:
    """The mean over documents with hidden rows of their mean loss, both a little less, as VL-BERT's code has it.

    Args:
        each: (M) losses.
        documents: (M) the document of each.
        count: documents of the batch.
    """
    sums = each.new_zeros(count).index_add(0, documents, each)
    rows = each.new_zeros(count).index_add(0, documents, torch.ones_like(each))
    return (sums / (rows + 1e-4)).sum() / ((rows > 0).sum() + 1e-4)
