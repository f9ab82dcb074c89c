from __future__ import annotations

import json
from pathlib import Path

import pytest

from intarsia.cli_data import data
from intarsia.errors import BadInput
from intarsia.tasks.benchmarks.survey import Split, survey

NLVR2 = {"identifier": "dev-1-0-0", "sentence": "Two dogs", "label": "True"}
VE = {"gold_label": "neutral", "pairID": "1r1n", "Flikr30kID": "1.jpg", "sentence2": "a dog"}


def write(root: Path) -> None:
    (root / "dev.json").write_text("".join(json.dumps(NLVR2 | {"identifier": f"dev-1-0-{i}"}) + "\n" for i in range(2)))
    (root / "test1.json").write_text(json.dumps(NLVR2) + "\n")
    (root / "snli_ve_dev.jsonl").write_text(json.dumps(VE) + "\n")


def test_the_benchmarks_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    found = survey(tmp_path)
    assert found.problems == () and found.splits == (
        Split("nlvr2", "NLVR2", "dev", 2, 2, True),
        Split("nlvr2", "NLVR2", "test1", 1, 2, True),
        Split("snli-ve", "SNLI-VE", "dev", 1, 1, True),
    )
    data(["inspect", str(tmp_path)])
    data(["check", str(tmp_path)])
    assert capsys.readouterr().out.count("NLVR2 (nlvr2), dev: 2 items of 2 pictures, with answers") == 2


def test_a_broken_split_is_a_problem_a_file_of_another_kind_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    (tmp_path / "train.jsonl").write_text("{}\n")  # VCR's name, and nothing else of VCR is there
    assert survey(tmp_path).problems == ()
    (tmp_path / "train.json").write_text('{"identifier": "train-1-0-0"}\n')
    message = r"train\.json: line 1: .* has no field 'label'"
    with pytest.raises(BadInput, match=message):
        data(["check", str(tmp_path)])
    data(["check", str(tmp_path), "--on-error", "skip"])
    assert "has no field 'label'" in capsys.readouterr().out


def test_a_folder_of_nothing_known_says_what_could_be(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a folder that holds nothing; expected a folder with"):
        data(["inspect", str(tmp_path)])
