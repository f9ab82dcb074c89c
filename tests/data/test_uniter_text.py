from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import lz4.frame
import msgpack
import numpy as np
import pytest
from store_makers import NAMES, F, put, uniter_msgpack

from intarsia.data.check import check, inspect
from intarsia.data.convert import convert
from intarsia.data.formats.shards import ShardSource
from intarsia.data.formats.uniter_text import unpack_example
from intarsia.data.opening import open_source
from intarsia.data.stores import open_store
from intarsia.errors import BadInput
from intarsia.text import Vocab

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "!", "A", "dog", "##s", "run", "'", "s", "?", "cat"]
SENTENCE, IDS = "A dogs run ' s ?", [6, 7, 8, 9, 10, 11, 12]


def xxh32(data: bytes) -> int:
    """Of fewer than 16 bytes, none of them four in a row: the checksum of a frame's head. Source: xxHash's description."""
    first, third, second, fifth = 2654435761, 3266489917, 2246822519, 374761393
    mask = 0xFFFFFFFF
    h = (fifth + len(data)) & mask
    for byte in data:
        h = (h + byte * fifth) & mask
        h = ((h << 11 | h >> 21) * first) & mask
    h = ((h ^ h >> 15) * second) & mask
    h = ((h ^ h >> 13) * third) & mask
    return h ^ h >> 16


def frame(data: bytes) -> bytes:
    """An lz4 frame with one block as it is, byte by byte from the frame's description."""
    head = b"\x60\x40"  # version 1, blocks of 64 kB for themselves, no checksums
    block = struct.pack("<L", len(data) | 0x80000000) + data
    return b"\x04\x22\x4d\x18" + head + bytes([xxh32(head) >> 8 & 0xFF]) + block + bytes(4)


def text(x: str) -> bytes:
    return b"\xd9" + bytes([len(x.encode())]) + x.encode()


def numbers(ids: list[int]) -> bytes:
    return bytes([0x90 | len(ids), *ids])


def by_hand(fields: dict[str, bytes]) -> bytes:
    return frame(bytes([0x80 | len(fields)]) + b"".join(text(name) + value for name, value in fields.items()))


def database(root: Path, name: str, examples: dict[str, bytes], **files: Any) -> Path:
    folder = put(root / name, {key.encode(): value for key, value in examples.items()})
    files = {
        "meta": {"CLS": 2, "SEP": 3, "MASK": 4, "UNK": 1, "v_range": [5, len(PIECES)], "tokenizer": "bert-base-cased"}
    } | files
    files.setdefault("id2len", dict.fromkeys(examples, 3))
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def vocab(folder: Path) -> Vocab:
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return Vocab.read(folder / "vocab.txt")


def itm(root: Path) -> Path:
    examples = {
        f"{i}": by_hand({"input_ids": numbers(IDS), "img_fname": text(f"{name.lower()}.npz")})
        for i, name in enumerate(NAMES)
    }
    return database(root, "itm_coco_val.db", examples)


