"""Soft alignment of words with visual tokens, and the match score made of it.

A word w has a unit vector u and a picture has unit vectors v, one a visual token; s = u . v. Slot 0 may be a null vector, for words that nothing shows.
Alignment turns a word's row of s into shares alpha that sum to 1. Blocks are padded: words (.., L), slots (.., P).

Source: softmax, GLoRIA (ICCV 2021); minmax, SPARC (ICML 2024), eq. 3 to 5; max, FILIP (ICLR 2022), eq. 3; sinkhorn, semi-relaxed transport: words must be
explained, visual tokens need not be.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from intarsia.batch import Text
from intarsia.packed import Packing, pad

Norm = Literal["softmax", "minmax", "max", "sinkhorn"]


def shares(
    scores: Tensor,
    here: Tensor,
    norm: Norm,
    null: bool = True,
    temperature: Tensor | float | None = 0.1,
    weights: Tensor | None = None,
    iterations: int = 5,
) -> Tensor:
    """What share of a word lies on each slot.

    Args:
        scores: (.., L, P) float32, u . v.
        here: (.., P) bool, broadcasts; True = a visual token or the null slot. Each row needs one.
        norm: how shares are made.
        null: slot 0 is the null.
        temperature: of softmax; None = scores are divided by it already.
        weights: (.., L) float, the mass of each word for sinkhorn; None = 1.
        iterations: of sinkhorn.

    Returns:
        (.., L, P) float32, rows sum to 1; 0 where nothing is.
    """
    there = here[..., None, :]
    if norm == "softmax":
        logits = scores if temperature is None else scores / temperature
        return logits.masked_fill(~there, -torch.inf).softmax(-1)
    hidden = scores.masked_fill(~there, -torch.inf)
    match norm:
        case "max":
            best = hidden.argmax(-1, keepdim=True)
            return torch.zeros_like(scores).scatter(-1, best, 1.0)
        case "minmax":
            return _minmax(scores, hidden, there, null)
        case "sinkhorn":
            return _sinkhorn(hidden, there, null, weights, iterations)


def _minmax(scores: Tensor, hidden: Tensor, there: Tensor, null: bool) -> Tensor:
    """H = (s - min) / (max - min), 0 below 1 / P, over its sum; all slots alike where all scores are equal."""
    low = scores.masked_fill(~there, torch.inf).amin(-1, keepdim=True)
    span = hidden.amax(-1, keepdim=True) - low
    raised = (scores - low) / (span + 1e-6)
    count = (there.sum(-1, keepdim=True) - int(null)).clamp(min=1)  # P: the null is no visual token
    kept = raised * (there & (raised >= 1 / count))
    total = kept.sum(-1, keepdim=True)
    alike = there / there.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp(min=1e-12), alike)


def _sinkhorn(hidden: Tensor, there: Tensor, null: bool, weights: Tensor | None, iterations: int) -> Tensor:
    """Rows carry the words' masses; a visual token takes at most 3 sum(w) / P, the null any amount.

    The plan is w times what is kept here, so that a word of mass 0 has shares too.
    """
    plan = (hidden / 0.1).softmax(-1)  # the kernel exp(s / 0.1), its rows scaled
    mass = torch.ones_like(hidden[..., 0]) if weights is None else weights  # (.., L)
    count = (there.sum(-1, keepdim=True) - int(null)).clamp(min=1)  # (.., 1, 1)
    cap = 3 * mass.sum(-1)[..., None, None] / count
    free = torch.zeros(hidden.shape[-1], dtype=torch.bool, device=hidden.device)
    free[:1] = null
    for _ in range(iterations):
        filled = (mass[..., None] * plan).sum(-2, keepdim=True)  # (.., 1, P)
        scale = (cap / filled.clamp(min=1e-12)).clamp(max=1.0).masked_fill(free, 1.0)
        plan = plan * scale
        plan = plan / plan.sum(-1, keepdim=True).clamp(min=1e-12)
    return plan


def word_scores(alpha: Tensor, scores: Tensor, gram: Tensor) -> Tensor:
    """(.., L) cosine of each word with the mix of slots it is aligned to, m = u . norm(sum alpha v), without making the mix.

    Args:
        alpha: (.., L, P).
        scores: (.., L, P), u . v.
        gram: (.., P, P), v . v of the slots.
    """
    length = ((alpha @ gram) * alpha).sum(-1).clamp(min=1e-12).sqrt()
    return (alpha * scores).sum(-1) / length


def mean_over_words(values: Tensor, weights: Tensor) -> Tensor:
    """(..) of (.., L) values: sum(w m) / sum(w); weights (.., L) are 0 at padding."""
    return (values * weights).sum(-1) / weights.sum(-1).clamp(min=1e-12)


def score(
    words: Tensor, slots: Tensor, here: Tensor, weights: Tensor, norm: Norm, temperature: Tensor | float
) -> Tensor:
    """S_tok of texts and pictures, one with one: (..), always in float32.

    Args:
        words: (.., L, D) of length 1, 0 at padding.
        slots: (.., P, D) of length 1, the null first.
        here: (.., P) bool.
        weights: (.., L), 0 at padding.
        norm: see `shares`.
        temperature: of softmax.
    """
    with torch.autocast(words.device.type, enabled=False):
        scores = words @ slots.transpose(-1, -2)
        alpha = shares(scores, here, norm, True, temperature, weights)
        return mean_over_words(word_scores(alpha, scores, slots @ slots.transpose(-1, -2)), weights)


def all_scores(
    words: Tensor,
    slots: Tensor,
    here: Tensor,
    weights: Tensor,
    norm: Norm,
    temperature: Tensor | float,
    most: int = 1 << 24,
) -> Tensor:
    """S_tok of every text with every picture: (J, I), always in float32.

    At most `most` numbers of a texts x pictures x L x P block are held at once; with several blocks each is computed again in the backward pass.

    Args:
        words: (J, L, D).
        slots: (I, P, D), the null first.
        here: (I, P) bool.
        weights: (J, L).
        norm: see `shares`.
        temperature: of softmax.
        most: numbers of a block.
    """
    scale = 1 / temperature if norm == "softmax" else 1.0  # on the small side of the product

    def some(u: Tensor, w: Tensor) -> Tensor:
        with torch.autocast(u.device.type, enabled=False):
            flat = (u * scale).flatten(0, 1) @ slots.flatten(0, 1).T  # (J L, I P)
            masses = w.expand(len(slots), *w.shape)  # (I, J, L)
            blocks = flat.view(*u.shape[:2], *slots.shape[:2]).permute(2, 0, 1, 3)  # (I, J, L, P)
            alpha = shares(blocks, here[:, None], norm, True, None, masses)
            found = word_scores(alpha.flatten(1, 2), blocks.flatten(1, 2), slots @ slots.transpose(1, 2))
            return mean_over_words(found.view_as(masses) / scale, masses).T

    step = max(1, most // max(1, slots.shape[0] * slots.shape[1] * words.shape[1]))
    if step >= len(words):
        return some(words, weights)
    parts = zip(words.split(step), weights.split(step), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([checkpoint(some, u, w, use_reentrant=False) for u, w in parts])


def with_null(visual: Tensor, packing: Packing, null: Tensor) -> tuple[Tensor, Tensor]:
    """Padded slots (B, 1 + P, D), the null first, and where there are some (B, 1 + P) bool. Args: visual (R, D), null (D)."""
    block = pad(visual, packing)
    here = pad(torch.ones_like(packing.pos, dtype=torch.bool), packing)
    first = null.to(block.dtype).expand(len(block), 1, -1)
    return torch.cat([first, block], 1), torch.cat([torch.ones_like(here[:, :1]), here], 1)


def word_means(rows: Tensor, words: Tensor, packing: Packing) -> Tensor:
    """(T, D): every piece's row replaced by the mean over the pieces of its word; special tokens (word -1) keep theirs.

    Args:
        rows: (T, D).
        words: (T) number of each piece's word in its document, -1 for special tokens.
        packing: where the documents lie.
    """
    place = packing.doc * packing.max_seqlen + words.clamp(min=0)
    piece = (words >= 0)[:, None]
    room = packing.documents * packing.max_seqlen
    total = rows.new_zeros(room, rows.shape[1]).index_add(0, place, rows * piece)
    count = rows.new_zeros(room).index_add(0, place, piece[:, 0].to(rows.dtype))
    return torch.where(piece, total[place] / count[place].clamp(min=1)[:, None], rows)


Unit = Literal["word", "phrase", "caption"]


def units(text: Text, content: Tensor, unit: Unit) -> Tensor:
    """(T) number of the unit of each piece within its document, -1 for pieces that stay alone.

    Args:
        text: of T rows.
        content: (T) bool, pieces of words that a picture may show.
        unit: word; phrase = content words with no other word between them; caption = all content words.
    """
    if unit == "word":
        return text.words
    if unit == "caption":
        return content.long() - 1
    others = (~content).long().cumsum(0)
    return torch.where(content, others - others[text.packing.first[text.packing.doc]], -1)


def cut(packing: Packing, units: Tensor) -> Packing:
    """Each unit of a document as a document of its own, and each row that has none. Waits for the device. Args: units, (T) as of `units`, in one piece each."""
    before = torch.cat([units[:1] - 1, units[:-1]])
    begins = (units != before) | (units < 0) | (packing.pos == 0)
    doc = begins.long().cumsum(0) - 1
    cu = torch.cat([begins.nonzero()[:, 0], doc.new_tensor([packing.rows])]).int()
    return Packing(cu, packing.max_seqlen, doc, torch.arange(packing.rows, device=doc.device) - cu[doc])


def spread(weights: Tensor, words: Tensor, packing: Packing) -> Tensor:
    """(T) a weight of each word given to its pieces in equal parts, so that they add up to the word's mean piece weight; special tokens get 0.

    Args:
        weights: (T) of each piece as if it were a word.
        words: (T) as in `word_means`.
        packing: where the documents lie.
    """
    place = packing.doc * packing.max_seqlen + words.clamp(min=0)
    piece = (words >= 0).to(weights.dtype)
    room = packing.documents * packing.max_seqlen
    count = weights.new_zeros(room).index_add(0, place, piece)
    return word_means(weights[:, None], words, packing)[:, 0] * piece / count[place].clamp(min=1)


def balanced(weights: Tensor, piece: Tensor, packing: Packing) -> Tensor:
    """(T) weights scaled so that they sum to the number of pieces of each document; equal where all are 0.

    Args:
        weights: (T), >= 0.
        piece: (T) bool, False for special tokens.
        packing: where the documents lie.
    """
    here = piece.to(weights.dtype)
    total, count = (weights.new_zeros(packing.documents).index_add(0, packing.doc, x) for x in (weights * here, here))
    none = total[packing.doc] <= 0
    return torch.where(none, here, weights * here * (count / total.clamp(min=1e-12))[packing.doc])
