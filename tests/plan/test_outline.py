"""What a plan counts against what real steps of small models compute, keep, allocate and send."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import two_processes
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from intarsia.attend import use_backend
from intarsia.batch import Batch
from intarsia.plan import cost
from intarsia.plan.documents import Documents, vocabulary
from intarsia.plan.given import Size
from intarsia.plan.outline import Outline, outline
from intarsia.recipe import Recipe
from intarsia.system import System
from intarsia.systems import SYSTEMS, find
from intarsia.train.optim import Optimizers
from intarsia.train.parallel import World, micro_batch, spread

SIZE = Size(words=12, regions=16, width=96, height=96)
DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # a CPU draws other numbers than a GPU keeps
EXPERTS = {"experts": 4, "expert_choices": 2, "capacity_factor": 1.0}
CASES = {
    "uniter": ("uniter", {}),
    "lxmert": ("lxmert", {}),
    "vilbert": ("vilbert", {}),
    "pixel_bert": ("pixel_bert", {}),
    "m6": ("m6", {}),
    "m6, norms before": ("m6", {"pre_norm": True}),
    "m6, experts": ("m6", EXPERTS),
    "m6, experts, computed again": ("m6", {**EXPERTS, "recompute": True, "pre_norm": True}),
}


def small(name: str, **changes: Any) -> Recipe[Any]:
    recipe = find(name).recipes["tiny"]
    known = {key: value for key, value in {"vocab_size": 400, **DRY, **changes}.items() if hasattr(recipe.config, key)}
    batching = replace(recipe.batching, rows=max(600, recipe.batching.rows), samples=0 if name != "pixel_bert" else 16)
    return replace(recipe, config=replace(recipe.config, **known), batching=batching)


def real(name: str, recipe: Recipe[Any], seed: int = 0) -> tuple[System, dict[str, Batch]]:
    """A system with weights and a batch of every goal, as the plan has them."""
    cls = find(name)
    torch.manual_seed(seed)
    system = cls(recipe.config, vocabulary(cls, recipe.config.vocab_size)).train()
    documents, batches = Documents(system, SIZE), {}
    for goal in recipe.mix.share:
        batches[goal], sizes = documents.batch(goal, recipe)
        if sizes:
            pixels = torch.randn(len(sizes), 3, *(max(x) for x in zip(*sizes, strict=True)))
            batches[goal] = replace(batches[goal], images=replace(batches[goal].images, pixels=pixels))
    return system, batches


@cache
def counted(case: str) -> Outline:
    name, changes = CASES[case]
    return outline(find(name), small(name, **changes), SIZE)


def total(system: System, batch: Batch, recipe: Recipe[Any]) -> Tensor:
    losses, _ = system(batch)
    return system.weigh(losses, recipe.mix)


class Kept:
    """Bytes of the storages that forward saves for backward or gives, less those of weights and batch."""

    def __init__(self, system: System) -> None:
        self.weights = {x.untyped_storage().data_ptr() for x in (*system.parameters(), *system.buffers())}
        self.found: dict[int, int] = {}
        self.alive: list[Any] = []

    def __call__(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.weights and storage.nbytes():
            self.found[storage.data_ptr()] = storage.nbytes()
            self.alive.append(storage)  # so that no address is given away twice
        return x.detach()


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = (
        value.values()
        if isinstance(value, dict)
        else [getattr(value, x, None) for x in getattr(value, "__slots__", ())]
    )
    return [x for part in parts for x in tensors(part)]


def peak(run: Any) -> int:
    """Most bytes that the CPU's allocator held beyond those at the start, as its own events tell."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True):
        torch.zeros(1).clone()  # the first recording of a process misses events
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    held = most = 0
    events = [x for x in recorded.profiler.kineto_results.events() if x.name() == "[memory]"]
    for event in sorted(events, key=lambda x: x.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("case", CASES)
def test_flops_are_those_of_a_real_step(case: str) -> None:
    name, changes = CASES[case]
    recipe = small(name, **changes)
    system, batches = real(name, recipe)
    for goal, batch in batches.items():
        with FlopCounterMode(display=False) as measured:
            total(system, batch, recipe).backward()
        assert counted(case).passes[goal].flops == pytest.approx(measured.get_total_flops(), rel=0.1)


@pytest.mark.parametrize("case", CASES)
def test_what_forward_keeps_is_what_a_real_one_saves(case: str) -> None:
    name, changes = CASES[case]
    recipe = small(name, **changes)
    system, batches = real(name, recipe)
    for goal, batch in batches.items():
        kept = Kept(system)
        with use_backend("padded"), torch.autograd.graph.saved_tensors_hooks(kept, lambda x: x):
            _, encoded = system(batch)
            for x in tensors(encoded):
                kept(x)
        given = {x.untyped_storage().data_ptr() for x in tensors(batch)}
        measured = sum(size for address, size in kept.found.items() if address not in given)
        assert counted(case).passes[goal].kept == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("case", CASES)
def test_the_worst_moment_is_that_of_the_allocator(case: str) -> None:
    name, changes = CASES[case]
    recipe = small(name, **changes)
    system, batches = real(name, recipe)
    for goal, batch in batches.items():
        given = sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors(batch)}.values())

        def step(batch: Batch = batch) -> None:
            with use_backend("padded"):
                total(system, batch, recipe).backward()

        step()
        system.zero_grad(set_to_none=True)
        measured = peak(step)
        system.zero_grad(set_to_none=True)
        assert counted(case).passes[goal].together - given == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("case", ["uniter", "pixel_bert", "m6, experts"])
