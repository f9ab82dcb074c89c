"""Supervision of word and picture at two granularities: contrast (A), masked modelling (B) and matching (C), each for the pair and for the token.

Both twins of an objective use the same heads on the same number of rows; only where the target stands changes. Alignments come from `objectives.align`.
Source: the twins are our own; their cousins are CLIP and FILIP (A), BERT, UNITER's conditional masking and InfoNCE on features (B), ITM and word-level
replacement detection (C).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intarsia.batch import Array, TextRows
from intarsia.packed import Packing, pad, unpad

Loss = Literal["softmax", "sigmoid"]

_STOPS = """
a an the this that these those there here it its he she they we i you is are was were be been being am has have had do does did will would can could may
of to in on at by for from with as into onto and or but not no so than then if while over above under below near next beside behind between
see sees shows show picture photo image
一个 这里 有 我们 看到 图中 画面 上有 在 的 和 也 是 了 着 与 及 还有 、 ， 。
"""
STOPS = frozenset(_STOPS.split())
"""Words that no region shows."""


def stops(tokens: Sequence[str]) -> Array:
    """(V) bool: which pieces of a vocabulary no region shows, special tokens and punctuation among them."""
    return np.array([x in STOPS or not any(c.isalnum() for c in x) or x.startswith("[") for x in tokens])


# ------------------------------------------------------------------------------------------------- in the loader's workers


def draw_words(text: TextRows, stops: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws which words are hidden: half of the content words, at least one, and .15 of the others.

    Args:
        text: one caption.
        stops: (V) bool, pieces that no region shows.
        rng: source of randomness.

    Returns:
        Rows of all pieces of hidden words, and rows of the first piece of each content word that stays, at least one if there are two.
    """
    words = text.words.tolist()  # a caption is short: sets are several times as fast as numpy's
    every = {x for x in words if x >= 0}
    content = {x for x, stop in zip(words, stops[text.ids].tolist(), strict=True) if x >= 0 and not stop} or every
    order = rng.permutation(np.array(sorted(content), np.int64))
    chosen = rng.random(len(order)) < 0.5
    chosen[:1] = True
    chosen[1:][-1:] = False
    others = sorted(every - content)
    hidden, stays = set(order[chosen].tolist()), set(order[~chosen].tolist())
    hidden.update(x for x, drawn in zip(others, rng.random(len(others)).tolist(), strict=True) if drawn < 0.15)
    kept = [i for i, x in enumerate(words) if x in stays and (not i or words[i - 1] != x)]
    return np.array([i for i, x in enumerate(words) if x in hidden], np.int64), np.array(kept, np.int64)


def told(caption: str, false: int, count: int) -> Array:
    """(1 + K) int64: what a caption says, as a number that captions of the same words share, then whether each of `count` false ones is there, of `false`."""
    said = zlib.crc32(" ".join(sorted(caption.lower().split())).encode())
    return np.array([said, *(i < false for i in range(count))], np.int64)


def behind(text: TextRows, others: list[TextRows], count: int) -> TextRows:
    """A caption with `count` others behind it, each with its own positions from 0; the ends of the first stand for those that are missing."""
    ends = TextRows(text.ids[[0, -1]], text.segment_ids[[0, -1]], np.arange(2), text.words[[0, -1]])
    parts = [text, *others, *[ends] * (count - len(others))]
    ids, segments, positions, words = (
        np.concatenate([getattr(x, name) for x in parts]) for name in ("ids", "segment_ids", "position_ids", "words")
    )
    return TextRows(ids, segments, positions, words)


# ------------------------------------------------------------------------------------------------------------ A, contrast


