"""Caffe's .caffemodel files, read without Caffe and without running anything.

A file is one protocol buffer, `NetParameter`: its layers (field 100), each with a name (1) and blobs (7). A blob has a shape (7) or four old numbers
(1 to 4), and its numbers packed (5, float32; 8, float64). Older files hold their layers in field 2, with the name in 4 and blobs in 6.
Source: caffe's src/caffe/proto/caffe.proto.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from intarsia.errors import BadInput
from intarsia.weights.tf_checkpoint import message_fields, varint

SUFFIX = ".caffemodel"
_LAYERS = ((100, 1, 7), (2, 4, 6))
"""Fields of the layers, of a layer's name and of its blobs: today's and the old ones."""


def read_caffemodel(path: Path) -> dict[str, Tensor]:
    """The blobs of all layers that have some, as "LAYER.0", "LAYER.1", .. in the order stored.

    Raises:
        BadInput: it cannot be read, or is not a whole file of Caffe's.
    """
    try:
        net = message_fields(path.read_bytes())
        found: dict[str, Tensor] = {}
        for layers, name, blobs in _LAYERS:
            for layer in net.get(layers, []):
                fields = message_fields(_bytes(layer))
                called = _bytes(fields[name][-1]).decode() if name in fields else ""
                found |= {f"{called}.{i}": _blob(_bytes(blob)) for i, blob in enumerate(fields.get(blobs, []))}
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (IndexError, TypeError, ValueError, struct.error) as error:
        raise BadInput(f"{path}: not a whole file of Caffe's: {error}") from None
    if not found:
        raise BadInput(f"{path}: no layer with weights in it")
    return found


def _blob(raw: bytes) -> Tensor:
    fields = message_fields(raw)
    wide = 8 in fields
    parts = [
        x if isinstance(x, bytes) else struct.pack("<Q" if wide else "<I", x) for x in fields.get(8 if wide else 5, [])
    ]
    numbers = np.frombuffer(b"".join(parts), "<f8" if wide else "<f4")
    if 7 in fields:
        shape = _numbers(message_fields(_bytes(fields[7][-1])).get(1, []))
    else:
        shape = _numbers([x for i in (1, 2, 3, 4) for x in fields.get(i, [1])[-1:]])
    return torch.from_numpy(numbers.astype(np.float32)).reshape(shape)


def _numbers(values: list[int | bytes]) -> list[int]:
    """Whole numbers, packed or not."""
    found = []
    for value in values:
        place = 0
        while isinstance(value, bytes) and place < len(value):
            number, place = varint(value, place)
            found.append(number)
        if isinstance(value, int):
            found.append(value)
    return found


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number where a message is expected")
    return value
