"""Files for the servers: what is read again scores the same; what breaks a rule is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intarsia.errors import BadInput
from intarsia.evaluate.benchmark import boxes_of, score
from intarsia.tasks.benchmarks import find
from intarsia.tasks.metrics import captions, choices, gqa, ranking, submissions, vqa
from intarsia.tuning_runs import open_items
from intarsia.worlds.twins import write_twin


def test_vqa(tmp_path: Path) -> None:
    asked = [vqa.Question(i, ("café", *["dog"] * 9), "other", "what") for i in range(4)]
    given = {0: "dog", 1: "café", 2: "", 3: "cat"}
    submissions.write_vqa(tmp_path / "x.json", given)
    again = submissions.read_vqa(tmp_path / "x.json")
    assert again == given and vqa.accuracy(again, asked) == vqa.accuracy(given, asked)
    assert vqa.accuracy(again, asked).overall == pytest.approx((1 + 0.3) / 4)


def test_gqa(tmp_path: Path) -> None:
    question = {
        "question": "is it ?",
        "answer": "yes",
        "isBalanced": True,
        "semantic": [],
        "types": {"structural": "verify", "semantic": "attr", "detailed": "x"},
        "groups": {"global": None},
        "entailed": [],
    }
    given = {"01": "yes", "2": "no"}
    submissions.write_gqa(tmp_path / "x.json", given)
    again = submissions.read_gqa(tmp_path / "x.json")
    assert again == given
    assert gqa.scores({"01": question, "2": question}, again).accuracy == 0.5


@pytest.mark.parametrize("numbered", [False, True])
def test_captions(tmp_path: Path, numbered: bool) -> None:
    given = {7: 'a "red" café', 9: "two\nlines"}
    submissions.write_captions(tmp_path / "x.json", given, numbered)
    again = submissions.read_captions(tmp_path / "x.json")
    assert again == given
    references = {7: ["a red café"], 9: ["lines"]}
    assert captions.score(again, references) == captions.score(given, references)


def test_vcr(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"val-{i}" for i in range(20)]
    answers = {x: rng.random(4) for x in names}
    rationales = {x: rng.random((4, 4)) for x in names}
    submissions.write_vcr(tmp_path / "x.csv", answers, rationales)
    head = (tmp_path / "x.csv").read_text().splitlines()[0]
    assert head.startswith("annot_id,answer_0,") and head.endswith(",rationale_conditioned_on_a3_3")
    again, reasons = submissions.read_vcr(tmp_path / "x.csv")
    labels = rng.integers(0, 4, (2, 20))

    def scored(a: dict[str, np.ndarray], r: dict[str, np.ndarray]) -> choices.VCRScores:
        return choices.vcr([a[x] for x in names], np.stack([r[x] for x in names]), *labels)

    assert scored(again, reasons) == scored(answers, rationales)
    assert all(np.array_equal(reasons[x], rationales[x]) for x in names)


def test_nlvr2(tmp_path: Path) -> None:
    given = {"dev-0-0-0": True, "dev-0-1-0": False}
    submissions.write_nlvr2(tmp_path / "x.csv", given)
    assert (tmp_path / "x.csv").read_text() == "dev-0-0-0,True\ndev-0-1-0,False\n"
    again = submissions.read_nlvr2(tmp_path / "x.csv")
    assert choices.nlvr2(again, {"dev-0-0-0": "True", "dev-0-1-0": "True"}) == choices.NLVR2Scores(0.5, 0.0)
    with (tmp_path / "x.csv").open("a") as file:
        file.write("dev-0-1-0,true\n")
    assert submissions.read_nlvr2(tmp_path / "x.csv")["dev-0-1-0"] == "true", "the last line counts"


def test_muge(tmp_path: Path) -> None:
    given = {3: list(range(10)), 5: list(range(20, 30))}
    submissions.write_muge(tmp_path / "x.jsonl", given)
    again = submissions.read_muge(tmp_path / "x.jsonl")
    assert again == given and ranking.muge(again, {3: [4], 5: [99]})["R5"] == 0.5
    with pytest.raises(BadInput, match="text 3: .* not 10 different"):
        submissions.write_muge(tmp_path / "x.jsonl", {3: [1] * 10})


def test_muges_captions(tmp_path: Path) -> None:
    given = {"a1": "红鞋 \u2028 2021", "b2": ""}
    submissions.write_muge_captions(tmp_path / "x.jsonl", given)
    assert submissions.read_muge_captions(tmp_path / "x.jsonl") == given
    (tmp_path / "x.jsonl").write_text('{"image_id": 3, "text": "x"}\n')
    with pytest.raises(BadInput, match=r'entry 0: .* is not {"image_id": str, "text": str}'):
        submissions.read_muge_captions(tmp_path / "x.jsonl")


def test_visual7w(tmp_path: Path) -> None:
    submissions.write_visual7w(tmp_path / "x.json", {3: 41, 5: 7})
    again = submissions.read_visual7w(tmp_path / "x.json")
    assert again == {3: 41, 5: 7}
    pairs = [{"qa_id": 3, "answer": 41, "type": "which"}, {"qa_id": 5, "answer": 8, "type": "which"}]
    assert choices.visual7w(again, pairs).overall == 0.5
    regions = write_twin("visual7w", tmp_path, 4, 4, level=0)
    source = open_items(find("visual7w"), tmp_path, str(regions), "val")
    rng = np.random.default_rng(0)
    scores = {source[i].key: rng.random(len(source[i].pictures[0].boxes)) for i in range(len(source))}
    find("visual7w").submit_regions(tmp_path / "x.json", source.annotations, scores, boxes_of(source, scores))  # type: ignore[misc]
    sent = choices.visual7w(submissions.read_visual7w(tmp_path / "x.json"), list(source.annotations.gold.values()))
    assert sent.overall == score(find("visual7w"), source, scores)["accuracy"]
    (tmp_path / "x.json").write_text('[{"qa_id": 3, "candidates": []}]')
    with pytest.raises(BadInput, match=r"question 3: \[\] is no list of candidates"):
        submissions.read_visual7w(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not JSON"),
        ("{}", "holds no list"),
        ('[{"question_id": "1", "answer": "x"}]', 'entry 0: .* is not {"question_id": int, "answer": str}'),
        ('[{"question_id": 1}]', "entry 0"),
        ('[{"question_id": true, "answer": "x"}]', "entry 0"),
        ('[{"question_id": 1, "answer": "x"}, {"question_id": 1, "answer": "y"}]', "question_id 1 comes twice"),
    ],
)
def test_broken_answers(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(BadInput, match=complaint):
        submissions.read_vqa(tmp_path / "x.json")


def test_broken_tables(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    with pytest.raises(BadInput, match=r"x\.csv: No such file"):
        submissions.read_nlvr2(file)
    file.write_text("dev-0-0-0\n")
    with pytest.raises(BadInput, match="line 1: 'dev-0-0-0' is not identifier,prediction"):
        submissions.read_nlvr2(file)
    with pytest.raises(BadInput, match="the head is not annot_id"):
        submissions.read_vcr(file)
    file.write_text(",".join(submissions.VCR_COLUMNS) + "\nval-0,0.5\n")
    with pytest.raises(BadInput, match="line 2: 'val-0' has 1 numbers of 20"):
        submissions.read_vcr(file)
    with pytest.raises(BadInput, match="not the same"):
        submissions.write_vcr(file, {"a": np.ones(4)}, {})
    with pytest.raises(BadInput, match=r"a: answers \(3,\)"):
        submissions.write_vcr(file, {"a": np.ones(3)}, {"a": np.ones((4, 4))})
