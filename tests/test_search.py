"""`intarsia index` and `search`: from pictures on disk to the nearest of them, and an index that a kill leaves whole or unfinished."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import intarsia
from intarsia.batch import Array
from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.features.efficientnet import Shape
from intarsia.recipe import to_json
from intarsia.search import About, Cells, Index, Writer, recall, sort_into_cells
from intarsia.systems.wenlan import WenLan
from intarsia.text import Vocab
from intarsia.weights.files import write_weights


def about(**changes: Any) -> About:
    return dataclasses.replace(About("wenlan", "runs/a", "00", "pictures", "11", 16), **changes)


def made(folder: Path, count: int = 500, width: int = 16) -> tuple[Index, Array]:
    vectors = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    writer = Writer(folder, about(width=width))
    for start in range(0, count, 64):
        numbers = range(start, min(start + 64, count))
        writer.add([f"图{i}.jpg" for i in numbers], vectors[numbers])
    writer.finish()
    return Index(folder), vectors


def test_search_finds_what_a_loop_finds(tmp_path: Path) -> None:
    index, vectors = made(tmp_path)
    query = np.random.default_rng(1).normal(size=16)
    hits = index.search(query, top=7)
    cosines = [float(v @ query / np.linalg.norm(v) / np.linalg.norm(query)) for v in vectors]
    best = sorted(range(500), key=lambda i: -cosines[i])[:7]
    assert [x.name for x in hits] == [f"图{i}.jpg" for i in best]
    assert [x.score for x in hits] == pytest.approx([cosines[i] for i in best], abs=1e-5)
    assert isinstance(index.vectors, np.memmap)
    assert len(index.search(query, top=9999)) == 500
    with pytest.raises(BadInput, match="width 16, the query has shape"):
        index.search(query[:3])


def test_cells_find_all_if_all_are_read(tmp_path: Path) -> None:
    index, _ = made(tmp_path)
    with pytest.raises(BadInput, match="--faiss"):
        Cells(index)
    assert sort_into_cells(index) == 22
    cells, queries = Cells(index), np.random.default_rng(2).normal(size=(20, 16))
    exact = [index.search(q) for q in queries]
    assert [[x.name for x in cells.search(q, read=22)] for q in queries] == [[x.name for x in hits] for hits in exact]
    few = recall(exact, [cells.search(q, read=6) for q in queries])
    assert recall(exact, [cells.search(q, read=1) for q in queries]) < few < 1


@pytest.mark.parametrize("torn", ["vectors.f32", "names.txt"])
def test_a_killed_writer_goes_on_behind_the_last_whole_picture(tmp_path: Path, torn: str) -> None:
    _, vectors = made(tmp_path / "whole")
    half = Writer(tmp_path / "half", about())
    half.add([f"图{i}.jpg" for i in range(300)], vectors[:300])
    os.truncate(tmp_path / "half" / torn, (tmp_path / "half" / torn).stat().st_size - 3)
    with pytest.raises(BadInput, match="not finished"):
        Index(tmp_path / "half")
    again = Writer(tmp_path / "half", about())
    assert again.names == [f"图{i}.jpg" for i in range(299)]
    again.add([f"图{i}.jpg" for i in range(299, 500)], vectors[299:])
    again.finish()
    for name in ("vectors.f32", "names.txt", "about.json"):
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_weights_do_not_continue_an_index(tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(BadInput, match="other pictures or weights"):
        Writer(tmp_path, about(checksum="22"))
    os.truncate(tmp_path / "vectors.f32", 100)
    with pytest.raises(BadInput, match=r"vectors.f32: 100 bytes, 500 names of width 16 need 32000"):
        Index(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    vocab = Vocab.gb2312(())
    plan = WenLan.recipes["tiny"]
    small = {"trunk": Shape(0.25, 0.2, stem=8, head=16, classes=2), "image_size": 40, "embedding_size": 16}
    config = dataclasses.replace(plan.config, vocab_size=len(vocab), **small)
    torch.manual_seed(0)
    system = WenLan(config, vocab)
    write_weights(folder / "model.safetensors", system.state_dict(), {"system": "wenlan", "config": to_json(config)})
    tree = json.loads(to_json(dataclasses.replace(plan, config=config)))
    (folder / "recipe.json").write_text(json.dumps({"system": "wenlan", "recipe": tree}))
    (folder / "vocab.txt").write_text("\n".join(vocab.tokens) + "\n")
    return folder


def pictures(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    for i in range(7):
        colour = np.random.default_rng(i).integers(0, 255, (30 + i, 40, 3), np.uint8)
        Image.fromarray(colour).save(folder / ("deep" if i % 2 else ".") / f"{i}.png")
    return folder


def test_a_folder_is_indexed_and_searched_in_chinese(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = pictures(tmp_path / "pictures")
    options = ["--weights", str(run), "--batch", "3"]
    main(["index", str(shown), "--out", str(tmp_path / "index"), *options])
    main(
        [
            "search",
            "一只红色的杯子",
            "--index",
            str(tmp_path / "index"),
            "--top",
            "3",
            "--out",
            str(tmp_path / "hits.png"),
        ]
    )
    said = capsys.readouterr().out
    assert "7 pictures, 0 left out" in said
    assert (tmp_path / "hits.png").stat().st_size > 1000

    model = intarsia.open("wenlan", weights=run)
    names = [p.relative_to(shown).as_posix() for p in sorted(shown.rglob("*.png"))]
    scores = {name: model.match(shown / name, "一只红色的杯子").score * 0.07 for name in names}
    best = sorted(names, key=lambda name: -scores[name])[:3]
    lines = [line.split() for line in said.splitlines() if line.split()[:1] in (["1"], ["2"], ["3"])]
    assert [line[2] for line in lines] == best
    assert [float(line[1]) for line in lines] == pytest.approx([scores[name] for name in best], abs=1e-3)


def test_a_broken_picture_is_named_or_counted(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = pictures(tmp_path / "pictures")
    (shown / "4.png").write_bytes(b"no picture")
    command = ["index", str(shown), "--out", str(tmp_path / "index"), "--weights", str(run)]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    assert "4.png" in capsys.readouterr().err
    with pytest.raises(BadInput, match="not finished"):
        Index(tmp_path / "index")
    main([*command, "--on-error", "skip"])
    assert "6 pictures, 1 left out" in capsys.readouterr().out
    assert "4.png" in (tmp_path / "index/skipped.txt").read_text()


def test_only_towers_are_searched(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["search", " ", "--index", str(tmp_path)])
    assert "empty" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["search", "杯子", "--index", str(tmp_path)])
    assert "no index" in capsys.readouterr().err
