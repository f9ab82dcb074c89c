"""RefCOCO, RefCOCO+ and RefCOCOg, referring expressions: which region does the text mean? Data: Yu et al. 2016, Mao et al. 2016."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Array, Batch, Encoded, Example, Pick, Sample
from intarsia.errors import BadInput
from intarsia.packed import pad
from intarsia.parts.embeddings import initialise
from intarsia.parts.heads import ClassHead
from intarsia.system import Lay
from intarsia.tasks import HeadConfig, answer_of, overlaps, split


def one_layer(config: HeadConfig) -> nn.Module:
    """A linear map of a region's output to its score."""
    return nn.Linear(config.visual_size, 1)


def two_layers(config: HeadConfig) -> nn.Module:
    """Linear, GELU, LayerNorm, Linear: what UNITER uses for RefCOCO+."""
    return ClassHead(config.visual_size, 1, config.layer_norm_eps)


def candidates(sample: Sample, regions: Array) -> Array:
    """The region that stands for each choice of a sample, the one that overlaps its box most.

    Args:
        sample: what it means is its choices (Visual7W).
        regions: (R, 4) boxes.

    Returns:
        (C) int64.
    """
    return np.array([overlaps(regions, x.boxes).argmax() for x in sample.meant])


@dataclass(frozen=True)
class Refer:
    """The regions of a document compete. Batch.targets["re"]: (B) int64, the place of the meant region in its document."""

    scorer: Callable[[HeadConfig], nn.Module] = one_layer

    def forms(self, lay: Lay, sample: Sample) -> list[Example]:
        """The expression with its picture."""
        return [lay(sample)]

    def documents(
        self, lay: Lay, sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """With the region, or the regions, that overlap the meant box."""
        example = lay(sample)
        if not sample.meant or example.regions is None or not len(sample.pictures[0].boxes):
            raise BadInput(f"sample {sample.key}: means no box, or its picture has no regions")
        own = min(len(example.regions), len(sample.pictures[0].boxes))
        example.targets["re"] = self._target(sample, example.regions.boxes, own)
        return [example]

    def _target(self, sample: Sample, boxes: Array, own: int) -> Pick | Array:
        """Args: sample; boxes (R, 4) of its rows; own, rows that are regions, not the whole picture."""
        return np.array(overlaps(boxes[:own], sample.meant[0].boxes).argmax())

    def predict(self, scores: Tensor, batch: Batch) -> list[Tensor]:
        """(R) of each document; the whole picture, where it has a row, is the last."""
        assert batch.regions is not None
        return split(scores.float(), batch.regions.packing)

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
    """Each region, the whole picture too, is meant or not by itself. Batch.targets["re"]: Picks of all rows, labels (M) 1 = overlaps the gold box by over a half.

    Source: VL-BERT, sec. 4.2, and its code, refcoco/modules/resnet_vlbert_for_refcoco.py.
    """

    def _target(self, sample: Sample, boxes: Array, own: int) -> Pick | Array:
        fits = overlaps(boxes, sample.meant[0].boxes)
        return Pick("regions", np.arange(len(boxes)), (fits > 0.5).astype(np.int64))

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean binary cross entropy over the picked regions."""
        picks = batch.picks("re")
        return F.binary_cross_entropy_with_logits(scores[picks.rows].float(), picks.labels.float())


@dataclass(frozen=True)
class ReferShare(Refer):
    """Each candidate is given back how well it fits. Batch.targets["re"]: Picks of region rows with labels (M) float in [0, 1].

    All regions with their overlap, or 0 where it is below a half (RefCOCO); or those that stand for the choices, with the overlap of the choice (Visual7W,
    GuessWhat), which of the right one is 1. Source: the code of ViLBERT.
    """

    def _target(self, sample: Sample, boxes: Array, own: int) -> Pick | Array:
        if sample.answers:
            rows = candidates(sample, boxes[:own])
            right = int(answer_of(sample))
            offered = np.concatenate([x.boxes[:1] for x in sample.meant])
            fits = _half(overlaps(offered, sample.meant[right].boxes))
            return Pick("regions", rows, np.where(rows == rows[right], np.float32(1), fits))
        return Pick("regions", np.arange(own), _half(overlaps(boxes[:own], sample.meant[0].boxes)))

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

    def _target(self, sample: Sample, boxes: Array, own: int) -> Pick | Array:
        return Pick("regions", np.arange(len(boxes)), _half(overlaps(boxes, sample.meant[0].boxes)))

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean binary cross entropy over the picked rows of all documents, times the documents."""
        return super().loss(scores, batch) * len(batch.keys)


def _half(fits: Array) -> Array:
    """Overlaps, 0 below a half."""
    found: Array = np.where(fits < 0.5, np.float32(0), fits)
    return found
