"""GQA, its published files. Data: Hudson and Manning 2019."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import Annotations, Item, at, find_file, of_split, read_json
from intarsia.tasks.benchmarks.table import Predictions, chosen
from intarsia.tasks.metrics import gqa, submissions

SPLITS = {
    "train": "train_balanced",
    "val": "val_balanced",
    "testdev": "testdev_balanced",
    "test": "submission_all",
    "train-all": "train_all",
    "val-all": "val_all",
}


def _questions(root: Path, name: str) -> dict[str, Mapping[str, Any]]:
    """One file, or a folder of files of that name."""
    folders = sorted(x for x in root.rglob(f"{name}_questions") if x.is_dir())
    paths = sorted(folders[0].glob("*.json")) if folders else [find_file(root, f"{name}_questions.json")]
    found: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        content = read_json(path)
        if not isinstance(content, dict):
            raise BadInput(f"{path}: holds no questions by id")
        if odd := next((key for key, x in content.items() if not isinstance(x, dict)), None):
            raise BadInput(f"{path}: question {odd} is no object but {str(content[odd])[:60]!r}")
        found.update(content)
    return found


def read(root: Path, split: str) -> Annotations:
    """`SPLIT_questions.json`, or a folder of that name with parts of it."""
    asked = _questions(root, of_split(SPLITS, split, "gqa"))
    items = []
    for key, x in asked.items():
        where = f"gqa question {key}"
        answers = ((str(x["answer"]), 1.0),) if "answer" in x else ()
        items.append(Item(key, (str(at(x, "question", where)),), (f"{at(x, 'imageId', where)}.jpg",), answers))
    gold = asked if all("answer" in x for x in asked.values()) else {}
    tier = SPLITS[split].partition("_")[0]
    if gold and any(root.rglob(f"{tier}_choices.json")):
        path = find_file(root, f"{tier}_choices.json")
        choices = read_json(path)
        gold = {key: {**x, "choices": at(choices, key, str(path))} for key, x in asked.items()}
    return Annotations("gqa", split, tuple(items), gold)


def labels(root: Path) -> tuple[str, ...]:
    """All answers of the balanced training and validation questions, the commonest first."""
    names = ["train_balanced", *(["val_balanced"] if any(root.rglob("val_balanced_questions*")) else [])]
    said: Counter[str] = Counter()
    for name in names:
        said.update(str(at(x, "answer", f"gqa question {key} of {name}")) for key, x in _questions(root, name).items())
    return tuple(x for x, _ in sorted(said.items(), key=lambda entry: (-entry[1], entry[0])))


def measure(annotations: Annotations, predictions: Predictions) -> dict[str, float]:
    """Accuracy, also of binary and of open questions, distribution, and what the files allow of the rest.

    Consistency needs every entailed question in the split and answered (val-all), validity and plausibility the file of choices.
    """
    given = chosen(annotations, predictions)
    asked = {key: annotations.gold[key] for key in given}
    whole = all(other in asked for x in asked.values() if x["isBalanced"] for other in x["entailed"])
    choices = {key: x["choices"] for key, x in asked.items() if "choices" in x}
    kept = asked if whole else {key: {**x, "entailed": []} for key, x in asked.items()}
    found = gqa.scores(kept, given, choices or None)
    numbers = {"accuracy": found.accuracy, "binary": found.binary, "open": found.open}
    numbers |= {"distribution": found.distribution}
    entails = any(set(x["entailed"]) - {key} for key, x in kept.items() if x["isBalanced"])
    more = {
        "consistency": found.consistency if whole and entails else None,
        "validity": found.validity,
        "plausibility": found.plausibility,
    }
    return numbers | {name: value for name, value in more.items() if value is not None}


def chance(annotations: Annotations) -> float:
    """Of an answer drawn from the list."""
    return float(
        np.mean([x["answer"] in annotations.labels for x in annotations.gold.values()]) / len(annotations.labels)
    )


def submit(path: Path, annotations: Annotations, predictions: Predictions) -> None:
    """The server's file."""
    submissions.write_gqa(path, chosen(annotations, predictions))
