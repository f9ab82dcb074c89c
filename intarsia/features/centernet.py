"""The CenterNet-MobileNetV3 detector of 80 everyday classes: pixels to boxes, scores and soft labels.

Source: Zhou et al., Objects as Points (2019): an object is a peak of its class's heat map; its box is read off at the peak.
Unusual: the picture is stretched to a 512 square and fed as 0..255; the box sides are four distances from the peak (so the peak need not be the
middle of the box); the graph's own top-100 works for one picture only, so peaks are picked here, for the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from intarsia.features.roi import nms, stretched
from intarsia.features.tfjs import load_graph

SIDE = 512
STEP = 4
CLASSES = (
    "background",
    *["person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"],
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    *[
        "bench",
        "bird",
        "cat",
        "dog",
        "horse",
        "sheep",
        "cow",
        "elephant",
        "bear",
        "zebra",
        "giraffe",
        "backpack",
        "umbrella",
        "handbag",
        "tie",
        "suitcase",
        "frisbee",
        "skis",
        "snowboard",
    ],
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    *["cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot"],
    "hot dog",
    *["pizza", "donut", "cake", "chair", "couch"],
    "potted plant",
    "bed",
    "dining table",
    *["toilet", "tv", "laptop", "mouse", "remote", "keyboard"],
    "cell phone",
    *["microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors"],
    "teddy bear",
    "hair drier",
    "toothbrush",
)
"""Names of the soft labels' columns."""


@dataclass(frozen=True)
class Detections:
    """The boxes of one picture, best first."""

    boxes: Tensor
    """(R, 4) float32, xyxy fractions, inside the picture."""
    scores: Tensor
    """(R) float32, 0..1."""
    labels: Tensor
    """(R) int64, 1..80."""
    probs: Tensor
    """(R, 81) float32, rows sum to 1."""


class CenterNet(nn.Module):
    """The detector.

    Args:
        path: its graph as JSON, the weights beside it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.graph = load_graph(path)

    def maps(self, images: list[NDArray[Any]], device: torch.device) -> tuple[Tensor, Tensor]:
        """The heat maps (I, 128, 128, 80) in 0..1 and the four distances (I, 128, 128, 4) in pixels of the 512 square."""
        pixels = torch.from_numpy(np.stack([stretched(x, SIDE) for x in images])).to(device).float()
        out = self.graph({"tower_0/images": pixels}, ("tower_0/keypoints", "tower_0/wh"))
        return out["tower_0/keypoints"], out["tower_0/wh"]


def peaks(heat: Tensor, reach: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The highest peaks of each picture's heat maps: cells that no neighbour of the same class exceeds.

    Args:
        heat: (I, h, w, C) float.
        reach: (I, h, w, 4) float, distances to the left, upper, right and lower side, in pixels of the network's input.
        top: peaks a picture.

    Returns:
        boxes (I, top, 4) xyxy in pixels of the input, scores (I, top), classes (I, top) from 0, cells (I, top) into h * w.
    """
    high, wide, classes = heat.shape[1:]
    rows = heat.permute(0, 3, 1, 2)
    held = (rows * (functional.max_pool2d(rows, 3, 1, 1) == rows)).permute(0, 2, 3, 1)
    scores, index = held.flatten(1).topk(min(top, high * wide * classes))
    cell = index // classes
    x, y = (cell % wide) * STEP, (cell // wide) * STEP
    sides = reach.flatten(1, 2).gather(1, cell[..., None].expand(-1, -1, 4))
    boxes = torch.stack([x - sides[..., 0], y - sides[..., 1], x + sides[..., 2], y + sides[..., 3]], -1)
    return boxes, scores, index % classes, cell


def detect(heat: Tensor, reach: Tensor, score: float, overlap: float, least: int, most: int) -> list[Detections]:
    """Boxes of each picture: peaks, clipped, class-wise non-maximum suppression, then those of at least `score`, never fewer than `least`.

    Args:
        heat: (I, h, w, 80) float, see `CenterNet.maps`.
        reach: (I, h, w, 4) float.
        score: boxes below it go ..
        overlap: of two boxes of one class overlapping more than this the lower goes.
        least: .. unless fewer than this many would be left.
        most: boxes a picture at the most.
    """
    out: list[Detections] = []
    soft = heat.flatten(1, 2)
    for i, (boxes, scores, classes, cell) in enumerate(zip(*peaks(heat, reach, max(100, most)), strict=True)):
        boxes = (boxes / (heat.new_tensor([heat.shape[2], heat.shape[1]] * 2) * STEP)).clamp(0, 1)
        solid = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero()[:, 0]
        kept = solid[nms(boxes[solid], scores[solid], overlap, classes[solid])]
        kept = kept[: min(most, max(least, int((scores[kept] >= score).sum())))]
        out.append(Detections(boxes[kept], scores[kept], classes[kept] + 1, soft_labels(soft[i, cell[kept]])))
    return out


def soft_labels(heat: Tensor) -> Tensor:
    """One distribution a region out of independent class scores.

    The best class's score m is shared among the classes in proportion to their
    scores, and 1 - m goes to the background.

    Args:
        heat: (R, C) float, 0..1.

    Returns:
        (R, C + 1) float, background first; rows sum to 1.
    """
    most = heat.amax(1, keepdim=True)
    shared = heat * (most / heat.sum(1, keepdim=True).clamp(min=1e-12))
    return torch.cat([1 - shared.sum(1, keepdim=True), shared], 1)


def heat_in(heat: Tensor, boxes: Tensor) -> Tensor:
    """Class scores of boxes that the detector did not propose: the highest value in the middle half of each box.

    Args:
        heat: (h, w, C) float, one picture's heat maps.
        boxes: (R, 4) xyxy fractions.

    Returns:
        (R, C) float.
    """
    high, wide = heat.shape[:2]
    out = heat.new_zeros((len(boxes), heat.shape[2]))
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        left, right = _cells(x1 + (x2 - x1) / 4, x2 - (x2 - x1) / 4, wide)
        top, bottom = _cells(y1 + (y2 - y1) / 4, y2 - (y2 - y1) / 4, high)
        out[i] = heat[top:bottom, left:right].amax((0, 1))
    return out


def _cells(low: float, high: float, size: int) -> tuple[int, int]:
    first = min(max(int(low * size), 0), size - 1)
    return first, min(max(int(np.ceil(high * size)), first + 1), size)
