"""The training loop: forward, backward, step; told, checked and saved at its own pace.

It knows no objective and no system: a recipe's mix names the goal of a step, the system hides for it and gives its losses. Nothing inside a step
waits for the device. A loss that is not finite is noticed on the device at once, which freezes the weights there, and by the host when it next
looks: the run then stops with the weights of before that step saved, and names the samples.
"""

from __future__ import annotations

import json
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from intarsia.batch import Batch, Sample
from intarsia.data.formats.files import write_whole
from intarsia.data.loader import Layout, Lengths, Loaded, Plan, Prepare, load, measure, requests
from intarsia.data.source import Leaving, Source
from intarsia.errors import BadInput, TooLong
from intarsia.recipe import Recipe, to_json
from intarsia.system import System
from intarsia.train import optim
from intarsia.train.log import Log
from intarsia.train.parallel import (
    Sharding,
    World,
    autocast,
    enter_world,
    key_dropout,
    micro_batch,
    reshard,
    spread,
    weightless,
)
from intarsia.train.state import Checkpoints, Position
from intarsia.train.window import Seen, Trouble, Window
from intarsia.weights.files import write_weights


@dataclass(frozen=True)
class Pace:
    """How often a run does what is not training, in optimizer steps."""

    log_every: int = 50
    save_every: int = 1000
    keep: int = 2
    """Checkpoints kept, the newest; 0 = all."""
    valid_every: int = 1000
    valid_batches: int = 4
    """Held-out micro-batches a goal."""
    tensorboard: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    out: Path
    step: int
    """Optimizer steps done."""
    finished: bool
    """False when a signal stopped it; run it again to go on."""
    stopped_by: str = ""
    """Name of that signal."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Samples left out of training, by the kind of error."""


def pretrain(
    system: System,
    source: Source,
    recipe: Recipe[Any],
    out: Path | str,
    *,
    valid: Source | None = None,
    resume: bool = True,
    workers: int = 2,
    device: str = "auto",
    sharding: Sharding = "ddp",
    compile: bool = False,
    on_error: Literal["stop", "skip"] = "stop",
    pace: Pace | None = None,
    lr_factors: Mapping[str, float] | None = None,
    judges: Mapping[str, Callable[[], float]] | None = None,
    name: str = "",
    size: str = "",
) -> Outcome:
    """Trains a system on pairs, as a recipe says, into a run folder; goes on where an earlier run in that folder stopped.

    Under `torchrun` every process calls it; see `train.parallel`. The folder gets `model.safetensors`, `recipe.json`, `vocab.txt`,
    `provenance.json`, `metrics.jsonl`, `tensorboard/` and `checkpoints/`.

    Args:
        system: trained in place.
        source: the pairs.
        recipe: what to do.
        out: the run folder.
        valid: held-out pairs: their loss is told per goal, always on the same batches with the same parts hidden.
        resume: go on from the newest checkpoint; False = the folder must hold none.
        workers: processes that make batches, for each process that trains.
        device: "auto", "cpu", "cuda" or "cuda:1".
        sharding: what several processes do with the weights: copy them ("ddp"), share them out ("fsdp"), or share the experts out and copy the rest
            ("experts").
        compile: compile the repeated layers; pays on CUDA only.
        on_error: what a sample that cannot be read does: stop the run, or be left out and counted. Texts that are too long are always left out.
        pace: how often to log, save and validate.
        lr_factors: factor on the learning rate of parameters whose name starts so, such as a new head's.
        judges: of tasks in turn (`Recipe.turns`), what gives the score on held-out items; the source is then a `train.turns.Tasks`.
        name: the system's name for `recipe.json`; its card's unless given.
        size: the recipe's name for `recipe.json`.

    Raises:
        BadInput: data, folder or disk cannot be used; or a loss is not finite.
    """
    out, pace = Path(out), pace or Pace()
    with ExitStack() as stack:
        world = stack.enter_context(enter_world(device))
        stack.enter_context(torch.random.fork_rng([world.device] if world.device.type == "cuda" else []))
        signals = stack.enter_context(Signals())
        layout = weightless(system)
        data = _Data(source, layout, system, recipe, world, out / "lengths.safetensors", on_error, workers)
        held = (
            _Data(valid, layout, system, recipe, world, out / "lengths-valid.safetensors", on_error, workers)
            if valid is not None
            else None
        )
        module = spread(system, world, sharding, compile)
        optimizer = optim.Optimizers(system, recipe, lr_factors)
        identity = {
            "recipe": json.loads(to_json(recipe)),
            "data": data.lengths.fingerprint,
            "lr_factors": dict(lr_factors or {}),
        }
        checkpoints = Checkpoints(out, world, identity, pace.keep)
        start = _resume(checkpoints, system, optimizer, resume)
        world.on_first(partial(_write_about, out, system, source, recipe, name, size))
        log = stack.enter_context(
            Log(out, recipe.schedule.steps, start.step, speak=world.first, tensorboard=pace.tensorboard)
        )
        for part in filter(None, (data, held)):
            log.say(part.told)
        if start.step:
            log.say(f"goes on at step {start.step} of {recipe.schedule.steps}")
        held_out = held.fixed(pace.valid_batches) if held else {}
        plan = Plan(data.lengths.rows, recipe.batching, recipe.seed, start.starts, data.until)
        gear = Gear(system, module, optimizer, recipe, world, log, checkpoints, pace, plan, held_out)
        if recipe.turns is None:
            run, prepare = Run(gear), data.prepare
        else:
            from intarsia.train import turns  # which is a run itself

            run, prepare = turns.in_turn(gear, source, layout, data.lengths, judges or {})
        outcome = run.go(start, prepare, workers, signals)
        if outcome.finished:
            weights = checkpoints.whole_weights(system)
            about = {"system": system.card.name, "config": to_json(recipe.config)}
            world.on_first(lambda: write_weights(out / "model.safetensors", weights, about))
        else:
            log.say(
                f"stopped by {outcome.stopped_by} at step {outcome.step} of {recipe.schedule.steps}, saved; run again to go on"
            )
        return Outcome(out, outcome.step, outcome.finished, outcome.stopped_by, data.lengths.left_out)


