"""A tuned system on a benchmark: predictions of every item, the official numbers, and what one gets without the picture."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Array
from intarsia.errors import BadInput, TooLong
from intarsia.evaluate.films import name_words, unseen
from intarsia.evaluate.queries import among_own, listed, ranked
from intarsia.evaluate.rerank import Prefilter
from intarsia.evaluate.running import FP32, Inference, run_numbers
from intarsia.pack import pack
from intarsia.system import System
from intarsia.tasks.benchmarks import Annotated, Benchmark, Predictions
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
    told: str = ""
    """The protocol in words, where scores depend on what is drawn."""
    convention: str = ""
    """How was counted, where papers differ."""


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


def score(benchmark: Benchmark, source: Annotated, predictions: Predictions, convention: str = "") -> dict[str, float]:
    """The official numbers of predictions, counted by one of the benchmark's conventions."""
    how = benchmark.counting(convention)
    if benchmark.measure is not None:
        return benchmark.measure(source.annotations, predictions, **how)
    assert benchmark.measure_regions is not None, "pairs are ranked"
    return benchmark.measure_regions(source.annotations, predictions, boxes_of(source, predictions), **how)


def boxes_of(source: Annotated, predictions: Predictions) -> dict[str, Array]:
    """(R, 4) boxes of the regions of each item that has a prediction, in pixels of its picture."""
    boxes = {}
    for i, (item, _) in enumerate(source.kept):
        if item.key in predictions:
            picture = source[i].pictures[0]
            width, height = item.size if all(item.size) else (picture.width, picture.height)
            boxes[item.key] = picture.boxes.astype(np.float64) * [width, height, width, height]
    return boxes


def evaluate(
    tuned: Tuned,
    benchmark: Benchmark,
    source: Annotated,
    train: Annotated | None = None,
    how: Inference = FP32,
    convention: str = "",
) -> tuple[Measured, dict[str, Array]]:
    """The official numbers, with chance and, if training items are given, a baseline that sees no picture; and the predictions by item."""
    out = _without_regions(source)
    predictions, long = predict(tuned, source, how)
    out |= {"too long": long} if long else {}
    numbers = score(benchmark, source, predictions, convention) if source.annotations.gold else {}
    blind = None
    if train is not None and source.annotations.gold:
        blind = score(benchmark, source, blind_guess(train, source), convention)[benchmark.main]
    chance = chance_of(benchmark, source) if source.annotations.gold else None
    counted = benchmark.counting(convention).get("convention", "")
    return Measured(
        benchmark.name, source.annotations.split, len(predictions), numbers, out, chance, blind, convention=counted
    ), predictions


def evaluate_words(system: System, benchmark: Benchmark, source: Annotated) -> tuple[Measured, dict[str, Array]]:
    """The official numbers of what a system names in the gaps of a sentence, as pre-training left it; blind = from the sentence alone."""
    samples, labels = [source[i] for i in range(len(source))], source.annotations.labels
    was, said = system.training, dict[bool, dict[str, Array]]()
    system.eval()
    for sees in (True, False):
        said[sees], dropped = name_words(system, samples if sees else list(map(unseen, samples)), benchmark, labels)
    system.train(was)
    numbers = score(benchmark, source, said[True])
    blind = score(benchmark, source, said[False])[benchmark.main]
    out = _without_regions(source) | ({"labels of several pieces, never right": dropped} if dropped else {})
    split, chance = source.annotations.split, chance_of(benchmark, source)
    return Measured(benchmark.name, split, len(samples), numbers, out, chance, blind), said[True]


def evaluate_pairs(
    system: System,
    benchmark: Benchmark,
    source: Annotated,
    most: int = 0,
    how: Inference = FP32,
    first: Prefilter | None = None,
    keep: Path | None = None,
    convention: str = "",
) -> tuple[Measured, Mapping[str, Any]]:
    """The official numbers where pairs are ranked, by any system that matches, tuned or not; of a benchmark of lists also these, by text.

    Raises:
        BadInput: the system ranks no pairs; or a first ranking, or a number of captions, is asked for where each query has candidates of its own.
    """
    if not system.matches:
        raise BadInput(f"{benchmark.name}: ranks pairs, {system.card.name} does not")
    if (first is not None or most) and benchmark.candidates is not None:
        raise BadInput(f"{benchmark.name}: each query has few candidates of its own; nothing is ranked beforehand")
    out, split, lists = _without_regions(source), source.annotations.split, dict[str, list[str]]()
    numbers, told = dict[str, float](), ""
    chance: float | None = None
    counted = benchmark.counting(convention).get("convention", "")
    if benchmark.candidates is not None:
        numbers, told, long, chance = among_own(system, source, benchmark, how)
        count = len(source) - long
    elif benchmark.measure_lists is not None:
        lists, left_out = listed(system, source, how, first, keep)
        count, out = len(lists), out | left_out
        numbers = benchmark.measure_lists(source.annotations, lists) if source.annotations.gold else {}
        return Measured(benchmark.name, split, count, numbers, out), lists
    else:
        numbers, count, long = ranked(system, source, most, how, benchmark.fold, first, keep, counted)
        chance = 1 / len({source.kept[i][1][0] for i in range(min(len(source), most or len(source)))})
    out |= {"too long": long} if long else {}
    return Measured(benchmark.name, split, count, numbers, out, chance, told=told, convention=counted), {}


def _without_regions(source: Annotated) -> dict[str, int]:
    missing = len(source.annotations.items) - len(source)
    return {"no regions": missing} if missing else {}


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

    Answers: naive Bayes from the words of the text to the answer; without a text the commonest. Choices: naive Bayes from the words of a choice to its being right. Regions: how
    often the region of that place was meant in training.
    """
    items = [x for x, _ in train.kept]
    if items[0].phrases:
        return _by_place(train, source)
    labels = source.annotations.labels or ("False", "True")
    choices = len(items[0].texts) > 2
    model = _Bayes()
    for item in items:
        for i, text in enumerate(item.texts[-4:] if choices else item.texts[:1] or ("",)):
            for answer, share in item.answers:
                model.learn(text, str(answer == str(i)) if choices else answer, share)
    found = {}
    for item, _ in source.kept:
        if choices:
            found[item.key] = np.array([model.odds(x, "True") - model.odds(x, "False") for x in item.texts[-4:]])
        else:
            given = model.all(item.texts[0] if item.texts else "")
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
