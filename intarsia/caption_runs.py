"""Captioners: begun from a pre-trained system, tuned by cross entropy and then self-critically, scored by what they write, sent in.

A captioner is a whole system, so its run folder opens as one (`intarsia.open`); nothing but `finetune.json` is added.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intarsia import decode, naming
from intarsia.batch import Batch, Encoded, Example, Sample
from intarsia.errors import BadInput
from intarsia.model import build, read_recipe
from intarsia.recipe import Recipe, to_json
from intarsia.system import Captioning, System
from intarsia.systems import find
from intarsia.tasks.benchmarks import Annotated, objects
from intarsia.tasks.benchmarks.captions import picture_of
from intarsia.tasks.benchmarks.items import spellings
from intarsia.tasks.metrics import captions, ptb
from intarsia.text import Vocab
from intarsia.train.loop import Outcome, Pace
from intarsia.train.parallel import Sharding
from intarsia.tuning_runs import About, begin_whole, bounded, finetune
from intarsia.weights.files import fill, read_weights, write_weights

TASK = "caption"
END = "<eos>"


def captioning(system: str) -> tuple[type[System], Captioning]:
    """A system and how its paper writes captions.

    Raises:
        BadInput: it does not.
    """
    cls = find(system)
    if cls.captioning is None:
        raise BadInput(f"{system}: its paper has no task {TASK!r} (it has {', '.join(cls.finetune) or 'none'})")
    return cls, cls.captioning


def begin(
    system: str,
    size: str,
    weights: Path | None,
    vocab: Path | None,
    source: Annotated,
    seed: int = 42,
    critical: bool = False,
) -> tuple[System, Recipe[Any]]:
    """A captioner before its first step, and the paper's recipe.

    Args:
        system: its name.
        size: of the recipe.
        weights: a run folder, or a file as for `intarsia.open`; None = random.
        vocab: vocab.txt; run folders bring their own.
        source: captions to train on.
        seed: of what is drawn.
        critical: the recipe is that of self-critical training.

    Raises:
        BadInput: anything missing, of another system, or that does not fit together; self-critical training of random weights.
    """
    cls, how = captioning(system)
    if critical and not how.critical:
        raise BadInput(f"--critical: the paper of {system} has no self-critical training")
    if critical and weights is None:
        raise BadInput("--critical: begins from a captioner; name its run with --weights")
    tuned_size = size if size in how.recipes else next(iter(how.recipes))
    recipe, plain = cls.recipes[how.recipes[tuned_size]], cls.recipes[tuned_size].config
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        whole = begin_whole(cls, system, size, weights, vocab, source, seed)
        changes = {x.name: getattr(recipe.config, x.name) for x in fields(plain)}
        changes = {name: value for name, value in changes.items() if value != getattr(plain, name)}
        config = replace(whole.config, **bounded(changes, whole.config))
        state = whole.state_dict()
        begun = cls(config, whole.vocab)
        for ours, other in how.copies.items():
            if ours in begun.state_dict() and ours not in state:
                state[ours] = state[other].clone()
        fill(begun, state, str(weights or system), how.fresh)
    recipe = replace(recipe, config=config, seed=seed)
    if critical:
        tuning = how.critical.get(size) or next(iter(how.critical.values()))
        batching = replace(tuning.batching, samples=tuning.samples)
        recipe = replace(
            recipe,
            optim=tuning.optim,
            schedule=tuning.schedule,
            batching=batching,
            mix=replace(recipe.mix, scale={"reward": 0.0}),
            note=tuning.note,
        )
    return begun, recipe


# -------------------------------------------------------------------------------------------------------------- self-critical


class Critical(System):
    """A captioner whose loss is self-critical: the loop trains it as it does any other system. The gradient is that of `decode.self_critical`.

    Args:
        system: the captioner.
        how: of its paper.
        source: an item for each document of a batch, found by its key.
        reward: of captions by item keys.
        seed: of what is drawn; each batch of items draws by its own keys.
    """

    needs = ()
    heads = ()
    recipes = {}  # noqa: RUF012
    finetune = {}  # noqa: RUF012

    def __init__(self, system: System, how: Captioning, source: Annotated, reward: Reward, seed: int) -> None:
        super().__init__(system.config, system.vocab)
        self.system, self.how, self.reward, self.seed = system, how, reward, seed
        self.config, self.vocab = system.config, system.vocab
        self.source: Annotated | None = source
        self.places = {item.key: i for i, (item, _) in enumerate(source.kept)}

    @property
    def card(self) -> Any:  # type: ignore[override]
        """The system's."""
        return self.system.card

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__) | {"source": None, "reward": None, "places": {}}

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """The system's document of a caption."""
        return self.system.lay_out(sample, task, form)

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """The system's; here it only says how many rows an item takes."""
        return self.system.hide(sample, goal, rng, draw)

    def encode(self, batch: Batch) -> Encoded:
        """The system's streams."""
        return self.system.encode(batch)

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Those of `forward`; `encoded` does not count."""
        return self._losses(batch)

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Encoded | None]:  # type: ignore[override]
        """The loss of the items of a batch, and the mean reward of what is said greedily."""
        return self._losses(batch), None

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        assert self.source is not None, "workers lay out, they do not train"
        samples = [self.source[self.places[key]] for key in batch.keys]
        generator = torch.Generator().manual_seed(self.seed + zlib.crc32("\n".join(batch.keys).encode()))

        def reward(said: Sequence[str], numbers: Sequence[int]) -> Sequence[float]:
            return self.reward(said, [samples[i].key for i in numbers])

        loss, worth = decode.self_critical(
            self.system, samples, reward, generator, self.how.length, self.how.times, self.how.over
        )
        return {"critical": loss, "reward": loss.new_tensor(worth)}


Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Captions and the keys of their items -> what each is worth."""


