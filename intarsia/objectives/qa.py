"""QA in pre-training: a question about the picture is answered out of a fixed table, so it teaches as captions do. Source: LXMERT, sec. 3.1.4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from intarsia.batch import Sample
from intarsia.errors import BadInput

NUMBERS = dict(
    zip(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
        map(str, range(1, 11)),
        strict=True,
    )
)
NONE = -1
"""The label where there is nothing to answer."""


def normalise(answer: str) -> str:
    """An answer as the table spells it: lower case, no final full stop, no article before it, numbers as digits. Source: the code of LXMERT."""
    answer = answer.lower()
    answer = answer[:-1].strip() if answer.endswith(".") else answer
    for article in ("a ", "an ", "the "):
        answer = answer[len(article) :].strip() if answer.startswith(article) else answer
    answer = NUMBERS.get(answer, answer)
    return {"grey": "gray"}.get(answer, answer)


def table(samples: Iterable[Sample], least: int = 1) -> tuple[str, ...]:
    """The answers of all samples, normalised, the commonest first, each given at least so often."""
    said = Counter(normalise(answer) for sample in samples for answer, _ in sample.answers)
    return tuple(x for x, count in sorted(said.items(), key=lambda item: (-item[1], item[0])) if count >= least)


@lru_cache(8)
def _places(answers: tuple[str, ...]) -> dict[str, int]:
    return {answer: i for i, answer in enumerate(answers)}


def drawn(sample: Sample, rng: np.random.Generator) -> str:
    """One of a sample's answers, drawn by their scores.

    Raises:
        BadInput: it has none.
    """
    weights = np.array([score for _, score in sample.answers], np.float64)
    if not weights.sum():
        raise BadInput(f"sample {sample.key}: has no answer")
    return sample.answers[int(rng.choice(len(weights), p=weights / weights.sum()))][0]


def label(sample: Sample, answers: tuple[str, ...], rng: np.random.Generator) -> int:
    """The place in the table of one answer of a sample, drawn by their scores; `NONE` where the table has none of them.

    Of answers that are spelt alike the last one counts, as in the authors' code.

    Raises:
        BadInput: there is an answer, and no table at all.
    """
    if sample.answers and not answers:
        raise BadInput(f"sample {sample.key}: has an answer, the system has no table of answers")
    places = _places(answers)
    known = {places[x]: score for answer, score in sample.answers if (x := normalise(answer)) in places}
    weights = np.array(list(known.values()), np.float64)
    if not weights.sum():
        return NONE
    return int(rng.choice(list(known), p=weights / weights.sum()))


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of (B, answers) logits over the documents that have an answer; 0 where none has. Args: labels (B), `NONE` = no answer."""
    summed = F.cross_entropy(logits.float(), labels, ignore_index=NONE, reduction="sum")
    return summed / (labels != NONE).sum().clamp(min=1)
