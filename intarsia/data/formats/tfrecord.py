"""TensorFlow's record files, and FashionBERT's training rows in them or as text, read without TensorFlow.

A record is its length (uint64), the length's checksum, the bytes and their checksum (CRC-32C, masked). The bytes are a protocol buffer
`tf.train.Example`: a map from names to lists of bytes, floats or whole numbers.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from intarsia.batch import Picture
from intarsia.data.formats.files import RandomAccess
from intarsia.data.formats.line_index import open_lines
from intarsia.data.formats.store import Array, RegionStore, decode_array, make_picture
from intarsia.errors import BadInput
from intarsia.weights.tf_checkpoint import crc32c, masked, message_fields, varint

HEAD, TAIL = 12, 4
SUFFIXES = (".tfrecord", ".tfrecords")
SIDE = 8
"""Patches a side of FashionBERT's pictures."""
NUMBERS: dict[str, DTypeLike] = {
    **{"image_feature": np.float32, "image_mask": np.int64, "masked_patch_positions": np.int64},
    **{"input_ids": np.int64, "input_mask": np.int64, "segment_ids": np.int64},
    **{"masked_lm_positions": np.int64, "masked_lm_ids": np.int64, "masked_lm_weights": np.float32},
    "nx_sent_labels": np.int64,
}
"""The columns of numbers of FashionBERT's rows as text, in their order."""
NAMES = ("prod_desc", "text_prod_id", "image_prod_id", "prod_img_id")
"""What follows them, or nothing."""
WEB_SAFE = bytes.maketrans(b"-_", b"+/")
USED = {"image_feature", "image_mask", "prod_desc", "text_prod_id", "image_prod_id", "prod_img_id"}


class Records:
    """The records of a file by number; its heads are walked once.

    Raises:
        BadInput: no such file, not of records, or cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, RandomAccess(path)
        try:
            end = path.stat().st_size
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
        places, at = array("q"), 0
        while at < end:
            head = self._file.read(at, min(HEAD, end - at))
            size = struct.unpack("<Q", head[:8])[0] if len(head) == HEAD else -1
            if size < 0 or at + HEAD + size + TAIL > end or _sum(head[:8]) != head[8:]:
                raise BadInput(f"{path}, record {len(places)}: cut short, or not a file of records")
            places.append(at)
            at += HEAD + size + TAIL
        self._places = np.array([*places, at], np.int64)

    def __len__(self) -> int:
        return len(self._places) - 1

    def unchecked(self, number: int) -> bytes:
        """A record whose checksum is not compared."""
        at, end = int(self._places[number]), int(self._places[number + 1])
        return self._file.read(at + HEAD, end - at - HEAD - TAIL)

    def __getitem__(self, number: int) -> bytes:
        at, end = int(self._places[number]), int(self._places[number + 1])
        raw = self._file.read(at + HEAD, end - at - HEAD)
        if _sum(raw[:-TAIL]) != raw[-TAIL:]:
            raise BadInput(f"{self.path}, record {number}: damaged: its checksum is another")
        return raw[:-TAIL]


def is_records(path: Path) -> bool:
    """Whether a file begins as one of records does: with a length and its checksum."""
    with open(path, "rb") as handle:
        head = handle.read(HEAD)
    return len(head) == HEAD and _sum(head[:8]) == head[8:]


def _sum(data: bytes) -> bytes:
    return struct.pack("<I", masked(crc32c(np.frombuffer(data, np.uint8))))


def parse_example(raw: bytes, where: str) -> dict[str, list[bytes] | Array]:
    """The features of an Example: lists of bytes, float32 or int64 arrays.

    Raises:
        BadInput: not an Example.
    """
    try:
        found: dict[str, list[bytes] | Array] = {}
        for features in message_fields(raw).get(1, []):
            for entry in message_fields(_bytes(features)).get(1, []):
                pair = message_fields(_bytes(entry))
                found[_bytes(pair[1][0]).decode()] = _values(message_fields(_bytes(pair[2][0])))
        return found
    except (IndexError, KeyError, TypeError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise BadInput(f"{where}: not an Example of TensorFlow: {error!r}") from None


def _values(feature: dict[int, list[int | bytes]]) -> list[bytes] | Array:
    if 1 in feature:
        return [_bytes(x) for x in message_fields(_bytes(feature[1][0])).get(1, [])]
    kind = 2 if 2 in feature else 3
    values = message_fields(_bytes(feature[kind][0])).get(1, []) if kind in feature else []
    if kind == 2:
        return np.frombuffer(b"".join(x if isinstance(x, bytes) else struct.pack("<I", x) for x in values), "<f4")
    whole: list[int] = []
    for x in values:
        at = 0
        while isinstance(x, bytes) and at < len(x):  # packed
            value, at = varint(x, at)
            whole.append(value)
        if isinstance(x, int):
            whole.append(x)
    return np.array(whole, np.uint64).astype(np.int64)


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number where a message is expected")
    return value


class Lined:
    """FashionBERT's rows as text: columns behind tabs in the order of its `input_schema`, numbers behind commas, features perhaps in base64."""

    def __init__(self, path: Path) -> None:
        self._lines = open_lines(path)

    def __len__(self) -> int:
        return len(self._lines)

    def example(self, number: int, where: str) -> dict[str, list[bytes] | Array]:
        """A row as `parse_example` gives it.

        Raises:
            BadInput: other columns, or cells that are no numbers.
        """
        cells = self._lines[number].split(b"\t")
        if len(cells) not in (len(NUMBERS), len(NUMBERS) + len(NAMES)):
            raise BadInput(f"{where}: {len(cells)} columns, expected {len(NUMBERS)} or {len(NUMBERS) + len(NAMES)}")
        found: dict[str, list[bytes] | Array] = {}
        for (name, kind), cell in zip(NUMBERS.items(), cells, strict=False):
            found[name] = _cell(cell, kind, f"{where}: {name}")
        return found | {name: [cell] for name, cell in zip(NAMES, cells[len(NUMBERS) :], strict=False)}


