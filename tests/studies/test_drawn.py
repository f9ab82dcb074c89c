"""The study of drawn pictures: arms learn from the same batches, the blind one sees nothing, and the page is written from files alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.errors import BadInput
from intarsia.pack import pack
from intarsia.studies import drawn
from intarsia.studies.drawn import Drawn
from intarsia.studies.family import without_picture
from intarsia.studies.granularity import Watched, begin
from intarsia.studies.tying import measure
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


def learnt(options: Drawn, seed: int) -> list[tuple[Watched, dict[str, Any]]]:
    """What the processes of the arms learn, in this one."""
    return [drawn.learn(run, options, torch.device("cpu"), drawn.batches(options, seed)) for run in options.runs(seed)]


def test_arms_learn_apart_from_the_same_batches() -> None:
    """Each learns something, and something else than the others."""
    found = learnt(SMALL, 3)
    assert [about["run"]["arm"] for _, about in found] == ["sentence", "token", "blind"]
    assert all(about["steps done"] == 4 and [x["step"] for x in about["watched"]] == [1, 2, 3, 4] for _, about in found)
    begun = begin(SMALL.runs(3)[0])[0].log_scale
    scales = [begun, *(system.log_scale for system, _ in found)]
    assert len({tuple(x.tolist()) for x in scales}) == 4
    assert all(x["a_sent"] > 0 for x in found[2][1]["watched"])


def test_processes_of_arms_give_what_one_process_gives(tmp_path: Path) -> None:
    """Bit by bit, training and measuring; the files of all arms are there. Slow: two processes start."""
    options = dataclasses.replace(SMALL, arms=("token", "blind"), pairs=16, scenes=6, fused=3, out=tmp_path, workers=1)
    drawn.perform(options, 3)
    for (system, about), run in zip(learnt(options, 3), options.runs(3), strict=True):
        told = json.loads((tmp_path / run.file).read_text())
        here = {**about, "test": measure(system, run.source("test", 1200), 6, 3)}
        for name in ("run", "device", "steps done", "watched", "test"):
            assert told[name] == json.loads(json.dumps(here[name])), name


def test_the_end_of_an_arm_ends_all_in_one_line(tmp_path: Path) -> None:
    """There is no such device, which the arm tells; no file is left. Slow: a process starts."""
    options = dataclasses.replace(SMALL, arms=("token",), out=tmp_path, device="no such device")
    with pytest.raises(BadInput, match="no such device"):
        drawn.perform(options, 3)
    assert not list(tmp_path.iterdir())


def test_an_arm_that_is_killed_is_told() -> None:
    """By its exit code; batches are then not handed out for ever."""
    arm = drawn.Arm(SMALL.runs(3)[0], SMALL)
    arm.process.kill()
    with pytest.raises(BadInput, match="arm sentence: its process ended with exit code -9"):
        for _ in range(drawn.AHEAD + 1):
            arm.give(None)


def test_training_ends_in_time_and_says_so() -> None:
    """No second is given, so no pair is read."""
    ((_, about),) = learnt(dataclasses.replace(SMALL, arms=("token",), seconds=0.0), 3)
    assert about["steps done"] == 0 and about["watched"] == []


def test_the_page_is_written_from_files(tmp_path: Path) -> None:
    """The numbers of the arms that are there; a page of no runs is an error."""
    page = tmp_path / "volume.md"
    page.write_text(PAGE.read_text().replace("drawn-172032", "drawn-16"))
    options = dataclasses.replace(SMALL, out=tmp_path / "runs", arms=("sentence", "token"), pairs=16, scenes=8, fused=3)
    for one in learnt(options, 5):
        found = drawn.measured(*one, options)
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