def _resume(checkpoints: Checkpoints, system: nn.Module, optimizer: optim.Optimizers, resume: bool) -> Position:
    latest = checkpoints.latest()
    if latest is None:
        return Position()
    if not resume:
        raise BadInput(
            f"{checkpoints.folder}: holds checkpoints of a run ({latest.name}); go on with it or choose another folder"
        )
    return checkpoints.load(latest, system, optimizer)


def _write_about(out: Path, system: System, source: Source, recipe: Recipe[Any], name: str, size: str) -> None:
    about = {"system": name or system.card.name, "size": size, "recipe": json.loads(to_json(recipe))}
    texts = {"recipe.json": json.dumps(about, indent=2) + "\n"}
    if source.provenance is not None:
        texts["provenance.json"] = to_json(source.provenance)
    try:
        for file, text in texts.items():
            with write_whole(out / file) as temporary:
                temporary.write_text(text, encoding="utf-8")
        with write_whole(out / "vocab.txt") as temporary:
            system.vocab.write(temporary)
    except OSError as error:
        raise BadInput(f"{out}: cannot be written: {error}") from None


class Signals:
    """While it is entered, the first SIGINT or SIGTERM is noted instead of obeyed; a second SIGINT interrupts at once. Main thread only."""

    def __init__(self) -> None:
        self.caught = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = signal.Signals(number).name


def _rows_of(layout: Layout, look: bool, sample: Sample) -> tuple[int, int]:
    """The rows of a sample and the pieces cut from its text; with `look` its pixels are decoded, so that bad ones are found before training."""
    examples = layout.forms(sample)
    for image in (x for example in examples for x in example.images) if look else ():
        image.read()
    return sum(x.rows for x in examples), max(0 if x.text is None else x.text.cut for x in examples)


