import base64
import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from intarsia.errors import BadInput
from intarsia.features.tfjs import load_graph


def text(value):
    return {"s": base64.b64encode(value.encode()).decode()}


def ints(*values):
    return {"list": {"i": [str(x) for x in values]}}


def conv_attr(stride, padding, fused=()):
    attr = {
        "strides": ints(1, stride, stride, 1),
        "dilations": ints(1, 1, 1, 1),
        "padding": text(padding),
        "data_format": text("NHWC"),
    }
    return attr | ({"fused_ops": {"list": {"s": [text(x)["s"] for x in fused]}}} if fused else {})


class Graph:
    """Writes a graph model the way the converter does."""

    def __init__(self):
        self.nodes, self.entries, self.raw = [], [], b""

    def node(self, name, op, *inputs, **attr):
        self.nodes.append({"name": name, "op": op, "input": list(inputs), "attr": attr})
        return name

    def const(self, name, values, half=False):
        values = np.asarray(values)
        integer = values.dtype.kind in "iu"
        entry = {"name": name, "shape": list(values.shape), "dtype": "int32" if integer else "float32"}
        if half:
            entry["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
        self.entries.append(entry)
        self.raw += values.astype("<i4" if integer else "<f2" if half else "<f4").tobytes()
        return self.node(name, "Const")

    def save(self, folder):
        path = folder / "model.json"
        (folder / "weights.bin").write_bytes(self.raw)
        manifest = [{"paths": ["weights.bin"], "weights": self.entries}]
        path.write_text(json.dumps({"modelTopology": {"node": self.nodes}, "weightsManifest": manifest}))
        return path


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def run(graph, folder, outputs, **inputs):
    model = load_graph(graph.save(folder))
    return model({name: torch.as_tensor(value) for name, value in inputs.items()}, outputs)


def test_convolutions_against_torch(tmp_path, rng):
    graph, x = Graph(), rng.standard_normal((2, 8, 6, 3)).astype(np.float32)
    full, bias = rng.standard_normal((3, 3, 3, 4)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    deep = rng.standard_normal((3, 3, 4, 2)).astype(np.float32)
    graph.node("x", "Placeholder")
    graph.const("full", full)
    graph.const("bias", bias)
    graph.const("deep", deep)
    graph.node("a", "_FusedConv2D", "x", "full", "bias", **conv_attr(2, "SAME", ("BiasAdd", "Relu6")))
    graph.node("b", "DepthwiseConv2dNative", "a", "deep", **conv_attr(1, "VALID"))
    graph.node("c", "MaxPool", "a", **{"ksize": ints(1, 3, 3, 1), "strides": ints(1, 1, 1, 1), "padding": text("SAME")})
    out = run(graph, tmp_path, ["a", "b", "c"], x=x)
    planes = torch.from_numpy(x).permute(0, 3, 1, 2)
    a = functional.conv2d(
        functional.pad(planes, [0, 1, 0, 1]), torch.from_numpy(full).permute(3, 2, 0, 1), torch.from_numpy(bias), 2
    )
    a = a.clamp(0, 6)
    torch.testing.assert_close(out["a"], a.permute(0, 2, 3, 1))
    torch.testing.assert_close(out["c"], functional.max_pool2d(a, 3, 1, 1).permute(0, 2, 3, 1))
    for channel in range(4):
        for times in range(2):  # output channel c m + k reads channel c
            kernel = torch.from_numpy(deep[:, :, channel, times])[None, None]
            torch.testing.assert_close(
                out["b"][..., channel * 2 + times], functional.conv2d(a[:, channel : channel + 1], kernel)[:, 0]
            )


def test_half_precision_weights_are_read_as_such(tmp_path):
    graph = Graph()
    graph.node("x", "Placeholder")
    graph.const("w", [0.1, 1000.5], half=True)
    graph.const("n", np.array([3], np.int64))
    graph.const("v", [0.25, 2.0])
    graph.node("y", "Mul", "x", "w")
    graph.node("z", "Add", "y", "v")
    out = run(graph, tmp_path, ["y", "z"], x=[1.0, 1.0])
    expected = torch.from_numpy(np.array([0.1, 1000.5], np.float16).astype(np.float32))
    torch.testing.assert_close(out["y"], expected, rtol=0, atol=0)
    torch.testing.assert_close(out["z"], expected + torch.tensor([0.25, 2.0]), rtol=0, atol=0)


def test_resizing_starts_at_the_corner(tmp_path):
    graph = Graph()
    graph.node("x", "Placeholder")
    graph.const("size", np.array([4, 4], np.int64))
    kinds = {"old": {}, "half": {"half_pixel_centers": {"b": True}}, "corners": {"align_corners": {"b": True}}}
    for name, attr in kinds.items():
        graph.node(name, "ResizeBilinear", "x", "size", **attr)
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0]]).view(1, 2, 2, 1)
    out = run(graph, tmp_path, list(kinds), x=x)
    old = torch.tensor([[0, 0.5, 1, 1], [1, 2, 3, 3], [2, 3.5, 5, 5], [2, 3.5, 5, 5]])
    torch.testing.assert_close(out["old"][0, :, :, 0], old)
    planes = x.permute(0, 3, 1, 2)
    for name, corners in (("half", False), ("corners", True)):
        expected = functional.interpolate(planes, (4, 4), mode="bilinear", align_corners=corners)
        torch.testing.assert_close(out[name].permute(0, 3, 1, 2), expected)


