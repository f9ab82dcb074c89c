"""Does moving matching from the pair to the token help inside UNITER and LXMERT, all else equal?

    python -m intarsia.studies.inside --page docs/studies/inside.md

A run is one system, one arm and one seed, pre-trained from scratch on a generated world by its own tiny recipe at another width, see `studies.tied`, and measured
on unseen scenes. Each run leaves one JSON file, see `studies.runs`, and is not made again; one that was killed goes on. The page's tables come from the files alone.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import tyro

from intarsia.batch import Example, Sample
from intarsia.errors import BadInput
from intarsia.pack import pack
from intarsia.studies import tying
from intarsia.studies.family import without_picture, write_section
from intarsia.studies.granularity import name_of
from intarsia.studies.numbers import verdict
from intarsia.studies.readouts import MAPS, TOLD
from intarsia.studies.runs import KEPT, WORK, Results, gather, once, program, vocabulary, world
from intarsia.studies.tables import Claim, Value, at, best, compared, difference, report
from intarsia.studies.tied import tied
from intarsia.system import System
from intarsia.systems import find
from intarsia.train import Pace, pretrain
from intarsia.train.start import fresh, without_classes
from intarsia.worlds import Split, WorldConfig, WorldSource

ARMS = {"sentence": "sentence", "sentence, told": "told", "token": "token", "both": "both", "blind": "both"}
"""Arm -> granularity of `studies.tied`; "blind" has nothing to see."""
READ_OUTS = (*tying.READ_OUTS, "named")
REGION_GOAL = {"uniter": "mrfr", "lxmert": "feat"}
"""Under which a system gives back the features of hidden regions."""


@dataclass(frozen=True)
class Run:
    """One run, whole: what its JSON file is named by."""

    system: str = "uniter"
    arm: str = "both"
    pairs: int = 8000
    seed: int = 201
    steps: int = 2400
    rows: int = 800
    width: int = 128
    """Of rows; half that of the size `tiny`, for cheap runs."""
    lr: float = 1e-3
    level: int = 0
    wra: float = 0.0
    """Weight of UNITER's own alignment loss, in every arm; 0 so that the sentence arm has no supervision of tokens."""

    @property
    def file(self) -> Path:
        """Of its result, below the folder of the study."""
        more = "".join(
            f"-{name}{getattr(self, name):g}"
            for name in ("width", "lr", "wra")
            if getattr(self, name) != getattr(Run, name)
        )
        sizes = f"level{self.level}-n{self.pairs}-steps{self.steps}-rows{self.rows}{more}"
        arm = self.arm.replace(", ", "-")
        return Path(f"steps{self.steps}") / f"{self.system}-{sizes}-{arm}-seed{self.seed}.json"

    @property
    def world(self) -> WorldConfig:
        """Scenes of 3 to 5 objects."""
        return WorldConfig(level=self.level, objects=(3, 5))

    def source(self, split: Split, count: int) -> WorldSource:
        """A split of the world; test scenes of all runs are the same, and no other study's."""
        return world(self.world, split, count, self.seed if split == "train" else 17)


