"""Geometry codes and overlap."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia import boxes

BOX = torch.tensor([[0.1, 0.2, 0.5, 0.8]])


def test_codes_by_hand() -> None:
    torch.testing.assert_close(boxes.five(BOX), torch.tensor([[0.1, 0.2, 0.5, 0.8, 0.24]]))
    torch.testing.assert_close(boxes.six(BOX), torch.tensor([[0.1, 0.2, 0.5, 0.8, 0.4, 0.6]]))
    torch.testing.assert_close(boxes.seven(BOX), torch.tensor([[0.1, 0.2, 0.5, 0.8, 0.4, 0.6, 0.24]]))


def test_overlap_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.2, 0.2, 0.2, 0.2]])
    b = torch.tensor([[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.5, 0.5], [0.9, 0.9, 0.9, 0.9]])
    torch.testing.assert_close(boxes.iou(a, b), torch.tensor([[1 / 7, 1.0, 0.0], [0.0, 0.0, 0.0]]))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(*[st.floats(0, 0.5)] * 2, *[st.floats(0.01, 0.5)] * 2), min_size=1, max_size=8))
def test_overlap_is_symmetric_and_whole_with_itself(drawn: list[tuple[float, ...]]) -> None:
    found = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in drawn])
    table = boxes.iou(found, found)
    torch.testing.assert_close(table, table.t())
    torch.testing.assert_close(table.diagonal(), torch.ones(len(found)))
    assert bool(((table >= 0) & (table <= 1 + 1e-6)).all())
