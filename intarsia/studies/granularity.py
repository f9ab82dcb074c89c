"""Does it help to tie pictures and language by the token instead of by the pair, all else equal?

    python -m intarsia.studies.granularity --out runs/granularity --page docs/studies/granularity.md

A run is one arm, one number of pairs and one seed: an Inlay from scratch on a generated world, measured by `studies.tying` on unseen scenes. Each run
leaves one JSON file; runs that are there are not made again. The page's tables and figure come from the files alone.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from intarsia.batch import Example, Sample
from intarsia.data.source import Source
from intarsia.errors import BadInput
from intarsia.studies.family import without_picture, write_section
from intarsia.studies.numbers import Interval, interval, paired, verdict
from intarsia.studies.tying import READ_OUTS, bag, measure
from intarsia.systems.inlay import Inlay
from intarsia.train import Pace, pretrain
from intarsia.train.start import captions, fresh
from intarsia.viz import style
from intarsia.worlds import WorldConfig, WorldSource

ARMS: dict[str, dict[str, Any]] = {
    "sentence": {"granularity": "sentence"},
    "sentence, mean pooling": {"granularity": "sentence", "pool": "mean"},
    "sentence, no false captions": {"granularity": "sentence", "false_captions": 0},
    "token": {"granularity": "token"},
    "token, no false captions": {"granularity": "token", "false_captions": 0},
    "both": {"granularity": "both"},
    "blind": {"granularity": "both"},
    **{
        f"A{a} B{b} C{c}": {"g_a": float(a), "g_b": float(b), "g_c": float(c)}
        for a, b, c in product((0, 1), repeat=3)
        if 0 < a + b + c < 3
    },
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

    @property
    def name(self) -> str:
        """Of its file."""
        arm = self.arm.replace(", ", "-").replace(" ", "-")
        more = f"-{self.unit}" if self.unit == "image" else ""
        more += f"-noise{self.noise:g}" if self.noise else ""
        return f"level{self.level}{more}-n{self.pairs}-steps{self.steps}-{arm}-seed{self.seed}"


class Blind(Inlay):
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


def world(run: Run, split: str, count: int) -> WorldSource:
    """Scenes of 3 to 5 objects, captions that name 2; test scenes of all runs are the same."""
    config = WorldConfig(level=run.level, objects=(3, 5), noise=run.noise)
    return WorldSource(config, split, count, run.seed if split == "train" else 7)  # type: ignore[arg-type]


def perform(run: Run, folder: Path, scenes: int = 400, fused: int = 50) -> dict[str, Any]:
    """Makes a run, or reads what it left when it was made before."""
    result = folder / f"{run.name}.json"
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    if run.arm not in ARMS:
        raise BadInput(f"no arm {run.arm!r} (arms: {', '.join(ARMS)})")
    recipe = Inlay.recipes["tiny"]
    recipe = dataclasses.replace(
        recipe,
        config=dataclasses.replace(recipe.config, visual_unit=run.unit, **ARMS[run.arm]),
        optim=dataclasses.replace(recipe.optim, lr=run.lr),
        schedule=dataclasses.replace(recipe.schedule, steps=run.steps, warmup=max(1, run.steps // 20)),
        batching=dataclasses.replace(recipe.batching, samples=min(run.batch, run.pairs)),
        seed=run.seed,
    )
    train = world(run, "train", run.pairs)
    words = captions(WorldSource(WorldConfig(level=run.level, objects=(3, 5)), count=1000, seed=0))
    assert train.provenance is not None
    cls = Inlay if run.arm != "blind" else Blind
    system, recipe = fresh(cls, recipe, words, train.provenance)
    assert isinstance(system, Inlay)
    source: Any = train if run.unit == "region" else Bags(train)
    work = folder / "work" / run.name
    began, used = time.perf_counter(), time.process_time()
    pace = Pace(log_every=100, save_every=run.steps, tensorboard=False)
    outcome = pretrain(system, source, recipe, work, workers=0, device="cpu", pace=pace)
    if not outcome.finished:
        raise SystemExit(f"stopped by {outcome.stopped_by}; the same command goes on")
    found = {
        "run": dataclasses.asdict(run),
        "parameters": sum(x.numel() for x in system.parameters() if x.requires_grad),
        "seconds": time.perf_counter() - began,
        "cpu seconds": time.process_time() - used,
        "losses": [json.loads(x)["loss"] for x in (work / "metrics.jsonl").read_text().splitlines() if '"loss"' in x][
            -1
        ],
        **{
            split: measure(system, world(run, split, 1200), scenes, n)
            for split, n in (("test", fused), ("held_out", 10))
        },
    }
    result.parent.mkdir(parents=True, exist_ok=True)
    part = result.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(result)
    return found


# ---------------------------------------------------------------------------------------------------------------- tables

Value = Callable[[dict[str, Any]], float]


def best(where: str, key: str | None, split: str = "test") -> Value:
    """The best read-out of a measure: of "pointing" the best map, else the best of the scores."""

    def value(found: dict[str, Any]) -> float:
        if where == "pointing":
            maps = found[split]["pointing"]
            return max(float(maps[x]) for x in ("dot", "attention", "attention back"))
        table = found[split][where] if key is None else {k: v for k, v in found[split][where].items() if k in READ_OUTS}
        return max(float(x[key] if key is not None else x) for x in table.values())

    return value


def at(*path: str) -> Value:
    """The number at a path of the JSON file."""

    def value(found: dict[str, Any]) -> float:
        for part in path:
            found = found[part]
        return float(found)  # type: ignore[arg-type]

    return value


def _swap(split: str) -> Value:
    return lambda found: max(found[split]["choices"]["swap"].values())


MEASURES: dict[str, Value] = {
    "pointing, u.v": at("test", "pointing", "dot"),
    "pointing, attention of words": at("test", "pointing", "attention"),
    "pointing, attention of regions": at("test", "pointing", "attention back"),
    "pointing, best of the three": best("pointing", None),
    "link AUC": at("test", "alignment", "auc"),
    "soft IoU": at("test", "alignment", "soft iou"),
    "null share, content words": at("test", "alignment", "null, content"),
    "null share, other words": at("test", "alignment", "null, other"),
    **{f"binding, {x}": at("test", "choices", "swap", x) for x in READ_OUTS},
    "binding, best": _swap("test"),
    **{f"replaced word, {x}": at("test", "choices", "replace", x) for x in READ_OUTS},
    "which word is wrong": at("test", "choices", "fault"),
    "which word is wrong, chance": at("test", "choices", "fault, chance"),
    "t2i R@1 of random pairs, sentence": at("test", "retrieval", "sentence", "t2i R@1"),
    "t2i R@1 of random pairs, token": at("test", "retrieval", "token", "t2i R@1"),
    "t2i R@1 of random pairs, best": best("retrieval", "t2i R@1"),
    "i2t R@1 of random pairs, best": best("retrieval", "i2t R@1"),
    **{f"t2i R@1 of 50 unambiguous, {x}": at("test", "unambiguous", x, "t2i R@1") for x in READ_OUTS},
    "true caption against all false ones, best": lambda x: max(x["test"]["choices"]["best of all"].values()),
    "word cross entropy: nothing hidden": at("test", "ablation", "none"),
    "word cross entropy: linked region hidden": at("test", "ablation", "linked"),
    "word cross entropy: random other region hidden": at("test", "ablation", "random"),
    "word cross entropy: all regions hidden": at("test", "ablation", "all"),
    "pictures exchanged: pointing, u.v": at("test", "exchanged", "pointing", "dot"),
    "pictures exchanged: binding, best": lambda x: max(x["test"]["exchanged"]["choices"]["swap"].values()),
    "pictures exchanged: t2i R@1, best": lambda x: max(
        v["t2i R@1"] for v in x["test"]["exchanged"]["retrieval"].values()
    ),
    "held-out pairs: pointing, best": best("pointing", None, "held_out"),
    "held-out pairs: binding, best": _swap("held_out"),
    "held-out pairs: t2i R@1 of random pairs, best": best("retrieval", "t2i R@1", "held_out"),
    "CPU seconds of training": at("cpu seconds"),
}
"""What the page tells of each arm."""

Results = Mapping[str, Mapping[int, dict[str, Any]]]
"""Arm -> seed -> what the run found."""


def gather(folder: Path, **same: Any) -> dict[str, dict[int, dict[str, Any]]]:
    """All results of a folder whose runs agree with the given fields."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        run = result["run"]
        if all(run[name] == value for name, value in same.items()):
            found.setdefault(run["arm"], {})[run["seed"]] = result
    return {arm: found[arm] for arm in ARMS if arm in found}


