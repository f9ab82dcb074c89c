"""A world written to disk as a folder of pictures and pairs, the form in which people bring their own data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput
from intarsia.worlds.captions import Phrase, write, write_phrase
from intarsia.worlds.source import CLASSES, WorldSource

_SPLITS = {"train": "train", "validation": "val", "test": "test", "held_out": "test"}


def write_folder(source: WorldSource, directory: str | Path, count: int | None = None) -> Path:
    """Writes scenes as images/*.png and pairs.jsonl; the latter appears last, when all pictures are there.

    One line a scene and language: key, image, captions (text and language), boxes in pixels, labels (name of the class
    of each box), tags (the objects' names), links (caption, start, end, box), false_captions, split ("train", "val" or
    "test"; held-out scenes are "test").

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
    lines = []
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = f"images/{source.key(index)}.png"
            with write_whole(folder / image) as part:
                Image.fromarray(source.image(index)).save(part, "PNG")
            for language in source.config.languages:
                lines.append(json.dumps(_record(source, index, image, language), ensure_ascii=False) + "\n")
        with write_whole(folder / "pairs.jsonl") as part:
            part.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{directory}: {error}") from None
    return folder / "pairs.jsonl"


def _record(source: WorldSource, index: int, image: str, language: str) -> dict[str, Any]:
    sample, caption = source[index], source.caption(index)
    picture, written, side = sample.pictures[0], write(caption, language), source.config.side
    labels = [] if picture.labels is None else picture.labels.tolist()
    return {
        "key": sample.key if len(source.config.languages) == 1 else f"{sample.key}-{language}",
        "image": image,
        "captions": [{"text": written.text, "language": language}],
        "boxes": [[round(v * side, 3) for v in box] for box in picture.boxes.tolist()],
        "labels": [CLASSES[i] for i in labels],
        "tags": [write_phrase(Phrase(shape=i - 1), language) for i in labels if i],
        "links": [[0, *span, link.region] for span, link in zip(written.spans, sample.links, strict=False)],
        "false_captions": [write(x, language).text for x in source.false_captions(index)],
        "split": _SPLITS[source.split],
    }
