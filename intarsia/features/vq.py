"""A small VQ-VAE: a picture to a grid of codes and back.

Source: Neural Discrete Representation Learning (van den Oord et al., 2017), sec. 3 (straight-through gradient, commitment) and appendix A.1 (the codebook as
moving averages). Codes that hardly any cell takes begin again at an output of the encoder, as in Jukebox (Dhariwal et al., 2020). Pixels are 2 x - 1 of
those in 0..1, as VQGAN's. No discriminator and no perceptual loss, so what is fine becomes blurred. Ours: the pixels of a cell become channels at once, instead of
by convolutions of stride 2, which learn some ten times slower here; and the first steps know no codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from intarsia.batch import Array
from intarsia.data.decode import pixels_of
from intarsia.data.source import Source
from intarsia.errors import BadInput
from intarsia.features.codes import PictureCodec, psnr
from intarsia.features.roi import stretched
from intarsia.recipe import from_json, to_json
from intarsia.weights.files import fill, read_weights, write_weights

KIND = "picture codes"


@dataclass(frozen=True)
class VQNumbers:
    """The numbers of a VQ-VAE."""

    side: int = 64
    """Pictures are stretched to a square of this many pixels."""
    cell: int = 8
    """Pixels a side of what a code stands for."""
    codes: int = 512
    """K."""
    width: int = 32
    """Numbers of a code."""
    channels: int = 96
    """Of every convolution."""
    blocks: int = 3
    """Residual blocks of the encoder, and of the decoder."""
    commitment: float = 0.25
    """Weight of the loss that keeps outputs near their codes."""
    decay: float = 0.95
    """Of the moving averages; 0.99 in the paper, whose runs are a hundred times as long."""
    restart: float = 0.1
    """A code taken less often than this share of the even share begins again."""

    def __post_init__(self) -> None:
        if self.cell < 1 or self.side < self.cell or self.side % self.cell:
            raise BadInput(f"vq: a side of {self.side} pixels is no multiple of cells of {self.cell}")
        if min(self.codes, self.width, self.channels) < 1 or self.blocks < 0:
            raise BadInput(
                f"vq: codes {self.codes}, width {self.width}, channels {self.channels}, blocks {self.blocks}"
            )


class _Residual(nn.Module):
    """ReLU, 3 x 3, ReLU, 1 x 1, and the way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1)
        self.narrow = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return x + self.narrow(F.relu(self.wide(F.relu(x))))  # type: ignore[no-any-return]


class Rebuilt(NamedTuple):
    """What a pass gives; h = w = side / cell."""

    pixels: Tensor
    """(B, 3, side, side) float, about -1..1."""
    ids: Tensor
    """(B, h w) int64"""
    outputs: Tensor
    """(B h w, width) of the encoder, before they become codes."""
    loss: Tensor
    """Mean squared error of the pixels and the commitment."""


class Coder(nn.Module):
    """A `PictureCodec` of an encoder to vectors on a grid, a codebook of which each takes the nearest, and a decoder; `numbers` are its sizes."""

    encoder: nn.Module
    decoder: nn.Module
    codebook: Tensor
    """(K, W)"""

    def __init__(self, numbers: Any) -> None:
        super().__init__()
        self.numbers = numbers
        self.register_buffer("codebook", torch.zeros(numbers.codes, numbers.width))

    @property
    def codes(self) -> int:
        """K."""
        return int(self.numbers.codes)

    @property
    def length(self) -> int:
        """Codes of a picture."""
        return int(self.numbers.side // self.numbers.cell) ** 2

    def _nearest(self, outputs: Tensor) -> Tensor:
        """(N, W) to (N) the nearest code, the first of equals."""
        return (self.codebook.square().sum(1) - 2 * outputs.detach() @ self.codebook.T).argmin(1)

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Array]) -> Array:
        """Pictures, each (H, W, 3) uint8, to (B, L) int64."""
        pixels = torch.from_numpy(np.stack([stretched(x, self.numbers.side) for x in pictures]))
        ids = self._nearest(self.encoder(_signed(pixels.to(self.codebook.device))).movedim(1, -1).flatten(0, 2))
        found: Array = ids.view(len(pictures), -1).cpu().numpy()
        return found

    @torch.inference_mode()
    def decode(self, codes: Array) -> Array:
        """(B, L) int64 to (B, side, side, 3) uint8."""
        grid = self.numbers.side // self.numbers.cell
        chosen = self.codebook[torch.from_numpy(np.asarray(codes, np.int64)).to(self.codebook.device)]
        pixels = self.decoder(chosen.view(len(codes), grid, grid, -1).movedim(-1, 1))
        shown: Array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).cpu().numpy()
        return shown


