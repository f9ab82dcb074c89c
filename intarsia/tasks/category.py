"""What is this? One class of a fixed list: the category of a product (Kaleido-BERT, Zhuge et al., CVPR 2021), what is done in a video, or will be next (CBT)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Sample
from intarsia.errors import BadInput
from intarsia.system import Lay
from intarsia.tasks import HeadConfig, Reads, Scorer, answer_of, linear, places, pooled, with_target


@dataclass(frozen=True)
class Category:
    """One class of a list. Batch.targets["category"]: (B) int64 places in `labels`."""

    answers: int = 48
    """Outputs."""
    labels: tuple[str, ...] = ()
    """The list."""
    scorer: Scorer = linear
    reads: Reads = pooled
    """What the head reads."""

    def forms(self, lay: Lay, sample: Sample) -> list[Example]:
        """What is shown, with its text if it has any."""
        return [lay(sample)]

    def documents(
        self, lay: Lay, sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """With the place of its answer in the list.

        Raises:
            BadInput: it is not there.
        """
        answer, place = answer_of(sample), places(self.labels)
        if answer not in place:
            raise BadInput(f"sample {sample.key}: {answer!r} is none of the {len(self.labels)} classes")
        return with_target(self.forms(lay, sample), "category", [place[answer]])

    def predict(self, scores: Tensor, batch: Batch) -> list[Tensor]:
        """(answers) of each sample."""
        return list(scores.float())

    def head(self, config: HeadConfig) -> nn.Module:
        """The classifier."""
        return self.scorer(config, self.answers)

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B, answers) logits."""
        return head(self.reads(encoded, batch))  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        return F.cross_entropy(scores.float(), batch.labels("category"))
