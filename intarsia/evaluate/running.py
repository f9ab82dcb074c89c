"""Running a system over many documents: batches of like length within a budget of rows, in inference mode, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from intarsia.batch import Array, Batch, Example, Film, Picture, Sample
from intarsia.errors import BadInput, TooLong
from intarsia.pack import pack
from intarsia.parts.linear import laid_out
from intarsia.system import System
from intarsia.text import Pieces


@dataclass(frozen=True, slots=True)
class Inference:
    """How a system is run."""

    rows: int = 0
    """Budget of rows (words + regions) of a batch; a document longer than that gets a batch of its own. 0 = 1,600 on a CPU, whose caches hold no more, else 4,096."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 = matrix products in bfloat16."""
    progress: bool = True
    """Show a bar on the terminal (on standard error)."""


FP32 = Inference()
QUIET = Inference(progress=False)


def cut(lengths: Array, rows: int) -> Iterator[Array]:
    """Document numbers in batches of like length, shortest first, each of at most `rows` rows or a single document."""
    order = np.argsort(lengths, kind="stable")
    begin, spent = 0, 0
    for place, rows_of_next in enumerate(np.asarray(lengths)[order].tolist()):
        if place > begin and spent + rows_of_next > rows:
            yield order[begin:place]
            begin, spent = place, 0
        spent += rows_of_next
    if begin < len(order):
        yield order[begin:]


def run(
    system: System,
    lengths: Array,
    build: Callable[[int], Example],
    read: Callable[[Array, Batch], None],
    what: str,
    how: Inference = FP32,
) -> None:
    """Packs documents and hands each batch on, all in inference mode and with dropout off; the system's mode is put back.

    Args:
        system: the system; batches go to the device of its parameters.
        lengths: (D) rows of each document.
        build: the document of a number below D, asked for once.
        read: gets the numbers of the batch's documents and the batch, and encodes it.
        what: said beside the bar.
        how: batch size, precision, bar.
    """
    device = next(system.parameters()).device
    run_numbers(system, lengths, lambda x: read(x, pack([build(int(i)) for i in x]).to(device)), what, how)


def run_numbers(
    system: System, lengths: Array, read: Callable[[Array], None], what: str, how: Inference = FP32
) -> None:
    """As `run`, for a reader that makes its batch itself from the numbers of the documents."""
    device = next(system.parameters()).device
    training = system.training
    system.eval()
    try:
        half = torch.autocast(device.type, torch.bfloat16, enabled=how.precision == "bf16")
        with _bar(what, len(lengths), how.progress) as advance, torch.inference_mode(), half, laid_out(system):
            for numbers in cut(lengths, how.rows or (1600 if device.type == "cpu" else 4096)):
                read(numbers)
                advance(len(numbers))
    finally:
        system.train(training)


@contextmanager
def _bar(what: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


# ------------------------------------------------------------------------------------------------------------ documents


def fitting(system: System, samples: Iterable[Sample]) -> tuple[list[int], list[Example]]:
    """Numbers and lay-outs of the samples whose text fits the system; the others are for the caller to count."""
    numbers, examples = [], []
    for i, sample in enumerate(samples):
        try:
            examples.append(system.lay_out(sample))
        except TooLong:
            continue
        numbers.append(i)
    return numbers, examples


def piece_rows(example: Example, pieces: Pieces) -> Array:
    """(P) text rows of the pieces of a sample's first text; for systems that lay that text out first and in one piece.

    Raises:
        ValueError: the rows hold other pieces.
    """
    assert example.text is not None, f"{example.key}: no text"
    rows = np.flatnonzero(example.text.words >= 0)[: len(pieces)]
    if not np.array_equal(example.text.ids[rows], pieces.ids):
        raise ValueError(f"sample {example.key}: the first text is not the first thing the system laid out")
    return rows


def pieces_in(pieces: Pieces, start: int, end: int, key: str) -> Array:
    """Numbers of the pieces that touch characters start .. end of their text.

    Raises:
        BadInput: there is none.
    """
    found = np.flatnonzero((pieces.spans[:, 0] < end) & (pieces.spans[:, 1] > start))
    if not len(found):
        raise BadInput(f"sample {key}: no piece of the text lies in characters {start} .. {end}")
    return found


def hide_rows(example: Example, rows: Array, mask: int) -> Example:
    """The example with [MASK] in some of its text rows."""
    assert example.text is not None, f"{example.key}: no text"
    ids = example.text.ids.copy()
    ids[rows] = mask
    return replace(example, text=replace(example.text, ids=ids))


def keep_regions(sample: Sample, kept: Array) -> Sample:
    """The sample with only some regions of its first picture, and no gold links; tags, which would tell of the others, only if all are kept.

    Where none is kept its pixels are black.
    """
    picture = sample.pictures[0]
    rows = {
        name: value[kept]
        for name in ("features", "boxes", "scores", "probs", "labels", "attributes", "attribute_scores")
        if (value := getattr(picture, name)) is not None
    }
    tags = picture.tags if len(kept) == len(picture.boxes) else ()
    cut = replace(picture, **rows, tags=tags)
    if not len(kept) and (picture.pixels or picture.path):
        size = (picture.height or 224, picture.width or 224, 3)
        cut = replace(cut, path="", pixels=partial(np.zeros, size, np.uint8))
    return replace(sample, pictures=(cut, *sample.pictures[1:]), links=())


def first_picture(sample: Sample) -> Picture:
    """The picture of a sample.

    Raises:
        BadInput: there is none.
    """
    if not sample.pictures:
        raise BadInput(f"sample {sample.key}: has no picture")
    return sample.pictures[0]


Shown = Picture | Film
"""What a text is about."""


def shown_of(sample: Sample) -> Shown:
    """The picture of a sample, or its video.

    Raises:
        BadInput: there is neither.
    """
    return first_picture(sample) if sample.film is None else sample.film


def name_of(shown: Shown) -> str:
    """A picture's name; of a passage of a video, which passage."""
    if isinstance(shown, Film):
        return f"{shown.name}, {len(shown.seconds)} clips from {shown.seconds[:1]}"
    return shown.name


# -------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many."""

    right: int
    of: int

    @property
    def share(self) -> float:
        """Right / of; NaN of none."""
        return self.right / self.of if self.of else float("nan")

    @classmethod
    def count(cls, hits: Sequence[bool] | Array) -> Share:
        """The share of True."""
        return cls(int(np.sum(hits)), len(hits))

    def __str__(self) -> str:
        return percent(self.share)


def percent(share: float | None) -> str:
    """A share for people: ".5" is "50.0 %", nothing is "-"."""
    return "-" if share is None or share != share else f"{100 * share:.1f} %"


def plain(value: Any) -> Any:
    """Results as JSON values; a Share also says its quotient, NaN becomes null."""
    if isinstance(value, Share):
        return {"right": value.right, "of": value.of, "share": plain(value.share)}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.metadata.get("json", True)}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
