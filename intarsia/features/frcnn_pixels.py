"""Pixels as the region detectors want them: blue, green, red, 0..255 less a mean, the short side made so long, each code base in its own way.

Sizes and resampling decide the features: Caffe's reads subtract the mean first and do not smooth when they shrink; Pillow's smooth and round to bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

Array = NDArray[Any]
MEAN_BUTD = (102.9801, 115.9465, 122.7717)
MEAN_VINVL = (103.530, 116.280, 123.675)
"""Blue, green, red."""


def caffe(image: Array, mean: tuple[float, ...] = MEAN_BUTD, short: int = 600, longest: int = 1000) -> Tensor:
    """A picture as bottom-up attention's Caffe code and its PyTorch version prepare it.

    One scale for both axes; a target pixel reads at (i + 0.5) / scale - 0.5, linearly, without smoothing.

    Args:
        image: (H, W, 3) uint8, blue green red.
        mean: of each channel, taken off before.
        short: length of the shorter side ..
        longest: .. unless the longer one would be more than this.

    Returns:
        (3, H', W') float32.
    """
    scale = caffe_scale(image.shape[0], image.shape[1], short, longest)
    pixels = image.astype(np.float32) - np.array(mean, np.float32)
    pixels = _read(_read(pixels, scale, 0), scale, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def caffe_scale(high: int, wide: int, short: int = 600, longest: int = 1000) -> float:
    """By how much `caffe` resizes a picture."""
    scale = short / min(high, wide)
    return longest / max(high, wide) if round(scale * max(high, wide)) > longest else scale


def _read(pixels: Array, scale: float, axis: int) -> Array:
    old = pixels.shape[axis]
    at = ((np.arange(round(old * scale)) + 0.5) / scale - 0.5).clip(0, old - 1)
    low = np.minimum(at.astype(np.int64), max(old - 2, 0))
    part = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
    below, above = pixels.take(low, axis), pixels.take(np.minimum(low + 1, old - 1), axis)
    return np.asarray(below + (above - below) * part)


def shortest_edge(high: int, wide: int, short: int, longest: int) -> tuple[int, int]:
    """(height, width) by detectron2's arithmetic: the shorter side as asked, both shrunk where the longer is too long, then rounded half up."""
    scale = short / min(high, wide)
    new_high, new_wide = (float(short), scale * wide) if high < wide else (scale * high, float(short))
    if max(new_high, new_wide) > longest:
        scale = longest / max(new_high, new_wide)
        new_high, new_wide = new_high * scale, new_wide * scale
    return int(new_high + 0.5), int(new_wide + 0.5)


def pillow(image: Array, mean: tuple[float, ...] = MEAN_BUTD, short: int = 600, longest: int = 1000) -> Tensor:
    """As py-bottom-up-attention's scripts prepare it: smoothed bytes, then less the mean. Arguments and result as `caffe`'s."""
    high, wide = shortest_edge(image.shape[0], image.shape[1], short, longest)
    return resized(image, high, wide, mean)


def interpolated(image: Array, mean: tuple[float, ...] = MEAN_BUTD, short: int = 800, longest: int = 1333) -> Tensor:
    """As Hugging Face's copy prepares it: float numbers read linearly without smoothing, then less the mean. Arguments and result as `caffe`'s."""
    size = shortest_edge(image.shape[0], image.shape[1], short, longest)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).float().permute(2, 0, 1)
    read = functional.interpolate(pixels[None], size, mode="bilinear", align_corners=False)[0]
    return read - torch.tensor(mean)[:, None, None]


def vinvl(image: Array, mean: tuple[float, ...] = MEAN_VINVL, short: int = 600, longest: int = 1000) -> Tensor:
    """As VinVL's demo prepares it: the longer side is cut to a whole number, not rounded; smoothed bytes. Arguments and result as `caffe`'s."""
    high, wide = image.shape[:2]
    low, top = min(high, wide), max(high, wide)
    if top / low * short > longest:
        short = round(longest * low / top)
    other = int(short * top / low)
    return resized(image, *((short, other) if high <= wide else (other, short)), mean)


PREPARE: dict[str, Callable[[Array], Tensor]] = {
    "caffe": caffe,
    "pillow": pillow,
    "interpolated": interpolated,
    "vinvl": vinvl,
}
"""Ways to prepare a picture, by name."""


def resized(image: Array, high: int, wide: int, mean: tuple[float, ...] = MEAN_BUTD) -> Tensor:
    """A picture (H, W, 3) uint8 stretched to (high, wide): smoothed bytes, then less the mean of each channel; (3, high, wide) float32."""
    pixels = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() - torch.tensor(mean)[:, None, None]
