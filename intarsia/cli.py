"""The command line: `intarsia list | data | extract | plan | pretrain | evaluate | predict | index | search | convert | show`.

A command is a dataclass of options and a function. What a user got wrong is told in one line on the error stream, exit code 2.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal

import tyro
from rich.console import Console
from rich.table import Table

from intarsia.cli_codes import coded, keep_codes, show_picture, with_codes_of
from intarsia.cli_data import data, extract
from intarsia.cli_finetune import compare, finetune, or_score, score, submit, twin
from intarsia.cli_links import show_links
from intarsia.cli_plan import chosen_recipe, plan_
from intarsia.cli_search import index, search
from intarsia.cli_video import predict_film, show_film
from intarsia.errors import BadInput
from intarsia.recipe import C, Recipe

out = Console()


# ----------------------------------------------------------------------------------------------------------------- list


@dataclass
class List:
    """The systems: what they train, how close to the authors' code, which weights load."""

    system: Annotated[str, tyro.conf.Positional] = ""
    """One system, told in full."""


def list_(args: Sequence[str]) -> None:
    """The systems: paper, streams, objectives, parity, tasks, weights."""
    options = tyro.cli(List, args=args, prog="intarsia list")
    from intarsia.systems import SYSTEMS, find, parity

    if options.system:
        for what, said in _about(options.system).items():
            out.print(f"[bold]{what}[/bold]: {said}", highlight=False, soft_wrap=True)
        return
    table = Table(title="systems", show_lines=True)
    for column in ("system", "paper", "streams", "objectives", "parity", "tasks", "weights that load", "not verified"):
        table.add_column(column, overflow="fold")
    for name in SYSTEMS:
        card, near = find(name).card, parity(name)
        table.add_row(
            name,
            f"{card.venue}\n{card.paper}",
            card.streams,
            ", ".join(card.objectives),
            "none" if near is None else f"{near.difference:.0e} over {near.tensors} tensors",
            ", ".join(card.tasks),
            ", ".join(card.weights) or "none published",
            f"{len(card.unverified)} facts",
        )
    out.print(table)
    out.print(
        "parity: the largest difference from the authors' code in fp32. `intarsia list NAME` tells one in full, with"
    )
    out.print("the numbers of every recipe and each fact that is not verified.")


def _about(name: str) -> dict[str, str]:
    """The card of a system, line by line."""
    from intarsia.systems import find, parity, scores

    cls, near = find(name), parity(name)
    card = cls.card
    return {
        "system": f"{name}, {card.title}, {card.venue}, {card.paper}",
        "new": card.new,
        "read from": card.code,
        "streams": card.streams,
        "objectives": ", ".join(card.objectives),
        "parity": "no golden file"
        if near is None
        else f"{near.difference:.1e} at most, over {near.tensors} tensors (docs/parity.md)",
        "weights that load": ", ".join(card.weights) or "none published",
        "starts from": "BERT (--start) or nothing" if cls.from_bert else "nothing",
        "tasks": ", ".join(card.tasks),
        **{
            f"task {task}": f"published {x.published or '-'}; on the twin, tuned blind, by words alone, by chance: {x.on_twin}"
            for task, x in scores(name).items()
        },
        **{f"recipe {size}": _recipe_facts(recipe) for size, recipe in cls.recipes.items()},
        "verified in code": "what the recipes say, but for"
        if card.unverified
        else "all that the recipes say; `tiny` is our own",
        **{f"not verified {i}": fact for i, fact in enumerate(card.unverified, 1)},
    }


