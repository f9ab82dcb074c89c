"""Intervals, verdicts, fits and multipliers on numbers whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from intarsia.studies import numbers


def test_interval_by_hand() -> None:
    found = numbers.interval([1.0, 2.0, 3.0, 4.0, 5.0, float("nan")])
    assert (found.mean, found.count) == (3.0, 5)
    assert found.half == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=1e-6)
    assert str(numbers.interval([0.5])) == "0.500" and str(numbers.interval([])) == "-"


def test_differences_are_paired_by_seed() -> None:
    left, right = {1: 0.9, 2: 0.5, 3: 0.7}, {2: 0.4, 1: 0.8, 9: 0.0}
    found = numbers.paired(left, right)
    assert found.count == 2 and found.mean == pytest.approx(0.1)
    assert found.half == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "margin", "wanted"),
    [
        ([0.3, 0.31, 0.29, 0.3, 0.32], 0, "held"),
        ([-0.3, -0.31, -0.29, -0.3, -0.32], 0, "refuted"),
        ([0.3, -0.31, 0.29, -0.3, 0.1], 0, "undecided"),
        ([-0.01, -0.011, -0.009, -0.01, -0.012], 0.02, "held"),
        ([0.3, 0.3, 0.31, 0.3], 0, "undecided"),
    ],
)
def test_verdicts(values: list[float], margin: float, wanted: str) -> None:
    assert numbers.verdict(numbers.interval(values), margin) == wanted


def test_a_curve_is_found_again_and_foretold() -> None:
    sizes = 125 * 2 ** np.arange(8)
    true = 0.05 + 3.0 * sizes**-0.5
    found = numbers.fit(sizes, true)
    assert found.b == pytest.approx(0.5, abs=0.03)
    assert found.floor == pytest.approx(0.05, abs=0.005)
    rng = np.random.default_rng(0)
    runs = {int(n): list(e * np.exp(rng.normal(0, 0.03, 5))) for n, e in zip(sizes, true, strict=True)}
    curve = numbers.curve(runs, draws=100)
    assert curve is not None and curve.printable
    assert curve.b[0] < 0.5 < curve.b[1]
    assert [n for n, _, _ in curve.foretold] == [8000, 16000]
    assert all(a == pytest.approx(b, rel=0.2) for _, a, b in curve.foretold)


def test_no_slope_is_printed_where_none_is_known() -> None:
    few = numbers.curve({n: [0.5 + 0.01 * i for i in range(3)] for n in (100, 200, 400)}, draws=50)
    assert few is not None and not few.printable
    rng = np.random.default_rng(1)
    flat = numbers.curve({int(n): list(0.5 + rng.normal(0, 0.05, 5)) for n in 100 * 2 ** np.arange(6)}, draws=100)
    assert flat is not None and not flat.printable and "no fit" in str(flat)
    assert numbers.curve({100: [0.1], 200: [0.1]}) is None


def test_multiplier_is_interpolated_and_never_extrapolated() -> None:
    slow, fast = {100: 0.8, 400: 0.4, 1600: 0.2}, {100: 0.4, 400: 0.3, 1600: 0.1}
    assert numbers.multiplier(slow, fast, 0.4) == pytest.approx(4.0)
    between = numbers.multiplier(slow, fast, 0.3)
    assert between == pytest.approx(math.exp((math.log(400) + math.log(1600)) / 2) / 400)
    assert numbers.multiplier(slow, fast, 0.1) is None


def test_the_worth_of_repeated_pairs_is_found_again() -> None:
    points = []
    for n in (100, 200, 400, 800):
        for steps in (20, 80, 320):
            passes = steps * 32 / n
            seen = float(numbers.effective(np.array([n]), np.array([passes]), 4.0)[0])
            points.append((n, passes, 0.02 + 3 * seen**-0.5))
    found = numbers.repetition(points)
    assert found is not None and found.levels == (3, 4)
    assert found.r == pytest.approx(4.0, rel=0.2) and found.fit.b == pytest.approx(0.5, abs=0.05)
    assert numbers.repetition([x for x in points if x[1] != points[0][1] or x[0] > 200]) is not None
    assert numbers.repetition([x for x in points if x[0] < 400]) is None
    assert numbers.effective(np.array([100.0]), np.array([0.5]), 4.0) == pytest.approx(50)
