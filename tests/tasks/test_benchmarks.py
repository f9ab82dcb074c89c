"""The published annotation files: what their readers make of them, edge cases, and errors that name the file."""

from __future__ import annotations

import gzip
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intarsia.batch import Picture, Sample
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.tasks.benchmarks import Annotated, Annotations, Item, Pictures, find, vcr, vqa
from intarsia.tasks.benchmarks.items import spellings
from intarsia.tasks.metrics import submissions
from intarsia.tasks.metrics import vqa as metric
from intarsia.tasks.vcr import joined


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(x) + "\n" for x in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")


class Boxes:
    """A source of pictures with two regions each, halves of the picture: left, right."""

    provenance: Provenance | None = Provenance("halves", 2)

    def __init__(self, *names: str) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        boxes = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]], np.float32)
        picture = Picture(self.names[index], np.eye(2, dtype=np.float32), boxes, 100, 50)
        return Sample(self.names[index], (), (picture,))


def test_a_picture_is_found_by_its_file_name_stem_or_coco_number() -> None:
    assert spellings("val2014/COCO_val2014_000000000042.jpg")[1:] == (
        "COCO_val2014_000000000042.jpg",
        "COCO_val2014_000000000042",
        "42",
    )
    found = Pictures(Boxes("42", "b/7.jpg", "a/7.jpg"))
    assert found.find("COCO_train2014_000000000042.jpg") == (0, 0)
    assert found.find("7.jpg") is None  # two pictures would do
    assert found.find("a/7.jpg") == (2, 0)
    assert found.find("8.jpg") is None


def people(*answers: str) -> list[dict[str, Any]]:
    return [{"answer": x, "answer_confidence": "yes", "answer_id": i} for i, x in enumerate(answers, 1)]


