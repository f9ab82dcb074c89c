"""Ranked candidates: image-text retrieval, videos by text, MUGE's and FashionGen's protocols.

The classic code sorts with an unstable sort, so its ranks under ties depend on the machine. Here ranks are counted, and `ties` says how: a candidate with
the right one's score stands before it ("pessimistic", so that a constant scorer gets nothing), after it, or half.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from intarsia.errors import BadInput
from intarsia.tasks.metrics.folding import complete, mean

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Ties = Literal["pessimistic", "optimistic", "mean"]
CUTS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall of one direction, fractions; ranks are from 1."""

    at: dict[int, float]
    """Share of queries with a right candidate among the first K."""
    median: float
    """Median rank, rounded down, as VSE++ tells it."""
    mean: float
    """Mean rank."""
    ranks: tuple[float, ...]
    """(queries) zero-based rank of the first right candidate."""

    @classmethod
    def of(cls, ranks: Floats, cuts: Sequence[int] = CUTS) -> Recall:
        """Recall of (queries) zero-based ranks."""
        return cls(
            {k: float((ranks < k).mean()) for k in cuts},
            float(np.floor(np.median(ranks)) + 1),
            float(ranks.mean() + 1),
            tuple(map(float, ranks)),
        )


def ranks(scores: npt.ArrayLike, right: npt.ArrayLike, ties: Ties = "pessimistic") -> Floats:
    """(Q) zero-based rank of the best right candidate of each query.

    Args:
        scores: (Q, C) higher = better.
        right: (Q, C) bool, True = a right candidate; right candidates never stand in each other's way.
        ties: what a wrong candidate of the same score does.

    Raises:
        BadInput: a score is no number, or a query has no right candidate.
    """
    return _ranks(np.asarray(scores, np.float64), np.asarray(right, bool), ties)


def _ranks(given: Floats, gold: npt.NDArray[np.bool_], ties: Ties, first: int = 0) -> Floats:
    """`ranks` of queries from number `first` on."""
    if given.ndim != 2 or not given.size or given.shape != gold.shape:
        raise BadInput(f"ranking: scores {given.shape}, right ones {gold.shape}")
    bad, without = np.argwhere(np.isnan(given)), np.flatnonzero(~gold.any(1))
    if len(bad):
        raise BadInput(f"ranking: candidate {bad[0][1]} of query {first + bad[0][0]} has a score that is no number")
    if len(without):
        raise BadInput(f"ranking: query {first + without[0]} has no right candidate")
    best = np.where(gold, given, -np.inf).max(1, keepdims=True)
    above, beside = ((given > best) & ~gold).sum(1), ((given == best) & ~gold).sum(1)
    return above + beside * {"pessimistic": 1.0, "optimistic": 0.0, "mean": 0.5}[ties]  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Recall both ways."""

    text: Recall
    """Image queries; any of an image's captions is right."""
    image: Recall
    """Caption queries."""

    @property
    def rsum(self) -> float:
        """Sum of the six recalls, in percent."""
        return 100 * (sum(self.text.at.values()) + sum(self.image.at.values()))

    @property
    def r_mean(self) -> float:
        """Mean of the six recalls."""
        return self.rsum / 600


def retrieval(scores: npt.ArrayLike, owner: npt.ArrayLike, ties: Ties = "pessimistic") -> Retrieval:
    """Image-text retrieval, Flickr30k and COCO, as VSE++'s evaluation.py has it where nothing ties.

    Args:
        scores: (images, captions) higher = better.
        owner: (captions) int, the image of each caption.
        ties: see `ranks`.

    Raises:
        BadInput: see `ranks`; or an owner is no image.
    """
    given, images = np.asarray(scores), np.asarray(owner, np.int64)
    if given.ndim != 2 or images.shape != given.shape[1:]:
        raise BadInput(f"retrieval: scores {given.shape}, owners {images.shape}")
    strange = np.flatnonzero((images < 0) | (images >= len(given)))
    if len(strange):
        raise BadInput(f"retrieval: caption {strange[0]} belongs to image {images[strange[0]]} of {len(given)}")
    asking = np.unique(images)  # an image whose captions were all left out asks nothing, but stays a candidate
    rows = given if len(asking) == len(given) else given[asking]
    text = _in_parts(rows, asking, images, ties)
    return Retrieval(Recall.of(text), Recall.of(_in_parts(given.T, images, np.arange(len(given)), ties)))


