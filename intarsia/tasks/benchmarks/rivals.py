"""Hard negatives: for each picture those that are like it, which broken pairs of retrieval take their pictures or texts from.

Sources: ViLBERT and 12-in-1 (a file of the nearest pictures of each), ERNIE-ViL (the same kind of file), FashionBERT (products of the sub-category).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intarsia.batch import Array, Sample
from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.items import Annotated, at, read_json, spellings
from intarsia.tasks.retrieval import Draws
from intarsia.weights.pickles import read_pickle

NEAREST = 100
"""Pictures that `nearest` finds for each."""
_TRIES = 16


class Rivals:
    """What is like what, over the items of a benchmark.

    Args:
        source: the items.
        near: (P) for each picture, by its place in the order of the items, the places of pictures like it; those it has in common with others may be one array.
        same: (P) pictures with one number show the same thing and are no rivals of each other; None = all differ.
    """

    def __init__(self, source: Annotated, near: Sequence[Array], same: Array | None = None) -> None:
        self.source, self.near, self.same = source, near, same
        names, of_item = pictures_of(source)
        self.picture = {item.key: int(i) for (item, _), i in zip(source.kept, of_item, strict=True)}
        self.items = np.argsort(of_item, kind="stable")
        self.first = np.searchsorted(of_item[self.items], np.arange(len(names) + 1))

    def draws(self, sample: Sample, rng: np.random.Generator, far: Callable[[], Sample]) -> Draws:
        """What a sample's broken pairs are made from; a sample that is not of these items (held-out ones) has no rivals and gets any other."""
        mine = self.picture.get(sample.key)
        return Draws(far, far if mine is None else lambda: self._near(mine, rng) or far())

    def _near(self, mine: int, rng: np.random.Generator) -> Sample | None:
        known = self.near[mine]
        for _ in range(_TRIES if len(known) else 0):
            other = int(known[rng.integers(len(known))])
            alike = other == mine or (self.same is not None and self.same[other] == self.same[mine])
            low, high = self.first[other], self.first[other + 1]
            if not alike and low < high:
                return self.source[int(self.items[rng.integers(low, high)])]
        return None


def pictures_of(source: Annotated) -> tuple[list[str], Array]:
    """The names of the first pictures of the items, each once, and (n) which of them each item shows."""
    place: dict[str, int] = {}
    of_item = np.array([place.setdefault(item.pictures[0], len(place)) for item, _ in source.kept], np.int64)
    return list(place), of_item


def by_group(source: Annotated, groups: Mapping[str, tuple[str, str]]) -> Rivals:
    """Items of one group are rivals, unless they show one thing.

    Args:
        source: the items, one a picture.
        groups: by item, the thing and the group.
    """
    things, kinds = zip(*(groups[item.key] for item, _ in source.kept), strict=True)
    members = {kind: np.flatnonzero(np.array(kinds) == kind) for kind in dict.fromkeys(kinds)}
    return Rivals(source, [members[x] for x in kinds], np.unique(things, return_inverse=True)[1])


def nearest(source: Annotated, path: Path, count: int = NEAREST) -> Rivals:
    """The pictures whose mean region features are nearest, as ViLBERT's authors find theirs; found once and kept in a file.

    Args:
        source: the items.
        path: a .json file as `read_pool` reads it; made unless it is there.
        count: pictures found for each.
    """
    if not path.is_file():
        names, of_item = pictures_of(source)
        firsts = np.unique(of_item, return_index=True)[1]
        means = np.stack([_mean(source[int(i)]) for i in firsts])
        vectors = torch.from_numpy(means).float()
        pool: dict[str, list[str]] = {}
        for start in range(0, len(names), 1024):
            apart = torch.cdist(vectors[start : start + 1024], vectors)
            close = apart.topk(min(count + 1, len(names)), 1, largest=False).indices.tolist()
            pool |= {names[i]: [names[j] for j in line if j != i][:count] for i, line in enumerate(close, start)}
        with write_whole(path) as temporary:
            temporary.write_text(json.dumps(pool, ensure_ascii=False), encoding="utf-8")
    return read_pool(source, path)


def _mean(sample: Sample) -> Array:
    features = np.asarray(sample.pictures[0].features, np.float32)
    if not len(features):
        raise BadInput(
            f"sample {sample.key}: picture {sample.pictures[0].name} has no region features to find pictures like it by"
        )
    found: Array = features.mean(0)
    return found


def read_pool(source: Annotated, path: Path) -> Rivals:
    """A file of pictures like each picture: a JSON object from name to names, or ViLBERT's pickle.

    The pickle holds `train_image_list`, ids of pictures, and `train_hard_pool`, for each the places in that list of those nearest, itself first.

    Raises:
        BadInput: it is neither, or names no picture of the items.
    """
    pool = _pickled(path) if path.suffix in (".pkl", ".pickle", ".p") else read_json(path)
    if not isinstance(pool, Mapping):
        raise BadInput(f"{path}: not an object from pictures to pictures like them")
    names, _ = pictures_of(source)
    known = {x: i for i, name in reversed(list(enumerate(names))) for x in spellings(name)}
    near: list[Array] = [np.zeros(0, np.int64)] * len(names)
    for name, others in pool.items():
        mine = _find(known, str(name))
        if mine is not None:
            near[mine] = np.array([x for y in others if (x := _find(known, str(y))) is not None], np.int64)
    if not any(map(len, near)):
        raise BadInput(f"{path}: knows nothing like any of the {len(names)} pictures of {source.annotations.benchmark}")
    return Rivals(source, near)


def _find(known: Mapping[str, int], name: str) -> int | None:
    return next((known[x] for x in spellings(name) if x in known), None)


def _pickled(path: Path) -> Any:
    content = read_pickle(path)
    names = list(at(content, "train_image_list", str(path)))
    places = np.asarray(at(content, "train_hard_pool", str(path)))
    if (
        places.ndim != 2
        or len(places) != len(names)
        or places.dtype.kind not in "iu"
        or places.max(initial=0) >= len(names)
    ):
        raise BadInput(f"{path}: train_hard_pool of shape {places.shape} for {len(names)} pictures")
    return {name: [names[i] for i in line[1:].tolist()] for name, line in zip(names, places, strict=True)}
