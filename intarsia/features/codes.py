"""Pictures as rows of whole numbers: what makes them, and a source whose pictures have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
from rich.console import Console
from rich.progress import track

from intarsia.batch import Array, Sample
from intarsia.data.decode import pixels_of
from intarsia.data.source import Source
from intarsia.errors import BadInput


class PictureCodec(Protocol):
    """Pictures to codes and back: our `features.vq.VQ`, or a user's own, such as a VQGAN."""

    @property
    def codes(self) -> int:
        """K, how many there are."""

    @property
    def length(self) -> int:
        """L, codes of a picture: those of a grid, row by row from the upper left."""

    def encode(self, pictures: Sequence[Array]) -> Array:
        """Pictures, each (H, W, 3) uint8 RGB of any size, to (B, L) int64 from 0 to K - 1."""

    def decode(self, codes: Array) -> Array:
        """(B, L) int64 to (B, S, S, 3) uint8 RGB."""


class WithCodes:
    """A source whose pictures have codes. All are encoded at once, each picture one time, and kept: 4 L bytes a picture.

    Args:
        source: pictures with pixels; samples without picture stay as they are.
        codec: makes the codes.
        batch: pictures encoded together.
        progress: show a bar on the error stream.
        on_error: "skip" = samples that cannot be read raise when they are asked for, so that a loader can count them and leave them out.

    Raises:
        BadInput: a sample or its picture cannot be read, or the codec gives something else than it promises (names it).
    """

    def __init__(
        self,
        source: Source,
        codec: PictureCodec,
        batch: int = 64,
        progress: bool = False,
        on_error: Literal["stop", "skip"] = "stop",
    ) -> None:
        self.source, self.provenance = source, source.provenance
        self._known: dict[str, Array] = {}
        self._broken: dict[int, str] = {}
        waiting: dict[str, Array] = {}
        bar = Console(stderr=True)
        for i in track(range(len(source)), "codes", console=bar, transient=True, disable=not progress):
            try:
                sample = source[i]
                for picture in sample.pictures[:1]:
                    if picture.name not in self._known and picture.name not in waiting:
                        waiting[picture.name] = pixels_of(picture, sample.key)
            except BadInput as error:
                if on_error == "stop":
                    raise
                self._broken[i] = str(error)
            if len(waiting) >= batch:
                self._encode(waiting, codec)
        self._encode(waiting, codec)

    def _encode(self, waiting: dict[str, Array], codec: PictureCodec) -> None:
        if not waiting:
            return
        found = np.asarray(codec.encode(list(waiting.values())))
        if found.shape != (len(waiting), codec.length) or found.dtype.kind not in "iu":
            raise BadInput(
                f"picture {next(iter(waiting))}: its codec gave {found.dtype} of shape {found.shape}, expected whole numbers of ({len(waiting)}, {codec.length})"
            )
        for name, row in zip(waiting, found, strict=True):
            if row.min() < 0 or row.max() >= codec.codes:
                raise BadInput(f"picture {name}: codes from {row.min()} to {row.max()}, the codec has {codec.codes}")
            self._known[name] = row.astype(np.int32)
        waiting.clear()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        if index in self._broken:
            raise BadInput(self._broken[index])
        sample = self.source[index]
        if not sample.pictures:
            return sample
        first, *others = sample.pictures
        return replace(sample, pictures=(replace(first, codes=self._known[first.name]), *others))


def psnr(truth: Array, found: Array) -> Array:
    """(B) peak signal-to-noise ratios in dB between pictures (B, H, W, 3) uint8; 10 log10(255^2 / mean squared error), at most 99."""
    error = np.square(truth.astype(np.float64) - found.astype(np.float64)).mean((1, 2, 3))
    ratio: Any = 10 * np.log10(255**2 / np.maximum(error, 1e-30))
    return np.asarray(np.minimum(ratio, 99.0))
