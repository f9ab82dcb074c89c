import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from intarsia.attend import (
    _flex,
    attend,
    choose,
    noise,
    probabilities,
    refusal,
    use_backend,
    watch,
)
from intarsia.packed import Packing, pad, unpad

HEADS, D = 2, 16
SETTINGS = settings(max_examples=30, deadline=None, derandomize=True)


def rows(packing: Packing, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    draws = np.random.default_rng([seed, packing.rows]).standard_normal((packing.rows, HEADS, D))
    return torch.from_numpy(draws).to(dtype).requires_grad_()


def brute_force(q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing) -> Tensor:
    out = []
    for i in range(queries.rows):
        seen = []
        for j in range(keys.rows):
            level_q = 0 if queries.level is None else int(queries.level[i])
            level_k = 0 if keys.level is None else int(keys.level[j])
            if queries.doc[i] == keys.doc[j] and level_k <= level_q:
                seen.append(j)
        if not seen:
            out.append(torch.zeros_like(q[i]))
            continue
        scores = torch.einsum("hd,khd->hk", q[i], k[seen]) / math.sqrt(D)
        out.append(torch.einsum("hk,khd->hd", scores.softmax(-1), v[seen]))
    return torch.stack(out) if out else torch.zeros_like(q)


def with_grads(function, q: Tensor, k: Tensor, v: Tensor, *args) -> list[Tensor]:
    out = function(q, k, v, *args)
    weights = torch.from_numpy(np.random.default_rng(5).standard_normal(out.shape)).to(out.dtype)
    loss = (out * weights).sum() + 0.0 * (q.sum() + k.sum() + v.sum())
    return [out.detach(), *torch.autograd.grad(loss, (q, k, v))]


def levels(kind: str, lengths: list[int], rng: np.random.Generator) -> np.ndarray | None:
    if kind == "none":
        return None
    if kind == "causal":
        per = [np.arange(n) for n in lengths]
    elif kind == "prefix":
        per = [np.maximum(np.arange(n) - n // 2, 0) for n in lengths]
    else:
        per = [rng.integers(0, 4, n) for n in lengths]
    return np.concatenate(per).astype(np.int32) if per else np.zeros(0, np.int32)


@st.composite
def packings(draw) -> tuple[Packing, Packing]:
    count = draw(st.integers(1, 5))
    sizes = st.lists(st.integers(0, 9), min_size=count, max_size=count)
    kinds = st.sampled_from(["none", "causal", "prefix", "random"])
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    lengths = draw(sizes)
    queries = Packing.of(lengths, levels(draw(kinds), lengths, rng))
    if draw(st.booleans()):
        return queries, queries
    lengths = draw(sizes)
    return queries, Packing.of(lengths, levels(draw(kinds), lengths, rng))


@SETTINGS
@given(packings(), st.sampled_from(["padded", "loop"]))
def test_backend_equals_brute_force_in_values_and_gradients(pair, backend):
    queries, keys = pair
    q, k, v = rows(queries, 0), rows(keys, 1), rows(keys, 2)
    with use_backend(backend):
        found = with_grads(attend, q, k, v, queries, keys)
    expected = with_grads(brute_force, q, k, v, queries, keys)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, atol=2e-6, rtol=1e-5)


@SETTINGS
@given(packings())
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_block_mask_and_rule_equal_padded(pair):
    queries, keys = pair
    q, k, v = (x.detach() for x in (rows(queries, 0), rows(keys, 1), rows(keys, 2)))
    with use_backend("padded"):
        expected = attend(q, k, v, queries, keys)
    assert_close(_flex(q, k, v, queries, keys), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_over_several_blocks():
    rng = np.random.default_rng(0)
    queries, keys = (Packing.of(lengths) for lengths in ([100, 0, 130, 3, 60], [7, 5, 300, 0, 90]))
    levelled = Packing.of([100, 0, 130, 3, 60], rng.integers(0, 3, 293))
    for a, b in ((queries, keys), (queries, queries), (levelled, levelled), (keys, levelled)):
        q, k, v = (x.detach() for x in (rows(a, 0), rows(b, 1), rows(b, 2)))
        with use_backend("padded"):
            assert_close(_flex(q, k, v, a, b), attend(q, k, v, a, b), atol=2e-6, rtol=1e-5)


@SETTINGS
@given(st.lists(st.integers(1, 12), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_neither_neighbours_nor_order_matter(lengths, random):
    whole = Packing.of(lengths)
    q, k, v = (rows(whole, i).detach() for i in range(3))
    order = list(range(len(lengths)))
    random.shuffle(order)
    moved = [torch.cat([x.split(lengths)[i] for i in order]) for x in (q, k, v)]
    packing = Packing.of([lengths[i] for i in order])
    alone = Packing.of([lengths[0]])
    for backend in ("padded", "loop"):
        with use_backend(backend):
            out = attend(q, k, v, whole, whole).split(lengths)
            out_moved = attend(*moved, packing, packing).split([lengths[i] for i in order])
            first = attend(*(x[: lengths[0]] for x in (q, k, v)), alone, alone)
        for place, i in enumerate(order):
            assert_close(out_moved[place], out[i], atol=1e-6, rtol=1e-5)
        assert_close(first, out[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["padded", "loop"])
def test_half_precision_stays_close_to_float32_and_keeps_its_dtype(dtype, backend):
    packing = Packing.of([5, 0, 31, 12])
    q, k, v = (rows(packing, i, dtype) for i in range(3))
    with use_backend(backend):
        found = with_grads(attend, q, k, v, packing, packing)
    exact = with_grads(brute_force, *(x.detach().float().requires_grad_() for x in (q, k, v)), packing, packing)
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == dtype
        assert_close(a.float(), b, atol=3e-2, rtol=3e-2)


def test_loop_does_not_compute_in_half_precision_under_autocast():
    packing = Packing.of([9, 30])
    q, k, v = (rows(packing, i) for i in range(3))
    with use_backend("loop"):
        plain = with_grads(attend, q, k, v, packing, packing)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = with_grads(attend, q, k, v, packing, packing)
    for a, b in zip(mixed, plain, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("backend", ["padded", "loop"])
def test_dropout_drops_the_asked_share_and_keeps_the_mean(backend):
    packing = Packing.of([40] * 8)
    q = torch.zeros(packing.rows, HEADS, D)  # uniform attention over 40 rows
    v = torch.ones(packing.rows, HEADS, D)
    torch.manual_seed(3)
    with use_backend(backend):
        out = attend(q, q, v, packing, packing, 0.25)[:, :, 0]  # = kept / 40 / 0.75, one number a row and head
    kept = out * 40 * 0.75
    assert_close(kept, kept.round(), atol=1e-3, rtol=0)
    n = kept.numel() * 40
    assert abs(kept.sum().item() / n - 0.75) < 5 * math.sqrt(0.25 * 0.75 / n)
    assert abs(kept.var().item() / (40 * 0.25 * 0.75) - 1) < 0.3  # draws are independent inside a row


def test_loop_gradient_with_dropout_is_that_of_the_same_draws():
    packing = Packing.of([6, 0, 11])
    q, k, v = (rows(packing, i, torch.float64).float().detach().requires_grad_() for i in range(3))
    torch.manual_seed(0)
    count = HEADS * (36 + 121)
    factors_of_all = noise(count, 0.3)

    def same_draws(q, k, v):
        out, at = [], 0
        for a, b in ((0, 6), (6, 17)):
            scores = torch.einsum("qhd,khd->hqk", q[a:b], k[a:b]) / math.sqrt(D)
            factors = factors_of_all[at : at + scores.numel()].view(scores.shape)
            at += scores.numel()
            out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1) * factors, v[a:b]))
        return torch.cat(out)

    def looped(q, k, v):
        torch.manual_seed(0)
        with use_backend("loop"):
            return attend(q, k, v, packing, packing, 0.3)

    for a, b in zip(with_grads(looped, q, k, v), with_grads(same_draws, q, k, v), strict=True):
        assert_close(a, b, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def testnoise_has_two_values_and_mean_one(rate):
    torch.manual_seed(1)
    drawn = noise(200_001, rate)
    values = drawn.unique()
    assert len(drawn) == 200_001
    assert_close(values, torch.tensor([0.0, 1 / (1 - rate)]), atol=2e-4 / (1 - rate) ** 2, rtol=0)
    kept = (drawn > 0).double()
    assert abs(kept.mean().item() - (1 - rate)) < 5 * math.sqrt(rate * (1 - rate) / len(kept)) + 2**-15
    centred = kept - kept.mean()
    for lag in range(1, 9):  # lanes of one draw, and of neighbouring draws, are independent
        assert abs((centred[lag:] * centred[:-lag]).mean().item()) < 5 * rate * (1 - rate) / math.sqrt(len(kept))


def testnoise_of_rate_one_is_zero():
    assert not noise(10, 1.0).any()


@SETTINGS
@given(packings(), st.sampled_from(["padded", "loop"]))
def test_watch_records_what_the_backend_did(pair, backend):
    queries, keys = pair
    q, k, v = rows(queries, 0), rows(keys, 1), rows(keys, 2)
    with use_backend(backend), watch() as seen:
        first = attend(q, k, v, queries, keys)
        attend(k, k, v, keys, keys)
    assert len(seen.maps) == 2
    maps = seen.maps[0]
    assert maps.shape == (queries.documents, HEADS, queries.max_seqlen, keys.max_seqlen)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    mixed = unpad((maps @ pad(v.detach(), keys).transpose(1, 2)).transpose(1, 2), queries)
    assert_close(mixed, first.detach(), atol=2e-6, rtol=1e-5)
    sums = unpad(maps.sum(-1).transpose(1, 2), queries)  # (Nq, heads)
    blind = (first == 0).flatten(1).all(1)
    assert_close(sums, (~blind).float()[:, None].expand(-1, HEADS))


def test_watch_ends_and_nests():
    packing = Packing.of([3])
    q = rows(packing, 0).detach()
    with watch() as outer:
        attend(q, q, q, packing, packing)
        with watch() as inner:
            attend(q, q, q, packing, packing)
        attend(q, q, q, packing, packing)
    attend(q, q, q, packing, packing)
    assert (len(outer.maps), len(inner.maps)) == (2, 1)
    assert_close(inner.maps[0], probabilities(q, q, packing, packing))


def test_every_refusal_says_why():
    packing, levelled = Packing.of([3]), Packing.of([3], np.arange(3))
    q = rows(packing, 0).detach()
    assert choose(q, packing, packing, 0.1) == "loop"
    for backend in ("varlen", "flex"):
        with use_backend(backend), pytest.raises(ValueError, match=f"{backend} needs a CUDA device"):
            attend(q, q, q, packing, packing)
    meta = q.to("meta")
    assert "needs the CPU" in refusal("loop", meta, packing, packing, 0.0)
    assert choose(meta, levelled, levelled, 0.1) == "padded"
    assert refusal("padded", meta, levelled, levelled, 0.1) == ""


def test_the_override_ends_with_its_context():
    packing = Packing.of([3])
    q = rows(packing, 0).detach()
    with use_backend("padded"):
        assert choose(q, packing, packing, 0.0) == "padded"
    with pytest.raises(ValueError, match="CUDA"), use_backend("varlen"):
        choose(q, packing, packing, 0.0)
    assert choose(q, packing, packing, 0.0) == "loop"


def test_packings_must_hold_the_same_documents():
    a, b = Packing.of([2, 1]), Packing.of([3])
    q = rows(b, 0).detach()
    with pytest.raises(ValueError, match="2 documents to 1"):
        attend(q, q, q, a, b)


def test_traces_into_one_graph_for_ragged_batches():
    torch._dynamo.reset()
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=count)
    for lengths in ([3, 5, 2], [9, 1, 4], [7, 7, 7, 1], [2, 2]):
        packing = Packing.of(lengths)
        q, k, v = (rows(packing, i).detach() for i in range(3))
        assert_close(compiled(q, k, v, packing, packing), attend(q, k, v, packing, packing), atol=2e-6, rtol=1e-5)
    assert len(graphs) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["varlen", "flex"])
def test_cuda_backends_equal_padded(backend):
    rng = np.random.default_rng(0)
    lengths, others = [100, 0, 130, 3, 60], [7, 5, 200, 0, 90]
    cases = [(Packing.of(lengths),) * 2, (Packing.of(lengths), Packing.of(others))]
    if backend == "flex":
        cases.append((Packing.of(lengths, rng.integers(0, 3, 293)),) * 2)
    for queries, keys in cases:
        moved = [
            Packing(
                x.cu_seqlens.cuda(),
                x.max_seqlen,
                x.doc.cuda(),
                x.pos.cuda(),
                None if x.level is None else x.level.cuda(),
            )
            for x in (queries, keys)
        ]
        if queries is keys:
            moved[1] = moved[0]
        inputs = [
            rows(x, i, torch.bfloat16).detach().cuda().requires_grad_() for i, x in enumerate((queries, keys, keys))
        ]

        def run(name, inputs=inputs, moved=moved):
            with use_backend(name):
                out = attend(*inputs, *moved)
            return [out.detach().float(), *(x.float() for x in torch.autograd.grad(out.float().square().sum(), inputs))]

        for a, b in zip(run(backend), run("padded"), strict=True):
            assert_close(a, b, atol=4e-2, rtol=4e-2)
