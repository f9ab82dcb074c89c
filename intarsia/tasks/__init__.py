"""Benchmarks: a head, its scores and its loss each. A task meets a system only through Encoded, Batch and the numbers of its config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from intarsia.batch import Array, Batch, Encoded, Example, Sample
from intarsia.boxes import iou
from intarsia.errors import BadInput
from intarsia.packed import Packing
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import initialise
from intarsia.parts.numbers import BertNumbers

HeadConfig = BertNumbers
"""What a head is made by: the system's config."""
Reads = Callable[[Encoded, Batch], Tensor]
"""What a head reads: (B, H), one vector a document."""
Scorer = Callable[[HeadConfig, int], nn.Module]
"""A fresh head by the config and the number of outputs."""


def pooled(encoded: Encoded, batch: Batch) -> Tensor:
    """The pooled vector."""
    return encoded.pooled


def mean_shown(encoded: Encoded, batch: Batch) -> Tensor:
    """The mean output of the regions or clips of each document."""
    assert encoded.visual is not None and encoded.visual_packing is not None, "reads the outputs of what is shown"
    packing = encoded.visual_packing
    summed = encoded.visual.new_zeros(len(packing.lengths), encoded.visual.shape[1]).index_add(
        0, packing.doc, encoded.visual
    )
    return summed / packing.lengths.clamp(min=1)[:, None].to(summed.dtype)


def from_end(count: int) -> Reads:
    """The output of the text row that is `count` before the end of its document: a [MASK] before what closes the text, where the answer is to stand."""

    def read(encoded: Encoded, batch: Batch) -> Tensor:
        assert batch.text is not None and encoded.text is not None, "reads the output of a word"
        return encoded.text.index_select(0, batch.text.packing.cu_seqlens[1:].long() - count)

    return read


def linear(config: HeadConfig, outputs: int) -> nn.Module:
    """One layer, after dropout."""
    head = nn.Sequential(Dropout(config.hidden_dropout_prob), nn.Linear(config.pooled_size, outputs))
    initialise(head, config.initializer_range)
    return head


def plain(config: HeadConfig, outputs: int) -> nn.Module:
    """One layer."""
    head = nn.Linear(config.pooled_size, outputs)
    initialise(head, config.initializer_range)
    return head


def two_layers(scale: int) -> Scorer:
    """Dropout, a layer `scale` times as wide, ReLU, outputs: the authors' "mlp" classifier."""

    def make(config: HeadConfig, outputs: int) -> nn.Module:
        width = config.hidden_size
        head = nn.Sequential(
            Dropout(config.hidden_dropout_prob),
            nn.Linear(width, scale * width),
            nn.ReLU(),
            nn.Linear(scale * width, outputs),
        )
        initialise(head, config.initializer_range)
        return head

    return make


def evenly(scorer: Scorer, gain: float = 1.0) -> Callable[..., nn.Module]:
    """The same head, its layers drawn by Xavier's uniform rule times a gain, biases 0. Source: VL-BERT, whose tasks all draw theirs so."""

    def make(config: HeadConfig, outputs: int = 1) -> nn.Module:
        head = scorer(config, outputs)
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, gain)
                nn.init.zeros_(layer.bias)
        return head

    return make


def two_linear(config: HeadConfig, outputs: int = 1) -> nn.Module:
    """Linear, GELU, Linear on the output of a region: what VL-BERT uses, whose configs set the dropout between to 0."""
    width = config.visual_size
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs))


def groups(sample: Tensor, size: int) -> Tensor:
    """The documents of each sample.

    Args:
        sample: (B) int64, documents of one sample share a number.
        size: documents a sample must have.

    Returns:
        (S, size) int64 document numbers: samples by their number, documents in the order of the batch.

    Raises:
        ValueError: some sample has another number of documents.
    """
    order = torch.argsort(sample, stable=True)
    numbers = sample[order]
    if len(sample) % size == 0:
        found, by_sample = order.view(-1, size), numbers.view(-1, size)
        if bool((by_sample[:, 0] == by_sample[:, -1]).all() and (by_sample[1:, 0] != by_sample[:-1, 0]).all()):
            return found
    counts = torch.bincount(sample)
    odd = int((counts != size).logical_and(counts > 0).nonzero()[0])
    raise ValueError(f"sample number {odd} of the batch has {int(counts[odd])} documents, the task needs {size}")


# ------------------------------------------------------------------------------------------------ documents and predictions


def with_target(examples: Sequence[Example], goal: str, values: Sequence[int]) -> list[Example]:
    """Documents with one number each as the target of a goal. Changed in place."""
    for example, value in zip(examples, values, strict=True):
        example.targets[goal] = np.array(value)
    return list(examples)


@lru_cache(maxsize=16)
def places(labels: tuple[str, ...]) -> dict[str, int]:
    """Where each label stands; of one that comes twice, the first place."""
    return {label: i for i, label in reversed(list(enumerate(labels)))}


def answer_of(sample: Sample) -> str:
    """The one right answer of a sample.

    Raises:
        BadInput: it has none, or several.
    """
    if len(sample.answers) != 1:
        raise BadInput(f"sample {sample.key}: has {len(sample.answers)} answers, the task takes one")
    return sample.answers[0][0]


def overlaps(boxes: Array, gold: Array) -> Array:
    """(R) float32: how much each of (R, 4) boxes overlaps the one of (G, 4) that it fits best."""
    mine, theirs = (torch.from_numpy(np.array(x, np.float64).reshape(-1, 4)) for x in (boxes, gold))
    found: Array = iou(mine, theirs).amax(1).numpy().astype(np.float32)
    return found


def split(rows: Tensor, packing: Packing) -> list[Tensor]:
    """Rows of a packed stream, document by document."""
    return list(torch.split(rows, packing.cu_seqlens.diff().tolist()))
