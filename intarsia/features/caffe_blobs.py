"""Bottom-up attention's own .caffemodel in our names.

A convolution's norm is two layers there: `bn..` with mean, variance and the number that both are to be divided by, and `scale..` with weight and bias.
Blocks of a stage are called a, b, c, or a, b1, b2, ..; branch1 is the projection. Source: bottom-up-attention,
models/vg/ResNet-101/faster_rcnn_end2end_final/test.prototxt; Caffe's batch_norm_layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from intarsia.errors import BadInput

BLOBS = {"conv": ("weight", "bias"), "bn": ("running_mean", "running_var", "by"), "scale": ("weight", "bias")}
"""What the blobs of a layer are, in their order."""
PLAIN = {
    "conv1": "trunk.conv1",
    "rpn_conv/3x3": "rpn.conv",
    "rpn_cls_score": "rpn.objectness",
    "rpn_bbox_pred": "rpn.deltas",
    "cls_score": "classes",
    "bbox_pred": "boxes",
    "cls_embedding": "attributes.embedding",
    "fc_attr": "attributes.hidden",
    "attr_score": "attributes.score",
}
BRANCHES = {
    "1": ("downsample.0", "downsample.1"),
    "2a": ("conv1", "bn1"),
    "2b": ("conv2", "bn2"),
    "2c": ("conv3", "bn3"),
}
"""A branch's convolution and norm."""
BLOCK = re.compile(r"(?P<kind>res|bn|scale)(?P<stage>[2-5])(?P<block>[a-z])(?P<number>\d*)_branch(?P<branch>1|2[abc])")


def caffe_names(blobs: Mapping[str, Tensor], where: str = "weights") -> dict[str, Tensor]:
    """The blobs of the detector in our names, statistics divided.

    Args:
        blobs: "LAYER.0", "LAYER.1", .. as `weights.caffe` reads them.
        where: names the file in errors.

    Raises:
        BadInput: a blob that this network has not (names some).
    """
    ours, unknown = {}, []
    for key, value in blobs.items():
        layer, _, number = key.rpartition(".")
        kind, name = _ours(layer)
        parts = BLOBS[kind]
        if not name or int(number) >= len(parts):
            unknown.append(key)
        elif kind != "bn":
            ours[f"{name}.{parts[int(number)]}"] = value
        elif parts[int(number)] != "by":
            by = float(blobs.get(f"{layer}.2", torch.ones(1)))
            ours[f"{name}.{parts[int(number)]}"] = value / by if by else torch.zeros_like(value)
    if unknown:
        raise BadInput(f"{where}: {len(unknown)} blobs of another network, e.g. {', '.join(unknown[:4])}")
    return ours


def _ours(layer: str) -> tuple[str, str]:
    """The kind of a layer, and our name of it; "" for one of another network."""
    kind, _, rest = layer.partition("_")
    if rest == "conv1" and kind in ("bn", "scale"):
        return kind, "trunk.bn1"
    found = BLOCK.fullmatch(layer)
    if found is None:
        return "conv", PLAIN.get(layer, "")
    stage, number = int(found["stage"]), int(found["number"] or ord(found["block"]) - ord("a"))
    conv, norm = BRANCHES[found["branch"]]
    below = "head" if stage == 5 else f"trunk.layer{stage - 1}"
    if found["kind"] == "res":
        return "conv", f"{below}.{number}.{conv}"
    return found["kind"], f"{below}.{number}.{norm}"
