"""VQA v2, its published files: questions and annotations. Data: Goyal et al. 2017."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import (
    Annotations,
    Item,
    at,
    each,
    find_file,
    number,
    objects_of,
    of_split,
    read_json,
)
from intarsia.tasks.benchmarks.table import Predictions, chosen
from intarsia.tasks.metrics import submissions, vqa
from intarsia.tasks.metrics.folding import mean

SPLITS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}
PARTS = ("minival", "nominival")
"""Of val, as LXMERT's lists have them: those that it validates on, and those that it trains on."""


def read(root: Path, split: str) -> Annotations:
    """`v2_OpenEnded_mscoco_SPLIT_questions.json` and, but for the test, `v2_mscoco_SPLIT_annotations.json`.

    A question's answers are those that people gave, with the bucketed soft score; the metric reads all ten. The splits `minival` and `nominival` are val's questions
    that stand in LXMERT's file of that name.
    """
    if split in PARTS:
        return _part(root, split)
    name = of_split(SPLITS, split, "vqa")
    path = find_file(root, f"v2_OpenEnded_mscoco_{name}_questions.json", f"OpenEnded_mscoco_{name}_questions.json")
    asked = each(read_json(path), "questions", str(path))
    known: dict[str, vqa.Question] = {}
    if not split.startswith("test"):
        answers = find_file(root, f"v2_mscoco_{name}_annotations.json", f"mscoco_{name}_annotations.json")
        known = {str(x.id): x for x in vqa.questions(read_json(answers), str(answers))}
    pictures = "test2015" if split.startswith("test") else name
    items = []
    for entry in asked:
        key = str(number(entry, "question_id", str(path)))
        image = number(entry, "image_id", f"{path}: question {key}")
        if known and key not in known:
            raise BadInput(f"{path}: question {key} has no annotation")
        shares = tuple(vqa.soft_targets(known[key].answers).items()) if known else ()
        items.append(
            Item(key, (str(at(entry, "question", str(path))),), (f"COCO_{pictures}_{image:012d}.jpg",), shares)
        )
    return Annotations("vqa", split, tuple(items), known)


def _part(root: Path, split: str) -> Annotations:
    path, whole = find_file(root, f"{split}.json"), read(root, "val")
    wanted = {str(at(x, "question_id", str(path))) for x in objects_of(read_json(path), str(path))}
    items = tuple(x for x in whole.items if x.key in wanted)
    if lost := wanted - {x.key for x in items}:
        raise BadInput(f"{path}: {len(lost)} questions are not in val, such as {min(lost)}")
    return replace(whole, split=split, items=items, gold={x.key: whole.gold[x.key] for x in items})


def labels(root: Path, at_least: int = 9) -> tuple[str, ...]:
    """The answers that so many training questions have as their commonest one, normalised; those of train and val.

    Authors' tables are in the order of their own run: for published weights read theirs.
    """
    said = []
    for split in ("train", "val"):
        names = (f"v2_mscoco_{SPLITS[split]}_annotations.json", f"mscoco_{SPLITS[split]}_annotations.json")
        if split == "val" and not any(any(root.rglob(x)) for x in names):
            continue
        path = find_file(root, *names)
        entries = each(read_json(path), "annotations", str(path))
        said += [str(at(x, "multiple_choice_answer", str(path))) for x in entries]
    return tuple(vqa.vocabulary(said, at_least))


def measure(
    annotations: Annotations, predictions: Predictions, convention: vqa.Convention = "official"
) -> dict[str, float]:
    """Accuracy, by type of answer too; and the soft target of the answer.

    The latter is what most repositories tell of their own validation; it differs where people's answers need normalising.
    """
    given = chosen(annotations, predictions)
    asked = [annotations.gold[key] for key in given]
    found = vqa.accuracy({int(key): x for key, x in given.items()}, asked, convention)
    soft = mean(vqa.soft_targets(x.answers).get(given[str(x.id)], 0.0) for x in asked)
    return {"accuracy": found.overall, **found.by_answer_type, "soft target": soft}


def submit(path: Path, annotations: Annotations, predictions: Predictions) -> None:
    """The server's file.

    Raises:
        BadInput: for the split test-dev: its server, too, wants all of the test.
    """
    if annotations.split == "test-dev":
        raise BadInput(f"{path}: the server wants every question of the test, for test-dev too: --split test")
    submissions.write_vqa(path, {int(key): x for key, x in chosen(annotations, predictions).items()})


def chance(annotations: Annotations) -> float:
    """The expected accuracy of an answer drawn from the list."""
    scores = [[vqa.score(x, q.answers) for x in annotations.labels if x] for q in annotations.gold.values()]
    return float(np.mean(scores))
