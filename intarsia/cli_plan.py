"""`intarsia plan`: what a run would take, before it is begun; and how a command says which recipe it means."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal

import tyro
from rich.console import Console
from rich.table import Table

from intarsia.errors import BadInput
from intarsia.plan.given import Room, Size
from intarsia.recipe import C, Recipe

out = Console()


def chosen_recipe(args: Sequence[str], command: str) -> tuple[str, str, type[Any], Recipe[Any], list[str]]:
    """The system, size and recipe that a command names by NAME, --size and --config, and the rest of its arguments.

    Raises:
        BadInput: there is no such system or size, or the recipe cannot be read.
    """
    if not args or args[0].startswith("-"):
        raise BadInput(f"say which system: intarsia {command} uniter ... (see `intarsia list`)")
    from intarsia.model import read_recipe
    from intarsia.systems import find

    name, rest = args[0], list(args[1:])
    cls = find(name)
    size, replayed = _take(rest, "--size") or "tiny", _take(rest, "--config")
    if size not in cls.recipes:
        raise BadInput(f"{name} has no size {size!r} (it has {', '.join(cls.recipes)})")
    recipe = read_recipe(cls, name, Path(replayed)) if replayed else cls.recipes[size]
    return name, size, cls, recipe, rest


def _take(args: list[str], flag: str) -> str | None:
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            value = args[i + 1]
            del args[i : i + 2]
            return value
        if arg.startswith(flag + "="):
            del args[i]
            return arg.split("=", 1)[1]
    return None


@dataclass
class Options(Generic[C]):
    """A run to plan."""

    recipe: Annotated[Recipe[C], tyro.conf.arg(name="")]
    gpus: int = 1
    """Processes, one a GPU."""
    sharding: Literal["ddp", "fsdp", "experts"] = "ddp"
    """What they do with the weights, as in pretrain."""
    sample: Size = field(default_factory=Size)
    gpu: Room = field(default_factory=Room)
    json: bool = False
    """Print JSON instead of tables."""


def plan_(args: Sequence[str]) -> None:
    """Says what a run would take: parameters, memory, bytes sent, time."""
    from intarsia.plan.cost import plan

    name, size, cls, recipe, rest = chosen_recipe(args, "plan")
    options = tyro.cli(
        Options[cls.Config],  # type: ignore[name-defined]
        args=rest,
        default=Options(recipe=recipe),
        prog=f"intarsia plan {name}",
        config=(tyro.conf.AvoidSubcommands,),
        description=f"What a run of {cls.card.title} would take. --size {'|'.join(cls.recipes)} picks the recipe ({size}); any leaf of it is a flag.",
    )
    found = plan(name, size, cls, options.recipe, options.gpus, options.sharding, options.sample, options.gpu)
    if options.json:
        print(json.dumps({**asdict(found), "sent_total": found.sent.total}, indent=1))
        return
    for part in tables(found):
        out.print(part, highlight=False, soft_wrap=not isinstance(part, Table))


# -------------------------------------------------------------------------------------------------------------- telling


def tables(found: Any) -> list[Table | str]:
    """A plan as tables and lines."""
    table = Table(title=f"{found.system} {found.size} on {found.gpus} GPU{'s' * (found.gpus > 1)}, {found.sharding}")
    table.add_column("what", overflow="fold")
    table.add_column("a GPU", justify="right", no_wrap=True)
    table.add_column("of it", overflow="fold", style="dim")
    for section in (_parameters(found), _memory(found), _sent(found), _time(found)):
        for row in section:
            table.add_row(*row)
        table.add_section()
    return [table, *_assumed(found), *_verdict(found)]


def _parameters(found: Any) -> list[tuple[str, str, str]]:
    w = found.weights
    told = [("parameters", count(w.trained + w.experts + w.frozen), "exact, of the whole system")]
    told += [("  of experts", count(w.experts), "")] if w.experts else []
    return told + ([("  that do not train", count(w.frozen), "frozen, and buffers")] if w.frozen else [])


def _memory(found: Any) -> list[tuple[str, str, str]]:
    m, fits = found.memory, "fits" if found.fits else "does not fit"
    told = [
        ("weights", gib(m.weights), "fp32"),
        ("gradients", gib(m.gradients), "fp32"),
        ("optimizer", gib(m.moments), "fp32 moments"),
        ("gathered", gib(m.gathered), "weights in use and gradients not yet shared out, fp32"),
        ("activations", gib(m.activations), f"{found.training.rows:,} rows of {found.training.samples:,} samples"),
        ("[bold]memory[/bold]", f"[bold]{gib(m.total)}[/bold]", f"{fits}: {gib(found.room.usable)} usable"),
    ]
    return [row for row in told if row[1] != gib(0)]


def _sent(found: Any) -> list[tuple[str, str, str]]:
    s = found.sent
    told = [
        ("all-reduce", s.all_reduce, "gradients, once a step"),
        ("all-gather", s.all_gather, "weights, each micro-batch, layers twice"),
        ("reduce-scatter", s.reduce_scatter, "gradients, once a step"),
        ("all-to-all", s.all_to_all, "rows to their experts and back, forward and backward"),
    ]
    return [(f"sent by {what}", gib(x), why) for what, x, why in told if x] or [("sent", gib(0), "one GPU")]


def _time(found: Any) -> list[tuple[str, str, str]]:
    s, t = found.spent, found.training
    flops = f"{t.flops / 1e12:,.4g} TFLOP"
    return [
        ("computing a step", duration(s.compute), f"{flops}, {t.accumulate} micro-batch{'es' * (t.accumulate > 1)}"),
        ("sending in a step", duration(s.communication), ""),
        ("a step", between(s.step, s.step_at_most), "gradients sent while computing .. after it"),
        ("a run", between(s.run, s.run_at_most), f"{t.steps:,} steps"),
        ("GPU hours", f"{s.gpu_hours:,.4g} .. {s.gpu_hours_at_most:,.4g}", "of all GPUs"),
    ]


def _assumed(found: Any) -> list[str]:
    r, z = found.room, found.sample
    link = (
        f"{r.speed(found.gpus) / 1e9:g} GB/s sent ({'one machine' if found.gpus <= r.machine else 'several machines'})"
    )
    peak = f"{r.peak(found.precision) / 1e12:g} TFLOP/s in {found.precision}"
    return [
        f"assumed, not measured: {r.memory:g} GiB a GPU of which {r.reserve:g} are kept free, {peak} at {100 * r.efficiency:g} %, {link} (--gpu.*)",
        f"a sample: {z.words} words, at most {z.regions} regions, patches or clips (--sample.*)",
        *(f"[bold]not counted[/bold]: {goal}: {why}" for goal, why in found.skipped.items()),
    ]


def _verdict(found: Any) -> list[str]:
    if found.fits:
        return [f"[bold]fits[/bold]: {gib(found.memory.total)} of {gib(found.room.usable)}"]
    short = f"[bold]does not fit[/bold]: {gib(found.memory.total)} are needed, {gib(found.room.usable)} are usable."
    if not found.advice:
        return [f"{short} Nothing that was tried does: other shardings, more GPUs, fewer rows, computing layers again."]
    return [f"{short} What would, each by itself:", *(f"  {line}" for line in found.advice)]


def count(number: float) -> str:
    """A number of parameters, whole."""
    return f"{number:,.0f}"


def gib(size: float) -> str:
    """Bytes in a unit that suits."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.4g} {name}"
    return f"{size / 2**10:,.3g} KiB"


def duration(seconds: float) -> str:
    """Seconds in a unit that suits."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= unit:
            return f"{seconds / unit:,.3g} {name}"
    return f"{seconds * 1e3:,.3g} ms"


def between(low: float, high: float) -> str:
    """Two durations, one where they read alike."""
    a, b = duration(low), duration(high)
    return a if a == b else f"{a} .. {b}"
