"""Does it help to tie pictures and language by the token instead of by the pair, all else equal?

    python -m intarsia.studies.granularity --page docs/studies/granularity.md

A run is one arm, one number of pairs and one seed: an Inlay from scratch on a generated world, measured by `studies.tying` on unseen scenes. Each run
leaves one JSON file, see `studies.runs`; runs that are there are not made again. The page's tables and figure come from the files alone.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from intarsia.batch import Batch, Encoded, Example, Sample
from intarsia.data.source import Source
from intarsia.errors import BadInput
from intarsia.parts import align
from intarsia.parts.aligned import Aligned
from intarsia.recipe import Recipe
from intarsia.studies.family import without_picture, write_section
from intarsia.studies.numbers import interval, paired, verdict
from intarsia.studies.rates import settings
from intarsia.studies.readouts import MAPS, TOLD
from intarsia.studies.runs import KEPT, WORK, Results, known, once, program, vocabulary, world
from intarsia.studies.tables import (
    Claim,
    Value,
    at,
    best,
    bold,
    compared,
    difference,
    report,
    seeds_of,
    within,
)
from intarsia.studies.tying import RANKED, READ_OUTS, auc, bag, measure
from intarsia.systems.inlay import Inlay
from intarsia.text import Vocab
from intarsia.train import Pace, pretrain
from intarsia.train.start import fresh
from intarsia.viz import style
from intarsia.worlds import Split, WorldConfig, WorldSource

CELLS: dict[tuple[int, ...], str] = {x: "A{} B{} C{}".format(*x) for x in product((0, 1), repeat=3) if 0 < sum(x) < 3}
"""Of the 2^3 factorial those that are no arm of another name."""
ARMS: dict[str, dict[str, Any]] = {
    "sentence": {"granularity": "sentence"},
    "sentence, mean pooling": {"granularity": "sentence", "pool": "mean"},
    "sentence, no false captions": {"granularity": "sentence", "false_captions": 0},
    "token": {"granularity": "token"},
    "token, no false captions": {"granularity": "token", "false_captions": 0},
    "both": {"granularity": "both"},
    "token, phrases ask": {"granularity": "token", "query_unit": "phrase"},
    "token, captions ask": {"granularity": "token", "query_unit": "caption"},
    "token, words know their phrase": {"granularity": "token", "text_context": "phrase"},
    "token, words know themselves": {"granularity": "token", "text_context": "none"},
    "blind": {"granularity": "both"},
    **{name: dict(zip(("g_a", "g_b", "g_c"), map(float, g), strict=True)) for g, name in CELLS.items()},
}
"""What each arm changes in the config. "A1 B0 C0" has contrast at the token and the rest at the pair; 000 is "sentence", 111 is "token"."""


@dataclass(frozen=True)
class Run:
    """One run, whole: what its JSON file is named by."""

    arm: str = "both"
    pairs: int = 2000
    seed: int = 101
    steps: int = 400
    batch: int = 32
    lr: float = 2e-3
    level: int = 0
    unit: Literal["region", "image"] = "region"
    noise: float = 0.0
    density: float = 1.0
    """See `WorldConfig`."""
    temperature: float = 0.1
    size: Literal["tiny", "small"] = "tiny"

    @property
    def file(self) -> Path:
        """Of its result, below the folder of the study; runs of as many steps lie together."""
        arm = self.arm.replace(", ", "-").replace(" ", "-")
        more = f"-{self.size}" if self.size != "tiny" else ""
        more += f"-{self.unit}" if self.unit == "image" else ""
        more += f"-noise{self.noise:g}" if self.noise else ""
        for name, usual in (("batch", 32), ("density", 1.0), ("lr", 2e-3), ("temperature", 0.1)):
            value = getattr(self, name)
            more += f"-{name}{value:.3g}" if value != usual else ""
        name = f"level{self.level}{more}-n{self.pairs}-steps{self.steps}-{arm}-seed{self.seed}"
        return Path(f"steps{self.steps}") / f"{name}.json"

    @property
    def world(self) -> WorldConfig:
        """Scenes of 3 to 5 objects, captions that name 2; pictures of 64 x 64 pixels."""
        return WorldConfig(level=self.level, side=64, objects=(3, 5), noise=self.noise, density=self.density)

    def source(self, split: Split, count: int) -> WorldSource:
        """A split of the world; test scenes of all runs are the same."""
        return world(self.world, split, count, self.seed if split == "train" else 7)


class Watched(Inlay):
    """Tells how well its alignments meet gold links, beside the losses of held-out pairs."""

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """With "link auc" where nothing is trained."""
        found = super().losses(encoded, batch)
        if not self.training and batch.targets and batch.links is not None:
            assert isinstance(encoded, Aligned) and batch.regions is not None
            rows, regions = batch.links.T
            slots, here = self.tower.slots(encoded.slots, encoded.visual_packing)
            of, words = encoded.text_packing.doc[rows], encoded.told[rows, None, self.config.hidden_size : -2]
            temperature = self.tower.log_temperature.exp()
            alpha = align.shares(words @ slots[of].transpose(1, 2), here[of], "softmax", True, temperature)[:, 0, 1:]
            linked = F.one_hot(batch.regions.packing.pos[regions], alpha.shape[1]) > 0
            right, wrong = (alpha[x].float().cpu().numpy() for x in (linked, here[of, 1:] & ~linked))
            found["link auc"] = torch.tensor(auc(right, wrong))
        return found


class Blind(Watched):
    """Shown nothing of its pictures, in training and after: all regions hidden and alike."""

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Words, and as many hidden regions as there are."""
        return without_picture(super().lay_out(sample, task, form))


