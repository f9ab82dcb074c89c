from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import lmdb
import msgpack
import numpy as np
import pytest
import torch

from intarsia.batch import Picture
from intarsia.cli_data import data
from intarsia.data import store_writers
from intarsia.data.check import check, inspect
from intarsia.data.convert import convert
from intarsia.data.formats.names import picture_key
from intarsia.data.formats.npz import read_npz
from intarsia.data.formats.shards import ShardSource
from intarsia.data.formats.uniter_lmdb import UniterLmdb
from intarsia.data.stores import open_store
from intarsia.errors import BadInput

W, H, F, C = 60, 40, 8, 5
NAMES = ["COCO_val2014_000000000042", "COCO_val2014_000000000073", "COCO_val2014_000000000139"]
Arrays = dict[str, Any]


def arrays(number: int) -> Arrays:
    """Plain numbers of one picture, by no code of the library: boxes in pixels; class and attribute ids without background."""
    rng = np.random.default_rng([number, 9])
    rows = 3 + number
    low = rng.integers(0, 20, (rows, 2))
    boxes = np.concatenate([low, low + rng.integers(5, 19, (rows, 2))], 1).astype("<f4")
    probs = rng.random((rows, C)).astype("<f4")
    return {
        "features": rng.integers(0, 50, (rows, F)).astype("<f4") / 8,
        "boxes": boxes,
        "probs": probs,
        "objects": rng.integers(0, 4, rows),
        "conf": np.sort(rng.integers(1, 256, rows))[::-1].astype("<f4") / 256,
        "attrs": rng.integers(0, 3, rows),
        "attr_conf": rng.integers(0, 256, rows).astype("<f4") / 256,
    }


def b64(array: Any, dtype: str = "<f4") -> str:
    # the bytes, one number at a time: no encoder of the library's
    kind = {"<f4": "<f", "<i8": "<q", "<f2": "<e"}[dtype]
    return base64.b64encode(b"".join(struct.pack(kind, x) for x in np.asarray(array).ravel().tolist())).decode()


def put(path: Path, records: dict[bytes, bytes]) -> Path:
    env = lmdb.open(str(path), map_size=2**24)
    with env.begin(write=True) as transaction:
        for key, value in records.items():
            transaction.put(key, value)
    env.close()
    return path


def butd(root: Path) -> Path:
    rows = [(n, arrays(i)) for i, n in enumerate(NAMES)]
    text = "".join(f"{n}\t{W}\t{H}\t{len(a['boxes'])}\t{b64(a['boxes'])}\tb'{b64(a['features'])}'\n" for n, a in rows)
    (root / "butd.tsv").write_text(text)
    return root / "butd.tsv"


def lxmert(root: Path) -> Path:
    text = ""
    for i, name in enumerate(NAMES):
        a = arrays(i)
        ids = b64(a["objects"], "<i8"), b64(a["conf"]), b64(a["attrs"], "<i8"), b64(a["attr_conf"])
        text += (
            "\t".join([name, str(H), str(W), *ids, str(len(a["boxes"])), b64(a["boxes"]), b64(a["features"])]) + "\n"
        )
    (root / "val2014_obj36.tsv").write_text(text)
    return root / "val2014_obj36.tsv"


def npz_by_hand(members: dict[str, Any], method: int) -> bytes:
    """A zip of arrays, byte by byte from the two formats' descriptions."""
    body, directory = b"", b""
    for name, array in members.items():
        header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}".encode()
        header += b" " * (-(len(header) + 11) % 64) + b"\n"
        raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + array.tobytes()
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        packed = packer.compress(raw) + packer.flush() if method else raw
        title = f"{name}.npy".encode()
        sums = struct.pack("<LLL", zlib.crc32(raw), len(packed), len(raw))
        start = len(body)
        body += (
            b"PK\x03\x04"
            + struct.pack("<5H", 20, 0, method, 0, 33)
            + sums
            + struct.pack("<HH", len(title), 0)
            + title
            + packed
        )
        head = b"PK\x01\x02" + struct.pack("<6H", 20, 20, 0, method, 0, 33) + sums
        directory += head + struct.pack("<5H2L", len(title), 0, 0, 0, 0, 0, start) + title
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, len(members), len(members), len(directory), len(body), 0)
    return body + directory + end


