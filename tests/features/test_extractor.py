from dataclasses import replace

import numpy as np
import pytest
import torch

from intarsia.errors import BadInput
from intarsia.features import EXTRACTORS, Extractor, open_extractor, reopen
from intarsia.features.extractor import typed

RED, BLUE = (220, 30, 30), (30, 30, 220)


def halves(left=RED, right=BLUE, high=60, wide=80):
    image = np.empty((high, wide, 3), np.uint8)
    image[:, : wide // 2], image[:, wide // 2 :] = left, right
    return image


@pytest.mark.parametrize("name", ["grid", "pixels"])
def test_every_extractor_keeps_the_protocol(name):
    extractor = open_extractor(name)
    assert isinstance(extractor, Extractor)
    assert extractor.provenance.extractor == extractor.name == name
    pictures = [halves(), np.zeros((1, 1, 3), np.uint8), np.full((33, 7, 3), 200, np.uint8)]
    found = extractor(pictures)
    assert len(found) == 3
    for one, alone in zip(found, (extractor([x])[0] for x in pictures), strict=True):
        assert len(one.boxes) >= 1
        assert one.features.shape == (len(one.boxes), extractor.provenance.width)
        assert one.boxes.dtype == one.features.dtype == one.scores.dtype == np.float32
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        assert np.isfinite(one.features).all()
        np.testing.assert_array_equal(one.boxes, alone.boxes)
        np.testing.assert_allclose(one.features, alone.features, atol=1e-4)
    assert extractor([]) == []
    given = [x.boxes for x in found]
    for one, again in zip(found, extractor.features_at(pictures, given), strict=True):
        np.testing.assert_allclose(one.features, again.features, atol=1e-5)
        np.testing.assert_array_equal(one.boxes, again.boxes)


def test_grid_cells_are_in_reading_order_after_the_whole_picture():
    found = open_extractor("grid", cells=2)([halves()])[0]
    np.testing.assert_allclose(
        found.boxes, [[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    )
    red, blue = found.features[[1, 3]], found.features[[2, 4]]
    assert np.linalg.norm(red[0] - red[1]) < 0.5 * np.linalg.norm(red[0] - blue[0])


def test_grid_without_the_whole_picture_opens_again():
    extractor = open_extractor("grid", **typed("grid", {"cells": "2", "whole": "no"}))
    found = extractor([halves()])[0]
    np.testing.assert_allclose(found.boxes, open_extractor("grid", cells=2)([halves()])[0].boxes[1:])
    again = reopen(extractor.provenance)
    np.testing.assert_array_equal(again([halves()])[0].features, found.features)
    assert "whole" not in open_extractor("grid").provenance.settings, "files of before stay as they are"


def test_patches_are_the_pixels_of_cells():
    extractor = open_extractor("patches", cells=2)
    found = extractor([halves()])[0]
    np.testing.assert_allclose(found.boxes, open_extractor("grid", cells=2, whole="no").boxes)
    np.testing.assert_array_equal(found.features[0], found.features[2])
    assert not np.allclose(found.features[0], found.features[1])
    np.testing.assert_array_equal(reopen(extractor.provenance)([halves()])[0].features, found.features)
    with pytest.raises(BadInput, match="0 cells a side"):
        open_extractor("patches", cells=0)


def test_options_that_do_not_fit():
    with pytest.raises(BadInput, match="extractor grid: option cells is 'few', which is no number"):
        typed("grid", {"cells": "few"})
    with pytest.raises(BadInput, match="extractor grid has no option 'size'"):
        typed("grid", {"size": "3"})
    with pytest.raises(BadInput, match="whole 'maybe' is not one of yes, no"):
        open_extractor("grid", whole="maybe")


def test_random_weights_are_those_of_the_seed():
    image = halves()
    first, second, other = (open_extractor("grid", seed=x)([image])[0].features for x in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, other)
    assert open_extractor("grid", seed=3).trunk.kernel0[0, 0, 0, 0].item() == pytest.approx(-0.12088118, abs=1e-7)


def test_the_grid_can_stand_on_efficientnet(monkeypatch, tmp_path):
    from intarsia.features import grid
    from intarsia.features.efficientnet_lite import EfficientNetLite0, to_published

    path = tmp_path / "net.pth"
    torch.save(to_published(EfficientNetLite0().state_dict()), path)
    monkeypatch.setattr(grid, "fetched", lambda part, name, root: path)
    extractor = open_extractor("grid", trunk="efficientnet", cells=3, side=96)
    assert extractor([halves()])[0].features.shape == (10, 1280)
    assert len(extractor.provenance.weights) == 64


def test_missing_weights_name_the_command(tmp_path):
    for options in ({"name": "light"}, {"name": "grid", "trunk": "efficientnet"}):
        with pytest.raises(BadInput, match="intarsia data fetch light"):
            open_extractor(**options, cache=str(tmp_path))


def test_unknown_names_and_options_list_the_known_ones():
    with pytest.raises(BadInput, match=f"no extractor 'frcnn'.*{', '.join(EXTRACTORS)}"):
        open_extractor("frcnn")
    with pytest.raises(BadInput, match="extractor grid has no option 'cell'.*cells"):
        open_extractor("grid", cell=3)
    with pytest.raises(BadInput, match="trunk 'resnet'"):
        open_extractor("grid", trunk="resnet")
    with pytest.raises(BadInput, match="0 cells"):
        open_extractor("grid", cells=0)
    with pytest.raises(BadInput, match="device 'tpu9' cannot be used"):
        open_extractor("grid", device="tpu9")


@pytest.mark.parametrize("name", ["grid", "pixels"])
@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[0, 0, 1, 1], [0.5, 0, 0.2, 1]], r"picture 1: box 1 is \[0.5"),
        ([[0, 0, 30, 40]], "picture 1: box 0"),
        ([[0, 0, np.nan, 1]], "picture 1: box 0"),
        ([0, 0, 1, 1], r"picture 1: boxes of shape \(4,\)"),
    ],
)
def test_given_boxes_are_checked(name, boxes, said):
    with pytest.raises(BadInput, match=said):
        open_extractor(name).features_at([halves(), halves()], [np.array([[0, 0, 1, 1]]), np.array(boxes)])


def test_pictures_without_boxes_give_no_regions():
    found = open_extractor("grid").features_at([halves(), halves()], [np.zeros((0, 4)), np.array([[0, 0, 1, 1]])])
    assert [len(x.features) for x in found] == [0, 1]


def test_blobs_are_found_on_a_plain_background():
    image = np.full((100, 100, 3), 240, np.uint8)
    image[20:50, 30:70] = RED
    found = open_extractor("pixels")([image])[0]
    np.testing.assert_allclose(found.boxes[0], [0.3, 0.2, 0.7, 0.5], atol=0.02)


@pytest.mark.parametrize(("name", "options"), [("grid", {"cells": 3, "side": 64, "seed": 5}), ("pixels", {})])
def test_an_extractor_opens_again_as_its_provenance_says(name, options):
    first = open_extractor(name, **options)
    again = reopen(first.provenance)
    assert again.provenance == first.provenance
    np.testing.assert_array_equal(again([halves()])[0].features, first([halves()])[0].features)
    with pytest.raises(BadInput, match="with width 7, here it has"):
        reopen(replace(first.provenance, width=7))
    with pytest.raises(BadInput, match="made by 'of others'"):
        reopen(replace(first.provenance, extractor="of others"))
