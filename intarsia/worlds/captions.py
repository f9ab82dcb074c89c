"""Captions: what they say, how that is written in English and Chinese and read back, and whether it is true of a scene.

A `Caption` is structure without words: phrases that describe objects, and a relation between the first two. Grammars
write it in a language, with the character span of every word, so gold links and test words cost nothing; `parse` is
their inverse.

A caption is true of a scene iff its phrases can be given to different objects that fit them and stand in the relation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Literal

import numpy as np

from intarsia.errors import BadInput
from intarsia.worlds.scene import HELD_OUT, RELATIONS, Scene, SceneObject, related

Kind = Literal["size", "texture", "colour", "shape", "relation"]
ATTRIBUTES: tuple[Kind, ...] = ("size", "texture", "colour", "shape")
"""Attribute kinds in the order in which a phrase names them."""
LANGUAGES = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Phrase:
    """A description of one object; None = the phrase does not say."""

    size: int | None = None
    texture: int | None = None
    colour: int | None = None
    shape: int | None = None

    def fits(self, thing: SceneObject) -> bool:
        """Whether an object is as described."""
        return (
            (self.colour is None or self.colour == thing.colour)
            and (self.shape is None or self.shape == thing.shape)
            and (self.size is None or self.size == thing.size)
            and (self.texture is None or self.texture == thing.texture)
        )

    def value(self, kind: Kind) -> int | None:
        """The value of one attribute."""
        value: int | None = getattr(self, kind)
        return value


@dataclass(frozen=True, slots=True)
class Caption:
    """What a caption says. Two captions are equal when they say the same, however they are worded."""

    phrases: tuple[Phrase, ...]
    relation: int | None = None
    """A number into RELATIONS: the first phrase's object stands in it to the second's. None = "and"."""
    opening: int = field(default=0, compare=False)
    synonyms: int = field(default=0, compare=False)
    """Bit 4 * phrase + attribute (of ATTRIBUTES) set = the second synonym is written; bit 31 is the relation's."""
    unseen: tuple[int, ...] = field(default=(), compare=False)
    """Words at the end that no picture shows and that make nothing false, numbers into `Lexicon.unseen`."""


@dataclass(frozen=True, slots=True)
class Word:
    """A content word of a written caption."""

    start: int
    end: int
    kind: Kind
    value: int
    phrase: int
    """Which phrase it belongs to; -1 for a relation."""
    accepted: tuple[str, ...]
    """The word and its synonyms."""


@dataclass(frozen=True, slots=True)
class Written:
    """A caption in words."""

    text: str
    words: tuple[Word, ...]
    spans: tuple[tuple[int, int], ...]
    """(start, end) characters of each phrase, without its article."""


@dataclass(frozen=True)
class Lexicon:
    """The words of a language; every value has two synonyms, the first is the usual one."""

    words: dict[Kind, tuple[tuple[str, str], ...]]
    openings: tuple[str, ...]
    article: str
    gap: str
    """Between two words."""
    comma: str
    last: str
    """Before the last of several phrases."""
    before: str
    """Between two phrases that stand in a relation, before the relation."""
    after: str
    """Between the two phrases where the relation is written last, else empty."""
    also: str
    """Between a related pair and a further phrase."""
    noun: str
    """Stands for the shape where a phrase does not name it."""
    the: str
    unseen: tuple[str, ...]
    """Words that name nothing in a picture."""


