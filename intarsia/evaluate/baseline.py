"""Retrieval without any learnt system: bags of words from mean region features, in numpy. What a trained system has to beat."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from intarsia.batch import Array, Sample
from intarsia.errors import BadInput
from intarsia.evaluate.matching import Retrieval, rank
from intarsia.evaluate.running import Shown, name_of, shown_of

_WORD = re.compile(r"[一-鿿]|[^\W_]+")
_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
_WORDS = 4000


def baseline_retrieval(
    train: Iterable[Sample], texts: Sequence[Sample], pictures: Sequence[Shown], gold: Sequence[int]
) -> dict[str, Retrieval]:
    """Two baselines on the candidates of `retrieval`.

    "ridge": a ridge regression from a picture's mean and largest region features to the tf-idf bag of words of its captions, its penalty chosen
    on every tenth training picture. "nearest": the captions of the training picture with the most similar features. Both rank by cosine.

    Args:
        train: captions with pictures; captions of one picture (by its name) are put together.
        texts: N samples, of which the first text counts.
        pictures: M candidates.
        gold: (N) for each text, the number of its picture.

    Raises:
        BadInput: fewer than ten training pictures with regions, or features of different widths.
    """
    return {name: rank(x, np.asarray(gold)) for name, x in baseline_scores(train, texts, pictures).items()}


def baseline_scores(train: Iterable[Sample], texts: Sequence[Sample], pictures: Sequence[Shown]) -> dict[str, Array]:
    """(N, M) cosines of both baselines; see `baseline_retrieval`."""
    shown: dict[str, Shown] = {}
    said: dict[str, list[str]] = {}
    for sample in train:
        name = name_of(shown_of(sample))
        shown.setdefault(name, shown_of(sample))
        said.setdefault(name, []).append(sample.texts[0])
    if len(shown) < 10:
        raise BadInput(f"baseline: {len(shown)} training pictures, at least 10 are needed")
    features = np.stack([_feature(x) for x in shown.values()])
    asked = [_feature(x) for x in pictures]
    if any(x.shape != features[0].shape for x in asked):
        raise BadInput(
            f"baseline: the candidates' features have another width than the {features.shape[1] // 2} numbers of training"
        )
    centre, spread = features.mean(0), features.std(0) + 1e-6
    features, wanted = (features - centre) / spread, (np.stack(asked) - centre) / spread
    bags = [Counter(w for text in said[name] for w in _words(text)) for name in shown]
    documents = Counter(w for bag in bags for w in bag)
    listed = [w for w, _ in sorted(documents.items(), key=lambda x: (-x[1], x[0]))[:_WORDS]]
    index = {w: i for i, w in enumerate(listed)}
    weight = np.log((1 + len(bags)) / (1 + np.array([documents[w] for w in listed])))
    known = _unit(np.stack([_bag(bag, index) for bag in bags]) * weight)
    queries = _unit(np.stack([_bag(Counter(_words(x.texts[0])), index) for x in texts]) * weight)
    near = (_unit(wanted) @ _unit(features).T).argmax(1)
    found = {"ridge": _ridge(features, known, wanted), "nearest": known[near]}
    return {name: queries @ _unit(guess).T for name, guess in found.items()}


def _feature(picture: Shown) -> Array:
    """(2 F) mean and largest of each feature over the regions, or clips; 0 without any."""
    features = np.asarray(picture.features, np.float64)
    if not len(features):
        return np.zeros(2 * features.shape[1])
    return np.concatenate([features.mean(0), features.max(0)])


def _words(text: str) -> list[str]:
    """Lower-case words; every Han character is one."""
    return _WORD.findall(text.lower())


def _bag(bag: Counter[str], index: dict[str, int]) -> Array:
    row = np.zeros(len(index))
    for word, count in bag.items():
        if word in index:
            row[index[word]] = count
    return row


def _unit(rows: Array) -> Array:
    found: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return found


def _ridge(features: Array, targets: Array, wanted: Array) -> Array:
    """Ridge regression, its penalty the one that gives the best mean cosine on every tenth row after training on the others."""
    tenth = np.arange(len(features)) % 10 == 0
    fits = _fit(features[~tenth], targets[~tenth], features[tenth])
    right = _unit(targets[tenth])
    best = max(_PENALTIES, key=lambda x: float((_unit(fits[x]) * right).sum()))
    return _fit(features, targets, wanted)[best]


def _fit(features: Array, targets: Array, wanted: Array) -> dict[float, Array]:
    """Predictions for each penalty (a share of the mean variance), by one eigendecomposition."""
    middle = targets.mean(0)
    values, vectors = np.linalg.eigh(features.T @ features)
    inner, outer = vectors.T @ (features.T @ (targets - middle)), wanted @ vectors
    scale = max(float(values.mean()), 1e-12)
    return {x: outer @ (inner / (np.maximum(values, 0) + x * scale)[:, None]) + middle for x in _PENALTIES}
