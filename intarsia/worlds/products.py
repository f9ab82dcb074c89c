"""Products of a shop: what they are, how a description of one is written in English and Chinese, and whether it is true of another.

Two products of a sub-category differ in colour, pattern, material or detail only, as in FashionGen, so a picture must be read and not just named.
Everything a description says can be seen in the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from intarsia.errors import BadInput
from intarsia.worlds.captions import LEXICONS

CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "tops": ("t-shirt", "shirt", "sweater", "tank top"),
    "bottoms": ("trousers", "shorts", "skirt"),
    "dresses": ("short dress", "long dress"),
    "shoes": ("boot", "sneaker"),
    "bags": ("backpack", "tote bag", "clutch"),
    "hats": ("cap", "beanie"),
}
"""Category -> its sub-categories."""
KINDS = tuple(kind for kinds in CATEGORIES.values() for kind in kinds)
"""All sub-categories; a product's `kind` is a number into them."""
COLOURS, PATTERNS, MATERIALS, DETAILS = 8, 4, 4, 4
"""How many values the attributes have."""
PLAIN, NO_DETAIL = 0, 0

Level = Literal["category", "sub_category"]

_KIND = {
    "en": KINDS,
    "zh": (
        *("T恤", "衬衫", "毛衣", "背心", "长裤", "短裤", "半身裙", "短款连衣裙", "长款连衣裙"),
        *("靴子", "运动鞋", "双肩包", "托特包", "手拿包", "鸭舌帽", "毛线帽"),
    ),
}
_CATEGORY = {"en": tuple(CATEGORIES), "zh": ("上装", "下装", "连衣裙", "鞋", "包", "帽子")}
_MATERIAL = {"en": ("cotton", "leather", "knit", "denim"), "zh": ("棉质", "皮质", "针织", "牛仔")}
_PATTERN = {"en": ("", "stripes", "dots", "checks"), "zh": ("", "条纹", "圆点", "格子")}
_DETAIL = {"en": ("", "a pocket", "buttons", "a star badge"), "zh": ("", "口袋", "纽扣", "星形徽章")}
_ITEM = {"en": "item", "zh": "单品"}
_PLURAL = ("trousers", "shorts")
_FORMS = 3


@dataclass(frozen=True, slots=True)
class Product:
    """One product: numbers of its attribute values."""

    kind: int
    """Into `KINDS`."""
    colour: int
    pattern: int
    accent: int
    """Colour of the pattern; the product's own where it is plain."""
    material: int
    detail: int

    @property
    def category(self) -> int:
        """Number of its category, into `CATEGORIES`."""
        return next(i for i, kinds in enumerate(CATEGORIES.values()) if KINDS[self.kind] in kinds)


@dataclass(frozen=True, slots=True)
class Description:
    """What is said of a product; None = it does not say. A description that says no pattern or no detail leaves open whether there is one."""

    kind: int | None
    colour: int
    pattern: int | None
    accent: int | None
    material: int | None
    detail: int | None
    form: int = 0
    """How it is worded."""

    def holds(self, product: Product) -> bool:
        """Whether all it says is true of a product."""
        names = ("kind", "colour", "pattern", "accent", "material", "detail")
        return all(getattr(self, name) in (None, getattr(product, name)) for name in names)


def draw_product(rng: np.random.Generator) -> Product:
    """Draws a product; half of them are plain, and a third have no detail."""
    kind, colour, material = (int(rng.integers(count)) for count in (len(KINDS), COLOURS, MATERIALS))
    pattern = PLAIN if rng.random() < 0.5 else int(rng.integers(1, PATTERNS))
    other = int((colour + 1 + rng.integers(COLOURS - 1)) % COLOURS)
    detail = NO_DETAIL if rng.random() < 1 / 3 else int(rng.integers(1, DETAILS))
    return Product(kind, colour, pattern, colour if pattern == PLAIN else other, material, detail)


