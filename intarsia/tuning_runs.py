"""Fine-tuning runs: begun from weights, trained by the one loop, opened again, measured and sent in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from intarsia.data.formats.files import write_whole
from intarsia.data.formats.stored import open_pictures
from intarsia.data.opening import open_source
from intarsia.data.source import Provenance, Source
from intarsia.errors import BadInput
from intarsia.features.extractor import must_be_alike
from intarsia.features.kmeans import WithWords, read_codebook
from intarsia.model import must_suit, read_ours, read_provenance, read_recipe
from intarsia.recipe import Recipe, from_json
from intarsia.system import Finetune, FineTuned, Given, System
from intarsia.systems import find
from intarsia.tasks.benchmarks import Annotated, Benchmark, Pictures
from intarsia.tasks.benchmarks import find as find_benchmark
from intarsia.tasks.benchmarks.items import at, read_json
from intarsia.tasks.benchmarks.rivals import Rivals, by_group, nearest, read_pool
from intarsia.tasks.retrieval import Ranked, read_schema
from intarsia.text import Vocab
from intarsia.train.loop import Outcome, Pace, pretrain
from intarsia.train.parallel import Sharding
from intarsia.train.start import captions, fresh
from intarsia.tuned import Tuned, recipe_of, reserved, start, takes_labels, with_labels
from intarsia.tuned_files import read_tuned
from intarsia.weights.files import fill, read_weights
from intarsia.weights.pickles import read_pickle

ABOUT = "finetune.json"


@dataclass(frozen=True)
class About:
    """What a run was tuned for; `finetune.json` in its folder."""

    system: str
    task: str
    size: str
    benchmark: str
    data: str
    regions: str
    begun: str
    """Weights it began from; empty = random."""
    labels: tuple[str, ...] = ()
    """The list of answers, in the order of the head's outputs."""
    rivals: str = ""
    """Where hard negatives came from; empty = nowhere."""
    centroids: str = ""
    """Codebook of visual words; empty = none."""
    given: str = ""
    """Regions of annotated boxes that stand behind the others; empty = none."""
    negatives: str = ""
    """How pairs were broken, in the letters of `Ranked`; empty = as in the paper."""
    extra: str = ""
    """A second benchmark that was trained on beside it: its name, folder, regions and epochs; empty = none."""

    @classmethod
    def read(cls, run: Path, benchmark: str = "") -> About:
        """That of a run folder; of one with many tasks, that of a benchmark.

        Raises:
            BadInput: it is no folder of a fine-tuning run, or it has many tasks, none of them on that benchmark.
        """
        found = read_about(run)
        if isinstance(found, About):
            return found
        known = {x.benchmark: x for x in found.tasks}
        if benchmark not in known:
            raise BadInput(f"{run}: tasks in turn; say which with --benchmark ({', '.join(known)})")
        return known[benchmark]


@dataclass(frozen=True)
class AboutAll:
    """The same of a run of many tasks in turn."""

    tasks: tuple[About, ...]


def read_about(run: Path) -> About | AboutAll:
    """What a run was tuned for.

    Raises:
        BadInput: it is no folder of a fine-tuning run.
    """
    path = run / ABOUT
    if not path.is_file():
        raise BadInput(f"{run}: holds no {ABOUT}; is this the folder of a fine-tuning run?")
    kind = AboutAll if "tasks" in (read_json(path) or ()) else About
    try:
        found: About | AboutAll = from_json(kind, path.read_text(encoding="utf-8"), str(path))
    except ValueError as error:
        raise BadInput(str(error)) from None
    return found


def config_of(cls: type[System], about: About, finetune: Finetune, run: Path) -> Any:
    """The config of a run; of one with many tasks, with the numbers of the one at hand."""
    config = read_recipe(cls, about.system, run).config
    return replace(config, **bounded(finetune.config, config)) if isinstance(read_about(run), AboutAll) else config


def pairing(system: str, task: str) -> tuple[type[System], Finetune]:
    """A system and how its paper fine-tuned a task.

    Raises:
        BadInput: the paper did not.
    """
    cls = find(system)
    if task not in cls.finetune:
        goes_on = "; its towers go on with their own loss: `intarsia pretrain --benchmark`" if cls.towers else ""
        raise BadInput(
            f"{system}: its paper has no task {task!r} (it has {', '.join(cls.finetune) or 'none'}){goes_on}"
        )
    return cls, cls.finetune[task]


@lru_cache(maxsize=4)
def _pictures(spec: str, centroids: str) -> Pictures:
    source = open_pictures(spec)
    return Pictures(WithWords(source, read_codebook(Path(centroids))) if centroids else source)