def contrast(
    scores: Tensor, false: Tensor, known: Tensor, same: Tensor, scale: Tensor, bias: Tensor, loss: Loss = "softmax"
) -> Tensor:
    """A: each picture finds its text among those of the batch and its own false ones, each text its picture. The mean of both ways.

    Args:
        scores: (B, B) float, texts x pictures.
        false: (B, K) scores of each picture with false texts of its own.
        known: (B, K) bool, False where there is no such text.
        same: (B, B) bool, pairs whose texts say the same; they are no negatives. The diagonal does not count.
        scale: factor on the scores.
        bias: added; of the sigmoid loss only.
        loss: softmax = InfoNCE; sigmoid = SigLIP's, summed over pairs and divided by B.
    """
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    out = same & ~own
    scores, false = scores.float() * scale, false.float() * scale
    if loss == "sigmoid":
        inside = F.logsigmoid(torch.where(own, scores + bias, -scores - bias)).masked_fill(out, 0.0)
        beside = F.logsigmoid(-false - bias).masked_fill(~known, 0.0)
        return -(inside.sum() + beside.sum()) / len(scores)
    square = scores.masked_fill(out, -torch.inf)
    wide = torch.cat([square.T, false.masked_fill(~known, -torch.inf)], 1)  # pictures x texts
    right = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(wide, right) + F.cross_entropy(square, right)) / 2


# ----------------------------------------------------------------------------------------------------- B, masked modelling


def smallest_sets(alpha: Tensor, most: int, mass: float = 0.8, most_null: float = 0.5) -> Tensor:
    """(M, P) bool: the fewest visual tokens that hold `mass` of what does not lie on the null; none where the null holds more than `most_null`.

    Args:
        alpha: (M, 1 + P), the null first; 0 at padding.
        most: tokens of a set, the best ones.
        mass: share.
        most_null: see above.
    """
    shown = alpha[:, 1:]
    total = shown.sum(-1, keepdim=True)
    part = shown / total.clamp(min=1e-12)
    ordered, order = part.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    among = (before < mass - 1e-6) & (ordered > 0) & (torch.arange(part.shape[1], device=part.device) < most)
    kept = torch.zeros_like(part, dtype=torch.bool).scatter(-1, order, among)
    return kept & (alpha[:, :1] <= most_null) & (total > 0)


def hide_linked(named: Tensor, pictured: Tensor, owner: Tensor, other: Tensor, documents: int) -> tuple[Tensor, Tensor]:
    """Conditional masking of links: which visual tokens are hidden, given which words are.

    A visual token that a hidden word is linked to is never hidden, so of no link both sides are.

    Args:
        named: (M, P) bool, tokens linked to each hidden word.
        pictured: (N, P) bool, tokens linked to each word that stays and whose tokens shall be hidden.
        owner: (M) document of each hidden word.
        other: (N) document of each word that stays.
        documents: B.

    Returns:
        (B, P) bool hidden, and (N) bool: the words all of whose tokens are hidden, of at least one.
    """
    kept, wanted = (
        named.new_zeros(documents, named.shape[1], dtype=torch.float32).index_add(0, doc, x.float()) > 0
        for doc, x in ((owner, named), (other, pictured))
    )
    hidden = wanted & ~kept
    return hidden, pictured.any(-1) & (pictured <= hidden[other]).all(-1)


class Links(NamedTuple):
    """Where masked modelling stands, by an alignment without gradient: M hidden words, N that stay, k visual tokens a hidden word."""

    hidden: Tensor
    """(B, P) bool."""
    whole: Tensor
    """(N) bool, words all of whose tokens are hidden."""
    slots: Tensor
    """(M, k) the tokens that hold most of each hidden word, as places in its document."""
    shares: Tensor
    """(M, k) how much of it lies on each."""
    mixes: Tensor
    """(N, D) unit vectors, the mix of tokens that each word is aligned to."""
    means: Tensor
    """(B, D) unit vectors, the mean of the hidden tokens; 0 of none."""


