"""Image-text retrieval: rank pictures by a text, and texts by a picture. Data: Young et al. 2014 (Flickr30k), Lin et al. 2014 (COCO)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded
from intarsia.parts.embeddings import initialise
from intarsia.tasks import HeadConfig, Scorer, linear


@dataclass(frozen=True)
class Retrieval:
    """A true pair must beat its broken ones by a margin. The documents of one sample are a true pair and any number of broken ones.

    Batch.targets["retrieval"]: (B) int64, 1 = the true pair of its sample, 0 = a broken one.
    """

    margin: float = 0.2

    def head(self, config: HeadConfig) -> nn.Module:
        """One number from the pooled vector."""
        head = nn.Linear(config.pooled_size, 1)
        initialise(head, config.initializer_range)
        return head

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B) scores, higher = a better match; the loss compares their sigmoids."""
        return head(encoded.pooled).squeeze(-1)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean over broken pairs of max(0, margin + s(broken) - s(true)), s = sigmoid."""
        likely, true = torch.sigmoid(scores.float()), batch.labels("retrieval").float()
        rival = likely.new_zeros(len(likely)).index_add(0, batch.sample, likely * true)[batch.sample]  # (B)
        broken = 1 - true
        return ((self.margin + likely - rival).clamp(min=0) * broken).sum() / broken.sum().clamp(min=1)


@dataclass(frozen=True)
class RetrievalBinary:
    """Each pair is true or broken by itself. Batch.targets["retrieval"] as for `Retrieval`. Source: Unicoder-VL; ImageBERT, sec. 5."""

    def head(self, config: HeadConfig) -> nn.Module:
        """One number from the pooled vector."""
        head = nn.Linear(config.pooled_size, 1)
        initialise(head, config.initializer_range)
        return head

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B) logits, higher = a better match."""
        return head(encoded.pooled).squeeze(-1)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean binary cross entropy."""
        return F.binary_cross_entropy_with_logits(scores.float(), batch.labels("retrieval").float())


@dataclass(frozen=True)
class RetrievalTwoWay:
    """Each pair is broken or true, two classes. Batch.targets["retrieval"] as for `Retrieval`. Source: Oscar, sec. 5."""

    scorer: Scorer = linear

    def head(self, config: HeadConfig) -> nn.Module:
        """Two classes from the pooled vector."""
        return self.scorer(config, 2)

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B, 2) logits: broken, true."""
        return head(encoded.pooled)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        return F.cross_entropy(scores.float(), batch.labels("retrieval"))
