"""`intarsia finetune | score | submit | twin | compare`: a system on a benchmark, from its published files to its server's file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

out = Console()


@dataclass
class FinetuneOptions:
    """Fine-tunes a system on a task of its paper; the paper's recipe unless told otherwise. Run again, an unfinished run goes on."""

    system: tyro.conf.Positional[str]
    task: tyro.conf.Positional[str]
    """A task of the system's paper; `intarsia list` names them."""
    data: Path
    """Folder of the benchmark's annotation files, as published."""
    regions: str
    """Region shards of its pictures (`intarsia extract`), or any data set with their regions."""
    out: Path
    """Folder of the run."""
    weights: Path | None = None
    """What to begin from: folder of a pre-training run, or weights, ours or the authors'; None = random, which no paper does."""
    size: str = "base"
    vocab: Path | None = None
    """vocab.txt of the weights; run folders bring their own."""
    benchmark: str | None = None
    """Another one than the task's name says: coco-cn, fashion sets, .."""
    split: str | None = None
    """Items to train on; None = the benchmark's first split."""
    valid_split: str | None = None
    """Items whose loss is watched."""
    answers: Path | None = None
    """The table of answers that published weights were tuned with; None = made from the training files."""
    steps: int | None = None
    """Optimizer steps; None, here and below = as in the paper."""
    warmup: int | None = None
    lr: float | None = None
    rows: int | None = None
    """Budget of rows of a micro-batch."""
    samples: int | None = None
    """Most items of a micro-batch."""
    accumulate: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 42
    workers: int = 1
    device: str = "auto"
    sharding: Literal["ddp", "fsdp"] = "ddp"
    critical: bool = False
    """Captions only: self-critical training, from a captioner (--weights) on."""


def finetune(args: Sequence[str]) -> None:
    """Fine-tunes a system on a benchmark's published files."""
    from intarsia import caption_runs
    from intarsia.data.formats.files import sha256_of
    from intarsia.errors import BadInput
    from intarsia.systems import find
    from intarsia.tasks import benchmarks
    from intarsia.train.loop import Pace
    from intarsia.tuning_runs import About, answer_list, begin, open_items, pairing
    from intarsia.tuning_runs import finetune as train

    options = tyro.cli(FinetuneOptions, args=args, prog="intarsia finetune")
    writes = options.task == caption_runs.TASK
    if options.critical and not writes:
        raise BadInput(f"--critical: {options.task} writes no captions")
    cls = find(options.system)
    found = None if writes else pairing(options.system, options.task)[1]
    if options.benchmark:
        benchmark = benchmarks.find(options.benchmark)
    else:
        benchmark = benchmarks.benchmark_of(options.task, cls.finetune)
    if writes != (benchmark.measure_captions is not None):
        raise BadInput(f"task {options.task} and benchmark {benchmark.name}: one writes captions, the other does not")
    labels = () if found is None else answer_list(benchmark, found, options.data, options.answers)
    source = open_items(benchmark, options.data, options.regions, options.split or benchmark.splits[0], labels)
    valid = None
    if options.valid_split:
        valid = open_items(benchmark, options.data, options.regions, options.valid_split, labels)
    for items in filter(None, (source, valid)):
        out.print(items.told, highlight=False, soft_wrap=True)
    if writes:
        given = (options.size, options.weights, options.vocab, source, options.seed)
        tuned, recipe = caption_runs.begin(options.system, *given, critical=options.critical)
    else:
        tuned, recipe = begin(
            options.system, options.task, options.size, options.weights, options.vocab, source, labels, options.seed
        )
    recipe = overridden(recipe, options)
    begun = ""
    if options.weights:
        file = options.weights / "model.safetensors" if options.weights.is_dir() else options.weights
        begun = f"{options.weights} {sha256_of(file)[:16]}" if file.is_file() else str(options.weights)
    about = About(
        options.system,
        options.task,
        options.size,
        benchmark.name,
        str(options.data.resolve()),
        options.regions,
        begun,
        labels,
    )
    tune = caption_runs.critical if options.critical else train
    outcome = tune(
        about,
        tuned,
        recipe,
        source,
        options.out,
        valid=valid,
        workers=options.workers,
        device=options.device,
        sharding=options.sharding,
        pace=Pace(log_every=25, save_every=500, valid_every=250),
    )
    if not outcome.finished:
        out.print(f"stopped by {outcome.stopped_by} at step {outcome.step}; the same command goes on from there")
        return
    out.print(f"tuned: {options.out}")


