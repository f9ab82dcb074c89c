"""Tables of studies: what the runs of each arm found, and how arms differ, paired by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from intarsia.studies.numbers import Interval, interval, paired
from intarsia.studies.runs import Results

Value = Callable[[dict[str, Any]], float]
"""A number of a run's JSON file, or of a part of it; NaN where the file is of before it was measured."""
POOLED = ("sentence", "sentence, mean pooling")
"""Arms that differ in how a pair's vectors are pooled; the better one stands for the sentence wherever arms are compared."""


def at(*path: str) -> Value:
    """The number at a path."""

    def value(found: dict[str, Any]) -> float:
        part: Any = found
        for name in path:
            if name not in part:
                return float("nan")
            part = part[name]
        return float(part)

    return value


def best(*path: str, among: Sequence[str], key: str = "") -> Value:
    """The best of those read-outs of a measure that the file has."""

    def value(found: dict[str, Any]) -> float:
        part = found
        for name in path:
            part = part.get(name, {})
        known = [float(part[x][key] if key else part[x]) for x in among if x in part]
        return max(known, default=float("nan"))

    return value


def within(split: str, *path: str, value: Value) -> Value:
    """A value of a part of the file."""

    def found(run: dict[str, Any]) -> float:
        part = run[split]
        for name in path:
            part = part[name]
        return value(part)

    return found


class Claim(NamedTuple):
    """Something that a study says of its arms."""

    split: str
    """It is measured on this part of the file; and on "exchanged" below it, where pictures are exchanged."""
    value: Value
    """How it is read off such a part."""
    chance: Value
    """What a guess gives."""


def compared(claims: Mapping[str, Claim]) -> dict[str, Value]:
    """The claims as numbers of a run."""
    return {name: within(x.split, value=x.value) for name, x in claims.items()}


def checks(results: Results, claims: Mapping[str, Claim]) -> str:
    """Every claim with the test pictures, with those pictures exchanged, by an arm that never saw one, and by a guess."""
    arms = [x for x in results if x != "blind"]
    blind = results.get("blind", {})
    heads = " | ".join(f"{arm} ({len(results[arm])}) | exchanged" for arm in arms)
    lines = [f"| (seeds) | {heads} | blind ({len(blind)}) | chance |", "|---" * (2 * len(arms) + 3) + "|"]
    for name, (split, value, chance) in claims.items():
        cells = []
        for arm in arms:
            for path in ((), ("exchanged",)):
                cells.append(interval([within(split, *path, value=value)(x) for x in results[arm].values()]))
        guess = interval([chance(x[split]) for runs in results.values() for x in runs.values()]).mean
        unseen = interval([within(split, value=value)(x) for x in blind.values()])
        lines.append(f"| {name} | {' | '.join(map(str, cells))} | {unseen} | {guess:.3f} |")
    return "\n".join(lines) + "\n"


def columns(results: Results, measures: Mapping[str, Value]) -> str:
    """A row a measure that some run has, a column an arm: mean over seeds ± half of the 95 % t-interval."""
    heads = " | ".join(f"{arm} ({len(runs)})" for arm, runs in results.items())
    lines = [f"| (seeds) | {heads} |", "|---" * (len(results) + 1) + "|"]
    for name, value in measures.items():
        cells = [interval([value(x) for x in runs.values()]) for runs in results.values()]
        if any(x.count for x in cells):
            lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def report(
    results: Results,
    claims: Mapping[str, Claim],
    measures: Mapping[str, Value],
    pairs: Sequence[tuple[str, str]],
    said: str = "",
    beside: Mapping[str, Value] | None = None,
) -> str:
    """The tables of a study: claims with their checks, arms paired by seed, what is `said` of them, and all other measures.

    Args:
        results: arm -> seed -> run.
        claims: see `checks`.
        measures: see `columns`.
        pairs: of arms, to compare.
        said: paragraphs or tables that stand between.
        beside: measures that are compared too and are no claims.
    """
    paired = differences(results, {**compared(claims), **(beside or {})}, pairs)
    parts = [
        checks(results, claims),
        "Paired by seed:\n",
        paired,
        *filter(None, [said]),
        "More of the same runs:\n",
    ]
    return "\n".join([*parts, columns(results, measures)])


def seeds_of(results: Results, arm: str, value: Value) -> dict[int, float]:
    """Seed -> value. Of the sentence the pooling that is better on the mean, among those with most seeds."""
    arms = [x for x in (POOLED if arm == "sentence" else (arm,)) if x in results]
    most = max((len(results[x]) for x in arms), default=0)
    found = [{seed: value(x) for seed, x in results[name].items()} for name in arms if len(results[name]) == most]
    return max(found, key=lambda x: interval(list(x.values())).mean) if found else {}


def difference(results: Results, value: Value, left: str, right: str) -> Interval:
    """A measure of one arm less that of another, paired by seed."""
    return paired(seeds_of(results, left, value), seeds_of(results, right, value))


def bold(gap: Interval) -> str:
    """A difference, bold if its interval excludes 0."""
    return f"**{gap}**" if gap.count > 1 and not gap.low <= 0 <= gap.high else str(gap)


def differences(results: Results, measures: Mapping[str, Value], pairs: Sequence[tuple[str, str]]) -> str:
    """A row a measure, a column a pair of arms that were run."""
    known = [x for x in pairs if x[0] in results and x[1] in results]
    if not known:
        return "No two arms to compare.\n"
    lines = ["| | " + " | ".join(f"{a} - {b}" for a, b in known) + " |", "|---" * (len(known) + 1) + "|"]
    for name, value in measures.items():
        lines.append(f"| {name} | " + " | ".join(bold(difference(results, value, a, b)) for a, b in known) + " |")
    said = " On each row sentence is the better pooling, of those with most seeds." if POOLED[1] in results else ""
    return "\n".join(lines) + f"\n\nBold: the 95 % interval excludes 0.{said}\n"
