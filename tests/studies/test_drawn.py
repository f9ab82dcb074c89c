"""The study of drawn pictures: arms learn from the same batches, the blind one sees nothing, and the page is written from files alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from intarsia.errors import BadInput
from intarsia.pack import pack
from intarsia.studies import drawn
from intarsia.studies.drawn import Drawn
from intarsia.studies.family import without_picture
from intarsia.studies.granularity import begin
from intarsia.systems.inlay import EVERY

PAGE = Path(__file__).parents[2] / "docs/studies/volume.md"
SMALL = Drawn(arms=("sentence", "token", "blind"), pairs=32, batch=8, size="tiny", precision="fp32", workers=0, device="cpu")  # fmt: skip


def test_the_blind_arm_sees_what_its_examples_would_show() -> None:
    """A packed batch made blind is the batch of examples made blind, in all that the system reads."""
    run = SMALL.runs(1)[0]
    system, _ = begin(run)
    source = run.source("train", 6)
    rng = [np.random.default_rng(i) for i in range(6)]
    shown = [system.hide(source[i], EVERY, rng[i], lambda: source[0]) for i in range(6)]
    left, right = drawn.unseen(pack(shown)).regions, pack([without_picture(x) for x in shown]).regions
    assert left is not None and right is not None
    for name in ("feats", "boxes", "masked"):
        assert torch.equal(getattr(left, name), getattr(right, name)), name
    assert not torch.equal(pack(shown).regions.boxes, left.boxes)  # type: ignore[union-attr]


def test_arms_learn_apart_from_the_same_batches() -> None:
    """An arm learns the same whatever arms learn beside it; another arm something else."""
    alone = drawn.train(dataclasses.replace(SMALL, arms=("token",)), 3)
    beside = drawn.train(SMALL, 3)
    assert [x[1]["run"]["arm"] for x in beside] == ["sentence", "token", "blind"]
    (one, about), (other, _) = alone[0], beside[1]
    assert about["steps done"] == 4 and [x["step"] for x in about["watched"]] == [1, 2, 3, 4]
    for name, x in one.state_dict().items():
        assert torch.equal(x, other.state_dict()[name]), name
    assert not torch.equal(beside[0][0].log_scale, other.log_scale)
    assert all(x["a_sent"] > 0 for x in beside[2][1]["watched"])


def test_training_ends_in_time_and_says_so() -> None:
    """No second is given, so no pair is read."""
    found = drawn.train(dataclasses.replace(SMALL, arms=("token",), seconds=0.0), 3)
    assert found[0][1]["steps done"] == 0


def test_the_page_is_written_from_files(tmp_path: Path) -> None:
    """Measured as a run is, the numbers of one arm twice; a page of no runs is an error."""
    page = tmp_path / "volume.md"
    page.write_text(PAGE.read_text())
    options = dataclasses.replace(SMALL, out=tmp_path / "runs", arms=("sentence", "token"), pairs=16)
    for one in drawn.train(options, 5):
        found = drawn.measured(one, 8, fused=3)
        run = drawn.Run(**found["run"])
        (tmp_path / "runs" / run.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / run.file).write_text(json.dumps(found))
    drawn.perform(dataclasses.replace(options, device="no such device"), 5)  # all are there, so nothing is made
    common = ["--out", str(tmp_path / "runs"), "--no-make", "--size", "tiny", "--batch", "8", "--page", str(page)]
    drawn.main([*common, "--pairs", "16"])
    told = page.read_text()
    assert "cpu, fp32: 16 pairs of drawn pictures" in told and "| 16 | token |" in told
    assert told.startswith(PAGE.read_text()[: PAGE.read_text().index("<!-- drawn")])
    with pytest.raises(BadInput, match="holds no runs"):
        drawn.main([*common, "--pairs", "24"])
