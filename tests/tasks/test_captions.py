"""Captions from COCO's files to its server's file by the command line, by cross entropy and self-critically."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import intarsia
from intarsia import caption_runs
from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.tasks.benchmarks import captions, find
from intarsia.tasks.metrics import submissions


def tune(system: str, data: Path, out: Path, *more: str) -> None:
    main(
        ["finetune", system, "caption", "--data", str(data), "--regions", str(data / "regions"), "--out", str(out)]
        + ["--size", "tiny", "--steps", "2", "--rows", "600", "--workers", "0", "--device", "cpu", *more]
    )


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("coco")
    main(["twin", "coco-captions", "--out", str(data), "--train", "6", "--val", "3", "--level", "0"])
    return data


@pytest.mark.parametrize("system", ["vlp", "oscar"])
def test_from_cross_entropy_to_the_server(system: str, twin: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "ce", tmp_path / "scst"
    tune(system, twin, first)
    tune(system, twin, second, "--critical", "--weights", str(first), "--samples", "2", "--lr", "1e-3")
    logs = [json.loads(x)["loss"] for x in (second / "metrics.jsonl").read_text().splitlines()]
    assert {"critical", "reward"} <= logs[-1].keys()
    before, after = (intarsia.open(system, weights=x).system for x in (first, second))
    moved = [not torch.equal(x, y) for x, y in zip(before.parameters(), after.parameters(), strict=True)]
    assert any(moved)
    main(["score", str(second), "--blind"])
    told = json.loads((second / "score-val.json").read_text())
    assert told["items"] == 3
    assert {"Bleu_4", "ROUGE_L", "CIDEr"} <= told["numbers"].keys()
    assert told["blind"] >= 0
    main(["submit", str(second), "--split", "val", "--out", str(tmp_path / "results.json")])
    sent = submissions.read_captions(tmp_path / "results.json")
    annotations = find("coco-captions").read(twin, "val")
    again = captions.measure(annotations, {str(key): text for key, text in sent.items()})
    assert again == pytest.approx({key: told["numbers"][key] for key in again})
    images = [{"id": 10 + i, "file_name": next(iter(annotations.items)).pictures[0]} for i in range(2)]
    (twin / "nocaps_test_image_info.json").write_text(json.dumps({"images": images}))
    away = ["--benchmark", "nocaps", "--split", "test", "--out", str(tmp_path / "nocaps.json")]
    main(["submit", str(second), *away])
    assert submissions.read_captions(tmp_path / "nocaps.json").keys() == {10, 11}


def test_m6_goes_on_with_captions_alone(twin: Path, tmp_path: Path) -> None:
    tune("m6", twin, tmp_path / "run")
    logs = [json.loads(x)["loss"] for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert logs and all(x.keys() == {"caption"} for x in logs)
    main(["score", str(tmp_path / "run")])
    told = json.loads((tmp_path / "run/score-val.json").read_text())
    assert told["items"] == 3 and "CIDEr" in told["numbers"]


def test_all_references_count_and_restval_is_training(tmp_path: Path) -> None:
    pictures = [
        {
            "filename": f"{i}.jpg",
            "imgid": i,
            "cocoid": 10 + i,
            "split": split,
            "sentences": [{"raw": f"a {j}"} for j in range(7)],
        }
        for i, split in enumerate(["train", "restval", "test"])
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": pictures}))
    assert len(captions.COCO(tmp_path, "train").items) == 14
    test = captions.COCO(tmp_path, "test")
    assert len(test.gold["12"][0]) == 7
    perfect = captions.measure(test, {"12": "a 3"})
    assert perfect["Bleu_2"] == pytest.approx(1, abs=1e-6)
    with pytest.raises(BadInput, match="1 have no caption"):
        captions.submit(tmp_path / "x.json", test, {})


def test_nocaps_by_domain(tmp_path: Path) -> None:
    domains = ["in-domain", "in-domain", "out-domain", "out-domain"]
    said = ["a red cup on a table", "two dogs run on grass", "a tall white crane", "an old violin in a case"]
    images = [{"id": i, "file_name": f"{i}.jpg", "domain": x} for i, x in enumerate(domains)]
    rows = [{"id": i, "image_id": i, "caption": x} for i, x in enumerate(said)]
    path = tmp_path / "nocaps_val_4500_captions.json"
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    found = captions.measure(captions.nocaps(tmp_path, "val"), {"0": said[0], "1": said[1], "2": said[0], "3": said[1]})
    assert found["CIDEr in-domain"] == pytest.approx(10)
    assert found["CIDEr out-domain"] < 1
    assert "CIDEr near-domain" not in found
    path.write_text(json.dumps({"images": images, "annotations": rows[1:]}))
    with pytest.raises(BadInput, match="image 0 has no caption"):
        captions.nocaps(tmp_path, "val")
    (tmp_path / "nocaps_test_image_info.json").write_text(json.dumps({"images": images}))
    test = captions.nocaps(tmp_path, "test")
    assert not test.gold
    captions.submit(tmp_path / "out.json", test, dict.fromkeys("0123", "a cup"))
    assert json.loads((tmp_path / "out.json").read_text())[3] == {"image_id": 3, "caption": "a cup", "id": 3}


def test_rewards_know_their_references(twin: Path) -> None:
    from intarsia.tuning_runs import open_items

    source = open_items(find("coco-captions"), twin, str(twin / "regions"), "train")
    reward = caption_runs.cider_reward(source)
    item, other = source.kept[0][0], source.kept[-1][0]
    mine, wrong = reward([item.texts[0], other.texts[0]], [item.key, item.key])
    assert mine > wrong


def test_what_cannot_be_is_told(twin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for system, more, said in (
        ("uniter", (), "its paper has no task 'caption'"),
        ("vlp", ("--critical",), "begins from a captioner"),
        ("vlp", ("--benchmark", "coco"), "one writes captions, the other does not"),
    ):
        with pytest.raises(SystemExit) as caught:
            tune(system, twin, tmp_path / "run", *more)
        assert caught.value.code == 2
        assert said in capsys.readouterr().err


def test_chinese_captions_are_scored_by_characters(tmp_path: Path) -> None:
    said = [{"url": "", "image_id": f"{i}.jpg", "caption": [f"{x}在跑步。"] * 5} for i, x in enumerate("狗猫")]
    (tmp_path / "caption_validation_annotations_20170910.json").write_text(json.dumps(said))
    benchmark = find("aic-icc-captions")
    known = benchmark.read(tmp_path, "val")
    assert len(known.items) == 10 and known.gold["0.jpg"] == (("狗在跑步",) * 5, "")
    right = captions.measure(known, {"0.jpg": "狗 在 跑步", "1.jpg": "猫在跑步"})
    assert right["Bleu_4"] == pytest.approx(1, abs=1e-6)
    mixed = captions.measure(known, {"0.jpg": "猫在跑步", "1.jpg": "狗在跑步"})
    assert mixed["Bleu_1"] == pytest.approx(3 / 4, abs=1e-6)
    assert captions.measure_java(known, {"0.jpg": "猫"})[1] == dict.fromkeys(("METEOR", "SPICE"), "reads no Chinese")


def test_muge_tells_of_products_and_sends_a_text_each(tmp_path: Path) -> None:
    lines = [{"image_id": x, "text": [f"{x}号 Nike鞋2021款", "鞋"]} for x in ("a1", "b2")]
    (tmp_path / "IC_valid.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    benchmark = find("muge-captions")
    known = benchmark.read(tmp_path, "val")
    assert [x.key for x in known.items] == ["a1#0", "a1#1", "b2#0", "b2#1"]
    assert known.gold["a1"] == (("a1号 Nike鞋2021款", "鞋"), "")
    numbers = captions.measure(known, {"a1": "Nike鞋2021款", "b2": "b2号Nike鞋2021款"})
    assert numbers["Bleu_1"] == pytest.approx(np.exp(1 - 11 / 11), abs=1e-6)  # Nike and 2021 are a word each
    for file, content in (("IC_test.tsv", "c3\t/9j/\nd4\t/9j/\n"), ("IC_test.jsonl", '{"image_id": "c3"}\n')):
        (tmp_path / file).write_text(content)
        asked = benchmark.read(tmp_path, "test")
        assert [x.key for x in asked.items][:1] == ["c3#0"] and not asked.gold
    assert benchmark.submit_captions is not None
    benchmark.submit_captions(tmp_path / "out.jsonl", asked, {"c3": "红 鞋"})
    assert submissions.read_muge_captions(tmp_path / "out.jsonl") == {"c3": "红 鞋"}
    with pytest.raises(BadInput, match="1 have no text"):
        benchmark.submit_captions(tmp_path / "out.jsonl", asked, {})
    (tmp_path / "IC_valid.jsonl").write_text('{"image_id": "a1", "text": []}\n')
    with pytest.raises(BadInput, match=r"line 1: image a1 has no text"):
        benchmark.read(tmp_path, "val")
