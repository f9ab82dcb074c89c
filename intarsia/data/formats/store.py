"""What every reader of others' region features looks like: pictures by number and by name, all made canonical in one place.

Class and attribute ids count background, or "none", as 0; boxes are fractions; nothing is unpickled but by `weights.pickles`.
"""

from __future__ import annotations

import binascii
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from intarsia.batch import Picture
from intarsia.data.formats.names import picture_key
from intarsia.data.formats.regions import INTEGERS, to_fractions
from intarsia.data.source import Provenance
from intarsia.errors import BadInput

try:
    from pybase64 import b64decode
except ImportError:
    from base64 import b64decode

Array = NDArray[Any]


class RegionStore(ABC):
    """Region features as another project stored them. Readers pickle, and open their files anew in every process."""

    kind: ClassVar[str]
    """Name of the layout."""
    true_fractions: ClassVar[bool] = True
    """Boxes are fractions of the true size of the picture."""
    path: Path
    address: str = ""
    """Where it lies, if `path` is a copy of it."""
    names: Sequence[str]
    """Names of the pictures, in the order stored."""
    provenance: Provenance | None = None
    """Only our own shards say it."""
    sizes: Mapping[str, tuple[int, int]] = {}
    """Pixels wide and high by `picture_key`, of pictures whose layout does not say it."""

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Picture]:
        return (self.picture(number) for number in range(len(self)))

    @abstractmethod
    def picture(self, number: int) -> Picture:
        """A picture by number.

        Raises:
            BadInput: its record cannot be used; names file, picture and value.
        """

    def said(self, number: int) -> list[dict[str, Any]]:
        """What is said of a picture, as lines of `pairs.jsonl` without key and image; nothing in most layouts."""
        return []

    def tags(self, number: int) -> tuple[str, ...]:
        """The names of a picture's objects, where the layout keeps them."""
        return ()

    @cached_property
    def left(self) -> Counter[str]:
        """Fields that were read past and are not kept: in how many of the pictures looked at."""
        return Counter()

    def leave(self, fields: Iterable[str]) -> None:
        """Counts fields of a record that are not kept."""
        self.left.update(fields)

    def size_of(self, name: str) -> tuple[int, int]:
        """Pixels wide and high of a picture whose layout does not say it; 0, 0 where nobody does."""
        return self.sizes.get(picture_key(name), (0, 0))

    def where(self, number: int) -> str:
        """Names a picture in errors."""
        return f"{self.shown}, picture {self.names[number]}"

    @property
    def shown(self) -> str:
        """Names it in errors."""
        return self.address or str(self.path)


def decode_array(text: Any, dtype: DTypeLike, where: str, rows: int | None = None) -> Array:
    """An array stored as base64 text, perhaps with line breaks or written by Python 2's or 3's `str(bytes)`.

    Args:
        text: base64, str or bytes-like.
        dtype: of the numbers.
        where: names record and field in errors.
        rows: gives the result that many rows; None = one dimension.

    Raises:
        BadInput: not base64, or its bytes do not divide into rows.
    """
    if isinstance(text, bytes | memoryview | bytearray) and bytes(text[:2]) in (b"b'", b'b"'):
        text = bytes(text)[2:-1]
    elif isinstance(text, str) and text[:2] in ("b'", 'b"'):
        text = text[2:-1]
    try:
        data = b64decode(text)
        array = np.frombuffer(data, dtype)
        return array if rows is None else array.reshape(rows, -1) if rows else array.reshape(0, 0)
    except (binascii.Error, ValueError, TypeError) as error:
        raise BadInput(f"{where}: {error}" + (f" ({rows} rows expected)" if rows is not None else "")) from None


def whole_number(text: Any, where: str) -> int:
    """A count or a size.

    Raises:
        BadInput: not a whole number of at least 0.
    """
    try:
        value = float(text)
        if value < 0 or value != int(value):
            raise ValueError
        return int(value)
    except (ValueError, TypeError, OverflowError):
        raise BadInput(
            f"{where} is {bytes(text)[:40] if isinstance(text, bytes | memoryview) else text!r}, expected a whole number"
        ) from None


def make_picture(
    name: str,
    where: str,
    features: Any,
    boxes: Any,
    size: tuple[int, int],
    *,
    pixels: bool = True,
    path: str = "",
    **extras: Any,
) -> Picture:
    """A canonical picture from what a record says.

    Args:
        name: the picture's.
        where: names it in errors.
        features: (R, F) float16 or float32.
        boxes: (R, 4) xyxy, in pixels or as fractions.
        size: pixels wide, high; 0 where not known.
        pixels: boxes are in pixels.
        path: file of the pixels.
        extras: scores, probs, labels, attributes, attribute_scores, with one row a region, or None.

    Raises:
        BadInput: shapes that do not fit, a type that is no number, a box without area or outside the picture.
    """
    features, boxes = np.asarray(features), np.asarray(boxes)
    if features.ndim != 2 or features.dtype not in (np.float16, np.float32):
        raise BadInput(
            f"{where}: features are {features.dtype} of shape {features.shape}, expected float16 or float32 (R, F)"
        )
    if boxes.shape != (len(features), 4):
        raise BadInput(
            f"{where}: boxes of shape {boxes.shape} for {len(features)} regions, expected ({len(features)}, 4)"
        )
    if pixels:
        if not (size[0] > 0 and size[1] > 0):
            raise BadInput(
                f"{where}: the picture is {size[0]}x{size[1]} pixels; boxes in pixels need its size (give --sizes)"
            )
        boxes = to_fractions(boxes, *size, where)
    else:
        boxes = boxes.astype(np.float32)
    kept: dict[str, Any] = {}
    for field, values in extras.items():
        if values is not None:
            values = np.asarray(values)
            if (
                len(values) != len(features)
                or values.ndim != (2 if field == "probs" else 1)
                or values.dtype.kind not in "iuf"
            ):
                raise BadInput(
                    f"{where}: {field} are {values.dtype} of shape {values.shape} for {len(features)} regions"
                )
            kind = (
                np.int64
                if field in INTEGERS
                else values.dtype
                if values.dtype == np.float16 and field == "probs"
                else np.float32
            )
            kept[field] = values.astype(kind, copy=False)
    return Picture(name=name, features=features, boxes=boxes, width=size[0], height=size[1], path=path, **kept)


def whole_picture(name: str, where: str, features: Any, size: tuple[int, int]) -> Picture:
    """A picture whose regions have no boxes: each counts as the whole of it."""
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(features), 1))
    return make_picture(name, where, features, boxes, size, pixels=False)


def in_pixels(picture: Picture) -> Array:
    """The boxes of a picture (R, 4) float32 in pixels.

    Raises:
        BadInput: its size is not known.
    """
    if picture.width <= 0 or picture.height <= 0:
        raise BadInput(f"picture {picture.name}: its size is not known; this format needs it (give --sizes)")
    return picture.boxes * np.array([picture.width, picture.height] * 2, np.float32)


def needed(picture: Picture, field: str) -> Array:
    """An array that a layout cannot do without.

    Raises:
        BadInput: the picture does not have it.
    """
    values = getattr(picture, field)
    if values is None:
        raise BadInput(f"picture {picture.name}: has no {field}, which this format stores")
    return np.asarray(values)