def uniter_arrays(i: int) -> Arrays:
    a = arrays(i)
    x = (a["boxes"] / [W, H, W, H]).astype("<f2")
    boxes = np.concatenate([x, x[:, 2:] - x[:, :2]], 1)
    return {
        "norm_bb": boxes,
        "features": a["features"].astype("<f2"),
        "conf": a["conf"].astype("<f2"),
        "soft_labels": a["probs"].astype("<f2"),
    }


def uniter_npz(root: Path) -> Path:
    names = [f"{x.lower()}.npz" for x in NAMES]
    records = {n.encode(): npz_by_hand(uniter_arrays(i), 8) for i, n in enumerate(names)}
    return put(root / "all_compressed", {**records, b"__keys__": json.dumps(names).encode()})


def msgpack_bytes(a: Arrays) -> bytes:
    """A msgpack map of arrays, byte by byte: fixmap, fixstr, bin 8 keys, bin 32 data."""
    out = bytes([0x80 | len(a)])
    for name, x in a.items():
        out += bytes([0xA0 | len(name)]) + name.encode() + b"\x85"
        out += b"\xc4\x02nd\xc3" + b"\xc4\x04type" + bytes([0xA0 | 3]) + x.dtype.str.encode() + b"\xc4\x04kind\xc4\x00"
        out += b"\xc4\x05shape" + bytes([0x90 | x.ndim, *x.shape])
        raw = x.tobytes()
        out += b"\xc4\x04data\xc6" + struct.pack(">L", len(raw)) + raw
    return out


def uniter_msgpack(root: Path) -> Path:
    names = [f"{x.lower()}.npz" for x in NAMES]
    records = {n.encode(): msgpack_bytes(uniter_arrays(i)) for i, n in enumerate(names)}
    return put(root / "all", {**records, b"__keys__": json.dumps(names).encode()})


def vilbert(root: Path) -> Path:
    records = {}
    for i, name in enumerate(NAMES):
        a = arrays(i)
        value = {
            "image_id": name,
            "image_h": H,
            "image_w": W,
            "num_boxes": len(a["boxes"]),
            "boxes": a["boxes"],
            "features": a["features"],
        }
        if i == 1:  # vilbert_beta's way
            value |= {"boxes": b64(a["boxes"]).encode(), "features": b64(a["features"])}
        records[name.encode()] = pickle.dumps(value, protocol=i + 1)
    return put(root / "vilbert.lmdb", {**records, b"keys": pickle.dumps([x.encode() for x in NAMES])})


def npy(root: Path) -> Path:
    (root / "npy").mkdir()
    for i, name in enumerate(NAMES):
        a = arrays(i)
        info = {
            "num_boxes": len(a["boxes"]),
            "bbox": a["boxes"],
            "image_width": W,
            "image_height": H,
            "cls_prob": a["probs"],
        }
        if i == 0:  # mmf's two files, features padded
            np.save(root / "npy" / f"{name}.npy", np.concatenate([a["features"], np.zeros((2, F), "<f4")]))
            np.save(root / "npy" / f"{name}_info.npy", np.array(info, dtype=object), allow_pickle=True)
        else:
            np.save(
                root / "npy" / f"{name}.npy",
                np.array({**info, "features": a["features"]}, dtype=object),
                allow_pickle=True,
            )
    return root / "npy"