def _in_parts(scores: npt.NDArray[Any], queries: Ints, candidates: Ints, ties: Ties, size: int = 256) -> Floats:
    """`ranks` where a candidate is right for queries of its own number; some queries at a time, so that a table on disk stays there.

    Args:
        scores: (Q, C).
        queries: (Q) numbers.
        candidates: (C) numbers.
        ties: see `ranks`.
        size: queries at a time.
    """
    found = []
    for start in range(0, len(queries), size):
        some = slice(start, start + size)
        own = queries[some, None] == candidates[None]
        found.append(_ranks(np.asarray(scores[some], np.float64), own, ties, start))
    return np.concatenate(found)


def folds(parts: Sequence[Retrieval]) -> dict[str, float]:
    """Means over folds, in percent: "COCO 1k" is five folds of 1,000 images and 5,000 captions each. Source: VSE++."""
    if not parts:
        raise BadInput("retrieval: no folds to average")
    named = {"text": [x.text for x in parts], "image": [x.image for x in parts]}
    found = {f"{way} R@{k}": 100 * mean(x.at[k] for x in xs) for way, xs in named.items() for k in CUTS}
    return found | {"rsum": mean(x.rsum for x in parts)}


def uniter(scores: npt.ArrayLike, owner: npt.ArrayLike, ties: Ties = "pessimistic") -> dict[str, float]:
    """What UNITER's itm_eval.py prints: its recalls of images are too high by up to K / captions, those of texts are right.

    It counts numbers below K in both columns of nonzero(): the places, and the query rows, of hits among the first 10. For comparison with its tables only.
    """
    found = retrieval(scores, owner, ties)
    places = np.array(found.image.ranks)
    hits = np.flatnonzero(places < CUTS[-1])
    images = {k: float(((places < k).sum() + (hits < k).sum()) / len(places)) for k in CUTS}
    printed = {f"txt_r{k}": found.text.at[k] for k in CUTS} | {"txt_r_mean": mean(found.text.at.values())}
    printed |= {f"img_r{k}": images[k] for k in CUTS} | {"img_r_mean": mean(images.values())}
    return printed | {"r_mean": (printed["txt_r_mean"] + printed["img_r_mean"]) / 2}


def howto100m(scores: npt.ArrayLike) -> dict[str, float]:
    """R@K and median rank of videos by text as HowTo100M's metrics.py counts them: a tied row adds an entry for each place that its score takes.

    Args:
        scores: (N, N) text by video, the right ones on the diagonal. Without ties equal to `retrieval`.
    """
    given = np.asarray(scores, np.float64)
    if given.ndim != 2 or given.shape[0] != given.shape[1] or not given.size or np.isnan(given).any():
        raise BadInput(f"video retrieval: scores of shape {given.shape}, or one is no number")
    ordered = np.sort(-given, axis=1)
    places = np.nonzero(ordered == -np.diag(given)[:, None])[1]
    found = {f"R{k}": float((places < k).sum() / len(places)) for k in CUTS}
    return found | {"MR": float(np.median(places) + 1), "entries": float(len(places))}


def muge(predictions: Mapping[int, Sequence[int]], right: Mapping[int, Iterable[int]]) -> dict[str, float]:
    """MUGE's E-commerce retrieval as its evaluation.py scores it, fractions: R@1, R@5, R@10 and their mean.

    Args:
        predictions: by query, exactly ten different candidates, the best first.
        right: by query, its right candidates.

    Raises:
        BadInput: a query lacks its candidates, or does not have ten different ones.
    """
    asked = complete(right, predictions, "query", extra=True)
    for key in asked:
        if len(predictions[key]) != 10 or len(set(predictions[key])) != 10:
            raise BadInput(f"query {key}: {list(predictions[key])} are not 10 different candidates")
    gold = {key: set(right[key]) for key in asked}
    found = {f"R{k}": mean(not gold[key].isdisjoint(predictions[key][:k]) for key in asked) for k in CUTS}
    return {"mean": mean(found.values()), **found}


