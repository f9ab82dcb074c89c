"""A system with a task's head as a System of its own: the loop trains it and retrieval ranks by it as they do with any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intarsia.batch import Batch, Encoded, Example, Sample
from intarsia.errors import BadInput
from intarsia.pack import documents_of
from intarsia.recipe import Mix, Recipe
from intarsia.system import Finetune, FineTuned, Regularised, System, Tuning, begin
from intarsia.tasks.benchmarks.rivals import Rivals
from intarsia.tasks.retrieval import Ranked, RetrievalCircle, RetrievalMined
from intarsia.text import Vocab


@dataclass(frozen=True)
class LayOf:
    """A system's `lay_out` for a task; a `Lay`."""

    system: System
    task: str

    @property
    def vocab(self) -> Vocab:
        """The system's."""
        return self.system.vocab

    def __call__(self, sample: Sample, form: int = 0, name: str = "") -> Example:
        """See `Lay`."""
        example = self.system.lay_out(sample, name or self.task, form)
        example.sample = sample.key
        return example


class Tuned(System):
    """A system with a task's head. Its weights have the names of `FineTuned`.

    Args:
        module: the system and its head.
        name: the task, as `System.finetune` names it.
    """

    needs = ()
    heads = ()
    recipes = {}  # noqa: RUF012
    finetune = {}  # noqa: RUF012

    def __init__(self, module: FineTuned, name: str) -> None:
        super().__init__(module.system.config, module.system.vocab)
        self.name, self.described = name, module.finetune
        self.system, self.head = module.system, module.head
        self.config, self.vocab = module.system.config, module.system.vocab
        self.rivals: Rivals | None = None
        """Where hard negatives come from."""

    @property
    def card(self) -> Any:  # type: ignore[override]
        """The system's."""
        return self.system.card

    @property
    def task(self) -> Any:
        """The task."""
        return self.described.task

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        broken = self.task.broken_by[0] if isinstance(self.task, RetrievalCircle) else ""
        state["described"] = tuple(getattr(_inner(self.task), "labels", ())), broken
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        labels, broken = state.pop("described")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        found = type(self.system).finetune[self.name]
        found = with_labels(found, labels) if labels else found
        self.described = with_broken(found, broken) if broken else found

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """The first document of a sample."""
        return self.system.lay_out(sample, self.name, form)

    def forms(self, sample: Sample) -> list[Example]:
        """All documents of a sample."""
        return self.task.forms(LayOf(self.system, self.name), sample)  # type: ignore[no-any-return]

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """The document of a task that makes but one.

        Raises:
            TypeError: it makes several: see `documents`.
        """
        found = self.documents(sample, goal, rng, draw)
        if len(found) > 1:
            raise TypeError(f"{self.name} makes {len(found)} documents of a sample")
        return found[0]

    def documents(
        self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """All documents of a sample with the task's targets."""
        sample = self.system.vary(sample, self.name, rng)
        if self.rivals is not None:
            draw = self.rivals.draws(sample, rng, draw)
        return self.task.documents(LayOf(self.system, self.name), sample, rng, draw)  # type: ignore[no-any-return]

    def encode(self, batch: Batch) -> Encoded:
        """The system's streams."""
        return self.system.encode(batch)

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """The task's loss, under its name, and what the system has beside it."""
        found = {self.name: self.task.loss(self.task.score(self.head, encoded, batch), batch)}
        if isinstance(self.task, Regularised):
            found["beside"] = self.task.beside(self.head, encoded, batch)
        return found | self.system.beside()

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Encoded]:
        """The loss; of a task that mines its broken pairs, after the batch was read once without gradient, of those that train."""
        inner = _inner(self.task)
        if self.training and isinstance(inner, RetrievalMined):
            self.eval()
            with torch.no_grad():
                scores = self.task.score(self.head, self.system.encode(batch), batch)
            self.train()
            batch = some_of(batch, inner.mined(scores, batch))
        return super().forward(batch)

    def predict(self, batch: Batch) -> list[Tensor]:
        """For each sample of the batch, in order, what its choices score; see `Task.predict`."""
        return self.task.predict(self.task.score(self.head, self.encode(batch), batch), batch)  # type: ignore[no-any-return]

    @property
    def matches(self) -> bool:
        """Whether the task ranks pairs."""
        return isinstance(_inner(self.task), Ranked)

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) how well each pair fits, by the task's head."""
        return self._ranked().fit(self.task.score(self.head, encoded, None).float())

    def match_logits(self, encoded: Encoded) -> Tensor:
        """(B, 2) logits of being broken and true, by the task's head."""
        return self._ranked().logits(self.task.score(self.head, encoded, None).float())

    def _ranked(self) -> Ranked:
        task = _inner(self.task)
        if not isinstance(task, Ranked):
            raise TypeError(f"{self.name} does not rank pairs")
        return task


