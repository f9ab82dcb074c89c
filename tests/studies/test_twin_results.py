"""Results on twins: one pre-training run a system, seeing and blind, written pair by pair, gone on with."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from intarsia.errors import BadInput
from intarsia.studies import twin_results
from intarsia.studies.twin_results import BlindTuned, benchmark_for, chosen, main, merge, tasks_of
from intarsia.systems import SYSTEMS, scores
from intarsia.tasks.benchmarks import find
from intarsia.tuning_runs import begin, open_items
from intarsia.worlds.twins import write_twin


def test_pairs_are_named_and_every_one_has_held_out_items() -> None:
    assert chosen(["uniter:re", "uniter:vqa", "lxmert"]) == {"uniter": ["re", "vqa"], "lxmert": tasks_of("lxmert")}
    assert {x for x in SYSTEMS if tasks_of(x)} == set(chosen(()))
    left_out = {(x, task) for x in SYSTEMS for task in scores(x) if task not in tasks_of(x)}
    assert left_out == {("vilbert", "genome_qa")}, "Visual Genome's questions have a training split alone"
    assert all(len(benchmark_for(x, task).splits) > 1 for x in SYSTEMS for task in tasks_of(x))
    with pytest.raises(BadInput, match="pair 'uniter:gqa': uniter has vqa"):
        chosen(["uniter:gqa"])


def test_processes_merge_into_one_file(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: merge(file, f"s t{i % 10}", {str(i): i}), range(40)))
    found = json.loads(file.read_text())
    assert list(found) == sorted(found)
    assert sum(len(x) for x in found.values()) == 40


def test_the_blind_are_shown_nothing(tmp_path: Path) -> None:
    regions = write_twin("nlvr2", tmp_path, 6, 3, level=0)
    source = open_items(find("nlvr2"), tmp_path, str(regions), "train")
    tuned = begin("oscar", "nlvr2", "base", None, None, source, (), tiny=True)[0]
    tuned.__class__ = BlindTuned
    rng = np.random.default_rng(0)
    for documents in (tuned.forms(source[0]), tuned.documents(source[0], "nlvr2", rng, lambda: source[1])):
        for x in documents:
            assert x.regions is not None
            assert x.text is not None
            assert x.regions.masked.all()
            assert len(np.unique(x.regions.boxes, axis=0)) == 1
            assert "star" not in source[0].texts[0] or tuned.system.vocab.index.get("star") in x.text.ids
    seen = {tuple(x.text.ids) for x in tuned.forms(source[0]) if x.text is not None}
    assert len(seen) == 1, "tags would tell the two pictures apart"


def test_a_pair_is_made_once_and_its_pre_training_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, small = tmp_path / "twins.json", ["--before.steps", "1", "--before.warmup", "0", "--before.rows", "300"]
    small += ["--tuning.steps", "1", "--tuning.warmup", "0", "--tuning.rows", "300", "--train", "12", "--val", "4"]
    small += ["--most", "4", "--out", str(tmp_path / "runs")]
    monkeypatch.setattr(twin_results, "source_of", lambda kind: twin_results.WorldSource(count=1000, config=LEVEL_0))
    main([str(file), *small, "--pairs", "visualbert:nlvr2"])
    made = json.loads(file.read_text())["visualbert nlvr2"]
    assert {"reached", "blind", "blind_tuned", "chance", "items", "main", "steps", "before"} <= set(made)
    assert made["chance"] == 0.5
    assert (made["steps"], made["before"], made["items"]) == (1, 1, 3)
    before = (tmp_path / "runs/before/scenes/visualbert/model.safetensors").stat().st_mtime_ns
    told = capsys.readouterr().out
    main([str(file), *small, "--pairs", "visualbert:nlvr2"])
    assert "visualbert nlvr2: {" in told
    assert "visualbert nlvr2: {" not in capsys.readouterr().out, "made again"
    (tmp_path / "runs/data/nlvr2/dev.json").write_text("not json\n")
    with pytest.raises(BadInput, match="1 pairs were not made"):
        main([str(tmp_path / "none.json"), *small, "--pairs", "visualbert:nlvr2", "--no-blind"])
    assert (tmp_path / "runs/before/scenes/visualbert/model.safetensors").stat().st_mtime_ns == before
    assert not (tmp_path / "none.json").exists()


LEVEL_0 = twin_results.WorldConfig(level=0)