def oscar(root: Path) -> Path:
    features, labels, offsets, at = b"", b"", "", 0
    for i, name in enumerate(NAMES):
        a = arrays(i)
        x = a["boxes"] / np.array([W, H, W, H], "<f4")
        table = np.concatenate([a["features"], x, x[:, 2:] - x[:, :2]], 1)
        row = f"{name}\t" + json.dumps({"num_boxes": len(x), "features": b64(table)}) + "\n"
        offsets += f"{at}\n"
        at += len(row)
        features += row.encode()
        boxes = [
            {"class": f"thing {k}", "rect": r, "conf": float(c)}
            for k, (r, c) in enumerate(zip(a["boxes"].tolist(), a["conf"], strict=True))
        ]
        labels += f"{name}\t{json.dumps(boxes)}\n".encode()
    (root / "val.feature.tsv").write_bytes(features)
    (root / "val.feature.lineidx").write_text(offsets)
    (root / "val.label.tsv").write_bytes(labels)
    (root / "val.hw.tsv").write_text("".join(f'{n}\t[{{"height": {H}, "width": {W}}}]\n' for n in NAMES))
    (root / "caption.json").write_text(json.dumps([{"image_id": n, "caption": f"picture {n[-2:]}"} for n in NAMES]))
    (root / "val.yaml").write_text(
        "feature: val.feature.tsv\nlabel: val.label.tsv\ncaption: caption.json\nhw: val.hw.tsv\n"
    )
    return root / "val.yaml"


def volta_h5(root: Path) -> Path:
    with h5py.File(root / "volta.h5", "w") as file:
        for i, name in enumerate(NAMES):
            a, group = arrays(i), file.create_group(name)
            named = {
                "features": "features",
                "boxes": "boxes",
                "obj_id": "objects",
                "obj_conf": "conf",
                "attr_id": "attrs",
                "attr_conf": "attr_conf",
            }
            for theirs, ours in named.items():
                group[theirs] = a[ours]
            group["img_w"], group["img_h"] = W, H
    return root / "volta.h5"


def vlp(root: Path) -> Path:
    folder = root / "vlp"
    (folder / "bbox").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        a, end = arrays(i), name[-3:]
        with h5py.File(folder / f"coco_feat{end}.h5", "a") as file:
            file[name] = a["features"].astype("<f2")
        with h5py.File(folder / f"coco_cls{end}.h5", "a") as file:
            file[name] = a["probs"].astype("<f2")
        with h5py.File(folder / "bbox" / "boxes.h5", "a") as file:
            file[name] = np.concatenate([a["boxes"], a["objects"][:, None] + 1, a["conf"][:, None]], 1).astype("<f4")
    return folder


def vl_bert(root: Path) -> Path:
    lines = ""
    with zipfile.ZipFile(root / "train_frcnn.zip", "w", zipfile.ZIP_STORED) as archive:
        for i, name in enumerate(NAMES):
            a = arrays(i)
            record = {"image_w": W, "image_h": H, "num_boxes": len(a["boxes"]), "boxes": b64(a["boxes"])}
            record |= {
                "classes": b64(a["probs"]),
                "features": base64.encodebytes(base64.b64decode(b64(a["features"]))).decode(),
            }
            archive.writestr(f"{name}.json", json.dumps(record))
            caption: Any = ["picture", name[-2:]] if i else "picture 42"
            lines += (
                json.dumps(
                    {
                        "image": f"train_image.zip@/{name}.jpg",
                        "caption": caption,
                        "frcnn": f"train_frcnn.zip@/{name}.json",
                    }
                )
                + "\n"
            )
    (root / "train_frcnn.json").write_text(lines)
    return root / "train_frcnn.json"


def npz(root: Path) -> Path:
    (root / "npz").mkdir()
    for i, name in enumerate(NAMES):
        a = arrays(i)
        members = {
            "x": a["features"],
            "bbox": a["boxes"],
            "conf": a["conf"],
            "image_w": np.array(W),
            "image_h": np.array(H),
        }
        (root / "npz" / f"{name}.jpg.npz").write_bytes(npz_by_hand({n: np.asarray(x) for n, x in members.items()}, 0))
    return root / "npz"


