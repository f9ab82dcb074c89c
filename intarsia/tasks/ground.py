"""Flickr30k Entities, phrase grounding: which regions does a phrase of the caption mean? Data: Plummer et al. 2015."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Pick, Sample
from intarsia.errors import BadInput
from intarsia.packed import pad
from intarsia.parts.embeddings import initialise
from intarsia.system import Lay
from intarsia.tasks import HeadConfig, overlaps


class PhraseToRegion(nn.Module):
    """One head of attention from a word to regions, whose weights are the answer. Source: VisualBERT's code, which makes a value too and never uses it."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, width)
        self.key = nn.Linear(hidden_size, width)
        self.value = nn.Linear(hidden_size, width).requires_grad_(False)

    def forward(self, words: Tensor, regions: Tensor) -> Tensor:
        """Args: words (M, H); regions (M, L, H), those of each word's document. Returns: (M, L) scores."""
        query, keys = self.query(words), self.key(regions)
        return (keys @ query[:, :, None]).squeeze(-1) / query.shape[-1] ** 0.5  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Grounding:
    """Each phrase, read at its last piece, is shared out over the regions that overlap its gold boxes by half or more.

    Batch.targets["ground"]: Picks of text rows with labels (M, W) float, W at least the regions of any document: shares that sum to 1, or all 0 where no
    region overlaps.
    """

    width: int = 256
    """W, most regions of a picture."""

    def forms(self, lay: Lay, sample: Sample) -> list[Example]:
        """The caption with its picture; says where the phrases end."""
        example = lay(sample)
        assert example.text is not None and example.regions is not None, "grounding needs text and regions"
        if not sample.meant or len(example.regions) > self.width:
            raise BadInput(
                f"sample {sample.key}: has {len(sample.meant)} phrases and {len(example.regions)} regions, at most {self.width}"
            )
        pieces = lay.vocab.encode(sample.texts[0])
        rows = np.flatnonzero(example.text.words >= 0)[: len(pieces)]  # of a text that was cut, the first ones
        ends = [np.flatnonzero(pieces.spans[:, 0] < x.end)[-1] for x in sample.meant]
        labels = np.zeros((len(ends), self.width), np.float32)
        for label, phrase in zip(labels, sample.meant, strict=True):
            hits = overlaps(example.regions.boxes, phrase.boxes) >= 0.5
            label[: len(hits)] = hits / max(hits.sum(), 1)
        example.targets["ground"] = Pick("text", rows[np.minimum(ends, len(rows) - 1)], labels)
        return [example]

    def documents(
        self, lay: Lay, sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """As `forms`."""
        return self.forms(lay, sample)

    def predict(self, scores: Tensor, batch: Batch) -> list[Tensor]:
        """(M, L) of each document, a row a phrase; past its last region -10,000."""
        assert batch.text is not None
        documents = batch.text.packing.doc[batch.picks("ground").rows]
        return list(torch.split(scores.float(), torch.bincount(documents, minlength=len(batch.keys)).tolist()))

    def head(self, config: HeadConfig) -> nn.Module:
        """See `PhraseToRegion`."""
        head = PhraseToRegion(config.hidden_size, config.hidden_size // config.num_attention_heads)
        initialise(head, config.initializer_range)
        return head

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(M, L) scores of the regions of each phrase's document, -10,000 past its last."""
        assert batch.text is not None and encoded.text is not None, "grounding needs text"
        assert encoded.visual is not None and encoded.visual_packing is not None, "grounding needs regions"
        rows = batch.picks("ground").rows
        documents = batch.text.packing.doc[rows]  # (M)
        here = pad(torch.ones_like(encoded.visual_packing.pos, dtype=torch.bool), encoded.visual_packing)[documents]
        scores = head(encoded.text[rows], pad(encoded.visual, encoded.visual_packing)[documents])
        return scores.masked_fill(~here, -1e4)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """KL(shares || softmax(scores)), summed over phrases and divided by the documents of the batch."""
        targets = self._targets(scores, batch)
        divergence = F.kl_div(F.log_softmax(scores.float(), -1), targets, reduction="sum")
        return divergence / len(batch.keys)

    def right(self, scores: Tensor, batch: Batch) -> Tensor:
        """(M) bool: the best region of each phrase overlaps its gold."""
        best = scores.argmax(-1, keepdim=True)
        return self._targets(scores, batch).gather(1, best).squeeze(1) > 0

    def _targets(self, scores: Tensor, batch: Batch) -> Tensor:
        labels = batch.picks("ground").labels.float()
        width = scores.shape[1]
        return labels[:, :width] if labels.shape[1] >= width else F.pad(labels, (0, width - labels.shape[1]))
