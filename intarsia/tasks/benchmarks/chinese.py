"""Chinese captions as published: COCO-CN, AIC-ICC, MUGE (and others of Chinese-CLIP's layout), Flickr30k-CN; MUGE's products, to be written about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import (
    Annotations,
    Item,
    at,
    find_file,
    objects_of,
    of_split,
    read_json,
    read_lines,
)
from intarsia.tasks.benchmarks.table import Lists
from intarsia.tasks.metrics import ranking, submissions

MUGE = {"train": "train", "val": "valid", "test": "test"}
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


def aic_icc_captions(root: Path, split: str) -> Annotations:
    """The same files, captions to be written."""
    whole = aic_icc(root, split)
    said = {x.pictures[0]: ((*x.texts, *x.also), "") for x in whole.items if x.key.endswith("#0")}
    return replace(whole, benchmark="aic-icc-captions", gold=said)


def aic_icc(root: Path, split: str) -> Annotations:
    """`caption_SPLIT_annotations_DATE.json`, five captions a picture; the full stop at the end goes."""
    part = of_split({"train": "train", "val": "validation"}, split, "aic-icc")
    path = find_file(root, f"caption_{part}_annotations_*.json")
    said = {
        str(at(x, "image_id", str(path))): [
            y.replace("\n", "").strip().rstrip("。")
            for y in map(str, at(x, "caption", f"{path}: {x.get('image_id')}", list))
            if y.strip()
        ]
        for x in objects_of(read_json(path), str(path))
    }
    return _captions("aic-icc", split, said)


def muge(root: Path, split: str) -> Annotations:
    """`SPLIT_texts.jsonl`: a text and the pictures that fit it, an item each of them; the test's lines name none, and are an item each.

    Gold is by text, its pictures. Candidates are the pictures of `SPLIT_imgs.tsv` (id, tab, base64), where it is there.
    """
    part = of_split(MUGE, split, "muge")
    path = find_file(root, f"{part}_texts.jsonl", f"MR_{part}_queries.jsonl")
    items, gold = [], dict[str, tuple[str, ...]]()
    for where, x in read_lines(path):
        key, text = str(x.get("text_id", x.get("query_id"))), str(x.get("text", x.get("query_text")))
        ids = tuple(str(i) for i in (x.get("image_ids") or x.get("item_ids") or ()))
        if not ids and split != "test":
            raise BadInput(f"{where}: has no image_ids")
        gold |= {key: ids} if ids else {}
        items += [Item(f"{key}#{i}", (text,), (i,), language="zh") for i in ids]
        items += [] if ids else [Item(key, (text,), (), language="zh")]
    if gold and len(gold) < len({text_of(x.key) for x in items}):
        raise BadInput(f"{path}: some texts have image_ids, others have none")
    return Annotations("muge", split, tuple(items), gold, candidates=_pool(root, part))


def _pool(root: Path, part: str) -> tuple[str, ...]:
    """The ids of the pictures of a split; none if their file is not there."""
    found = sorted(x for name in (f"{part}_imgs.tsv", f"MR_{part}_imgs.tsv") for x in root.rglob(name))
    return _ids(found[0]) if found else ()


def _ids(path: Path) -> tuple[str, ...]:
    ids = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            key, tab, _ = line.partition("\t")
            if not tab or not key:
                raise BadInput(f"{path}: line {number}: {line[:40]!r} is not id TAB picture")
            ids.append(key)
    return tuple(dict.fromkeys(ids))


def text_of(key: str) -> str:
    """The text of an item, or where texts are written the picture, by the name that MUGE knows it by."""
    return key.partition("#")[0]


def measure_muge(annotations: Annotations, lists: Lists) -> dict[str, float]:
    """R@1, R@5, R@10 and their mean."""
    found = ranking.muge(
        {int(key): [int(i) for i in ids] for key, ids in lists.items()},
        {int(key): [int(i) for i in annotations.gold[key]] for key in lists},
    )
    return {"mean recall": found.pop("mean"), **{f"image R@{k}": found[f"R{k}"] for k in ranking.CUTS}}


def submit_muge(path: Path, annotations: Annotations, lists: Lists) -> None:
    """The ten best pictures of each text, a line each.

    Raises:
        BadInput: a text has none.
    """
    wanted = dict.fromkeys(text_of(x.key) for x in annotations.items)
    if lacking := [x for x in wanted if x not in lists]:
        raise BadInput(f"{path}: the server wants every text of {annotations.split}: {len(lacking)} have no pictures")
    submissions.write_muge(path, {int(key): [int(i) for i in lists[key]] for key in wanted})


def muge_captions(root: Path, split: str) -> Annotations:
    """MUGE's ECommerce-IC: `IC_SPLIT.jsonl`, a picture and its texts a line; the test's lines, or those of `IC_test.tsv`, have none. Captions to be written."""
    part = of_split(MUGE, split, "muge-captions")
    said: dict[str, tuple[str, ...]] = {}
    if split == "test" and not any(root.rglob(f"IC_{part}.jsonl")):
        said = dict.fromkeys(_ids(find_file(root, f"IC_{part}.tsv")), ())
    else:
        for where, x in read_lines(find_file(root, f"IC_{part}.jsonl")):
            picture, texts = str(at(x, "image_id", where)), x.get("text") or ()
            if picture in said:
                raise BadInput(f"{where}: image_id {picture!r} stands there twice")
            if not texts and split != "test":
                raise BadInput(f"{where}: image {picture} has no text")
            said[picture] = tuple(y.strip() for y in ([texts] if isinstance(texts, str) else texts))
    items = [
        Item(f"{picture}#{i}", (text,), (picture,), also=texts[:i] + texts[i + 1 :], language="zh")
        for picture, texts in said.items()
        for i, text in enumerate(texts or ("",))
    ]
    gold = {picture: (texts, "") for picture, texts in said.items() if texts}
    return Annotations("muge-captions", split, tuple(items), gold)


def submit_muge_captions(path: Path, annotations: Annotations, written: Mapping[str, str]) -> None:
    """The text of each picture, a line each.

    Raises:
        BadInput: a picture has none.
    """
    wanted = dict.fromkeys(text_of(x.key) for x in annotations.items)
    if lacking := [x for x in wanted if x not in written]:
        raise BadInput(f"{path}: the server wants every picture of {annotations.split}: {len(lacking)} have no text")
    submissions.write_muge_captions(path, {x: written[x] for x in wanted})


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
