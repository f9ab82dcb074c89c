"""Scenes as pictures (level 1) and as feature vectors (level 0)."""

from __future__ import annotations

from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from intarsia.batch import Array
from intarsia.worlds.scene import BACKGROUNDS, COLOURS, COLUMNS, ROWS, SHAPES, SIZES, Scene, SceneObject, slot_box

WIDTH = 32
"""Numbers a level-0 feature has."""

INKS = (
    (214, 40, 45),
    (134, 84, 44),
    (244, 200, 30),
    (44, 150, 60),
    (45, 196, 206),
    (38, 76, 204),
    (132, 52, 172),
    (246, 138, 190),
)
PAPERS = ((240, 240, 242), (228, 236, 230), (240, 233, 222), (224, 232, 242))
_JITTER, _TINT, _NOISE = (
    14.0,
    4.0,
    6.0,
)  # standard deviations in grey levels of 255: an object's colour, the background's, a pixel's
_FINE = 4  # each pixel is drawn as 4 x 4
_BACKGROUND_SIDES = (0.18, 0.36)
_BOX_JITTER = 0.01


class RegionSet(NamedTuple):
    """The regions a detector would report of a scene."""

    boxes: Array
    """(R, 4) float32, xyxy as fractions."""
    members: Array
    """(R) int64, the object each region shows; -1 = background."""


def draw_regions(rng: np.random.Generator, scene: Scene, background_boxes: int) -> RegionSet:
    """Boxes of all objects, each side moved by up to .01, and random background boxes, in random order."""
    boxes = np.array([x.box for x in scene.objects]).reshape(-1, 4)
    boxes = boxes + rng.uniform(-_BOX_JITTER, _BOX_JITTER, boxes.shape)
    sides = rng.uniform(*_BACKGROUND_SIDES, (background_boxes, 2))
    corners = rng.random((background_boxes, 2)) * (1 - sides)
    boxes = np.concatenate([boxes, np.concatenate([corners, corners + sides], axis=1)]).clip(0, 1)
    members = np.array([*range(len(scene.objects)), *[-1] * background_boxes], dtype=np.int64)
    order = rng.permutation(len(boxes))
    return RegionSet(boxes[order].astype(np.float32), members[order])


def soft_labels(rng: np.random.Generator, classes: Array) -> Array:
    """(R, 9) float32 soft labels of regions of given classes (0 = background): softmax(4 * one-hot + N(0, .7))."""
    logits = 4.0 * np.eye(1 + len(SHAPES))[classes] + rng.normal(0, 0.7, (len(classes), 1 + len(SHAPES)))
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True), dtype=np.float32)


def render(rng: np.random.Generator, scene: Scene, side: int) -> Array:
    """Draws a scene as a picture with smooth edges, colour jitter, a tinted background and pixel noise.

    Returns:
        (side, side, 3) uint8 RGB.
    """
    paper = np.array(PAPERS[scene.background]) + rng.normal(0, _TINT, 3)
    picture = np.empty((3, side, side), np.float32)  # a plane a channel: numpy works fastest on long rows
    picture[:] = paper[:, None, None]
    inks = np.array(INKS)[[x.colour for x in scene.objects]] + rng.normal(0, _JITTER, (len(scene.objects), 3))
    for thing, ink in zip(scene.objects, inks.astype(np.float32)[:, :, None, None], strict=True):
        x, y, cover = _cover(thing, side)
        patch = picture[:, y : y + cover.shape[0], x : x + cover.shape[1]]
        fill = ink if thing.texture == 0 else _textured(thing, ink, side, x, y, cover.shape)
        patch += (fill - patch) * cover
    picture += grain()[np.frombuffer(rng.bytes(picture.size), dtype=np.uint8)].reshape(picture.shape)
    np.rint(picture, out=picture)
    np.clip(picture, 0, 255, out=picture)
    return np.ascontiguousarray(picture.astype(np.uint8).transpose(1, 2, 0))


@cache
def grain() -> Array:
    """(256) float32 equally likely values of the pixel noise: a normal distribution in 256 steps, faster to draw."""
    normal = NormalDist(0, _NOISE)
    return np.array([normal.inv_cdf((i + 0.5) / 256) for i in range(256)], dtype=np.float32)


def _cover(thing: SceneObject, side: int) -> tuple[int, int, Array]:
    """The share of each pixel an object covers, and the left upper pixel of that patch."""
    x1, y1, x2, y2 = (v * side for v in thing.box)
    left, top = int(x1), int(y1)
    canvas = Image.new("L", ((int(x2) + 1 - left) * _FINE, (int(y2) + 1 - top) * _FINE))
    draw = ImageDraw.Draw(canvas)
    for number, outline in enumerate(outlines(thing.shape)):
        points = (outline * (x2 - x1, y2 - y1) + (x1 - left, y1 - top)) * _FINE - 0.5
        draw.polygon(points.ravel().tolist(), fill=0 if number else 255)  # later outlines are holes
    small = canvas.reduce(_FINE)
    levels = np.frombuffer(small.tobytes(), np.uint8).reshape(small.size[::-1])  # what np.asarray gives, sooner
    return left, top, levels.astype(np.float32) / 255


