"""Pre-training with experts shared out over two processes: as one process with all of them, from Python and from the command line."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import two_processes
from safetensors.torch import load_file
from toy import Pairs, toy

from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.recipe import Batching, Mix, Optim, Recipe, Schedule
from intarsia.systems.m6 import M6
from intarsia.text import Vocab
from intarsia.train import Pace, pretrain
from intarsia.train.start import fresh
from intarsia.tuned import recipe_of, start
from intarsia.worlds import WorldSource

WORLD, HELD = WorldSource(count=60), WorldSource(split="validation", count=12)
PACE = Pace(log_every=1, save_every=2, keep=0, valid_every=2, valid_batches=3, tensorboard=False)
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "hidden_dropout_prob": 0.1}
BESIDE = {"balance", "dropped"}
EXPERTS = {"experts": 4, "expert_choices": 2}
CLI = [
    *("--data", "worlds:40", "--config.hidden-size", "16", "--config.num-attention-heads", "2", "--workers", "0"),
    *("--config.intermediate-size", "24", "--config.experts", "4", "--config.capacity-factor", "1.0"),
    *("--batching.rows", "200", "--schedule.steps", "3", "--schedule.warmup", "1", "--sharding", "experts"),
]


def recipe(accumulate: int = 1, **config: Any) -> Recipe[Any]:
    base = M6.recipes["tiny"]
    return replace(
        base,
        config=replace(base.config, **{**SMALL, **EXPERTS, "capacity_factor": 0.0, "initializer_range": 0.3, **config}),
        optim=Optim(lr=1e-2, betas=(0.9, 0.98), max_norm=0.3),
        schedule=Schedule(steps=4, warmup=1),
        batching=Batching(rows=140, window=30, accumulate=accumulate),
    )


def run(out: Path, plan: Recipe[Any], sharding: Any = "ddp") -> None:
    vocab = Vocab.learn(WORLD[i].texts[0] for i in range(len(WORLD)))
    system, plan = fresh(M6, plan, vocab, WORLD.provenance)
    pretrain(system, WORLD, plan, out, device="cpu", valid=HELD, pace=PACE, workers=0, sharding=sharding)


def run_tuned(out: Path, accumulate: int, sharding: Any = "ddp", **config: Any) -> None:
    """Matching, fine-tuned."""
    torch.manual_seed(0)
    plan = recipe(accumulate, expert_routing="prototypes", **config)
    vocab = Vocab.learn(WORLD[i].texts[0] for i in range(len(WORLD)))
    tuned = start(fresh(M6, plan, vocab, WORLD.provenance)[0], M6.finetune["retrieval"], "retrieval")
    scale = recipe_of(tuned.config, "retrieval", M6.finetune["retrieval"].tunings["base"]).mix.scale
    plan = replace(plan, config=tuned.config, mix=Mix(share={"retrieval": 1.0}, scale=scale))
    pretrain(tuned, WORLD, plan, out, device="cpu", pace=PACE, workers=0, sharding=sharding)


def half(done: Path, out: Path) -> None:
    """A run folder as the run that `done` holds had left it after its second step."""
    (out / "checkpoints").mkdir(parents=True)
    shutil.copytree(done / "checkpoints/step-00000002", out / "checkpoints/step-00000002")
    (out / "checkpoints/latest").write_text("step-00000002")


def _rank(rank: int, folder: Path) -> None:
    run(folder / "experts", recipe(), "experts")
    if rank == 0:
        half(folder / "experts", folder / "again")
        half(folder / "experts", folder / "alone")
    dist.barrier()
    run(folder / "again", recipe(), "experts")
    run(folder / "tight", recipe(capacity_factor=0.6, recompute=True), "experts")
    run_tuned(folder / "tuned", 1, "experts", capacity_factor=0.6)
    main(["pretrain", "m6", *CLI, "--out", str(folder / "cli")])
    told = []
    for system, plan in ((toy(), None), (None, recipe(experts=3, expert_choices=1))):
        try:
            if plan is None:
                pretrain(system, Pairs(), replace(recipe(), config=system.config), folder / "odd", sharding="experts")
            else:
                run(folder / "odd", plan, "experts")
        except BadInput as error:
            told.append(str(error))
    (folder / f"told{rank}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("experts")
    run(out / "one", recipe(accumulate=2))
    run(out / "tight-one", recipe(accumulate=2, capacity_factor=0.6))
    run_tuned(out / "tuned-one", 2, capacity_factor=0.6)
    return two_processes(_rank, out)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("one", "two"), [("one", "experts"), ("tight-one", "tight")])
def test_two_processes_that_share_experts_are_one_with_two_micro_batches(folder: Path, one: str, two: str) -> None:
    for file in ("model.safetensors", "checkpoints/step-00000002/optimizer.safetensors"):
        a, b = load_file(folder / one / file), load_file(folder / two / file)
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(b[name], a[name], atol=2e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    start = load_file(folder / one / "checkpoints/step-00000002/model.safetensors")
    assert (start["encoder.layers.1.feed.up"] - a_weights(folder / one)).abs().max() > 1e-3


def a_weights(out: Path) -> torch.Tensor:
    return load_file(out / "model.safetensors")["encoder.layers.1.feed.up"]


@pytest.mark.parametrize(("one", "two"), [("one", "experts"), ("tight-one", "tight")])
def test_losses_drops_and_the_norm_that_clips_are_the_same(folder: Path, one: str, two: str) -> None:
    told = list(zip(lines(folder / one), lines(folder / two), strict=True))
    for a, b in told:
        for kind in ("loss", "valid"):
            assert b.get(kind, {}) == pytest.approx(a.get(kind, {}), abs=1e-5)
        assert b.get("norm", 1) == pytest.approx(a.get("norm", 1), rel=1e-5)
        assert a.get("norm", 1) > 0.3, "the gradients are clipped"
        for kind in ("loss", "valid"):
            assert kind not in a or (a[kind]["dropped"] > 0) == (one == "tight-one")


def test_fine_tuning_shares_experts_as_pre_training_does_and_tells_what_is_dropped(folder: Path) -> None:
    a, b = (load_file(folder / name / "model.safetensors") for name in ("tuned-one", "tuned"))
    assert a.keys() == b.keys() and {"head.1.weight", "system.encoder.layers.1.feed.up"} <= a.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], atol=2e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    for one, two in zip(lines(folder / "tuned-one"), lines(folder / "tuned"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5) and set(one["loss"]) == {"retrieval", *BESIDE}
        assert one["loss"]["dropped"] > 0 and one["loss"]["balance"] > 1
    recipes = [plan for plan in M6.recipes.values() if plan.mix.scale.get("balance") != 0.01]
    assert not recipes, "the balance weighs as little in each of them"


def test_a_run_goes_on_to_the_same_bits_and_in_one_process_as_well(folder: Path) -> None:
    for file in ("model.safetensors", "checkpoints/step-00000004/optimizer.safetensors"):
        whole, again = load_file(folder / "experts" / file), load_file(folder / "again" / file)
        assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    assert whole["encoder.layers.0.feed.up/exp_avg"].shape == (4, 16, 24)
    run(folder / "alone", recipe())
    assert (folder / "alone/model.safetensors").is_file()


def test_the_command_line_trains_and_one_process_opens_the_folder(folder: Path) -> None:
    told = lines(folder / "cli")
    assert told[-1]["step"] == 3 and all(0 < line["loss"]["dropped"] < 1 for line in told if "loss" in line)
    with redirect_stdout(StringIO()):
        main(["evaluate", "m6", "--weights", str(folder / "cli"), "--data", "worlds", "--count", "10"])
    assert (folder / "cli/evaluation.json").is_file()


def test_what_cannot_be_shared_out_is_refused_in_all_processes(folder: Path) -> None:
    for rank in range(2):
        none, odd = json.loads((folder / f"told{rank}.json").read_text())
        assert none == "sharding experts: the system has no experts to share out; take ddp or fsdp"
        assert odd == "3 experts cannot be shared out over 2 processes"
