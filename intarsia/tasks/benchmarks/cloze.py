"""The cloze test on Flickr30k: one node of a caption's scene graph is hidden, an object, an attribute or a relation. Source: ERNIE-ViL, sec. 4.

Neither the pairs of the authors nor their parser's graphs were published, so these are pairs of our own choice, by the rules of `intarsia.text_graph` or by graphs in a
file `graphs.jsonl` of the folder (see `load_graphs`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from intarsia.errors import BadInput
from intarsia.objectives import sgp
from intarsia.tasks.benchmarks import karpathy
from intarsia.tasks.benchmarks.items import Annotations, Empty, Item, Missing, find_file
from intarsia.text_graph import Span, TextGraph, load_graphs, read_graph

NAME = "flickr30k-cloze"
SPLITS = (*karpathy.SPLITS, "all")
GRAPHS = "graphs.jsonl"
EACH = 5000
"""Nodes of each kind."""
KINDS = {"sgp_object": "objects", "sgp_attribute": "attributes", "sgp_relation": "relations"}


class Node(NamedTuple):
    """What is hidden of an item's text."""

    kind: str
    """One of `KINDS`' values."""
    start: int
    end: int
    """Past-last character."""


def read(root: Path, split: str, each: int = EACH) -> Annotations:
    """`dataset_flickr30k.json`; an item a caption of which one node is hidden. The same choice wherever the files are the same.

    Captions come in an order drawn once; each gives a node of that kind of which there are fewest so far, if it has one, until there are enough of all.

    Args:
        root: the folder.
        split: one of `SPLITS`; "all" = the whole set, as only that has enough captions for 5,000 of each kind.
        each: nodes of a kind at the most.
    """
    items = list(_captions(root, split))
    graph_of, rng = _graphs(root), np.random.default_rng(0xC102E)
    taken, chosen, gold = Counter[str](dict.fromkeys(KINDS.values(), 0)), list[Item](), dict[str, Node]()
    for place in rng.permutation(len(items)):
        wanting = [kind for kind, count in taken.items() if count < each]
        if not wanting:
            break
        item = items[int(place)]
        found = nodes_of(graph_of(item.texts[0]))
        kinds = [kind for kind in wanting if found[kind]]
        if kinds:
            kind = min(kinds, key=taken.__getitem__)
            start, end = found[kind][int(rng.integers(len(found[kind])))]
            chosen.append(replace(item, also=()))
            gold[item.key] = Node(kind, start, end)
            taken[kind] += 1
    return Annotations(NAME, split, tuple(chosen), gold)


def _captions(root: Path, split: str) -> Iterator[Item]:
    for part in karpathy.SPLITS if split == "all" else (split,):
        try:
            yield from karpathy.READERS["flickr30k"](root, part).items
        except Empty:
            if split != "all":
                raise


def nodes_of(graph: TextGraph) -> dict[str, list[Span]]:
    """By kind, the spans that may be hidden: those that have no character in common with an object that they stand by."""

    def apart(span: Span, anchors: tuple[Span, ...]) -> bool:
        return all(span[1] <= x[0] or x[1] <= span[0] for x in anchors)

    return {name: [span for span, by in sgp.nodes(graph, goal) if apart(span, by)] for goal, name in KINDS.items()}


def _graphs(root: Path) -> Callable[[str], TextGraph]:
    try:
        path = find_file(root, GRAPHS)
    except Missing:
        return read_graph
    graphs = load_graphs(path)

    def graph_of(text: str) -> TextGraph:
        if text not in graphs:
            raise BadInput(f"{path}: no graph of the caption {text!r}")
        return graphs[text]

    return graph_of