def some_of(batch: Batch, documents: Tensor) -> Batch:
    """Some documents of a batch of words and regions, in the order given."""
    if batch.images is not None or batch.clips is not None or batch.text is None or batch.regions is None:
        raise TypeError("documents are chosen of batches of words and regions alone")
    text, regions = batch.text, batch.regions
    rows = [int(x.packing.lengths[documents].sum()) for x in (text, regions)]
    return Batch(
        tuple(batch.keys[i] for i in documents.tolist()),
        batch.sample[documents],
        documents_of(text, documents, rows[0]),
        documents_of(regions, documents, rows[1]),
        targets={name: batch.labels(name)[documents] for name in batch.targets},
    )


def _inner(task: Any) -> Any:
    """The task whose documents are made: the one that a task among others holds."""
    return getattr(task, "task", task)


def with_labels(finetune: Finetune, labels: tuple[str, ...]) -> Finetune:
    """The pairing with the benchmark's list of answers. A head of its own gets an output for each; one shared with other tasks keeps its size.

    Raises:
        BadInput: more answers than a shared head has outputs.
    """
    task: Any = finetune.task
    inner = _inner(task)
    if not any(x.name == "labels" for x in fields(inner)):
        return finetune
    if inner is task:
        return replace(finetune, task=replace(task, labels=labels, answers=len(labels)))
    if len(labels) > inner.answers:
        raise BadInput(f"{len(labels)} answers, the head that tasks share has {inner.answers}")
    return replace(finetune, task=replace(task, task=replace(inner, labels=labels)))


def with_broken(finetune: Finetune, letters: str) -> Finetune:
    """The pairing with other broken pairs of each sample, in the letters of `Ranked`.

    Raises:
        BadInput: the paper's task has no such choice, or they are too few.
    """
    if not isinstance(finetune.task, RetrievalCircle):
        raise BadInput("--negatives: how pairs are broken is not a choice in the paper's task")
    return replace(finetune, task=finetune.task.broken_as(letters))


def takes_labels(finetune: Finetune) -> bool:
    """Whether the task answers out of a list."""
    inner = _inner(finetune.task)
    return is_dataclass(inner) and any(x.name == "labels" for x in fields(inner))


def reserved(finetune: Finetune) -> int:
    """How many of the first answers of the list are never given."""
    return int(getattr(_inner(finetune.task), "never", 0))


def start(system: System, finetune: Finetune, name: str) -> Tuned:
    """What fine-tuning starts from."""
    return Tuned(begin(system, finetune), name)


def recipe_of(config: Any, name: str, tuning: Tuning) -> Recipe[Any]:
    """The paper's fine-tuning as the loop takes it."""
    batching = replace(tuning.batching, samples=tuning.samples) if tuning.samples else tuning.batching
    return Recipe(
        config=config,
        mix=Mix(share={name: 1.0}, scale=dict(tuning.scale)),
        optim=tuning.optim,
        sgd=tuning.sgd,
        schedule=tuning.schedule,
        batching=batching,
        note=tuning.note,
    )
