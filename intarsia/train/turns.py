"""Many tasks in one run: a batch of each in turn, each with an optimizer step of its own, and tasks that pause once they have converged.

12-in-1 (Lu et al., CVPR 2020, sec. 3.2) calls this round-robin training with dynamic stop-and-go. A step of the schedule is a round: all tasks that have
a turn. A task is scored on held-out items after each of its own epochs; one that no longer gets better pauses, which leaves it a turn in every
`gap`-th round, and goes on when its score falls. What has a turn is thus not known before the scores are: batches that workers have made ahead are
thrown away when a task pauses or goes on, and made anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from intarsia.batch import Batch, Sample
from intarsia.data.loader import Ints, Layout, Lengths, Loaded, Plan, Prepare, Request, load
from intarsia.data.source import Provenance, Source
from intarsia.errors import BadInput
from intarsia.recipe import Turns
from intarsia.train.loop import Gear, Run
from intarsia.train.state import Position


class Tasks:
    """The items of several tasks behind one another; keys get the name of the task in front.

    Args:
        sources: by task, at least one, of one extractor.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = dict(sources)
        self.provenance: Provenance | None = next(iter(self.sources.values())).provenance
        self.ends = list(accumulate(len(x) for x in self.sources.values()))
        self.parts = {
            name: range(end - len(source), end)
            for (name, source), end in zip(self.sources.items(), self.ends, strict=True)
        }

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Sample:
        name = list(self.sources)[bisect_right(self.ends, index)]
        sample = self.sources[name][index - self.parts[name].start]
        return replace(sample, key=f"{name}/{sample.key}")


@dataclass(frozen=True)
class Turn:
    """How far a task has come."""

    taken: int = 0
    """Micro-batches that all processes have taken."""
    best: float | None = None
    """The best score; None = none yet."""
    worse: int = 0
    """Evaluations since then that count."""
    cooldown: int = 0
    """Evaluations that will not count."""
    paused: bool = False

    def judged(self, score: float, rules: Turns) -> Turn:
        """After an evaluation. Source: MultiTaskStopOnPlateau of the authors' code."""
        best, worse, cooldown, paused = self.best, self.worse + 1, self.cooldown, self.paused
        if best is None or score > best * (1 + rules.better):
            best, worse = score, 0
        if cooldown:
            cooldown, worse = cooldown - 1, 0
        if worse > rules.patience:
            paused, cooldown, worse = True, rules.cooldown, 0
        if paused and score <= best * (1 - rules.fallen):
            paused, cooldown, worse = False, rules.cooldown, 0
        return Turn(self.taken, best, worse, cooldown, paused)


class PrepareEach:
    """Batches of each task; the broken pairs of one are made of its own items alone."""

    def __init__(self, each: dict[str, Prepare]) -> None:
        self.each = each

    def __call__(self, samples: Ints, goal: str, epoch: int) -> Batch:
        """See `Prepare`."""
        return self.each[goal](samples, goal, epoch)


