"""Fine-tuning runs: begun from weights, trained by the one loop, opened again, measured and sent in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from intarsia.data.formats.files import write_whole
from intarsia.data.formats.stored import open_pictures
from intarsia.data.source import Provenance, must_be_alike
from intarsia.errors import BadInput
from intarsia.evaluate.benchmark import Measured, evaluate
from intarsia.evaluate.rerank import BASELINES, First, Prefilter, by_baseline, by_towers
from intarsia.evaluate.running import FP32, Inference, plain
from intarsia.model import read_ours, read_provenance, read_recipe
from intarsia.recipe import Recipe, from_json
from intarsia.system import Finetune, FineTuned, System
from intarsia.systems import find
from intarsia.tasks import benchmarks
from intarsia.tasks.benchmarks import Annotated, Benchmark, Pictures
from intarsia.tasks.benchmarks.items import at, read_json
from intarsia.text import Vocab
from intarsia.train.loop import Outcome, Pace, pretrain
from intarsia.train.start import captions, fresh
from intarsia.tuned import Tuned, recipe_of, reserved, start, takes_labels, with_labels
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

    @classmethod
    def read(cls, run: Path) -> About:
        """That of a run folder.

        Raises:
            BadInput: it is no folder of a fine-tuning run.
        """
        path = run / ABOUT
        if not path.is_file():
            raise BadInput(f"{run}: holds no {ABOUT}; is this the folder of a fine-tuning run?")
        found: About = from_json(cls, path.read_text(), str(path))
        return found


def pairing(system: str, task: str) -> tuple[type[System], Finetune]:
    """A system and how its paper fine-tuned a task.

    Raises:
        BadInput: the paper did not.
    """
    cls = find(system)
    if task not in cls.finetune:
        raise BadInput(f"{system}: its paper has no task {task!r} (it has {', '.join(cls.finetune) or 'none'})")
    return cls, cls.finetune[task]


@lru_cache(maxsize=2)
def _pictures(spec: str) -> Pictures:
    return Pictures(open_pictures(spec))


def open_items(benchmark: Benchmark, data: Path, regions: str, split: str, labels: tuple[str, ...] = ()) -> Annotated:
    """A split of a benchmark with its pictures.

    Args:
        benchmark: which.
        data: folder of its annotation files.
        regions: where its pictures are, see `open_pictures`.
        split: as the benchmark names it.
        labels: the list of answers; empty = the benchmark's own.
    """
    found = benchmark.read(data, split)
    return Annotated(replace(found, labels=labels or found.labels), _pictures(regions))


def answer_list(benchmark: Benchmark, finetune: Finetune, data: Path, table: Path | None) -> tuple[str, ...]:
    """The list of answers a task needs: the authors' table, or that of the training files after the answers which are never given; empty where it needs none.

    Raises:
        BadInput: the table is no list, or the benchmark has none.
    """
    if not takes_labels(finetune):
        return ()
    if table is not None:
        return read_answers(table)
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
) -> tuple[Tuned, Recipe[Any]]:
    """A system with the head of a task before its first step, and the paper's recipe.

    Args:
        system: its name.
        task: of its paper.
        size: of the tuning, and of weights in the authors' layout.
        weights: a run folder, or a file as for `intarsia.open`; None = random.
        vocab: vocab.txt; run folders bring their own, without weights one is learnt from the texts.
        source: the items to train on.
        labels: the list of answers.
        seed: of the head, and of all weights where there are none to begin from.
        tiny: without weights, the system's smallest numbers.

    Raises:
        BadInput: anything missing, of another system, or that does not fit together.
    """
    cls, finetune = pairing(system, task)
    finetune = with_labels(finetune, labels) if labels else finetune
    tuning = finetune.tunings.get(size) or next(iter(finetune.tunings.values()))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        whole = begin_whole(cls, system, size, weights, vocab, source, seed, tiny)
        smaller = replace(finetune, config=bounded(finetune.config, whole.config))
        tuned = start(whole, smaller, task)
    return tuned, replace(recipe_of(tuned.config, task, tuning), seed=seed)


def begin_whole(
    cls: type[System],
    system: str,
    size: str,
    weights: Path | None,
    vocab: Path | None,
    source: Annotated,
    seed: int = 42,
    tiny: bool = False,
) -> System:
    """A system as pre-training left it, or random; arguments and errors as for `begin`."""
    if weights is not None:
        return _pretrained(cls, system, size, weights, vocab, source)
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
    cls: type[System], name: str, size: str, weights: Path, vocab: Path | None, source: Annotated
) -> System:
    if (weights / "recipe.json").is_file():
        from intarsia.model import open as open_model

        model = open_model(name, weights=weights)
        if model.system.reads_features and model.provenance is not None:
            must_be_alike(source.annotations.benchmark, source.provenance, model.provenance)
        return model.system.cpu()
    if vocab is None:
        raise BadInput(f"{weights}: name the vocabulary with --vocab vocab.txt (only run folders bring their own)")
    words = Vocab.read(vocab)
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
    sharding: Literal["ddp", "fsdp"] = "ddp",
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


def write_about(about: About, out: Path) -> None:
    """Says in a run folder what it is for.

    Raises:
        BadInput: it is of another run.
    """
    path = out / ABOUT
    if path.is_file() and About.read(out) != about:
        raise BadInput(f"{path}: of another run; choose another folder")
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(asdict(about), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def open_run(run: Path, device: str = "cpu") -> tuple[Tuned, About]:
    """A tuned system from its run folder, in evaluation mode.

    Raises:
        BadInput: it is no whole run.
    """
    about = About.read(run)
    cls, found = pairing(about.system, about.task)
    found = with_labels(found, about.labels) if about.labels else found
    recipe = read_recipe(cls, about.system, run)
    system = cls(recipe.config, Vocab.read(run / "vocab.txt"))
    tuned = Tuned(FineTuned(system, found), about.task)
    fill(tuned, read_weights(run / "model.safetensors"), str(run / "model.safetensors"))
    return tuned.to(device).eval(), about


def measure(
    run: Path,
    data: Path | None = None,
    regions: str | None = None,
    split: str = "",
    blind: bool = False,
    most: int = 0,
    device: str = "cpu",
    how: Inference = FP32,
    prefilter: str = "",
    top: int = 20,
) -> tuple[Measured, Mapping[str, Any], Annotated]:
    """The official numbers of a run.

    Args:
        run: its folder.
        data: folder of the annotation files; None = those it was trained on.
        regions: where the pictures are; None = as in training.
        split: of the benchmark; "" = the second one, which is for validation.
        blind: fit the baseline without pictures on the training items.
        most: pairs that are ranked at the most; 0 = all.
        device: where it runs.
        how: batch size, precision, bar.
        prefilter: of pairs, what ranks them before: "ridge", "nearest" (fitted on the training items), or the run folder of a system of two towers.
        top: candidates of each query that are then read.

    Returns:
        The numbers, the predictions by item, and the items.
    """
    tuned, about = open_run(run, device)
    benchmark = benchmarks.find(about.benchmark)
    where, shown = data or Path(about.data), regions or about.regions
    part = split or benchmark.splits[min(1, len(benchmark.splits) - 1)]
    source = open_items(benchmark, where, shown, part, about.labels)
    if tuned.system.reads_features and (run / "provenance.json").is_file():
        must_be_alike(shown, source.provenance, read_provenance(run))
    train = open_items(benchmark, where, shown, benchmark.splits[0], about.labels) if blind else None
    first = None
    if prefilter:
        if not benchmark.ranks:
            raise BadInput(f"--prefilter: {benchmark.name} does not rank pairs")
        if prefilter in BASELINES:
            seen = open_items(benchmark, where, shown, benchmark.splits[0])
            first = Prefilter(by_baseline(prefilter, [seen[i] for i in range(len(seen))]), top)
        else:
            first = Prefilter(_towers(Path(prefilter), source, device, how), top)
    found, predictions = evaluate(tuned, benchmark, source, train, most, how, first)
    return found, predictions, source


def _towers(run: Path, source: Annotated, device: str, how: Inference) -> First:
    """The first ranking of a run of two towers.

    Raises:
        BadInput: it is none, or its features are others.
    """
    from intarsia.model import open as open_model

    about = read_json(run / "recipe.json")
    name = str(at(about, "system", f"{run / 'recipe.json'}"))
    if not find(name).towers:
        raise BadInput(f"--prefilter {run}: {name} has no two towers: it ranks nothing beforehand")
    model = open_model(name, weights=run, device=device)
    if "regions" in model.system.needs and model.provenance is not None:
        must_be_alike(source.annotations.benchmark, source.provenance, model.provenance)
    return by_towers(model.system, how)


def submit(run: Path, data: Path, regions: str, split: str, out: Path, device: str = "cpu") -> int:
    """Writes the file of the benchmark's server; gives the number of items in it.

    Raises:
        BadInput: the benchmark has no server, or an item has no prediction.
    """
    about = About.read(run)
    benchmark = benchmarks.find(about.benchmark)
    if benchmark.submit is None:
        raise BadInput(f"{about.benchmark}: has no server to send predictions to")
    found, predictions, source = measure(run, data, regions, split, device=device)
    if found.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        raise BadInput(f"{out}: the server wants every item of {split}: {reasons}")
    with write_whole(out) as temporary:
        benchmark.submit(temporary, source.annotations, predictions)
    return len(predictions)


def told(found: Measured) -> dict[str, Any]:
    """Measured numbers as JSON values."""
    return plain(found)  # type: ignore[no-any-return]
