"""A TensorFlow.js graph model (model.json + weight shards) run with torch.

What is unusual: tensors stay (B, H, W, C) as the graph has them, and convolutions see them through a permuted view, which is torch's channels-last
layout, so nothing is copied. Any node of the graph can be asked for by name; activations are dropped after their last use. Integer constants
(shapes, axes) stay on the CPU, so a graph on a CUDA device does not wait for them.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from intarsia.errors import BadInput
from intarsia.features.roi import conv_same, same_pads

Value = Tensor | tuple[Tensor, ...]
Node = Mapping[str, Any]


class GraphModel(nn.Module):
    """A frozen graph. Floating-point weights are buffers, so `.to(device)` moves it."""

    def __init__(self, nodes: Sequence[Node], weights: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        self.nodes = {str(node["name"]): node for node in nodes}
        self.where = where
        self._slot: dict[str, str] = {}
        self._small: dict[str, Tensor] = {}
        for name, node in self.nodes.items():
            if node["op"] == "Const":
                if name not in weights:
                    raise BadInput(f"{where}: constant {name} has no weight in the manifest")
                if weights[name].is_floating_point():
                    self._slot[name] = f"weight_{len(self._slot)}"
                    self.register_buffer(self._slot[name], weights[name])
                else:
                    self._small[name] = weights[name]
            elif node["op"] != "Placeholder" and node["op"] not in OPERATORS:
                raise BadInput(f"{where}: node {name} is of the kind {node['op']}, which is not supported")

    @property
    def placeholders(self) -> list[str]:
        """Names of the inputs."""
        return [name for name, node in self.nodes.items() if node["op"] == "Placeholder"]

    def forward(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        """Evaluates nodes by name.

        Args:
            inputs: a tensor for every placeholder the outputs depend on; pictures are (B, H, W, 3).
            outputs: names of nodes, "name" or "name:1" for the second result of a node.

        Raises:
            BadInput: an unknown node, or a placeholder without a value.
        """
        order, last = self._order(outputs)
        memo: dict[str, Value] = {}
        for at, name in enumerate(order):
            node = self.nodes[name]
            if node["op"] == "Placeholder":
                if name not in inputs:
                    raise BadInput(f"{self.where}: no value for the input {name}")
                memo[name] = inputs[name]
            elif node["op"] == "Const":
                memo[name] = getattr(self, self._slot[name]) if name in self._slot else self._small[name]
            else:
                memo[name] = OPERATORS[node["op"]](node.get("attr", {}), [_result(memo, x) for x in _wired(node)])
            for done in last.get(at, ()):
                del memo[done]
        return {name: _result(memo, name) for name in outputs}

    def _order(self, outputs: Iterable[str]) -> tuple[list[str], dict[int, list[str]]]:
        """The nodes to evaluate, inputs first; and per place in that order, the values not needed afterwards."""
        order: list[str] = []
        seen: set[str] = set()
        kept = {x.split(":")[0] for x in outputs}
        stack = [(name, False) for name in sorted(kept)]
        while stack:
            name, ready = stack.pop()
            if ready:
                order.append(name)
                continue
            if name in seen:
                continue
            if name not in self.nodes:
                raise BadInput(f"{self.where}: the graph has no node {name}")
            seen.add(name)
            stack.append((name, True))
            stack.extend((x.split(":")[0], False) for x in _wired(self.nodes[name]) if x.split(":")[0] not in seen)
        use = {x.split(":")[0]: at for at, name in enumerate(order) for x in _wired(self.nodes[name])}
        last: dict[int, list[str]] = {}
        for name, at in use.items():
            if name not in kept:
                last.setdefault(at, []).append(name)
        return order, last


def load_graph(path: Path, shards: Mapping[str, Path] | None = None) -> GraphModel:
    """Reads a graph model.

    Args:
        path: the JSON file.
        shards: where each weight file named in it lies; by default beside the JSON.

    Raises:
        BadInput: not a graph model, an unknown kind of node or weight, or weight files of the wrong length.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        nodes, groups = tree["modelTopology"]["node"], tree["weightsManifest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: not a TensorFlow.js graph model: {error!r}") from None
    weights: dict[str, Tensor] = {}
    for group in groups:
        files = [shards[x] if shards and x in shards else path.parent / x for x in group["paths"]]
        try:
            raw = b"".join(x.read_bytes() for x in files)
        except OSError as error:
            raise BadInput(f"{path}: weight file cannot be read: {error}") from None
        weights |= _cut(raw, group["weights"], ", ".join(map(str, files)))
    return GraphModel(nodes, weights, str(path))


