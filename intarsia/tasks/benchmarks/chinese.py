"""Chinese captions as published: COCO-CN, AIC-ICC, MUGE (and others of Chinese-CLIP's layout), Flickr30k-CN."""

from __future__ import annotations

import re
from pathlib import Path

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import Annotations, Item, at, find_file, of_split, read_json, read_lines

_FLICKR = re.compile(r"(\d+)(?:\.jpg)?#(\w+)?#?(\d+)\s+(.*)")


def _lines(path: Path) -> list[str]:
    try:
        return [x for x in path.read_text(encoding="utf-8-sig").splitlines() if x.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None


def _captions(name: str, split: str, said: dict[str, list[str]]) -> Annotations:
    items = [
        Item(f"{picture}#{i}", (text,), (picture,), also=tuple(texts[:i] + texts[i + 1 :]), language="zh")
        for picture, texts in said.items()
        for i, text in enumerate(texts)
    ]
    return Annotations(name, split, tuple(items), {x.key: x.pictures[0] for x in items})


def coco_cn(root: Path, split: str) -> Annotations:
    """`coco-cn_SPLIT.txt` with picture ids and `imageid.human-written-caption.txt`, `ID#number TAB sentence`."""
    ids = set(
        _lines(find_file(root, f"coco-cn_{of_split({x: x for x in ('train', 'val', 'test')}, split, 'coco-cn')}.txt"))
    )
    path = find_file(root, "imageid.human-written-caption.txt")
    said: dict[str, list[str]] = {}
    for number, line in enumerate(_lines(path), start=1):
        key, tab, text = line.partition("\t")
        picture = key.partition("#")[0]
        if not tab:
            raise BadInput(f"{path}: line {number}: {line[:60]!r} is not ID#number TAB sentence")
        if picture in ids:
            said.setdefault(picture, []).append(text.strip())
    return _captions("coco-cn", split, said)


def aic_icc(root: Path, split: str) -> Annotations:
    """`caption_SPLIT_annotations_DATE.json`, five captions a picture; the full stop at the end goes."""
    part = of_split({"train": "train", "val": "validation"}, split, "aic-icc")
    path = find_file(root, f"caption_{part}_annotations_*.json")
    said = {
        str(at(x, "image_id", str(path))): [
            y.replace("\n", "").strip().rstrip("。") for y in at(x, "caption", str(path)) if y.strip()
        ]
        for x in read_json(path)
    }
    return _captions("aic-icc", split, said)


def muge(root: Path, split: str) -> Annotations:
    """`SPLIT_texts.jsonl`: a text and the pictures that fit it; an item each of them. Lines without pictures are the test's."""
    part = of_split({"train": "train", "val": "valid"}, split, "muge")
    path = find_file(root, f"{part}_texts.jsonl", f"MR_{part}_queries.jsonl")
    items, gold = [], {}
    for where, x in read_lines(path):
        key, text = str(x.get("text_id", x.get("query_id"))), str(x.get("text", x.get("query_text")))
        ids = [str(i) for i in (x.get("image_ids") or x.get("item_ids") or ())]
        if not ids:
            raise BadInput(f"{where}: has no image_ids")
        for i in ids:
            items.append(Item(f"{key}#{i}", (text,), (i,), language="zh"))
            gold[f"{key}#{i}"] = i
    return Annotations("muge", split, tuple(items), gold)


def flickr30k_cn(root: Path, split: str) -> Annotations:
    """`flickr30k_cn` files of `ID#enc#number TAB sentence`: translated by machine for training and validation, by people for the test."""
    part = of_split({"train": "train", "val": "val", "test": "test"}, split, "flickr30k-cn")
    who = "m" if split == "test" else "b"
    path = find_file(root, f"flickr30kzh{who}_{part}.caption.txt", f"flickr30kzh{who}_{part}.txt")
    said: dict[str, list[str]] = {}
    for number, line in enumerate(_lines(path), start=1):
        match = _FLICKR.fullmatch(line.strip())
        if match is None:
            raise BadInput(f"{path}: line {number}: {line[:60]!r} is not ID#enc#number TAB sentence")
        said.setdefault(f"{match[1]}.jpg", []).append(match[4])
    return _captions("flickr30k-cn", split, said)
