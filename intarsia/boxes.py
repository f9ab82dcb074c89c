"""Boxes: xyxy conversions, overlap, and the geometry codes that systems give their regions. Pure functions.

Boxes are (.., 4) xyxy as fractions of the picture's width and height, so every code is the same for a scaled picture.
"""

from __future__ import annotations

import torch
from torch import Tensor


def five(boxes: Tensor) -> Tensor:
    """(R, 4) to (R, 5): x1, y1, x2, y2, area. Source: ViLBERT, sec. 3.1."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], -1)


def five_by_furthest(boxes: Tensor, documents: Tensor, count: int) -> Tensor:
    """(R, 4) to (R, 5), as `five`, as shares of the furthest x and y of the document's boxes; no area is below 0. Source: VLP, seq2seq_loader.py.

    Args:
        boxes: of all documents.
        documents: (R), the document of each.
        count: documents.
    """
    corners = boxes.view(-1, 2, 2).amax(1)  # (R, 2)
    furthest = boxes.new_zeros(count, 2).scatter_reduce(0, documents[:, None].expand(-1, 2), corners, "amax")
    codes = five(boxes / furthest.clamp(min=1e-9).repeat(1, 2)[documents])
    return torch.cat([codes[:, :4], codes[:, 4:].clamp(min=0)], 1)


def six(boxes: Tensor) -> Tensor:
    """(R, 4) to (R, 6): x1, y1, x2, y2, width, height. Source: Oscar, sec. 3."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1, y1, x2, y2, x2 - x1, y2 - y1], -1)


def seven(boxes: Tensor) -> Tensor:
    """(R, 4) to (R, 7): x1, y1, x2, y2, width, height, area. Source: UNITER, sec. 3.1."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return torch.stack([x1, y1, x2, y2, width, height, width * height], -1)


def sine(boxes: Tensor, waves: int = 256, base: float = 1000.0) -> Tensor:
    """(R, 4) to (R, 8 * waves): centre x, centre y, width, height in hundredths, each as sines, then cosines. Source: VL-BERT, fast_rcnn.py."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    numbers = 100 * torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1)  # (R, 4)
    steps = base ** (torch.arange(waves, device=boxes.device, dtype=boxes.dtype) / waves)
    angles = numbers[:, :, None] / steps  # (R, 4, waves)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)


def iou(a: Tensor, b: Tensor, extra: float = 0.0) -> Tensor:
    """Intersection over union of every box of a (N, 4) with every box of b (M, 4): (N, M); 0 where both have no area.

    Args:
        a: boxes.
        b: boxes.
        extra: added to every width and height; 1 where boxes are pixels, ends included (Caffe).
    """
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low + extra).clamp(min=0).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2] + extra).clamp(min=0).prod(-1) for x in (a, b))
    union = area_a[:, None] + area_b[None, :] - shared
    return torch.where(union > 0, shared / union.clamp(min=1e-12), torch.zeros_like(union))