def open_items(
    benchmark: Benchmark,
    data: Path,
    regions: str,
    split: str,
    labels: tuple[str, ...] = (),
    centroids: str = "",
    given: str = "",
    how: Given | None = None,
) -> Annotated:
    """A split of a benchmark with its pictures.

    Args:
        benchmark: which.
        data: folder of its annotation files.
        regions: where its pictures or videos are, see `open_pictures`.
        split: as the benchmark names it.
        labels: the list of answers; empty = the benchmark's own.
        centroids: codebook of the videos' visual words; empty = none.
        given: where the same pictures are with the regions of annotated boxes; empty = nowhere.
        how: how the task puts them behind the others.

    Raises:
        BadInput: files cannot be used; the task has no given regions, or another extractor made them.
    """
    found = benchmark.read(data, split)
    found, pictures = replace(found, labels=labels or found.labels), _pictures(regions, centroids)
    if not given:
        return Annotated(found, pictures)
    if how is None:
        raise BadInput(f"--given {given}: the paper puts no annotated boxes beside detected ones in this task")
    boxes = _pictures(given, "")
    for name in ("extractor", "width", "weights", "settings"):
        one, other = (getattr(x.provenance, name, None) for x in (boxes, pictures))
        if one != other:
            raise BadInput(f"{given}: annotated boxes of {name} {one!r}, the detected ones in {regions} of {other!r}")
    return Annotated(found, pictures, boxes, how.in_whole)


def to_train_on(options: Any) -> tuple[Source, Source | None, str]:
    """What `intarsia pretrain` trains on and what is held out: pairs, or with --benchmark the items of one; and how many of these take part, in words.

    Raises:
        BadInput: a benchmark without regions, or with other held-out pairs.
    """
    if not options.benchmark:
        held = open_source(options.valid, options.valid_split) if options.valid else None
        return open_source(options.data, options.split), held, ""
    if not options.regions or options.valid:
        raise BadInput("--benchmark: takes --regions, and --valid-split in place of --valid")
    benchmark, where = find_benchmark(options.benchmark), (Path(options.data), options.regions)
    items = open_items(benchmark, *where, options.split)
    apart = open_items(benchmark, *where, options.valid_split) if options.valid_split else None
    return items, apart, "\n".join(x.told for x in (items, apart) if x is not None)


def must_read(cls: type[System], source: Annotated) -> None:
    """Checks that a system reads what a benchmark shows.

    Raises:
        BadInput: it reads videos and these are pictures, or the other way round.
    """
    films, reads = source.kept[0][0].span is not None, "clips" in cls.needs
    if films != reads:
        what = ("pictures", "videos")
        raise BadInput(f"{cls.card.name} reads {what[reads]}; {source.annotations.benchmark} shows {what[films]}")


def answer_list(benchmark: Benchmark, finetune: Finetune, data: Path, table: Path | None) -> tuple[str, ...]:
    """The list of answers a task needs: the authors' table, or that of the training files after the answers which are never given; empty where it needs none.

    Raises:
        BadInput: the table is no list, or the benchmark has none.
    """
    if not takes_labels(finetune):
        return ()
    if table is not None:
        if not any(found := read_answers(table)):
            raise BadInput(f"{table}: holds no answer")
        return found
    if benchmark.labels is None:
        raise BadInput(f"{benchmark.name}: has no list of answers; name one with --answers")
    return ("",) * reserved(finetune) + benchmark.labels(data)


def read_answers(path: Path) -> tuple[str, ...]:
    """A table of answers: a text file, a JSON list (of texts, or of LXMERT's objects with "ans"), a JSON object or a pickle of one of these.

    A text file has an answer a line; an object has numbers by answer, in which none is skipped.

    Raises:
        BadInput: it is none of these.
    """
    if path.suffix == ".txt":
        try:
            return tuple(path.read_text(encoding="utf-8").splitlines())
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}") from None
    content = read_pickle(path) if path.suffix == ".pkl" else read_json(path)
    if isinstance(content, list) and content and all(isinstance(x, dict) and "ans" in x for x in content):
        content = [x["ans"] for x in content]
    if isinstance(content, dict) and all(isinstance(x, int) for x in content.values()):
        if sorted(content.values()) != list(range(len(content))):
            raise BadInput(f"{path}: the numbers of its {len(content)} answers are not 0 .. {len(content) - 1}")
        return tuple(sorted(content, key=content.__getitem__))
    if isinstance(content, list) and all(isinstance(x, str) for x in content):
        return tuple(content)
    raise BadInput(f"{path}: neither a list of answers nor answers with their numbers")


