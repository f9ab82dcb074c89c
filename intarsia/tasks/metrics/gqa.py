"""GQA: questions about scene graphs, scored in several ways. Data: Hudson and Manning 2019.

Equal to the official eval.py. Answers are compared as raw strings. Grounding is left out: it needs attention maps, and its object mode does not run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from intarsia.errors import BadInput
from intarsia.tasks.metrics.folding import complete, mean

COMMON = ("color", "material", "shape")
"""The only valid and plausible answers where the detailed type of a question says Common."""
_FREE_STEPS = ("exist", "query: name", "choose name")


@dataclass(frozen=True, slots=True)
class Scores:
    """GQA's scores, fractions, but the distribution, which is a distance and 0 at best."""

    accuracy: float
    binary: float
    open: float
    validity: float | None
    """None where no choices were given."""
    plausibility: float | None
    consistency: float | None
    """None where not every entailed question has a prediction."""
    distribution: float
    """Chi square distance of the predicted from the true answers, averaged over groups of questions; lower is better."""
    by_structural_type: dict[str, tuple[float, int]]
    """Accuracy and number of questions."""
    by_semantic_type: dict[str, tuple[float, int]]
    by_words: dict[int, tuple[float, int]]
    by_steps: dict[int, tuple[float, int]]


def scores(
    questions: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, str],
    choices: Mapping[str, Mapping[str, list[str]]] | None = None,
) -> Scores:
    """All scores over the balanced questions.

    Args:
        questions: an official question file, read as JSON.
        predictions: answers by question id. Consistency needs those of all questions, balanced or not, and is None without.
        choices: the official choices file: by question id `valid` and `plausible` answers.

    Raises:
        BadInput: a balanced question lacks its prediction or its choices, or no question is balanced.
    """
    asked = {key: x for key, x in questions.items() if x["isBalanced"]}
    complete(asked, predictions, "balanced question", extra=True)
    right = {key: float(predictions[key] == x["answer"]) for key, x in asked.items()}
    structural = {key: str(x["types"]["structural"]) for key, x in asked.items()}

    def by(kind: Callable[[Mapping[str, Any]], Any]) -> dict[Any, tuple[float, int]]:
        found: dict[Any, list[float]] = defaultdict(list)
        for key, x in asked.items():
            found[kind(x)].append(right[key])
        return {name: (mean(values), len(values)) for name, values in found.items()}

    def among(kind: str) -> float | None:
        if choices is None:
            return None
        complete(asked, choices, "balanced question", extra=True)
        return mean(
            predictions[key] in (COMMON if "Common" in x["types"]["detailed"] else choices[key][kind])
            for key, x in asked.items()
        )

    return Scores(
        accuracy=mean(right.values()),
        binary=mean(right[key] for key in asked if structural[key] != "query"),
        open=mean(right[key] for key in asked if structural[key] == "query"),
        validity=among("valid"),
        plausibility=among("plausible"),
        consistency=consistency(questions, predictions),
        distribution=distribution(asked, predictions),
        by_structural_type=by(lambda x: x["types"]["structural"]),
        by_semantic_type=by(lambda x: x["types"]["semantic"]),
        by_words=by(lambda x: len(x["question"].split())),
        by_steps=by(steps),
    )


def steps(question: Mapping[str, Any]) -> int:
    """Steps of a question's programme, not counting those that only tell whether something exists or what it is called."""
    texts = (f"{x['operation']}: {x['argument']}" for x in question["semantic"])
    return sum(not any(free in text for free in _FREE_STEPS) for text in texts)


def consistency(questions: Mapping[str, Mapping[str, Any]], predictions: Mapping[str, str]) -> float | None:
    """Accuracy on what a right answer entails, averaged over the right answers to balanced questions that entail something; None if predictions are missing.

    Raises:
        BadInput: an entailed question is not in the file.
    """
    shares = []
    for key, x in questions.items():
        if not (x["isBalanced"] and predictions.get(key) == x["answer"]):
            continue
        entailed = [other for other in x["entailed"] if other != key]
        strange = [other for other in entailed if other not in questions]
        if strange:
            raise BadInput(f"GQA question {key} entails {strange[0]}, which is not in the file")
        if any(other not in predictions for other in entailed):
            return None
        if entailed:
            shares.append(mean(predictions[other] == questions[other]["answer"] for other in entailed))
    return mean(shares)


def distribution(asked: Mapping[str, Mapping[str, Any]], predictions: Mapping[str, str]) -> float:
    """Chi square of predicted against true answer counts in each global group, weighted by the size of the groups, over 100.

    Questions without a group do not count; predicted answers that are never right in the group do not either.
    """
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for key, x in asked.items():
        group = x["groups"]["global"]
        if group is not None:
            gold[group][x["answer"]] += 1
            given[group][predictions[key]] += 1
    total, weighed = 0, 0.0
    for group, counts in gold.items():
        size = counts.total()
        weighed += size * sum((given[group][answer] - count) ** 2 / count for answer, count in counts.items())
        total += size
    return weighed / total / 100 if total else 0.0
