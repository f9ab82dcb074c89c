"""The scene graph of an English caption: words are classed by lists and endings, noun phrases chunked, prepositions and verbs tied to them.

Unusual: a preposition belongs to the subject of its clause ("a sign for a letter in English": the sign is in English), "of" to the noun before it.
A verb belongs to the object of the verb before it ("lets your doctor listen to"), else to the subject. "left of a box and a ring" relates the box only:
what has its own article begins anew; "your heart and lungs" are related both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from intarsia.text_graph import Span, TextGraph
from intarsia.text_graph import lexicon as known

Class = Literal[
    "det", "prep", "conj", "pron", "rel", "aux", "adv", "num", "verb", "adj", "noun", "open", "close", "stop", "comma"
]


@dataclass(slots=True)
class _Token:
    word: str
    start: int
    end: int
    kind: Class
    quoted: bool = False
    """A quotation mark closes right after it."""

    @property
    def low(self) -> str:
        return self.word.lower().replace("’", "'")

    @property
    def capital(self) -> bool:
        return self.word[0].isupper()

    @property
    def owner(self) -> bool:
        return self.word.endswith(("'s", "’s"))


# ------------------------------------------------------------------------------------------------------------- words and their classes

_TOKEN = re.compile(r"\.?\d+(?:[.,]\d+)*(?![\w-])|[^\W_](?:[^\W_]|[-'’.]+(?=\w))*|[^\w\s]")
_SUFFIX = re.compile(
    r"\w{2,}(?:ful|ous|less|ish|ive|able|ible|ical|est)$|\w+-(?:\w+ed|like|free|sized|shaped|colou?red)$"
)
_NATION = re.compile(r"[A-Z]\w+(?:ian|ese|ish|ican|ean)$")
_NO_SUFFIX = frozenset(
    ["olive", "native", "table", "cable", "vegetable", "timetable", "radish", "parish", "relish", "dish", "detective"]
)
_MARKS: dict[str, Class] = {
    ",": "comma",
    "(": "open",
    "[": "open",
    ")": "close",
    "]": "close",
    "&": "conj",
    "/": "conj",
}
_STOPS = ".!?;:…—–-"
_QUOTES = "“”\"'‘’«»"


def _tokens(text: str) -> list[_Token]:
    """The words and marks of a text, classed; prepositions of several words are one."""
    found: list[_Token] = []
    raw = list(_TOKEN.finditer(text))
    lows = [x[0].lower() for x in raw]
    i = 0
    while i < len(raw):
        word, start = raw[i][0], raw[i].start()
        if word in _QUOTES:
            if found and found[-1].end == start:
                found[-1].quoted = True
            i += 1
            continue
        length = next((len(x) for x in known.PREPOSITIONS if tuple(lows[i : i + len(x)]) == x), 0)
        end = raw[i + max(length, 1) - 1].end()
        found.append(_Token(text[start:end], start, end, "prep" if length else _class(word)))
        i += max(length, 1)
    _settle(found)
    return found


def _class(word: str) -> Class:
    """The class of a word by itself."""
    low = word.lower().replace("’", "'")
    if not word[0].isalnum() and not word[-1].isalnum():
        return _MARKS.get(word, "stop" if word in _STOPS else "adv")
    if word.isupper() and len(word) > 1:
        return "noun"
    lists: tuple[tuple[Class, frozenset[str]], ...] = (
        ("conj", known.CONJUNCTIONS),
        ("pron", known.PRONOUNS - known.DETERMINERS),
        ("det", known.DETERMINERS),
        ("rel", known.RELATIVE),
        ("aux", known.AUXILIARIES),
        ("adv", known.ADVERBS),
        ("num", known.NUMBERS),
        ("adj", known.ADJECTIVES | known.COLOURS),
    )
    for kind, words in lists:
        if low in words:
            return kind
    if word.replace(".", "").replace(",", "").isdigit():
        return "num"
    if word[0].isupper() and (low in known.NATIONS or _NATION.match(word)):
        return "adj"
    if low.endswith("ly") and len(low) > 4 and not low.endswith("fly") and low not in known.LY_NOUNS:
        return "adv"
    if (
        (_SUFFIX.match(low) and not low.endswith("fish") and low not in _NO_SUFFIX)
        or low in known.NATIONS
        or low == "european"
    ):
        return "adj"
    participle = (low.endswith("ing") and len(low) > 4) or (
        low.endswith("ed") and len(low) > 3 and not low.endswith("eed")
    )
    if (participle and low not in known.PARTICIPLE_NOUNS) or low in known.IRREGULAR:
        return "verb"
    return "noun"


def _settle(tokens: list[_Token]) -> None:
    """Settles by their neighbours the words that can be of two classes. Changes the tokens."""
    end = _Token("", -1, -1, "stop")
    for i, token in enumerate(tokens):
        before, after = tokens[i - 1] if i else end, tokens[i + 1] if i + 1 < len(tokens) else end
        if (
            token.kind == "adj"
            and token.capital
            and i
            and before.kind != "stop"
            and after.capital
            and after.kind in ("noun", "adj")
        ):
            token.kind = "noun"  # part of a name
        elif token.low == "can" and before.kind in ("det", "adj", "noun") and after.low not in known.VERB_STEMS:
            token.kind = "noun"
        elif token.low == "to" and after.low in known.VERB_STEMS:
            token.kind = "aux"
        elif token.low == "that" and before.kind == "noun":
            token.kind = "rel"
        elif token.kind == "noun" and _is_verb(before, token, after):
            token.kind = "verb"
        if before.kind == "det" and token.kind in ("aux", "verb", "stop", "prep") and not _describes(tokens, i):
            before.kind = "pron"
    for i in reversed(range(len(tokens))):
        if tokens[i].kind == "adj" and _last_of_phrase(tokens, i):
            tokens[i].kind = "noun"


def _is_verb(before: _Token, token: _Token, after: _Token) -> bool:
    """Whether a word that could be a noun is a verb where it stands."""
    low, subject = token.low, before.kind in ("noun", "rel", "pron")
    if low in known.VERB_STEMS:
        if before.kind in ("stop", "conj"):
            return after.kind == "det"  # "Enter the cave"
        many = before.low.endswith("s") and not before.low.endswith(("ss", "us"))
        return before.kind in ("aux", "pron", "rel") or (
            before.kind == "noun" and after.kind in (("det", "prep", "noun", "adj") if many else ("det", "prep"))
        )
    subject = subject or before.low in ("this", "that") or before.low in known.NOUNS_TOO
    return low in known.VERB_FORMS and subject and after.kind in ("det", "prep", "num", "pron", "adj")


def _describes(tokens: list[_Token], i: int) -> bool:
    """Whether a participle describes the noun after it: no noun or auxiliary before it, and a noun phrase without article behind."""
    if not tokens[i].low.endswith(("ing", "ed", "en")) or tokens[i].kind != "verb" or i + 1 == len(tokens):
        return False
    before = tokens[i - 1].kind if i else "stop"
    return before not in ("noun", "aux", "pron", "rel", "verb") and tokens[i + 1].kind in ("noun", "adj", "verb")


def _last_of_phrase(tokens: list[_Token], i: int) -> bool:
    """Whether an adjective stands where the noun of its phrase must be."""
    after = [x.kind for x in tokens[i + 1 : i + 3]] + ["stop", "stop"]
    if after[0] in ("noun", "adj", "num") or (after[0] in ("conj", "comma") and after[1] == "adj"):
        return False
    if i + 1 < len(tokens) and _describes(tokens, i + 1):
        return False
    first = i
    while first and tokens[first - 1].kind in ("adj", "num", "adv"):
        first -= 1
    article = bool(first) and tokens[first - 1].kind == "det"
    copula = bool(first) and tokens[first - 1].kind == "aux"
    return article or (tokens[i].low in known.NOUNS_TOO and not copula)


# --------------------------------------------------------------------------------------------------------- phrases and what ties them


@dataclass(slots=True)
class _Clause:
    """What the words so far can be tied to."""

    subject: int | None = None
    last: int | None = None
    """The noun just read."""
    verb_object: bool = False
    """It came after a verb."""
    pending: Span | None = None
    """Words of a relation that waits for its object."""
    holder: int | None = None
    """The subject of that relation."""
    by_verb: bool = False
    copula: bool = False
    conjoined: bool = False
    """The word before was "and" or a comma."""
    shared: tuple[int, Span] | None = None
    """The relation just closed, which a noun without article after "and" shares."""


class _Reader:
    """Reads classed words from left to right."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens, self.at = tokens, 0
        self.objects: list[Span] = []
        self.attributes: list[tuple[int, Span]] = []
        self.relations: list[tuple[int, Span, int]] = []
        self.clause = _Clause()
        self.outer: list[_Clause] = []

    def kind(self, place: int) -> Class:
        return self.tokens[place].kind if 0 <= place < len(self.tokens) else "stop"

    def step(self) -> None:
        """Reads one word, mark or noun phrase."""
        head, token, clause = self.head(), self.tokens[self.at], self.clause
        if head is not None:
            self.noun_phrase(head)
            return
        self.at += 1
        match token.kind:
            case "stop":
                self.clause = _Clause()
            case "open":
                self.outer.append(clause)
                self.clause = _Clause()
            case "close":
                self.clause = self.outer.pop() if self.outer else clause
            case "comma" | "conj":
                clause.conjoined, clause.pending = True, None
            case "pron":
                self.clause = _Clause()
            case "aux":
                clause.copula = token.low not in known.HAVE and token.low != "to"
                if token.low in known.HAVE and self.head() is not None:
                    self.wait(token, by_verb=True)
            case "prep" if clause.pending is not None and clause.by_verb:
                clause.pending = clause.pending[0], token.end  # "lands on"
            case "prep" | "verb":
                self.wait(token, by_verb=token.kind == "verb")
            case "adj" if clause.copula and clause.subject is not None:
                self.attributes.append((clause.subject, (token.start, token.end)))

    def wait(self, token: _Token, by_verb: bool) -> None:
        """A relation begins; its object comes with the next noun."""
        clause = self.clause
        nearest = token.low == "of" or (by_verb and clause.verb_object)
        clause.holder = clause.last if nearest else clause.subject
        clause.pending = None if clause.holder is None else (token.start, token.end)
        clause.by_verb, clause.conjoined, clause.copula = by_verb, False, False

    def head(self) -> int | None:
        """Place of the first noun of the noun phrase that begins here; None = none begins."""
        i = self.at
        while (kind := self.kind(i)) != "noun":
            joint = kind in ("conj", "comma") and i > self.at and "adj" == self.kind(i - 1) == self.kind(i + 1)
            if not (joint or kind in ("det", "adv", "adj", "num") or (kind == "verb" and _describes(self.tokens, i))):
                return None
            i += 1
        return i

    def noun_phrase(self, head: int) -> None:
        """Reads a noun phrase: an object and what describes it; an owner ("a knight's helmet") is an object of its own."""
        own_article = self.kind(self.at) == "det"
        words = [x for x in self.tokens[self.at : head] if x.kind in ("adj", "num", "verb")]
        nouns = [self.tokens[head]]
        self.at = head + 1
        while (found := self.head()) is not None and self.goes_on(nouns[-1], found):
            if nouns[-1].owner:
                self.objects.append((nouns[0].start, nouns[-1].end - 2))
                self.attributes.extend((len(self.objects) - 1, (x.start, x.end)) for x in words)
                words, nouns = [], []
            elif found > self.at or nouns[-1].quoted:
                words, nouns = [*words, replace(nouns[0], end=nouns[-1].end)], []
            words += self.tokens[self.at : found]
            nouns.append(self.tokens[found])
            self.at = found + 1
        number = len(self.objects)
        self.objects.append((nouns[0].start, nouns[-1].end))
        if nouns[-1].low in known.NAMED and self.named():
            words.append(self.tokens[self.at])
            self.at += 1
        self.attributes.extend((number, (x.start, x.end)) for x in words)
        self.tie(number, own_article)

    def goes_on(self, last: _Token, found: int) -> bool:
        """Whether a phrase goes on after its noun: by another noun, behind an owner ("Grandma's old doll"), by a number ("a US 25 cent piece")."""
        if found == self.at:
            return not (last.low in known.NAMED and self.named())
        between = {x.kind for x in self.tokens[self.at : found]}
        return between <= {"adj", "num"} if last.owner else between == {"num"} and last.capital

    def named(self) -> bool:
        """Whether a letter or number follows that is the name of the noun before it."""
        if self.at == len(self.tokens):
            return False
        token = self.tokens[self.at]
        alone = len(token.word) == 1 and token.word.isalnum() and self.kind(self.at + 1) not in ("noun", "adj")
        return alone or (token.kind == "num" and self.kind(self.at + 1) != "noun")

    def tie(self, number: int, own_article: bool) -> None:
        """Ties an object to the relation that waits for it, or makes it the subject."""
        clause = self.clause
        if clause.pending is not None and clause.holder is not None:
            self.relations.append((clause.holder, clause.pending, number))
            clause.shared, clause.verb_object = (clause.holder, clause.pending), clause.by_verb
        elif clause.conjoined and not own_article and clause.shared is not None:
            self.relations.append((*clause.shared, number))
        else:
            clause.subject, clause.verb_object, clause.shared = number, False, None
        clause.last, clause.pending, clause.conjoined, clause.copula = number, None, False, False


def read(text: str) -> TextGraph:
    """The graph of a caption."""
    reader = _Reader(_tokens(text))
    _skip_picture(reader)
    while reader.at < len(reader.tokens):
        reader.step()
    return TextGraph(tuple(reader.objects), tuple(reader.attributes), tuple(reader.relations))


def _skip_picture(reader: _Reader) -> None:
    """Passes over "a picture of" at the beginning."""
    for i, token in enumerate(reader.tokens[:6]):
        if token.low in known.PICTURES and i + 1 < len(reader.tokens) and reader.tokens[i + 1].low == "of":
            reader.at = i + 2
