"""Regions of pictures and of feature maps in plain torch: non-maximum suppression, RoIAlign, crops. No compiled operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from intarsia.boxes import iou

Array = NDArray[Any]


def nms(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor | None = None) -> Tensor:
    """Greedy non-maximum suppression, class by class when labels are given.

    Args:
        boxes: (R, 4) xyxy, any unit.
        scores: (R) float.
        threshold: a box goes when its overlap (IoU) with a better box of its class is above this.
        labels: (R) int64, or None to let every box suppress every other.

    Returns:
        (K) int64 indices of the boxes kept, best first; equal scores keep the order they came in.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    boxes = boxes[order]
    clash = iou(boxes, boxes) > threshold
    if labels is not None:
        clash &= labels[order][:, None] == labels[order][None, :]
    clash = clash.triu(1).cpu()
    alive = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if alive[i]:
            alive &= ~clash[i]
    return order[alive.to(order.device)]


def roi_align(maps: Tensor, boxes: Tensor, image: Tensor, size: int = 1, samples: int = 2) -> Tensor:
    """RoIAlign: each bin of a box is the mean of samples x samples bilinear reads of the map; reads outside the map take its border.

    Args:
        maps: (I, C, h, w) float feature maps.
        boxes: (R, 4) xyxy as fractions of the picture, so the stride of the map does not matter.
        image: (R) int64, the map each box lies in.
        size: bins a side.
        samples: reads a side of a bin.

    Returns:
        (R, C, size, size) in the type of the maps.

    Source: Mask R-CNN, sec. 3 (with pixel centres at half integers).
    """
    out = maps.new_zeros((len(boxes), maps.shape[1], size, size))
    steps = (torch.arange(size * samples, device=boxes.device, dtype=boxes.dtype) + 0.5) / (size * samples)
    for i in image.unique().tolist():  # type: ignore[no-untyped-call]
        rows = (image == i).nonzero()[:, 0]
        corner, extent = boxes[rows, :2], boxes[rows, 2:] - boxes[rows, :2]
        at = corner[:, None] + extent[:, None] * steps[None, :, None]  # (K, S, 2)
        x = at[:, None, :, 0].expand(-1, len(steps), -1)
        y = at[:, :, None, 1].expand(-1, -1, len(steps))
        grid = (torch.stack([x, y], -1) * 2 - 1).flatten(0, 1)[None].to(maps.dtype)  # (1, K S, S, 2)
        read = functional.grid_sample(maps[i : i + 1], grid, padding_mode="border", align_corners=False)
        read = read.view(maps.shape[1], len(rows), size, samples, size, samples).mean((3, 5))
        out[rows] = read.transpose(0, 1)
    return out


def read_weights(boxes: Tensor, high: int, wide: int, reads: int) -> Tensor:
    """(R, high * wide) float: how much each cell of a map counts in the mean of reads x reads bilinear reads of each box; outside the map lies 0.

    The reads lie on a grid, so each axis has weights of its own. As in WenLan's code the grid is an affine map written for aligned corners and read as if
    they were not, and both axes are scaled by the map's height.

    Args:
        boxes: (R, 4) float32, xyxy as fractions.
        high: cells of the map, at least 2.
        wide: cells of the map, at least 2.
        reads: a side of a box.
    """
    x1, y1, x2, y2 = (boxes * high).unbind(-1)
    across, down = _axis_weights(x1, x2, wide, reads), _axis_weights(y1, y2, high, reads)
    return (down[:, :, None] * across[:, None, :]).flatten(1)


def _axis_weights(low: Tensor, high: Tensor, cells: int, reads: int) -> Tensor:
    """(R, cells) the same along one axis."""
    steps = (2 * torch.arange(reads, device=low.device) + 1) / reads - 1
    last = cells - 1
    place = ((high - low) / last)[:, None] * steps + ((low + high - last) / last)[:, None]
    place = ((place + 1) * cells - 1) / 2  # (R, reads) in cells
    near = 1 - (place[:, :, None] - torch.arange(cells, device=low.device)).abs()
    return near.clamp(min=0).mean(1)


def crops(image: Array, boxes: Array, size: int) -> Array:
    """Cuts boxes out of a picture and stretches each to a square, with anti-aliased bicubic interpolation.

    Args:
        image: (H, W, 3) uint8.
        boxes: (R, 4) xyxy fractions; a box thinner than one pixel is widened to one.
        size: side of the square in pixels.

    Returns:
        (R, size, size, 3) uint8.
    """
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    out = np.empty((len(boxes), size, size, 3), np.uint8)
    for i, (x1, y1, x2, y2) in enumerate(np.asarray(boxes, np.float64)):
        left, right = _at_least_a_pixel(x1 * width, x2 * width, width)
        top, bottom = _at_least_a_pixel(y1 * height, y2 * height, height)
        out[i] = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, right, bottom)))
    return out


def stretched(image: Array, size: int) -> Array:
    """The whole picture (H, W, 3) uint8 stretched to (size, size, 3) uint8, bilinear."""
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def conv_same(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], spread: tuple[int, int], groups: int
) -> Tensor:
    """A convolution padded as TensorFlow's SAME: (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
    pads = same_pads(x, (weight.shape[2], weight.shape[3]), stride, spread)
    if pads[0] != pads[1] or pads[2] != pads[3]:
        return functional.conv2d(functional.pad(x, pads), weight, bias, stride, 0, spread, groups)
    return functional.conv2d(x, weight, bias, stride, (pads[2], pads[0]), spread, groups)


def same_pads(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], spread: tuple[int, int] = (1, 1)
) -> list[int]:
    """What SAME adds left, right, above and below (B, C, H, W); the odd pixel goes to the right and below."""
    pads: list[int] = []
    for side, k, s, d in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], spread[::-1], strict=True):
        total = max((-(-side // s) - 1) * s + (k - 1) * d + 1 - side, 0)
        pads += [total // 2, total - total // 2]
    return pads


def _at_least_a_pixel(low: float, high: float, limit: int) -> tuple[float, float]:
    low, high = min(max(low, 0.0), limit), min(max(high, 0.0), limit)
    if high - low < 1:
        low = min(max((low + high) / 2 - 0.5, 0.0), limit - 1)
        high = low + 1
    return low, high
