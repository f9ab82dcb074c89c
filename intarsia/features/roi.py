"""Regions of pictures and of feature maps in plain torch: non-maximum suppression, RoIAlign, RoIPool, crops. No compiled operators.

Where torchvision imports, its operators do the same work, except where gradients are asked for: its own on CUDA add up in no fixed order.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from intarsia.boxes import iou

Array = NDArray[Any]
BLOCK = 512
"""Boxes compared at once."""


Clash = Callable[[Tensor, Tensor, float], Tensor]
"""Boxes (N, 4), boxes (M, 4), threshold -> (N, M) bool: which of the former remove which of the latter."""


def overlaps(a: Tensor, b: Tensor, threshold: float) -> Tensor:
    """IoU above the threshold: the rule of detectron2 and torchvision."""
    return iou(a, b) > threshold


def overlaps_as_pixels(a: Tensor, b: Tensor, threshold: float) -> Tensor:
    """IoU at the threshold or above, boxes taken as pixels with both ends included: the rule of Caffe's detectors."""
    return iou(a, b, extra=1.0) >= threshold


@cache
def compiled() -> Any:
    """Torchvision's operators; None where they do not import, or were built for another torch."""
    try:
        ops = importlib.import_module("torchvision.ops")
        ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    except (ImportError, RuntimeError, OSError, AttributeError):
        return None
    return ops


def _compiled_for(numbers: Tensor) -> Any:
    """The same for these numbers, None where ours must do the work."""
    exact = numbers.dtype == torch.float32 and not (torch.is_grad_enabled() and numbers.requires_grad)
    return compiled() if exact else None


def nms(
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    labels: Tensor | None = None,
    most: int | None = None,
    clash: Clash = overlaps,
) -> Tensor:
    """Greedy non-maximum suppression, class by class when labels are given.

    Args:
        boxes: (R, 4) xyxy, any unit.
        scores: (R) float.
        threshold: a box goes when it clashes at this with a better box of its class that stays.
        labels: (R) int64, or None to let every box suppress every other.
        most: stop at this many boxes.
        clash: what two boxes may not do.

    Returns:
        (K) int64 indices of the boxes kept, best first; equal scores keep the order they came in.
    """
    ops = _compiled_for(boxes) if labels is None and clash is overlaps and scores.dtype == torch.float32 else None
    if ops is not None:
        found: Tensor = ops.nms(boxes, scores, threshold)[:most]
        return found
    order = torch.argsort(scores, descending=True, stable=True)
    most = len(order) if most is None else most
    kept = order[:0]
    for start in range(0, len(order), BLOCK):
        if len(kept) >= most:
            break
        rows = order[start : start + BLOCK]
        rows = rows[~_clashes(kept, rows, boxes, labels, threshold, clash).any(0)]
        among = _clashes(rows, rows, boxes, labels, threshold, clash).triu(1).cpu().numpy()
        alive = np.ones(len(rows), np.bool_)
        for i in range(len(rows)):
            if alive[i]:
                alive &= ~among[i]
        kept = torch.cat([kept, rows[torch.from_numpy(alive).to(rows.device)]])
    return kept[:most]


def _clashes(a: Tensor, b: Tensor, boxes: Tensor, labels: Tensor | None, threshold: float, clash: Clash) -> Tensor:
    found = clash(boxes[a], boxes[b], threshold)
    return found if labels is None else found & (labels[a][:, None] == labels[b][None, :])


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