def vqa_files(root: Path) -> None:
    questions = [{"image_id": i, "question": "what?", "question_id": 10 * i} for i in (1, 2)]
    put(root / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": questions})
    about = {"image_id": 1, "question_type": "what", "answer_type": "other", "multiple_choice_answer": "2 Dogs,"}
    told = [
        {**about, "question_id": 10, "answers": people(*["dog"] * 6, *["cat"] * 3, "cow")},
        {**about, "question_id": 20, "answers": people(*["dog"] * 10)},
    ]
    put(root / "v2_mscoco_train2014_annotations.json", {"annotations": told})


def test_vqa(tmp_path: Path) -> None:
    vqa_files(tmp_path)
    benchmark = find("vqa")
    found = benchmark.read(tmp_path, "train")
    assert [x.key for x in found.items] == ["10", "20"]
    assert dict(found.items[0].answers) == {"dog": 1.0, "cat": 0.9, "cow": 0.3}
    assert found.items[1].pictures == ("COCO_train2014_000000000002.jpg",)
    assert benchmark.labels is not None
    with pytest.raises(BadInput, match="mscoco_val2014_questions"):
        benchmark.read(tmp_path, "val")
    with pytest.raises(BadInput, match="no split 'dev'"):
        benchmark.read(tmp_path, "dev")


def test_lxmerts_minival_is_a_part_of_val(tmp_path: Path) -> None:
    vqa_files(tmp_path)
    for path in tmp_path.glob("*train2014*"):
        path.rename(path.with_name(path.name.replace("train2014", "val2014")))
    put(tmp_path / "lxmert/minival.json", [{"question_id": 20, "sent": "what?", "label": {"dog": 1.0}}])
    found = find("vqa").read(tmp_path, "minival")
    assert (found.split, [x.key for x in found.items], list(found.gold)) == ("minival", ["20"], ["20"])
    assert found.items[0].pictures == ("COCO_val2014_000000000002.jpg",)
    put(tmp_path / "lxmert/nominival.json", [{"question_id": 7}])
    with pytest.raises(BadInput, match=r"nominival\.json: 1 questions are not in val, such as 7"):
        find("vqa").read(tmp_path, "nominival")


def test_a_picture_without_regions_is_counted_and_named(tmp_path: Path) -> None:
    vqa_files(tmp_path)
    source = Annotated(find("vqa").read(tmp_path, "train"), Pictures(Boxes("2")))
    assert len(source) == 1
    assert source[0].key == "20"
    assert "1 of 2 items; 1 pictures have no regions: COCO_train2014_000000000001.jpg" in source.told
    with pytest.raises(BadInput, match="none of its 2 pictures"):
        Annotated(find("vqa").read(tmp_path, "train"), Pictures(Boxes("3")))


def test_snli_ve_passes_over_lines_without_majority(tmp_path: Path) -> None:
    line = {"sentence1": "a", "sentence2": "b", "gold_label": "neutral", "pairID": "1#0n", "Flikr30kID": "1.jpg"}
    other = {**line, "pairID": "2", "gold_label": "-"}
    third = {k: v for k, v in line.items() if k != "Flikr30kID"} | {"pairID": "3", "Flickr30K_ID": "3"}
    put(tmp_path / "snli_ve_test.jsonl", [line, other, third])
    found = find("snli-ve").read(tmp_path, "test")
    assert [(x.key, x.pictures[0]) for x in found.items] == [("1#0n", "1.jpg"), ("3", "3.jpg")]
    put(tmp_path / "snli_ve_test.jsonl", [{**line, "gold_label": "yes"}])
    with pytest.raises(BadInput, match=r"line 1: gold_label 'yes'"):
        find("snli-ve").read(tmp_path, "test")


def test_e_snli_ve_is_another_set(tmp_path: Path) -> None:
    head = ",pairID,Flickr30kID,hypothesis,gold_label,explanation\n"
    put(tmp_path / "esnlive_test.csv", head + '0,1.jpg#4r1c,1.jpg,"A dog, asleep.",contradiction,It runs.\n')
    found = find("e-snli-ve").read(tmp_path, "test")
    assert [(x.key, x.texts, x.pictures) for x in found.items] == [("1.jpg#4r1c", ("A dog, asleep.",), ("1.jpg",))]
    assert found.gold == {"1.jpg#4r1c": "contradiction"}
    assert find("e-snli-ve").measure(found, {"1.jpg#4r1c": np.array([2.0, 1.0, 0.0])}) == {"accuracy": 1}  # type: ignore[misc]
    with pytest.raises(BadInput, match=r"holds no snli_ve_test\.jsonl"):
        find("snli-ve").read(tmp_path, "test")
    put(tmp_path / "esnlive_test.csv", head + "0,1,1.jpg,x,neutral,y\n" * 2)
    with pytest.raises(BadInput, match=r"esnlive_test\.csv: row 2: pairID '1' stands there twice"):
        find("e-snli-ve").read(tmp_path, "test")


def test_e_snli_ve_2_is_a_third_set_whose_training_comes_in_two_files(tmp_path: Path) -> None:
    head = "\t".join(f"column {i}" for i in range(9)) + "\n"

    def row(label: str, pair: str) -> str:
        return "\t".join([label, "two dogs", "they run", "12.jpg#3", "Two dogs.", 'They "run".', pair, "x", "x"]) + "\n"

    put(tmp_path / "set_train_1.csv", head + row("neutral", "12.jpg#3r1n"))
    put(tmp_path / "set_train_2.csv", head + row("entailment", "12.jpg#3r1e"))
    put(tmp_path / "esnlive_train.csv", ",pairID,Flickr30kID,hypothesis,gold_label\n0,7,1.jpg,x,neutral\n")
    found = find("e-snli-ve-2").read(tmp_path, "train")
    assert [x.key for x in found.items] == ["12.jpg#3r1n", "12.jpg#3r1e"]
    assert (found.items[0].texts, found.items[0].pictures) == (('They "run".',), ("12.jpg",))
    assert found.gold == {"12.jpg#3r1n": "neutral", "12.jpg#3r1e": "entailment"}
    with pytest.raises(BadInput, match=r"holds no \*dev\*\.csv of seven columns"):
        find("e-snli-ve-2").read(tmp_path, "dev")
    put(tmp_path / "set_dev.csv", head + row("maybe", "1"))
    with pytest.raises(BadInput, match=r"set_dev\.csv: row 1: gold_label 'maybe'"):
        find("e-snli-ve-2").read(tmp_path, "dev")
    put(tmp_path / "set_dev.csv", head + "neutral\tx\n")
    with pytest.raises(BadInput, match=r"set_dev\.csv: row 1: 2 columns, 7 are read"):
        find("e-snli-ve-2").read(tmp_path, "dev")


def test_nlvr2_has_parts_whose_pictures_come_with_both_labels(tmp_path: Path) -> None:
    for i, name in enumerate(("dev", "balanced/balanced_dev", "unbalanced/unbalanced_test1")):
        put(tmp_path / f"{name}.json", json.dumps({"identifier": f"dev-{i}-0-0", "sentence": "x", "label": "True"}))
    keys = {x: find("nlvr2").read(tmp_path, x).items[0].key for x in ("dev", "dev-balanced", "test1-unbalanced")}
    assert keys == {"dev": "dev-0-0-0", "dev-balanced": "dev-1-0-0", "test1-unbalanced": "dev-2-0-0"}
    with pytest.raises(BadInput, match=r"holds no balanced_test1\.json"):
        find("nlvr2").read(tmp_path, "test1-balanced")


def vcr_line(**more: Any) -> dict[str, Any]:
    return {
        "annot_id": "val-1",
        "img_fn": "m/1.jpg",
        "metadata_fn": "m/1.json",
        "objects": ["person", "dog", "person"],
        "question": ["Is", [2], "near", [1], "?"],
        "answer_choices": [["yes", [2, 0]], ["no"], ["b"], ["c"]],
        "rationale_choices": [["r", [0]], ["s"], ["t"], ["u"]],
        **more,
    }


def test_vcr_names_people_in_the_order_in_which_they_are_mentioned(tmp_path: Path) -> None:
    put(tmp_path / "val.jsonl", [vcr_line(answer_label=0, rationale_label=2)])
    boxes = [[50, 0, 100, 50, 1], [0, 0, 50, 50, 1], [0, 0, 10, 10, 1]]
    put(tmp_path / "vcr1images/m/1.json", {"boxes": boxes, "width": 100, "height": 50})
    answers, reasons = find("vcr").read(tmp_path, "val").items
    assert answers.texts[:2] == ("Is Casey near dog ?", "yes Casey and Riley")
    assert reasons.texts[:3] == ("Is Casey near dog ?", "yes Casey and Riley", "r Riley")
    assert (answers.answers, reasons.answers) == ((("0", 1.0),), (("2", 1.0),))
    source = Annotated(find("vcr").read(tmp_path, "val"), Pictures(Boxes("m/1.jpg")))
    sample = source[1]
    # object 2 overlaps no region by half: its mentions stay words
    assert [(sample.texts[x.text][x.start : x.end], x.region) for x in sample.links] == [
        ("dog", 0),
        ("Riley", 1),
        ("Riley", 1),
    ]
    one = joined(sample)
    assert one.texts[0] == "Is Casey near dog ? yes Casey and Riley"
    assert [(one.texts[x.text][x.start : x.end], x.region, x.text) for x in one.links] == [
        ("dog", 0, 0),
        ("Riley", 1, 0),
        ("Riley", 1, 1),
    ]


def test_the_test_of_vcr_asks_each_rationale_beside_every_answer_and_fills_the_server_file(tmp_path: Path) -> None:
    put(tmp_path / "test.jsonl", [vcr_line()])
    found = find("vcr").read(tmp_path, "test")
    assert [x.key for x in found.items] == ["val-1/qa", *(f"val-1/qar{i}" for i in range(4))]
    assert not found.gold
    scores = {x.key: np.arange(4.0) * i for i, x in enumerate(found.items)}
    vcr.submit(tmp_path / "out.csv", found, scores)
    first, second = submissions.read_vcr(tmp_path / "out.csv")
    assert first["val-1"].sum() == pytest.approx(1)
    assert second["val-1"][3, 3] == pytest.approx(np.exp(12) / np.exp([0, 4, 8, 12]).sum())
    with pytest.raises(BadInput, match="val-1/qar2 has no prediction"):
        vcr.submit(tmp_path / "out.csv", found, {k: v for k, v in scores.items() if k != "val-1/qar2"})


def test_a_reference_of_both_tests_is_in_both(tmp_path: Path) -> None:
    refs = [
        {
            "ref_id": i,
            "ann_id": 5,
            "image_id": 1,
            "file_name": "COCO_train2014_000000000001_5.jpg",
            "split": split,
            "sentences": [{"sent_id": 10 * i + j, "sent": "left man"} for j in range(2)],
        }
        for i, split in enumerate(("train", "testA", "testAB"))
    ]
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    boxes = [{"id": 5, "image_id": 1, "bbox": [50, 0, 50, 50]}]
    images = [{"id": 1, "width": 100, "height": 50}]
    put(tmp_path / "refcoco/instances.json", {"annotations": boxes, "images": images})
    keys = {
        split: [x.key for x in find("refcoco").read(tmp_path, split).items] for split in ("train", "testA", "testB")
    }
    assert keys == {"train": ["0", "1"], "testA": ["10", "11", "20", "21"], "testB": ["20", "21"]}
    source = Annotated(find("refcoco").read(tmp_path, "testB"), Pictures(Boxes("COCO_train2014_000000000001.jpg")))
    assert source[0].meant[0].boxes.tolist() == [[0.5, 0, 1, 1]]


class Photos(Boxes):
    """Pictures without regions."""

    provenance = None

    def __getitem__(self, index: int) -> Sample:
        none = np.zeros((0, 0), np.float32)
        return Sample("", (), (Picture(self.names[index], none, none.reshape(0, 4), path="a.jpg"),))


def test_where_pictures_have_no_features_the_annotated_boxes_are_the_candidates(tmp_path: Path) -> None:
    refs = [
        {"ref_id": 1, "ann_id": 6, "image_id": 1, "file_name": "COCO_train2014_000000000001_6.jpg", "split": "val"}
        | {"sentences": [{"sent": "the dog", "sent_id": 3}]}
    ]
    put(tmp_path / "refs(unc).json", refs)
    boxes = {5: [0, 0, 50, 50], 6: [50, 0, 50, 50]}
    annotations = [{"id": i, "image_id": 1, "bbox": x} for i, x in boxes.items()]
    put(
        tmp_path / "instances.json",
        {"annotations": annotations, "images": [{"id": 1, "width": 100, "height": 50, "file_name": "1.jpg"}]},
    )
    source = Annotated(find("refcoco").read(tmp_path, "val"), Pictures(Photos("COCO_train2014_000000000001.jpg")))
    (picture,) = source[0].pictures
    assert picture.boxes.tolist() == [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    assert (picture.features.shape, picture.width, picture.height) == ((2, 0), 100, 50)
    assert source[0].meant[0].boxes.tolist() == [[0.5, 0, 1, 1]]


class Bad:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(Bad()))
    put(tmp_path / "instances.json", {"annotations": [], "images": []})
    with pytest.raises(BadInput, match="refused"):
        find("refcoco").read(tmp_path, "val")


def test_restval_trains_and_five_captions_are_kept(tmp_path: Path) -> None:
    images = [
        {
            "filename": f"COCO_val2014_{i:012d}.jpg",
            "imgid": i,
            "split": split,
            "sentences": [{"raw": f" c{j} ", "tokens": []} for j in range(6)],
        }
        for i, split in enumerate(("restval", "test"))
    ]
    put(tmp_path / "dataset_coco.json", {"images": images})
    found = find("coco").read(tmp_path, "train")
    assert [x.key for x in found.items] == [f"0#{j}" for j in range(5)]
    assert found.items[1].also == ("c0", "c2", "c3", "c4")
    assert [x.key for x in find("coco-all").read(tmp_path, "train").items] == [f"0#{j}" for j in range(6)]
    with pytest.raises(BadInput, match="split 'val' has no item"):
        find("coco").read(tmp_path, "val")


def test_entities_keeps_phrases_with_boxes(tmp_path: Path) -> None:
    put(tmp_path / "val.txt", "9\n")
    put(
        tmp_path / "Sentences/9.txt",
        "[/EN#1/people A man] in [/EN#0/notvisual love] by [/EN#2/scene town]\nNothing here\n",
    )
    put(
        tmp_path / "Annotations/9.xml",
        "<annotation><size><width>100</width><height>50</height><depth>3</depth></size><object><name>1</name><bndbox>"
        "<xmin>1</xmin><ymin>1</ymin><xmax>51</xmax><ymax>51</ymax></bndbox></object></annotation>",
    )
    benchmark = find("entities")
    source = Annotated(benchmark.read(tmp_path, "val"), Pictures(Boxes("9.jpg")))
    assert len(source) == 1
    sample = source[0]
    assert [sample.texts[0][x.start : x.end] for x in sample.meant] == ["A man"]
    assert benchmark.measure_regions is not None
    boxes = {"9#0": sample.pictures[0].boxes * [100, 50, 100, 50]}
    right = benchmark.measure_regions(source.annotations, {"9#0": np.array([[1.0, 0.0]])}, boxes)
    wrong = benchmark.measure_regions(source.annotations, {"9#0": np.array([[0.0, 1.0]])}, boxes)
    assert (right["R@1"], wrong["R@1"], wrong["R@all"]) == (1, 0, 1)


def test_chinese_captions(tmp_path: Path) -> None:
    put(tmp_path / "coco-cn_val.txt", "COCO_train2014_000000000001")
    lines = "COCO_train2014_000000000001#0\t一只狗\nCOCO_train2014_000000000002#0\t一只猫\n"
    put(tmp_path / "imageid.human-written-caption.txt", lines)
    assert [x.texts[0] for x in find("coco-cn").read(tmp_path, "val").items] == ["一只狗"]
    caption = [{"image_id": "a.jpg", "url": "", "caption": ["两个人\n。", "。人"]}]
    put(tmp_path / "caption_validation_annotations_20170910.json", caption)
    assert [x.texts[0] for x in find("aic-icc").read(tmp_path, "val").items] == ["两个人", "。人"]
    put(tmp_path / "valid_texts.jsonl", [{"text_id": 3, "text": "鞋", "image_ids": [7, 8]}])
    assert [(x.key, x.pictures) for x in find("muge").read(tmp_path, "val").items] == [("3#7", ("7",)), ("3#8", ("8",))]
    put(tmp_path / "flickr30kzhm_test.caption.txt", "12#zhm#0 男人\n12.jpg#1 女人\n")
    assert [x.texts[0] for x in find("flickr30k-cn").read(tmp_path, "test").items] == ["男人", "女人"]
    put(tmp_path / "flickr30kzhm_test.caption.txt", "twelve\n")
    with pytest.raises(BadInput, match=r"line 1: 'twelve'"):
        find("flickr30k-cn").read(tmp_path, "test")


def test_gqa_prints_what_its_files_allow(tmp_path: Path) -> None:
    def question(answer: str, entailed: list[str], balanced: bool = True) -> dict[str, Any]:
        return {
            "imageId": "n1",
            "question": "is it red ?",
            "answer": answer,
            "isBalanced": balanced,
            "entailed": entailed,
            "groups": {"global": None, "local": ""},
            "types": {"structural": "verify", "semantic": "attr", "detailed": "redVerify"},
            "semantic": [],
        }

    asked = {"1": question("yes", ["1", "2", "3"]), "2": question("no", [], False), "3": question("yes", [], False)}
    put(tmp_path / "val_all_questions.json", asked)
    put(tmp_path / "val_balanced_questions.json", {"1": asked["1"]})
    gqa = find("gqa")
    assert gqa.measure is not None
    given = {key: np.array([1.0, 0.0]) for key in asked}  # always "yes"

    def numbers(split: str) -> dict[str, float]:
        annotations = replace(gqa.read(tmp_path, split), labels=("yes", "no"))
        assert gqa.measure is not None
        return gqa.measure(annotations, {x.key: given[x.key] for x in annotations.items})

    assert numbers("val") == {"accuracy": 1, "binary": 1, "open": 0, "distribution": 0}
    assert numbers("val-all")["consistency"] == 0.5
    put(tmp_path / "val_choices.json", {key: {"valid": ["yes"], "plausible": ["no"]} for key in asked})
    found = numbers("val")
    assert (found["validity"], found["plausibility"]) == (1, 0)
    put(tmp_path / "val_choices.json", {"2": {}})
    with pytest.raises(BadInput, match=r"val_choices.json: .* has no field '1'"):
        gqa.read(tmp_path, "val")


def test_papers_count_in_their_own_ways() -> None:
    """A box that covers half: right by MAttNet's overlaps, wrong by UNITER's (more than half) and by the +1 of VL-BERT on the other side."""
    box, half = (0.0, 0.0, 10.0, 10.0), np.array([[0.0, 0.0, 10.0, 5.0]])
    known = Annotations("refcoco", "val", (Item("1", ("it",), ("a.jpg",)),), {"1": box})
    refcoco = find("refcoco")
    assert refcoco.measure_regions is not None
    said = {
        name: refcoco.measure_regions(known, {"1": np.array([1.0])}, {"1": half}, **refcoco.counting(name))["accuracy"]
        for name in ("", "exclusive", "mattnet", "uniter", "vl_bert", "vilbert")
    }
    assert said == {"": 1, "exclusive": 1, "mattnet": 1, "uniter": 0, "vl_bert": 1, "vilbert": 1}
    with pytest.raises(BadInput, match=r"refcoco: no convention 'any' \(it has exclusive, mattnet"):
        refcoco.counting("any")
    with pytest.raises(BadInput, match=r"nlvr2: no convention 'any' \(it has one way to count\)"):
        find("nlvr2").counting("any")
    assert find("nlvr2").counting() == {}
    assert find("entities").counting() == {"convention": "any"}
    assert find("vqa").counting("2015") == {"convention": "2015"}


def test_vqa_tells_the_soft_target_too(tmp_path: Path) -> None:
    people = ("1,000",) * 3 + ("1000",) * 7
    question = metric.Question(5, people, "number", "how many")
    known = Annotations("vqa", "val", (Item("5", ("how many?",), ("a.jpg",)),), {"5": question}, ("1,000", "1000"))
    found = vqa.measure(known, {"5": np.array([1.0, 0.0])})
    assert found["accuracy"] == 1, "normalised, all ten say so"
    assert found["soft target"] == pytest.approx(0.9), "as it stands, three do"
    with pytest.raises(BadInput, match="for test-dev too: --split test"):
        vqa.submit(tmp_path / "x.json", replace(known, split="test-dev"), {"5": np.array([1.0, 0.0])})
    assert not (tmp_path / "x.json").exists()


def test_files_that_lack_something_are_named(tmp_path: Path) -> None:
    game = {"id": 7, "status": "success", "image": {"id": 1, "width": 9, "height": 9}, "qas": [], "object_id": 5}
    game["objects"] = [{"id": 4, "bbox": [0, 0, 1, 1]}]
    with gzip.open(tmp_path / "guesswhat.valid.jsonl.gz", "wt") as file:
        file.write(json.dumps(game))
    with pytest.raises(BadInput, match=r"guesswhat.valid.jsonl.gz: game 7: object 5 is none of 4"):
        find("guesswhat").read(tmp_path, "val")
    (tmp_path / "train_balanced_questions.json").write_text('{"q1": {"question": "what?", "imageId": "1"}}')
    labels = find("gqa").labels
    assert labels is not None
    with pytest.raises(BadInput, match=r"gqa question q1 of train_balanced: .*answer"):
        labels(tmp_path)
    (tmp_path / "refs(unc).json").write_text("[]")
    (tmp_path / "instances.json").write_text('{"annotations": [{"id": 3, "image_id": 1}], "images": []}')
    with pytest.raises(BadInput, match=r"instances.json: annotation 3: .*bbox"):
        find("refcoco").read(tmp_path, "val")
