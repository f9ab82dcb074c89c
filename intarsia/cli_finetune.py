"""`intarsia finetune | score | submit | twin | compare`: a system on a benchmark, from its published files to its server's file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from intarsia import cli_turns
from intarsia.cli_tuning import RunOptions, begun_from, overridden

if TYPE_CHECKING:
    from intarsia.system import Finetune, Given
    from intarsia.tasks.benchmarks.items import Annotated
    from intarsia.tasks.benchmarks.table import Benchmark
    from intarsia.tuning_runs import About

out = Console()
Command = Callable[[Sequence[str]], None]


@dataclass
class FinetuneOptions(RunOptions):
    """Fine-tunes a system on a task of its paper; the paper's recipe unless told otherwise. Run again, an unfinished run goes on."""

    system: tyro.conf.Positional[str]
    task: tyro.conf.Positional[str]
    """A task of the system's paper; `intarsia list` names them. Several with commas between, or 12in1, are trained in turn:
    `intarsia finetune vilbert vqa,nlvr2 --help`."""
    data: Path
    """Folder of the benchmark's annotation files, as published."""
    regions: str
    """Region shards of its pictures (`intarsia extract`), or any data set with their regions; film shards of its videos (`intarsia extract video`)."""
    given: str = ""
    """Regions of the annotated boxes of the same pictures (`intarsia extract --boxes given`), which the paper puts behind the detected ones; empty = left out."""
    trunk: Path | None = None
    """B2T2: weights of the ResNet that reads pictures and crops off the pixels from here on and trains along, where --weights were trained on features."""
    benchmark: str | None = None
    """Another one than the task's name says: coco-cn, fashion sets, .."""
    split: str | None = None
    """Items to train on; None = the benchmark's first split."""
    valid_split: str | None = None
    """Items whose loss is watched."""
    answers: Path | None = None
    """The table of answers that published weights were tuned with; None = made from the training files."""
    sharding: Literal["ddp", "fsdp", "experts"] = "ddp"
    centroids: Path | None = None
    """Codebook of visual words (`intarsia data cluster`), for systems that read them."""
    negatives: str = ""
    """ERNIE-ViL's retrieval: how each sample's pairs are broken, as its negative_schema says it ("ei*10,hc*10", or its JSON file of a task): e = any other
    picture, h = one like the sample's own (--hard-negatives); i = the picture is exchanged, c = the caption. Empty = "ei*20"."""
    extra: Path | None = None
    """Annotation files of the second benchmark that the paper trains on beside (Visual Genome's questions beside VQA's); None = it is left out."""
    extra_regions: str = ""
    """Where its pictures are; empty = where the others are."""
    extra_epochs: int | None = None
    """In how many of the first epochs it takes part; 0 = all, None = as in the paper."""
    critical: bool = False
    """Captions only: self-critical training, from a captioner (--weights) on."""


