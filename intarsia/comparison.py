"""Several systems on one benchmark: the same items, budget and seeds for all, differences with paired intervals. As VOLTA did (Bugliarello et al. 2021).

Each run leaves `result.json` in its folder; runs that are there are not made again, and a run that was killed goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput
from intarsia.evaluate.running import QUIET
from intarsia.recipe import Optim, Schedule
from intarsia.scoring_runs import Asked, measure, told
from intarsia.systems import find
from intarsia.tasks import benchmarks
from intarsia.train.loop import Pace
from intarsia.tuning_runs import About, answer_list, begin, finetune, open_items, pairing
from intarsia.viz import style


@dataclass(frozen=True)
class Budget:
    """What every run gets."""

    steps: int = 600
    rows: int = 2000
    """Rows of a batch, words and regions of all its documents."""
    lr: float = 3e-4
    warmup: int = 60
    most: int = 200
    """Captions that retrieval ranks; 0 = all."""


@dataclass(frozen=True)
class Plan:
    """A comparison."""

    benchmark: str
    data: Path
    regions: str
    out: Path
    seeds: int = 5
    budget: Budget = Budget()
    weights: Path | None = None
    """A folder with the pre-training run of each system under its name; None = all begin at random, with their smallest numbers."""
    split: str = ""
    """What is measured; empty = the benchmark's validation split."""


def task_for(system: str, benchmark: str) -> str:
    """The first task of a system's paper that is trained on a benchmark.

    Raises:
        BadInput: there is none.
    """
    cls = find(system)
    for task in cls.finetune:
        if benchmarks.benchmark_of(task, cls.finetune).name == benchmark:
            return task
    raise BadInput(
        f"{system}: no task of its paper is trained on {benchmark} (it has {', '.join(cls.finetune) or 'none'})"
    )


