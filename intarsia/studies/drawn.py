"""The arms of `studies.granularity` on drawn pictures, each read once, at size `small`, on a GPU.

    python -m intarsia.studies.drawn --page docs/studies/volume.md

Drawing costs more than training, so scenes are drawn once, by the loader's workers, and kept nowhere: all arms of a seed learn in one process, each batch by
one arm after the other. Every arm leaves one JSON file, see `studies.runs`.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from intarsia.batch import Batch
from intarsia.data.loader import Plan, Prepare, load, requests
from intarsia.errors import BadInput
from intarsia.recipe import Recipe
from intarsia.studies.family import write_section
from intarsia.studies.granularity import CLAIMS, COMPARED, MEASURES, PAIRS, Run, Watched, begin, name_of
from intarsia.studies.runs import KEPT, Results, gather, once
from intarsia.studies.tables import checks, columns, differences
from intarsia.studies.tying import measure
from intarsia.systems.inlay import EVERY
from intarsia.train import optim
from intarsia.train.parallel import autocast, enter_world, weightless

LOOKS = 8
"""How often held-out pairs are looked at."""


@dataclass
class Drawn:
    """The arms to train beside each other, and the page of all that are there."""

    out: Path = KEPT / "drawn"
    arms: tuple[str, ...] = ("sentence", "token", "both", "blind")
    seeds: tuple[int, ...] = (101,)
    pairs: int = 172_032
    """Each is read once."""
    batch: int = 384
    lr: float = 5e-4
    size: Literal["tiny", "small"] = "small"
    precision: Literal["fp32", "bf16"] = "bf16"
    scenes: int = 200
    """Of each test split."""
    workers: int = 2
    """Processes that draw."""
    device: str = "auto"
    seconds: float = float("inf")
    """Training ends after so long even if pairs are left, which the files then say."""
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
        """What the arm sees of a batch."""
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
        """Losses and AUC of links on held-out pairs."""
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


def train(options: Drawn, seed: int) -> list[tuple[Watched, dict[str, Any]]]:
    """Trains all arms on the same batches in the same order.

    Returns:
        Of each arm the system, on the CPU, and what its file says of training.

    Raises:
        BadInput: no such device, or a loss is not finite.
    """
    with enter_world(options.device) as world:
        learners = [Learner(x, options.precision, world.device) for x in options.runs(seed)]
        first, steps = learners[0], learners[0].run.steps
        source, held = first.run.source("train", options.pairs), first.run.source("validation", options.batch)
        plan = Plan(
            np.ones(options.pairs, np.int32), dataclasses.replace(first.recipe.batching, rows=options.batch), seed
        )
        layout = weightless(first.system)
        prepare = Prepare(source, layout, np.arange(options.pairs), seed)
        looked = Prepare(held, layout, np.arange(options.batch), seed)(np.arange(options.batch), EVERY, 0)
        looked = looked.to(world.device)
        wanted = requests(plan, lambda step: first.recipe.mix.goal(seed, step, steps), range(steps))
        items = load(wanted, prepare, workers=options.workers, pin=world.device.type == "cuda")
        began, waited, done = time.perf_counter(), 0.0, 0
        while done < steps and time.perf_counter() - began < options.seconds:
            asked = time.perf_counter()
            batch = next(items).batch.to(world.device, non_blocking=True)
            waited += time.perf_counter() - asked
            for one in learners:
                one.step(done, batch)
            done += 1
            if done % max(1, steps // LOOKS) == 0 or done == steps:
                for one in learners:
                    one.look(done, looked)
                spent = time.perf_counter() - began
                print(f"{done} of {steps} steps, {spent:.0f} s, {waited:.0f} of them waiting for pictures", flush=True)
        items.close()  # type: ignore[attr-defined]  # a generator: ends the workers
        if bad := [x.run.arm for x in learners if x.bad]:
            raise BadInput(f"a loss of {', '.join(bad)} is not finite")
        about = {
            "device": name_of(world.device),
            "precision": options.precision,
            "seconds": time.perf_counter() - began,
        }
        about |= {"seconds of waiting for pictures": waited, "steps done": done}
        return [(x.system.cpu(), {"run": dataclasses.asdict(x.run), **about, "watched": x.watched}) for x in learners]


def measured(one: tuple[Watched, dict[str, Any]], scenes: int, fused: int = 50) -> dict[str, Any]:
    """The whole file of an arm. Args: scenes, fused: see `granularity.perform`."""
    torch.set_num_threads(1)
    system, about = one
    run = Run(**about["run"])
    count = sum(x.numel() for x in system.parameters() if x.requires_grad)
    test = measure(system, run.source("test", 1200), scenes, fused)
    held_out = measure(system, run.source("held_out", 1200), scenes, min(10, fused))
    return {**about, "parameters": count, "test": test, "held_out": held_out}


def perform(options: Drawn, seed: int) -> None:
    """Makes the runs of a seed, all arms or none."""
    runs = options.runs(seed)
    if all((options.out / x.file).is_file() for x in runs):
        return
    trained = train(options, seed)
    with ProcessPoolExecutor(len(trained), multiprocessing.get_context("spawn")) as pool:
        for run, found in zip(runs, pool.map(partial(measured, scenes=options.scenes), trained), strict=True):
            once(options.out / run.file, partial(dict, found))


def looks(results: Results) -> str:
    """What held-out pairs said while training."""
    lines = ["| pairs read | arm | link AUC | contrast, pair | contrast, token | hidden words |", "|---" * 6 + "|"]
    for arm, runs in results.items():
        for found in runs.values():
            for x in found["watched"]:
                cells = " | ".join(f"{x[name]:.3f}" for name in ("link auc", "a_sent", "a_tok", "mlm"))
                lines.append(f"| {x['step'] * found['run']['batch']} | {arm} | {cells} |")
    return "\n".join(lines) + "\n"


def tell(results: Results) -> str:
    """What was run and what it says, as Markdown."""
    one = next(iter(next(iter(results.values())).values()))
    run, done = one["run"], one["steps done"]
    seeds = sorted({seed for runs in results.values() for seed in runs})
    read = done * run["batch"]
    about = f"{one['device']}, {one['precision']}: {read:,} pairs of drawn pictures, each read once, {done} of {run['steps']} steps of {run['batch']}, size {run['size']} "
    about += f"({one['parameters'] / 1e6:.1f} M parameters), rate {run['lr']:g} for all arms; seeds {', '.join(map(str, seeds))}. All arms together {one['seconds']:.0f} s, "
    about += f"{one['seconds of waiting for pictures']:.0f} of them waiting for pictures to be drawn."
    told = f"{about}\n\n{checks(results, CLAIMS)}\nToken and pair:\n\n{differences(results, COMPARED, PAIRS)}\n"
    told += f"Held-out pairs while training (contrast of {run['batch']} pairs, {np.log(run['batch']):.2f} for one that knows nothing):\n\n"
    return f"{told}{looks(results)}\nMore of the same runs:\n\n{columns(results, MEASURES)}"


def main(args: Sequence[str] | None = None) -> None:
    """Makes the runs and prints the tables."""
    options = tyro.cli(Drawn, args=args, prog="python -m intarsia.studies.drawn")
    for seed in options.seeds if options.make else ():
        perform(options, seed)
    fields = dataclasses.asdict(options.runs(0)[0])
    same = {x: fields[x] for x in ("pairs", "steps", "batch", "lr", "level", "size")}
    results = gather(options.out, {x: {} for x in options.arms}, dataclasses.asdict(Run()), **same)
    if not results:
        raise BadInput(f"{options.out}: holds no runs of {same}")
    print(tell(results))
    if options.page:
        write_section(options.page, "drawn", tell(results), "drawn")


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        raise SystemExit(f"drawn: {error}") from None
