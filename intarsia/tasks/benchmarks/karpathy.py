"""Flickr30k and COCO captions in Karpathy's files. Data: Young et al. 2014, Lin et al. 2014, Karpathy and Fei-Fei 2015."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import Annotations, Item, at, each, find_file, read_json

SPLITS = ("train", "val", "test")
FIRST = 5
"""Captions of a picture that are kept, as in the classic code; some pictures of COCO have six or seven."""


def _read(name: str, root: Path, split: str) -> Annotations:
    """`dataset_NAME.json`; an item a caption, with the picture's other captions beside. COCO's restval is training."""
    first = None if name == ALL else FIRST
    if split not in SPLITS:
        raise BadInput(f"{name}: no split {split!r} (it has {', '.join(SPLITS)})")
    path = find_file(root, f"dataset_{name.removesuffix('-all')}.json")
    items, gold = [], {}
    for x in each(read_json(path), "images", str(path)):
        where = f"{path}: picture {x.get('imgid')}"
        if ("train" if at(x, "split", where) == "restval" else x["split"]) != split:
            continue
        picture, number = str(at(x, "filename", where)), at(x, "imgid", where)
        said = [str(at(s, "raw", where)).strip() for s in each(x, "sentences", where)][:first]
        for i, text in enumerate(said):
            key, also = f"{number}#{i}", tuple(said[:i] + said[i + 1 :])
            items.append(Item(key, (text,), (picture,), also=also))
            gold[key] = picture
    return Annotations(name, split, tuple(items), gold)


ALL = "coco-all"
"""COCO with all captions of a picture, as UNITER ranks them: 25,010 in the test."""
READERS = {name: partial(_read, name) for name in ("flickr30k", "coco", "flickr8k", ALL)}
