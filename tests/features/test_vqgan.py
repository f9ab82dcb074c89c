"""VQGAN: codes and pictures against a reference that walks the authors' tensors by name, files with a trainer's classes in them, what is refused."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from intarsia.errors import BadInput
from intarsia.features.vqgan import (
    KEYS,
    VQGAN,
    VQGAN_KIND,
    VQGANNumbers,
    numbers_of,
    read_codec,
    read_vqgan,
    write_vqgan,
)
from intarsia.weights.files import read_weights, write_weights

NUMBERS = VQGANNumbers(
    codes=19, width=6, z_channels=5, stem=32, channels=(32, 64, 64), blocks=2, attended=(2,), side=32
)


def theirs(numbers: VQGANNumbers = NUMBERS) -> dict[str, Tensor]:
    """Random tensors in the authors' layout, discriminator included."""
    torch.manual_seed(0)
    state = {name: 0.3 * torch.randn_like(x) for name, x in VQGAN(numbers).state_dict().items()}
    return KEYS.to_theirs(state) | {"loss.discriminator.main.0.weight": torch.zeros(3)}


def reference_conv(x: Tensor, state: dict[str, Tensor], name: str, **how: Any) -> Tensor:
    return F.conv2d(x, state[name + ".weight"], state[name + ".bias"], **how)


