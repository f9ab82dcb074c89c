"""What systems reach on the generated twins of their benchmarks, in minutes on a CPU, from a random start: one budget for all.

    python -m intarsia.studies.twin_results docs/twins.json --pairs uniter:vqa uniter:nlvr2

A pair is a system and a benchmark. Each is fine-tuned by the path of `intarsia compare`, the smallest size on attribute features, and measured on held-out scenes
beside chance and what the words alone reach. Results that the file has are not made again; `studies.pairs` puts them into the table of the page.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from intarsia.comparison import Budget, Plan, run, task_for
from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput
from intarsia.tasks import benchmarks
from intarsia.worlds.twins import write_twin


@dataclass
class Options:
    """Pairs to run."""

    file: tyro.conf.Positional[Path]
    """JSON of results, which grows."""
    pairs: tuple[str, ...] = ()
    """system:benchmark, each."""
    out: Path = Path("runs/twins")
    """Twins and runs."""
    train: int = 1500
    """Scenes to train on."""
    val: int = 300
    """Scenes held out."""
    budget: Budget = field(default_factory=lambda: Budget(steps=300, rows=2000, lr=1e-3, warmup=30, most=600))


def results(options: Options) -> dict[str, Any]:
    """Runs what the file lacks.

    Raises:
        BadInput: a pair is not system:benchmark, or what `comparison.run` raises.
    """
    found: dict[str, Any] = json.loads(options.file.read_text()) if options.file.is_file() else {}
    for pair in options.pairs:
        system, _, name = pair.partition(":")
        if not name:
            raise BadInput(f"pair {pair!r}: say system:benchmark")
        task = f"{system} {task_for(system, name)}"
        if task in found:
            continue
        data = options.out / name
        regions = write_twin(name, data, options.train, options.val, level=0)
        made = run(Plan(name, data, str(regions), options.out / "runs" / name, budget=options.budget), system, 0)
        measured, main = made["measured"], benchmarks.find(name).main
        found[task] = {
            "main": main,
            "reached": measured["numbers"][main],
            "blind": measured["blind"],
            "chance": measured["chance"],
            "items": measured["items"],
            "steps": options.budget.steps,
            "rows": options.budget.rows,
            "scenes": options.train,
        }
        with write_whole(options.file) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    for pair, x in results(tyro.cli(Options, prog="python -m intarsia.studies.twin_results")).items():
        print(pair, x)
