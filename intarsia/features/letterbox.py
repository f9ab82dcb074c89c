"""Pictures and crops put into a square as TensorFlow 1 did it: scaled to fit, padded with black. Source: B2T2, run_b2t2.py.

Bilinear of the old kind: a target pixel i reads at i * size / new size, without the half-pixel shift of today. All in float32, whose rounding counts: a
side now and then comes out one pixel short.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np

from intarsia.batch import Array, Picture, Pixels
from intarsia.data.decode import pixels_of

Number = np.float32
SIDE = 224
"""Pixels a side of the square."""
PLACES = SIDE // 4
"""Steps of four pixels on it."""


def letterbox(pixels: Array, side: int = SIDE) -> Array:
    """A picture (H, W, 3), uint8 or float in [0, 1], as (side, side, 3) float32 in [0, 1], its ratio kept, zeros around it."""
    image = pixels.astype(Number) * Number(1 / 255) if pixels.dtype == np.uint8 else pixels.astype(Number)
    height, width = image.shape[:2]
    ratio = max(Number(width) / Number(side), Number(height) / Number(side))
    high, wide = Number(height) / ratio, Number(width) / ratio
    small = bilinear(image, int(np.floor(high)), int(np.floor(wide)))
    top, left = (max(0, int(np.floor((Number(side) - size) / Number(2)))) for size in (high, wide))
    square = np.zeros((side, side, image.shape[2]), Number)
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return square


def crop(pixels: Array, box: tuple[int, int, int, int]) -> Array:
    """The part (y, x, height, width) of a picture, in whole pixels."""
    y, x, height, width = box
    return pixels[y : y + height, x : x + width]


def bilinear(image: Array, height: int, width: int) -> Array:
    """(H, W, C) float32 to (height, width, C)."""
    (y0, y1, fy), (x0, x1, fx) = (_between(old, new) for old, new in zip(image.shape, (height, width), strict=False))
    fy, fx = fy[:, None, None], fx[None, :, None]
    top = image[y0][:, x0] + (image[y0][:, x1] - image[y0][:, x0]) * fx
    bottom = image[y1][:, x0] + (image[y1][:, x1] - image[y1][:, x0]) * fx
    return np.asarray(top + (bottom - top) * fy)


def _between(old: int, new: int) -> tuple[Array, Array, Array]:
    """For each new place the old neighbours below and above, and how far it is between them."""
    at = np.arange(new, dtype=Number) * (Number(old) / Number(new))
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (at - low).astype(Number)


def pixel_boxes(boxes: Array) -> Array:
    """(R, 4) int64 y, x, height, width in whole pixels of xyxy boxes in pixels: each number is cut, not rounded."""
    x1, y1, x2, y2 = np.asarray(boxes, np.float64)[:, :4].T
    return np.stack([y1, x1, y2 - y1, x2 - x1], 1).astype(np.int64)


def grid(boxes: Array, height: int, width: int) -> Array:
    """(R, 4) xyxy fractions of y, x, height, width in pixels; far edges are sums of what was cut."""
    y, x, high, wide = ((boxes * 224.0 / np.array([height, width, height, width])).astype(np.int64) // 4).T
    return (np.stack([x, y, x + wide, y + high], 1) / PLACES).astype(np.float32)


def snapped(boxes: Array, height: int, width: int) -> Array:
    """(R, 4) xyxy fractions on the grid of the position tables, of boxes (R, 4) xyxy as fractions; see `grid`. Args: height, width in pixels."""
    return grid(_in_pixels(boxes, height, width), height, width)


def cut_outs(image: Array, boxes: Array) -> list[Array]:
    """The parts of a picture (H, W, 3) in boxes (R, 4) xyxy as fractions, each as `letterbox`; a box without a whole pixel gets one."""
    high, wide = image.shape[:2]
    places = _in_pixels(boxes, high, wide)
    places[:, 2:] = np.maximum(places[:, 2:], 1)
    places[:, :2] = np.minimum(places[:, :2], np.array([high, wide]) - 1)
    return [letterbox(crop(image, (y, x, h, w))) for y, x, h, w in places.tolist()]


def cut_out_pixels(key: str, picture: Picture, boxes: Array) -> tuple[Pixels, ...]:
    """The same as what a trunk reads, (3, SIDE, SIDE) in 0..1 each; the picture is decoded once, when the first is read. Args: key, of the sample, for errors."""
    image = cache(partial(pixels_of, picture, key))
    return tuple(Pixels(partial(_read, image, box[None]), SIDE, SIDE) for box in boxes)


def _read(image: Callable[[], Array], box: Array) -> Array:
    (square,) = cut_outs(image(), box)
    return square.transpose(2, 0, 1)


def _in_pixels(boxes: Array, height: int, width: int) -> Array:
    """`pixel_boxes` of fractions, whose rounding must not cost a whole number its last pixel."""
    return pixel_boxes(np.round(boxes.astype(np.float64) * np.array([width, height, width, height]), 3))