def cider_reward(source: Annotated, vocab: Vocab | None = None) -> Reward:
    """CIDEr-D against the training captions, whose document frequencies are fixed.

    The end of a caption is a word of it, as in the authors' code: one that stops early is not as good as the beginning of a whole one.

    Args:
        source: training captions.
        vocab: given = in pieces, against the one caption of the item (VLP); None = in words, against all captions of its picture (Oscar).
    """

    def words(text: str) -> str:
        said = ptb.tokenise(text) if vocab is None else " ".join(map(str, vocab.encode(text).ids.tolist()))
        return f"{said} {END}"

    references, frequencies = dict[str, list[str]](), defaultdict[str, list[str]](list)
    for item, _ in source.kept:
        key = item.key if vocab is not None else picture_of(item.key)
        references.setdefault(key, []).append(words(item.texts[0]))
        frequencies[picture_of(item.key)].append(references[key][-1])
    known = captions.Frequencies.of(frequencies.values())

    def reward(said: Sequence[str], keys: Sequence[str]) -> Sequence[float]:
        mine = [references[x if vocab is not None else picture_of(x)] for x in keys]
        return captions.cider_d([words(x) for x in said], mine, known).each

    return reward


def first_of_each(source: Annotated) -> Annotated:
    """An item a picture."""
    first: dict[str, Any] = {}
    for item, _ in source.kept:
        first.setdefault(picture_of(item.key), item)
    return Annotated(replace(source.annotations, items=tuple(first.values())), source.pictures)


def critical(
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
    """Self-critical training as any other fine-tuning, into a run folder that ends with the captioner alone.

    Raises:
        BadInput: data, folder or disk cannot be used; the folder is of another run; held-out items are given, which this loss has no use for.
    """
    if valid is not None:
        raise BadInput("--valid-split: self-critical training is watched by its reward, not by held-out items")
    _, how = captioning(about.system)
    reward = cider_reward(source, tuned.vocab if how.paired else None)
    items = source if how.paired else first_of_each(source)
    module = Critical(tuned, how, items, reward, recipe.seed)
    outcome = finetune(about, module, recipe, items, out, workers=workers, device=device, pace=pace, sharding=sharding)
    file = out / "model.safetensors"
    if outcome.finished and file.is_file():
        state = {name.removeprefix("system."): x for name, x in read_weights(file).items()}
        write_weights(file, state, {"system": tuned.card.name, "config": to_json(recipe.config)})
    return outcome


# ------------------------------------------------------------------------------------------------------------------ scores


def open_run(run: Path, about: About) -> System:
    """A captioner from its run folder.

    Raises:
        BadInput: it is no whole run.
    """
    cls, _ = captioning(about.system)
    file = run / "model.safetensors"
    recipe = read_recipe(cls, about.system, run)
    return build(cls, recipe.config, Vocab.read(run / "vocab.txt"), read_weights(file), str(file))


@dataclass(frozen=True)
class Named:
    """Objects that captions are to name, for NoCaps."""

    objects: Path
    """Detections by picture, see `objects.read_objects`."""
    hierarchy: Path | None = None
    """Open Images' tree of classes; None = overlapping boxes all stay."""
    forms: Path | None = None
    """Forms of words; None = each stands for itself alone."""

    def machines(self, vocab: Vocab) -> Callable[[str], naming.Machine]:
        """What a caption of a picture must pass through, by the picture's name; of one without detections nothing."""
        boxes = objects.read_objects(self.objects)
        heights = None if self.hierarchy is None else objects.read_heights(self.hierarchy)
        forms = {} if self.forms is None else objects.read_forms(self.forms)

        def machine(name: str) -> naming.Machine:
            mine = next((boxes[x] for x in spellings(name) if x in boxes), [])
            things = objects.places_of(objects.to_name(mine, heights), vocab, forms)
            return naming.Machine.of(things, len(vocab))

        return machine


def write(
    system: System, source: Annotated, beams: int = 0, pictures: int = 16, named: Named | None = None
) -> dict[str, str]:
    """A caption of each picture, as the system's paper searches for it.

    Args:
        system: a captioner in evaluation mode.
        source: items of a benchmark whose captions are written.
        beams: 0 = as in the paper, 1 = greedy.
        pictures: written about at a time; bounds the memory. A quarter of it where objects are to be named.
        named: objects to be named: the search is `naming.constrained`.
    """
    how = type(system).captioning
    assert how is not None, "writes captions"
    items, found = first_of_each(source), dict[str, str]()
    machine = None if named is None else named.machines(system.vocab)
    size = pictures if machine is None else max(1, pictures // 4)
    for start in range(0, len(items), size):
        samples = [items[i] for i in range(start, min(start + size, len(items)))]
        if machine is None:
            texts = decode.caption(system, samples, how.length, beams or how.beams, how.search)
        else:
            logits = decode.cached_next_piece(system, samples)
            wanted = [machine(x.pictures[0].name) for x in samples]
            said = naming.constrained(logits, wanted, how.length, system.vocab.sep, beams or how.beams)
            texts = [system.vocab.decode(x.ids) for x in said]
        found |= {picture_of(x.key): text for x, text in zip(samples, texts, strict=True)}
    return found