class VQ(Coder):
    """The VQ-VAE; a `PictureCodec`. What it was trained on is in `about`."""

    def __init__(self, numbers: VQNumbers, about: str = "") -> None:
        super().__init__(numbers)
        self.about = about
        channels, cell = numbers.channels, numbers.cell
        blocks = [[_Residual(channels) for _ in range(numbers.blocks)] for _ in range(2)]
        inner, outer = 3 * cell * cell, nn.Conv2d(channels, numbers.width, 1)
        self.encoder = nn.Sequential(nn.PixelUnshuffle(cell), nn.Conv2d(inner, channels, 1), *blocks[0], outer)
        first, last = nn.Conv2d(numbers.width, channels, 1), nn.Conv2d(channels, inner, 1)
        self.decoder = nn.Sequential(first, *blocks[1], last, nn.PixelShuffle(cell))
        self.counts: Tensor
        self.sums: Tensor
        self.register_buffer("counts", torch.zeros(numbers.codes))
        self.register_buffer("sums", torch.zeros(numbers.codes, numbers.width))

    def forward(self, pixels: Tensor) -> Rebuilt:
        """(B, 3, side, side) in -1..1, to codes and back."""
        z = self.encoder(pixels)  # (B, W, h, w)
        flat = z.movedim(1, -1).flatten(0, 2)  # (B h w, W)
        ids = self._nearest(flat)
        chosen = self.codebook[ids]
        commitment = F.mse_loss(flat, chosen)
        passed = (flat + (chosen - flat).detach()).view(len(z), *z.shape[2:], -1).movedim(-1, 1)
        rebuilt = self.decoder(passed)
        loss = F.mse_loss(rebuilt, pixels) + self.numbers.commitment * commitment
        return Rebuilt(rebuilt, ids.view(len(z), -1), flat, loss)

    @torch.no_grad()
    def move_codes(self, outputs: Tensor, ids: Tensor, generator: torch.Generator) -> int:
        """Moves the codes to the mean of the outputs that take them, and begins those again that few take.

        Args:
            outputs: (N, W) of the encoder.
            ids: (N) the code of each.
            generator: draws where codes begin, on the CPU.

        Returns:
            How many began again.
        """
        decay, even = self.numbers.decay, len(outputs) / self.codes
        one = torch.ones_like(outputs[:, 0])
        self.counts.mul_(decay).add_(torch.zeros_like(self.counts).index_add(0, ids, one), alpha=1 - decay)
        self.sums.mul_(decay).add_(torch.zeros_like(self.sums).index_add(0, ids, outputs), alpha=1 - decay)
        dead = (self.counts < self.numbers.restart * even).nonzero()[:, 0]
        if len(dead):
            drawn = torch.randint(len(outputs), (len(dead),), generator=generator).to(outputs.device)
            self.counts[dead] = even
            self.sums[dead] = outputs[drawn] * even
        self.codebook.copy_(self.sums / self.counts[:, None])
        return len(dead)


