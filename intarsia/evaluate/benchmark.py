"""A tuned system on a benchmark: predictions of every item, the official numbers, and what one gets without the picture."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from intarsia.batch import Array, Sample, pack
from intarsia.errors import TooLong
from intarsia.evaluate.evaluation import pairs
from intarsia.evaluate.matching import match
from intarsia.evaluate.rerank import Prefilter, rerank
from intarsia.evaluate.running import FP32, Inference, run_numbers
from intarsia.tasks.benchmarks import Annotated, Benchmark, Predictions
from intarsia.tasks.metrics import ranking
from intarsia.tuned import Tuned

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Measured:
    """Numbers of one split."""

    benchmark: str
    split: str
    items: int
    """Items that were scored."""
    numbers: dict[str, float]
    """The official ones, fractions."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Items that were not, by reason; official numbers need all."""
    chance: float | None = None
    """Expected main number of a guess."""
    blind: float | None = None
    """The main number by the words alone."""


def predict(tuned: Tuned, source: Annotated, how: Inference = FP32) -> tuple[dict[str, Array], int]:
    """What the choices of every item score, and how many items were too long."""
    device = next(tuned.parameters()).device
    numbers, lengths = [], []
    for i in range(len(source)):
        try:
            lengths.append(sum(x.rows for x in tuned.forms(source[i])))
        except TooLong:
            continue
        numbers.append(i)
    found: dict[str, Array] = {}

    def read(places: Array) -> None:
        samples = [source[numbers[int(i)]] for i in places]
        batch = pack([x for sample in samples for x in tuned.forms(sample)]).to(device)
        for sample, scores in zip(samples, tuned.predict(batch), strict=True):
            found[sample.key] = scores.float().cpu().numpy()

    run_numbers(tuned, np.array(lengths), read, source.annotations.benchmark, how)
    order = {source.kept[i][0].key: None for i in numbers}
    return {key: found[key] for key in order}, len(source) - len(numbers)


def score(benchmark: Benchmark, source: Annotated, predictions: Predictions) -> dict[str, float]:
    """The official numbers of predictions."""
    if benchmark.measure is not None:
        return benchmark.measure(source.annotations, predictions)
    assert benchmark.measure_regions is not None, "pairs are ranked"
    boxes = {}
    for i, (item, _) in enumerate(source.kept):
        if item.key in predictions:
            picture = source[i].pictures[0]
            width, height = item.size if all(item.size) else (picture.width, picture.height)
            boxes[item.key] = picture.boxes.astype(np.float64) * [width, height, width, height]
    return benchmark.measure_regions(source.annotations, predictions, boxes)


def ranked(
    tuned: Tuned,
    source: Annotated,
    most: int,
    how: Inference = FP32,
    fold: int = 0,
    first: Prefilter | None = None,
) -> tuple[dict[str, float], int, int]:
    """Recall both ways among the first pictures of a split.

    Args:
        tuned: a system tuned to rank pairs.
        source: captions with their pictures.
        most: captions that are ranked; 0 = all.
        how: batch size, precision, bar.
        fold: pictures of a fold, if the pictures make several whole ones; 0 = no folds.
        first: ranks before, so that only its best candidates are read; without folds.

    Returns:
        Recalls as fractions and their sum in percent, with folds also their means, with a first ranking also its recalls; captions ranked; captions left out
        because they were too long.
    """
    samples: list[Sample] = [source[i] for i in range(min(len(source), most or len(source)))]
    texts, pictures, gold = pairs(samples)
    if first is not None:
        two, count = rerank(tuned, texts, pictures, np.asarray(gold), first, how)
        return two, count, len(texts) - count
    kept, scores = match(tuned, texts, pictures, how)
    owner = np.asarray(gold)[kept]
    shown = np.unique(owner)  # pictures whose captions were all too long rank nothing, and stay as candidates of texts
    found = ranking.retrieval(scores.T[shown], np.searchsorted(shown, owner)) if len(shown) < len(pictures) else None
    whole = found or ranking.retrieval(scores.T, owner)
    numbers = {f"image R@{k}": x for k, x in whole.image.at.items()} | {
        f"text R@{k}": x for k, x in whole.text.at.items()
    }
    numbers |= {"rsum": whole.rsum}
    if fold and len(pictures) > fold and len(pictures) % fold == 0 and len(shown) == len(pictures):
        numbers |= _folds(scores, owner, fold)
    return numbers, len(kept), len(texts) - len(kept)


def _folds(scores: Array, owner: Array, fold: int) -> dict[str, float]:
    """Means over consecutive folds of pictures and their captions."""
    parts = []
    for start in range(0, scores.shape[1], fold):
        mine = (owner >= start) & (owner < start + fold)
        parts.append(ranking.retrieval(scores[mine, start : start + fold].T, owner[mine] - start))
    means = ranking.folds(parts)
    return {f"{len(parts)} x {fold} {x}": y if x == "rsum" else y / 100 for x, y in means.items()}