def overridden(recipe: Any, options: Any) -> Any:
    """A recipe with the numbers that were given; a warm-up longer than the run becomes a tenth of it."""
    steps = options.steps or recipe.schedule.steps
    warmup = recipe.schedule.warmup if options.warmup is None else options.warmup
    warmup = steps // 10 if warmup >= steps else warmup
    batching = {
        name: value for name in ("rows", "samples", "accumulate") if (value := getattr(options, name)) is not None
    }
    return replace(
        recipe,
        schedule=replace(recipe.schedule, steps=steps, warmup=warmup),
        optim=replace(recipe.optim, lr=options.lr or recipe.optim.lr),
        batching=replace(recipe.batching, **batching),
        precision=options.precision,
    )


# ------------------------------------------------------------------------------------------------------ score and submit


@dataclass
class ScoreOptions:
    """The official numbers of a fine-tuned run on an annotated split."""

    run: tyro.conf.Positional[Path]
    """Folder of a fine-tuning run."""
    data: Path | None = None
    """Folder of the annotation files; None = that of training."""
    regions: str | None = None
    """Region shards; None = those of training."""
    split: str = ""
    """As the benchmark names it; empty = its validation split."""
    blind: bool = False
    """Also fit a baseline on the training items that sees no picture."""
    most: int = 0
    """Captions that are ranked at the most; 0 = all."""
    prefilter: str = ""
    """Of pairs: ridge, nearest, or the run folder of a system of two towers, which rank before; then only --top candidates of each query are read."""
    top: int = 20
    """Candidates of each query that are read after a prefilter."""
    beams: int = 0
    """Of captions that are written; 0 = as in the paper, 1 = greedy."""
    benchmark: str | None = None
    """Captions only: another one than that of training, such as nocaps."""
    out: Path | None = None
    """JSON to write; default: score-SPLIT.json in the run folder."""
    device: str = "cpu"


def score(args: Sequence[str]) -> None:
    """The official numbers of a fine-tuned run."""
    from intarsia import caption_runs
    from intarsia.errors import BadInput
    from intarsia.tuning_runs import About, measure, told

    options = tyro.cli(ScoreOptions, args=args, prog="intarsia score")
    given = (options.run, options.data, options.regions, options.split, options.blind)
    if About.read(options.run).task == caption_runs.TASK:
        found, written, source = caption_runs.measure(
            *given, beams=options.beams, device=options.device, other=options.benchmark
        )
        for text in list(written.values())[:3]:
            out.print(f"written: {text}", markup=False, highlight=False, soft_wrap=True)
    elif options.prefilter and options.top < 1:
        raise BadInput(f"--top {options.top}: at least one candidate is read")
    elif options.benchmark or options.beams:
        raise BadInput("--benchmark and --beams: for runs that write captions")
    else:
        found, _, source = measure(*given, options.most, options.device, prefilter=options.prefilter, top=options.top)
    out.print(source.told, highlight=False, soft_wrap=True)
    out.print(table(found))
    path = options.out or options.run / f"score-{found.split}.json"
    path.write_text(json.dumps(told(found), indent=1) + "\n", encoding="utf-8")
    out.print(f"numbers: {path}")


def table(found: Any) -> Table:
    """Measured numbers, to print."""
    from intarsia.tasks import benchmarks

    shown = Table("", f"{found.benchmark} {found.split}", title=f"{found.items} items")
    main = benchmarks.find(found.benchmark).main
    for name, value in found.numbers.items():
        shown.add_row(name, f"{value:.1f}" if name.endswith("rsum") else f"{100 * value:.2f}")
    for name, value in (("chance", found.chance), ("without the picture", found.blind)):
        if value is not None:
            shown.add_row(f"{main}, {name}", f"{100 * value:.2f}")
    for reason, count in found.left_out.items():
        shown.add_row(f"not scored: {reason}", str(count))
    return shown