def test_small_operators(tmp_path):
    graph = Graph()
    graph.node("x", "Placeholder")
    whole = {"axis": -1, "two": 2, "three": 3}
    for name, value in whole.items():
        graph.const(name, np.array(value, np.int64))
    for name, values in {"flat": [1, -1], "begin": [0, 1], "end": [0, 3], "step": [1, 1], "zero": [0]}.items():
        graph.const(name, np.array(values, np.int64))
    graph.node("rows", "Reshape", "x", "flat")
    graph.node("top", "TopKV2", "rows", "two")
    graph.node("mod", "FloorMod", "top:1", "three")
    graph.node("div", "FloorDiv", "top:1", "three")
    graph.node("cast", "Cast", "mod", DstT={"type": "DT_FLOAT"})
    graph.node("wide", "ExpandDims", "cast", "axis")
    graph.node("both", "ConcatV2", "wide", "wide", "axis")
    graph.node("cut", "StridedSlice", "x", "begin", "end", "step", begin_mask={"i": "1"}, end_mask={"i": "1"})
    graph.node("one", "StridedSlice", "x", "begin", "end", "step", shrink_axis_mask={"i": "1"})
    graph.node("less", "Sub", "x", "cut0")
    graph.const("cut0", 1.5)
    graph.node("pos", "Relu", "less")
    graph.node("mean", "Mean", "x", "zero", keep_dims={"b": True})
    graph.node("same", "Equal", "x", "x")
    graph.node("gate", "Sigmoid", "x")
    graph.node("taken", "GatherV2", "x", "zero", "two0", batch_dims={"i": "0"})
    graph.const("two0", np.array(1, np.int64))
    graph.node("id", "Identity", "pos", "^same")
    x = torch.tensor([[4.0, 1.0, 2.0], [9.0, -3.0, 6.0]])
    names = ["top", "top:1", "mod", "div", "both", "cut", "one", "id", "mean", "same", "gate", "taken"]
    out = run(graph, tmp_path, names, x=x)
    assert out["top"].tolist() == [[9.0, 6.0]]
    assert out["top:1"].tolist() == [[3, 5]]
    assert out["mod"].tolist() == [[0, 2]]
    assert out["div"].tolist() == [[1, 1]]
    assert out["both"].tolist() == [[[0.0, 0.0], [2.0, 2.0]]]
    assert out["cut"].tolist() == [[1.0, 2.0], [-3.0, 6.0]]
    assert out["one"].tolist() == [1.0, 2.0]
    torch.testing.assert_close(out["id"], (x - 1.5).clamp(min=0))
    assert out["mean"].tolist() == [[6.5, -1.0, 4.0]]
    assert out["same"].all()
    torch.testing.assert_close(out["gate"], 1 / (1 + torch.exp(-x)))
    assert out["taken"].tolist() == [[4.0], [9.0]]


def test_shared_values_are_kept_until_their_last_use(tmp_path):
    graph = Graph()
    last = graph.node("x", "Placeholder")
    for i in range(1200):  # deeper than Python's recursion
        last = graph.node(f"n{i}", "Add", last, "x")
    assert run(graph, tmp_path, [last], x=1.0)[last].item() == 1201.0


def broken(change):
    graph = Graph()
    graph.node("x", "Placeholder")
    graph.const("w", [1.0])
    graph.node("y", "Mul", "x", "w")
    change(graph)
    return graph


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g: g.node("z", "FancyOp", "y"), "node z is of the kind FancyOp"),
        (lambda g: setattr(g, "raw", g.raw[:-1]), "weight w would end at 4"),
        (lambda g: setattr(g, "raw", g.raw + b"abc"), "7 bytes, the manifest describes 4"),
        (lambda g: g.nodes.append({"name": "q", "op": "Const"}), "constant q has no weight"),
        (lambda g: g.entries[0].update(dtype="string"), "weight w is stored as string"),
    ],
)
def test_broken_graphs_are_named(tmp_path, change, said):
    path = broken(change).save(tmp_path)
    with pytest.raises(BadInput, match=said) as caught:
        load_graph(path)
    assert str(tmp_path) in str(caught.value)


def test_missing_inputs_and_nodes_are_named(tmp_path):
    model = load_graph(broken(lambda g: None).save(tmp_path))
    assert model.placeholders == ["x"]
    with pytest.raises(BadInput, match="no value for the input x"):
        model({}, ["y"])
    with pytest.raises(BadInput, match="no node nowhere"):
        model({"x": torch.ones(1)}, ["nowhere"])


def test_not_a_graph(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(BadInput, match="not a TensorFlow.js graph model"):
        load_graph(tmp_path / "a.json")
