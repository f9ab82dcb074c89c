"""Runs of many tasks in turn: their items, less pictures that some task tests with, begun from weights and trained by the one loop into a folder that each can be scored in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from intarsia.caption_runs import TASK as CAPTION
from intarsia.errors import BadInput
from intarsia.features.extractor import must_be_alike
from intarsia.recipe import Recipe, Turns
from intarsia.system import Finetune, System
from intarsia.systems import find
from intarsia.tasks import benchmarks
from intarsia.tasks.among import TWELVE
from intarsia.tasks.benchmarks import Annotated, Benchmark
from intarsia.tasks.benchmarks.items import Empty, Missing, find_file, read_json
from intarsia.tasks.retrieval import Ranked
from intarsia.train.loop import Outcome, Pace, pretrain
from intarsia.train.turns import Tasks
from intarsia.tuned import Tuned, takes_labels, with_labels
from intarsia.tuned_together import Together, held_out, recipe_in_turn, sharing
from intarsia.tuning_runs import (
    About,
    AboutAll,
    answer_list,
    begin,
    bounded,
    must_read,
    open_items,
    pairing,
    rivals_of,
    write_about,
)

Clean = Literal["test", "val", "none"]
"""Pictures that no task trains on: those that some task tests with; also those it validates with; or nothing is taken out."""
_COCO = re.compile(r"COCO_\w+?_0*(\d+)(_\d+)?")
_FAMILY = dict.fromkeys(("visual7w", "genome-qa", "gqa"), "genome") | dict.fromkeys(
    ("vqa", "guesswhat", "coco", "refcoco", "refcoco+", "refcocog"), "coco"
)
"""Whose numbers the pictures of a benchmark have."""


@dataclass(frozen=True)
class Place:
    """Where the files of a task are."""

    data: Path
    regions: str
    given: str = ""
    answers: Path | None = None


@dataclass(frozen=True)
class Part:
    """One of the tasks."""

    name: str
    finetune: Finetune
    benchmark: Benchmark
    place: Place
    labels: tuple[str, ...]
    train: Annotated
    valid: Annotated | None
    """None = the benchmark has no such items: the task never pauses."""
    cleaned: int
    """Items taken out of training."""

    @property
    def told(self) -> Iterator[str]:
        """A line each on what is trained on and what is held out."""
        yield self.train.told + (f"; {self.cleaned} on pictures of tests taken out" if self.cleaned else "")
        yield self.valid.told if self.valid else f"{self.benchmark.name}: nothing is held out; it never pauses"


class Items(Tasks):
    """The training items of tasks."""

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__({x.name: x.train for x in parts})
        self.annotations = parts[0].train.annotations  # for messages


def names_of(system: str, spec: str) -> tuple[str, ...]:
    """The tasks that are meant: names with commas between, or 12in1.

    Raises:
        BadInput: the system has not all of them, one comes twice, or one writes captions.
    """
    names = TWELVE if spec == "12in1" else tuple(spec.split(","))
    for name in names:
        pairing(system, name)
        if names.count(name) > 1 or name == CAPTION:
            raise BadInput(f"{spec}: {name} {'writes captions' if name == CAPTION else 'comes twice'}")
    return names


def open_tasks(
    system: str, names: Sequence[str], places: Sequence[Place], clean: Clean = "test", valid_items: int = 0
) -> list[Part]:
    """The tasks with their items.

    Args:
        system: which.
        names: of the tasks.
        places: of each.
        clean: which pictures are taken out of the training of all.
        valid_items: held-out items of a task at the most; 0 = all.

    Raises:
        BadInput: files cannot be used, features are of several extractors, or nothing of a task is left.
    """
    cls = find(system)
    found = [benchmarks.benchmark_of(name, cls.finetune, "clips" in cls.needs) for name in names]
    coco = coco_of(places)
    kept_out = set[str]()
    for benchmark, place in zip(found, places, strict=True):
        for split in tested(benchmark, clean):
            kept_out |= pictures_of(benchmark, place.data, split, coco)
    parts = []
    for name, benchmark, place in zip(names, found, places, strict=True):
        part = _open(cls, name, benchmark, place, valid_items)
        train, cleaned = without(part.train, benchmark, kept_out, coco)
        parts.append(replace(part, train=train, cleaned=cleaned))
        first = parts[0].train.provenance
        if first is not None and name != names[0]:
            must_be_alike(benchmark.name, train.provenance, first)
    return parts


def _open(cls: type[System], name: str, benchmark: Benchmark, place: Place, valid_items: int) -> Part:
    finetune = cls.finetune[name]
    if place.answers is not None and not takes_labels(finetune):
        raise BadInput(f"{name}: answers out of no list; {place.answers} is of no use to it")
    labels = answer_list(benchmark, finetune, place.data, place.answers)
    finetune = with_labels(finetune, labels) if labels else finetune
    how, place = finetune.given, place if finetune.given else replace(place, given="")
    where = place.data, place.regions
    train = open_items(benchmark, *where, benchmark.splits[0], labels, "", place.given, how)
    must_read(cls, train)
    valid = None
    if (split := _watched(benchmark)) is not None:
        behind = place.given if how and how.tested else ""
        valid = open_items(benchmark, *where, split, labels, "", behind, how)
        if valid_items:
            some = tuple(item for item, _ in valid.kept[:valid_items])
            valid = Annotated(replace(valid.annotations, items=some), valid.pictures, valid.given, valid.in_whole)
    return Part(name, finetune, benchmark, place, labels, train, valid, 0)


def _watched(benchmark: Benchmark) -> str | None:
    """The split that is held out."""
    return "val" if "val" in benchmark.splits else next(iter(benchmark.splits[1:]), None)


# ------------------------------------------------------------------------------------------------------- the clean split


def tested(benchmark: Benchmark, clean: Clean) -> list[str]:
    """The splits whose pictures are kept out of training."""
    if clean == "none":
        return []
    watched = _watched(benchmark) if clean == "val" else None
    return [x for x in benchmark.splits[1:] if x.startswith("test") or x == watched]


def coco_of(places: Sequence[Place]) -> dict[str, int]:
    """COCO's number of the pictures of Visual Genome that it took from there, by `image_data.json` if one of the folders has it."""
    for place in places:
        try:
            path = find_file(place.data, "image_data.json")
        except Missing:
            continue
        return {str(x["image_id"]): int(x["coco_id"]) for x in read_json(path) if x.get("coco_id")}
    return {}


