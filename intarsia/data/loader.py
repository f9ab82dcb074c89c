"""The order of the data and the way to packed batches.

Unusual here: a micro-batch is a pure function of (data, batching, seed, its number). The number says the epoch, the samples and every random choice
made on them, so any count of workers or ranks sees the same batches, and a run resumes at micro-batch k without reading the k before it.

An epoch is shuffled, cut into windows, each window is sorted by length and cut into batches under a budget of real rows. What does not fill the
last batch of a window goes on into the next window, so that every sample comes exactly once an epoch; an epoch's very last batch may be small.
With `batching.block` blocks of neighbours are shuffled, then the samples of a window, so that few shards are in use at a time.
"""

from __future__ import annotations

import json
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from safetensors.numpy import save_file
from torch.utils.data import DataLoader, Dataset, Sampler

from intarsia.batch import Batch, Example, Movable, Sample
from intarsia.data.corpora import Pool
from intarsia.data.formats.files import write_whole
from intarsia.data.parcel import Parcel, parcel
from intarsia.data.source import Source
from intarsia.errors import BadInput
from intarsia.pack import pack
from intarsia.recipe import Batching

Ints = NDArray[np.int64]


class Layout(Protocol):
    """What the loader needs of a system: to lay samples out and to hide parts of them. It must pickle, and should be light."""

    def forms(self, sample: Sample) -> list[Example]:
        """The documents of a sample with nothing hidden: what it costs."""

    def documents(
        self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """One sample as documents with targets, one in pre-training; they stay together, in their order."""


# -------------------------------------------------------------------------------------------------------------------------------- lengths


@dataclass(frozen=True)
class Lengths:
    """What each sample of a source costs."""

    rows: NDArray[np.int32]
    """(n) rows (words + regions) of each sample; 0 = left out."""
    left_out: dict[str, int] = field(default_factory=dict)
    """How many samples were left out, by the kind of error."""
    examples: tuple[str, ...] = ()
    """The first few of those errors."""
    fingerprint: str = ""
    """Of the data and the layout."""
    cut: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """(n) pieces of its texts that each sample lost to fit."""

    @property
    def kept(self) -> Ints:
        """(k) numbers of the samples that take part."""
        return np.flatnonzero(self.rows)


def measure(
    source: Source,
    length_of: Callable[[Sample], tuple[int, int]],
    *,
    spec: str = "",
    leave_out: tuple[type[Exception], ...] = (),
    cache: Path | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Lengths:
    """The length of every sample; reads each once, or takes them from a cache made from the same data and layout.

    Args:
        source: the data.
        length_of: rows of a sample once laid out, and the pieces it lost to fit. Must pickle if there are workers.
        spec: says how samples are laid out; part of the fingerprint.
        leave_out: errors of reading or laying out that leave a sample out, counted; every other error stops.
        cache: file to keep the lengths in.
        workers: processes that read.
        progress: show a bar on the error stream.

    Raises:
        BadInput: no sample, none that is left, or one that cannot be used.
    """
    if len(source) == 0:
        raise BadInput("the data holds no sample")
    mark = _fingerprint(source, spec + " leaves out " + " ".join(x.__name__ for x in leave_out))
    if cache is not None and (known := _read_lengths(cache, mark, len(source))):
        return known
    chunks = _Chunks(source, length_of, leave_out)
    loader: DataLoader[Any] = DataLoader(
        chunks, batch_size=None, collate_fn=_as_is, num_workers=workers, worker_init_fn=_deaf
    )
    costs, left_out, examples = [], Counter[str](), list[str]()
    for chunk in track(
        loader, "lengths", len(chunks), console=Console(stderr=True), transient=True, disable=not progress
    ):
        lengths, errors, fatal = chunk
        if fatal:
            raise BadInput(fatal)
        costs.append(lengths)
        left_out.update(kind for kind, _ in errors)
        examples.extend(text for _, text in errors[: 5 - len(examples)])
    rows, cut = np.concatenate(costs, 1)
    result = Lengths(rows, dict(left_out), tuple(examples), mark, cut)
    if not result.rows.any():
        raise BadInput(f"all {len(source)} samples are left out; the first: {examples[0]}")
    if cache is not None:
        _write_lengths(cache, result)
    return result


class _Chunks(Dataset[Any]):
    """Lengths of the samples, some at a time, so that workers share the reading."""

    size = 256

    def __init__(
        self, source: Source, length_of: Callable[[Sample], tuple[int, int]], leave_out: tuple[type[Exception], ...]
    ) -> None:
        self.source, self.length_of, self.leave_out = source, length_of, leave_out

    def __len__(self) -> int:
        return -(-len(self.source) // self.size)

    def __getitem__(self, chunk: int) -> tuple[NDArray[np.int32], list[tuple[str, str]], str]:
        numbers = range(chunk * self.size, min((chunk + 1) * self.size, len(self.source)))
        costs = np.zeros((2, len(numbers)), np.int32)
        errors: list[tuple[str, str]] = []
        for place, number in enumerate(numbers):
            name = f"sample {number} of the data"
            try:
                sample = self.source[number]
                name = f"sample {sample.key}"
                costs[:, place] = self.length_of(sample)
            except self.leave_out as error:
                text = str(error) if isinstance(error, BadInput) else f"{name}: {error}"
                errors.append((type(error).__name__, text))
                continue
            except BadInput as error:
                return costs, errors, str(error)
            if costs[0, place] < 1:
                return costs, errors, f"{name}: has neither words nor regions nor pixels"
        return costs, errors, ""


def _fingerprint(source: Source, spec: str) -> str:
    some = [_probe(source, int(i)) for i in np.linspace(0, len(source) - 1, min(16, len(source)))]
    return f"{zlib.crc32(repr((len(source), source.provenance, spec, some)).encode()):08x}-{len(source)}"


def _probe(source: Source, number: int) -> tuple[str, ...]:
    try:
        sample = source[number]
    except BadInput as error:
        return (str(error),)
    return (sample.key, *sample.texts)


def _read_lengths(path: Path, mark: str, count: int) -> Lengths | None:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            rows, cut = file.get_tensor("rows"), file.get_tensor("cut")
    except (OSError, safetensors.SafetensorError):
        return None
    if about.get("fingerprint") != mark or rows.shape != (count,):
        return None
    return Lengths(rows, json.loads(about["left_out"]), tuple(json.loads(about["examples"])), mark, cut)


def _write_lengths(path: Path, lengths: Lengths) -> None:
    about = {
        "fingerprint": lengths.fingerprint,
        "left_out": json.dumps(lengths.left_out),
        "examples": json.dumps(lengths.examples),
    }
    try:
        with write_whole(path) as temporary:
            save_file({"rows": lengths.rows, "cut": lengths.cut}, temporary, metadata=about)
    except (OSError, safetensors.SafetensorError) as error:
        raise BadInput(f"{path}: the lengths of the samples cannot be written: {error}") from None


# ----------------------------------------------------------------------------------------------------------------------------- the plan


class Plan:
    """Which samples make up each micro-batch, for as many epochs as are asked for.

    Args:
        rows: (n) rows of each sample, 0 = takes no part.
        batching: the budget of rows and the window.
        seed: of every shuffle.
        starts: numbers of the first micro-batch of the epochs 0, 1, .. as far as known from an earlier run; saves planning those again.
        until: (n) in how many epochs, from the first, each sample takes part; None = in all.

    Raises:
        BadInput: a sample alone is over the budget.
    """

    def __init__(
        self,
        rows: NDArray[np.int32],
        batching: Batching,
        seed: int,
        starts: tuple[int, ...] = (0,),
        until: Ints | None = None,
    ) -> None:
        if rows.max(initial=0) > batching.rows:
            raise BadInput(
                f"sample {int(rows.argmax())} of the data: {int(rows.max())} rows, more than a batch may have (batching.rows = {batching.rows})"
            )
        if not rows.any():
            raise BadInput("the data holds no sample that takes part")
        self.rows, self.batching, self.seed, self.until = rows, batching, seed, until
        self.starts = list(starts)
        self._epoch = -1
        self._batches: list[Ints] = []

    def epoch(self, epoch: int) -> list[Ints]:
        """The micro-batches of an epoch, in order; each is the numbers of its samples."""
        if epoch != self._epoch:
            self._batches, self._epoch = self._cut(epoch), epoch
            if epoch == len(self.starts) - 1:
                self.starts.append(self.starts[-1] + len(self._batches))
        return self._batches

    def batch(self, number: int) -> tuple[int, Ints]:
        """The epoch and the samples of a micro-batch, counted over all epochs."""
        while number >= self.starts[-1]:
            self.epoch(len(self.starts) - 1)
        epoch = int(np.searchsorted(self.starts, number, side="right")) - 1
        return epoch, self.epoch(epoch)[number - self.starts[epoch]]

    def _order(self, epoch: int) -> Ints:
        here = self.rows if self.until is None else np.where(self.until > epoch, self.rows, 0)
        kept, block, window = np.flatnonzero(here), self.batching.block, self.batching.window
        rng = np.random.default_rng([self.seed, 0xDA7A, epoch])
        if not block:
            return kept[rng.permutation(len(kept))]
        starts = rng.permutation(-(-len(kept) // block)) * block
        order = np.concatenate([kept[start : start + block] for start in starts])
        return np.concatenate([rng.permutation(order[i : i + window]) for i in range(0, len(order), window)])

    def _cut(self, epoch: int) -> list[Ints]:
        order = self._order(epoch)
        batches: list[Ints] = []
        rest = order[:0]
        for window, start in enumerate(range(0, len(order), self.batching.window)):
            here = np.concatenate([rest, order[start : start + self.batching.window]])
            # Every other window is cut from its longest sample down, so what was left over, the longest or the shortest, comes first in the next.
            here = here[np.argsort(self.rows[here] * (-1 if window % 2 else 1), kind="stable")]
            full, rest = _under_budget(here, self.rows[here], self.batching.rows, self.batching.samples)
            shuffled = np.random.default_rng([self.seed, 0xBA7C, epoch, window]).permutation(len(full))
            batches.extend(full[i] for i in shuffled)
        return [*batches, rest]


def _under_budget(samples: Ints, rows: NDArray[np.int32], budget: int, most: int = 0) -> tuple[list[Ints], Ints]:
    """Cuts a run of samples into batches as full as the budget of rows lets them be, of `most` samples at the most (0 = any number).

    The last one, perhaps not full, is given apart (never empty).
    """
    ends = np.cumsum(rows, dtype=np.int64)
    full, start, used = [], 0, 0
    most = most or len(samples)
    while (end := min(int(np.searchsorted(ends, used + budget, side="right")), start + most)) < len(samples):
        full.append(samples[start:end])
        start, used = end, int(ends[end - 1])
    return full, samples[start:]


@dataclass(frozen=True, slots=True)
class Request:
    """One micro-batch, still to be made."""

    number: int
    """Counted over all ranks and epochs."""
    epoch: int
    goal: str
    samples: Ints


def requests(
    plan: Plan,
    goal_of: Callable[[int], str],
    steps: range,
    *,
    number: int = 0,
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Request]:
    """The micro-batches of one rank, in order: it takes every `world`-th, so W ranks read what one rank with W times the accumulation reads.

    Args:
        plan: the order of the data.
        goal_of: goal of an optimizer step, shared by all ranks and micro-batches of it.
        steps: the optimizer steps to go.
        number: the first micro-batch that no rank has taken yet.
        accumulate: micro-batches a step and rank.
        rank: of this process.
        world: ranks in all.
    """
    for i, step in enumerate(steps):
        goal = goal_of(step)
        for micro in range(i * accumulate, (i + 1) * accumulate):
            mine = number + micro * world + rank
            epoch, samples = plan.batch(mine)
            yield Request(mine, epoch, goal, samples)


# --------------------------------------------------------------------------------------------------------------------------- the batches


@dataclass(frozen=True, slots=True)
class Loaded(Movable):
    """A packed micro-batch with its number, epoch and goal."""

    number: int
    epoch: int
    goal: str
    batch: Batch


class Prepare:
    """Reads, hides and packs the samples of a micro-batch; picklable, runs in the loader's workers.

    Randomness is keyed by (seed, epoch, sample key): it does not depend on which samples share the batch, nor on who makes it.

    Args:
        source: the data.
        layout: a system, best without weights.
        kept: (k) numbers of the samples that negatives may be drawn from.
        seed: of all that is hidden and drawn.
        near: negatives come from the block of so many samples that a sample is in; 0 = from all.
    """

    def __init__(self, source: Source, layout: Layout, kept: Ints, seed: int, near: int = 0) -> None:
        self.source, self.layout, self.seed = source, layout, seed
        self.pool = Pool(source, kept, near)

    def __call__(self, samples: Ints, goal: str, epoch: int) -> Batch:
        """The packed batch.

        Raises:
            BadInput: a sample cannot be read or packed (names it).
        """
        documents = [self._documents(int(i), goal, epoch) for i in samples]
        documents.sort(
            key=lambda examples: sum(x.rows for x in examples)
        )  # documents of a size side by side: attention takes them at once
        try:
            return pack([x for examples in documents for x in examples])
        except ValueError as error:
            raise BadInput(f"goal {goal}: {error}") from error

    def _documents(self, number: int, goal: str, epoch: int) -> list[Example]:
        sample = self.source[number]
        rng = np.random.default_rng([self.seed, epoch, zlib.crc32(sample.key.encode())])
        return self.layout.documents(sample, goal, rng, lambda: self.pool.draw(rng, sample, number))


class _Made(Dataset[Any]):
    """Requests to batches; an error of the user's travels as its text, so that it is told in the main process in the same one line."""

    def __init__(self, prepare: Prepare) -> None:
        self.prepare = prepare

    def __getitem__(self, request: Request) -> Loaded | str:
        try:
            return Loaded(
                request.number, request.epoch, request.goal, self.prepare(request.samples, request.goal, request.epoch)
            )
        except BadInput as error:
            return str(error)


class _Order(Sampler[Request]):
    def __init__(self, wanted: Iterator[Request]) -> None:
        self.wanted = wanted

    def __iter__(self) -> Iterator[Request]:
        return self.wanted


def load(
    wanted: Iterator[Request], prepare: Prepare, *, workers: int = 0, pin: bool = False, ahead: int = 4
) -> Iterator[Loaded]:
    """Makes micro-batches in the order they are wanted, whatever the number of workers.

    Args:
        wanted: what to make.
        prepare: how.
        workers: processes that make batches; 0 = this one.
        pin: put them in page-locked memory, for a CUDA device.
        ahead: batches each worker keeps ready.

    Raises:
        BadInput: as `Prepare` does.
    """
    loader: DataLoader[Any] = DataLoader(
        _Made(prepare),
        batch_size=None,
        sampler=_Order(wanted),
        collate_fn=parcel if workers else _as_is,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        pin_memory=pin,
        worker_init_fn=_deaf,
        generator=torch.Generator(),
    )
    for sent in loader:
        made = sent.open() if isinstance(sent, Parcel) else sent
        if isinstance(made, str):
            raise BadInput(made)
        yield made


def _as_is(value: Any) -> Any:
    return value


def _deaf(worker: int) -> None:
    """A worker outlives the signals that ask the run to stop: the main process still finishes its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
