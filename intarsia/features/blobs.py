"""Regions of a raw picture on a plain background: connected patches unlike the colour of its border.

With `pixels` this is the extractor for drawings, icons and product shots; photographs need a detector. A patterned
object one of whose tones is close to the background comes apart into several regions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BACKGROUND_BOXES = ((0.02, 0.02, 0.30, 0.30), (0.70, 0.70, 0.98, 0.98))
"""Reported of every picture after the blobs, with score 0."""

_LARGEST = 256  # longer sides are averaged down to at most this before blobs are sought
_CONTRAST = 36.0  # least distance of a pixel's colour from the background's, in grey levels of 255
_SPREADS = 5.0  # ... or this many times the spread of the border, whichever is more


class Proposals(NamedTuple):
    """Regions of a picture, best first."""

    boxes: NDArray[np.float32]
    """(R, 4) xyxy as fractions of width and height; R >= 1."""
    scores: NDArray[np.float32]
    """(R) in [0, 1): how far a region stands out from the background."""


def propose(image: NDArray[np.uint8], most: int = 10, least_area: float = 0.002, background: bool = True) -> Proposals:
    """Finds the regions of a picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        most: keep this many blobs, the largest.
        least_area: leave out blobs that cover less than this share of the picture.
        background: add the two fixed background boxes after the blobs.

    Returns:
        The blobs' boxes by area, largest first; the whole picture where there is no blob.

    Raises:
        ValueError: the picture has another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"picture of shape {image.shape} and type {image.dtype}, expected (H, W, 3) uint8")
    small = _shrink(image)
    distance, threshold = _difference(small)
    labels = components(distance > threshold)
    count = int(labels.max()) + 1
    boxes, scores = [(0.0, 0.0, 1.0, 1.0)], [0.0]
    if count:
        ys, xs = np.nonzero(labels >= 0)
        member = labels[ys, xs]
        area = np.bincount(member, minlength=count)
        kept = np.argsort(-area, kind="stable")[:most]
        kept = kept[area[kept] >= least_area * labels.size]
        if len(kept):
            edges = _extents(member, xs, ys, count) / np.tile([labels.shape[1], labels.shape[0]], 2)
            contrast = np.bincount(member, weights=distance[ys, xs], minlength=count) / area
            boxes = [(float(a), float(b), float(c), float(d)) for a, b, c, d in edges[kept]]
            scores = (1 - threshold / np.maximum(contrast[kept], threshold)).tolist()
    if background:
        boxes += BACKGROUND_BOXES
        scores += [0.0] * len(BACKGROUND_BOXES)
    return Proposals(np.array(boxes, dtype=np.float32), np.array(scores, dtype=np.float32))


def components(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Labels the 8-connected components of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) int64: -1 outside, else 0 .. number - 1 in the order in which components are met row by row.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    row, start = np.nonzero(steps == 1)  # runs of set pixels, row by row
    end = np.nonzero(steps == -1)[1]
    a, b = _touching(row, start, end, width)
    root = np.arange(len(row))
    while True:  # each round every run takes the least label it touches, then follows it to the end
        least = root.copy()
        joint = np.minimum(root[a], root[b])
        np.minimum.at(least, root[a], joint)
        np.minimum.at(least, root[b], joint)
        while not np.array_equal(least, least[least]):
            least = least[least]
        least = least[root]
        if np.array_equal(least, root):
            break
        root = least
    run_label = np.unique(root, return_inverse=True)[1].reshape(-1)
    labels = np.full((height, width), -1, np.int64)
    labels[mask] = np.repeat(run_label, end - start)
    return labels


def _touching(
    row: NDArray[Any], start: NDArray[Any], end: NDArray[Any], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs of runs of neighbouring rows that touch, corners included."""
    stride = width + 2  # rows lie behind one another with a gap, so one sorted axis serves all
    first = np.searchsorted(row * stride + end, (row - 1) * stride + start, side="left")
    last = np.searchsorted(row * stride + start, (row - 1) * stride + end, side="right")
    counts = np.maximum(last - first, 0)
    below = np.repeat(np.arange(len(row)), counts)
    offset = np.arange(len(below)) - np.repeat(np.cumsum(counts) - counts, counts)
    return below, np.repeat(first, counts) + offset


def _shrink(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The picture as floats, averaged over k x k squares so that no side is over the limit (edges repeated)."""
    k = -(-max(image.shape[:2]) // _LARGEST)
    if k == 1:
        return image.astype(np.float32)
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % k), (0, -width % k), (0, 0)), mode="edge")
    cells = padded.reshape(padded.shape[0] // k, k, padded.shape[1] // k, k, 3)
    return np.asarray(cells.mean(axis=(1, 3), dtype=np.float32))


def _difference(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """(H, W) distance of every pixel from the background's colour, and the least distance of a blob's pixels."""
    depth = max(1, min(image.shape[:2]) // 48)
    border = np.concatenate(
        [
            image[:depth].reshape(-1, 3),
            image[-depth:].reshape(-1, 3),
            image[:, :depth].reshape(-1, 3),
            image[:, -depth:].reshape(-1, 3),
        ]
    )
    colour = np.median(border, axis=0)
    distance = np.sqrt(np.square(image - colour).sum(2))
    spread = float(np.median(np.sqrt(np.square(border - colour).sum(1))))
    return distance, max(_CONTRAST, _SPREADS * spread)


def _extents(member: NDArray[Any], xs: NDArray[Any], ys: NDArray[Any], count: int) -> NDArray[np.int64]:
    """(count, 4) xyxy in pixels, ends exclusive."""
    edges = np.empty((count, 4), np.int64)
    edges[:, :2] = np.iinfo(np.int64).max
    edges[:, 2:] = 0
    np.minimum.at(edges[:, 0], member, xs)
    np.minimum.at(edges[:, 1], member, ys)
    np.maximum.at(edges[:, 2], member, xs + 1)
    np.maximum.at(edges[:, 3], member, ys + 1)
    return edges
