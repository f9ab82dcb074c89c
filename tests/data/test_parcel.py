"""A value is the same at the other end, and its tensors lie in one block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from intarsia.data.parcel import ALIGN, parcel


@dataclass(frozen=True, slots=True)
class Pair:
    a: Tensor
    b: Tensor | None
    name: str


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_there_and_back(dtype: torch.dtype) -> None:
    a = torch.arange(7 * 3).view(7, 3).to(dtype)
    value = {"x": Pair(a, None, "first"), "y": [Pair(a.t(), torch.empty(0, 5), "second")], "z": torch.tensor(3.5)}
    sent = parcel(value)
    assert all(start % ALIGN == 0 for start, _ in sent.spans)
    found = sent.open()
    assert found["x"].name == "first"
    assert found["x"].b is None
    for mine, theirs in (
        (a, found["x"].a),
        (a.t(), found["y"][0].a),
        (torch.empty(0, 5), found["y"][0].b),
        (torch.tensor(3.5), found["z"]),
    ):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        assert torch.equal(mine, theirs)


def test_tensors_lie_in_the_block() -> None:
    sent = parcel([torch.zeros(4), torch.zeros(4)])
    sent.block.fill_(1)
    one = np.frombuffer(b"\1\1\1\1", np.float32)[0]
    assert all(bool((x == float(one)).all()) for x in sent.open())


def test_text_needs_no_block() -> None:
    sent = parcel("sample 3: no picture")
    assert sent.open() == "sample 3: no picture"
    assert len(sent.block) == 0


def test_nothing_travels_whatever_its_strides() -> None:
    empty = [torch.zeros(0, 5), torch.from_numpy(np.broadcast_to(np.int64(3), (4,))[:0]), torch.ones(3).expand(0, 3)]
    for one, other in zip(parcel(empty).open(), empty, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
