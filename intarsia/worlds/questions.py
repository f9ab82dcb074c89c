"""Downstream items of a world: questions, statements about two pictures, referring expressions, four-choice items.

Each function gives a plain Sample made from a scene of a source, a pure function of the scene's number; None where the
scene allows no such item. Where an item has a truth value, the value is drawn first and the item then fitted to it, so
answers are balanced and the text gives nothing away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Literal, TypeVar, get_args

import numpy as np

from intarsia.batch import Link, Sample
from intarsia.worlds.captions import Kind, Phrase, lexicon_of, write_phrase
from intarsia.worlds.scene import COLOURS, HELD_OUT, RELATIONS, SHAPES, SIZES, Scene, SceneObject, related
from intarsia.worlds.source import Split, WorldSource

T = TypeVar("T")
Question = Literal["colour", "shape", "count", "relation"]
YES_NO = {"en": ("yes", "no"), "zh": ("是", "不是")}
TRUE_FALSE = ("true", "false")

_TEXT = {
    "en": {
        "colour": "what colour is the {0}?",
        "shape": "what shape is the {0}?",
        "count": "how many {0}s are there?",
        "relation": "is the {0} {2} the {1}?",
        "both": "there is a {0} in both pictures",
        "only": "there is a {0} in the left picture only",
        "more": "there are more {0}s in the left picture than in the right one",
        "what": "what is {1} the {0}?",
    },
    "zh": {
        "colour": "{0}是什么颜色的？",
        "shape": "{0}是什么形状的？",
        "count": "图中有几个{0}？",
        "relation": "{0}在{1}的{2}吗？",
        "both": "两张图中都有{0}",
        "only": "只有左图中有{0}",
        "more": "左图中的{0}比右图中的多",
        "what": "在{0}的{1}的是什么？",
    },
}


def ask(source: WorldSource, index: int, kind: Question) -> Sample | None:
    """A question about a scene.

    texts = (question,), answers = ((answer, 1),), a link from the phrase of each object that is named to its region.
    """
    scene, language = source.scene(index), source.language(index)
    rng = _rng(source, index, 1 + get_args(Question).index(kind))
    words, text = lexicon_of(language).words, _TEXT[language][kind]
    if kind == "count":
        phrase = Phrase(size=(None, *range(len(SIZES)))[int(rng.integers(3))])
        number = sum(phrase.fits(x) for x in scene.objects)
        return _sample(source, index, kind, (text.format(write_phrase(phrase, language)),), str(number))
    if kind == "relation":
        return _ask_relation(source, index, scene, rng)
    named: Kind = "shape" if kind == "colour" else "colour"
    target = _pick(
        rng, [x for x in scene.objects if sum(getattr(x, named) == getattr(y, named) for y in scene.objects) == 1]
    )
    if target is None:
        return None
    name = write_phrase(Phrase(**{named: getattr(target, named)}), language)
    question = text.format(name)
    return _sample(source, index, kind, (question,), words[kind][getattr(target, kind)][0], (question, name, target))


def _ask_relation(source: WorldSource, index: int, scene: Scene, rng: np.random.Generator) -> Sample | None:
    language = source.language(index)
    truth = bool(rng.integers(2))
    options = [
        (a, b, r)
        for a in scene.objects
        for b in scene.objects
        for r in range(len(RELATIONS))
        if a is not b and related(a, b, r if truth else r ^ 1)
    ]  # what is false is plainly so: the opposite holds
    choice = _pick(rng, options)
    if choice is None:
        return None
    names = [_name(x, language) for x in choice[:2]]
    question = _TEXT[language]["relation"].format(*names, lexicon_of(language).words["relation"][choice[2]][0])
    found = [(question, name, x) for name, x in zip(names, choice[:2], strict=True)]
    return _sample(source, index, "relation", (question,), YES_NO[language][0 if truth else 1], *found)


def compare(source: WorldSource, left: int, right: int) -> Sample | None:
    """A statement about two pictures, true or false (as in NLVR2).

    texts = (statement,), answers = (("true" or "false", 1),), pictures = (left, right).
    Says that both pictures, or the left one only, show a colour or a shape, or that the left one shows more objects of
    a size.
    """
    scenes, language = (source.scene(left), source.scene(right)), source.language(left)
    rng = _rng(source, left, 100, right)
    truth = bool(rng.integers(2))
    shown: list[Phrase] = [Phrase(colour=i) for i in range(len(COLOURS))] + [
        Phrase(shape=i) for i in range(len(SHAPES))
    ]
    counted = [Phrase(size=i) for i in range(len(SIZES))]
    rules: dict[str, tuple[list[Phrase], Callable[[int, int], bool]]] = {
        "both": (shown, lambda a, b: a > 0 and b > 0),
        "only": (shown, lambda a, b: a > 0 and b == 0),
        "more": (counted, lambda a, b: a > b),
    }
    for kind in rng.permutation(list(rules)).tolist():
        phrases, rule = rules[kind]
        counts = [[sum(p.fits(x) for x in scene.objects) for scene in scenes] for p in phrases]
        phrase = _pick(
            rng, [p for p, (a, b) in zip(phrases, counts, strict=True) if rule(a, b) == truth and (truth or a + b)]
        )
        if phrase is not None:
            statement = _TEXT[language][kind].format(write_phrase(phrase, language))
            sample = _sample(source, left, f"{kind}-{right:06d}", (statement,), TRUE_FALSE[0 if truth else 1])
            return replace(sample, pictures=(*sample.pictures, *source[right].pictures))
    return None


def refer(source: WorldSource, index: int) -> Sample:
    """A referring expression: texts = (phrase,), one link from the whole phrase to the region it names.

    The phrase names as few attributes as single the object out, chosen at random among such.
    """
    scene, language, rng = source.scene(index), source.language(index), _rng(source, index, 200)
    target = scene.objects[int(rng.integers(len(scene.objects)))]
    kinds: tuple[Kind, ...] = ("size", "colour", "shape")
    for number in range(1, len(kinds) + 1):
        phrases = [Phrase(**{k: getattr(target, k) for k in some}) for some in combinations(kinds, number)]
        phrase = _pick(rng, [p for p in phrases if sum(p.fits(x) for x in scene.objects) == 1])
        if phrase is not None:
            break
    else:
        raise AssertionError("objects of a scene differ in colour or shape")
    text = lexicon_of(language).the + write_phrase(phrase, language)
    return _sample(source, index, "refer", (text,), None, (text, text, target))


def choose(source: WorldSource, index: int) -> Sample | None:
    """A four-choice item (as in VCR).

    texts = (question, four answers), answers = ((number of the right one, "0" .. "3", 1),).
    Asks what stands in a relation to an object. One wrong answer names another object of the scene where the scene has
    one; the others mix its colours and shapes to pairs that it does not show. The object of the question is linked to
    its region; answers are not, which would tell them apart.
    """
    scene, language, rng = source.scene(index), source.language(index), _rng(source, index, 300)
    options = [
        (anchor, r, right)
        for anchor in scene.objects
        for r in range(len(RELATIONS))
        for right in scene.objects
        if right is not anchor and related(right, anchor, r)
    ]
    chosen = _pick(rng, options)
    if chosen is None:
        return None
    anchor, relation, right = chosen
    shown = {x.pair for x in scene.objects}
    present = [x.pair for x in scene.objects if x is not anchor and not related(x, anchor, relation)]
    allowed = [
        (c, s)
        for c in range(8)
        for s in range(8)
        if (c, s) not in shown and (source.split == "held_out" or (c, s) not in HELD_OUT)
    ]
    mixed = [x for x in allowed if x[0] in {c for c, _ in shown} and x[1] in {s for _, s in shown}]
    absent = mixed if len(mixed) >= 3 else allowed
    wrong = [present[int(rng.integers(len(present)))]] if present else []
    answers = [right.pair, *wrong, *(absent[i] for i in rng.permutation(len(absent)).tolist())][:4]
    places = rng.permutation(4).tolist()
    texts = [write_phrase(Phrase(colour=answers[i][0], shape=answers[i][1]), language) for i in places]
    name = _name(anchor, language)
    question = _TEXT[language]["what"].format(name, lexicon_of(language).words["relation"][relation][0])
    return _sample(source, index, "choose", (question, *texts), str(places.index(0)), (question, name, anchor))


def _sample(
    source: WorldSource,
    index: int,
    kind: str,
    texts: tuple[str, ...],
    answer: str | None,
    *named: tuple[str, str, SceneObject],
) -> Sample:
    """The scene's sample with other texts; `named` are (text, phrase in it, object) to link in the first text."""
    base, scene = source[index], source.scene(index)
    regions = source.regions_of(index)
    links = tuple(
        Link(text.index(phrase), text.index(phrase) + len(phrase), regions[scene.objects.index(thing)])
        for text, phrase, thing in named
    )
    answers = () if answer is None else ((answer, 1.0),)
    return replace(base, key=f"{base.key}/{kind}", texts=texts, links=links, false_texts=(), answers=answers)


def _name(thing: SceneObject, language: str) -> str:
    return write_phrase(Phrase(colour=thing.colour, shape=thing.shape), language)


def _pick(rng: np.random.Generator, options: list[T]) -> T | None:
    return options[int(rng.integers(len(options)))] if options else None


def _rng(source: WorldSource, index: int, item: int, other: int = 0) -> np.random.Generator:
    return np.random.default_rng([source.seed, get_args(Split).index(source.split), index, 1000 + item, other])
