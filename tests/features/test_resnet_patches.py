"""The extractor "resnet": each cell of a picture described by itself, from pictures on disk to what FashionBERT reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from intarsia.cli import main
from intarsia.data.opening import open_source
from intarsia.errors import BadInput
from intarsia.features import resnet
from intarsia.features.extractor import open_extractor, reopen
from intarsia.features.resnet import MEAN, STD, ResNet, ResNetConfig

TINY = ResNetConfig((1, 1), (4, 8), stem=4)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(resnet.SIZES, "resnet50", TINY)
    torch.manual_seed(0)
    torch.save(ResNet(TINY).state_dict(), tmp_path / "resnet50.pth")
    return str(tmp_path / "resnet50.pth")


def picture(number: int = 0) -> Any:
    return np.random.default_rng(number).integers(0, 255, (64, 96, 3), np.uint8)


def test_each_cell_is_a_picture_of_its_own(weights: str) -> None:
    extractor = open_extractor("resnet", weights=weights, cells=4, side=48, device="cpu")
    first, second = extractor([picture(), picture(1)])
    assert first.features.shape == (16, 32) and not np.allclose(first.features, second.features)
    net = ResNet(TINY).eval()
    net.load_state_dict(torch.load(weights))
    for place, (y, x) in ((0, (0, 0)), (6, (1, 2)), (15, (3, 3))):
        cell = Image.fromarray(picture()[16 * y : 16 * y + 16, 24 * x : 24 * x + 24]).resize(
            (48, 48), Image.Resampling.BICUBIC
        )
        pixels = (torch.from_numpy(np.array(cell)) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        with torch.no_grad():
            want = net.features(pixels.permute(2, 0, 1)[None]).mean((2, 3))[0]
        np.testing.assert_allclose(first.features[place], want, atol=1e-5)
    (thin,) = extractor.features_at([picture()], [np.array([[0.999, 0.5, 0.9991, 1], [1, 1, 1, 1]], np.float32)])
    assert np.isfinite(thin.features).all() and extractor.features_at([picture()], [np.zeros((0, 4))])[
        0
    ].features.shape == (0, 32)
    changed = picture()
    changed[:16, :24] = 0
    (found,) = extractor([changed])
    alike = np.isclose(found.features, first.features, atol=1e-6).all(1)
    assert not alike[0] and alike[1:].all(), "a cell sees nothing of its neighbours"
    again = reopen(extractor.provenance, device="cpu")
    np.testing.assert_array_equal(again([picture()])[0].features, first.features)


def test_fashionbert_reads_what_was_extracted(tmp_path: Path, weights: str) -> None:
    main(["data", "scenes", str(tmp_path / "photos"), "--count", "12"])
    order = ["extract", str(tmp_path / "photos"), "--extractor", "resnet", "--weights", weights, "--device", "cpu"]
    main([*order, "--options", "cells", "2", "side", "32", "--out", str(tmp_path / "cells")])
    source = open_source(tmp_path / "cells")
    assert source.provenance is not None and source.provenance.width == 32
    assert source[0].pictures[0].boxes.tolist() == [
        [0, 0, 0.5, 0.5],
        [0.5, 0, 1, 0.5],
        [0, 0.5, 0.5, 1],
        [0.5, 0.5, 1, 1],
    ]
    run = ["pretrain", "fashionbert", "--data", str(tmp_path / "cells"), "--out", str(tmp_path / "run")]
    main([*run, "--schedule.steps", "2", "--schedule.warmup", "1", "--workers", "0", "--device", "cpu"])
    assert (tmp_path / "run/model.safetensors").is_file()


def test_what_cannot_be_is_refused(weights: str) -> None:
    with pytest.raises(BadInput, match="name its weights with --weights"):
        open_extractor("resnet")
    with pytest.raises(BadInput, match="size 'resnet18' is not one of resnet50"):
        open_extractor("resnet", weights=weights, size="resnet18")
    with pytest.raises(BadInput, match="0 cells a side"):
        open_extractor("resnet", weights=weights, cells=0)
