import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.packed import Packing, join, joined_rows, pad, round_up, unpad, visible

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
LENGTHS = st.lists(st.integers(0, 20), min_size=1, max_size=6)


@st.composite
def streams(draw, count: int) -> list[Packing]:
    """Packings of the same documents, with or without levels."""
    documents = draw(st.integers(1, 6))
    made = []
    for _ in range(count):
        lengths = draw(st.lists(st.integers(0, 20), min_size=documents, max_size=documents))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        made.append(Packing.of(lengths, rng.integers(0, 4, sum(lengths)) if draw(st.booleans()) else None))
    return made


@SETTINGS
@given(LENGTHS)
def test_of_says_where_every_row_lies(lengths):
    packing = Packing.of(lengths)
    expected = [(b, i) for b, n in enumerate(lengths) for i in range(n)]
    assert list(zip(packing.doc.tolist(), packing.pos.tolist(), strict=True)) == expected
    assert packing.lengths.tolist() == lengths
    assert packing.cu_seqlens.tolist() == np.cumsum([0, *lengths]).tolist()
    assert (packing.documents, packing.rows) == (len(lengths), sum(lengths))
    assert packing.max_seqlen % 16 == 0
    assert max(16, max(lengths)) <= packing.max_seqlen < max(lengths) + 17
    assert packing.cu_seqlens.dtype == torch.int32
    assert packing.doc.dtype == packing.pos.dtype == packing.first.dtype == torch.int64
    for b, n in enumerate(lengths):
        if n:
            assert (packing.doc[packing.first[b]], packing.pos[packing.first[b]]) == (b, 0)


def test_of_no_documents():
    packing = Packing.of([])
    assert (packing.documents, packing.rows, packing.max_seqlen) == (0, 0, 16)


@SETTINGS
@given(LENGTHS, st.sampled_from([None, 20, 37]), st.sampled_from([(), (3,), (2, 4)]))
def test_unpad_undoes_pad_and_padding_holds_the_fill(lengths, length, tail):
    packing = Packing.of(lengths)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((packing.rows, *tail)))
    block = pad(x, packing, length, fill=7.0)
    assert block.shape == (len(lengths), length or packing.max_seqlen, *tail)
    assert torch.equal(unpad(block, packing), x)
    for b, n in enumerate(lengths):
        start = int(packing.cu_seqlens[b])
        assert torch.equal(block[b, :n], x[start : start + n])
        assert (block[b, n:] == 7.0).all()


def test_pad_and_unpad_carry_gradients():
    packing = Packing.of([2, 0, 3])
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: unpad(pad(y, packing).sin(), packing), (x,))


@SETTINGS
@given(streams(2))
def test_join_puts_a_before_b_inside_each_document(pair):
    a, b = pair
    joined = join(a, b)
    marks_a = torch.arange(a.rows)
    marks_b = torch.arange(b.rows) + 1000
    expected, levels = [], []
    for d in range(a.documents):
        for x, marks in ((a, marks_a), (b, marks_b)):
            mine = (x.doc == d).nonzero()[:, 0]
            expected += marks[mine].tolist()
            levels += ([0] * len(mine)) if x.level is None else x.level[mine].tolist()
    assert joined_rows(joined, marks_a, marks_b).tolist() == expected
    reference = Packing.of((a.lengths + b.lengths).tolist())
    assert joined.packing.max_seqlen >= reference.max_seqlen
    for name in ("cu_seqlens", "doc", "pos"):
        assert torch.equal(getattr(joined.packing, name), getattr(reference, name))
        assert getattr(joined.packing, name).dtype == getattr(reference, name).dtype
    if a.level is None and b.level is None:
        assert joined.packing.level is None
    else:
        assert joined.packing.level is not None
        assert joined.packing.level.dtype == torch.int32
        assert joined.packing.level.tolist() == levels


@SETTINGS
@given(streams(2))
def test_joined_rows_are_taken_back_by_their_numbers(pair):
    a, b = pair
    joined = join(a, b)
    rng = np.random.default_rng(1)
    x, y = (torch.from_numpy(rng.standard_normal((p.rows, 3))) for p in (a, b))
    both = joined_rows(joined, x, y)
    assert torch.equal(both[joined.rows_a], x)
    assert torch.equal(both[joined.rows_b], y)


def test_joined_rows_carry_gradients():
    a, b = Packing.of([2, 0, 1]), Packing.of([1, 3, 0])
    joined = join(a, b)
    x, y = (torch.randn(p.rows, 2, dtype=torch.float64, requires_grad=True) for p in (a, b))
    assert torch.autograd.gradcheck(lambda u, w: joined_rows(joined, u, w).sin(), (x, y))


def test_join_refuses_streams_of_other_documents():
    with pytest.raises(ValueError, match="2 and 3 documents"):
        join(Packing.of([1, 2]), Packing.of([1, 2, 3]))


@SETTINGS
@given(streams(2), st.booleans())
def test_visible_is_the_rule(pair, to_itself):
    queries, keys = pair[0], pair[0] if to_itself else pair[1]
    block = visible(queries, keys)
    assert block.shape == (queries.documents, queries.max_seqlen, keys.max_seqlen)
    expected = torch.zeros_like(block)
    for i in range(queries.rows):
        for j in range(keys.rows):
            level_q = 0 if queries.level is None else queries.level[i]
            level_k = 0 if keys.level is None else keys.level[j]
            if queries.doc[i] == keys.doc[j] and level_k <= level_q:
                expected[queries.doc[i], queries.pos[i], keys.pos[j]] = True
    assert torch.equal(block, expected)


def test_levels_make_prefix_and_causal_masks():
    prefix = visible(*[Packing.of([4], np.array([0, 0, 1, 2]))] * 2)[0, :4, :4]
    assert prefix.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    causal = visible(*[Packing.of([3], np.arange(3))] * 2)[0, :3, :3]
    assert torch.equal(causal, torch.ones(3, 3, dtype=torch.bool).tril())


@pytest.mark.parametrize(("n", "rounded"), [(0, 16), (1, 16), (16, 16), (17, 32), (33, 48)])
def test_round_up(n, rounded):
    assert round_up(n) == rounded
