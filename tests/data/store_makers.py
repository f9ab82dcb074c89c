"""Region features of three pictures in every layout, written from the layouts' descriptions."""

from __future__ import annotations

import base64
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np

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
        out += bytes([0xA0 | len(name)]) + name.encode() + msgpack_array(x)
    return out


def msgpack_array(x: Any) -> bytes:
    out = b"\x85\xc4\x02nd\xc3" + b"\xc4\x04type" + bytes([0xA0 | 3]) + x.dtype.str.encode() + b"\xc4\x04kind\xc4\x00"
    out += b"\xc4\x05shape" + bytes([0x90 | x.ndim, *x.shape])
    raw = x.tobytes()
    return out + b"\xc4\x04data\xc6" + struct.pack(">L", len(raw)) + raw


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


Maker = tuple[Callable[[Path], Path], set[str]]
MAKERS: dict[str, Maker] = {
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