def test_weights_gradients_and_moments_are_exact(case: str) -> None:
    name, changes = CASES[case]
    recipe = small(name, **changes)
    system, batches = real(name, recipe)
    optimizer = Optimizers(system, recipe)
    for batch in batches.values():
        total(system, batch, recipe).backward()
    gradients = sum(x.grad.nbytes for x in system.parameters() if x.grad is not None)
    optimizer.step(0, torch.zeros(()))
    states = [x for kept in optimizer.state.values() for kind, x in kept.items() if kind != "step"]
    held = cost.memory(counted(case), recipe, 1, "ddp")
    assert held.weights == pytest.approx(sum(x.nbytes for x in (*system.parameters(), *system.buffers())), rel=1e-3)
    assert held.gradients == gradients
    assert held.moments == sum(x.nbytes for x in states)


def test_a_layer_is_what_the_page_says() -> None:
    two, three = (outline(find("m6"), small("m6", num_hidden_layers=n), SIZE).passes["caption"] for n in (2, 3))
    config, rows, length = small("m6").config, two.rows, two.rows // two.samples
    h, inner = config.hidden_size, config.intermediate_size
    forward, attention = 2 * (4 * h * h + 2 * h * inner), 4 * h * length
    assert three.flops - two.flops == pytest.approx(rows * (3 * forward + 3.5 * attention), rel=0.1)
    assert three.kept - two.kept == pytest.approx(rows * 4 * (12 * h + 2 * inner), rel=0.1)
    again = [outline(find("m6"), small("m6", num_hidden_layers=n, recompute=True), SIZE) for n in (2, 3)]
    two, three = (x.passes["caption"] for x in again)
    assert three.flops - two.flops == pytest.approx(rows * (4 * forward + 4.5 * attention), rel=0.1)
    assert three.kept - two.kept == pytest.approx(rows * 4 * 2 * h, rel=0.1)


def test_deep_stacks_are_counted_from_shallow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = small("m6", num_hidden_layers=8, experts_every=2, **EXPERTS)
    deep = replace(deep, mix=replace(deep.mix, share={"caption": 1}), precision="bf16")
    quick = outline(find("m6"), deep, SIZE, 2)
    monkeypatch.setattr("intarsia.plan.outline.DEPTH", 8)
    whole = outline(find("m6"), deep, SIZE, 2)
    a, b = quick.passes["caption"], whole.passes["caption"]
    assert quick.weights == whole.weights and a.flops == b.flops and a.exchanged == b.exchanged > 0
    assert a.kept == pytest.approx(b.kept, rel=0.01) and a.activations == pytest.approx(b.activations, rel=0.02)
    assert a.together >= b.together


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_every_system_is_outlined(name: str) -> None:
    recipe = find(name).recipes["tiny"]
    found = outline(find(name), replace(recipe, precision="bf16"), SIZE)
    with torch.device("meta"):
        system = find(name)(recipe.config, vocabulary(find(name), recipe.config.vocab_size))
    assert found.weights.trained + found.weights.experts == sum(
        x.numel() for x in system.parameters() if x.requires_grad
    )
    assert not found.skipped and set(found.passes) == {goal for goal, share in recipe.mix.share.items() if share > 0}
    for one in found.passes.values():
        assert one.flops > 0 and 0 < one.kept <= one.activations <= one.together