def _signed(pixels: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) float in -1..1."""
    return pixels.movedim(-1, 1).float() / 127.5 - 1


def read_pictures(source: Source, side: int, most: int, seed: int = 0) -> Array:
    """(n, side, side, 3) uint8: the pictures of a source, the first of each sample, stretched.

    Args:
        source: pictures with pixels.
        side: pixels.
        most: n at most; of more samples so many are drawn at random.
        seed: of the draw.

    Raises:
        BadInput: no sample, one without picture, or a picture that cannot be read (names it).
    """
    if not len(source):
        raise BadInput("the data hold no picture")
    count = min(most, len(source))
    chosen = np.sort(np.random.default_rng([seed, 0x91C]).choice(len(source), count, replace=False))
    found = np.zeros((count, side, side, 3), np.uint8)
    for room, i in zip(found, chosen.tolist(), strict=True):
        sample = source[i]
        if not sample.pictures:
            raise BadInput(f"sample {sample.key}: has no picture")
        room[:] = stretched(pixels_of(sample.pictures[0], sample.key), side)
    return found


@dataclass(frozen=True)
class Fit:
    """How a VQ-VAE is trained: Adam, the rate falling to 0."""

    steps: int = 2000
    batch: int = 32
    """Pictures a step."""
    lr: float = 4e-3
    plain: float = 0.25
    """Share of the steps that come first and know no codes: an autoencoder, from whose outputs the codes then begin."""
    seed: int = 0


def fit(
    pictures: Array,
    numbers: VQNumbers,
    how: Fit,
    about: str = "",
    device: str = "cpu",
    tell: Callable[[int, float, int], None] | None = None,
) -> VQ:
    """Trains a VQ-VAE from random weights on pictures drawn at random.

    Args:
        pictures: (n, side, side, 3) uint8.
        numbers: of the network.
        how: steps, rate, seed.
        about: kept with it.
        device: "cpu", "cuda", ..
        tell: given a step, its loss and the codes that began again since it was told last; every hundredth step and at the end.

    Raises:
        BadInput: the loss is not finite.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(how.seed)
        vq = VQ(numbers, about).to(device)
    draws = np.random.default_rng([how.seed, 0x76]).integers(len(pictures), size=(how.steps, how.batch))
    generator = torch.Generator().manual_seed(how.seed)
    optimizer = torch.optim.Adam(vq.parameters(), lr=how.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, how.steps)
    again = 0
    for step, draw in enumerate(draws, 1):
        pixels = _signed(torch.from_numpy(pictures[draw]).to(device))
        found = vq(pixels) if step > how.plain * how.steps else None
        loss = F.mse_loss(vq.decoder(vq.encoder(pixels)), pixels) if found is None else found.loss
        if not loss.isfinite():
            raise BadInput(f"vq: the loss of step {step} is {loss.item()}; a lower rate than {how.lr:g} may help")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if found is not None:
            again += vq.move_codes(found.outputs.detach(), found.ids.flatten(), generator)
        if tell is not None and (step % 100 == 0 or step == how.steps):
            tell(step, loss.item(), again)
            again = 0
    return vq.eval()


class Lost(NamedTuple):
    """What a codec loses on pictures."""

    pictures: int
    psnr: float
    """Mean over pictures, dB."""
    of_mean: float
    """The same of one picture for all, the mean of those trained on."""
    used: int
    """Codes that a picture has."""
    codes: int
    perplexity: float
    """2 to the entropy of the codes: as many as this, if all were as common."""

    def __str__(self) -> str:
        return (
            f"{self.pictures:,} held-out pictures: PSNR {self.psnr:.2f} dB (the mean picture {self.of_mean:.2f}), "
            f"{self.used:,} of {self.codes:,} codes used, perplexity {self.perplexity:.0f}"
        )


def lost(codec: PictureCodec, held: Array, pictures: Array, batch: int = 64) -> Lost:
    """Encodes and decodes held-out pictures.

    Args:
        codec: of pictures of this side.
        held: (n, S, S, 3) uint8.
        pictures: (m, S, S, 3) uint8, those trained on.
        batch: pictures at a time.
    """
    found = [codec.encode(list(held[i : i + batch])) for i in range(0, len(held), batch)]
    rebuilt = np.concatenate([codec.decode(x) for x in found])
    mean = np.rint(pictures.mean(0, dtype=np.float64)).astype(np.uint8)
    share = np.bincount(np.concatenate(found).ravel(), minlength=codec.codes) / (len(held) * codec.length)
    some = share[share > 0]
    near, far = (float(psnr(held, x).mean()) for x in (rebuilt, mean[None]))
    return Lost(len(held), near, far, len(some), codec.codes, float(2 ** -(some * np.log2(some)).sum()))


def write_vq(path: Path, vq: VQ) -> None:
    """Writes it as .safetensors, whole or not at all."""
    about = {"kind": KIND, "numbers": to_json(vq.numbers), "about": vq.about}
    write_weights(path, vq.state_dict(), about)


def read_vq(path: Path) -> VQ:
    """Reads it.

    Raises:
        BadInput: no such file, or not one of `write_vq`.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: no picture codes can be read: {error}") from None
    if about.get("kind") != KIND:
        raise BadInput(f"{path}: no picture codes; `intarsia data codes` writes them")
    try:
        numbers = from_json(VQNumbers, about["numbers"], str(path))
    except (KeyError, ValueError) as error:
        raise BadInput(f"{path}: {error}") from None
    vq = VQ(numbers, about.get("about", ""))
    fill(vq, read_weights(path), str(path))
    return vq.eval()
