"""From published files to the server's file by the command line; and several systems compared."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from intarsia.cli import main
from intarsia.comparison import Interval, t_quantile
from intarsia.errors import BadInput
from intarsia.tasks.benchmarks import find
from intarsia.tasks.metrics import choices, submissions
from intarsia.tuning_runs import answer_list, pairing, read_answers


def test_nlvr2_from_files_to_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = str(tmp_path / "twin"), str(tmp_path / "run")
    main(["twin", "nlvr2", "--out", data, "--train", "8", "--val", "8", "--level", "0"])
    tune = ["finetune", "visualbert", "nlvr2", "--data", data, "--regions", f"{data}/regions", "--out", run]
    tune += ["--size", "tiny", "--steps", "2", "--rows", "600", "--samples", "4", "--workers", "0", "--device", "cpu"]
    main([*tune, "--valid-split", "dev"])
    capsys.readouterr()
    main(["score", run, "--blind"])
    assert "published: dev 67.4, test-P 67.0 (T)" in capsys.readouterr().out
    told = json.loads((tmp_path / "run/score-dev.json").read_text())
    assert told["chance"] == 0.5
    assert 0 <= told["blind"] <= 1
    main(["submit", run, "--split", "dev", "--out", str(tmp_path / "dev.csv")])
    gold = find("nlvr2").read(tmp_path / "twin", "dev").gold
    again = choices.nlvr2(submissions.read_nlvr2(tmp_path / "dev.csv"), gold)
    assert {"accuracy": again.accuracy, "consistency": again.consistency} == told["numbers"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*tune, "--seed", "7"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit):
        main(["finetune", "visualbert", "re", *tune[3:]])
    assert "its paper has no task 're' (it has vqa, vqa_mmf, nlvr2, nlvr2_mmf, vcr, ground)" in capsys.readouterr().err
    main(["evaluate", run, "--out", str(tmp_path / "new/dev.json")])
    assert json.loads((tmp_path / "new/dev.json").read_text())["numbers"] == told["numbers"], (
        "evaluate scores a tuned run"
    )
    bare = [*tune[:7], "--out", str(tmp_path / "other"), "--size", "tiny", "--device", "cpu"]
    for args, said in (
        (["score", run, "--device", "quantum"], "device 'quantum' cannot be used"),
        ([*bare, "--steps", "-1"], "--steps -1: at least 0"),
        ([*bare, "--lr", "-1"], "--lr -1.0: at least 0"),
        ([*bare, "--rows", "0"], "--rows 0: at least 1"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(args)
        assert caught.value.code == 2
        assert said in capsys.readouterr().err
    (tmp_path / "run/finetune.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["score", run])
    assert "finetune.json: About" in capsys.readouterr().err


def test_vcr_by_two_heads_is_measured_and_sent_in_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, runs = tmp_path / "twin", {x: str(tmp_path / x) for x in ("vcr", "vcr_qar")}
    main(["twin", "vcr", "--out", str(data), "--train", "4", "--val", "4", "--level", "0"])
    for task, run in runs.items():
        tune = ["finetune", "ernie_vil", task, "--data", str(data), "--regions", f"{data}/regions", "--out", run]
        main([*tune, "--size", "tiny", "--steps", "1", "--rows", "900", "--samples", "2", "--workers", "0"])
    both = ["--rationales", runs["vcr_qar"]]
    main(["score", runs["vcr"], *both])
    told = json.loads((tmp_path / "vcr/score-vcr-val.json").read_text())
    assert told["numbers"].keys() == {"Q->A", "QA->R", "Q->AR"}
    lines = [json.loads(x) for x in next(data.rglob("val.jsonl")).read_text().splitlines()]
    bare = [{k: v for k, v in x.items() if k not in ("answer_label", "rationale_label")} for x in lines]
    (data / "test.jsonl").write_text("".join(json.dumps(x) + "\n" for x in bare))
    sent = tmp_path / "vcr.csv"
    main(["submit", runs["vcr"], *both, "--split", "test", "--out", str(sent)])
    answers, rationales = submissions.read_vcr(sent)
    assert list(answers) == [x["annot_id"] for x in lines]
    gold = [[x["answer_label"] for x in lines], [x["rationale_label"] for x in lines]]
    again = choices.vcr(list(answers.values()), list(rationales.values()), *gold)
    assert [again.answer, again.rationale, again.joint] == [told["numbers"][x] for x in ("Q->A", "QA->R", "Q->AR")]
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["submit", runs["vcr"], "--split", "test", "--out", str(tmp_path / "no.csv")])
    assert caught.value.code == 2
    assert (
        "vcr-answers: has no server to send predictions to; with the run of the rationales" in capsys.readouterr().err
    )
    assert not (tmp_path / "no.csv").exists()


def test_comparing_goes_on_and_says_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = str(tmp_path / "twin"), tmp_path / "out"
    main(["twin", "refcoco", "--out", data, "--train", "8", "--val", "6", "--level", "0"])
    args = ["compare", "uniter,vl_bert", "--task", "refcoco", "--data", data, "--regions", f"{data}/regions"]
    args += ["--out", str(out), "--steps", "2", "--rows", "200"]
    main([*args, "--seeds", "1"])
    first = (out / "uniter-0/result.json").read_bytes()
    main([*args, "--seeds", "2"])
    assert (out / "uniter-0/result.json").read_bytes() == first
    page = (out / "comparison.md").read_text()
    assert page.count("±") == 3
    assert "RefCOCO, accuracy" in page
    assert (out / "comparison.svg").read_text().startswith("<?xml")
    with pytest.raises(SystemExit) as caught:
        main([*args, "--seeds", "1", "--lr", "1"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit):
        main(["compare", "uniter,vlp", *args[2:]])


def test_students_t() -> None:
    assert [t_quantile(0.975, x) for x in (1, 2, 4, 30)] == pytest.approx(
        [12.7062, 4.30265, 2.77645, 2.04227], abs=1e-4
    )
    assert str(Interval.of([0.5, 0.5, 0.8])) == "60.0 ± 43.0"
    assert str(Interval.of([0.25])) == "25.0"


def test_tables_of_answers(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"no": 1, "yes": 0}')
    (tmp_path / "b.json").write_text('["yes", "no"]')
    (tmp_path / "c.txt").write_text("yes\nno\n")
    (tmp_path / "all_ans.json").write_text('[{"ans": "yes", "dsets": ["vqa"]}, {"ans": "no", "dsets": []}]')
    (tmp_path / "trainval_ans2label.pkl").write_bytes(pickle.dumps({"no": 1, "yes": 0}))
    names = ("a.json", "b.json", "c.txt", "all_ans.json", "trainval_ans2label.pkl")
    assert {read_answers(tmp_path / x) for x in names} == {("yes", "no")}
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(BadInput, match=r"a\.json: holds no answer"):
        answer_list(find("vqa"), pairing("uniter", "vqa")[1], tmp_path, tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"no": 2, "yes": 0}')
    with pytest.raises(Exception, match=r"numbers of its 2 answers are not 0 \.\. 1"):
        read_answers(tmp_path / "a.json")


def test_chance_of_answers_is_what_guesses_get(tmp_path: Path) -> None:
    from intarsia.tuning_runs import open_items

    main(["twin", "vqa", "--out", str(tmp_path), "--train", "4", "--val", "30", "--level", "0"])
    labels = ("", "yes", "no", "1", "2")
    benchmark = find("vqa")
    source = open_items(benchmark, tmp_path, str(tmp_path / "regions"), "val", labels)
    rng = np.random.default_rng(0)
    got = []
    assert benchmark.measure is not None
    assert benchmark.chance is not None
    for _ in range(60):
        guess = {x.key: np.append(-1.0, rng.random(4)) for x in source.annotations.items}
        got.append(benchmark.measure(source.annotations, guess)["accuracy"])
    assert np.mean(got) == pytest.approx(benchmark.chance(source.annotations), abs=4 * np.std(got) / 60**0.5)
