"""The study inside published systems: a run says every measure and is made once, the page comes from files, the blind see nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from intarsia.errors import BadInput
from intarsia.pack import pack
from intarsia.studies import inside
from intarsia.studies.inside import COMPARED, MEASURES, Run
from intarsia.studies.readouts import MAPS

PAGE = Path(__file__).parents[2] / "docs/studies/inside.md"


@pytest.mark.parametrize("name", ["uniter", "lxmert"])
def test_a_run_says_every_measure_and_the_page_is_written_from_files(name: str, tmp_path: Path) -> None:
    run = Run(name, pairs=24, steps=2, rows=120, seed=1)
    found = inside.perform(run, tmp_path, tmp_path / "work", scenes=20, candidates=4)
    for measure, value in (MEASURES | COMPARED).items():
        assert np.isfinite(value(found)), measure
    assert inside.perform(run, tmp_path) == json.loads((tmp_path / run.file).read_text())
    for arm, right in (("sentence", 0.25), ("token", 0.75)):
        for seed in (1, 2, 3):
            one = copy.deepcopy(found)
            one["run"] |= {"arm": arm, "seed": seed}
            one["test"]["pointing"] |= dict.fromkeys(MAPS, 0.0) | {"dot": right + seed / 100}
            (tmp_path / f"{arm}-{seed}.json").write_text(json.dumps(one))
    page = tmp_path / "inside.md"
    page.write_text(PAGE.read_text())
    sizes = ["--pairs", "24", "--steps", "2", "--rows", "120", "--systems", name]
    inside.main(["--out", str(tmp_path), "--no-make", "--page", str(page), *sizes])
    lines = page.read_text().split(f"<!-- {name}: ")[1].splitlines()  # of this system's own section
    rows = [x for x in lines if x.startswith(("| pointing, best", "| pointing, u.v"))]  # claims, differences, the rest
    assert "0.270 ± " in rows[2] and "0.770 ± " in rows[2]
    assert "**0.500 ± 0.000**" in rows[1] and "0.270 ± " in rows[0]
    assert next(x for x in lines if x.startswith("| I1")).endswith("0.500 ± 0.000 | undecided |")


@pytest.mark.parametrize("name", ["uniter", "lxmert"])
def test_a_blind_run_sees_nothing(name: str) -> None:
    run = Run(name, "blind")
    system, _ = inside.begin(run)
    one, other = (run.source("train", 2)[i] for i in range(2))
    with torch.inference_mode():
        scores = [
            system.eval().scores(system.encode(pack([system.lay_out(x)])))  # type: ignore[operator]
            for x in (one, type(one)(one.key, one.texts, other.pictures))
        ]
    for key, value in scores[0].items():
        torch.testing.assert_close(value, scores[1][key], atol=1e-6, rtol=0)


def test_bad_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no arm"):
        inside.perform(Run(arm="words"), tmp_path)
    with pytest.raises(BadInput, match="no objective itm"):
        inside.perform(Run(system="vlp"), tmp_path)
