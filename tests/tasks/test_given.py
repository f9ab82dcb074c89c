"""Regions of annotated boxes behind the detected ones: from published files and two folders of shards, by a slow reading of the authors' rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intarsia.batch import Picture, Sample
from intarsia.cli import main
from intarsia.data.formats.shards import ShardWriter
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.system import Given
from intarsia.systems import find as find_system
from intarsia.tasks.benchmarks import Annotated, find
from intarsia.tuning_runs import begin, open_items

WIDE, HIGH, WIDTH = 100, 50, 6
FOUND = [[2, 1, 48, 47], [70, 5, 90, 45], [0, 0, 99, 49]]
ANNOTATED = {5: [0, 0, 50, 50], 6: [50, 10, 40, 30]}  # x, y, wide, high
CORNERS = [[0, 0, 50, 50], [50, 10, 90, 40]]


def shards(out: Path, boxes: list[list[float]], seed: int, *names: str, width: int = WIDTH) -> Path:
    """Region shards of pictures that all have the same boxes, in pixels."""
    writer = ShardWriter(out, Provenance("light", width))
    for name in names:
        feats = np.random.default_rng(seed).normal(size=(len(boxes), width)).astype(np.float32)
        corners = np.array(boxes, np.float32).reshape(-1, 4) / [WIDE, HIGH, WIDE, HIGH]
        writer.add(Picture(name, feats, corners.astype(np.float32), WIDE, HIGH))
    writer.finish({"key": x, "image": x, "captions": ["-"]} for x in names)
    return out


def refcoco(root: Path) -> None:
    refs = [
        {"ref_id": i, "ann_id": 6, "image_id": 1, "file_name": "COCO_train2014_000000000001_6.jpg", "split": split}
        | {"sentences": [{"sent": "the dog on the right", "sent_id": i}]}
        for i, split in enumerate(("train", "val"))
    ]
    annotations = [{"id": i, "image_id": 1, "bbox": x} for i, x in ANNOTATED.items()]
    (root / "refs(unc).json").write_text(json.dumps(refs))
    images = [{"id": 1, "width": WIDE, "height": HIGH}]
    (root / "instances.json").write_text(json.dumps({"annotations": annotations, "images": images}))


def vcr(root: Path) -> None:
    line = {
        "annot_id": "val-1",
        "img_fn": "m/1.jpg",
        "metadata_fn": "m/1.json",
        "objects": ["person", "dog"],
        "question": ["what", "is", [1], "?"],
        "answer_choices": [["it", "is", [0]], ["no"], ["b"], ["c"]],
        "answer_label": 0,
        "rationale_choices": [["r"], ["s"], ["t"], ["u"]],
        "rationale_label": 2,
    }
    (root / "val.jsonl").write_text(json.dumps(line) + "\n")
    (root / "vcr1images/m").mkdir(parents=True)
    (root / "vcr1images/m/1.json").write_text(json.dumps({"boxes": CORNERS, "width": WIDE, "height": HIGH}))


def slow_whole(found: np.ndarray, given: np.ndarray) -> np.ndarray:
    """As the authors have it: a row for the whole picture, the mean, goes before either, and is counted."""
    one, other = [found.mean(0), *found], [given.mean(0), *given]
    return (one[0] * len(one) + other[0] * len(other)) / (len(one) + len(other))


def slow_fit(a: list[float], b: list[float]) -> float:
    wide, high = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return wide * high / (sum(areas) - wide * high)


def read(name: str, root: Path, split: str, how: Given | None) -> Annotated:
    regions, given = str(root / "found"), str(root / "given")
    return open_items(find(name), root, regions, split, given=given if how else "", how=how)


def laid(system: str, task: str, source: Annotated, labels: Any = ()) -> Any:
    tuned, _ = begin(system, task, "base", None, None, source, labels, tiny=True)
    return tuned.documents(source[0], task, np.random.default_rng(0), no_other)


def no_other() -> Sample:
    raise AssertionError("no other sample is needed")


@pytest.mark.parametrize(("system", "task"), [("vilbert", "re_plus"), ("vilbert", "beta_re_plus"), ("vl_bert", "re")])
def test_annotated_boxes_train_referring_expressions(tmp_path: Path, system: str, task: str) -> None:
    refcoco(tmp_path)
    name = "COCO_train2014_000000000001.jpg"
    found = np.array(open_pictures_of(shards(tmp_path / "found", FOUND, 0, name)).features, np.float32)
    given = np.array(open_pictures_of(shards(tmp_path / "given", CORNERS, 1, name)).features, np.float32)
    how = find_system(system).finetune[task].given
    assert how == Given(tested=False, in_whole=False)
    (example,) = laid(system, task, read("refcoco", tmp_path, "train", how))
    rows = example.regions
    np.testing.assert_array_equal(rows.feats[:5], [*found, *given])  # the detected, then all that are annotated
    np.testing.assert_allclose(rows.feats[5], found.mean(0), atol=1e-3)  # stored in float16
    fits = [slow_fit(x, CORNERS[1]) for x in (*FOUND, *CORNERS)]
    assert fits[4] == 1 and max(fits[:4]) < 1
    labels = example.targets["re"].labels
    assert example.targets["re"].rows.tolist()[:5] == [0, 1, 2, 3, 4]
    wanted = [float(x > 0.5) if system == "vl_bert" else x if x >= 0.5 else 0.0 for x in fits]
    np.testing.assert_allclose(labels[:5], wanted, atol=1e-6)


def open_pictures_of(root: Path) -> Picture:
    from intarsia.data.formats.stored import open_pictures

    return open_pictures(root)[0].pictures[0]


@pytest.mark.parametrize(
    ("system", "task", "benchmark"),
    [
        ("vilbert", "vcr", "vcr-answers"),
        ("vilbert", "beta_vcr", "vcr-answers"),
        ("ernie_vil", "vcr_qar", "vcr-rationales"),
    ],
)
def test_annotated_boxes_of_vcr_stand_behind_and_weigh(tmp_path: Path, system: str, task: str, benchmark: str) -> None:
    vcr(tmp_path)
    found = np.array(open_pictures_of(shards(tmp_path / "found", FOUND, 0, "m/1.jpg")).features, np.float32)
    given = np.array(open_pictures_of(shards(tmp_path / "given", CORNERS, 1, "m/1.jpg")).features, np.float32)
    how = find_system(system).finetune[task].given
    assert how == Given()
    assert np.abs(slow_whole(found, given) - np.concatenate([found, given]).mean(0)).max() > 0.01  # not the plain mean
    source = read(benchmark, tmp_path, "val", how)
    for example in laid(system, task, source):
        np.testing.assert_array_equal(example.regions.feats[:5], [*found, *given])
        np.testing.assert_allclose(example.regions.feats[5], slow_whole(found, given), atol=1e-3)  # stored in float16
        assert example.regions.boxes[5].tolist() == [0, 0, 1, 1]
    # what a text mentions is the annotated box itself, behind the three detected ones; the first of those overlaps object 0 too
    said = {(source[0].texts[x.text][x.start : x.end], x.region) for x in source[0].links}
    assert ("dog", 4) in said and {region for _, region in said} == {3, 4}
    assert source[0].pictures[0].names == ("", "", "", "person", "dog")


def test_what_cannot_stand_behind_is_named(tmp_path: Path) -> None:
    refcoco(tmp_path)
    name, how = "COCO_train2014_000000000001.jpg", Given()
    shards(tmp_path / "found", FOUND, 0, name)
    shards(tmp_path / "given", CORNERS, 1, "COCO_train2014_000000000002.jpg")
    with pytest.raises(BadInput, match=r"sample 0: picture COCO_train2014_000000000001.jpg has no regions of annot"):
        read("refcoco", tmp_path, "train", how)
    for out, boxes, width in (("wide", CORNERS, 7), ("none", [], WIDTH)):
        shards(tmp_path / out, boxes, 1, name, width=width)
    regions = str(tmp_path / "found")
    with pytest.raises(BadInput, match="wide: annotated boxes of width 7, the detected ones in .*found of 6"):
        open_items(find("refcoco"), tmp_path, regions, "train", given=str(tmp_path / "wide"), how=how)
    with pytest.raises(BadInput, match=r"sample 0: picture COCO_train2014_000000000001.jpg has no annotated box"):
        open_items(find("refcoco"), tmp_path, regions, "train", given=str(tmp_path / "none"), how=how)[0]
    with pytest.raises(BadInput, match="the paper puts no annotated boxes beside"):
        open_items(find("refcoco"), tmp_path, regions, "train", given=regions)


def test_only_training_sees_annotated_boxes_of_referring_expressions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refcoco(tmp_path)
    name, data = "COCO_train2014_000000000001.jpg", ["--data", str(tmp_path)]
    shards(tmp_path / "found", FOUND, 0, name)
    shards(tmp_path / "given", CORNERS, 1, name)
    run, behind = str(tmp_path / "run"), ["--given", str(tmp_path / "given")]
    tune = ["finetune", "vilbert", "re", *data, "--regions", str(tmp_path / "found"), "--out", run, "--size", "tiny"]
    tune += ["--steps", "1", "--workers", "0", "--device", "cpu", "--valid-split", "val"]
    main([*tune, *behind])
    main(["score", run])
    assert (
        json.loads((tmp_path / "run/score-val.json").read_text())["numbers"]["reachable"] == 0
    )  # no detected box fits
    for wrong, told in (
        (["score", run, *behind], "in training only"),
        ([*tune[:1], "uniter", *tune[2:], *behind], "no annotated boxes beside"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2
        assert told in capsys.readouterr().err


def visual7w(root: Path) -> None:
    """Three boxes of a picture; of its first question two overlap by more than a half."""
    corners = [*CORNERS, [4, 0, 50, 50], [0, 20, 20, 30], [60, 0, 70, 9]]
    boxes = [
        {"box_id": 10 + i, "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "name": "thing"}
        for i, (x1, y1, x2, y2) in enumerate(corners)
    ]
    pairs = [
        {"qa_id": 1, "question": "Which is red?", "answer": 10, "multiple_choices": [11, 12, 13], "type": "which"},
        {"qa_id": 2, "question": "Which is wide?", "answer": 14, "multiple_choices": [11, 12, 13], "type": "which"},
    ]
    images = [{"image_id": 1, "split": x, "filename": "v7w_1.jpg", "qa_pairs": pairs} for x in ("train", "val")]
    (root / "dataset_v7w_pointing.json").write_text(json.dumps({"images": images, "boxes": boxes}))


def test_choices_of_visual7w_are_the_annotated_boxes_in_training_and_tests(tmp_path: Path) -> None:
    visual7w(tmp_path)
    every = [*CORNERS, [4, 0, 50, 50], [0, 20, 20, 30], [60, 0, 70, 9]]
    found = np.array(open_pictures_of(shards(tmp_path / "found", FOUND, 0, "v7w_1.jpg")).features, np.float32)
    shards(tmp_path / "given", every, 1, "v7w_1.jpg")
    how = find_system("vilbert").finetune["visual7w"].given
    assert how == find_system("vilbert").finetune["guesswhat"].given == Given(tested=True, in_whole=False)
    for split in ("train", "val"):
        source = read("visual7w", tmp_path, split, how)
        item, _ = source.kept[0]
        assert sorted(item.objects) == sorted(tuple(map(float, x)) for x in every)  # of all questions about the picture
        (example,) = laid("vilbert", "visual7w", source)
        np.testing.assert_allclose(example.regions.feats[8], found.mean(0), atol=1e-3)  # of the detected alone
        pick = example.targets["re"]
        assert set(pick.rows) == {
            3,
            4,
            5,
            6,
        }  # behind the three detected ones; the fifth is no choice of the first question
        offered = [every[row - 3] for row in pick.rows]
        fits = [slow_fit(x, every[0]) for x in offered]
        np.testing.assert_allclose(pick.labels, [x if x >= 0.5 else 0.0 for x in fits], atol=1e-6)
        assert sorted(np.round(pick.labels, 2))[2:] == [pytest.approx(0.92), 1.0]


def test_objects_of_visual7w_are_written_where_the_pictures_say_their_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    visual7w(tmp_path)
    pictures = tmp_path / "images"
    pictures.mkdir()
    objects = ["data", "objects", str(tmp_path), str(pictures), "--benchmark", "visual7w"]
    main(objects)
    assert "0 pictures with their objects, 1 without" in capsys.readouterr().out.replace("\n", " ")
    Image.new("RGB", (WIDE, HIGH)).save(pictures / "v7w_1.jpg")
    main(objects)
    (line,) = [json.loads(x) for x in (pictures / "pairs.jsonl").read_text().splitlines()]
    assert (line["width"], line["height"], len(line["boxes"])) == (WIDE, HIGH, 5)