LEXICONS = {
    "en": Lexicon(
        words={
            "colour": (
                ("red", "scarlet"),
                ("brown", "chestnut"),
                ("yellow", "golden"),
                ("green", "jade"),
                ("cyan", "turquoise"),
                ("blue", "cobalt"),
                ("purple", "violet"),
                ("pink", "rose"),
            ),
            "shape": (
                ("circle", "disc"),
                ("square", "box"),
                ("triangle", "wedge"),
                ("star", "pentagram"),
                ("cross", "plus"),
                ("heart", "valentine"),
                ("diamond", "rhombus"),
                ("ring", "hoop"),
            ),
            "size": (("small", "little"), ("large", "big")),
            "texture": (("plain", "solid"), ("striped", "banded"), ("dotted", "spotted"), ("checked", "chequered")),
            "relation": (
                ("left of", "to the left of"),
                ("right of", "to the right of"),
                ("above", "over"),
                ("below", "under"),
            ),
        },
        openings=("", "", "there is ", "we see ", "this shows ", "a picture of "),
        article="a ",
        gap=" ",
        comma=", ",
        last=" and ",
        before=" ",
        after="",
        also=" and ",
        noun="object",
        the="the ",
        unseen=tuple(
            [
                "yesterday",
                "morning",
                "holiday",
                "famous",
                "quiet",
                "summer",
                "story",
                "friend",
                "music",
                "memory",
                "price",
                "news",
                "thanks",
                "hope",
                "travel",
                "monday",
            ]
        ),
    ),
    "zh": Lexicon(
        words={
            "colour": (
                ("红色", "赤色"),
                ("棕色", "褐色"),
                ("黄色", "金色"),
                ("绿色", "翠色"),
                ("青色", "碧色"),
                ("蓝色", "靛色"),
                ("紫色", "紫罗兰色"),
                ("粉色", "桃色"),
            ),
            "shape": (
                ("圆形", "圆盘"),
                ("方形", "正方形"),
                ("三角形", "三角"),
                ("星形", "五角星"),
                ("十字形", "十字"),
                ("心形", "爱心"),
                ("菱形", "钻石形"),
                ("环形", "圆环"),
            ),
            "size": (("小的", "小小的"), ("大的", "大大的")),
            "texture": (
                ("纯色的", "素面的"),
                ("带条纹的", "条纹状的"),
                ("带圆点的", "斑点状的"),
                ("带格子的", "方格状的"),
            ),
            "relation": (("左边", "左侧"), ("右边", "右侧"), ("上面", "上方"), ("下面", "下方")),
        },
        openings=("", "", "这里有", "我们看到", "图中有", "画面上有"),
        article="一个",
        gap="",
        comma="、",
        last="和",
        before="在",
        after="的",
        also="，还有",
        noun="物体",
        the="",
        unseen=tuple(
            [
                "昨天",
                "早晨",
                "假期",
                "著名",
                "安静",
                "夏天",
                "故事",
                "朋友",
                "音乐",
                "回忆",
                "价格",
                "新闻",
                "感谢",
                "希望",
                "旅行",
                "周一",
            ]
        ),
    ),
}


def holds(caption: Caption, scene: Scene) -> bool:
    """Whether a caption is true of a scene: exact, by trying every way to give its phrases to different objects."""
    options: list[list[int]] = []
    for phrase in caption.phrases:
        fitting = [i for i, thing in enumerate(scene.objects) if phrase.fits(thing)]
        if not fitting:
            return False
        options.append(fitting)
    for pick in product(*options):
        if len(set(pick)) == len(pick) and (
            caption.relation is None or related(scene.objects[pick[0]], scene.objects[pick[1]], caption.relation)
        ):
            return True
    return False


def determined(caption: Caption, scene: Scene, phrase: int, kind: Kind) -> bool:
    """Whether the picture determines an attribute word given the rest of the caption: no other value is also true."""
    now = caption.phrases[phrase].value(kind)
    values = range(len(LEXICONS["en"].words[kind]))
    return not any(v != now and holds(change(caption, phrase, kind, v), scene) for v in values)


def change(caption: Caption, phrase: int, kind: Kind, value: int) -> Caption:
    """The caption with one attribute of one phrase set to another value."""
    x = caption.phrases[phrase]
    changed = Phrase(
        *(
            value if name == kind else now
            for name, now in zip(ATTRIBUTES, (x.size, x.texture, x.colour, x.shape), strict=True)
        )
    )
    return with_phrases(caption, (*caption.phrases[:phrase], changed, *caption.phrases[phrase + 1 :]))


