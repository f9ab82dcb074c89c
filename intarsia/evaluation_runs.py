"""What `intarsia evaluate` measures on generated scenes and on pairs of the user's own."""

from __future__ import annotations

from dataclasses import replace

from intarsia.data.opening import open_source
from intarsia.errors import BadInput
from intarsia.evaluate import Evaluation, baseline_retrieval
from intarsia.evaluate import evaluate as measure
from intarsia.evaluate.evaluation import pairs
from intarsia.features.extractor import must_be_alike
from intarsia.model import Model
from intarsia.worlds import WorldSource, candidate_sets

MOST = 1000
"""Pairs that retrieval ranks at the most: N x M scores."""


def evaluate_world(model: Model, count: int) -> tuple[Evaluation, WorldSource]:
    """Measures on test scenes of the generator: 100 candidates of which no caption is true of another's picture, and gold for everything.

    Args:
        model: a system trained on scenes.
        count: test scenes.

    Raises:
        BadInput: the model was trained on other features.
    """
    if model.system.reads_features and (model.provenance is None or model.provenance.extractor != "pixels"):
        raise BadInput(
            f"the weights were trained on {model.provenance and model.provenance.extractor} features, generated scenes have pixels"
        )
    test = WorldSource(split="test", count=count)
    validation = WorldSource(split="validation", count=100)
    (candidates,) = candidate_sets(test, min(100, count // 2))
    found = measure(
        model.system,
        [test[i] for i in range(count)],
        validation=[validation[i] for i in range(len(validation))],
        candidates=candidates,
        words=[test.words_to_test(i) for i in range(count)],
        swapped=[test.swapped(i) for i in range(count)],
    )
    return found, test


def evaluate_pairs(model: Model, spec: str, split: str, train: str | None, language: str | None) -> Evaluation:
    """Measures on held-out pairs of a data set with region features.

    Args:
        model: the trained system.
        spec: the data, as for pre-training.
        split: which part of it.
        train: the training pairs, for the baselines.
        language: only captions of this language; None = all.

    Raises:
        BadInput: no pair is left, or the features are of another extractor than the model's.
    """
    source = open_source(spec, split)
    if model.provenance is not None and model.system.reads_features:
        must_be_alike(spec, source.provenance, model.provenance)
    samples = [x for i in range(len(source)) if (x := source[i]) and language in (None, x.language)]
    if not samples:
        raise BadInput(f"{spec}: no pair of split {split!r}" + (f" in language {language!r}" if language else ""))
    chosen = range(min(len(samples), MOST))
    found = measure(model.system, samples, candidates=chosen)
    if train is not None:
        known = open_source(train, "train")
        found = replace(
            found, baselines=baseline_retrieval((known[i] for i in range(len(known))), *pairs(samples, chosen))
        )
    return found
