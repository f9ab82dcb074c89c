"""Sharing out in formulas, the command, and what it says where a run does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from intarsia.cli import main
from intarsia.plan import cost
from intarsia.plan.given import Room
from intarsia.plan.outline import Outline, Pass, Weights
from intarsia.systems import find

RECIPE = find("m6").recipes["tiny"]
ONE = Pass(flops=10**12, activations=5000, together=6000, kept=4000, exchanged=700, rows=100, samples=4)
FOUND = Outline(Weights(1000, 4000, 24, 2200, 600, 2000), dict.fromkeys(RECIPE.mix.share, ONE))

ONLY_CAPTIONS = [x for goal in ("denoise", "lm", "multimodal") for x in (f"--mix.share.{goal}", "0")]


def told(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    main(["plan", *args, "--json"])
    return json.loads(capsys.readouterr().out)


def test_memory_is_shared_out_as_the_page_says() -> None:
    ddp, fsdp, experts = (cost.memory(FOUND, RECIPE, 4, x) for x in ("ddp", "fsdp", "experts"))
    assert (ddp.weights, ddp.gradients, ddp.moments) == (4 * 5024, 4 * 5000, 4 * 10000)
    assert (fsdp.weights, fsdp.gradients, fsdp.moments) == (5024, 5000, 10000)
    assert fsdp.gathered == 8 * (600 + 4400)
    assert (experts.weights, experts.gradients, experts.moments) == (4 * 2024, 4 * 2000, 4 * 4000)
    for held in (ddp, fsdp, experts):
        assert held.total == held.weights + held.gradients + held.moments + held.gathered + 5000
    assert cost.memory(FOUND, RECIPE, 1, "ddp").total == 4 * 15024 + 6000, "gradients come while activations go"
    twice = replace(RECIPE, batching=replace(RECIPE.batching, accumulate=2))
    assert cost.memory(FOUND, twice, 1, "ddp").total == 4 * 20024 + 5000
    assert cost.memory(FOUND, twice, 4, "fsdp").gradients == 4 * 5000, "not shared out before the last micro-batch"


def test_bytes_sent_and_times() -> None:
    sends = cost.sent(FOUND, RECIPE, 4, "experts")
    assert (sends.all_reduce, sends.all_to_all, sends.total) == (8 * 0.75 * 1000, 700, 6700)
    assert cost.sent(FOUND, RECIPE, 1, "ddp").total == 700  # of the outline; one process has no others
    room = Room(tflops=100, efficiency=0.5, bandwidth=1e-6, network=5e-7, machine=4)
    spent = cost.spent(FOUND, RECIPE, sends, 4, room)
    assert spent.compute == pytest.approx(0.02)
    assert (spent.communication, spent.step, spent.step_at_most) == pytest.approx((6.7, 6.0 + 0.7, 6.72))
    assert cost.spent(FOUND, RECIPE, sends, 8, room).communication == pytest.approx(2 * 6.7), "the slower link"
    assert spent.gpu_hours == pytest.approx(spent.run * 4 / 3600)


def test_m6_10b_is_counted_to_the_last_parameter_and_is_told_what_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    found, h = told(capsys, "m6", "--size", "10b", "--gpus", "8", *ONLY_CAPTIONS), 4096
    tables = 21128 + 512 + 3 + 2048 + 1  # words, positions, segments, patches
    assert found["weights"]["trained"] == 50 * (12 * h * h + 13 * h) + tables * h + 4 * h
    assert not found["fits"] and "--sharding fsdp --gpus 8" in found["advice"]


def test_m6_100b_fits_128_gpus_by_experts(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "m6", "--size", "100b", "--gpus", "128", "--sharding", "experts", *ONLY_CAPTIONS)
    assert found["weights"]["experts"] == 24 * 512 * (2 * 1024 * 4096 + 4096 + 1024)
    assert found["fits"] and not found["advice"] and found["sent"]["all_to_all"] > 0


def test_tables_name_a_way_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["m6", "--config.experts", "64", "--gpus", "2", "--gpu.reserve", "0", *ONLY_CAPTIONS]
    main(["plan", *args, "--gpu.memory", "0.3"])
    said = " ".join(capsys.readouterr().out.split())
    assert "does not fit" in said and "What would, each by itself" in said and "TFLOP/s" in said
    assert "--sharding fsdp" not in said, "whole layers of experts are gathered there"
    count = said.split("--sharding experts --gpus ")[1].split()[0]
    assert told(capsys, *args, "--gpu.memory", "0.3", "--sharding", "experts", "--gpus", count)["fits"]
    main(["plan", *args, "--gpu.memory", "3"])
    assert "fits:" in capsys.readouterr().out
    main(["plan", *args, "--gpu.memory", "0.001"])
    assert "Nothing that was tried does" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["uniter", "--gpus", "0"], "--gpus 0: must be at least 1"),
        (["uniter", "--sharding", "experts"], "--sharding experts: uniter tiny has no experts"),
        (["m6", "--config.experts", "3", "--sharding", "experts", "--gpus", "2"], "3 experts cannot be shared out"),
        (["uniter", "--gpu.efficiency", "0"], "--gpu.efficiency 0: must be above 0"),
        (["uniter", "--gpu.reserve", "90"], "--gpu.reserve 90: must be at least 0 and less than --gpu.memory 80"),
        (["uniter", "--sample.words", "0"], "--sample.words 0: must be at least 1"),
        (["uniter", "--batching.rows", "9"], "a sample has"),
        (["uniter", "--config.vocab-size", "9"], "vocab_size 9: a plan needs at least"),
        (["uniter", "--size", "10b"], "uniter has no size '10b'"),
        (["--gpus", "3"], "say which system: intarsia plan"),
    ],
)
def test_what_does_not_go_together_is_one_line(args: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *args])
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and line in told and told.count("\n") == 1
