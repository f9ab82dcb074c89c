"""VQGAN's encoder, codebook and decoder, for codes that a user has: the layout of taming-transformers, of which the ImageNet models with 1,024 and 16,384 codes are.

Source: Taming Transformers for High-Resolution Image Synthesis (Esser et al., CVPR 2021), sec. 3.1; CompVis/taming-transformers, modules/diffusionmodules/model.py.
The sizes are read off the tensors, so no config file is needed: channels, levels, blocks, where attention is. Discriminator and perceptual loss are left out.
Unusual: a picture is halved by an unpadded convolution after a row and a column of zeros right and below; a decoder's level has one block more than the
encoder's; attention has one head. Codebooks drawn with Gumbel noise are another layout and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from intarsia.errors import BadInput
from intarsia.features.vq import KIND, VQ, Coder, read_vq
from intarsia.recipe import from_json, to_json
from intarsia.weights.files import fill, read_weights, write_weights
from intarsia.weights.keymap import KeyMap

TRAINED_BESIDE = "loss."
"""The discriminator and the network of the perceptual loss."""
VQGAN_KIND = "picture codes of a VQGAN"


@dataclass(frozen=True)
class VQGANNumbers:
    """The numbers of a VQGAN; those of the ImageNet model with 1,024 codes."""

    codes: int = 1024
    """K."""
    width: int = 256
    """Numbers of a code."""
    z_channels: int = 256
    """Of the encoder's output, before it gets the width of a code."""
    stem: int = 128
    """Channels of the first convolution."""
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    """Of each level; the picture is halved between two of them."""
    blocks: int = 2
    """Residual blocks of an encoder's level."""
    attended: tuple[int, ...] = (4,)
    """Levels with attention after each block."""
    side: int = 256
    """Pictures are stretched to a square of this many pixels."""

    @property
    def cell(self) -> int:
        """Pixels a side of what a code stands for."""
        return 1 << len(self.channels) - 1


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        kept: Tensor = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return kept + y  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(x)
        q, k, v = (part(inner).flatten(2).movedim(1, 2)[:, None] for part in (self.q, self.k, self.v))  # (B, 1, hw, C)
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].movedim(1, 2).view_as(x)
        return x + self.proj_out(mixed)  # type: ignore[no-any-return]


