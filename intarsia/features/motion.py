"""The "motion" extractor: 32 numbers of a clip that say what outline stands out, in which colour, and what becomes of it.

Outlines are a histogram of the directions of edges over the whole frame (Dalal and Triggs, CVPR 2005, of one cell), so that a place does not count; what moves is told by where the
edges are first and last. Nothing is learnt. Visual words of these numbers tell colour, shape and action of a single thing on a plain ground; of a real
scene they say little.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.features.clips import sampling
from intarsia.features.extractor import Array, where_to_run
from intarsia.features.roi import stretched

BINS = 24
"""Directions of edges, all around: from dark to light is not from light to dark."""
FAINT = 0.02
"""Changes of brightness from pixel to pixel that are no edges; of 1."""
APART = 60 / 255
"""How far from the ground, over the three colours together, a pixel is to stand out."""
USUAL = 7.8
"""Logarithm of how long the edges of one thing are for their spread, which is taken off."""
SCALES = (3.0, 4.0, 2.4, 4.5, 2.0, 1.7)
"""Of outline, length, colour, shift, growth and turn, so that outlines, colours and changes spread alike; measured on generated films of one thing."""


class ClipMotion:
    """Outline (24 numbers), length of edges (1), colour (3), shift to the right and down, growth, turn (4).

    Args:
        look: frames of a clip that are looked at, evenly spread.
        side: pixels of the square a frame is stretched to.
        fps: frames a second.
        frames: frames a clip.
        device: "auto", "cpu", "cuda", ..
    """

    name = "motion"

    def __init__(self, look: int = 6, side: int = 96, fps: str = "20", frames: int = 30, device: str = "auto") -> None:
        if side < 32 or not 2 <= look <= frames:
            raise BadInput(f"extractor motion: side {side} (32 or more), look {look} (2 to {frames} frames)")
        self.device = where_to_run(device)
        self.side, self.sampling = side, sampling(fps, frames, look)
        settings = {"look": str(look), "side": str(side), "fps": fps, "frames": str(frames), "bins": str(BINS)}
        self.provenance = Provenance(self.name, BINS + 8, settings=settings)

    def shrink(self, pixels: Array) -> Array:
        """The whole frame, stretched."""
        return stretched(pixels, self.side)

    def __call__(self, clips: Array) -> Array:
        """(B, 32) float32; a clip at a time, so that little is held."""
        return np.concatenate([self._described(clips[i : i + 1]) for i in range(len(clips))])

    @torch.inference_mode()
    def _described(self, clips: Array) -> Array:
        pixels = torch.from_numpy(clips).to(self.device).float().permute(0, 1, 4, 2, 3) / 255  # (B, T, 3, h, w)
        down, right = edges(pixels)
        strength = functional.relu((down.square() + right.square()).sqrt() - FAINT)
        amount = strength.sum((2, 3))  # (B, T)
        directions = _directions(torch.atan2(down, right), strength)
        places, spread = _places(strength, amount)
        outline, length = directions.mean(1), _length(strength, amount, spread)
        shift, growth = places[:, -1] - places[:, 0], (amount[:, -1:] + 0.5).log() - (amount[:, :1] + 0.5).log()
        turn = (directions[:, 1:] - directions[:, :-1]).norm(dim=-1).mean(1, keepdim=True)
        parts = (outline, length, colours(pixels), shift, growth, turn)
        found: Array = torch.cat([scale * x for scale, x in zip(SCALES, parts, strict=True)], 1).cpu().numpy()
        return found


def edges(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """How brightness changes downwards and to the right, each (B, T, h, w), in the colour that changes most; (B, T, 3, h, w) in [0, 1] smoothed over 3 x 3 before."""
    flat = functional.avg_pool2d(functional.pad(pixels.flatten(0, 1), (1, 1, 1, 1), mode="replicate"), 3, 1)
    flat = functional.pad(flat, (1, 1, 1, 1), mode="replicate")
    right = (flat[..., 1:-1, 2:] - flat[..., 1:-1, :-2]) / 2
    down = (flat[..., 2:, 1:-1] - flat[..., :-2, 1:-1]) / 2
    most = (right.square() + down.square()).argmax(1, keepdim=True)
    first, second = (x.gather(1, most).view(*pixels.shape[:2], *x.shape[2:]) for x in (down, right))
    return first, second


def _directions(angle: Tensor, strength: Tensor) -> Tensor:
    """(B, T, BINS) root of each direction's share of the edges, 0 without edges; an edge counts for the two nearest directions."""
    place = (angle / (2 * math.pi) * BINS) % BINS
    below = place.floor()
    share = (place - below) * strength
    counts = strength.new_zeros(*strength.shape[:2], BINS)
    for which, weight in ((below, strength - share), (below + 1, share)):
        counts.scatter_add_(2, (which.long() % BINS).flatten(2), weight.flatten(2))
    return (counts / counts.sum(2, keepdim=True).clamp(min=1e-4)).sqrt()


def _places(strength: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, 2) the middle of the edges, right and down, as fractions, that of the frame without edges; and (B, T) how far they lie from it."""
    high, wide = strength.shape[2:]
    x = torch.linspace(-0.5, 0.5, wide, device=strength.device)
    y = torch.linspace(-0.5, 0.5, high, device=strength.device)
    whole = amount.clamp(min=1e-6)
    along, across = strength.sum(2), strength.sum(3)  # (B, T, w), (B, T, h)
    middle = torch.stack([(along * x).sum(2), (across * y).sum(2)], 2) / whole[:, :, None]
    squares = ((along * x.square()).sum(2) + (across * y.square()).sum(2)) / whole
    return middle, (squares - middle.square().sum(2)).clamp(min=0).sqrt()


def _length(strength: Tensor, amount: Tensor, spread: Tensor) -> Tensor:
    """(B, 1) logarithm of the edges' length over their spread, less `USUAL`; frames count by their edges, 0 without any."""
    whole = amount.clamp(min=1e-6)
    contrast = strength.square().sum((2, 3)) / whole
    each = (whole / (contrast * spread).clamp(min=1e-6)).log() - USUAL
    return (amount * each).sum(1, keepdim=True) / amount.sum(1, keepdim=True).clamp(min=1e-6)


def colours(pixels: Tensor) -> Tensor:
    """(B, 3) the mean colour of what stands out in (B, T, 3, h, w), each pixel by how far it is from the ground; where nothing does, the ground's.

    The ground is the median of the frames' border.
    """
    border = torch.cat([pixels[..., (0, -1), :].flatten(3), pixels[..., (0, -1)].flatten(3)], 3)
    ground = border.transpose(1, 2).flatten(2).median(2).values  # (B, 3)
    far = (pixels - ground[:, None, :, None, None]).abs().sum(2)
    far = torch.where(far > APART, far, 0.0)[:, :, None]
    whole = far.sum((1, 2, 3, 4))[:, None]
    found = (far * pixels).sum((1, 3, 4)) / whole.clamp(min=1e-6)
    return torch.where(whole > 0, found, ground)
