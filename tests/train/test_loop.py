"""The loop: resumes to the same bits, survives what goes wrong, and ranks share the work without changing it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from intarsia.batch import Sample
from intarsia.data.corpora import Subset
from intarsia.errors import BadInput
from intarsia.recipe import Batching, Recipe
from intarsia.systems.uniter import UNITER
from intarsia.text import Vocab
from intarsia.train import loop
from intarsia.train.loop import Pace, pretrain
from intarsia.train.optim import adamw
from intarsia.worlds import WorldSource

SOURCE = WorldSource(count=60)
VOCAB = Vocab.learn(SOURCE[i].texts[0] for i in range(60))


def recipe(steps: int = 6, dropout: float = 0.1, **more: Any) -> Recipe[Any]:
    tiny = UNITER.recipes["tiny"]
    config = dataclasses.replace(
        tiny.config, vocab_size=len(VOCAB), feature_size=192, classes=9, hidden_size=32, num_attention_heads=2, intermediate_size=48,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, ot_iterations=3,
    )  # fmt: skip
    schedule = dataclasses.replace(tiny.schedule, steps=steps, warmup=2)
    return dataclasses.replace(tiny, config=config, schedule=schedule, batching=Batching(rows=150, window=40, **more))


def train(
    out: Path, plan: Recipe[Any], source: Any = SOURCE, workers: int = 0, pace: Pace | None = None, **more: Any
) -> dict[str, torch.Tensor]:
    torch.manual_seed(plan.seed)
    pretrain(
        UNITER(plan.config, VOCAB),
        source,
        plan,
        out,
        workers=workers,
        device="cpu",
        pace=pace or Pace(log=2, valid=3, save=2),
        **more,
    )
    return load_file(out / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Sends this process SIGTERM while it does a step."""
    real, calls = loop.optim.clip, []

    def clip(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop.optim, "clip", clip)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_is_uninterrupted(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", recipe(), workers=workers, valid=Subset(SOURCE, np.arange(20)))
    stop_at(monkeypatch, 3)
    assert train(tmp_path / "parts", recipe(), workers=workers) is None
    assert (tmp_path / "parts/checkpoints/latest").read_text().strip() == "step-00000003"
    monkeypatch.undo()
    again = train(tmp_path / "parts", recipe(), workers=workers)
    assert again is not None
    assert same(again, whole)


def test_workers_do_not_matter(tmp_path: Path) -> None:
    assert same(train(tmp_path / "a", recipe(3), workers=0), train(tmp_path / "b", recipe(3), workers=2))


def test_keeps_the_last_checkpoints_and_what_a_run_is(tmp_path: Path) -> None:
    train(tmp_path, recipe(6))
    assert sorted(x.name for x in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000004", "step-00000006"]
    assert (tmp_path / "checkpoints/latest").read_text() == "step-00000006"
    assert json.loads((tmp_path / "recipe.json").read_text())["system"] == "uniter"
    assert len(Vocab.read(tmp_path / "vocab.txt")) == len(VOCAB)


def test_accumulation_sums_or_averages(tmp_path: Path) -> None:
    ends = {reduce: train(tmp_path / reduce, recipe(1, 0.0, accumulate=2, reduce=reduce)) for reduce in ("sum", "mean")}
    assert not same(ends["sum"], train(tmp_path / "one", recipe(1, 0.0)))
    weights = "encoder.layers.0.up.weight"
    assert torch.allclose(ends["sum"][weights], ends["mean"][weights], atol=1e-3), (
        "AdamW's first step hardly depends on the scale"
    )


def test_a_loss_that_is_not_finite_names_the_samples_and_spares_the_weights(tmp_path: Path) -> None:
    @dataclass
    class Poisoned:
        provenance: Any = SOURCE.provenance

        def __len__(self) -> int:
            return 60

        def __getitem__(self, index: int) -> Sample:
            sample = SOURCE[index]
            picture = sample.pictures[0]
            bad = np.full_like(picture.features, np.nan)
            return dataclasses.replace(sample, pictures=(dataclasses.replace(picture, features=bad),))

    with pytest.raises(BadInput, match=r"the loss \w+ is nan at step 1, samples train-0-"):
        train(tmp_path, recipe(6), Poisoned())
    saved = load_file(tmp_path / "checkpoints" / (tmp_path / "checkpoints/latest").read_text() / "model.safetensors")
    assert all(torch.isfinite(x).all() for x in saved.values())


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    train(tmp_path, recipe(2))
    with pytest.raises(BadInput, match="another recipe"):
        train(tmp_path, recipe(3))


def test_decay_spares_what_the_authors_rule_spares() -> None:
    system = UNITER(recipe().config, VOCAB)
    names = {id(p): n for n, p in system.named_parameters()}
    found = adamw(system, UNITER.recipes["base"].optim).param_groups
    decayed = {names[id(p)] for group in found if group["weight_decay"] for p in group["params"]}
    assert sum(len(group["params"]) for group in found) == len(names)
    assert not [n for n in decayed if "bias" in n]
    assert {n for n in decayed if "norm" in n} == {
        "regions.feature_norm.weight",
        "regions.geometry_norm.weight",
        "feature_head.transform.norm.weight",
        "class_head.transform.norm.weight",
    }


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
import test_loop
test_loop.train(Path({out!r}), test_loop.recipe(4, 0.0), sharding={how!r})
"""


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_ranks_are_one_with_two_micro_batches(tmp_path: Path, how: str) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path / "two"), how=how))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one = train(tmp_path / "one", recipe(4, 0.0, accumulate=2, reduce="mean"))
    two = load_file(tmp_path / "two/model.safetensors")
    assert one.keys() == two.keys()
    worst = max((one[k] - two[k]).abs().max().item() for k in one)
    assert worst < 2e-5, worst
