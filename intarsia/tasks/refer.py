"""RefCOCO, RefCOCO+ and RefCOCOg, referring expressions: which region does the text mean? Data: Yu et al. 2016, Mao et al. 2016."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded
from intarsia.packed import pad
from intarsia.parts.embeddings import initialise
from intarsia.parts.heads import ClassHead
from intarsia.tasks import HeadConfig


def one_layer(config: HeadConfig) -> nn.Module:
    """A linear map of a region's output to its score."""
    return nn.Linear(config.visual_size, 1)


def two_layers(config: HeadConfig) -> nn.Module:
    """Linear, GELU, LayerNorm, Linear: what UNITER uses for RefCOCO+."""
    return ClassHead(config.visual_size, 1, config.layer_norm_eps)


@dataclass(frozen=True)
class Refer:
    """The regions of a document compete. Batch.targets["re"]: (B) int64, the place of the meant region in its document."""

    scorer: Callable[[HeadConfig], nn.Module] = one_layer

    def head(self, config: HeadConfig) -> nn.Module:
        """A score a region."""
        head = self.scorer(config)
        initialise(head, config.initializer_range)
        return head

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(R) scores of the packed regions."""
        assert encoded.visual is not None, "referring expressions need regions"
        return head(encoded.visual).squeeze(-1)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Cross entropy over the regions of each document, averaged over documents."""
        assert batch.regions is not None, "referring expressions need regions"
        block = pad(scores.float(), batch.regions.packing, fill=-1e4)  # (B, L)
        return F.cross_entropy(block, batch.labels("re"))


@dataclass(frozen=True)
class ReferEach(Refer):
    """Each region is meant or not by itself. Batch.targets["re"]: Picks of region rows with labels (M), 1 = overlaps the gold box by more than half.

    Source: VL-BERT, sec. 4.2.
    """

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean binary cross entropy over the picked regions."""
        picks = batch.picks("re")
        return F.binary_cross_entropy_with_logits(scores[picks.rows].float(), picks.labels.float())


@dataclass(frozen=True)
class ReferShare(Refer):
    """Each candidate is given back how well it fits. Batch.targets["re"]: Picks of region rows with labels (M) float in [0, 1].

    All regions with their overlap, or 0 where it is below a half (RefCOCO); or the choices, one of them 1 (Visual7W, GuessWhat). Source: the code of ViLBERT.
    """

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Binary cross entropy, summed over the picked regions and averaged over documents."""
        picks = batch.picks("re")
        each = F.binary_cross_entropy_with_logits(scores[picks.rows].float(), picks.labels.float(), reduction="sum")
        return each / len(batch.keys)


@dataclass(frozen=True)
class ReferMean(ReferEach):
    """Each region is given back how well it fits. Batch.targets["re"]: Picks of all rows, the whole picture among them, with labels (M) in [0, 1].

    Source: the code of ERNIE-ViL.
    """

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean binary cross entropy over the picked rows of all documents, times the documents."""
        return super().loss(scores, batch) * len(batch.keys)
