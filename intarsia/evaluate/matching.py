"""Does a text belong to a picture: retrieval both ways, and choosing the true caption among edited ones."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from intarsia.batch import Array, Batch, Example, Film, Regions, Sample, Text
from intarsia.errors import BadInput
from intarsia.evaluate.crossing import crossing, score_crossed
from intarsia.evaluate.parts import PICTURES, SPARSE, TEXTS, Parts, blocks, fingerprint
from intarsia.evaluate.running import FP32, Inference, Share, Shown, fitting, name_of, percent, plain, run, run_numbers
from intarsia.evaluate.towers import embed, products
from intarsia.pack import documents_of, pack
from intarsia.system import System

CUTS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Recall:
    """How high the right candidates rank, in one direction."""

    at: dict[int, float]
    """For K = 1, 5, 10: share of the queries with a right candidate among the first K."""
    chance: dict[int, float]
    """The same for a random order."""
    median: float
    """Median rank of the first right candidate, from 1."""
    chance_median: float
    candidates: int
    queries: int
    ranks: tuple[int, ...] = field(default=(), metadata={"json": False})
    """(queries) rank of the first right candidate of each query, in order."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Recall both ways."""

    text_to_image: Recall
    image_to_text: Recall
    """A picture counts the best of its captions; pictures without a caption only distract."""
    left_out: int = 0
    """Texts too long for the system, not ranked."""

    def to_json(self) -> str:
        """The numbers as JSON text."""
        return json.dumps(plain(self), indent=2)

    def table(self) -> Table:
        """The numbers as a table, chance beside each."""
        found = Table("", *(f"R@{k} (chance)" for k in CUTS), "median rank (chance)", title="retrieval")
        for name, x in (("text to image", self.text_to_image), ("image to text", self.image_to_text)):
            cells = [f"{percent(x.at[k])} ({percent(x.chance[k])})" for k in CUTS]
            found.add_row(f"{name}, {x.queries} of {x.candidates}", *cells, f"{x.median:g} ({x.chance_median:g})")
        return found


def retrieval(
    system: System, texts: Sequence[Sample], pictures: Sequence[Shown], gold: Sequence[int], how: Inference = FP32
) -> Retrieval:
    """Ranks all pictures for each text and all texts for each picture by the system's match scores.

    Args:
        system: a system that matches.
        texts: N samples, of which the first text counts.
        pictures: M candidates; several texts may belong to one.
        gold: (N) for each text, the number of its picture.
        how: batch size, precision, bar.

    Raises:
        BadInput: gold does not fit, or no text fits the system.
    """
    if len(gold) != len(texts) or not texts or min(gold) < 0 or max(gold) >= len(pictures):
        raise BadInput(f"retrieval: {len(texts)} texts, {len(gold)} gold pictures of {len(pictures)}")
    kept, scores = match(system, texts, pictures, how)
    return rank(scores, np.asarray(gold)[kept], len(texts) - len(kept))


def match(
    system: System,
    texts: Sequence[Sample],
    pictures: Sequence[Shown],
    how: Inference = FP32,
    wanted: Array | None = None,
    keep: Path | None = None,
) -> tuple[list[int], Array]:
    """Scores every text with every picture: the numbers of the K texts that fit the system, and (K, M) float32, higher = fits better.

    Texts and pictures are laid out once each and put together; where a system lays a pair out otherwise (its rows of a picture depend on the text),
    every pair is laid out anew. Two towers encode texts and pictures once each too, and a `Crossing` does all of it that comes before they meet, once for
    each block of texts and pictures (`parts`). What is held at once is a block of pictures, all texts, and the scores.

    Args:
        system: a system that matches.
        texts: N samples, of which the first text counts.
        pictures: M candidates, pictures or videos.
        how: batch size, precision, bar.
        wanted: (N, M) bool, the pairs to score, the others get NaN; None = all. Two towers score all.
        keep: a folder for the blocks that are done and the scores, so that a pass that was killed goes on; None = all is in memory. Two towers need none.

    Raises:
        BadInput: no text fits the system, there is no picture, or the folder is of another pass.
    """
    bare = [replace(x, links=(), false_texts=()) for x in texts]
    kept, said = fitting(system, (beside(x, pictures[0]) for x in (bare if pictures else ())))
    if not kept or not pictures:
        raise BadInput(f"retrieval: of {len(texts)} texts {len(kept)} fit the system; {len(pictures)} pictures")
    fit = [bare[i] for i in kept]
    carrier = min(fit, key=lambda x: len(x.texts[0]))

    def show(some: Sequence[Shown]) -> list[Example]:
        return [system.lay_out(beside(carrier, x)) for x in some]

    if system.towers:
        return kept, products(system, embed(system, said, "text", how), embed(system, show(pictures), "picture", how))
    asked = None if wanted is None else wanted[kept]
    mark = "" if keep is None else _mark(system, fit, pictures, how, asked)
    done = Parts(keep, mark)
    scores = done.table((len(fit), len(pictures)))
    apart = _apart(system, fit, said, pictures, show)
    wide = 1 if asked is None else SPARSE
    for columns in blocks(len(pictures), wide * PICTURES):
        shown: list[Example] = []
        for rows in blocks(len(fit), wide * TEXTS):
            found = done.get((rows, columns))
            if found is None:
                shown = shown or show(pictures[columns])
                some = None if asked is None else np.flatnonzero(asked[rows, columns])
                build = None if apart else _anew(system, fit[rows], pictures[columns])
                found = _block(system, said[rows], shown, build, how, some)
                done.put((rows, columns), found)
            scores[rows, columns] = found
    return kept, scores