def reference_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Group by group: 32 groups of neighbouring channels."""
    size = x.shape[1] // 32
    parts = []
    for i in range(32):
        part = x[:, i * size : (i + 1) * size]
        mean = part.mean((1, 2, 3), keepdim=True)
        parts.append((part - mean) / ((part - mean).square().mean((1, 2, 3), keepdim=True) + 1e-6).sqrt())
    return torch.cat(parts, 1) * state[name + ".weight"][:, None, None] + state[name + ".bias"][:, None, None]


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def reference_block(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    y = reference_conv(swish(reference_norm(x, state, name + ".norm1")), state, name + ".conv1", padding=1)
    y = reference_conv(swish(reference_norm(y, state, name + ".norm2")), state, name + ".conv2", padding=1)
    short = name + ".nin_shortcut"
    return y + (reference_conv(x, state, short) if short + ".weight" in state else x)


def reference_attention(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    h = reference_norm(x, state, name + ".norm")
    q, k, v = (reference_conv(h, state, f"{name}.{part}") for part in "qkv")
    out = torch.zeros_like(x)
    for b in range(len(x)):
        for y in range(x.shape[2]):
            for z in range(x.shape[3]):
                fit = (q[b, :, y, z][:, None, None] * k[b]).sum(0) / x.shape[1] ** 0.5
                out[b, :, y, z] = (v[b] * fit.flatten().softmax(0).view_as(fit)).sum((1, 2))
    return x + reference_conv(out, state, name + ".proj_out")


def reference_middle(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    x = reference_attention(reference_block(x, state, name + ".mid.block_1"), state, name + ".mid.attn_1")
    return reference_block(x, state, name + ".mid.block_2")


def reference_level(x: Tensor, state: dict[str, Tensor], name: str, blocks: int) -> Tensor:
    for j in range(blocks):
        x = reference_block(x, state, f"{name}.block.{j}")
        if f"{name}.attn.{j}.q.weight" in state:
            x = reference_attention(x, state, f"{name}.attn.{j}")
    return x


def reference_encode(pixels: Tensor, state: dict[str, Tensor]) -> Tensor:
    """(B, h w) codes, by the distance to each."""
    x = reference_conv(pixels, state, "encoder.conv_in", padding=1)
    for i in range(3):
        x = reference_level(x, state, f"encoder.down.{i}", 2)
        if i < 2:
            wide = torch.zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1)
            wide[:, :, :-1, :-1] = x
            x = reference_conv(wide, state, f"encoder.down.{i}.downsample.conv", stride=2)
    x = swish(reference_norm(reference_middle(x, state, "encoder"), state, "encoder.norm_out"))
    z = reference_conv(reference_conv(x, state, "encoder.conv_out", padding=1), state, "quant_conv")
    far = (z[:, None] - state["quantize.embedding.weight"][None, :, :, None, None]).square().sum(2)
    return far.argmin(1).flatten(1)


def reference_decode(codes: Tensor, state: dict[str, Tensor]) -> Tensor:
    """(B, 3, S, S), not clamped."""
    z = state["quantize.embedding.weight"][codes].view(len(codes), 8, 8, -1).permute(0, 3, 1, 2)
    x = reference_conv(reference_conv(z, state, "post_quant_conv"), state, "decoder.conv_in", padding=1)
    x = reference_middle(x, state, "decoder")
    for i in (2, 1, 0):
        x = reference_level(x, state, f"decoder.up.{i}", 3)
        if i:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = reference_conv(x, state, f"decoder.up.{i}.upsample.conv", padding=1)
    return reference_conv(swish(reference_norm(x, state, "decoder.norm_out")), state, "decoder.conv_out", padding=1)


def pictures(count: int = 3, side: int = 32) -> list[Any]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def test_sizes_codes_and_pictures_are_those_of_the_reference(tmp_path: Path) -> None:
    state = theirs()
    assert numbers_of(state, "x", 32) == NUMBERS
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    vqgan = read_vqgan(tmp_path / "last.ckpt", 32)
    assert (vqgan.codes, vqgan.length) == (19, 64)
    shown = pictures()
    found = vqgan.encode(shown)
    pixels = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float() / 127.5 - 1
    want = reference_encode(pixels, state)
    assert len(want.unique()) > 5 and np.array_equal(found, want.numpy())
    with torch.no_grad():
        back = vqgan.decoder(vqgan.codebook[want].view(3, 8, 8, -1).movedim(-1, 1))
    plain = reference_decode(want, state)
    torch.testing.assert_close(back, plain, atol=2e-4, rtol=1e-4)
    drawn = ((plain.clamp(-1, 1) + 1) / 2 * 255).round().permute(0, 2, 3, 1)
    assert np.abs(vqgan.decode(found).astype(int) - drawn.numpy()).max() <= 1
    larger = [np.asarray(Image.fromarray(x).resize((64, 64), Image.Resampling.NEAREST)) for x in shown]
    assert vqgan.encode(larger).shape == (3, 64), "stretched"


def test_a_written_one_is_read_again_and_a_codec_of_ours_beside_it(tmp_path: Path) -> None:
    torch.save(theirs(), tmp_path / "vqgan.pt")
    one = read_vqgan(tmp_path / "vqgan.pt", 32)
    write_vqgan(tmp_path / "codes.safetensors", one)
    two = read_codec(tmp_path / "codes.safetensors")
    assert isinstance(two, VQGAN) and two.numbers == one.numbers
    assert np.array_equal(one.encode(pictures()), two.encode(pictures()))


def counted() -> int:
    """Parameters of the ImageNet model with 1,024 codes, summed by hand: 128 channels times 1, 1, 2, 2, 4, two blocks a level, attention at 16 x 16."""

    def conv(i: int, o: int, side: int = 3) -> int:
        return i * o * side * side + o

    def block(i: int, o: int) -> int:
        return 2 * i + conv(i, o) + 2 * o + conv(o, o) + (conv(i, o, 1) if i != o else 0)

    attention = 2 * 512 + 4 * conv(512, 512, 1)
    middle = 2 * block(512, 512) + attention
    down = 4 * block(128, 128) + block(128, 256) + 3 * block(256, 256) + block(256, 512) + block(512, 512)
    down += 2 * attention + 2 * conv(128, 128) + 2 * conv(256, 256)
    up = (
        3 * block(512, 512)
        + 3 * attention
        + block(512, 256)
        + 5 * block(256, 256)
        + block(256, 128)
        + 5 * block(128, 128)
    )
    up += conv(512, 512) + 2 * conv(256, 256) + conv(128, 128)
    encoder = conv(3, 128) + down + middle + 2 * 512 + conv(512, 256)
    decoder = conv(256, 512) + middle + up + 2 * 128 + conv(128, 3)
    return encoder + decoder + 2 * conv(256, 256, 1) + 1024 * 256


def test_the_published_sizes_are_told_by_tensors() -> None:
    with torch.device("meta"):
        state = KEYS.to_theirs(VQGAN(VQGANNumbers()).state_dict())
        assert sum(x.numel() for x in state.values()) == counted()
        assert numbers_of(state, "x") == VQGANNumbers() and VQGANNumbers().cell == 16
        assert {"encoder.down.4.attn.1.proj_out.bias", "decoder.up.4.upsample.conv.weight"} <= state.keys()
        assert {"encoder.down.2.block.0.nin_shortcut.weight", "decoder.up.0.block.2.conv2.bias"} <= state.keys()


def saved_with(path: Path, module: str, state: dict[str, Tensor]) -> None:
    """As Lightning saves: classes and their values among the callbacks."""
    made = types.ModuleType(module)
    kind = type("ModelCheckpoint", (), {"__module__": module})
    made.ModelCheckpoint = kind  # type: ignore[attr-defined]
    parents = {
        module.rsplit(".", i)[0]: types.ModuleType(module.rsplit(".", i)[0]) for i in range(1, module.count(".") + 1)
    }
    sys.modules |= parents | {module: made}
    try:
        own = kind()
        own.best = 3
        torch.save({"callbacks": {kind: {"best": 1.0}, "own": own}, "state_dict": state}, path)
    finally:
        for name in (*parents, module):
            del sys.modules[name]


def test_a_trainers_classes_are_passed_over_and_others_refused(tmp_path: Path) -> None:
    state = theirs()
    saved_with(tmp_path / "last.ckpt", "pytorch_lightning.callbacks.model_checkpoint", state)
    assert read_weights(tmp_path / "last.ckpt").keys() == state.keys()
    assert read_vqgan(tmp_path / "last.ckpt", 32).codes == 19
    saved_with(tmp_path / "odd.ckpt", "elsewhere.callbacks", state)
    with pytest.raises(BadInput, match=r"refused: the pickle wants to run elsewhere\.callbacks\.ModelCheckpoint"):
        read_weights(tmp_path / "odd.ckpt")


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": theirs(), "callbacks": Bomb()}, tmp_path / "last.ckpt")
    with pytest.raises(BadInput, match="wants to run"):
        read_vqgan(tmp_path / "last.ckpt")
    assert not Path("touched").exists()


def test_other_layouts_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for change, said in (
        (lambda x: x.pop("quantize.embedding.weight"), "lacks 'quantize.embedding.weight'"),
        (lambda x: x.pop("decoder.up.1.block.0.conv1.bias"), "1 tensors missing"),
        (lambda x: x.update({"quantize.proj.weight": torch.zeros(1)}), "quantize.proj.weight"),
    ):
        state = theirs()
        change(state)
        torch.save(state, path)
        with pytest.raises(BadInput, match=said):
            read_vqgan(path, 32)
    write_weights(tmp_path / "x.safetensors", state, {"kind": VQGAN_KIND, "numbers": '{"codes": "many"}'})
    with pytest.raises(BadInput, match=r"x\.safetensors"):
        read_codec(tmp_path / "x.safetensors")
    torch.save(theirs(), path)
    with pytest.raises(BadInput, match="pictures of 30 pixels"):
        read_vqgan(path, 30)