def picture_id(benchmark: str, name: str, coco: Mapping[str, int]) -> str:
    """What is the same for a picture in all benchmarks: the number in COCO or Visual Genome, else the name without folder and ending."""
    stem = PurePosixPath(name).stem
    if found := _COCO.fullmatch(stem):
        return f"coco {found[1]}"
    number, family = stem.removeprefix("v7w_"), _FAMILY.get(benchmark, "")
    if not number.isdigit() or not family:
        return stem
    known = coco.get(number) if family == "genome" else None
    return f"{family} {int(number)}" if known is None else f"coco {known}"


def pictures_of(benchmark: Benchmark, data: Path, split: str, coco: Mapping[str, int]) -> set[str]:
    """The pictures of a split; none where its files are not there."""
    try:
        items = benchmark.read(data, split).items
    except (Missing, Empty):
        return set()
    return {picture_id(benchmark.name, x, coco) for item in items for x in item.pictures}


def without(
    source: Annotated, benchmark: Benchmark, kept_out: set[str], coco: Mapping[str, int]
) -> tuple[Annotated, int]:
    """The items that show none of some pictures, and how many do.

    Raises:
        BadInput: all do.
    """
    items = source.annotations.items
    clean = tuple(x for x in items if not any(picture_id(benchmark.name, y, coco) in kept_out for y in x.pictures))
    if not clean:
        raise BadInput(f"{benchmark.name}: every item shows a picture that some task tests with")
    if len(clean) == len(items):
        return source, 0
    left = Annotated(replace(source.annotations, items=clean), source.pictures, source.given, source.in_whole)
    return left, len(items) - len(clean)


# ------------------------------------------------------------------------------------------------------------ the run


def begin_tasks(
    system: str,
    parts: Sequence[Part],
    size: str,
    weights: Path | None,
    vocab: Path | None,
    rules: Turns,
    seed: int = 42,
    tokens: bool = True,
) -> tuple[Together, Recipe[Any], dict[str, float]]:
    """All tasks on one body before the first step, their recipe, and the factors on the learning rate of their heads.

    Args:
        system: its name.
        parts: the tasks.
        size: as for `tuning_runs.begin`, and so are weights and vocab.
        weights: what to begin from.
        vocab: of it.
        rules: who has turns.
        seed: of what is drawn.
        tokens: tell the system which task a text is of, where it can be told.

    Raises:
        BadInput: weights do not fit, or the tasks share no heads.
    """
    names = {x.name for x in find(system).Config.__dataclass_fields__.values()}
    more = {"task_specific_tokens": True} if tokens and "task_specific_tokens" in names else {}
    first, items = parts[0], cast(Annotated, Items(parts))
    told = replace(
        first.finetune,
        config={**first.finetune.config, **more},
        fresh=(*first.finetune.fresh, *(("words.task.",) if more else ())),
    )
    tuned, _ = begin(system, first.name, size, weights, vocab, items, first.labels, seed, finetune=told)
    each: dict[str, Tuned] = {first.name: tuned}
    for part in parts[1:]:
        layout = replace(part.finetune, config=bounded(part.finetune.config, tuned.config))
        each[part.name] = sharing(tuned, part.name, layout)
    recipe, factors = recipe_in_turn(each, size, rules)
    return Together(each), replace(recipe, seed=seed), factors


def hard_negatives(together: Together, parts: Sequence[Part], spec: str, out: Path) -> dict[str, str]:
    """Gives the tasks that rank pairs their hard negatives; by task where these come from."""
    found = {}
    for part in parts:
        task = getattr(part.finetune.task, "task", part.finetune.task)
        asked = spec if isinstance(task, Ranked) else ""
        rivals, found[part.name] = rivals_of(part.finetune, part.benchmark, part.train, asked, out / part.name)
        together.parts[part.name].rivals = rivals
    return found


def finetune_together(
    system: str,
    size: str,
    begun: str,
    together: Together,
    recipe: Recipe[Any],
    factors: Mapping[str, float],
    parts: Sequence[Part],
    rivals: Mapping[str, str],
    out: Path,
    *,
    workers: int = 0,
    device: str = "auto",
    pace: Pace | None = None,
) -> Outcome:
    """Trains tasks in turn into a run folder; goes on where an earlier run in it stopped.

    Raises:
        BadInput: data, folder or disk cannot be used; the folder is of another run; or a loss is not finite.
    """
    abouts = tuple(
        About(
            system,
            x.name,
            size,
            x.benchmark.name,
            str(x.place.data.resolve()),
            x.place.regions,
            begun,
            x.labels,
            rivals.get(x.name, ""),
            "",
            x.place.given,
        )
        for x in parts
    )
    write_about(AboutAll(abouts), out)
    judges = {
        x.name: partial(held_out, together.parts[x.name], x.benchmark, x.valid) for x in parts if x.valid is not None
    }
    return pretrain(
        together,
        Items(parts),
        recipe,
        out,
        workers=workers,
        device=device,
        pace=pace,
        lr_factors=factors,
        judges=judges,
        name=system,
        size=size,
    )
