"""Pictures and crops put into a square as TensorFlow 1 did it: scaled to fit, padded with black. Source: B2T2, run_b2t2.py.

Bilinear of the old kind: a target pixel i reads at i * size / new size, without the half-pixel shift of today. All in float32, whose rounding counts: a
side now and then comes out one pixel short.
"""

from __future__ import annotations

import numpy as np

from intarsia.batch import Array

Number = np.float32
PLACES = 56
"""Steps of four pixels on a side of 224."""


def letterbox(pixels: Array, side: int = 224) -> Array:
    """A picture (H, W, 3), uint8 or float in [0, 1], as (side, side, 3) float32 in [0, 1], its ratio kept, zeros around it."""
    image = pixels.astype(Number) * Number(1 / 255) if pixels.dtype == np.uint8 else pixels.astype(Number)
    height, width = image.shape[:2]
    ratio = max(Number(width) / Number(side), Number(height) / Number(side))
    high, wide = Number(height) / ratio, Number(width) / ratio
    small = bilinear(image, int(np.floor(high)), int(np.floor(wide)))
    top, left = (int(np.floor((Number(side) - size) / Number(2))) for size in (high, wide))
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
