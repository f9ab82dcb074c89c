from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.errors import BadInput
from intarsia.worlds import HELD_OUT, Caption, Phrase, WorldConfig, WorldSource, determined, holds, parse, write
from intarsia.worlds.captions import LANGUAGES, change, names_held_out
from intarsia.worlds.corrupt import corrupt, swap_colours
from intarsia.worlds.scene import Scene, SceneObject, related

some = st.none() | st.integers(0, 3)
phrases = st.builds(
    Phrase,
    size=st.none() | st.integers(0, 1),
    texture=some,
    colour=st.none() | st.integers(0, 7),
    shape=st.integers(0, 7),
)


@st.composite
def captions(draw):
    said = tuple(draw(st.lists(phrases, min_size=1, max_size=4)))
    relation = draw(some) if len(said) > 1 else None
    return Caption(said, relation, draw(st.integers(0, 5)), draw(st.integers(0, 2**32 - 1)))


scenes = st.builds(
    lambda objects: Scene(tuple(objects), 0),
    st.lists(
        st.builds(
            lambda c, s, z, t, x, y: SceneObject(c, s, z, t, (x, y, x + 0.1, y + 0.1)),
            st.integers(0, 7),
            st.integers(0, 7),
            st.integers(0, 1),
            st.integers(0, 3),
            st.floats(0, 0.9),
            st.floats(0, 0.9),
        ),
        min_size=1,
        max_size=4,
    ),
)


@given(captions(), st.sampled_from(LANGUAGES))
def test_parse_reads_what_write_wrote(caption, language):
    written = write(caption, language)
    back = parse(written.text, language)
    assert back == caption
    assert write(back, language).text == written.text


@given(captions(), st.sampled_from(LANGUAGES))
def test_spans_hold_the_words(caption, language):
    written = write(caption, language)
    assert len(written.spans) == len(caption.phrases)
    assert all(written.text[w.start : w.end] in w.accepted for w in written.words)
    for number, ((start, end), phrase) in enumerate(zip(written.spans, caption.phrases, strict=True)):
        inside = [w for w in written.words if w.phrase == number]
        assert [(w.kind, w.value) for w in inside] == [
            (k, phrase.value(k)) for k in ("size", "texture", "colour", "shape") if phrase.value(k) is not None
        ]
        assert inside[0].start == start
        assert inside[-1].end == end
    assert sum(w.kind == "relation" for w in written.words) == (caption.relation is not None)


@given(captions())
def test_languages_say_the_same(caption):
    english, chinese = (parse(write(caption, x).text, x) for x in LANGUAGES)
    assert english == chinese


def test_wording_by_hand():
    caption = Caption((Phrase(0, None, 0, 0), Phrase(None, 1, 5, 1), Phrase(None, None, 3, 3)), 0, 2)
    assert write(caption, "en").text == "there is a small red circle left of a striped blue square and a green star"
    assert write(caption, "zh").text == "这里有一个小的红色圆形在一个带条纹的蓝色方形的左边，还有一个绿色星形"
    assert write(Caption(caption.phrases), "en").text == "a small red circle, a striped blue square and a green star"
    assert write(Caption(caption.phrases[:2]), "zh").text == "一个小的红色圆形和一个带条纹的蓝色方形"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a dog and a cat", "en"),
        ("a red circle and", "en"),
        ("a red circle left of", "en"),
        ("", "en"),
        ("a red circle  and a blue star", "en"),
        ("一个红色圆形在一个蓝色方形", "zh"),
        ("一个红色圆形和", "zh"),
        ("a red circle", "fr"),
    ],
)
def test_other_texts_are_not_read(text, language):
    with pytest.raises(BadInput):
        parse(text, language)


def brute_force(caption, scene):
    for pick in permutations(scene.objects, len(caption.phrases)):
        fits = all(
            getattr(p, k) in (None, getattr(o, k))
            for p, o in zip(caption.phrases, pick, strict=True)
            for k in ("size", "texture", "colour", "shape")
        )
        if fits and (caption.relation is None or related(pick[0], pick[1], caption.relation)):
            return True
    return False


@given(captions(), scenes)
def test_truth_equals_brute_force(caption, scene):
    assert holds(caption, scene) == brute_force(caption, scene)


@given(scenes, st.data())
def test_true_descriptions_hold(scene, data):
    things = data.draw(st.permutations(scene.objects))[: data.draw(st.integers(1, len(scene.objects)))]
    caption = Caption(tuple(Phrase(x.size, x.texture, x.colour, x.shape) for x in things))
    assert holds(caption, scene)
    assert holds(Caption(caption.phrases[::-1]), scene)
    assert not holds(Caption((*caption.phrases, *(Phrase() for _ in scene.objects))), scene)


