"""The arms of `studies.granularity` on drawn pictures, each read once, at size `small`, on a GPU.

    python -m intarsia.studies.drawn --page docs/studies/volume.md

Scenes are drawn once, by the loader's workers, and kept nowhere: every arm learns in a process of its own, all on one device, from the same batches in the
same order, which this process hands out. Every arm leaves one JSON file, see `studies.runs`.
"""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.multiprocessing  # queues share the memory of tensors
import tyro

from intarsia.batch import Batch, each_tensor
from intarsia.data.loader import Plan, Prepare, load, requests
from intarsia.data.parcel import Parcel, parcel
from intarsia.errors import BadInput
from intarsia.parts.aligned import Aligned
from intarsia.recipe import Recipe
from intarsia.studies.family import write_section
from intarsia.studies.granularity import CLAIMS, MEASURES, PAIRS, Run, Watched, begin, name_of
from intarsia.studies.runs import KEPT, Results, known, once, program
from intarsia.studies.tables import report
from intarsia.studies.tying import measure
from intarsia.systems.inlay import EVERY
from intarsia.train import optim
from intarsia.train.parallel import autocast, enter_world, weightless
from intarsia.worlds import holds

LOOKS = 8
"""How often held-out pairs are looked at."""
AHEAD = 2
"""Batches that may wait for an arm."""


@dataclass
class Drawn:
    """The arms to train beside each other, and the page of all that are there."""

    out: Path = KEPT / "drawn"
    arms: tuple[str, ...] = ("sentence", "token", "both", "blind")
    seeds: tuple[int, ...] = (101,)
    pairs: int = 1_000_448
    """Each is read once."""
    batch: int = 1024
    lr: float = 5e-4
    size: Literal["tiny", "small"] = "small"
    precision: Literal["fp32", "bf16"] = "bf16"
    scenes: int = 200
    """Of each test split."""
    fused: int = 50
    """Candidates of the retrieval by every read-out, see `tying.measure`."""
    workers: int = 8
    """Processes that draw; each arm has one more."""
    device: str = "auto"
    seconds: float = float("inf")
    """No batch is handed out after so long even if pairs are left, which the files then say."""
    page: Path | None = None
    make: bool = True
    """False = only the page, from the runs that are there."""

    def runs(self, seed: int) -> list[Run]:
        """One an arm."""
        steps = self.pairs // self.batch
        return [Run(x, self.pairs, seed, steps, self.batch, self.lr, 1, size=self.size) for x in self.arms]


class Learner:
    """An arm in training."""

    def __init__(self, run: Run, precision: Literal["fp32", "bf16"], device: torch.device) -> None:
        self.run, (system, recipe) = run, begin(run)
        self.system: Watched = system.to(device)
        self.recipe: Recipe[Any] = dataclasses.replace(recipe, precision=precision)
        self.optimizer = optim.Optimizers(system, self.recipe)
        self.device = device
        self.watched: list[dict[str, float]] = []
        self.bad = torch.zeros((), device=device)

    def shown(self, batch: Batch) -> Batch:
        """What the arm sees of a batch, on its device."""
        batch = batch.to(self.device)
        return unseen(batch) if self.run.arm == "blind" else batch

    def step(self, step: int, batch: Batch) -> None:
        """One step; from one whose loss is not finite on, weights stay."""
        with autocast(self.device, self.recipe.precision):
            losses, _ = self.system(self.shown(batch))
            total = self.system.weigh(losses, self.recipe.mix)
        total.backward()  # type: ignore[no-untyped-call]
        norm, divide = optim.clip(self.optimizer.parameters, self.recipe.optim.max_norm, self.recipe.optim.clip)
        self.bad = torch.maximum(self.bad, (~torch.isfinite(norm + total.detach())).float())
        self.optimizer.step(step, self.bad, divide)

    @torch.no_grad()
    def look(self, done: int, batch: Batch) -> None:
        """Losses and AUC of links on held-out pairs.

        Raises:
            BadInput: a loss of a step so far was not finite.
        """
        if self.bad:
            raise BadInput(f"a loss of {self.run.arm} is not finite, within {done} steps")
        self.system.eval()
        with autocast(self.device, self.recipe.precision):
            losses, _ = self.system(self.shown(batch))
        self.system.train()
        self.watched.append({"step": done, **{name: float(x) for name, x in losses.items()}})


def unseen(batch: Batch) -> Batch:
    """The batch with all regions hidden and alike, as `family.without_picture` leaves them."""
    regions = batch.regions
    assert regions is not None
    whole = regions.boxes.new_tensor([0, 0, 1, 1]).expand_as(regions.boxes)
    hidden = torch.ones_like(regions.masked)
    return dataclasses.replace(
        batch, regions=dataclasses.replace(regions, feats=torch.zeros_like(regions.feats), boxes=whole, masked=hidden)
    )


