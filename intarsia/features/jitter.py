"""Colours changed at random, shapes kept: jitter and grey, as contrastive training wants them. Source: torchvision's ColorJitter and RandomGrayscale.

The random numbers are drawn once and kept as a value, so that the same picture is changed alike wherever it is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Jitter:
    """One drawn change of colours."""

    order: tuple[int, ...] = ()
    """Which of brightness, contrast, saturation and hue (0 to 3) come when; none of them = colours stay."""
    factors: tuple[float, ...] = (1.0, 1.0, 1.0, 0.0)
    """Of brightness, contrast and saturation a factor, of hue a turn (1 = the full circle)."""
    grey: bool = False
    """In the end all colour goes."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """(3, H, W) float in 0..1, kept so."""
        for what in self.order:
            factor = self.factors[what]
            if what == 0:
                pixels = (pixels * factor).clamp(0, 1)
            elif what == 1:
                pixels = _blend(pixels, _grey(pixels).mean(), factor)
            elif what == 2:
                pixels = _blend(pixels, _grey(pixels), factor)
            else:
                pixels = _turn(pixels, factor)
        return torch.cat([_grey(pixels)] * 3) if self.grey else pixels


@dataclass(frozen=True)
class Colours:
    """How colours are changed at random."""

    brightness: float = 0.4
    """Factors within 1 - this .. 1 + this; likewise the next two."""
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    """Turns of at most this share of the circle."""
    rate: float = 0.8
    """How often these four are changed."""
    grey: float = 0.2
    """How often all colour goes."""

    def draw(self, rng: np.random.Generator) -> Jitter:
        """Draws a change; the only source of randomness is `rng`."""
        jittered, greyed = rng.random() < self.rate, bool(rng.random() < self.grey)
        strength = np.array([self.brightness, self.contrast, self.saturation])
        low, high = np.append(np.maximum(0, 1 - strength), -self.hue), np.append(1 + strength, self.hue)
        factors, order = rng.uniform(low, high), rng.permutation(4)
        if not jittered:
            return Jitter(grey=greyed)
        return Jitter(tuple(order.tolist()), tuple(factors.tolist()), greyed)


COLOURS = Colours()
STILL = Colours(rate=0.0, grey=0.0)
"""Colours stay as they are, for captions that say colours."""


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(0)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue)[None]


def _blend(pixels: Tensor, other: Tensor, share: float) -> Tensor:
    return (share * pixels + (1 - share) * other).clamp(0, 1)


def _turn(pixels: Tensor, turn: float) -> Tensor:
    """Turns the hue; lightness and saturation of HSV stay."""
    most, least = pixels.amax(0), pixels.amin(0)
    spread = most - least
    safe = torch.where(spread > 0, spread, 1.0)
    red, green, blue = ((most - channel) / safe for channel in pixels.unbind(0))
    hue = torch.where(pixels[0] == most, blue - green, torch.where(pixels[1] == most, 2 + red - blue, 4 + green - red))
    hue = torch.where(spread > 0, (hue / 6 + turn) % 1.0, 0.0)
    place = torch.stack([(n + hue * 6) % 6 for n in (5.0, 3.0, 1.0)])  # the standard closed form of HSV to RGB
    return most - spread * torch.minimum(place, 4 - place).clamp(0, 1)
