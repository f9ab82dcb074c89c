"""Texts and pictures encoded apart, once each, for systems of two towers; N + M documents instead of N x M pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from intarsia.batch import Array, Batch, Encoded, Example
from intarsia.errors import BadInput
from intarsia.evaluate.running import FP32, Inference, run
from intarsia.system import System

Side = Literal["text", "picture"]


def half(example: Example, side: Side) -> Example:
    """What one tower reads of a document."""
    if side == "text":
        return replace(example, regions=None, images=(), links=np.zeros((0, 2), np.int64), targets={})
    return replace(example, text=None, links=np.zeros((0, 2), np.int64), targets={})


def embed(system: System, examples: Sequence[Example], side: Side, how: Inference = FP32) -> Tensor:
    """(N, P) float32 on the CPU: the vectors of texts or of pictures.

    Args:
        system: of two towers.
        examples: laid out; the other side does not count.
        side: which.
        how: batch size, precision, bar.

    Raises:
        BadInput: the system has no towers, or a picture cannot be decoded.
    """
    if not system.towers:
        raise BadInput(f"{system.card.name} reads texts and pictures together: it has no vectors of either")
    halves = [half(x, side) for x in examples]
    found: list[Tensor] = [torch.empty(0)] * len(halves)

    def read(numbers: Array, batch: Batch) -> None:
        encoded = system.encode(batch)
        vectors = encoded.pooled_text if side == "text" else encoded.pooled_visual
        assert vectors is not None
        for i, vector in zip(numbers.tolist(), vectors.float().cpu(), strict=True):
            found[i] = vector

    what = f"{len(halves)} {side}s"
    run(system, np.array([x.rows for x in halves]), lambda i: halves[i], read, what, how)
    return torch.stack(found)


def products(system: System, texts: Tensor, pictures: Tensor) -> Array:
    """(K, M) float32 match scores of vectors (K, P) and (M, P)."""
    rows = [
        system.match_scores(Encoded(None, None, None, pictures, text.expand_as(pictures), pictures)) for text in texts
    ]
    scores: Array = torch.stack(rows).float().cpu().numpy()
    return scores
