"""SNLI-VE, visual entailment: does the picture entail the sentence? Data: Xie et al. 2019."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded
from intarsia.parts.embeddings import initialise
from intarsia.parts.heads import AnswerHead
from intarsia.tasks import HeadConfig
from intarsia.tasks.vqa import soft_answer_loss

LABELS = ("contradiction", "entailment", "neutral")
"""The classes in UNITER's order, which its weights need."""


@dataclass(frozen=True)
class Entailment:
    """Three classes, trained like the answers of VQA. Batch.targets["ve"]: (B) int64 places in `LABELS`."""

    def head(self, config: HeadConfig) -> nn.Module:
        """Two layers on the pooled vector, GELU between."""
        head = AnswerHead(config.hidden_size, len(LABELS), nn.GELU(), config.layer_norm_eps)
        initialise(head, config.initializer_range)
        return head

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B, 3) logits."""
        return head(encoded.pooled)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Binary cross entropy against one-hot targets, summed over the classes: not the softmax one would expect, but what UNITER's code does."""
        return soft_answer_loss(scores, F.one_hot(batch.labels("ve"), len(LABELS)))
