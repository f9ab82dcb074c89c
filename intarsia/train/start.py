"""What pre-training starts from: a fresh system and a recipe that fit the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from intarsia.data.corpora import Alongside, Beside
from intarsia.data.opening import open_source, open_texts
from intarsia.data.source import Provenance, Source
from intarsia.errors import BadInput
from intarsia.features.kmeans import Codebook
from intarsia.objectives import qa
from intarsia.objectives.mrm import NEED_CLASSES
from intarsia.recipe import Recipe
from intarsia.system import System, fit_config
from intarsia.text import Vocab

NO_FEATURES = Provenance("none", 0)
"""Of pictures without region features, for systems that read pixels."""


def fresh(cls: type[System], recipe: Recipe[Any], vocab: Vocab, provenance: Provenance) -> tuple[System, Recipe[Any]]:
    """A system with random weights, drawn by the recipe's seed, whose numbers are those of the vocabulary and the features.

    Returns:
        The system, and the recipe with its config.
    """
    classes, attributes = max(len(provenance.classes), 2), len(provenance.attributes)
    config = fit_config(recipe.config, len(vocab), provenance.width, classes, attributes)
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        return cls(config, vocab), replace(recipe, config=config)


def captions(source: Source, specials: tuple[str, ...] = ()) -> Vocab:
    """A vocabulary learnt from all texts and tags of a source, with the special tokens that a system needs beside BERT's."""
    tags: dict[str, None] = {}

    def texts() -> Iterator[str]:
        for i in range(len(source)):
            sample = source[i]
            tags.update(dict.fromkeys(sample.tags))
            yield from sample.texts

    said = list(texts())
    return Vocab.learn(said, more=tags, specials=specials)


def beside(
    cls: type[System], recipe: Recipe[Any], source: Source, text: str | None, extra: str | None, split: str
) -> Source:
    """The pairs of a run, with the text without pictures or the second corpus that it reads along.

    Args:
        cls: the system.
        recipe: its config weighs a second corpus.
        source: the pairs.
        text: lines of text, or None.
        extra: the second corpus, named as the pairs may be; or None.
        split: part of its folder.

    Raises:
        BadInput: the system does not learn from such a corpus; one is weighed and not named, or named and not weighed.
    """
    if text and not cls.reads_text_alone:
        raise BadInput(f"--text {text}: {cls.card.name} does not learn from text alone")
    weight = getattr(recipe.config, "extra_loss_weight", None)
    if extra and weight is None:
        raise BadInput(f"--extra {extra}: {cls.card.name} does not weigh a second corpus")
    if weight is not None and not (0 < weight <= 1 if extra else weight == 0):
        needed = "above 0 and at most 1 with --extra" if extra else "0 without --extra"
        raise BadInput(f"config.extra_loss_weight {weight}: must be {needed}")
    source = Beside(source, open_source(extra, split)) if extra else source
    return Alongside(source, open_texts(text)) if text else source


def with_words(recipe: Recipe[Any], book: Codebook) -> Recipe[Any]:
    """The recipe with the sizes of a codebook in its config, as far as this has such fields; `System.fill_words` does the rest."""
    sizes = {"clusters": book.words, "feature_size": book.leaves.shape[1]}
    sizes = {name: value for name, value in sizes.items() if name in recipe.config.__dataclass_fields__}
    return replace(recipe, config=replace(recipe.config, **sizes))


def answers_for(cls: type[System], source: Source, most: int = 9500) -> tuple[str, ...]:
    """The table of the answers that a source's questions have, for a system that learns to answer; empty for others."""
    if "answers" not in cls.Config.__dataclass_fields__:
        return ()
    return qa.table(source[i] for i in range(len(source)))[:most]


def with_answers(recipe: Recipe[Any], answers: tuple[str, ...]) -> Recipe[Any]:
    """The recipe with a table of answers in its config; as it is if the table is empty."""
    if not answers:
        return recipe
    return replace(recipe, config=replace(recipe.config, answers=answers, num_qa_labels=len(answers)))


def without_classes(
    recipe: Recipe[Any], provenance: Provenance, answers: tuple[str, ...] | None = None
) -> tuple[Recipe[Any], tuple[str, ...]]:
    """The recipe less the goals that need classes or attributes, where the features have none, or answers, where the table is empty.

    Args:
        recipe: of a run.
        provenance: of the features.
        answers: the table; None = whether there is one does not matter.

    Returns:
        The recipe, and the goals left out.
    """
    missing: set[str] = set() if provenance.classes else {*NEED_CLASSES, "obj"}
    missing |= set() if provenance.attributes else {"attr"}
    missing |= {"qa"} if answers == () else set()
    share: dict[str, float] = {}
    begin: dict[str, float] = {}
    gone: list[str] = []
    for goal, weight in recipe.mix.share.items():
        parts = goal.split("+")
        kept = "+".join(part for part in parts if part not in missing)
        gone += [part for part in parts if part in missing and part not in gone]
        if kept:
            share[kept] = share.get(kept, 0) + weight
            begin[kept] = min(begin.get(kept, 1.0), recipe.mix.begin.get(goal, 0.0))
    begin = {goal: at for goal, at in begin.items() if at}
    return replace(recipe, mix=replace(recipe.mix, share=share, begin=begin)), tuple(gone)
