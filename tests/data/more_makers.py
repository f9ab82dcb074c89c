"""More layouts, as `store_makers`: gzip and parts, torch files, tensorpack, VL-BERT's files of VQA, volta's LMDB of text."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from store_makers import NAMES, Arrays, F, H, Maker, W, arrays, b64, butd, lxmert, msgpack_array, put

EVERYTHING = {"labels", "scores", "attributes", "attribute_scores", "probs"}


def butd_probs(root: Path) -> Path:
    lines = ""
    for i, name in enumerate(NAMES):
        a = arrays(i)
        rows = len(a["boxes"])
        table = np.repeat(a["attr_conf"][:, None] / 2 - 0.01, 4, 1)
        table[:, 0] = 1  # background, however likely, says nothing
        table[np.arange(rows), a["attrs"] + 1] = a["attr_conf"]
        cells = [name, W, H, rows, b64(a["boxes"]), b64(a["features"]), b64(a["probs"]), b64(table)]
        lines += "\t".join(map(str, cells)) + "\n"
    (root / "butd8.tsv").write_text(lines)
    return root / "butd8.tsv"


def parts(root: Path) -> Path:
    lines = butd(root).read_bytes().splitlines(keepends=True)
    for i, part in enumerate((lines[:2], lines[2:])):
        (root / f"trainval.tsv.{i}").write_bytes(b"".join(part))
    return root / "trainval.tsv"


def gzipped(root: Path) -> Path:
    (root / "x.tsv.gz").write_bytes(gzip.compress(lxmert(root).read_bytes()))
    return root / "x.tsv.gz"


def oscar_table(i: int) -> Any:
    a = arrays(i)
    x = a["boxes"] / np.array([W, H, W, H], "<f4")
    return np.concatenate([a["features"], x, x[:, 2:] - x[:, :2]], 1)


def oscar_torch(root: Path, zipped: bool) -> Path:
    path = root / "val_img_frcnn_feats.pt"
    whole = {name: torch.from_numpy(oscar_table(i)) for i, name in enumerate(NAMES)}
    whole[NAMES[1]] = whole[NAMES[1]].half()
    whole[NAMES[2]] = torch.cat([whole[NAMES[2]], whole[NAMES[2]]])[: len(whole[NAMES[2]])]  # a view into more
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    return path


def oscar_npy(root: Path) -> Path:
    whole = {name: oscar_table(i) for i, name in enumerate(NAMES)}
    np.save(root / "val_img_frcnn_feats.npy", np.array(whole, dtype=object), allow_pickle=True)
    return root / "val_img_frcnn_feats.npy"


def torch_dicts(root: Path) -> Path:
    """VisualBERT's chunk of Flickr30k: dicts with sizes."""
    whole = {}
    for i, name in enumerate(NAMES):
        a = arrays(i)
        about = {"image_w": W, "image_h": H, "num_boxes": len(a["boxes"])}
        whole[f"{name}.jpg.npz"] = {**about, "features": torch.from_numpy(a["features"]), "boxes": a["boxes"]}
    torch.save(whole, root / "flickr.th", _use_new_zipfile_serialization=False)
    return root / "flickr.th"


def vqa_record(i: int) -> Arrays:
    a = arrays(i)
    about = {"image_w": W, "image_h": H, "num_boxes": len(a["boxes"]), "image_box_feature": b64(np.ones(F))}
    return {**about, "boxes": b64(a["boxes"]), "features": b64(a["features"]), "classes": b64(a["probs"])}


def vl_bert_folder(root: Path) -> Path:
    (root / "vqa").mkdir()
    for i, name in enumerate(NAMES):
        (root / "vqa" / f"{name}.json").write_text(json.dumps(vqa_record(i)))
    return root / "vqa"


def vl_bert_zip(root: Path) -> Path:
    with zipfile.ZipFile(root / "vqa.zip", "w", zipfile.ZIP_STORED) as archive:
        for i, name in enumerate(NAMES):
            archive.writestr(f"inner/{name}.json", json.dumps(vqa_record(i)))
    return root / "vqa.zip"


def volta_text(root: Path) -> Path:
    """volta's LMDB: a line of the TSV as a dict of texts, fields that are not there None."""
    records = {}
    for i, name in enumerate(NAMES):
        a = arrays(i)
        value = {"img_id": name, "img_h": str(H), "img_w": str(W), "num_boxes": str(len(a["boxes"]))}
        value |= {"objects_id": b64(a["objects"], "<i8"), "objects_conf": b64(a["conf"])}
        value |= {"attrs_id": b64(a["attrs"], "<i8"), "attrs_conf": b64(a["attr_conf"])}
        value |= {"boxes": b64(a["boxes"]), "features": b64(a["features"])}
        records[name.encode()] = pickle.dumps({**value, "cls_prob": None, "attrs": None, "classes": None}, protocol=3)
    return put(root / "volta.lmdb", {**records, b"keys": pickle.dumps([x.encode() for x in NAMES])})


def packed(value: Any) -> bytes:
    """Text or a number in msgpack, byte by byte."""
    if isinstance(value, str):
        return b"\xd9" + bytes([len(value.encode())]) + value.encode()
    return b"\xce" + struct.pack(">L", value) if isinstance(value, int) else msgpack_array(value)


def tensorpack(root: Path, volta: bool) -> Path:
    records = {}
    for i, name in enumerate(NAMES):
        a = arrays(i)
        middle = [a["objects"], a["conf"], a["attrs"], a["attr_conf"], a["probs"]] if volta else []
        last = [a["boxes"], len(a["boxes"]), H, W, name, f" picture {name[-2:]} "]
        values = [a["features"], a["probs"], *middle, *last]
        records[f"{i:08}".encode()] = bytes([0x90 | len(values)]) + b"".join(map(packed, values))
    listed = b"\x93" + b"".join(b"\xc4\x08" + x for x in records)
    return put(root / "training_feat_all.lmdb", {**records, b"__keys__": listed})


MORE: dict[str, Maker] = {
    "butd-probs": (butd_probs, {"probs", "attributes", "attribute_scores"}),
    "butd-parts": (parts, set()),
    "lxmert-gzip": (gzipped, EVERYTHING - {"probs"}),
    "oscar-torch-old": (lambda root: oscar_torch(root, False), set()),
    "oscar-torch-zip": (lambda root: oscar_torch(root, True), set()),
    "oscar-npy": (oscar_npy, set()),
    "torch-dicts": (torch_dicts, set()),
    "vl_bert-folder": (vl_bert_folder, {"probs"}),
    "vl_bert-zip": (vl_bert_zip, {"probs"}),
    "volta-text": (volta_text, EVERYTHING - {"probs"}),
    "tensorpack": (lambda root: tensorpack(root, False), {"probs"}),
    "tensorpack-volta": (lambda root: tensorpack(root, True), EVERYTHING),
}
NO_SIZE = {"uniter", "uniter-npz", "vlp", "oscar-torch-old", "oscar-torch-zip", "oscar-npy"}
"""Layouts that do not say how large pictures are."""