def with_phrases(caption: Caption, phrases: tuple[Phrase, ...]) -> Caption:
    """The caption with other phrases; `dataclasses.replace` takes several times as long."""
    return Caption(phrases, caption.relation, caption.opening, caption.synonyms, caption.unseen)


def names_held_out(caption: Caption) -> bool:
    """Whether a phrase names a colour-shape pair of HELD_OUT."""
    return any((p.colour, p.shape) in HELD_OUT for p in caption.phrases)


def draw_caption(
    rng: np.random.Generator, scene: Scene, mentions: int, textures: bool, synonyms: bool
) -> tuple[Caption, tuple[int, ...]]:
    """Draws a true caption of a scene, and the objects that its phrases name.

    Every phrase says colour and shape, its size with probability .3 (and its texture, in a world that has textures,
    with probability .3); with probability .3 the first two objects are joined by a relation that holds. Objects of
    held-out pairs are named first, where there are any.
    """
    order = [int(i) for i in rng.permutation(len(scene.objects))]
    order.sort(key=lambda i: scene.objects[i].pair not in HELD_OUT)
    named = tuple(order[:mentions])
    if len(named) > 2:
        named = tuple(named[i] for i in rng.permutation(len(named)))
    chance = rng.random((len(named), 2)) < 0.3
    phrases = []
    for i, (say_size, say_texture) in zip(named, chance.tolist(), strict=True):
        x = scene.objects[i]
        phrases.append(
            Phrase(x.size if say_size else None, x.texture if textures and say_texture else None, x.colour, x.shape)
        )
    relation = None
    if len(named) > 1 and rng.random() < 0.3:
        a, b = scene.objects[named[0]], scene.objects[named[1]]
        true = [r for r in range(len(RELATIONS)) if related(a, b, r)]
        relation = true[int(rng.integers(len(true)))] if true else None
    opening = int(rng.integers(len(LEXICONS["en"].openings)))
    bits = int(rng.integers(1 << 32)) if synonyms else 0
    return Caption(tuple(phrases), relation, opening, bits), named


def write(caption: Caption, language: str) -> Written:
    """Writes a caption in a language, "en" or "zh"."""
    lexicon = lexicon_of(language)
    line = _Line(lexicon)
    line.text = lexicon.openings[caption.opening]
    spans = []
    for i, phrase in enumerate(caption.phrases):
        if i:
            line.text += _joint(caption, i, lexicon)
            if i == 1 and caption.relation is not None and not lexicon.after:
                line.add("relation", caption.relation, -1, caption.synonyms >> 31 & 1)
                line.text += " "
        line.text += lexicon.article
        start = len(line.text)
        line.phrase(phrase, i, caption.synonyms)
        spans.append((start, len(line.text)))
        if i == 1 and caption.relation is not None and lexicon.after:
            line.text += lexicon.after
            line.add("relation", caption.relation, -1, caption.synonyms >> 31 & 1)
    if caption.unseen:
        line.text += lexicon.comma + lexicon.gap.join(lexicon.unseen[i] for i in caption.unseen)
    return Written(line.text, tuple(line.words), tuple(spans))


@cache
def write_phrase(phrase: Phrase, language: str) -> str:
    """A bare description without article, as in questions: "red circle", "small object"."""
    line = _Line(lexicon_of(language))
    line.phrase(phrase, 0, 0)
    return line.text


