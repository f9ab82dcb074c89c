"""VQA: answer a question about a picture, out of a fixed list. Data: Goyal et al. 2017 (VQA v2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded
from intarsia.parts.embeddings import initialise
from intarsia.parts.heads import AnswerHead
from intarsia.tasks import HeadConfig


@dataclass(frozen=True)
class VQA:
    """Every answer is a yes-no question of its own, with a soft target. Batch.targets["vqa"]: (B, answers) float in [0, 1]."""

    answers: int = 3129
    """Answers in the list; the table itself comes with the weights and is never rebuilt."""

    def head(self, config: HeadConfig) -> nn.Module:
        """Two layers on the pooled vector, GELU between."""
        head = AnswerHead(config.hidden_size, self.answers, nn.GELU(), config.layer_norm_eps)
        initialise(head, config.initializer_range)
        return head

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B, answers) logits."""
        return head(encoded.pooled)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Binary cross entropy, summed over the answers and averaged over documents."""
        return soft_answer_loss(scores, batch.labels("vqa"))


def soft_answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of (B, C) logits against (B, C) targets in [0, 1]: the mean over all elements times C."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float()) * logits.shape[1]
