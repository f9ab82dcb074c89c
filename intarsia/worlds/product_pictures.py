"""Products as pictures: a silhouette for each sub-category, filled with colour, pattern and material, and a detail on it."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from intarsia.batch import Array
from intarsia.worlds.products import KINDS, Product
from intarsia.worlds.render import INKS, grain

_FINE = 4  # each pixel is drawn as 4 x 4
_JITTER, _PAPER = 12.0, (238, 240, 241)
_DETAIL_AT = {  # centre of the detail in the unit box, and its size
    "boot": (0.36, 0.3, 0.16),
    "sneaker": (0.62, 0.6, 0.14),
    "cap": (0.42, 0.5, 0.18),
    "beanie": (0.5, 0.62, 0.18),
    "trousers": (0.33, 0.2, 0.16),
    "shorts": (0.3, 0.4, 0.18),
}
_USUAL = (0.5, 0.42, 0.18)

Points = list[tuple[float, float]]


def _mirrored(half: Points) -> Points:
    """A symmetric outline from its left half, top to bottom."""
    return half + [(1 - x, y) for x, y in reversed(half)]


_SHAPES: dict[str, list[Points]] = {
    "t-shirt": [
        _mirrored([(0.42, 0.14), (0.36, 0.1), (0.22, 0.14), (0.06, 0.32), (0.16, 0.42), (0.26, 0.34), (0.26, 0.92)])
    ],
    "shirt": [
        _mirrored([(0.5, 0.18), (0.38, 0.08), (0.24, 0.13), (0.06, 0.6), (0.16, 0.65), (0.27, 0.42), (0.27, 0.94)])
    ],
    "sweater": [
        _mirrored([(0.4, 0.06), (0.4, 0.12), (0.22, 0.16), (0.04, 0.74), (0.2, 0.78), (0.27, 0.48), (0.25, 0.9)])
    ],
    "tank top": [_mirrored([(0.4, 0.3), (0.38, 0.08), (0.31, 0.08), (0.29, 0.36), (0.24, 0.42), (0.24, 0.92)])],
    "trousers": [_mirrored([(0.3, 0.05), (0.22, 0.95), (0.4, 0.95), (0.5, 0.36)])],
    "shorts": [_mirrored([(0.24, 0.22), (0.12, 0.78), (0.44, 0.8), (0.5, 0.52)])],
    "skirt": [_mirrored([(0.36, 0.18), (0.12, 0.84)])],
    "short dress": [_mirrored([(0.4, 0.22), (0.38, 0.08), (0.31, 0.08), (0.3, 0.3), (0.36, 0.46), (0.16, 0.8)])],
    "long dress": [_mirrored([(0.4, 0.14), (0.39, 0.03), (0.34, 0.03), (0.33, 0.2), (0.39, 0.34), (0.2, 0.98)])],
    "boot": [[(0.24, 0.06), (0.54, 0.06), (0.54, 0.6), (0.86, 0.76), (0.88, 0.92), (0.22, 0.92)]],
    "sneaker": [[(0.08, 0.42), (0.34, 0.46), (0.52, 0.4), (0.72, 0.6), (0.94, 0.68), (0.94, 0.82), (0.06, 0.82)]],
    "backpack": [
        [(0.24, 0.26), (0.34, 0.16), (0.66, 0.16), (0.76, 0.26), (0.8, 0.92), (0.2, 0.92)],
        [(0.4, 0.16), (0.42, 0.05), (0.58, 0.05), (0.6, 0.16), (0.56, 0.16), (0.55, 0.09), (0.45, 0.09), (0.44, 0.16)],
    ],
    "tote bag": [
        [(0.14, 0.42), (0.86, 0.42), (0.78, 0.94), (0.22, 0.94)],
        [(0.3, 0.42), (0.36, 0.08), (0.64, 0.08), (0.7, 0.42), (0.64, 0.42), (0.59, 0.14), (0.41, 0.14), (0.36, 0.42)],
    ],
    "clutch": [[(0.06, 0.3), (0.94, 0.3), (0.94, 0.76), (0.06, 0.76)]],
    "cap": [
        [
            (0.12, 0.62),
            (0.14, 0.42),
            (0.26, 0.28),
            (0.44, 0.24),
            (0.6, 0.3),
            (0.7, 0.44),
            (0.72, 0.58),
            (0.98, 0.66),
            (0.96, 0.72),
            (0.7, 0.68),
        ]
    ],
    "beanie": [_mirrored([(0.44, 0.14), (0.3, 0.2), (0.18, 0.4), (0.14, 0.62), (0.1, 0.64), (0.1, 0.84)])],
}


def draw_product_picture(rng: np.random.Generator, product: Product, side: int) -> Array:
    """Draws a product on pale paper, a little moved, resized and perhaps mirrored, with pixel noise.

    Returns:
        (side, side, 3) uint8 RGB.
    """
    scale, turn = rng.uniform(0.8, 0.97), bool(rng.integers(2))
    left, top = rng.random(2) * (1 - scale)
    across, down = (np.arange(side) + 0.5) / side, (np.arange(side) + 0.5) / side
    u, v = np.meshgrid((across - left) / scale, (down - top) / scale)  # of each pixel in the unit box
    u = 1 - u if turn else u
    place = (left, top, scale, turn, side)
    ink, accent = (np.array(INKS[x]) + rng.normal(0, _JITTER, 3) for x in (product.colour, product.accent))
    fill = np.where(_pattern(product.pattern, u, v)[..., None], accent, ink)
    fill = fill + _material(product.material, u, v)[..., None]
    name = KINDS[product.kind]
    paper = np.array(_PAPER) + rng.normal(0, 4, 3)
    picture = paper + (fill - paper) * _covered(_SHAPES[name], place)[..., None]
    x, y, size = _DETAIL_AT.get(name, _USUAL)
    for outline, tone in _detail(product.detail, x, y, size):
        picture = picture + (np.array(tone) - picture) * _covered([outline], place)[..., None]
    picture = picture + grain()[np.frombuffer(rng.bytes(picture.size), np.uint8)].reshape(picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _covered(outlines: list[Points], place: tuple[float, float, float, bool, int]) -> Array:
    """(side, side) share of each pixel that outlines in the unit box cover."""
    left, top, scale, turn, side = place
    canvas = Image.new("L", (side * _FINE, side * _FINE))
    draw = ImageDraw.Draw(canvas)
    for outline in outlines:
        points = [
            ((left + scale * (1 - x if turn else x)) * side * _FINE, (top + scale * y) * side * _FINE)
            for x, y in outline
        ]
        draw.polygon(points, fill=255)
    return np.asarray(canvas.reduce(_FINE), np.float64) / 255


def _pattern(pattern: int, u: Array, v: Array) -> Array:
    """(side, side) bool, where the pattern's own colour shows: nowhere, stripes across, dots, checks."""
    x, y = 7 * u % 1, 7 * v % 1
    if pattern == 1:
        return np.asarray(y < 0.42)
    if pattern == 2:
        return np.asarray((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1)
    if pattern == 3:
        return np.asarray((x < 0.5) ^ (y < 0.5))
    return np.zeros(u.shape, np.bool_)


def _material(material: int, u: Array, v: Array) -> Array:
    """(side, side) what a material adds to the brightness: cotton nothing, leather a gloss, knit ribs that run down, denim a slanted weave and dark."""
    if material == 1:
        return np.asarray(95 * np.exp(-(((u - 0.4 - 0.25 * v) / 0.09) ** 2)) - 12)
    if material == 2:
        return np.asarray(np.where(14 * u % 1 < 0.45, -44.0, 10.0))
    if material == 3:
        return np.asarray(np.where(12 * (u + v) % 1 < 0.3, 34.0, -26.0))
    return np.zeros(u.shape)


def _detail(detail: int, x: float, y: float, size: float) -> list[tuple[Points, tuple[int, int, int]]]:
    """Outlines and tones of a detail around a point: nothing, a pocket, three buttons, a star."""
    h = size / 2
    if detail == 1:
        rim = [(x - h, y - h), (x + h, y - h), (x + h, y + h * 0.5), (x, y + h), (x - h, y + h * 0.5)]
        inner = [(x + (a - x) * 0.7, y + (b - y) * 0.7) for a, b in rim]
        return [(rim, (36, 36, 40)), (inner, (214, 214, 210))]
    if detail == 2:
        return [
            ([(x + 0.022 * a, y + k * size * 0.6 + 0.022 * b) for a, b in _round()], (250, 250, 250))
            for k in (-1, 0, 1)
        ]
    if detail == 3:
        points = [(x + h * r * np.sin(a), y - h * r * np.cos(a)) for a, r in _star()]
        plate = [(x + 1.15 * h * a, y + 1.15 * h * b) for a, b in _round()]
        return [(plate, (30, 30, 34)), (points, (250, 212, 60))]
    return []


@cache
def _round() -> tuple[tuple[float, float], ...]:
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    return tuple((float(np.cos(a)), float(np.sin(a))) for a in turn)


@cache
def _star() -> tuple[tuple[float, float], ...]:
    return tuple((float(i * np.pi / 5), 0.42 if i % 2 else 1.0) for i in range(10))
