"""The extractor "resnet_v2": cut-outs of given boxes as B2T2 makes them, from pictures on disk to shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from intarsia.cli import main
from intarsia.data.opening import open_source
from intarsia.errors import BadInput
from intarsia.features import resnet_v2_regions
from intarsia.features.extractor import open_extractor
from intarsia.features.letterbox import cut_outs, letterbox
from intarsia.features.resnet_v2 import ResNetV2, ResNetV2Config, tf_state
from intarsia.layout import whole_row
from intarsia.weights.files import write_weights

TINY = ResNetV2Config((1, 1, 1, 1), (4, 4, 4, 8), 4)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(resnet_v2_regions.SIZES, "resnet_v2_152", TINY)
    torch.manual_seed(0)
    net = ResNetV2(TINY)
    for value in net.state_dict().values():
        if value.ndim == 1 and value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
    write_weights(tmp_path / "trunk.safetensors", tf_state(net))
    return str(tmp_path / "trunk.safetensors")


def picture(number: int = 0) -> Any:
    return np.random.default_rng(number).integers(0, 255, (60, 90, 3), np.uint8)


def test_boxes_are_cut_out_put_into_a_square_and_described(weights: str) -> None:
    extractor = open_extractor("resnet_v2", weights=weights, device="cpu")
    boxes = np.array([[0.1, 0.2, 0.55, 0.9], [0, 0, 1, 1], [0.999, 0.5, 0.9991, 0.6]], np.float32)
    (found,) = extractor.features_at([picture()], [boxes])
    trunk = extractor.trunk
    whole = torch.from_numpy(letterbox(picture())).permute(2, 0, 1)[None]
    part = torch.from_numpy(letterbox(picture()[12:54, 9:49])).permute(2, 0, 1)[None]
    with torch.no_grad():
        np.testing.assert_allclose(found.features[0], trunk.vectors(part)[0], atol=1e-5)
        np.testing.assert_allclose(found.features[1], trunk.vectors(whole)[0], atol=1e-5)
    assert np.isfinite(found.features).all()
    (alone,) = extractor([picture()])
    np.testing.assert_allclose(alone.features[0], found.features[1], atol=1e-5)
    with pytest.raises(BadInput, match="name its weights"):
        open_extractor("resnet_v2")


@pytest.mark.parametrize(("width", "height"), [(31, 7), (7, 31), (38, 33), (62, 62)])
def test_a_side_that_rounds_to_more_than_the_square_fills_it(width: int, height: int) -> None:
    """In float32 31 / (31 / 224) is more than 224; TensorFlow pads such a side by 0, not by -1."""
    filled = letterbox(np.ones((height, width, 3), np.float32)) > 0
    assert (int(filled.any((0, 2)).sum()), int(filled.any((1, 2)).sum())) == tuple(
        int(np.float32(x) / (np.float32(max(width, height)) / np.float32(224))) for x in (width, height)
    )


@pytest.mark.parametrize(("side", "odd"), [(224, [31, 62, 117, 124]), (333, [27, 31, 45, 54, 62]), (500, [251, 253])])
def test_whole_pixels_stay_whole(side: int, odd: list[int]) -> None:
    """Boxes are stored as fractions in float32, where 31 / 224 of 224 is less than 31."""
    edges = np.array(odd)
    assert (((edges / side).astype(np.float32) * np.float32(side)).astype(np.int64) < edges).all()
    boxes = np.stack([edges, edges, edges + 1, edges + 1], 1) / side
    image = np.broadcast_to(np.arange(side)[:, None, None] / np.float32(side), (side, side, 3)).astype(np.float32)
    found = cut_outs(image, boxes.astype(np.float32))
    assert [round(float(x.max()) * side) for x in found] == edges.tolist()


def test_lines_with_boxes_become_shards(tmp_path: Path, weights: str) -> None:
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    Image.fromarray(picture()).save(root / "images/0.png")
    line = {"key": "a", "image": "images/0.png", "captions": ["a dog"], "boxes": [[9, 12, 49, 54], [0, 0, 90, 60]]}
    (root / "pairs.jsonl").write_text(json.dumps(line) + "\n")
    order = ["extract", str(root), "--extractor", "resnet_v2", "--weights", weights, "--device", "cpu"]
    main([*order, "--boxes", "given", "--out", str(tmp_path / "out")])
    stored = open_source(tmp_path / "out")[0].pictures[0]
    extractor = open_extractor("resnet_v2", weights=weights, device="cpu")
    (found,) = extractor.features_at([picture()], [stored.boxes])
    np.testing.assert_allclose(stored.features, found.features, rtol=2e-3, atol=2e-3)
    assert len(stored.boxes) == 2
    assert whole_row(stored) == 1


def test_given_boxes_get_the_whole_picture_as_the_last(tmp_path: Path, weights: str) -> None:
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    Image.fromarray(picture()).save(root / "images/0.png")
    lines = [{"key": k, "image": "images/0.png", "captions": ["a dog"], "boxes": [[9, 12, 49, 54]]} for k in "ab"]
    lines[1]["links"] = [[0, 2, 5, 0]]
    (root / "pairs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    order = ["extract", str(root), "--extractor", "resnet_v2", "--weights", weights, "--device", "cpu"]
    main([*order, "--boxes", "given", "--out", str(tmp_path / "out")])
    source = open_source(tmp_path / "out")
    stored = source[1].pictures[0]
    np.testing.assert_allclose(stored.boxes, [[0.1, 0.2, 49 / 90, 0.9], [0, 0, 1, 1]], atol=1e-6)
    assert whole_row(stored) == 1
    assert [x.region for x in source[1].links] == [0]
    (alone,) = open_extractor("resnet_v2", weights=weights, device="cpu")([picture()])
    np.testing.assert_allclose(stored.features[1], alone.features[0], rtol=2e-3, atol=2e-3)
    lines[1]["boxes"] = [[9, 12, 50, 54]]
    (root / "pairs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    with pytest.raises(SystemExit) as stopped:
        main([*order, "--boxes", "given", "--out", str(tmp_path / "other")])
    assert stopped.value.code == 2
