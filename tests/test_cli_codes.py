"""The road from pictures to codes to drawings at the command line, and what is refused on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import intarsia
from intarsia.cli import main
from intarsia.features.vq import read_vq
from intarsia.features.vqgan import KEYS, VQGAN, VQGANNumbers, read_codec
from intarsia.weights.files import read_weights

DATA = "products-zh:40"


def call(*args: object) -> None:
    main([str(x) for x in args])


def refused(caught: pytest.CaptureFixture[str], *args: object) -> str:
    caught.readouterr()
    with pytest.raises(SystemExit) as stopped:
        call(*args)
    assert stopped.value.code == 2
    return caught.readouterr().err.strip()


def train(out: Path, *more: object, size: str = "t2i_tiny", data: str = DATA) -> tuple[object, ...]:
    short = ("--schedule.steps", 2, "--schedule.warmup", 1, "--workers", 0, "--device", "cpu")
    return ("pretrain", "m6", "--size", size, "--data", data, "--out", out, *short, *more)


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codes") / "codes.safetensors"
    numbers = ("--codes", 20, "--channels", 8, "--side", 32, "--steps", 3, "--batch", 4, "--device", "cpu")
    call("data", "codes", DATA, "--out", path, *numbers)
    return path


@pytest.fixture(scope="module")
def run(codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "run"
    call(*train(out, "--codes", codes, "--valid", "products-zh:8:1"))
    return out


def test_a_run_keeps_its_codes_and_draws(
    codes: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (run / "codes.safetensors").read_bytes() == codes.read_bytes()
    config = json.loads((run / "recipe.json").read_text())["recipe"]["config"]
    assert (config["codes"], config["code_length"]) == (20, 16)
    assert "38 pictures of products-zh:40" in read_vq(codes).about
    valid = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("text_to_image" in x.get("valid", {}) for x in valid)
    order = ("show", "picture", "红色棉质T恤", "--weights", run, "--count", 3)
    for seed, name in ((0, "a.png"), (0, "b.png"), (1, "c.png")):
        call(*order, "--seed", seed, "--out", tmp_path / name)
    one, two, three = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c.png"))
    assert one == two != three
    assert Image.open(tmp_path / "a.png").size == (96, 32)
    assert "3 pictures: " in capsys.readouterr().out
    said = refused(capsys, *order[:2], "红", "--weights", run, "--out", tmp_path / "d.jpg")
    assert "d.jpg: pictures are written as .png" in said
    assert "count 0 (from 1)" in refused(capsys, *order[:-1], 0, "--out", tmp_path / "e.png")
    assert "the text '' is empty" in refused(capsys, *order[:2], "", "--weights", run, "--out", tmp_path / "e.png")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]


def test_a_trained_m6_begins_to_draw(codes: Path, run: Path, tmp_path: Path) -> None:
    plain, drawing = tmp_path / "plain", tmp_path / "drawing"
    call(*train(plain, size="tiny"))
    before = read_weights(plain / "model.safetensors")
    assert "codes.weight" not in before
    call(*train(drawing, "--codes", codes, "--weights", plain / "model.safetensors", "--vocab", plain / "vocab.txt"))
    after = read_weights(drawing / "model.safetensors")
    assert after["codes.weight"].shape[0] == 20
    near = (after["words.word.weight"] - before["words.word.weight"]).abs().max().item()
    assert near < 0.01, "two steps away from where it began"
    call("show", "picture", "红色", "--weights", drawing, "--out", tmp_path / "a.png")


def test_the_best_by_a_matching_system_come_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = tmp_path / "judge"
    more = ("--out", judge, "--schedule.steps", 2, "--schedule.warmup", 1, "--workers", 0, "--device", "cpu")
    call("pretrain", "pixel_bert", "--data", "products-zh:12", *more, "--config.short-side", 32)
    order = ("show", "picture", "红色棉质T恤", "--weights", run, "--count", 5, "--temperature", 3.0)
    call(*order, "--out", tmp_path / "drawn.png")
    capsys.readouterr()
    call(*order, "--judge", judge, "--out", tmp_path / "judged.png")
    fit = [float(x) for x in capsys.readouterr().out.split("fit ")[1].split(":")[0].split()]
    drawn, judged = (np.split(np.array(Image.open(tmp_path / f"{x}.png")), 5, 1) for x in ("drawn", "judged"))
    model = intarsia.open("pixel_bert", weights=judge)
    scores = [model.match(x, order[2]).score for x in judged]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) > 1 and fit == pytest.approx(scores, abs=0.01)
    assert sorted(x.tobytes() for x in drawn) == sorted(x.tobytes() for x in judged)
    said = refused(capsys, *order, "--judge", run, "--out", tmp_path / "none.png")
    assert "m6 does not match pictures and texts" in said and not (tmp_path / "none.png").exists()


def test_a_vqgan_of_the_authors_layout_is_taken_as_it_is(
    codes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = VQGANNumbers(codes=9, width=4, z_channels=4, stem=32, channels=(32,) * 5, blocks=1, attended=())
    torch.manual_seed(0)
    torch.save({"state_dict": KEYS.to_theirs(VQGAN(numbers).state_dict())}, tmp_path / "last.ckpt")
    order = train(tmp_path / "run", "--codes", tmp_path / "last.ckpt", data="products-zh:3")
    call(*order, "--config.max-position-embeddings", 256)
    config = json.loads((tmp_path / "run/recipe.json").read_text())["recipe"]["config"]
    assert (config["codes"], config["code_length"]) == (9, 256)
    kept = read_codec(tmp_path / "run/codes.safetensors")
    assert isinstance(kept, VQGAN) and kept.numbers == numbers
    call("show", "picture", "红色", "--weights", tmp_path / "run", "--out", tmp_path / "a.png", "--count", 1)
    assert Image.open(tmp_path / "a.png").size == (256, 256)
    other = ("--codes", codes, "--config.max-position-embeddings", 256)
    assert "was begun with other codes" in refused(capsys, *train(tmp_path / "run", *other, data="products-zh:3"))
    (tmp_path / "bad.ckpt").write_bytes(b"no")
    assert "bad.ckpt: refused" in refused(capsys, *train(tmp_path / "x", "--codes", tmp_path / "bad.ckpt"))


def test_what_cannot_be_drawn_is_refused(
    codes: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, *train(tmp_path / "x"))
    assert "its picture has no codes; run `intarsia data codes`" in said
    other = ("pretrain", "uniter", "--data", "worlds:8", "--out", tmp_path / "y", "--codes", codes)
    assert f"--codes {codes}: uniter writes no pictures" in refused(capsys, *other)
    assert "no picture codes can be read" in refused(capsys, *train(tmp_path / "z", "--codes", tmp_path / "none"))
    changed = tmp_path / "changed.safetensors"
    call("data", "codes", DATA, "--out", changed, "--codes", 20, "--channels", 8, "--side", 32, "--steps", 2)
    assert "was begun with other codes" in refused(capsys, *train(run, "--codes", changed))
    assert "codes are written as .safetensors" in refused(capsys, "data", "codes", DATA, "--out", tmp_path / "a.pt")
    assert "no multiple of cells of 3" in refused(
        capsys, "data", "codes", DATA, "--out", tmp_path / "a.safetensors", "--cell", 3
    )
    plain = tmp_path / "plain"
    call(*train(plain, size="tiny"))
    said = refused(capsys, "show", "picture", "红", "--weights", plain, "--out", tmp_path / "p.png")
    assert "was not trained to write pictures" in said
    assert "no such recipe" in refused(
        capsys, "show", "picture", "红", "--weights", tmp_path, "--out", tmp_path / "p.png"
    )
    assert not (tmp_path / "p.png").exists()
