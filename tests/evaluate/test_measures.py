"""Measures against brute force, and the baselines."""

from __future__ import annotations

import numpy as np
import pytest

from intarsia.batch import Picture, Sample
from intarsia.errors import BadInput
from intarsia.evaluate.baseline import baseline_retrieval
from intarsia.evaluate.matching import rank


def test_ranks_by_hand() -> None:
    scores = np.array([[3.0, 1, 2], [0, 5, 9], [1, 2, 2]])  # texts x pictures
    found = rank(scores, np.array([0, 1, 2]))
    assert found.text_to_image.ranks == (1, 2, 2)  # a tie counts against the system
    assert found.text_to_image.at[1] == pytest.approx(1 / 3)
    assert found.text_to_image.at[5] == 1.0
    assert found.image_to_text.ranks == (1, 1, 3)
    assert found.text_to_image.chance[1] == pytest.approx(1 / 3)


def test_a_picture_counts_the_best_of_its_captions() -> None:
    scores = np.array([[1.0, 0], [9, 0], [5, 2], [6, 1]])
    found = rank(scores, np.array([0, 0, 1, 1]))
    assert found.image_to_text.ranks == (1, 1)
    assert found.text_to_image.ranks == (1, 1, 2, 2)
    assert found.image_to_text.chance[1] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(3))
def test_ranks_equal_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, gold = rng.integers(0, 6, (20, 8)).astype(float), rng.integers(0, 8, 20)
    found = rank(scores, gold)
    wanted = [1 + sum(s >= row[g] for j, s in enumerate(row) if j != g) for row, g in zip(scores, gold, strict=True)]
    assert list(found.text_to_image.ranks) == wanted
    asked = sorted(set(gold.tolist()))
    best = []
    for picture in asked:
        mine = max(scores[i, picture] for i in range(20) if gold[i] == picture)
        best.append(1 + sum(scores[i, picture] >= mine for i in range(20) if gold[i] != picture))
    assert list(found.image_to_text.ranks) == best


def pair(number: int, kind: int) -> Sample:
    rng = np.random.default_rng([number, 9])
    features = np.eye(12, dtype=np.float32)[[kind, kind]] + 0.05 * rng.standard_normal((2, 12)).astype(np.float32)
    picture = Picture(f"p{number}", features, np.tile(np.float32([0, 0, 1, 1]), (2, 1)))
    return Sample(f"s{number}", (f"this shows thing{kind}",), (picture,))


def test_baselines_learn_what_a_bag_of_words_can_say() -> None:
    train = [pair(i, i % 12) for i in range(120)]
    test = [pair(1000 + i, i) for i in range(12)]
    found = baseline_retrieval(train, test, [x.pictures[0] for x in test], list(range(12)))
    assert set(found) == {"ridge", "nearest"}
    assert all(x.text_to_image.at[1] == 1.0 and x.image_to_text.at[1] == 1.0 for x in found.values())


def test_baselines_know_nothing_of_shuffled_captions() -> None:
    order = np.random.default_rng(0).permutation(120)
    train = [Sample(f"s{i}", pair(0, int(order[i]) % 12).texts, pair(i, i % 12).pictures) for i in range(120)]
    test = [pair(1000 + i, i) for i in range(12)]
    found = baseline_retrieval(train, test, [x.pictures[0] for x in test], list(range(12)))
    assert all(x.text_to_image.at[1] < 0.5 for x in found.values())


def test_too_few_pictures_are_told() -> None:
    with pytest.raises(BadInput, match="3 training pictures, at least 10"):
        baseline_retrieval([pair(i, 0) for i in range(3)], [pair(5, 0)], [pair(5, 0).pictures[0]], [0])