def begin(
    system: str,
    task: str,
    size: str,
    weights: Path | None,
    vocab: Path | None,
    source: Annotated,
    labels: tuple[str, ...],
    seed: int = 42,
    tiny: bool = False,
    finetune: Finetune | None = None,
    trunk: Path | None = None,
) -> tuple[Tuned, Recipe[Any]]:
    """A system with the head of a task before its first step, and the paper's recipe.

    Args:
        system: its name.
        task: of its paper.
        size: of the tuning, and of weights in the authors' layout.
        weights: a run folder, or a file as for `intarsia.open`; None = random. Of a run that was tuned itself the head is taken too, where this task has the
            same: hard negatives go on from plain ones. So is that of published fine-tuned weights.
        vocab: vocab.txt; run folders bring their own, without weights one is learnt from the texts.
        source: the items to train on.
        labels: the list of answers.
        seed: of the head, and of all weights where there are none to begin from.
        tiny: without weights, the system's smallest numbers.
        finetune: the task where it is not quite as in the paper.
        trunk: weights of a trunk that reads pixels from here on, where pre-training had features made beforehand.

    Raises:
        BadInput: anything missing, of another system, or that does not fit together.
    """
    cls, paper = pairing(system, task)
    finetune = finetune or paper
    if trunk is not None:
        if weights is None or not finetune.with_trunk:
            reason = f"{system} takes none for {task}" if weights else "needs --weights"
            raise BadInput(f"--trunk {trunk}: {reason}")
        config, fresh_parts = {**finetune.config, **finetune.with_trunk}, (*finetune.fresh, "trunk.")
        finetune = replace(finetune, config=config, fresh=fresh_parts)
    finetune = with_labels(finetune, labels) if labels else finetune
    tuning = finetune.tunings.get(size) or next(iter(finetune.tunings.values()))
    finetune = replace(finetune, config={**finetune.config, **tuning.config})
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if weights is not None and (weights / ABOUT).is_file():
            tuned = _tuned_before(cls, system, task, finetune, weights, source)
        elif found := _published(cls, task, finetune, size, weights, vocab, source):
            tuned = found
        else:
            whole = begin_whole(cls, system, size, weights, vocab, source, seed, tiny, pixels=trunk is not None)
            smaller = replace(finetune, config=bounded(finetune.config, whole.config))
            tuned = start(whole, smaller, task)
    if trunk is not None:
        tuned.system.fill_trunk(trunk)
    return tuned, replace(recipe_of(tuned.config, task, tuning), seed=seed)


def _tuned_before(cls: type[System], name: str, task: str, finetune: Finetune, run: Path, source: Annotated) -> Tuned:
    """What a run tuned for another task of the same head, or for this one, ended with.

    Raises:
        BadInput: its head or its answers are others, or its features.
    """
    about = About.read(run, source.annotations.benchmark)
    config = config_of(cls, about, finetune, run)
    tuned = Tuned(FineTuned(cls(config, Vocab.read(run / "vocab.txt")), finetune), task)
    if tuned.system.reads_features and (run / "provenance.json").is_file():
        must_be_alike(source.annotations.benchmark, source.provenance, read_provenance(run))
    state, mine = read_weights(run / "model.safetensors"), tuned.state_dict()
    if about.labels != getattr(finetune.task, "labels", about.labels) or {k: x.shape for k, x in state.items()} != {
        k: x.shape for k, x in mine.items()
    }:
        raise BadInput(f"{run}: tuned for {about.task}, whose head or answers {task} has not")
    fill(tuned, state, str(run))
    return tuned


def _published(
    cls: type[System],
    task: str,
    finetune: Finetune,
    size: str,
    weights: Path | None,
    vocab: Path | None,
    source: Annotated,
) -> Tuned | None:
    """What others fine-tuned for this task; None where the file is not of such weights."""
    if weights is None or (weights / "recipe.json").is_file() or vocab is None:
        return None
    found = read_tuned(cls, task, finetune, size, read_weights(weights), Vocab.read(vocab), str(weights))
    if found is not None:
        must_suit(cls, source.provenance, weights)
    return found


def negatives_of(spec: str) -> str:
    """How pairs are broken, in the letters of `Ranked`: from letters of ERNIE-ViL's, see `read_schema`, or from its JSON file of a task.

    Raises:
        BadInput: the file holds no such list, or other letters.
    """
    if not spec.endswith(".json"):
        return read_schema(spec)
    tree = read_json(Path(spec))
    tree = tree[0] if isinstance(tree, list) and tree else tree
    schema = at(tree, "negative_schema", spec)
    if not isinstance(schema, list) or not all(isinstance(x, str) for x in schema):
        raise BadInput(f"{spec}: negative_schema {schema!r} is no list of letters")
    return read_schema(",".join(schema))


