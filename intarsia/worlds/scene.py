"""Scenes of a generated world: objects with attributes, boxes and relations, drawn from a generator of random numbers.

One rule splits the world for tests of systematic generalisation: the eight colour-shape pairs of `HELD_OUT` (shape = 3
* colour + 1 mod 8) occur in no training scene, although each of their words does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from intarsia.batch import Array

COLOURS = ("red", "brown", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "diamond", "ring")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted", "checked")
RELATIONS = ("left of", "right of", "above", "below")
BACKGROUNDS = ("white", "mist", "sand", "sky")
HELD_OUT = frozenset((colour, (3 * colour + 1) % 8) for colour in range(8))
"""Pairs (colour, shape) that no training scene shows."""

COLUMNS, ROWS = 4, 3
"""The grid of level 0."""

_SIDES = ((0.16, 0.20), (0.27, 0.33))  # side of a small and of a large object, as a share of the picture
_EDGE, _GAP = 0.02, 0.03  # least distance to the picture's edge and between two objects
_APART = 0.1  # centres closer than this on an axis are neither left nor right of one another, neither above nor below


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: four attribute values and its exact box."""

    colour: int
    shape: int
    size: int
    texture: int
    box: tuple[float, float, float, float]
    """xyxy as fractions of width and height."""

    @property
    def pair(self) -> tuple[int, int]:
        """(colour, shape)."""
        return self.colour, self.shape

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) as fractions."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects on a background."""

    objects: tuple[SceneObject, ...]
    background: int


class SceneGraph(NamedTuple):
    """A scene as a graph; objects are named by their number."""

    objects: tuple[str, ...]
    """Name of the shape of each object."""
    attributes: tuple[tuple[int, str], ...]
    """(object, word): colour, size and texture."""
    relations: tuple[tuple[int, str, int], ...]
    """(subject, relation, object): every relation that holds."""


def related(a: SceneObject, b: SceneObject, relation: int) -> bool:
    """Whether `a` stands in a relation (a number into RELATIONS) to `b`: its centre is more than .1 that way."""
    axis = relation // 2
    step = b.centre[axis] - a.centre[axis]
    return step > _APART if relation % 2 == 0 else -step > _APART


def scene_graph(scene: Scene) -> SceneGraph:
    """Objects, attributes and all relation triples of a scene."""
    things = scene.objects
    attributes = tuple(
        (i, word) for i, x in enumerate(things) for word in (COLOURS[x.colour], SIZES[x.size], TEXTURES[x.texture])
    )
    relations = tuple(
        (i, name, j)
        for i, a in enumerate(things)
        for j, b in enumerate(things)
        for r, name in enumerate(RELATIONS)
        if i != j and related(a, b, r)
    )
    return SceneGraph(tuple(SHAPES[x.shape] for x in things), attributes, relations)


def draw_scene(
    rng: np.random.Generator, objects: tuple[int, int], distinct: bool, textures: bool, held_out: bool, grid: bool
) -> Scene:
    """Draws one scene.

    Args:
        rng: the only source of randomness.
        objects: the fewest and the most objects.
        distinct: True = no two objects share a colour and no two share a shape; False = only colour-shape pairs differ.
        textures: True = textures are drawn; False = all objects are plain.
        held_out: True = at least two objects show a pair of HELD_OUT; False = none does.
        grid: True = objects fill slots of the level-0 grid; False = they lie freely, without overlap.
    """
    number = int(rng.integers(objects[0], objects[1] + 1))
    pairs = _draw_pairs(rng, number, distinct, held_out)
    sizes: Array = rng.integers(0, 2, number)
    kinds: Array = rng.integers(0, 4, number) if textures else np.zeros(number, np.int64)
    boxes = _slots(rng, number) if grid else _place(rng, sizes)
    things = tuple(
        SceneObject(colour, shape, int(size), int(kind), box)
        for (colour, shape), size, kind, box in zip(pairs, sizes, kinds, boxes, strict=True)
    )
    return Scene(things, int(rng.integers(len(BACKGROUNDS))))


def _draw_pairs(rng: np.random.Generator, number: int, distinct: bool, held_out: bool) -> list[tuple[int, int]]:
    while True:
        if distinct:
            colours, shapes = rng.permutation(8)[:number], rng.permutation(8)[:number]
        else:
            cells = rng.permutation(64)[:number]
            colours, shapes = cells // 8, cells % 8
        if held_out:
            shapes[:2] = (3 * colours[:2] + 1) % 8
        pairs = [(int(c), int(s)) for c, s in zip(colours, shapes, strict=True)]
        free = len(set(pairs)) == number and (not distinct or len({s for _, s in pairs}) == number)
        if held_out and free:
            return [pairs[i] for i in rng.permutation(number)]
        if not held_out and HELD_OUT.isdisjoint(pairs):
            return pairs


def _place(rng: np.random.Generator, sizes: Array) -> list[tuple[float, float, float, float]]:
    """Boxes without overlap, large objects placed first; starts over when an object finds no room in 32 tries."""
    order = np.argsort(-sizes, kind="stable")
    while True:
        low, high = np.array(_SIDES)[sizes].T
        sides = low + (high - low) * rng.random(len(sizes))
        corners = _EDGE + rng.random((len(sizes), 32, 2)) * (1 - 2 * _EDGE - sides[:, None, None])
        placed: dict[int, tuple[float, float, float, float]] = {}
        for i in order.tolist():
            side = float(sides[i])
            for x, y in corners[i].tolist():
                for left, top, right, bottom in placed.values():
                    apart = x > right + _GAP or left > x + side + _GAP or y > bottom + _GAP or top > y + side + _GAP
                    if not apart:
                        break
                else:
                    placed[i] = (x, y, x + side, y + side)
                    break
            else:
                break
        if len(placed) == len(sizes):
            return [placed[i] for i in range(len(sizes))]


def _slots(rng: np.random.Generator, number: int) -> list[tuple[float, float, float, float]]:
    return [slot_box(int(i)) for i in rng.permutation(COLUMNS * ROWS)[:number]]


def slot_box(slot: int) -> tuple[float, float, float, float]:
    """The box of a slot of the level-0 grid, slots counted row by row."""
    row, column = divmod(slot, COLUMNS)
    return column / COLUMNS, row / ROWS, (column + 1) / COLUMNS, (row + 1) / ROWS