def _cell(cell: bytes, kind: DTypeLike, where: str) -> Array:
    if kind is np.float32 and b"," not in cell and len(cell) > 40:
        return decode_array(cell.translate(WEB_SAFE) + b"=" * (-len(cell) % 4), kind, where)
    try:
        return np.array(cell.split(b","), "S").astype(kind)
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from None


def is_lined(cells: Sequence[bytes]) -> bool:
    """Whether these are the columns of one of FashionBERT's rows."""
    whole = len(cells) in (len(NUMBERS), len(NUMBERS) + len(NAMES))
    return whole and cells[1].count(b",") == SIDE * SIDE - 1


class Recorded:
    """FashionBERT's rows in a file of records."""

    def __init__(self, path: Path) -> None:
        self._records = Records(path)

    def __len__(self) -> int:
        return len(self._records)

    def example(self, number: int, where: str) -> dict[str, list[bytes] | Array]:
        """A row.

        Raises:
            BadInput: damaged, or not an Example.
        """
        return parse_example(self._records[number], where)


class FashionBERTRecords(RegionStore):
    """FashionBERT's training rows, records or lines, as a store with captions: 8 x 8 patches a picture, and the description where it is of the same product.

    A picture that comes in several rows is one, with the descriptions of all of them.

    Raises:
        BadInput: not such a file.
    """

    kind = "FashionBERT rows"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        recorded = self.path.suffix in SUFFIXES or is_records(self.path)
        self.records = Recorded(self.path) if recorded else Lined(self.path)
        self._rows: dict[str, list[int]] = {}
        self._texts: dict[str, list[str]] = {}
        for number in range(len(self.records)):
            row = self._row(number)
            picture, product, text_product, text = (
                _text(row, x) for x in ("prod_img_id", "image_prod_id", "text_prod_id", "prod_desc")
            )
            name = picture or product or str(number)
            self._rows.setdefault(name, []).append(number)
            said = self._texts.setdefault(name, [])
            if text and product == text_product and text not in said:
                said.append(text)
        self.names = list(self._rows)

    def _row(self, number: int) -> dict[str, list[bytes] | Array]:
        return self.records.example(number, f"{self.shown}, record {number}")

    def picture(self, number: int) -> Picture:
        """The patches of a picture that its mask has."""
        name, where = self.names[number], self.where(number)
        row = self._row(self._rows[name][0])
        features, mask = (np.asarray(row.get(x, ())) for x in ("image_feature", "image_mask"))
        if features.dtype != np.float32 or len(mask) != SIDE * SIDE or len(features) % len(mask) or not len(features):
            raise BadInput(
                f"{where}: image_feature holds {len(features)} numbers for {len(mask)} patches, expected {SIDE * SIDE} patches"
            )
        self.leave(row.keys() - USED)
        y, x = np.divmod(np.arange(SIDE * SIDE), SIDE)
        cells = np.stack([x, y, x + 1, y + 1], 1) / SIDE
        kept = mask > 0
        return make_picture(
            name, where, features.reshape(SIDE * SIDE, -1)[kept], cells[kept], self.size_of(name), pixels=False
        )

    def said(self, number: int) -> list[dict[str, Any]]:
        """The descriptions of a picture."""
        texts = self._texts[self.names[number]]
        return [{"captions": texts}] if texts else []


def _text(row: dict[str, list[bytes] | Array], name: str) -> str:
    value = row.get(name)
    if isinstance(value, list) and value:
        return value[0].decode("utf-8", "replace").strip()
    return str(int(value[0])) if isinstance(value, np.ndarray) and len(value) else ""
