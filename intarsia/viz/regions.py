"""One picture and one sentence: boxes on the pixels, the region each word looks at, and the whole word-region map beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

from intarsia.batch import Array, Sample
from intarsia.evaluate import Inference, Look, match, word_region_maps
from intarsia.system import System
from intarsia.viz import style
from intarsia.viz.strips import natural_width

_SIDE = 3.9  # inches, longer side of the picture
_ROW = 0.21
_QUIET = Inference(progress=False)


def draw_match(
    pixels: Array,
    words: Sequence[str],
    boxes: Array,
    attention: Array,
    text: str,
    probability: float,
    out: Path | str,
    own: dict[str, Array] | None = None,
) -> None:
    """Draws a picture with its regions, the words of a text and what each looks at, to an .svg or .png file.

    A line runs from a word to the region that stands out for it, the thicker the more it does; a word whose attention is spread evenly has none. Pieces
    of one word ("##s") are put together.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        words: T pieces.
        boxes: (R, 4) xyxy as fractions.
        attention: (T, R) float, from words to regions.
        text: the sentence.
        probability: that it fits the picture, 0 .. 1.
        out: file to write.
        own: further (T, R) maps of the same words, by name, such as a transport plan.

    Raises:
        BadInput: the file has another ending or cannot be written.
    """
    whole, maps = whole_words(words, {"attention": attention, **(own or {})})
    with style.settings("match"):
        style.save(_figure(pixels, whole, boxes, maps, text, probability), out)


def word_regions(system: System, sample: Sample, pixels: Array, out: Path | str, look: Look | None = None) -> float:
    """Scores a sample and draws its words' attention and the system's own alignments; returns the match score (log odds).

    Args:
        system: a system that matches.
        sample: one text, one picture with regions.
        pixels: (H, W, 3) uint8, the picture.
        out: .svg or .png file.
        look: which attention; None = the mean of all.

    Raises:
        TooLong: the text does not fit.
        BadInput: the file has another ending or cannot be written.
    """
    example = system.lay_out(sample)
    maps = word_region_maps(system, [example], _QUIET)[0].of_picture(sample)
    assert example.text is not None, "the system reads text"
    rows = np.flatnonzero(example.text.words >= 0)
    _, scores = match(system, [sample], sample.pictures[:1], _QUIET)
    score = float(scores[0, 0])
    words = [system.vocab.tokens[int(i)] for i in example.text.ids[rows]]
    own = {name: x[rows] for name, x in maps.own.items()}
    seen = maps.seen(look or Look())[rows]
    draw_match(
        pixels, words, sample.pictures[0].boxes, seen, sample.texts[0], 1 / (1 + float(np.exp(-score))), out, own
    )
    return score


def whole_words(pieces: Sequence[str], maps: dict[str, Array]) -> tuple[list[str], dict[str, Array]]:
    """Pieces put together to words, and each word's rows of the maps averaged and scaled to sum to 1."""
    starts = [i for i, x in enumerate(pieces) if i == 0 or not x.startswith("##")]
    ends = [*starts[1:], len(pieces)]
    words = ["".join(x.removeprefix("##") for x in pieces[a:b]) for a, b in zip(starts, ends, strict=True)]
    found = {}
    for name, rows in maps.items():
        mean = np.stack([np.asarray(rows[a:b], np.float64).mean(0) for a, b in zip(starts, ends, strict=True)])
        positive = np.maximum(mean, 0)
        found[name] = positive / np.maximum(positive.sum(1, keepdims=True), 1e-9)
    return words, found


def _figure(
    pixels: Array, words: list[str], boxes: Array, maps: dict[str, Array], text: str, probability: float
) -> Figure:
    high, wide = pixels.shape[:2]
    scale = _SIDE / max(high, wide)
    count = len(boxes)
    cell = min(0.26, 3.4 / max(1, count))
    word_width = max([natural_width(x, 8.5) for x in words] + [0.5])
    left, top = 0.25, 0.78
    words_at = left + wide * scale + 0.75
    maps_at = words_at + word_width + 0.14
    width = max(maps_at + len(maps) * (count * cell + 0.35), natural_width(text, 11) + 2.6, 6.0)
    tall = max(high * scale, len(words) * _ROW + 0.25)
    figure = style.figure(width, top + tall + 0.35)
    total = float(figure.get_figheight())
    _title(figure, text, probability, width, total)
    down = top + (tall - high * scale) / 2
    picture = figure.add_axes(
        (left / width, 1 - (down + high * scale) / total, wide * scale / width, high * scale / total)
    )
    picture.imshow(pixels, interpolation="nearest" if max(high, wide) < 300 else "antialiased")
    picture.axis("off")
    first = next(iter(maps.values()))
    looked = first.argmax(1) if count else np.zeros(len(words), np.int64)
    strength = first.max(1) * count if count else np.zeros(len(words))  # 1 = spread evenly
    named = [r for r, _ in sorted(_total(looked, strength).items(), key=lambda x: -x[1])]
    colour = {r: style.CATEGORIES[i % len(style.CATEGORIES)] for i, r in enumerate(named)}
    _boxes(picture, boxes, high, wide, colour)
    block = figure.add_axes((0, 0, 1, 1))
    block.set_xlim(0, width)
    block.set_ylim(total, 0)
    block.axis("off")
    start = top + (tall - len(words) * _ROW) / 2
    for i, word in enumerate(words):
        y = start + (i + 0.5) * _ROW
        heard = strength[i] > 1.35 and count > 1
        ink = colour[int(looked[i])] if heard else style.SOFT
        block.text(
            words_at + word_width,
            y,
            word,
            fontsize=8.5,
            color=ink,
            ha="right",
            va="center",
            fontweight="bold" if heard else "normal",
        )
        if heard:
            _line(
                figure,
                block,
                picture,
                (words_at + word_width - natural_width(word, 9.2) - 0.06, y),
                boxes[looked[i]],
                (high, wide),
                ink,
                strength[i] / count,
            )
    for k, (name, rows) in enumerate(maps.items()):
        _map(block, name, rows, maps_at + k * (count * cell + 0.35), start, cell, colour)
    return figure


