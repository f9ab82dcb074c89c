"""VisualBERT's regions: projected features with a segment, at the mean position of the words that name them. Source: VisualBERT, sec. 3.2 and 4.2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from intarsia import boxes
from intarsia.batch import Regions, Text
from intarsia.parts.embeddings import Words
from intarsia.parts.numbers import BertNumbers


class LinkedRegions(nn.Module):
    """Projected features with a segment and a position from tables of their own.

    Args:
        config: H, segments, positions.
        features: F.
        box_numbers: x1, y1, x2, y2, width and height are appended to the feature.
    """

    def __init__(self, config: BertNumbers, features: int, box_numbers: bool) -> None:
        super().__init__()
        self.box_numbers = box_numbers
        self.feature = nn.Linear(features + 6 * box_numbers, config.hidden_size)
        self.segment = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, feats: Tensor, regions: Regions, text: Text, words: Words, links: Tensor | None) -> Tensor:
        """Embeds packed regions: (R, H).

        Args:
            feats: (R, F) what they show.
            regions: (R) rows.
            text: the words, for their positions.
            words: its norm is the regions' too.
            links: (P, 2) text row, region row; a region takes the mean position of the words that name it (VCR).
        """
        feats = feats.to(self.feature.weight.dtype)
        if self.box_numbers:
            feats = torch.cat([feats, boxes.six(regions.boxes).to(feats.dtype)], -1)
        x = self.feature(feats) + self.segment(regions.segment_ids) + self.position(regions.position_ids)
        if links is not None and len(links):
            named = words.position(text.position_ids[links[:, 0]])  # (P, H)
            count = x.new_zeros(len(x)).index_add(0, links[:, 1], x.new_ones(len(links))).clamp(min=1)
            x = x + torch.zeros_like(x).index_add(0, links[:, 1], named.to(x.dtype)) / count[:, None]
        return words.dropout(words.norm(x))  # type: ignore[no-any-return]
