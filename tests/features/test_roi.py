import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from intarsia.boxes import iou
from intarsia.features.roi import conv_same, crops, nms, roi_align, stretched


def boxes_of(rng, count):
    corner = rng.uniform(0, 0.7, (count, 2))
    return torch.from_numpy(np.concatenate([corner, corner + rng.uniform(0.02, 0.3, (count, 2))], 1))


def slow_nms(boxes, scores, threshold, labels):
    left = sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if labels[i] != labels[best] or float(iou(boxes[[i]], boxes[[best]])) <= threshold]
    return kept


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(0, 40), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.integers(1, 4))
def test_nms_is_the_greedy_loop(seed, count, threshold, classes):
    rng = np.random.default_rng(seed)
    boxes = boxes_of(rng, count)
    scores = torch.from_numpy(rng.integers(0, 12, count) / 12)  # ties on purpose
    labels = torch.from_numpy(rng.integers(0, classes, count))
    assert nms(boxes, scores, threshold, labels).tolist() == slow_nms(boxes, scores, threshold, labels.tolist())
    assert nms(boxes, scores, threshold).tolist() == slow_nms(boxes, scores, threshold, [0] * count)


def slow_read(plane, x, y):
    high, wide = plane.shape
    x, y = min(max(x - 0.5, 0), wide - 1), min(max(y - 0.5, 0), high - 1)
    x0, y0 = int(x), int(y)
    x1, y1 = min(x0 + 1, wide - 1), min(y0 + 1, high - 1)
    dx, dy = x - x0, y - y0
    top = plane[y0, x0] * (1 - dx) + plane[y0, x1] * dx
    return top * (1 - dy) + (plane[y1, x0] * (1 - dx) + plane[y1, x1] * dx) * dy


def slow_roi_align(maps, boxes, image, size, samples):
    out = np.zeros((len(boxes), maps.shape[1], size, size))
    for r, (x1, y1, x2, y2) in enumerate(boxes):
        for c in range(maps.shape[1]):
            plane = maps[image[r], c]
            for i in range(size):
                for j in range(size):
                    reads = []
                    for a in range(samples):
                        for b in range(samples):
                            y = (y1 + (y2 - y1) * (i + (a + 0.5) / samples) / size) * plane.shape[0]
                            x = (x1 + (x2 - x1) * (j + (b + 0.5) / samples) / size) * plane.shape[1]
                            reads.append(slow_read(plane, x, y))
                    out[r, c, i, j] = np.mean(reads)
    return out


@pytest.mark.parametrize(("size", "samples"), [(1, 1), (1, 4), (3, 2), (7, 2)])
def test_roi_align_is_the_loop(size, samples):
    rng = np.random.default_rng(size)
    maps = rng.standard_normal((3, 2, 5, 8))
    boxes = np.concatenate([boxes_of(rng, 5).numpy(), [[0, 0, 1, 1], [0.4, 0.4, 0.4, 0.4]]])
    image = np.array([2, 0, 2, 1, 0, 1, 2])
    got = roi_align(torch.from_numpy(maps), torch.from_numpy(boxes), torch.from_numpy(image), size, samples)
    np.testing.assert_allclose(got.numpy(), slow_roi_align(maps, boxes, image, size, samples), atol=1e-9)


def test_roi_align_of_no_box():
    none = torch.zeros(0, 4)
    assert roi_align(torch.ones(1, 3, 4, 4), none, torch.zeros(0, dtype=torch.int64), 2).shape == (0, 3, 2, 2)


def test_crops_cut_exactly_what_the_box_says():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    got = crops(image, np.array([[10 / 60, 5 / 40, 34 / 60, 29 / 40], [0, 0, 1, 1]]), 24)
    np.testing.assert_array_equal(got[0], image[5:29, 10:34])
    np.testing.assert_array_equal(got[1], np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC)))


def test_crops_of_boxes_without_area_hold_one_pixel():
    image = np.zeros((4, 4, 3), np.uint8)
    image[1:, 1:] = 200
    got = crops(image, np.array([[1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5]]), 2)
    assert (got[0] > 180).all()
    assert got[1].shape == (2, 2, 3)


def test_stretched_gives_a_square():
    assert stretched(np.zeros((10, 30, 3), np.uint8), 16).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "before", "after"),
    [(8, 3, 2, 0, 1), (9, 3, 2, 1, 1), (8, 3, 1, 1, 1), (7, 5, 2, 2, 2), (8, 5, 2, 1, 2)],
)
def test_same_convolutions_put_the_odd_pixel_after(side, kernel, stride, before, after):
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(1, 2, side, side, generator=generator),
        torch.randn(3, 2, kernel, kernel, generator=generator),
    )
    expected = functional.conv2d(functional.pad(x, [before, after, before, after]), weight, stride=stride)
    torch.testing.assert_close(conv_same(x, weight, None, (stride, stride), (1, 1), 1), expected)
    assert expected.shape[-1] == -(-side // stride)