def batches(options: Drawn, seed: int) -> Iterator[Batch]:
    """All batches of a seed, in order, or as many as the seconds allow.

    Raises:
        BadInput: a sample cannot be drawn.
    """
    run = options.runs(seed)[0]
    system, recipe = begin(run)
    batching = dataclasses.replace(recipe.batching, rows=options.batch)
    plan = Plan(np.ones(options.pairs, np.int32), batching, seed)
    prepare = Prepare(run.source("train", options.pairs), weightless(system), np.arange(options.pairs), seed)
    wanted = requests(plan, lambda step: recipe.mix.goal(seed, step, run.steps), range(run.steps))
    items = load(wanted, prepare, workers=options.workers)
    began = time.perf_counter()
    while time.perf_counter() - began < options.seconds and (item := next(items, None)):
        yield item.batch
    items.close()  # type: ignore[attr-defined]  # a generator: ends the workers


def learn(run: Run, options: Drawn, device: torch.device, given: Iterator[Batch]) -> tuple[Watched, dict[str, Any]]:
    """Trains an arm on the batches that it is given.

    Returns:
        The system, and what the arm's file says of training.

    Raises:
        BadInput: a loss is not finite.
    """
    learner = Learner(run, options.precision, device)
    held = Prepare(run.source("validation", run.batch), weightless(learner.system), np.arange(run.batch), run.seed)
    looked, every = held(np.arange(run.batch), EVERY, 0).to(device), max(1, run.steps // LOOKS)
    began, waited, done = time.perf_counter(), 0.0, 0
    while True:
        asked = time.perf_counter()
        batch = next(given, None)
        waited += time.perf_counter() - asked
        if batch is not None:
            learner.step(done, batch)
            done += 1
        if done and (batch is None or done % every == 0) and [x["step"] for x in learner.watched[-1:]] != [done]:
            learner.look(done, looked)
            spent = time.perf_counter() - began
            told = ", ".join(f"{name} {x:.3f}" for name, x in learner.watched[-1].items() if name != "step")
            print(f"{run.arm}: {done} of {run.steps} steps, {spent:.0f} s, {waited:.0f} waiting; {told}", flush=True)
        if batch is None:
            about = {"device": name_of(device), "precision": options.precision, "seconds": time.perf_counter() - began}
            about |= {"seconds of waiting for pictures": waited, "steps done": done, "watched": learner.watched}
            return learner.system, {"run": dataclasses.asdict(run), **about}


def measured(system: Watched, about: dict[str, Any], options: Drawn) -> dict[str, Any]:
    """The whole file of an arm, measured on the device that the system is on."""
    began, run = time.perf_counter(), Run(**about["run"])
    count = sum(x.numel() for x in system.parameters() if x.requires_grad)
    system = here(system)
    found = {
        split: measure(system, run.source(split, 1200), options.scenes, most)  # type: ignore[arg-type]
        for split, most in (("test", options.fused), ("held_out", min(10, options.fused)))
    }
    return {**about, "parameters": count, "seconds of measuring": time.perf_counter() - began, **found}


def here(system: Watched) -> Watched:
    """A system on the CPU, with all that it gives, but that encodes on the device that it comes from where no gradient is asked for."""
    device, there = system.log_scale.device, system.eval()
    system = copy.deepcopy(system).cpu()
    own = system.encode

    def encode(batch: Batch) -> Aligned:
        if torch.is_grad_enabled():
            return own(batch)
        found: Aligned = each_tensor(there.encode(batch.to(device)), torch.Tensor.cpu)
        return found

    system.encode = encode  # type: ignore[method-assign]
    return system


# ------------------------------------------------------------------------------------------------------------- processes


class Arm:
    """The process of an arm, seen from the one that hands out batches."""

    def __init__(self, run: Run, options: Drawn) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.run, self.batches = run, context.Queue(AHEAD)
        self.answer, there = context.Pipe(False)
        self.process = context.Process(target=_follow, args=(run, options, self.batches, there), daemon=True)
        self.process.start()
        there.close()

    def give(self, sent: Parcel | None) -> None:
        """Hands out a batch, or None: there are no more; waits until there is room.

        Raises:
            BadInput: the arm's process has ended.
        """
        while True:
            try:
                return self.batches.put(sent, timeout=1.0)
            except queue.Full:
                if not self.process.is_alive():
                    raise BadInput(self._why()) from None

    def end(self) -> None:
        """Waits for the arm's file.

        Raises:
            BadInput: there will be none.
        """
        self.process.join()
        if why := self._why():
            raise BadInput(why)

    def _why(self) -> str:
        try:
            return str(self.answer.recv())
        except EOFError:
            return f"arm {self.run.arm}: its process ended with exit code {self.process.exitcode}"


def _follow(run: Run, options: Drawn, given: Any, answer: Connection) -> None:
    """What the process of an arm does; it answers with what went wrong, or with nothing."""
    try:
        with enter_world(options.device) as world:
            once(options.out / run.file, lambda: measured(*learn(run, options, world.device, _given(given)), options))
        answer.send("")
    except BadInput as error:
        answer.send(str(error))


def _given(given: Any) -> Iterator[Batch]:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while True:
        try:
            sent: Parcel | None = given.get(timeout=5.0)
        except queue.Empty:
            if parent.is_alive():
                continue
            raise BadInput("the process that hands out batches has ended") from None
        except (EOFError, OSError):
            raise BadInput("the process that hands out batches has ended") from None
        if sent is None:
            return
        yield sent.open()


def perform(options: Drawn, seed: int) -> None:
    """Makes the runs of a seed that are not there, all arms on the same batches.

    Raises:
        BadInput: no such device, a sample cannot be drawn, a loss is not finite, or the process of an arm ended before its time.
    """
    arms = [Arm(x, options) for x in options.runs(seed) if not (options.out / x.file).is_file()]
    try:
        for batch in batches(options, seed) if arms else ():
            sent = parcel(batch)
            for arm in arms:
                arm.give(sent)
        for arm in arms:
            arm.give(None)
        for arm in arms:
            arm.end()
    finally:
        for arm in arms:
            arm.process.kill()


def looks(results: Results) -> str:
    """What held-out pairs said while training."""
    lines = ["| pairs read | arm | link AUC | contrast, pair | contrast, token | hidden words |", "|---" * 6 + "|"]
    for arm, runs in results.items():
        for found in runs.values():
            for x in found["watched"]:
                cells = " | ".join(f"{x[name]:.3f}" for name in ("link auc", "a_sent", "a_tok", "mlm"))
                lines.append(f"| {x['step'] * found['run']['batch']} | {arm} | {cells} |")
    return "\n".join(lines) + "\n"


def by_truth(run: Run, scenes: int) -> str:
    """What ranks as well as knowing which captions are true of which pictures, and choosing blindly among those, gets of the random pairs, as a sentence."""
    told = []
    for split, name in (("test", "test"), ("held_out", "held-out")):
        source = run.source(split, 1200)  # type: ignore[arg-type]
        true = np.array([[holds(source.caption(i), source.scene(j)) for j in range(scenes)] for i in range(scenes)])
        told.append(
            f"{(1 / true.sum(1)).mean():.2f} (t2i) and {(1 / true.sum(0)).mean():.2f} (i2t) of the {name} pairs"
        )
    return f"Captions may be true of several of the {scenes} pictures: R@1 of a reader that knows just what is true of what is {' and '.join(told)}."


def tell(results: Results) -> str:
    """What was run and what it says, as Markdown."""
    every = [found for runs in results.values() for found in runs.values()]
    one, run, done = every[0], every[0]["run"], every[0]["steps done"]
    seeds = sorted({found["run"]["seed"] for found in every})
    waits = sorted(round(found["seconds of waiting for pictures"]) for found in every)
    waited = f"{waits[0]} to {waits[-1]}" if waits[0] < waits[-1] else f"{waits[0]}"
    about = f"{one['device']}, {one['precision']}: {done * run['batch']:,} pairs of drawn pictures, each read once, "
    about += f"{done} of {run['steps']} steps of {run['batch']}, size {run['size']} ({one['parameters'] / 1e6:.1f} M parameters), "
    about += f"rate {run['lr']:g} for all arms; seeds {', '.join(map(str, seeds))}. "
    about += f"All arms together {max(x['seconds'] for x in every):.0f} s, {waited} of them waiting for pictures to be drawn."
    truth = by_truth(Run(**run), one["test"]["scenes"])
    chance = f"contrast of {run['batch']} pairs, {np.log(run['batch']):.2f} for one that knows nothing"
    watched = f"Held-out pairs while training ({chance}):\n\n{looks(results)}"
    return f"{about}\n\n{truth}\n\n{report(results, CLAIMS, MEASURES, PAIRS, watched)}"


def main(args: Sequence[str] | None = None) -> None:
    """Makes the runs and prints the tables."""
    options = tyro.cli(Drawn, args=args, prog="python -m intarsia.studies.drawn")
    for seed in options.seeds if options.make else ():
        perform(options, seed)
    fields = dataclasses.asdict(options.runs(0)[0])
    same = {x: fields[x] for x in ("pairs", "steps", "batch", "lr", "level", "size")}
    told = tell(known(options.out, {x: {} for x in options.arms}, dataclasses.asdict(Run()), **same))
    print(told)
    if options.page:
        write_section(options.page, f"drawn-{options.pairs}", told, "drawn")


if __name__ == "__main__":
    program(main, "drawn")
