"""Two processes that copy or shard the weights do what one does with twice the accumulation, dropout and all."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import two_processes
from safetensors.torch import load_file
from torch import nn
from toy import Pairs, recipe, toy

from intarsia.errors import BadInput
from intarsia.recipe import SGD
from intarsia.train import Pace, pretrain
from intarsia.train.parallel import World, blocks, enter_world, weightless

TWO = SGD(only="^regions", lr=0.3)
PACE = Pace(log_every=2, save_every=3, valid_every=4, valid_batches=3, tensorboard=False)


def run(out: Path, steps: int = 6, pace: Pace = PACE, source: Any = None, **more: Any) -> None:
    batching = {name: more.pop(name) for name in ("accumulate", "precision") if name in more}
    plan = replace(recipe(steps, accumulate=batching.get("accumulate", 1)), sgd=more.pop("sgd", None))
    pretrain(toy(), source or Pairs(), plan, out, device="cpu", valid=Pairs(40), pace=pace, **{"workers": 0, **more})


class StopsSecond(Pairs):
    """Sends the signal to the second process only, once it reads a given sample of the second step."""

    def __getitem__(self, index: int) -> Any:
        if os.environ.get("RANK") == "1" and os.environ.get("STOP"):
            os.environ.pop("STOP")
            os.kill(os.getpid(), 15)
        return super().__getitem__(index)


def _rank(rank: int, folder: Path) -> None:
    run(folder / "ddp", sharding="ddp")
    run(folder / "fsdp", sharding="fsdp", workers=1 if rank else 0)
    for how in ("ddp", "fsdp"):
        run(folder / f"{how}-two", sharding=how, sgd=TWO)
    os.environ["STOP"] = "1"
    run(folder / "stopped", sharding="fsdp", source=StopsSecond())
    stopped = (folder / "stopped/checkpoints/latest").read_text()
    run(folder / "stopped", sharding="ddp")
    told = ""
    try:
        run(folder / "nan", source=Pairs(nan_at=33))
    except BadInput as error:
        told = str(error)
    (folder / f"told{rank}.json").write_text(json.dumps([stopped, told]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = two_processes(_rank, tmp_path_factory.mktemp("ranks"))
    run(out / "one", accumulate=2)
    run(out / "one-two", accumulate=2, sgd=TWO)
    return out


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("how", ["ddp", "fsdp", "stopped"])
def test_two_processes_are_one_with_two_micro_batches(folder: Path, how: str) -> None:
    one, two = load_file(folder / "one/model.safetensors"), load_file(folder / how / "model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=0)
    start = load_file(folder / "one/checkpoints/step-00000003/model.safetensors")
    assert (start["words.weight"] - one["words.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_losses_norms_and_held_out_losses_are_the_same(folder: Path, how: str) -> None:
    one, two = lines(folder / "one"), lines(folder / how)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        for kind in ("loss", "valid"):
            assert b.get(kind, {}) == pytest.approx(a.get(kind, {}), abs=1e-6)
        assert b.get("norm") == pytest.approx(a.get("norm"), abs=1e-5)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_optimizers_step_alike_in_one_process_and_in_two(folder: Path, how: str) -> None:
    for file in ("model.safetensors", "checkpoints/step-00000006/optimizer.safetensors"):
        plain, one, two = (load_file(folder / x / file) for x in ("one", "one-two", f"{how}-two"))
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=0)
        if file == "model.safetensors":
            assert (one["regions.weight"] - plain["regions.weight"]).abs().max() > 1e-3
        else:
            assert {name for name in one if name.endswith("momentum_buffer")} == {
                "regions.weight/momentum_buffer",
                "regions.bias/momentum_buffer",
            }


def test_moments_of_shards_are_saved_whole(folder: Path) -> None:
    one, two = (load_file(folder / how / "checkpoints/step-00000006/optimizer.safetensors") for how in ("one", "fsdp"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=0)


def test_all_processes_stop_together(folder: Path) -> None:
    (stopped, told), (stopped_too, told_too) = (
        json.loads((folder / f"told{rank}.json").read_text()) for rank in (0, 1)
    )
    assert stopped == stopped_too == "step-00000001"
    assert told == told_too
    assert "is nan" in told
    assert "pair33" in told


def test_a_module_without_weights_is_light_and_still_lays_out() -> None:
    system = toy()
    twin = weightless(system)
    assert all(p.is_meta for p in twin.parameters())
    assert not any(p.is_meta for p in system.parameters())
    assert twin.word_head.weight is twin.words.weight
    assert twin.lay_out(Pairs()[3]).rows == system.lay_out(Pairs()[3]).rows


def test_blocks_are_the_members_of_outer_lists() -> None:
    inner = nn.ModuleList([nn.Linear(1, 1)])
    module = nn.Sequential(nn.ModuleList([nn.Sequential(inner), nn.Dropout()]), nn.Linear(1, 1))
    assert blocks(module) == [module[0][0]]


def test_unknown_devices_are_refused() -> None:
    for name in ("gpu9", "cuda:99"):
        with pytest.raises(BadInput, match=name), enter_world(name):
            pass
    with enter_world("cpu") as world:
        assert world == World(torch.device("cpu"))
        assert world.any(True)
        assert world.gather(3) == [3]
