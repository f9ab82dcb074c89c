"""Clip extractors: what turns the clips of a video into vectors, by name.

- "s3d": the video network of VideoBERT and CBT, with weights that the user brings (see `s3d.py` for the public files).
- "frames": EfficientNet-Lite0's vector of a few frames, averaged over the clip. Light, real, and blind to motion.
- "grid": a network with fixed random weights, 2 x 2 cells of a few frames: their mean, and the last less the first, which shows motion. No download.
- "stored": nothing is computed: vectors that somebody made are read, a .npy file a video.
- "motion": outline and colour of what stands out, and what becomes of it: 32 numbers, for visual words of moving shapes. No download.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from intarsia.data.fetch import fetched
from intarsia.data.formats.files import sha256_of
from intarsia.data.source import Provenance
from intarsia.data.video import Sampling, evenly
from intarsia.errors import BadInput
from intarsia.features.efficientnet_lite import FEATURES, load_efficientnet, normalised
from intarsia.features.extractor import Array, make, where_to_run, whole_floats
from intarsia.features.grid import WIDTHS, RandomTrunk
from intarsia.features.roi import stretched
from intarsia.features.s3d import load_s3d, s3d_layout
from intarsia.features.s3d_text import kylemin_pixels, milnce_pixels, torchvision_pixels
from intarsia.weights.files import read_weights


@runtime_checkable
class ClipExtractor(Protocol):
    """Clips to vectors, on the CPU or a CUDA device."""

    name: str
    provenance: Provenance
    """Its settings say at least `fps` and `frames`."""
    sampling: Sampling

    def shrink(self, pixels: Array) -> Array:
        """What is kept of one frame: (H, W, 3) uint8 of any size to (h, w, 3) uint8 of one size; run by the decoding thread."""

    def __call__(self, clips: Array) -> Array:
        """Describes clips.

        Args:
            clips: (B, T, h, w, 3) uint8, the wanted frames, shrunk.

        Returns:
            (B, F) float32
        """


CLIP_EXTRACTORS = {
    "s3d": "intarsia.features.clips:S3DClips",
    "frames": "intarsia.features.clips:Frames",
    "grid": "intarsia.features.clips:ClipGrid",
    "motion": "intarsia.features.motion:ClipMotion",
    "stored": "intarsia.features.clips:StoredClips",
}
"""Name -> "module:class"."""


def open_clip_extractor(name: str, **options: Any) -> ClipExtractor:
    """A clip extractor by name.

    Args:
        name: one of CLIP_EXTRACTORS.
        options: arguments of its class.

    Raises:
        BadInput: no such extractor or option, or its weights are missing.
    """
    extractor: ClipExtractor = make(name, options, CLIP_EXTRACTORS)
    return extractor


def sampling(fps: str, frames: int, look: int = 0) -> Sampling:
    """How an extractor's options say that a video is cut.

    Args:
        fps: frames a second, such as "20" or "30000/1001".
        frames: of a clip.
        look: how many of them are looked at; 0 = all.

    Raises:
        BadInput: a rate that is no number, or a count below 1.
    """
    try:
        rate = Fraction(fps)
    except (ValueError, ZeroDivisionError):
        raise BadInput(f"fps {fps!r} is no rate, such as 20 or 30000/1001") from None
    return Sampling(rate, frames, evenly(frames, look) if look else ())


class S3DClips:
    """S3D, the mean of its last map: 1024 numbers.

    What is done with the pixels is what the weights were trained with, told by the file's names: torchvision's are stretched to 256 x 256 and cut to the
    middle 224, kylemin's keep their shape, MIL-NCE's are cut to a square and scaled.

    Args:
        weights: the file.
        size: pixels of the square the network sees; other sizes keep the proportion of the cut.
        fps: frames a second. Source: VideoBERT, sec. 4.1.
        frames: frames a clip.
        device: "auto", "cpu", "cuda", ..
    """

    name = "s3d"

    def __init__(
        self, weights: str = "", size: int = 224, fps: str = "20", frames: int = 30, device: str = "auto"
    ) -> None:
        if not weights:
            raise BadInput("extractor s3d: name the file of its weights, --options weights FILE (see docs/video.md)")
        path = Path(weights)
        layout = s3d_layout(read_weights(path), str(path))
        if layout == "milnce" and (size % 2 or frames % 2):
            raise BadInput(f"extractor s3d: size {size} and frames {frames} must be even with MIL-NCE's weights")
        if size < 32 or frames < 5:
            raise BadInput(f"extractor s3d: size {size} (32 or more), frames {frames} (5 or more)")
        self.device = where_to_run(device)
        self.net = load_s3d(path).to(self.device).requires_grad_(False)
        self.size, self.sampling = size, sampling(fps, frames)
        self.shrink: Callable[[Array], Array]
        self._pixels: Callable[[Array], Tensor]
        if layout == "torchvision":
            self.shrink, self._pixels = self._stretched, lambda x: torchvision_pixels(x, size, size)
        elif layout == "kylemin":
            self.shrink, self._pixels = self._scaled, kylemin_pixels
        else:
            self.shrink, self._pixels = self._squared, milnce_pixels
        settings = {"layout": layout, "size": str(size), "fps": fps, "frames": str(frames)}
        self.provenance = Provenance(self.name, self.net.width, sha256_of(path), settings=settings)

    @whole_floats()
    @torch.inference_mode()
    def __call__(self, clips: Array) -> Array:
        """(B, 1024) float32."""
        video = torch.stack([self._pixels(x) for x in clips]).to(self.device)
        vectors: Tensor = self.net.vectors(video)
        return vectors.cpu().numpy()

    def _stretched(self, pixels: Array) -> Array:
        side = round(self.size * 256 / 224)
        return _middle(bilinear(pixels, side, side), self.size)

    def _scaled(self, pixels: Array) -> Array:
        high, wide = pixels.shape[:2]
        factor = self.size * 256 / 224 / min(high, wide)
        return _middle(bilinear(pixels, round(high * factor), round(wide * factor)), self.size)

    def _squared(self, pixels: Array) -> Array:
        return squared(pixels, self.size)


class Frames:
    """EfficientNet-Lite0's 1280 numbers of a few frames, averaged.

    Args:
        look: frames of a clip that are looked at, evenly spread.
        size: pixels of the square that the middle of a frame is scaled to.
        fps: frames a second.
        frames: frames a clip.
        device: "auto", "cpu", "cuda", ..
        cache: folder of fetched parts; the default one when empty.
    """

    name = "frames"

    def __init__(
        self,
        look: int = 3,
        size: int = 224,
        fps: str = "20",
        frames: int = 30,
        device: str = "auto",
        cache: str = "",
    ) -> None:
        path = fetched("light", "efficientnet-lite0.pth", Path(cache) if cache else None)
        self.device = where_to_run(device)
        self.trunk = load_efficientnet(path).to(self.device)
        self.size, self.sampling = size, sampling(fps, frames, look)
        settings = {"look": str(look), "size": str(size), "fps": fps, "frames": str(frames)}
        weights = hashlib.sha256(path.read_bytes()).hexdigest()
        self.provenance = Provenance(self.name, FEATURES, weights, settings=settings)

    def shrink(self, pixels: Array) -> Array:
        """The middle square, scaled."""
        return squared(pixels, self.size)

    @whole_floats()
    @torch.inference_mode()
    def __call__(self, clips: Array) -> Array:
        """(B, 1280) float32."""
        pixels = normalised(torch.from_numpy(clips.reshape(-1, *clips.shape[2:])).to(self.device))
        rows: Tensor = self.trunk.features(pixels).mean((2, 3))
        return rows.view(*clips.shape[:2], -1).mean(1).cpu().numpy()


class ClipGrid:
    """A random network's cells of a few frames: their mean, and the last frame's less the first's.

    Args:
        look: frames of a clip that are looked at, evenly spread.
        cells: a frame is cut into cells x cells.
        side: pixels of the square a frame is stretched to.
        fps: frames a second.
        frames: frames a clip.
        seed: of the random weights.
        device: "auto", "cpu", "cuda", ..
    """

    name = "grid"

    def __init__(
        self,
        look: int = 3,
        cells: int = 2,
        side: int = 96,
        fps: str = "20",
        frames: int = 30,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        if cells < 1 or side < 32:
            raise BadInput(f"extractor grid: {cells} cells a side of {side} pixels, expected at least 1 and 32")
        self.device = where_to_run(device)
        self.trunk = RandomTrunk(seed).to(self.device)
        self.cells, self.side, self.sampling = cells, side, sampling(fps, frames, look)
        settings = {"look": str(look), "cells": str(cells), "side": str(side), "fps": fps, "frames": str(frames)}
        settings["seed"] = str(seed)
        self.provenance = Provenance(self.name, 2 * WIDTHS[-1] * cells * cells, settings=settings)

    def shrink(self, pixels: Array) -> Array:
        """The whole frame, stretched."""
        return stretched(pixels, self.side)

    @whole_floats()
    @torch.inference_mode()
    def __call__(self, clips: Array) -> Array:
        """(B, F) float32."""
        pixels = normalised(torch.from_numpy(clips.reshape(-1, *clips.shape[2:])).to(self.device))
        cells = functional.adaptive_avg_pool2d(self.trunk.features(pixels), self.cells).flatten(1)
        rows = cells.view(*clips.shape[:2], -1)  # (B, T, F / 2)
        return torch.cat([rows.mean(1), rows[:, -1] - rows[:, 0]], 1).cpu().numpy()


class StoredClips:
    """Vectors that are there already, (V, F) in a .npy file a video, one behind the other: such as HowTo100M's S3D features, one a second.

    Args:
        seconds: how long a clip lasts, such as "1" or "1.5".
        width: F.
        made: what made them, in your words; features of other words are not put together with them.
        device: not looked at.
    """

    name = "stored"

    def __init__(self, seconds: str = "1", width: int = 1024, made: str = "", device: str = "auto") -> None:
        try:
            rate = 1 / Fraction(seconds)
        except (ValueError, ZeroDivisionError):
            raise BadInput(f"extractor stored: seconds {seconds!r} is no length, such as 1 or 1.5") from None
        self.sampling = Sampling(rate, 1)
        self.provenance = Provenance(self.name, width, settings={"made": made, "fps": str(rate), "frames": "1"})

    def shrink(self, pixels: Array) -> Array:
        """There are no pixels."""
        raise TypeError("stored features are read, not computed")

    def __call__(self, clips: Array) -> Array:
        """There are no pixels."""
        raise TypeError("stored features are read, not computed")

    def read(self, path: Path) -> Array:
        """(V, F) float32.

        Raises:
            BadInput: no such file, not a table of numbers, of another width, empty, or not finite.
        """
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise BadInput(f"{path}: cannot be read: {error}") from None
        if (
            found.ndim != 2
            or found.shape[1] != self.provenance.width
            or not len(found)
            or found.dtype.kind not in "fiu"
        ):
            raise BadInput(f"{path}: {found.dtype} {found.shape}, expected clips of {self.provenance.width} numbers")
        found = np.asarray(found, np.float32)
        if not np.isfinite(found).all():
            raise BadInput(f"{path}: clip {int(np.argmin(np.isfinite(found).all(1)))} is not finite")
        return found


# --------------------------------------------------------------------------------------------------------------- pixels


def squared(pixels: Array, side: int) -> Array:
    """The middle square of a picture (H, W, 3) uint8, scaled to (side, side, 3) uint8, bicubic."""
    high, wide = pixels.shape[:2]
    square = _middle(pixels, min(high, wide))
    return np.array(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC))


def bilinear(pixels: Array, high: int, wide: int) -> Array:
    """A picture (H, W, 3) uint8 scaled to (high, wide, 3) uint8 without smoothing first, as torchvision's video preset does."""
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    scaled = functional.interpolate(x, (high, wide), mode="bilinear", align_corners=False)
    return scaled.round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).contiguous().numpy()


def _middle(pixels: Array, side: int) -> Array:
    high, wide = pixels.shape[:2]
    top, left = round((high - side) / 2), round((wide - side) / 2)
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])