def parse(text: str, language: str) -> Caption:
    """Reads a caption that `write` wrote.

    Raises:
        BadInput: the text is not of the grammar.
    """
    lexicon = lexicon_of(language)
    opening = max((o for o in lexicon.openings if text.startswith(o)), key=len)
    tail = _patterns(language)[2].search(text)
    unseen = [lexicon.unseen.index(x) for x in _patterns(language)[3].findall(tail[0])] if tail else []
    rest = text[len(opening) : tail.start() if tail else None]
    phrases: list[Phrase] = []
    relation: int | None = None
    synonyms = 0
    while True:
        match = _patterns(language)[0].match(rest)
        if match is None:
            raise BadInput(f"caption {text!r}: no {language} phrase at {rest!r}")
        values: dict[str, int] = {}
        for slot, kind in enumerate(ATTRIBUTES):
            if match[kind] is not None:
                values[kind], second = _value(lexicon, kind, match[kind])
                synonyms |= second << 4 * len(phrases) + slot
        phrases.append(Phrase(**values))
        rest = rest[match.end() :]
        joint = _patterns(language)[1].match(rest)
        if joint is None:
            break
        rest = rest[joint.end() :]
        if joint["relation"] is not None:
            relation, second = _value(lexicon, "relation", joint["relation"])
            synonyms |= second << 31
            if not rest:
                break
    caption = Caption(tuple(phrases), relation, lexicon.openings.index(opening), synonyms, tuple(unseen))
    if write(caption, language).text != text:
        raise BadInput(f"caption {text!r}: not of the {language} grammar, {rest!r} is left over")
    return caption


def lexicon_of(language: str) -> Lexicon:
    """The words of a language.

    Raises:
        BadInput: there is no such language.
    """
    if language not in LEXICONS:
        raise BadInput(f"world: language {language!r} is not one of {', '.join(LANGUAGES)}")
    return LEXICONS[language]


class _Line:
    """A text under construction and the words in it."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon, self.text, self.words = lexicon, "", list[Word]()

    def add(self, kind: Kind, value: int, phrase: int, synonym: int) -> None:
        accepted = self.lexicon.words[kind][value]
        start = len(self.text)
        self.text += accepted[synonym]
        self.words.append(Word(start, len(self.text), kind, value, phrase, accepted))

    def phrase(self, phrase: Phrase, number: int, synonyms: int) -> None:
        begin = len(self.text)
        for slot, kind in enumerate(ATTRIBUTES):
            value = phrase.value(kind)
            if value is None and kind != "shape":
                continue
            if len(self.text) > begin:
                self.text += self.lexicon.gap
            if value is None:
                self.text += self.lexicon.noun
            else:
                self.add(kind, value, number, synonyms >> 4 * number + slot & 1)


def _joint(caption: Caption, i: int, lexicon: Lexicon) -> str:
    """What stands before phrase i."""
    if caption.relation is not None:
        return lexicon.before if i == 1 else lexicon.also
    return lexicon.last if i == len(caption.phrases) - 1 else lexicon.comma


def _value(lexicon: Lexicon, kind: Kind, word: str) -> tuple[int, int]:
    return next((v, words.index(word)) for v, words in enumerate(lexicon.words[kind]) if word in words)


@cache
def _patterns(language: str) -> tuple[re.Pattern[str], ...]:
    """What matches one phrase with its article, what matches between two phrases, words at the end that no picture shows, and one of them."""
    lexicon = LEXICONS[language]
    group = {
        kind: f"(?P<{kind}>{'|'.join(sorted((w for pair in words for w in pair), key=len, reverse=True))})"
        for kind, words in lexicon.words.items()
    }
    optional = "".join(f"(?:{group[kind]}{lexicon.gap})?" for kind in ATTRIBUTES[:3])
    phrase = re.compile(lexicon.article + optional + f"(?:{group['shape']}|{lexicon.noun})")
    if lexicon.after:
        joints = f"{lexicon.after}{group['relation']}(?:{lexicon.also})?|{lexicon.before}|{lexicon.also}"
    else:
        joints = f"{lexicon.before}{group['relation']} "
    word = f"(?:{'|'.join(lexicon.unseen)})"
    tail = re.compile(f"{lexicon.comma}{word}(?:{lexicon.gap}{word})*$")
    return phrase, re.compile(f"{joints}|{lexicon.also}|{lexicon.last}|{lexicon.comma}"), tail, re.compile(word)
