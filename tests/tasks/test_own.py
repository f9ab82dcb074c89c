"""VisualBERT on a task's own texts, between captions and the task, from the benchmark's files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intarsia.batch import Sample
from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.model import read_recipe
from intarsia.systems import find
from intarsia.tasks.own import own_text


@pytest.mark.parametrize(
    ("task", "goals", "split"),
    [("vqa", {"mlm"}, "val"), ("nlvr2", {"mlm", "itm"}, "dev"), ("vcr", {"mlm", "itm"}, "val")],
)
def test_a_run_goes_on_on_a_tasks_own_texts(task: str, goals: set[str], split: str, tmp_path: Path) -> None:
    data, run = str(tmp_path / "twin"), tmp_path / "run"
    main(["twin", task, "--out", data, "--train", "8", "--val", "4", "--level", "0"])
    few = ["--schedule.steps", "2", "--schedule.warmup", "1", "--workers", "0", "--device", "cpu"]
    small = [x for k in ("hidden-size", "intermediate-size") for x in (f"--config.{k}", "16")]
    small += ["--config.num-hidden-layers", "1", "--config.num-attention-heads", "2"]
    start = ["pretrain", "visualbert", "--data", data, "--benchmark", task, "--regions", f"{data}/regions"]
    main([*start, "--size", "tiny", "--out", str(tmp_path / "first"), *few, *small])
    own = [
        "pretrain",
        "visualbert",
        "--size",
        f"own_{task}",
        "--weights",
        str(tmp_path / "first/model.safetensors"),
        "--benchmark",
        task,
    ]
    own += ["--vocab", str(tmp_path / "first/vocab.txt"), "--data", data, "--out", str(run), "--valid-split", split]
    with pytest.raises(SystemExit) as caught:
        main([*own, *few])
    assert caught.value.code == 2
    assert not run.exists()
    main([*own, "--regions", f"{data}/regions", *few])
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert {x for line in lines for x in line.get("loss", {})} == goals
    config = read_recipe(find("visualbert"), "visualbert", run).config
    assert (config.own, config.hidden_size) == (task, 16)


def test_answers_are_drawn_by_their_scores_into_one_text() -> None:
    asked = Sample("q", ("is it w1 ?",), answers=(("yes", 0.9), ("no", 0.3)))
    said = Counter(own_text("vqa", asked, np.random.default_rng(i))[0].texts for i in range(400))
    assert set(said) == {("is it w1 ? yes",), ("is it w1 ? no",)}
    assert abs(said["is it w1 ? yes",] - 300) < 5 * (400 * 0.75 * 0.25) ** 0.5
    with pytest.raises(BadInput, match="sample q: has no answer"):
        own_text("vqa", replace(asked, answers=()), np.random.default_rng(0))


def test_a_choice_is_true_if_it_is_the_right_one_and_a_sentence_if_it_says_true() -> None:
    asked = Sample("q", ("why", "a0", "a1", "a2", "a3"), answers=(("2", 1.0),))
    drawn = [own_text("vcr", asked, np.random.default_rng(i))[2:] for i in range(400)]
    assert all(true == (form == 2) for form, true in drawn)
    assert all(abs(sum(x == i for x, _ in drawn) - 100) < 5 * 75**0.5 for i in range(4))
    for word, true in (("True", 1), ("False", 0)):
        pair = Sample("n", ("both",), answers=((word, 1.0),))
        assert own_text("nlvr2", pair, np.random.default_rng(0))[1:] == ("nlvr2", 0, true)


def test_the_recipes_are_the_papers() -> None:
    recipes = find("visualbert").recipes
    assert [recipes[f"own_{x}"].optim.lr for x in ("vqa", "nlvr2", "vcr", "flickr")] == [5e-5] * 4
    assert recipes["own_vqa"].mix.share == recipes["own_flickr"].mix.share == {"mlm": 1}
    assert recipes["own_nlvr2"].mix.share == recipes["own_vcr"].mix.share == {"mlm+itm": 1}
    assert recipes["own_vcr"].schedule.warmup == int(0.1879 * recipes["own_vcr"].schedule.steps)
    for task in ("nlvr2", "vcr", "flickr"):
        mine, captions = recipes[f"own_{task}"].config, recipes[f"base_{task}"].config
        for name in ("feature_size", "box_numbers", "max_regions", "trunk", "trunk_frozen"):
            assert getattr(mine, name) == getattr(captions, name)
    assert recipes["base_nlvr2"].config.max_regions == 144
