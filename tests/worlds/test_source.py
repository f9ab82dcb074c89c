import hashlib
import json
import pickle
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.batch import Picture
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.features.pixels import pixel_features
from intarsia.worlds import CLASSES, WorldConfig, WorldSource, candidate_sets, holds, parse, write_folder

DEMO = WorldConfig()
RICH = WorldConfig(
    distinct=False, objects=(3, 5), mentions=3, textures=True, synonyms=True, languages=("en", "zh"), noise=0.5, side=64
)
SLOTS = WorldConfig(level=0, objects=(3, 5))
CONFIGS = [DEMO, RICH, SLOTS]


def digest(sample):
    total = hashlib.sha256(repr(replace(sample, pictures=())).encode())
    for picture in sample.pictures:
        for field in fields(Picture):
            value = getattr(picture, field.name)
            if field.name == "pixels":
                value = value and value()
            total.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return total.hexdigest()


@pytest.mark.parametrize("config", CONFIGS)
def test_order_copies_and_pickling_do_not_matter(config):
    ahead, back = WorldSource(config, count=30, seed=5), WorldSource(config, count=30, seed=5)
    forwards = [digest(ahead[i]) for i in range(30)]
    backwards = [digest(back[i]) for i in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert [digest(pickle.loads(pickle.dumps(ahead))[i]) for i in (7, 3)] == [forwards[7], forwards[3]]
    assert len(pickle.dumps(ahead)) < 3000  # what it keeps in memory does not travel
    assert len(set(forwards)) == 30


def test_another_process_draws_the_same_bits():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tests_source import *;"
        "print(*[digest(WorldSource(c, 'test', 9, 2)[i]) for c in CONFIGS for i in (8, 1, 4)])"
    )
    code = code.replace("from tests_source import *", f"exec(open({__file__!r}).read())")
    run = subprocess.run([sys.executable, "-c", code, "."], capture_output=True, text=True, check=True)
    here = [digest(WorldSource(c, "test", 9, 2)[i]) for c in CONFIGS for i in (8, 1, 4)]
    assert run.stdout.split() == here


def test_splits_seeds_and_scenes_differ_but_counts_do_not_matter():
    drawn = [
        WorldSource(split=s, seed=k, count=5)[0] for s in ("train", "validation", "test", "held_out") for k in (0, 1)
    ]
    assert len({x.pictures[0].features.tobytes() for x in drawn}) == len(drawn)
    assert digest(WorldSource(count=5)[3]) == digest(WorldSource(count=500)[3])


@pytest.mark.parametrize("config", [DEMO, SLOTS, replace(RICH, noise=0.0)])
def test_samples_are_well_formed(config):
    source = WorldSource(config, count=120)
    assert isinstance(source.provenance, Provenance)
    for i in range(len(source)):
        sample, scene = source[i], source.scene(i)
        picture = sample.pictures[0]
        rows = 12 if config.level == 0 else len(scene.objects) + 2
        assert picture.features.shape == (rows, source.provenance.width)
        assert picture.boxes.shape == (rows, 4)
        assert picture.boxes.min() >= 0
        assert picture.boxes.max() <= 1
        assert (picture.boxes[:, 2:] > picture.boxes[:, :2]).all()
        assert picture.probs.shape == (rows, len(CLASSES))
        np.testing.assert_allclose(picture.probs.sum(1), 1, rtol=1e-5)
        assert np.bincount(picture.labels, minlength=9)[0] == rows - len(scene.objects)
        assert len(sample.texts) == 1
        assert len(sample.tags) == len(scene.objects)
        assert parse(sample.texts[0], sample.language) == source.caption(i)
        assert not any(holds(parse(x, sample.language), scene) for x in sample.false_texts)
        assert not picture.features.flags.writeable