@given(captions(), scenes, st.data())
def test_determined_words_have_no_other_true_value(caption, scene, data):
    number = data.draw(st.integers(0, len(caption.phrases) - 1))
    true = [v for v in range(8) if brute_force(change(caption, number, "colour", v), scene)]
    assert determined(caption, scene, number, "colour") == (set(true) <= {caption.phrases[number].colour})


def test_ambiguous_word_is_not_determined():
    things = tuple(
        SceneObject(c, s, 0, 0, (0.1 + 0.3 * i, 0.1, 0.3 + 0.3 * i, 0.3))
        for i, (c, s) in enumerate([(0, 0), (1, 0), (2, 3)])
    )
    scene, caption = Scene(things, 0), Caption((Phrase(colour=0, shape=0), Phrase(colour=2, shape=3)))
    assert not determined(caption, scene, 0, "colour")  # a brown circle would do too
    assert determined(caption, scene, 0, "shape")
    assert determined(Caption((Phrase(colour=0, shape=0), Phrase(colour=1, shape=0))), scene, 0, "colour")


WORLDS = [
    WorldConfig(),
    WorldConfig(
        distinct=False, objects=(3, 5), mentions=3, textures=True, synonyms=True, languages=("en", "zh"), false_texts=5
    ),
    WorldConfig(level=0, objects=(3, 5)),
]


@pytest.mark.parametrize("config", WORLDS)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_captions_are_true_and_corruptions_false(config, split):
    source = WorldSource(config, split, 700, seed=3)
    short = 0
    for i in range(len(source)):
        scene, caption, false = source.scene(i), source.caption(i), source.false_captions(i)
        assert holds(caption, scene)
        assert not any(holds(x, scene) for x in false)
        assert len(set(false)) == len(false) <= config.false_texts
        assert caption not in false
        if split == "train":
            assert not names_held_out(caption)
            assert not any(names_held_out(x) for x in false)
        if config.distinct:
            assert all(len({p.colour for p in x.phrases}) == len({p.shape for p in x.phrases}) == 2 for x in false)
        short += len(false) < config.false_texts
    assert short == 0


@pytest.mark.parametrize("config", WORLDS)
def test_swaps_exchange_two_colours_and_are_false(config):
    source = WorldSource(config, "test", 600)
    found = 0
    for i in range(len(source)):
        text = source.swapped(i)
        if text is None:
            continue
        found += 1
        caption, swapped = source.caption(i), parse(text, source.language(i))
        assert not holds(swapped, source.scene(i))
        assert sorted(p.colour for p in swapped.phrases) == sorted(p.colour for p in caption.phrases)
        assert [p.shape for p in swapped.phrases] == [p.shape for p in caption.phrases]
        assert sum(p.colour != q.colour for p, q in zip(swapped.phrases, caption.phrases, strict=True)) == 2
        assert not names_held_out(swapped)
    assert found > 300


def test_no_swap_where_it_would_be_true_or_held_out():
    box = (0.1, 0.1, 0.2, 0.2), (0.5, 0.5, 0.6, 0.6)
    same = Scene((SceneObject(0, 0, 0, 0, box[0]), SceneObject(0, 2, 0, 0, box[1])), 0)
    assert swap_colours(Caption((Phrase(colour=0, shape=0), Phrase(colour=0, shape=2))), same, False, False) is None
    assert (1, 4) in HELD_OUT
    risky = Scene((SceneObject(0, 4, 0, 0, box[0]), SceneObject(1, 2, 0, 0, box[1])), 0)
    caption = Caption((Phrase(colour=0, shape=4), Phrase(colour=1, shape=2)))
    assert swap_colours(caption, risky, True, False) is None
    assert swap_colours(caption, risky, True, True) is not None


def test_a_scene_that_shows_everything_has_no_false_caption():
    shown = [(c, s) for c in range(8) for s in range(8)]
    scene = Scene(tuple(SceneObject(c, s, 0, 0, (0.0, 0.0, 0.1, 0.1)) for c, s in shown), 0)
    caption = Caption((Phrase(colour=0, shape=0), Phrase(colour=1, shape=1)))
    false = corrupt(caption, scene, np.random.default_rng(0), 3, False, True)
    assert all(p.phrases[0] == p.phrases[1] for p in false)  # only "a red circle and a red circle" is false there