@pytest.mark.parametrize(("name", "size"), [("visualbert", "base_vcr"), ("vl_bert", "e2e")])
def test_trunks_in_the_loop_are_outlined(name: str, size: str) -> None:
    recipe = find(name).recipes[size]
    trunk = replace(recipe.config.trunk, depths=(1, 1, 1, 1), planes=(8, 8, 8, 8), stem=8)
    small = replace(recipe.config, trunk=trunk, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    few = replace(recipe, config=small, batching=replace(recipe.batching, rows=3000, samples=2))
    found = outline(find(name), few, SIZE)
    assert found.passes and not found.skipped
    assert all(0 < x.kept <= x.activations for x in found.passes.values())


def test_a_resnet_that_reads_crops_is_outlined() -> None:
    recipe = find("b2t2").recipes["tiny"]
    config = replace(recipe.config, trainable_resnet=True, num_hidden_layers=1)
    few = replace(recipe, config=config, batching=replace(recipe.batching, samples=2))
    found = outline(find("b2t2"), few, SIZE)
    assert found.passes and not found.skipped
    assert all(0 < x.kept <= x.activations for x in found.passes.values())
    with torch.device("meta"):
        system = find("b2t2")(config, vocabulary(find("b2t2"), config.vocab_size))
    assert found.weights.trained == sum(x.numel() for x in system.parameters())


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_every_goal_of_every_size_can_be_laid_out(name: str) -> None:
    cls = find(name)
    for size, recipe in cls.recipes.items():
        few = replace(recipe, batching=replace(recipe.batching, rows=3000, samples=2))
        with torch.device("meta"):
            documents = Documents(cls(recipe.config, vocabulary(cls, recipe.config.vocab_size)), SIZE)
        for goal, share in recipe.mix.share.items():
            if share > 0:
                batch, _ = documents.batch(goal, few)
                assert batch.rows > 0 and batch.targets, size


# ------------------------------------------------------------------------------------------------------------- what is sent


class Wire(TorchDispatchMode):
    """Bytes of collectives by kind, what a process puts in or, for gathers, gets."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kinds = {"allreduce_": 0, "_allgather_base_": 0, "_reduce_scatter_base_": 1, "alltoall_base_": 1}
        kind = func._schema.name.removeprefix("c10d::")
        if kind in kinds:
            given = args[kinds[kind]]
            self.found[kind] += sum(x.nbytes for x in (given if isinstance(given, (list, tuple)) else [given]))
        return func(*args, **(kwargs or {}))


def _rank(rank: int, folder: Path) -> None:
    told = {}
    for sharding in ("ddp", "fsdp", "experts"):
        recipe = small("m6", **EXPERTS)
        recipe = replace(recipe, batching=replace(recipe.batching, accumulate=2))
        system, batches = real("m6", recipe)
        module = spread(system, World(torch.device("cpu"), rank, 2), sharding)
        with Wire() as wire:
            for micro in range(2):
                with micro_batch(module, last=micro == 1):
                    losses, _ = module(batches["multimodal"])
                    system.weigh(losses, recipe.mix).backward()
        told[sharding] = wire.found
    (folder / f"sent{rank}.json").write_text(json.dumps(told))


def test_bytes_sent_are_those_of_two_processes(tmp_path: Path) -> None:
    two_processes(_rank, tmp_path)
    recipe = small("m6", **EXPERTS)
    recipe = replace(
        recipe, batching=replace(recipe.batching, accumulate=2), mix=replace(recipe.mix, share={"multimodal": 1})
    )
    for rank in range(2):
        for sharding, wire in json.loads((tmp_path / f"sent{rank}.json").read_text()).items():
            found = outline(find("m6"), recipe, SIZE, 2 if sharding == "experts" else 1)
            sent = cost.sent(found, recipe, 2, sharding)
            assert sent.all_reduce == pytest.approx(2 * 0.5 * wire.get("allreduce_", 0), rel=0.1), sharding
            assert sent.all_gather == pytest.approx(0.5 * wire.get("_allgather_base_", 0), rel=0.1), sharding
            assert sent.reduce_scatter == pytest.approx(0.5 * wire.get("_reduce_scatter_base_", 0), rel=0.1), sharding
            assert sent.all_to_all == pytest.approx(0.5 * wire.get("alltoall_base_", 0), rel=0.1), sharding
