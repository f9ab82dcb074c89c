"""TensorFlow checkpoints: one that TensorFlow 2.15 wrote (Saver of version 1, with Adam), and others written here from the format's description."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from intarsia.errors import BadInput
from intarsia.model import convert, read_ours
from intarsia.system import fit_config
from intarsia.systems.fashionbert import ROOT, FashionBERT
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import read_weights
from intarsia.weights.tf_checkpoint import MAGIC, crc32c, is_checkpoint, read_checkpoint, weights_of

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)
FOLDER = Path(__file__).parent / "tensorflow"
NUMBERS = {torch.float32: 1, torch.float64: 2, torch.int32: 3, torch.int64: 9, torch.bool: 10, torch.float16: 19}


# ----------------------------------------------------------------------------------------------------- a writer, for tests


def slow_crc(content: bytes) -> int:
    """CRC-32C bit by bit."""
    state = 0xFFFFFFFF
    for byte in content:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def stored(content: bytes) -> int:
    checksum = slow_crc(content)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def entry(value: Tensor, shard: int, offset: int, raw: bytes) -> bytes:
    shape = b"".join(message(2, number(1, size)) for size in value.shape)
    head = number(1, NUMBERS[value.dtype]) + message(2, shape) + (number(3, shard) if shard else b"")
    return head + number(4, offset) + number(5, len(raw)) + varint(6 << 3 | 5) + struct.pack("<I", stored(raw))


def block(pairs: list[tuple[bytes, bytes]], every: int = 4) -> bytes:
    """Entries whose keys leave out what they share with the key before, but for one in `every`."""
    content, restarts, before = b"", [], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % every == 0:
            restarts.append(len(content))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return content + b"".join(struct.pack("<I", x) for x in restarts) + struct.pack("<I", len(restarts))


def write(prefix: Path, state: dict[str, Tensor], shards: int = 1, a_block: int = 5, kind: int = 0) -> None:
    """A checkpoint of several shards and blocks."""
    data = [b"" for _ in range(shards)]
    pairs = [(b"", number(1, shards) + message(3, number(1, 1)))]
    for i, name in enumerate(sorted(state)):
        raw = state[name].contiguous().flatten().view(torch.uint8).numpy().tobytes() if state[name].numel() else b""
        pairs.append((name.encode(), entry(state[name], i % shards, len(data[i % shards]), raw)))
        data[i % shards] += raw
    content, index = b"", []

    def put(body: bytes) -> bytes:
        nonlocal content
        handle = varint(len(content)) + varint(len(body))
        content += body + bytes([kind]) + struct.pack("<I", stored(body + bytes([kind])))
        return handle

    for start in range(0, len(pairs), a_block):
        part = pairs[start : start + a_block]
        index.append((part[-1][0], put(block(part))))
    footer = put(block([])) + put(block(index, every=1))
    content += footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC)
    prefix.with_name(prefix.name + ".index").write_bytes(content)
    for i, raw in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{i:05d}-of-{shards:05d}").write_bytes(raw)


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    names = [
        f"bert/encoder/layer_{i}/attention/self/{x}/{y}" for i in range(4) for x in "qkv" for y in ("kernel", "bias")
    ]
    state = {name: torch.randn(3, i % 4 + 1) for i, name in enumerate(names)}
    return state | {
        "steps": torch.arange(3),
        "empty": torch.zeros(0, 2),
        "flag": torch.tensor(True),
        "half": torch.ones(2).half(),
    }


# -------------------------------------------------------------------------------------------------------------------- tests


def test_what_tensorflow_wrote() -> None:
    found, values = read_checkpoint(FOLDER / "small"), load_file(FOLDER / "small.safetensors")
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    kept = weights_of(found)
    slots = {name for name in found if name.endswith(("/Adam", "/Adam_1"))}
    assert slots and found.keys() - kept.keys() == slots | {"global_step", "beta1_power", "beta2_power"}
    assert read_weights(FOLDER / "small").keys() == kept.keys()


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("a_block", [1, 5, 100])
def test_blocks_and_shards(tmp_path: Path, shards: int, a_block: int) -> None:
    state = tensors()
    write(tmp_path / "model.ckpt-7", state, shards, a_block)
    for name in ("model.ckpt-7", "model.ckpt-7.index", f"model.ckpt-7.data-00000-of-{shards:05d}"):
        assert is_checkpoint(tmp_path / name)
        found = read_checkpoint(tmp_path / name)
        assert list(found) == sorted(state)
        assert all(torch.equal(found[key], state[key]) and found[key].dtype == state[key].dtype for key in state)


@SETTINGS
@given(st.binary(max_size=300), st.sampled_from([0, 1, 4095, 4096, 4097, 3 * 4096, 1030 * 4096 + 5]))
def test_checksums(start: bytes, zeros: int) -> None:
    content = start + bytes(min(zeros, 9000))
    assert crc32c(np.frombuffer(content, np.uint8)) == slow_crc(content)


def test_checksums_of_many_lanes() -> None:
    assert crc32c(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283, "the check value of CRC-32C"
    content = np.random.default_rng(0).integers(0, 256, 1030 * 4096 + 77, dtype=np.uint8)
    whole = crc32c(content)
    content[4096 * 1027 + 3] ^= 1
    assert crc32c(content) != whole
    short = content[: 5 * 4096 + 9]
    assert crc32c(short) == slow_crc(short.tobytes())


def test_damage_is_told(tmp_path: Path) -> None:
    write(tmp_path / "x", tensors())
    index, data = tmp_path / "x.index", tmp_path / "x.data-00000-of-00001"
    whole, raw = index.read_bytes(), data.read_bytes()
    data.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(BadInput, match=r"x\.data-00000-of-00001: steps: damaged: the checksum of its 24 bytes"):
        read_checkpoint(tmp_path / "x")
    data.write_bytes(raw[:-1])
    with pytest.raises(BadInput, match="steps: 23 bytes of 24 are there"):
        read_checkpoint(tmp_path / "x")
    data.unlink()
    with pytest.raises(BadInput, match=r"x\.data-00000-of-00001: No such file"):
        read_checkpoint(tmp_path / "x")
    index.write_bytes(whole[:10] + bytes([whole[10] ^ 1]) + whole[11:])
    with pytest.raises(BadInput, match="damaged: the checksum of the block at 0"):
        read_checkpoint(tmp_path / "x")
    index.write_bytes(whole[:-1])
    with pytest.raises(BadInput, match=r"x\.index: not the index of a TensorFlow checkpoint"):
        read_checkpoint(tmp_path / "x")
    index.write_bytes(whole[-48:])
    with pytest.raises(BadInput, match="damaged"):
        read_checkpoint(tmp_path / "x")
    with pytest.raises(BadInput, match=r"y\.index: No such file"):
        read_checkpoint(tmp_path / "y")


def test_what_is_not_read_is_told(tmp_path: Path) -> None:
    write(tmp_path / "x", tensors(), kind=1)
    with pytest.raises(BadInput, match=r"the block at \d+ is compressed \(kind 1\)"):
        read_checkpoint(tmp_path / "x")
    strings = {**NUMBERS, torch.bool: 7}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NUMBERS, torch.bool, strings[torch.bool])
        write(tmp_path / "x", tensors())
    with pytest.raises(BadInput, match="flag: type 7 is not read, only numbers are"):
        read_checkpoint(tmp_path / "x")


def test_fashionberts_checkpoint_becomes_ours(tmp_path: Path) -> None:
    config = fit_config(FashionBERT.recipes["tiny"].config, 40, 6, 2)
    system = FashionBERT(config, Vocab([*SPECIALS, *(f"w{i}" for i in range(40 - len(SPECIALS)))]))
    theirs = FashionBERT.keys.to_theirs(system.state_dict())
    slots = {f"{name}/{x}": value for name, value in list(theirs.items())[:9] for x in ("Adam", "Adam_1")}
    write(
        tmp_path / "model.ckpt-54198",
        theirs | slots | {"global_step": torch.tensor(54198), "beta1_power": torch.ones(())},
    )
    ours, found = read_ours(FashionBERT, "fashionbert", tmp_path / "model.ckpt-54198", "tiny")
    assert found == config
    assert all(torch.equal(ours[key], value) for key, value in system.state_dict().items())
    written = convert("fashionbert", tmp_path / "model.ckpt-54198", tmp_path / "ours.safetensors", "tiny")
    assert written == len(system.state_dict())
    bare = {key.removeprefix(ROOT): value for key, value in theirs.items()}
    write(tmp_path / "bare", bare)
    ours, _ = read_ours(FashionBERT, "fashionbert", tmp_path / "bare.index", "tiny")
    assert all(torch.equal(ours[key], value) for key, value in system.state_dict().items())