def rivals_of(
    finetune: Finetune | None, benchmark: Benchmark, source: Annotated, spec: str, out: Path
) -> tuple[Rivals | None, str]:
    """Where a task's hard negatives come from, and the same in words.

    Args:
        finetune: the task.
        benchmark: that says what is like what, where it does.
        source: the items to train on.
        spec: "nearest", a file, or "" = as the benchmark says, else nowhere: then they are drawn like others.
        out: the run's folder, where pictures found are kept.

    Raises:
        BadInput: the task takes none, or the file cannot be used.
    """
    task = None if finetune is None else getattr(finetune.task, "task", finetune.task)
    takes = isinstance(task, Ranked) and any(x.isupper() for y in task.broken_by for x in y)
    if not takes:
        if spec:
            raise BadInput(f"--hard-negatives {spec}: the paper's task takes none")
        return None, ""
    if spec == "nearest":
        return nearest(source, out / "nearest.json"), spec
    if spec:
        return read_pool(source, Path(spec)), spec
    if benchmark.groups is not None:
        return by_group(source, benchmark.groups(source.annotations)), f"{benchmark.title}: as its protocol says"
    return None, ""


def begin_whole(
    cls: type[System],
    system: str,
    size: str,
    weights: Path | None,
    vocab: Path | None,
    source: Annotated,
    seed: int = 42,
    tiny: bool = False,
    pixels: bool = False,
) -> System:
    """A system as pre-training left it, or random; arguments and errors as for `begin`. With `pixels` its features are made anew."""
    if weights is not None:
        return _pretrained(cls, system, size, weights, vocab, source, pixels)
    provenance = source.provenance or Provenance("none", 0)
    words = Vocab.read(vocab) if vocab else captions(source, cls.specials)
    recipe = replace(cls.recipes["tiny" if tiny or size not in cls.recipes else size], seed=seed)
    return fresh(cls, recipe, words, provenance)[0]


def bounded(changes: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Changes of config fields, less what the system's own numbers already bound more narrowly, such as the rows of its position table."""
    most = getattr(config, "max_position_embeddings", None)
    if most is None:
        return dict(changes)
    return {
        name: min(value, most - 4) if name in ("max_pieces", "max_rows") and isinstance(value, int) else value
        for name, value in changes.items()
    }


def _pretrained(
    cls: type[System], name: str, size: str, weights: Path, vocab: Path | None, source: Annotated, pixels: bool
) -> System:
    if (weights / "recipe.json").is_file():
        from intarsia.model import open as open_model

        model = open_model(name, weights=weights)
        if model.system.reads_features and model.provenance is not None and not pixels:
            must_be_alike(source.annotations.benchmark, source.provenance, model.provenance)
        return model.system.cpu()
    if vocab is None:
        raise BadInput(f"{weights}: name the vocabulary with --vocab vocab.txt (only run folders bring their own)")
    words = Vocab.read(vocab)
    must_suit(cls, source.provenance, weights)
    state, config = read_ours(cls, name, weights, size)
    if len(words) != config.vocab_size:
        raise BadInput(f"{vocab}: {len(words)} pieces, the weights {weights} have {config.vocab_size}")
    from intarsia.model import build

    return build(cls, config, words, state, str(weights))


def finetune(
    about: About,
    tuned: System,
    recipe: Recipe[Any],
    source: Annotated,
    out: Path,
    *,
    valid: Annotated | None = None,
    workers: int = 0,
    device: str = "auto",
    pace: Pace | None = None,
    sharding: Sharding = "ddp",
) -> Outcome:
    """Fine-tunes by the one training loop into a run folder; goes on where an earlier run in it stopped.

    Raises:
        BadInput: data, folder or disk cannot be used; the folder is of another run; or a loss is not finite.
    """
    write_about(about, out)
    factors = {}
    if isinstance(tuned, Tuned):
        head = tuned.described.tunings.get(about.size) or next(iter(tuned.described.tunings.values()))
        factors = {"head.": head.head_lr}
    return pretrain(
        tuned,
        source,
        recipe,
        out,
        valid=valid,
        workers=workers,
        device=device,
        sharding=sharding,
        on_error="stop",
        pace=pace,
        lr_factors=factors,
        name=about.system,
        size=about.size,
    )


def write_about(about: About | AboutAll, out: Path) -> None:
    """Says in a run folder what it is for.

    Raises:
        BadInput: it is of another run.
    """
    path = out / ABOUT
    if path.is_file() and read_about(out) != about:
        raise BadInput(f"{path}: of another run; choose another folder")
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(asdict(about), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