@pytest.mark.parametrize("config", [DEMO, SLOTS, replace(RICH, noise=0.0)])
def test_links_join_phrases_to_the_objects_they_describe(config):
    source = WorldSource(config, "test", 200)
    for i in range(len(source)):
        sample, scene, caption = source[i], source.scene(i), source.caption(i)
        regions = source.regions_of(i)
        assert len({x.region for x in sample.links}) == len(sample.links) == config.mentions
        assert sorted(regions) == sorted(np.flatnonzero(sample.pictures[0].labels).tolist())
        for link, phrase, span in zip(sample.links, caption.phrases, source.written(i).spans, strict=True):
            assert (link.start, link.end) == span
            thing = scene.objects[regions.index(link.region)]
            assert phrase.fits(thing)
            np.testing.assert_allclose(sample.pictures[0].boxes[link.region], thing.box, atol=0.0101)
            assert (
                parse("一个" + sample.texts[0][link.start : link.end], "zh").phrases == (phrase,)
                if (sample.language == "zh")
                else parse("a " + sample.texts[0][link.start : link.end], "en").phrases == (phrase,)
            )


def test_regions_are_shuffled():
    source = WorldSource(count=200)
    assert len({source.regions_of(i)[0] for i in range(200)}) == 6


def test_words_to_test_are_determined_by_the_picture():
    loose = WorldSource(replace(RICH, noise=0.0, languages=("en",), synonyms=False), "test", 300)
    kept = dropped = 0
    for i in range(len(loose)):
        sample, scene = loose[i], loose.scene(i)
        chosen = loose.words_to_test(i)
        for word in loose.written(i).words:
            if word.kind not in ("colour", "shape"):
                continue
            others = range(8)
            texts = [
                sample.texts[0][: word.start] + CHOICES[word.kind][v] + sample.texts[0][word.end :]
                for v in others
                if v != word.value
            ]
            free = not any(holds(parse(x, "en"), scene) for x in texts)
            assert (word in chosen) == free
            kept, dropped = kept + free, dropped + (not free)
    assert kept > 500
    assert dropped > 50
    demo = WorldSource(split="test", count=100)
    assert all(len(demo.words_to_test(i)) == 4 for i in range(100))


CHOICES = {
    "colour": ("red", "brown", "yellow", "green", "cyan", "blue", "purple", "pink"),
    "shape": ("circle", "square", "triangle", "star", "cross", "heart", "diamond", "ring"),
}


def test_noise_exchanges_the_asked_share_of_captions():
    share, count = 0.3, 4000
    source = WorldSource(WorldConfig(noise=share), count=count)
    moved = [i for i in range(count) if source.origin(i) != i]
    assert abs(len(moved) - share * count) < 4 * np.sqrt(count * share * (1 - share))
    for i in moved[:50]:
        assert source[i].links == ()
        assert source.words_to_test(i) == ()
        assert parse(source[i].texts[0], "en") == WorldSource(count=count).caption(source.origin(i))
        assert not any(holds(parse(x, "en"), source.scene(i)) for x in source[i].false_texts)
    clean, noisy = WorldSource(count=count), [i for i in range(50) if i not in set(moved)]
    assert all(digest(source[i]) == digest(clean[i]) for i in noisy)
    test = WorldSource(WorldConfig(noise=1.0), "test", 50)
    assert all(test.origin(i) == i for i in range(50))
    assert all(WorldSource(WorldConfig(noise=1.0), count=50).origin(i) != i for i in range(50))


@given(st.integers(0, 49), st.integers(0, 2**20))
@settings(max_examples=25)
def test_samples_show_their_picture(index, seed):
    source = WorldSource(seed=seed, count=50)
    picture, image = source[index].pictures[0], source.image(index)
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(pixel_features(image, picture.boxes), picture.features)


def test_features_tell_colour_and_shape():
    train, test = WorldSource(count=600), WorldSource(split="test", count=150)

    def rows(source):
        found = [
            (source[i].pictures[0].features[r], x.colour, x.shape)
            for i in range(len(source))
            for x, r in zip(source.scene(i).objects, source.regions_of(i), strict=True)
        ]
        return [np.array(x) for x in zip(*found, strict=True)]

    x, colours, shapes = rows(train)
    y, asked_colours, asked_shapes = rows(test)
    nearest = np.argmin(
        np.square(x).sum(1) - 2 * y @ x.T, axis=1
    )  # a linear map would not do: brown lies between other colours
    assert (colours[nearest] == asked_colours).mean() > 0.97
    assert (shapes[nearest] == asked_shapes).mean() > 0.97


