"""Flickr30k Entities, its published folders. Data: Plummer et al. 2015."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.batch import Array
from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import Annotations, Item, Phrase, find_file
from intarsia.tasks.benchmarks.table import Predictions
from intarsia.tasks.metrics import entities as metrics

SPLITS = ("train", "val", "test")


def read(root: Path, split: str) -> Annotations:
    """`SPLIT.txt` with picture ids, `Sentences/ID.txt`, `Annotations/ID.xml`; an item a sentence that has a phrase with a box."""
    if split not in SPLITS:
        raise BadInput(f"entities: no split {split!r} (it has {', '.join(SPLITS)})")
    path = find_file(root, f"{split}.txt")
    items, gold = [], {}
    for name in metrics.read_text(path).split():
        about = metrics.read_annotation(path.parent / "Annotations" / f"{name}.xml")
        for number, sentence in enumerate(metrics.read_sentences(path.parent / "Sentences" / f"{name}.txt")):
            asked, key = metrics.asked(sentence, about), f"{name}#{number}"
            if not asked:
                continue
            phrases = tuple(Phrase(*_span(sentence.text, x), about.boxes[x.chain]) for x in asked)
            items.append(
                Item(key, (sentence.text,), (f"{name}.jpg",), phrases=phrases, size=(about.width, about.height))
            )
            gold[key] = metrics.questions(sentence, about)
    return Annotations("entities", split, tuple(items), gold)


def _span(text: str, phrase: metrics.Phrase) -> tuple[int, int]:
    """Characters of a phrase in its sentence, whose words are split by single spaces."""
    start = sum(len(x) + 1 for x in text.split(" ")[: phrase.first_word])
    return start, start + len(phrase.words)


def measure(
    annotations: Annotations,
    predictions: Predictions,
    regions: Mapping[str, Array],
    convention: metrics.Convention = "any",
) -> dict[str, float]:
    """Recall at 1, 5, 10, by default of any box of a chain; and that of all regions, the best any order could reach.

    Args:
        annotations: the phrases.
        predictions: (M, C) scores of the regions for each phrase.
        regions: by sentence, (R, 4) boxes in pixels.
        convention: "any" box of a chain, or the one box around them ("merged").
    """
    gold: dict[tuple[str, int], Any] = {}
    ranked: dict[tuple[str, int], list[Array]] = {}
    for key, scores in predictions.items():
        name, number = key.rsplit("#", 1)
        place, boxes = (name, int(number)), regions[key]
        gold[place] = annotations.gold[key]
        ranked[place] = [boxes[np.argsort(-row[: len(boxes)], kind="stable")] for row in scores]
    found = metrics.recall(gold, ranked, convention)
    return {f"R@{'all' if k is None or k < 0 else k}": x["all"] for k, x in found.items()}
