"""What happened since the last look: losses stay on the device until fetched all at once, with the samples behind them."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from intarsia.train.parallel import World


@dataclass(frozen=True, slots=True)
class Seen:
    """One micro-batch that was trained on."""

    step: int
    goal: str
    keys: tuple[str, ...]
    rows: int
    losses: dict[str, Tensor]
    """Scalars on the device."""


@dataclass(frozen=True)
class Trouble:
    """The first step since the last look whose loss or gradient was not finite."""

    step: int
    goal: str
    found: str
    """What was found, e.g. "loss mlm is nan"."""
    keys: tuple[str, ...]
    """Samples of the micro-batches with such a loss; of the whole step if only the gradient was bad."""


@dataclass(frozen=True)
class Summary:
    """The window in numbers, over all processes."""

    losses: dict[str, float]
    norm: float
    pairs_per_second: float
    rows_per_second: float
    trouble: Trouble | None = None


@dataclass
class Window:
    """The micro-batches and steps since the last `fetch`."""

    seen: list[Seen] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    bad: list[Tensor] = field(default_factory=list)
    """Per step a scalar: 1 from the first step on whose loss or gradient was not finite in some process."""
    since: float = field(default_factory=time.perf_counter)

    def micro_batch(self, seen: Seen) -> None:
        """Notes a micro-batch."""
        self.seen.append(seen)

    def step(self, step: int, norm: Tensor, bad: Tensor) -> None:
        """Notes an optimizer step."""
        self.steps.append(step)
        self.norms.append(norm)
        self.bad.append(bad)

    def skip(self, seconds: float) -> None:
        """Leaves out time spent on something else than training."""
        self.since += seconds

    def fetch(self, world: World) -> Summary:
        """Brings the numbers to the host in one transfer, puts those of all processes together and starts anew. All processes must call it."""
        flat = [loss.detach().float() for seen in self.seen for loss in seen.losses.values()]
        values = torch.stack([*flat, *(x.detach().float() for x in (*self.norms, *self.bad))]).tolist()
        norms, bad = values[len(flat) : len(flat) + len(self.norms)], values[len(flat) + len(self.norms) :]
        worst = next((i for i, flag in enumerate(bad) if flag), None)
        rest = iter(values)
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        culprits, witnesses, found, goal = list[str](), list[str](), "", ""
        for seen in self.seen:
            losses = dict(zip(seen.losses, rest, strict=False))
            for name, value in losses.items():
                sums[name][0] += value
                sums[name][1] += 1
            if worst is not None and seen.step == self.steps[worst]:
                witnesses.extend(seen.keys)
                if wrong := [f"loss {name} is {value}" for name, value in losses.items() if not math.isfinite(value)]:
                    culprits.extend(seen.keys)
                    found, goal = found or wrong[0], goal or seen.goal
        seconds = max(time.perf_counter() - self.since, 1e-9)
        pairs, rows = (sum(x) for x in zip(*((len(seen.keys), seen.rows) for seen in self.seen), strict=True))
        told = world.gather((dict(sums), pairs, rows, culprits, witnesses, found, goal))
        trouble = None
        if worst is not None:
            step = self.steps[worst]
            found = next((one[5] for one in told if one[5]), f"gradient norm is {norms[worst]}")
            keys = [key for one in told for key in one[3]] or [key for one in told for key in one[4]]
            first = next(seen.goal for seen in self.seen if seen.step == step)
            trouble = Trouble(step, next((one[6] for one in told if one[6]), first), found, tuple(keys))
        self.seen, self.steps, self.norms, self.bad, self.since = [], [], [], [], time.perf_counter()
        names = list(dict.fromkeys(name for one in told for name in one[0]))
        means = {
            name: sum(one[0][name][0] for one in told if name in one[0])
            / sum(one[0][name][1] for one in told if name in one[0])
            for name in names
        }
        return Summary(
            means,
            sum(norms) / len(norms),
            sum(x[1] for x in told) / seconds,
            sum(x[2] for x in told) / seconds,
            trouble,
        )