def blinded(cls: type[System]) -> type[System]:
    """The system shown nothing of its pictures, in training and after."""

    def lay_out(self: System, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        return without_picture(cls.lay_out(self, sample, task, form))

    def hide(self: System, sample: Sample, goal: str, rng: Any, draw: Any) -> Example:
        return without_picture(cls.hide(self, sample, goal, rng, draw))

    return type(f"Blind{cls.__name__}", (cls,), {"lay_out": lay_out, "hide": hide})


def begin(run: Run) -> tuple[System, Any]:
    """The system of a run, untrained, and its recipe.

    Raises:
        BadInput: no such arm, or a system without matching.
    """
    if run.arm not in ARMS:
        raise BadInput(f"no arm {run.arm!r} (arms: {', '.join(ARMS)})")
    cls = find(run.system)
    if "itm" not in cls.card.objectives or "regions" not in cls.needs:
        raise BadInput(f"{run.system}: has no objective itm on regions, so nothing can be moved")
    made = tied(cls, ARMS[run.arm])  # type: ignore[arg-type]
    made = blinded(made) if run.arm == "blind" else made
    recipe = cls.recipes["tiny"]
    width = {"hidden_size": run.width, "intermediate_size": 2 * run.width, "num_attention_heads": run.width // 32}
    recipe = dataclasses.replace(
        recipe,
        config=dataclasses.replace(recipe.config, **width),
        mix=dataclasses.replace(
            recipe.mix,
            share={goal: x for goal, x in recipe.mix.share.items() if goal != "itm_order"},
            scale={**recipe.mix.scale, "wra": run.wra},
        ),
        optim=dataclasses.replace(recipe.optim, lr=run.lr),
        schedule=dataclasses.replace(recipe.schedule, steps=run.steps, warmup=max(1, run.steps // 20)),
        batching=dataclasses.replace(recipe.batching, rows=run.rows),
        seed=run.seed,
    )
    provenance = run.source("train", run.pairs).provenance
    assert provenance is not None
    system, recipe = fresh(made, recipe, vocabulary(run.world, cls.specials), provenance)
    return system, without_classes(recipe, provenance)[0]


def perform(
    run: Run, folder: Path, work: Path = WORK, scenes: int = 200, candidates: int = 30, device: str = "cpu"
) -> dict[str, Any]:
    """Makes a run, or reads what it left when it was made before. Args: see `measure`; work, of checkpoints and logs; device, that trains."""
    return once(folder / run.file, lambda: _make(run, work / run.file.stem, scenes, candidates, device))


def _make(run: Run, work: Path, scenes: int, candidates: int, device: str) -> dict[str, Any]:
    system, recipe = begin(run)
    began, used = time.perf_counter(), time.process_time()
    pace = Pace(log_every=100, save_every=500, keep=1, tensorboard=False)
    outcome = pretrain(system, run.source("train", run.pairs), recipe, work, workers=0, device=device, pace=pace)
    if not outcome.finished:
        raise SystemExit(f"stopped by {outcome.stopped_by}; the same command goes on")
    trained, spent, told_by = time.perf_counter(), time.process_time(), name_of(next(system.parameters()).device)
    system.cpu()
    told = [json.loads(x) for x in (work / "metrics.jsonl").read_text().splitlines()]
    found = {
        "run": dataclasses.asdict(run),
        "parameters": sum(x.numel() for x in system.parameters()),
        "device": told_by,
        "seconds": trained - began,
        "cpu seconds": spent - used,
        "losses": [x["loss"] for x in told if "loss" in x][-1],
        "test": measure(system, run.source("test", 1200), scenes, candidates),
        "held_out": measure(system, run.source("held_out", 1200), scenes // 2, 10),
    }
    shutil.rmtree(work)
    return found | {"cpu seconds of measuring": time.process_time() - spent}


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
        "pointing": tying._pointing(system, known, batch, encoded) | {"occlusion": tying.occlusion(system, known)},
        "alignment": tying._alignment(system, known, system.alignments(encoded, batch)["alignment"].numpy()),
        "choices": tying._choices(system, source, known, encoded),
        "unambiguous": tying._unambiguous(system, source, known, candidates),
        "ablation": tying._ablation(system, known),
        "region ablation": tying.region_ablation(system, known, REGION_GOAL[system.card.name]),
        "exchanged": {
            "pointing": tying._pointing(system, known, shuffled, again)
            | {"occlusion": tying.occlusion(system, known, shift=1)},
            "choices": tying._choices(system, source, known, again, shift=1),
            "unambiguous": tying._unambiguous(system, source, known, candidates, shift=1),
        },
    }


# ---------------------------------------------------------------------------------------------------------------- tables


FAULTS = ("fault", "fault, named")
CLAIMS: dict[str, Claim] = {
    "pointing, best": Claim("test", best("pointing", among=MAPS), at("pointing", "chance")),
    "binding, best": Claim("test", best("choices", "swap", among=READ_OUTS), lambda _: 0.5),
    "replaced word, best": Claim("test", best("choices", "replace", among=READ_OUTS), lambda _: 0.5),
    "which word is wrong, best": Claim("test", best("choices", among=FAULTS), at("choices", "fault, chance")),
    "t2i R@1, best": Claim(
        "test", best("unambiguous", key="t2i R@1", among=READ_OUTS), lambda x: 1 / x["unambiguous"]["candidates"]
    ),
    "i2t R@1, best": Claim(
        "test", best("unambiguous", key="i2t R@1", among=READ_OUTS), lambda x: 1 / x["unambiguous"]["candidates"]
    ),
    "held-out pairs: pointing, best": Claim("held_out", best("pointing", among=MAPS), at("pointing", "chance")),
    "held-out pairs: binding, best": Claim("held_out", best("choices", "swap", among=READ_OUTS), lambda _: 0.5),
}
"""What is claimed; "best" is the best read-out of each run."""
COMPARED = compared(CLAIMS)
OCCLUSION = "pointing, occlusion (no part of best)"
MEASURES: dict[str, Value] = {
    **{f"pointing, {told}": at("test", "pointing", name) for name, told in zip(MAPS, TOLD, strict=True)},
    OCCLUSION: at("test", "pointing", "occlusion"),
    "pointing, occlusion, pictures exchanged": at("test", "exchanged", "pointing", "occlusion"),
    "link AUC": at("test", "alignment", "auc"),
    "entropy over regions, content words": at("test", "alignment", "entropy, content"),
    **{f"binding, {x}": at("test", "choices", "swap", x) for x in READ_OUTS},
    "which word is wrong, by its row": at("test", "choices", "fault"),
    "which word is wrong, by [CLS]": at("test", "choices", "fault, named"),
    **{f"t2i R@1, {x}": at("test", "unambiguous", x, "t2i R@1") for x in READ_OUTS},
    **{f"word cross entropy, hidden regions: {x}": at("test", "ablation", x) for x in ("none", "linked", "random", "all")},
    **{f"loss of a hidden region, hidden words: {x}": at("test", "region ablation", x) for x in ("none", "linked", "random", "all")},
    "CPU seconds of training": at("cpu seconds"),
}  # fmt: skip
"""What the page tells of each arm beside the claims. Read-outs are S_sent, S_tok, [CLS], the words' support, and what [CLS] says of each word ("named")."""
PAIRS = (("token", "sentence"), ("token", "sentence, told"), ("sentence, told", "sentence"), ("both", "sentence"), ("both", "token"), ("token", "blind"))  # fmt: skip


def verdicts(results: Results) -> str:
    """What the runs of a system say of the hypotheses on the page."""
    asked = (
        ("I1", "pointing, best", "token", "sentence", 0.0),
        ("I2", "pointing, best", "token", "sentence, told", 0.0),
        ("I3", "binding, best", "token", "sentence, told", 0.0),
        ("I4", "t2i R@1, best", "both", "sentence", 0.02),
    )
    lines = ["| hypothesis | measured | verdict |", "|---|---|---|"]
    for name, claim, left, right, margin in asked:
        if left in results and right in results:
            gap = difference(results, COMPARED[claim], left, right)
            lines.append(f"| {name} | {claim}: {left} - {right} {gap} | {verdict(gap, margin)} |")
    return "\n".join(lines) + "\n"


def tell(results: Results) -> str:
    """Claims with their checks, differences, verdicts, and the rest."""
    beside = {OCCLUSION: MEASURES[OCCLUSION]}
    return report(results, CLAIMS, MEASURES, PAIRS, verdicts(results), beside)


@dataclass
class Inside:
    """The runs to make, and the page of all that are there."""

    out: Path = KEPT / "inside"
    systems: tuple[str, ...] = ("uniter", "lxmert")
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: tuple[int, ...] = (201, 202, 203, 204, 205)
    pairs: int = Run.pairs
    steps: int = Run.steps
    rows: int = Run.rows
    width: int = Run.width
    lr: float = Run.lr
    level: int = Run.level
    wra: float = Run.wra
    device: str = "cpu"
    """That trains the runs to make, such as "cuda"."""
    page: Path | None = None
    """Write the tables here, a section a system."""
    make: bool = True
    """False = only the page, from the runs that are there."""


def main(args: Sequence[str] | None = None) -> None:
    """Makes the runs seed by seed and prints the tables."""
    options = tyro.cli(Inside, args=args, prog="python -m intarsia.studies.inside")
    torch.set_num_threads(1)
    same = {x: getattr(options, x) for x in ("pairs", "steps", "rows", "width", "lr", "level", "wra")}
    for seed, name, arm in product(options.seeds, options.systems, options.arms) if options.make else ():
        perform(Run(system=name, arm=arm, seed=seed, **same), options.out, device=options.device)
    arms: dict[str, dict[str, Any]] = {arm: {} for arm in options.arms}
    told = {name: gather(options.out, arms, dataclasses.asdict(Run()), system=name, **same) for name in options.systems}
    if not any(told.values()):
        raise BadInput(f"{options.out}: holds no runs of {same}")
    for name, results in told.items():
        if results:
            seeds = ", ".join(str(x) for x in sorted({s for runs in results.values() for s in runs}))
            about = f"{options.pairs} pairs, {options.steps} steps of {options.rows} rows, width {options.width}, level {options.level}, WRA {options.wra:g}; seeds {seeds}."
            print(f"{name}: {about}\n\n{tell(results)}")
            if options.page:
                write_section(options.page, name, f"{about}\n\n{tell(results)}", "inside")


if __name__ == "__main__":
    program(main, "inside")