def _mark(
    system: System, texts: Sequence[Sample], pictures: Sequence[Shown], how: Inference, asked: Array | None
) -> str:
    """What a pass depends on."""
    pairs = "all" if asked is None else hashlib.sha256(np.packbits(asked).tobytes()).hexdigest()
    words = (f"{x.key} {x.texts[0]}" for x in texts)
    return fingerprint(system, words, map(name_of, pictures), [str(how.rows), how.precision, pairs])


def _anew(system: System, texts: Sequence[Sample], pictures: Sequence[Shown]) -> Callable[[int, int], Example]:
    return lambda i, j: system.lay_out(beside(texts[i], pictures[j]))


def _block(
    system: System,
    said: Sequence[Example],
    shown: Sequence[Example],
    build: Callable[[int, int], Example] | None,
    how: Inference,
    pairs: Array | None,
) -> Array:
    """(k, m) scores of a block, by the way that the system allows."""
    if pairs is not None and not len(pairs):
        return np.full((len(said), len(shown)), np.nan, np.float32)
    if build is None and crossing(system) is not None:
        return score_crossed(system, said, shown, how, pairs)
    return score_pairs(system, said, shown, build, how, pairs)


def score_pairs(
    system: System,
    said: Sequence[Example],
    shown: Sequence[Example],
    build: Callable[[int, int], Example] | None = None,
    how: Inference = FP32,
    pairs: Array | None = None,
) -> Array:
    """(K, M) float32 scores of K texts with M pictures, each pair read as a whole.

    Args:
        system: a system that matches.
        said: K documents, of which the texts count.
        shown: M documents, of which the regions count.
        build: the document of a text and a picture, by their numbers; None = the text of one and the regions of the other.
        how: batch size, precision, bar.
        pairs: (P) text * M + picture, the pairs to read, the others get NaN; None = all.
    """
    scores = np.full(len(said) * len(shown), np.nan, np.float32)
    asked = np.arange(len(scores)) if pairs is None else pairs
    sizes_text = np.array([len(x.text) if x.text else 0 for x in said])
    sizes_shown = np.array([sum(len(y) for y in (x.regions, x.clips) if y is not None) for x in shown])
    device, parts = next(system.parameters()).device, list[tuple[Array, Tensor]]()
    grid = _Grid.of(said, shown, device) if build is None else None
    inner = getattr(system, "system", system)
    inner.pooled_only = True  # the last layer of all other rows is left out, unless somebody misses it

    def together(number: int) -> Example:
        i, j = divmod(number, len(shown))
        if build is not None:
            return build(i, j)
        there = shown[j]
        return Example(said[i].key, said[i].text, there.regions, images=there.images, clips=there.clips)

    def read(numbers: Array) -> None:
        some = asked[numbers]
        batch = pack([together(int(x)) for x in some]).to(device) if grid is None else grid.batch(some)
        found = system.match_scores(system.encode(batch))
        if not parts and bool(found.isnan().any()):
            inner.pooled_only = False
            found = system.match_scores(system.encode(batch))
        parts.append((some, found.float()))  # fetched at the end, so that the host does not wait

    lengths = sizes_text[asked // len(shown)] + sizes_shown[asked % len(shown)]
    try:
        run_numbers(system, lengths, read, f"{len(asked)} pairs of {len(said)} texts, {len(shown)} pictures", how)
    finally:
        inner.pooled_only = False
    for some, found in parts:
        scores[some] = found.cpu().numpy()
    return scores.reshape(len(said), len(shown))


@dataclass(frozen=True, slots=True)
class _Grid:
    """Texts and pictures packed once each, on the device, of which batches of pairs are gathered."""

    text: Text
    regions: Regions
    lengths: tuple[Array, Array]
    """Rows of each text, and of each picture."""

    @classmethod
    def of(cls, said: Sequence[Example], shown: Sequence[Example], device: torch.device) -> _Grid | None:
        """None where documents have more than words and regions, or rows that do not all see each other."""
        if any(x.text is None for x in said) or any(x.regions is None or x.images or x.clips for x in shown):
            return None
        texts = pack([Example(x.key, x.text) for x in said]).to(device)
        pictures = pack([Example(x.key, None, x.regions) for x in shown]).to(device)
        assert texts.text is not None and pictures.regions is not None
        if texts.text.packing.level is not None or pictures.regions.packing.level is not None:
            return None
        rows = (
            [len(x.text) for x in said if x.text is not None],
            [len(x.regions) for x in shown if x.regions is not None],
        )
        return cls(texts.text, pictures.regions, (np.array(rows[0]), np.array(rows[1])))

    def batch(self, pairs: Array) -> Batch:
        """Pairs, by text * pictures + picture."""
        by_text, by_picture = np.divmod(pairs, len(self.lengths[1]))
        device = self.text.ids.device
        some = [torch.from_numpy(x).to(device) for x in (by_text, by_picture)]
        count = [int(x[y].sum()) for x, y in zip(self.lengths, (by_text, by_picture), strict=True)]
        text, regions = documents_of(self.text, some[0], count[0]), documents_of(self.regions, some[1], count[1])
        first = text.packing.first
        read = {"text": first, "regions": first[:0]}
        order, links = torch.arange(len(pairs), device=device), torch.zeros(0, 2, dtype=torch.long, device=device)
        return Batch(("",) * len(pairs), order, text, regions, links=links, read=read)


def _apart(
    system: System,
    texts: list[Sample],
    said: list[Example],
    pictures: Sequence[Shown],
    show: Callable[[Sequence[Shown]], list[Example]],
) -> bool:
    """Whether a pair's lay-out is its text's rows and its picture's rows, tried on the extremes of both lengths."""
    by_text = np.argsort([x.rows for x in said], kind="stable")[[0, -1]].tolist()
    by_size = np.argsort([_size(x) for x in pictures], kind="stable")[[0, -1]].tolist()
    extremes = [pictures[j] for j in by_size]
    for i in by_text:
        for picture, shown in zip(extremes, show(extremes), strict=True):
            both = system.lay_out(beside(texts[i], picture))
            apart = (both.regions, shown.regions), (both.clips, shown.clips), (both.text, said[i].text)
            if not all(_same(a, b) for a, b in apart):
                return False
    return True


def beside(text: Sample, shown: Shown) -> Sample:
    """The text of a sample with a picture or a video."""
    if isinstance(shown, Film):
        return replace(text, pictures=(), film=replace(shown, spans=np.zeros((len(text.texts), 2), np.float32)))
    return replace(text, pictures=(shown,), film=None)


def _size(shown: Shown) -> int:
    return len(shown.seconds) if isinstance(shown, Film) else len(shown.boxes)


def _same(a: object, b: object) -> bool:
    if a is None or b is None:
        return a is b
    names: tuple[str, ...] = type(a).__slots__  # type: ignore[attr-defined]
    return all(np.array_equal(getattr(a, x), getattr(b, x)) for x in names)


def rank(scores: Array, gold: Array, left_out: int = 0) -> Retrieval:
    """Recall both ways of any scorer; a candidate with the same score as the right one counts as better.

    Args:
        scores: (N, M) float, texts by pictures.
        gold: (N) int, the picture of each text.
        left_out: texts that were not scored.

    Raises:
        BadInput: a score is not finite.
    """
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        raise BadInput(f"retrieval: the score of text {bad[0][0]} and picture {bad[0][1]} is {scores[tuple(bad[0])]}")
    count, size = scores.shape
    gold = np.asarray(gold)
    right = scores[np.arange(count), gold]
    text_ranks = (scores >= right[:, None]).sum(1)
    with_text = np.unique(gold)
    owns = gold[:, None] == with_text[None]  # (N, pictures with a text)
    columns = scores[:, with_text]
    best = np.where(owns, columns, -np.inf).max(0)
    image_ranks = 1 + ((columns >= best[None]) & ~owns).sum(0)
    return Retrieval(
        _recall(text_ranks, np.ones(count, np.int64), size),
        _recall(image_ranks, owns.sum(0), count),
        left_out,
    )


def _recall(ranks: Array, right: Array, candidates: int) -> Recall:
    """Recall from ranks; `right` is how many candidates are right for each query."""
    beats = {k: float(np.mean([_first_within(k, int(g), candidates) for g in right])) for k in CUTS}
    half = np.mean([_median_by_chance(int(g), candidates) for g in right])
    return Recall(
        at={k: float((ranks <= k).mean()) for k in CUTS},
        chance=beats,
        median=float(np.median(ranks)),
        chance_median=float(half),
        candidates=candidates,
        queries=len(ranks),
        ranks=tuple(int(x) for x in ranks),
    )


def _first_within(k: int, right: int, candidates: int) -> float:
    """Chance that a random order has one of the right candidates among its first k."""
    k = min(k, candidates)
    return 1.0 - math.comb(candidates - right, k) / math.comb(candidates, k)


def _median_by_chance(right: int, candidates: int) -> float:
    if right == 1:
        return (candidates + 1) / 2
    return next(k for k in range(1, candidates + 1) if _first_within(k, right, candidates) >= 0.5)


@dataclass(frozen=True, slots=True)
class Choice:
    """True captions against false ones of the same picture."""

    pairs: Share
    """(true, false) pairs in which the true caption scores higher; chance is 1/2. A tie is wrong."""
    samples: Share
    """Samples whose true caption beats all its false ones."""
    chance_samples: float
    """The latter by chance."""
    left_out: int = 0
    """Captions too long for the system."""

    def to_json(self) -> str:
        """The numbers as JSON text."""
        return json.dumps(plain(self), indent=2)

    def table(self) -> Table:
        """The numbers as a table, chance beside each."""
        found = Table("true against false captions", "right", "chance")
        found.add_row(f"{self.pairs.of} pairs", str(self.pairs), percent(0.5))
        found.add_row(f"{self.samples.of} pictures, against all", str(self.samples), percent(self.chance_samples))
        return found


def choice(system: System, samples: Sequence[Sample], how: Inference = FP32) -> Choice:
    """How often the system finds a sample's caption to fit better than each of its false captions; samples without any are passed over.

    Raises:
        BadInput: no sample has a false caption.
    """
    asked = [x for x in samples if x.false_texts]
    if not asked:
        raise BadInput(f"choice: none of {len(samples)} samples has a false caption")
    owner = [i for i, x in enumerate(asked) for _ in range(1 + len(x.false_texts))]
    forms = [
        replace(x, texts=(text, *x.texts[1:]), links=(), false_texts=())
        for x in asked
        for text in (x.texts[0], *x.false_texts)
    ]
    kept, examples = fitting(system, forms)
    scores = np.full(len(forms), np.nan)

    def read(numbers: Array, batch: Batch) -> None:
        scores[np.array(kept)[numbers]] = system.match_scores(system.encode(batch)).float().cpu().numpy()

    run(system, np.array([x.rows for x in examples]), lambda i: examples[i], read, "true and false captions", how)
    owners = np.array(owner)
    hits: list[bool] = []
    whole, chances = [], []
    for i in range(len(asked)):
        mine = scores[owners == i]
        rivals = mine[1:][~np.isnan(mine[1:])]
        if not np.isnan(mine[0]) and len(rivals):
            won = mine[0] > rivals
            hits += won.tolist()
            whole.append(bool(won.all()))
            chances.append(1 / (1 + len(rivals)))
    return Choice(Share.count(hits), Share.count(whole), float(np.mean(chances)), len(forms) - len(kept))
