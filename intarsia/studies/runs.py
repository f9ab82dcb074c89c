"""The runs of a study: each leaves one small JSON file, kept with the code, so that pages are written anew from a clone and runs add up."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from intarsia.errors import BadInput
from intarsia.text import Vocab
from intarsia.train.start import captions
from intarsia.worlds import Split, WorldConfig, WorldSource

KEPT = Path("docs/studies/runs")
"""Where the JSON files lie, a folder a study."""
WORK = Path("runs/studies")
"""Where checkpoints and logs lie, which are not kept."""

Results = dict[str, dict[int, dict[str, Any]]]
"""Arm -> seed -> what the run found."""


def once(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds, or what `make` returns, which is then written there whole. Processes that make different runs may share a folder."""
    if not file.is_file():
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        part.replace(file)
    told: dict[str, Any] = json.loads(file.read_text())
    return told


def gather(
    folder: Path, arms: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Any] | None = None, **same: Any
) -> Results:
    """All results in and below a folder whose runs agree with the given fields, in the order of the arms.

    Args:
        folder: of JSON files.
        arms: arm -> fields that its runs must have.
        defaults: fields that older files do not name.
        same: fields of every run.
    """
    found: Results = {}
    for path in sorted(folder.rglob("*.json")):
        result = json.loads(path.read_text())
        run = {**(defaults or {}), **result["run"]}
        if run["arm"] in arms and all(run[name] == value for name, value in {**same, **arms[run["arm"]]}.items()):
            found.setdefault(run["arm"], {})[run["seed"]] = result
    return {arm: found[arm] for arm in arms if arm in found}


def known(
    folder: Path, arms: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Any] | None = None, **same: Any
) -> Results:
    """As `gather`.

    Raises:
        BadInput: there are no such runs.
    """
    found = gather(folder, arms, defaults, **same)
    if not found:
        raise BadInput(f"{folder}: holds no runs of {same}")
    return found


def program(main: Callable[[], None], name: str) -> None:
    """Runs a study from the command line: bad input is told in one line, exit code 2."""
    try:
        main()
    except BadInput as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


@lru_cache(maxsize=6)
def world(config: WorldConfig, split: Split, count: int, seed: int) -> WorldSource:
    """A source whose scenes are drawn once for all runs of a process that read it."""
    return WorldSource(config, split, count, seed)


@lru_cache(maxsize=4)
def vocabulary(config: WorldConfig, specials: tuple[str, ...] = ()) -> Vocab:
    """Of the captions of 1,000 scenes of a world; the same for all seeds."""
    return captions(WorldSource(config, count=1000, seed=0), specials)