def describe(rng: np.random.Generator, product: Product) -> Description:
    """Draws a true description: kind, colour and pattern with its colour always, material and detail in four cases of five each."""
    material, detail = (bool(x) for x in rng.random(2) < 0.8)
    patterned = product.pattern != PLAIN
    return Description(
        product.kind,
        product.colour,
        product.pattern if patterned else None,
        product.accent if patterned else None,
        product.material if material else None,
        product.detail if detail and product.detail != NO_DETAIL else None,
        int(rng.integers(_FORMS)),
    )


def write_description(said: Description, language: str) -> str:
    """A description in words. Where it names no kind it speaks of an item.

    Raises:
        BadInput: there is no such language.
    """
    if language not in _KIND:
        raise BadInput(f"products: language {language!r} is not one of {', '.join(_KIND)}")
    colours = LEXICONS[language].words["colour"]
    kind = _ITEM[language] if said.kind is None else _KIND[language][said.kind]
    colour = colours[said.colour][0]
    material = "" if said.material is None else _MATERIAL[language][said.material]
    pattern = ""
    if said.pattern is not None:
        accent = "" if said.accent is None else colours[said.accent][0]
        pattern = _join(language, accent, _PATTERN[language][said.pattern])
    detail = "" if said.detail is None else _DETAIL[language][said.detail]
    return (_english if language == "en" else _chinese)(said.form, kind, colour, material, pattern, detail)


def _join(language: str, *parts: str) -> str:
    return (" " if language == "en" else "").join(x for x in parts if x)


def _english(form: int, kind: str, colour: str, material: str, pattern: str, detail: str) -> str:
    if form == 0:
        ends = " and ".join(x for x in (pattern, detail) if x)
        return _join("en", colour, material, kind, f"with {ends}" if ends else "")
    if form == 1:
        first = _join("en", material, kind, f"in {colour}")
        return ", ".join(x for x in (first, f"{pattern} throughout" if pattern else "", detail) if x)
    these, are, they_have = ("these", "are", "they have") if kind in _PLURAL else ("this", "is", "it has")
    first = _join("en", f"{these} {kind} {are} {colour}", f"and made of {material}" if material else "")
    rest = " and ".join(x for x in (pattern, detail) if x)
    return f"{first}, {they_have} {rest}" if rest else first


def _chinese(form: int, kind: str, colour: str, material: str, pattern: str, detail: str) -> str:
    if form == 0:
        ends = "和".join(x for x in (pattern, detail) if x)
        return (f"带{ends}的" if ends else "") + colour + material + kind
    if form == 1:
        return "，".join(
            x
            for x in (
                f"{colour}{material}{kind}",
                f"通身{pattern}" if pattern else "",
                f"饰有{detail}" if detail else "",
            )
            if x
        )
    rest = "和".join(x for x in (pattern, detail) if x)
    return f"这款{kind}为{colour}" + (f"，{material}面料" if material else "") + (f"，有{rest}" if rest else "")


def class_names(level: Level, language: str = "en") -> tuple[str, ...]:
    """All categories or all sub-categories in words, by their numbers."""
    return _CATEGORY[language] if level == "category" else _KIND[language]


def name_of(product: Product, language: str) -> tuple[str, str]:
    """Sub-category and category in words."""
    return _KIND[language][product.kind], _CATEGORY[language][product.category]


def false_of(rng: np.random.Generator, said: Description, product: Product, count: int) -> tuple[Description, ...]:
    """Descriptions that differ from one in a single thing said and are false of its product; different ones, as many as asked or all there are.

    The kind is never changed, since hard negatives share it.
    """
    sizes = {"colour": COLOURS, "pattern": PATTERNS, "accent": COLOURS, "material": MATERIALS, "detail": DETAILS}
    edits = [
        replace(said, **{name: value})
        for name, size in sizes.items()
        if getattr(said, name) is not None
        for value in range(int(name in ("pattern", "detail")), size)
        if not (name in ("colour", "accent") and value in (said.colour, said.accent))
    ]
    false = [x for x in edits if not x.holds(product)]
    return tuple(false[i] for i in rng.permutation(len(false))[:count].tolist())