def run(plan: Plan, system: str, seed: int, device: str = "cpu") -> dict[str, Any]:
    """One run, or what it left when it was made before.

    Raises:
        BadInput: what is there was made with another budget or other data; or a signal stopped the run.
    """
    folder = plan.out / f"{system}-{seed}"
    made = {"data": str(plan.data), "regions": plan.regions, "split": plan.split, "budget": vars(plan.budget)}
    made |= {"benchmark": plan.benchmark, "weights": str(plan.weights or "")}
    path = folder / "result.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["made"] != made:
            raise BadInput(f"{path}: made with {found['made']}, not with {made}; choose another folder")
        return found
    task = task_for(system, plan.benchmark)
    benchmark, (_, described) = benchmarks.find(plan.benchmark), pairing(system, task)
    labels = answer_list(benchmark, described, plan.data, None)
    source = open_items(benchmark, plan.data, plan.regions, benchmark.splits[0], labels)
    weights = None if plan.weights is None else plan.weights / system
    tuned, recipe = begin(system, task, "base", weights, None, source, labels, seed, tiny=weights is None)
    budget = plan.budget
    recipe = replace(
        recipe,
        optim=Optim(lr=budget.lr),
        schedule=Schedule(budget.steps, min(budget.warmup, budget.steps // 2)),
        batching=replace(recipe.batching, rows=budget.rows, samples=0, accumulate=1, reduce="mean"),
    )
    about = About(
        system, task, "base", plan.benchmark, str(plan.data.resolve()), plan.regions, str(weights or ""), labels
    )
    pace = Pace(log_every=100, save_every=500, keep=1, tensorboard=False)
    outcome = finetune(about, tuned, recipe, source, folder, workers=0, device=device, pace=pace)
    if not outcome.finished:
        raise BadInput(f"{folder}: stopped by {outcome.stopped_by} at step {outcome.step}; the same command goes on")
    most = budget.most if benchmark.ranks else 0
    asked = Asked(folder, plan.split, blind=not benchmark.ranks, most=most, device=device, how=QUIET)
    measured, _, _ = measure(asked)
    found = {"system": system, "task": task, "seed": seed, "made": made, "measured": told(measured)}
    found["parameters"] = sum(x.numel() for x in tuned.parameters())
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


# ------------------------------------------------------------------------------------------------------------- intervals


def t_quantile(share: float, freedom: int) -> float:
    """Where Student's t distribution has so much below it, found by halving; `share` in (0.5, 1)."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)

    def below(x: float) -> float:
        at = np.linspace(0, x, 2001)
        density = scale * (1 + at**2 / freedom) ** (-(freedom + 1) / 2)
        return 0.5 + float(np.trapezoid(density, at))

    low, high = 0.0, 1.0
    while below(high) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < share else (low, middle)
    return high


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; half = NaN of a single value."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """By Student's t; of differences, a paired interval."""
        count, mean = len(values), float(np.mean(values))
        if count < 2:
            return cls(mean, float("nan"))
        return cls(mean, t_quantile(0.975, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count))

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f}" + ("" if math.isnan(self.half) else f" ± {100 * self.half:.1f}")


Scores = Mapping[str, Sequence[float]]
"""By system, its main number for each seed, in the same order of seeds."""


def scores_of(results: Sequence[Mapping[str, Any]], main: str) -> dict[str, list[float]]:
    """The main numbers of runs, by system, ordered by seed."""
    found: dict[str, list[float]] = {}
    for x in sorted(results, key=lambda x: x["seed"]):
        found.setdefault(x["system"], []).append(float(x["measured"]["numbers"][main]))
    return found


def page(plan: Plan, results: Sequence[Mapping[str, Any]]) -> str:
    """The tables, as Markdown: each system, and each pair of systems with the paired interval of its difference."""
    benchmark = benchmarks.find(plan.benchmark)
    scores = scores_of(results, benchmark.main)
    first = results[0]["measured"]
    levels = ", ".join(
        f"{name} {100 * first[key]:.1f}"
        for key, name in (("chance", "chance"), ("blind", "without the picture"))
        if first[key] is not None
    )
    sizes = {x["system"]: (x["task"], x["parameters"]) for x in results}
    order = sorted(scores, key=lambda x: -float(np.mean(scores[x])))
    budget = plan.budget
    lines = [
        f"{benchmark.title}, {benchmark.main} in percent on {first['items']} items of {first['split']}; {plan.seeds} seed{'s' * (plan.seeds > 1)}, {budget.steps} steps of "
        f"{budget.rows} rows, lr {budget.lr:g}, begun from {plan.weights or 'random weights'}. {levels}.",
        "",
        "| system | task | parameters | mean and 95 % interval | seeds |",
        "|---|---|---|---|---|",
        *(
            f"| {x} | {sizes[x][0]} | {sizes[x][1]:,} | {Interval.of(scores[x])} | {' '.join(f'{100 * v:.1f}' for v in scores[x])} |"
            for x in order
        ),
    ]
    if len(order) > 1 and plan.seeds > 1:
        lines += ["", "| difference, paired by seed | points | beyond chance of seeds |", "|---|---|---|"]
        for a, b in combinations(order, 2):
            apart = Interval.of([x - y for x, y in zip(scores[a], scores[b], strict=True)])
            lines.append(f"| {a} - {b} | {apart} | {'yes' if abs(apart.mean) > apart.half else 'no'} |")
    return "\n".join(lines) + "\n"


def plot(plan: Plan, results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Every run as a dot, every system's mean with its interval, chance and blindness as lines."""
    benchmark, first = benchmarks.find(plan.benchmark), results[0]["measured"]
    scores = scores_of(results, benchmark.main)
    order = sorted(scores, key=lambda x: float(np.mean(scores[x])))
    figure = Figure(figsize=(6.4, 1.2 + 0.45 * len(order)), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(order):
        values, whole = 100 * np.array(scores[name]), Interval.of(scores[name])
        axes.plot(values, np.full(len(values), row), "o", color=style.SOFT, markersize=4, alpha=0.7)
        half = 0.0 if math.isnan(whole.half) else 100 * whole.half
        axes.errorbar(100 * whole.mean, row, xerr=half, fmt="D", color=style.WORDS, capsize=4, markersize=6)
    for key, name, dash in (("chance", "chance", ":"), ("blind", "without the picture", "--")):
        if first[key] is not None:
            axes.axvline(100 * first[key], linestyle=dash, color="black", linewidth=1, label=name)
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlabel(f"{benchmark.title}, {benchmark.main}, %")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper right", frameon=False, ncols=2, fontsize=8)
    style.save(figure, path, dpi=150)


def compare(plan: Plan, systems: Sequence[str], device: str = "cpu") -> list[dict[str, Any]]:
    """All runs, a seed after the other; the table and the plot stand in `plan.out` from the first whole seed on.

    Raises:
        BadInput: no system, one twice, no seed, or what `run` raises.
    """
    if not systems or len(set(systems)) < len(systems) or plan.seeds < 1:
        raise BadInput(f"compare: systems {', '.join(systems) or 'none'}, {plan.seeds} seeds")
    for system in systems:
        task_for(system, plan.benchmark)
    results: list[dict[str, Any]] = []
    for seed in range(plan.seeds):
        results += [run(plan, system, seed, device) for system in systems]
        so_far = replace(plan, seeds=seed + 1)
        with write_whole(plan.out / "comparison.md") as temporary:
            temporary.write_text(page(so_far, results), encoding="utf-8")
        plot(so_far, results, plan.out / "comparison.svg")
    return results