def _recipe_facts(recipe: Recipe[Any]) -> str:
    """Its numbers and its note."""
    optim, schedule, batching = recipe.optim, recipe.schedule, recipe.batching
    shares = ", ".join(f"{goal} {share:g}" for goal, share in recipe.mix.share.items())
    second = (
        f"SGD for {recipe.sgd.only} at rate {recipe.sgd.lr:g}, decay {recipe.sgd.weight_decay:g}. "
        if recipe.sgd
        else ""
    )
    return (
        f"rate {optim.lr:g}, {schedule.steps:,} steps, {schedule.warmup:,} of warm-up, {batching.rows:,} rows a batch x {batching.accumulate}, "
        f"decay {optim.weight_decay:g}, norm {optim.max_norm:g}, shares {shares}. {second}{recipe.note}"
    )


# ------------------------------------------------------------------------------------------------------------- pretrain


@dataclass
class Pretrain(Generic[C]):
    """A pre-training run."""

    data: str
    """worlds:COUNT, or a folder or file with regions: see `intarsia data inspect`."""
    out: Path
    """Folder of the run; an unfinished run in it goes on."""
    recipe: Annotated[Recipe[C], tyro.conf.arg(name="")]
    valid: str | None = None
    """Held-out pairs whose loss is watched."""
    valid_split: str | None = None
    """Part of --valid; None = all of it."""
    text: str | None = None
    """Text without pictures, a passage a line, read beside the pairs one for one; for systems that learn from it (VL-BERT)."""
    extra: str | None = None
    """A second corpus as --data, read pair for pair and weighed by config.extra_loss_weight (Oscar+)."""
    split: str = "train"
    """Part of a data folder to train on, of --extra too."""
    benchmark: str = ""
    """--data is the folder of this benchmark's published files, whose own texts are trained on (VisualBERT, sizes own_..); --split and --valid-split are its own."""
    regions: str = ""
    """With --benchmark: where its pictures' regions are."""
    language: str | None = None
    """Only captions of this language, in --data and --valid."""
    vocab: Path | None = None
    """vocab.txt, or "gb2312", the characters of Chinese; without one a vocabulary is learnt from the captions."""
    weights: Path | None = None
    """Weights of the same system to start from."""
    start: Path | None = None
    """Weights of a plain BERT to start from, .safetensors or a torch file in Hugging Face's names; its vocabulary is --vocab or the vocab.txt beside it."""
    trunk: Path | None = None
    """Weights of the image trunk alone to start from, for systems that read pixels; "light" = EfficientNet-Lite0 of the part light. VLP: a folder with
    the detector's fc7_w.pkl and fc7_b.pkl. Oscar over codes: their codec, as for --codes."""
    centroids: Path | None = None
    """File of `intarsia data cluster`, for systems that read visual words."""
    codes: Path | None = None
    """File of `intarsia data codes`, or a VQGAN's (taming-transformers), for systems that write pictures (M6, sizes t2i and t2i_tiny)."""
    workers: int = 1
    """Processes that prepare batches."""
    device: str = "auto"
    sharding: Literal["ddp", "fsdp", "experts"] = "ddp"
    """What ranks under torchrun do with the weights: copy them, share them out, or share the experts out and copy the rest."""
    compile: bool = False
    """Compile the repeated layers; pays on CUDA only, with attention dropout 0."""
    on_error: Literal["stop", "skip"] = "stop"
    """skip = samples that cannot be used are counted and left out."""


def pretrain(args: Sequence[str]) -> None:
    """Pre-trains a system on pairs of pictures and captions."""
    name, size, cls, recipe, rest = chosen_recipe(args, "pretrain")
    options = tyro.cli(
        Pretrain[cls.Config],  # type: ignore[name-defined]
        args=rest,
        default=Pretrain(data=tyro.MISSING, out=tyro.MISSING, recipe=recipe),
        prog=f"intarsia pretrain {name}",
        config=(tyro.conf.AvoidSubcommands,),
        description=f"Pre-trains {cls.card.title}. --size {'|'.join(cls.recipes)} picks the recipe ({size}); --config RUN/recipe.json replays one.",
    )
    _pretrain(name, size, cls, options)


