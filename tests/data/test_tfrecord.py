from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intarsia.data.check import check, inspect
from intarsia.data.convert import convert
from intarsia.data.formats.shards import ShardSource
from intarsia.data.formats.tfrecord import Records, parse_example
from intarsia.data.stores import open_store
from intarsia.errors import BadInput


def crc(data: bytes) -> int:
    """CRC-32C bit by bit, and masked as TensorFlow stores it."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    state ^= 0xFFFFFFFF
    return ((state >> 15 | state << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record(data: bytes) -> bytes:
    size = struct.pack("<Q", len(data))
    return size + struct.pack("<I", crc(size)) + data + struct.pack("<I", crc(data))


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def part(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(data)) + data


def feature(value: Any) -> bytes:
    if isinstance(value, bytes):
        return part(1, part(1, value))
    if isinstance(value, np.ndarray):
        return part(2, part(1, value.astype("<f4").tobytes()))
    return part(3, part(1, b"".join(varint(x & 0xFFFFFFFFFFFFFFFF) for x in value)))


def example(fields: dict[str, Any]) -> bytes:
    return part(1, b"".join(part(1, part(1, name.encode()) + part(2, feature(x))) for name, x in fields.items()))


def row(picture: str, product: str, text_product: str, text: str, seed: int = 0) -> dict[str, Any]:
    features = np.random.default_rng(seed).random(64 * 3).astype("<f4")
    ids = {"image_prod_id": product.encode(), "text_prod_id": text_product.encode(), "prod_img_id": picture.encode()}
    mask = [1] * 60 + [0] * 4
    return {
        "image_feature": features,
        "image_mask": mask,
        "input_ids": [101, 7, 102],
        "prod_desc": text.encode(),
        **ids,
    }


ROWS = [
    row("p1_a", "p1", "p1", "a red dress"),
    row("p2_a", "p2", "p1", "a red dress", 1),
    row("p1_a", "p1", "p1", "a dress"),
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(record(example(x)) for x in rows))
    return path


def test_patches_and_descriptions_of_fashionbert(tmp_path: Path) -> None:
    path = write(tmp_path / "train.tfrecord", ROWS)
    store = open_store(path)
    assert store is not None and store.names == ["p1_a", "p2_a"]
    assert [store.said(i) for i in range(2)] == [[{"captions": ["a red dress", "a dress"]}], []]
    picture = store.picture(1)
    np.testing.assert_array_equal(picture.features, ROWS[1]["image_feature"].reshape(64, 3)[:60])
    np.testing.assert_allclose(picture.boxes[9], [1 / 8, 1 / 8, 2 / 8, 2 / 8])
    assert check(str(path)).usable == 2 and inspect(str(path)).ignored == {"input_ids": 2}
    done = convert(path, tmp_path / "out", "shards", extractor="resnet50-patches")
    assert (done.written, done.lines) == (2, 1) and ShardSource(tmp_path / "out")[1].texts == ("a dress",)


def test_examples_of_all_kinds_of_numbers() -> None:
    found = parse_example(example({"a": [0, 300, -2], "b": np.array([0.5]), "c": b"x", "d": []}), "here")
    assert [np.asarray(x).tolist() for x in found.values()] == [[0, 300, -2], [0.5], [b"x"], []]
    unpacked = part(1, part(1, part(1, b"a") + part(2, part(3, b"\x08\x05\x08\x06"))))
    assert np.asarray(parse_example(unpacked, "here")["a"]).tolist() == [5, 6]
    floats = part(1, part(1, part(1, b"a") + part(2, part(2, b"\x0d" + struct.pack("<f", 1.5)))))
    assert np.asarray(parse_example(floats, "here")["a"]).tolist() == [1.5]


def test_broken_records_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tfrecord", ROWS).read_bytes()
    path = tmp_path / "b.tfrecord"
    path.write_bytes(whole[:-1])
    with pytest.raises(BadInput, match=r"b\.tfrecord, record 2: cut short, or not a file of records"):
        open_store(path)
    path.write_bytes(whole[:40] + b"\x00" + whole[41:])
    with pytest.raises(BadInput, match="record 0: damaged: its checksum is another"):
        open_store(path)
    path.write_bytes(record(b"\x0a\x05ab"))
    with pytest.raises(BadInput, match="record 0: not an Example of TensorFlow"):
        open_store(path)
    write(path, [{**ROWS[0], "image_mask": [1] * 10}])
    with pytest.raises(BadInput, match="picture p1_a: image_feature holds 192 numbers for 10 patches"):
        check(str(path))
    assert len(Records(tmp_path / "a.tfrecord")) == 3