@cache
def outlines(shape: int) -> tuple[Array, ...]:
    """Polygons of a shape in its unit box, y downwards; each (points, 2)."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    disc = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    name = SHAPES[shape]
    if name == "circle":
        return (0.5 + 0.5 * disc,)
    if name == "ring":
        return 0.5 + 0.5 * disc, 0.5 + 0.27 * disc
    if name == "square":
        return (np.array([[0.0, 0.0], [1, 0], [1, 1], [0, 1]]),)
    if name == "diamond":
        return (np.array([[0.5, 0.0], [1, 0.5], [0.5, 1], [0, 0.5]]),)
    if name == "triangle":
        return (np.array([[0.5, 0.0], [1, 1], [0, 1]]),)
    if name == "cross":
        a, b = 0.32, 0.68
        corners = [[a, 0], [b, 0], [b, a], [1, a], [1, b], [b, b], [b, 1], [a, 1], [a, b], [0, b], [0, a], [a, a]]
        return (np.array(corners, dtype=np.float64),)
    if name == "star":
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
    else:
        points = np.stack(
            [
                16 * np.sin(turn) ** 3,
                -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)),
            ],
            axis=1,
        )
    low, high = points.min(0), points.max(0)
    return ((points - low) / (high - low),)


def _textured(thing: SceneObject, ink: Array, side: int, x: int, y: int, shape: tuple[int, ...]) -> Array:
    """(3, h, w) the ink of every pixel of a patch: three periods of a pattern in the ink (3, 1, 1) and a paler tone."""
    x1, y1, x2, y2 = (v * side for v in thing.box)
    u = 3 * (np.arange(shape[1]) + x + 0.5 - x1) / (x2 - x1)
    v = 3 * (np.arange(shape[0]) + y + 0.5 - y1) / (y2 - y1)
    if thing.texture == 1:
        pale = np.broadcast_to((v % 1 < 0.5)[:, None], shape)
    elif thing.texture == 2:
        pale = (u[None, :] % 1 - 0.5) ** 2 + (v[:, None] % 1 - 0.5) ** 2 < 0.09
    else:
        pale = (u[None, :] % 1 < 0.5) ^ (v[:, None] % 1 < 0.5)
    return np.where(pale, ink + 0.4 * (255 - ink), ink).astype(np.float32)


def slot_regions(rng: np.random.Generator, scene: Scene) -> RegionSet:
    """All slots of the level-0 grid in random order; empty ones are background."""
    boxes = [slot_box(i) for i in range(COLUMNS * ROWS)]
    held = {x.box: i for i, x in enumerate(scene.objects)}
    order = rng.permutation(len(boxes))
    members = np.array([held.get(boxes[i], -1) for i in order], dtype=np.int64)
    return RegionSet(np.array(boxes, dtype=np.float32)[order], members)


def slot_features(rng: np.random.Generator, scene: Scene, members: Array) -> Array:
    """(R, 32) float32 level-0 features: tanh(one-hot attributes . M1) . M2 + N(0, .15), with fixed random M1, M2.

    The maps mix the attributes as a detector's features do. An empty slot's one attribute is the kind of background.
    """
    first, second = _maps()
    hot = np.zeros((len(members), len(first)))
    for row, member in zip(hot, members.tolist(), strict=True):
        if member < 0:
            row[len(COLOURS) + len(SHAPES) + len(SIZES) + scene.background] = 1
        else:
            thing = scene.objects[member]
            row[[thing.colour, len(COLOURS) + thing.shape, len(COLOURS) + len(SHAPES) + thing.size]] = 1
    clean = np.tanh(
        (hot[:, :, None] * first).sum(1)
    )  # (R, 64); no matrix product, whose order of sums may depend on the number of threads
    return np.asarray(
        (clean[:, :, None] * second).sum(1) + rng.normal(0, 0.15, (len(members), WIDTH)), dtype=np.float32
    )


@cache
def _maps() -> tuple[Array, Array]:
    rng = np.random.default_rng(0x1A75)
    hidden = 64
    attributes = len(COLOURS) + len(SHAPES) + len(SIZES) + len(BACKGROUNDS)
    return rng.normal(0, 1, (attributes, hidden)), rng.normal(0, hidden**-0.5, (hidden, WIDTH))