def gqa(root: Path) -> Path:
    folder = root / "gqa"
    folder.mkdir()
    info = {}
    with h5py.File(folder / "gqa_objects_0.h5", "w") as file:
        feats, boxes = np.zeros((3, 10, F), "<f4"), np.zeros((3, 10, 4), "<f4")
        for i, name in enumerate(NAMES):
            a = arrays(i)
            rows = len(a["boxes"])
            feats[2 - i, :rows], boxes[2 - i, :rows] = a["features"], a["boxes"]
            info[name] = {"width": W, "height": H, "objectsNum": rows, "idx": 2 - i, "file": 0}
        file["features"], file["bboxes"] = feats, boxes
    (folder / "gqa_objects_info.json").write_text(json.dumps(info))
    return folder


MAKERS: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "butd": (butd, set()),
    "lxmert": (lxmert, {"labels", "scores", "attributes", "attribute_scores"}),
    "uniter-npz": (uniter_npz, {"scores", "probs"}),
    "uniter": (uniter_msgpack, {"scores", "probs"}),
    "vilbert": (vilbert, set()),
    "npy": (npy, {"probs"}),
    "oscar": (oscar, {"scores"}),
    "volta-h5": (volta_h5, {"labels", "scores", "attributes", "attribute_scores"}),
    "vlp": (vlp, {"labels", "scores", "probs"}),
    "vl_bert": (vl_bert, {"probs"}),
    "npz": (npz, {"scores"}),
    "gqa": (gqa, set()),
}


def opened(path: Path) -> Any:
    store = open_store(path, width=F)
    assert store is not None
    return store


def expect(picture: Picture, number: int, extras: set[str], size: bool = True, estimated: bool = False) -> None:
    """That a picture is what `arrays` says; float16 layouts hold its numbers exactly, but for boxes and probabilities."""
    a = arrays(number)
    np.testing.assert_array_equal(picture.features.astype(np.float32), a["features"])
    x = a["boxes"]
    whole = [x[:, 2].max() + 1e-5, x[:, 3].max() + 1e-5] * 2 if estimated else [W, H, W, H]
    np.testing.assert_allclose(picture.boxes, x / whole, atol=5e-4)
    assert picture.boxes.dtype == np.float32
    if size:
        assert (picture.width, picture.height) == (W, H)
    has = {
        "labels": a["objects"] + 1,
        "scores": a["conf"],
        "probs": a["probs"],
        "attributes": a["attrs"] + 1,
        "attribute_scores": a["attr_conf"],
    }
    for name, values in has.items():
        found = getattr(picture, name)
        assert (found is not None) == (name in extras), name
        if found is not None:
            np.testing.assert_allclose(found, values, atol=5e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_every_layout_is_opened_by_looking(name: str, tmp_path: Path) -> None:
    make, extras = MAKERS[name]
    store = opened(make(tmp_path))
    store = pickle.loads(pickle.dumps(store))
    assert {picture_key(x) for x in store.names} == {"42", "73", "139"}
    for number, stored in enumerate(store.names):
        expect(
            store.picture(number),
            [picture_key(x) for x in NAMES].index(picture_key(stored)),
            extras,
            name not in ("uniter", "uniter-npz", "vlp"),
            name == "vlp",
        )


@pytest.mark.parametrize("name", ["uniter", "vilbert", "volta-h5", "butd"])
def test_stores_are_read_in_forked_processes(name: str, tmp_path: Path) -> None:
    store = opened(MAKERS[name][0](tmp_path))
    whole = [store.picture(i).features for i in range(3)]
    loader = torch.utils.data.DataLoader(
        Stored(store), batch_size=None, num_workers=2, multiprocessing_context="fork", collate_fn=lambda x: x
    )
    for found, features in zip(loader, whole, strict=True):
        np.testing.assert_array_equal(found, features)


class Stored(torch.utils.data.Dataset[Any]):
    def __init__(self, store: Any) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, number: int) -> Any:
        return self.store.picture(number).features