@dataclass
class SubmitOptions:
    """Writes the file that a benchmark's server takes."""

    run: tyro.conf.Positional[Path]
    """Folder of a fine-tuning run."""
    split: str
    """The split that the server scores."""
    out: Path
    """The file."""
    data: Path | None = None
    regions: str | None = None
    benchmark: str | None = None
    """Captions only: another one than that of training, such as nocaps."""
    device: str = "cpu"


def submit(args: Sequence[str]) -> None:
    """The file of a benchmark's server, from a fine-tuned run."""
    from intarsia import caption_runs, tuning_runs
    from intarsia.errors import BadInput
    from intarsia.tuning_runs import About

    options = tyro.cli(SubmitOptions, args=args, prog="intarsia submit")
    about = About.read(options.run)
    where = (options.data or Path(about.data), options.regions or about.regions)
    if about.task == caption_runs.TASK:
        count = caption_runs.submit(
            options.run, *where, options.split, options.out, options.device, other=options.benchmark
        )
    elif options.benchmark:
        raise BadInput(f"--benchmark: {about.task} is sent to the server of {about.benchmark}")
    else:
        count = tuning_runs.submit(options.run, *where, options.split, options.out, options.device)
    out.print(f"{count} items: {options.out}")


# ------------------------------------------------------------------------------------------------------------------ twin


@dataclass
class TwinOptions:
    """Writes a generated twin of a benchmark: its published file format, scenes instead of photographs."""

    benchmark: tyro.conf.Positional[str]
    out: Path
    """A folder; region shards go to its regions/."""
    train: int = 2000
    """Scenes of the training split."""
    val: int = 300
    """Scenes of the validation split."""
    level: int = 1
    """1 = drawn pictures with pixel features; 0 = attribute features, for fast curves."""
    seed: int = 0
    pictures: bool = False
    """Write the pictures too."""


def twin(args: Sequence[str]) -> None:
    """A generated twin of a benchmark in its published file format."""
    from intarsia.worlds.twins import write_twin

    options = tyro.cli(TwinOptions, args=args, prog="intarsia twin")
    regions = write_twin(
        options.benchmark, options.out, options.train, options.val, options.level, options.seed, options.pictures
    )
    out.print(f"{options.benchmark}: --data {options.out} --regions {regions}")


# --------------------------------------------------------------------------------------------------------------- compare


@dataclass
class CompareOptions:
    """Several systems on one benchmark: the same items, budget and seeds. Run again, it goes on."""

    systems: tyro.conf.Positional[str]
    """Names with commas between."""
    task: str
    """The benchmark: vqa, nlvr2, refcoco, .."""
    data: Path
    regions: str
    out: Path
    """Folder of all runs, the table and the plot."""
    seeds: int = 5
    weights: Path | None = None
    """Folder with the pre-training run of each system under its name; None = all begin at random, small."""
    steps: int = 600
    rows: int = 2000
    lr: float = 3e-4
    warmup: int = 60
    most: int = 200
    """Captions that retrieval ranks; 0 = all."""
    split: str = ""
    device: str = "cpu"


def compare(args: Sequence[str]) -> None:
    """Several systems on one benchmark: one budget, seeds, paired intervals."""
    from intarsia.comparison import Budget, Plan
    from intarsia.comparison import compare as make

    options = tyro.cli(CompareOptions, args=args, prog="intarsia compare")
    budget = Budget(options.steps, options.rows, options.lr, options.warmup, options.most)
    plan = Plan(
        options.task,
        options.data,
        options.regions,
        options.out,
        options.seeds,
        budget,
        options.weights,
        options.split,
    )
    make(plan, options.systems.split(","), options.device)
    out.print((options.out / "comparison.md").read_text(), markup=False, highlight=False, soft_wrap=True)
    out.print(f"table and plot: {options.out}")
