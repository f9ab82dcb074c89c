"""The published sizes of EfficientNet: tensors, parameters, shapes; SAME padding; weights of another network are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from intarsia.errors import BadInput
from intarsia.features.efficientnet import SHAPES, EfficientNet, Shape, load_trunk, rounded
from intarsia.weights.files import write_weights

PARAMETERS = {
    "b0": 5_288_548,
    "b1": 7_794_184,
    "b2": 9_109_994,
    "b3": 12_233_232,
    "b4": 19_341_616,
    "b5": 30_389_784,
    "b6": 43_040_704,
    "b7": 66_347_960,
    "lite0": 4_652_008,
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_parameters_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        net = EfficientNet(SHAPES[name])
    assert sum(x.numel() for x in net.parameters()) == PARAMETERS[name]


def test_tensors_and_shapes_of_the_sheet() -> None:
    with torch.device("meta"):
        nets = {name: EfficientNet(SHAPES[name]).state_dict() for name in ("b0", "b5", "b7")}
    assert {name: len(state) for name, state in nets.items()} == {"b0": 360, "b5": 854, "b7": 1200}
    five = {key: tuple(value.shape) for key, value in nets["b5"].items()}
    assert five["conv_stem.weight"] == (48, 3, 3, 3)
    assert five["blocks.5.8.conv_pw.weight"] == (1824, 304, 1, 1)
    reduced = [five[f"blocks.{x}.se.conv_reduce.weight"][0] for x in ("0.0", "0.1", "1.0", "1.1", "5.8")]
    assert reduced == [12, 6, 6, 10, 76]
    assert five["conv_head.weight"] == (2048, 512, 1, 1)
    assert nets["b7"]["conv_head.weight"].shape == (2560, 640, 1, 1)
    outputs = [[max(v.shape[0] for k, v in nets[n].items() if k.startswith(f"blocks.{i}.0.conv_pw") and (i == 0) == ("pwl" not in k))
                for i in range(7)] for n in ("b5", "b7")]  # fmt: skip
    assert outputs == [[24, 40, 64, 128, 176, 304, 512], [32, 48, 80, 160, 224, 384, 640]]


def test_channels_are_never_rounded_down_by_more_than_a_tenth() -> None:
    for channels in range(8, 400, 3):
        for factor in (0.1, 0.25, 0.9, 1.0, 1.1, 1.6, 2.0):
            found = rounded(channels, factor)
            assert found % 8 == 0
            assert 0.9 * channels * factor <= found <= max(8, channels * factor + 12)


@pytest.mark.parametrize(("high", "wide"), [(64, 64), (75, 61), (33, 97)])
def test_the_last_map_covers_odd_sizes(high: int, wide: int) -> None:
    net = EfficientNet(Shape(0.1, 0.4, stem=8, head=16, classes=3)).eval()
    assert net.features(torch.zeros(2, 3, high, wide)).shape == (2, 16, -(-high // 32), -(-wide // 32))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    small, other = Shape(0.1, 0.4, stem=8, head=16, classes=3), Shape(0.1, 0.4, stem=8, head=16, classes=4)
    write_weights(tmp_path / "other.pth", EfficientNet(other).state_dict())
    with pytest.raises(BadInput, match=r"other\.pth: classifier\.weight has shape \(4, 16\)"):
        load_trunk(EfficientNet(small), tmp_path / "other.pth")
    write_weights(tmp_path / "resnet.pth", {"conv1.weight": torch.zeros(1)})
    with pytest.raises(BadInput, match=r"resnet\.pth: not EfficientNet weights in timm's names.*conv1\.weight"):
        load_trunk(EfficientNet(small), tmp_path / "resnet.pth")
    with pytest.raises(BadInput, match="no such weights file"):
        load_trunk(EfficientNet(small), tmp_path / "none.pth")
