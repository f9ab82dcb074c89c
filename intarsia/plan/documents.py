"""Made-up samples of a given size for any system, so that a step can be counted without data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain, cycle, islice
from typing import Any

import numpy as np
import torch

from intarsia.batch import Batch, Example, Film, Picture, Sample
from intarsia.errors import BadInput
from intarsia.pack import pack
from intarsia.plan.given import Size
from intarsia.recipe import Recipe
from intarsia.system import System
from intarsia.text import SPECIALS, Vocab
from intarsia.worlds import WorldSource


def vocabulary(cls: type[System], pieces: int) -> Vocab:
    """A vocabulary of so many pieces that knows the words of the samples.

    Raises:
        BadInput: it is too small for them.
    """
    known = dict.fromkeys((*SPECIALS, *cls.specials, *_words()))
    if pieces < len(known):
        raise BadInput(f"vocab_size {pieces}: a plan needs at least {len(known)} pieces")
    return Vocab([*known, *(f"w{i}" for i in range(pieces - len(known)))])


def _words() -> list[str]:
    world = WorldSource(count=64)
    return list(chain.from_iterable(world[i].texts[0].split() for i in range(len(world))))


class Documents:
    """Samples of one size as a system reads them.

    Args:
        system: may be without weights.
        size: of the samples.
    """

    def __init__(self, system: System, size: Size) -> None:
        self.system, self.size = system, size
        self.words = _words()
        config = system.config
        self.regions = min(size.regions, getattr(config, "max_patches", size.regions))
        self.width = getattr(config, "feature_size", 1)
        self.classes = getattr(config, "classes", getattr(config, "num_object_labels", 1600) + 1)
        self.attributes = getattr(config, "num_attr_labels", 400) + 1

    def sample(self, number: int) -> Sample:
        """The sample of a number."""
        rng = np.random.default_rng(number)
        start = int(rng.integers(len(self.words)))
        said = list(islice(cycle(self.words), start, start + self.size.words))
        key = f"sample{number}"
        if "clips" in self.system.needs:
            return Sample(key, (" ".join(said),) * 2, film=self._film(key, rng))
        other = (" ".join(reversed(said)),)
        table = getattr(self.system.config, "answers", said[:1])  # of a system that chooses among answers
        answers = ((table[0], 1.0),) if table else ()
        shown = (self._picture(key, rng, said),)
        own = getattr(self.system.config, "own", "")  # the task whose texts are read
        if own == "nlvr2":
            return Sample(key, (" ".join(said),), 2 * shown, answers=(("true", 1.0),))
        if own == "vcr":
            return Sample(key, (" ".join(said),) + 4 * other, shown, answers=(("0", 1.0),))
        return Sample(key, (" ".join(said),), shown, also=other, false_texts=other, answers=answers)

    def _picture(self, key: str, rng: np.random.Generator, said: list[str]) -> Picture:
        count = self.regions
        side = int(np.ceil(count**0.5))
        rows, columns = np.divmod(np.arange(count), side)
        boxes = (np.stack([columns, rows, columns + 1, rows + 1], 1) / side).astype(np.float32)
        probs = np.full((count, self.classes), 1 / self.classes, np.float16)
        drawn: dict[str, Any] = {
            "scores": np.ones(count, np.float32),
            "labels": rng.integers(1, max(2, self.classes), count),
            "attributes": rng.integers(0, self.attributes, count),
            "attribute_scores": np.ones(count, np.float32),
        }
        if codes := getattr(self.system.config, "codes", 0):
            drawn["codes"] = rng.integers(0, codes, self.system.config.code_length)
        features = np.zeros((count, self.width), np.float32)
        tags = tuple(said[i % len(said)] for i in range(count))
        return Picture(key, features, boxes, self.size.width, self.size.height, probs=probs, tags=tags, **drawn)

    def _film(self, key: str, rng: np.random.Generator) -> Film:
        count = 2 * self.regions  # of two sentences
        ids = rng.integers(0, getattr(self.system.config, "clusters", 1), count)
        seconds, half = np.arange(count, dtype=np.float32), float(self.regions)
        spans = np.array([[0, half], [half, 2 * half]], np.float32)
        return Film(key, np.zeros((count, self.width), np.float32), seconds, 1.0, spans, ids)

    def batch(self, goal: str, recipe: Recipe[Any]) -> tuple[Batch, list[tuple[int, int]]]:
        """A micro-batch of a goal, as full as the recipe lets it be, with pictures of one pixel each in the place of these sizes, (height, width).

        Raises:
            BadInput: a sample does not fit the system or the budget of rows.
        """
        rows = sum(x.rows for x in self.system.forms(self.sample(0)))
        if rows > recipe.batching.rows:
            raise BadInput(
                f"a sample has {rows} rows, more than a batch may have (batching.rows = {recipe.batching.rows})"
            )
        count = recipe.batching.rows // rows
        count = min(count, recipe.batching.samples or count)
        found: list[Example] = []
        for number in range(count):
            rng = np.random.default_rng([number, 1])
            draw: Callable[[], Sample] = lambda number=number: self.sample(number + 1)  # type: ignore[misc]  # noqa: E731
            found += self.system.documents(self.sample(number), goal, rng, draw)
        sizes = [(image.height, image.width) for example in found for image in example.images]
        for example in found:
            example.images = tuple(replace(x, read=_dark, height=1, width=1) for x in example.images)
        batch = pack(found)
        if batch.images is not None:
            batch = replace(batch, images=replace(batch.images, valid=torch.tensor(sizes)))
        return batch, sizes


def _dark() -> Any:
    return np.zeros((3, 1, 1), np.float32)
