"""The same picture under the names that different projects give it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from intarsia.errors import BadInput

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".npz", ".npy", ".gif", ".bmp", ".json"}
NUMBERED = re.compile(
    r"(?:(?:visual_grounding_(?:det_)?)?(?:coco|vg|cc|flickr30k)_(?:[a-z]+\d*_)?)?0*(\d+)", re.IGNORECASE
)


def picture_key(name: str) -> str:
    """What the names of one picture have in common: "COCO_val2014_000000000042.jpg", "coco_val2014_000000000042.npz", "42" give "42".

    Names of other kinds give their base without the suffix of a picture or of features.
    """
    base = PurePosixPath(name).name
    stem = PurePosixPath(base)
    while stem.suffix.lower() in SUFFIXES:
        stem = stem.with_suffix("")
    match = NUMBERED.fullmatch(stem.name)
    return match[1] if match else stem.name


def by_key(names: Iterable[str], where: str) -> dict[str, str]:
    """Names by what they have in common with other projects' names.

    Raises:
        BadInput: two of them cannot be told apart.
    """
    found: dict[str, str] = {}
    for name in names:
        before = found.setdefault(picture_key(name), name)
        if before != name:
            raise BadInput(f"{where}: pictures {before} and {name} cannot be told apart by their names")
    return found
