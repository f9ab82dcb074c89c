"""EfficientNet against timm's: every map, the logits, the loss, gradients, weights both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden import Golden, assert_near

from intarsia.features.efficientnet import EfficientNet, Shape, load_trunk
from intarsia.weights.files import write_weights

CASES = Golden.cases("efficientnet")
each_case = pytest.mark.parametrize("golden", CASES, ids=str)


def build(golden: Golden) -> EfficientNet:
    about = golden.about["config"]
    shape = Shape(
        about["width_multiplier"],
        about["depth_multiplier"],
        about["stem_channels"],
        about["head_channels"],
        about["num_classes"],
    )
    net = EfficientNet(shape).eval()
    net.load_state_dict(golden.weights("weights."), strict=True)
    return net


@each_case
def test_maps_and_logits_at_every_size(golden: Golden) -> None:
    net = build(golden)
    sizes = sorted(key.rsplit("_", 1)[1] for key in golden.tensors if key.startswith("input.pixel_values_"))
    compared = 0
    for size in sizes:
        pixels = golden.tensors[f"input.pixel_values_{size}"]
        stem, *maps = net.maps(pixels)
        ours = {f"blocks_{i}_{size}": x for i, x in enumerate(maps)}
        ours |= {f"stem_{size}": stem, f"features_{size}": net.features(pixels), f"logits_{size}": net(pixels)}
        for name, mine in ours.items():
            if f"output.{name}" in golden.tensors:
                theirs = golden.output(name)
                assert_near(mine if mine.shape == theirs.shape else mine.mean((2, 3)), theirs, name)
                compared += 1
    assert compared == sum(key.startswith("output.") and "loss" not in key for key in golden.tensors)


@each_case
def test_loss_and_gradients(golden: Golden) -> None:
    net = build(golden)
    logits = net(golden.tensors["input.pixel_values_0"])
    loss = F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1])
    assert_near(loss.reshape(-1), golden.output("loss_0").reshape(-1), "loss")
    loss.backward()
    gradients = golden.weights("grad.")
    assert gradients
    for name, theirs in gradients.items():
        assert_near(net.get_parameter(name).grad, theirs, f"gradient of {name}")


@each_case
def test_weights_load_and_go_back_byte_equal(golden: Golden, tmp_path: Path) -> None:
    theirs = golden.weights("weights.")
    write_weights(tmp_path / "theirs.pth", theirs)
    net = EfficientNet(build(golden).shape)
    load_trunk(net, tmp_path / "theirs.pth")
    ours = net.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
