import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from intarsia.features.pixels import GRID, MEAN, SD, WIDTH, pixel_features

images = arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)))


@st.composite
def boxes(draw):
    corners = np.array(
        draw(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=0, max_size=5))
    ).reshape(-1, 4)
    return np.hstack([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])])


def standard(image):
    return (np.asarray(image, np.float64) / 255 - MEAN) / SD


def slow(image, box):
    """Area means cell by cell, pixel by pixel."""
    height, width, _ = image.shape
    out = np.zeros((GRID, GRID, 3))
    edges = []
    for low, high, length in ((box[1], box[3], height), (box[0], box[2], width)):
        start = min(max(low * length, 0), length - 1)
        end = min(max(high * length, start + 1), length)
        edges.append([start + (end - start) * k / GRID for k in range(GRID + 1)])
    for i in range(GRID):
        for j in range(GRID):
            weight = 0.0
            for y in range(height):
                for x in range(width):
                    part = max(0.0, min(edges[0][i + 1], y + 1) - max(edges[0][i], y))
                    part *= max(0.0, min(edges[1][j + 1], x + 1) - max(edges[1][j], x))
                    weight += part
                    out[i, j] += part * image[y, x]
            out[i, j] /= weight
    return standard(out).ravel()


@given(arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7), st.just(3))), boxes())
def test_cells_are_area_means(image, some):
    found = pixel_features(image, some)
    assert found.shape == (len(some), WIDTH)
    assert found.dtype == np.float32
    for row, box in zip(found, some, strict=True):
        np.testing.assert_allclose(row, slow(image, box), atol=2e-3)


@given(images, boxes(), st.integers(2, 3))
def test_enlarging_the_picture_changes_little(image, some, factor):
    wide = (some[:, 2] - some[:, 0] >= 1 / image.shape[1]) & (some[:, 3] - some[:, 1] >= 1 / image.shape[0])
    large = image.repeat(factor, 0).repeat(factor, 1)
    np.testing.assert_allclose(pixel_features(large, some[wide]), pixel_features(image, some[wide]), atol=5e-3)


@given(images, boxes())
def test_a_box_does_not_feel_its_neighbours(image, some):
    together = pixel_features(image, some)
    alone = [pixel_features(image, some[i : i + 1])[0] for i in range(len(some))]
    assert all((a == b).all() for a, b in zip(together, alone, strict=True))


def test_eight_pixels_are_eight_cells():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    whole = pixel_features(image, np.array([[0.0, 0, 1, 1]]))
    np.testing.assert_allclose(whole[0], standard(image).ravel(), atol=1e-5)


def test_large_pictures_are_exact():
    image = np.full((3000, 3000, 3), 255, np.uint8)
    found = pixel_features(image, np.array([[0.0, 0, 1, 1], [0.9, 0.9, 1, 1]], np.float32))
    np.testing.assert_allclose(found.reshape(-1, 3), np.tile(standard(255.0), (128, 1)), rtol=1e-5)


@pytest.mark.parametrize(
    ("image", "box"),
    [
        (np.zeros((4, 4), np.uint8), [[0, 0, 1, 1]]),
        (np.zeros((4, 4, 3), np.float32), [[0, 0, 1, 1]]),
        (np.zeros((0, 4, 3), np.uint8), [[0, 0, 1, 1]]),
        (np.zeros((4, 4, 3), np.uint8), [[0, 0, 1]]),
        (np.zeros((4, 4, 3), np.uint8), [[0, 0, 1, float("nan")]]),
    ],
)
def test_other_shapes_are_refused(image, box):
    with pytest.raises(ValueError, match=r"of shape"):
        pixel_features(image, np.array(box, float))
