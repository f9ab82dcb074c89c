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
from intarsia.features.roi import roi_align_unshifted, roi_pool
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
        np.testing.assert_allclose(other.features, one.features, atol=1e-3 * abs(one.features).max())
        np.testing.assert_allclose(other.probs, one.probs, atol=1e-3)
    for one, other in zip(slow(pictures()), fast(pictures()), strict=True):
        far = np.abs(one.boxes[:, None] - other.boxes).max(2)
        same = far.min(1) < 1e-3  # scores beside a threshold may fall to either side
        assert same.mean() > 0.9 and abs(len(one.boxes) - len(other.boxes)) <= 0.1 * len(one.boxes)
        apart = np.abs(one.features[:, None] - other.features).max(2)  # clipped boxes may be those of several proposals
        nearest = np.where(far < 1e-3, apart, np.inf).min(1)[same]
        assert (nearest < 1e-3 * abs(one.features).max()).all()


def test_bins_are_cut_alike() -> None:
    """Of boxes of every number of cells, also where a bin ends on a cell."""
    maps = torch.randn(1, 3, 80, 90, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[16.0 * (i % 7), 8.0, 16.0 * (i % 7 + i) + 1, 16.0 * i] for i in range(1, 76)])
    none = torch.zeros(len(boxes), dtype=torch.int64)
    for pool in (roi_pool, roi_align_unshifted):
        slow, fast = pool(maps, boxes, none, 14, 1 / 16), pool(maps.cuda(), boxes.cuda(), none.cuda(), 14, 1 / 16)
        torch.testing.assert_close(fast.cpu(), slow, atol=0 if pool is roi_pool else 1e-5, rtol=0)


def test_a_grid_is_described_alike() -> None:
    slow, fast = both("grid")
    for one, other in zip(slow(pictures()), fast(pictures()), strict=True):
        np.testing.assert_allclose(other.features, one.features, atol=1e-3, rtol=1e-3)