def roi_pool(maps: Tensor, boxes: Tensor, image: Tensor, size: int, scale: float) -> Tensor:
    """RoI max-pooling: boxes are rounded to cells, cut into bins that may share cells, each bin gives its largest cell.

    Args:
        maps: (I, C, h, w) float feature maps.
        boxes: (R, 4) xyxy in pixels of the network's input, not negative; both ends are inside, so the extent is one more.
        image: (R) int64, the map each box lies in.
        size: bins a side.
        scale: cells a pixel.

    Returns:
        (R, C, size, size); 0 in a bin outside the map.

    Source: Fast R-CNN, sec. 2.1; Caffe's roi_pooling_layer, whose bins are cut in float32.
    """
    if len(boxes) == 0:
        return maps.new_zeros((0, maps.shape[1], size, size))
    ops = _compiled_for(maps)
    if ops is not None:
        pooled: Tensor = ops.roi_pool(maps, _owned(boxes, image), (size, size), scale)
        return pooled
    cells = (boxes.float() * scale + 0.5).floor()
    extent = shared((cells[:, 2:] - cells[:, :2] + 1).clamp(min=1), size)  # (R, 2) cells a bin
    steps = torch.arange(size + 1, device=boxes.device, dtype=torch.float32)
    edges = extent[:, :, None] * steps  # (R, 2, size + 1)
    limit = torch.tensor([maps.shape[3], maps.shape[2]], device=boxes.device)[None, :, None]
    start = torch.minimum((edges[..., :-1].floor() + cells[:, :2, None]).clamp(min=0).long(), limit)
    end = torch.minimum((edges[..., 1:].ceil() + cells[:, :2, None]).clamp(min=0).long(), limit)
    longest = int((end - start).max())
    empty = end <= start
    last = torch.minimum((end - 1).clamp(min=0), limit - 1)
    planes = maps.permute(0, 2, 3, 1).contiguous()  # (I, h, w, C)
    each = torch.arange(len(boxes), device=boxes.device)[:, None]
    rows = planes[image[:, None], torch.minimum(start[:, 1], last[:, 1])]  # (R, size, w, C)
    for i in range(1, longest):
        rows = torch.maximum(rows, planes[image[:, None], torch.minimum(start[:, 1] + i, last[:, 1])])
    rows = rows.transpose(1, 2)  # (R, w, size, C)
    out = rows[each, torch.minimum(start[:, 0], last[:, 0])]  # (R, size across, size down, C)
    for i in range(1, longest):
        out = torch.maximum(out, rows[each, torch.minimum(start[:, 0] + i, last[:, 0])])
    out = out.masked_fill((empty[:, 0, :, None] | empty[:, 1, None, :])[..., None], 0)
    return out.permute(0, 3, 2, 1)


def roi_align_unshifted(
    maps: Tensor, boxes: Tensor, image: Tensor, size: int, scale: float, samples: int = 0, most: int = 0
) -> Tensor:
    """The first RoIAlign: no half-pixel shift, boxes at least one cell wide.

    Args:
        maps: (I, C, h, w) float feature maps.
        boxes: (R, 4) xyxy in pixels of the network's input.
        image: (R) int64, the map each box lies in.
        size: bins a side.
        scale: cells a pixel.
        samples: reads a side of a bin; 0 = as many as it has cells.
        most: of these, where it is known, so that nothing waits for the device; 0 = it is not.

    Returns:
        (R, C, size, size); reads more than a cell outside the map count as 0.

    Source: maskrcnn-benchmark's ROIAlign, whose sampling_ratio is `samples`. A read is linear along each axis alone, so a bin is a product of two weightings.
    """
    ops = _compiled_for(maps)
    if ops is not None and len(boxes):
        read: Tensor = ops.roi_align(maps, _owned(boxes, image), (size, size), scale, samples or -1, aligned=False)
        return read
    start, extent = boxes[:, :2] * scale, ((boxes[:, 2:] - boxes[:, :2]) * scale).clamp(min=1)
    across = _read_weights(start[:, 0], extent[:, 0], size, maps.shape[3], samples, most).to(maps.dtype)
    down = _read_weights(start[:, 1], extent[:, 1], size, maps.shape[2], samples, most).to(maps.dtype)
    rows = torch.einsum("rih,rchw->rciw", down, maps[image])
    return torch.einsum("rjw,rciw->rcij", across, rows)


def _read_weights(start: Tensor, extent: Tensor, size: int, length: int, samples: int, most: int) -> Tensor:
    """(R, size, length): what each cell along one axis counts for in each bin."""
    each = shared(extent, size)  # (R) cells a bin
    reads = torch.full_like(extent, samples) if samples else each.ceil()
    most = samples or most or (int(reads.max()) if len(reads) else 0)
    number = torch.arange(most, device=start.device)
    part = (number + 0.5) / reads[:, None]  # (R, most)
    bins = torch.arange(size, device=start.device)
    at = start[:, None, None] + (bins[None, :, None] + part[:, None, :]) * each[:, None, None]  # (R, size, most)
    counts = (number < reads[:, None])[:, None, :] & (at >= -1) & (at <= length)
    cell = torch.arange(length, device=start.device)
    near = (1 - (at.clamp(0, length - 1)[..., None] - cell).abs()).clamp(min=0)
    return (near * counts[..., None]).sum(2) / reads[:, None, None]


def _owned(boxes: Tensor, image: Tensor) -> Tensor:
    """(R, 5) float32: the number of its map before each box."""
    return torch.cat([image[:, None].float(), boxes.float()], 1)


def shared(extent: Tensor, size: int) -> Tensor:
    """An extent over so many bins, rounded as a division is.

    By a plain number CUDA multiplies with the reciprocal, which lies beside the quotient now and then; where a bin ends on a cell, that is another bin.
    """
    return extent / torch.full_like(extent, size)


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
