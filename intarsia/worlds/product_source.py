"""Products as a data source: pictures cut into cells in reading order, descriptions, and hard negatives of the same sub-category.

Everything about product i is a function of (seed, split, i): the same bits in any process and any order.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import numpy as np

from intarsia.batch import Array, Picture, Sample
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.features import pixels
from intarsia.features.patches import Patches
from intarsia.worlds.product_pictures import draw_product_picture
from intarsia.worlds.products import (
    Description,
    Level,
    Product,
    describe,
    draw_product,
    false_of,
    name_of,
    write_description,
)
from intarsia.worlds.source import Recent

ProductSplit = Literal["train", "validation", "test"]
LANGUAGES = ("en", "zh")
_PRODUCT, _SAID, _PICTURE, _FALSE, _ALSO = range(5)  # one stream of random numbers each
_WORLD = 0x5808  # apart from those of scenes


class ProductSource:
    """Products by number; a `Source`. A picture's tags are its sub-category and its category.

    Args:
        split: "train", "validation" or "test".
        count: of products.
        seed: non-negative; splits of one seed share no random numbers.
        language: of the descriptions, "en" or "zh".
        side: pixels of a picture.
        cells: a side of the grid that pictures are cut into.
        false_texts: descriptions a sample that are false of its picture in one word.

    Raises:
        BadInput: a number or word that does not fit.
    """

    def __init__(
        self,
        split: ProductSplit = "train",
        count: int = 8000,
        seed: int = 0,
        language: str = "en",
        side: int = 96,
        cells: int = 8,
        false_texts: int = 5,
    ) -> None:
        if split not in get_args(ProductSplit) or language not in LANGUAGES:
            raise BadInput(
                f"products: split {split!r} of {get_args(ProductSplit)}, language {language!r} of {LANGUAGES}"
            )
        if min(count, seed, false_texts) < 0 or side < 32:
            raise BadInput(f"products: count {count}, seed {seed}, side {side} (from 32), false_texts {false_texts}")
        self.split, self.count, self.seed, self.language = split, count, seed, language
        self.side, self.false_texts = side, false_texts
        self._samples = Recent[Sample]()
        grid = Patches(cells)
        self.boxes = grid.boxes
        self.provenance: Provenance | None = grid.provenance

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """The sample of a product; its texts are one description, `also` another one of the same product. The arrays in it are shared and read-only."""
        return self._samples.get(self._check(index), self._make)

    def _make(self, index: int) -> Sample:
        said, language = self.said(index), self.language
        text = write_description(said, language)
        again = write_description(describe(self._rng(index, _ALSO), self.product(index)), language)
        false = false_of(self._rng(index, _FALSE), said, self.product(index), self.false_texts)
        return Sample(
            key=self.key(index),
            texts=(text,),
            pictures=(self._picture(index),),
            also=(again,) if again != text else (),
            false_texts=tuple(write_description(x, language) for x in false),
            language=language,
        )

    def key(self, index: int) -> str:
        """The key of a sample."""
        return f"product-{self.split}-{self.seed}-{index:06d}"

    def product(self, index: int) -> Product:
        """What the product is."""
        return draw_product(self._rng(self._check(index), _PRODUCT))

    def said(self, index: int) -> Description:
        """What the sample's description says."""
        return describe(self._rng(index, _SAID), self.product(index))

    def image(self, index: int) -> Array:
        """The picture, (side, side, 3) uint8 RGB."""
        return draw_product_picture(self._rng(index, _PICTURE), self.product(index), self.side)

    def recognition(self, index: int, level: Level) -> Sample:
        """The question of what a product is: its description without the word for it, `answers` the class.

        Args:
            index: of the product.
            level: which class, see `name_of`.
        """
        sample = self[index]
        text = write_description(replace(self.said(index), kind=None), self.language)
        kind, category = name_of(self.product(index), self.language)
        answer = category if level == "category" else kind
        return replace(sample, texts=(text,), also=(), false_texts=(), answers=((answer, 1.0),))

    def candidates(self, queries: int = 1000, wrong: int = 100, seed: int = 0) -> list[tuple[int, list[int]]]:
        """Queries of the FashionGen protocol: a product and, in random order, itself and others of its sub-category.

        The description of the right one is false of every wrong one, and theirs of it, so that the ceiling is 1 both ways.

        Args:
            queries: how many different ones.
            wrong: wrong candidates of each.
            seed: the same draws everywhere.

        Raises:
            BadInput: too few products have so many others in their sub-category.
        """
        products, said = zip(*((self.product(i), self.said(i)) for i in range(self.count)), strict=True)
        rng = np.random.default_rng([seed, _WORLD, 0xFA5])
        found: list[tuple[int, list[int]]] = []
        for query in rng.permutation(self.count).tolist():
            if len(found) == queries:
                break
            others = [
                i
                for i in range(self.count)
                if products[i].kind == products[query].kind
                and not said[query].holds(products[i])
                and not said[i].holds(products[query])
            ]
            if len(others) >= wrong:
                chosen = [query, *rng.choice(others, wrong, replace=False).tolist()]
                found.append((query, [chosen[i] for i in rng.permutation(len(chosen))]))
        if len(found) < queries:
            raise BadInput(
                f"products: of {self.count}, {len(found)} have {wrong} others of their sub-category, {queries} are to be asked"
            )
        return found

    def _picture(self, index: int) -> Picture:
        """The picture with its cells, row by row; each is described by its own pixels."""
        features = pixels.pixel_features(self.image(index), self.boxes)
        features.setflags(write=False)
        tags, size = name_of(self.product(index), self.language), (self.side, self.side)
        return Picture(self.key(index), features, self.boxes, *size, tags=tags, pixels=partial(self.image, index))

    def _check(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"product {index} of {self.count}")
        return int(index)

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([_WORLD, self.seed, get_args(ProductSplit).index(self.split), index, stream])
