"""Scene graphs of captions: which characters name objects, which describe them, which relate them.

    read_graph("a red circle left of a blue square", "en")

Source of the idea: ERNIE-ViL, sec. 3.2 (the Scene Graph Parser of Anderson et al., 2016). The parsers here are rules of our own, with no model and
nothing to download: exact on generated captions, measured on real ones (docs/systems/ernie_vil.md). Graphs of a better parser can be read from a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intarsia.errors import BadInput

Span = tuple[int, int]
"""First and past-last character."""


@dataclass(frozen=True, slots=True)
class TextGraph:
    """The scene graph of a caption; objects are named by their number."""

    objects: tuple[Span, ...] = ()
    """The nouns, with the nouns that stand before them ("birthday cake"), without articles."""
    attributes: tuple[tuple[int, Span], ...] = ()
    """(object, words that describe it)"""
    relations: tuple[tuple[int, Span, int], ...] = ()
    """(subject, words of the relation, object)"""


def read_graph(text: str, language: str = "en") -> TextGraph:
    """The graph of a caption, by rules.

    Raises:
        BadInput: there are no rules for the language.
    """
    from intarsia.text_graph import chinese, english

    readers = {"en": english.read, "zh": chinese.read, "zh-hant": chinese.read}
    if language not in readers:
        raise BadInput(f"caption {text!r}: no rules read graphs of language {language!r}, only {', '.join(readers)}")
    return readers[language](text)


def load_graphs(path: Path | str) -> dict[str, TextGraph]:
    """Graphs that another parser made, one a line of JSON.

    A line has "text", "objects" [[start, end]], "attributes" [[object, [start, end]]] and "relations" [[subject, [start, end], object]]; spans count
    characters of the text, objects are named by their number.

    Returns:
        Caption -> its graph.

    Raises:
        BadInput: no such file, or a line that does not say a graph (names it).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as graphs of captions: {error}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            tree = json.loads(line)
            found[str(tree["text"])] = _graph(tree)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BadInput(f"{path}, line {number}: not the graph of a caption: {error!r}") from None
    return found


def _graph(tree: Mapping[str, Any]) -> TextGraph:
    text, objects = str(tree["text"]), tree["objects"]

    def span(pair: Any) -> Span:
        start, end = map(int, pair)
        if not 0 <= start < end <= len(text):
            raise ValueError(f"{pair} is no span of {text!r}")
        return start, end

    def thing(number: Any) -> int:
        if not 0 <= int(number) < len(objects):
            raise ValueError(f"object {number} of {len(objects)}")
        return int(number)

    return TextGraph(
        tuple(map(span, objects)),
        tuple((thing(a), span(words)) for a, words in tree["attributes"]),
        tuple((thing(a), span(words), thing(b)) for a, words, b in tree["relations"]),
    )
