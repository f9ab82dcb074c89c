"""Emoji with their labels as cut-outs with captions, complete in English and Chinese; `stamps.compose` makes a data folder of them.

Pictures are Google's (Noto) of the npm package emoji-datasource-google, labels those of emojibase-data. What shows no thing is left out: symbols, flags,
and the parts that other emoji are made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intarsia.data.stamps import Stamp
from intarsia.errors import BadInput

GROUPS = {
    0: "smileys",
    1: "people",
    3: "nature",
    4: "food",
    5: "places",
    6: "activities",
    7: "objects",
}
"""Groups of emojibase that are read, by number."""
NOTICE = "Pictures in this folder are made of emoji of emoji-datasource-google (npm, MIT; pictures: Noto), captions are labels of emojibase-data (npm, MIT).\n"
PUNCTUATION = set(',.!?:;，。！？：；“”"()（）')


def read_emoji(root: str | Path, languages: Sequence[str] = ("en", "zh")) -> list[Stamp]:
    """The emoji that show things, by name; variants of skin are left out.

    Args:
        root: folder with `pictures/HEXCODE.png` and `labels-LANGUAGE.json`, as `intarsia data fetch emoji` makes it.
        languages: of the captions.

    Raises:
        BadInput: no labels of a language, a file of labels that is damaged, or no picture of any.
    """
    root = Path(root)
    labels = {language: _labels(root / f"labels-{language}.json") for language in languages}
    found: list[Stamp] = []
    for code, entry in sorted(labels[languages[0]].items()):
        group = GROUPS.get(entry.get("group", -1))
        file = next((x for x in _files(root / "pictures", code) if x.is_file()), None)
        if group is None or file is None:
            continue
        captions = {language: known[code]["label"] for language, known in labels.items() if code in known}
        phrases = {language: label for language, label in captions.items() if not set(label) & PUNCTUATION}
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        found.append(Stamp(f"{group}/{code.lower()}", file, captions, phrases, digest))
    if not found:
        raise BadInput(f"{root}: no picture of an emoji in it (pictures/HEXCODE.png)")
    return found


def _files(folder: Path, code: str) -> list[Path]:
    """Names that a picture may have: some codes end in the mark of colour, some do not."""
    return [folder / f"{code.lower()}{mark}.png" for mark in ("", "-fe0f")]


def _labels(path: Path) -> dict[str, dict[str, Any]]:
    """Hexcode -> what the file says of it."""
    try:
        return {entry["hexcode"]: entry for entry in json.loads(path.read_text(encoding="utf-8")) if entry["label"]}
    except OSError:
        raise BadInput(f"{path}: no such labels; run `intarsia data fetch emoji`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: not emojibase's labels: {error}") from None
