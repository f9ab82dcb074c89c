"""A system with the heads of several tasks that one run trains: one body, one set of heads, a `Tuned` a task that shares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intarsia.batch import Batch, Encoded, Example, Sample
from intarsia.data.corpora import Pool
from intarsia.errors import BadInput
from intarsia.evaluate.benchmark import predict, score
from intarsia.evaluate.running import run_numbers
from intarsia.pack import pack
from intarsia.recipe import Batching, Mix, Recipe, Turns
from intarsia.system import Finetune, FineTuned, System
from intarsia.tasks import groups
from intarsia.tasks.benchmarks import Annotated, Benchmark
from intarsia.tuned import Tuned, recipe_of


class Together(System):
    """Tasks in turn. Its weights have the names of `FineTuned`.

    Args:
        parts: by task, all with the same body and heads; see `sharing`.
    """

    needs = ()
    heads = ()
    recipes = {}  # noqa: RUF012
    finetune = {}  # noqa: RUF012

    def __init__(self, parts: Mapping[str, Tuned]) -> None:
        first = next(iter(parts.values()))
        super().__init__(first.config, first.vocab)
        self.config, self.vocab = first.config, first.vocab
        self.system, self.head = first.system, first.head
        self.parts = dict(parts)  # no modules of this one: what they hold is `system` and `head`

    @property
    def card(self) -> Any:  # type: ignore[override]
        """The system's."""
        return self.system.card

    def train(self, mode: bool = True) -> Together:
        """Every task's, too."""
        super().train(mode)
        for part in self.parts.values():
            part.train(mode)
        return self

    def _part(self, key: str) -> tuple[Tuned, str]:
        """The task that the key of a sample or document begins with, and the rest of the key."""
        name, _, rest = key.partition("/")
        return self.parts[name], rest

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """The document of a sample of the task that its key begins with."""
        part, key = self._part(sample.key)
        return part.lay_out(replace(sample, key=key), task, form)

    def forms(self, sample: Sample) -> list[Example]:
        """All documents of a sample of the task that its key begins with."""
        part, key = self._part(sample.key)
        return part.forms(replace(sample, key=key))

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """The document of a task that makes but one."""
        return self._part(sample.key)[0].hide(sample, goal, rng, draw)

    def documents(
        self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """All documents of a sample with the targets of its task; their keys say which that is."""
        part, key = self._part(sample.key)
        found = part.documents(replace(sample, key=key), goal, rng, draw)
        for example in found:
            example.key = f"{goal}/{example.key}"
        return found

    def encode(self, batch: Batch) -> Encoded:
        """The system's streams."""
        return self.system.encode(batch)

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """The loss of the task that the batch is of, under its name."""
        return self._part(batch.keys[0])[0].losses(encoded, batch)

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Encoded]:
        """As the task of the batch has it."""
        return self._part(batch.keys[0])[0](batch)  # type: ignore[no-any-return]


def sharing(first: Tuned, name: str, finetune: Finetune) -> Tuned:
    """Another task on the body and heads of one.

    Args:
        first: the one.
        name: the task.
        finetune: how it is tuned; its config fields are those that only say how samples are laid out.

    Raises:
        BadInput: its heads are others.
    """
    with torch.random.fork_rng([]), torch.device("meta"):
        head = finetune.task.head(first.config)
    mine, theirs = ({key: x.shape for key, x in module.state_dict().items()} for module in (first.head, head))
    if mine != theirs:
        raise BadInput(f"{first.name} and {name}: their heads are not the same set; tasks in turn share one")
    body = copy(first.system)
    body.config = replace(first.config, **finetune.config)
    with torch.random.fork_rng([]):
        module = FineTuned(body, finetune)
    module.head = first.head
    return Tuned(module, name)


def recipe_in_turn(parts: Mapping[str, Tuned], size: str, rules: Turns) -> tuple[Recipe[Any], dict[str, float]]:
    """The recipe of tasks in turn out of that of each, and the factors on the learning rate of the heads.

    The learning rate is the smallest of all; the loss of a task is weighed by its own rate over that one. As many rounds as the longest task has steps.
    Source: 12-in-1, train_tasks.py.
    """
    tunings = {
        name: x.described.tunings.get(size) or next(iter(x.described.tunings.values())) for name, x in parts.items()
    }
    each = {name: recipe_of(parts[name].config, name, tuning) for name, tuning in tunings.items()}
    lr = min(x.optim.lr for x in each.values())
    longest = max(each.values(), key=lambda x: x.schedule.steps)
    first = next(iter(parts.values()))
    recipe = replace(
        longest,
        config=first.config,
        mix=Mix(
            share=dict.fromkeys(parts, 1.0),
            scale={
                key: y
                for name, x in each.items()
                for key, y in (x.mix.scale | {name: x.mix.scale.get(name, 1.0) * x.optim.lr / lr}).items()
            },
        ),
        optim=replace(longest.optim, lr=lr),
        batching=Batching(rows=max(x.batching.rows for x in each.values())),
        turns=replace(rules, tasks={name: x.batching for name, x in each.items()}),
        note=f"{len(parts)} tasks in turn; {longest.note} of the longest",
    )
    heads = {name: getattr(x.described.task, "name", "") for name, x in parts.items()}
    factors = {
        f"head.{heads[name]}.": tuning.head_lr * tuning.optim.lr / lr
        for name, tuning in tunings.items()
        if tuning.head_lr != 1.0
    }
    return recipe, factors


# -------------------------------------------------------------------------------------------------------- held-out scores


def held_out(tuned: Tuned, benchmark: Benchmark, source: Annotated) -> float:
    """The benchmark's main number on held-out items; where pairs are ranked, how often a true pair beats its broken ones, as the authors watch it."""
    if benchmark.ranks:
        return match_accuracy(tuned, source)
    return score(benchmark, source, predict(tuned, source)[0])[benchmark.main]


def match_accuracy(tuned: Tuned, source: Annotated) -> float:
    """Share of samples whose true pair scores above all its broken ones, which are always the same ones."""
    pool = Pool(source, np.arange(len(source)))
    right: list[Tensor] = []

    def documents(number: int) -> list[Example]:
        rng, sample = np.random.default_rng([0x12, number]), source[number]
        return tuned.documents(sample, tuned.name, rng, lambda: pool.draw(rng, sample, number))

    def read(numbers: Any) -> None:
        batch = pack([x for i in numbers for x in documents(int(i))]).to(next(tuned.parameters()).device)
        scores = torch.cat(tuned.predict(batch))
        by_sample = scores[groups(batch.sample, len(scores) // len(numbers))]
        right.append((by_sample[:, 0] > by_sample[:, 1:].amax(1)).cpu())

    lengths = np.array([sum(x.rows for x in documents(i)) for i in range(len(source))])
    run_numbers(tuned, lengths, read, source.annotations.benchmark)
    return float(torch.cat(right).float().mean())
