"""Captions against references: BLEU, ROUGE-L and CIDEr-D. Equal to pycocoevalcap 1.2 (tylin/coco-caption), on captions that `ptb` or its original tokenised.

All take the captions as tokens joined by single spaces. METEOR and SPICE are in `java`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from intarsia.errors import BadInput
from intarsia.tasks.metrics.folding import complete, mean

Key = TypeVar("Key", bound=int | str)
Grams = Counter[tuple[str, ...]]

_TINY, _SMALL = 1e-15, 1e-9
"""What BLEU adds to numerators and denominators."""
_BETA = 1.2
"""How much more recall weighs than precision in ROUGE-L."""
_SIGMA = 6.0
"""Width of CIDEr-D's penalty on length."""


@dataclass(frozen=True, slots=True)
class Score:
    """A score of the corpus, and of each image in the order of the hypotheses."""

    corpus: float
    each: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """What needs no Java, fractions, but CIDEr-D, which ends at 10 (papers print it times 100)."""

    bleu: tuple[Score, Score, Score, Score]
    """BLEU-1 to BLEU-4."""
    rouge_l: Score
    cider_d: Score
    keys: tuple[int | str, ...]
    """The images, in order."""

    @property
    def corpus(self) -> dict[str, float]:
        """The corpus scores by the names the official tool prints."""
        named = {f"Bleu_{n + 1}": x.corpus for n, x in enumerate(self.bleu)}
        return named | {"ROUGE_L": self.rouge_l.corpus, "CIDEr": self.cider_d.corpus}


def score(hypotheses: Mapping[Key, str], references: Mapping[Key, Sequence[str]]) -> CaptionScores:
    """All scores of tokenised captions.

    Args:
        hypotheses: one caption an image.
        references: one or more an image.

    Raises:
        BadInput: an image has references and no hypothesis, or a hypothesis and none, or an empty list of references.
    """
    keys = complete(references, hypotheses, "image")
    empty = [key for key in keys if not references[key]]
    if empty:
        raise BadInput(f"image {empty[0]} has no reference caption")
    said, meant = [hypotheses[key] for key in keys], [list(references[key]) for key in keys]
    return CaptionScores(bleu(said, meant), rouge_l(said, meant), cider_d(said, meant), tuple(keys))


def grams(words: Sequence[str], most: int = 4) -> Grams:
    """Counts of all runs of 1 to `most` words."""
    return Counter(tuple(words[i : i + n]) for n in range(1, most + 1) for i in range(len(words) - n + 1))


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Score, Score, Score, Score]:
    """BLEU-1 to 4, of the corpus and of each image; the closest length of a reference counts, the shorter of two. Source: bleu_scorer.py, `closest`."""
    rows = [_bleu_counts(h.split(), [r.split() for r in rs]) for h, rs in zip(hypotheses, references, strict=True)]
    total = _BleuCounts(
        [sum(x.correct[n] for x in rows) for n in range(4)],
        [sum(x.guesses[n] for x in rows) for n in range(4)],
        sum(x.length for x in rows),
        sum(x.reference for x in rows),
    )
    corpus, each = _bleu(total), [_bleu(x) for x in rows]
    one, two, three, four = (Score(corpus[n], tuple(x[n] for x in each)) for n in range(4))
    return one, two, three, four


@dataclass(frozen=True, slots=True)
class _BleuCounts:
    correct: list[int]
    guesses: list[int]
    length: int
    reference: int


def _bleu_counts(words: list[str], references: list[list[str]]) -> _BleuCounts:
    allowed: Grams = Counter()
    for reference in references:
        allowed |= grams(reference)
    correct = [0] * 4
    for gram, count in (grams(words) & allowed).items():
        correct[len(gram) - 1] += count
    guesses = [max(0, len(words) - n) for n in range(4)]
    closest = min((len(x) for x in references), key=lambda n: (abs(n - len(words)), n))
    return _BleuCounts(correct, guesses, len(words), closest)


def _bleu(counts: _BleuCounts) -> list[float]:
    found, product = [], 1.0
    ratio = (counts.length + _TINY) / (counts.reference + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    for n in range(4):
        product *= (counts.correct[n] + _TINY) / (counts.guesses[n] + _SMALL)
        found.append(product ** (1 / (n + 1)) * brevity)
    return found


def rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """ROUGE-L: the best precision and the best recall of the longest common subsequence, each over all references. Source: rouge.py.

    Captions are split at single spaces, so an empty one is one empty token, equal to another.
    """
    each = []
    for hypothesis, mine in zip(hypotheses, references, strict=True):
        words, others = hypothesis.split(" "), [x.split(" ") for x in mine]
        common = [common_length(x, words) for x in others]
        precision = max(n / len(words) for n in common)
        recall = max(n / len(x) for n, x in zip(common, others, strict=True))
        good = precision > 0 and recall > 0
        each.append((1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision) if good else 0.0)
    return Score(mean(each), tuple(each))


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b):
            before, row[j + 1] = row[j + 1], before + 1 if x == y else max(row[j], row[j + 1])
    return row[-1]


@dataclass(frozen=True, slots=True)
class Frequencies:
    """In how many images each n-gram is in some reference."""

    images: Mapping[tuple[str, ...], int]
    count: float
    """Images counted; a set that is one image alone gives 0 everywhere."""

    @classmethod
    def of(cls, references: Iterable[Sequence[str]]) -> Frequencies:
        """Counted from tokenised references, one list an image."""
        found: Grams = Counter()
        size = 0
        for mine in references:
            found.update({gram for x in mine for gram in grams(x.split())})
            size += 1
        return cls(found, size)

    def weigh(self, caption: str) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        """For n = 1 to 4 the weights of a caption's n-grams and their norms; and the number of its bigrams."""
        weights: list[dict[tuple[str, ...], float]] = [{}, {}, {}, {}]
        words = caption.split()
        for gram, count in grams(words).items():
            rarity = math.log(self.count) - math.log(max(1.0, self.images.get(gram, 0)))
            weights[len(gram) - 1][gram] = count * rarity
        return weights, [math.sqrt(sum(x * x for x in w.values())) for w in weights], max(0, len(words) - 1)


def cider_d(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], frequencies: Frequencies | None = None
) -> Score:
    """CIDEr-D, which the official tool calls CIDEr: clipped, with a penalty on length. Source: cider_scorer.py; Vedantam et al. 2015.

    Args:
        hypotheses: one an image.
        references: those of each image.
        frequencies: None = of these references: then scores of two sets of images do not compare. Given as a rule for self-critical training.
    """
    known = Frequencies.of(references) if frequencies is None else frequencies
    if known.count < 1:
        raise BadInput("CIDEr: document frequencies of no image")
    each = []
    for hypothesis, mine in zip(hypotheses, references, strict=True):
        said = known.weigh(hypothesis)
        each.append(10 * mean(_alike(said, known.weigh(x)) for x in mine))
    return Score(mean(each), tuple(each))


_Weighed = tuple[list[dict[tuple[str, ...], float]], list[float], int]


def _alike(said: _Weighed, meant: _Weighed) -> float:
    """The mean over n of the clipped cosine, times the penalty on length."""
    penalty = math.exp(-((said[2] - meant[2]) ** 2) / (2 * _SIGMA**2))
    total = 0.0
    for n in range(4):
        ours, theirs = said[0][n], meant[0][n]
        shared = sum(min(weight, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, weight in ours.items())
        norms = said[1][n] * meant[1][n]
        total += (shared / norms if norms else shared) * penalty
    return total / 4
