"""The light extractor on weights made here, and on the real ones where they were fetched."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from intarsia.data.fetch import NOTE, cache_root
from intarsia.features import light
from intarsia.features.centernet import CLASSES, peaks
from intarsia.features.efficientnet_lite import EfficientNetLite0, to_published
from intarsia.features.roi import stretched

sys.path.insert(0, str(Path(__file__).parent))
from test_tfjs import Graph, conv_attr

FETCHED = (cache_root() / "light" / NOTE).is_file()
STAMPS = cache_root() / "stamps" / "stamps"


def write_detector(folder):
    """A graph with the detector's names: class 2 fires on red, class 5 on blue; every box reaches 64 pixels each way."""
    graph = Graph()
    red = np.zeros((4, 4, 3, 80), np.float32)
    red[:, :, 0, 2], red[:, :, 2, 2], red[:, :, 2, 5], red[:, :, 0, 5] = 0.002, -0.002, 0.002, -0.002
    graph.node("tower_0/images", "Placeholder")
    graph.const("w", red)
    graph.const("b", np.full(80, -5.0))
    graph.const("reach", np.zeros((4, 4, 3, 4), np.float32))
    graph.const("64", np.full(4, 64.0))
    graph.node("heat", "_FusedConv2D", "tower_0/images", "w", "b", **conv_attr(4, "SAME", ("BiasAdd",)))
    graph.node("tower_0/keypoints", "Sigmoid", "heat")
    graph.node("tower_0/wh", "_FusedConv2D", "tower_0/images", "reach", "64", **conv_attr(4, "SAME", ("BiasAdd",)))
    graph.save(folder).rename(folder / "centernet.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("light")
    write_detector(folder)
    torch.manual_seed(0)
    net = EfficientNetLite0()
    torch.save(to_published(net.state_dict()), folder / "efficientnet-lite0.pth")
    return folder


@pytest.fixture
def extractor(made, monkeypatch):
    (made / "centernet.bin").write_bytes(b"")  # the graph's weights lie in weights.bin here
    monkeypatch.setattr(light, "fetched", lambda part, name, root: made / name)
    return light.Light(device="cpu", crop=64, least=1)


def spots():
    """A red square at the left, a blue one at the right, on grey."""
    image = np.full((100, 200, 3), 90, np.uint8)
    image[40:44, 48:52] = (255, 0, 0)
    image[60:64, 148:152] = (0, 0, 255)
    return image


def test_whole_picture_first_then_detections(extractor):
    found = extractor([spots(), np.full((50, 50, 3), 90, np.uint8)])
    one = found[0]
    assert one.boxes[0].tolist() == [0, 0, 1, 1]
    assert one.scores[0] == 1
    assert {CLASSES[x] for x in one.labels[1:3]} == {"car", "bus"}
    centres = (one.boxes[1:3, :2] + one.boxes[1:3, 2:]) / 2
    by_class = dict(zip((CLASSES[x] for x in one.labels[1:3]), centres, strict=True))
    np.testing.assert_allclose(by_class["car"], [0.25, 0.42], atol=0.02)
    np.testing.assert_allclose(by_class["bus"], [0.75, 0.62], atol=0.02)
    for x in found:
        assert x.features.shape == (len(x.boxes), 1280)
        assert x.probs.shape == (len(x.boxes), 81)
        np.testing.assert_allclose(x.probs.sum(1), 1, atol=1e-5)
        assert x.labels.min() >= 1
        assert (np.diff(x.scores) <= 0).all()


def test_a_picture_does_not_depend_on_its_company(extractor):
    images = [spots(), spots()[:, ::-1].copy(), np.full((30, 90, 3), 200, np.uint8)]
    for one, alone in zip(extractor(images), (extractor([x])[0] for x in images), strict=True):
        np.testing.assert_allclose(one.features, alone.features, atol=1e-4)
        np.testing.assert_allclose(one.boxes, alone.boxes, atol=1e-6)


def test_given_boxes_keep_their_order_and_get_soft_labels(extractor):
    boxes = np.array([[0.65, 0.5, 0.85, 0.75], [0.15, 0.3, 0.35, 0.55], [0, 0, 1, 1]], np.float32)
    found = extractor.features_at([spots(), spots()], [boxes, np.zeros((0, 4))])
    assert [CLASSES[x] for x in found[0].labels[:2]] == ["bus", "car"]
    assert len(found[1].features) == 0
    np.testing.assert_allclose(found[0].features[2], extractor([spots()])[0].features[0], atol=1e-5)


def test_provenance_tells_everything_that_changes_the_numbers(extractor, made, monkeypatch):
    made_by = extractor.provenance
    assert made_by.width == 1280
    assert made_by.classes == CLASSES
    assert len(made_by.weights) == 64
    assert light.Light(device="cpu", score=0.5).provenance.settings != made_by.settings
    (made / "centernet.bin").write_bytes(b"other")
    assert light.Light(device="cpu").provenance.weights != made_by.weights


@pytest.mark.skipif(not FETCHED, reason="needs `intarsia data fetch light`")
def test_own_peaks_are_those_of_the_real_graph():
    from intarsia.features.centernet import CenterNet

    detector = CenterNet(cache_root() / "light" / "centernet.json")
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    x = torch.from_numpy(stretched(image, 512))[None].float()
    with torch.inference_mode():
        out = detector.graph({"tower_0/images": x}, ["tower_0/detections", "tower_0/keypoints", "tower_0/wh"])
        boxes, scores, classes, _ = peaks(out["tower_0/keypoints"], out["tower_0/wh"], 100)
    theirs = out["tower_0/detections"][0]
    torch.testing.assert_close(boxes[0], theirs[:, :4], rtol=0, atol=1e-4)
    torch.testing.assert_close(scores[0], theirs[:, 4], rtol=0, atol=0)
    assert classes[0].tolist() == theirs[:, 5].long().tolist()


@pytest.mark.skipif(not (FETCHED and STAMPS.is_dir()), reason="needs `intarsia data fetch light` and `stamps`")
def test_real_features_and_labels_mean_something():
    from intarsia.data.decode import decode_image

    names = {
        "animals/birds/owl": "bird",
        "animals/mammals/giraffe": "giraffe",
        "animals/mammals/equines/horse": "horse",
        "vehicles/flight/planes/747": "airplane",
        "animals/birds/crow": "bird",
    }
    found = light.Light(device="cpu")([decode_image(STAMPS / f"{x}.png") for x in names])
    assert [CLASSES[x.labels[1]] for x in found[:4]] == list(names.values())[:4]
    rows = np.stack([x.features[0] for x in found])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert (rows @ rows.T)[4].argsort()[-2] == 0  # of all pictures the owl is nearest to the crow
