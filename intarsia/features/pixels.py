"""Raw pixels as region features: a box's pixels shrunk to 8 x 8 x 3 = 192 numbers, standardised with fixed constants.

No weights, no state: the same picture and boxes give the same bits anywhere. Enough for pictures of simple shapes; not a feature for photographs.
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
MEAN = (0.705, 0.660, 0.665)
"""Mean of each channel over the object and background boxes of the default world."""
SD = 0.25
"""One standard deviation for all numbers."""
SETTINGS = {"grid": str(GRID), "mean": " ".join(map(str, MEAN)), "sd": str(SD)}
"""All that changes the numbers."""


def pixel_features(image: NDArray[np.uint8], boxes: NDArray[Any]) -> NDArray[np.float32]:
    """Features of the boxes of a picture.

    Each of the 8 x 8 cells of a box is the mean over its area, pixels on its edge counted by the part inside, so shrinking is smooth and a picture of
    any size gives nearly the same numbers. Boxes are clipped to the picture and are at least one pixel wide and high.

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
    sums = _integral(image)
    corners = _sample(sums, ys, xs)
    cells = corners[:, 1:, 1:] - corners[:, :-1, 1:] - corners[:, 1:, :-1] + corners[:, :-1, :-1]  # (R, 8, 8, 3)
    areas = np.diff(ys)[:, :, None] * np.diff(xs)[:, None, :]
    values = cells / areas[..., None] / 255
    return ((values - np.array(MEAN)) / SD).astype(np.float32).reshape(len(boxes), WIDTH)


def _edges(low: NDArray[Any], high: NDArray[Any], length: int) -> NDArray[np.float64]:
    """(R, 9) cell edges in pixels along one axis."""
    start = np.clip(np.asarray(low, np.float64) * length, 0, length - 1)
    end = np.clip(np.asarray(high, np.float64) * length, start + 1, length)
    return start[:, None] + (end - start)[:, None] * np.arange(GRID + 1) / GRID


def _integral(image: NDArray[np.uint8]) -> NDArray[Any]:
    """(H + 1, W + 1, 3) sums of all pixels above and left; integers, hence exact."""
    height, width, _ = image.shape
    kind = np.int32 if height * width * 255 < 2**31 else np.int64
    sums = np.zeros((height + 1, width + 1, 3), kind)
    np.cumsum(np.cumsum(image, axis=0, dtype=kind), axis=1, out=sums[1:, 1:])
    return sums


def _sample(sums: NDArray[Any], ys: NDArray[np.float64], xs: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, 9, 9, 3) the sums at fractional places, linear between pixels."""
    y0 = np.minimum(ys.astype(np.int64), sums.shape[0] - 2)
    x0 = np.minimum(xs.astype(np.int64), sums.shape[1] - 2)
    fy, fx = (ys - y0)[:, :, None, None], (xs - x0)[:, None, :, None]
    rows, columns = y0[:, :, None], x0[:, None, :]
    top = sums[rows, columns] * (1 - fx) + sums[rows, columns + 1] * fx
    bottom = sums[rows + 1, columns] * (1 - fx) + sums[rows + 1, columns + 1] * fx
    return top * (1 - fy) + bottom * fy
