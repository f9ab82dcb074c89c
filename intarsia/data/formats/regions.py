"""The regions of one picture in a file of their own: `.npz` (never unpickled) or `.safetensors`.

Arrays: features (R, F) float16 or float32; boxes (R, 4) xyxy in absolute pixels; optional scores (R), probs (R, C),
labels (R) integers, attributes (R) integers and attribute_scores (R).
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from intarsia.batch import Picture
from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput

Array = NDArray[Any]
EXTRAS = ("scores", "probs", "labels", "attributes", "attribute_scores")
"""What an extractor may say of regions beside features and boxes; all have one row a region."""
INTEGERS = ("labels", "attributes")
NAMES = ("features", "boxes", *EXTRAS)
SUFFIXES = ("npz", "safetensors")
SLACK = 1.0
"""Pixels a box may stick out of its picture: rounding, clipped; anything more is an error."""


def decode_regions(data: bytes, suffix: str, where: str) -> dict[str, Array]:
    """The arrays of a region file, shapes checked against one another.

    Args:
        data: the file's bytes.
        suffix: "npz" or "safetensors".
        where: names the file in errors.

    Raises:
        BadInput: broken file, missing array, wrong shape or type, or a feature that is not finite.
    """
    try:
        if suffix == "safetensors":
            arrays = load_safetensors(data)
        else:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files if name in NAMES}
    except (SafetensorError, ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise BadInput(f"{where}: not a readable .{suffix} file: {error}") from None
    for name in ("features", "boxes"):
        if name not in arrays:
            raise BadInput(f"{where}: has no array {name!r} (has: {', '.join(sorted(arrays)) or 'none'})")
    arrays = {name: arrays[name] for name in NAMES if name in arrays}
    check_shapes(arrays, where)
    return arrays


def check_shapes(arrays: dict[str, Array], where: str) -> None:
    """Checks shapes, types and finiteness of the arrays of one picture.

    Raises:
        BadInput: names the array and what it is.
    """
    features, boxes = arrays["features"], arrays["boxes"]
    if features.ndim != 2 or features.dtype not in (np.float16, np.float32):
        raise BadInput(
            f"{where}: features are {features.dtype} of shape {features.shape}, "
            "expected float16 or float32 of shape (R, F)"
        )
    if boxes.shape != (len(features), 4):
        raise BadInput(f"{where}: boxes of shape {boxes.shape}, expected ({len(features)}, 4), one for each feature")
    for name in EXTRAS:
        array, dimensions = arrays.get(name), 2 if name == "probs" else 1
        if array is not None and (array.ndim != dimensions or len(array) != len(features)):
            raise BadInput(
                f"{where}: {name} of shape {array.shape}, expected {len(features)} rows in {dimensions} dimension(s)"
            )
        if array is not None and array.dtype.kind != ("i" if name in INTEGERS else "f"):
            raise BadInput(
                f"{where}: {name} are {array.dtype}, expected {'integers' if name in INTEGERS else 'floats'}"
            )
    for name in set(NAMES) - {"boxes", *INTEGERS}:
        if name in arrays and not np.isfinite(arrays[name]).all():
            row = int(np.argwhere(~np.isfinite(arrays[name]))[0][0])
            raise BadInput(f"{where}: {name} of region {row} are not finite (NaN or infinite)")


def to_fractions(boxes: Array, width: int, height: int, where: str) -> Array:
    """Boxes (R, 4) xyxy in pixels as float32 fractions of the picture.

    Up to one pixel outside is rounding and is clipped.

    Raises:
        BadInput: a box has no area or sticks out of the picture (gives its number, its values and the picture's
            size).
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    size = np.array([width, height, width, height])
    clipped = np.clip(boxes, 0.0, size)
    fractions: Array = (clipped / size).astype(np.float32)
    shorter = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])  # (R) pixels of the shorter side
    left = np.minimum(fractions[:, 2] - fractions[:, 0], fractions[:, 3] - fractions[:, 1])
    outside = np.abs(boxes - clipped).max(axis=1, initial=0.0)
    for bad in np.flatnonzero(~((shorter > 0) & (left > 0) & (outside <= SLACK)))[:1].tolist():
        values = ", ".join(f"{x:g}" for x in boxes[bad])
        fault = "has no area (x2 <= x1 or y2 <= y1)"
        if shorter[bad] > 0:
            fault = f"is outside the picture of {width}x{height} pixels"
        raise BadInput(f"{where}: box {bad} [{values}] {fault}")
    return fractions


def read_picture(data: bytes, suffix: str, size: tuple[int, int], name: str, path: str, where: str) -> Picture:
    """The Picture a region file describes.

    Args:
        data: the file's bytes.
        suffix: "npz" or "safetensors".
        size: pixels wide, high.
        name: the picture's name.
        path: where its pixels are, or "".
        where: names the file in errors.

    Raises:
        BadInput: as `decode_regions` and `to_fractions`.
    """
    arrays = decode_regions(data, suffix, where)
    types = {"probs": None, **dict.fromkeys(INTEGERS, np.int64)}  # None = as stored
    extras: dict[str, Any] = {
        x: arrays[x].astype(types.get(x, np.float32) or arrays[x].dtype) for x in EXTRAS if x in arrays
    }
    return Picture(
        name=name,
        features=arrays["features"],
        boxes=to_fractions(arrays["boxes"], *size, where),
        width=size[0],
        height=size[1],
        path=path,
        **extras,
    )


def encode_regions(picture: Picture, suffix: str) -> bytes:
    """A picture's regions as the bytes of a `.npz` or `.safetensors` file; its boxes become pixels.

    Raises:
        BadInput: the picture's size is not known, so its boxes cannot be given in pixels.
    """
    if suffix not in SUFFIXES:
        raise BadInput(f"picture {picture.name}: a region file ends in .npz or .safetensors, not .{suffix}")
    if picture.width <= 0 or picture.height <= 0:
        raise BadInput(
            f"picture {picture.name}: its size is not known ({picture.width}x{picture.height}), "
            "needed to give boxes in pixels"
        )
    pixels = picture.boxes * np.array([picture.width, picture.height] * 2, dtype=np.float32)
    arrays = {"features": picture.features, "boxes": pixels.astype(np.float32)}
    arrays |= {name: getattr(picture, name) for name in EXTRAS}
    arrays |= {name: np.asarray(arrays[name], np.int64) for name in INTEGERS if arrays[name] is not None}
    kept = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
    if suffix == "safetensors":
        return bytes(save_safetensors(kept))
    buffer = io.BytesIO()
    np.savez(buffer, **kept)  # type: ignore[arg-type]
    return buffer.getvalue()


def write_regions(path: str | Path, picture: Picture) -> None:
    """Writes a picture's regions to one file, whole or not at all; the suffix says the format.

    Raises:
        BadInput: another suffix, or the picture's size is not known.
    """
    data = encode_regions(picture, Path(path).suffix.lstrip("."))
    with write_whole(Path(path)) as temporary:
        temporary.write_bytes(data)
