"""Flickr30k Entities: its files, and recall of phrase grounding. Data: Plummer et al. 2015, BryanPlummer/flickr30k_entities.

    any     a box is right if it overlaps any of the phrase's boxes by half (BAN, VisualBERT, MDETR)
    merged  if it overlaps the one box around them all (older work, MDETR's other column)

The two are never compared. Overlaps are exclusive (`overlap.iou`).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from intarsia.errors import BadInput
from intarsia.tasks.metrics.folding import mean
from intarsia.tasks.metrics.overlap import iou, is_right

Box = tuple[int, int, int, int]
Convention = Literal["any", "merged"]
CUTS: tuple[int | None, ...] = (1, 5, 10, None)
"""Boxes that are looked at; None = all, the best any order could do."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase of a sentence."""

    first_word: int
    words: str
    chain: str
    """What it means; phrases of all sentences of a picture that mean the same share their chain. "0" = nothing to see."""
    types: tuple[str, ...]
    """people, clothing, bodyparts, animals, vehicles, instruments, scene, other, notvisual."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One of a picture's five sentences."""

    text: str
    phrases: tuple[Phrase, ...]


@dataclass(frozen=True, slots=True)
class Annotation:
    """What chains of a picture are where."""

    width: int
    height: int
    depth: int
    boxes: dict[str, tuple[Box, ...]]
    """By chain, x1, y1, x2, y2 in pixels."""
    scene: tuple[str, ...]
    """Chains that are the whole picture."""
    nobox: tuple[str, ...]
    """Chains that are not to be seen."""


_PIECE = re.compile(r"\[/EN#(?P<chain>[^/\]\s]+)(?P<types>(?:/[^/\]\s]+)+)\s+(?P<words>[^\]]*)\]|(?P<word>\S+)")


def read_sentence(line: str, where: str = "sentence") -> Sentence:
    """A line of Sentences/ID.txt.

    Raises:
        BadInput: a bracket does not close or open.
    """
    words: list[str] = []
    phrases = []
    for match in _PIECE.finditer(line):
        if match["word"] is not None:
            if match["word"].startswith("[/EN#"):
                raise BadInput(f"{where}: no phrase at {match['word']!r}")
            words.append(match["word"])
            continue
        mine = match["words"].split()
        kinds = tuple(match["types"].strip("/").split("/"))
        phrases.append(Phrase(len(words), " ".join(mine), match["chain"], kinds))
        words += mine
    return Sentence(" ".join(words), tuple(phrases))


def read_sentences(path: Path) -> tuple[Sentence, ...]:
    """Sentences/ID.txt, one a line.

    Raises:
        BadInput: no such file, or a line cannot be read.
    """
    return tuple(read_sentence(x, str(path)) for x in read_text(path).split("\n") if x.strip())


def read_annotation(path: Path, shift: int = -1) -> Annotation:
    """Annotations/ID.xml.

    Args:
        path: the file.
        shift: added to all coordinates: -1 as in the data set's own reader, 0 as in the common evaluator. Predictions must stand in the same frame.

    Raises:
        BadInput: no such file, not XML, or a field is missing.
    """
    try:
        root = ET.fromstring(read_text(path))
        width, height, depth = (int(_text(root, f"size/{x}", path)) for x in ("width", "height", "depth"))
        boxes: dict[str, list[Box]] = defaultdict(list)
        scene, nobox = [], []
        for thing in root.findall("object"):
            chains = [str(x.text) for x in thing.findall("name")]
            if thing.find("bndbox") is not None:
                x1, y1, x2, y2 = (
                    int(_text(thing, f"bndbox/{x}", path)) + shift for x in ("xmin", "ymin", "xmax", "ymax")
                )
                for chain in chains:
                    boxes[chain].append((x1, y1, x2, y2))
                continue
            scene += chains if int(_text(thing, "scene", path)) else []
            nobox += chains if int(_text(thing, "nobndbox", path)) else []
    except (ET.ParseError, ValueError) as error:
        raise BadInput(f"{path}: {error}") from None
    return Annotation(width, height, depth, {x: tuple(y) for x, y in boxes.items()}, tuple(scene), tuple(nobox))


def _text(element: ET.Element, name: str, path: Path) -> str:
    found = element.findtext(name)
    if found is None:
        raise BadInput(f"{path}: an element has no {name}")
    return found


def read_text(path: Path) -> str:
    """A file of text.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from None


def asked(sentence: Sentence, annotation: Annotation) -> tuple[Phrase, ...]:
    """The phrases that are scored: those whose chain has a box."""
    return tuple(x for x in sentence.phrases if x.chain in annotation.boxes)


@dataclass(frozen=True, slots=True)
class Question:
    """One phrase to be found."""

    boxes: npt.NDArray[np.float64]
    """(G, 4) its boxes."""
    types: tuple[str, ...]


def questions(sentence: Sentence, annotation: Annotation) -> tuple[Question, ...]:
    """What `asked` gives, with the boxes."""
    return tuple(
        Question(np.array(annotation.boxes[x.chain], np.float64), x.types) for x in asked(sentence, annotation)
    )


Recalls = dict[int | None, dict[str, float]]
"""By K, by type and over "all": share of phrases that one of the first K boxes finds."""


def recall(
    gold: Mapping[tuple[str, int], Sequence[Question]],
    predictions: Mapping[tuple[str, int], Sequence[npt.ArrayLike]],
    convention: Convention = "any",
    cuts: Sequence[int | None] = CUTS,
) -> Recalls:
    """Recall at K; a phrase of several types counts once in each and once in all. A phrase without any box is missed.

    Args:
        gold: by picture and sentence number, the phrases that are scored.
        predictions: for each of those phrases, in order, (P, 4) boxes, the best first, x1, y1, x2, y2 in the frame of the gold boxes.
        convention: see the head of this file.
        cuts: Ks, None = all boxes.

    Raises:
        BadInput: a sentence with phrases has no predictions, or another number of them.
    """
    hits: dict[int | None, dict[str, list[bool]]] = {k: defaultdict(list) for k in cuts}
    for key, phrases in gold.items():
        given = predictions.get(key, ())
        if len(given) != len(phrases):
            raise BadInput(f"picture {key[0]}, sentence {key[1]}: {len(phrases)} phrases, predictions for {len(given)}")
        for phrase, boxes in zip(phrases, given, strict=True):
            target = phrase.boxes if convention == "any" else around(phrase.boxes)
            overlaps = iou(np.asarray(boxes, np.float64).reshape(-1, 4), target)  # (P, G)
            found = [bool(x.any()) for x in is_right(overlaps)]
            for k, by_type in hits.items():
                hit = any(found[:k])
                for kind in ("all", *dict.fromkeys(phrase.types)):
                    by_type[kind].append(hit)
    return {k: {kind: mean(x) for kind, x in by_type.items()} for k, by_type in hits.items()}


def around(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(1, 4) the one box around (G, 4) boxes."""
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])[None]
