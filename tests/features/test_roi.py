import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from intarsia.boxes import iou
from intarsia.features import roi
from intarsia.features.roi import (
    conv_same,
    crops,
    nms,
    overlaps,
    overlaps_as_pixels,
    roi_align,
    roi_align_unshifted,
    roi_pool,
    stretched,
)


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


def test_nms_over_many_blocks_stops_at_the_most(monkeypatch):
    monkeypatch.setattr("intarsia.features.roi.BLOCK", 48)
    rng = np.random.default_rng(3)
    boxes, scores = boxes_of(rng, 300), torch.from_numpy(rng.uniform(size=300))
    whole = nms(boxes, scores, 0.6)
    assert len(whole) > 96  # so that blocks meet what was kept of those before
    assert whole.tolist() == slow_nms(boxes, scores, 0.6, [0] * 300)
    assert nms(boxes, scores, 0.6, most=70).tolist() == whole[:70].tolist()
    assert nms(boxes[:0], scores[:0], 0.6).tolist() == []


def test_pixels_overlap_with_both_ends_inside():
    one, other = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([[0.0, 5, 9, 14], [0, 10, 9, 12]])
    assert overlaps_as_pixels(one, other, 50 / 150).tolist() == [[True, False]]
    assert overlaps_as_pixels(one, other, 0.34).tolist() == [[False, False]]
    assert not overlaps(torch.zeros(1, 4), torch.zeros(1, 4), 0.0).any()


def slow_roi_pool(maps, boxes, image, size, scale):
    out = np.zeros((len(boxes), maps.shape[1], size, size), np.float32)
    high, wide = maps.shape[2:]
    for r, box in enumerate(boxes):
        x1, y1, x2, y2 = (int(np.floor(np.float32(v) * np.float32(scale) + np.float32(0.5))) for v in box)
        step_x = np.float32(max(x2 - x1 + 1, 1)) / np.float32(size)
        step_y = np.float32(max(y2 - y1 + 1, 1)) / np.float32(size)
        for i in range(size):
            for j in range(size):
                top = min(max(int(np.floor(np.float32(i) * step_y)) + y1, 0), high)
                bottom = min(max(int(np.ceil(np.float32(i + 1) * step_y)) + y1, 0), high)
                left = min(max(int(np.floor(np.float32(j) * step_x)) + x1, 0), wide)
                right = min(max(int(np.ceil(np.float32(j + 1) * step_x)) + x1, 0), wide)
                if bottom > top and right > left:
                    out[r, :, i, j] = maps[image[r], :, top:bottom, left:right].max((1, 2))
    return out


def pixel_boxes(rng, count, high, wide):
    corner = rng.uniform(0, 0.8, (count, 2)) * [wide, high]
    far = corner + rng.uniform(0, 1, (count, 2)) * ([wide, high] - corner)
    return np.concatenate([corner, far], 1).astype(np.float32)


@pytest.mark.parametrize("size", [1, 3, 7, 14])
def test_roi_pool_is_the_loop(size):
    rng = np.random.default_rng(size)
    maps = rng.standard_normal((2, 3, 21, 64)).astype(np.float32)
    boxes = pixel_boxes(rng, 12, 21 * 16, 64 * 16)
    edges = [[0, 0, 1023, 335], [8, 8, 8, 8], [1020, 330, 1023, 335], [0, 0, 57 * 16 - 17, 100], [300, 20, 1500, 900]]
    edges += [[1100, 400, 1200, 500], [0, 0, 62 * 16 - 9, 40]]
    boxes = np.concatenate([boxes, np.array(edges, np.float32)])
    image = rng.integers(0, 2, len(boxes))
    got = roi_pool(torch.from_numpy(maps), torch.from_numpy(boxes), torch.from_numpy(image), size, 1 / 16)
    np.testing.assert_array_equal(got.numpy(), slow_roi_pool(maps, boxes, image, size, 1 / 16))
    assert roi_pool(torch.ones(1, 3, 4, 4), torch.zeros(0, 4), torch.zeros(0).long(), size, 1).shape[0] == 0


def slow_unshifted(maps, boxes, image, size, scale, samples=0):
    out = np.zeros((len(boxes), maps.shape[1], size, size))
    high, wide = maps.shape[2:]

    def read(plane, y, x):
        if y < -1 or y > high or x < -1 or x > wide:
            return 0.0
        y, x = max(y, 0), max(x, 0)
        y0, x0 = min(int(y), high - 1), min(int(x), wide - 1)
        y1, x1 = min(y0 + 1, high - 1), min(x0 + 1, wide - 1)
        dy, dx = (y - y0 if y1 > y0 else 0.0), (x - x0 if x1 > x0 else 0.0)
        top = plane[y0, x0] * (1 - dx) + plane[y0, x1] * dx
        return top * (1 - dy) + (plane[y1, x0] * (1 - dx) + plane[y1, x1] * dx) * dy

    for r, (x1, y1, x2, y2) in enumerate(boxes * scale):
        high_bin, wide_bin = max(y2 - y1, 1) / size, max(x2 - x1, 1) / size
        rows, columns = samples or int(np.ceil(high_bin)), samples or int(np.ceil(wide_bin))
        for c in range(maps.shape[1]):
            for i in range(size):
                for j in range(size):
                    total = 0.0
                    for a in range(rows):
                        for b in range(columns):
                            y, x = y1 + (i + (a + 0.5) / rows) * high_bin, x1 + (j + (b + 0.5) / columns) * wide_bin
                            total += read(maps[image[r], c], y, x)
                    out[r, c, i, j] = total / (rows * columns)
    return out


