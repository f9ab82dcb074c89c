"""Files of boxes as the lines of `pairs.jsonl`: what `intarsia extract --boxes given` describes. Known by their names.

COCO's `instances_*.json` (and refer's `instances.json`), Visual Genome's `objects.json` and `attributes.json`, GQA's `*_sceneGraphs.json` and MAttNet's
`*_dets.json`: a line a picture, its caption the names of its objects. Visual Genome's `region_descriptions.json` with `image_data.json` beside it: phrases,
each linked to its region; its `relationships.json` and `scene_graphs.json`: phrases whose ends are linked. Boxes are clipped to the picture; those without
area are left out, and their lines counted under ".boxes without area". Pictures without objects give no line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from intarsia.data.formats.corpus_lines import read_json, text_lines, tokens
from intarsia.data.formats.question_lines import split_of
from intarsia.data.formats.records import Record
from intarsia.errors import BadInput

Named = tuple[str, list[float]]
"""Name, and x, y, wide, high in pixels."""
LOST = ".boxes without area"


def record_of(
    key: Any, image: str, size: tuple[int, int], objects: Iterable[Named], split: str = "train"
) -> Record | None:
    """The line of a picture with these objects; None without any."""
    kept, lost = [], 0
    for name, box in objects:
        corners = clipped(box, size)
        if corners:
            kept.append((name, corners))
        else:
            lost += 1
    if not kept:
        return None
    names = ", ".join(dict.fromkeys(name for name, _ in kept))
    record: Record = {"key": str(key), "image": image, "caption": names, "labels": [x for x, _ in kept], "split": split}
    record |= {"boxes": [x for _, x in kept]} | ({LOST: ""} if lost else {})
    return record | ({"width": size[0], "height": size[1]} if all(size) else {})


def clipped(box: list[float], size: tuple[int, int]) -> list[float] | None:
    """x, y, wide, high as corners inside the picture (where its size is known, not 0); None without area."""
    x, y, wide, high = (float(v) for v in box)
    limits = tuple(side or float("inf") for side in size)
    low, end = (max(x, 0.0), max(y, 0.0)), (min(x + wide, limits[0]), min(y + high, limits[1]))
    return [*low, *end] if end[0] > low[0] and end[1] > low[1] else None


def instances(path: Path) -> Iterator[Record]:
    """COCO's instances."""
    tree = read_json(path)
    names = {x["id"]: x["name"] for x in tree["categories"]}
    boxes: dict[int, list[Named]] = {}
    for x in tree["annotations"]:
        boxes.setdefault(x["image_id"], []).append((names[x["category_id"]], x["bbox"]))
    for x in tree["images"]:
        size = (x.get("width", 0), x.get("height", 0))
        record = record_of(x["id"], x["file_name"], size, boxes.get(x["id"], ()), split_of(path))
        if record:
            yield record


def _sizes(path: Path) -> dict[int, tuple[int, int]]:
    """Sizes of Visual Genome's pictures, from `image_data.json` beside; empty without it."""
    about = path.with_name("image_data.json")
    found = read_json(about) if about.is_file() else []
    return {x.get("image_id", x.get("id")): (x["width"], x["height"]) for x in found}


def genome_objects(path: Path) -> Iterator[Record]:
    """Visual Genome's objects, or attributes, whose words come before the name."""
    sizes = _sizes(path)
    for x in read_json(path):
        number = x["image_id"]
        things = (
            (" ".join([*(y.get("attributes") or ()), y["names"][0]]), [y["x"], y["y"], y["w"], y["h"]])
            for y in x.get("objects", x.get("attributes", ()))
        )
        record = record_of(number, f"{number}.jpg", sizes.get(number, (0, 0)), things)
        if record:
            yield record


def genome_regions(path: Path) -> Iterator[Record]:
    """Visual Genome's phrases, each linked to its region; equal ones of a picture are one, with several links."""
    sizes = _sizes(path)
    for x in read_json(path):
        number = x.get("id", x.get("image_id"))
        phrases: dict[str, int] = {}
        boxes, links, lost = list[list[float]](), list[list[int]](), 0
        for y in x["regions"]:
            text = y["phrase"].strip()
            corners = clipped([y[z] for z in ("x", "y", "width", "height")], sizes.get(number, (0, 0)))
            if not text:
                continue
            place = phrases.setdefault(text, len(phrases))
            if corners:
                links.append([place, 0, len(text), len(boxes)])
                boxes.append(corners)
            else:
                lost += 1
        if phrases:
            record: Record = {"key": str(number), "image": f"{number}.jpg", "captions": list(phrases), "boxes": boxes}
            width, height = sizes.get(number, (0, 0))
            yield record | {"links": links, "width": width, "height": height} | ({LOST: ""} if lost else {})


