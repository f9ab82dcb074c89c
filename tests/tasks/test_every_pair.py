"""Every task of every paper, fine-tuned for two steps on the twin of its benchmark, by the path of the command line."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import intarsia.systems
from intarsia import scoring_runs, tuning_runs
from intarsia.studies.pairs import table
from intarsia.systems import SYSTEMS, find, scores
from intarsia.tasks.benchmarks import benchmark_of
from intarsia.tasks.benchmarks import find as find_benchmark
from intarsia.tasks.retrieval import RetrievalMined
from intarsia.train.loop import Pace
from intarsia.train.parallel import weightless
from intarsia.worlds.twins import write_twin

PAIRS = [(name, task) for name in SYSTEMS for task in find(name).finetune]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("twins")


@cache
def twin(root: Path, benchmark: str, pixels: bool) -> Path:
    folder = root / f"{benchmark}-{pixels}"
    write_twin(benchmark, folder, 8, 4, level=int(pixels), pictures=pixels)
    return folder


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_a_pair_is_tuned_and_scored(
    name: str, task: str, twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = find(name).finetune[task]
    if isinstance(described.task, RetrievalMined):  # 400 documents a sample are many for a test
        few = replace(described.task, broken_by=("p" * 9, "t" * 9), broken=9, kept=3)
        described = replace(described, task=few)
        monkeypatch.setitem(find(name).finetune, task, described)  # type: ignore[arg-type]
    benchmark = benchmark_of(task, find(name).finetune)
    data = twin(twins, benchmark.name, "images" in find(name).needs)
    regions = str(data / "regions")
    table = tmp_path / "answers.txt"
    table.write_text("\n".join(["", "yes", "no", *"0123456", "red", "green", "circle", "star"]))
    asks = benchmark.name in ("vqa", "gqa", "genome-qa")
    labels = tuning_runs.answer_list(benchmark, described, data, table if asks else None)
    source = tuning_runs.open_items(benchmark, data, regions, benchmark.splits[0], labels)
    tuned, recipe = tuning_runs.begin(name, task, "base", None, None, source, labels, tiny=True)
    tuned.rivals, _ = tuning_runs.rivals_of(described, benchmark, source, "", tmp_path)
    recipe = replace(
        recipe,
        schedule=replace(recipe.schedule, steps=2, warmup=0),
        batching=replace(recipe.batching, rows=1500, samples=3, accumulate=1),
    )
    before = {key: x.clone() for key, x in tuned.head.state_dict().items()}
    about = tuning_runs.About(name, task, "base", benchmark.name, str(data), regions, "", labels)
    run = tmp_path / "run"
    outcome = tuning_runs.finetune(
        about, tuned, recipe, source, run, device="cpu", pace=Pace(log_every=1, tensorboard=False)
    )
    assert outcome.finished
    losses = [json.loads(x)["loss"][task] for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert all(math.isfinite(x) for x in losses)
    assert any(not torch.equal(x, before[key]) for key, x in tuned.head.state_dict().items()), "the head did not learn"
    found, predictions, _ = scoring_runs.measure(scoring_runs.Asked(run))
    assert benchmark.main in found.numbers
    assert found.items > 0
    assert all(x == x for x in found.numbers.values())
    assert bool(predictions) == (not benchmark.ranks)


def test_the_page_lists_every_pair() -> None:
    page = Path(__file__).parents[2] / "docs/tasks.md"
    assert table() in page.read_text(encoding="utf-8"), "run python -m intarsia.studies.pairs docs/tasks.md"
    folder = Path(intarsia.systems.__file__).parent
    for name in ("published.json", "twins.json"):
        known = {tuple(x.split()) for x in json.loads((folder / name).read_text(encoding="utf-8"))}
        assert known <= {(x, task) for x in SYSTEMS for task in scores(x)}, name


def test_what_a_worker_gets_knows_the_answers(twins: Path) -> None:
    """Heads shared by tasks are made by functions that do not pickle; a worker finds them again by name."""
    data, labels = twin(twins, "vqa", False), ("", "red", "yes")
    source = tuning_runs.open_items(find_benchmark("vqa"), data, str(data / "regions"), "train", labels)
    tuned, _ = tuning_runs.begin("vilbert", "vqa", "base", None, None, source, labels, tiny=True)
    sent, items = pickle.loads(pickle.dumps((weightless(tuned), source)))
    number = next(i for i in range(len(items)) if ("yes", 1.0) in items[i].answers)
    (example,) = sent.documents(items[number], "vqa", np.random.default_rng(0), lambda: items[0])
    assert np.flatnonzero(example.targets["vqa"]).tolist() == [2]
