"""A passage of a film as strips of pictures: what is shown, and what a system makes of what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intarsia.batch import Array
from intarsia.viz import style
from intarsia.viz.strips import natural_width

_CELL, _LEFT, _GAP = 0.78, 1.35, 0.12


@dataclass(frozen=True)
class Strip:
    """One row of pictures."""

    label: str
    pictures: tuple[Array, ...]
    """(h, w, 3) uint8, one a clip."""
    below: tuple[str, ...] = ()
    """Under each picture; none = nothing."""


@dataclass(frozen=True)
class Scene:
    """The clips of one sentence, side by side."""

    said: str
    strips: tuple[Strip, ...]
    """Of the same labels in every scene."""


def draw_filmstrip(scenes: Sequence[Scene], out: Path | str, title: str, columns: int = 10) -> None:
    """Draws scenes beside one another, in as many lines as it takes, with the sentence above each.

    Args:
        scenes: in order of time.
        out: .png or .svg.
        title: said above.
        columns: pictures a line at the most.
    """
    lines: list[list[Scene]] = [[]]
    for scene in scenes:
        if lines[-1] and sum(_wide(x) for x in [*lines[-1], scene]) > columns:
            lines.append([])
        lines[-1].append(scene)
    rows = len(scenes[0].strips)
    tall = 0.34 + rows * (_CELL + 0.2)
    width = _LEFT + max(sum(_wide(x) * _CELL + _GAP for x in line) for line in lines) + 0.2
    height = 0.55 + len(lines) * tall
    with style.settings("filmstrip"):
        figure = style.figure(width, height)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.axis("off")
        axes.text(0.2, 0.26, title, fontsize=10, fontweight="bold", color=style.INK, va="center")
        for number, line in enumerate(lines):
            _line(axes, line, 0.5 + number * tall)
        style.save(figure, out)


def _wide(scene: Scene) -> int:
    return max(2, *(len(x.pictures) for x in scene.strips))


def _line(axes: Any, line: Sequence[Scene], top: float) -> None:
    for row, strip in enumerate(line[0].strips):
        y = top + 0.34 + row * (_CELL + 0.2)
        axes.text(0.2, y + _CELL / 2, strip.label, fontsize=8, color=style.INK, va="center")
    x = _LEFT
    for scene in line:
        width = _wide(scene) * _CELL
        size = min(7.5, 7.5 * width / max(natural_width(scene.said, 7.5), 1e-6))
        axes.text(x, top + 0.22, scene.said, fontsize=size, color=style.INK, va="center", style="italic")
        for row, strip in enumerate(scene.strips):
            _strip(axes, strip, x, top + 0.34 + row * (_CELL + 0.2))
        x += width + _GAP


def _strip(axes: Any, strip: Strip, x: float, y: float) -> None:
    for i, pixels in enumerate(strip.pictures):
        left, side = x + i * _CELL, _CELL - 0.05
        high, wide = pixels.shape[:2]
        scale = side / max(high, wide)
        w, h = wide * scale, high * scale
        dx, dy = (side - w) / 2, (side - h) / 2
        place = (left + dx, left + dx + w, y + dy + h, y + dy)
        axes.imshow(pixels, extent=place, aspect="auto", interpolation="bilinear", zorder=2)
        across, down = [left, left + side, left + side, left], [y, y, y + side, y + side]
        axes.fill(across, down, fill=False, edgecolor=style.FAINT, linewidth=0.8, zorder=3)
        if i < len(strip.below):
            axes.text(
                left + side / 2, y + side + 0.07, strip.below[i], fontsize=6, color=style.SOFT, ha="center", va="center"
            )