@pytest.mark.parametrize("samples", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_unshifted_roi_align_is_the_loop(size, samples):
    rng = np.random.default_rng(size)
    maps = rng.standard_normal((2, 2, 9, 13))
    boxes = np.concatenate([pixel_boxes(rng, 6, 144, 208).astype(np.float64), [[0, 0, 208, 144], [5, 5, 5, 5]]])
    boxes = np.concatenate([boxes, [[-40, 10, 300, 60.5], [190, 130, 207, 143]]])
    image = rng.integers(0, 2, len(boxes))
    given = torch.from_numpy(maps), torch.from_numpy(boxes), torch.from_numpy(image)
    got = roi_align_unshifted(*given, size, 1 / 16, samples)
    np.testing.assert_allclose(got.numpy(), slow_unshifted(maps, boxes, image, size, 1 / 16, samples), atol=1e-9)
    none = torch.zeros(0, 4)
    assert roi_align_unshifted(torch.ones(1, 3, 4, 4), none, torch.zeros(0).long(), size, 1).shape == (0, 3, size, size)


def test_compiled_operators_agree_where_there_are_any():
    ops = pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(0)
    maps = torch.from_numpy(rng.standard_normal((2, 4, 20, 30)).astype(np.float32))
    boxes = torch.from_numpy(pixel_boxes(rng, 40, 320, 480))
    image = torch.from_numpy(rng.integers(0, 2, 40))
    given = torch.cat([image[:, None].float(), boxes], 1)
    expected = ops.roi_pool(maps, given, 14, 1 / 16)
    torch.testing.assert_close(roi_pool(maps, boxes, image, 14, 1 / 16), expected)
    expected = ops.roi_align(maps, given, 14, 1 / 16, 0, aligned=False)
    torch.testing.assert_close(roi_align_unshifted(maps, boxes, image, 14, 1 / 16), expected, rtol=1e-4, atol=1e-5)
    scores = torch.from_numpy(rng.uniform(size=40).astype(np.float32))
    assert nms(boxes, scores, 0.3).tolist() == ops.nms(boxes, scores, 0.3).tolist()


def drawn_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 150, (count, 2))
    return torch.from_numpy(np.concatenate([corner, corner + rng.uniform(4, 120, (count, 2))], 1)).float()


def alike(ops, monkeypatch):
    """That our operators and these, called as torchvision's are, give the same."""
    boxes, scores = drawn_boxes(40), torch.from_numpy(np.random.default_rng(1).random(40)).float()
    maps, owner = (
        torch.from_numpy(np.random.default_rng(2).standard_normal((2, 3, 13, 15))).float(),
        torch.arange(40) % 2,
    )
    asked = (
        lambda: nms(boxes, scores, 0.3),
        lambda: nms(boxes, scores, 0.3, most=5),
        lambda: roi_pool(maps, boxes, owner, 7, 1 / 16),
        lambda: roi_align_unshifted(maps, boxes, owner, 7, 1 / 16),
        lambda: roi_align_unshifted(maps, boxes, owner, 7, 1 / 16, 2),
    )
    monkeypatch.setattr(roi, "compiled", lambda: None)
    ours = [x() for x in asked]
    monkeypatch.setattr(roi, "compiled", lambda: ops)
    for one, ask in zip(ours, asked, strict=True):
        torch.testing.assert_close(ask(), one, atol=1e-5, rtol=0)


def test_torchvisions_operators_give_the_same(monkeypatch):
    ops = roi.compiled()
    if ops is None:
        pytest.skip("torchvision does not import here")
    alike(ops, monkeypatch)


class AsTorchvisions:
    """The slow loops behind the signatures of torchvision's operators (its documentation of ops.nms, roi_pool and roi_align)."""

    calls = 0

    def nms(self, boxes, scores, iou_threshold):
        self.calls += 1
        return torch.tensor(slow_nms(boxes, scores, iou_threshold, [0] * len(boxes)), dtype=torch.int64)

    def roi_pool(self, input, boxes, output_size, spatial_scale=1.0):
        self.calls += 1
        assert boxes.shape[1] == 5 and output_size == (7, 7)
        owner, corners = boxes[:, 0].long().numpy(), boxes[:, 1:].numpy()
        return torch.from_numpy(slow_roi_pool(input.numpy(), corners, owner, 7, spatial_scale))

    def roi_align(self, input, boxes, output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=False):
        self.calls += 1
        assert not aligned and boxes.shape[1] == 5 and output_size == (7, 7)
        owner, corners = boxes[:, 0].long().numpy(), boxes[:, 1:].numpy()
        read = slow_unshifted(input.numpy(), corners, owner, 7, spatial_scale, max(sampling_ratio, 0))
        return torch.from_numpy(read).float()


def test_operators_are_asked_as_torchvisions_are_and_not_for_gradients(monkeypatch):
    ops = AsTorchvisions()
    alike(ops, monkeypatch)
    assert ops.calls == 5
    maps = torch.randn(1, 2, 9, 9, requires_grad=True)
    boxes, none = drawn_boxes(3), torch.zeros(3, dtype=torch.int64)
    roi_align_unshifted(maps, boxes, none, 7, 1 / 16).sum().backward()
    roi_pool(maps.detach().double(), boxes, none, 7, 1 / 16)
    nms(boxes, torch.rand(3), 0.5, labels=none)
    assert ops.calls == 5 and maps.grad is not None


def test_operators_built_for_another_torch_are_left_alone(monkeypatch):
    def broken(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(roi.importlib, "import_module", broken)
    roi.compiled.cache_clear()
    assert roi.compiled() is None
    roi.compiled.cache_clear()
