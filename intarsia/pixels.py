"""Pictures as systems with a trunk of their own read them: resized and normalised, decoded only when they are packed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intarsia.batch import Array, Picture, Pixels
from intarsia.data.decode import pixels_of, size_of
from intarsia.errors import BadInput

Change = Callable[[Tensor], Tensor]
Three = tuple[float, float, float]


def square_pixels(
    key: str, picture: Picture, side: int, normal: tuple[Three, Three], change: Change | None = None
) -> Pixels:
    """A picture stretched to a square, bilinear without antialias, then normalised.

    Args:
        key: of the sample, for errors.
        picture: decoded only when it is packed.
        side: pixels.
        normal: what is taken off the pixels in 0..1, by channel, and what divides the rest.
        change: of colours, on (3, side, side) float in 0..1, before they are normalised.
    """
    return Pixels(partial(_square, key, picture, side, normal, change), side, side)


def _square(key: str, picture: Picture, side: int, normal: tuple[Three, Three], change: Change | None) -> Array:
    whole = torch.from_numpy(np.ascontiguousarray(pixels_of(picture, key))).permute(2, 0, 1)[None].float() / 255
    x = F.interpolate(whole, (side, side), mode="bilinear", align_corners=False)[0]
    x = x if change is None else change(x)
    return _normal(x, normal)


def _normal(pixels: Tensor, normal: tuple[Three, Three]) -> Array:
    mean, spread = (torch.tensor(numbers)[:, None, None] for numbers in normal)
    found: Array = ((pixels - mean) / spread).numpy()
    return found


def bounded_pixels(key: str, picture: Picture, short: int, long: int, normal: tuple[Three, Three]) -> Pixels:
    """A picture in its own proportions: its shorter side is resized to `short`, or less where the longer one would pass `long`; bilinear, antialiased.

    Args:
        key: of the sample, for errors.
        picture: decoded only when it is packed, unless nothing else says how large it is.
        short: pixels.
        long: pixels, at most.
        normal: what is taken off the pixels in 0..1, by channel, and what divides the rest.
    """
    width, height = size_of(picture, key)
    scale = min(short / min(width, height), long / max(width, height))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return Pixels(partial(_bounded, key, picture, (height, width), size, normal), *size)


def _bounded(
    key: str, picture: Picture, known: tuple[int, int], size: tuple[int, int], normal: tuple[Three, Three]
) -> Array:
    pixels = np.ascontiguousarray(pixels_of(picture, key))
    if pixels.shape[:2] != known:
        raise BadInput(
            f"sample {key}: picture {picture.name} is {pixels.shape[1]} x {pixels.shape[0]} pixels, its data say {known[1]} x {known[0]}"
        )
    x = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    if size != known:
        x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    return _normal(x[0].float() / 255, normal)