def link(
    alpha: Tensor, slots: Tensor, text: Packing, masked: Tensor, stays: Tensor, counts: Tensor, named: int, most: int
) -> Links:
    """Reads the links off an alignment.

    Args:
        alpha: (B, L, 1 + P), the null first.
        slots: (B, 1 + P, D) unit vectors.
        text: of T rows.
        masked: (M) rows of hidden words.
        stays: (N) rows of words to be pictured.
        counts: (M) bool, hidden words that have links at all.
        named: k, at most P.
        most: see `smallest_sets`.
    """
    owner, other = text.doc[masked], text.doc[stays]
    of_masked, of_stays = alpha[owner, text.pos[masked]], alpha[other, text.pos[stays]]
    named_sets = smallest_sets(of_masked, most) & counts[:, None]
    hidden, whole = hide_linked(named_sets, smallest_sets(of_stays, most), owner, other, text.documents)
    held, best = of_masked[:, 1:].topk(min(named, hidden.shape[1]), -1)
    mixes = (of_stays[:, 1:].unsqueeze(1) @ slots[other, 1:]).squeeze(1)
    means = torch.where(hidden[..., None], slots[:, 1:], 0).sum(1)
    return Links(hidden, whole, best, held, F.normalize(mixes, dim=-1), F.normalize(means, dim=-1))


def name_words(logits: Tensor, words: Tensor, shares: Tensor) -> Tensor:
    """B2: visual tokens name hidden words; the mean of their cross entropies, weighed by shares. 0 if all shares are 0.

    Args:
        logits: (M * k, V), k visual tokens a word.
        words: (M) the words.
        shares: (M, k), how much of the word lies on each.
    """
    each = F.cross_entropy(logits.float(), words.repeat_interleave(shares.shape[1]), reduction="none")
    return (each.view_as(shares) * shares).sum() / shares.sum().clamp(min=1e-12)


def picture_words(found: Tensor, wanted: Tensor, kinds: Tensor, counts: Tensor, temperature: float = 0.1) -> Tensor:
    """B3: InfoNCE of predicted visual vectors among those of the batch; rows of the same kind are no negatives of one another.

    Args:
        found: (N, D) of length 1.
        wanted: (N, D) of length 1, without gradient.
        kinds: (N) int.
        counts: (N) bool, rows that take part as queries.
        temperature: divides.
    """
    if not len(found):
        return found.float().sum()
    scores = found.float() @ wanted.float().T / temperature
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    scores = scores.masked_fill((kinds[:, None] == kinds[None]) & ~own, -torch.inf)
    each = F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="none")
    return (each * counts).sum() / counts.sum().clamp(min=1)


class Asked(NamedTuple):
    """Rows of the streams that one twin of masked modelling reads, and what should be found there."""

    slots: Tensor
    """(M * k) rows of visual tokens."""
    shares: Tensor
    """(M, k)"""
    rows: Tensor
    """(N) text rows."""
    wanted: Tensor
    """(N, D)"""
    kinds: Tensor
    """(N)"""


def addresses(
    links: Links,
    text: Packing,
    visual: Packing,
    masked: Tensor,
    first: Tensor,
    stays: Tensor,
    ids: Tensor,
    draws: Tensor,
) -> dict[str, Asked]:
    """Where the twins of masked modelling stand: "tok" by the links; "sent" on random visual tokens, and on [CLS] for the mean of what is hidden.

    Args:
        links: see there.
        text: of T rows.
        visual: of R rows.
        masked: (M) rows of hidden words.
        first: (M) bool, first pieces of words; the others are not asked of visual tokens.
        stays: (N) rows of words to be pictured.
        ids: (N) the words.
        draws: (B, >= k) float in [0, 1) that choose the random tokens.
    """
    owner, other, k = text.doc[masked], text.doc[stays], links.slots.shape[1]
    drawn = (draws[owner, :k] * visual.lengths[owner, None]).long()

    def rows(slots: Tensor) -> Tensor:
        return (visual.first[owner, None] + slots).clamp(max=visual.rows - 1).flatten()

    even = first[:, None].expand_as(links.shares).float() / k
    return {
        "tok": Asked(rows(links.slots), links.shares * first[:, None], stays, links.mixes, ids),
        "sent": Asked(rows(drawn), even, text.first[other], links.means[other], other),
    }


