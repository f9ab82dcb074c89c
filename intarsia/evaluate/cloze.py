"""The cloze test: one node of a caption's scene graph is hidden and asked for, with the picture and without it. Source: ERNIE-ViL, sec. 4."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from intarsia.batch import Array, Example, Sample
from intarsia.errors import BadInput
from intarsia.evaluate.benchmark import Measured
from intarsia.evaluate.running import FP32, Inference, fitting, keep_regions, piece_rows
from intarsia.evaluate.words import guess_best
from intarsia.objectives import sgp
from intarsia.system import System
from intarsia.tasks.benchmarks import Annotated, Benchmark

_AT_ONCE = 1024
"""Pairs whose features are in memory together."""
_BEST = 5


def evaluate_cloze(
    system: System, benchmark: Benchmark, source: Annotated, how: Inference = FP32
) -> tuple[Measured, dict[str, Array]]:
    """How often a system as pre-training left it names a hidden node; the pieces it names, by item, (M, 5), the likeliest first.

    All words that a node touches are [MASK]. It is named if each of its pieces is the likeliest at its place ("top-1"), or among the five likeliest ("top-5").
    Blind = top-1 where no region is seen; chance = had one always said the commonest node of the kind.

    Raises:
        BadInput: the system predicts no words, or no caption fits.
    """
    if not system.predicts_words:
        raise BadInput(f"{benchmark.name}: hides words, {system.card.name} does not predict any")
    gold, hits = source.annotations.gold, defaultdict[str, list[tuple[bool, bool, bool]]](list)
    said, truth, long = dict[str, Array](), defaultdict[str, Counter[tuple[int, ...]]](Counter), 0
    for first in range(0, len(source), _AT_ONCE):
        samples = [source[i] for i in range(first, min(first + _AT_ONCE, len(source)))]
        kept, examples = fitting(system, samples)
        long += len(samples) - len(kept)
        samples = [samples[i] for i in kept]
        rows = [_rows(system, *x, gold[x[0].key]) for x in zip(samples, examples, strict=True)]
        none = np.zeros(0, np.int64)
        blank = [system.lay_out(keep_regions(x, none)) for x in samples]
        seen = guess_best(system, examples, rows, how, benchmark.name, _BEST)
        unseen = guess_best(system, blank, rows, how, f"{benchmark.name}, no picture")
        for sample, example, where, with_it, without in zip(samples, examples, rows, seen, unseen, strict=True):
            assert example.text is not None
            right, kind = example.text.ids[where], gold[sample.key].kind
            there = with_it == right[:, None]
            hits[kind].append((there[:, 0].all(), there.any(1).all(), (without[:, 0] == right).all()))
            truth[kind][tuple(right.tolist())] += 1
            said[sample.key] = with_it
    if not said:
        raise BadInput(f"{benchmark.name}: every caption is too long for {system.card.name}")
    every = np.array([x for kind in hits.values() for x in kind], np.float64).mean(0)
    numbers = {"top-1": float(every[0]), f"top-{_BEST}": float(every[1])}
    for kind in sorted(hits):
        shares = np.array(hits[kind], np.float64).mean(0).tolist()
        names = f"{kind}, top-1", f"{kind}, top-{_BEST}", f"{kind}, top-1, without the picture"
        numbers |= dict(zip(names, shares, strict=True))
    missing = len(source.annotations.items) - len(source)
    out = {name: count for name, count in (("no regions", missing), ("too long", long)) if count}
    common = sum(x.most_common(1)[0][1] for x in truth.values()) / len(said)
    told = ", ".join(f"{len(hits[kind])} {kind}" for kind in sorted(hits))
    split = source.annotations.split
    return Measured(benchmark.name, split, len(said), numbers, out, common, float(every[2]), told), said


def _rows(system: System, sample: Sample, example: Example, node: tuple[str, int, int]) -> Array:
    """The text rows of the words that a node touches."""
    pieces = system.vocab.encode(sample.texts[0])
    found: Array = piece_rows(example, pieces)[sgp.rows_of(node[1:], pieces, 0)]
    if not len(found):
        raise BadInput(f"sample {sample.key}: no word of the text lies in characters {node[1]} .. {node[2]}")
    return found
