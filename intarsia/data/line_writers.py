"""Writers of layouts that are lines of JSON: BriVL's, and VL-BERT's with a JSON of regions a picture."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from intarsia.batch import Picture
from intarsia.data.formats.files import write_whole
from intarsia.data.formats.store import in_pixels
from intarsia.data.formats.vlbert_zip import MEMBER
from intarsia.data.store_writers import StoreWriter
from intarsia.errors import BadInput


class PictureFiles(StoreWriter):
    """A JSON file a picture in a folder beside the lines; lines are written when all are there."""

    def __init__(self, path: Path, ending: str) -> None:
        super().__init__(path)
        self.folder = path.with_name(f"{path.stem}{ending}")
        if self.folder.exists():
            raise BadInput(f"{self.folder}: is already there")
        self.partial = self.folder.with_name(f".{self.folder.name}.partial")
        self.partial.mkdir(exist_ok=True)
        written = (x for x in self.partial.rglob("*.json") if not x.name.startswith("."))
        self.done = {x.relative_to(self.partial).as_posix().removesuffix(".json") for x in written}

    @abstractmethod
    def content(self, picture: Picture) -> dict[str, Any]:
        """What is written of a picture."""

    @abstractmethod
    def line(self, name: str, texts: list[str]) -> Iterable[dict[str, Any]]:
        """The lines of a picture with these captions."""

    def add(self, picture: Picture) -> None:
        """Takes a picture."""
        inside = PurePosixPath(picture.name)
        if not picture.name or inside.is_absolute() or ".." in inside.parts:
            raise BadInput(f"picture {picture.name!r}: such a name cannot be a file's")
        with write_whole(self.partial / f"{picture.name}.json") as temporary:
            temporary.write_text(json.dumps(self.content(picture)))
        self.done.add(picture.name)

    def finish(self) -> None:
        """Gives the folder its real name."""
        os.replace(self.partial, self.folder)

    def close(self) -> None:
        """Nothing is held open."""


class VLBERTWriter(PictureFiles):
    """VL-BERT's regions: `X_frcnn/NAME.json`, to be zipped by `zip -0` or left as it is."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "_frcnn")

    def content(self, picture: Picture) -> dict[str, Any]:
        """Sizes, boxes in pixels, features, and class probabilities where there are any."""
        record = {"image_w": picture.width, "image_h": picture.height, "num_boxes": len(picture.boxes)}
        record |= {"boxes": _b64(in_pixels(picture)), "features": _b64(picture.features)}  # type: ignore[dict-item]
        return record | ({} if picture.probs is None else {"classes": _b64(picture.probs)})

    def line(self, name: str, texts: list[str]) -> Iterable[dict[str, Any]]:
        """A line a caption, its words split by spaces."""
        address = f"{self.folder.name}{MEMBER}{name}.json"
        return ({"image": name, "caption": text.split(), "frcnn": address} for text in texts)


class BriVLWriter(PictureFiles):
    """BriVL's boxes; they are moved into the lines."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "_boxes")

    def content(self, picture: Picture) -> dict[str, Any]:
        """Whole pixels, at least one wide and high."""
        boxes = np.round(in_pixels(picture)).astype(int)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        return {"bbox": boxes.tolist()}

    def line(self, name: str, texts: list[str]) -> Iterable[dict[str, Any]]:
        """A line a picture."""
        boxes = json.loads((self.folder / f"{name}.json").read_bytes())["bbox"]
        return [{"image_id": name, "sentences": [["sur_text", text] for text in texts], "bbox": boxes}]


def write_lines(writer: PictureFiles, records: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Writes the lines of finished pictures, whole or not at all.

    Args:
        writer: has the pictures.
        records: lines of `pairs.jsonl`; only captions of one picture that is there can be written.

    Returns:
        How many captions were written, and how many lines of the source were left out.
    """
    written = left_out = 0
    with write_whole(writer.path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        for record in records:
            said = record.get("captions", [record["caption"]] if "caption" in record else [])
            if not isinstance(record["image"], str) or record["image"] not in writer.done or not said:
                left_out += 1
                continue
            texts = [x if isinstance(x, str) else x["text"] for x in said]
            for line in writer.line(record["image"], texts):
                handle.write(json.dumps(line, ensure_ascii=False) + "\n")
            written += len(texts)
    return written, left_out


def _b64(array: Any) -> str:
    return b64encode(np.ascontiguousarray(array, np.float32).tobytes()).decode()
