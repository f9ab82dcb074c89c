"""Tasks with one right choice: VCR, NLVR2, Visual7W, and any accuracy. Sources: each function names the official script it equals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intarsia.errors import BadInput
from intarsia.tasks.metrics.folding import complete, mean


def best(scores: npt.ArrayLike, what: str = "scores") -> npt.NDArray[np.int64]:
    """(N) the number of the highest of (N, C) scores; the first wins a tie.

    Raises:
        BadInput: a score is no number.
    """
    given = np.asarray(scores, dtype=np.float64)
    if given.ndim != 2 or not given.size:
        raise BadInput(f"{what}: shape {given.shape}, not (samples, choices)")
    bad = np.argwhere(np.isnan(given))
    if len(bad):
        raise BadInput(f"{what}: choice {bad[0][1]} of sample {bad[0][0]} is no number")
    return np.asarray(given.argmax(1), np.int64)


def accuracy(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Share of (N, C) rows whose highest score stands at its (N) label: SNLI-VE, GuessWhat and others. Data: Xie et al. 2019, de Vries et al. 2017."""
    given, right = best(scores), np.asarray(labels)
    if given.shape != right.shape:
        raise BadInput(f"{len(given)} rows of scores, {len(right)} labels")
    return float((given == right).mean())


def macro_f1(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean over the classes that occur, as label or as answer, of the F1 of (N, C) rows against (N) labels; as scikit-learn's f1_score, average "macro"."""
    given, right = best(scores), np.asarray(labels)
    if given.shape != right.shape:
        raise BadInput(f"{len(given)} rows of scores, {len(right)} labels")
    found = []
    for name in np.union1d(given, right):
        hits = int(((given == name) & (right == name)).sum())
        found.append(2 * hits / int((given == name).sum() + (right == name).sum()))
    return float(np.mean(found))


# ------------------------------------------------------------------------------------------------------------------ VCR


@dataclass(frozen=True, slots=True)
class VCRScores:
    """VCR's accuracies, fractions."""

    answer: float
    """Q to A."""
    rationale: float
    """QA to R, given the right answer."""
    joint: float
    """Q to AR: both right for the same question."""


def vcr(
    answers: npt.ArrayLike, rationales: npt.ArrayLike, answer_labels: npt.ArrayLike, rationale_labels: npt.ArrayLike
) -> VCRScores:
    """VCR as the authors' leaderboard script scores it on the validation set.

    Args:
        answers: (N, 4) scores of answers.
        rationales: (N, 4) scores of rationales beside the right answer, or (N, 4, 4) beside each answer; then the right answer's row counts.
        answer_labels: (N) int.
        rationale_labels: (N) int.

    Raises:
        BadInput: shapes do not fit, or a score is no number.
    """
    gold, gold_reason = np.asarray(answer_labels), np.asarray(rationale_labels)
    given, reasons = best(answers, "VCR answers"), np.asarray(rationales, np.float64)
    if reasons.ndim == 3 and len(reasons) == len(gold):
        reasons = reasons[np.arange(len(gold)), gold]
    chosen = best(reasons, "VCR rationales")
    if not len(given) == len(chosen) == len(gold) == len(gold_reason):
        raise BadInput(f"VCR: {len(given)} answers, {len(chosen)} rationales, {len(gold)}, {len(gold_reason)} labels")
    right, right_reason = given == gold, chosen == gold_reason
    return VCRScores(float(right.mean()), float(right_reason.mean()), float((right & right_reason).mean()))


# ---------------------------------------------------------------------------------------------------------------- NLVR2


@dataclass(frozen=True, slots=True)
class NLVR2Scores:
    """NLVR2's scores, fractions."""

    accuracy: float
    consistency: float
    """Share of sentences that are right with all their picture pairs."""


def nlvr2(predictions: Mapping[str, str], labels: Mapping[str, str]) -> NLVR2Scores:
    """NLVR2 as lil-lab/nlvr, nlvr2/eval/metrics.py scores it: lower case, and anything but the label is wrong. Extra predictions are let pass.

    Args:
        predictions: "True" or "False" by identifier.
        labels: "True" or "False" by identifier, `split-set-pair-sentence`; a sentence is known by its identifier without the pair.

    Raises:
        BadInput: an identifier has no prediction, or not four fields.
    """
    right: dict[str, bool] = {}
    sentences: dict[tuple[str, ...], list[bool]] = defaultdict(list)
    for identifier in complete(labels, predictions, "example", extra=True):
        fields = identifier.split("-")
        if len(fields) != 4:
            raise BadInput(f"NLVR2 identifier {identifier!r} is not split-set-pair-sentence")
        right[identifier] = predictions[identifier].lower() == labels[identifier].lower()
        sentences[fields[0], fields[1], fields[3]].append(right[identifier])
    return NLVR2Scores(mean(right.values()), mean(all(x) for x in sentences.values()))


# ------------------------------------------------------------------------------------------------------------- Visual7W


@dataclass(frozen=True, slots=True)
class Visual7WScores:
    """Visual7W's accuracy, fractions."""

    overall: float
    by_type: dict[str, tuple[float, int]]
    """Accuracy and number of questions, by the question's first word."""


def visual7w(
    chosen: Mapping[int, object], pairs: Sequence[Mapping[str, object]], partial: bool = False
) -> Visual7WScores:
    """Visual7W, multiple choice, as yukezhu/visual7w-toolkit scores it: answers are compared as lower-cased strings.

    Args:
        chosen: the first candidate by qa_id: a box number (pointing) or a text (telling).
        pairs: the questions, each with qa_id, answer and type.
        partial: score what was answered alone, as the script does; else every question needs an answer.

    Raises:
        BadInput: an answer is missing or of no question.
    """
    known = {int(str(x["qa_id"])): x for x in pairs}
    if partial:
        complete(chosen, known, "answered question", extra=True)
    else:
        complete(known, chosen, "question")
    by_type: dict[str, list[bool]] = defaultdict(list)
    for key, x in known.items():
        if key in chosen:
            by_type[str(x["type"])].append(str(chosen[key]).lower() == str(x["answer"]).lower())
    return Visual7WScores(
        mean(right for x in by_type.values() for right in x), {kind: (mean(x), len(x)) for kind, x in by_type.items()}
    )
