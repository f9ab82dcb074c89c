"""The "motion" extractor on drawn things: what its numbers follow, and what they do not."""

import numpy as np
import pytest

from intarsia.errors import BadInput
from intarsia.features.clips import ClipExtractor, open_clip_extractor
from intarsia.features.motion import BINS
from intarsia.worlds.films import Event, MovingScene, State, frame
from intarsia.worlds.scene import SHAPES

OUTLINE, LENGTH, COLOUR = slice(0, BINS), BINS, slice(BINS + 1, BINS + 4)
RIGHT, DOWN, GROWTH, TURN = range(BINS + 4, BINS + 8)
EXTRACTOR = open_clip_extractor("motion", device="cpu")


def clip(action="", shape="square", colour=0, x=0.5, y=0.5, size=0.25):
    """(T, 96, 96, 3) what the extractor looks at of 1.5 s in which something is done, or nothing."""
    events = (Event(action, 0, 0.0, 1.5, (0.0, 1.5), 0),) if action else ()
    scene = MovingScene(((colour, SHAPES.index(shape)),), (State(x, y, size, 0.0),), events, 0, 1.5)
    return np.stack([EXTRACTOR.shrink(frame(scene, t / 20, 96)) for t in EXTRACTOR.sampling.ticks])


def described(*clips):
    return EXTRACTOR(np.stack(clips))


def test_it_is_a_clip_extractor_of_32_numbers():
    assert isinstance(EXTRACTOR, ClipExtractor)
    found = described(clip(), clip("left", "star"))
    assert found.shape == (2, EXTRACTOR.provenance.width) == (2, 32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(described(clip("left", "star"))[0], found[1], atol=1e-5)


def test_outline_and_colour_do_not_depend_on_the_place_nor_outline_on_the_colour():
    here, there, other = described(clip(), clip(x=0.3, y=0.6), clip(colour=4))
    np.testing.assert_allclose(here[: BINS + 4], there[: BINS + 4], atol=0.2)
    np.testing.assert_allclose(here[: BINS + 1], other[: BINS + 1], atol=0.25)
    assert np.abs(here[COLOUR] - other[COLOUR]).max() > 0.5


def test_shapes_differ_more_than_one_shape_in_other_sizes_and_colours():
    looks = [(colour, size) for colour in (0, 3, 5) for size in (0.22, 0.3)]
    found = described(*[clip("", shape, colour, size=size) for shape in SHAPES for colour, size in looks])
    told = found[:, : BINS + 1].reshape(len(SHAPES), len(looks), -1)
    middles = told.mean(1)
    far = np.linalg.norm(told[:, :, None] - middles, axis=-1)  # (shape, look, shape)
    assert (far.argmin(2) == np.arange(len(SHAPES))[:, None]).all()


@pytest.mark.parametrize(
    ("action", "number", "sign"),
    [
        ("left", RIGHT, -1),
        ("right", RIGHT, 1),
        ("up", DOWN, -1),
        ("down", DOWN, 1),
        ("grow", GROWTH, 1),
        ("shrink", GROWTH, -1),
        ("appear", GROWTH, 1),
        ("vanish", GROWTH, -1),
    ],
)
def test_what_becomes_of_a_thing(action, number, sign):
    still, moved = described(clip(), clip(action, size=0.0 if action == "appear" else 0.25))
    assert np.abs(still[RIGHT:]).max() < 1e-3
    assert sign * moved[number] > 0.3
    assert np.isfinite(moved).all()
    shifted = np.abs(moved[[RIGHT, DOWN]])
    assert shifted[number - RIGHT] > 5 * shifted[1 - (number - RIGHT)] if number <= DOWN else shifted.max() < 0.1


def test_a_turn_is_told_from_standing_still_and_going_straight_on():
    still, straight, turning = described(clip(), clip("left"), clip("spin"))
    assert max(still[TURN], straight[TURN]) < 0.2 * turning[TURN]


def test_nothing_to_see():
    blank = np.full_like(clip(), 200)
    (found,) = described(blank)
    assert not found[OUTLINE].any() and not found[RIGHT:].any() and found[LENGTH] == 0
    assert np.ptp(found[COLOUR]) == 0 and found[COLOUR][0] == pytest.approx(2.4 * 200 / 255, abs=1e-5)


def test_options_are_checked():
    with pytest.raises(BadInput, match=r"extractor motion: side 16 \(32 or more\), look 6"):
        open_clip_extractor("motion", side=16)
    with pytest.raises(BadInput, match="look 1 "):
        open_clip_extractor("motion", look=1)
