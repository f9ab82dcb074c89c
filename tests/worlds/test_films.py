import json

import numpy as np
import pytest

from intarsia.data.formats.films import FilmSource
from intarsia.data.subtitles import read_subtitles
from intarsia.data.video import frames
from intarsia.errors import BadInput
from intarsia.extract_video import extract_video
from intarsia.features.clips import open_clip_extractor
from intarsia.worlds.films import ACTIONS, FilmConfig, FilmWorld, frame, write_films
from intarsia.worlds.scene import HELD_OUT

pytest.importorskip("av")
CONFIG = FilmConfig(side=64, actions=(3, 4), fps=25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("films")
    write_films(FilmWorld(CONFIG, "train", 2, seed=3), root)
    write_films(FilmWorld(CONFIG, "test", 1, seed=3), root)
    return root


def test_the_written_files_hold_the_frames_sentences_and_times(folder):
    world = FilmWorld(CONFIG, "train", 2, seed=3)
    for number in range(2):
        scene, path = world.scene(number), folder / "train" / f"{world.key(number)}.mp4"
        read = list(frames(path))
        drawn = list(world.pictures(number))
        assert len(read) == len(drawn) == round(scene.seconds * 25)
        for i in range(0, len(read), 17):
            assert float(read[i][0]) == pytest.approx(i / 25, abs=1e-6)
            difference = read[i][2].to_ndarray(format="rgb24").astype(int) - drawn[i]
            assert np.abs(difference).mean() < 6
        for language in ("en", "zh"):
            said = read_subtitles(folder / "train" / f"{world.key(number)}.{language}.srt")
            expected = scene.sentences(language)
            assert [x.text for x in said] == [x.text for x in expected]
            np.testing.assert_allclose([x[1:] for x in said], [x[1:] for x in expected], atol=6e-4)
    truth = [json.loads(x) for x in (folder / "train" / "actions.jsonl").read_text().splitlines()]
    assert [x["key"] for x in truth] == ["film-00000", "film-00001"]
    assert len(truth[0]["events"]) == len(world.scene(0).events)


def test_the_road_back_gives_passages_whose_clips_are_those_of_the_sentences(folder, tmp_path):
    report = extract_video(folder, tmp_path, open_clip_extractor("grid", device="cpu"), show=False)
    assert report.films == 3 and report.without_speech == 0 and not report.skipped
    source, world = FilmSource(tmp_path, "train"), FilmWorld(CONFIG, "train", 2, seed=3)
    assert len(source) == 4 and len(FilmSource(tmp_path, "test")) == 2
    sample = source[1]
    scene = world.scene(0)
    assert (sample.language, sample.film.name) == ("zh", "train/film-00000.mp4")
    assert sample.texts == tuple(x.text for x in scene.sentences("zh"))
    np.testing.assert_allclose(sample.film.spans, [x[1:] for x in scene.sentences("zh")], atol=1e-3)
    assert sample.film.length == 1.5
    first = int(sample.film.seconds[0] / 1.5)
    extractor = open_clip_extractor("grid", device="cpu")
    ticks = [(first * 30 + x) / 20 for x in extractor.sampling.ticks]
    shown = [frame(scene, np.floor(t * 25 + 0.6) / 25, 64) for t in ticks]  # of 25 a second the nearest to the tick
    direct = extractor(np.stack([extractor.shrink(x) for x in shown])[None])[0]
    alike = [np.corrcoef(direct, x.astype(np.float32))[0, 1] for x in sample.film.features]
    assert alike[0] > 0.99 and int(np.argmax(alike)) == 0


def test_what_is_said_happens():
    world = FilmWorld(FilmConfig(actions=(9, 12)), count=40)
    seen = set()
    for number in range(40):
        scene = world.scene(number)
        assert HELD_OUT.isdisjoint(scene.looks)
        assert scene == world.scene(number)
        for event in scene.events:
            before, after = scene.at(event.start)[event.thing], scene.at(event.end)[event.thing]
            seen.add(event.action)
            assert {
                "left": after.x < before.x - 0.3,
                "right": after.x > before.x + 0.3,
                "up": after.y < before.y - 0.3,
                "down": after.y > before.y + 0.3,
                "grow": after.size > 1.5 * before.size,
                "shrink": 0 < after.size < 0.6 * before.size,
                "spin": after.turn > before.turn + 6,
                "appear": before.size < 1e-9 < 0.2 < after.size,
                "vanish": after.size < 1e-9 < before.size,
            }[event.action]
            assert event.start <= event.said[0] < event.said[1] <= scene.seconds
            still = [i for i in range(len(scene.looks)) if i != event.thing]
            assert [scene.at(event.start)[i] for i in still] == [scene.at(event.end)[i] for i in still]
    assert seen == set(ACTIONS)


def test_held_out_pairs_and_splits_differ():
    rng = np.random.default_rng(0)
    from intarsia.worlds.films import draw_film

    pairs = {x for _ in range(60) for x in draw_film(rng, FilmConfig(), held_out=True).looks}
    assert pairs & HELD_OUT
    assert FilmWorld(split="test").scene(0) != FilmWorld().scene(0) != FilmWorld(seed=1).scene(0)


def test_bad_worlds_are_named():
    with pytest.raises(BadInput, match="films of 65 pixels"):
        FilmConfig(side=65)
    with pytest.raises(BadInput, match="told in fr"):
        FilmConfig(languages=("fr",))
    with pytest.raises(BadInput, match="split 'held_out'"):
        FilmWorld(split="held_out")
