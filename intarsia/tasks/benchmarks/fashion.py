"""FashionGen: a product's text and picture found by each other, and what it is. Data: Rostamzadeh et al. 2018; protocol: FashionBERT, sec. 4.

A row of the file is a pose of a product. Poses of one product say the same, so queries and their candidates are of different products.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from intarsia.data.formats.fashiongen import FashionRows
from intarsia.tasks.benchmarks.items import Annotations, Item, find_file, of_split
from intarsia.tasks.benchmarks.table import Candidates
from intarsia.tasks.metrics import ranking

SPLITS = {"train": "train", "val": "validation"}
QUERIES, WRONG, SEED = 1000, 100, 0
Asked = Literal["", "category", "subcategory"]


def _read(asked: Asked, root: Path, split: str) -> Annotations:
    name = f"fashiongen-{asked}" if asked else "fashiongen"
    rows = FashionRows(find_file(root, f"fashiongen_*_{of_split(SPLITS, split, name)}.h5"))
    items, gold = [], {}
    for row in range(rows.size):
        key, answer = rows.picture(row), rows.text(f"input_{asked}", row) if asked else ""
        answers = ((answer, 1.0),) if asked else ()
        items.append(Item(key, (rows.text("input_description", row),), (key,), answers))
        gold[key] = answer or (rows.text("input_productID", row), rows.text("input_subcategory", row))
    return Annotations(name, split, tuple(items), gold)


pairs = partial(_read, "")


def whole(root: Path, split: str) -> Annotations:
    """Every product once, by its first pose: what later papers rank in full (another column than the 101 candidates); no text is right for two pictures."""
    found = pairs(root, split)
    first = {found.gold[x.key][0]: x for x in reversed(found.items)}
    items = tuple(x for x in found.items if first[found.gold[x.key][0]] is x)
    return replace(found, benchmark="fashiongen-all", items=items, gold={x.key: found.gold[x.key] for x in items})


categories = partial(_read, "category")
subcategories = partial(_read, "subcategory")


def candidates(annotations: Annotations) -> Candidates:
    """1,000 queries with their product and 100 others of its sub-category; of a smaller set as many as there are.

    Raises:
        BadInput: no two products are of one sub-category.
    """
    said = [annotations.gold[x.key] for x in annotations.items]
    products, kinds = [x[0] for x in said], [x[1] for x in said]
    sizes = dict(zip(*np.unique([kind for _, kind in sorted(set(said))], return_counts=True), strict=True))
    wrong = max(1, min(WRONG, max(sizes.values()) - 1))
    able = sum(int(x) for x in sizes.values() if x > wrong)
    queries = max(1, min(QUERIES, able))
    asked = ranking.fashion_candidates(kinds, queries, wrong, SEED, products)
    return Candidates(
        asked, f"{queries} queries, {wrong + 1} candidates each of one sub-category, drawn with seed {SEED}"
    )
