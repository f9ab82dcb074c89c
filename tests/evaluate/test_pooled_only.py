"""Pairs are scored with the last layer of what is pooled alone, where a system's score needs no more, and with all of it where it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from intarsia.batch import Example
from intarsia.evaluate.matching import match, score_pairs
from intarsia.evaluate.running import QUIET, fitting
from intarsia.pack import pack
from intarsia.system import System
from intarsia.systems import SYSTEMS, find
from intarsia.tasks.benchmarks import find as find_benchmark
from intarsia.train.start import captions, fresh
from intarsia.tuning_runs import begin, open_items
from intarsia.worlds import WorldConfig, WorldSource
from intarsia.worlds.twins import write_twin

WORLD = WorldSource(WorldConfig(level=0), "train", 30, 3)
LEAVES_OUT = {"uniter", "visualbert", "unicoder_vl", "imagebert", "fashionbert", "lxmert"}
"""Systems that are seen to leave the rest out: all of one stream that match by [CLS]."""
ABLE = [x for x in SYSTEMS if "regions" in find(x).needs and not find(x).towers]


def made(name: str) -> System:
    cls = find(name)
    assert WORLD.provenance is not None
    return fresh(cls, cls.recipes["tiny"], captions(WORLD, cls.specials), WORLD.provenance)[0].eval()


@pytest.mark.parametrize("name", ABLE)
def test_scores_are_those_of_whole_last_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = made(name)
    if not system.matches:
        pytest.skip(f"{name} does not rank pairs")
    _, examples = fitting(system, [WORLD[i] for i in range(4)])
    pairs = [Example(x.key, x.text, y.regions) for x in examples[:2] for y in examples]
    with torch.inference_mode():
        whole = system.match_scores(system.encode(pack(pairs))).float().numpy().reshape(2, 4)
    rows: list[int | None] = []
    read = type(system).read

    def watched(self: System, batch: object) -> object:
        found = read(self, batch)  # type: ignore[arg-type]
        rows.append(None if found is None else sum(len(x) for x in found.values()))
        return found

    monkeypatch.setattr(type(system), "read", watched)
    np.testing.assert_allclose(score_pairs(system, examples[:2], examples, how=QUIET), whole, atol=2e-5, rtol=0)
    assert not system.pooled_only, "left on for what comes next"
    if name in LEAVES_OUT:
        assert rows == [8], f"{name} computed more than the row that is pooled of each of 8 documents: {rows}"


def test_a_tuned_head_that_reads_more_gets_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = write_twin("flickr30k", tmp_path, 6, 3, level=0)
    source = open_items(find_benchmark("flickr30k"), tmp_path, str(regions), "val")
    tuned = begin("uniter", "retrieval", "base", None, None, source, (), tiny=True)[0].eval()
    texts = [source[0], source[2]]
    shown = [x.pictures[0] for x in texts]

    def by_words(encoded: object) -> torch.Tensor:
        return encoded.text[1::7][:4].mean(1)  # type: ignore[attr-defined,no-any-return]

    monkeypatch.setattr(tuned, "match_scores", by_words)
    assert np.isfinite(match(tuned, texts, shown, QUIET)[1]).all()
    assert not tuned.system.pooled_only
