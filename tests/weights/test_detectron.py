"""VLP's first layer over features starts as the detector's fc7, from Detectron's pickles."""

import pickle

import numpy as np
import pytest
import torch

from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.weights.detectron import read_fc7
from intarsia.weights.files import read_weights
from intarsia.worlds import WorldSource

WIDTH = WorldSource(count=2).provenance.width
WEIGHT = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
BIAS = np.arange(WIDTH, dtype=np.float64)


def folder(path, weight=WEIGHT, bias=BIAS):
    path.mkdir()
    for name, value in (("fc7_w", weight), ("fc7_b", bias)):
        (path / f"{name}.pkl").write_bytes(pickle.dumps(value, 2))
    return path


def test_two_files_and_a_whole_detector_say_the_same(tmp_path):
    whole = {"blobs": {"fc6_w": WEIGHT * 2, "fc7_w": WEIGHT, "fc7_b": BIAS, "fc7_w_momentum": WEIGHT}, "cfg": "x"}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(whole, 2))
    for path in (folder(tmp_path / "parts"), tmp_path / "model.pkl"):
        found = read_fc7(path)
        assert sorted(found) == ["bias", "weight"]
        np.testing.assert_array_equal(found["weight"], WEIGHT)
        np.testing.assert_array_equal(found["bias"], BIAS)
        assert found["bias"].dtype == torch.float32


def test_what_is_no_fc7_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"fc7_w\.pkl: no such file"):
        read_fc7(tmp_path)
    with pytest.raises(BadInput, match="turned: has no fc7_w of 2 axes of floats"):
        read_fc7(folder(tmp_path / "turned", weight=BIAS))
    with pytest.raises(BadInput, match="whole: has no fc7_b of 1 axes of floats"):
        read_fc7(folder(tmp_path / "whole", bias=np.arange(WIDTH)))
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([WEIGHT]))
    with pytest.raises(BadInput, match="has no fc7_w"):
        read_fc7(tmp_path / "list.pkl")


def test_pretraining_begins_with_it_and_trains_it(tmp_path, capsys):
    order = ["pretrain", "vlp", "--data", "worlds:30", "--workers", "0", "--device", "cpu", "--schedule.warmup", "0"]
    order += ["--schedule.steps", "1", "--batching.rows", "200", "--trunk", str(folder(tmp_path / "fc7"))]
    for rate, same in (("0", True), ("1e-3", False)):
        main([*order, "--out", str(tmp_path / rate), "--optim.lr", rate])
        found = read_weights(tmp_path / rate / "model.safetensors")
        assert np.array_equal(found["regions.fc7.weight"], WEIGHT) == same
    narrow = folder(tmp_path / "narrow", weight=WEIGHT[:, :-1])
    with pytest.raises(SystemExit) as stop:
        main([*order, "--out", str(tmp_path / "refused"), "--trunk", str(narrow)])
    assert stop.value.code == 2
    assert f"narrow: weight has shape ({WIDTH}, {WIDTH - 1})" in capsys.readouterr().err.replace("\n", "")
    assert not (tmp_path / "refused").exists()