def table(results: Results) -> str:
    """All measures, a column an arm: mean over seeds ± half of the 95 % t-interval."""
    arms = list(results)
    heads = " | ".join(f"{arm} ({len(results[arm])})" for arm in arms)
    lines = [f"| (seeds) | {heads} |", "|---" * (len(arms) + 1) + "|"]
    for name, value in MEASURES.items():
        cells = " | ".join(str(interval([value(x) for x in results[arm].values()])) for arm in arms)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


PAIRS = (("token", "sentence"), ("both", "sentence"), ("both", "token"))
COMPARED = (
    "pointing, u.v", "pointing, best of the three", "binding, best", "t2i R@1 of random pairs, best",
    "i2t R@1 of random pairs, best", "which word is wrong", "held-out pairs: pointing, best",
    "held-out pairs: t2i R@1 of random pairs, best",
)  # fmt: skip


def difference(results: Results, name: str, left: str, right: str) -> Interval:
    """A measure of one arm less that of another, paired by seed."""
    value = MEASURES[name]
    of = {arm: {seed: value(x) for seed, x in results.get(arm, {}).items()} for arm in (left, right)}
    return paired(of[left], of[right])


def differences(results: Results) -> str:
    """Paired differences of the main arms."""
    pairs = [x for x in PAIRS if x[0] in results and x[1] in results]
    lines = ["| | " + " | ".join(f"{a} - {b}" for a, b in pairs) + " |", "|---" * (len(pairs) + 1) + "|"]
    for name in COMPARED:
        cells = []
        for a, b in pairs:
            gap = difference(results, name, a, b)
            sure = gap.count > 1 and not gap.low <= 0 <= gap.high
            cells.append(f"**{gap}**" if sure else str(gap))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\nBold: the 95 % interval excludes 0.\n"


