"""Two-stage retrieval and folds against exact scoring."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from intarsia.cli import main
from intarsia.evaluate import queries as measuring
from intarsia.evaluate.evaluation import pairs
from intarsia.evaluate.matching import match
from intarsia.evaluate.rerank import Prefilter, best, rerank
from intarsia.tasks.benchmarks import find
from intarsia.tuning_runs import begin, open_items
from intarsia.worlds.twins import write_twin


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("coco")
    main(["twin", "coco", "--out", str(data), "--train", "12", "--val", "6", "--level", "0"])
    return data


@pytest.mark.parametrize("name", ["uniter", "lxmert", "oscar"])
def test_all_candidates_are_exact_and_few_are_a_part(name: str, twin: Path) -> None:
    """UNITER is read as pairs, LXMERT's first layers apart, Oscar lays every pair out anew (its tags)."""
    source = open_items(find("coco"), twin, str(twin / "regions"), "val")
    if name == "lxmert":
        from intarsia.systems import find as find_system
        from intarsia.train.start import captions, fresh

        cls = find_system(name)
        assert source.provenance is not None
        tuned = fresh(cls, cls.recipes["tiny"], captions(source), source.provenance)[0].eval()
    else:
        tuned = begin(name, "retrieval", "base", None, None, source, (), tiny=True)[0].eval()
    texts, pictures, gold = pairs([source[i] for i in range(len(source))])
    kept, exact = match(tuned, texts, pictures)
    assert len(kept) == len(texts)
    first = np.random.default_rng(0).random(exact.shape)
    whole, _ = rerank(tuned, texts, pictures, np.array(gold), Prefilter(lambda *_: first, len(texts)))
    assert whole[f"prefilter image R@{len(texts)}"] == 1
    found = measuring.ranking.retrieval(exact.T, np.array(gold))
    assert whole["image R@1"] == found.image.at[1]
    assert whole["text R@5"] == found.text.at[5]
    wanted = best(first, 2)
    _, some = match(tuned, texts, pictures, wanted=wanted)
    assert np.allclose(some[wanted], exact[wanted], atol=1e-4)
    assert np.isnan(some[~wanted]).all()
    few, _ = rerank(tuned, texts, pictures, np.array(gold), Prefilter(lambda *_: first, 2))
    inside = wanted[np.arange(len(gold)), gold].mean()
    assert few["prefilter image R@2"] == pytest.approx(inside)
    assert few["image R@5"] == pytest.approx(inside)


def test_a_perfect_first_ranking_is_kept(twin: Path) -> None:
    source = open_items(find("coco"), twin, str(twin / "regions"), "val")
    tuned = begin("uniter", "retrieval", "base", None, None, source, (), tiny=True)[0].eval()
    texts, pictures, gold = pairs([source[i] for i in range(len(source))])
    right = np.eye(len(pictures))[gold]
    found, count = rerank(tuned, texts, pictures, np.array(gold), Prefilter(lambda *_: right, 1))
    assert count == len(texts)
    assert found["image R@1"] == found["text R@1"] == found["prefilter text R@1"] == 1


def test_folds_are_consecutive_pictures() -> None:
    rng = np.random.default_rng(3)
    owner = np.repeat(np.arange(6), 2)
    scores = rng.random((12, 6))
    found = measuring._folds(scores, owner, 3, "pessimistic")
    parts = [measuring.ranking.retrieval(scores[6 * i : 6 * i + 6, 3 * i : 3 * i + 3].T, owner[:6]) for i in (0, 1)]
    assert found["2 x 3 image R@1"] == pytest.approx(np.mean([x.image.at[1] for x in parts]))
    assert found["first 3 text R@1"] == pytest.approx(parts[0].text.at[1])
    assert found["first 3 rsum"] == pytest.approx(parts[0].rsum)
    assert found["2 x 3 rsum"] == pytest.approx(np.mean([x.rsum for x in parts]))


def test_by_the_command_line(twin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    main(
        ["finetune", "uniter", "retrieval", "--data", str(twin), "--regions", str(twin / "regions"), "--out", str(run)]
        + ["--benchmark", "coco", "--steps", "1", "--rows", "400", "--samples", "1", "--workers", "0"]
        + ["--size", "tiny", "--device", "cpu"]
    )
    main(["score", str(run), "--prefilter", "ridge", "--top", "3"])
    numbers = json.loads((run / "score-val.json").read_text())["numbers"]
    assert numbers["image R@5"] == numbers["prefilter image R@3"]
    with pytest.raises(SystemExit):
        main(["score", str(run), "--prefilter", str(run)])
    assert "has no two towers" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["score", str(run), "--prefilter", "ridge", "--top", "0"])
    assert "at least one candidate" in capsys.readouterr().err


def test_two_towers_rank_first(tmp_path: Path) -> None:
    from intarsia.evaluate.rerank import by_towers
    from intarsia.systems import find as find_system
    from intarsia.train.start import NO_FEATURES, captions, fresh

    write_twin("coco", tmp_path, 2, 4, level=1, pictures=True)
    source = open_items(find("coco"), tmp_path, str(tmp_path / "regions"), "val")
    cls = find_system("wenlan")
    towers = fresh(cls, cls.recipes["tiny"], captions(source, cls.specials), NO_FEATURES)[0].eval()
    reader = begin("uniter", "retrieval", "base", None, None, source, (), tiny=True)[0].eval()
    texts, pictures, gold = pairs([source[i] for i in range(len(source))])
    first = by_towers(towers)
    found, _ = rerank(reader, texts, pictures, np.array(gold), Prefilter(first, 2))
    within = best(first(texts, pictures), 2)[np.arange(len(gold)), gold].mean()
    assert found["prefilter image R@2"] == pytest.approx(within)
