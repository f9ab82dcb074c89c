"""The extractors "butd" and "vinvl": pictures in, what their detectors give out; whatever the batch; with names, attributes and provenance."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

from intarsia.cli import main
from intarsia.data.formats.shard_files import ShardIndex
from intarsia.data.opening import open_source
from intarsia.errors import BadInput
from intarsia.extract import extract
from intarsia.features import frcnn_pixels
from intarsia.features.detector import RULES
from intarsia.features.detector_weights import published
from intarsia.features.extractor import must_be_alike, open_extractor, reopen
from intarsia.weights.files import write_weights

sys.path.insert(0, str(Path(__file__).parent))
from tiny_detector import tiny_detector

KINDS = {"milvlg": "butd", "d2": "butd", "maskrcnn": "vinvl"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are made small, in their own ways."""
    for name in ("caffe", "pillow", "vinvl"):
        real = getattr(frcnn_pixels, name)
        monkeypatch.setitem(frcnn_pixels.PREPARE, name, lambda image, real=real: real(image, short=96, longest=160))
    scale = frcnn_pixels.caffe_scale
    monkeypatch.setattr(frcnn_pixels, "caffe_scale", lambda h, w, short=96, longest=160: scale(h, w, 96, 160))


def weights(folder: Path, form: str) -> str:
    path = folder / f"{form}.pth"
    write_weights(path, published(tiny_detector(form)))
    return str(path)


def picture(number: int, high: int = 60, wide: int = 90) -> Any:
    return np.random.default_rng(number).integers(0, 255, (high, wide, 3), np.uint8)


@pytest.mark.parametrize("form", list(KINDS))
def test_regions_are_those_of_the_detector(tmp_path: Path, form: str, small: None) -> None:
    extractor = open_extractor(KINDS[form], weights=weights(tmp_path, form), device="cpu")
    (found,) = extractor([picture(0)])
    detector = tiny_detector(form)
    config = extractor.detector.config
    assert config.form == ("caffe" if form == "milvlg" else form)
    prepared = frcnn_pixels.PREPARE[extractor.prepare](np.ascontiguousarray(picture(0)[:, :, ::-1]))
    size = (prepared.shape[1], prepared.shape[2])
    scale = 96 / 60
    detector = extractor.detector
    (described,) = detector(prepared[None], [size], [scale])
    chosen = detector.select(described, RULES["10-100"])
    sides = torch.tensor([90, 60, 90, 60]) * scale if form == "milvlg" else torch.tensor([*size[::-1], *size[::-1]])
    assert 10 <= len(found.boxes) <= 100
    solid = ((chosen.boxes[:, 2:] - chosen.boxes[:, :2]) >= 0.1).all(1)
    assert solid.any()
    np.testing.assert_allclose(found.boxes[solid], (chosen.boxes[solid] / sides).clamp(0, 1), atol=1e-6)
    assert (found.boxes[:, 2:] - found.boxes[:, :2] > 0).all()  # lines and points have become a pixel wide
    np.testing.assert_allclose(found.boxes, (chosen.boxes / sides).clamp(0, 1), atol=1.01 / min(size))
    np.testing.assert_array_equal(found.features, described.features[chosen.rows])
    np.testing.assert_array_equal(found.labels, chosen.labels)
    assert found.features.shape[1] == extractor.provenance.width
    assert found.probs is not None and found.probs.shape[1] == config.classes
    np.testing.assert_allclose(found.probs.sum(1), 1, atol=1e-5)
    assert found.attributes is not None and found.attributes.max() < config.attributes
    assert found.attribute_scores is not None and ((found.attributes > 0) == (found.attribute_scores > 0)).all()
    assert form == "maskrcnn" or found.attributes.min() >= 1


