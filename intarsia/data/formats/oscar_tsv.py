"""Oscar's and VinVL's TSV with .lineidx: features with their six geometry numbers behind them, labels in a file of their own.

`X.feature.tsv`: key, JSON {"num_boxes", "features": base64}; retrieval's `features.tsv`: key, num_boxes, .., base64 in the
last column. `X.label.tsv`: key, JSON list of {"class", "rect", "conf"}; `predictions.tsv`: the same list, bare or under
"objects" beside image_h and image_w. A .yaml names feature, label, caption (and hw) files relative to itself.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Picture
from intarsia.data.formats.files import write_whole
from intarsia.data.formats.line_index import IndexedLines
from intarsia.data.formats.lines import parse_json
from intarsia.data.formats.store import Array, RegionStore, decode_array, in_pixels, make_picture, whole_number
from intarsia.errors import BadInput, needs_extra

GEOMETRY = 6


class OscarTsv(RegionStore):
    """Oscar's or VinVL's features as a store; `Picture.tags` are the classes of the label file, of its annotated objects (`gt_objects`) where it has them.

    Args:
        path: the .feature.tsv, a features.tsv, or a .yaml.
        width: F, numbers a region without the geometry.
        labels: the file of labels; None = the one beside, or that of the .yaml.

    Raises:
        BadInput: no such file, a .yaml without feature, or label lines that are of other pictures.
    """

    kind = "Oscar / VinVL TSV"

    def __init__(self, path: str | Path, width: int = 2048, labels: Path | None = None) -> None:
        self.path, self.width = Path(path), width
        labels = labels or _beside(self.path)
        features, captions, sizes = self.path, None, _other_kind(self.path, "hw")
        if self.path.suffix in (".yaml", ".yml"):
            named = {x: self.path.parent / y for x, y in read_yaml(self.path).items() if isinstance(y, str)}
            features, labels, captions, sizes = (named.get(x) for x in ("feature", "label", "caption", "hw"))  # type: ignore[assignment]
            if features is None:
                raise BadInput(f"{path}: names no feature file")
        self.lines = IndexedLines(features)
        self.names = [self.lines.first_column(i) for i in range(len(self.lines))]
        places = {name: i for i, name in enumerate(self.names)}
        self.labels, self._label_at = _other(labels, places)
        self.size_lines, self._size_at = _other(sizes, places)
        self._captions = _captions(captions) if captions else {}

    def said(self, number: int) -> list[dict[str, Any]]:
        """The captions of a .yaml's caption file."""
        found = self._captions.get(self.names[number], ())
        return [{"captions": list(found)}] if found else []

    def tags(self, number: int) -> tuple[str, ...]:
        """The classes of a picture's labels."""
        return _classes(self._labelled(number, self.where(number))[2])

    def picture(self, number: int) -> Picture:
        """A line as a picture."""
        name, where, cells = self.names[number], self.where(number), self.lines[number].split(b"\t")
        if len(cells) > 1 and cells[1][:1] == b"{":
            record = parse_json(cells[1], where)
            rows, text = record.get("num_boxes"), record.get("features")
        elif len(cells) >= 3:
            rows, text = cells[1], cells[-1]
        else:
            raise BadInput(f"{where}: {len(cells)} columns; expected a JSON object in the second, or three or more")
        count = whole_number(rows, f"{where}: num_boxes")
        features, boxes = self._rows(text, count, where)
        size, objects, tagged = self._labelled(number, where)
        extras: dict[str, Any] = {}
        if objects and len(objects) == count:
            try:
                extras["scores"] = (
                    np.array([float(x["conf"]) for x in objects], np.float32) if "conf" in objects[0] else None
                )
            except (KeyError, TypeError, ValueError):
                raise BadInput(
                    f"{where}: an object of {self.labels.path if self.labels else ''} has no usable conf"
                ) from None
        picture = make_picture(name, where, features, boxes, size, pixels=False, **extras)
        tags = _classes(tagged)
        return replace(picture, tags=tags) if tags else picture

    def _rows(self, text: Any, count: int, where: str) -> tuple[Array, Array]:
        raw = decode_array(text, np.uint8, f"{where}: features")
        wide = self.width + GEOMETRY
        kinds = {wide * 4: np.float32, wide * 2: np.float16}
        share = len(raw) / count if count else 0
        if count and share not in kinds:
            raise BadInput(
                f"{where}: {len(raw)} bytes of features for {count} boxes; expected {wide} numbers a box, float32 or float16"
            )
        table = raw.view(kinds[int(share)]).reshape(count, wide) if count else np.zeros((0, wide), np.float32)
        return table[:, : self.width], table[:, self.width : self.width + 4]

    def _labelled(self, number: int, where: str) -> tuple[tuple[int, int], list[Any], list[Any]]:
        """Width and height, the detected objects, and those whose classes are the tags."""
        size, objects, tagged = self.size_of(self.names[number]), [], None
        if self.labels and number in self._label_at:
            found = read_json_cell(self.labels, self._label_at[number])
            if isinstance(found, dict):
                size = (
                    whole_number(found.get("image_w", 0), f"{where}: image_w"),
                    whole_number(found.get("image_h", 0), f"{where}: image_h"),
                )
                found, tagged = found.get("objects", []), found.get("gt_objects")
            objects = found
        if self.size_lines and number in self._size_at:
            found = read_json_cell(self.size_lines, self._size_at[number])
            found = found[0] if isinstance(found, list) and len(found) == 1 else found
            high, wide = (found.get("height"), found.get("width")) if isinstance(found, dict) else found
            size = whole_number(wide, f"{where}: width"), whole_number(high, f"{where}: height")
        tagged = objects if tagged is None else tagged
        if not isinstance(objects, list) or not isinstance(tagged, list):
            raise BadInput(f"{where}: its labels are no list")
        return size, objects, tagged


