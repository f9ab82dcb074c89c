"""How do the arms of `studies.granularity` change with the number of pairs, and with noise in the captions?

    python -m intarsia.studies.volume --page docs/studies/volume.md

Two protocols: fixed steps, in which few pairs are seen more often, and fixed epochs, in which few pairs get less compute. Runs are those of
`studies.granularity`, one JSON file each, made once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from intarsia.errors import BadInput
from intarsia.studies.family import write_section
from intarsia.studies.granularity import CLAIMS, COMPARED, Run, perform
from intarsia.studies.numbers import Interval, curve, interval, multiplier, paired, repetition, verdict
from intarsia.studies.rates import settings
from intarsia.studies.runs import KEPT, Results, gather, program
from intarsia.studies.tables import POOLED, bold, difference, seeds_of, within
from intarsia.viz import style

SIZES = tuple(125 * 2**k for k in range(8))
SCENES = 200
"""Of each test split; retrieval is among so many."""
ERRORS = {
    "pointing": "pointing, best",
    "binding": "binding, best",
    "t2i R@1": "t2i R@1 of random pairs, best",
}
"""What is told -> the claim of `studies.granularity` whose complement is the error."""

Grid = dict[int, Results]
"""Pairs -> arm -> seed -> result."""


@dataclass
class Volume:
    """The runs to make, and the page of all that are there."""

    out: Path = KEPT / "volume"
    arms: tuple[str, ...] = ("sentence", "token", "both")
    sizes: tuple[int, ...] = SIZES
    seeds: tuple[int, ...] = (101, 102, 103, 104, 105)
    """Of runs to make; the page is of all seeds that are there. Processes with different seeds may run beside each other."""
    protocol: Literal["steps", "epochs"] = "steps"
    """steps = the same number of steps at every size; epochs = the same number of passes over the pairs."""
    steps: int = Run.steps
    """Of protocol steps."""
    epochs: int = 10
    """Of protocol epochs."""
    batch: int = Run.batch
    level: int = Run.level
    noise: tuple[float, ...] = (0.0,)
    """Shares of captions that are those of other scenes."""
    density: tuple[float, ...] = (1.0,)
    """Shares of a caption's content words that name something in the picture."""
    tuned: bool = False
    """Rate and temperature of each arm by its trials, see `studies.tuning`."""
    page: Path | None = None
    make: bool = True
    """False = only the page, from the runs that are there."""

    def steps_of(self, pairs: int) -> int:
        """Steps of a run."""
        return self.steps if self.protocol == "steps" else max(20, self.epochs * pairs // self.batch)

    @property
    def settings(self) -> dict[str, dict[str, float]]:
        """Rate and temperature of each arm."""
        return settings(self.arms, self.tuned)

    def levels(self, pairs: int) -> set[int]:
        """Numbers of steps for which a size has runs."""
        names = (x.parent.name.removeprefix("steps") for x in self.out.rglob(f"*-n{pairs}-*.json"))
        return {int(x) for x in names if x.isdecimal()}

    def gathered(self, **same: Any) -> Results:
        """The results that are there."""
        same = {"batch": self.batch, "level": self.level, "unit": "region", "size": "tiny", **same}
        return gather(self.out, self.settings, dataclasses.asdict(Run()), **same)


def grid(options: Volume, noise: float, density: float) -> Grid:
    """The results of a protocol that are there."""
    found = {}
    for n in options.sizes:
        if known := options.gathered(pairs=n, steps=options.steps_of(n), noise=noise, density=density):
            found[n] = known
    return found


def errors(found: Grid, arm: str, claim: str) -> dict[int, dict[int, float]]:
    """Size -> seed -> error of an arm; of the sentence with the better pooling."""
    value = COMPARED[claim]
    return {
        n: {seed: 1 - x for seed, x in seeds_of(arms, arm, value).items()} for n, arms in found.items() if arm in arms
    }


def table(found: Grid, arms: Sequence[str]) -> str:
    """Each measure and arm, a column a size."""
    sizes = sorted(found)
    lines = [
        "| | arm | " + " | ".join(str(n) for n in sizes) + " | curve of the error |",
        "|---" * (len(sizes) + 3) + "|",
    ]
    for name, claim in ERRORS.items():
        for arm in arms:
            known = errors(found, arm, claim)
            cells = [str(interval([1 - x for x in known[n].values()])) if n in known else "-" for n in sizes]
            fitted = curve({n: list(x.values()) for n, x in known.items()})
            lines.append(f"| {name} | {arm} | {' | '.join(cells)} | {'-' if fitted is None else fitted} |")
    return "\n".join(lines) + "\n"


def exchanged(found: Grid, arms: Sequence[str]) -> str:
    """The same with the test pictures exchanged, which should leave nothing but chance."""
    sizes = sorted(found)
    lines = [
        "| pictures exchanged | arm | " + " | ".join(map(str, sizes)) + " | chance |",
        "|---" * (len(sizes) + 3) + "|",
    ]
    for name, claim in ERRORS.items():
        split, value, chance = CLAIMS[claim]
        for arm in arms:
            runs = {n: list(found[n].get(arm, {}).values()) for n in sizes}
            cells = [str(interval([within(split, "exchanged", value=value)(x) for x in runs[n]])) for n in sizes]
            guess = np.mean([chance(x[split]) for n in sizes for x in runs[n]])
            lines.append(f"| {name} | {arm} | {' | '.join(cells)} | {guess:.3f} |")
    return "\n".join(lines) + "\n"


def shapes(found: Grid, arms: Sequence[str]) -> str:
    """How well a fit on all but the two largest sizes foretells those."""
    lines = ["| | arm | pairs: error foretold, measured (off by) at the two largest sizes |", "|---|---|---|"]
    for name, claim in ERRORS.items():
        for arm in arms:
            fitted = curve({n: list(x.values()) for n, x in errors(found, arm, claim).items()}, draws=200)
            if fitted is not None and fitted.foretold:
                said = "; ".join(f"{n}: {a:.3f}, {b:.3f} ({a / max(b, 1e-4) - 1:+.0%})" for n, a, b in fitted.foretold)
                lines.append(f"| {name} | {arm} | {said} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "Fewer than five sizes: no shape is tested.\n"


def multipliers(found: Grid) -> str:
    """How many times the pairs that the sentence arm needs for the token arm's error at each size."""
    lines = ["| | error of the token arm | its pairs | data multiplier of the sentence arm |", "|---|---|---|---|"]
    for name, claim in ERRORS.items():
        slow, fast = (
            {n: float(np.mean(list(x.values()))) for n, x in errors(found, arm, claim).items()}
            for arm in ("sentence", "token")
        )
        for n, error in fast.items() if slow else ():
            times = multiplier(slow, fast, error)
            bound = "at most " if slow[min(slow)] <= error else ""
            lines.append(
                f"| {name} | {error:.3f} | {n} | {'not reached' if times is None else f'{bound}{times:.2g}'} |"
            )
    return "\n".join(lines) + "\n"


def repetitions(options: Volume) -> str:
    """What repeated pairs are worth, from runs of all numbers of steps; empty where there are too few."""
    lines = ["| repeated pairs | arm | n' = n (1 + R (1 - exp(-r / R))), err = floor + a n'^-b |", "|---|---|---|"]
    for name, claim in ERRORS.items():
        for arm in options.arms:
            points = [
                (x["run"]["pairs"], x["run"]["steps"] * x["run"]["batch"] / x["run"]["pairs"], 1 - COMPARED[claim](x))
                for n in options.sizes
                for steps in options.levels(n)
                for x in options.gathered(pairs=n, noise=0.0, density=1.0, steps=steps).get(arm, {}).values()
            ]
            if fitted := repetition(points):
                lines.append(f"| {name} | {arm} | {fitted} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def ratios(found: Grid, claim: str) -> tuple[Interval, dict[int, float]]:
    """Log of the ratio of errors sentence / token, largest less smallest size, paired by seed; and its mean at each size."""
    left, right = errors(found, "sentence", claim), errors(found, "token", claim)
    sizes = sorted(left.keys() & right.keys())
    logs = {
        n: {s: float(np.log(max(left[n][s], 1e-3) / max(right[n][s], 1e-3))) for s in left[n].keys() & right[n].keys()}
        for n in sizes
    }
    means = {n: float(np.exp(np.mean(list(x.values())))) for n, x in logs.items() if x}
    return (paired(logs[sizes[-1]], logs[sizes[0]]) if len(sizes) > 1 else interval([])), means


def advantage(arms: Results, name: str, arm: str = "token") -> Interval:
    """An arm less the sentence in a measure, paired by seed."""
    return difference(arms, COMPARED[ERRORS[name]], arm, "sentence")


def verdicts(found: Grid) -> str:
    """H1 and H2 on these runs."""
    lines = ["| hypothesis | measured | verdict |", "|---|---|---|"]
    gaps = {n: advantage(arms, "pointing") for n, arms in sorted(found.items()) if {"sentence", "token"} <= arms.keys()}
    if gaps:
        told = {verdict(x) for x in gaps.values()}
        said = "refuted" if "refuted" in told else "held" if told == {"held"} else "undecided"
        lines.append(f"| H1 | token - sentence: {'; '.join(f'{n}: {x}' for n, x in gaps.items())} | {said} |")
        changes = {name: ratios(found, ERRORS[name]) for name in ("t2i R@1", "pointing")}
        shrinks = [x.count >= 5 and x.high < 0 for x, _ in changes.values()]
        grows = [x.count >= 5 and x.low > 0 for x, _ in changes.values()]
        said = "held" if shrinks[0] and grows[1] else "refuted" if grows[0] or shrinks[1] else "undecided"
        told_by = "; ".join(
            f"{name}: {', '.join(f'{n}: {r:.2f}' for n, r in means.items())}, log change {change}"
            for name, (change, means) in changes.items()
        )
        lines.append(f"| H2 | ratio of errors sentence / token, {told_by} | {said} |")
    return "\n".join(lines) + "\n"


def advantages(grids: Mapping[tuple[float, float], Grid], options: Volume) -> str:
    """Every arm, and what it has over the sentence, at each share of shuffled captions (H4) and each density of links."""
    heads = " | ".join(f"{x} | less the sentence" for x in ERRORS)
    lines = [f"| shuffled | linked words | pairs | arm (seeds) | {heads} |", "|---" * (4 + 2 * len(ERRORS)) + "|"]
    for (noise, density), found in sorted(grids.items()):
        for n, arms in sorted(found.items()):
            for arm in (x for x in options.arms if x in arms):
                cells = []
                for name, claim in ERRORS.items():
                    cells.append(str(interval([COMPARED[claim](x) for x in arms[arm].values()])))
                    over = arm not in POOLED and "sentence" in arms
                    cells.append(bold(advantage(arms, name, arm)) if over else "")
                told = f"{arm} ({len(arms[arm])})"
                lines.append(f"| {noise:g} | {density:.3g} | {n} | {told} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


CONTRAST, MODELLING = "A1 B0 C0", "A0 B1 C0"
"""Arms of which one objective alone is at the token."""


def h4(grids: Mapping[tuple[float, float], Grid]) -> str:
    """H4: by how much the most noise changes what contrast, and what masked modelling, at the token has over the sentence in pointing; mean over sizes."""
    noises = sorted(noise for noise, density in grids if density == 1)
    value = COMPARED[ERRORS["pointing"]]

    def change(arm: str) -> Interval:
        each: dict[int, list[float]] = {}
        for n in grids[0.0, 1.0].keys() & grids[noises[-1], 1.0].keys():
            clean, loud = (
                {s: x - y[s] for s, x in seeds_of(arms, arm, value).items() if s in y}
                for arms in (grids[0.0, 1.0][n], grids[noises[-1], 1.0][n])
                for y in [seeds_of(arms, "sentence", value)]
            )
            for seed in clean.keys() & loud.keys():
                each.setdefault(seed, []).append(loud[seed] - clean[seed])
        return interval([float(np.mean(x)) for x in each.values()])

    if len(noises) < 2 or noises[0] != 0.0:
        return ""
    contrast, modelling = change(CONTRAST), change(MODELLING)
    if not contrast.count or not modelling.count:
        return ""
    said = "undecided"
    if min(contrast.count, modelling.count) >= 5:
        held = modelling.high < 0 and contrast.low > -0.05
        said = "held" if held else "refuted" if modelling.low > 0 or contrast.high < -0.05 else "undecided"
    told = f"advantage at {noises[-1]:g} less that at 0: {CONTRAST} {contrast}, {MODELLING} {modelling}"
    return f"| hypothesis | measured | verdict |\n|---|---|---|\n| H4 | pointing, {told} | {said} |\n"


def draw(found: Grid, arms: Sequence[str], out: Path) -> None:
    """Error against pairs, both on log axes: each seed a dot, means joined, fits dashed where they may be printed."""
    with style.settings("volume"):
        figure = style.figure(9.2, 3.2)
        panels = figure.subplots(1, len(ERRORS))
        for panel, (name, claim) in zip(panels, ERRORS.items(), strict=True):
            for i, arm in enumerate(arms):
                known, colour = errors(found, arm, claim), style.CATEGORIES[i]
                for n, seeds in known.items():
                    panel.scatter(
                        [n] * len(seeds), np.maximum(list(seeds.values()), 1e-3), s=9, color=colour, alpha=0.5
                    )
                means = [max(1e-3, float(np.mean(list(known[n].values())))) for n in sorted(known)]
                panel.plot(sorted(known), means, color=colour, linewidth=1.4, label=arm)
                fitted = curve({n: list(x.values()) for n, x in known.items()})
                if fitted is not None and fitted.printable:
                    x = np.geomspace(min(known), max(known), 40)
                    panel.plot(x, fitted.fit.at(x), color=colour, linewidth=0.9, linestyle="--")
            panel.set_xscale("log")
            panel.set_yscale("log")
            sizes = sorted(found)
            panel.set_xticks(sizes, [str(n) if i % 2 == 0 else "" for i, n in enumerate(sizes)])
            low, high = panel.get_ylim()
            shown = [y for y in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if low <= y <= high]
            panel.set_yticks(shown, [f"{y:g}" for y in shown])
            panel.minorticks_off()
            panel.set_title(f"{name}: error", fontsize=8.5)
            panel.set_xlabel("pairs")
        panels[0].legend(frameon=False)
        figure.subplots_adjust(left=0.07, right=0.99, top=0.9, bottom=0.16, wspace=0.22)
        style.save(figure, out)


def tell(options: Volume, found: Grid) -> str:
    """Everything that the runs of a protocol say, as Markdown."""
    arms = _arms(options, found)
    parts = [table(found, arms), shapes(found, arms), multipliers(found), verdicts(found), exchanged(found, arms)]
    parts += [repetitions(options)] if options.protocol == "steps" else []
    return "\n".join(filter(None, parts))


def _arms(options: Volume, found: Grid) -> list[str]:
    return [arm for arm in options.arms if any(arm in x for x in found.values())]


def main(args: Sequence[str] | None = None) -> None:
    """Makes the runs, all sizes of a seed before the next, and prints the tables."""
    options = tyro.cli(Volume, args=args, prog="python -m intarsia.studies.volume")
    torch.set_num_threads(1)
    todo = product(options.seeds, options.noise, options.density, options.sizes, options.arms) if options.make else ()
    for seed, noise, density, n, arm in todo:
        same = {"batch": options.batch, "level": options.level, "noise": noise, "density": density}
        rate = options.settings[arm]
        perform(Run(arm, n, seed, options.steps_of(n), **same, **rate), options.out, scenes=SCENES)  # type: ignore[arg-type]
    settings_of = product(options.noise, options.density)
    grids = {(noise, density): found for noise, density in settings_of if (found := grid(options, noise, density))}
    if not grids:
        raise BadInput(f"{options.out}: holds no runs of these sizes, captions and {options.protocol}")
    much = f"{options.steps} steps" if options.protocol == "steps" else f"{options.epochs} epochs in batches"
    sizes = sorted({n for found in grids.values() for n in found})
    counts = ", ".join(
        f"{n}: {max(len(x) for g in grids.values() if n in g for x in g[n].values())} seeds" for n in sizes
    )
    told = f"Fixed {options.protocol}: {much} of {options.batch}, level {options.level} ({counts})."
    told += " Rate and temperature by arm." if options.tuned else ""
    name, figure = f"fixed-{options.protocol}", Path(f"volume-fixed-{options.protocol}.svg")
    if options.noise != (0.0,) or options.density != (1.0,):
        name = "noise" if options.noise != (0.0,) else "density"
        told += f"\n\n{advantages(grids, options)}\n{h4(grids)}"
    else:
        (found,) = grids.values()
        told += f"\n\n![learning curves]({figure.name})\n\n{tell(options, found)}"
        if options.page:
            draw(found, _arms(options, found), options.page.with_name(figure.name))
    print(told)
    if options.page:
        write_section(options.page, name, told, "volume")


if __name__ == "__main__":
    program(main, "volume")