def _pretrain(name: str, size: str, cls: Any, options: Any) -> None:
    from intarsia.data.corpora import speaking
    from intarsia.features.extractor import must_be_alike
    from intarsia.model import read_provenance
    from intarsia.train.loop import Pace
    from intarsia.train.loop import pretrain as train
    from intarsia.train.start import NO_FEATURES, answers_for, beside, with_answers, with_words, without_classes
    from intarsia.tuning_runs import to_train_on

    source, held, told = to_train_on(options)
    if told:
        out.print(told, highlight=False, soft_wrap=True)
    if options.language:
        source, held = speaking(source, options.language), held and speaking(held, options.language)
    provenance = source.provenance
    reads_features = "regions" in cls.needs and getattr(options.recipe.config, "trunk", None) is None
    if not reads_features:
        provenance = provenance or NO_FEATURES
    if provenance is None:
        raise BadInput(
            f"{options.data}: has pictures but no region features: run `intarsia extract {options.data} --out REGIONS` first"
        )
    book = None
    if options.centroids:
        from intarsia.features.kmeans import CODEBOOK, WithWords, read_codebook, write_codebook

        book = read_codebook(options.centroids)
        source, held = WithWords(source, book), held and WithWords(held, book)
        options.recipe = with_words(options.recipe, book)
    if options.codes:
        source, held, options.recipe = coded(name, options, source, held)
    begun = options.weights.parent if options.weights and options.weights.is_file() else options.weights
    for folder in (options.out, begun):
        if reads_features and folder and (folder / "provenance.json").is_file():
            must_be_alike(options.data, provenance, read_provenance(folder))
    source = beside(cls, options.recipe, source, options.text, options.extra, options.split)
    vocab = _vocabulary(cls, options, source)
    answers = None if options.weights else answers_for(cls, source)
    recipe, gone = without_classes(options.recipe, provenance, answers)
    if gone:
        out.print(f"{', '.join(gone)}: left out, the data have no such labels (extractor {provenance.extractor})")
    recipe = with_answers(recipe, answers or ())
    system, recipe = _begin(name, size, cls, options, recipe, vocab, provenance)
    if book is not None and not options.weights:
        system.fill_words(book)
    keep_codes(options.codes, options.out)
    outcome = train(
        system,
        source,
        recipe,
        options.out,
        valid=held,
        workers=options.workers,
        device=options.device,
        sharding=options.sharding,
        compile=options.compile,
        size=size,
        on_error=options.on_error,
        pace=Pace(log_every=25, save_every=500, valid_every=250),
    )

    if not outcome.finished:
        out.print(f"stopped by {outcome.stopped_by} at step {outcome.step}; the same command goes on from there")
        return
    if book is not None:
        write_codebook(options.out / CODEBOOK, book)
    out.print(f"trained: {options.out}")


def _vocabulary(cls: Any, options: Any, source: Any) -> Any:
    """The one named, that of the run or of the BERT it starts from, or one learnt from the captions."""
    from intarsia.text import Vocab
    from intarsia.train.start import captions

    if str(options.vocab) == "gb2312":
        return Vocab.gb2312(cls.specials)
    beside = options.start.parent / "vocab.txt" if options.start else None
    for path in (options.vocab, options.out / "vocab.txt", beside):
        if path is not None and (path == options.vocab or path.is_file()):
            return Vocab.read(path)
    if options.start:
        raise BadInput(f"{options.start}: name the vocabulary of this BERT with --vocab")
    return captions(source, cls.specials)


