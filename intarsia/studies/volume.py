"""How do the arms of `studies.granularity` change with the number of pairs, and with noise in the captions?

    python -m intarsia.studies.volume --out runs/granularity --page docs/studies/volume.md

Two protocols: fixed steps, in which few pairs are seen more often, and fixed epochs, in which few pairs get less compute. Runs are those of
`studies.granularity`, one JSON file each, made once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from intarsia.errors import BadInput
from intarsia.studies.family import write_section
from intarsia.studies.granularity import MEASURES, Run, gather, perform
from intarsia.studies.numbers import Interval, curve, interval, multiplier, paired, verdict
from intarsia.viz import style

SIZES = tuple(125 * 2**k for k in range(8))
ERRORS = {
    "pointing": "pointing, best of the three",
    "binding": "binding, best",
    "t2i R@1": "t2i R@1 of random pairs, best",
}
"""What is told -> the measure whose complement is the error."""

Grid = dict[int, dict[str, dict[int, dict[str, Any]]]]
"""Pairs -> arm -> seed -> result."""


@dataclass
class Volume:
    """The runs to make, and the page of all that are there."""

    out: Path = Path("runs/granularity")
    arms: tuple[str, ...] = ("sentence", "token", "both")
    sizes: tuple[int, ...] = SIZES
    seeds: tuple[int, ...] = (101, 102, 103, 104, 105)
    protocol: Literal["steps", "epochs"] = "steps"
    """steps = the same number of steps at every size; epochs = the same number of passes over the pairs."""
    steps: int = 400
    """Of protocol steps."""
    epochs: int = 10
    """Of protocol epochs."""
    batch: int = 32
    level: int = 0
    noise: tuple[float, ...] = (0.0,)
    """Shares of captions that are those of other scenes."""
    page: Path | None = None
    make: bool = True
    """False = only the page, from the runs that are there."""

    def steps_of(self, pairs: int) -> int:
        """Steps of a run."""
        return self.steps if self.protocol == "steps" else max(20, self.epochs * pairs // self.batch)


def grid(options: Volume, noise: float) -> Grid:
    """The results that are there."""
    found = {}
    for n in options.sizes:
        same = {"pairs": n, "steps": options.steps_of(n), "batch": options.batch, "level": options.level}
        known = gather(options.out, **same, noise=noise, unit="region")
        if kept := {arm: runs for arm, runs in known.items() if arm in options.arms}:
            found[n] = kept
    return found


def errors(found: Grid, arm: str, measure: str) -> dict[int, dict[int, float]]:
    """Size -> seed -> error of an arm."""
    value = MEASURES[measure]
    return {n: {seed: 1 - value(x) for seed, x in arms[arm].items()} for n, arms in found.items() if arm in arms}


def table(found: Grid, arms: Sequence[str]) -> str:
    """Each measure and arm, a column a size."""
    sizes = sorted(found)
    lines = [
        "| | arm | " + " | ".join(str(n) for n in sizes) + " | curve of the error |",
        "|---" * (len(sizes) + 3) + "|",
    ]
    for name, measure in ERRORS.items():
        for arm in arms:
            known = errors(found, arm, measure)
            cells = [str(interval([1 - x for x in known[n].values()])) if n in known else "-" for n in sizes]
            fitted = curve({n: list(x.values()) for n, x in known.items()})
            lines.append(f"| {name} | {arm} | {' | '.join(cells)} | {'-' if fitted is None else fitted} |")
    return "\n".join(lines) + "\n"


def shapes(found: Grid, arms: Sequence[str]) -> str:
    """How well a fit on all but the two largest sizes foretells those."""
    lines = ["| | arm | foretold and measured error at the two largest sizes |", "|---|---|---|"]
    for name, measure in ERRORS.items():
        for arm in arms:
            fitted = curve({n: list(x.values()) for n, x in errors(found, arm, measure).items()}, draws=200)
            if fitted is not None and fitted.foretold:
                said = "; ".join(f"{n}: {a:.3f}, {b:.3f}" for n, a, b in fitted.foretold)
                lines.append(f"| {name} | {arm} | {said} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "Fewer than five sizes: no shape is tested.\n"


def multipliers(found: Grid) -> str:
    """How many times the pairs that the sentence arm needs for the token arm's error at each size."""
    lines = ["| | error of the token arm | its pairs | data multiplier of the sentence arm |", "|---|---|---|---|"]
    for name, measure in ERRORS.items():
        means = {
            arm: {n: float(np.mean(list(x.values()))) for n, x in errors(found, arm, measure).items()}
            for arm in ("sentence", "token")
        }
        if not means["sentence"] or not means["token"]:
            continue
        for n, error in means["token"].items():
            times = multiplier(means["sentence"], means["token"], error)
            lines.append(f"| {name} | {error:.3f} | {n} | {'not reached' if times is None else f'{times:.2g}'} |")
    return "\n".join(lines) + "\n"


