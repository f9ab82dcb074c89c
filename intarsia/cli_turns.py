"""`intarsia finetune SYSTEM TASK,TASK,..`: many tasks in turn, one body, a head a task, each stopping and going by its held-out score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.console import Console

from intarsia.cli_tuning import RunOptions, begun_from, overridden

if TYPE_CHECKING:
    from intarsia.turns_runs import Place

out = Console()


@dataclass
class TurnsOptions(RunOptions):
    """Fine-tunes a system on many tasks in turn: an update on a batch of each in every round. Run again, an unfinished run goes on.

    A task that has converged pauses, and goes on when its score falls. `intarsia score RUN --benchmark NAME` scores each.
    """

    system: tyro.conf.Positional[str]
    tasks: tyro.conf.Positional[str]
    """Tasks of the system's paper that share its heads, with commas between; 12in1 = the twelve of ViLBERT's second paper."""
    data: tuple[Path, ...]
    """Folders of the annotation files, one a task in their order; or one, which holds all, or a folder a benchmark of its name."""
    regions: tuple[str, ...] = ()
    """Region shards, one a task or one for all; none = `regions` in each folder of data."""
    given: tuple[str, ...] = ()
    """Regions of annotated boxes, one a task or one for all, for the tasks whose paper has them; empty = left out."""
    answers: tuple[str, ...] = ()
    """Tables of answers that published weights were tuned with, as TASK=FILE."""
    gap: int = 4
    """Rounds after which a paused task has a turn; 1 = none ever pauses."""
    valid_every: int = 0
    """Rounds between evaluations; 0 = a task is scored after each of its own epochs."""
    valid_items: int = 0
    """Held-out items of a task that are scored at the most; 0 = all."""
    clean: Literal["test", "val", "none"] = "test"
    """No task trains on pictures that any task tests with (test), or also validates with (val)."""


def meant(args: Sequence[str]) -> bool:
    """Whether the arguments of `finetune` name several tasks."""
    return any("," in x or x == "12in1" for x in args[:2] if not x.startswith("-"))


def finetune(args: Sequence[str]) -> None:
    """Fine-tunes a system on many tasks in turn."""
    from intarsia.recipe import Turns
    from intarsia.train.loop import Pace
    from intarsia.turns_runs import begin_tasks, finetune_together, hard_negatives, names_of, open_tasks

    options = tyro.cli(TurnsOptions, args=args, prog="intarsia finetune")
    names = names_of(options.system, options.tasks)
    _checked(options)
    parts = open_tasks(options.system, names, places(options, names), options.clean, options.valid_items)
    for part in parts:
        for line in part.told:
            out.print(f"{part.name}: {line}", markup=False, highlight=False, soft_wrap=True)
    rules = Turns(gap=options.gap, every=options.valid_every)
    together, recipe, factors = begin_tasks(
        options.system, parts, options.size, options.weights, options.vocab, rules, options.seed
    )
    outcome = finetune_together(
        options.system,
        options.size,
        begun_from(options.weights),
        together,
        _each(overridden(recipe, options), options),
        factors,
        parts,
        hard_negatives(together, parts, options.hard_negatives, options.out),
        options.out,
        workers=options.workers,
        device=options.device,
        pace=Pace(log_every=25, save_every=500),
    )
    if not outcome.finished:
        out.print(f"stopped by {outcome.stopped_by} at round {outcome.step}; the same command goes on from there")
        return
    which = ", ".join(x.benchmark.name for x in parts)
    out.print(f"tuned: {options.out}; score it on {which}", highlight=False, soft_wrap=True)


def _checked(options: TurnsOptions) -> None:
    """Raises BadInput where a number makes no sense."""
    from intarsia.errors import BadInput

    for name, least in (("gap", 1), ("valid_every", 0), ("valid_items", 0)):
        if getattr(options, name) < least:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(options, name)}: at least {least}")


def _each(recipe: Any, options: TurnsOptions) -> Any:
    """The recipe whose every task has the batches that were asked for."""
    changes = {name: value for name in ("rows", "samples") if (value := getattr(options, name)) is not None}
    tasks = {name: replace(batching, **changes) for name, batching in recipe.turns.tasks.items()}
    return replace(recipe, turns=replace(recipe.turns, tasks=tasks))


def places(options: TurnsOptions, names: Sequence[str]) -> list[Place]:
    """Where the files of each task are.

    Raises:
        BadInput: neither one folder nor as many as tasks, or answers of no task.
    """
    from intarsia.errors import BadInput
    from intarsia.systems import find
    from intarsia.tasks.benchmarks import benchmark_of
    from intarsia.turns_runs import Place

    for flag in ("data", "regions", "given"):
        if (count := len(getattr(options, flag))) not in (*((0,) if flag != "data" else ()), 1, len(names)):
            raise BadInput(f"--{flag}: {count} folders for {len(names)} tasks ({', '.join(names)}); one, or one each")
    tables = {x.partition("=")[0]: x.partition("=")[2] for x in options.answers}
    if odd := [name for name, table in tables.items() if name not in names or not table]:
        raise BadInput(f"--answers {odd[0]}: say TASK=FILE, of the tasks {', '.join(names)}")
    cls, found = find(options.system), []
    for i, name in enumerate(names):
        data = options.data[i % len(options.data)]
        inner = data / benchmark_of(name, cls.finetune, "clips" in cls.needs).name
        data = inner if len(options.data) == 1 and inner.is_dir() else data
        regions = options.regions[i % len(options.regions)] if options.regions else str(data / "regions")
        given = options.given[i % len(options.given)] if options.given else ""
        found.append(Place(data, regions, given, Path(tables[name]) if name in tables else None))
    return found