class Bags:
    """A source whose scenes are bags of pictures of one object each."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.provenance = source.provenance

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """The scene as several pictures."""
        return bag(self.source[index])


def perform(
    run: Run,
    folder: Path,
    work: Path = WORK,
    scenes: int = 400,
    fused: int = 50,
    splits: Sequence[Split] = ("test", "held_out"),
    device: str = "cpu",
) -> dict[str, Any]:
    """Makes a run, or reads what it left when it was made before.

    Args:
        run: see there.
        folder: of the study's JSON files.
        work: of checkpoints and logs.
        scenes: test scenes.
        fused: candidates of the retrieval on which every read-out is tried; 10 of held-out pairs.
        splits: what is measured.
        device: that trains; measured is on the CPU.

    Raises:
        BadInput: there is no such arm.
    """
    return once(folder / run.file, lambda: _make(run, work / run.file.stem, scenes, fused, splits, device))


def begin(run: Run, source: Source | None = None, vocab: Vocab | None = None) -> tuple[Watched, Recipe[Any]]:
    """The system of a run, untrained, and its recipe.

    Args:
        run: see there.
        source: what it is for; None = the run's world.
        vocab: its words; None = those of the world.

    Raises:
        BadInput: there is no such arm.
    """
    if run.arm not in ARMS:
        raise BadInput(f"no arm {run.arm!r} (arms: {', '.join(ARMS)})")
    recipe = Inlay.recipes[run.size]
    recipe = dataclasses.replace(
        recipe,
        config=dataclasses.replace(recipe.config, visual_unit=run.unit, temperature=run.temperature, **ARMS[run.arm]),
        optim=dataclasses.replace(recipe.optim, lr=run.lr),
        schedule=dataclasses.replace(recipe.schedule, steps=run.steps, warmup=max(1, run.steps // 20)),
        batching=dataclasses.replace(recipe.batching, samples=min(run.batch, run.pairs)),
        seed=run.seed,
    )
    provenance = (source or run.source("train", run.pairs)).provenance
    assert provenance is not None
    cls = Watched if run.arm != "blind" else Blind
    vocab = vocab or vocabulary(dataclasses.replace(run.world, noise=0.0))
    system, recipe = fresh(cls, recipe, vocab, provenance)
    assert isinstance(system, Watched)
    return system, recipe


def _make(run: Run, work: Path, scenes: int, fused: int, splits: Sequence[Split], device: str) -> dict[str, Any]:
    system, recipe = begin(run)
    train, held = run.source("train", run.pairs), run.source("validation", 2 * run.batch)
    if run.unit == "region":
        found = learn(run, system, recipe, train, held, work, device)
    else:
        found = learn(run, system, recipe, Bags(train), Bags(held), work, device)
    began = time.process_time()
    found |= {x: measure(system, run.source(x, 1200), scenes, 10 if x == "held_out" else fused) for x in splits}
    return found | {"cpu seconds of measuring": time.process_time() - began}


def learn(
    run: Run, system: Watched, recipe: Recipe[Any], source: Source, held: Source, work: Path, device: str
) -> dict[str, Any]:
    """Trains a system, which then is on the CPU, and gives what the run's file says of that. Args: see `perform`; held, of validation."""
    began, used = time.perf_counter(), time.process_time()
    looks = max(1, run.steps // 5)
    pace = Pace(log_every=looks, save_every=run.steps, valid_every=looks, valid_batches=2, tensorboard=False)
    outcome = pretrain(system, source, recipe, work, valid=held, workers=0, device=device, pace=pace)
    if not outcome.finished:
        raise SystemExit(f"stopped by {outcome.stopped_by}; the same command goes on")
    told = [json.loads(x) for x in (work / "metrics.jsonl").read_text().splitlines()]
    trained, spent, told_by = time.perf_counter(), time.process_time(), name_of(system.log_scale.device)
    system.cpu()
    watched = [{"step": x["step"], **x["valid"]} for x in told if "valid" in x]
    shutil.rmtree(work)
    return {
        "run": dataclasses.asdict(run),
        "parameters": sum(x.numel() for x in system.parameters() if x.requires_grad),
        "device": told_by,
        "seconds": trained - began,
        "cpu seconds": spent - used,
        "losses": [x["loss"] for x in told if "loss" in x][-1],
        "watched": watched,
        "self-confirming": self_confirming([x for x in watched if x["step"] > run.steps / 5], system.config.shares[1]),
    }


def name_of(device: torch.device) -> str:
    """What a device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def self_confirming(watched: Sequence[Mapping[str, float]], share: float, least: float = 0.02) -> bool:
    """Whether the AUC of links fell between two looks while the loss of masked modelling fell: targets placed by alignments then sharpen wrong ones.

    Args:
        watched: of held-out pairs, from when masked modelling counts.
        share: of the token in that loss.
        least: by how much the AUC must fall.
    """
    looks = [(x["link auc"], share * x["b_tok"] + (1 - share) * x["b_sent"]) for x in watched]
    return any(b[0] < a[0] - least and b[1] < a[1] for a, b in pairwise(looks))


# ---------------------------------------------------------------------------------------------------------------- tables

CLAIMS: dict[str, Claim] = {
    "pointing, best": Claim("test", best("pointing", among=MAPS), at("pointing", "chance")),
    "binding, best": Claim("test", best("choices", "swap", among=READ_OUTS), lambda _: 0.5),
    "replaced word, best": Claim("test", best("choices", "replace", among=READ_OUTS), lambda _: 0.5),
    "which word is wrong": Claim("test", at("choices", "fault"), at("choices", "fault, chance")),
    "t2i R@1 of random pairs, best": Claim(
        "test",
        best("retrieval", key="t2i R@1", among=RANKED),
        lambda x: 1 / x["scenes"],
    ),
    "i2t R@1 of random pairs, best": Claim(
        "test",
        best("retrieval", key="i2t R@1", among=RANKED),
        lambda x: 1 / x["scenes"],
    ),
    "t2i R@1 of 50 unambiguous, best": Claim(
        "test", best("unambiguous", key="t2i R@1", among=READ_OUTS), lambda x: 1 / x["unambiguous"]["candidates"]
    ),
    "held-out pairs: pointing, best": Claim("held_out", best("pointing", among=MAPS), at("pointing", "chance")),
    "held-out pairs: binding, best": Claim("held_out", best("choices", "swap", among=READ_OUTS), lambda _: 0.5),
    "held-out pairs: t2i R@1, best": Claim(
        "held_out",
        best("retrieval", key="t2i R@1", among=RANKED),
        lambda x: 1 / x["scenes"],
    ),
}
"""What is claimed; "best" is the best read-out of each run."""
COMPARED = compared(CLAIMS)
MEASURES: dict[str, Value] = {
    **{f"pointing, {told}": at("test", "pointing", name) for name, told in zip(MAPS, TOLD, strict=True)},
    "pointing, best": COMPARED["pointing, best"],
    "pointing, occlusion (no part of best)": at("test", "pointing", "occlusion"),
    "pointing, occlusion, pictures exchanged": at("test", "exchanged", "pointing", "occlusion"),
    "link AUC": at("test", "alignment", "auc"),
    "soft IoU": at("test", "alignment", "soft iou"),
    "null share, content words": at("test", "alignment", "null, content"),
    "null share, other words": at("test", "alignment", "null, other"),
    "entropy over regions, content words": at("test", "alignment", "entropy, content"),
    "entropy over regions, other words": at("test", "alignment", "entropy, other"),
    **{f"binding, {x}": at("test", "choices", "swap", x) for x in READ_OUTS},
    **{f"replaced word, {x}": at("test", "choices", "replace", x) for x in READ_OUTS},
    **{f"t2i R@1 of random pairs, {x}": at("test", "retrieval", x, "t2i R@1") for x in RANKED},
    **{f"t2i R@1 of 50 unambiguous, {x}": at("test", "unambiguous", x, "t2i R@1") for x in READ_OUTS},
    "true caption against all false ones, best": within("test", value=best("choices", "best of all", among=READ_OUTS)),
    "word cross entropy: nothing hidden": at("test", "ablation", "none"),
    "word cross entropy: linked region hidden": at("test", "ablation", "linked"),
    "word cross entropy: random other region hidden": at("test", "ablation", "random"),
    "word cross entropy: all regions hidden": at("test", "ablation", "all"),
    **{f"contrastive loss of the random pairs, {x}": at("test", "retrieval", x, "loss") for x in RANKED},
    **{f"the same, pictures exchanged, {x}": at("test", "exchanged", "retrieval", x, "loss") for x in RANKED},
    "link AUC fell while the B-loss fell (share of runs)": at("self-confirming"),
    "CPU seconds of training": at("cpu seconds"),
}
"""What the page tells of each arm beside the claims."""


PAIRS = (("token", "sentence"), ("both", "sentence"), ("both", "token"), ("token", "blind"), ("sentence", "blind"))


def effects(results: Results) -> str:
    """Of the 2^3 factorial: every setting, what moving each objective to the token adds, mean over the settings of the others, and interactions; over seeds with all eight.

    An interaction A x B is half of the difference that B makes to the effect of A.
    """
    arm = {x: CELLS.get(x, "token" if all(x) else "sentence") for x in product((0, 1), repeat=3)}
    if not set(arm.values()) <= results.keys():
        return ""
    seeds = sorted(set.intersection(*(set(results[x]) for x in arm.values())))
    names = {"A": (0,), "B": (1,), "C": (2,), "A x B": (0, 1), "A x C": (0, 2), "B x C": (1, 2), "A x B x C": (0, 1, 2)}
    heads = " | ".join(f"{x} ({len(results[x])})" for x in arm.values())
    cells = [f"| (seeds) | {heads} |", "|---" * 9 + "|"]
    lines = [f"| effect of the token ({len(seeds)} seeds) | " + " | ".join(names) + " |", "|---" * 8 + "|"]
    for name, value in COMPARED.items():
        found = {s: {seed: value(run) for seed, run in results[x].items()} for s, x in arm.items()}
        cells.append(f"| {name} | " + " | ".join(str(interval(list(x.values()))) for x in found.values()) + " |")
        sums = [
            [sum(x[seed] * np.prod([2 * s[i] - 1 for i in places]) for s, x in found.items()) / 4 for seed in seeds]
            for places in names.values()
        ]
        lines.append(f"| {name} | " + " | ".join(bold(interval([float(y) for y in x])) for x in sums) + " |")
    return "\nThe factorial, attention pooling:\n\n" + "\n".join([*cells, "", *lines]) + "\n"


def verdicts(results: Results) -> str:
    """What these runs say of the hypotheses that they can speak to."""
    lines = ["| hypothesis | measured | verdict |", "|---|---|---|"]
    if {"token", "sentence"} <= results.keys():
        gap = difference(results, COMPARED["pointing, best"], "token", "sentence")
        lines.append(
            f"| H1, at these sizes | pointing, best read-out of each: token - sentence {gap} | {verdict(gap)} |"
        )
        swap, token = (
            interval(list(seeds_of(results, x, COMPARED["binding, best"]).values())) for x in ("sentence", "token")
        )
        said = (
            "held"
            if swap.high < 0.75 < token.low
            else "refuted"
            if swap.low > 0.75 or token.high < 0.75
            else "undecided"
        )
        said = said if min(swap.count, token.count) >= 5 else "undecided"
        lines.append(f"| H3 | binding, best read-out: sentence {swap}, token {token}; the line is .75 | {said} |")
    if {"both", "token", "sentence"} <= results.keys():
        value = COMPARED["t2i R@1 of random pairs, best"]
        sentence, token_, both = (seeds_of(results, x, value) for x in ("sentence", "token", "both"))
        better = {s: max(token_[s], sentence[s]) for s in token_.keys() & sentence.keys()}
        gap = paired(both, better)
        lines.append(
            f"| H5 | t2i R@1, best: both - the better of the two {gap}; -.02 is allowed | {verdict(gap, 0.02)} |"
        )
    return "\n".join(lines) + "\n"


def draw(results: Results, out: Path) -> None:
    """Each seed a dot: pointing, binding and retrieval of the arms."""
    shown = {"pointing": ("pointing, u.v", "pointing, best"), "binding": ("binding, best",)}
    shown["t2i R@1 of random pairs"] = ("t2i R@1 of random pairs, best",)
    arms = list(results)
    with style.settings("granularity"):
        figure = style.figure(9.0, 1.2 + 0.28 * len(arms))
        axes = figure.subplots(1, len(shown), sharey=True)
        for panel, (title, names) in zip(axes, shown.items(), strict=True):
            for i, arm in enumerate(arms):
                for j, name in enumerate(names):
                    values = [(MEASURES | COMPARED)[name](x) for x in results[arm].values()]
                    colour = style.CATEGORIES[j]
                    panel.scatter(values, np.full(len(values), i), s=16, color=colour, alpha=0.6, linewidths=0)
                    panel.plot([np.mean(values)] * 2, [i - 0.25, i + 0.25], color=colour, linewidth=1.6)
            panel.set_title(title if len(names) == 1 else f"{title}: u.v (blue), best read-out (orange)", fontsize=8)
            panel.set_xlim(-0.02, 1.02)
            panel.grid(axis="x", color=style.FAINT, linewidth=0.6)
        axes[0].set_yticks(range(len(arms)), arms)
        axes[0].invert_yaxis()
        figure.subplots_adjust(left=0.2, right=0.98, top=0.86, bottom=0.14, wspace=0.08)
        style.save(figure, out)


@dataclass
class Granularity:
    """The runs to make, and the page of all that are there."""

    out: Path = KEPT / "granularity"
    arms: tuple[str, ...] = ("sentence", "sentence, mean pooling", "token", "both", "blind")
    factorial: bool = False
    """All eight settings of the three objectives too."""
    seeds: tuple[int, ...] = (101, 102, 103, 104, 105)
    pairs: int = Run.pairs
    steps: int = Run.steps
    batch: int = Run.batch
    level: int = Run.level
    unit: Literal["region", "image"] = Run.unit
    density: float = Run.density
    noise: float = Run.noise
    tuned: bool = False
    """Rate and temperature of each arm by its trials, see `studies.tuning`."""
    device: str = "cpu"
    """That trains the runs to make, such as "cuda"."""
    page: Path | None = None
    """Write tables and figure here; the section is named by level and unit."""
    make: bool = True
    """False = only the page, from the runs that are there."""


def main(args: Sequence[str] | None = None) -> None:
    """Makes the runs seed by seed and prints the tables."""
    options = tyro.cli(Granularity, args=args, prog="python -m intarsia.studies.granularity")
    torch.set_num_threads(1)
    same = {x: getattr(options, x) for x in ("pairs", "steps", "batch", "level", "unit", "density", "noise")}
    cells = [*CELLS.values(), "sentence", "token"] if options.factorial else []
    arms = settings(list(dict.fromkeys([*options.arms, *cells])), options.tuned)
    for seed, arm in product(options.seeds, arms) if options.make else ():
        perform(Run(arm=arm, seed=seed, **same, **arms[arm]), options.out, device=options.device)  # type: ignore[arg-type]
    results = known(options.out, arms, dataclasses.asdict(Run()), size="tiny", **same)
    shown = {arm: runs for arm, runs in results.items() if arm in options.arms} or results
    told = report(shown, CLAIMS, MEASURES, PAIRS, verdicts(shown) + effects(results))
    print(told)
    if options.page:
        name = f"level{options.level}-{options.unit}"
        name += "".join(f"-{x}{same[x]:.3g}" for x in ("noise", "density") if same[x] != getattr(Run, x))
        figure = options.page.with_name(f"granularity-{name}.svg")
        draw(results, figure)
        seeds = ", ".join(str(x) for x in sorted({s for runs in results.values() for s in runs}))
        about = f"{options.pairs} pairs, {options.steps} steps of {options.batch}, level {options.level}, visual unit {options.unit}; seeds {seeds}."
        about += " Rate and temperature by arm." if options.tuned else ""
        write_section(options.page, name, f"{about}\n\n![arms]({figure.name})\n\n{told}", "granularity")


if __name__ == "__main__":
    program(main, "granularity")
