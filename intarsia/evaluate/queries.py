"""Ranked pairs as a benchmark asks for them: all by all, each query among candidates of its own, or for each text a list of its best pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from intarsia.batch import Array, Film, Sample
from intarsia.errors import BadInput
from intarsia.evaluate.evaluation import pairs
from intarsia.evaluate.matching import match
from intarsia.evaluate.parts import blocks
from intarsia.evaluate.products import product_matching
from intarsia.evaluate.rerank import Prefilter, best, rerank
from intarsia.evaluate.running import FP32, Inference, Shown, fitting
from intarsia.system import System
from intarsia.tasks.benchmarks import Annotated, Benchmark
from intarsia.tasks.benchmarks.table import LONG
from intarsia.tasks.metrics import ranking


def ranked(
    system: System,
    source: Annotated,
    most: int,
    how: Inference = FP32,
    fold: int = 0,
    first: Prefilter | None = None,
    keep: Path | None = None,
    convention: str = "pessimistic",
) -> tuple[dict[str, float], int, int]:
    """Recall both ways among the first pictures of a split.

    Args:
        system: ranks pairs.
        source: captions with their pictures.
        most: captions that are ranked; 0 = all.
        how: batch size, precision, bar.
        fold: pictures of a fold, if the pictures make several whole ones; 0 = no folds.
        first: ranks before, so that only its best candidates are read; without folds.
        keep: a folder for scores that are done, see `match`.
        convention: what ties do, or whose numbers the recalls of images are: "uniter" or "howto100m".

    Raises:
        BadInput: with a first ranking, another convention than the default; or "howto100m" where a film has several texts.

    Returns:
        Recalls as fractions and their sum in percent, of videos the median rank too, with folds also their means, with a first ranking also its recalls;
        captions ranked; captions left out because they were too long.
    """
    samples: list[Sample] = [source[i] for i in range(min(len(source), most or len(source)))]
    texts, pictures, gold = pairs(samples)
    ties: Any = convention if convention in get_args(ranking.Ties) else "pessimistic"
    if first is not None:
        if convention not in ("", "pessimistic"):
            raise BadInput(f"--convention {convention}: after a first ranking, ties count against the system")
        two, count = rerank(system, texts, pictures, np.asarray(gold), first, how, keep)
        return two, count, len(texts) - count
    kept, scores = match(system, texts, pictures, how, keep=keep)
    owner = np.asarray(gold)[kept]
    whole = ranking.retrieval(scores.T, owner, ties)
    numbers = {f"image R@{k}": x for k, x in whole.image.at.items()} | {
        f"text R@{k}": x for k, x in whole.text.at.items()
    }
    numbers |= {"rsum": whole.rsum}
    if isinstance(pictures[0], Film):
        numbers["image median rank"] = whole.image.median
    if convention == "uniter":
        printed = ranking.uniter(scores.T, owner)
        numbers |= {f"image R@{k}": printed[f"img_r{k}"] for k in ranking.CUTS}
    if convention == "howto100m":
        if not np.array_equal(np.sort(owner), np.arange(len(pictures))):
            raise BadInput(f"--convention howto100m: one text a film, not {len(owner)} of {len(pictures)} films")
        counted = ranking.howto100m(scores[:, owner])
        numbers |= {f"image R@{k}": counted[f"R{k}"] for k in ranking.CUTS} | {"image median rank": counted["MR"]}
    if convention in ("uniter", "howto100m"):
        numbers["rsum"] = 100 * sum(x for name, x in numbers.items() if " R@" in name)
    if fold and len(pictures) > fold and len(pictures) % fold == 0 and len(np.unique(owner)) == len(pictures):
        numbers |= _folds(scores, owner, fold, ties)
    return numbers, len(kept), len(texts) - len(kept)


def _folds(scores: Array, owner: Array, fold: int, ties: ranking.Ties) -> dict[str, float]:
    """Means over consecutive folds of pictures and their captions; and the first fold alone, which some papers give for them."""
    parts = []
    for start in range(0, scores.shape[1], fold):
        mine = (owner >= start) & (owner < start + fold)
        parts.append(ranking.retrieval(scores[mine, start : start + fold].T, owner[mine] - start, ties))
    named = {f"{len(parts)} x {fold}": ranking.folds(parts), f"first {fold}": ranking.folds(parts[:1])}
    return {f"{way} {x}": y if x == "rsum" else y / 100 for way, found in named.items() for x, y in found.items()}


def among_own(
    system: System, source: Annotated, benchmark: Benchmark, how: Inference = FP32
) -> tuple[dict[str, float], str, int, float]:
    """Rank@K and accuracy both ways, each query among candidates of its own, which are drawn of the items whose text fits the system.

    Returns:
        Fractions; the protocol in words; items left out because they were too long; the share of right candidates.
    """
    assert benchmark.candidates is not None
    kept, _ = fitting(system, (source[i] for i in range(len(source))))
    if not kept:
        raise BadInput(f"{source.annotations.benchmark}: none of {len(source)} texts fits the system")
    items = tuple(source.kept[i][0] for i in kept)
    drawn = benchmark.candidates(replace(source.annotations, items=items))
    samples = {i: source[kept[i]] for _, candidates in drawn.asked for i in candidates}
    found = product_matching(system, samples, drawn.asked, how)
    numbers = dict[str, float]()
    for way, name in (("text to image", "image"), ("image to text", "text")):
        numbers |= {f"{name} {x}": y for x, y in found[way].items()}
    chance = float(np.mean([1 / len(candidates) for _, candidates in drawn.asked]))
    return numbers, drawn.told, len(source) - len(kept), chance


def listed(
    system: System, source: Annotated, how: Inference = FP32, first: Prefilter | None = None, keep: Path | None = None
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """For each text its ten best pictures of the split's candidates, the best first.

    Returns:
        Names of pictures, as the benchmark has them, by text; and what was left out, by reason.

    Raises:
        BadInput: fewer than ten candidates have regions.
    """
    asked: dict[str, Sample] = {}
    for i, (item, _) in enumerate(source.kept):
        key = item.key.partition("#")[0]
        if key not in asked:
            asked[key] = source[i]
    names = source.annotations.candidates or tuple(
        dict.fromkeys(x for y in source.annotations.items for x in y.pictures)
    )
    places = {name: source.pictures.find(name) for name in names}
    shown = {name: source.pictures.get(place) for name, place in places.items() if place is not None}
    if len(shown) < LONG:
        raise BadInput(f"{source.annotations.benchmark}: {len(shown)} candidates have regions, a list is of {LONG}")
    texts, pictures = list(asked.values()), list(shown.values())
    kept, scores = _scored(system, texts, pictures, how, first, keep)
    keys, known, found = list(asked), list(shown), dict[str, list[str]]()
    for rows in blocks(len(kept), 256):
        order = np.argsort(-scores[rows], axis=1, kind="stable")[:, :LONG]
        found |= {keys[kept[rows.start + i]]: [known[j] for j in line] for i, line in enumerate(order.tolist())}
    out = {"candidates without regions": len(names) - len(shown), "too long": len(texts) - len(kept)}
    return found, {reason: count for reason, count in out.items() if count}


def _scored(
    system: System,
    texts: Sequence[Sample],
    pictures: Sequence[Shown],
    how: Inference,
    first: Prefilter | None,
    keep: Path | None,
) -> tuple[list[int], Array]:
    """(K, M) scores; after a first ranking -inf for what it left out."""
    if first is None:
        return match(system, texts, pictures, how, keep=keep)
    wanted = best(first.first(texts, pictures), max(first.top, LONG))
    kept, scores = match(system, texts, pictures, how, wanted, keep)
    return kept, np.where(np.isnan(scores), -np.inf, scores)
