"""What systems reach on the generated twins of their benchmarks: pre-trained at tiny size on generated data once, then tuned for each task of their papers.

    python -m intarsia.studies.twin_results intarsia/systems/twins.json                                   every pair of system and task
    python -m intarsia.studies.twin_results intarsia/systems/twins.json --pairs uniter lxmert:vqa --device cuda --processes 5

Pre-training sees scenes, films or products that no twin holds; its vocabulary also has the words of the twins' training items. Each pair is tuned by the path of
`intarsia finetune`, with numbers of our own: the papers' rates are for systems a hundred times as large. Measured are held-out items, beside chance and what is reached
without the picture: by naive Bayes from the words (of regions by their place), and where words alone could answer by the same system, pre-trained and tuned
alike, that is shown nothing in tuning and scoring. Each pair is written to the file as soon as it is done; pairs that the file has are not made again, and a run
that was killed goes on where it stood. `studies.pairs` puts the file into the table of the page.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from intarsia import caption_runs
from intarsia.batch import Example, Sample
from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput
from intarsia.evaluate.benchmark import Measured, evaluate
from intarsia.evaluate.running import QUIET
from intarsia.features.kmeans import CODEBOOK, WithWords, drawn, fit, read_codebook, write_codebook
from intarsia.recipe import Optim, Recipe, Schedule, to_json
from intarsia.scoring_runs import Asked, measure
from intarsia.studies.family import untagged, without_picture
from intarsia.studies.runs import program
from intarsia.systems import SYSTEMS, find, scores
from intarsia.tasks import benchmarks
from intarsia.tasks.benchmarks import Benchmark, benchmark_of
from intarsia.text import Vocab
from intarsia.train.loop import Pace, pretrain
from intarsia.train.start import fresh, with_words, without_classes
from intarsia.tuned import Tuned
from intarsia.tuning_runs import About, answer_list, begin, finetune, open_items, pairing, rivals_of
from intarsia.worlds import WorldConfig, WorldSource
from intarsia.worlds.film_features import FilmWorld
from intarsia.worlds.twin_films import PROVENANCE
from intarsia.worlds.twins import PRODUCTS, write_twin

SEED = 9
"""Of what is pre-trained on; twins have seed 0."""
FIRST = (
    "uniter",
    "lxmert",
    "vilbert",
    "visualbert",
    "vl_bert",
    "oscar",
    "unicoder_vl",
    "ernie_vil",
    "imagebert",
    "b2t2",
)
"""Systems in this order, then the others."""
HARD = "retrieval_hard"
"""Goes on from what `retrieval` ended with."""


@dataclass(frozen=True)
class Budget:
    """Steps of so many samples or rows at a rate of our own."""

    steps: int
    rows: int
    lr: float
    warmup: int = 50
    samples: int = 0
    """Most samples of a step; 0 = as many as the rows allow."""


@dataclass(frozen=True)
class Options:
    """Pairs to make."""

    file: tyro.conf.Positional[Path]
    """JSON of results, which grows."""
    pairs: tuple[str, ...] = ()
    """system or system:task, each, in order; none = all."""
    out: Path = Path("runs/twins")
    """Twins and runs."""
    train: int = 1500
    """Scenes of a twin's training split."""
    val: int = 300
    """Scenes held out."""
    before: Budget = field(default_factory=lambda: Budget(steps=1000, rows=2400, lr=1e-3))
    """Pre-training."""
    tuning: Budget = field(default_factory=lambda: Budget(steps=250, rows=2400, lr=5e-4, samples=64))
    """Of each task."""
    most: int = 200
    """Captions that retrieval ranks."""
    device: str = "cpu"
    processes: int = 1
    """Systems at once."""
    blind: bool = True
    """Also tune each blind where words alone could answer."""


class Stopped(BadInput):
    """A signal ended a run."""


class BlindTuned(Tuned):
    """A system with a task's head that is shown nothing of the pictures."""

    def forms(self, sample: Sample) -> list[Example]:
        """The documents of a sample, their regions hidden and alike."""
        return [without_picture(x) for x in super().forms(untagged(sample))]

    def documents(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Any) -> list[Example]:
        """The same with targets."""
        return [without_picture(x) for x in super().documents(untagged(sample), goal, rng, lambda: untagged(draw()))]


def tasks_of(system: str) -> list[str]:
    """All tasks of a system's paper that have held-out items, captions and what it does untuned among them."""
    return [x for x in scores(system) if len(benchmark_for(system, x).splits) > 1]


def benchmark_for(system: str, task: str) -> Benchmark:
    """What a pair is trained on."""
    cls = find(system)
    return benchmark_of(task, cls.finetune, "clips" in cls.needs)


