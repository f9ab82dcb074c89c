"""The study on stamps, on generated scenes in their place: a run says every claim, is made once, and the page is written from files alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intarsia.errors import BadInput
from intarsia.studies import stamped
from intarsia.studies.stamped import COMPARED, MEASURES, Run

PAGE = Path(__file__).parents[2] / "docs/studies/granularity.md"
DATA = "worlds:24:3"


def test_a_run_says_every_claim_and_the_page_is_written_from_files(tmp_path: Path) -> None:
    """Chance of pointing is that of the scenes; a folder without runs is an error."""
    run = Run(arm="token", pairs=24, steps=4, batch=8, seed=1)
    found = stamped.perform(run, DATA, tmp_path / "runs", tmp_path / "work")
    for name, value in (MEASURES | COMPARED).items():
        assert np.isfinite(value(found)), name
    sizes = [len(stamped.english(DATA, "test")[i].pictures[0].boxes) for i in range(24)]
    assert found["test"]["pointing"]["chance"] == pytest.approx(
        float(np.mean([1 / x for x in sizes for _ in range(2)]))
    )
    page = tmp_path / "granularity.md"
    page.write_text(PAGE.read_text())
    common = ["--data", "nowhere", "--no-make", "--out", str(tmp_path / "runs"), "--batch", "8", "--page", str(page)]
    stamped.main([*common, "--steps", "4"])
    assert "24 pairs, 4 steps of 8" in page.read_text()
    with pytest.raises(BadInput, match="holds no runs"):
        stamped.main([*common, "--steps", "5"])
