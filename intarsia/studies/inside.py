"""Does moving matching from the pair to the token help inside UNITER and LXMERT, all else equal?

    python -m intarsia.studies.inside --out runs/inside --page docs/studies/inside.md

A run is one system, one arm and one seed, pre-trained from scratch on a generated world by its own tiny recipe, see `studies.tied`, and measured on unseen
scenes. Each run leaves one JSON file and is not made again; one that was killed goes on. The page's tables come from the files alone.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import tyro

from intarsia.batch import Example, Sample, pack
from intarsia.errors import BadInput
from intarsia.studies import tying
from intarsia.studies.family import without_picture, write_section
from intarsia.studies.numbers import interval, paired
from intarsia.studies.tables import Value, at
from intarsia.studies.tied import tied
from intarsia.system import System
from intarsia.systems import find
from intarsia.train import Pace, pretrain
from intarsia.train.start import captions, fresh, without_classes
from intarsia.worlds import WorldConfig, WorldSource

ARMS = ("sentence", "token", "both")
READ_OUTS = tying.READ_OUTS
MAPS = ("dot", "attention", "attention back")


@dataclass(frozen=True)
class Run:
    """One run, whole: what its JSON file is named by."""

    system: str = "uniter"
    arm: str = "both"
    """Or "blind": both granularities, and nothing to see."""
    pairs: int = 8000
    seed: int = 101
    steps: int = 2400
    rows: int = 800
    lr: float = 1e-3
    level: int = 0
    wra: float = 0.0
    """Weight of UNITER's own alignment loss, in every arm; 0 so that the sentence arm has no supervision of tokens."""

    @property
    def name(self) -> str:
        """Of its file."""
        more = (f"-lr{self.lr:g}" if self.lr != Run.lr else "") + (f"-wra{self.wra:g}" if self.wra else "")
        sizes = f"level{self.level}-n{self.pairs}-steps{self.steps}-rows{self.rows}{more}"
        return f"{self.system}-{sizes}-{self.arm}-seed{self.seed}"