def _title(figure: Figure, text: str, probability: float, width: float, total: float) -> None:
    figure.text(0.25 / width, 1 - 0.3 / total, text, fontsize=11, fontweight="bold", color=style.INK, va="center")
    fits = "fits" if probability >= 0.5 else "does not fit"
    said = f"{fits} the picture: probability {probability:.3f}"
    figure.text(0.25 / width, 1 - 0.53 / total, said, fontsize=8.5, color=style.SOFT, va="center")


def _total(looked: Array, strength: Array) -> dict[int, float]:
    """Regions that some word looks at, and how much is looked at them."""
    found: dict[int, float] = {}
    for region, much in zip(looked.tolist(), strength.tolist(), strict=True):
        if much > 1.35:
            found[region] = found.get(region, 0.0) + much
    return found


def _boxes(axes: Any, boxes: Array, high: int, wide: int, colour: dict[int, str]) -> None:
    for r, box in sorted(enumerate(boxes), key=lambda x: x[0] in colour):
        x1, y1, x2, y2 = box[0] * wide, box[1] * high, box[2] * wide, box[3] * high
        edge = colour.get(r, "#9aa1ad")
        axes.add_patch(
            Rectangle(
                (x1 - 0.5, y1 - 0.5),
                x2 - x1,
                y2 - y1,
                fill=False,
                edgecolor="white",
                linewidth=3.2 if r in colour else 1.6,
                alpha=0.7,
            )
        )
        axes.add_patch(
            Rectangle(
                (x1 - 0.5, y1 - 0.5),
                x2 - x1,
                y2 - y1,
                fill=False,
                edgecolor=edge,
                linewidth=1.9 if r in colour else 0.8,
            )
        )
        if len(boxes) > 14 and r not in colour:
            continue
        look = {
            "facecolor": edge,
            "edgecolor": "none",
            "boxstyle": "round,pad=0.18",
            "alpha": 0.95 if r in colour else 0.75,
        }
        axes.text(x1, y1, str(r + 1), fontsize=6.5, color="white", ha="left", va="bottom", bbox=look, zorder=5)


def _line(
    figure: Figure,
    block: Any,
    picture: Any,
    place: tuple[float, float],
    box: Array,
    size: tuple[int, int],
    ink: str,
    weight: float,
) -> None:
    """A line from a word to the right edge of a box, thicker where more of the attention goes there."""
    target = float(box[2]) * size[1] - 0.5, float(box[1] + box[3]) / 2 * size[0] - 0.5
    patch = ConnectionPatch(
        xyA=place, coordsA=block.transData, xyB=target, coordsB=picture.transData, color=ink, linewidth=0.5 + 2.6 * weight, alpha=0.35 + 0.6 * weight,
        connectionstyle="arc3,rad=0.04",
    )  # fmt: skip
    figure.add_artist(patch)


def _map(block: Any, name: str, rows: Array, x: float, y: float, cell: float, colour: dict[int, str]) -> None:
    """A (words, regions) map as tinted cells, the strongest of each row outlined."""
    block.text(x, y - 0.24, name, fontsize=8, color=style.INK, va="center", fontweight="bold")
    for r in range(rows.shape[1]):
        if cell > 0.14:
            block.text(
                x + (r + 0.5) * cell,
                y - 0.08,
                str(r + 1),
                fontsize=6.5,
                color=colour.get(r, style.SOFT),
                ha="center",
                va="center",
            )
    for i, row in enumerate(rows):
        for r, value in enumerate(row):
            place = (x + r * cell + 0.01, y + i * _ROW + 0.01)
            tint = (*style.rgb(colour.get(r, style.SPECIAL)), 0.06 + 0.94 * min(1.0, float(value)))
            block.add_patch(Rectangle(place, cell - 0.02, _ROW - 0.02, facecolor=tint, edgecolor="none"))
        if len(row):
            best = int(row.argmax())
            block.add_patch(
                Rectangle(
                    (x + best * cell + 0.01, y + i * _ROW + 0.01),
                    cell - 0.02,
                    _ROW - 0.02,
                    fill=False,
                    edgecolor=style.INK,
                    linewidth=0.7,
                )
            )
