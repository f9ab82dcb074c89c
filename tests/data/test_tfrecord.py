from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_makers import jpeg

from intarsia.data.check import check, inspect
from intarsia.data.convert import convert
from intarsia.data.formats.shards import ShardSource
from intarsia.data.formats.tfrecord import Records, parse_example
from intarsia.data.opening import open_source
from intarsia.data.stores import open_store
from intarsia.errors import BadInput
from intarsia.extract import extract
from intarsia.features import open_extractor


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


def lined(row: dict[str, Any], names: bool, coded: bool) -> bytes:
    """A row as text: FashionBERT's input_schema in its order."""
    features = row["image_feature"]
    cells = [base64.urlsafe_b64encode(features.tobytes()) if coded else ",".join(map(str, features.tolist())).encode()]
    numbers = (
        row["image_mask"],
        range(5),
        [101, 7, *[0] * 62],
        [1] * 64,
        [0] * 64,
        [0] * 10,
        [0] * 10,
        [0.0] * 10,
        [1],
    )
    cells += [",".join(map(str, x)).encode() for x in numbers]
    strings = ("prod_desc", "text_prod_id", "image_prod_id", "prod_img_id") if names else ()
    return b"\t".join([*cells, *(row[x] for x in strings)])


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_fashionberts_rows_as_text(suffix: str, coded: bool, tmp_path: Path) -> None:
    path = tmp_path / f"train.{suffix}"
    path.write_bytes(b"\n".join(lined(x, True, coded) for x in ROWS) + b"\n")
    store = open_store(path)
    assert store is not None and store.names == ["p1_a", "p2_a"]
    assert [store.said(i) for i in range(2)] == [[{"captions": ["a red dress", "a dress"]}], []]
    np.testing.assert_array_equal(store.picture(1).features, ROWS[1]["image_feature"].reshape(64, 3)[:60])
    assert check(str(path)).usable == 2 and inspect(str(path)).ignored["masked_lm_ids"] == 2
    done = convert(path, tmp_path / "out", "shards", extractor="resnet50-patches")
    assert (done.written, done.lines) == (2, 1)
    path.write_bytes(lined(ROWS[0], False, coded) + b"\n")
    store = open_store(path)
    assert store is not None and store.names == ["0"] and store.said(0) == []


def test_faults_of_rows_as_text_are_named(tmp_path: Path) -> None:
    good = lined(ROWS[0], True, False)
    path = tmp_path / "train.csv"
    path.write_bytes(good + b"\n" + good.replace(b"\t1,1", b"\tx,1", 1) + b"\n")
    with pytest.raises(BadInput, match=r"train\.csv, record 1: image_mask: .*'x'"):
        open_store(path)
    path.write_bytes(good + b"\n" + good + b"\tmore\n")
    with pytest.raises(BadInput, match=r"record 1: 15 columns, expected 10 or 14"):
        open_store(path)


PIECES = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[IMAGE]",
    "[OBJ-0]",
    "[OBJ-1]",
    "[OBJ-2]",
    "why",
    "is",
    "person",
    "smiling",
    "?",
    "a",
    "dog",
    "run",
    "##s",
    "and",
    "hat",
    "he",
]


def choice(
    number: int, text: str, label: int, rows: dict[int, list[int]], image: bytes, annot: int = 5
) -> dict[str, Any]:
    """A choice as B2T2's script makes it: 20 places, two boxes."""
    words = text.split()
    slots = [*rows.values(), *[[0, 0, 1, 1]] * (2 - len(rows))]
    where = [list(rows).index(int(x[5])) if x[:4] == "[OBJ" and int(x[5]) in rows else -1 for x in words]
    ids = [PIECES.index(x) for x in words]
    pad = 20 - len(ids)
    return {
        "image": image,
        "annot_id": [annot],
        "img_id": [3],
        "choice_id": [4 * number],
        "input_ids": ids + [0] * pad,
        "segment_ids": [0] * 20,
        "input_mask": [1] * len(ids) + [0] * pad,
        "label": [label],
        "bbox_pos": [x for row in slots for x in row],
        "bbox_idx": where + [-1] * pad,
    }


ASKED = "[CLS] [IMAGE] why is person [OBJ-0] and person [OBJ-2] smiling ? [SEP]"
BOXES = {0: [2, 1, 10, 20], 2: [4, 6, 20, 10]}
"""y, x, high, wide."""


def b2t2(root: Path, split: str = "val", label: int = 1) -> Path:
    choices = [
        choice(0, f"{ASKED} a dog run ##s [SEP]", 0, BOXES, jpeg(1)),
        choice(1, f"{ASKED} he and hat [OBJ-1] [SEP]", label, BOXES, jpeg(1)),
        choice(0, "[CLS] [IMAGE] why ? [SEP] hat [OBJ-1] run ##s [SEP]", label, {1: [0, 0, 5, 6]}, jpeg(1), annot=6),
    ]
    (root / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return write(root / f"b2t2-{split}-00000-of-00020", choices)


def test_b2t2s_records_are_questions_with_boxes_of_what_is_spoken_of(tmp_path: Path) -> None:
    path = b2t2(tmp_path)
    source = open_source(path)
    assert [(x.texts[0], x.answers) for x in source] == [
        ("why is person and person smiling ?", (("he and hat", 1.0),)),
        ("why ?", (("hat runs", 1.0),)),
    ]
    first, picture = source[0], source[0].pictures[0]
    assert [(first.texts[0][x.start : x.end], x.start, x.region) for x in first.links] == [
        ("person", 7, 0),
        ("person", 18, 1),
    ]
    np.testing.assert_allclose(picture.boxes * [40, 30, 40, 30], [[1, 2, 21, 12], [6, 4, 16, 24]], atol=1e-5)
    assert (picture.name, picture.width, picture.height, picture.tags) == ("val-3-5", 40, 30, ("person", "person"))
    assert picture.pixels is not None and np.asarray(picture.pixels()).shape == (30, 40, 3)
    assert source.index.splits == {"val": 2}
    b2t2(tmp_path, "test", label=0)
    both = open_source(tmp_path)
    assert both.index.splits == {"val": 2, "test": 2} and [x.answers for x in open_source(tmp_path, "test")] == [(), ()]
    assert inspect(str(path)).with_pixels == 2


def test_b2t2s_records_are_checked_and_extracted(tmp_path: Path) -> None:
    choices = [choice(0, f"{ASKED} he [SEP]", 1, BOXES, jpeg(1))]
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    path = write(tmp_path / "x-train-00000-of-00001", choices)
    assert (check(str(path)).usable, check(str(path)).decoded) == (1, 1)
    extract(path, tmp_path / "out", open_extractor("pixels"), boxes="given", show=False)
    shards = ShardSource(tmp_path / "out")
    assert len(shards) == 1 and len(shards[0].pictures[0].boxes) == 2 and len(shards[0].links) == 2
    write(path, [{**choices[0], "bbox_idx": [3] * 20}])
    with pytest.raises(BadInput, match="record 0: bbox_idx 3, 2 boxes"):
        open_source(path)
    write(path, [{**choices[0], "image": b"no picture"}])
    with pytest.raises(BadInput, match="record 0: its image is no picture"):
        open_source(path)
    write(path, [{**choices[0], "input_ids": [99] * 20}])
    with pytest.raises(BadInput, match=r"input_ids \[99, .* are not numbers of 19 pieces"):
        open_source(path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(BadInput, match=r"its texts are stored as pieces: put the vocab\.txt they were cut by into"):
        open_source(path)
