"""Rate and temperature of each arm of `studies.granularity`, as its trials (`studies.tuning`) or by default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.errors import BadInput
from intarsia.studies.runs import KEPT, gather
from intarsia.studies.tables import best
from intarsia.studies.tying import RANKED

TRIALS = ((2e-3, 0.1), (1e-3, 0.1), (4e-3, 0.1), (2e-3, 0.05), (2e-3, 0.2))
"""Rate and temperature at the start; the first is what runs have that were not tuned."""
SEEDS = (42, 43)
"""Of exploration."""
TRIAL: dict[str, Any] = {"pairs": 2000, "steps": 400, "batch": 32}
FOLDER = KEPT / "tuning"


def score(found: dict[str, Any]) -> float:
    """What a trial is chosen by: the mean of both R@1 of random pairs of validation, best read-out."""
    ways = [best("validation", "retrieval", key=f"{x} R@1", among=RANKED)(found) for x in ("t2i", "i2t")]
    return float(np.mean(ways))


def scores(arm: str, folder: Path = FOLDER) -> dict[tuple[float, float], list[float]]:
    """Trial -> score of each seed that was run."""
    found = {}
    for lr, temperature in TRIALS:
        runs = gather(folder, {arm: {"lr": lr, "temperature": temperature}}, **TRIAL).get(arm, {})
        found[lr, temperature] = [score(x) for seed, x in runs.items() if seed in SEEDS]
    return found


def chosen(arm: str, folder: Path = FOLDER) -> dict[str, float]:
    """Rate and temperature of an arm.

    Raises:
        BadInput: its trials were not all run.
    """
    found = scores(arm, folder)
    if not all(len(x) == len(SEEDS) for x in found.values()):
        raise BadInput(f"{folder}: holds not all trials of arm {arm!r}; make them by python -m intarsia.studies.tuning")
    lr, temperature = max(found, key=lambda x: float(np.mean(found[x])))
    return {"lr": lr, "temperature": temperature}


def settings(arms: Sequence[str], tuned: bool, folder: Path = FOLDER) -> dict[str, dict[str, float]]:
    """Arm -> rate and temperature: those of its trials, or those of the first trial. The blind arm has those of `both`."""
    usual = dict(zip(("lr", "temperature"), TRIALS[0], strict=True))
    return {arm: chosen("both" if arm == "blind" else arm, folder) if tuned else usual for arm in arms}
