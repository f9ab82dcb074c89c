"""The training loop. It knows a system by its losses only; there are no callbacks, and inside a step the host never waits for the device."""

from __future__ import annotations

import copy
import dataclasses
import json
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from intarsia.batch import Batch, Sample
from intarsia.data.loader import Plan, Prepare, load, measure, requests
from intarsia.data.source import Source
from intarsia.errors import BadInput
from intarsia.recipe import Recipe, to_json
from intarsia.system import System, TooLong
from intarsia.train import state
from intarsia.train.log import Log
from intarsia.train.optim import adamw, clip
from intarsia.train.parallel import Ranks, autocast, join_ranks, micro_step, share
from intarsia.weights.files import write_weights


@dataclass(frozen=True)
class Pace:
    """How often a run logs, validates and saves, in steps."""

    log: int = 25
    valid: int = 250
    save: int = 500
    keep: int = 2
    """Checkpoints kept."""


@dataclass
class _Window:
    """What happened since the last log line; losses stay on the device until then."""

    losses: list[tuple[int, dict[str, Tensor], tuple[str, ...]]] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    pairs: int = 0
    rows: int = 0
    since: float = field(default_factory=time.perf_counter)


def pretrain(
    system: System,
    source: Source,
    recipe: Recipe[Any],
    out: Path,
    *,
    valid: Source | None = None,
    workers: int = 1,
    device: str = "auto",
    parallel: Literal["ddp", "fsdp"] = "ddp",
    size: str = "",
    pace: Pace | None = None,
) -> None:
    """Trains a system; goes on from the latest checkpoint in `out` if there is one, to the same bits as if it had never stopped.

    Writes recipe.json, vocab.txt, provenance.json, metrics.jsonl, tensorboard/, checkpoints/ and at the end model.safetensors.

    Raises:
        BadInput: unusable data, another recipe than that of the run in `out`, a loss that is not finite (names goal, step and samples; the
            weights before it are saved), or a full disk.
    """
    pace = pace or Pace()
    ranks = join_ranks(device)
    layout = twin(system)
    lengths = measure(source, _Rows(layout), spec=f"{system.card.name} {recipe.config}", leave_out=(TooLong,), progress=ranks.first)
    if ranks.first:
        _describe(out, system, source, recipe, size)
        for kind, count in lengths.left_out.items():
            print(f"{count} of {len(source)} samples are left out ({kind}): {lengths.examples[0]}")
    ranks.wait()
    model = share(system, ranks, parallel, recipe.precision)
    optimizer = adamw(system, recipe.optim)
    at = state.restore(out, system, optimizer, ranks) or state.Position(0, 0, ranks.world)
    plan = Plan(lengths.rows, recipe.batching, recipe.seed)
    wanted = requests(
        plan,
        lambda step: recipe.mix.goal(recipe.seed, step, recipe.schedule.steps),
        range(at.step, recipe.schedule.steps),
        number=at.number,
        accumulate=recipe.batching.accumulate,
        rank=ranks.rank,
        world=ranks.world,
    )
    loaded = load(wanted, Prepare(source, layout, lengths.kept, recipe.seed), workers=workers, pin=ranks.device.type == "cuda")
    held_out = [] if valid is None else _held_out(valid, layout, recipe)
    run = _Run(model, system, optimizer, recipe, ranks, out, pace, held_out, time.perf_counter() - at.seconds)
    with Log(out, recipe.schedule.steps, at.step, ranks.first) as log:
        run.go(loaded, at, log)
    if ranks.first:
        folder = out / state.FOLDER / (out / state.FOLDER / state.LATEST).read_text()
        weights = state.load_file(folder / "model.safetensors")
        write_weights(out / "model.safetensors", weights, {"system": system.card.name, "config": to_json(recipe.config)})
    ranks.wait()


