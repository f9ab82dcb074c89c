"""Loss curves of a run, one panel an objective, from its metrics.jsonl."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from intarsia.errors import BadInput
from intarsia.viz import style

NAMES = {
    "mlm": "hidden words",
    "mrfr": "hidden regions: features",
    "mrc": "hidden regions: class",
    "mrc_kl": "hidden regions: class shares",
    "itm": "does the pair match?",
    "wra": "word-region transport",
    "moc": "hidden regions: class",
    "mvrc": "hidden regions: class shares",
    "vlm": "does the pair match?",
    "contrast": "were tags or caption exchanged?",
    "lm": "hidden words, read or written",
    "vis": "hidden regions: which is where?",
    "mlm_text": "hidden words of texts alone",
    "sgp_object": "hidden names of objects",
    "sgp_attribute": "hidden words that describe",
    "sgp_relation": "hidden words that relate",
    "caption": "hidden words of a caption being written",
    "obj": "every region: class",
    "attr": "every region: attribute",
    "feat": "hidden regions: features",
    "qa": "the answer to a question",
    "mvm": "hidden clips: visual word",
    "align": "do words and clips belong together?",
    "mlm_joint": "hidden words, above clips",
    "mvm_joint": "hidden clips, below words",
    "nce": "hidden clips: which of the batch?",
    "mi": "which speech belongs to the video?",
}
"""Objectives in plain words."""

Line = tuple[list[int], list[float]]


@dataclass(slots=True)
class Metrics:
    """What a run logged."""

    loss: dict[str, Line] = field(default_factory=dict)
    """Per objective: steps, and the mean loss since the line before."""
    valid: dict[str, Line] = field(default_factory=dict)
    """The same on held-out pairs."""
    pairs_per_second: list[float] = field(default_factory=list)
    steps: int = 0
    seconds: float | None = None
    """Training time; None where the run did not say."""


def read_metrics(path: Path | str) -> Metrics:
    """Reads a metrics.jsonl; a last line that a killed run left unfinished is passed over.

    Raises:
        BadInput: no such file, or a line is no JSON object with a step.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    found = Metrics()
    for number, line in enumerate(lines, 1):
        try:
            row: Any = json.loads(line)
            step = int(row["step"])
            for curves, values in ((found.loss, row.get("loss", {})), (found.valid, row.get("valid", {}))):
                for name, value in values.items():
                    steps, numbers = curves.setdefault(name, ([], []))
                    steps.append(step)
                    numbers.append(float(value))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            if number == len(lines) and number > 1:
                break
            raise BadInput(f"{path}: line {number} is no line of a run's log: {line[:60]!r}") from None
        found.steps = max(found.steps, step)
        found.seconds = row.get("seconds", found.seconds)
        if "pairs_per_second" in row:
            found.pairs_per_second.append(float(row["pairs_per_second"]))
    return found


def draw_curves(metrics: Path | str, out: Path | str) -> None:
    """Draws the losses of a run's metrics.jsonl to an .svg or .png file."""
    with style.settings("curves"):
        style.save(curves_figure(read_metrics(metrics)), out)


def curves_figure(metrics: Metrics, width: float = 9.0) -> Figure:
    """A panel an objective: training (faint: as logged, bold: smoothed) and held-out loss over steps. To be called inside `style.settings`.

    Raises:
        BadInput: the run has logged no loss.
    """
    names = list(dict.fromkeys([*(x for x in NAMES if x in metrics.loss), *metrics.loss]))
    if not names:
        raise BadInput("the run has logged no loss yet")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    drawn = style.figure(width, 0.3 + 2.05 * rows)
    for i, name in enumerate(names):
        axes = drawn.add_subplot(rows, columns, i + 1)
        _panel(axes, name, metrics)
        if i >= len(names) - columns:
            axes.set_xlabel("step", color=style.SOFT)
    drawn.tight_layout(h_pad=1.4, w_pad=1.6)
    return drawn


def _panel(axes: Any, name: str, metrics: Metrics) -> None:
    axes.set_title(name, loc="left", fontsize=9.5, fontweight="bold", color=style.SOFT, pad=15)
    axes.text(0, 1.035, NAMES.get(name, ""), transform=axes.transAxes, fontsize=7.5, color=style.SOFT)
    steps, values = metrics.loss[name]
    smooth = _smooth(values)
    axes.plot(steps, values, color=style.WORDS, alpha=0.35, linewidth=0.8)
    axes.plot(steps, smooth, color=style.WORDS, linewidth=1.5)
    ends = [("training", smooth[-1], style.WORDS)]
    shown = list(values)
    if name in metrics.valid:
        axes.plot(*metrics.valid[name], color=style.REGIONS, linewidth=1.5)
        ends.insert(0, ("held out", metrics.valid[name][1][-1], style.REGIONS))
        shown += metrics.valid[name][1]
    for i, (label, value, colour) in enumerate(ends):
        height = 1.035 + 0.105 * (len(ends) - 1 - i)
        axes.text(1, height, f"{label} {value:.3f}", transform=axes.transAxes, ha="right", fontsize=7.5, color=colour)
    if name == "itm":
        axes.axhline(math.log(2), color=style.SOFT, linewidth=0.8, linestyle=(0, (2, 2)))
        place = axes.get_yaxis_transform()
        axes.text(0.99, math.log(2), "guessing", fontsize=7, color=style.SOFT, va="bottom", ha="right", transform=place)
    low, high = min(shown), max(shown)
    margin = 0.06 * (high - low or 1.0)
    axes.set_ylim(0 if 0 <= low < 0.5 * high else low - margin, high + margin)
    axes.set_xlim(0, max(metrics.steps, 1))
    for side in ("left", "bottom"):
        axes.spines[side].set_color(style.SOFT)
        axes.spines[side].set_linewidth(0.6)
    axes.tick_params(colors=style.SOFT, labelsize=7, width=0.6, length=2.5)
    axes.grid(axis="y", color=style.SOFT, alpha=0.22, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=5)


def _smooth(values: list[float], keep: float = 0.6) -> list[float]:
    """A running mean that forgets; unbiased from the first value on."""
    found, total, weight = [], 0.0, 0.0
    for value in values:
        total = keep * total + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        found.append(total / weight)
    return found
