"""Texts and pictures read apart, once each, where a system lets them meet only in its last layers; those alone run on every pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intarsia.batch import Array, Batch, Example
from intarsia.evaluate.running import FP32, Inference, run, run_numbers
from intarsia.packed import Packing
from intarsia.system import Crossing, System


def crossing(system: System) -> Crossing | None:
    """The system, or of a tuned one the body below its head, if texts and pictures can be read apart; else None."""
    body = getattr(system, "system", system)
    return body if isinstance(body, Crossing) else None


def score_crossed(
    system: System,
    said: Sequence[Example],
    shown: Sequence[Example],
    how: Inference = FP32,
    pairs: Array | None = None,
) -> Array:
    """(K, M) float32 scores of K texts with M pictures, laid out, as `matching.score_pairs` gives them; of a pair only what is pooled is computed.

    All single readings are held at once, (rows of all texts and pictures, H) on the system's device.
    """
    body = crossing(system)
    assert body is not None, "a system that reads texts and pictures apart"
    words, spoken = _read_apart(system, said, "text", lambda batch: body.encode_text(batch.text), how)
    seen, looked = _read_apart(system, shown, "regions", lambda batch: _look(body, batch), how)
    scores = np.full(len(said) * len(shown), np.nan, np.float32)
    wanted = np.arange(len(scores)) if pairs is None else pairs

    def read(numbers: Array) -> None:
        texts, pictures = np.divmod(wanted[numbers], len(shown))
        (w, text), (s, visual) = spoken.of(texts, words.device), looked.of(pictures, seen.device)
        asked = {"text": text.first, "regions": text.first[:0]}
        encoded = body.cross(words.index_select(0, w), text, seen.index_select(0, s), visual, asked)
        scores[wanted[numbers]] = system.match_scores(encoded).float().cpu().numpy()

    lengths = spoken.lengths[wanted // len(shown)] + looked.lengths[wanted % len(shown)]
    run_numbers(system, lengths, read, f"{len(wanted)} pairs of {len(said)} texts, {len(shown)} pictures", how)
    return scores.reshape(len(said), len(shown))


@dataclass(frozen=True, slots=True)
class _Kept:
    """Where the rows of each document lie in a tensor of all of them."""

    starts: Array
    lengths: Array

    def of(self, documents: Array, device: torch.device) -> tuple[Tensor, Packing]:
        """The rows of some documents, repeats allowed, and how they lie when put behind one another."""
        packing = Packing.of(self.lengths[documents])
        rows = torch.from_numpy(self.starts[documents])[packing.doc] + packing.pos
        return rows.to(device), packing.to(device)


def _look(system: Crossing, batch: Batch) -> Tensor:
    assert batch.regions is not None
    if batch.images is None:
        return system.encode_visual(batch.regions)
    return system.encode_visual(batch.regions, batch.images)


def _read_apart(
    system: System, examples: Sequence[Example], stream: str, encode: Callable[[Any], Tensor], how: Inference
) -> tuple[Tensor, _Kept]:
    """The rows of one stream of all examples, encoded, in the order of the examples."""
    lengths = np.array([len(getattr(x, stream)) for x in examples], np.int64)
    kept = _Kept(np.cumsum(lengths) - lengths, lengths)
    parts: list[Tensor] = []
    order: list[Array] = []

    def read(numbers: Array, batch: Batch) -> None:
        parts.append(encode(batch))
        order.append(kept.of(numbers, torch.device("cpu"))[0].numpy())

    def alone(i: int) -> Example:
        images = examples[i].images if stream == "regions" else ()
        return Example(key=examples[i].key, images=images, **{stream: getattr(examples[i], stream)})

    run(system, lengths, alone, read, f"{len(examples)} {stream}", how)
    whole = torch.cat(parts)
    rows = torch.from_numpy(np.concatenate(order)).to(whole.device)
    return torch.empty_like(whole).index_copy(0, rows, whole), kept
