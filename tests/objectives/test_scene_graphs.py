"""Scene graph prediction: nodes at the rate and whole, what they stand by stays, other words are hidden apart."""

from __future__ import annotations

import numpy as np
import pytest

from intarsia.batch import Example
from intarsia.layout import bert_rows
from intarsia.objectives import sgp
from intarsia.text import Pieces, Vocab
from intarsia.text_graph import TextGraph, read_graph

TEXT = "a big rhombus to the left of a small red pentagram and a green hoop"
WHOLE = Vocab.learn([f"! {TEXT}"], 400).tokens
VOCAB = Vocab([x for x in WHOLE if x not in ("rhombus", "pentagram")])
"""Without these two words, so that each is several pieces."""
DRAWS = 3000


def laid() -> tuple[Example, Pieces]:
    rows, (pieces,) = bert_rows(VOCAB, "a", [(TEXT, 0)], 80)
    return Example("a", rows), pieces


def test_whole_words_of_a_span() -> None:
    _, pieces = laid()
    start = TEXT.index("rhombus")
    rows = sgp.rows_of((start, start + 2), pieces)
    assert len(rows) > 1
    assert [int(x) for x in pieces.spans[rows - 1][[0, -1], [0, 1]]] == [start, start + len("rhombus")]


@pytest.mark.parametrize(("goal", "count"), [("sgp_object", 3), ("sgp_attribute", 4), ("sgp_relation", 1)])
def test_nodes_are_hidden_whole_and_at_the_rate(goal: str, count: int) -> None:
    _, pieces = laid()
    graph = read_graph(TEXT)
    wanted = [set(sgp.rows_of(span, pieces).tolist()) for span, _ in sgp.nodes(graph, goal)]
    stay = [{x for s in by for x in sgp.rows_of(s, pieces).tolist()} for _, by in sgp.nodes(graph, goal)]
    assert len(wanted) == count
    hidden = masked = kept = 0
    for seed in range(DRAWS):
        before, after = laid()[0].text, laid()[0]
        held = sgp.hide(after, pieces, graph, VOCAB, np.random.default_rng(seed), goal)
        assert before is not None
        assert after.text is not None
        pick = after.targets[goal]
        assert not isinstance(pick, np.ndarray)
        rows = set(pick.rows.tolist())
        chosen = [i for i, x in enumerate(wanted) if x <= rows]
        assert rows == set().union(*(wanted[i] for i in chosen))  # nothing but whole nodes
        assert chosen
        assert set(held.tolist()) == rows.union(*(stay[i] for i in chosen))
        np.testing.assert_array_equal(pick.labels, before.ids[pick.rows])
        rest = np.setdiff1d(np.arange(len(before.ids)), pick.rows)
        np.testing.assert_array_equal(after.text.ids[rest], before.ids[rest])
        for i in chosen:
            now, was = after.text.ids[sorted(wanted[i])], before.ids[sorted(wanted[i])]
            masked += bool((now == VOCAB.mask).all())
            kept += bool((now == was).all())
            assert (now == VOCAB.mask).all() or not (now == VOCAB.mask).any()  # one fate a node
        hidden += len(chosen)
    expected = DRAWS * (count * 0.3 + 0.7**count)
    assert abs(hidden - expected) <= 5 * (DRAWS * count * 0.25) ** 0.5
    for found, share in ((masked, 0.8), (kept, 0.1)):
        assert abs(found - hidden * share) <= 5 * (hidden * share * (1 - share)) ** 0.5 + 0.02 * hidden


@pytest.mark.parametrize("goal", sgp.GOALS)
def test_other_words_are_hidden_at_their_rate_and_never_what_is_held(goal: str) -> None:
    graph, total, words = read_graph(TEXT), 0, 0
    for seed in range(DRAWS):
        (example, pieces), rng = laid(), np.random.default_rng(seed)
        assert example.text is not None
        before = example.text.words.copy()
        held = sgp.hide(example, pieces, graph, VOCAB, rng, goal)
        sgp.hide_others(example, VOCAB, rng, held)
        np.testing.assert_array_equal(example.text.words, before)
        pick = example.targets["mlm"]
        assert not isinstance(pick, np.ndarray)
        assert not set(pick.rows.tolist()) & set(held.tolist())
        assert (before[pick.rows] >= 0).all()  # never [CLS] or [SEP]
        total += len(np.unique(before[pick.rows]))
        words += len(np.unique(np.delete(before, held))) - 1
    assert abs(total - words * 0.15) <= 5 * (words * 0.15 * 0.85) ** 0.5


def test_a_caption_without_such_nodes_hides_none() -> None:
    example, pieces = laid()
    held = sgp.hide(example, pieces, TextGraph(), VOCAB, np.random.default_rng(0), "sgp_relation")
    pick = example.targets["sgp_relation"]
    assert not isinstance(pick, np.ndarray)
    assert len(held) == len(pick.rows) == 0


def test_nodes_that_share_words_are_not_hidden_together() -> None:
    graph = TextGraph(
        ((6, 13), (37, 46)), ((0, (2, 5)), (1, (2, 5))), ((0, (6, 13), 1),)
    )  # a relation that lies on its own object
    example, pieces = laid()
    sgp.hide(example, pieces, graph, VOCAB, np.random.default_rng(0), "sgp_relation")
    assert len(example.targets["sgp_relation"].rows) == 0  # type: ignore[union-attr]
    sgp.hide(example, pieces, graph, VOCAB, np.random.default_rng(0), "sgp_attribute", rate=1.0)
    rows = example.targets["sgp_attribute"].rows  # type: ignore[union-attr]
    assert rows.tolist() == sgp.rows_of((2, 5), pieces).tolist()


def test_other_goals_are_refused() -> None:
    with pytest.raises(ValueError, match="mlm is none of sgp_object"):
        sgp.nodes(TextGraph(), "mlm")
