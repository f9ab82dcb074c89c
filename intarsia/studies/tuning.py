"""A rate and a temperature for each arm of `studies.granularity`: the same five trials for all, on seeds and scenes that no other run uses.

    python -m intarsia.studies.tuning --page docs/studies/granularity.md
    python -m intarsia.studies.granularity --tuned

Chosen by retrieval, which every arm is trained for and which is no claim for pointing or binding. Trials are kept as runs are, see `studies.runs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
import tyro

from intarsia.errors import BadInput
from intarsia.studies import rates
from intarsia.studies.family import write_section
from intarsia.studies.granularity import Run, perform
from intarsia.studies.runs import program


@dataclass
class Tuning:
    """The trials to make, and the table of all that are there."""

    out: Path = rates.FOLDER
    arms: tuple[str, ...] = ("sentence", "sentence, mean pooling", "token", "both")
    seeds: tuple[int, ...] = rates.SEEDS
    page: Path | None = None
    make: bool = True
    """False = only the table, from the trials that are there."""


def table(arms: Sequence[str], folder: Path) -> str:
    """A row an arm, a column a trial."""
    heads = " | ".join(f"{lr:g}, {temperature:g}" for lr, temperature in rates.TRIALS)
    lines = [f"| | {heads} | chosen |", "|---" * (len(rates.TRIALS) + 2) + "|"]
    for arm in arms:
        found = rates.scores(arm, folder)
        cells = " | ".join(f"{np.mean(x):.3f} ({len(x)})" if x else "-" for x in found.values())
        try:
            told = "{lr:g}, {temperature:g}".format(**rates.chosen(arm, folder))
        except BadInput:
            told = "-"
        lines.append(f"| {arm} | {cells} | {told} |")
    return "\n".join(lines) + "\n"


def main(args: Sequence[str] | None = None) -> None:
    """Makes the trials and prints the table."""
    options = tyro.cli(Tuning, args=args, prog="python -m intarsia.studies.tuning")
    torch.set_num_threads(1)
    for seed, (lr, temperature), arm in product(options.seeds, rates.TRIALS, options.arms) if options.make else ():
        run = Run(arm=arm, seed=seed, lr=lr, temperature=temperature, **rates.TRIAL)
        perform(run, options.out, scenes=200, fused=20, splits=("validation",))
    about = "Rate, temperature; mean of both R@1 of 200 validation scenes, best read-out (seeds). {pairs} pairs, {steps} steps of {batch}."
    told = f"{about.format(**rates.TRIAL)}\n\n{table(options.arms, options.out)}"
    print(told)
    if options.page:
        write_section(options.page, "rates", told, "tuning")


if __name__ == "__main__":
    program(main, "tuning")
