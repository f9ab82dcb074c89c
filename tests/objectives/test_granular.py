"""The twins of contrast, masked modelling and matching, by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from intarsia.objectives import granular
from intarsia.packed import Packing


def test_contrast_by_hand() -> None:
    scores, false = torch.tensor([[0.9, 0.2], [0.1, 0.7]]), torch.tensor([[0.5], [0.0]])
    known, none = torch.tensor([[True], [False]]), torch.zeros(2, 2, dtype=torch.bool)
    found = granular.contrast(scores, false, known, none, torch.tensor(10.0), torch.tensor(0.0))

    def nce(right: float, *wrong: float) -> float:
        return math.log(1 + sum(math.exp(10 * (w - right)) for w in wrong))

    pictures = (nce(0.9, 0.1, 0.5) + nce(0.7, 0.2)) / 2
    texts = (nce(0.9, 0.2) + nce(0.7, 0.1)) / 2
    assert float(found) == pytest.approx((pictures + texts) / 2, rel=1e-5)
    sigmoid = granular.contrast(scores, false, known, none, torch.tensor(10.0), torch.tensor(-3.0), "sigmoid")

    def log(x: float) -> float:
        return math.log(1 + math.exp(-x))

    wanted = log(6) + log(4) + log(-(2 - 3)) + log(-(1 - 3)) + log(-(5 - 3))
    assert float(sigmoid) == pytest.approx(wanted / 2, rel=1e-5)


def test_texts_that_say_the_same_are_no_negatives() -> None:
    scores, false = torch.tensor([[0.9, 0.8], [0.7, 0.6]]), torch.zeros(2, 0)
    same = torch.ones(2, 2, dtype=torch.bool)
    known, zero = torch.zeros(2, 0, dtype=torch.bool), torch.tensor(0.0)
    assert float(granular.contrast(scores, false, known, same, torch.tensor(5.0), zero)) == 0
    assert float(granular.contrast(scores, false, known, same & ~same, torch.tensor(5.0), zero)) > 0.5


def test_smallest_sets_by_hand() -> None:
    alpha = torch.tensor(
        [[0.0, 0.1, 0.6, 0.25, 0.05], [0.2, 0.7, 0.05, 0.05, 0.0], [0.6, 0.4, 0, 0, 0], [0.2, 0.0, 0.64, 0.16, 0.0]]
    )
    wanted = [[False, True, True, False], [True, False, False, False], [False] * 4, [False, True, False, False]]
    assert granular.smallest_sets(alpha, 4).tolist() == wanted
    assert granular.smallest_sets(alpha, 1)[0].tolist() == [False, True, False, False]


def test_of_no_link_both_sides_are_hidden() -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        named, pictured = (torch.rand(9, 6, generator=rng) < 0.3 for _ in range(2))
        owner, other = (torch.randint(0, 3, (9,), generator=rng) for _ in range(2))
        hidden, whole = granular.hide_linked(named, pictured, owner, other, 3)
        assert not (named & hidden[owner]).any()
        for n in range(9):
            sides = pictured[n]
            assert bool(whole[n]) == (bool(sides.any()) and bool(hidden[other[n]][sides].all()))
            assert bool((hidden[other[n]][sides] | named[owner == other[n]].any(0)[sides]).all())


def test_named_words_follow_the_shares() -> None:
    """B2 asks the tokens that hold the word, and no others."""
    logits = torch.randn(2 * 3, 7, generator=torch.Generator().manual_seed(1), requires_grad=True)
    words, shares = torch.tensor([4, 2]), torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.25]])
    loss = granular.name_words(logits, words, shares)
    each = [F.cross_entropy(logits[i], words[i // 3]) for i in (1, 3, 5)]
    torch.testing.assert_close(loss, (each[0] + 0.5 * each[1] + 0.25 * each[2]) / 1.75)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(1).bool().tolist() == [False, True, False, True, False, True]


def test_pictured_words_leave_out_their_kind() -> None:
    found = F.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(2)), dim=-1)
    wanted = F.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(3)), dim=-1)
    kinds, counts = torch.tensor([7, 7, 1, 2]), torch.tensor([True, False, True, False])
    scores = (found @ wanted.T / 0.1).tolist()

    def nce(row: int, *columns: int) -> float:
        return math.log(sum(math.exp(scores[row][c]) for c in (row, *columns))) - scores[row][row]

    loss = granular.picture_words(found, wanted, kinds, counts)
    assert float(loss) == pytest.approx((nce(0, 2, 3) + nce(2, 0, 1, 3)) / 2, rel=1e-4)
    assert float(granular.picture_words(found, wanted, kinds, counts & ~counts)) == 0


def test_matching_by_hand() -> None:
    logits, text = torch.tensor([2.0, -1.0, 0.5]), Packing.of([2, 0, 1])
    found = granular.supported(logits, torch.tensor([1, 0, -1]))
    assert float(found) == pytest.approx((math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2, rel=1e-5)
    whole = granular.all_supported(logits, torch.ones(3, dtype=torch.bool), text)
    p = [1 / (1 + math.exp(-x)) for x in logits.tolist()]
    assert whole.exp().tolist() == pytest.approx([p[0] * p[1], 1, p[2]], rel=1e-5)
    loss = granular.some_unsupported(whole, torch.tensor([True, False, True]))
    assert float(loss) == pytest.approx(-(math.log(1 - p[0] * p[1]) + math.log(1 - p[2])) / 2, rel=1e-5)
    assert float(granular.log_odds(whole)[2]) == pytest.approx(0.5, rel=1e-5)