def test_vinvl_says_no_attribute_that_is_not_likely(tmp_path: Path, small: None) -> None:
    detector = tiny_detector("maskrcnn", attributes=60)
    detector.attributes.score.weight.zero_()
    write_weights(tmp_path / "flat.pth", published(detector))
    extractor = open_extractor("vinvl", weights=str(tmp_path / "flat.pth"), device="cpu")
    (found,) = extractor([picture(0)])
    assert found.attributes is not None and found.attribute_scores is not None
    assert not found.attributes.any() and not found.attribute_scores.any()


def test_the_other_pictures_of_a_batch_do_not_matter(tmp_path: Path, small: None) -> None:
    extractor = open_extractor("butd", weights=weights(tmp_path, "milvlg"), device="cpu")
    images = [picture(0), picture(1, 90, 60), picture(2), picture(3, 60, 60)]
    together = extractor(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = extractor([image])
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-5)
        np.testing.assert_allclose(found.features, alone.features, atol=1e-4)


def test_given_boxes_are_described_in_their_order(tmp_path: Path, small: None) -> None:
    extractor = open_extractor("butd", weights=weights(tmp_path, "milvlg"), device="cpu", rule="36")
    boxes = np.array([[0.1, 0.2, 0.6, 0.9], [0, 0, 1, 1]], np.float32)
    one, two = extractor.features_at([picture(0), picture(0)], [boxes, boxes[::-1]])
    np.testing.assert_array_equal(one.boxes, boxes)
    np.testing.assert_allclose(one.features, two.features[::-1], atol=1e-5)
    assert (one.scores == 1).all()
    (none,) = extractor.features_at([picture(0)], [boxes[:0]])
    assert none.features.shape == (0, extractor.provenance.width)
    (own,) = extractor([picture(0)])
    (again,) = extractor.features_at([picture(0)], [own.boxes])
    np.testing.assert_allclose(again.features, own.features, atol=2e-2, rtol=1e-3)  # rounded boxes


def test_a_converted_file_may_hold_other_regressions(tmp_path: Path, small: None) -> None:
    path = weights(tmp_path, "d2")
    one, other = (open_extractor("butd", weights=path, device="cpu", regress=x) for x in ("", "1,1,1,1"))
    assert "regress" not in one.provenance.settings and other.provenance.settings["regress"] == "1,1,1,1"
    assert other.detector.config.box_weights == (1.0, 1.0, 1.0, 1.0)
    assert not np.array_equal(one([picture(0)])[0].boxes, other([picture(0)])[0].boxes)
    assert reopen(other.provenance, device="cpu").provenance == other.provenance
    for text in ("1,1,1", "1,1,1,x", "1,1,1,0"):
        with pytest.raises(BadInput, match=f"regress '{text}' is not four numbers over 0"):
            open_extractor("butd", weights=path, device="cpu", regress=text)


def test_a_picture_that_is_too_thin_is_named_and_skipped(tmp_path: Path, small: None) -> None:
    for form in KINDS:
        extractor = open_extractor(KINDS[form], weights=weights(tmp_path, form), device="cpu")
        for shape in ((1, 101), (303, 3)):
            with pytest.raises(BadInput, match=rf"^{shape[1]}x{shape[0]} pixels are too thin for {KINDS[form]}"):
                extractor([picture(0, *shape)])
    (tmp_path / "pictures").mkdir()
    for name, pixels in (("a", picture(0)), ("b", picture(1, 2, 300)), ("c", picture(2))):
        Image.fromarray(pixels).save(tmp_path / f"pictures/{name}.png")
    with pytest.raises(BadInput, match=r"^picture b\.png: 300x2 pixels are too thin for vinvl"):
        extract(tmp_path / "pictures", tmp_path / "out", extractor, show=False)
    report = extract(tmp_path / "pictures", tmp_path / "out", extractor, show=False, on_error="skip")
    assert (report.pictures, len(report.skipped)) == (2, 1)
    assert "picture b.png: 300x2 pixels" in (tmp_path / "out/skipped.txt").read_text()


