"""The runs that are kept, from which the pages are written: arms are measured alike, and the design's acceptance is met."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from intarsia.studies.granularity import ARMS, COMPARED, Run
from intarsia.studies.numbers import interval, paired
from intarsia.studies.readouts import MAPS
from intarsia.studies.runs import gather, known, program
from intarsia.studies.tables import seeds_of

KEPT = Path(__file__).parents[2] / "docs/studies/runs"


@pytest.mark.parametrize("study", ["granularity", "volume", "inside", "drawn", "stamped"])
def test_the_sentence_arm_has_every_read_out_that_another_arm_has(study: str) -> None:
    """ "Best" is over the read-outs that a file holds: one that only the other arm was given would count as its gain, or the sentence's loss."""
    together: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for file in sorted((KEPT / study).rglob("*.json")):
        found = json.loads(file.read_text())
        run = {**dataclasses.asdict(Run()), **found["run"]}
        own = {name: x for name, x in run.items() if name != "arm"}
        together[json.dumps(own, sort_keys=True)][run["arm"]] = set(MAPS) & set(found["test"]["pointing"])
    assert together
    for same, arms in together.items():
        for sentence in {"sentence", "sentence, told"} & arms.keys():
            more = {arm: sorted(has - arms[sentence]) for arm, has in arms.items() if has - arms[sentence]}
            assert not more, f"{sentence} of {same}"


def test_acceptance_of_the_design() -> None:
    """Feature scenes, 2,000 pairs, five seeds: the token arm points at .90 and binds at .95, and `both` retrieves within .02 of the sentence arm."""
    same: dict[str, Any] = {"pairs": 2000, "steps": 400, "batch": 32, "level": 0, "unit": "region", "noise": 0.0}
    same |= {"density": 1.0, "lr": 2e-3, "temperature": 0.1, "size": "tiny"}
    found = gather(KEPT / "granularity", {x: {} for x in ARMS}, dataclasses.asdict(Run()), **same)
    arms = {arm: {name: seeds_of(found, arm, value) for name, value in COMPARED.items()} for arm in found}
    for name, least in (("pointing, best", 0.90), ("binding, best", 0.95)):
        assert len(arms["token"][name]) >= 5
        assert interval(list(arms["token"][name].values())).low >= least, name
    retrieval = "t2i R@1 of random pairs, best"
    assert paired(arms["both"][retrieval], arms["sentence"][retrieval]).low >= -0.02


def test_bad_input_ends_a_study_with_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program(lambda: print(known(KEPT / "granularity", {"token": {}}, pairs=7)), "granularity")
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"granularity: {KEPT / 'granularity'}: holds no runs of {{'pairs': 7}}"
    ]
