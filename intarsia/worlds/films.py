"""Scenes that move, told as they happen: real video files with subtitles in English and Chinese, and what is true of them.

A film shows two or three plain objects of different colours and shapes. One after the other, each action moves, grows, shrinks or spins one of them, or
lets one appear or vanish, and a sentence says so while it happens. Unlike `worlds:COUNT` these are files, read back by the same road as anybody's videos.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from intarsia.batch import Array
from intarsia.data.formats.files import write_whole
from intarsia.data.subtitles import Sentence, srt
from intarsia.data.video import write_video
from intarsia.errors import BadInput
from intarsia.worlds.captions import LANGUAGES, Phrase, write_phrase
from intarsia.worlds.render import INKS, PAPERS, outlines
from intarsia.worlds.scene import HELD_OUT, SHAPES

ACTIONS = ("left", "right", "up", "down", "grow", "shrink", "spin", "appear", "vanish")
TRUTH = "actions.jsonl"
_SAID = {
    "en": {
        "left": "the {} moves to the left.",
        "right": "the {} moves to the right.",
        "up": "the {} moves up.",
        "down": "the {} moves down.",
        "grow": "the {} grows.",
        "shrink": "the {} shrinks.",
        "spin": "the {} spins around.",
        "appear": "a {} appears.",
        "vanish": "the {} vanishes.",
    },
    "zh": {
        "left": "{}向左移动。",
        "right": "{}向右移动。",
        "up": "{}向上移动。",
        "down": "{}向下移动。",
        "grow": "{}变大。",
        "shrink": "{}变小。",
        "spin": "{}转动。",
        "appear": "一个{}出现。",
        "vanish": "{}消失。",
    },
}
_OPENINGS = {"en": ("", "now ", "look, ", "then "), "zh": ("", "现在", "看，", "然后")}
_ROUND = (SHAPES.index("circle"), SHAPES.index("ring"))  # to see them spin is not to see it
_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_EDGE, _STEP, _FINE = 0.16, 0.38, 4
_SPLITS = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class FilmConfig:
    """Generated films."""

    side: int = 96
    """Pixels; even."""
    fps: int = 25
    objects: tuple[int, int] = (2, 3)
    """The fewest and the most objects."""
    actions: tuple[int, int] = (4, 8)
    """The fewest and the most actions."""
    seconds: float = 3.0
    """An action and the rest after it."""
    languages: tuple[str, ...] = LANGUAGES

    def __post_init__(self) -> None:
        if self.side < 16 or self.side % 2 or self.fps < 1 or self.seconds < 1:
            raise BadInput(
                f"films of {self.side} pixels (even, 16 or more), {self.fps} frames a second, {self.seconds:g} s an action"
            )
        if not 1 <= self.objects[0] <= self.objects[1] <= 4 or not 1 <= self.actions[0] <= self.actions[1]:
            raise BadInput(f"films of {self.objects} objects (1 to 4) and {self.actions} actions")
        if not self.languages or not set(self.languages) <= set(LANGUAGES):
            raise BadInput(f"films told in {', '.join(self.languages) or 'nothing'} (known: {', '.join(LANGUAGES)})")


class Event(NamedTuple):
    """One action of a film."""

    action: str
    thing: int
    start: float
    """Seconds, when it begins."""
    end: float
    said: tuple[float, float]
    """Seconds, when its sentence begins and ends."""
    opening: int


class State(NamedTuple):
    """An object at some moment."""

    x: float
    y: float
    """Its centre, as fractions."""
    size: float
    """Its side, as a fraction; 0 when it is not there."""
    turn: float
    """Radians."""


@dataclass(frozen=True)
class MovingScene:
    """A film before it is drawn."""

    looks: tuple[tuple[int, int], ...]
    """Colour and shape of each object."""
    first: tuple[State, ...]
    """Where they are at the start."""
    events: tuple[Event, ...]
    background: int
    seconds: float

    def at(self, time: float) -> list[State]:
        """Where the objects are at a moment."""
        now = list(self.first)
        for event in self.events:
            share = min(max((time - event.start) / (event.end - event.start), 0), 1)
            if share:
                now[event.thing] = _changed(now[event.thing], event.action, (1 - math.cos(math.pi * share)) / 2)
        return now

    def sentences(self, language: str) -> list[Sentence]:
        """What is said of it."""
        found = []
        for event in self.events:
            colour, shape = self.looks[event.thing]
            phrase = write_phrase(Phrase(colour=colour, shape=shape), language)
            text = _OPENINGS[language][event.opening] + _SAID[language][event.action].format(phrase)
            found.append(Sentence(text[:1].upper() + text[1:], *event.said))
        return found


def _changed(state: State, action: str, share: float) -> State:
    x, y, size, turn = state
    if action in _STEPS:
        right, down = _STEPS[action]
        return State(x + right * _STEP * share, y + down * _STEP * share, size, turn)
    match action:
        case "grow":
            return State(x, y, size * (1 + 0.7 * share), turn)
        case "shrink":
            return State(x, y, size * (1 - 0.45 * share), turn)
        case "spin":
            return State(x, y, size, turn + 2 * math.pi * share)
        case "appear":
            return State(x, y, 0.22 * share, turn)
        case _:
            return State(x, y, size * (1 - share), turn)


def draw_film(rng: np.random.Generator, config: FilmConfig, held_out: bool = False) -> MovingScene:
    """Draws one film.

    Args:
        rng: the only source of randomness.
        config: how many objects and actions.
        held_out: whether colour-shape pairs of `HELD_OUT` occur; else none does.
    """
    count = int(rng.integers(config.objects[0], config.objects[1] + 1))
    while True:
        looks = tuple(zip(rng.permutation(8)[:count].tolist(), rng.permutation(8)[:count].tolist(), strict=True))
        if held_out or HELD_OUT.isdisjoint(looks):
            break
    columns = (rng.permutation(count) + 0.5) / count
    first = tuple(State(0.2 + 0.6 * float(x), float(rng.uniform(0.3, 0.7)), 0.22, 0.0) for x in columns)
    if count > 1 and rng.random() < 0.5:
        first = (*first[:-1], first[-1]._replace(size=0.0))
    now, events = list(first), []
    for number in range(int(rng.integers(config.actions[0], config.actions[1] + 1))):
        choices = [(thing, action) for thing in range(count) for action in ACTIONS if _can(now, looks, thing, action)]
        things = sorted({thing for thing, _ in choices})
        thing = int(rng.choice(things))
        action = str(rng.choice([a for t, a in choices if t == thing]))
        start = round(number * config.seconds + float(rng.uniform(0, 0.2)), 3)
        end = round(start + 0.75 * config.seconds, 3)
        begins = round(start + float(rng.uniform(0, 0.1 * config.seconds)), 3)
        said = begins, round(begins + float(rng.uniform(0.4, 0.6)) * config.seconds, 3)
        events.append(Event(action, thing, start, end, said, int(rng.integers(len(_OPENINGS["en"])))))
        now[thing] = _changed(now[thing], action, 1.0)
    return MovingScene(looks, first, tuple(events), int(rng.integers(len(PAPERS))), len(events) * config.seconds)


def _can(now: list[State], looks: tuple[tuple[int, int], ...], thing: int, action: str) -> bool:
    """Whether an action makes sense: inside the picture, neither tiny nor huge, something left to see."""
    state = now[thing]
    if state.size < 1e-6 or action == "appear":
        return state.size < 1e-6 and action == "appear"
    if action == "vanish":
        return sum(x.size > 0.01 for x in now) > 1
    if action == "spin":
        return looks[thing][1] not in _ROUND
    after = _changed(state, action, 1.0)
    return 0.1 <= after.size <= 0.4 and _EDGE <= after.x <= 1 - _EDGE and _EDGE <= after.y <= 1 - _EDGE


def frame(scene: MovingScene, time: float, side: int) -> Array:
    """(side, side, 3) uint8, the picture at a moment, with smooth edges; what comes later is drawn over what was before."""
    picture = Image.new("RGB", (side, side), PAPERS[scene.background])
    for (colour, shape), state in zip(scene.looks, scene.at(time), strict=True):
        if state.size * side < 0.5:
            continue
        mask = Image.new("L", (side * _FINE, side * _FINE))
        draw = ImageDraw.Draw(mask)
        cos, sin = math.cos(state.turn), math.sin(state.turn)
        for number, outline in enumerate(outlines(shape)):
            points = (outline - 0.5) @ np.array([[cos, sin], [-sin, cos]]) * state.size + (state.x, state.y)
            draw.polygon((points * side * _FINE - 0.5).ravel().tolist(), fill=0 if number else 255)
        picture.paste(INKS[colour], mask=mask.reduce(_FINE))
    return np.array(picture)


class FilmWorld:
    """Films by number, the same ones everywhere for the same seed.

    Args:
        config: how they look.
        split: "train", "val" or "test"; no film is in two.
        count: how many.
        seed: of all randomness.
    """

    def __init__(self, config: FilmConfig | None = None, split: str = "train", count: int = 100, seed: int = 0) -> None:
        if split not in _SPLITS or count < 1:
            raise BadInput(f"films: split {split!r} (one of {', '.join(_SPLITS)}), count {count} (1 or more)")
        self.config, self.split, self.count, self.seed = config or FilmConfig(), split, count, seed

    def scene(self, number: int) -> MovingScene:
        """A film by number."""
        rng = np.random.default_rng([self.seed, _SPLITS[self.split], number, 0xF117])
        return draw_film(rng, self.config)

    def pictures(self, number: int) -> Iterator[Array]:
        """Its frames, (side, side, 3) uint8 each."""
        scene, config = self.scene(number), self.config
        for i in range(round(scene.seconds * config.fps)):
            yield frame(scene, i / config.fps, config.side)

    def key(self, number: int) -> str:
        """The name of a film."""
        return f"film-{number:05d}"

    def truth(self, number: int) -> dict[str, Any]:
        """What is true of a film, for JSON."""
        scene = self.scene(number)
        things = [write_phrase(Phrase(colour=c, shape=s), "en") for c, s in scene.looks]
        events = [
            {"action": x.action, "thing": things[x.thing], "start": x.start, "end": x.end, "said": x.said}
            for x in scene.events
        ]
        return {"key": self.key(number), "seconds": scene.seconds, "things": things, "events": events}


def write_films(world: FilmWorld, directory: str | Path) -> Path:
    """Writes films as SPLIT/film-00000.mp4, their narration beside them as .en.srt and .zh.srt, and what is true of them.

    Args:
        world: the films.
        directory: made when missing; files of the same names are replaced. `actions.jsonl` of the split appears last.

    Returns:
        The folder of the split.

    Raises:
        BadInput: PyAV is missing, or the folder cannot be written.
    """
    folder = Path(directory) / world.split
    try:
        for number in range(world.count):
            scene, key = world.scene(number), world.key(number)
            write_video(folder / f"{key}.mp4", world.pictures(number), world.config.fps)
            for language in world.config.languages:
                with write_whole(folder / f"{key}.{language}.srt") as part:
                    part.write_text(srt(scene.sentences(language)), encoding="utf-8")
        with write_whole(folder / TRUTH) as part:
            lines = (json.dumps(world.truth(i), ensure_ascii=False) + "\n" for i in range(world.count))
            part.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{directory}: {error}") from None
    return folder