class _Stream(Iterator[Loaded]):
    """Batches from wherever the run stands when the first one is asked for; closed, it begins anew with the next one."""

    def __init__(self, make: Callable[[], Iterator[Loaded]]) -> None:
        self.make = make
        self.items: Any = None

    def __next__(self) -> Loaded:
        self.items = self.items or self.make()
        return next(self.items)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends the workers."""
        if self.items is not None:
            self.items.close()
        self.items = None


class RunInTurns(Run):
    """A run whose steps are rounds; see the module's docstring.

    Args:
        gear: as for a run on one task.
        rules: who has turns.
        plans: the batches of each task.
        judges: the score of a task on held-out items; a task without one never pauses.
    """

    def __init__(
        self, gear: Gear, rules: Turns, plans: dict[str, Plan], judges: Mapping[str, Callable[[], float]]
    ) -> None:
        super().__init__(gear)
        self.rules, self.plans, self.judges = rules, plans, judges
        self.share = self.recipe.batching.accumulate * self.world.size  # micro-batches of a turn
        self.period = {name: rules.every or max(1, len(plan.epoch(0)) // self.share) for name, plan in plans.items()}
        self.done = 0
        self.turns: dict[str, Turn] = {}
        self.before: dict[int, dict[str, Turn]] = {}  # as they were before the rounds since the last look
        self.stream = _Stream(lambda: iter(()))

    def has_turn(self, name: str, step: int) -> bool:
        """Whether a task has a turn in a round."""
        return not self.turns[name].paused or step % self.rules.gap == 0

    def _load(self, start: Position, prepare: Prepare, workers: int) -> Iterator[Loaded]:
        self.done = start.step
        self.turns = {name: Turn(**start.turns.get(name, {})) for name in self.plans}
        pin = self.world.device.type == "cuda"
        self.stream = _Stream(lambda: load(self._wanted(), prepare, workers=workers, pin=pin))
        return self.stream

    def _wanted(self) -> Iterator[Request]:
        """The micro-batches of this process in the rounds to come, as the turns stand."""
        taken, world = {name: turn.taken for name, turn in self.turns.items()}, self.world
        for step in range(self.done, self.recipe.schedule.steps):
            for place, name in enumerate(self.plans):
                if not self.has_turn(name, step):
                    continue
                for mine in range(world.rank, self.share, world.size):
                    epoch, samples = self.plans[name].batch(taken[name] + mine)
                    yield Request((step * len(self.plans) + place) * self.share + mine, epoch, name, samples)
                taken[name] += self.share

    def _step(self, step: int, items: Iterator[Loaded], updates: int | None = None) -> None:
        self.before[step] = dict(self.turns)
        for name in self.plans:
            if self.has_turn(name, step):
                super()._step(step, items, sum(x.taken for x in self.turns.values()) // self.share)
                self.turns[name] = replace(self.turns[name], taken=self.turns[name].taken + self.share)
        self.done = step + 1

    def _position(self, done: int, start: Position) -> Position:
        turns = self.before.get(done, self.turns)
        return replace(
            super()._position(done, start),
            number=0,
            starts=(0,),
            turns={name: asdict(turn) for name, turn in turns.items()},
        )

    def _look(self, done: int, start: Position) -> None:
        super()._look(done, start)
        self.before.clear()

    def _due(self, done: int) -> bool:
        return bool(self._judged(done))

    def _judged(self, done: int) -> list[str]:
        """The tasks that are scored after so many rounds."""
        last = done == self.recipe.schedule.steps
        return [name for name in self.judges if last or done % self.period[name] == 0]

    def _validate(self, done: int) -> None:
        changed = False
        for name in self._judged(done):
            score = self.world.on_first(self.judges[name])
            before, self.turns[name] = self.turns[name], self.turns[name].judged(score, self.rules)
            after = self.turns[name]
            self.log.write("valid", done, {name: score}, paused=float(after.paused))
            if after.paused != before.paused:
                changed = True
                self.log.say(f"step {done}: {name} {'pauses' if after.paused else 'goes on'}")
        self.system.train()
        if changed:
            self.stream.close()


def in_turn(
    gear: Gear, source: Source, layout: Layout, lengths: Lengths, judges: Mapping[str, Callable[[], float]]
) -> tuple[RunInTurns, Any]:
    """A run of many tasks, and what makes its batches.

    Raises:
        BadInput: a task has no items, or none that takes part.
    """
    recipe, rules = gear.recipe, gear.recipe.turns
    assert rules is not None and isinstance(source, Tasks)
    plans, each = {}, {}
    for name, batching in rules.tasks.items():
        part = source.parts[name]
        rows = np.where(np.isin(np.arange(len(source)), part), lengths.rows, 0).astype(np.int32)
        try:
            plans[name] = Plan(rows, batching, recipe.seed)
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None
        each[name] = Prepare(source, layout, np.flatnonzero(rows), recipe.seed, batching.block)
    return RunInTurns(gear, rules, plans, judges), PrepareEach(each)
