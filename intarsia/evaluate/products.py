"""Products matched by FashionBERT's protocol: a right candidate among many wrong ones of its sub-category, both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from intarsia.batch import Array, Batch, Encoded, Example, Sample
from intarsia.evaluate.running import FP32, Inference, run
from intarsia.system import System
from intarsia.tasks.metrics.ranking import Pair, auc, fashion

Samples = Sequence[Sample] | Mapping[int, Sample]
"""By number."""


@runtime_checkable
class TwoLogits(Protocol):
    """A system whose authors rank by the logit of a match alone."""

    def match_logits(self, encoded: Encoded) -> Tensor:
        """(B, 2) logits: broken, true."""


def product_matching(
    system: System, samples: Samples, asked: Sequence[tuple[int, Sequence[int]]], how: Inference = FP32
) -> dict[str, dict[str, float]]:
    """Accuracy, Rank@K and ROC AUC as `tasks.metrics.ranking.fashion` counts them, of "image to text" and of "text to image".

    Args:
        system: a system that matches. `TwoLogits` rank by the second one, others by their match score, which counts as true above 0.
        samples: pairs of one text and one picture.
        asked: queries and candidates, numbers into `samples`, such as `ProductSource.candidates`.
        how: batch size, precision, bar.
    """
    plan = [(query, other) for query, others in asked for other in others]
    found = {}
    for way in ("image to text", "text to image"):
        pairs = [(other, query) if way == "image to text" else (query, other) for query, other in plan]
        logits = _logits(system, samples, pairs, way, how)
        rows = [
            Pair(query, int(query == other), (float(a), float(b)))
            for (query, other), (a, b) in zip(plan, logits, strict=True)
        ]
        found[way] = fashion(rows) | {"AUC": auc(rows)}
    return found


def _logits(system: System, samples: Samples, pairs: Sequence[tuple[int, int]], what: str, how: Inference) -> Array:
    """(N, 2) of pairs of the number of a text and of a picture."""
    found = np.full((len(pairs), 2), np.nan)

    def build(number: int) -> Example:
        text, picture = pairs[number]
        return system.lay_out(replace(samples[text], pictures=samples[picture].pictures, links=()))

    def read(numbers: Array, batch: Batch) -> None:
        encoded = system.encode(batch)
        if isinstance(system, TwoLogits):
            logits = system.match_logits(encoded)
        else:
            true = system.match_scores(encoded)
            logits = torch.stack([torch.zeros_like(true), true], 1)
        found[numbers] = logits.float().cpu().numpy()

    rows = {i: system.lay_out(samples[i]).rows for i in {i for pair in pairs for i in pair}}
    run(system, np.array([max(rows[a], rows[b]) for a, b in pairs]), build, read, what, how)
    return found