def finetune(args: Sequence[str]) -> None:
    """Fine-tunes a system on a benchmark's published files."""
    if cli_turns.meant(args):
        return cli_turns.finetune(args)
    from intarsia import caption_runs
    from intarsia.errors import BadInput
    from intarsia.systems import find
    from intarsia.tasks import benchmarks
    from intarsia.train.loop import Pace
    from intarsia.tuning_runs import answer_list, begin, must_read, rivals_of
    from intarsia.tuning_runs import finetune as train

    options = tyro.cli(FinetuneOptions, args=args, prog="intarsia finetune")
    writes = options.task == caption_runs.TASK
    if options.critical and not writes:
        raise BadInput(f"--critical: {options.task} writes no captions")
    if options.trunk and writes:
        raise BadInput(f"--trunk {options.trunk}: captions go on with the trunk of pre-training")
    cls, found = find(options.system), None if writes else _pairing(options)
    if options.benchmark:
        benchmark = benchmarks.find(options.benchmark)
    else:
        benchmark = benchmarks.benchmark_of(options.task, cls.finetune, "clips" in cls.needs)
    if writes != (benchmark.kind == "captions"):
        raise BadInput(f"task {options.task} and benchmark {benchmark.name}: one writes captions, the other does not")
    labels = () if found is None else answer_list(benchmark, found, options.data, options.answers)
    source, valid = _items(options, benchmark, labels, None if found is None else found.given)
    for items in filter(None, (source, valid)):
        must_read(cls, items)
        out.print(items.told, highlight=False, soft_wrap=True)
    whole, extra = _with_extra(options, found, benchmark, source, labels)
    given = (options.size, options.weights, options.vocab, whole)
    rivals = ""
    if writes:
        tuned, recipe = caption_runs.begin(options.system, *given, options.seed, critical=options.critical)
    else:
        begun = options.system, options.task, *given, labels, options.seed
        tuned, recipe = begin(*begun, finetune=found, trunk=options.trunk)
        tuned.rivals, rivals = rivals_of(found, benchmark, source, options.hard_negatives, options.out)
    if rivals:
        out.print(f"hard negatives: {rivals}", highlight=False, soft_wrap=True)
    outcome = (caption_runs.critical if options.critical else train)(
        _about(options, found, benchmark, labels, rivals, extra),
        tuned,
        overridden(recipe, options),
        whole,
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


def _about(
    options: FinetuneOptions,
    found: Finetune | None,
    benchmark: Benchmark,
    labels: tuple[str, ...],
    rivals: str,
    extra: str,
) -> About:
    """What the run is for."""
    from intarsia.tuning_runs import About

    return About(
        options.system,
        options.task,
        options.size,
        benchmark.name,
        str(options.data.resolve()),
        options.regions,
        begun_from(options.weights),
        labels,
        rivals,
        str(options.centroids or ""),
        options.given,
        getattr(found.task, "broken_by", ("",))[0] if found and options.negatives else "",
        extra,
    )


def _pairing(options: FinetuneOptions) -> Finetune:
    """How the task is tuned: as in the paper, or with other broken pairs."""
    from intarsia.errors import BadInput
    from intarsia.tuned import with_broken
    from intarsia.tuning_runs import negatives_of, pairing

    found = pairing(options.system, options.task)[1]
    if not options.negatives:
        return found
    letters = negatives_of(options.negatives)
    found = with_broken(found, letters)
    if not letters.islower() and not options.hard_negatives:
        raise BadInput(
            f"--negatives {options.negatives}: pictures alike (h) are wanted; say which with --hard-negatives"
        )
    return found


def _with_extra(
    options: FinetuneOptions, found: Finetune | None, benchmark: Benchmark, source: Annotated, labels: tuple[str, ...]
) -> tuple[Annotated, str]:
    """What is trained on, with the items of a second benchmark if one was named; and which, in words."""
    from intarsia.errors import BadInput
    from intarsia.extra_runs import Items, offered, open_extra
    from intarsia.turns_runs import Place

    if options.extra is None:
        if options.extra_regions or options.extra_epochs is not None:
            raise BadInput("--extra-regions and --extra-epochs: name the second benchmark's folder with --extra")
        if found is not None and (line := offered(found)):
            out.print(line, highlight=False, soft_wrap=True)
        return source, ""
    if found is None:
        raise BadInput("--extra: captions have no second benchmark")
    where = Place(options.extra, options.extra_regions or options.regions)
    extra = open_extra(
        found, benchmark, source, labels, (Place(options.data, options.regions), where), options.extra_epochs
    )
    out.print(extra.told, highlight=False, soft_wrap=True)
    about = f"{extra.items.annotations.benchmark} {options.extra.resolve()} {where.regions} {extra.epochs}"
    return cast("Annotated", Items(source, extra.items, extra.epochs)), about


def _items(
    options: FinetuneOptions, benchmark: Benchmark, labels: tuple[str, ...], how: Given | None
) -> tuple[Annotated, Annotated | None]:
    """What is trained on, and what is looked at meanwhile."""
    from intarsia.tuning_runs import open_items

    where, words = (options.data, options.regions), str(options.centroids or "")
    source = open_items(benchmark, *where, options.split or benchmark.splits[0], labels, words, options.given, how)
    if how and not options.given:
        out.print("the paper puts regions of annotated boxes behind these; without --given they are left out")
    if not options.valid_split:
        return source, None
    behind = options.given if how and how.tested else ""
    return source, open_items(benchmark, *where, options.valid_split, labels, words, behind, how)


# ------------------------------------------------------------------------------------------------------ score and submit


@dataclass
class ScoreOptions:
    """The official numbers of a fine-tuned run on an annotated split; or of a pre-trained one, for pairs that it ranks as it is (zero-shot)."""

    run: tyro.conf.Positional[Path]
    """Folder of a run."""
    data: Path | None = None
    """Folder of the annotation files; None = that of training."""
    regions: str | None = None
    """Region shards; None = those of training."""
    given: str | None = None
    """Regions of annotated boxes, where the paper has them in tests; None = those of training."""
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
    convention: str = ""
    """How is counted where papers differ: of RefCOCO whose overlaps, of Entities any box or merged, of VQA the older rule; empty = the default."""
    beams: int = 0
    """Of captions that are written; 0 = as in the paper, 1 = greedy."""
    centroids: Path | None = None
    """Codebook of visual words; None = that of training."""
    objects: Path | None = None
    """Detected objects that captions are to name (constrained beam search): lines of picture, tab, JSON list of class, conf and rect."""
    hierarchy: Path | None = None
    """Open Images' tree of classes (JSON): of two boxes in one place the particular class is named. None = no box is put aside."""
    forms: Path | None = None
    """Forms of words that may stand for them: lines of word, tab, forms with commas between."""
    benchmark: str | None = None
    """Another one than that of training, of the same kind, such as nocaps for captions."""
    rationales: Path | None = None
    """VCR by two heads: of a run tuned on the answers, the run tuned on the rationales, or itself if it was tuned on both in turn; Q->AR is then there too."""
    out: Path | None = None
    """JSON to write; default: score-SPLIT.json in the run folder, of a run of many tasks score-BENCHMARK-SPLIT.json."""
    device: str = "cpu"


def score(args: Sequence[str]) -> None:
    """The official numbers of a run."""
    from intarsia.data.formats.files import write_whole
    from intarsia.scoring_runs import measure, told

    options = tyro.cli(ScoreOptions, args=args, prog="intarsia score")
    found, said, source = measure(_asked(options))
    for text in [x for x in list(said.values())[:3] if isinstance(x, str)]:
        out.print(f"written: {text}", markup=False, highlight=False, soft_wrap=True)
    out.print(source.told, highlight=False, soft_wrap=True)
    out.print(table(found))
    if said_by_paper := published(options.run, "vcr-answers" if options.rationales else found.benchmark):
        out.print(f"published: {said_by_paper}", highlight=False, soft_wrap=True)
    which = f"{found.benchmark}-" if options.rationales else of_many(options.run, found)
    path = options.out or options.run / f"score-{which}{found.split}.json"
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(told(found), indent=1) + "\n", encoding="utf-8")
    out.print(f"numbers: {path}")