@pytest.mark.parametrize("name", [x for x in MAKERS if x != "oscar"])
def test_every_layout_can_be_inspected_and_checked(name: str, tmp_path: Path) -> None:
    path = MAKERS[name][0](tmp_path)
    report = inspect(str(path))
    assert (report.pictures, report.looked_at, report.widths, report.skipped) == (3, 3, {F: 3}, ())
    assert check(str(path)).usable == 3


def pairs(root: Path) -> Path:
    lines = [json.dumps({"image": f"{n}.jpg", "captions": [f"a picture of {n[-2:]}", "one more"]}) for n in NAMES]
    (root / "pairs.jsonl").write_text("\n".join([*lines, json.dumps({"image": "7.jpg", "caption": "not stored"})]))
    return root / "pairs.jsonl"


@pytest.mark.parametrize("name", MAKERS)
def test_every_layout_becomes_shards(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    make, extras = MAKERS[name]
    done = convert(
        make(tmp_path / "in"), tmp_path / "out", "shards", extractor="butd", pairs=str(pairs(tmp_path)), width=F
    )
    assert (done.written, done.lines, done.lines_left_out) == (3, 3, 1)
    source = ShardSource(tmp_path / "out", verify=True)
    assert len(source) == 6 and source.provenance is not None and source.provenance.extractor == "butd"
    assert source.provenance.settings["converted from"]
    expect(source[0].pictures[0], 0, extras, name not in ("uniter", "uniter-npz", "vlp"), name == "vlp")
    assert source[0].texts == ("a picture of 42",)


WRITERS = {
    "butd": "x.tsv",
    "lxmert": "x.tsv",
    "oscar": "x.feature.tsv",
    "uniter": "all",
    "uniter-npz": "all",
    "vilbert": "v",
    "volta-h5": "x.h5",
}


@pytest.mark.parametrize("layout", WRITERS)
def test_what_is_written_reads_as_the_same_pictures(layout: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    target = tmp_path / WRITERS[layout]
    assert convert(lxmert(tmp_path / "in"), target, layout).written == 3
    kept = {"lxmert": MAKERS["lxmert"][1], "volta-h5": MAKERS["volta-h5"][1], "butd": set(), "vilbert": set()}
    store = opened(target)
    for number in range(3):
        expect(store.picture(number), number, kept.get(layout, {"scores"}), not layout.startswith("uniter"))
    assert not [x for x in tmp_path.iterdir() if x.name.startswith(".")]
    with pytest.raises(BadInput, match="already there"):
        convert(tmp_path / "in" / "val2014_obj36.tsv", target, layout)


@pytest.mark.parametrize("layout", ["butd", "oscar", "uniter", "vilbert"])
def test_a_killed_conversion_goes_on(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writers.LmdbWriter, "every", 1)
    (tmp_path / "in").mkdir()
    source, target = lxmert(tmp_path / "in"), tmp_path / WRITERS[layout]
    kind = store_writers.TsvWriter if layout in ("butd", "oscar") else store_writers.LmdbWriter
    add, calls = kind.add, []

    def dies(self: Any, picture: Picture) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(picture.name)
        add(self, picture)

    monkeypatch.setattr(kind, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, layout)
    assert not target.exists()
    partial = target.with_name(f".{target.name}.partial")
    if partial.is_file():  # as if the kill fell into a line
        with open(partial, "ab") as handle:
            handle.write(b"COCO_half\t1")
    monkeypatch.setattr(kind, "add", add)
    (tmp_path / "other.tsv").write_text(f"9\t{W}\t{H}\t1\t{b64([1, 1, 9, 9])}\t{b64(np.ones(F))}\n")
    with pytest.raises(BadInput, match=r"begun with other pictures \(COCO_val2014_000000000042"):
        convert(tmp_path / "other.tsv", target, layout)
    done = convert(source, target, layout)
    assert (done.written, done.before) == (1, 2)
    store = opened(target)
    for number in range(3):
        np.testing.assert_array_equal(store.picture(number).features, arrays(number)["features"])


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_hostile_pickle_is_refused_by_name_and_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    bad = put(tmp_path / "bad", {b"7": pickle.dumps({"features": Hostile(mark)}), b"keys": pickle.dumps([b"7"])})
    with pytest.raises(BadInput, match=r"picture 7: refused: it wants \w+\.mkdir"):
        check(str(bad))
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "8.npy", np.array({"features": Hostile(mark)}, dtype=object), allow_pickle=True)
    assert "mkdir" in check(str(tmp_path / "npy"), on_error="skip").problems[0]
    listed = put(tmp_path / "list", {b"7": b"", b"keys": pickle.dumps(Hostile(mark))})
    with pytest.raises(BadInput, match="mkdir"):
        opened(listed)
    assert not mark.exists()


def test_objects_in_npz_and_msgpack_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, features=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match=r"here: not a readable \.npz: an array of objects"):
        read_npz(buffer.getvalue(), "here")
    entry = {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": b"x"}
    path = put(tmp_path / "all", {b"a": msgpack.packb({"features": entry}, use_bin_type=True), b"__keys__": b'["a"]'})
    with pytest.raises(BadInput, match="picture a: not a msgpack map of arrays: features is an array of objects"):
        opened(path).picture(0)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", [(), (0, 4), (3, 2)])
def test_npz_reads_as_numpy(compressed: bool, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    made = {
        "a": rng.random(shape).astype(np.float32),
        "b": np.asfortranarray(rng.integers(0, 9, (3, 5))),
        "c": np.array(["x", "yz"]),
    }
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **made)  # type: ignore[operator]
    found = read_npz(buffer.getvalue(), "here")
    assert list(found) == list(made)
    for name, array in made.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape


def test_a_flipped_byte_of_an_npz_is_found() -> None:
    data = bytearray(npz_by_hand(uniter_arrays(0), 0))
    data[500] ^= 1
    with pytest.raises(BadInput, match="checksum"):
        read_npz(bytes(data), "here")
    with pytest.raises(BadInput, match="no zip directory"):
        read_npz(bytes(data[:-30]), "here")


def test_uniter_keeps_the_regions_its_folder_says(tmp_path: Path) -> None:
    conf = np.array([0.9, 0.5, 0.25, 0.1, 0.05], "<f2")
    a = {**{k: np.concatenate([v, v])[:5] for k, v in uniter_arrays(0).items()}, "conf": conf}
    for folder, count in (
        ("feat_th0.2_max100_min1", 3),
        ("feat_th0.2_max2_min1", 2),
        ("feat_th0.2_max100_min4", 4),
        ("feat_numbb2", 2),
        ("all", 5),
    ):
        path = put(tmp_path / folder, {b"a.npz": msgpack_bytes(a), b"__keys__": b'["a.npz"]'})
        assert len(opened(path).picture(0).boxes) == count, folder
    (tmp_path / "nbb_th0.2_max100_min1.json").write_text('{"a.npz": 1}')
    assert len(UniterLmdb(tmp_path / "feat_th0.2_max100_min1").picture(0).boxes) == 1
    (tmp_path / "nbb_th0.2_max100_min1.json").write_text('{"a.npz": 6}')
    with pytest.raises(BadInput, match=r"a\.npz: 5 regions, its number of boxes is said to be 6"):
        UniterLmdb(tmp_path / "feat_th0.2_max100_min1").picture(0)


def test_line_index_of_another_file_is_not_believed(tmp_path: Path) -> None:
    path = butd(tmp_path)
    assert opened(path).names == NAMES
    kept = path.with_suffix(".lineidx").read_text().split()
    lines = path.read_bytes().splitlines(keepends=True)
    assert [int(x) for x in kept] == [0, len(lines[0]), len(lines[0] + lines[1])]
    path.write_bytes(b"".join(reversed(lines)))
    assert opened(path).names == NAMES[::-1]
    path.with_suffix(".lineidx").write_text(f"0\n{len(lines[2] + lines[1])}\n")  # leaves out a line
    with pytest.raises(BadInput, match="holds several lines"):
        opened(path).picture(0)


def test_oscar_float16_and_odd_widths(tmp_path: Path) -> None:
    oscar(tmp_path)
    table = np.full((2, F + 6), 0.5)
    table[:, -6:-4] = 0
    file = tmp_path / "h.feature.tsv"
    for dtype in ("<f2", "<f4"):
        file.write_text("9\t" + json.dumps({"num_boxes": 2, "features": b64(table, dtype)}) + "\n")
        assert opened(file).picture(0).features.tolist() == [[0.5] * F] * 2
    file.write_text("9\t" + json.dumps({"num_boxes": 3, "features": b64(table)}) + "\n")
    with pytest.raises(BadInput, match=r"picture 9: 112 bytes of features for 3 boxes; expected 14 numbers a box"):
        opened(file).picture(0)


def test_one_clear_line_for_a_bad_sample(tmp_path: Path) -> None:
    path = butd(tmp_path)
    cells = [x.split("\t") for x in path.read_text().splitlines()]
    cells[1][4] = b64([[5, 5, 5, 9]] * 4)
    cells[2][5] = cells[2][5][:40]
    path.write_text("".join("\t".join(x) + "\n" for x in cells))
    found = check(str(path), on_error="skip")
    assert (found.samples, found.usable) == (3, 1)
    assert found.problems[0] == f"{path}, picture {NAMES[1]}: box 0 [5, 5, 5, 9] has no area (x2 <= x1 or y2 <= y1)"
    assert found.problems[1].startswith(f"{path}, picture {NAMES[2]}: features: ")


def test_conversion_asks_for_what_it_needs(tmp_path: Path) -> None:
    path = uniter_msgpack(tmp_path)
    with pytest.raises(BadInput, match="does not say what made its features"):
        convert(path, tmp_path / "o", "shards", pairs=str(pairs(tmp_path)))
    with pytest.raises(BadInput, match="its size is not known"):
        convert(path, tmp_path / "o.tsv", "butd")
    with pytest.raises(BadInput, match="no captions; give --pairs"):
        convert(path, tmp_path / "o", "shards", extractor="butd")
    (tmp_path / "sizes.json").write_text(json.dumps({n: [W, H] for n in NAMES}))
    assert convert(path, tmp_path / "p.tsv", "butd", sizes=tmp_path / "sizes.json").written == 3
    expect(replace(opened(tmp_path / "p.tsv").picture(2)), 2, set())


def test_convert_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(butd(tmp_path))
    data(["convert", source, str(tmp_path / "v"), "--layout", "vilbert"])
    assert "3 pictures written, 0 were there, 0 left out" in capsys.readouterr().out
    expect(opened(tmp_path / "v").picture(0), 0, set())
    with pytest.raises(BadInput, match="does not say what made its features"):
        data(["convert", source, str(tmp_path / "s"), "--pairs", str(pairs(tmp_path))])
    assert not (tmp_path / "s").exists()


def test_names_of_one_picture() -> None:
    same = [
        "COCO_val2014_000000000042.jpg",
        "coco_val2014_000000000042.npz",
        "42",
        "images/42.png",
        "000000000042.jpg.npz",
    ]
    assert {picture_key(x) for x in same} == {"42"}
    assert picture_key("nlvr2_dev-850-0-img0.npz") == "nlvr2_dev-850-0-img0"