def blinded(cls: type[System]) -> type[System]:
    """The system shown nothing of its pictures, in training and after."""

    def lay_out(self: System, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        return without_picture(cls.lay_out(self, sample, task, form))

    def hide(self: System, sample: Sample, goal: str, rng: Any, draw: Any) -> Example:
        return without_picture(cls.hide(self, sample, goal, rng, draw))

    return type(f"Blind{cls.__name__}", (cls,), {"lay_out": lay_out, "hide": hide})


def world(run: Run, split: str, count: int) -> WorldSource:
    """Scenes of 3 to 5 objects; test scenes of all runs are the same."""
    config = WorldConfig(level=run.level, objects=(3, 5))
    return WorldSource(config, split, count, run.seed if split == "train" else 7)  # type: ignore[arg-type]


def begin(run: Run) -> tuple[System, Any]:
    """The system of a run, untrained, and its recipe.

    Raises:
        BadInput: no such arm, or a system without matching.
    """
    if run.arm not in (*ARMS, "blind"):
        raise BadInput(f"no arm {run.arm!r} (arms: {', '.join(ARMS)}, blind)")
    cls = find(run.system)
    if "itm" not in cls.card.objectives or "regions" not in cls.needs:
        raise BadInput(f"{run.system}: has no objective itm on regions, so nothing can be moved")
    made = tied(cls, "both" if run.arm == "blind" else run.arm)  # type: ignore[arg-type]
    made = blinded(made) if run.arm == "blind" else made
    recipe = cls.recipes["tiny"]
    recipe = dataclasses.replace(
        recipe,
        mix=dataclasses.replace(recipe.mix, scale={**recipe.mix.scale, "wra": run.wra}),
        optim=dataclasses.replace(recipe.optim, lr=run.lr),
        schedule=dataclasses.replace(recipe.schedule, steps=run.steps, warmup=max(1, run.steps // 20)),
        batching=dataclasses.replace(recipe.batching, rows=run.rows),
        seed=run.seed,
    )
    words = captions(WorldSource(WorldConfig(level=run.level, objects=(3, 5)), count=1000, seed=0), cls.specials)
    provenance = world(run, "train", 1).provenance
    assert provenance is not None
    system, recipe = fresh(made, recipe, words, provenance)
    return system, without_classes(recipe, provenance)[0]


def perform(run: Run, folder: Path, scenes: int = 300, candidates: int = 50) -> dict[str, Any]:
    """Makes a run, or reads what it left when it was made before."""
    result = folder / f"{run.name}.json"
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    system, recipe = begin(run)
    work = folder / "work" / run.name
    began, used = time.perf_counter(), time.process_time()
    pace = Pace(log_every=100, save_every=500, tensorboard=False)
    source = world(run, "train", run.pairs)
    outcome = pretrain(system, source, recipe, work, workers=0, device="cpu", pace=pace)
    if not outcome.finished:
        raise SystemExit(f"stopped by {outcome.stopped_by}; the same command goes on")
    found = {
        "run": dataclasses.asdict(run),
        "parameters": sum(x.numel() for x in system.parameters()),
        "seconds": time.perf_counter() - began,
        "cpu seconds": time.process_time() - used,
        "test": measure(system, world(run, "test", 1200), scenes, candidates),
        "held_out": measure(system, world(run, "held_out", 1200), scenes, 10),
    }
    part = result.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(result)
    return found


@torch.no_grad()
def measure(system: Any, source: WorldSource, count: int, candidates: int) -> dict[str, Any]:
    """Pointing, choices between true and false captions, retrieval among unambiguous pairs and what hidden regions cost; and with pictures exchanged.

    Args:
        system: a tied one, trained.
        source: test scenes with gold links.
        count: scenes.
        candidates: of retrieval, each text being read with each picture.
    """
    system.eval()
    known = tying.scenes(system, source, count)
    batch = pack([x.example for x in known])
    encoded = system.encode(batch)
    shuffled = tying._exchange(batch)
    again = system.encode(shuffled)
    return {
        "scenes": count,
        "pointing": tying._pointing(system, known, batch, encoded),
        "choices": tying._choices(system, source, known, encoded),
        "unambiguous": tying._unambiguous(system, source, known, candidates),
        "ablation": tying._ablation(system, known),
        "exchanged": {
            "pointing": tying._pointing(system, known, shuffled, again),
            "choices": tying._choices(system, source, known, again, shift=1),
        },
    }


# ---------------------------------------------------------------------------------------------------------------- tables


def best(split: str, *path: str, key: str = "", among: Sequence[str] = READ_OUTS) -> Value:
    """The best of several read-outs of a measure."""

    def value(found: dict[str, Any]) -> float:
        part = found[split]
        for name in path:
            part = part[name]
        return max(float(part[x][key] if key else part[x]) for x in among)

    return value


MEASURES: dict[str, Value] = {
    "pointing, u.v": at("test", "pointing", "dot"),
    "pointing, attention of words": at("test", "pointing", "attention"),
    "pointing, attention of regions": at("test", "pointing", "attention back"),
    "pointing, best of the three": best("test", "pointing", among=MAPS),
    "pointing, chance": at("test", "pointing", "chance"),
    **{f"binding, {x}": at("test", "choices", "swap", x) for x in READ_OUTS},
    "binding, best": best("test", "choices", "swap"),
    "replaced word, best": best("test", "choices", "replace"),
    "which word is wrong": at("test", "choices", "fault"),
    "which word is wrong, chance": at("test", "choices", "fault, chance"),
    **{f"t2i R@1, {x}": at("test", "unambiguous", x, "t2i R@1") for x in READ_OUTS},
    "t2i R@1, best": best("test", "unambiguous", key="t2i R@1"),
    "i2t R@1, best": best("test", "unambiguous", key="i2t R@1"),
    **{f"word cross entropy, hidden regions: {x}": at("test", "ablation", x) for x in ("none", "linked", "random", "all")},
    "pictures exchanged: pointing, best": best("test", "exchanged", "pointing", among=MAPS),
    "pictures exchanged: binding, best": best("test", "exchanged", "choices", "swap"),
    "held-out pairs: pointing, best": best("held_out", "pointing", among=MAPS),
    "held-out pairs: binding, best": best("held_out", "choices", "swap"),
    "CPU seconds of training": at("cpu seconds"),
}  # fmt: skip
"""What the page tells of each arm. Read-outs are S_sent, S_tok, [CLS] and the words' support."""
COMPARED = tuple(x for x in MEASURES if "best" in x and "exchanged" not in x) + ("pointing, u.v", "which word is wrong")
PAIRS = (("token", "sentence"), ("both", "sentence"), ("both", "token"))

Results = Mapping[str, Mapping[int, dict[str, Any]]]
"""Arm -> seed -> what the run found."""


def gather(folder: Path, **same: Any) -> dict[str, dict[int, dict[str, Any]]]:
    """All results of a folder whose runs agree with the given fields."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if all(result["run"][name] == value for name, value in same.items()):
            found.setdefault(result["run"]["arm"], {})[result["run"]["seed"]] = result
    return {arm: found[arm] for arm in (*ARMS, "blind") if arm in found}


def tell(results: Results) -> str:
    """A column an arm, mean over seeds ± half of the 95 % t-interval; then differences paired by seed."""
    heads = " | ".join(f"{arm} ({len(runs)})" for arm, runs in results.items())
    lines = [f"| (seeds) | {heads} |", "|---" * (len(results) + 1) + "|"]
    for name, value in MEASURES.items():
        cells = " | ".join(str(interval([value(x) for x in runs.values()])) for runs in results.values())
        lines.append(f"| {name} | {cells} |")
    pairs = [x for x in PAIRS if x[0] in results and x[1] in results]
    if pairs:
        lines += ["", "Paired by seed, bold where the 95 % interval excludes 0:", ""]
        lines += ["| | " + " | ".join(f"{a} - {b}" for a, b in pairs) + " |", "|---" * (len(pairs) + 1) + "|"]
    for name in COMPARED if pairs else ():
        cells_of = []
        for a, b in pairs:
            left, right = ({s: MEASURES[name](x) for s, x in results[arm].items()} for arm in (a, b))
            gap = paired(left, right)
            cells_of.append(f"**{gap}**" if gap.count > 1 and not gap.low <= 0 <= gap.high else str(gap))
        lines.append(f"| {name} | " + " | ".join(cells_of) + " |")
    return "\n".join(lines) + "\n"


@dataclass
class Inside:
    """The runs to make, and the page of all that are there."""

    out: Path = Path("runs/inside")
    systems: tuple[str, ...] = ("uniter", "lxmert")
    arms: tuple[str, ...] = (*ARMS, "blind")
    seeds: tuple[int, ...] = (101, 102, 103, 104, 105)
    pairs: int = Run.pairs
    steps: int = Run.steps
    rows: int = Run.rows
    lr: float = Run.lr
    level: int = Run.level
    wra: float = Run.wra
    page: Path | None = None
    """Write the tables here, a section a system."""
    make: bool = True
    """False = only the page, from the runs that are there."""


def main(args: Sequence[str] | None = None) -> None:
    """Makes the runs seed by seed and prints the tables."""
    options = tyro.cli(Inside, args=args, prog="python -m intarsia.studies.inside")
    same = {x: getattr(options, x) for x in ("pairs", "steps", "rows", "lr", "level", "wra")}
    for seed, name, arm in product(options.seeds, options.systems, options.arms) if options.make else ():
        perform(Run(system=name, arm=arm, seed=seed, **same), options.out)
    told = {name: gather(options.out, system=name, **same) for name in options.systems}
    if not any(told.values()):
        raise BadInput(f"{options.out}: holds no runs of {same}")
    for name, results in told.items():
        if results:
            seeds = ", ".join(str(x) for x in sorted({s for runs in results.values() for s in runs}))
            about = f"{options.pairs} pairs, {options.steps} steps of {options.rows} rows, level {options.level}, WRA {options.wra:g}; seeds {seeds}."
            print(f"{name}: {about}\n\n{tell(results)}")
            if options.page:
                write_section(options.page, name, f"{about}\n\n{tell(results)}", "inside")


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        raise SystemExit(f"inside: {error}") from None
