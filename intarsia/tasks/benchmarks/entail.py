"""SNLI-VE, e-SNLI-VE and e-SNLI-VE-2.0, their published files. Data: Xie et al. 2019, Kayser et al. 2021, Do et al. 2020."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import Annotations, Item, Missing, at, find_file, of_split, read_lines, read_table
from intarsia.tasks.benchmarks.table import Predictions
from intarsia.tasks.entail import LABELS
from intarsia.tasks.metrics import choices

SPLITS = {"train": "train", "dev": "dev", "test": "test"}
_PICTURE = ("Flikr30kID", "Flickr30K_ID", "Flickr30kID")  # the released files spell the first


def read(root: Path, split: str) -> Annotations:
    """`snli_ve_SPLIT.jsonl`; lines whose label is "-" have no majority and are passed over."""
    path = find_file(root, f"snli_ve_{of_split(SPLITS, split, 'snli-ve')}.jsonl")
    rows = ((where, x) for where, x in read_lines(path) if at(x, "gold_label", where) != "-")
    return _items("snli-ve", split, rows, "sentence2")


def corrected(root: Path, split: str) -> Annotations:
    """`esnlive_SPLIT.csv`: e-SNLI-VE, without the neutral pairs that the picture contradicts or entails. Its numbers are not SNLI-VE's. Data: Kayser et al. 2021."""
    path = find_file(root, f"esnlive_{of_split(SPLITS, split, 'e-snli-ve')}.csv")
    rows = ((f"{path}: row {number}", x) for number, x in enumerate(read_table(path), 1))
    return _items("e-snli-ve", split, rows, "hypothesis")


def relabelled(root: Path, split: str) -> Annotations:
    """e-SNLI-VE-2.0: tab-separated under a head, in `*SPLIT*.csv` or `.tsv`; training in two files. Its numbers are not SNLI-VE's either. Data: Do et al. 2020.

    Columns are known by their places, as in the authors' own reader: 1 label, 4 picture and number of the caption, 6 hypothesis, 7 pair.
    """
    part = of_split(SPLITS, split, "e-snli-ve-2")
    paths = [x for x in sorted(root.rglob(f"*{part}*")) if x.suffix in (".csv", ".tsv") and _head(x).count("\t") >= 6]
    if not paths:
        raise Missing(f"{root}: holds no *{part}*.csv of seven columns and more with tabs between")
    return _items("e-snli-ve-2", split, (x for path in paths for x in _columns(path)), "hypothesis")


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return file.readline(4096).decode("utf-8", "replace")


def _columns(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, x in enumerate(csv.reader(file, delimiter="\t")):
                if number and x:
                    if len(x) < 7:
                        raise BadInput(f"{path}: row {number}: {len(x)} columns, 7 are read")
                    shown = x[3].strip().partition("#")[0]
                    yield (
                        f"{path}: row {number}",
                        {"gold_label": x[0].strip(), _PICTURE[0]: shown, "hypothesis": x[5].strip(), "pairID": x[6]},
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: {error}") from None


def _items(name: str, split: str, rows: Iterable[tuple[str, Any]], text: str) -> Annotations:
    items, gold = [], {}
    for where, x in rows:
        label, key = str(at(x, "gold_label", where)), str(at(x, "pairID", where))
        if label not in LABELS:
            raise BadInput(f"{where}: gold_label {label!r} is not one of {', '.join(LABELS)}")
        if key in gold:
            raise BadInput(f"{where}: pairID {key!r} stands there twice")
        picture = str(at(x, next((name for name in _PICTURE if name in x), _PICTURE[0]), where))
        file = picture if picture.endswith(".jpg") else f"{picture}.jpg"
        items.append(Item(key, (str(at(x, text, where)),), (file,), ((label, 1.0),)))
        gold[key] = label
    return Annotations(name, split, tuple(items), gold, LABELS)


def measure(annotations: Annotations, predictions: Predictions) -> dict[str, float]:
    """Accuracy."""
    keys = list(predictions)
    right = [LABELS.index(annotations.gold[key]) for key in keys]
    return {"accuracy": choices.accuracy([predictions[key] for key in keys], right)}


def chance(annotations: Annotations) -> float:
    """One in three."""
    return 1 / len(LABELS)
