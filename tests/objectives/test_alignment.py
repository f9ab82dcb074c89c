"""WRA: the transport plan against a slow loop written from Xie et al. 2018, algorithm 1, and what a plan must satisfy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.objectives import wra
from intarsia.packed import Packing


def slow_plan(cost: np.ndarray, iterations: int, beta: float) -> np.ndarray:
    """One document: cost (words, regions) to the plan (words, regions)."""
    n, m = cost.shape
    kernel, plan, sigma = np.exp(-cost / beta), np.ones((n, m)), np.ones(n) / n
    for _ in range(iterations):
        q = kernel * plan
        delta = 1 / (m * (q.T @ sigma))
        sigma = 1 / (n * (q @ delta))
        plan = np.diag(sigma) @ q @ np.diag(delta)
    return plan


sizes = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 6)), min_size=1, max_size=4)


@given(sizes, st.integers(0, 99))
@settings(max_examples=40)
def test_plan_equals_the_loop_whatever_the_neighbours(counts: list[tuple[int, int]], seed: int) -> None:
    torch.manual_seed(seed)
    text, visual = (Packing.of([pair[i] for pair in counts]) for i in (0, 1))
    words, regions = torch.randn(text.rows, 8), torch.randn(visual.rows, 8)
    cost, plan = wra.align(words, regions, text, visual, 30)
    for b, (n, m) in enumerate(counts):
        own_words, own_regions = words[text.doc == b], regions[visual.doc == b]
        wanted = 1 - F.cosine_similarity(own_words[:, None], own_regions[None], dim=-1)
        assert torch.allclose(cost[b, :n, :m], wanted, atol=1e-5)
        assert torch.allclose(
            plan[b, :m, :n].T, torch.from_numpy(slow_plan(wanted.double().numpy(), 30, 0.5)).float(), atol=1e-4
        )
        assert plan[b].sum() == pytest.approx(1, abs=1e-3)
        assert not cost[b, n:].any() and not cost[b, :, m:].any()
        assert not plan[b, m:].any() and not plan[b, :, n:].any()


def test_plan_prefers_the_near_region_and_stops_the_gradient() -> None:
    regions = torch.eye(3, requires_grad=True)
    words = torch.eye(3)[[2, 0, 1]]
    packing = Packing.of([3])
    cost, plan = wra.align(words, regions, packing, packing, 200)
    assert plan[0, :3, :3].T.argmax(1).tolist() == [2, 0, 1]
    distance = wra.distances(cost, plan)
    assert not plan.requires_grad
    assert distance.requires_grad
    assert distance.item() == pytest.approx((cost * plan.transpose(1, 2)).sum().item(), abs=1e-6)


def test_score_pulls_matched_pairs_and_pushes_broken_ones() -> None:
    distance = torch.tensor([1.0, 2.0, 4.0])
    assert float(wra.score(distance, torch.tensor([1, 0, 1]))) == pytest.approx((1 - 2 + 4) / 3)
