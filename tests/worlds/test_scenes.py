from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.errors import BadInput
from intarsia.worlds import CLASSES, HELD_OUT, WorldConfig, WorldSource, scene_graph
from intarsia.worlds.scene import COLOURS, RELATIONS, SHAPES, Scene, SceneObject, related

WORLDS = {
    "demo": WorldConfig(),
    "pairs": WorldConfig(distinct=False, objects=(3, 5), textures=True, side=64),
    "slots": WorldConfig(level=0, objects=(3, 5)),
}


@pytest.fixture(params=WORLDS)
def config(request):
    return WORLDS[request.param]


@given(seed=st.integers(0, 2**31), index=st.integers(0, 999), split=st.sampled_from(["train", "validation", "test"]))
def test_known_splits_show_no_held_out_pair(seed, index, split):
    scene = WorldSource(split=split, seed=seed, count=1000).scene(index)
    assert HELD_OUT.isdisjoint(x.pair for x in scene.objects)
    assert 3 <= len(scene.objects) <= 4
    assert len({x.colour for x in scene.objects}) == len({x.shape for x in scene.objects}) == len(scene.objects)


def test_held_out_pairs_are_one_for_each_colour_and_shape():
    assert {c for c, _ in HELD_OUT} == set(range(8)) == {s for _, s in HELD_OUT}
    assert (2, 7) in HELD_OUT


def test_held_out_scenes_show_two_held_out_pairs_and_name_two(config):
    source = WorldSource(config, "held_out", 200)
    for i in range(200):
        scene, caption = source.scene(i), source.caption(i)
        assert sum(x.pair in HELD_OUT for x in scene.objects) >= 2
        assert all((p.colour, p.shape) in HELD_OUT for p in caption.phrases)


def test_objects_lie_inside_and_apart(config):
    source = WorldSource(config, count=300)
    for i in range(300):
        boxes = np.array([x.box for x in source.scene(i).objects])
        assert boxes.min() >= 0
        assert boxes.max() <= 1
        for a, b in combinations(boxes, 2):
            assert (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).min() <= 1e-9
            assert not (a == b).all()


def test_pairs_of_loose_worlds_differ_and_colours_repeat():
    source = WorldSource(WORLDS["pairs"], count=300)
    scenes = [source.scene(i).objects for i in range(300)]
    assert all(len({x.pair for x in s}) == len(s) for s in scenes)
    assert any(len({x.colour for x in s}) < len(s) for s in scenes)
    assert {x.texture for s in scenes for x in s} == {0, 1, 2, 3}


def test_attributes_are_balanced():
    source = WorldSource(count=3000)
    things = [x for i in range(3000) for x in source.scene(i).objects]
    for values, kinds in (
        (t, k)
        for k, t in ((8, [x.colour for x in things]), (8, [x.shape for x in things]), (2, [x.size for x in things]))
    ):
        counts = np.bincount(values, minlength=kinds)
        expected = len(things) / kinds
        assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()
    numbers = np.bincount([len(source.scene(i).objects) for i in range(3000)])
    assert abs(numbers[3] - 1500) < 5 * np.sqrt(750)
    pairs = {x.pair for x in things}
    assert len(pairs) == 56


def test_relations_by_hand():
    a = SceneObject(0, 0, 0, 0, (0.1, 0.1, 0.3, 0.3))
    b = SceneObject(1, 2, 1, 0, (0.6, 0.15, 0.9, 0.45))
    names = [r for k, r in enumerate(RELATIONS) if related(a, b, k)]
    assert names == ["left of"]  # .2 / .3: a vertical step of .1 is not over .1
    graph = scene_graph(Scene((a, b), 0))
    assert graph.objects == ("circle", "triangle")
    assert (0, "red") in graph.attributes
    assert (1, "large") in graph.attributes
    assert graph.relations == ((0, "left of", 1), (1, "right of", 0))


def test_graph_agrees_with_the_boxes():
    source = WorldSource(count=50)
    for i in range(50):
        scene = source.scene(i)
        triples = set(scene_graph(scene).relations)
        for a, b in combinations(range(len(scene.objects)), 2):
            (ax, ay), (bx, by) = scene.objects[a].centre, scene.objects[b].centre
            assert ((a, "left of", b) in triples) == (bx - ax > 0.1) == ((b, "right of", a) in triples)
            assert ((a, "below", b) in triples) == (ay - by > 0.1) == ((b, "above", a) in triples)


@pytest.mark.parametrize(
    "wrong",
    [
        {"level": 2},
        {"objects": (1, 4)},
        {"objects": (4, 3)},
        {"objects": (3, 6)},
        {"mentions": 4},
        {"languages": ("de",)},
        {"languages": ()},
        {"noise": 1.5},
        {"level": 0, "textures": True},
        {"side": 8},
        {"false_texts": -1},
        {"background_boxes": -1},
    ],
)
def test_impossible_worlds_are_refused(wrong):
    with pytest.raises(BadInput, match=r"^world: "):
        WorldConfig(**wrong)


def test_impossible_sources_are_refused():
    for wrong in ({"split": "dev"}, {"count": -1}, {"seed": -1}):
        with pytest.raises(BadInput, match=r"^world: split"):
            WorldSource(**wrong)
    with pytest.raises(BadInput, match="no pictures"):
        WorldSource(WORLDS["slots"]).image(0)


def test_classes_are_background_and_shapes():
    assert len(set(CLASSES)) == 9
    assert CLASSES[0] == "background"
    assert CLASSES[1:] == SHAPES
    assert len(COLOURS) == 8
