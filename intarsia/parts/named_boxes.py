"""Pictures inside the text: what a token gets of the boxes that it names. Source: B2T2, sec. 3.2 and run_b2t2.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from intarsia.batch import Regions
from intarsia.features.letterbox import PLACES


class NamedBoxes(nn.Module):
    """What is added to a token: tanh of a linear map of the features that it names.

    Args:
        features: F, numbers of a feature.
        width: H.
        places: boxes have a code of their place, too.
    """

    def __init__(self, features: int, width: int, places: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(features, width)
        if places:
            self.across, self.down = (nn.Parameter(torch.empty(PLACES, features // 4)) for _ in range(2))
            nn.init.trunc_normal_(self.across, std=0.02)
            nn.init.trunc_normal_(self.down, std=0.02)
        self.places = places

    def forward(self, rows: int, regions: Regions, links: Tensor) -> Tensor:
        """(T, H) for `rows` text rows. Args: links (P, 2) text row, region row."""
        return torch.tanh(self.dense(self.summed(rows, regions, links)))

    def summed(self, rows: int, regions: Regions, links: Tensor) -> Tensor:
        """(T, F) features by token, zero where none is named."""
        feats = regions.feats.to(self.dense.weight.dtype)
        if self.places:
            # the whole picture, a document's last row, has no place
            feats = feats + self.codes(regions.boxes).index_fill(0, regions.packing.last, 0.0)
        return feats.new_zeros(rows, feats.shape[1]).index_add(0, links[:, 0], feats[links[:, 1]])

    def codes(self, boxes: Tensor) -> Tensor:
        """(R, F) codes of left, right, upper and lower edge; an edge past the table has none."""
        x1, y1, x2, y2 = (boxes.float() * PLACES).round().long().unbind(-1)
        across, down = (torch.cat([table, table.new_zeros(1, table.shape[1])]) for table in (self.across, self.down))
        return torch.cat([across[x1], across[x2], down[y1], down[y2]], -1)
