"""A second benchmark beside the one that a task is tuned on, such as Visual Genome's questions beside VQA's: which of its items take part, and in which epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from intarsia.data.corpora import Early
from intarsia.data.formats.stored import open_pictures
from intarsia.errors import BadInput
from intarsia.system import Finetune
from intarsia.tasks.benchmarks import Annotated, Benchmark, Item, Pictures
from intarsia.tasks.benchmarks import find as find_benchmark
from intarsia.turns_runs import Place, coco_of, picture_id, pictures_of, tested


class Items(Early):
    """A task's training items and those of a second benchmark."""

    def __init__(self, source: Annotated, extra: Annotated, epochs: int) -> None:
        super().__init__(source, extra, extra.annotations.benchmark, epochs)
        self.annotations = source.annotations  # for messages


@dataclass(frozen=True)
class Extra:
    """The items of a second benchmark that take part."""

    items: Annotated
    epochs: int
    """How many of the first epochs; 0 = all."""
    unanswered: int
    """Items left out because no answer of theirs is in the task's list."""
    tested: int
    """Items left out because they show a picture that the task validates or tests with."""
    coco: bool
    """Whether it is known which pictures of Visual Genome are COCO's."""

    @property
    def told(self) -> str:
        """One line: when, how many items take part, and why others do not."""
        line = f"{_when(self.epochs)}: {self.items.told}; left out: {self.unanswered} whose answer is not in the list"
        line += f", {self.tested} on pictures that are validated or tested with"
        return line + ("" if self.coco else " (no image_data.json: which pictures are COCO's is not known)")


def _when(epochs: int) -> str:
    return f"in the first {epochs} epochs" if epochs else "in all epochs"


def offered(finetune: Finetune) -> str:
    """What a paper trains on beside, in words; empty = nothing."""
    if finetune.extra is None:
        return ""
    name, epochs = finetune.extra
    return f"the paper also trains on {find_benchmark(name).title}, {_when(epochs)}; without --extra they are left out"


def open_extra(
    finetune: Finetune,
    benchmark: Benchmark,
    source: Annotated,
    labels: tuple[str, ...],
    places: Sequence[Place],
    epochs: int | None = None,
) -> Extra:
    """The items that a paper trains on beside the task's own, less those that nothing can be learnt from and those that give away what is tested.

    Args:
        finetune: the task.
        benchmark: that it is tuned on.
        source: its items to train on; their pictures are never left out.
        labels: the task's list of answers; empty = it has none.
        places: where the files of the benchmark are, and those of the second.
        epochs: how many of the first epochs; None = as in the paper, 0 = all.

    Raises:
        BadInput: the paper trains on nothing beside, files cannot be used, or nothing is left.
    """
    if finetune.extra is None:
        raise BadInput("--extra: the paper's task trains on nothing beside its own items")
    name, paper = finetune.extra
    other, place = find_benchmark(name), places[1]
    found, coco = other.read(place.data, other.splits[0]), coco_of(places)
    answered = [x for x in found.items if not labels or not {y for y, _ in x.answers}.isdisjoint(labels)]
    own = {picture_id(benchmark.name, x, coco) for item, _ in source.kept for x in item.pictures}
    held = set[str]()
    for split in tested(benchmark, "val"):
        held |= pictures_of(benchmark, places[0].data, split, coco) - own

    def shows(item: Item) -> bool:
        return any(picture_id(name, x, coco) in held for x in item.pictures)

    clean = tuple(x for x in answered if not shows(x))
    if not clean:
        raise BadInput(f"{place.data}: nothing of {name} is left to train on, of {len(found.items)} items")
    items = Annotated(replace(found, items=clean, labels=labels), Pictures(open_pictures(place.regions)))
    left_out = len(found.items) - len(answered), len(answered) - len(clean)
    return Extra(items, paper if epochs is None else epochs, *left_out, bool(coco))