def _begin(name: str, size: str, cls: Any, options: Any, recipe: Any, vocab: Any, provenance: Any) -> tuple[Any, Any]:
    """The system before its first step: random, from weights of its own, or from a BERT's."""
    import torch

    from intarsia.data.fetch import fetched
    from intarsia.model import grown_for_own, must_suit, read_ours
    from intarsia.train.from_bert import from_bert
    from intarsia.train.start import fresh
    from intarsia.weights.files import fill

    if options.weights and (options.start or options.trunk):
        raise BadInput(f"--{'start' if options.start else 'trunk'} and --weights: a run begins from one of the two")
    if not options.weights:
        if options.start:
            system, recipe, begun = from_bert(cls, recipe, vocab, provenance, options.start)
            out.print(f"{options.start}: {begun.told}", highlight=False, soft_wrap=True)
        else:
            system, recipe = fresh(cls, recipe, vocab, provenance)
        if options.trunk:
            light = fetched("light", "efficientnet-lite0.pth") if str(options.trunk) == "light" else options.trunk
            system.fill_trunk(light)
        return system, recipe
    must_suit(cls, provenance, options.weights)
    state, config = read_ours(cls, name, options.weights, size)
    if len(vocab) != config.vocab_size:
        raise BadInput(
            f"{options.weights}: has {config.vocab_size} pieces, the vocabulary {len(vocab)}: name its own with --vocab"
        )
    if "regions" in cls.needs and not getattr(config, "trunk", None) and provenance.width != config.feature_size:
        raise BadInput(f"{options.data}: features of width {provenance.width}, the weights take {config.feature_size}")
    config = with_codes_of(config, recipe.config) if options.codes else config
    config = dataclasses.replace(config, **{x: getattr(recipe.config, x) for x in cls.chosen})
    config = grown_for_own(cls, state, config)
    recipe = dataclasses.replace(recipe, config=config)
    torch.manual_seed(recipe.seed)
    system = cls(config, vocab)
    where = str(options.weights)
    fill(system, system.fitted(state, where), where, cls.keys.optional)
    return system, recipe


# ------------------------------------------------------------------------------------------------------------- evaluate


@dataclass
class Evaluate:
    """Measures a trained system on held-out pairs."""

    system: tyro.conf.Positional[str]
    weights: Path
    """Folder of a run."""
    data: str
    """Held-out pairs; "worlds" = the generator's own test, with its gold."""
    split: str = "test"
    """Split of a data folder."""
    train: str | None = None
    """The training pairs: two baselines are fitted on them and reported beside the system."""
    count: int = 300
    """Scenes of a generated world."""
    language: str | None = None
    """Only captions of this language."""
    report: Path | None = None
    """Write a page with the numbers and pictures."""
    out: Path | None = None
    """Write the numbers as JSON; default: evaluation.json in the run folder."""
    device: str = "cpu"


def evaluate(args: Sequence[str]) -> None:
    """Measures a trained system on held-out pairs, a fine-tuned run by its benchmark (as score)."""
    options = tyro.cli(Evaluate, args=args, prog="intarsia evaluate")
    from intarsia.evaluation_runs import evaluate_pairs, evaluate_world
    from intarsia.model import open as open_model

    model = open_model(options.system, weights=options.weights, device=options.device)
    scenes = None
    if options.data.split(":")[0] == "worlds":
        found, scenes = evaluate_world(model, options.count)
    else:
        found = evaluate_pairs(model, options.data, options.split, options.train, options.language)
    out.print(found.tables())
    for name, baseline in found.baselines.items():
        out.print(f"baseline {name}:", baseline.table())
    if options.report:
        from intarsia.viz.report import write_report

        write_report(options.report, model.system, options.weights, found, scenes)
    path = options.out or options.weights / "evaluation.json"
    path.write_text(found.to_json())
    out.print(f"numbers: {path}" + (f"\nreport: {options.report}" if options.report else ""))


# ------------------------------------------------------------------------------------------- predict, show and convert


@dataclass
class Predict:
    """Does a text fit a picture, and which word looks at which region?"""

    system: tyro.conf.Positional[str]
    weights: Path
    """Folder of a run, or weights with --vocab."""
    image: Path
    text: str
    out: Path = Path("match.png")
    """Picture to write: boxes, and what each word looks at."""
    vocab: Path | None = None
    device: str = "cpu"


