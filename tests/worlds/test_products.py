"""Products: the same bits everywhere, descriptions that are true and say what they say, negatives that are false, the protocol's candidates, and what is measured."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.batch import Sample
from intarsia.data.opening import open_source
from intarsia.errors import BadInput
from intarsia.evaluate.products import product_matching
from intarsia.evaluate.running import Inference
from intarsia.features.extractor import open_extractor
from intarsia.pack import pack
from intarsia.studies import products as study
from intarsia.system import fit_config
from intarsia.systems import find
from intarsia.tasks.metrics.choices import macro_f1
from intarsia.text import Vocab
from intarsia.worlds.product_pictures import draw_product_picture
from intarsia.worlds.product_source import ProductSource
from intarsia.worlds.products import (
    CATEGORIES,
    COLOURS,
    KINDS,
    MATERIALS,
    Description,
    Product,
    class_names,
    describe,
    draw_product,
    false_of,
    name_of,
    write_description,
)

QUIET = Inference(progress=False)
WORDS = {
    "colour": ("red", "brown", "yellow", "green", "cyan", "blue", "purple", "pink"),
    "pattern": ("", "stripes", "dots", "checks"),
    "material": ("cotton", "leather", "knit", "denim"),
    "detail": ("", "pocket", "buttons", "badge"),
}


def digest(sample: Sample) -> str:
    picture = sample.pictures[0]
    words = repr((sample.key, sample.texts, sample.also, sample.false_texts, picture.tags, picture.name))
    return hashlib.sha256(words.encode() + picture.features.tobytes() + picture.pixels().tobytes()).hexdigest()


def test_order_copies_processes_and_counts_do_not_matter() -> None:
    one, other = ProductSource(count=9, seed=3, side=48), ProductSource(count=20, seed=3, side=48)
    forwards = [digest(one[i]) for i in range(9)]
    assert forwards == [digest(other[i]) for i in reversed(range(9))][::-1]
    assert len(set(forwards)) == 9
    copy = pickle.dumps(one)
    assert len(copy) < 4000
    assert digest(pickle.loads(copy)[4]) == forwards[4]
    code = (
        "from intarsia.worlds.product_source import ProductSource;"
        "x = ProductSource(count=9, seed=3, side=48)[7].pictures[0];"
        "import hashlib; print(hashlib.sha256(x.features.tobytes() + x.pixels().tobytes()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    picture = one[7].pictures[0]
    here = hashlib.sha256(picture.features.tobytes() + picture.pixels().tobytes()).hexdigest()
    assert run.stdout.split() == [here]
    others = [ProductSource("test", 9, 3, side=48), ProductSource(count=9, seed=4, side=48)]
    assert all(x.product(i) != one.product(i) for x in others for i in range(3))


def read(text: str) -> dict[str, list[int]]:
    """The attribute values that an English description names, word by word, in order."""
    found: dict[str, list[int]] = {name: [] for name in WORDS}
    for word in text.replace(",", "").split():
        for name, values in WORDS.items():
            if word in values:
                found[name].append(values.index(word))
    return found


def test_descriptions_say_what_they_hold_and_what_can_be_seen() -> None:
    said = Counter()
    for i in range(400):
        rng = np.random.default_rng(i)
        product = draw_product(rng)
        description = describe(rng, product)
        assert description.holds(product)
        text = write_description(description, "en")
        named = read(text)
        kind = class_names("sub_category")[product.kind]
        assert kind in text
        assert named["material"] == ([] if description.material is None else [product.material])
        assert named["detail"] == ([] if description.detail is None else [product.detail])
        assert named["pattern"] == ([] if product.pattern == 0 else [product.pattern])
        assert sorted(named["colour"]) == sorted({product.colour, product.accent})
        said.update(name for name in ("material", "detail") if named[name])
        bare = write_description(replace(description, kind=None), "en")
        assert "item" in bare and kind not in bare
        chinese = write_description(description, "zh")
        assert class_names("sub_category", "zh")[product.kind] in chinese
        assert "单品" in write_description(replace(description, kind=None), "zh")
    assert 280 < said["material"] < 360
    with pytest.raises(BadInput, match="language 'fr'"):
        write_description(description, "fr")


def test_attributes_are_all_drawn_and_kinds_lie_in_their_categories() -> None:
    drawn = [draw_product(np.random.default_rng(i)) for i in range(1500)]
    for name, count in (
        ("kind", len(KINDS)),
        ("colour", COLOURS),
        ("material", MATERIALS),
        ("pattern", 4),
        ("detail", 4),
    ):
        assert {getattr(x, name) for x in drawn} == set(range(count))
    assert all((x.accent == x.colour) == (x.pattern == 0) for x in drawn)
    for product in drawn[:60]:
        kind, category = name_of(product, "en")
        assert kind in CATEGORIES[category]
    assert [
        len(class_names(level, language)) for level in ("category", "sub_category") for language in ("en", "zh")
    ] == [6, 6, 16, 16]


def test_false_descriptions_differ_in_one_thing_and_are_false() -> None:
    names = ("kind", "colour", "pattern", "accent", "material", "detail")
    for i in range(150):
        rng = np.random.default_rng(i)
        product = draw_product(rng)
        said = describe(rng, product)
        found = false_of(rng, said, product, 5)
        assert len(found) == len(set(found)) == 5
        for x in found:
            assert not x.holds(product)
            assert sum(getattr(x, name) != getattr(said, name) for name in names) == 1
            assert x.kind == said.kind
            assert x.accent is None or x.accent != x.colour
    source = ProductSource(count=3, side=48)
    assert len(set(source[0].false_texts)) == 5 and source[0].texts[0] not in source[0].false_texts


def test_every_attribute_shows_in_the_picture() -> None:
    plain = Product(kind=1, colour=0, pattern=0, accent=0, material=0, detail=0)
    changes: tuple[dict[str, int], ...] = (
        {"kind": 2},
        {"colour": 1, "accent": 1},
        {"pattern": 1, "accent": 5},
        {"pattern": 2, "accent": 5},
        {"pattern": 3, "accent": 5},
        {"material": 1},
        {"material": 2},
        {"material": 3},
        {"detail": 1},
        {"detail": 2},
        {"detail": 3},
    )
    shown = [
        draw_product_picture(np.random.default_rng(5), replace(plain, **x), 96).astype(int) for x in ({}, *changes)
    ]
    for i, a in enumerate(shown):
        for b in shown[:i]:
            assert (np.abs(a - b).max(-1) > 30).sum() > 40
    for kind in range(len(KINDS)):
        whole = draw_product_picture(np.random.default_rng(1), replace(plain, kind=kind), 64).astype(int)
        red = (whole[..., 0] - whole[..., 1] > 80).mean()
        assert 0.1 < red < 0.7, KINDS[kind]
        rim = np.concatenate([whole[0], whole[-1], whole[:, 0], whole[:, -1]])
        assert rim.min() > 190  # nothing is cut off


def test_cells_are_those_of_the_extractor() -> None:
    source = ProductSource(count=2, side=64, cells=4)
    patches = open_extractor("patches", cells=4)
    (found,) = patches([source.image(1)])
    picture = source[1].pictures[0]
    assert np.array_equal(found.features, picture.features) and np.array_equal(found.boxes, picture.boxes)
    assert patches.provenance == source.provenance
    assert not picture.features.flags.writeable


def test_candidates_share_the_sub_category_and_one_alone_is_right() -> None:
    source = ProductSource("test", 900, side=48)
    asked = source.candidates(20, 30, seed=1)
    assert asked == source.candidates(20, 30, seed=1) != source.candidates(20, 30, seed=2)
    assert len({query for query, _ in asked}) == 20
    firsts = []
    for query, others in asked:
        assert len(others) == len(set(others)) == 31
        firsts.append(others.index(query))
        for i in others:
            assert source.product(i).kind == source.product(query).kind
            assert source.said(query).holds(source.product(i)) == (i == query)
            assert source.said(i).holds(source.product(query)) == (i == query)
    assert len(set(firsts)) > 5
    with pytest.raises(BadInput, match="of 900, 0 have 400 others of their sub-category, 5 are to be asked"):
        source.candidates(5, 400)


def test_recognition_asks_without_naming_the_kind() -> None:
    for language in ("en", "zh"):
        source = ProductSource(count=40, side=48, language=language)
        for i in range(40):
            for level in ("category", "sub_category"):
                sample = source.recognition(i, level)
                assert sample.answers[0][0] in source[i].pictures[0].tags
                assert not any(name in sample.texts[0] for name in class_names("sub_category", language))
                assert not any(name in sample.texts[0] for name in class_names("category", language) if len(name) > 1)


def test_they_open_by_name() -> None:
    source = open_source("products-zh:12:5", "val")
    assert isinstance(source, ProductSource)
    assert (len(source), source.split, source.seed, source.language) == (12, "validation", 5, "zh")
    assert open_source("products:3")[0].language == "en"
    with pytest.raises(BadInput, match="split 'other' is not one of train, val, test"):
        open_source("products:3", "other")
    with pytest.raises(BadInput, match="expected .* products:COUNT"):
        open_source("product:3")
    with pytest.raises(BadInput, match="side 8"):
        ProductSource(side=8)
    with pytest.raises(IndexError):
        ProductSource(count=2)[2]


def fashionbert() -> Any:
    source = ProductSource("test", 120, side=48, cells=3)
    cls = find("fashionbert")
    vocab = Vocab.learn(source[i].texts[0] for i in range(len(source)))
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return source, cls(replace(fit_config(cls.recipes["tiny"].config, len(vocab), 192, 2), **small), vocab).eval()


def test_matching_is_the_protocol_pair_by_pair() -> None:
    source, system = fashionbert()
    samples = [source[i] for i in range(len(source))]
    asked = source.candidates(4, 3)
    found = product_matching(system, samples, asked, QUIET)
    for way, numbers in found.items():
        hits, right = 0, 0
        for query, others in asked:
            logits = []
            for i in others:
                text, picture = (i, query) if way == "image to text" else (query, i)
                pair = replace(samples[text], pictures=samples[picture].pictures)
                with torch.inference_mode():
                    logits.append(system.match_logits(system.encode(pack([system.lay_out(pair)])))[0])
                right += bool(logits[-1][1] > logits[-1][0]) == (i == query)
            hits += others[int(torch.stack(logits)[:, 1].argmax())] == query
        assert numbers["rank@1"] == pytest.approx(hits / 4, abs=1e-4)
        assert numbers["accuracy"] == pytest.approx(right / 16, abs=1e-4)
        assert numbers["rank@100"] == pytest.approx(1, abs=1e-4)


def test_broken_pairs_of_fashionbert_show_another_product_of_the_sub_category() -> None:
    source, system = fashionbert()
    drawn = np.random.default_rng(0)
    same = broken = 0
    for i in range(60):
        pool: list[Sample] = []

        def draw(pool: list[Sample] = pool) -> Sample:
            pool.append(source[int(drawn.integers(len(source)))])
            return pool[-1]

        example = system.hide(source[i], "tia", np.random.default_rng(i), draw)
        if not int(example.targets["tia"]):
            broken += 1
            same += pool[-1].pictures[0].tags[0] == source[i].pictures[0].tags[0]
    assert broken > 15 and same / broken > 0.25  # eight draws among 16 kinds: 40 %


def test_macro_f1_is_scikit_learns_written_out() -> None:
    scores = np.eye(4)[[0, 0, 1, 2, 2, 2]]
    labels = [0, 1, 1, 2, 2, 0]
    assert macro_f1(scores, labels) == pytest.approx((0.5 + 2 / 3 + 0.8) / 3)
    with pytest.raises(BadInput, match="2 rows of scores, 1 labels"):
        macro_f1(np.eye(2), [0])


def test_the_study_runs_and_measures(tmp_path: Path) -> None:
    options = study.Products(
        tmp_path, count=20, held=120, cells=3, steps=2, rows=200, queries=2, wrong=3, tune_steps=1, workers=0
    )
    found = study.run(options)
    assert set(found) == {"image to text", "text to image", "category", "sub_category"}
    assert 0 <= found["sub_category"]["macro F1"] <= found["sub_category"]["accuracy"] + 1e-9 <= 1
    assert (tmp_path / "result.json").is_file()


def test_a_description_of_nothing_but_a_colour_is_true_of_all_of_that_colour() -> None:
    said = Description(None, 3, None, None, None, None)
    assert said.holds(Product(0, 3, 1, 2, 3, 3)) and not said.holds(Product(0, 2, 0, 2, 3, 3))