def test_names_come_from_the_lists_of_the_code_base(tmp_path: Path) -> None:
    path = weights(tmp_path, "milvlg")
    (tmp_path / "objects.txt").write_text("yolk\ngoal,goalpost\nbathroom\nmacaroni\numbrella\nparrot")
    (tmp_path / "attributes.txt").write_text("floppy\nblue\nround\nwet\n")
    lists = {"objects": str(tmp_path / "objects.txt"), "attributes": str(tmp_path / "attributes.txt")}
    about = open_extractor("butd", weights=path, device="cpu", **lists).provenance
    assert about.classes == ("background", "yolk", "goal", "bathroom", "macaroni", "umbrella", "parrot")
    assert about.attributes == ("none", "floppy", "blue", "round", "wet")
    assert open_extractor("butd", weights=path, device="cpu").provenance.classes[2] == "object 2"
    (tmp_path / "objects.txt").write_text("yolk\n")
    with pytest.raises(BadInput, match=r"objects.txt: 1 names, the weights know 6 objects"):
        open_extractor("butd", weights=path, device="cpu", **lists)
    labels = {f"thing{i}": i for i in range(6, 0, -1)}
    (tmp_path / "vg.json").write_text(
        json.dumps({"label_to_idx": labels, "attribute_to_idx": {c: i for i, c in enumerate("abcd")}})
    )
    about = open_extractor(
        "vinvl", weights=weights(tmp_path, "maskrcnn"), device="cpu", objects=str(tmp_path / "vg.json")
    ).provenance
    assert about.classes[1:3] == ("thing1", "thing2")
    assert about.attributes == ("none", "a", "b", "c", "d")


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="name its weights with --weights FILE"):
        open_extractor("butd")
    path = weights(tmp_path, "maskrcnn")
    with pytest.raises(BadInput, match="a detector of the form maskrcnn, which is not butd's"):
        open_extractor("butd", weights=path)
    with pytest.raises(BadInput, match="rule '50' is not one of 10-100, 36, pairs"):
        open_extractor("vinvl", weights=path, rule="50")


def test_a_folder_is_extracted_and_a_system_finds_the_weights_again(tmp_path: Path, small: None) -> None:
    path = weights(tmp_path, "milvlg")
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.fromarray(picture(i)).save(tmp_path / f"pictures/{i}.png")
    main(
        [
            "extract",
            str(tmp_path / "pictures"),
            "--out",
            str(tmp_path / "out"),
            "--extractor",
            "butd",
            "--weights",
            path,
            "--device",
            "cpu",
        ]
    )
    about = json.loads((tmp_path / "out/shards.json").read_text())["provenance"]
    assert about["extractor"] == "butd"
    assert about["settings"] == {"rule": "10-100", "prepare": "caffe", "form": "caffe"}
    provenance = open_extractor("butd", weights=path, device="cpu").provenance
    again = reopen(provenance, "cpu")
    np.testing.assert_array_equal(
        again([picture(0)])[0].features, open_extractor("butd", weights=path)([picture(0)])[0].features
    )
    with safetensors.safe_open(tmp_path / "out/shard-00000.safetensors", "numpy") as shard:
        assert json.loads(shard.metadata()["provenance"]) == about
    other = replace(provenance, extractor="light", weights="", settings={})
    with pytest.raises(
        BadInput, match="features with extractor 'light', the weights were trained on 'butd'; run"
    ) as told:
        must_be_alike("here", other, provenance)
    command = re.search("`(.+)`", str(told.value))
    assert command is not None and path in str(told.value) and provenance.weights[:16] in str(told.value)
    words = command[1].replace("PICTURES", str(tmp_path / "pictures")).replace("OUT", str(tmp_path / "again"))
    main([*words.replace("FILE", path).split()[1:], "--device", "cpu"])
    assert ShardIndex.read(tmp_path / "again").provenance == provenance
    Path(path).rename(tmp_path / "moved.pth")
    with pytest.raises(BadInput, match=r"were not seen here \(they lay at .*milvlg.pth\)"):
        reopen(provenance, "cpu")
    assert len(open_source(tmp_path / "out")) == 0  # pictures without captions