def chosen(pairs: Sequence[str]) -> dict[str, list[str]]:
    """Systems, and the tasks of each to make.

    Raises:
        BadInput: there is no such system, or no such task of it.
    """
    found: dict[str, list[str]] = {}
    for pair in pairs or (*FIRST, *(x for x in SYSTEMS if x not in FIRST)):
        system, _, task = pair.partition(":")
        if task and task not in tasks_of(system):
            raise BadInput(f"pair {pair!r}: {system} has {', '.join(tasks_of(system)) or 'no task'}")
        if names := [task] if task else tasks_of(system):
            found.setdefault(system, []).extend(names)
    return found


# ------------------------------------------------------------------------------------------------------------------ twins


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside the context no other process is inside one of the same path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def twin(benchmark: str, pixels: bool, options: Options) -> tuple[Path, str]:
    """The folders of a benchmark's twin and of its regions, written if they are not there: scenes of level 0, for systems that read pixels of level 1."""
    data = options.out / "data" / f"{benchmark}{'-pixels' * pixels}"
    with alone(data):
        if not (data / "whole").is_file():
            write_twin(benchmark, data, options.train, options.val, level=int(pixels), pictures=pixels)
            (data / "whole").touch()
    return data, str(data / "regions")


def kind_of(system: str, task: str) -> str:
    """What a pair is pre-trained on."""
    cls = find(system)
    if "clips" in cls.needs:
        return "films"
    return (
        "products" if benchmark_for(system, task).name in PRODUCTS else "pixels" if "images" in cls.needs else "scenes"
    )


def source_of(kind: str, count: int = 8000) -> Any:
    """Pairs to pre-train on."""
    if kind == "films":
        films = FilmWorld(3000, SEED, "train")
        films.provenance = PROVENANCE
        return films
    if kind == "products":
        from intarsia.worlds.product_source import ProductSource

        return ProductSource("train", count, SEED)
    return WorldSource(WorldConfig(level=int(kind == "pixels")), "train", count, SEED)


def words_of(system: str, kind: str, source: Any, options: Options) -> Vocab:
    """A vocabulary of captions and of all training items that the system's tasks of a kind are tuned on."""
    cls, samples = find(system), [source[i] for i in range(1000)]
    said = [text for x in samples for text in x.texts]
    tags = dict.fromkeys(tag for x in samples for tag in x.tags)
    for name in sorted({benchmark_for(system, t).name for t in tasks_of(system) if kind_of(system, t) == kind}):
        benchmark, (data, regions) = benchmarks.find(name), twin(name, kind == "pixels", options)
        said += [
            text for item, _ in open_items(benchmark, data, regions, benchmark.splits[0]).kept for text in item.texts
        ]
    return Vocab.learn(said, more=tags, specials=cls.specials)


# --------------------------------------------------------------------------------------------------------- pre-training


def begun(system: str, kind: str, options: Options) -> Path:
    """The folder of a system's pre-training run on a kind of data, made if it is not there."""
    folder = options.out / "before" / kind / system
    with alone(folder):
        if not (folder / "model.safetensors").is_file():
            _pretrain(system, kind, folder, options)
    return folder


def _pretrain(system: str, kind: str, folder: Path, options: Options) -> None:
    cls, source, budget = find(system), source_of(kind), options.before
    recipe: Recipe[Any] = cls.recipes["tiny"]
    if "clusters" in cls.Config.__dataclass_fields__:  # it reads visual words
        book = fit(drawn(source, 50_000)[0], 6, 3, SEED, about=to_json(source.provenance))
        write_codebook(folder / CODEBOOK, book)
        source, recipe = WithWords(source, book), with_words(recipe, book)
    vocab = words_of(system, kind, source, options)
    recipe = replace(
        recipe,
        optim=replace(recipe.optim, lr=budget.lr),
        schedule=Schedule(budget.steps, budget.warmup),
        batching=replace(recipe.batching, rows=budget.rows),
    )
    recipe, _ = without_classes(recipe, source.provenance, ())
    whole, recipe = fresh(cls, recipe, vocab, source.provenance)
    if (folder / CODEBOOK).is_file():
        whole.fill_words(read_codebook(folder / CODEBOOK))
    pace = Pace(log_every=100, save_every=500, keep=1, tensorboard=False)
    outcome = pretrain(
        whole, source, recipe, folder, workers=0, device=options.device, pace=pace, name=system, size="tiny"
    )
    _must_finish(outcome)


def _must_finish(outcome: Any) -> None:
    if not outcome.finished:
        raise Stopped(
            f"{outcome.out}: stopped by {outcome.stopped_by} at step {outcome.step}; the same command goes on"
        )


# ---------------------------------------------------------------------------------------------------------------- tuning


