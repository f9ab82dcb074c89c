import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from intarsia.features.blobs import BACKGROUND_BOXES, components, propose
from intarsia.worlds import WorldConfig, WorldSource


def overlaps(boxes, box):
    """IoU of boxes (R, 4) with one box."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    both = sides.clip(0).prod(1)
    return both / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - both)


def flood(mask):
    """8-connected components by flooding."""
    labels = np.full(mask.shape, -1)
    number = 0
    for y, x in np.argwhere(mask):
        if labels[y, x] >= 0:
            continue
        stack = [(y, x)]
        while stack:
            a, b = stack.pop()
            if 0 <= a < mask.shape[0] and 0 <= b < mask.shape[1] and mask[a, b] and labels[a, b] < 0:
                labels[a, b] = number
                stack += [(a + i, b + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        number += 1
    return labels


@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_components_equal_flooding(mask):
    np.testing.assert_array_equal(components(mask), flood(mask))


def test_components_of_large_noise_equal_flooding():
    mask = np.random.default_rng(0).random((60, 80)) < 0.42
    np.testing.assert_array_equal(components(mask), flood(mask))


@pytest.mark.parametrize("config", [WorldConfig(), WorldConfig(side=64), WorldConfig(textures=True, side=300)])
def test_boxes_of_drawn_scenes_are_found(config):
    source = WorldSource(config, "test", 50)
    found = []
    for i in range(50):
        boxes, scores = propose(source.image(i))
        things = source.scene(i).objects
        assert len(boxes) == len(scores) == len(things) + len(BACKGROUND_BOXES)
        assert (scores[:-2] > 0.2).all()
        assert (scores < 1).all()
        found += [overlaps(boxes, np.array(x.box)).max() for x in things]
    assert np.mean(found) > 0.8
    assert np.min(found) > 0.65


def test_a_square_by_hand():
    image = np.full((100, 200, 3), 230, np.uint8)
    image[20:60, 50:150] = (200, 30, 30)
    image[80:90, 10:20] = (20, 30, 200)
    image[2, 2] = 0  # a speck
    boxes, scores = propose(image)
    np.testing.assert_allclose(boxes, [[0.25, 0.2, 0.75, 0.6], [0.05, 0.8, 0.1, 0.9], *BACKGROUND_BOXES], atol=1e-6)
    assert scores[-2:].tolist() == [0, 0]
    assert len(propose(image, background=False).boxes) == 2
    assert len(propose(image, most=1, background=False).boxes) == 1
    assert len(propose(image, least_area=0.0, background=False).boxes) == 3


@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))), st.booleans())
def test_any_picture_gives_at_least_one_box(image, background):
    boxes, scores = propose(image, background=background)
    assert 1 <= len(boxes) <= 12
    assert len(scores) == len(boxes)
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert np.isfinite(scores).all()


def test_an_empty_picture_is_one_region():
    boxes, scores = propose(np.full((50, 70, 3), 200, np.uint8), background=False)
    assert boxes.tolist() == [[0, 0, 1, 1]]
    assert scores.tolist() == [0]


def test_large_pictures_give_the_same_boxes():
    source = WorldSource(split="test", count=5)
    for i in range(5):
        image = source.image(i)
        large = image.repeat(7, 0).repeat(7, 1)
        small_boxes, large_boxes = propose(image).boxes, propose(large).boxes
        assert len(small_boxes) == len(large_boxes)
        assert all(overlaps(large_boxes, box).max() > 0.8 for box in small_boxes)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="of shape"):
        propose(np.zeros((4, 4), np.uint8))
