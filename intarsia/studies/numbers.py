"""What studies do with the numbers of their runs: means over seeds with intervals, and learning curves with fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from intarsia.batch import Array

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Two-sided 95 % points of Student's t for 1 .. 15 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds and half of its 95 % t-interval; NaN half for fewer than two seeds."""

    mean: float
    half: float
    count: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half

    def __str__(self) -> str:
        if not self.count or math.isnan(self.mean):
            return "-"
        return f"{self.mean:.3f}" + (f" ± {self.half:.3f}" if self.count > 1 else "")


def interval(values: Sequence[float]) -> Interval:
    """The mean of some values and its 95 % t-interval; NaNs do not count."""
    known = np.array([x for x in values if x == x])
    if not len(known):
        return Interval(float("nan"), float("nan"), 0)
    if len(known) == 1:
        return Interval(float(known[0]), float("nan"), 1)
    t = _T[len(known) - 2] if len(known) - 1 <= len(_T) else 1.96 * (1 + 1.3 / (len(known) - 1))
    return Interval(float(known.mean()), float(t * known.std(ddof=1) / math.sqrt(len(known))), len(known))


def paired(left: Mapping[int, float], right: Mapping[int, float]) -> Interval:
    """Left minus right over the seeds that both have."""
    return interval([left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())])


Verdict = Literal["held", "refuted", "undecided"]


def verdict(difference: Interval, margin: float = 0.0) -> Verdict:
    """Held if the whole interval lies above -margin, refuted if it lies below, else undecided; undecided with fewer than 5 seeds."""
    if difference.count < 5:
        return "undecided"
    if difference.low > -margin:
        return "held"
    return "refuted" if difference.high < -margin else "undecided"


# --------------------------------------------------------------------------------------------------------------- curves


@dataclass(frozen=True, slots=True)
class Fit:
    """err(n) = floor + a n^-b."""

    floor: float
    a: float
    b: float

    def at(self, n: Array | float) -> Array:
        """The error at sizes n."""
        found: Array = self.floor + self.a * np.asarray(n, float) ** -self.b
        return found


def fit(sizes: Array, errors: Array) -> Fit:
    """Least squares on log errors; the floor is tried on a grid from 0 to just below the least error, a and b follow by regression on log(err - floor).

    The residual that chooses the floor is that of log(floor + a n^-b).

    Args:
        sizes: (N).
        errors: (N) > 0.
    """
    errors = np.maximum(errors, 1e-4)
    x = np.log(sizes)
    floors = errors.min() * np.linspace(0, 0.99, 34)
    logs = np.log(errors - floors[:, None])  # (floors, N)
    slopes = (logs - logs.mean(1, keepdims=True)) @ (x - x.mean()) / np.square(x - x.mean()).sum()
    starts = logs.mean(1) - slopes * x.mean()
    foretold = floors[:, None] + np.exp(starts[:, None] + slopes[:, None] * x)
    best = int(np.square(np.log(foretold) - np.log(errors)).sum(1).argmin())
    return Fit(float(floors[best]), float(np.exp(starts[best])), float(-slopes[best]))


@dataclass(frozen=True, slots=True)
class Curve:
    """A fitted learning curve, its bootstrap, and how well its shape foretells the two largest sizes."""

    fit: Fit
    b: tuple[float, float]
    """95 % bootstrap interval of b."""
    printable: bool
    """Five sizes or more, and the interval of b does not hold 0."""
    foretold: tuple[tuple[int, float, float], ...]
    """Size, error foretold from the smaller sizes, error measured."""

    def __str__(self) -> str:
        if not self.printable:
            return "no fit"
        return f"b {self.fit.b:.2f} [{self.b[0]:.2f}, {self.b[1]:.2f}], floor {self.fit.floor:.3f}"


