"""How well the rules read captions whose graphs are known: `python -m intarsia.text_graph.measure graphs.jsonl` prints precision and recall of each kind."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tyro

from intarsia.errors import BadInput
from intarsia.text_graph import TextGraph, load_graphs, read_graph

KINDS = ("objects", "attributes", "relations")


@dataclass(frozen=True)
class Agreement:
    """Nodes of one kind, over all captions."""

    right: int
    """Found, and there."""
    found: int
    there: int

    @property
    def precision(self) -> float:
        """Share of what was found that is there; 1 where nothing was found."""
        return self.right / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """Share of what is there that was found; 1 where nothing is there."""
        return self.right / self.there if self.there else 1.0

    def __str__(self) -> str:
        return f"{100 * self.precision:.1f} / {100 * self.recall:.1f} %"


def nodes(graph: TextGraph) -> dict[str, set[object]]:
    """The nodes of a graph by kind, as spans; an attribute or relation with those of its objects, so that it counts only where they are right too."""
    named = graph.objects
    return {
        "objects": set(named),
        "attributes": {(named[of], words) for of, words in graph.attributes},
        "relations": {(named[a], words, named[b]) for a, words, b in graph.relations},
    }


def agreement(graphs: Mapping[str, TextGraph], language: str = "en") -> dict[str, Agreement]:
    """What `read_graph` finds of captions against their known graphs, by kind.

    Raises:
        BadInput: there are no rules for the language.
    """
    both = [(nodes(read_graph(text, language)), nodes(graph)) for text, graph in graphs.items()]
    found = {}
    for kind in KINDS:
        sizes = [(len(ours[kind] & gold[kind]), len(ours[kind]), len(gold[kind])) for ours, gold in both]
        right, all_found, there = (sum(x) for x in zip(*sizes, strict=True)) if sizes else (0, 0, 0)
        found[kind] = Agreement(right, all_found, there)
    return found


@dataclass
class Options:
    """Precision and recall of the rules on captions whose graphs are known."""

    graphs: tyro.conf.Positional[str]
    """A line of JSON a caption, as `load_graphs` reads them."""
    language: str = "en"
    less: str = ""
    """Captions that match this regular expression do not count."""


def main(args: Sequence[str] | None = None) -> None:
    """Prints the table."""
    options = tyro.cli(Options, args=args, prog="python -m intarsia.text_graph.measure")
    try:
        graphs = load_graphs(options.graphs)
        kept = {text: x for text, x in graphs.items() if not (options.less and re.search(options.less, text))}
        found = agreement(kept, options.language)
    except (BadInput, re.error) as error:
        print(f"intarsia: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{len(kept)} of {len(graphs)} captions: precision / recall")
    for kind, each in found.items():
        print(f"{kind:10} {each}  ({each.right} right of {each.found} found, {each.there} there)")


if __name__ == "__main__":
    main()
