"""A system drawn from its live code and real samples: packed rows, streams, who sees whom, what each objective hides.

Nothing in the figure is written down by hand but the captions: rows come from `lay_out`, visibility from the packings that attention is called with,
hidden and exchanged rows from a comparison of `hide` with `lay_out`, loss names from `losses`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from intarsia.attend import watch
from intarsia.batch import Array, Batch, Picture, Sample
from intarsia.data.source import Source
from intarsia.evaluate.grounding import streams_of
from intarsia.pack import pack
from intarsia.packed import Packing, join, visible
from intarsia.system import System, fit_config
from intarsia.text import Vocab
from intarsia.viz import streams, style
from intarsia.viz.hiding import goals, mix_of, shown_by
from intarsia.viz.strips import cells_of, draw_cells, natural_width, pixels_of

WIDTH = 9.2
_LOOKED_AT = 64  # samples of the source that the figure chooses from
_PITCH = 0.58
_ROWS = 50  # of the strip


def draw_system(system: System | type[System], source: Source, out: Path | str) -> None:
    """Draws a system to an .svg or .png file.

    Args:
        system: a system, or a class of which a tiny one is built with a vocabulary learnt from the source.
        source: samples with regions, or with clips for systems that read these; where it draws them, see `strips.pixels_of`, they show their pixels.
        out: file to write.

    Raises:
        BadInput: the file has another ending or cannot be written.
    """
    samples = [source[i] for i in range(min(len(source), _LOOKED_AT))]
    live = _tiny(system, samples) if isinstance(system, type) else system
    plate = _Plate(live, samples, pixels_of(source, samples))
    with style.settings("packing"), torch.inference_mode():
        style.save(plate.draw(), out)


def _tiny(cls: type[System], samples: list[Sample]) -> System:
    recipe = cls.recipes.get("tiny") or next(iter(cls.recipes.values()))
    vocab = Vocab.learn((text for x in samples for text in x.texts), specials=cls.specials)
    shown = samples[0].film or samples[0].pictures[0]
    classes = shown.probs.shape[1] if isinstance(shown, Picture) and shown.probs is not None else 0
    config = fit_config(recipe.config, len(vocab), shown.features.shape[1], classes)
    with torch.random.fork_rng(devices=[]):
        return cls(config, vocab).eval()


class _Plate:
    """The figure, in inches from the top left corner."""

    def __init__(self, system: System, samples: list[Sample], images: dict[str, Array]) -> None:
        self.system, self.images, self.shown = system, images, shown_by(system)
        self.pool = samples
        self.samples = _ragged(system, samples)
        self.examples = [system.lay_out(x) for x in self.samples]
        self.batch = pack(self.examples)
        with watch() as self.seen:
            self.encoded = system.encode(self.batch)
        self.calls = [streams_of(*x, self.batch) for x in self.seen.packings]
        self.stages = [] if system.card.streams == "single" else streams.stages(self.calls)
        self.more = max(0.0, streams.tall(self.stages) - 0.72)  # what the streams need beyond the usual
        names = [name for name, share in mix_of(system).share.items() if share]
        drawn = [x for name in names for x in goals(system, self.samples[0], name, self.pool, self.images)]
        self.goals = list({(x.losses, x.what, *(cell.text for cell in x.cells)): x for x in drawn}.values())
        self.below = max(0.0, self.more - 0.3)  # and how much lower all under them begins
        self.height = 6.02 + self.below + _PITCH * len(self.goals)

    def draw(self) -> Any:
        figure = style.figure(WIDTH, self.height)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(self.height, 0)
        axes.axis("off")
        self.axes = axes
        self._head()
        self._strip(1.22)
        self._streams(2.62)
        self._visibility(figure, 2.62)
        self._objectives(5.5 + self.below)
        self._legend(self.height - 0.26)
        return figure

    def _head(self) -> None:
        card = self.system.card
        size = min(12.5, 12.5 * (WIDTH - 0.6) / (1.14 * natural_width(card.title, 12.5)))  # bold is wider
        self.axes.text(0.3, 0.42, card.title, fontsize=size, fontweight="bold", color=style.INK, va="center")
        said = f"{card.venue}  ·  {card.new}"
        self.axes.text(0.3, 0.69, said, fontsize=_fitting(said, 8.5, WIDTH - 0.6), color=style.SOFT, va="center")

    def _title(self, x: float, y: float, text: str, more: str = "") -> None:
        label = self.axes.text(x, y, text, fontsize=9, fontweight="bold", color=style.INK, va="baseline")
        if more:
            self.axes.annotate(
                f"  {more}", (1, 0), xycoords=label, fontsize=8, color=style.SOFT, va="bottom", annotation_clip=False
            )

    def _strip(self, y: float) -> None:
        """The rows of the batch, behind one another."""
        count = self.batch.rows
        self._title(
            0.3,
            y - 0.18,
            "One batch",
            f"{len(self.examples)} document{'s' * (len(self.examples) > 1)}, {count} rows, no padding between them",
        )
        gap = 0.09
        width = (WIDTH - 0.6 - gap * (len(self.examples) - 1)) / count
        x = 0.3
        for i, (sample, example) in enumerate(zip(self.samples, self.examples, strict=True)):
            cells = cells_of(self.system.vocab, example, sample, self.images)
            end = draw_cells(self.axes, cells, x, y, [width] * len(cells), 0.72, upright=True)
            words, shown = sum(c.stream == "words" for c in cells), sum(c.seen for c in cells)
            said = f"document {i + 1}: {words} words, {shown} {self.shown[: -1 if shown == 1 else None]}"
            self.axes.plot([x + 0.02, end - 0.02], [y + 0.79] * 2, color=style.SOFT, linewidth=0.8)
            self.axes.text((x + end) / 2, y + 0.92, said, fontsize=7.5, color=style.SOFT, ha="center", va="center")
            x = end + gap

    def _streams(self, y: float) -> None:
        """Inputs, encoder and what comes out, from the live system."""
        left, right, top = 0.3, 5.55, y + 0.18
        size = f"{sum(p.numel() for p in self.system.parameters()) / 1e6:.3g} M parameters in all"
        lanes = (left + 1.275, right - 1.275)
        self._box(left, top, 2.55, 0.46, "words", "pieces + positions + segments", style.WORDS)
        if self.stages:
            text, shown = (0 if x is None else x.shape[-1] for x in (self.encoded.text, self.encoded.visual))
            self._title(0.3, y, "Streams", f"words {text} wide, {self.shown} {shown} wide, {size}")
            read = "features + positions" if self.shown == "clips" else "features + geometry"
            self._box(right - 2.55, top, 2.55, 0.46, self.shown, read, style.REGIONS)
            streams.draw(self.axes, self.stages, left, right, top + 0.72, self.shown)
        else:
            self._title(0.3, y, "Streams")
            read = "features + geometry + segments" if "regions" in self.system.needs else "cells of a CNN's last map"
            read = "visual words + positions + segments" if self.shown == "clips" else read
            self._box(right - 2.55, top, 2.55, 0.46, self.shown, read, style.REGIONS)
            heads, width = self.seen.maps[0].shape[1], self.encoded.pooled.shape[-1]
            said = f"{len(self.calls)} attention layers  ·  {heads} heads  ·  width {width}  ·  {size}"
            self._box(
                left, top + 0.82, right - left, 0.52, f"one encoder over words and {self.shown}", said, style.SOFT
            )
        for x in lanes:
            self._arrow(x, top + 0.48, top + (0.70 if self.stages else 0.80))
        top += self.more
        names = list(dict.fromkeys(loss for g in self.goals for loss in g.losses))
        wide = (right - left - 0.08 * (len(names) - 1)) / len(names)
        for i, (name, asked) in enumerate(names):
            x = left + i * (wide + 0.08)
            colour = {"words": style.WORDS, self.shown: style.REGIONS}.get(asked, style.CHANGED)
            self._arrow(x + wide / 2, top + 1.36, top + 1.68)
            self._box(x, top + 1.70, wide, 0.46, name, f"asks the {asked}", colour)

    def _box(self, x: float, y: float, width: float, height: float, title: str, more: str, colour: str) -> None:
        from matplotlib.patches import FancyBboxPatch

        edge = FancyBboxPatch(
            (x + 0.05, y + 0.05),
            width - 0.1,
            height - 0.1,
            boxstyle="round,pad=0.05,rounding_size=0.06",
            facecolor=(*style.rgb(colour), 0.11),
            edgecolor=colour,
            linewidth=0.9,
        )
        self.axes.add_patch(edge)
        self.axes.text(
            x + width / 2,
            y + height * 0.35,
            title,
            fontsize=min(8.5, 8.5 * (width - 0.06) / (1.14 * natural_width(title, 8.5))),  # bold is wider
            fontweight="bold",
            color=style.INK,
            ha="center",
            va="center",
        )
        small = 7.2 if natural_width(more, 7.2) < width else 6.4
        self.axes.text(
            x + width / 2, y + height * 0.71, more, fontsize=small, color=style.INK, ha="center", va="center"
        )

    def _arrow(self, x: float, start: float, end: float) -> None:
        look = {
            "arrowstyle": "-|>",
            "color": style.SOFT,
            "linewidth": 0.9,
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 8,
        }
        self.axes.annotate("", (x, end), (x, start), arrowprops=look)

    def _visibility(self, figure: Any, y: float) -> None:
        """The block of who sees whom over all rows of the batch."""
        side = 2.42
        left, top = WIDTH - 0.3 - side, y + 0.32
        self._title(left - 0.16, y, "Who sees whom")
        seen, is_region = sees(self.batch, self.calls)
        image = np.ones((*seen.shape, 3)) * style.rgb("#f2f4f7")
        mixed = (np.array(style.rgb(style.WORDS)) + style.rgb(style.REGIONS)) / 2
        for a, b, colour in (
            (False, False, style.rgb(style.WORDS)),
            (True, True, style.rgb(style.REGIONS)),
            (False, True, mixed),
            (True, False, mixed),
        ):
            image[seen & (is_region[:, None] == a) & (is_region[None] == b)] = 0.25 + 0.75 * np.array(colour)
        part = figure.add_axes((left / WIDTH, 1 - (top + side) / self.height, side / WIDTH, side / self.height))
        part.imshow(image, interpolation="nearest", aspect="auto")
        part.set_xticks(np.arange(len(seen) + 1) - 0.5, minor=True)
        part.set_yticks(np.arange(len(seen) + 1) - 0.5, minor=True)
        part.grid(which="minor", color="white", linewidth=0.5)
        part.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
        part.set_xticks([])
        part.set_yticks([])
        for spine in part.spines.values():
            spine.set_visible(False)
        step = side / len(seen)
        for i, region in enumerate(is_region):
            colour = style.REGIONS if region else style.WORDS  # type: ignore[assignment]
            here = [i * step, (i + 1) * step, (i + 1) * step, i * step]
            rim = [-0.1, -0.1, -0.04, -0.04]
            self.axes.fill([left + v for v in here], [top + v for v in rim], color=colour)
            self.axes.fill([left + v for v in rim], [top + v for v in here], color=colour)
        self.axes.text(left + side / 2, top - 0.17, "seen", fontsize=7.2, color=style.SOFT, ha="center", va="center")
        self.axes.text(
            left - 0.18, top + side / 2, "seer", fontsize=7.2, color=style.SOFT, ha="center", va="center", rotation=90
        )

    def _objectives(self, y: float) -> None:
        self._title(0.3, y, "What each objective hides", "document 1, one draw each")
        y += 0.2
        left = 2.05
        right = WIDTH - 0.4 - max([1.1, *(natural_width(goal.question, 7.5) for goal in self.goals)])
        for goal in self.goals:
            names = [name for name, _ in goal.losses]
            wide = 1.14 * natural_width(" + ".join(names), 8.5)  # bold is wider
            lines = [names] if wide < left - 0.35 else [names[:2], names[2:]]
            if len(names) > 5:
                lines = [names[:2], names[2:5], names[5:]]
            places = {1: (0.10,), 2: (-0.03, 0.12), 3: (-0.10, 0.03, 0.16)}[len(lines)]
            for line, at in zip(lines, places, strict=True):
                said = " + ".join(line) + (" +" if line is not lines[-1] else "")
                size = {1: 8.5, 2: 7.8, 3: 7.2}[len(lines)]
                self.axes.text(0.3, y + at, said, fontsize=size, fontweight="bold", color=style.INK, va="center")
            small = _fitting(goal.what, 7.2, left - 0.35)
            self.axes.text(0.3, y + 0.28, goal.what, fontsize=small, color=style.SOFT, va="center")
            widths = [0.3 if c.seen else max(0.3, natural_width(c.text, 7.2) + 0.1) for c in goal.cells]
            scale = min(1.0, (right - left) / sum(widths))
            draw_cells(self.axes, goal.cells, left, y, [w * scale for w in widths], 0.30, False, 7.2 * scale)
            self.axes.text(WIDTH - 0.3, y + 0.15, goal.question, fontsize=7.5, color=style.INK, ha="right", va="center")
            y += _PITCH

    def _legend(self, y: float) -> None:
        x, states = 0.3, {cell.state for goal in self.goals for cell in goal.cells}
        written = "written" in states and states <= {"", "hidden", "written"}
        changed = [(style.CHANGED, 0.16, "exchanged"), (style.CHANGED, 0.0, "left, but asked")]
        for colour, strength, text in (
            (style.WORDS, 0.16, "words"),
            (style.REGIONS, 0.16, self.shown),
            (style.SPECIAL, 0.16, "special tokens"),
            (style.INK, 1.0, "hidden" if written else "hidden (below it: what was there)"),
            *([] if written else changed),
            *([(style.WRITTEN, 0.16, "written: names the next piece, below it")] if "written" in states else []),
        ):
            across, down = [x, x + 0.16, x + 0.16, x], [y - 0.08, y - 0.08, y + 0.08, y + 0.08]
            self.axes.fill(across, down, facecolor=(*style.rgb(colour), strength), edgecolor=colour, linewidth=0.9)
            self.axes.text(x + 0.23, y, text, fontsize=7.5, color=style.SOFT, va="center")
            x += 0.48 + natural_width(text, 7.5)


# ------------------------------------------------------------------------------------------------------------ contents


def _fitting(text: str, size: float, width: float) -> float:
    """The font size, at most `size` points, at which a text is no wider than `width` inches."""
    return min(size, size * width / natural_width(text, size))


def _ragged(system: System, samples: list[Sample]) -> list[Sample]:
    """Two or three short samples of different lengths."""
    sizes = [system.lay_out(x).rows for x in samples]
    order = sorted(range(len(samples)), key=lambda i: (sizes[i], i))
    chosen, spent = [order[0]], sizes[order[0]]
    for i in order[1:]:
        longer = sizes[i] >= sizes[chosen[-1]] + 2 if len(chosen) == 1 else i not in chosen
        if len(chosen) < 3 and longer and spent + sizes[i] <= _ROWS:
            chosen.append(i)
            spent += sizes[i]
    for i in order:
        if len(chosen) < 3 and i not in chosen and spent + sizes[i] <= _ROWS:
            chosen.append(i)
            spent += sizes[i]
    return [samples[i] for i in chosen]


def sees(batch: Batch, calls: list[tuple[str, str]]) -> tuple[Array, Array]:
    """Who may see whom over all rows of a batch, documents behind one another, words before regions.

    Computed with `intarsia.packed.visible` from the packings that the system's attention is called with.

    Args:
        batch: with text, and regions or clips.
        calls: between which streams the system's attention calls lay, see `streams_of`.

    Returns:
        (N, N) bool, rows see columns, and (N) bool, True = a region or a clip.
    """
    seen_rows = batch.regions or batch.clips
    assert batch.text is not None and seen_rows is not None, "needs words, and regions or clips"
    text, shown = batch.text.packing, seen_rows.packing
    both = join(text, shown)
    is_region = np.zeros(both.packing.rows, np.bool_)
    is_region[both.rows_b.cpu().numpy()] = True
    if ("both", "both") in calls:
        return _flat(visible(both.packing, both.packing), both.packing, both.packing), is_region
    found = np.zeros((both.packing.rows,) * 2, np.bool_)
    sides = {"words": (both.rows_a.cpu().numpy(), text), "regions": (both.rows_b.cpu().numpy(), shown)}
    for seer, seen in {
        *calls,
        ("words", "words"),
        ("regions", "regions"),
    }:  # a row that attends to nothing sees its own
        if seer in sides and seen in sides:
            (rows, queries), (columns, keys) = sides[seer], sides[seen]
            found[np.ix_(rows, columns)] = _flat(visible(queries, keys), queries, keys)
    return found, is_region


def _flat(block: torch.Tensor, queries: Packing, keys: Packing) -> Array:
    """A padded block (B, Lq, Lk) as one (Nq, Nk) matrix over all documents."""
    same = queries.doc[:, None] == keys.doc[None]
    found: Array = (same & block[queries.doc[:, None], queries.pos[:, None], keys.pos[None]]).cpu().numpy()
    return found