def curve(runs: Mapping[int, Sequence[float]], draws: int = 1000, seed: int = 0) -> Curve | None:
    """Fits a learning curve; None with fewer than three sizes.

    Args:
        runs: size -> the errors of its seeds.
        draws: bootstrap samples, over seeds within sizes and over sizes.
        seed: of the bootstrap.
    """
    sizes = np.array(sorted(runs), float)
    if len(sizes) < 3:
        return None
    means = np.array([np.mean(runs[int(n)]) for n in sizes])
    rng = np.random.default_rng(seed)
    slopes = []
    for _ in range(draws):
        chosen = rng.integers(len(sizes), size=len(sizes))
        if len(np.unique(chosen)) < 3:
            continue
        drawn = [np.mean(rng.choice(runs[int(sizes[i])], len(runs[int(sizes[i])]))) for i in chosen]
        slopes.append(fit(sizes[chosen], np.array(drawn)).b)
    low, high = (float(x) for x in np.quantile(slopes, (0.025, 0.975)))
    foretold: tuple[tuple[int, float, float], ...] = ()
    if len(sizes) >= 5:
        early = fit(sizes[:-2], means[:-2])
        foretold = tuple((int(sizes[i]), float(early.at(sizes[i])), float(means[i])) for i in (-2, -1))
    return Curve(fit(sizes, means), (low, high), len(sizes) >= 5 and not low <= 0 <= high, foretold)


@dataclass(frozen=True, slots=True)
class Repetition:
    """err(n') of n' = n (1 + R (1 - exp(-r / R))), r = passes over the pairs after the first. Form: Muennighoff et al., NeurIPS 2023, eq. 5."""

    fit: Fit
    r: float
    """R: so many repeated passes are worth (1 - 1 / e) of as many fresh ones in the limit."""
    levels: tuple[int, int]
    """Fewest repetition levels of a size, and sizes."""

    def __str__(self) -> str:
        return f"R {self.r:.3g}, b {self.fit.b:.2f} ({self.levels[1]} sizes, {self.levels[0]} levels of repetition)"


def effective(sizes: Array, passes: Array, r: float) -> Array:
    """n': (N) sizes worth of unique pairs; of less than one pass only the pairs seen count."""
    found: Array = sizes * np.minimum(passes, 1) * (1 + r * (1 - np.exp(-np.maximum(passes - 1, 0) / r)))
    return found


def repetition(points: Sequence[tuple[int, float, float]]) -> Repetition | None:
    """Fits how much repeated pairs are worth, R on a grid from .25 to 256; None with fewer than three sizes that have three levels of repetition each.

    Args:
        points: size, passes over it, error.
    """
    levels = {n: {passes for m, passes, _ in points if m == n} for n, _, _ in points}
    kept = [x for x in points if len(levels[x[0]]) >= 3]
    known = {x[0] for x in kept}
    if len(known) < 3:
        return None
    sizes, passes, errors = (np.array(x, float) for x in zip(*kept, strict=True))
    found = []
    for r in np.geomspace(0.25, 256, 41):
        seen = effective(sizes, passes, r)
        fitted = fit(seen, errors)
        left = np.square(np.log(fitted.at(seen)) - np.log(np.maximum(errors, 1e-4))).sum()
        found.append((float(left), Repetition(fitted, float(r), (min(len(levels[n]) for n in known), len(known)))))
    return min(found, key=lambda x: x[0])[1]


def multiplier(slow: Mapping[int, float], fast: Mapping[int, float], error: float) -> float | None:
    """How many times the data of `fast` that `slow` needs to reach an error, interpolated in log n; None where one never does.

    Args:
        slow: size -> error.
        fast: the same.
        error: to reach.
    """
    reached = [_reach(x, error) for x in (slow, fast)]
    return None if reached[0] is None or reached[1] is None else reached[0] / reached[1]


def _reach(errors: Mapping[int, float], error: float) -> float | None:
    sizes = sorted(errors)
    if errors[sizes[0]] <= error:
        return float(sizes[0])
    for a, b in pairwise(sizes):
        if errors[b] <= error:
            share = (errors[a] - error) / (errors[a] - errors[b])
            return math.exp(math.log(a) + share * (math.log(b) - math.log(a)))
    return None
