"""What an objective does to a document, told from a comparison of `hide` with `lay_out`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intarsia.batch import Array, ClipRows, Example, Pick, RegionRows, Sample
from intarsia.pack import pack
from intarsia.recipe import Mix
from intarsia.system import System
from intarsia.viz.curves import NAMES
from intarsia.viz.strips import Cell, cells_of

_TRIES = 60


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


def shown_by(system: System) -> str:
    """What a system sees beside words."""
    return "clips" if "clips" in system.needs else "regions"


def mix_of(system: System) -> Mix:
    """The objectives of its tiny recipe, or of the first there is."""
    return (system.recipes.get("tiny") or next(iter(system.recipes.values()))).mix


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
    scale = mix_of(system).scale
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
    what = NAMES.get(told[0], told[0]) if len(told) == 1 else f"hidden words and {shown_by(system)}"
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
    asked_regions = [pick for pick in picks.values() if pick.stream == shown_by(system)]
    if asked_regions:
        _mark_seen(example, asked_regions[0], regions)
        count = len(asked_regions[0].rows)
        richness += 10 - abs(count - 2)
        questions.append(f"{count} {shown_by(system)[: -1 if count == 1 else None]}")
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


def _mark_seen(example: Example, pick: Pick, cells: list[Cell]) -> None:
    """Marks regions or clips that are hidden, and clips that are asked for and not hidden: another visual word stands there, or their own."""
    for row in np.flatnonzero(_rows(example).masked):
        cells[row].state = "hidden"
    clips = example.clips
    if clips is None or pick.labels.ndim > 1:
        return
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


def _rows(example: Example) -> RegionRows | ClipRows:
    rows = example.regions if example.clips is None else example.clips
    assert rows is not None, f"{example.key}: needs regions or clips"
    return rows


def _pictured(sample: Sample) -> str:
    """The name of what is seen beside its words."""
    return sample.film.name if sample.film else sample.pictures[0].name
