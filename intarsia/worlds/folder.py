"""A world written to disk as a folder of pictures and pairs, the form in which people bring their own data."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

from intarsia.errors import BadInput
from intarsia.worlds.captions import write
from intarsia.worlds.source import CLASSES, WorldSource


def write_folder(source: WorldSource, directory: str | Path, count: int | None = None) -> Path:
    """Writes scenes as images/*.png and pairs.jsonl; the latter appears last, when all pictures are there.

    One line a scene: key, image, captions (text and language, one per language of the world), boxes in pixels, labels (name of the class of each box),
    links (caption, start, end, box), false_captions (in the sample's own language), split.

    Args:
        source: a world of level 1.
        directory: made when missing; files of the same names are replaced.
        count: how many scenes, from the first; None = all.

    Returns:
        The path of pairs.jsonl.

    Raises:
        BadInput: the world has no pictures or fewer scenes, or the folder cannot be written.
    """
    count = len(source) if count is None else count
    if source.config.level == 0 or not 0 <= count <= len(source):
        raise BadInput(f"{directory}: cannot write {count} of {len(source)} scenes of level {source.config.level}")
    folder = Path(directory)
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        lines = []
        for index in range(count):
            image = f"images/{source.key(index)}.png"
            png = io.BytesIO()
            Image.fromarray(source.image(index)).save(png, "PNG")
            _store(folder / image, png.getvalue())
            lines.append(json.dumps(_record(source, index, image), ensure_ascii=False) + "\n")
        _store(folder / "pairs.jsonl", "".join(lines).encode())
    except OSError as error:
        raise BadInput(f"{directory}: {error}") from None
    return folder / "pairs.jsonl"


def _record(source: WorldSource, index: int, image: str) -> dict[str, Any]:
    sample = source[index]
    picture, side = sample.pictures[0], source.config.side
    first = source.language(index)
    languages = (first, *(x for x in source.config.languages if x != first))
    written = [write(source.caption(index), x) for x in languages]
    regions = [link.region for link in sample.links]
    return {
        "key": sample.key,
        "image": image,
        "captions": [{"text": w.text, "language": x} for w, x in zip(written, languages, strict=True)],
        "boxes": [[round(v * side, 3) for v in box] for box in picture.boxes.tolist()],
        "labels": [CLASSES[i] for i in picture.labels] if picture.labels is not None else [],
        "links": [
            [number, start, end, region]
            for number, w in enumerate(written)
            for (start, end), region in zip(w.spans[: len(regions)], regions, strict=True)
        ],
        "false_captions": list(sample.false_texts),
        "split": source.split,
    }


def _store(path: Path, data: bytes) -> None:
    """Writes a file under another name, then renames it."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
