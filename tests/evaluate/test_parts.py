"""Scores in blocks: the same however they are cut, whether or not a pass was killed, and never of another pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intarsia.errors import BadInput
from intarsia.evaluate import matching
from intarsia.evaluate.evaluation import pairs
from intarsia.evaluate.matching import match
from intarsia.evaluate.running import QUIET
from intarsia.tasks.benchmarks import find
from intarsia.tasks.metrics import ranking
from intarsia.tuned import Tuned
from intarsia.tuning_runs import begin, open_items
from intarsia.worlds.twins import write_twin


@pytest.fixture(scope="module", params=["uniter", "lxmert", "oscar"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Read as pairs, in towers that meet late, and laid out anew."""
    data = tmp_path_factory.mktemp("coco")
    write_twin("coco", data, 6, 7, level=0)
    source = open_items(find("coco"), data, str(data / "regions"), "val")
    if request.param == "lxmert":
        from intarsia.systems import find as find_system
        from intarsia.train.start import captions, fresh

        cls = find_system("lxmert")
        assert source.provenance is not None
        system = fresh(cls, cls.recipes["tiny"], captions(source), source.provenance)[0].eval()
    else:
        system = begin(request.param, "retrieval", "base", None, None, source, (), tiny=True)[0].eval()
    return system, *pairs([source[i] for i in range(len(source))])


class Killed(Exception):
    pass


def test_a_killed_pass_goes_on_to_the_same_scores(case: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, texts, pictures, _ = case
    whole = match(system, texts, pictures, QUIET)[1]
    monkeypatch.setattr(matching, "TEXTS", 4)
    monkeypatch.setattr(matching, "PICTURES", 3)
    cut = match(system, texts, pictures, QUIET)[1]
    np.testing.assert_allclose(cut, whole, atol=1e-5, rtol=0)
    real, done = matching._block, []

    def dies(*given: object) -> object:
        if len(done) == 5:
            raise Killed
        done.append(1)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(matching, "_block", dies)
    with pytest.raises(Killed):
        match(system, texts, pictures, QUIET, keep=tmp_path / "scores")
    stored = {x.name: x.stat().st_mtime_ns for x in (tmp_path / "scores").glob("0*.npy")}
    assert len(stored) == 5
    monkeypatch.setattr(matching, "_block", lambda *x: done.append(1) or real(*x))  # type: ignore[func-returns-value]
    again = match(system, texts, pictures, QUIET, keep=tmp_path / "scores")[1]
    blocks = -(-len(texts) // 4) * -(-len(pictures) // 3)
    assert len(done) == blocks, "blocks that were done are not made again"
    assert all((tmp_path / "scores" / name).stat().st_mtime_ns == x for name, x in stored.items())
    np.testing.assert_array_equal(again, cut)
    assert isinstance(again, np.memmap)


def test_scores_of_another_pass_are_refused(case: tuple, tmp_path: Path) -> None:
    system, texts, pictures, _ = case
    match(system, texts, pictures, QUIET, keep=tmp_path)
    for changed in ((texts[1:], pictures), (texts, pictures[1:])):
        with pytest.raises(BadInput, match="scores of other weights, items or settings"):
            match(system, *changed, QUIET, keep=tmp_path)
    first = next(system.parameters())
    first.data += 1
    try:
        with pytest.raises(BadInput, match="scores of other weights"):
            match(system, texts, pictures, QUIET, keep=tmp_path)
    finally:
        first.data -= 1
    next(tmp_path.glob("0*.npy")).write_bytes(b"broken")
    if isinstance(system, Tuned):  # adding and taking away may leave other bits behind
        (tmp_path / "parts.json").unlink()
        with pytest.raises(BadInput, match="not a block of scores"):
            match(system, texts, pictures, QUIET, keep=tmp_path)


def test_wanted_pairs_alone_are_read_in_blocks(case: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    system, texts, pictures, _ = case
    whole = match(system, texts, pictures, QUIET)[1]
    for name, value in (("TEXTS", 3), ("PICTURES", 2), ("SPARSE", 1)):
        monkeypatch.setattr(matching, name, value)
    wanted = np.random.default_rng(0).random(whole.shape) < 0.3
    some = match(system, texts, pictures, QUIET, wanted)[1]
    assert np.array_equal(np.isnan(some), ~wanted)
    np.testing.assert_allclose(some[wanted], whole[wanted], atol=1e-5, rtol=0)


def test_ranks_some_queries_at_a_time_are_ranks() -> None:
    rng = np.random.default_rng(0)
    scores, owner = rng.integers(0, 9, (7, 600)).astype(np.float32), rng.integers(0, 7, 600)
    own = owner[None] == np.arange(7)[:, None]
    found = ranking.retrieval(scores, owner)
    assert found.image.ranks == tuple(ranking.ranks(scores.T, own.T))
    assert found.text.ranks == tuple(ranking.ranks(scores, own))
    wide = rng.random((300, 300))
    wide[270, 2] = np.nan
    with pytest.raises(BadInput, match="candidate 2 of query 270"):
        ranking.retrieval(wide, np.arange(300))
