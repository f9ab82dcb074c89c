"""The study of pixels: objects and their names, what a CNN learns of them, and the whole of it at a size that means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from intarsia.cli import main
from intarsia.data.opening import open_source
from intarsia.errors import BadInput
from intarsia.features.resnet import ResNet, ResNetConfig
from intarsia.studies import pixels as study
from intarsia.worlds import WorldSource


def test_objects_are_cut_out_with_their_names(tmp_path: Path) -> None:
    source = WorldSource(count=6)
    cut, named = study.objects(source, 5)
    shown = [source[i].pictures[0] for i in range(5)]
    assert len(cut) == len(named) == sum(len(x.boxes) for x in shown)
    assert named.tolist() == [[a, b] for x in shown for a, b in zip(x.labels, x.attributes, strict=True)]
    main(["data", "scenes", str(tmp_path / "photos"), "--count", "5"])
    path = tmp_path / "photos/pairs.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    with pytest.raises(BadInput, match="no box of the training pictures has a label or a tag"):
        study.objects(open_source(tmp_path / "photos"), 5)  # tags of the objects, none of the background
    for line in lines:
        del line["tags"]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    cut, named = study.objects(open_source(tmp_path / "photos"), 5)
    labels = [y for x in lines for y in x["labels"]]
    assert named.shape == (len(cut), 1) and len(cut) == len(labels)
    known = dict(zip(labels, named[:, 0].tolist(), strict=True))
    assert [known[y] for y in labels] == named[:, 0].tolist() and len(set(known.values())) == len(known)


def test_a_cnn_learns_to_name_colours() -> None:
    rng = np.random.default_rng(0)
    colours = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250]])
    named = rng.integers(0, 3, (200, 1))
    cut = (colours[named[:, 0]][:, None, None] + rng.integers(-15, 5, (200, 32, 32, 3))).clip(0, 255).astype(np.uint8)
    torch.manual_seed(0)
    net = ResNet(ResNetConfig((1,), (4,), stem=8, num_classes=0))
    before = net.conv1.weight.detach().clone()
    assert study.name_objects(net, cut, named, 40, seed=0, batch=32) > [0.9]
    assert not torch.equal(before, net.conv1.weight)


def test_the_study_runs_once_and_writes_its_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- worlds: written by python -m intarsia.studies.pixels -->\n<!-- worlds: end -->\nafter"
    )
    held = "worlds:6:1"
    order = ["--data", "worlds:40", "--held", held, "--out", str(tmp_path / "runs"), "--page", str(page)]
    order += [
        "--steps",
        "2",
        "--rows",
        "600",
        "--trunk-steps",
        "2",
        "--seeds",
        "2",
        "--candidates",
        "4",
        "--workers",
        "0",
    ]
    study.main(order)
    told = page.read_text()
    assert told.startswith("before") and told.endswith("after") and "--seeds 2" in told
    files = sorted(x.name for x in (tmp_path / "runs").iterdir())
    assert files == ["blind-42", "blind-43", "seeing-42", "seeing-43"]
    found = {x: json.loads((tmp_path / "runs" / x / "result.json").read_text()) for x in files}
    for sees in ("seeing", "blind"):
        one, two = (found[f"{sees}-{seed}"]["held"][held]["mlm"] for seed in (42, 43))
        assert f"{(one + two) / 2:.3f} ({min(one, two):.3f} - {max(one, two):.3f})" in told
    assert found["blind-42"]["objects named"] == found["seeing-42"]["objects named"], "the same CNN to begin with"
    assert "R@1" in found["seeing-42"]["held"][held] and "R@1" not in found["blind-42"]["held"][held]
    times = [(tmp_path / "runs" / x / "model.safetensors").stat().st_mtime_ns for x in files]
    study.main(order)
    assert page.read_text() == told
    assert times == [(tmp_path / "runs" / x / "model.safetensors").stat().st_mtime_ns for x in files]
