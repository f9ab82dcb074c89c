"""What VideoBERT names in the gaps of a sentence, without training, as a benchmark."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.features.kmeans import CODEBOOK, WithWords, drawn, fit, write_codebook
from intarsia.recipe import to_json
from intarsia.systems.videobert import VideoBERT
from intarsia.tasks.benchmarks import find, named
from intarsia.train import Pace, pretrain
from intarsia.train.start import captions, fresh, with_words
from intarsia.worlds.film_features import ACTIONS, SHAPES, FilmWorld
from intarsia.worlds.twin_films import PROVENANCE
from intarsia.worlds.twins import write_twin


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("named")
    write_twin("youcook2-words", data, 3, 4)
    return data


def test_captions_tell_what_is_right(twin: Path) -> None:
    found = find("youcook2-words").read(twin, "val")
    assert found.labels == (*(f"verb {x}" for x in ACTIONS), *(f"object {x}" for x in SHAPES))
    assert all(not x.texts for x in found.items), "the captions would tell"
    told = {x.key: x.texts[0].split() for x in find("youcook2").read(twin, "val").items}
    for key, right in found.gold.items():
        _, _, _, shape, action, _ = told[key]
        assert right == {"verb": {action}, "object": {shape}}


def test_ranks_are_counted_by_list_and_ties_are_lost(twin: Path) -> None:
    found = find("youcook2-words").read(twin, "val")
    perfect, flat, none = {}, {}, {}
    for key, right in found.gold.items():
        said = [x.partition(" ")[2] in right[x.partition(" ")[0]] for x in found.labels]
        perfect[key], flat[key] = np.array(said, float), np.zeros(len(said))
        none[key] = np.where(said, -np.inf, 0.0)
    assert named.measure(found, perfect) == {f"{x} top-{k}": 1.0 for x in ("verb", "object") for k in (1, 5)}
    assert set(named.measure(found, flat).values()) == {0.0}
    assert set(named.measure(found, none).values()) == {0.0}
    assert named.chance(found) == pytest.approx(5 / len(ACTIONS))


def test_a_list_with_a_word_twice_is_refused(twin: Path, tmp_path: Path) -> None:
    (tmp_path / "verbs.txt").write_text("cut\nCut\n")
    with pytest.raises(BadInput, match=r"verbs.txt: 2 words, 1 different ones"):
        named.words(tmp_path, "verb")


def test_a_run_as_pre_training_left_it_is_scored(
    twin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films, run = FilmWorld(6, 3), tmp_path / "run"
    films.provenance = PROVENANCE
    book = fit(drawn(films, 200)[0], 3, 2, about=to_json(PROVENANCE))
    recipe = with_words(VideoBERT.recipes["tiny"], book)
    recipe = replace(recipe, schedule=replace(recipe.schedule, steps=1, warmup=0))
    source = WithWords(films, book)
    system, recipe = fresh(VideoBERT, recipe, captions(source, VideoBERT.specials), PROVENANCE)
    system.fill_words(book)
    write_codebook(run / CODEBOOK, book)
    pretrain(system, source, recipe, run, workers=0, device="cpu", pace=Pace(tensorboard=False), name="videobert")
    asked = ["score", str(run), "--benchmark", "youcook2-words", "--data", str(twin), "--regions", f"{twin}/regions"]
    main([*asked, "--out", str(tmp_path / "x.json")])
    told = json.loads((tmp_path / "x.json").read_text())
    assert set(told["numbers"]) == {"verb top-1", "verb top-5", "object top-1", "object top-5"}
    assert 0 <= told["blind"] <= 1
    assert told["items"] == len(find("youcook2-words").read(twin, "val").items)
    assert not told["left_out"]
    (twin / "verbs.txt").write_text("".join(f"{x}\n" for x in (*ACTIONS, "unheardof")))
    main([*asked, "--out", str(tmp_path / "y.json")])
    assert json.loads((tmp_path / "y.json").read_text())["left_out"] == {"labels of several pieces, never right": 1}
    with pytest.raises(SystemExit):
        main(["score", str(run), "--benchmark", "youcook2-captions", *asked[4:]])
    assert "a run of pre-training ranks pairs" in capsys.readouterr().err
