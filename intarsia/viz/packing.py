"""A system drawn from its live code and real samples: packed rows, streams, who sees whom, what each objective hides.

Nothing in the figure is written down by hand but the captions: rows come from `lay_out`, visibility from the packings that attention is called with,
hidden and exchanged rows from a comparison of `hide` with `lay_out`, loss names from `losses`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intarsia.attend import watch
from intarsia.batch import Array, Batch, ClipRows, Example, Pick, Picture, RegionRows, Sample, pack
from intarsia.data.source import Source
from intarsia.evaluate.grounding import streams_of
from intarsia.packed import Packing, join, visible
from intarsia.recipe import Mix
from intarsia.system import System, fit_config
from intarsia.text import Vocab
from intarsia.viz import streams, style
from intarsia.viz.curves import NAMES
from intarsia.viz.strips import Cell, cells_of, draw_cells, natural_width, pixels_of

WIDTH = 9.2
_LOOKED_AT = 64  # samples of the source that the figure chooses from
_TRIES = 60
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


@dataclass(frozen=True, slots=True)
class Goal:
    """What one objective did to a document."""

    name: str
    cells: list[Cell]
    what: str
    """What changed, in words."""
    losses: tuple[tuple[str, str], ...]
    """Each loss and what it asks: "words", "regions", "clips" or "pair"."""
    question: str
    """The same, in words."""


class _Plate:
    """The figure, in inches from the top left corner."""

    def __init__(self, system: System, samples: list[Sample], images: dict[str, Array]) -> None:
        self.system, self.images, self.shown = system, images, _shown(system)
        self.pool = samples
        self.samples = _ragged(system, samples)
        self.examples = [system.lay_out(x) for x in self.samples]
        self.batch = pack(self.examples)
        with watch() as self.seen:
            self.encoded = system.encode(self.batch)
        self.calls = [streams_of(*x, self.batch) for x in self.seen.packings]
        self.stages = [] if system.card.streams == "single" else streams.stages(self.calls)
        self.more = max(0.0, streams.tall(self.stages) - 0.72)  # what the streams need beyond the usual
        names = [name for name, share in _mix(system).share.items() if share]
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


def _shown(system: System) -> str:
    """What a system sees beside words."""
    return "clips" if "clips" in system.needs else "regions"


def _rows(example: Example) -> RegionRows | ClipRows:
    rows = example.regions if example.clips is None else example.clips
    assert rows is not None, f"{example.key}: needs regions or clips"
    return rows


def _pictured(sample: Sample) -> str:
    """The name of what is seen beside its words."""
    return sample.film.name if sample.film else sample.pictures[0].name


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


def _mix(system: System) -> Mix:
    return (system.recipes.get("tiny") or next(iter(system.recipes.values()))).mix


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


def goals(system: System, sample: Sample, name: str, pool: list[Sample], images: dict[str, Array]) -> list[Goal]:
    """What an objective does to a sample: the richest of some draws; for objectives that break pairs, every way of breaking it that came up.

    Args:
        system: the system.
        sample: the sample to hide things of.
        name: the objective.
        pool: samples from which another picture or text is drawn.
        images: pixels of pictures by name.
    """
    plain = system.lay_out(sample)
    others = [x for x in pool if _pictured(x) != _pictured(sample)]
    found: dict[str, tuple[int, Goal]] = {}
    for seed in range(_TRIES):
        rng = np.random.default_rng([seed, 0xF16])
        drawn: list[Sample] = []

        def draw(rng: np.random.Generator = rng, drawn: list[Sample] = drawn) -> Sample:
            drawn.append(others[int(rng.integers(len(others)))])
            return drawn[-1]

        example = system.hide(sample, name, rng, draw)
        goal, richness = _compare(system, plain, example, sample, drawn, name, images)
        if richness and richness > found.get(goal.what, (0, goal))[0]:
            found[goal.what] = richness, goal
    if not found:  # nothing is hidden or exchanged: the pair as it is, told from others
        return [goal]
    return [goal for _, goal in sorted(found.values(), key=lambda x: x[1].what)]


def _compare(
    system: System,
    plain: Example,
    example: Example,
    sample: Sample,
    drawn: list[Sample],
    name: str,
    images: dict[str, Array],
) -> tuple[Goal, int]:
    """One draw beside the plain lay-out, and how much it shows; 0 = nothing."""
    assert plain.text is not None and example.text is not None
    scale = _mix(system).scale
    losses = [loss for loss in system(pack([example]))[0] if scale.get(loss, 1)]  # the others are told, not trained
    if plain.images:
        new_picture = not np.array_equal(plain.images[0].read(), example.images[0].read())
    elif plain.regions is not None and example.regions is not None:
        new_picture = not np.array_equal(plain.regions.boxes, example.regions.boxes)
    else:
        new_picture = False  # no objective exchanges clips
    cells = cells_of(system.vocab, example, drawn[-1] if new_picture and drawn else sample, images)
    words, regions = ([c for c in cells if c.seen == x] for x in (False, True))
    picks = {name: x for name, x in example.targets.items() if isinstance(x, Pick) and len(x.rows)}
    pair = any(not isinstance(x, Pick) for x in example.targets.values())
    told = [part for part in name.split("+") if part in losses]
    what = NAMES.get(told[0], told[0]) if len(told) == 1 else f"hidden words and {_shown(system)}"
    richness, questions = 0, []
    asked_words = [pick for pick in picks.values() if pick.stream == "text"]
    if pair:
        hidden = np.concatenate([x.rows for x in asked_words]) if asked_words else np.zeros(0, np.int64)
        new_text = _mark_text(system, plain, example, words, hidden)
        for c in regions if new_picture else []:
            c.state = "changed"
        what = "another picture" if new_picture else "another text" if new_text else "the true pair"
        richness = 20 * (new_picture or new_text) + bool(picks)
    for pick in asked_words:
        for row, label in zip(pick.rows, pick.labels, strict=True):
            words[row].below = system.vocab.tokens[int(label)]
            shown = int(example.text.ids[row])
            words[row].state = "hidden" if shown == system.vocab.mask else "changed" if shown != int(label) else "kept"
        if says_next(example, pick):
            what = "a text, written piece by piece"
            for row in pick.rows:
                words[row].state = "written"
            for row in np.flatnonzero(example.text.ids == system.vocab.mask):  # spans hidden from what is read
                words[row].state = "hidden"
        kinds = {words[row].state for row in pick.rows}
        richness += 10 + 8 * ("hidden" in kinds) + 4 * len(kinds) - abs(len(pick.rows) - 3)
    if count := sum(len(pick.rows) for pick in asked_words):
        questions.append(f"{count} word{'s' * (count > 1)}")
    asked_regions = [pick for pick in picks.values() if pick.stream == _shown(system)]
    if asked_regions:
        for row in np.flatnonzero(_rows(example).masked):
            regions[row].state = "hidden"
        if example.clips is not None and asked_regions[0].labels.ndim == 1:
            _mark_clips(example.clips, asked_regions[0], regions)
        count = len(asked_regions[0].rows)
        richness += 10 - abs(count - 2)
        questions.append(f"{count} {_shown(system)[: -1 if count == 1 else None]}")
    asked = {goal: _asks(example.targets.get(goal)) for goal in losses}
    question = "asks " + ", ".join([*questions, *(["match?"] if pair else [])])
    return Goal(name, cells, what, tuple(asked.items()), question), richness


def says_next(example: Example, pick: Pick) -> bool:
    """Whether every picked row but the last asks for the piece of the row after it: a target that is written, in which nothing was exchanged."""
    text = example.text
    assert text is not None
    if text.levels is None or pick.stream != "text" or len(pick.rows) < 2:
        return False
    return np.array_equal(text.ids[pick.rows[:-1] + 1], pick.labels[:-1])


def _mark_clips(clips: ClipRows, pick: Pick, cells: list[Cell]) -> None:
    """Marks clips that are asked for and not hidden: another visual word stands there, or their own."""
    for row, label in zip(pick.rows, pick.labels, strict=True):
        if not clips.masked[row]:
            cells[row].state = "changed" if clips.ids[row] != label else "kept"


def _asks(target: Pick | Array | None) -> str:
    """What a loss asks: "words", "regions", "clips" or "pair"."""
    if not isinstance(target, Pick):
        return "pair"
    return "words" if target.stream == "text" else target.stream


def _mark_text(system: System, plain: Example, example: Example, words: list[Cell], hidden: Array) -> bool:
    """Marks the words that differ from the plain lay-out's, those in hidden rows apart; whether there are any."""
    assert plain.text is not None and example.text is not None
    if np.array_equal(plain.text.words, example.text.words):
        for row in np.setdiff1d(np.flatnonzero(plain.text.ids != example.text.ids), hidden):
            if example.text.ids[row] != system.vocab.mask:  # hidden, though not asked for
                words[row].state, words[row].below = "changed", system.vocab.tokens[int(plain.text.ids[row])]
            else:
                words[row].state = "hidden"
    else:
        for c, piece in zip(words, example.text.ids, strict=True):
            shown = "hidden" if piece == system.vocab.mask else "changed"
            c.state = shown if c.stream == "words" else ""
    return any(c.state == "changed" for c in words)
