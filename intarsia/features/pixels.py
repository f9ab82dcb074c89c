"""Raw pixels as region features: a box's pixels shrunk to 8 x 8 x 3 = 192 numbers, standardised with fixed constants.

No weights, no state: the same picture and boxes give the same bits anywhere. Enough for pictures of simple shapes; not
a feature for photographs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = "pixels"
"""Name of the extractor."""
GRID = 8
WIDTH = GRID * GRID * 3
"""Numbers a region."""
MEAN = (0.741, 0.715, 0.710)
"""Mean of each channel over the object and background boxes of the default world."""
SD = 0.267
"""One standard deviation for all numbers."""
SETTINGS = {"grid": str(GRID), "mean": " ".join(map(str, MEAN)), "sd": str(SD)}
"""All that changes the numbers."""


def pixel_features(image: NDArray[np.uint8], boxes: NDArray[Any]) -> NDArray[np.float32]:
    """Features of the boxes of a picture.

    Each of the 8 x 8 cells of a box is the mean over its area, pixels on its edge counted by the part inside, so
    shrinking is smooth and a picture of any size gives nearly the same numbers. Boxes are clipped to the picture and
    are at least one pixel wide and high.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (R, 4) xyxy as fractions of width and height.

    Returns:
        (R, 192) float32, row-major cells, channels last.

    Raises:
        ValueError: the picture or the boxes have another shape or type, or a box is not finite.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"picture of shape {image.shape} and type {image.dtype}, expected (H, W, 3) uint8")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise ValueError(f"boxes of shape {boxes.shape}, expected (R, 4) finite fractions")
    height, width, _ = image.shape
    xs = _edges(boxes[:, 0], boxes[:, 2], width)
    ys = _edges(boxes[:, 1], boxes[:, 3], height)
    corners = _sample(_integral(image), ys, xs)
    cells = np.diff(np.diff(corners, axis=2), axis=3)  # (3, R, 8, 8)
    values = cells / (np.diff(ys)[:, :, None] * np.diff(xs)[:, None, :] * 255)
    standard = (values - np.array(MEAN)[:, None, None, None]) / SD
    return np.ascontiguousarray(standard.transpose(1, 2, 3, 0), dtype=np.float32).reshape(len(boxes), WIDTH)


def _edges(low: NDArray[Any], high: NDArray[Any], length: int) -> NDArray[np.float64]:
    """(R, 9) cell edges in pixels along one axis."""
    start = np.clip(np.asarray(low, np.float64) * length, 0, length - 1)
    end = np.clip(np.asarray(high, np.float64) * length, start + 1, length)
    return start[:, None] + (end - start)[:, None] * np.arange(GRID + 1) / GRID


def _integral(image: NDArray[np.uint8]) -> NDArray[Any]:
    """(3, H + 1, W + 1) sums of all pixels above and left; integers, hence exact."""
    height, width, _ = image.shape
    kind = np.int32 if height * width * 255 < 2**31 else np.int64
    sums = np.zeros((3, height + 1, width + 1), kind)
    rows = np.cumsum(image.transpose(2, 0, 1).astype(kind, order="C"), axis=2, dtype=kind)
    np.cumsum(rows, axis=1, dtype=kind, out=sums[:, 1:, 1:])
    return sums


def _sample(sums: NDArray[Any], ys: NDArray[np.float64], xs: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, R, 9, 9) the sums at fractional places, linear between pixels."""
    _, height, width = sums.shape
    y0 = np.minimum(ys.astype(np.int64), height - 2)
    x0 = np.minimum(xs.astype(np.int64), width - 2)
    fy, fx = (ys - y0)[:, :, None], (xs - x0)[:, None, :]
    flat, place = sums.reshape(3, -1), y0[:, :, None] * width + x0[:, None, :]
    here, right = flat.take(place, axis=1), flat.take(place + 1, axis=1)
    below, across = flat.take(place + width, axis=1), flat.take(place + width + 1, axis=1)
    mixed: NDArray[np.float64] = (here * (1 - fx) + right * fx) * (1 - fy) + (below * (1 - fx) + across * fx) * fy
    return mixed