def _classes(objects: list[Any]) -> tuple[str, ...]:
    return tuple(str(x["class"]) for x in objects if isinstance(x, dict) and x.get("class"))


def _beside(path: Path) -> Path | None:
    """The labels of a feature file."""
    other = path.with_name("predictions.tsv")
    return _other_kind(path, "label") or (other if other != path and other.is_file() else None)


def _other_kind(path: Path, kind: str) -> Path | None:
    other = path.with_name(path.name.replace("feature", kind))
    return other if other != path and other.is_file() else None


def _other(path: Path | None, places: dict[str, int]) -> tuple[IndexedLines | None, dict[int, int]]:
    if path is None:
        return None, {}
    lines = IndexedLines(path)
    names = [lines.first_column(i) for i in range(len(lines))]
    found = {places[name]: i for i, name in enumerate(names) if name in places}
    if not found:
        raise BadInput(f"{path}: none of its {len(names)} keys is a picture of the feature file")
    return lines, found


def read_json_cell(lines: IndexedLines, number: int) -> Any:
    """The JSON in the second column of a line.

    Raises:
        BadInput: there is none.
    """
    try:
        return json.loads(lines[number].split(b"\t", 1)[1])
    except (ValueError, IndexError):
        raise BadInput(f"{lines.path}, line {number + 1}: its second column is not JSON") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A .yaml that is a map, read without making anything but plain values.

    Raises:
        BadInput: cannot be read, or no map.
    """
    try:
        import yaml
    except ImportError:
        raise needs_extra("formats", "pyyaml") from None
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    if not isinstance(tree, dict):
        raise BadInput(f"{path}: not a map of file names")
    return tree


def _captions(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        listed: dict[str, list[str]] = {}
        for item in json.loads(path.read_bytes()):
            listed.setdefault(str(item["image_id"]), []).append(str(item["caption"]))
        return {name: tuple(texts) for name, texts in listed.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: not a list of image_id and caption: {error}") from None


def oscar_lines(picture: Picture) -> tuple[bytes, bytes, bytes]:
    """A picture as a line of a feature file, one of a label file and one of a file of sizes.

    Raises:
        BadInput: its name cannot stand in a TSV, or its size is not known.
    """
    if not picture.name or "\t" in picture.name or "\n" in picture.name:
        raise BadInput(f"picture {picture.name!r}: such a name cannot stand in a TSV")
    boxes, pixels = picture.boxes, in_pixels(picture)
    table = np.concatenate([picture.features, boxes, boxes[:, 2:] - boxes[:, :2]], 1, dtype=np.float32)
    record = {"num_boxes": len(boxes), "features": b64encode(table.tobytes()).decode()}
    named = picture.tags if len(picture.tags) == len(boxes) else [""] * len(boxes)
    conf = np.ones(len(boxes)) if picture.scores is None else picture.scores
    labels = [
        {"class": tag, "rect": box, "conf": float(score)}
        for tag, box, score in zip(named, pixels.tolist(), conf, strict=True)
    ]
    size = [{"height": picture.height, "width": picture.width}]
    head, cells = picture.name.encode() + b"\t", (record, labels, size)
    first, second, third = (head + json.dumps(x, ensure_ascii=False).encode() + b"\n" for x in cells)
    return first, second, third


def write_oscar_texts(features: Path, records: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Writes what Oscar's captioning reads beside a feature file: `X.caption.json`, `X.caption_coco_format.json` and, last, `X.yaml`.

    Args:
        features: `X.feature.tsv`, which is there, with its label file.
        records: lines of `pairs.jsonl`; only captions of one picture that the file has can be written.

    Returns:
        How many captions were written, and how many lines were left out.
    """
    stem = features.name.removesuffix(".feature.tsv")
    lines = IndexedLines(features)
    names = {lines.first_column(i) for i in range(len(lines))}
    texts: list[dict[str, Any]] = []
    left_out = 0
    for record in records:
        said = record.get("captions", [record["caption"]] if "caption" in record else [])
        if not isinstance(record["image"], str) or record["image"] not in names or not said:
            left_out += 1
            continue
        for caption in said:
            text = caption if isinstance(caption, str) else caption["text"]
            texts.append({"image_id": record["image"], "id": len(texts), "caption": text})
    images = [{"id": x, "file_name": x} for x in sorted(names)]
    whole = {"annotations": texts, "images": images, "type": "captions", "info": "", "licenses": ""}
    parts = {"feature": features.name, "label": f"{stem}.label.tsv", "hw": f"{stem}.hw.tsv"}
    if texts:
        parts["caption"] = f"{stem}.caption.json"
        plain = [{name: text[name] for name in ("image_id", "caption")} for text in texts]
        for name, content in ((parts["caption"], plain), (f"{stem}.caption_coco_format.json", whole)):
            with write_whole(features.with_name(name)) as temporary:
                temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    with write_whole(features.with_name(f"{stem}.yaml")) as temporary:
        temporary.write_text("".join(f"{name}: {json.dumps(file)}\n" for name, file in parts.items()))
    return len(texts), left_out
