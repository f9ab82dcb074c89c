"""Two streams as a drawing: what each does by itself and where they meet, from the attention calls of the live system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from intarsia.viz import style

LEVEL = 0.3
"""Inches from one level of the drawing to the next."""
_BOX = 0.22
_LANE = 1.95
_OFTEN = 3  # repeats from which levels are drawn once


@dataclass(slots=True)
class Level:
    """Layers that lie side by side in the drawing."""

    words: int = 0
    """Self-attention layers of the words, one after another."""
    regions: int = 0
    both: int = 0
    """Attention layers over words and regions together."""
    asks: tuple[str, ...] = ()
    """Streams that attend to the other one here; then there is no self-attention."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Levels, drawn once, that run a number of times."""

    levels: tuple[Level, ...]
    times: int = 1


def levels(calls: Sequence[tuple[str, str]]) -> list[Level]:
    """Attention calls in order, seer and seen as `streams_of` names them, put side by side where no meeting parts them."""
    found: list[Level] = []
    for seer, seen in calls:
        if not (seer and seen):
            continue  # rows of neither stream, such as words split in two
        if seer != seen:
            if not found or not found[-1].asks or seer in found[-1].asks:
                found.append(Level())
            found[-1].asks += (seer,)
            continue
        if not found or found[-1].asks or (seer == "both") != bool(found[-1].both):
            found.append(Level())
        match seer:
            case "words":
                found[-1].words += 1
            case "regions":
                found[-1].regions += 1
            case "both":
                found[-1].both += 1
    return found


def stages(calls: Sequence[tuple[str, str]]) -> list[Stage]:
    """The levels of a system, with a meeting and what follows it told once where that repeats."""
    rest, found = levels(calls), []
    while rest:
        pair = rest[:2]
        times = 1
        while len(pair) == 2 and rest[2 * times : 2 * times + 2] == pair:
            times += 1
        if times >= _OFTEN and pair[0].asks:
            found.append(Stage(tuple(pair), times))
            rest = rest[2 * times :]
        else:
            found.append(Stage((rest[0],)))
            rest = rest[1:]
    return found


def tall(parts: Sequence[Stage]) -> float:
    """Inches that stages take."""
    return LEVEL * sum(len(x.levels) for x in parts)


def draw(axes: Any, parts: Sequence[Stage], left: float, right: float, y: float, shown: str = "regions") -> None:
    """Draws stages on axes in inches, y downwards: a lane of words on the left, one of regions on the right.

    Args:
        axes: to draw on.
        parts: from top to bottom.
        left: left end.
        right: right end.
        y: upper end.
        shown: what the regions are called.
    """
    lanes = {"words": left + 1.275, "regions": right - 1.275}
    for x in lanes.values():
        axes.plot([x, x], [y - 0.06, y + tall(parts) - LEVEL + _BOX + 0.06], color=style.FAINT, linewidth=1.2, zorder=0)
    for part in parts:
        top = y
        for level in part.levels:
            _level(axes, level, lanes, y, shown)
            y += LEVEL
        if part.times > 1:
            _rim(axes, left, right, top, y - LEVEL + _BOX)
            axes.text(
                (left + right) / 2,
                top + _BOX + LEVEL / 2,
                f"× {part.times}",
                fontsize=8.5,
                fontweight="bold",
                color=style.INK,
                ha="center",
                va="center",
            )


def _level(axes: Any, level: Level, lanes: dict[str, float], y: float, shown: str) -> None:
    if level.both:
        middle = sum(lanes.values()) / 2
        width = lanes["regions"] - lanes["words"] + _LANE
        _box(axes, middle, y, width, f"attention over words and {shown} together{_many(level.both)}", style.SOFT)
        return
    colours = {"words": style.WORDS, "regions": style.REGIONS}
    for name, count in (("words", level.words), ("regions", level.regions)):
        if count:
            _box(axes, lanes[name], y, _LANE, f"self-attention{_many(count)}", colours[name])
    for name in level.asks:
        other = "regions" if name == "words" else "words"
        side = 1 if name == "words" else -1
        _box(
            axes,
            lanes[name],
            y,
            _LANE,
            f"attention to the {shown if other == 'regions' else other}",
            colours[name],
            strong=True,
        )
        height = y + _BOX * (0.33 if side > 0 else 0.67)
        far = lanes[other] - side * (_LANE / 2 if other in level.asks else 0.0)
        look = {
            "arrowstyle": "-|>",
            "color": colours[other],
            "linewidth": 1.1,
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 8,
        }
        axes.annotate("", (lanes[name] + side * _LANE / 2, height), (far, height), arrowprops=look)


def _many(count: int) -> str:
    return f"  × {count}" if count > 1 else ""


def _box(axes: Any, middle: float, y: float, width: float, text: str, colour: str, strong: bool = False) -> None:
    across, down = [middle - width / 2, middle + width / 2], [y, y + _BOX]
    corners = [across[0], across[1], across[1], across[0]], [down[0], down[0], down[1], down[1]]
    axes.fill(*corners, facecolor="white", zorder=1)
    face = (*style.rgb(colour), 0.26 if strong else 0.11)
    axes.fill(*corners, facecolor=face, edgecolor=colour, linewidth=0.9, zorder=2)
    axes.text(middle, y + _BOX / 2, text, fontsize=7.2, color=style.INK, ha="center", va="center", zorder=3)


def _rim(axes: Any, left: float, right: float, top: float, bottom: float) -> None:
    across, down = [left, right, right, left, left], [top - 0.03, top - 0.03, bottom + 0.03, bottom + 0.03, top - 0.03]
    axes.plot(across, down, color=style.SOFT, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1)