class _Resample(nn.Module):
    """Half the height and width, or twice."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up, self.conv = up, nn.Conv2d(channels, channels, 3, 1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1))
        return self.conv(x)  # type: ignore[no-any-return]


class _Level(nn.Module):
    """Residual blocks, attention after each where there is any, and the way to the next level."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attended: bool, resample: str = "") -> None:
        super().__init__()
        self.block = nn.ModuleList(_Residual(outputs if i else inputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(_Attention(outputs) for _ in range(blocks if attended else 0))
        self.resample = resample
        if resample:
            self.add_module(resample, _Resample(outputs, resample == "upsample"))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        return getattr(self, self.resample)(x) if self.resample else x


class _Half(nn.Module):
    """What encoder and decoder share: a first convolution, the middle at the smallest map, a last norm and convolution."""

    def __init__(self, inputs: int, first: int, middle: int, last: int, outputs: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, first, 3, padding=1)
        self.mid = nn.ModuleDict(
            {"block_1": _Residual(middle, middle), "attn_1": _Attention(middle), "block_2": _Residual(middle, middle)}
        )
        self.norm_out, self.conv_out = _norm(last), nn.Conv2d(last, outputs, 3, padding=1)

    def _middle(self, x: Tensor) -> Tensor:
        for part in self.mid.values():
            x = part(x)
        return x

    def _close(self, x: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(x)))  # type: ignore[no-any-return]


class _Encoder(_Half):
    def __init__(self, numbers: VQGANNumbers) -> None:
        channels = numbers.channels
        super().__init__(3, numbers.stem, channels[-1], channels[-1], numbers.z_channels)
        self.down = nn.ModuleList(
            _Level(before, after, numbers.blocks, i in numbers.attended, "downsample" if i < len(channels) - 1 else "")
            for i, (before, after) in enumerate(zip((numbers.stem, *channels), channels, strict=False))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self._close(self._middle(x))


class _Decoder(_Half):
    def __init__(self, numbers: VQGANNumbers) -> None:
        channels = numbers.channels
        super().__init__(numbers.z_channels, channels[-1], channels[-1], channels[0], 3)
        self.up = nn.ModuleList(
            _Level(before, after, numbers.blocks + 1, i in numbers.attended, "upsample" if i else "")
            for i, (before, after) in enumerate(zip((*channels[1:], channels[-1]), channels, strict=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self._middle(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self._close(x)


class VQGAN(Coder):
    """A VQGAN that makes and reads codes; a `PictureCodec`. It is not trained here."""

    def __init__(self, numbers: VQGANNumbers) -> None:
        super().__init__(numbers)
        self.encoder = nn.Sequential(_Encoder(numbers), nn.Conv2d(numbers.z_channels, numbers.width, 1))
        self.decoder = nn.Sequential(nn.Conv2d(numbers.width, numbers.z_channels, 1), _Decoder(numbers))


KEYS = KeyMap(
    ("encoder.", "encoder.0."),
    ("quant_conv.", "encoder.1."),
    ("post_quant_conv.", "decoder.0."),
    ("decoder.", "decoder.1."),
    ("quantize.embedding.weight", "codebook"),
)


def numbers_of(state: Mapping[str, Tensor], where: str, side: int = 256) -> VQGANNumbers:
    """The numbers of a VQGAN, read off its tensors.

    Args:
        state: in the authors' layout.
        where: names it in errors.
        side: pixels of its pictures, of which the tensors say nothing.

    Raises:
        BadInput: it is no VQGAN of this layout.
    """

    def count(form: str) -> int:
        return next(i for i in range(len(state) + 1) if not any(key.startswith(form.format(i)) for key in state))

    try:
        codes, width = state["quantize.embedding.weight"].shape
        levels = range(count("encoder.down.{}."))
        channels = tuple(len(state[f"encoder.down.{i}.block.0.conv1.weight"]) for i in levels)
        numbers = VQGANNumbers(
            codes=codes,
            width=width,
            z_channels=len(state["encoder.conv_out.weight"]),
            stem=len(state["encoder.conv_in.weight"]),
            channels=channels,
            blocks=count("encoder.down.0.block.{}."),
            attended=tuple(i for i in levels if f"encoder.down.{i}.attn.0.q.weight" in state),
            side=side,
        )
    except (KeyError, ValueError) as error:
        raise BadInput(f"{where}: no VQGAN as taming-transformers stores it: lacks {error}") from None
    if not channels or any(x % 32 for x in (numbers.stem, *channels)) or side % numbers.cell:
        raise BadInput(f"{where}: no VQGAN that can be built: channels {channels}, pictures of {side} pixels")
    return numbers


def read_vqgan(path: Path, side: int = 256) -> VQGAN:
    """Reads a VQGAN, of the authors' layout (.ckpt, .pt, .safetensors; no code in it is run) or as `write_vqgan` left it.

    Raises:
        BadInput: no such file, another layout, tensors missing or left over.
    """
    about = _about(path)
    state = read_weights(path)
    if about.get("kind") == VQGAN_KIND:
        try:
            numbers = from_json(VQGANNumbers, about["numbers"], str(path))
        except (KeyError, ValueError) as error:
            raise BadInput(f"{path}: {error}") from None
    else:
        state = {name: x for name, x in state.items() if not name.startswith(TRAINED_BESIDE)}
        numbers, state = numbers_of(state, str(path), side), KEYS.to_ours(state, str(path))
    vqgan = VQGAN(numbers)
    fill(vqgan, state, str(path))
    return vqgan.eval()


def write_vqgan(path: Path, vqgan: VQGAN) -> None:
    """Writes it as .safetensors, whole or not at all."""
    write_weights(path, vqgan.state_dict(), {"kind": VQGAN_KIND, "numbers": to_json(vqgan.numbers)})


def read_codec(path: Path) -> VQ | VQGAN:
    """A codec of our own, or a VQGAN.

    Raises:
        BadInput: it is neither.
    """
    return read_vq(path) if _about(path).get("kind") == KIND or not path.is_file() else read_vqgan(path)


def _about(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}