def tuned(system: str, task: str, sees: bool, options: Options) -> dict[str, Any]:
    """Tunes and scores a pair: what was measured, as JSON values."""
    kind, benchmark = kind_of(system, task), benchmark_for(system, task)
    weights = begun(system, kind, options)
    book = str(weights / CODEBOOK) if (weights / CODEBOOK).is_file() else ""
    data, regions = twin(benchmark.name, kind == "pixels", options)
    if benchmark.kind == "words":
        asked = Asked(weights, data=data, regions=regions, benchmark=benchmark.name, device=options.device, how=QUIET)
        return _told(benchmark, measure(asked)[0])
    folder = options.out / "tuned" / f"{system}-{task}{'' if sees else '-blind'}"
    pace = Pace(log_every=100, save_every=10**9, keep=1, tensorboard=False)
    writes = task == caption_runs.TASK
    described = None if writes else pairing(system, task)[1]
    labels = () if described is None else answer_list(benchmark, described, data, None)
    source = open_items(benchmark, data, regions, benchmark.splits[0], labels, book)
    if writes:
        whole, recipe = caption_runs.begin(system, "tiny", weights, None, source)
    else:
        plain = options.out / "tuned" / f"{system}-retrieval"
        if task == HARD and (plain / "model.safetensors").is_file():
            weights = plain
        whole, recipe = begin(system, task, "base", weights, None, source, labels)
        whole.rivals, _ = rivals_of(described, benchmark, source, "", folder)
        whole.__class__ = Tuned if sees else BlindTuned
    budget = options.tuning
    recipe = replace(
        recipe,
        optim=Optim(lr=budget.lr),
        schedule=Schedule(budget.steps, budget.warmup),
        batching=replace(recipe.batching, rows=budget.rows, samples=budget.samples, accumulate=1, reduce="mean"),
    )
    about = About(system, task, "base", benchmark.name, str(data.resolve()), regions, str(weights), labels, "", book)
    _must_finish(finetune(about, whole, recipe, source, folder, workers=0, device=options.device, pace=pace))
    if isinstance(whole, BlindTuned):
        held = open_items(benchmark, data, regions, _held(benchmark), labels)
        found, _ = evaluate(whole, benchmark, held, None, QUIET)
        return {"blind_tuned": found.numbers[benchmark.main]}
    most = options.most if benchmark.ranks and benchmark.candidates is None else 0
    asked = Asked(folder, _held(benchmark), blind=not benchmark.ranks, most=most, device=options.device, how=QUIET)
    return _told(benchmark, measure(asked)[0])


def _told(benchmark: Benchmark, measured: Measured) -> dict[str, Any]:
    return {
        "main": benchmark.main,
        "reached": measured.numbers[benchmark.main],
        "blind": measured.blind,
        "chance": measured.chance,
        "items": measured.items,
    }


def _held(benchmark: Benchmark) -> str:
    return "val" if "val" in benchmark.splits else benchmark.splits[1]


def merge(file: Path, pair: str, found: dict[str, Any]) -> None:
    """Adds what was found of a pair to the file; processes may do so at once."""
    with alone(file):
        whole: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        whole[pair] = whole.get(pair, {}) | found
        with write_whole(file) as temporary:
            temporary.write_text(json.dumps(dict(sorted(whole.items())), indent=1) + "\n", encoding="utf-8")


def make(system: str, tasks: Sequence[str], sees: bool, options: Options) -> int:
    """All pairs of a system that the file lacks; gives the number of those that could not be made, and says why.

    Args:
        system: its name.
        tasks: of the system.
        sees: as it is; else tuned blind, where words alone could answer.
        options: of the command.
    """
    torch.set_num_threads(1)
    failed = 0
    for task in tasks:
        pair, start = f"{system} {task}", time.perf_counter()
        done = json.loads(options.file.read_text()).get(pair, {}) if options.file.is_file() else {}
        asks = benchmark_for(system, task).kind == "answers" and kind_of(system, task) != "films"
        if ("reached" if sees else "blind_tuned") in done or not (sees or asks):
            continue
        try:
            found = tuned(system, task, sees, options)
        except Stopped:
            raise
        except Exception:  # the other pairs go on
            failed += 1
            print(f"{pair}: not made", flush=True)
            traceback.print_exc()
            continue
        made = {"steps": options.tuning.steps, "rows": options.tuning.rows, "lr": options.tuning.lr}
        made |= {"before": options.before.steps, "train": options.train}
        merge(options.file, pair, found | made)
        print(f"{pair}: {found} {time.perf_counter() - start:.0f} s", flush=True)
    return failed


def main(args: Sequence[str] | None = None) -> None:
    """Makes the pairs, a system a process: all that see, then the blind ones.

    Raises:
        BadInput: some could not be made.
    """
    options = tyro.cli(Options, args=args, prog="python -m intarsia.studies.twin_results")
    pairs = chosen(options.pairs)
    work = [(x, tasks, sees, options) for sees in (True, False)[: 1 + options.blind] for x, tasks in pairs.items()]
    if options.processes == 1:
        failed = sum(make(*x) for x in work)
    else:
        with multiprocessing.get_context("fork").Pool(options.processes) as pool:  # no device is touched before
            failed = sum(pool.starmap(make, work, chunksize=1))
    if failed:
        raise BadInput(f"{failed} pairs were not made")


if __name__ == "__main__":
    program(main, "twin_results")
