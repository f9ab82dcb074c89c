"""The granularity study: a run is made once, says everything, and the page is written from files alone."""

from __future__ import annotations

import copy
import dataclasses
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.errors import BadInput
from intarsia.pack import pack
from intarsia.studies import family, granularity, rates, tuning, volume
from intarsia.studies.granularity import ARMS, COMPARED, MEASURES, Blind, Run
from intarsia.studies.numbers import effective
from intarsia.studies.readouts import MAPS
from intarsia.studies.runs import gather
from intarsia.studies.tables import differences, seeds_of
from intarsia.studies.tying import auc, bag
from intarsia.systems.inlay import EVERY, Inlay
from intarsia.train.start import captions, fresh
from intarsia.worlds import WorldConfig, WorldSource

PAGES = Path(__file__).parents[2] / "docs/studies"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, granularity.perform(
        Run(pairs=40, steps=10, batch=8, seed=1), folder, folder / "work", scenes=24, fused=6
    )


def test_a_run_says_every_measure_and_is_made_once(made: tuple[Path, dict[str, Any]]) -> None:
    folder, found = made
    for name, value in (MEASURES | COMPARED).items():
        assert np.isfinite(value(found)), name
    assert found["test"]["pointing"]["chance"] == pytest.approx(1 / 12)
    file = next(folder.rglob("*.json"))
    assert not list((folder / "work").iterdir())
    file.write_text(json.dumps({**found, "parameters": 7}))
    again = granularity.perform(Run(pairs=40, steps=10, batch=8, seed=1), folder)
    assert again["parameters"] == 7


def copies(found: dict[str, Any], folder: Path) -> None:
    """Files of made-up runs: the token arm points better by .2, more pairs lower every error."""
    folder.mkdir()
    for arm in ("sentence", "token", "both"):
        for seed in (101, 102, 103, 104, 105):
            for n in (125, 250, 500, 1000, 2000):
                one = copy.deepcopy(found)
                one["run"] |= {"arm": arm, "seed": seed, "pairs": n, "steps": 400, "batch": 32}
                right = 1 - (0.5 + seed / 1e4) * (n / 125) ** -0.3 - (0.2 if arm == "sentence" else 0.0)
                one["test"]["pointing"] |= dict.fromkeys(MAPS, right)
                one["test"]["choices"]["swap"] = dict.fromkeys(
                    one["test"]["choices"]["swap"], 0.5 + seed / 1e4 if arm == "sentence" else 0.99 + (seed - 101) / 1e3
                )
                (folder / f"{arm}-{seed}-{n}.json").write_text(json.dumps(one))


