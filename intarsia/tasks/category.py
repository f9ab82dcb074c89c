"""Which category is this product of? One of a fixed list, read off the pooled vector. Source: Kaleido-BERT (Zhuge et al., CVPR 2021), on FashionGen."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded
from intarsia.tasks import HeadConfig, Scorer, linear


@dataclass(frozen=True)
class Category:
    """One class of `classes`. Batch.targets["category"]: (B) int64."""

    classes: int
    scorer: Scorer = linear

    def head(self, config: HeadConfig) -> nn.Module:
        """The classifier."""
        return self.scorer(config, self.classes)

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B, classes) logits."""
        return head(encoded.pooled)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        return F.cross_entropy(scores.float(), batch.labels("category"))
