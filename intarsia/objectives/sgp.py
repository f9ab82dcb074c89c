"""SGP, scene graph prediction: hide the words of a caption that name its objects, attributes or relations, then name them. Source: ERNIE-ViL, sec. 3.2.

Scored by `mlm.score`, with the same head.
"""

from __future__ import annotations

import numpy as np

from intarsia.batch import Array, Example
from intarsia.objectives import mlm
from intarsia.text import Pieces, Vocab
from intarsia.text_graph import Span, TextGraph

GOALS = ("sgp_object", "sgp_attribute", "sgp_relation")


def nodes(graph: TextGraph, goal: str) -> list[tuple[Span, tuple[Span, ...]]]:
    """The nodes that a goal may hide: the words of each, and the words of the objects that it stands by, which stay.

    Raises:
        ValueError: no such goal.
    """
    things = graph.objects
    match goal:
        case "sgp_object":
            return [(span, ()) for span in things]
        case "sgp_attribute":
            return [(span, (things[i],)) for i, span in graph.attributes]
        case "sgp_relation":
            return [(span, (things[i], things[j])) for i, span, j in graph.relations]
    raise ValueError(f"{goal} is none of {', '.join(GOALS)}")


def rows_of(span: Span, pieces: Pieces, first: int = 1) -> Array:
    """The text rows of all words that a span touches, whole.

    Args:
        span: characters of the text.
        pieces: of the text.
        first: row of its first piece.
    """
    touched = (pieces.spans[:, 0] < span[1]) & (pieces.spans[:, 1] > span[0])
    return first + np.flatnonzero(np.isin(pieces.words, pieces.words[touched]))


def hide(
    example: Example,
    pieces: Pieces,
    graph: TextGraph,
    vocab: Vocab,
    rng: np.random.Generator,
    goal: str,
    rate: float = 0.3,
) -> Array:
    """Hides nodes, each with probability `rate`, at least one if there are any; all words of a node share its fate, as 80/10/10. Changes the example.

    A node with a word in common with one hidden before it, or with an object that it stands by, is left alone.

    Args:
        example: laid out; the caption's pieces follow its first row.
        pieces: of the caption.
        graph: of the caption.
        vocab: gives [MASK] and random pieces.
        rng: source of randomness.
        goal: one of `GOALS`, and the name of the target.
        rate: probability of each node.

    Returns:
        (M) text rows that nothing else may hide: those of the hidden nodes and of the objects they stand by.
    """
    found = nodes(graph, goal)
    chosen = rng.random(len(found)) < rate
    if len(found) and not chosen.any():
        chosen[rng.integers(len(found))] = True
    taken, kept = dict[int, float](), set[int]()
    for place, share in zip(np.flatnonzero(chosen).tolist(), rng.random(int(chosen.sum())), strict=True):
        rows = set(rows_of(found[place][0], pieces).tolist())
        anchors = {int(row) for span in found[place][1] for row in rows_of(span, pieces)}
        if rows & (taken.keys() | kept | anchors) or anchors & taken.keys():
            continue
        taken |= dict.fromkeys(rows, float(share))
        kept |= anchors
    order = np.array(sorted(taken), np.int64)
    mlm.write(example, vocab, rng, order, np.array([taken[x] for x in order.tolist()]), vocab.first_ordinary, goal)
    return np.array(sorted(taken.keys() | kept), np.int64)


def hide_others(
    example: Example, vocab: Vocab, rng: np.random.Generator, held: Array, rate: float = 0.15, goal: str = "mlm"
) -> Example:
    """Hides whole words as `mlm.hide_words` does, but none of the rows `held` (M). Changes and returns the example."""
    text = example.text
    assert text is not None, f"{example.key}: no text to hide"
    words = text.words
    text.words = words.copy()
    text.words[held] = -1
    mlm.hide_words(example, vocab, rng, rate, goal)
    text.words = words
    return example
