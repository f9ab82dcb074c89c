"""A run that was stopped, killed or starved of disk goes on to the same bits as one that never was."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy import Pairs, Toy, recipe, toy

from intarsia.errors import BadInput
from intarsia.train import Outcome, Pace, pretrain

PACE = Pace(log_every=2, save_every=4, keep=2, valid_every=5, valid_batches=2, tensorboard=False)


def run(out: Path, system: Toy | None = None, plan: Any = None, **more: Any) -> Outcome:
    plan = plan or recipe()
    options: dict[str, Any] = {"workers": 0, "device": "cpu", "pace": PACE, **more}
    return pretrain(system or toy(dropout=plan.config.dropout), options.pop("source", Pairs()), plan, out, **options)


def same(a: Path, b: Path, name: str = "model.safetensors") -> bool:
    x, y = load_file(a / name), load_file(b / name)
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


def latest(out: Path) -> str:
    return (out / "checkpoints/latest").read_text()


def at_micro_batch(system: Toy, number: int, act: Any) -> Toy:
    """Does something right before the forward pass of a micro-batch (from 1; held-out ones do not count)."""
    calls: list[int] = []

    def hook(module: Any, inputs: Any) -> None:
        calls.append(1)
        if len(calls) == number:
            act()

    system.drop.register_forward_pre_hook(lambda module, inputs: hook(module, inputs) if module.training else None)
    return system


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert run(out, plan=recipe(accumulate=2)).finished
    return out


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, whole: Path, number: int, workers: int
) -> None:
    # Two dropouts a micro-batch, two micro-batches a step: the signal comes inside step 7, in the middle of an epoch.
    system = at_micro_batch(toy(), 27, lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    outcome = run(tmp_path, system, recipe(accumulate=2), workers=workers)
    assert (outcome.step, outcome.finished, outcome.stopped_by) == (7, False, signal.Signals(number).name)
    assert signal.getsignal(number) is before
    assert latest(tmp_path) == "step-00000007"
    assert not (tmp_path / "model.safetensors").exists()
    assert run(tmp_path, toy(seed=9), recipe(accumulate=2), workers=2 - workers).finished
    assert same(tmp_path, whole)
    for name in ("model", "optimizer"):
        assert same(tmp_path, whole, f"checkpoints/step-00000012/{name}.safetensors")


def _dies(out: str, where: str) -> None:
    system = toy()
    if where == "step":
        at_micro_batch(system, 27, lambda: os.kill(os.getpid(), signal.SIGKILL))
    else:
        real = os.rename

        def rename(a: Any, b: Any) -> None:
            if str(b).endswith("step-00000008"):
                os.kill(os.getpid(), signal.SIGKILL)
            real(a, b)

        os.rename = rename
    run(Path(out), system, recipe(accumulate=2))


@pytest.mark.parametrize("where", ["step", "save"])
def test_killed_in_a_step_or_while_saving(tmp_path: Path, whole: Path, where: str) -> None:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["toy", "intarsia.train"])
    process = server.Process(target=_dies, args=(str(tmp_path), where))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert latest(tmp_path) == "step-00000004"
    assert any((tmp_path / "checkpoints").glob(".step-*.tmp")) == (where == "save")
    assert run(tmp_path, plan=recipe(accumulate=2)).finished
    assert same(tmp_path, whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8, 10, 12]
    assert sorted(x.name for x in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000008", "step-00000012"]


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def full(handle: int) -> None:
        if "step-00000008" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match=r"step-00000008.*No space left on device.*last whole one: step-00000004"):
        run(tmp_path)
    monkeypatch.undo()
    assert sorted(x.name for x in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000004"]
    assert run(tmp_path).finished
    run(tmp_path / "again")
    assert same(tmp_path, tmp_path / "again")


def test_a_loss_that_is_not_finite_freezes_the_weights_and_names_the_sample(tmp_path: Path) -> None:
    calm = run(tmp_path / "calm", source=Pairs(nan_at=-1), plan=recipe(rows=20))
    assert calm.finished
    with pytest.raises(BadInput, match=r"goal \w+: the loss \w+ is nan at step \d+, samples .*pair33") as raised:
        run(
            tmp_path / "bad",
            source=Pairs(nan_at=33),
            plan=recipe(rows=20),
            pace=Pace(log_every=100, save_every=100, tensorboard=False),
        )
    assert "\n" not in str(raised.value)
    trouble = json.loads((tmp_path / "bad/trouble.json").read_text())
    assert "pair33" in trouble["keys"]
    assert latest(tmp_path / "bad") == f"step-{trouble['step']:08d}"
    saved = load_file(tmp_path / "bad/checkpoints" / latest(tmp_path / "bad") / "model.safetensors")
    pace = Pace(log_every=1, save_every=1, keep=0, tensorboard=False)
    run(tmp_path / "steps", plan=recipe(rows=20), pace=pace)
    before = load_file(tmp_path / f"steps/checkpoints/step-{trouble['step']:08d}/model.safetensors")
    assert all(torch.equal(saved[key], before[key]) for key in before)


def test_another_recipe_or_other_data_is_refused(tmp_path: Path) -> None:
    run(tmp_path, plan=recipe(2))
    with pytest.raises(BadInput, match=r"recipe\.optim\.lr was 0\.01 and is now 0\.02"):
        run(tmp_path, plan=recipe(2, lr=2e-2))
    with pytest.raises(BadInput, match=r"data was '.*-60' and is now '.*-58'"):
        run(tmp_path, plan=recipe(2), source=Pairs(58))
    with pytest.raises(BadInput, match="holds checkpoints of a run"):
        run(tmp_path, plan=recipe(2), resume=False)


def test_a_run_from_before_a_number_was_there_goes_on(tmp_path: Path) -> None:
    run(tmp_path, plan=recipe(2))
    path = tmp_path / "checkpoints" / latest(tmp_path) / "state.json"
    state = json.loads(path.read_text())
    assert state["recipe"]["batching"].pop("block") == 0
    path.write_text(json.dumps(state))
    assert run(tmp_path, plan=recipe(2)).finished
    with pytest.raises(BadInput, match=r"recipe\.batching\.block was None and is now 4"):
        run(tmp_path, plan=recipe(2, block=4))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_told(tmp_path: Path, name: str) -> None:
    run(tmp_path, plan=recipe(2))
    file = tmp_path / "checkpoints" / latest(tmp_path) / name
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(BadInput, match=name):
        run(tmp_path, plan=recipe(2))


def test_what_a_run_leaves(tmp_path: Path) -> None:
    pace = Pace(log_every=2, save_every=3, keep=3, valid_every=4, valid_batches=2)
    outcome = run(tmp_path, pace=pace, valid=Pairs(20), size="small")
    assert outcome.finished
    names = sorted(x.name for x in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", "step-00000006", "step-00000009", "step-00000012"]
    about = json.loads((tmp_path / "recipe.json").read_text())
    assert (about["system"], about["size"], about["recipe"]["schedule"]["steps"]) == ("toy", "small", 12)
    assert json.loads((tmp_path / "provenance.json").read_text())["extractor"] == "toy"
    assert list((tmp_path / "tensorboard").iterdir())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if "loss" in line]
    assert [line["step"] for line in told] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert {name for line in told for name in line["loss"]} == {"mlm", "itm"}
    assert all(line["pairs_per_second"] > 0 and line["rows_per_second"] > line["pairs_per_second"] for line in told)
    assert told[-1]["lr"] == pytest.approx(1e-2 * recipe().schedule.scale(11))
    assert [(line["step"], sorted(line["valid"])) for line in lines if "valid" in line] == [
        (n, ["itm", "mlm"]) for n in (4, 8, 12)
    ]


def test_validation_changes_nothing_and_repeats(tmp_path: Path) -> None:
    plan = recipe(4, lr=0.0)
    run(tmp_path / "a", plan=plan, valid=Pairs(20), pace=Pace(valid_every=1, tensorboard=False))
    run(tmp_path / "b", plan=plan)
    assert same(tmp_path / "a", tmp_path / "b")
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    losses = [line["valid"] for line in lines if "valid" in line]
    assert len(losses) == 4
    assert all(loss == losses[0] for loss in losses)


def test_samples_left_out_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Odd(Pairs):
        def __getitem__(self, index: int) -> Any:
            if index == 7:
                raise BadInput("pairs.tsv: sample pair7: no such box")
            return super().__getitem__(index)

    system = toy(longest=9)
    with pytest.raises(BadInput, match="sample pair7: no such box"):
        run(tmp_path / "stop", system, source=Odd())
    outcome = run(tmp_path / "skip", toy(longest=9), source=Odd(), on_error="skip")
    long = sum(len(Pairs()[i].texts[0].split()) > 9 for i in range(60) if i != 7)
    assert long > 0
    assert outcome.left_out == {"TooLong": long, "BadInput": 1}
    assert f"{long} TooLong" in capfd.readouterr().err
