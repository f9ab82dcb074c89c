"""Recipes: JSON there and back, strictly; the schedule; goals as a function of seed and step."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch

from intarsia.recipe import Mix, Recipe, Schedule, from_json, to_json
from intarsia.systems import SYSTEMS, find


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_every_recipe_goes_to_json_and_back(name: str) -> None:
    cls = find(name)
    for recipe in cls.recipes.values():
        assert from_json(Recipe[cls.Config], to_json(recipe)) == recipe  # type: ignore[name-defined]
        assert {part for goal in recipe.mix.share for part in goal.split("+")} <= set(cls.card.objectives)
        assert set(recipe.mix.begin) <= set(recipe.mix.share)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 1}, "recipe: unknown key 'speed'"),
        ({"precision": "fp8"}, "recipe.precision: 'fp8' is not one of 'fp32', 'bf16'"),
        ({"seed": "1"}, "recipe.seed: '1' is not a int"),
        ({"schedule": {"steps": 1.5}}, "recipe.schedule.steps: 1.5 is not a int"),
        ({"optim": {"betas": [0.9]}}, "recipe.optim.betas: 1 values, expected 2"),
        ({"config": {"hidden_size": True}}, "recipe.config.hidden_size: True is not a int"),
        ({"mix": 3}, "recipe.mix: 3 is not an object"),
    ],
)
def test_wrong_recipes_are_named(change: dict[str, object], message: str) -> None:
    cls = find("uniter")
    tree = json.loads(to_json(cls.recipes["tiny"])) | change
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.")):
        from_json(Recipe[cls.Config], json.dumps(tree))  # type: ignore[name-defined]


def test_the_schedule_warms_up_decays_and_ends_at_its_floor() -> None:
    plan = Schedule(steps=110, warmup=10, floor=0.05)
    assert [plan.scale(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert plan.scale(60) == pytest.approx(0.5)
    assert plan.scale(109) == 0.05


def test_goals_come_at_their_share_and_repeat() -> None:
    mix = Mix(share={"a": 3, "b": 1, "c": 0}, begin={"b": 0.5})
    drawn = [mix.goal(7, step, 4000) for step in range(4000)]
    assert drawn == [mix.goal(7, step, 4000) for step in range(4000)]
    assert set(drawn[:2000]) == {"a"}
    late = Counter(drawn[2000:])
    assert abs(late["b"] - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5
    assert set(late) == {"a", "b"}
    assert drawn != [mix.goal(8, step, 4000) for step in range(4000)]


def test_a_step_without_a_goal_is_an_error() -> None:
    with pytest.raises(ValueError, match="no goal takes part at step 0 of 10"):
        Mix(share={"a": 1}, begin={"a": 0.5}).goal(0, 0, 10)


def test_schedules_that_fall_and_that_go_by_the_root() -> None:
    falls = Schedule(
        26_640, 940, shape="milestones", milestones=(3290 / 26_640, 4700 / 26_640, 7050 / 26_640), fall=0.2
    )
    told = {0: 1 / 940, 939: 1.0, 3289: 1.0, 3290: 0.2, 4699: 0.2, 4700: 0.04, 7050: 0.008, 26_639: 0.008}
    assert {step: falls.scale(step) for step in told} == pytest.approx(told)
    noam = Schedule(700_000, 10_000, shape="noam")
    told = {0: 1e-4, 4999: 0.5, 9999: 1.0, 39_999: 0.5, 699_999: (1 / 70) ** 0.5}
    assert {step: noam.scale(step) for step in told} == pytest.approx(told)


@pytest.mark.parametrize(
    ("size", "lr", "critical", "samples", "steps", "smoothing"),
    [("large", 1e-5, 5e-6, 8, 8_850, 0.0), ("large_plus", 1e-5, 8e-7, 6, 59_000, 0.1)],
)
def test_oscars_large_captioners_are_the_papers(
    size: str, lr: float, critical: float, samples: int, steps: int, smoothing: float
) -> None:
    cls = find("oscar")
    how = cls.captioning
    assert how is not None
    recipe, tuned = cls.recipes[how.recipes[size]], how.critical[size]
    assert (recipe.config.hidden_size, recipe.config.num_hidden_layers, recipe.optim.lr) == (1024, 24, lr)
    assert (recipe.config.label_smoothing, recipe.config.untied_words) == (smoothing, size == "large")
    assert (tuned.optim.lr, tuned.samples, tuned.schedule.steps) == (critical, samples, steps)


def test_vinvls_retrieval_reads_70_regions_at_its_own_rate() -> None:
    plain, more = (find("oscar").finetune[x] for x in ("retrieval", "retrieval_plus"))
    assert (plain.config.get("max_regions", 50), more.config["max_regions"]) == (50, 70)
    assert [plain.tunings[x].optim.lr for x in ("base_plus", "large_plus")] == [2e-5, 1e-5]
    assert [more.tunings[x].optim.lr for x in ("base_plus", "large_plus")] == [2e-5, 7.5e-6]


def test_lxmerts_paper_asks_questions_in_the_second_half_with_weight_2() -> None:
    recipes = find("lxmert").recipes
    mix, code, steps = recipes["paper"].mix, recipes["base"].mix, recipes["paper"].schedule.steps
    asked = ["qa" in mix.goal(0, step, steps).split("+") for step in range(0, steps, steps // 200)]
    assert asked == [step >= steps / 2 for step in range(0, steps, steps // 200)]
    assert all("qa" in code.goal(0, step, steps) for step in range(0, steps, steps // 20))
    assert [x.weigh({"mlm": 1.0, "qa": 1.0}) for x in (mix, code)] == [3.0, 2.0]


def test_lxmerts_two_losses_of_gqa_by_hand() -> None:
    tasks = find("lxmert").finetune
    logits, targets = torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    spread = math.log(sum(math.exp(x) for x in (2.0, -1.0, 0.0)))
    each = math.log(1 + math.exp(2)) + math.log(1 + math.exp(1)) + math.log(2)
    assert float(tasks["gqa_one"].task.criterion(logits, targets)) == pytest.approx(3 * (spread + 1))
    assert float(tasks["gqa"].task.criterion(logits, targets)) == pytest.approx(each)


@pytest.mark.parametrize(
    ("task", "base", "large", "samples", "epochs"),
    [
        ("vqa", 1e-4, 1e-4, 64, (15, 2510)),
        ("vcr", 2e-5, 1e-4, 16, (6, 6654)),
        ("vcr_qar", 2e-5, 1e-4, 16, (6, 6654)),
        ("re", 2e-5, 1e-4, 64, (30, 940)),
        ("retrieval", 1e-5, 2e-5, 8, None),
    ],
)
def test_ernie_vils_large_model_is_tuned_by_the_readme(
    task: str, base: float, large: float, samples: int, epochs: tuple[int, int] | None
) -> None:
    tunings = find("ernie_vil").finetune[task].tunings
    assert [tunings[x].optim.lr for x in ("base", "large")] == [base, large]
    assert tunings["large"].samples == samples
    how = tunings["large"].schedule
    assert how.steps == (tunings["base"].schedule.steps if epochs is None else epochs[0] * epochs[1])
    factors = tunings["large"].optim.lr_factors
    assert bool(factors) == (task != "retrieval")
    if factors:
        assert max(factors.values()) <= 1
        assert factors["system.encoder.layers.23."] == pytest.approx(0.9)
    falls = [x * how.steps for x in how.milestones]
    assert falls == pytest.approx([x * tunings["base"].schedule.steps for x in tunings["base"].schedule.milestones])
    drops = {"hidden_dropout_prob": 0.2, "v_hidden_dropout_prob": 0.2}
    assert tunings["large"].config == (drops if task == "re" else {})
    assert not tunings["base"].config
