"""Bottom-up attention's .caffemodel, written here byte by byte: protocol buffers of layers and blobs, as caffe.proto describes them."""

import struct
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_detector import tiny_detector

from intarsia.errors import BadInput
from intarsia.features.caffe_blobs import caffe_names
from intarsia.features.detector_weights import load_detector
from intarsia.features.rpn import caffe_cells
from intarsia.weights.caffe import read_caffemodel

BY = 0.5
"""Caffe's moving averages are stored as sums, with what they are to be divided by."""


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def blob(tensor, old=False):
    numbers = struct.pack(f"<{tensor.numel()}f", *tensor.flatten().tolist())
    if old:  # num, channels, height, width, numbers one by one
        sides = [*[1] * (4 - tensor.ndim), *tensor.shape]
        head = b"".join(varint(i << 3) + varint(x) for i, x in enumerate(sides, 1))
        return head + b"".join(varint(5 << 3 | 5) + numbers[i : i + 4] for i in range(0, len(numbers), 4))
    return field(5, numbers) + field(7, field(1, b"".join(map(varint, tensor.shape))))


def layer(name, kind, *blobs):
    return field(100, field(1, name.encode()) + field(2, kind.encode()) + b"".join(field(7, blob(x)) for x in blobs))


def norm(state, ours, name):
    mean, var, weight, bias = (state[f"{ours}.{x}"] for x in ("running_mean", "running_var", "weight", "bias"))
    first = layer(f"bn{name}", "BatchNorm", mean * BY, var * BY, torch.tensor([BY]))
    return first + layer(f"scale{name}", "Scale", weight, bias)


def caffemodel(detector):
    """The file of a detector of this form, layers named as its test.prototxt names them."""
    state = detector.state_dict()
    out = field(1, b"ResNet-101") + layer("conv1", "Convolution", state["trunk.conv1.weight"])
    out += norm(state, "trunk.bn1", "_conv1") + field(100, field(1, b"conv1_relu") + field(2, b"ReLU"))
    for stage, ours in ((2, "trunk.layer1"), (3, "trunk.layer2"), (4, "trunk.layer3"), (5, "head")):
        count = len({key.split(".")[len(ours.split("."))] for key in state if key.startswith(f"{ours}.")})
        for i in range(count):
            block = "abc"[i] if stage in (2, 5) else "a" if i == 0 else f"b{i}"
            for branch, conv, bn in (
                ("1", "downsample.0", "downsample.1"),
                *((f"2{'abc'[n]}", f"conv{n + 1}", f"bn{n + 1}") for n in range(3)),
            ):
                if f"{ours}.{i}.{conv}.weight" in state:
                    out += layer(f"res{stage}{block}_branch{branch}", "Convolution", state[f"{ours}.{i}.{conv}.weight"])
                    out += norm(state, f"{ours}.{i}.{bn}", f"{stage}{block}_branch{branch}")
    for name, ours in (
        ("rpn_conv/3x3", "rpn.conv"),
        ("rpn_cls_score", "rpn.objectness"),
        ("rpn_bbox_pred", "rpn.deltas"),
    ):
        out += layer(name, "Convolution", state[f"{ours}.weight"], state[f"{ours}.bias"])
    for name, ours in (
        ("cls_score", "classes"),
        ("bbox_pred", "boxes"),
        ("fc_attr", "attributes.hidden"),
        ("attr_score", "attributes.score"),
    ):
        out += layer(name, "InnerProduct", state[f"{ours}.weight"], state[f"{ours}.bias"])
    return out + layer("cls_embedding", "Embed", state["attributes.embedding.weight"])


def test_a_caffemodel_is_the_same_detector(tmp_path):
    detector = tiny_detector("caffe")
    detector.rpn.cells.copy_(caffe_cells())  # which the file does not hold
    path = tmp_path / "resnet101_faster_rcnn_final.caffemodel"
    path.write_bytes(caffemodel(detector))
    again = load_detector(path, limits=detector.config.limits)
    assert again.config == detector.config
    ours, theirs = detector.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_names_of_all_blocks_of_the_published_network():
    one, by = torch.ones(1), torch.tensor([2.0])
    found = caffe_names(
        {"res4b22_branch2c.0": one, "bn3b3_branch2a.1": one, "bn3b3_branch2a.2": by, "scale5c_branch2b.1": one}
    )
    assert {key: float(value) for key, value in found.items()} == {
        "trunk.layer3.22.conv3.weight": 1.0,
        "trunk.layer2.3.bn1.running_var": 0.5,
        "head.2.bn2.bias": 1.0,
    }
    assert not caffe_names({"bn2a_branch1.0": one, "bn2a_branch1.2": torch.zeros(1)})[
        "trunk.layer1.0.downsample.1.running_mean"
    ].any()


def test_old_files_with_four_sides(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    old = field(2, field(4, b"ip") + field(6, blob(weight, old=True)))
    (tmp_path / "x.caffemodel").write_bytes(old)
    assert torch.equal(read_caffemodel(tmp_path / "x.caffemodel")["ip.0"], weight[None, None])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: whole[:-5], "not a whole file of Caffe's"),
        (lambda whole: b"", "no layer with weights"),
        (
            lambda whole: whole + layer("fc1000", "InnerProduct", torch.ones(2, 2)),
            r"1 blobs of another network, e\.g\. fc1000\.0",
        ),
        (lambda whole: whole.replace(b"rpn_bbox_pred", b"rpn_bbox_prex"), "2 blobs of another network"),
    ],
)
def test_what_is_no_such_file_is_named(change, message, tmp_path):
    path = tmp_path / "x.caffemodel"
    path.write_bytes(change(caffemodel(tiny_detector("caffe"))))
    with pytest.raises(BadInput, match=message):
        load_detector(path)
