"""Batches between processes: all tensors in one block of shared memory.

By itself torch opens a socket for every tensor that a worker sends, which for a small batch costs more than making it.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALIGN = 64


@dataclass(frozen=True, slots=True)
class Parcel:
    """A packed value, as it travels; the two ends are processes of one run, so the pickle inside is our own."""

    about: bytes
    """The value less its tensors."""
    block: Tensor
    """(bytes) uint8, the tensors behind one another, each aligned."""
    spans: tuple[tuple[int, int], ...]
    """First and past-last byte of each tensor."""

    def pin_memory(self) -> Parcel:
        """The same in page-locked memory, for asynchronous copies to a CUDA device."""
        return Parcel(self.about, self.block.pin_memory(), self.spans)

    def open(self) -> Any:
        """The value; its tensors share the block."""
        whole = self.block.numpy().data
        return pickle.loads(self.about, buffers=[whole[start:stop] for start, stop in self.spans])


def parcel(value: Any) -> Parcel:
    """Packs a value of CPU tensors, dataclasses and plain Python."""
    file, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    raws = [buffer.raw() for buffer in buffers]
    spans, stop = [], 0
    for raw in raws:
        start = -(-stop // ALIGN) * ALIGN
        stop = start + raw.nbytes
        spans.append((start, stop))
    block = torch.empty(stop, dtype=torch.uint8)
    target = block.numpy().data
    for raw, (start, end) in zip(raws, spans, strict=True):
        target[start:end] = raw
    return Parcel(file.getvalue(), block, tuple(spans))


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        flat = value.detach().contiguous().reshape(-1)
        whole = flat if len(flat) else flat.new_empty(0)  # of nothing, strides may be anything
        raw = whole.view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(raw.data), value.dtype, tuple(value.shape))


def _tensor(data: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(data, dtype=dtype).view(shape) if len(data) else torch.empty(shape, dtype=dtype)