@dataclass
class _Run:
    model: torch.nn.Module
    system: System
    optimizer: torch.optim.AdamW
    recipe: Recipe[Any]
    ranks: Ranks
    out: Path
    pace: Pace
    held_out: list[tuple[str, Batch]]
    started: float
    stopped: bool = False

    def go(self, loaded: Any, at: state.Position, log: Log) -> None:
        """All steps that are left."""
        self.model.train()
        steps, window = self.recipe.schedule.steps, _Window()
        before = {x: signal.signal(x, self._stop) for x in (signal.SIGTERM, signal.SIGINT)}
        try:
            for step in range(at.step, steps):
                self._step(loaded, step, window)
                done = step + 1
                log.advance(done)
                last = done == steps or self.stopped
                at = self._position(done)
                if done % self.pace.log == 0 or last:
                    window = self._tell(log, at, window)
                if self.held_out and (done % self.pace.valid == 0 or last):
                    log.write(done, valid=self._validate())
                    window.since = time.perf_counter()
                if done % self.pace.save == 0 or last:
                    state.save(self.out, self.system, self.optimizer, at, self.ranks, self.pace.keep)
                if self.stopped and done < steps:
                    raise SystemExit(f"stopped at step {done}; run the same command again to go on")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _position(self, step: int) -> state.Position:
        micro = step * self.recipe.batching.accumulate * self.ranks.world
        return state.Position(step, micro, self.ranks.world, time.perf_counter() - self.started)

    def _stop(self, number: int, frame: object) -> None:
        self.stopped = True

    def _step(self, loaded: Any, step: int, window: _Window) -> None:
        batching, recipe, device = self.recipe.batching, self.recipe, self.ranks.device
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.optim.lr * recipe.schedule.scale(step)
        for micro in range(batching.accumulate):
            batch = next(loaded).batch.to(device, non_blocking=True)
            with micro_step(self.model, device, recipe.precision, micro == batching.accumulate - 1):
                losses = self.model(batch)
                total = recipe.mix.weigh(losses)
            (total / batching.accumulate if batching.reduce == "mean" else total).backward()
            window.losses.append((step, {k: v.detach() for k, v in losses.items()}, batch.keys))
            window.pairs += len(batch.keys) * self.ranks.world
            window.rows += batch.rows * self.ranks.world
        norm = clip(self.system, recipe.optim.max_norm)
        window.norms.append(norm.detach())
        # A step whose gradient is not finite leaves the weights as they are; the fused optimizer looks at this on the device.
        self.optimizer.found_inf = (~torch.isfinite(norm.detach() if not hasattr(norm, "full_tensor") else norm.full_tensor())).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _tell(self, log: Log, at: state.Position, window: _Window) -> _Window:
        """Fetches what the device holds, once for many steps; a loss that is not finite ends the run."""
        found: dict[str, list[float]] = {}
        for step, losses, keys in window.losses:
            for name, value in losses.items():
                number = float(value)
                if not np.isfinite(number):
                    state.save(self.out, self.system, self.optimizer, at, self.ranks, self.pace.keep)
                    raise BadInput(f"the loss {name} is {number} at step {step + 1}, samples {', '.join(keys[:8])}; the weights before it are saved")
                found.setdefault(name, []).append(number)
        spent = time.perf_counter() - window.since
        log.write(
            at.step,
            loss={name: float(np.mean(x)) for name, x in found.items()},
            lr=self.optimizer.param_groups[0]["lr"],
            norm=float(torch.stack([x.full_tensor() if hasattr(x, "full_tensor") else x for x in window.norms]).mean()),
            pairs_per_second=window.pairs / spent,
            rows_per_second=window.rows / spent,
            seconds=at.seconds,
        )
        return _Window()

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Held-out losses, on the same hidden words and regions every time."""
        self.model.eval()
        found: dict[str, list[float]] = {}
        for _, batch in self.held_out:
            with autocast(self.ranks.device, self.recipe.precision):
                losses = self.system(batch.to(self.ranks.device))[0]
            for name, value in losses.items():
                found.setdefault(name, []).append(float(value))
        self.model.train()
        return {name: float(np.mean(x)) for name, x in found.items()}


class _Rows:
    """Rows of a sample once laid out; what the plan needs to know."""

    def __init__(self, layout: System) -> None:
        self.layout = layout

    def __call__(self, sample: Sample) -> int:
        return self.layout.lay_out(sample).rows


def twin(system: System) -> System:
    """The same system without weights: what the loader's workers hold."""
    with torch.device("meta"):
        return type(system)(copy.deepcopy(system.config), system.vocab)


def _held_out(valid: Source, layout: System, recipe: Recipe[Any], batches: int = 4) -> list[tuple[str, Batch]]:
    lengths = measure(valid, _Rows(layout), leave_out=(TooLong,))
    plan = Plan(lengths.rows, dataclasses.replace(recipe.batching, accumulate=1), recipe.seed)
    prepare = Prepare(valid, layout, lengths.kept, recipe.seed)
    return [(goal, prepare(samples, goal, 0)) for goal in recipe.mix.share for samples in plan.epoch(0)[:batches]]


def _describe(out: Path, system: System, source: Source, recipe: Recipe[Any], size: str) -> None:
    """Writes what the run is, before it runs; a run of another recipe in the folder is an error."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"system": system.card.name, "size": size, "recipe": json.loads(to_json(recipe))}, indent=2) + "\n"
    path = out / "recipe.json"
    if path.is_file() and path.read_text() != text and (out / state.FOLDER / state.LATEST).is_file():
        raise BadInput(f"{path}: the run in this folder has another recipe; choose another --out, or remove the folder")
    path.write_text(text)
    system.vocab.write(out / "vocab.txt")
    if source.provenance is not None:
        (out / "provenance.json").write_text(to_json(source.provenance))