class _Data:
    """A source with its lengths, measured once by the first process."""

    def __init__(
        self,
        source: Source,
        layout: Layout,
        system: System,
        recipe: Recipe[Any],
        world: World,
        cache: Path,
        on_error: Literal["stop", "skip"],
        workers: int,
    ) -> None:
        spec = f"{type(system).__qualname__} {to_json(recipe.config)} {zlib.crc32(chr(10).join(system.vocab.tokens).encode())}"
        self.until = source.epochs if isinstance(source, Leaving) else None
        spec += "" if self.until is None else f" leaves {zlib.crc32(self.until.tobytes()):08x}"
        leave_out = (TooLong, BadInput) if on_error == "skip" else (TooLong,)
        work = partial(
            measure,
            source,
            partial(_rows_of, layout, on_error == "skip"),
            spec=spec,
            leave_out=leave_out,
            cache=cache,
            workers=workers,
            progress=True,
        )
        self.lengths: Lengths = world.on_first(work)
        self.world, self.recipe, self.name = world, recipe, cache.stem
        self.prepare = Prepare(source, layout, self.lengths.kept, recipe.seed, recipe.batching.block)

    @property
    def told(self) -> str:
        """One line on how many samples take part and which do not."""
        lengths = self.lengths
        line = f"{'held-out' if self.name.endswith('valid') else 'training'} samples: {len(lengths.kept)}, rows a sample: {lengths.rows.sum() / len(lengths.kept):.1f}"
        if lengths.left_out:
            line += f"; left out: {', '.join(f'{count} {kind}' for kind, count in lengths.left_out.items())} (e.g. {lengths.examples[0]})"
        if count := int((lengths.cut > 0).sum()):
            line += f"; texts cut to fit: {count}, of at most {int(lengths.cut.max())} pieces"
        return line

    def fixed(self, count: int) -> dict[str, list[tuple[Batch, float]]]:
        """Per goal this process's share of the first batches, each with its weight; all processes get as many, spare ones with weight 0."""
        batches = Plan(self.lengths.rows, self.recipe.batching, self.recipe.seed).epoch(0)[:count]
        mine = range(self.world.rank, -(-len(batches) // self.world.size) * self.world.size, self.world.size)
        goals = [goal for goal, share in self.recipe.mix.share.items() if share > 0]
        return {
            goal: [(self.prepare(batches[i % len(batches)], goal, 0), float(i < len(batches))) for i in mine]
            for goal in goals
        }


class Gear(NamedTuple):
    """What a run works with."""

    system: System
    module: nn.Module
    """The system as the processes share it."""
    optimizer: optim.Optimizers
    recipe: Recipe[Any]
    world: World
    log: Log
    checkpoints: Checkpoints
    pace: Pace
    plan: Plan
    held_out: dict[str, list[tuple[Batch, float]]]


class Run:
    """One call of `pretrain` once everything is in place."""

    def __init__(self, gear: Gear) -> None:
        self.system, self.module, self.optimizer, self.recipe, self.world, self.log = gear[:6]
        self.checkpoints, self.pace, self.plan, self.held_out = gear[6:]
        self.parameters = self.optimizer.parameters
        self.bad = torch.zeros((), device=self.world.device)
        self.window = Window()
        self.began = time.perf_counter()
        self.epoch = 0

    def go(self, start: Position, prepare: Prepare, workers: int, signals: Signals) -> Outcome:
        """Trains from a position to the end of the schedule, or until a signal."""
        world, pace, steps = self.world, self.pace, self.recipe.schedule.steps
        self.module.train()
        items = self._load(start, prepare, workers)
        self.window = Window()
        done, stop = start.step, False
        try:
            while done < steps and not stop:
                self._step(done, items)
                done += 1
                self.log.step(done)
                stop = world.any(bool(signals.caught))
                save = stop or done == steps or done % pace.save_every == 0
                if save or done % pace.log_every == 0:
                    self._look(done, start)
                began = time.perf_counter()
                if self._due(done):
                    self._validate(done)
                if save:
                    self._save(self._position(done, start))
                self.window.skip(time.perf_counter() - began)
        finally:
            items.close()  # type: ignore[attr-defined]  # a generator: ends the workers
        return Outcome(
            self.checkpoints.folder.parent,
            done,
            done == steps,
            next(filter(None, world.gather(signals.caught)), "") if stop else "",
        )

    def _load(self, start: Position, prepare: Prepare, workers: int) -> Iterator[Loaded]:
        """The micro-batches of this process from a position on."""
        recipe, world, steps = self.recipe, self.world, self.recipe.schedule.steps
        wanted = requests(
            self.plan,
            lambda step: recipe.mix.goal(recipe.seed, step, steps),
            range(start.step, steps),
            number=start.number,
            accumulate=recipe.batching.accumulate,
            rank=world.rank,
            world=world.size,
        )
        return load(wanted, prepare, workers=workers, pin=world.device.type == "cuda")

    def _due(self, done: int) -> bool:
        """Whether held-out samples are looked at after so many steps."""
        return bool(self.held_out) and (done == self.recipe.schedule.steps or done % self.pace.valid_every == 0)

    def _step(self, step: int, items: Iterator[Loaded], updates: int | None = None) -> None:
        """One update of the weights. Args: step, which the schedule counts; items; updates, made before, if not one a step."""
        recipe, device = self.recipe, self.world.device
        accumulate = recipe.batching.accumulate
        share = 1.0 / accumulate if recipe.batching.reduce == "mean" else 1.0
        bad = self.bad
        for micro in range(accumulate):
            self.system.passes = (step if updates is None else updates) * accumulate + micro
            item = next(items).to(device, non_blocking=True)
            key_dropout(device, recipe.seed, item.number)
            with micro_batch(self.module, last=micro == accumulate - 1):
                with autocast(device, recipe.precision):
                    losses, _ = self.module(item.batch)
                    if not losses:
                        raise BadInput(f"step {step}, goal {item.goal}: the system gave no loss")
                    total = self.system.weigh(losses, recipe.mix)
                (total * share).backward()  # type: ignore[no-untyped-call]
            bad = torch.maximum(bad, _not_finite(total.detach()))
            self.epoch = item.epoch
            self.window.micro_batch(Seen(step, item.goal, item.batch.keys, item.batch.rows, losses))
        norm, divide = optim.clip(self.parameters, recipe.optim.max_norm, recipe.optim.clip)
        bad = torch.maximum(bad, _not_finite(norm))
        if self.world.size > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        self.optimizer.step(step, bad, divide, updates)
        self.bad = bad
        self.window.step(step, norm, bad)

    def _position(self, done: int, start: Position) -> Position:
        taken = (done - start.step) * self.recipe.batching.accumulate * self.world.size
        number = start.number + taken
        known = tuple(first for first in self.plan.starts if first <= number)
        return Position(done, number, known, start.seconds + time.perf_counter() - self.began)

    def _look(self, done: int, start: Position) -> None:
        """Fetches the numbers since the last look, tells them, and stops the run if they are not finite."""
        summary = self.window.fetch(self.world)
        if summary.trouble is not None:
            self._give_up(summary.trouble, self._position(summary.trouble.step, start))
        self.log.write(
            "loss",
            done,
            summary.losses,
            epoch=self.epoch,
            lr=self.recipe.optim.lr * self.recipe.schedule.scale(done - 1),
            norm=summary.norm,
            pairs_per_second=summary.pairs_per_second,
            rows_per_second=summary.rows_per_second,
            seconds=self._position(done, start).seconds,
        )

    def _give_up(self, trouble: Trouble, position: Position) -> None:
        self._save(position)
        path = self.checkpoints.folder.parent / "trouble.json"

        def write() -> None:
            with write_whole(path) as temporary:
                temporary.write_text(json.dumps(asdict(trouble), indent=1) + "\n", encoding="utf-8")

        self.world.on_first(write)
        some = ", ".join(trouble.keys[:8]) + (f" and {len(trouble.keys) - 8} more" if len(trouble.keys) > 8 else "")
        raise BadInput(
            f"goal {trouble.goal}: the {trouble.found} at step {trouble.step + 1}, samples {some} (all in {path}); "
            f"the weights before it are saved as step-{position.step:08d}"
        )

    def _save(self, position: Position) -> None:
        reshard(self.module)
        self.checkpoints.save(self.system, self.optimizer, position)

    @torch.no_grad()
    def _validate(self, done: int) -> None:
        self.system.eval()
        sums: dict[str, list[Tensor]] = {}
        for batches in self.held_out.values():
            for batch, weight in batches:
                with autocast(self.world.device, self.recipe.precision):
                    losses, _ = self.system(batch.to(self.world.device))
                for name, loss in losses.items():
                    sums.setdefault(name, []).append(
                        torch.stack([loss.float() * weight, loss.new_tensor(weight, dtype=torch.float32)])
                    )
        self.system.train()
        reshard(self.module)
        told = self.world.gather({name: torch.stack(pairs).sum(0).tolist() for name, pairs in sums.items()})
        names = dict.fromkeys(name for one in told for name in one)
        whole = {name: [sum(one[name][i] for one in told if name in one) for i in (0, 1)] for name in names}
        self.log.write("valid", done, {name: total / count for name, (total, count) in whole.items() if count})


def _not_finite(value: Tensor) -> Tensor:
    """1 where a scalar is not finite, else 0, on its device."""
    return (~torch.isfinite(value)).float()