def _cut(raw: bytes, entries: Sequence[Mapping[str, Any]], where: str) -> dict[str, Tensor]:
    """Cuts the bytes of a weight group in the order of its entries."""
    plain = {"float32": "<f4", "int32": "<i4", "bool": "|b1", "uint8": "|u1"}
    out: dict[str, Tensor] = {}
    start = 0
    for entry in entries:
        packed = entry.get("quantization")
        kind = (
            plain.get(entry["dtype"])
            if packed is None
            else {"float16": "<f2", "uint8": "|u1", "uint16": "<u2"}.get(packed["dtype"])
        )
        if kind is None:
            raise BadInput(
                f"{where}: weight {entry['name']} is stored as {packed or entry['dtype']}, which is not supported"
            )
        count = math.prod(entry["shape"])
        end = start + count * np.dtype(kind).itemsize
        if end > len(raw):
            raise BadInput(f"{where}: {len(raw)} bytes, weight {entry['name']} would end at {end}")
        values = np.frombuffer(raw, kind, count, start).reshape(entry["shape"])
        if packed is not None:
            values = values.astype(np.float32)
            if packed["dtype"] != "float16":
                values = values * np.float32(packed["scale"]) + np.float32(packed["min"])
        elif kind == "<i4":
            values = values.astype(np.int64)
        out[entry["name"]] = torch.from_numpy(values.copy())
        start = end
    if start != len(raw):
        raise BadInput(f"{where}: {len(raw)} bytes, the manifest describes {start}")
    return out


def _wired(node: Node) -> list[str]:
    return [str(x) for x in node.get("input", ()) if not str(x).startswith("^")]


def _result(memo: Mapping[str, Value], name: str) -> Tensor:
    base, _, number = name.partition(":")
    value = memo[base]
    return value[int(number or 0)] if isinstance(value, tuple) else value


# ------------------------------------------------------------------------------------------------------------------------------- attributes


def _text(attr: Mapping[str, Any], key: str, default: str) -> str:
    return base64.b64decode(attr[key]["s"]).decode() if key in attr else default


def _whole(attr: Mapping[str, Any], key: str, default: int = 0) -> int:
    return int(attr[key].get("i", default)) if key in attr else default


def _flag(attr: Mapping[str, Any], key: str) -> bool:
    return bool(attr.get(key, {}).get("b", False))


def _sides(attr: Mapping[str, Any], key: str) -> tuple[int, int]:
    """The two spatial numbers of an NHWC list such as strides or kernel sizes."""
    values = [int(x) for x in attr.get(key, {}).get("list", {}).get("i", (1, 1, 1, 1))]
    return values[1], values[2]


def _ints(value: Tensor) -> list[int]:
    return [int(x) for x in value.reshape(-1).tolist()]


# ------------------------------------------------------------------------------------------------------------------------------- operators


def _conv(attr: Mapping[str, Any], values: Sequence[Tensor], depthwise: bool) -> Tensor:
    x, kernel = values[0].permute(0, 3, 1, 2), values[1]
    if _text(attr, "data_format", "NHWC") != "NHWC":
        raise BadInput(f"a convolution is laid out {_text(attr, 'data_format', '')}, only NHWC is supported")
    stride, spread = _sides(attr, "strides"), _sides(attr, "dilations")
    if depthwise:  # (h, w, C, m) -> (C m, 1, h, w)
        weight, groups = kernel.permute(2, 3, 0, 1).reshape(-1, 1, *kernel.shape[:2]), kernel.shape[2]
    else:
        weight, groups = kernel.permute(3, 2, 0, 1), 1
    fused = [base64.b64decode(s).decode() for s in attr.get("fused_ops", {}).get("list", {}).get("s", ())]
    bias = values[2] if "BiasAdd" in fused else None
    if _text(attr, "padding", "VALID") == "SAME":
        y = conv_same(x, weight, bias, stride, spread, groups)
    else:
        y = functional.conv2d(x, weight, bias, stride, dilation=spread, groups=groups)
    for name in fused:
        if name != "BiasAdd":
            if name not in ("Relu", "Relu6"):
                raise BadInput(f"a convolution is fused with {name}, which is not supported")
            y = y.relu_() if name == "Relu" else y.clamp_(0, 6)
    return y.permute(0, 2, 3, 1)


def _max_pool(attr: Mapping[str, Any], values: Sequence[Tensor]) -> Tensor:
    x, kernel, stride = values[0].permute(0, 3, 1, 2), _sides(attr, "ksize"), _sides(attr, "strides")
    if _text(attr, "padding", "VALID") == "SAME":
        x = functional.pad(x, same_pads(x, kernel, stride), value=-math.inf)
    return functional.max_pool2d(x, kernel, stride).permute(0, 2, 3, 1)


