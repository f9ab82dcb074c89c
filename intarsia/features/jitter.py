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

    @classmethod
    def draw(
        cls, rng: np.random.Generator, strength: tuple[float, float, float, float], rate: float, grey: float
    ) -> Jitter:
        """Draws a change.

        Args:
            rng: the only source of randomness.
            strength: brightness, contrast, saturation within 1 - s .. 1 + s; hue within -s .. s.
            rate: how often colours are jittered.
            grey: how often all colour goes.
        """
        jittered, greyed = rng.random() < rate, bool(rng.random() < grey)
        low = np.array([max(0.0, 1 - s) for s in strength[:3]] + [-strength[3]])
        high = np.array([1 + s for s in strength[:3]] + [strength[3]])
        factors, order = rng.uniform(low, high), rng.permutation(4)
        if not jittered:
            return cls(grey=greyed)
        return cls(tuple(order.tolist()), tuple(factors.tolist()), greyed)

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


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue)[None]


def _blend(pixels: Tensor, other: Tensor, share: float) -> Tensor:
    return (share * pixels + (1 - share) * other).clamp(0, 1)


def _turn(pixels: Tensor, turn: float) -> Tensor:
    """Turns the hue; lightness and saturation of HSV stay."""
    most, least = pixels.amax(0), pixels.amin(0)
    spread = most - least
    safe = torch.where(spread > 0, spread, 1.0)
    red, green, blue = ((most - channel) / safe for channel in pixels)
    hue = torch.where(pixels[0] == most, blue - green, torch.where(pixels[1] == most, 2 + red - blue, 4 + green - red))
    hue = torch.where(spread > 0, (hue / 6 + turn) % 1.0, 0.0)
    place = torch.stack([(n + hue * 6) % 6 for n in (5.0, 3.0, 1.0)])  # the standard closed form of HSV to RGB
    return most - spread * torch.minimum(place, 4 - place).clamp(0, 1)
