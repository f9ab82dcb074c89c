from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from intarsia.worlds import WorldConfig, WorldSource, ask, choose, compare, refer
from intarsia.worlds.scene import COLOURS, RELATIONS, SHAPES, SIZES, related

DEMO = WorldConfig()
LOOSE = WorldConfig(distinct=False, objects=(3, 5), textures=True, side=48)
CHINESE = replace(DEMO, languages=("zh",), side=48)
WORDS = {
    "colour": dict(zip(("红色", "棕色", "黄色", "绿色", "青色", "蓝色", "紫色", "粉色"), COLOURS, strict=True)),
    "shape": dict(zip(("圆形", "方形", "三角形", "星形", "十字形", "心形", "菱形", "环形"), SHAPES, strict=True)),
}


def named(scene, text):
    """The objects that an English phrase without article fits, read word by word."""
    words = set(text.split())
    kinds = (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES))
    return [
        x
        for x in scene.objects
        if all(values[getattr(x, kind)] in words for kind, values in kinds if words & set(values))
    ]


def linked(source, i, sample):
    """The object of each link, and the words that are linked."""
    scene, regions = source.scene(i), source.regions_of(i)
    return [(sample.texts[x.text][x.start : x.end], scene.objects[regions.index(x.region)]) for x in sample.links]


@pytest.mark.parametrize("config", [DEMO, LOOSE])
@pytest.mark.parametrize("kind", ["colour", "shape"])
def test_attribute_questions_have_the_right_answer(config, kind):
    source = WorldSource(config, "test", 150)
    answers = Counter()
    for i in range(150):
        sample = ask(source, i, kind)
        if sample is None:
            assert config is LOOSE
            continue
        ((phrase, thing),) = linked(source, i, sample)
        assert named(source.scene(i), phrase) == [thing]
        answers[sample.answers[0][0]] += 1
        assert sample.answers == (((COLOURS if kind == "colour" else SHAPES)[getattr(thing, kind)], 1.0),)
        assert sample.texts[0].startswith(f"what {kind} is the ")
    assert len(answers) == 8
    assert sum(answers.values()) > 100


def test_counts_are_right():
    source = WorldSource(LOOSE, "test", 150)
    for i in range(150):
        sample = ask(source, i, "count")
        noun = sample.texts[0].removeprefix("how many ").removesuffix("s are there?")
        assert sample.answers == ((str(len(named(source.scene(i), noun))), 1.0),)


@pytest.mark.parametrize("config", [DEMO, LOOSE])
def test_relation_questions_are_right_and_balanced(config):
    source = WorldSource(config, "test", 300)
    yes = 0
    for i in range(300):
        sample = ask(source, i, "relation")
        (_, a), (_, b) = linked(source, i, sample)
        relation = next(k for k, name in enumerate(RELATIONS) if f" {name} " in sample.texts[0])
        assert sample.answers[0][0] == ("yes" if related(a, b, relation) else "no")
        yes += sample.answers[0][0] == "yes"
    assert abs(yes - 150) < 4 * np.sqrt(75)


def test_chinese_questions_say_the_same_as_english():
    english, chinese = WorldSource(replace(CHINESE, languages=("en",)), "test", 60), WorldSource(CHINESE, "test", 60)
    for i in range(60):
        for kind in ("colour", "shape"):
            here, there = ask(english, i, kind), ask(chinese, i, kind)
            assert WORDS[kind][there.answers[0][0]] == here.answers[0][0]
            ((_, a),), ((phrase, b),) = linked(english, i, here), linked(chinese, i, there)
            assert a == b
            assert there.texts[0].startswith(phrase)
        assert ask(english, i, "count").answers == ask(chinese, i, "count").answers
        truth = {"yes": "是", "no": "不是"}
        assert truth[ask(english, i, "relation").answers[0][0]] == ask(chinese, i, "relation").answers[0][0]
        assert choose(english, i).answers == choose(chinese, i).answers
        assert compare(english, i, (i + 1) % 60).answers == compare(chinese, i, (i + 1) % 60).answers


@pytest.mark.parametrize("config", [DEMO, LOOSE])
def test_statements_about_two_pictures_are_right_and_balanced(config):
    source = WorldSource(config, "test", 400)
    true, kinds = 0, Counter()
    for i in range(400):
        other = (i + 7) % 400
        sample = compare(source, i, other)
        text = sample.texts[0]
        assert sample.pictures == (*source[i].pictures, *source[other].pictures)
        if text.startswith("there are more "):
            noun = text.removeprefix("there are more ").removesuffix("s in the left picture than in the right one")
            kind, rule = "more", lambda a, b: a > b
        elif text.endswith(" in both pictures"):
            noun = text.removeprefix("there is a ").removesuffix(" in both pictures")
            kind, rule = "both", lambda a, b: min(a, b) > 0
        else:
            noun = text.removeprefix("there is a ").removesuffix(" in the left picture only")
            kind, rule = "only", lambda a, b: a > 0 and b == 0
        counts = [len(named(source.scene(k), noun)) for k in (i, other)]
        assert sample.answers[0][0] == ("true" if rule(*counts) else "false")
        true += sample.answers[0][0] == "true"
        kinds[kind] += 1
    assert abs(true - 200) < 4 * np.sqrt(100)
    assert min(kinds[x] for x in ("more", "both", "only")) > 80


@pytest.mark.parametrize("config", [DEMO, LOOSE])
def test_referring_expressions_fit_one_object(config):
    source = WorldSource(config, "held_out", 200)
    lengths = Counter()
    for i in range(200):
        sample = refer(source, i)
        ((phrase, thing),) = linked(source, i, sample)
        assert phrase == sample.texts[0]
        words = phrase.removeprefix("the ")
        assert named(source.scene(i), words) == [thing]
        lengths[len(words.split())] += 1
    assert set(lengths) <= {1, 2, 3}


@pytest.mark.parametrize("split", ["test", "held_out"])
@pytest.mark.parametrize("config", [DEMO, LOOSE])
def test_four_choices_have_one_right_answer(config, split):
    source = WorldSource(config, split, 200)
    gold = Counter()
    for i in range(200):
        sample = choose(source, i)
        scene = source.scene(i)
        assert len(sample.texts) == 5
        assert len(set(sample.texts)) == 5
        ((_, anchor),) = linked(source, i, sample)
        relation = next(k for k, name in enumerate(RELATIONS) if sample.texts[0].startswith(f"what is {name} the "))
        right = [
            k
            for k, text in enumerate(sample.texts[1:])
            if any(related(x, anchor, relation) for x in named(scene, text))
        ]
        assert sample.answers == ((str(right[0]), 1.0),)
        assert len(right) == 1
        gold[right[0]] += 1
    assert all(abs(gold[k] - 50) < 4 * np.sqrt(37.5) for k in range(4))


def test_items_are_pure_functions_of_their_number():
    a, b = WorldSource(count=20, split="test"), WorldSource(count=20, split="test")
    b.image(3)
    for item in (lambda s, i: ask(s, i, "relation"), refer, choose, lambda s, i: compare(s, i, 5)):
        assert [item(a, i).texts for i in range(9)] == [item(b, i).texts for i in reversed(range(9))][::-1]
    keys = [f(a, 4).key for f in (lambda s, i: ask(s, i, "colour"), lambda s, i: ask(s, i, "shape"), refer, choose)]
    assert len(set(keys)) == 4
    assert all(x.startswith(a.key(4)) for x in keys)
