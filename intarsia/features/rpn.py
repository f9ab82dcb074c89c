"""Boxes of region detectors: the pixel conventions, anchors, box regression, and the region proposal network.

Source: Ren et al., Faster R-CNN (NeurIPS 2015), sec. 3; the three code bases named in `CONVENTIONS`.

Unusual: the code bases differ in what a box's width is, whether the far corner is inside, what overlaps too much, and whether boxes are dropped before or
after the best are picked. Each is right for its own weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from intarsia.features.roi import Clash, nms, overlaps, overlaps_as_pixels

Form = Literal["caffe", "milvlg", "d2", "maskrcnn"]
STRIDE = 16
"""Pixels a cell of the map that proposals are made on."""


@dataclass(frozen=True)
class Convention:
    """How one code base counts pixels."""

    extra: int
    """A box's width is x2 - x1 + this; a picture's last coordinate is W - this."""
    inset: int
    """Subtracted from the far corner when a box is decoded."""
    longest: float
    """Limit of the logarithm of a regressed side."""
    clash: Clash
    """What suppression takes for too much overlap."""
    background_first: bool
    """Column of the background in the weights: the first or the last."""
    size_first: bool
    """Proposals that are too small go before the best are picked, not after."""
    least: float
    """Proposals must be this wide and high; times the picture's scale where `size_first`."""
    strict: bool
    """A side of just `least` is too small."""


LIMIT = math.log(1000 / 16)
CONVENTIONS: dict[Form, Convention] = {
    "caffe": Convention(1, 0, math.inf, overlaps_as_pixels, True, True, 16, False),
    "milvlg": Convention(1, 0, LIMIT, overlaps_as_pixels, True, True, 16, True),
    "d2": Convention(0, 0, LIMIT, overlaps, False, False, 0, True),
    "maskrcnn": Convention(1, 1, LIMIT, overlaps, True, False, 0, False),
}
"""caffe: peteanderson80/bottom-up-attention. milvlg: its PyTorch version. d2: detectron2 as py-bottom-up-attention and Hugging Face's copy have it. maskrcnn:
maskrcnn-benchmark as VinVL has it."""


def caffe_cells(scales: tuple[int, ...] = (4, 8, 16, 32), base: int = 16) -> Tensor:
    """(3 * scales, 4) anchors around the first cell: height / width of 0.5, 1, 2 outside, scales inside; sides rounded, far corners inside."""
    centre, area, cells = (base - 1) / 2, base * base, []
    for ratio in (0.5, 1.0, 2.0):
        wide = round(math.sqrt(area / ratio))
        high = round(wide * ratio)
        for scale in scales:
            x, y = (wide * scale - 1) / 2, (high * scale - 1) / 2
            cells.append([centre - x, centre - y, centre + x, centre + y])
    return torch.tensor(cells)


def d2_cells(sizes: tuple[int, ...] = (64, 128, 256, 512)) -> Tensor:
    """(3 * sizes, 4) anchors around the origin: sizes outside, height / width of 0.5, 1, 2 inside; nothing rounded."""
    cells = []
    for size in sizes:
        for ratio in (0.5, 1.0, 2.0):
            wide = math.sqrt(size * size / ratio)
            high = ratio * wide
            cells.append([-wide / 2, -high / 2, wide / 2, high / 2])
    return torch.tensor(cells)


def anchors(cells: Tensor, high: int, wide: int) -> Tensor:
    """(high * wide * A, 4) the cells' anchors (A, 4) moved to each place of a map: rows, columns, anchors."""
    y, x = (torch.arange(n, device=cells.device, dtype=cells.dtype) * STRIDE for n in (high, wide))
    moved = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flip(-1).repeat(1, 1, 2)  # (h, w, 4) x y x y
    return (moved[:, :, None] + cells).reshape(-1, 4)


def decode(boxes: Tensor, deltas: Tensor, how: Convention, weights: tuple[float, ...] = (1, 1, 1, 1)) -> Tensor:
    """Boxes moved and scaled as a regression says.

    Args:
        boxes: (R, 1, 4) or (R, 4) xyxy.
        deltas: (R, K, 4) or (R, 4): shift of the centre in widths and heights, logarithms of the sides' factors.
        how: the pixel convention.
        weights: what each of the four numbers was multiplied by in training.

    Returns:
        As deltas. Source: Fast R-CNN's bbox_transform_inv.
    """
    size = boxes[..., 2:] - boxes[..., :2] + how.extra
    centre = boxes[..., :2] + 0.5 * size
    over = deltas.new_tensor(weights)
    moved = deltas[..., :2] / over[:2] * size + centre
    half = 0.5 * (torch.exp((deltas[..., 2:] / over[2:]).clamp(max=how.longest)) * size)
    return torch.cat([moved - half, moved + half - how.inset], -1)


def clipped(boxes: Tensor, size: tuple[int, int], how: Convention) -> Tensor:
    """Boxes (.., 4) cut at a picture of (height, width)."""
    high, wide = size[0] - how.extra, size[1] - how.extra
    limit = boxes.new_tensor([wide, high, wide, high])
    return torch.minimum(boxes.clamp(min=0), limit)


@dataclass(frozen=True)
class Limits:
    """How many proposals are made."""

    before: int = 6000
    """The best of a picture, before suppression."""
    after: int = 300
    overlap: float = 0.7


def propose(
    boxes: Tensor, scores: Tensor, size: tuple[int, int], scale: float, how: Convention, limits: Limits
) -> Tensor:
    """Picks the proposals of one picture.

    Args:
        boxes: (N, 4) decoded anchors.
        scores: (N) float.
        size: height and width of the picture as the network sees it.
        scale: by which it was resized.
        how: the pixel convention.
        limits: numbers.

    Returns:
        (R) int64 rows, best first. The boxes are to be clipped by the caller, as they are here to be judged.
    """
    boxes = clipped(boxes, size, how)
    order = torch.argsort(scores, descending=True, stable=True)
    sides, least = boxes[:, 2:] - boxes[:, :2], how.least * (scale if how.size_first else 1)
    fits = (sides + how.extra > least if how.strict else sides + how.extra >= least).all(1)
    if how.strict:
        fits &= (sides > 0).all(1)
    if how.size_first:
        order = order[fits[order]][: limits.before]
    else:
        order = order[: limits.before]
        order = order[fits[order]]
    return order[nms(boxes[order], scores[order], limits.overlap, most=limits.after, clash=how.clash)]


class RPN(nn.Module):
    """The proposal network: for each anchor of each cell a score and a regression.

    Args:
        inputs: channels of the map.
        hidden: channels of its 3x3 convolution.
        anchors: A, anchors a cell.
        pairs: scores come as background and foreground, A of the one, then A of the other; else one logit an anchor.
    """

    cells: Tensor

    def __init__(self, inputs: int, hidden: int, anchors: int, pairs: bool) -> None:
        super().__init__()
        self.pairs = pairs
        self.conv = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.objectness = nn.Conv2d(hidden, anchors * (2 if pairs else 1), 1)
        self.deltas = nn.Conv2d(hidden, anchors * 4, 1)
        self.register_buffer("cells", torch.zeros(anchors, 4))

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(I, h, w, A) scores, probabilities if in pairs, else logits; (I, h, w, A, 4) regressions."""
        hidden = torch.relu(self.conv(maps))
        scores = self.objectness(hidden)
        if self.pairs:
            scores = scores.unflatten(1, (2, -1)).softmax(1)[:, 1]
        return scores.permute(0, 2, 3, 1), self.deltas(hidden).permute(0, 2, 3, 1).unflatten(-1, (-1, 4))
