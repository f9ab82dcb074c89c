"""YouCook2 without any training: which verb and which object does a system name in the gaps of a sentence above a segment? Source: VideoBERT, sec. 4.4.

The authors' 45 verbs and 63 objects are not published, so the lists are files of the user, a word a line. Words of several pieces stand in no gap: they are counted,
and never right. Of a segment all words of a list that its caption holds are right.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks import video
from intarsia.tasks.benchmarks.items import Annotations, find_file
from intarsia.tasks.benchmarks.table import Predictions
from intarsia.tasks.metrics.entities import read_text
from intarsia.tasks.metrics.folding import mean

NAME = "youcook2-words"
SENTENCE = ("now", "let", "me", "show", "you", "how", "to", None, "the", None, ".")
FILES = {"verb": "verbs.txt", "object": "objects.txt"}
"""By what stands in each gap, in order."""
CUTS = (1, 5)
_WORD = re.compile(r"\w+")


def words(root: Path, kind: str) -> tuple[str, ...]:
    """The list of a gap.

    Raises:
        BadInput: the file is not there, holds nothing, or a word twice.
    """
    path = find_file(root, FILES[kind])
    found = tuple(x.strip().lower() for x in read_text(path).splitlines() if x.strip())
    if not found or len(set(found)) < len(found):
        raise BadInput(f"{path}: {len(found)} words, {len(set(found))} different ones")
    return found


def read(root: Path, split: str) -> Annotations:
    """`youcookii_annotations_trainval.json`, `verbs.txt` and `objects.txt`; an item a segment whose caption holds a word of a list. Labels are "verb cut", "object onion"."""
    told, lists = video.youcook2(NAME, root, split), {kind: words(root, kind) for kind in FILES}
    gold = {}
    for item in told.items:
        said = set(_WORD.findall(item.texts[0].lower()))
        right = {kind: frozenset(said.intersection(some)) for kind, some in lists.items()}
        if any(right.values()):
            gold[item.key] = right
    items = tuple(replace(x, texts=()) for x in told.items if x.key in gold)
    return Annotations(NAME, split, items, gold, tuple(f"{kind} {x}" for kind, some in lists.items() for x in some))


def measure(annotations: Annotations, predictions: Predictions) -> dict[str, float]:
    """Share of the segments with a right word among the first 1 and 5 of each list; -inf ranks nowhere, and of equal scores a right one comes last."""
    found: dict[str, float] = {}
    for kind in FILES:
        at = [i for i, x in enumerate(annotations.labels) if x.startswith(f"{kind} ")]
        names = [annotations.labels[i].partition(" ")[2] for i in at]
        places = []
        for key, scores in predictions.items():
            right = np.array([x in annotations.gold[key][kind] for x in names])
            if right.any():
                mine = np.asarray(scores, np.float64)[at]
                best = mine[right].max()
                places.append(int((mine[~right] >= best).sum()) if np.isfinite(best) else len(mine))
        found |= {f"{kind} top-{k}": mean(x < k for x in places) for k in CUTS} if places else {}
    return found


def chance(annotations: Annotations) -> float:
    """Of the verb among five, drawn without putting back."""
    size = sum(x.startswith("verb ") for x in annotations.labels)
    asked = [len(x["verb"]) for x in annotations.gold.values() if x["verb"]]
    return mean(1 - math.comb(size - n, min(5, size)) / math.comb(size, min(5, size)) for n in asked)
