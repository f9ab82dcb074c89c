"""What a user gets wrong at the command line: one line that names file, sample and value, exit code 2, nothing half-written.

A full disk and a loss that is not a number are in tests/train/test_resume.py, more broken data in tests/data/.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from intarsia.cli import main
from intarsia.data.formats.regions import write_regions
from intarsia.data.formats.shards import ShardWriter
from intarsia.data.source import Provenance
from intarsia.weights.files import read_weights
from intarsia.worlds import WorldSource

Caught = pytest.CaptureFixture[str]


def order_draws(args: tuple[Any, ...]) -> bool:
    return args[0] == "extract"


def refused(caught: Caught, *args: Any) -> str:
    caught.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(x) for x in args])
    assert stopped.value.code == 2
    *bars, said = caught.readouterr().err.strip().split("\n")  # of an extraction the progress bar comes first
    assert not bars or order_draws(args)
    assert said.startswith("intarsia: ")
    return said.removeprefix("intarsia: ")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    main(["pretrain", "uniter", "--data", "worlds:80", "--out", str(out), "--schedule.steps", "2", "--workers", "0"])
    return out


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{i}.jpg")
    write(root, *({"key": f"k{i}", "image": f"images/{i}.jpg", "captions": ["a dog"]} for i in range(2)))
    return root


def write(root: Path, *lines: Any) -> None:
    text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    (root / "pairs.jsonl").write_text(text, encoding="utf-8")


def line(**more: Any) -> dict[str, Any]:
    return {"key": "bad", "image": "images/1.jpg", "captions": ["a dog"], **more}


def shards(root: Path, width: int) -> Path:
    world = WorldSource(count=12)
    rng = np.random.default_rng(0)
    writer, lines = ShardWriter(root, Provenance("other", width)), []
    for i in range(len(world)):
        picture = world[i].pictures[0]
        features = rng.standard_normal((len(picture.boxes), width)).astype(np.float16)
        writer.add(type(picture)(picture.name, features, picture.boxes, picture.width, picture.height))
        lines.append({"key": world[i].key, "image": picture.name, "captions": [world[i].texts[0]]})
    writer.finish(lines)
    return root


DATA: list[tuple[str, Callable[[Path], None], tuple[str, ...]]] = [
    ("missing picture", lambda root: write(root, line(image="images/9.jpg")), ("images/9.jpg", "does not exist")),
    ("broken line", lambda root: write(root, line(), '{"key": "x", "image"'), ("pairs.jsonl", "line 2")),
    ("box outside", lambda root: write(root, line(boxes=[[0, 0, 70, 9]])), ("line 1", "[0, 0, 70, 9]", "60x40")),
    ("box turned", lambda root: write(root, line(boxes=[[9, 0, 3, 9]])), ("line 1", "[9, 0, 3, 9]", "no area")),
    ("empty caption", lambda root: write(root, line(captions=[""])), ("line 1", "caption 0 is empty")),
]


@pytest.mark.parametrize(("spoil", "parts"), [x[1:] for x in DATA], ids=[x[0] for x in DATA])
@pytest.mark.parametrize("command", ["check", "extract"])
def test_data(capsys: Caught, photos: Path, tmp_path: Path, spoil: Any, parts: tuple[str, ...], command: str) -> None:
    spoil(photos)
    out = tmp_path / "out"
    order = (
        ["data", "check", photos] if command == "check" else ["extract", photos, "--out", out, "--extractor", "grid"]
    )
    said = refused(capsys, *order)
    assert all(part in said for part in parts), said
    assert not list(out.glob("*.safetensors"))


def test_truncated_jpeg(capsys: Caught, photos: Path) -> None:
    path = photos / "images/1.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    said = refused(capsys, "data", "check", photos)
    assert "line 2" in said
    assert str(path) in said


def test_bad_samples_are_counted_and_listed_when_skipped(capsys: Caught, photos: Path) -> None:
    write(photos, line(key="good"), line(key="worse", image="images/9.jpg"), line(captions=[""]))
    main(["data", "check", str(photos), "--on-error", "skip"])
    said = capsys.readouterr().out
    assert "1 of " in said
    assert "images/9.jpg does not exist" in said.replace("\n", "")
    assert "caption 0 is empty" in said.replace("\n", "")


def test_nan_in_features(capsys: Caught, photos: Path, tmp_path: Path) -> None:
    picture = WorldSource(count=1)[0].pictures[0]
    features = picture.features.copy()
    features[1, 3] = np.nan
    made = type(picture)("images/1.jpg", features, picture.boxes, 60, 40)
    write_regions(photos / "1.npz", made)
    write(photos, line(regions="1.npz"))
    said = refused(capsys, "data", "check", photos)
    assert "1.npz" in said
    assert "features of region 1 are not finite" in said


def test_wrong_feature_width(capsys: Caught, run: Path, tmp_path: Path) -> None:
    data = shards(tmp_path / "narrow", 5)
    out = tmp_path / "out"
    alone = tmp_path / "alone.safetensors"
    shutil.copy(run / "model.safetensors", alone)
    order = ["pretrain", "uniter", "--data", data, "--out", out, "--weights", alone]
    said = refused(capsys, *order, "--vocab", run / "vocab.txt")
    assert str(data) in said
    assert "width 5" in said
    assert "192" in said
    assert not out.exists()
    said = refused(capsys, "evaluate", "uniter", "--weights", run, "--data", data, "--split", "train")
    assert "other" in said
    assert "pixels" in said


def test_features_of_another_extractor(capsys: Caught, run: Path, tmp_path: Path) -> None:
    data = shards(tmp_path / "others", 192)
    weights = run / "model.safetensors"
    for more in (["--out", run], ["--out", tmp_path / "new", "--weights", weights, "--vocab", run / "vocab.txt"]):
        said = refused(capsys, "pretrain", "uniter", "--data", data, *more)
        assert said.startswith(f"{data}: features with extractor 'other', the weights were trained on 'pixels'; run `")
        assert "intarsia extract PICTURES --out OUT --extractor pixels`" in said
    assert not (tmp_path / "new").exists()


def test_weights_of_another_system(capsys: Caught, tmp_path: Path) -> None:
    path = tmp_path / "theirs.pt"
    keys = ("bert.encoder.x_layers.0.visual_attention.att.query.weight", "bert.encoder.visn_fc.visn_fc.weight")
    torch.save({key: torch.zeros(2, 2) for key in keys}, path)
    said = refused(capsys, "convert", "uniter", path, tmp_path / "ours.safetensors")
    assert str(path) in said
    assert "lxmert" in said
    assert not (tmp_path / "ours.safetensors").exists()


def test_vocabulary_that_does_not_fit(capsys: Caught, run: Path, photos: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("".join(x + "\n" for x in (run / "vocab.txt").read_text().split("\n")[:-3]))
    order = ["predict", "uniter", "--weights", run / "model.safetensors", "--image", photos / "images/0.jpg"]
    said = refused(capsys, *order, "--text", "a dog", "--vocab", short)
    assert str(short) in said
    assert "not the vocabulary" in said
    kept = tmp_path / "run"
    shutil.copytree(run, kept)
    shutil.copy(short, kept / "vocab.txt")
    said = refused(capsys, "predict", "uniter", "--weights", kept, "--image", photos / "images/0.jpg", "--text", "x")
    assert "vocabulary" in said


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_to_run_code(capsys: Caught, tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "ran"
    if zipped:
        torch.save({"a": Evil(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"a": Evil(mark)}, protocol=2))
    said = refused(capsys, "convert", "uniter", path, tmp_path / "ours.safetensors")
    assert str(path) in said
    assert not mark.exists()
    assert not (tmp_path / "ours.safetensors").exists()


def test_a_missing_and_a_cut_weights_file(capsys: Caught, run: Path, tmp_path: Path) -> None:
    assert "no such weights file" in refused(
        capsys, "convert", "uniter", tmp_path / "no.pt", tmp_path / "x.safetensors"
    )
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((run / "model.safetensors").read_bytes()[:-100])
    assert str(cut) in refused(capsys, "convert", "uniter", cut, tmp_path / "x.safetensors")


def test_weights_keep_whole_when_writing_fails(capsys: Caught, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "folder.safetensors"
    target.mkdir()
    said = refused(capsys, "convert", "uniter", run / "model.safetensors", target)
    assert str(target) in said
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("order", "part"),
    [
        (["fly"], "no command 'fly'"),
        (["pretrain"], "which system"),
        (["pretrain", "unitre", "--data", "worlds:9", "--out", "x"], "unitre"),
        (["pretrain", "uniter", "--size", "giant", "--data", "worlds:9", "--out", "x"], "giant"),
        (["pretrain", "uniter", "--data", "nowhere", "--out", "x"], "nowhere: no such file"),
        (["data", "fly"], "fly"),
        (["data", "inspect", "nowhere"], "nowhere"),
        (["predict", "uniter", "--weights", "nowhere", "--image", "x.jpg", "--text", "x"], "vocab"),
    ],
)
def test_orders(capsys: Caught, order: list[str], part: str) -> None:
    assert part in refused(capsys, *order)


@pytest.mark.parametrize(
    "order",
    [
        ["pretrain", "uniter", "--data", "x", "--out", "y"],
        ["evaluate", "uniter", "--weights", "x", "--data", "y"],
        ["predict", "uniter", "--weights", "x", "--image", "y", "--text", "z"],
        ["extract", "x", "--out", "y"],
        ["show", "system", "uniter"],
        ["data", "inspect", "x"],
        ["list"],
    ],
)
def test_unknown_flags(capsys: Caught, order: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*order, "--no-such-flag", "1"])
    assert stopped.value.code == 2
    assert "no-such-flag" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["pretrain uniter", "evaluate", "predict", "extract", "show", "convert", "data check"]
)
def test_help(capsys: Caught, command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_a_run_leaves_what_prediction_needs(capsys: Caught, run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "match.png"
    order = ["predict", "uniter", "--weights", run, "--image", photos / "images/0.jpg", "--text", "a red ring"]
    main([str(x) for x in [*order, "--out", out]])
    with Image.open(out) as drawn:
        assert min(drawn.size) > 300
    said = capsys.readouterr().out
    assert "probability" in said
    assert said.count("region ") == 3
    assert set(read_weights(run / "model.safetensors"))