def evaluate(
    tuned: Tuned,
    benchmark: Benchmark,
    source: Annotated,
    train: Annotated | None = None,
    most: int = 0,
    how: Inference = FP32,
    first: Prefilter | None = None,
) -> tuple[Measured, dict[str, Array]]:
    """The official numbers, with chance and, if training items are given, a baseline that sees no picture.

    Returns:
        The numbers, and the predictions by item (none for pairs that are ranked).
    """
    missing = len(source.annotations.items) - len(source)
    out = {"no regions": missing} if missing else {}
    if benchmark.ranks:
        numbers, count, long = ranked(tuned, source, most, how, benchmark.fold, first)
        pictures = len({source.kept[i][1][0] for i in range(min(len(source), most or len(source)))})
        out |= {"too long": long} if long else {}
        return Measured(benchmark.name, source.annotations.split, count, numbers, out, 1 / pictures), {}
    predictions, long = predict(tuned, source, how)
    out |= {"too long": long} if long else {}
    numbers = score(benchmark, source, predictions) if source.annotations.gold else {}
    blind = None
    if train is not None and source.annotations.gold:
        blind = score(benchmark, source, blind_guess(train, source))[benchmark.main]
    chance = chance_of(benchmark, source) if source.annotations.gold else None
    return Measured(
        benchmark.name, source.annotations.split, len(predictions), numbers, out, chance, blind
    ), predictions


def chance_of(benchmark: Benchmark, source: Annotated) -> float | None:
    """The benchmark's own chance, or, where regions are chosen, the share of right regions, averaged over items."""
    if benchmark.chance is not None:
        return benchmark.chance(source.annotations)
    if benchmark.measure_regions is None:
        return None
    rng = np.random.default_rng(0)
    samples = [source[i] for i in range(len(source))]
    draws = [
        {x.key: rng.random((max(len(x.meant), 1), max(len(x.pictures[0].boxes), 1))) for x in samples}
        for _ in range(20)
    ]
    flat = benchmark.name != "entities"
    given = [{key: y[0] if flat else y for key, y in x.items()} for x in draws]
    return float(np.mean([score(benchmark, source, x)[benchmark.main] for x in given]))


# ---------------------------------------------------------------------------------------------------- without the picture


def blind_guess(train: Annotated, source: Annotated) -> dict[str, Array]:
    """Predictions by the words alone, in the form that `predict` gives.

    Answers: naive Bayes from the words of the text to the answer. Choices: naive Bayes from the words of a choice to its being right. Regions: how
    often the region of that place was meant in training.
    """
    items = [x for x, _ in train.kept]
    if items[0].phrases:
        return _by_place(train, source)
    labels = source.annotations.labels or ("False", "True")
    choices = len(items[0].texts) > 2
    model = _Bayes()
    for item in items:
        for i, text in enumerate(item.texts[-4:] if choices else item.texts[:1]):
            for answer, share in item.answers:
                model.learn(text, str(answer == str(i)) if choices else answer, share)
    found = {}
    for item, _ in source.kept:
        if choices:
            found[item.key] = np.array([model.odds(x, "True") - model.odds(x, "False") for x in item.texts[-4:]])
        else:
            given = model.all(item.texts[0])
            found[item.key] = np.array([given.get(x, -np.inf) for x in labels])
    return found


class _Bayes:
    """Multinomial naive Bayes over words, counts smoothed by a tenth."""

    def __init__(self) -> None:
        self.labels: Counter[str] = Counter()
        self.words: Mapping[str, Counter[str]] = defaultdict(Counter)
        self.totals: Counter[str] = Counter()
        self.seen: set[str] = set()

    def learn(self, text: str, label: str, weight: float) -> None:
        self.labels[label] += weight  # type: ignore[assignment]
        for word in _WORD.findall(text.lower()):
            self.words[label][word] += weight  # type: ignore[assignment]
            self.totals[label] += weight  # type: ignore[assignment]
            self.seen.add(word)

    def odds(self, text: str, label: str) -> float:
        """Log P(label, text), up to a constant."""
        counts, whole = self.words[label], self.totals[label] + 0.1 * len(self.seen)
        return float(
            np.log(self.labels[label] + 0.1)
            + sum(np.log((counts[x] + 0.1) / max(whole, 0.1)) for x in _WORD.findall(text.lower()) if x in self.seen)
        )

    def all(self, text: str) -> dict[str, float]:
        return {label: self.odds(text, label) for label in self.labels}


def _by_place(train: Annotated, source: Annotated) -> dict[str, Array]:
    from intarsia.tasks import overlaps

    places: Counter[int] = Counter()
    for i in range(len(train)):
        sample = train[i]
        meant = [sample.meant[int(sample.answers[0][0])]] if sample.answers else sample.meant
        places.update(int(overlaps(sample.pictures[0].boxes, x.boxes).argmax()) for x in meant)
    found = {}
    for i in range(len(source)):
        sample = source[i]
        prior = np.array([float(places[j]) for j in range(len(sample.pictures[0].boxes))])
        several = source.annotations.benchmark == "entities"
        found[sample.key] = np.tile(prior, (len(sample.meant), 1)) if several else prior
    return found
