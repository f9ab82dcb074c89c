"""SNLI-VE, visual entailment: does the picture entail the sentence? Data: Xie et al. 2019."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Sample
from intarsia.parts.embeddings import initialise
from intarsia.parts.heads import AnswerHead
from intarsia.system import Lay
from intarsia.tasks import HeadConfig, answer_of, with_target
from intarsia.tasks.vqa import soft_answer_loss

LABELS = ("contradiction", "entailment", "neutral")
"""The classes in UNITER's order, which its weights need."""


@dataclass(frozen=True)
class Entailment:
    """Three classes, trained like the answers of VQA. Batch.targets["ve"]: (B) int64 places in `LABELS`."""

    criterion: Callable[[Tensor, Tensor], Tensor] = soft_answer_loss
    """Takes logits (B, 3) and one-hot targets (B, 3)."""

    def forms(self, lay: Lay, sample: Sample) -> list[Example]:
        """The sentence with its picture."""
        return [lay(sample)]

    def documents(
        self, lay: Lay, sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """With the place of its answer in `LABELS`."""
        return with_target(self.forms(lay, sample), "ve", [LABELS.index(answer_of(sample))])

    def predict(self, scores: Tensor, batch: Batch) -> list[Tensor]:
        """(3) of each sentence, in the order of `LABELS`."""
        return list(scores.float())

    def head(self, config: HeadConfig) -> nn.Module:
        """Two layers on the pooled vector, GELU between."""
        head = AnswerHead(config.pooled_size, len(LABELS), nn.GELU(), config.layer_norm_eps)
        initialise(head, config.initializer_range)
        return head

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B, 3) logits."""
        return head(encoded.pooled)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Binary cross entropy against one-hot targets, not the softmax one would expect: the code of UNITER sums it over the classes, ViLBERT's averages."""
        return self.criterion(scores, F.one_hot(batch.labels("ve"), len(LABELS)))