def _resize_bilinear(attr: Mapping[str, Any], values: Sequence[Tensor]) -> Tensor:
    x, (high, wide) = values[0], _ints(values[1])
    corners, half = _flag(attr, "align_corners"), _flag(attr, "half_pixel_centers")
    for dim, size in ((1, high), (2, wide)):
        old = x.shape[dim]
        at = torch.arange(size, device=x.device, dtype=torch.float32)
        if corners and size > 1:
            at = at * ((old - 1) / (size - 1))
        elif half:
            at = (at + 0.5) * (old / size) - 0.5
        else:
            at = at * (old / size)
        at = at.clamp(0, old - 1)
        low = at.floor().long()
        part = (at - low).to(x.dtype).view([-1 if d == dim else 1 for d in range(4)])
        x = torch.lerp(x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=old - 1)), part)
    return x


def _mean(attr: Mapping[str, Any], values: Sequence[Tensor]) -> Tensor:
    return values[0].mean(_ints(values[1]), keepdim=_flag(attr, "keep_dims"))


def _cast(attr: Mapping[str, Any], values: Sequence[Tensor]) -> Tensor:
    kinds = {"DT_FLOAT": torch.float32, "DT_INT32": torch.int64, "DT_BOOL": torch.bool}
    kind = str(attr["DstT"]["type"])
    if kind not in kinds:
        raise BadInput(f"a cast to {kind} is not supported")
    return values[0].to(kinds[kind])


def _strided_slice(attr: Mapping[str, Any], values: Sequence[Tensor]) -> Tensor:
    if _whole(attr, "ellipsis_mask") or _whole(attr, "new_axis_mask"):
        raise BadInput("a strided slice with an ellipsis or a new axis is not supported")
    x, (begin, end, step) = values[0], (_ints(v) for v in values[1:4])
    masks = [_whole(attr, f"{name}_mask") for name in ("begin", "end", "shrink_axis")]
    cut: list[slice | int] = []
    for i, (b, e, s) in enumerate(zip(begin, end, step, strict=True)):
        if s < 1:
            raise BadInput(f"a strided slice with step {s} is not supported")
        from_, to, one = (bool(m >> i & 1) for m in masks)
        cut.append(b if one else slice(None if from_ else b, None if to else e, s))
    return x[tuple(cut)]


def _top_k(attr: Mapping[str, Any], values: Sequence[Tensor]) -> Value:
    found = values[0].topk(int(values[1]), sorted=True)
    return found.values, found.indices


def _gather(attr: Mapping[str, Any], values: Sequence[Tensor]) -> Tensor:
    if _whole(attr, "batch_dims"):
        raise BadInput("a gather with batch dimensions is not supported")
    x, index, axis = values[0], values[1].to(values[0].device), int(values[2]) % values[0].ndim
    return x.index_select(axis, index.reshape(-1)).view(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


OPERATORS: Mapping[str, Callable[[Mapping[str, Any], Sequence[Tensor]], Value]] = {
    "Identity": lambda attr, v: v[0],
    "Conv2D": lambda attr, v: _conv(attr, v, depthwise=False),
    "_FusedConv2D": lambda attr, v: _conv(attr, v, depthwise=False),
    "DepthwiseConv2dNative": lambda attr, v: _conv(attr, v, depthwise=True),
    "FusedDepthwiseConv2dNative": lambda attr, v: _conv(attr, v, depthwise=True),
    "MaxPool": _max_pool,
    "ResizeBilinear": _resize_bilinear,
    "Mul": lambda attr, v: v[0] * v[1],
    "Add": lambda attr, v: v[0] + v[1],
    "AddV2": lambda attr, v: v[0] + v[1],
    "Sub": lambda attr, v: v[0] - v[1],
    "FloorDiv": lambda attr, v: torch.div(v[0], v[1], rounding_mode="floor"),
    "FloorMod": lambda attr, v: torch.remainder(v[0], v[1]),
    "Equal": lambda attr, v: v[0] == v[1],
    "Relu": lambda attr, v: torch.relu(v[0]),
    "Relu6": lambda attr, v: v[0].clamp(0, 6),
    "Sigmoid": lambda attr, v: torch.sigmoid(v[0]),
    "Mean": _mean,
    "ConcatV2": lambda attr, v: torch.cat(list(v[:-1]), int(v[-1])),
    "Reshape": lambda attr, v: v[0].reshape(_ints(v[1])),
    "Cast": _cast,
    "ExpandDims": lambda attr, v: v[0].unsqueeze(int(v[1])),
    "StridedSlice": _strided_slice,
    "TopKV2": _top_k,
    "GatherV2": _gather,
}
