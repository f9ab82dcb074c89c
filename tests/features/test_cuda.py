"""Extraction on a CUDA device gives what it gives on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_detector import tiny_detector

from intarsia.features import open_extractor
from intarsia.features.detector_weights import published
from intarsia.weights.files import write_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def pictures() -> list[Any]:
    """Two of one shape and one of another, smooth."""
    rng = np.random.default_rng(0)
    from PIL import Image

    small = [Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)) for _ in range(3)]
    sizes = [(320, 240), (320, 240), (200, 260)]
    return [np.asarray(x.resize(size, Image.Resampling.BICUBIC)) for x, size in zip(small, sizes, strict=True)]


BOXES = [np.array([[0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]], np.float32)] * 3


def both(name: str, **options: Any) -> list[Any]:
    return [open_extractor(name, device=device, **options) for device in ("cpu", "cuda")]


@pytest.mark.parametrize("form", ["caffe", "d2", "maskrcnn"])
def test_detectors_describe_and_choose_alike(form: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    write_weights(path, published(tiny_detector(form)))
    slow, fast = both("vinvl" if form == "maskrcnn" else "butd", weights=str(path))
    for one, other in zip(slow.features_at(pictures(), BOXES), fast.features_at(pictures(), BOXES), strict=True):
        np.testing.assert_allclose(other.features, one.features, atol=1e-3, rtol=1e-4)
        np.testing.assert_allclose(other.probs, one.probs, atol=1e-3)
    for one, other in zip(slow(pictures()), fast(pictures()), strict=True):
        assert one.boxes.shape == other.boxes.shape
        np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-3)
        np.testing.assert_allclose(other.features, one.features, atol=1e-3, rtol=1e-3)
        assert (one.labels == other.labels).all()


def test_a_grid_is_described_alike() -> None:
    slow, fast = both("grid")
    for one, other in zip(slow(pictures()), fast(pictures()), strict=True):
        np.testing.assert_allclose(other.features, one.features, atol=1e-3, rtol=1e-3)