@pytest.mark.parametrize(("split", "size", "sets"), [("test", 100, 3), ("held_out", 20, 3)])
def test_candidates_have_one_true_caption_each(split, size, sets):
    source = WorldSource(split=split, count=1500)
    chosen = candidate_sets(source, size, sets)
    assert [len(x) for x in chosen] == [size] * sets
    assert len(set().union(*chosen)) == size * sets
    for some in chosen:
        for i in some:
            assert [j for j in some if holds(source.caption(i), source.scene(j))] == [i]


def test_too_few_candidates_are_told():
    with pytest.raises(BadInput, match=r"of 60 held_out scenes fit set 1 of 1, 50 needed"):
        candidate_sets(WorldSource(split="held_out", count=60), 50)


def test_folder_holds_the_same_pictures_and_words(tmp_path):
    from PIL import Image

    source = WorldSource(replace(RICH, noise=0.0), "held_out", 12)
    path = write_folder(source, tmp_path / "made", 6)
    lines = [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 12
    assert len({x["key"] for x in lines}) == 12
    assert sorted(p.name for p in path.parent.rglob("*.*")) == sorted(
        ["pairs.jsonl", *(f"held_out-0-{i:06d}.png" for i in range(6))]
    )
    for number, line in enumerate(lines):
        index, language = divmod(number, 2)
        image = np.asarray(Image.open(path.parent / line["image"]))
        np.testing.assert_array_equal(image, source.image(index))
        picture = source[index].pictures[0]
        boxes = np.array(line["boxes"]) / 64
        np.testing.assert_allclose(pixel_features(image, boxes), picture.features, atol=2e-3)
        assert line["labels"] == [CLASSES[i] for i in picture.labels]
        assert line["split"] == "test"
        said = line["captions"][0]
        assert said["language"] == ("en", "zh")[language]
        caption = parse(said["text"], said["language"])
        assert caption == source.caption(index)
        for (_, start, end, box), phrase in zip(line["links"], caption.phrases, strict=True):
            assert parse(("a ", "一个")[language] + said["text"][start:end], said["language"]).phrases == (phrase,)
            assert line["labels"][box] == CLASSES[1 + phrase.shape]
        assert line["false_captions"]
        assert not any(holds(parse(x, said["language"]), source.scene(index)) for x in line["false_captions"])


def test_folders_that_cannot_be_written_are_told(tmp_path):
    with pytest.raises(BadInput, match="cannot write 9 of 3 scenes"):
        write_folder(WorldSource(count=3), tmp_path, 9)
    with pytest.raises(BadInput, match="level 0"):
        write_folder(WorldSource(SLOTS, count=3), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file"):
        write_folder(WorldSource(count=3), tmp_path / "file")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(("density", "extra"), [(2 / 3, 2), (1 / 3, 8)])
def test_words_that_no_picture_shows_follow_the_phrases(language: str, density: float, extra: int) -> None:
    config = WorldConfig(level=0, objects=(3, 5), languages=(language,))
    plain, source = (WorldSource(replace(config, density=x), count=30) for x in (1.0, density))
    for i in range(30):
        caption = source.caption(i)
        assert caption == plain.caption(i) and source[i].links == plain[i].links
        sizes = sum(x.size is not None for x in caption.phrases)
        assert len(caption.unseen) == (extra if not sizes else round((4 + sizes) * (1 / density - 1)))
        text = source[i].texts[0]
        assert text.startswith(plain[i].texts[0]) and len(text) > len(plain[i].texts[0])
        back = parse(text, language)
        assert back == caption and back.unseen == caption.unseen
        tail = text[len(plain[i].texts[0]) :]
        assert source[i].false_texts and all(x.endswith(tail) for x in source[i].false_texts)
    with pytest.raises(BadInput, match="density"):
        WorldConfig(density=0.0)