def test_pages_are_written_from_files(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copies(made[1], tmp_path / "runs")
    for name in ("granularity.md", "volume.md"):
        (tmp_path / name).write_text((PAGES / name).read_text())
    common = ["--out", str(tmp_path / "runs"), "--no-make"]
    granularity.main([*common, "--page", str(tmp_path / "granularity.md")])
    volume.main([*common, "--sizes", "125", "250", "500", "1000", "2000", "--page", str(tmp_path / "volume.md")])
    page = (tmp_path / "granularity.md").read_text()
    row = next(x for x in page.splitlines() if x.startswith("| H1"))
    assert "0.200 ± 0.000" in row and row.endswith("| held |")
    assert next(x for x in page.splitlines() if x.startswith("| H3")).endswith("| held |")
    assert (tmp_path / "granularity-level0-region.svg").stat().st_size > 5000
    curves = (tmp_path / "volume.md").read_text()
    token = next(x for x in curves.splitlines() if x.startswith("| pointing | token"))
    assert "b 0.30" in token
    assert "not reached" in curves
    assert next(x for x in curves.splitlines() if x.startswith("| H1")).endswith("| held |")
    assert (tmp_path / "volume-fixed-steps.svg").stat().st_size > 5000
    shuffled = ["--noise", "0", "0.5", "--sizes", "125", "500"]
    volume.main([*common, *shuffled, "--page", str(tmp_path / "volume.md")])
    again = (tmp_path / "volume.md").read_text()
    assert again.startswith(curves[: curves.index("<!-- noise")])  # other sections stay
    noiseless = next(x for x in again.splitlines() if x.startswith("| 0 | 1 | 125 | token (5) |"))
    assert noiseless.split(" | ")[5] == "**0.200 ± 0.000**" and "| 0.5 |" not in again  # what it has over the sentence
    with pytest.raises(BadInput, match="no runs of these sizes"):
        volume.main([*common, "--sizes", "77"])
    with pytest.raises(BadInput, match="no section"):
        family.write_section(tmp_path / "volume.md", "nothing", "")


def told(arm: str, seed: int, pointing: float) -> dict[str, Any]:
    """The parts of a JSON file that comparisons of pointing read."""
    part = {
        "scenes": 4, "pointing": dict.fromkeys((*MAPS, "chance"), pointing),
        "choices": {"swap": {"token": pointing}, "replace": {"token": 0.0}, "fault": 0.0, "fault, chance": 0.0},
        "retrieval": {"token": {"t2i R@1": 0.0, "i2t R@1": 0.0}},
    }  # fmt: skip
    return {"run": {"arm": arm, "seed": seed}, "test": part, "held_out": part}


def test_repetition_is_fitted_from_runs_of_three_numbers_of_steps(tmp_path: Path) -> None:
    """Errors of pointing that follow the form with R = 4, b = .5; two numbers of steps are too few."""
    options = volume.Volume(out=tmp_path, arms=("token",), sizes=(100, 200, 400))
    for steps in (25, 100, 400):
        assert volume.repetitions(options) == ""
        for n in options.sizes:
            one = told("token", 1, 1 - 3 * float(effective(np.array([n]), np.array([steps * 32 / n]), 4.0)[0]) ** -0.5)
            run = Run("token", n, 1, steps)
            one["run"] = dataclasses.asdict(run)
            (tmp_path / run.file).parent.mkdir(exist_ok=True)
            (tmp_path / run.file).write_text(json.dumps(one))
    row = next(x for x in volume.repetitions(options).splitlines() if x.startswith("| pointing | token"))
    assert float(row.split("R ")[1].split(",")[0]) == pytest.approx(4, rel=0.2)
    assert "3 sizes, 3 levels of repetition" in row


def test_effects_of_the_factorial_by_hand() -> None:
    """y = .1 + .2 a + .04 b + .3 a c + noise of the seed."""
    results = {}
    for a, b, c in product((0, 1), repeat=3):
        arm = {0: "sentence", 3: "token"}.get(a + b + c, f"A{a} B{b} C{c}")
        results[arm] = {s: told(arm, s, 0.1 + 0.2 * a + 0.04 * b + 0.3 * a * c + s / 1000) for s in (1, 2)}
    cells, effect = (x for x in granularity.effects(results).splitlines() if x.startswith("| pointing"))
    found = [[float(x.strip(" *").split()[0]) for x in row.split("|")[2:-1]] for row in (cells, effect)]
    assert found[0] == pytest.approx([0.1015, 0.1015, 0.1415, 0.1415, 0.3015, 0.6015, 0.3415, 0.6415], abs=1e-3)
    assert found[1] == pytest.approx([0.35, 0.04, 0.15, 0, 0.15, 0, 0], abs=1e-6)
    assert granularity.effects({x: results[x] for x in ("sentence", "token")}) == ""


@pytest.mark.parametrize(
    ("contrast", "modelling", "wanted"), [(0.9, 0.3, "held"), (0.5, 0.3, "refuted"), (0.9, 0.5, "undecided")]
)
def test_h4_by_hand(contrast: float, modelling: float, wanted: str) -> None:
    """Pointing with half of the captions shuffled; .9 and .5 without, the sentence .2 in both."""

    def grid(a: float, b: float) -> volume.Grid:
        of = {"sentence": 0.2, volume.CONTRAST: a, volume.MODELLING: b}
        return {500: {arm: {s: told(arm, s, x + s / 1e5) for s in range(5)} for arm, x in of.items()}}

    row = volume.h4({(0.0, 1.0): grid(0.9, 0.5), (0.5, 1.0): grid(contrast, modelling)}).splitlines()[-1]
    assert row.endswith(f"| {wanted} |") and f"{volume.CONTRAST} {contrast - 0.9:.3f}" in row
    assert volume.h4({(0.0, 1.0): grid(0.9, 0.5)}) == ""


def test_noise_is_told_beside_what_there_is_without() -> None:
    def grid(token: float) -> volume.Grid:
        return {500: {x: {s: told(x, s, y) for s in range(2)} for x, y in (("sentence", 0.2), ("token", token))}}

    lines = volume.advantages({(0.5, 1.0): grid(0.6), (0.0, 1.0): grid(0.9)}, volume.Volume()).splitlines()
    assert [x.split(" | ")[:6] for x in lines[2:]] == [
        ["| 0", "1", "500", "sentence (2)", "0.200 ± 0.000", ""],
        ["| 0", "1", "500", "token (2)", "0.900 ± 0.000", "**0.700 ± 0.000**"],
        ["| 0.5", "1", "500", "sentence (2)", "0.200 ± 0.000", ""],
        ["| 0.5", "1", "500", "token (2)", "0.600 ± 0.000", "**0.400 ± 0.000**"],
    ]


def test_the_sentence_is_the_better_pooling_of_those_with_most_seeds() -> None:
    value = granularity.COMPARED["pointing, best"]
    results = {
        "sentence": {s: told("sentence", s, 0.2) for s in (1, 2)},
        "sentence, mean pooling": {s: told("sentence, mean pooling", s, 0.3) for s in (1, 2)},
        "token": {s: told("token", s, 0.9) for s in (1, 2)},
    }
    assert seeds_of(results, "sentence", value) == {1: 0.3, 2: 0.3}
    del results["sentence, mean pooling"][2]
    assert seeds_of(results, "sentence", value) == {1: 0.2, 2: 0.2}
    assert "token - sentence" in differences(results, granularity.COMPARED, granularity.PAIRS)


def test_alignments_that_confirm_themselves_are_noticed() -> None:
    def look(auc: float, tok: float, sent: float = 5.0) -> dict[str, float]:
        return {"link auc": auc, "b_tok": tok, "b_sent": sent}

    sane = [look(0.6, 5), look(0.7, 4), look(0.69, 3)]
    wrong = [look(0.7, 5), look(0.6, 4)]
    assert not granularity.self_confirming(sane, 1.0)
    assert granularity.self_confirming(wrong, 1.0)
    assert not granularity.self_confirming(wrong, 0.0)  # the loss that is trained did not fall
    assert not granularity.self_confirming([look(0.7, 4), look(0.6, 5)], 1.0)


def test_rates_are_chosen_by_trials_and_runs_of_other_rates_are_left_out(tmp_path: Path) -> None:
    for i, (lr, temperature) in enumerate(rates.TRIALS):
        for seed in rates.SEEDS:
            run = {"arm": "token", "seed": seed, "lr": lr, "temperature": temperature, **rates.TRIAL}
            ranked = {"token": {"t2i R@1": 0.1 * (i == 2), "i2t R@1": 0.1}}
            (tmp_path / f"{i}-{seed}.json").write_text(json.dumps({"run": run, "validation": {"retrieval": ranked}}))
    assert rates.settings(["token"], True, tmp_path) == {"token": {"lr": 4e-3, "temperature": 0.1}}
    assert rates.settings(["both"], False, tmp_path) == {"both": {"lr": 2e-3, "temperature": 0.1}}
    with pytest.raises(BadInput, match="not all trials of arm 'both'"):
        rates.settings(["blind"], True, tmp_path)
    assert "| token | 0.050 (2) | 0.050 (2) | 0.100 (2)" in tuning.table(["token"], tmp_path)
    old = {"arm": "both", "seed": 1}
    (tmp_path / "old.json").write_text(json.dumps({"run": old}))
    assert gather(tmp_path, {"both": {"lr": 2e-3}}, {"lr": 2e-3}) == {"both": {1: {"run": old}}}
    assert gather(tmp_path, {"both": {"lr": 1e-3}}, {"lr": 2e-3}) == {}


@pytest.mark.parametrize("changes", [{"unit": "image", "noise": 0.5}, {"level": 1, "arm": "blind", "density": 0.5}])
def test_other_units_levels_and_captions_run(changes: dict[str, Any], tmp_path: Path) -> None:
    run = Run(pairs=16, steps=5, batch=8, seed=1, **changes)
    found = granularity.perform(run, tmp_path, tmp_path / "work", scenes=6, fused=3, splits=("validation",))
    assert np.isfinite(found["validation"]["pointing"]["rollout"]) and len(found["watched"]) == 5
    curve = np.array([x["link auc"] for x in found["watched"]])
    if changes.get("arm") == "blind":  # what is left: scenes differ in how many regions they have
        assert np.abs(curve - 0.5).max() < 0.1, curve
    else:
        assert len(set(curve)) > 1


def test_arms_are_the_factorial_and_more() -> None:
    settings = {tuple(ARMS[x].get(g) for g in ("g_a", "g_b", "g_c")) for x in ARMS if x.startswith("A")}
    assert len(settings) == 6
    for changes in ARMS.values():
        Inlay.Config(**changes)
    with pytest.raises(BadInput, match="no arm"):
        granularity.perform(Run(arm="words"), Path("nowhere"))


def test_a_blind_run_sees_nothing() -> None:
    world = WorldSource(WorldConfig(level=0, objects=(3, 5)), count=6)
    system, _ = fresh(Blind, Inlay.recipes["tiny"], captions(world), world.provenance)  # type: ignore[arg-type]
    one, other = world[0], world[1]
    shown = system.hide(one, EVERY, np.random.default_rng(0), lambda: one)
    assert shown.regions is not None and shown.regions.masked.all()
    exchanged = system.lay_out(type(one)(one.key, one.texts, other.pictures))
    plain = system.lay_out(one)
    for a, b in ((plain, exchanged),):
        scores = [system.match_scores(system.eval().encode(pack([x]))) for x in (a, b)]  # type: ignore[attr-defined]
        torch.testing.assert_close(scores[0], scores[1], atol=1e-6, rtol=0)


def test_a_bag_keeps_features_and_links() -> None:
    sample = WorldSource(WorldConfig(level=0), count=1)[0]
    found = bag(sample)
    assert len(found.pictures) == len(sample.pictures[0].boxes)
    assert [(x.start, x.picture) for x in found.links] == [(x.start, x.region) for x in sample.links]


def test_auc_by_hand() -> None:
    assert auc(np.array([3.0, 1.0]), np.array([0.0, 1.0, 2.0])) == pytest.approx((3 + 1.5) / 6)