def predict(args: Sequence[str]) -> None:
    """Raw picture in; match score and word-to-region picture out. `predict film`: words for what films show."""
    if list(args[:1]) == ["film"]:
        predict_film(args[1:])
        return
    options = tyro.cli(Predict, args=args, prog="intarsia predict")
    from intarsia.data.decode import decode_image
    from intarsia.model import open as open_model
    from intarsia.viz.match import draw_match

    model = open_model(options.system, weights=options.weights, vocab=options.vocab, device=options.device)
    pixels = decode_image(options.image)
    found = model.match(pixels, options.text)
    title = f"{options.text}\nmatch probability {found.probability:.3f}"
    draw_match(pixels, found.words, found.boxes, found.attention, title, options.out)
    out.print(f"match {found.score:+.2f} (probability {found.probability:.3f})")
    for word, row in zip(found.words, found.attention, strict=True):
        x1, y1, x2, y2 = found.boxes[row.argmax()]
        out.print(
            f"  {word:<14} region {int(row.argmax())} at {x1:.2f} {y1:.2f} {x2:.2f} {y2:.2f}, {100 * row.max():.0f} % of its attention"
        )
    out.print(f"picture: {options.out}")


@dataclass
class Show:
    """Draws a system from its live code."""

    what: tyro.conf.Positional[Literal["system"]]
    system: tyro.conf.Positional[str]
    out: Path = Path("system.svg")
    """.svg or .png"""


def show(args: Sequence[str]) -> None:
    """Draws a system; `show links` every word of a caption on its region; `show picture` what a text makes a system draw; `show film` clips from sentences."""
    other = {"links": show_links, "picture": show_picture, "film": show_film}.get(args[0] if args else "")
    if other is not None:
        out.print(other(args[1:]), highlight=False)
        return
    options = tyro.cli(Show, args=args, prog="intarsia show")
    from intarsia.systems import find
    from intarsia.viz.packing import draw_system
    from intarsia.worlds import WorldSource
    from intarsia.worlds.film_scenes import FilmScenes

    cls = find(options.system)
    draw_system(cls, FilmScenes() if "clips" in cls.needs else WorldSource(split="test", count=64), options.out)
    out.print(f"figure: {options.out}")


@dataclass
class Convert:
    """Converts weights between the authors' layout and ours; strict both ways."""

    system: tyro.conf.Positional[str]
    source: tyro.conf.Positional[Path]
    target: tyro.conf.Positional[Path]
    size: str = "base"
    to: str = "ours"
    """ours, authors, or another published layout of the system (hf)."""


def convert(args: Sequence[str]) -> None:
    """Converts weights between the authors' layout and ours."""
    options = tyro.cli(Convert, args=args, prog="intarsia convert")
    from intarsia.model import convert as run

    count = run(options.system, options.source, options.target, options.size, options.to)
    out.print(f"{count} tensors: {options.target}")


# ----------------------------------------------------------------------------------------------------------------- main

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": list_,
    "data": data,
    "extract": extract,
    "plan": plan_,
    "pretrain": pretrain,
    "evaluate": or_score(evaluate),
    "finetune": finetune,
    "score": score,
    "submit": submit,
    "compare": compare,
    "twin": twin,
    "predict": predict,
    "index": index,
    "search": search,
    "convert": convert,
    "show": show,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; 0 = done, 2 = something given cannot be used."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        out.print("intarsia: vision-language pre-training, one library. Commands (each has --help):")
        for name, command in COMMANDS.items():
            out.print(f"  [bold]{name:<9}[/bold] {(command.__doc__ or '').splitlines()[0]}")
        return
    if args[0] == "--version":
        from intarsia import __version__

        out.print(__version__)
        return
    try:
        if args[0] not in COMMANDS:
            raise BadInput(f"no command {args[0]!r} (commands: {', '.join(COMMANDS)})")
        COMMANDS[args[0]](args[1:])
    except BadInput as error:
        print(f"intarsia: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