def or_score(evaluate: Command) -> Command:
    """`evaluate`, but of the folder of a fine-tuned run `score`."""

    @wraps(evaluate)
    def run(args: Sequence[str]) -> None:
        tuned = bool(args) and (Path(args[0]) / "finetune.json").is_file()
        (score if tuned else evaluate)(args)

    return run


def of_many(run: Path, found: Any) -> str:
    """The benchmark and a dash, where a run has many tasks; else nothing."""
    from intarsia.tuning_runs import ABOUT, AboutAll, read_about

    return f"{found.benchmark}-" if (run / ABOUT).is_file() and isinstance(read_about(run), AboutAll) else ""


def published(run: Path, benchmark: str) -> str:
    """What the paper reached in the task that a run was tuned for, of many that on a benchmark; empty where that is not known, or it was not tuned."""
    from intarsia.systems import scores
    from intarsia.tuning_runs import ABOUT, About

    if not (run / ABOUT).is_file():
        return ""
    about = About.read(run, benchmark)
    return scores(about.system)[about.task].published


def _asked(options: Any) -> Any:
    """The options as `scoring_runs` takes them."""
    from intarsia.caption_runs import Named
    from intarsia.errors import BadInput
    from intarsia.scoring_runs import Asked

    names = ("objects", "hierarchy", "forms")
    if options.objects is None and (options.hierarchy or options.forms):
        raise BadInput("--hierarchy and --forms: say with --objects which objects are to be named")
    named = None if options.objects is None else Named(options.objects, options.hierarchy, options.forms)
    others = {x.name: getattr(options, x.name) for x in fields(options) if x.name not in (*names, "out")}
    return Asked(**others, named=named)


def table(found: Any) -> Table:
    """Measured numbers, to print."""
    from intarsia.tasks import benchmarks

    title = "; ".join(
        x for x in (f"{found.items} items", found.told, found.convention and f"counted as {found.convention}") if x
    )
    shown = Table("", f"{found.benchmark} {found.split}", title=title)
    main = benchmarks.find(found.benchmark).main
    for name, value in found.numbers.items():
        shown.add_row(name, f"{value:.1f}" if name.endswith(("rsum", "rank")) else f"{100 * value:.2f}")
    for name, value in (("chance", found.chance), ("without the picture", found.blind)):
        if value is not None:
            shown.add_row(f"{main}, {name}", f"{100 * value:.2f}")
    for reason, count in found.left_out.items():
        shown.add_row(escape(f"not scored: {reason}"), str(count))
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
    given: str | None = None
    benchmark: str | None = None
    """Another one than that of training, of the same kind, such as nocaps for captions."""
    centroids: Path | None = None
    """As for `score`, and so are these."""
    rationales: Path | None = None
    objects: Path | None = None
    hierarchy: Path | None = None
    forms: Path | None = None
    device: str = "cpu"


def submit(args: Sequence[str]) -> None:
    """The file of a benchmark's server, from a fine-tuned run."""
    from intarsia.scoring_runs import submit as send

    options = tyro.cli(SubmitOptions, args=args, prog="intarsia submit")
    count = send(_asked(options), options.out)
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
