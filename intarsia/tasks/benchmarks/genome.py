"""Visual Genome's questions, as 12-in-1 and ERNIE-ViL train on them beside VQA. Data: Krishna et al. 2017."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from intarsia.tasks.benchmarks.items import Annotations, Item, at, each, find_file, objects_of, of_split, read_json
from intarsia.tasks.benchmarks.table import Predictions, chosen
from intarsia.tasks.metrics.folding import mean
from intarsia.tasks.metrics.vqa import vocabulary_form


def read(root: Path, split: str) -> Annotations:
    """`question_answers.json`; there is no split: all of it is "train"."""
    of_split({"train": "train"}, split, "genome-qa")
    path = find_file(root, "question_answers.json")
    items, gold = [], {}
    for image in objects_of(read_json(path), str(path)):
        number = image.get("id", image.get("image_id"))
        for x in each(image, "qas", f"{path}: picture {number}"):
            key, answer = str(at(x, "qa_id", str(path))), vocabulary_form(str(at(x, "answer", str(path))))
            items.append(Item(key, (str(at(x, "question", str(path))),), (f"{number}.jpg",), ((answer, 1.0),)))
            gold[key] = answer
    return Annotations("genome-qa", split, tuple(items), gold)


def labels(root: Path) -> tuple[str, ...]:
    """All answers, the commonest first, at most 3129."""
    said = Counter(read(root, "train").gold.values())
    return tuple(x for x, _ in sorted(said.items(), key=lambda entry: (-entry[1], entry[0])))[:3128]


def measure(annotations: Annotations, predictions: Predictions) -> dict[str, float]:
    """Share of answers that are the same, normalised. Not an official number: the questions are only trained on."""
    given = chosen(annotations, predictions)
    return {"accuracy": mean(annotations.gold[key] == x for key, x in given.items())}


def chance(annotations: Annotations) -> float:
    """Of an answer drawn from the list."""
    return 1 / len(annotations.labels)
