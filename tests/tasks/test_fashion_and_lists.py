"""FashionGen's files and protocol, MUGE's lists and its server's file, and pairs ranked without any tuning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intarsia.cli import main
from intarsia.data.formats.fashiongen import FashionGen
from intarsia.data.opening import open_source
from intarsia.errors import BadInput
from intarsia.evaluate import queries
from intarsia.evaluate.benchmark import evaluate_pairs
from intarsia.evaluate.queries import listed
from intarsia.evaluate.rerank import Prefilter
from intarsia.scoring_runs import Asked, measure
from intarsia.tasks.benchmarks import find
from intarsia.tasks.benchmarks.rivals import by_group
from intarsia.tasks.metrics import ranking, submissions
from intarsia.tuning_runs import begin, open_items
from intarsia.worlds.twins import write_twin

h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("fashion")
    write_twin("fashiongen", data, 40, 30)
    return data


def test_rows_are_read_with_their_pixels(fashion: Path) -> None:
    path = fashion / "fashiongen_256_256_validation.h5"
    source = open_source(path)
    assert isinstance(source, FashionGen)
    with h5py.File(path) as file:
        stored, said = file["input_image"][1], file["input_description"][1, 0].decode("latin-1")
        kind, category = (file[f"input_{x}"][1, 0].decode("latin-1") for x in ("subcategory", "category"))
    sample = source[1]
    assert sample.texts == (said,)
    assert sample.pictures[0].tags == (kind, category)
    assert sample.pictures[0].pixels is not None
    assert np.array_equal(sample.pictures[0].pixels(), stored)


def test_pixels_become_regions_by_the_extractor(fashion: Path, tmp_path: Path) -> None:
    file = fashion / "fashiongen_256_256_validation.h5"
    main(["extract", str(file), "--out", str(tmp_path / "cells"), "--extractor", "patches"])
    ours = open_items(find("fashiongen"), fashion, str(tmp_path / "cells"), "val")
    twin = open_items(find("fashiongen"), fashion, str(fashion / "regions"), "val")
    assert len(ours) == len(twin)
    np.testing.assert_allclose(ours[3].pictures[0].features, twin[3].pictures[0].features, atol=2e-3)


def test_latin_1_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "fashiongen_256_256_train.h5"
    with h5py.File(path, "w") as file:
        file["input_image"] = np.zeros((2, 8, 8, 3), np.uint8)
        for name in ("description", "category", "productID"):
            file[f"input_{name}"] = np.array([["robe d\xe9coll\xe9".encode("latin-1")]] * 2)
        file["input_subcategory"] = np.array([[b"A"]])
    with pytest.raises(BadInput, match="input_subcategory has 1 rows, input_description has 2"):
        FashionGen(path)
    with h5py.File(path, "a") as file:
        del file["input_subcategory"]
        file["input_subcategory"] = np.array([[b"A"], [b"B"]])
    assert FashionGen(path)[0].texts == ("robe d\xe9coll\xe9",)
    with pytest.raises(BadInput, match="not named as FashionGen's files"):
        FashionGen(tmp_path / "x.h5")


def test_candidates_are_other_products_of_the_sub_category(fashion: Path) -> None:
    annotations = find("fashiongen").read(fashion, "val")
    drawn = find("fashiongen").candidates(annotations)  # type: ignore[misc]
    said = [annotations.gold[x.key] for x in annotations.items]
    poses = len(said) - len({product for product, _ in said})
    assert poses > 0, "some product is shown twice"
    for query, others in drawn.asked:
        assert query in others
        assert {said[x][1] for x in others} == {said[query][1]}
        assert len({said[x][0] for x in others}) == len(others), "no pose of the same product"
    assert f"{len(drawn.asked)} queries, {len(drawn.asked[0][1])} candidates" in drawn.told


def test_the_full_column_has_every_product_once(fashion: Path) -> None:
    whole, all_rows = find("fashiongen-all").read(fashion, "val"), find("fashiongen").read(fashion, "val")
    products = [all_rows.gold[x.key][0] for x in all_rows.items]
    assert len(products) > len(set(products)) == len(whole.items) == 30, "every third product has a second pose"
    assert [whole.gold[x.key][0] for x in whole.items] == list(dict.fromkeys(products))
    assert [x.key for x in whole.items] == [all_rows.items[products.index(x)].key for x in dict.fromkeys(products)]
    assert find("fashiongen-all").candidates is None


def test_hard_negatives_are_of_the_group_and_of_another_product(fashion: Path) -> None:
    source = open_items(find("fashiongen"), fashion, str(fashion / "regions"), "train")
    rivals, rng = by_group(source, source.annotations.gold), np.random.default_rng(0)
    with_rival = 0
    for i in range(len(source)):
        sample = source[i]
        drawn = rivals.draws(sample, rng, lambda: replace(source[0], key="far")).near()
        if drawn.key == "far":
            continue
        with_rival += 1
        mine, other = (source.annotations.gold[x] for x in (sample.key, drawn.key))
        assert mine[1] == other[1]
        assert mine[0] != other[0]
    assert with_rival > len(source) / 2


def test_ties_are_counted_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_twin("coco", tmp_path, 12, 6, level=0)
    source = open_items(find("coco"), tmp_path, str(tmp_path / "regions"), "val")
    tuned = begin("uniter", "retrieval", "base", None, None, source, (), tiny=True)[0].eval()
    pictures = len({x.pictures for x, _ in source.kept})
    monkeypatch.setattr(
        queries, "match", lambda _, texts, *__, **___: ([*range(len(texts))], np.zeros((len(texts), pictures)))
    )
    found = {x: evaluate_pairs(tuned, find("coco"), source, convention=x)[0] for x in ("", *find("coco").conventions)}
    assert [x.convention for x in found.values()] == ["pessimistic", *find("coco").conventions]
    rsum = {name: x.numbers["rsum"] for name, x in found.items()}
    assert rsum[""] == rsum["pessimistic"] < rsum["mean"] < rsum["optimistic"] == 600
    exact = source.annotations.items
    scores = np.random.default_rng(0).normal(size=(len(exact), pictures))
    monkeypatch.setattr(queries, "match", lambda *_, **__: ([*range(len(exact))], scores))
    plain, theirs = (evaluate_pairs(tuned, find("coco"), source, convention=x)[0].numbers for x in ("mean", "uniter"))
    assert plain["text R@1"] == theirs["text R@1"]
    assert plain["image R@1"] < theirs["image R@1"] <= plain["image R@1"] + 1 / len(exact)
    with pytest.raises(BadInput, match="coco: no convention 'howto100m'"):
        evaluate_pairs(tuned, find("coco"), source, convention="howto100m")
    with pytest.raises(BadInput, match="--convention howto100m: one text a film"):
        queries.ranked(tuned, source, 0, convention="howto100m")
    with pytest.raises(BadInput, match="--convention mean: after a first ranking"):
        queries.ranked(tuned, source, 0, first=Prefilter(lambda *_: scores, 2), convention="mean")


def muge_files(root: Path, pictures: list[int]) -> None:
    rows = [
        {"text_id": 7, "text": "red", "image_ids": pictures[:2]},
        {"text_id": 8, "text": "blue", "image_ids": pictures[2:3]},
    ]
    (root / "valid_texts.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    (root / "valid_imgs.tsv").write_text("".join(f"{x}\tAAAA\n" for x in [*pictures, 999_999]))
    (root / "test_texts.jsonl").write_text(json.dumps({"text_id": 9, "text": "red", "image_ids": []}) + "\n")
    (root / "test_imgs.tsv").write_text("".join(f"{x}\tAAAA\n" for x in pictures))


def test_muge_ranks_all_pictures_of_the_split(tmp_path: Path) -> None:
    write_twin("coco", tmp_path, 12, 4, level=0)
    muge_files(tmp_path, list(range(12)))
    benchmark, regions = find("muge"), str(tmp_path / "regions")
    source = open_items(benchmark, tmp_path, regions, "val")
    assert len(source.annotations.items) == 3
    tuned = begin("uniter", "retrieval", "base", None, None, source, (), tiny=True)[0].eval()
    lists, out = listed(tuned, source)
    assert lists.keys() == {"7", "8"}
    assert all(len(set(x)) == 10 for x in lists.values())
    assert out == {"candidates without regions": 1}
    found = benchmark.measure_lists(source.annotations, lists)  # type: ignore[misc]
    gold = {7: [0, 1], 8: [2]}
    again = ranking.muge({int(k): [int(i) for i in x] for k, x in lists.items()}, gold)
    assert found["mean recall"] == again["mean"]
    test = open_items(benchmark, tmp_path, regions, "test")
    assert not test.annotations.gold
    sent, _ = listed(tuned, test)
    benchmark.submit_lists(tmp_path / "sent.jsonl", test.annotations, sent)  # type: ignore[misc]
    assert submissions.read_muge(tmp_path / "sent.jsonl") == {9: [int(i) for i in sent["9"]]}
    with pytest.raises(BadInput, match="1 have no pictures"):
        benchmark.submit_lists(tmp_path / "x.jsonl", test.annotations, {})  # type: ignore[misc]
    (tmp_path / "valid_imgs.tsv").write_text("7 AAAA\n")
    with pytest.raises(BadInput, match="line 1: '7 AAAA"):
        benchmark.read(tmp_path, "val")


def test_fewer_than_ten_candidates_make_no_list(tmp_path: Path) -> None:
    write_twin("coco", tmp_path, 4, 2, level=0)
    muge_files(tmp_path, [0, 1, 2])
    source = open_items(find("muge"), tmp_path, str(tmp_path / "regions"), "val")
    tuned = begin("uniter", "retrieval", "base", None, None, source, (), tiny=True)[0].eval()
    with pytest.raises(BadInput, match="3 candidates have regions, a list is of 10"):
        listed(tuned, source)


def test_a_pre_trained_run_ranks_as_it_is(fashion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FashionBERT's paper tunes nothing: the head of pre-training is scored."""
    run = tmp_path / "run"
    main(
        [
            "pretrain",
            "fashionbert",
            "--size",
            "tiny",
            "--data",
            "products:20",
            "--out",
            str(run),
            "--schedule.steps",
            "1",
        ]
    )
    where = ["--data", str(fashion), "--regions", str(fashion / "regions")]
    main(["score", str(run), "--benchmark", "fashiongen", *where])
    told = json.loads((run / "score-val.json").read_text())
    assert {"image rank@1", "text rank@10", "image accuracy"} <= told["numbers"].keys()
    assert "queries" in told["told"]
    found, _, _ = measure(Asked(run, benchmark="fashiongen", data=fashion, regions=str(fashion / "regions")))
    assert found.numbers == told["numbers"]
    for more, said in (([], "a run of pre-training: say on what"), (["--benchmark", "vqa", *where], "ranks pairs")):
        with pytest.raises(SystemExit) as caught:
            main(["score", str(run), *more])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err