def verdicts(results: Results) -> str:
    """What these runs say of the hypotheses that they can speak to."""
    lines = ["| hypothesis | measured | verdict |", "|---|---|---|"]
    if {"token", "sentence"} <= results.keys():
        gap = difference(results, "pointing, best of the three", "token", "sentence")
        lines.append(
            f"| H1, at these sizes | pointing, best read-out of each: token - sentence {gap} | {verdict(gap)} |"
        )
        swap = interval([MEASURES["binding, best"](x) for x in results["sentence"].values()])
        token = interval([MEASURES["binding, best"](x) for x in results["token"].values()])
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
        value = MEASURES["t2i R@1 of random pairs, best"]
        common = results["both"].keys() & results["token"].keys() & results["sentence"].keys()
        gap = interval([
            value(results["both"][s]) - max(value(results["token"][s]), value(results["sentence"][s])) for s in sorted(common)
        ])  # fmt: skip
        lines.append(
            f"| H5 | t2i R@1, best: both - the better of the two {gap}; -.02 is allowed | {verdict(gap, 0.02)} |"
        )
    return "\n".join(lines) + "\n"


def draw(results: Results, out: Path) -> None:
    """Each seed a dot: pointing, binding and retrieval of the arms."""
    shown = {"pointing": ("pointing, u.v", "pointing, best of the three"), "binding": ("binding, best",)}
    shown["t2i R@1 of random pairs"] = ("t2i R@1 of random pairs, best",)
    arms = list(results)
    with style.settings("granularity"):
        figure = style.figure(9.0, 1.2 + 0.28 * len(arms))
        axes = figure.subplots(1, len(shown), sharey=True)
        for panel, (title, names) in zip(axes, shown.items(), strict=True):
            for i, arm in enumerate(arms):
                for j, name in enumerate(names):
                    values = [MEASURES[name](x) for x in results[arm].values()]
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

    out: Path = Path("runs/granularity")
    arms: tuple[str, ...] = ("sentence", "token", "both")
    factorial: bool = False
    """All eight settings of the three objectives too."""
    seeds: tuple[int, ...] = (101, 102, 103, 104, 105)
    pairs: int = 2000
    steps: int = 400
    batch: int = 32
    level: int = 0
    unit: Literal["region", "image"] = "region"
    page: Path | None = None
    """Write tables and figure here; the section is named by level and unit."""
    make: bool = True
    """False = only the page, from the runs that are there."""


def main(args: Sequence[str] | None = None) -> None:
    """Makes the runs seed by seed and prints the tables."""
    options = tyro.cli(Granularity, args=args, prog="python -m intarsia.studies.granularity")
    same = {x: getattr(options, x) for x in ("pairs", "steps", "batch", "level", "unit")}
    arms = [
        *options.arms,
        *(x for x in ARMS if options.factorial and (x.startswith("A") or x in ("sentence", "token"))),
    ]
    for seed, arm in product(options.seeds, dict.fromkeys(arms)) if options.make else ():
        perform(Run(arm=arm, seed=seed, **same), options.out)
    results = gather(options.out, **same, noise=0.0)
    if not results:
        raise BadInput(f"{options.out}: holds no runs of {same}")
    told = f"{table(results)}\nPaired by seed:\n\n{differences(results)}\n{verdicts(results)}"
    print(told)
    if options.page:
        name = f"level{options.level}-{options.unit}"
        figure = options.page.with_name(f"granularity-{name}.svg")
        draw(results, figure)
        about = f"{options.pairs} pairs, {options.steps} steps of {options.batch}, level {options.level}, visual unit {options.unit}"
        seeds = ", ".join(str(x) for x in sorted({s for runs in results.values() for s in runs}))
        write_section(options.page, name, f"{about}; seeds {seeds}.\n\n![arms]({figure.name})\n\n{told}", "granularity")


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        raise SystemExit(f"granularity: {error}") from None