def test_pieces_become_a_text_that_is_cut_into_the_same_pieces(tmp_path: Path) -> None:
    folder = itm(tmp_path)
    with pytest.raises(
        BadInput, match=r"example 0: its text is stored as pieces of bert-base-cased: put that vocab\.txt into"
    ):
        open_source(folder)
    words = vocab(folder)
    source = pickle.loads(pickle.dumps(open_source(folder)))
    assert [x.texts for x in source] == [(SENTENCE,)] * 3
    assert words.encode(SENTENCE).ids.tolist() == IDS
    assert source[1].pictures[0].name == "coco_val2014_000000000073.npz"
    assert source.index.splits == {"val": 3}


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = itm(tmp_path)
    (folder / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(BadInput, match=r"vocab\.txt: 2 pieces, .*meta\.json says 14"):
        open_source(folder)


def test_stored_text_comes_before_pieces(tmp_path: Path) -> None:
    example = {
        "sentence": text("A dog?"),
        "input_ids": numbers(IDS),
        "identifier": text("dev-1-0-0"),
        "target": b"\x01",
    }
    names = b"\x92" + text("nlvr2_dev-1-0-img0.npz") + text("nlvr2_dev-1-0-img1.npz")
    folder = database(tmp_path, "nlvr2_dev.db", {"dev-1-0-0": by_hand({**example, "img_fname": names})})
    source = open_source(folder)
    assert (source[0].texts, source[0].answers) == (("A dog?",), (("True", 1.0),))
    assert [x.name for x in source[0].pictures] == ["nlvr2_dev-1-0-img0.npz", "nlvr2_dev-1-0-img1.npz"]
    assert inspect(str(folder)).ignored == {".identifier": 1}
    assert check(str(folder)).usable == 1


def packed(example: dict[str, Any]) -> bytes:
    return lz4.frame.compress(msgpack.packb(example, use_bin_type=True))


def test_answers_of_vqa_need_their_table(tmp_path: Path) -> None:
    example = {
        "question": "what?",
        "input_ids": IDS,
        "img_fname": "coco_a.npz",
        "target": {"labels": [1, 0], "scores": [1.0, 0.3]},
    }
    folder = database(tmp_path, "vqa_train.db", {"7": packed(example)})
    source = open_source(folder)
    assert source[0].answers == () and inspect(str(folder)).ignored == {".target": 1}
    (tmp_path / "ans2label.json").write_text(json.dumps({"yes": 0, "no": 1}))
    assert open_source(folder)[0].answers == (("no", 1.0), ("yes", 0.3))
    (tmp_path / "ans2label.json").write_text(json.dumps({"yes": 0}))
    with pytest.raises(BadInput, match="example 7: label 1 is not among 1 answers"):
        open_source(folder)


def test_entailment_vcr_and_expressions(tmp_path: Path) -> None:
    about = {"input_ids": IDS, "img_fname": "flickr30k_000000000001.npz"}
    folder = database(tmp_path, "ve_dev.db", {"1": packed(about | {"target": {"labels": [2], "scores": [1.0]}})})
    vocab(folder)
    assert (open_source(folder)[0].texts, open_source(folder)[0].answers) == ((SENTENCE,), (("neutral", 1.0),))

    choices = {"input_ids_as": [[13], [7, 8]], "qa_target": 1, "img_fname": ["vcr_gt_x.npz", "vcr_x.npz"]}
    folder = database(tmp_path, "vcr_val.db", {"1": packed(about | choices)})
    vocab(folder)
    sample = open_source(folder)[0]
    assert (sample.texts, sample.answers) == ((SENTENCE,), (("dogs", 1.0),))
    assert [x.name for x in sample.pictures] == ["vcr_x.npz"]

    example = {"sent": "left dog", "input_ids": IDS, "img_fname": "visual_grounding_coco_gt_000000000042.npz"}
    example |= {"image_id": 42, "ann_id": 9, "bbox": [1, 2, 3, 4]}
    files = {
        "images": [{"id": 42, "width": 60, "height": 40, "file_name": "x.jpg", "ann_ids": [8, 9]}],
        "annotations": [{"id": 9, "bbox": [1, 2, 3, 4]}, {"id": 8, "bbox": [0, 0, 9, 9]}],
    }
    folder = database(tmp_path, "refcoco_val.db", {"5": packed(example)}, **files)
    sample = open_source(folder)[0]
    assert [(x.start, x.end, x.region) for x in sample.links] == [(0, 8, 1)]
    np.testing.assert_allclose(sample.pictures[0].boxes[1] * [60, 40, 60, 40], [1, 2, 4, 6], atol=1e-5)


def test_images_and_texts_of_uniter_become_shards(tmp_path: Path) -> None:
    folder = itm(tmp_path)
    vocab(folder)
    assert open_store(folder) is None
    (tmp_path / "img").mkdir()
    done = convert(uniter_msgpack(tmp_path / "img"), tmp_path / "out", "shards", extractor="butd", pairs=str(folder))
    assert (done.written, done.lines, done.lines_left_out) == (3, 3, 0)
    source = ShardSource(tmp_path / "out")
    assert source[2].texts == (SENTENCE,) and source[2].pictures[0].features.shape == (5, F)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (b"", "not a msgpack dict compressed by lz4"),
        (frame(b"\x83"), "not a msgpack dict compressed by lz4"),
        (frame(b"\x90"), "holds a list"),
        (by_hand({"img_fname": b"\x07"}), "img_fname is 7"),
    ],
)
def test_a_broken_example_is_named(value: bytes, fault: str, tmp_path: Path) -> None:
    folder = database(
        tmp_path, "itm_train.db", {"a": by_hand({"sent": text("x"), "img_fname": text("a.npz")}), "b": value}
    )
    with pytest.raises(BadInput, match=f"example b: .*{fault}"):
        open_source(folder)
    source = open_source(folder, on_error="skip")
    assert len(source) == 1 and fault in source.skipped[0]


def test_a_listed_example_that_is_gone(tmp_path: Path) -> None:
    folder = database(
        tmp_path,
        "itm_train.db",
        {"a": by_hand({"sent": text("x"), "img_fname": text("a.npz")})},
        id2len={"a": 1, "z": 1},
    )
    with pytest.raises(BadInput, match="example z: listed, but not there"):
        open_source(folder)


def test_frames_by_hand_are_frames() -> None:
    assert lz4.frame.decompress(frame(b"abc")) == b"abc"
    assert unpack_example(by_hand({"a": b"\x01"}), "here") == {"a": 1}
