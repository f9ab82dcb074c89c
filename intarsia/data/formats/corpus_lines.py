"""Corpora of pictures and texts in their own files, as the lines of `pairs.jsonl`: names and captions, no pixels.

Each function gives records; `CORPORA` says which files they are known by. What a record lacks (an empty caption, no
picture) is told by the line's own check, with the file and the number of the record.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from intarsia.errors import BadInput

Record = dict[str, Any]
SIDES = {
    "restval": "train",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "training": "train",
    "testing": "test",
}
TOKENS = re.compile(r"(?P<image>[^#\t]+)#(?:(?P<kind>\w+)#)?(?P<number>\d+)\s+(?P<text>.+)")
URL = re.compile(r"https?://\S+")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        BadInput: no such file, or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{path}: not JSON: {error}") from None


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, and their numbers from 1; a byte order mark is left out.

    Raises:
        BadInput: no such file, or a line that is not UTF-8.
    """
    try:
        with open(path, "rb") as handle:
            for number, raw in enumerate(handle, 1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise BadInput(f"{path}, line {number}: not UTF-8 at byte {error.start + 1}") from None
                if line.strip():
                    yield number, line
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None


def coco(path: Path, tree: Any) -> Iterator[Record]:
    """COCO captions and NoCaps; the split is in the name of the file."""
    captions: dict[int, list[str]] = {}
    for item in tree["annotations"]:
        captions.setdefault(item["image_id"], []).append(item["caption"].strip())
    split = next((s for s in ("train", "val", "test") if s in path.stem), "train")
    for image in tree["images"]:
        if image["id"] in captions:
            sides = {x: image[x] for x in ("width", "height") if x in image}
            yield {
                "key": str(image["id"]),
                "image": image["file_name"],
                "captions": captions[image["id"]],
                "split": split,
                **sides,
            }


def karpathy(path: Path, tree: Any) -> Iterator[Record]:
    """Karpathy's `dataset_{coco,flickr30k,flickr8k}.json`; restval counts as train."""
    for image in tree["images"]:
        folder = image.get("filepath", "")
        yield {
            "key": str(image.get("cocoid", image.get("imgid"))),
            "image": f"{folder}/{image['filename']}" if folder else image["filename"],
            "captions": [x["raw"].strip() for x in image["sentences"]],
            "split": SIDES.get(image["split"], image["split"]),
        }


def visual_genome(path: Path, tree: Any) -> Iterator[Record]:
    """Visual Genome's `region_descriptions.json`: a caption a region. Equal ones of one picture are one."""
    for image in tree:
        number = image.get("id", image.get("image_id"))
        if image["regions"]:
            phrases = dict.fromkeys(x["phrase"].strip() for x in image["regions"])
            yield {"key": str(number), "image": f"{number}.jpg", "captions": [x for x in phrases if x]}


def caption_url(path: Path) -> Iterator[Record]:
    """Conceptual Captions (caption, address), CC12M (address, caption) and Wukong (address, caption): which column is which is seen."""
    split = "val" if "alidation" in path.stem else "train"
    separator = "," if path.suffix == ".csv" else "\t"
    for number, cells in _rows(path, separator):
        if number == 1 and not any(URL.fullmatch(x.strip()) for x in cells):
            continue  # a header
        if len(cells) != 2:
            raise BadInput(f"{path}, line {number}: {len(cells)} columns, expected caption and address")
        first = URL.fullmatch(cells[0].strip()) is not None
        if first == (URL.fullmatch(cells[1].strip()) is not None):
            raise BadInput(f"{path}, line {number}: {'both columns are' if first else 'no column is'} an address")
        address, caption = cells if first else cells[::-1]
        yield {"key": str(number), "image": address.strip(), "caption": caption.strip(), "split": split}


def _rows(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    if separator == "\t":  # captions of these files hold quotes that quote nothing
        yield from ((number, line.split("\t")) for number, line in text_lines(path))
        return
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            yield from enumerate(csv.reader(handle), 1)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None


def sbu_lines(path: Path) -> Iterator[Record]:
    """SBU's `.._urls.txt` and `.._captions.txt`, aligned by line."""
    captions = path.with_name(path.name.replace("_urls", "_captions"))
    addresses, texts = (list(text_lines(x)) for x in (path, captions))
    if len(addresses) != len(texts):
        raise BadInput(f"{captions}: {len(texts)} captions for {len(addresses)} addresses of {path.name}")
    for (number, address), (_, text) in zip(addresses, texts, strict=True):
        yield {"key": str(number), "image": address.strip(), "caption": text.strip()}


def sbu(path: Path, tree: Any) -> Iterator[Record]:
    """SBU's JSON of parallel lists."""
    for number, (address, text) in enumerate(zip(tree["image_urls"], tree["captions"], strict=True)):
        yield {"key": str(number), "image": address, "caption": text.strip()}


def tokens(path: Path) -> Iterator[Record]:
    """`image#number TAB caption`: Flickr30k's token file, COCO-CN's captions, Flickr30k-CN's `id#kind#number`.

    COCO-CN and Flickr30k-CN, known by their names, are Chinese ("zh").
    """
    chinese = path.name.startswith(("imageid.", "flickr30kzh")) or "coco-cn" in str(path.parent)
    split = next((s for s in ("train", "val", "test") if f"_{s}" in path.stem), "train")
    held: dict[str, list[str]] = {}
    for number, line in text_lines(path):
        match = TOKENS.fullmatch(line)
        if match is None:
            raise BadInput(f"{path}, line {number}: {line[:60]!r} is not image#number and a caption")
        held.setdefault(match["image"], []).append(match["text"].strip())
    for image, captions in held.items():
        name = image if Path(image).suffix else f"{image}.jpg"
        yield {"key": image, "image": name, "captions": captions, "split": split} | (
            {"language": "zh"} if chinese else {}
        )


def aic_icc(path: Path, tree: Any) -> Iterator[Record]:
    """AIC-ICC; the full stop at the end of a caption and line ends are left out."""
    split = "val" if "validation" in path.stem else "train"
    for item in tree:
        captions = [" ".join(x.split()).rstrip("。") for x in item["caption"]]
        yield {
            "key": item["image_id"],
            "image": item["image_id"],
            "captions": [x for x in captions if x],
            "language": "zh",
            "split": split,
        }


def vilt(path: Path, tree: Any) -> Iterator[Record]:
    """ViLT's `annot.json` of [picture, caption] or [picture, captions]."""
    for number, (image, caption) in enumerate(tree):
        yield {"key": str(number), "image": image, "captions": caption if isinstance(caption, list) else [caption]}


def brivl(path: Path) -> Iterator[Record]:
    """BriVL's lines; the text around the picture (`sur_text`) is its caption."""
    for number, line in text_lines(path):
        try:
            item = json.loads(line)
            found = [text.strip() for kind, text in item["sentences"] if kind == "sur_text" and text.strip()]
            record = {"key": str(number), "image": item["image_id"], "captions": found, "language": "zh"}
            boxes = [[float(x) for x in box] for box in item.get("bbox", [])]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path}, line {number}: not a line of BriVL's: {error!r}") from None
        yield record | ({"boxes": boxes} if boxes else {})


Make = Callable[[Path], Iterable[Record]]


def recognise(path: Path) -> tuple[str, Make] | None:
    """Which corpus a file is of, by its name and its beginning; None = none of these.

    Raises:
        BadInput: a .json that is none.
    """
    match path.suffix:
        case ".json":
            return _by_content(path)
        case ".token":
            return "token file", tokens
        case ".txt" if path.stem.endswith("_urls"):
            return "SBU", sbu_lines
        case ".txt" | ".tsv" | ".csv" | ".jsonl":
            return _by_line(path)
        case _:
            return None


def _by_line(path: Path) -> tuple[str, Make] | None:
    with open(path, "rb") as handle:
        head = handle.readline(1 << 20).decode("utf-8-sig", "replace").strip()
    if path.suffix == ".jsonl":
        return ("BriVL", brivl) if '"sentences"' in head and '"image_id"' in head else None
    if path.suffix == ".txt":
        return ("token file", tokens) if TOKENS.fullmatch(head) else None
    cells = head.split("\t") if path.suffix == ".tsv" else next(csv.reader([head]), [])
    if len(cells) == 2 and (
        any(URL.fullmatch(x.strip()) for x in cells) or {x.strip() for x in cells} == {"url", "caption"}
    ):
        return "captions and addresses", caption_url
    return None


def _by_content(path: Path) -> tuple[str, Make] | None:
    tree = read_json(path)
    kind = _kind(tree)
    if kind is None:
        return None
    name, make = kind

    def records(path: Path) -> Iterator[Record]:
        try:
            yield from make(path, tree)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"{path}: not a whole file of {name}: {error!r}") from None

    return name, records


def _kind(tree: Any) -> tuple[str, Callable[[Path, Any], Iterator[Record]]] | None:
    if isinstance(tree, dict):
        if {"images", "annotations"} <= tree.keys():
            return "COCO captions", coco
        images = tree.get("images")
        if isinstance(images, list) and images and isinstance(images[0], dict) and "sentences" in images[0]:
            return "Karpathy split", karpathy
        return ("SBU", sbu) if {"image_urls", "captions"} <= tree.keys() else None
    first = tree[0] if isinstance(tree, list) and tree else None
    if isinstance(first, dict) and "regions" in first:
        return "Visual Genome regions", visual_genome
    if isinstance(first, dict) and {"image_id", "caption"} <= first.keys() and isinstance(first["caption"], list):
        return "AIC-ICC", aic_icc
    return ("ViLT", vilt) if isinstance(first, list) and len(first) == 2 and isinstance(first[0], str) else None
