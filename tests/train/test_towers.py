"""Queues and slow copies in a run: they resume to the same bits, and two processes fill one queue in order of rank."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import two_processes
from safetensors.torch import load_file, save_file

from intarsia.batch import Batch
from intarsia.features.efficientnet import Shape
from intarsia.pack import pack
from intarsia.recipe import Batching, Recipe, Schedule
from intarsia.systems.wenlan import WenLan, WenLanConfig
from intarsia.text import Vocab
from intarsia.train import Outcome, Pace, pretrain
from intarsia.worlds import WorldSource

WORLD = WorldSource(count=24)
PACE = Pace(log_every=2, save_every=4, valid_every=50, tensorboard=False)
VOCAB = Vocab.learn(WORLD[i].texts[0] for i in range(24))
KEYS = 24


def recipe(steps: int) -> Recipe[WenLanConfig]:
    plan = WenLan.recipes["tiny"]
    small = dataclasses.replace(
        plan.config,
        vocab_size=len(VOCAB),
        trunk=Shape(0.25, 0.2, stem=8, head=16, classes=2),
        embedding_size=16,
        image_size=40,
        num_hidden_layers=1,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        top_heads=2,
        top_intermediate=16,
        statistics="stored",
        queue_size=KEYS,
        momentum=0.9,
    )
    batching = Batching(rows=200, samples=6, window=24)
    return dataclasses.replace(plan, config=small, schedule=Schedule(steps=steps, warmup=1), batching=batching)


def build(seed: int = 0) -> WenLan:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return WenLan(recipe(1).config, VOCAB)


def run(out: Path, system: WenLan, steps: int) -> Outcome:
    return pretrain(system, WORLD, recipe(steps), out, workers=0, device="cpu", pace=PACE)


def test_queues_and_copies_resume_to_the_same_bits(tmp_path: Path) -> None:
    assert run(tmp_path / "whole", build(), 7).finished
    stopped = build()
    calls: list[int] = []

    def stop(module: Any, inputs: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped.text.register_forward_pre_hook(stop)
    assert run(tmp_path / "parts", stopped, 7).step == 5
    assert run(tmp_path / "parts", build(seed=1), 7).finished
    whole, parts = (load_file(tmp_path / x / "checkpoints/step-00000007/model.safetensors") for x in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert {"text_queue.keys", "image_queue.pointer", "image_mom.project.weight"} <= whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    fresh = build()
    assert (whole["text_queue.keys"] != fresh.text_queue.keys).all()
    assert not torch.equal(whole["image_mom.project.weight"], fresh.image_mom.project.weight)
    assert not torch.equal(whole["image_mom.project.weight"], whole["image.project.weight"])


def _rank(rank: int, out: Path) -> None:
    for steps in (1, 3):
        system, seen = build(seed=rank), []  # the first process's weights count
        losses = system.losses

        def watched(encoded: Any, batch: Batch, losses: Any = losses, seen: list[str] = seen) -> Any:
            seen.extend(batch.keys)
            return losses(encoded, batch)

        system.losses = watched  # type: ignore[method-assign]
        run(out / f"run{steps}", system, steps)
        save_file({k: v.clone() for k, v in system.state_dict().items()}, out / f"{steps}-{rank}.safetensors")
        (out / f"{steps}-{rank}.txt").write_text("\n".join(seen))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_processes(_rank, tmp_path_factory.mktemp("ranks"))


def half(ranks: Path, rank: int) -> Batch:
    """The pairs of a process in the first step."""
    by_key = {WORLD[i].key: WORLD[i] for i in range(len(WORLD))}
    system = build()
    examples = [system.lay_out(by_key[key]) for key in (ranks / f"1-{rank}.txt").read_text().split("\n")]
    for example in examples:
        example.targets = {"i2t": torch.tensor(0).numpy(), "t2i": torch.tensor(0).numpy()}
    return pack(examples)


def test_the_queue_takes_the_keys_of_all_processes_in_order_of_rank(ranks: Path) -> None:
    system, after = build().eval(), load_file(ranks / "1-0.safetensors")
    text, image = [], []
    for rank in range(2):
        batch = half(ranks, rank)
        assert batch.text and batch.images and batch.regions
        with torch.no_grad():
            text.append(F.normalize(system.text_mom(batch.text)[1], dim=-1))
            image.append(F.normalize(system.image_mom(batch.images, batch.regions)[1], dim=-1))
    for name, keys in (("text_queue", torch.cat(text)), ("image_queue", torch.cat(image))):
        count = int(after[f"{name}.pointer"])
        assert count == len(keys)
        torch.testing.assert_close(after[f"{name}.keys"][:, :count], keys.T, atol=1e-6, rtol=0)
        assert torch.equal(after[f"{name}.keys"][:, count:], getattr(system, name).keys[:, count:])


def test_processes_agree_on_all_they_hold(ranks: Path) -> None:
    one, two = (load_file(ranks / f"3-{rank}.safetensors") for rank in range(2))
    pairs = sum(len((ranks / f"3-{rank}.txt").read_text().split("\n")) for rank in range(2))
    assert int(one["text_queue.pointer"]) == pairs % KEYS
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def test_gradients_are_the_mean_of_both_halves(ranks: Path) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for rank in range(2):
        system = build().train()
        sum(system(half(ranks, rank))[0].values(), torch.tensor(0.0)).backward()
        found.append({name: p.grad for name, p in system.named_parameters() if p.grad is not None})
    before, after = build().state_dict(), load_file(ranks / "1-0.safetensors")
    checked = 0
    for name, grad in found[0].items():
        mean = (grad + found[1][name]) / 2
        big = mean.abs() > 1e-4
        # Adam's first step is the sign of the gradient times the rate; the decay of weights is far smaller.
        moved = after[name] - before[name]
        assert torch.equal(moved[big].sign(), -mean[big].sign()), name
        checked += int(big.sum())
    assert checked > 500