def ratios(found: Grid, measure: str) -> tuple[Interval, dict[int, float]]:
    """Log of the ratio of errors sentence / token, largest less smallest size, paired by seed; and its mean at each size."""
    left, right = errors(found, "sentence", measure), errors(found, "token", measure)
    sizes = sorted(left.keys() & right.keys())
    logs = {
        n: {s: float(np.log(max(left[n][s], 1e-3) / max(right[n][s], 1e-3))) for s in left[n].keys() & right[n].keys()}
        for n in sizes
    }
    means = {n: float(np.exp(np.mean(list(x.values())))) for n, x in logs.items() if x}
    return (paired(logs[sizes[-1]], logs[sizes[0]]) if len(sizes) > 1 else interval([])), means


def verdicts(found: Grid) -> str:
    """H1 and H2 on these runs."""
    lines = ["| hypothesis | measured | verdict |", "|---|---|---|"]
    gaps = {}
    for n, arms in sorted(found.items()):
        if {"sentence", "token"} <= arms.keys():
            value = MEASURES[ERRORS["pointing"]]
            of = {arm: {s: value(x) for s, x in arms[arm].items()} for arm in ("token", "sentence")}
            gaps[n] = paired(of["token"], of["sentence"])
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


def noisy(by_noise: Mapping[float, Grid]) -> str:
    """The token arm's advantage at each share of shuffled captions (H4)."""
    lines = ["| shuffled | pairs | pointing, token - sentence | t2i R@1, token - sentence |", "|---|---|---|---|"]
    for noise, found in sorted(by_noise.items()):
        for n, arms in sorted(found.items()):
            if {"sentence", "token"} <= arms.keys():
                gaps = [
                    paired(
                        *({s: MEASURES[ERRORS[name]](x) for s, x in arms[arm].items()} for arm in ("token", "sentence"))
                    )
                    for name in ("pointing", "t2i R@1")
                ]
                lines.append(f"| {noise:g} | {n} | {gaps[0]} | {gaps[1]} |")
    return "\n".join(lines) + "\n"


def draw(found: Grid, arms: Sequence[str], out: Path) -> None:
    """Error against pairs, both on log axes: each seed a dot, means joined, fits dashed where they may be printed."""
    with style.settings("volume"):
        figure = style.figure(9.2, 3.2)
        panels = figure.subplots(1, len(ERRORS))
        for panel, (name, measure) in zip(panels, ERRORS.items(), strict=True):
            for i, arm in enumerate(arms):
                known, colour = errors(found, arm, measure), style.CATEGORIES[i]
                for n, seeds in known.items():
                    panel.scatter(
                        [n] * len(seeds), np.maximum(list(seeds.values()), 1e-3), s=9, color=colour, alpha=0.5
                    )
                means = [max(1e-3, float(np.mean(list(known[n].values())))) for n in sorted(known)]
                panel.plot(sorted(known), means, color=colour, linewidth=1.4, label=arm)
                fitted = curve({n: list(x.values()) for n, x in known.items()}, draws=200)
                if fitted is not None and fitted.printable:
                    x = np.geomspace(min(known), max(known), 40)
                    panel.plot(x, fitted.fit.at(x), color=colour, linewidth=0.9, linestyle="--")
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_title(f"{name}: error", fontsize=8.5)
            panel.set_xlabel("pairs")
        panels[0].legend(frameon=False)
        figure.subplots_adjust(left=0.07, right=0.99, top=0.9, bottom=0.16, wspace=0.22)
        style.save(figure, out)


def tell(options: Volume) -> tuple[str, Grid]:
    """Everything that the runs of a protocol say, as Markdown, and the runs without noise."""
    by_noise = {noise: grid(options, noise) for noise in options.noise}
    clean = by_noise.get(0.0, {})
    arms = [arm for arm in options.arms if any(arm in x for x in clean.values())]
    parts = []
    if clean:
        parts += [table(clean, arms), shapes(clean, arms), multipliers(clean), verdicts(clean)]
    if len(options.noise) > 1:
        parts.append(noisy(by_noise))
    return "\n".join(parts), clean


def main(args: Sequence[str] | None = None) -> None:
    """Makes the runs, all sizes of a seed before the next, and prints the tables."""
    options = tyro.cli(Volume, args=args, prog="python -m intarsia.studies.volume")
    todo = product(options.seeds, options.noise, options.sizes, options.arms) if options.make else ()
    for seed, noise, n, arm in todo:
        run = Run(arm, n, seed, options.steps_of(n), options.batch, level=options.level, noise=noise)
        perform(run, options.out)
    told, clean = tell(options)
    if not clean:
        raise BadInput(f"{options.out}: holds no runs without noise of these sizes and {options.protocol}")
    print(told)
    if options.page:
        name = f"fixed-{options.protocol}"
        figure = options.page.with_name(f"volume-{name}.svg")
        arms = [arm for arm in options.arms if any(arm in x for x in clean.values())]
        draw(clean, arms, figure)
        much = f"{options.steps} steps" if options.protocol == "steps" else f"{options.epochs} epochs"
        counts = ", ".join(f"{n}: {max(len(x) for x in clean[n].values())} seeds" for n in sorted(clean))
        about = f"Fixed {options.protocol}: {much} of {options.batch}, level {options.level} ({counts})."
        write_section(options.page, name, f"{about}\n\n![learning curves]({figure.name})\n\n{told}", "volume")


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        raise SystemExit(f"volume: {error}") from None