# ------------------------------------------------------------------------------------------------------------ C, matching


def word_labels(ids: Tensor, content: Tensor, cut: Packing, known: Tensor) -> Tensor:
    """(T) of every word of true and false captions: 1 the picture supports it, 0 not, -1 unknown.

    A word of a false caption is wrong iff the true one has another in its place; where the two differ in length nothing is known.

    Args:
        ids: (T) pieces.
        content: (T) bool, words that a picture can support.
        cut: B (1 + K) captions, of each sample the true one first.
        known: (B, 1 + K) bool, captions that are there.
    """
    shape = known.shape
    block, lengths = pad(ids, cut).view(*shape, -1), cut.lengths.view(shape)
    right = unpad((block == block[:, :1]).flatten(0, 1), cut)
    told = (known & (lengths == lengths[:, :1])).flatten()[cut.doc]
    return torch.where(content & told, right.long(), -1)


def supported(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross entropy of "the picture supports this"; rows labelled -1 do not count.

    Args:
        logits: (M).
        labels: (M), 1 supported, 0 not, -1 unknown.
    """
    each = F.binary_cross_entropy_with_logits(logits.float(), (labels > 0).float(), reduction="none")
    counts = labels >= 0
    return (each * counts).sum() / counts.sum().clamp(min=1)


def all_supported(logits: Tensor, counts: Tensor, text: Packing) -> Tensor:
    """(B) log probability that every word of a text is supported, the complement of a noisy-or; near 0 for none.

    Args:
        logits: (T) of words.
        counts: (T) bool, words that are asked; the others are as good as sure.
        text: where they lie.
    """
    each = F.logsigmoid(torch.where(counts, logits.float(), 30.0))
    return each.new_zeros(text.documents).index_add(0, text.doc, each)


def some_unsupported(log_all: Tensor, counts: Tensor) -> Tensor:
    """Mean of -log(1 - exp(log_all)) over the documents that count: in a text of another picture some word is wrong, none is known to be.

    Args:
        log_all: (B) as of `all_supported`.
        counts: (B) bool.
    """
    each = -torch.log(-torch.expm1(log_all.clamp(max=-1e-4)))
    return (each * counts).sum() / counts.sum().clamp(min=1)


def matching(
    support: Tensor,
    strange: Tensor,
    ids: Tensor,
    content: Tensor,
    labels: Tensor,
    cut: Packing,
    true: Tensor,
    text: Packing,
) -> dict[str, Tensor]:
    """C: true and false captions with their picture, and true ones with the picture of the next pair. Losses "c_tok" of words, "c_sent" at [CLS].

    Args:
        support: (T) logits of the words of all captions with their own picture.
        strange: (N) logits of those of the true ones with the next picture.
        ids: (T) pieces.
        content: (T) bool, words that a picture can support.
        labels: (B, 1 + K) as `told` makes them.
        cut: where the T rows lie, B (1 + K) captions.
        true: (N) the rows of the true captions among them.
        text: where those lie, B captions.
    """
    apart = labels[:, 0] != labels[:, 0].roll(-1)
    known = torch.cat([torch.ones_like(labels[:, :1]), labels[:, 1:]], 1) > 0  # (B, 1 + K)
    log_all = all_supported(strange, content[true], text)
    whole = torch.zeros_like(known, dtype=torch.long).index_fill(1, labels.new_zeros(1), 1)
    wanted = torch.cat([torch.where(known, whole, -1).flatten(), torch.where(apart, 0, -1)])
    logits = torch.cat([support[cut.first], strange[text.first]])
    of_words = supported(support, word_labels(ids, content, cut, known))
    return {"c_tok": of_words + some_unsupported(log_all, apart), "c_sent": supported(logits, wanted)}


def log_odds(log_all: Tensor) -> Tensor:
    """(B) log p - log(1 - p) of log p."""
    return log_all - torch.log(-torch.expm1(log_all.clamp(max=-1e-4)))
