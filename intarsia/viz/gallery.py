"""Held-out pictures as cards of a page: boxes, caption, and for its words the regions they attend to and are transported to, right or wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from intarsia.batch import Array, Sample
from intarsia.evaluate import ChosenWord, Inference, Look, Word, every_word, guess_words, word_region_maps
from intarsia.evaluate.grounding import pointed
from intarsia.evaluate.running import fitting, piece_rows, pieces_in
from intarsia.system import System
from intarsia.viz import style

_QUIET = Inference(progress=False)
_SIDE = 300  # units of the drawing, longer side of the picture


@dataclass(frozen=True, slots=True)
class Pointed:
    """What became of one word."""

    start: int
    end: int
    text: str
    gold: frozenset[int]
    """Regions it names; empty when nothing is known."""
    attention: int
    """The region it attends to most."""
    own: int | None
    """The region that the system's own map gives it; None without one."""
    guess: str | None
    """What the system says when the word is hidden; None when it predicts no words."""
    guessed: bool
    """Whether that is the word or a synonym."""


@dataclass(frozen=True, slots=True)
class Case:
    """One picture with its caption and words."""

    number: int
    """Of its sample."""
    text: str
    boxes: Array
    words: tuple[Pointed, ...]
    own: str
    """Name of the system's own map."""

    @property
    def right(self) -> bool | None:
        """Whether attention points every word to a region it names; None when nothing is known."""
        known = [x for x in self.words if x.gold]
        return all(x.attention in x.gold for x in known) if known else None

    @property
    def wrongs(self) -> int:
        """How much went wrong: words that attention points elsewhere count twice, hidden words not filled in once."""
        return sum(
            2 * (bool(x.gold) and x.attention not in x.gold) + (x.guess is not None and not x.guessed)
            for x in self.words
        )


def find_cases(
    system: System,
    samples: Sequence[Sample],
    chosen: Sequence[Sequence[ChosenWord]] | None = None,
    look: Look | None = None,
) -> list[Case]:
    """Looks at every sample that fits the system.

    Args:
        system: the system.
        samples: captions with pictures.
        chosen: for each sample the words to follow; None = words with gold links, or all where there are no links.
        look: which attention; None = the mean of all.
    """
    numbers, examples = fitting(system, samples)
    found_maps = word_region_maps(system, examples, _QUIET)
    maps = [x.of_picture(samples[i]) for x, i in zip(found_maps, numbers, strict=True)]
    found: list[tuple[int, ChosenWord, Array]] = []
    for document, i in enumerate(numbers):
        pieces = system.vocab.encode(samples[i].texts[0])
        rows = piece_rows(examples[document], pieces)
        for word in _followed(system, samples[i]) if chosen is None else chosen[i]:
            found.append((document, word, rows[pieces_in(pieces, word.start, word.end, samples[i].key)]))
    guesses: list[tuple[int, ...]] | None = None
    if system.predicts_words and found:
        guesses = guess_words(system, [examples[d] for d, _, _ in found], [rows for _, _, rows in found], _QUIET)
    own = next(iter(maps[0].own), "") if maps else ""
    words: dict[int, list[Pointed]] = {}
    for k, (document, word, rows) in enumerate(found):
        sample, text = samples[numbers[document]], samples[numbers[document]].texts[0]
        guess = None if guesses is None else system.vocab.decode(guesses[k])
        answers = {
            system.vocab.decode(system.vocab.encode(x).ids) for x in (text[word.start : word.end], *word.accepted)
        }
        point = Pointed(
            start=word.start,
            end=word.end,
            text=text[word.start : word.end],
            gold=frozenset(x.region for x in sample.links if x.start < word.end and word.start < x.end),
            attention=pointed(rows, maps[document].seen(look or Look())),
            own=pointed(rows, maps[document].own[own]) if own else None,
            guess=None if guess is None else "".join(guess.split()) if sample.language == "zh" else guess,
            guessed=guess in answers,
        )
        words.setdefault(document, []).append(point)
    return [
        Case(i, samples[i].texts[0], samples[i].pictures[0].boxes, tuple(words.get(document, ())), own)
        for document, i in enumerate(numbers)
    ]


def _followed(system: System, sample: Sample) -> Sequence[Word]:
    words = every_word(system.vocab, sample.texts[0])
    linked = [x for x in words if any(y.start < x.end and x.start < y.end for y in sample.links)]
    return linked or words


def pick_cases(cases: Sequence[Case], first: int = 8, worst: int = 4) -> list[Case]:
    """The first cases, then the worst of the others."""
    rest = sorted(cases[first:], key=lambda x: (-x.wrongs, x.number))
    return [*cases[:first], *rest[:worst]]


# ---------------------------------------------------------------------------------------------------------------- cards