def fashion_candidates(
    categories: Sequence[str],
    queries: int = 1000,
    wrong: int = 100,
    seed: int = 0,
    products: Sequence[str] | None = None,
) -> list[tuple[int, list[int]]]:
    """Queries of the FashionGen protocol, with the candidates of each: its own number and others of its category, in random order.

    The authors' files are not published, and scores depend on what is drawn: tell the seed with them. Source: FashionBERT, sec. 4.

    Args:
        categories: sub-category of each pair of text and picture.
        queries: how many different ones.
        wrong: wrong candidates of each.
        seed: the same draws everywhere.
        products: of each pair, where several show one product: only the first of each takes part, so that no candidate is right by accident.

    Raises:
        BadInput: too few pairs have so many others in their category.
    """
    members: dict[str, list[int]] = {}
    first = {product: number for number, product in reversed(list(enumerate(products or ())))}
    for number, category in enumerate(categories):
        if products is None or first[products[number]] == number:
            members.setdefault(category, []).append(number)
    able = sorted(number for mine in members.values() if len(mine) > wrong for number in mine)
    if len(able) < queries:
        raise BadInput(
            f"FashionGen: {len(able)} pairs have {wrong} others of their category, {queries} are to be asked"
        )
    rng = np.random.default_rng([seed, 0xFA5])
    found = []
    for query in rng.choice(able, queries, replace=False).tolist():
        others = [x for x in members[categories[query]] if x != query]
        chosen = [query, *rng.choice(others, wrong, replace=False).tolist()]
        found.append((query, [chosen[i] for i in rng.permutation(len(chosen))]))
    return found


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of a FashionGen evaluation file: a pair of a text and an image, scored."""

    query: int
    label: int
    """1 = they belong together."""
    logits: tuple[float, float]
    """Not matching, matching."""


def fashion(pairs: Iterable[Pair], cuts: Sequence[int] = (1, 5, 10, 100)) -> dict[str, float]:
    """FashionBERT's Rank@K over sampled candidates as EasyTransfer's fashionbert_utils.py counts it, fractions.

    The candidates of a query are sorted by the logit of matching, ties in the order of the file (draw the candidates in random order: a right one listed
    first wins its ties). Denominators carry 1e-5. Accuracy is the larger logit's, over all rows.

    Args:
        pairs: rows; query is the text's number (text to image) or the image's.
        cuts: the Ks.

    Raises:
        BadInput: no rows.
    """
    rows = list(pairs)
    if not rows:
        raise BadInput("FashionGen: no rows to rank")
    queries: dict[int, list[Pair]] = {}
    for row in rows:
        queries.setdefault(row.query, []).append(row)
    hits = dict.fromkeys(cuts, 0)
    for mine in queries.values():
        ordered = sorted(mine, key=lambda x: -x.logits[1])
        place = next((i for i, x in enumerate(ordered) if x.label), len(ordered))
        for k in cuts:
            hits[k] += place < k
    right = sum((x.logits[1] > x.logits[0]) == bool(x.label) for x in rows)
    return {"accuracy": right / (len(rows) + 1e-5)} | {f"rank@{k}": n / (len(queries) + 1e-5) for k, n in hits.items()}


def auc(pairs: Iterable[Pair]) -> float:
    """Area under the ROC curve of the logit of matching, over all rows: how often a right one scores above a wrong one, ties half.

    Raises:
        BadInput: there are no right rows, or no wrong ones.
    """
    rows = list(pairs)
    right, wrong = (np.sort([x.logits[1] for x in rows if bool(x.label) == kind]) for kind in (True, False))
    if not len(right) or not len(wrong):
        raise BadInput(f"FashionGen: {len(right)} right and {len(wrong)} wrong rows have no ROC curve")
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.mean() / (2 * len(wrong)))
