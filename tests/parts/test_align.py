"""Alignment of words with visual tokens against slow loops and by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from intarsia.packed import Packing
from intarsia.parts import align

NORMS = ("softmax", "minmax", "max", "sinkhorn")


def slow(scores: list[list[float]], norm: str, null: bool, weights: list[float]) -> list[list[float]]:
    """The definitions, number by number, for one document without padding."""
    count = len(scores[0]) - null
    if norm == "sinkhorn":
        plan = [[math.exp(s / 0.1) for s in row] for row in scores]
        cap = 3 * sum(weights) / count

        def rows() -> None:
            for row, w in zip(plan, weights, strict=True):
                total = sum(row)
                row[:] = [x * w / total for x in row]

        for _ in range(5):
            rows()
            for p in range(null, len(plan[0])):
                factor = min(1.0, cap / sum(row[p] for row in plan))
                for row in plan:
                    row[p] *= factor
        rows()
        return [[x / w for x in row] for row, w in zip(plan, weights, strict=True)]
    found = []
    for row in scores:
        if norm == "softmax":
            heights = [math.exp(s / 0.1) for s in row]
        elif norm == "max":
            heights = [float(i == row.index(max(row))) for i in range(len(row))]
        else:
            heights = [(s - min(row)) / (max(row) - min(row) + 1e-6) for s in row]
            heights = [h if h >= 1 / count else 0.0 for h in heights]
        found.append([h / sum(heights) for h in heights])
    return found


def case(seed: int = 0, words: int = 5, slots: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    u, v = (F.normalize(torch.randn(n, 8, generator=rng), dim=-1) for n in (words, slots))
    return u, v, torch.rand(words, generator=rng) + 0.2


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_shares_equal_the_slow_loop(norm: align.Norm, null: bool) -> None:
    u, v, weights = case()
    scores = u @ v.T
    found = align.shares(scores, torch.ones(7, dtype=torch.bool), norm, null, 0.1, weights)
    wanted = torch.tensor(slow(scores.tolist(), norm, null, weights.tolist()))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.sum(-1), torch.ones(5))


def test_minmax_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.3]])
    found = align.shares(scores, torch.ones(3, dtype=torch.bool), "minmax", null=False)
    torch.testing.assert_close(found, torch.tensor([[0, 2 / 3, 1 / 3]]), atol=1e-5, rtol=0)
    alike = align.shares(torch.full((1, 3), 0.4), torch.ones(3, dtype=torch.bool), "minmax", null=False)
    torch.testing.assert_close(alike, torch.full((1, 3), 1 / 3))


def test_sinkhorn_marginals() -> None:
    """Rows carry the mass of their words at any number of passes; no visual token takes more than the cap once the passes have settled."""
    u, v, weights = case(1, words=9, slots=6)
    v[2] = F.normalize(u.sum(0), dim=0)  # a token that draws many words
    scores = 0.3 * (u @ v.T)
    scores[:, 2] += 0.5
    here = torch.ones(6, dtype=torch.bool)
    cap = 3 * float(weights.sum()) / 5
    for iterations in (5, 200):
        plan = weights[:, None] * align.shares(scores, here, "sinkhorn", True, 0.1, weights, iterations)
        torch.testing.assert_close(plan.sum(1), weights, atol=1e-4, rtol=0)
    assert float((weights[:, None] * (scores / 0.1).softmax(-1)).sum(0)[2]) > cap + 0.1  # it would be overfull
    assert float(plan[:, 1:].sum(0).max()) <= cap + 1e-4
    assert float(plan.sum(0)[2]) == pytest.approx(cap, abs=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_padding_and_order_of_visual_tokens_do_not_matter(norm: align.Norm) -> None:
    u, v, weights = case(2)
    here = torch.ones(7, dtype=torch.bool)
    plain = align.score(u, v, here, weights, norm, 0.1)
    wide_u, wide_w = torch.cat([u, torch.zeros(3, 8)]), torch.cat([weights, torch.zeros(3)])
    wide_v, wide_here = torch.cat([v, torch.ones(4, 8)]), torch.cat([here, torch.zeros(4, dtype=torch.bool)])
    torch.testing.assert_close(align.score(wide_u, wide_v, wide_here, wide_w, norm, 0.1), plain)
    order = torch.tensor([0, 4, 2, 6, 1, 3, 5])  # the null stays first
    torch.testing.assert_close(align.score(u, v[order], here, weights, norm, 0.1), plain)
    shares = align.shares(u @ v.T, here, norm, True, 0.1, weights)
    turned = align.shares(u @ v[order].T, here, norm, True, 0.1, weights)
    torch.testing.assert_close(turned, shares[:, order])


@pytest.mark.parametrize("norm", NORMS)
def test_score_is_the_weighted_mean_cosine_with_the_mix(norm: align.Norm) -> None:
    u, v, weights = case(3)
    here = torch.ones(7, dtype=torch.bool)
    mix = F.normalize(align.shares(u @ v.T, here, norm, True, 0.1, weights) @ v, dim=-1)
    wanted = ((u * mix).sum(-1) * weights).sum() / weights.sum()
    torch.testing.assert_close(align.score(u, v, here, weights, norm, 0.1), wanted)


def test_all_scores_in_blocks_have_the_same_values_and_gradients() -> None:
    rng = torch.Generator().manual_seed(4)
    u, v = (F.normalize(torch.randn(6, 5, 8, generator=rng), dim=-1).requires_grad_() for _ in range(2))
    here, weights = torch.ones(6, 5, dtype=torch.bool), torch.rand(6, 5, generator=rng)
    found = []
    for most in (1 << 24, 200):
        scores = align.all_scores(u, v, here, weights, "softmax", 0.1, most)
        found.append((scores.detach(), *torch.autograd.grad(scores.square().sum(), (u, v))))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(found[0][0][2, 3], align.score(u[2], v[3], here[3], weights[2], "softmax", 0.1).detach())


@pytest.mark.parametrize("norm", NORMS)
def test_words_that_weigh_nothing_and_empty_slots_take_no_part(norm: align.Norm) -> None:
    """Leaving them out changes neither scores nor gradients: all pairs are scored as one pair at a time is, with everything in its place."""
    rng = torch.Generator().manual_seed(5)
    u, v = (F.normalize(torch.randn(4, n, 8, generator=rng), dim=-1).requires_grad_() for n in (6, 7))
    weights = torch.rand(4, 6, generator=rng) * (torch.rand(4, 6, generator=rng) < 0.5)
    weights[0, 2], weights[3] = 0.4, 0.0
    here = torch.arange(7) < torch.tensor([[3], [5], [1], [4]])
    temperature = torch.tensor(0.2, requires_grad=True)
    found = align.all_scores(u, v, here, weights, norm, temperature)
    plain = [[align.score(u[j], v[i], here[i], weights[j], norm, temperature) for i in range(4)] for j in range(4)]
    wanted = torch.stack([torch.stack(row) for row in plain])
    torch.testing.assert_close(found, wanted)
    of = (u, v, temperature) if norm == "softmax" else (u, v)
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), of) for x in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_pieces_stand_for_their_word() -> None:
    packing = Packing.of([5, 3])
    words = torch.tensor([-1, 0, 0, 1, -1, -1, 0, -1])
    rows = torch.arange(8.0)[:, None]
    assert align.word_means(rows, words, packing)[:, 0].tolist() == [0, 1.5, 1.5, 3, 4, 5, 6, 7]
    weights = align.spread(torch.tensor([9.0, 2, 4, 5, 9, 9, 7, 9]), words, packing)
    assert weights.tolist() == [0, 1.5, 1.5, 5, 0, 0, 7, 0]
    even = align.balanced(torch.tensor([9.0, 1, 1, 4, 9, 9, 0, 9]), words >= 0, packing)
    torch.testing.assert_close(even, torch.tensor([0, 0.5, 0.5, 2, 0, 0, 1.0, 0]))