def card(case: Case, pixels: Array) -> str:
    """A case as an HTML figure: the picture with boxes as SVG, the caption and a line a word as text, so any script shows."""
    mark = {
        True: '<span class="yes" title="attention points every word right">✓</span>',
        False: '<span class="no" title="attention points a word elsewhere">✗</span>',
        None: "",
    }[case.right]
    rows = "".join(_word_row(x, i) for i, x in enumerate(case.words))
    own = f"<th>{escape(case.own)}</th>" if case.own else ""
    guess = "<th>filled in</th>" if any(x.guess is not None for x in case.words) else ""
    return (
        f'<figure class="case">{picture(case, pixels)}<figcaption><p class="said">{mark} {_caption(case)}</p>'
        f"<table><tr><th>word</th><th>attends to</th>{own}{guess}</tr>{rows}</table></figcaption></figure>"
    )


def _colour(i: int) -> str:
    return style.CATEGORIES[i % len(style.CATEGORIES)]


def _caption(case: Case) -> str:
    """The caption with its followed words coloured."""
    out, at = [], 0
    for i, word in sorted(enumerate(case.words), key=lambda x: x[1].start):
        if word.start >= at:
            out.append(escape(case.text[at : word.start]))
            out.append(f'<b style="color:{_colour(i)}">{escape(word.text)}</b>')
            at = word.end
    return "".join(out) + escape(case.text[at:])


def _word_row(word: Pointed, i: int) -> str:
    cells = [
        f'<td><b style="color:{_colour(i)}">{escape(word.text)}</b></td>',
        f"<td>{_region(word.attention, word.gold)}</td>",
    ]
    if word.own is not None:
        cells.append(f"<td>{_region(word.own, word.gold)}</td>")
    if word.guess is not None:
        cells.append(f"<td>{escape(word.guess)} {_tick(word.guessed)}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _region(number: int, gold: frozenset[int]) -> str:
    return f"box {number + 1} {_tick(number in gold) if gold else ''}"


def _tick(right: bool) -> str:
    return '<span class="yes">✓</span>' if right else '<span class="no">✗</span>'


def picture(case: Case, pixels: Array) -> str:
    """The picture as an SVG element: all boxes thin, a box in a word's colour where it attends to, a diamond where the own map sends it."""
    high, wide = pixels.shape[:2]
    scale = _SIDE / max(high, wide)
    w, h = wide * scale, high * scale
    smooth = "" if max(high, wide) >= _SIDE else ' style="image-rendering:pixelated"'
    parts = [f'<image href="{data_uri(pixels)}" width="{w:.0f}" height="{h:.0f}" preserveAspectRatio="none"{smooth}/>']
    place: Callable[[int], tuple[float, float, float, float]] = lambda r: tuple(  # noqa: E731
        float(v) * s for v, s in zip(case.boxes[r], (w, h, w, h), strict=True)
    )
    looked: dict[int, list[int]] = {}
    sent: dict[int, list[int]] = {}
    for i, word in enumerate(case.words):
        looked.setdefault(word.attention, []).append(i)
        if word.own is not None:
            sent.setdefault(word.own, []).append(i)
    shown = range(len(case.boxes)) if len(case.boxes) <= 14 else sorted({*looked, *sent})
    for r in shown:
        x1, y1, x2, y2 = place(r)
        parts.append(_rect(x1, y1, x2, y2, "#fff", 2.4, 0.75) + _rect(x1, y1, x2, y2, "#6b7280", 1, 1))
        for k, i in enumerate(looked.get(r, ())):
            grow = 2.0 + 3.6 * k
            parts.append(_rect(x1 - grow, y1 - grow, x2 + grow, y2 + grow, _colour(i), 2.8, 1))
        for k, i in enumerate(sent.get(r, ())):
            parts.append(_diamond(x1 + 9 + 13 * k, y2 - 9, _colour(i)))
        left, top = max(0.0, x1), max(0.0, y1)
        parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" width="15" height="14" fill="#20242c" opacity=".78"/>')
        parts.append(
            f'<text x="{left + 7.5:.1f}" y="{top + 10.8:.1f}" fill="#fff" font-size="10.5" text-anchor="middle">{r + 1}</text>'
        )
    title = f"<title>{escape(case.text)}</title>"
    return f'<svg viewBox="0 0 {w:.0f} {h:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">{title}{"".join(parts)}</svg>'


def _rect(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, opacity: float) -> str:
    size = f'width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"'
    return f'<rect x="{x1:.1f}" y="{y1:.1f}" {size} fill="none" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}"/>'


def _diamond(x: float, y: float, colour: str) -> str:
    return f'<path d="M{x:.1f} {y - 6:.1f}l6 6-6 6-6-6z" fill="{colour}" stroke="#fff" stroke-width="1.3"/>'


def data_uri(pixels: Array) -> str:
    """Pixels (H, W, 3) uint8 as a PNG inside an address, at most 600 on the longer side."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((2 * _SIDE, 2 * _SIDE))
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
