"""MVM, masked video modelling: draw a segment of a film, hide clips of it; name their visual words (VideoBERT) or find their features (CBT)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from intarsia.batch import Array, Example, Pick, Sample
from intarsia.data.video import clips_within
from intarsia.errors import BadInput


def choose(count: int, rate: float, rng: np.random.Generator) -> Array:
    """(M) which of so many clips are hidden: each with probability `rate`, one at least if there is one."""
    chosen = np.flatnonzero(rng.random(count) < rate)
    return rng.integers(count, size=1) if count and not len(chosen) else chosen


def segment(sample: Sample, rng: np.random.Generator, join_rate: float, silent: int) -> tuple[str, Array]:
    """Draws a sentence, or two neighbours joined, and the clips of its time; of a silent film some clips in a row.

    Args:
        sample: with a film or without.
        rng: source of randomness.
        join_rate: how often two neighbouring sentences are joined.
        silent: clips of a segment where nothing is said.

    Returns:
        What is said, and the numbers of the clips. Source: VideoBERT, sec. 3.3 and 4.1.
    """
    film, texts = sample.film, sample.texts
    if not texts:
        count = len(film.seconds) if film else 0
        start = int(rng.integers(max(1, count - silent + 1)))
        return "", np.arange(start, min(count, start + silent))
    first = int(rng.integers(len(texts)))
    last = min(first + 1 + int(rng.random() < join_rate), len(texts))
    said = " ".join(texts[first:last])
    if film is None or not len(film.seconds):
        return said, np.zeros(0, np.int64)
    span = np.array([[film.spans[first, 0], film.spans[last - 1, 1]]])
    return said, np.arange(*clips_within(span, film.seconds, film.length)[0])


def said_elsewhere(
    sample: Sample, said: str, rng: np.random.Generator, near_rate: float, draw: Callable[[], str]
) -> str:
    """A text that does not belong: of the same passage as often as `near_rate` says, if something else is said there; else what `draw` gives.

    Raises:
        BadInput: 20 draws gave nothing else.
    """
    strange = [text for text in sample.texts if text not in said]
    if strange and rng.random() < near_rate:
        return str(rng.choice(strange))
    for _ in range(20):
        other = draw()
        if other and other != said:
            return other
    raise BadInput(f"sample {sample.key}: no other sentence in 20 draws")


def hide(example: Example, rng: np.random.Generator, rate: float, clusters: int, goal: str) -> Example:
    """Hides visual words as BERT hides words: of the chosen 80 % are masked, 10 % become any visual word, 10 % stay. Changes and returns the example.

    Args:
        example: laid out, with clips.
        rng: source of randomness.
        rate: probability of each clip.
        clusters: visual words to draw from.
        goal: name of the target.
    """
    rows = example.clips
    assert rows is not None, f"{example.key}: needs clips"
    chosen = choose(len(rows), rate, rng)
    labels, share = rows.ids[chosen], rng.random(len(chosen))
    rows.masked[chosen[share < 0.8]] = True
    swapped = chosen[(share >= 0.8) & (share < 0.9)]
    rows.ids[swapped] = rng.integers(clusters, size=len(swapped))
    example.targets[goal] = Pick("clips", chosen, labels)
    return example
