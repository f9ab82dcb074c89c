"""The optimizer: groups, learning rates, clipping, and steps that are not taken."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toy import Pairs, recipe, toy

from intarsia.errors import BadInput
from intarsia.recipe import SGD, Optim, Schedule
from intarsia.system import FineTuned
from intarsia.systems import find
from intarsia.text import SPECIALS, Vocab
from intarsia.train import Pace, pretrain
from intarsia.train.optim import Optimizers, adamw, clip, groups, set_lr, step_if


def test_groups_spare_what_the_patterns_name() -> None:
    system = toy()
    names = {id(p): name for name, p in system.named_parameters()}
    plain, quick, spared = groups(
        system, Optim(no_decay=("bias", r"layers\.\d+\.norm")), {"match_head": 10.0, "match_head.bias": 1.0}
    )
    assert [names[id(p)] for p in plain["params"]] == [
        "words.weight",
        "regions.weight",
        "layers.0.up.weight",
        "layers.1.up.weight",
        "pooler.weight",
    ]
    assert [names[id(p)] for p in quick["params"]] == ["match_head.weight"]
    assert {names[id(p)] for p in spared["params"]} == {
        name for name in names.values() if "bias" in name or "norm" in name
    }
    assert [(x["weight_decay"], x["lr_factor"]) for x in (plain, quick, spared)] == [
        (0.01, 1.0),
        (0.01, 10.0),
        (0.0, 1.0),
    ]


def test_a_recipe_may_slow_parts_down() -> None:
    net = nn.ModuleDict({"words": nn.Linear(2, 2), "regions": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    recipe = Optim(lr_factors={"words.": 0.1, "words.bias": 0.2})
    found = {id(p): x["lr_factor"] for x in groups(net, recipe, {"head.": 4.0}) for p in x["params"]}
    told = {name: found[id(p)] for name, p in net.named_parameters()}
    assert told == {
        "words.weight": 0.1,
        "words.bias": 0.2,
        "regions.weight": 1.0,
        "regions.bias": 1.0,
        "head.weight": 4.0,
        "head.bias": 4.0,
    }


@pytest.mark.parametrize("size", ["base", "large"])
def test_every_slowed_part_of_ernie_vil_and_vilbert_is_there(size: str) -> None:
    ernie = find("ernie_vil")
    tuning = ernie.finetune["vqa"].tunings[size]
    with torch.device("meta"):
        whole = FineTuned(ernie(ernie.recipes[size].config, Vocab(SPECIALS)), ernie.finetune["vqa"])
        beta = find("vilbert")(find("vilbert").recipes["base_beta"].config, Vocab(SPECIALS))
    for module, factors in (
        (whole, tuning.optim.lr_factors),
        (beta, find("vilbert").recipes["base_beta"].optim.lr_factors),
    ):
        names = [name for name, _ in module.named_parameters()]
        assert factors and all(any(name.startswith(start) for name in names) for start in factors)
    assert ernie.finetune["vqa"].tunings[size].head_lr == 2.5
    assert bool(ernie.finetune["vcr"].tunings[size].optim.lr_factors) == (size == "large"), "by the README alone"


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        adamw(nn.Linear(2, 2).requires_grad_(False), Optim())


def test_the_learning_rate_warms_up_and_decays() -> None:
    system, schedule = toy(), Schedule(steps=10, warmup=4, floor=0.1)
    optimizer = adamw(system, Optim(lr=2.0), {"match_head": 0.5})
    rates = [set_lr(optimizer, Optim(lr=2.0), schedule, step) for step in range(11)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 5 / 3, 4 / 3, 1.0, 2 / 3, 1 / 3, 0.2])
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.1, 0.2])


def test_berts_own_schedule_begins_at_nothing_and_decays_from_the_start() -> None:
    schedule = Schedule(steps=10, warmup=3, shape="bert")
    assert [schedule.scale(step) for step in range(10)] == pytest.approx(
        [0, 1 / 3, 2 / 3, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    )


def test_the_product_schedule_warms_up_on_a_falling_line() -> None:
    schedule = Schedule(steps=10, warmup=3, shape="product")
    assert [schedule.scale(step) for step in range(10)] == pytest.approx(
        [0, 0.9 / 3, 0.8 * 2 / 3, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    )


def test_steps_with_corrected_decay_are_tensorflows_written_out() -> None:
    recipe = Optim(0.1, (0.8, 0.9), 1e-3, 0.2, no_decay=("bias",), max_norm=0.0, corrected_decay=True)
    schedule = Schedule(steps=10, warmup=0, shape="product")
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(1.0)
    optimizer = adamw(layer, recipe)
    m = v = 0.0
    w = b = 1.0
    for step in range(4):
        g = step + 1.0
        layer.weight.grad, layer.bias.grad = torch.full((1, 1), g), torch.full((1,), g)
        set_lr(optimizer, recipe, schedule, step)
        step_if(optimizer, torch.zeros(()))
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        rate = 0.1 * (1 - step / 10) * math.sqrt(1 - 0.9 ** (step + 1)) / (1 - 0.8 ** (step + 1))
        update = m / (math.sqrt(v) + 1e-3)
        w, b = w - rate * (update + 0.2 * w), b - rate * update
        assert (layer.weight.item(), layer.bias.item()) == pytest.approx((w, b), rel=1e-5)


def test_steps_are_those_of_adamw_written_out() -> None:
    recipe = Optim(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2, no_decay=("bias",), max_norm=0.0)
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(1.0)
    optimizer = adamw(layer, recipe)
    m = v = 0.0
    w = b = 1.0
    for step in (1, 2, 3):
        g = float(step)
        layer.weight.grad, layer.bias.grad = torch.full((1, 1), g), torch.full((1,), g)
        step_if(optimizer, torch.zeros(()))
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        update = 0.1 * (m / (1 - 0.8**step)) / (math.sqrt(v / (1 - 0.9**step)) + 1e-3)
        w, b = w * (1 - 0.1 * 0.2) - update, b - update
        assert (layer.weight.item(), layer.bias.item()) == pytest.approx((w, b), rel=1e-5)


def test_without_bias_correction_steps_are_those_of_bertadam_written_out() -> None:
    recipe = Optim(
        lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2, no_decay=("bias",), max_norm=0.0, bias_correction=False
    )
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(1.0)
    optimizer = adamw(layer, recipe)
    m = v = 0.0
    w = b = 1.0
    for step in range(4):
        g = 1.0 + step
        layer.weight.grad, layer.bias.grad = torch.full((1, 1), g), torch.full((1,), g)
        rate = set_lr(optimizer, recipe, Schedule(steps=10, warmup=2), step)
        step_if(optimizer, torch.zeros(()))
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        update = m / (math.sqrt(v) + 1e-3)
        w, b = w - rate * (update + 0.2 * w), b - rate * update
        assert (layer.weight.item(), layer.bias.item()) == pytest.approx((w, b), rel=1e-5)


def test_clipping_each_tensor_by_its_own_norm() -> None:
    a, b, c = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([-0.5])
    norm, divide = clip([a, b, c], 1.0, "each")
    assert norm.item() == pytest.approx(9.25**0.5)
    assert divide is None
    assert c.grad is None
    assert torch.stack([a.grad, b.grad]).flatten().tolist() == pytest.approx([1.0, -0.5], rel=1e-5)


def test_a_refused_step_changes_neither_weights_nor_state() -> None:
    layer = nn.Linear(2, 2)
    optimizer = adamw(layer, Optim())
    layer(torch.ones(1, 2)).sum().backward()
    step_if(optimizer, torch.zeros(()))
    before = [x.clone() for x in (*layer.parameters(), *(t for s in optimizer.state.values() for t in s.values()))]
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    step_if(optimizer, torch.ones(()))
    after = [*layer.parameters(), *(t for s in optimizer.state.values() for t in s.values())]
    assert len(after) == 8
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("max_norm", "left"), [(0.0, 5.0), (10.0, 5.0), (1.0, 1.0)])
def test_clipping(max_norm: float, left: float) -> None:
    a, b, c = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([-4.0])
    norm, divide = clip([a, b, c], max_norm)
    assert norm.item() == pytest.approx(5.0)
    assert c.grad is None
    assert 5.0 / (1.0 if divide is None else divide.item()) == pytest.approx(left, rel=1e-5)


def test_a_divided_step_is_the_step_of_divided_gradients() -> None:
    layers = [nn.Linear(3, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer, by, divide in ((layers[0], 1.0, torch.tensor(4.0)), (layers[1], 0.25, None)):
        optimizer = adamw(layer, Optim(lr=0.1, eps=1.0))
        for parameter in layer.parameters():
            parameter.grad = torch.linspace(-2, 3, parameter.numel()).view(parameter.shape) * by
        step_if(optimizer, torch.zeros(()), divide)
    for a, b in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_accumulation_sums_or_averages(tmp_path: Path) -> None:
    """Seen in the gradient norm, which AdamW hides; and in one big step of the same samples without dropout."""
    norms = {}
    for reduce in ("sum", "mean"):
        plan = recipe(1, dropout=0.0, accumulate=3, reduce=reduce)
        plan = dataclasses.replace(plan, optim=dataclasses.replace(plan.optim, max_norm=0.0))
        pretrain(
            toy(dropout=0.0), Pairs(), plan, tmp_path / reduce, workers=0, device="cpu", pace=Pace(tensorboard=False)
        )
        moments = load_file(tmp_path / reduce / "checkpoints/step-00000001/optimizer.safetensors")
        norms[reduce] = torch.stack([x.norm() for name, x in moments.items() if name.endswith("exp_avg")]).norm().item()
    assert norms["sum"] == pytest.approx(3 * norms["mean"], rel=1e-5)


def test_rates_fall_to_a_tenth_at_milestones() -> None:
    schedule = Schedule(steps=10, warmup=2, shape="milestones", milestones=(0.5, 0.8))
    assert [schedule.scale(step) for step in range(11)] == pytest.approx(
        [0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]
    )
    paper = Schedule(steps=40, warmup=0, shape="milestones", milestones=(25 / 40, 35 / 40))
    assert [paper.scale(step) for step in (0, 24, 25, 34, 35)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def two(no_decay: tuple[str, ...] = ()) -> tuple[nn.Module, Optimizers]:
    module = nn.ModuleDict({"backbone": nn.Linear(1, 1), "rest": nn.Linear(1, 1)})
    for parameter in module.parameters():
        nn.init.ones_(parameter)
    plan = dataclasses.replace(
        recipe(),
        optim=Optim(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2, no_decay=("bias",), max_norm=0.0),
        sgd=SGD(lr=0.3, momentum=0.7, weight_decay=0.4, no_decay=no_decay),
        schedule=Schedule(steps=4, warmup=0, shape="milestones", milestones=(0.5,)),
    )
    return module, Optimizers(module, plan)


def test_two_optimizers_in_a_step_written_out() -> None:
    module, optimizers = two(no_decay=("bias",))
    assert len(optimizers.parameters) == 4
    w = {"backbone.weight": 1.0, "backbone.bias": 1.0, "rest.weight": 1.0, "rest.bias": 1.0}
    m, v, buffers = dict.fromkeys(w, 0.0), dict.fromkeys(w, 0.0), dict.fromkeys(w, 0.0)
    for step in range(4):
        scale = 1.0 if step < 2 else 0.1
        for i, (name, parameter) in enumerate(module.named_parameters()):
            g = (i + 1.0) * (step - 1.5)
            parameter.grad = torch.full_like(parameter, 2 * g)  # halved by `divide`
            decay = 0.0 if "bias" in name else 1.0
            if "backbone" in name:
                buffers[name] = 0.7 * buffers[name] + g + 0.4 * decay * w[name]
                w[name] -= 0.3 * scale * buffers[name]
            else:
                m[name], v[name] = 0.8 * m[name] + 0.2 * g, 0.9 * v[name] + 0.1 * g * g
                update = m[name] / (1 - 0.8 ** (step + 1)) / (math.sqrt(v[name] / (1 - 0.9 ** (step + 1))) + 1e-3)
                w[name] = w[name] * (1 - 0.1 * scale * 0.2 * decay) - 0.1 * scale * update
        optimizers.step(step, torch.zeros(()), torch.tensor(2.0))
        for name, parameter in module.named_parameters():
            assert parameter.item() == pytest.approx(w[name], rel=1e-5), (step, name)
            assert parameter.grad is None


def test_a_refused_first_step_of_two_leaves_no_trace() -> None:
    module, optimizers = two()
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizers.step(0, torch.ones(()))
    assert all(x.item() == 1.0 for x in module.parameters())
    buffers = [x["momentum_buffer"] for x in optimizers.state.values() if "momentum_buffer" in x]
    assert len(buffers) == 2
    assert not any(x.any() for x in buffers)


def test_parameters_without_a_gradient_stay_and_a_frozen_trunk_needs_no_second_optimizer() -> None:
    module, optimizers = two()
    module["backbone"].weight.grad = torch.ones(1, 1)
    optimizers.step(0, torch.zeros(()))
    assert [x.item() == 1.0 for x in module.parameters()] == [False, True, True, True]
    frozen = nn.ModuleDict({"backbone": nn.Linear(1, 1).requires_grad_(False), "rest": nn.Linear(1, 1)})
    found = Optimizers(frozen, dataclasses.replace(recipe(), sgd=SGD()))
    assert found.second is None
    assert len(found.parameters) == 2
    with pytest.raises(BadInput, match=r"sgd.only 'trunk': matches no parameter"):
        Optimizers(frozen, dataclasses.replace(recipe(), sgd=SGD(only="trunk")))


def test_sgd_may_step_everything() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    plan = dataclasses.replace(
        recipe(), sgd=SGD(only="", lr=0.1, momentum=0.9, weight_decay=0.01), schedule=Schedule(steps=10, warmup=0)
    )
    found, moments = Optimizers(module, plan), {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    assert found.first is None and len(found.parameters) == 4
    for step in range(3):
        wanted = {}
        module(torch.ones(4, 3)).sum().backward()
        for name, p in module.named_parameters():
            assert p.grad is not None
            moments[name] = 0.9 * moments[name] + p.grad + 0.01 * p.detach()
            wanted[name] = p.detach() - 0.1 * plan.schedule.scale(step) * moments[name]
        found.step(step, torch.zeros(()))
        for name, p in module.named_parameters():
            torch.testing.assert_close(p.detach(), wanted[name])
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing trains"):
        Optimizers(module, plan)