class Relations:
    """The relationships of a picture as phrases, "man riding horse", both names linked to their boxes. Equal phrases are one, and so are equal boxes."""

    def __init__(self) -> None:
        self.phrases: dict[str, int] = {}
        self.boxes: dict[tuple[float, ...], str] = {}
        """Box -> its name."""
        self.links: list[list[int]] = []
        self.lost = 0
        """Names without a box."""

    def add(self, names: tuple[str, str], between: str, boxes: Sequence[Sequence[float] | None]) -> None:
        """A relationship of what has these names; each box xyxy, None if it has no area; fewer boxes than names leave a name without a link."""
        text = f"{names[0]} {between} {names[1]}"
        caption = self.phrases.setdefault(text, len(self.phrases))
        spans = ((0, len(names[0])), (len(text) - len(names[1]), len(text)))
        for name, span, box in zip(names, spans, boxes, strict=False):
            if box is None:
                self.lost += 1
                continue
            self.boxes.setdefault(tuple(box), name)
            link = [caption, *span, list(self.boxes).index(tuple(box))]
            self.links += [link] if link not in self.links else []

    def record(self) -> Record:
        """What a line says of them."""
        found: Record = {"captions": list(self.phrases), "links": self.links, "boxes": [list(x) for x in self.boxes]}
        return found | {"labels": list(self.boxes.values())} | ({LOST: ""} if self.lost else {})


def genome_relationships(path: Path) -> Iterator[Record]:
    """Visual Genome's relationships, or its scene graphs, whose relationships name objects by their numbers."""
    sizes = _sizes(path)
    for x in read_json(path):
        number, size = x["image_id"], sizes.get(x["image_id"], (0, 0))
        objects, found = {y["object_id"]: y for y in x.get("objects", ())}, Relations()
        for y in x["relationships"]:
            ends = [y[z] if z in y else objects[y[f"{z}_id"]] for z in ("subject", "object")]
            names = [str(z["name"] if "name" in z else z["names"][0]).strip() for z in ends]
            boxes = [clipped([z[side] for side in "xywh"], size) for z in ends]
            found.add((names[0], names[1]), y["predicate"].strip().lower(), boxes)
        if found.phrases:
            record = {"key": str(number), "image": f"{number}.jpg", **found.record()}
            yield record | ({"width": size[0], "height": size[1]} if all(size) else {})


def scene_graphs(path: Path) -> Iterator[Record]:
    """GQA's scene graphs: names with their attributes before them."""
    for number, x in read_json(path).items():
        things = (
            (" ".join([*y.get("attributes", ()), y["name"]]), [y[z] for z in "xywh"]) for y in x["objects"].values()
        )
        record = record_of(number, f"{number}.jpg", (x["width"], x["height"]), things, split_of(path))
        if record:
            yield record


def detections(path: Path) -> Iterator[Record]:
    """MAttNet's detections in the pictures of RefCOCO, which are of COCO's train2014."""
    boxes: dict[int, list[Named]] = {}
    for x in read_json(path):
        boxes.setdefault(x["image_id"], []).append((x["category_name"], x["box"]))
    for number, objects in boxes.items():
        record = record_of(number, f"COCO_train2014_{number:012d}.jpg", (0, 0), objects)
        if record:
            yield record


def coco_cn(path: Path) -> Iterator[Record]:
    """COCO-CN's captions, with the splits and the tags by people that lie beside them."""
    parts = {x: path.with_name(f"coco-cn_{x}.txt") for x in ("train", "val", "test")}
    split = {line.strip(): x for x, file in parts.items() if file.is_file() for _, line in text_lines(file)}
    beside = path.with_name("imageid.human-written-tags.txt")
    tags = (
        dict(line.split(maxsplit=1) for _, line in text_lines(beside) if len(line.split()) > 1)
        if beside.is_file()
        else {}
    )
    for record in tokens(path):
        found = tags.get(record["key"], "").split()
        yield record | {"split": split.get(record["key"], record["split"])} | ({"tags": found} if found else {})


KINDS: tuple[tuple[str, str, Callable[[Path], Iterator[Record]]], ...] = (
    (r"instances(_\w+)?\.json", "COCO instances", instances),
    (r"(objects|attributes)\.json", "Visual Genome objects", genome_objects),
    (r"(relationships|scene_graphs)\.json", "Visual Genome relationships", genome_relationships),
    (r"\w*sceneGraphs\.json", "GQA scene graphs", scene_graphs),
    (r"\w+_dets\.json", "MAttNet detections", detections),
    (r"imageid\.[\w-]+-caption\.txt", "COCO-CN", coco_cn),
    (r"region_descriptions\.json", "Visual Genome regions", genome_regions),
)


def by_name(path: Path) -> tuple[str, Callable[[Path], Iterator[Record]]] | None:
    """What a file's name says it is; regions need `image_data.json`, else they are captions alone."""
    for pattern, name, make in KINDS:
        alone = make is genome_regions and not path.with_name("image_data.json").is_file()
        if re.fullmatch(pattern, path.name) and not alone:
            return name, told(name, make)
    return None


def told(name: str, make: Callable[[Path], Iterator[Record]]) -> Callable[[Path], Iterator[Record]]:
    """The same, telling what a file lacks in one line."""

    def records(path: Path) -> Iterator[Record]:
        try:
            yield from make(path)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise BadInput(f"{path}: not a whole file of {name}: {error!r}") from None

    return records
