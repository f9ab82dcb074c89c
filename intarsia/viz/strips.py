"""Rows of a document as a strip of cells: a word, a special token, a region or a clip a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from intarsia.batch import Array, Example, Sample
from intarsia.text import Vocab
from intarsia.viz import style


@dataclass(slots=True)
class Cell:
    """One row as it is drawn."""

    stream: str
    """"words", "special", "regions" or "clips"."""
    text: str
    crop: Array | None = None
    """(h, w, 3) uint8, pixels of a region, or a frame of a clip."""
    state: str = ""
    """"", "hidden", "changed", "kept" (asked, but left as it is) or "written" (asks for the next piece)."""
    below: str = ""
    """What is asked there."""

    @property
    def seen(self) -> bool:
        """Whether it is a region or a clip."""
        return self.stream in ("regions", "clips")


def cells_of(vocab: Vocab, example: Example, sample: Sample, images: dict[str, Array]) -> list[Cell]:
    """The rows of an example: its text rows, then its regions or clips with their pixels where these are at hand, see `pixels_of`."""
    assert example.text is not None, f"{example.key}: needs words"
    cells = [
        Cell("special" if word < 0 else "words", vocab.tokens[int(i)])
        for i, word in zip(example.text.ids, example.text.words, strict=True)
    ]
    if example.clips is not None:
        shown = [images.get(_clip(sample, second)) for second in example.clips.seconds.tolist()]
        return [*cells, *(Cell("clips", str(r + 1), pixels) for r, pixels in enumerate(shown))]
    assert example.regions is not None, f"{example.key}: needs regions or clips"
    pixels = images.get(sample.pictures[0].name)
    for r, box in enumerate(example.regions.boxes):
        cells.append(Cell("regions", str(r + 1), None if pixels is None else crop(pixels, box)))
    return cells


def pixels_of(source: Any, samples: Sequence[Sample]) -> dict[str, Array]:
    """The pictures of the first samples of a source that draws them, by the picture's name (`source.image`), or a frame of every clip (`source.frames`)."""
    found: dict[str, Array] = {}
    for i, sample in enumerate(samples):
        if sample.film is not None and hasattr(source, "frames"):
            names = [_clip(sample, second) for second in sample.film.seconds.tolist()]
            found |= dict(zip(names, source.frames(i), strict=True))
        elif sample.pictures and hasattr(source, "image"):
            found[sample.pictures[0].name] = source.image(i)
    return found


def _clip(sample: Sample, second: float) -> str:
    return f"{sample.film.name if sample.film else sample.key}@{second:.3f}"


def crop(pixels: Array, box: Array) -> Array:
    """The pixels (h, w, 3) of a box, at least one."""
    height, width = pixels.shape[:2]
    x1, y1 = int(box[0] * width), int(box[1] * height)
    x2, y2 = max(x1 + 1, round(float(box[2]) * width)), max(y1 + 1, round(float(box[3]) * height))
    return pixels[y1:y2, x1:x2]


@lru_cache(maxsize=4096)
def natural_width(text: str, size: float) -> float:
    """Inches that a text takes in a size in points."""
    if not text.strip():
        return 0.0
    if not style.drawable(text):
        return len(text) * size / 72
    box = TextPath((0, 0), text.replace("$", "S"), size=size, prop=FontProperties(family="DejaVu Sans")).get_extents()
    return float(box.width) / 72


_COLOURS = {"words": style.WORDS, "special": style.SPECIAL, "regions": style.REGIONS, "clips": style.REGIONS}
_STATES = {"changed": style.CHANGED, "kept": style.CHANGED, "written": style.WRITTEN}


def draw_cells(
    axes: Any,
    cells: list[Cell],
    x: float,
    y: float,
    widths: list[float],
    height: float,
    upright: bool,
    size: float = 7.2,
) -> float:
    """Draws a strip on axes in inches; returns where it ends.

    Args:
        axes: in inches, y downwards.
        cells: what to draw.
        x: left end.
        y: upper edge.
        widths: of the cells.
        height: of the strip.
        upright: True = text runs upwards.
        size: of the text, in points.
    """
    for cell, width in zip(cells, widths, strict=True):
        inner = width * 0.94
        _draw_cell(axes, cell, x, y, inner, height, upright, size)
        x += width
    return x - 0.06 * widths[-1]


def _draw_cell(
    axes: Any, cell: Cell, x: float, y: float, width: float, height: float, upright: bool, size: float
) -> None:
    colour = _STATES.get(cell.state, _COLOURS[cell.stream])
    hidden = cell.state == "hidden"
    face = style.INK if hidden else (*style.rgb(colour), 0.0 if cell.state == "kept" else 0.16)
    corners = [x, x + width, x + width, x], [y, y, y + height, y + height]
    axes.fill(*corners, facecolor=face, edgecolor=style.INK if hidden else colour, linewidth=0.8)
    ink = "white" if hidden else style.INK
    middle = (x + width / 2, y + height / 2)
    if cell.seen and cell.crop is not None and not hidden:
        _draw_crop(axes, cell.crop, x, y, width, height, upright)
        if upright:
            axes.text(middle[0], y + height * 0.8, cell.text, fontsize=size * 0.85, color=ink, ha="center", va="center")
    else:
        turn = 90 if upright and not cell.seen else 0
        axes.text(*middle, cell.text, fontsize=size, color=ink, ha="center", va="center", rotation=turn)
    if cell.below:
        place = middle[0], y + height + 0.09
        axes.text(*place, cell.below, fontsize=size * 0.93, color=style.SOFT, ha="center", va="center", style="italic")


def _draw_crop(axes: Any, pixels: Array, x: float, y: float, width: float, height: float, upright: bool) -> None:
    """The pixels of a region inside its cell, in their own proportions."""
    margin = 0.12 * width
    room_x, room_y = width - 2 * margin, (height * 0.62 if upright else height) - 2 * margin
    high, wide = pixels.shape[:2]
    scale = min(room_x / wide, room_y / high)
    w, h = wide * scale, high * scale
    left, top = x + (width - w) / 2, y + ((height * 0.62 if upright else height) - h) / 2
    axes.imshow(
        np.asarray(pixels), extent=(left, left + w, top + h, top), aspect="auto", interpolation="nearest", zorder=3
    )
