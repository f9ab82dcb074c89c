"""VL-BERT's elements: a word part and a picture part, the latter of geometry and a feature made beforehand or read off the pixels. Source: VL-BERT, sec. 3.2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia import boxes
from intarsia.batch import Images, Regions, Text
from intarsia.features.fast_rcnn import FastRCNN
from intarsia.features.resnet import ResNetConfig
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Words


class Sight(nn.Module):
    """Geometry and feature of regions, fused.

    Args:
        width: S, of what is seen.
        waves: sines a box number, and as many cosines.
        features: F, of features made beforehand, where there is no trunk.
        trunk: of the Fast R-CNN that reads features off the pixels; there hidden regions are black, here they share a learnt feature.
        dropout: of what is fused.
    """

    def __init__(self, width: int, waves: int, features: int, trunk: ResNetConfig | None, dropout: float) -> None:
        super().__init__()
        self.waves = waves
        self.trunk = FastRCNN(trunk) if trunk else None
        self.masked_feature = None if trunk else nn.Embedding(1, features)
        self.downsample = nn.Linear(8 * waves + (self.trunk.width if self.trunk else features), width)
        self.dropout = Dropout(dropout)

    def forward(self, regions: Regions, images: Images | None) -> Tensor:
        """(R, S) what is seen of regions.

        Args:
            regions: without features where there is a trunk.
            images: what the trunk reads; None if there is no trunk, or no region.
        """
        dtype = self.downsample.weight.dtype
        if self.trunk is not None:
            feats = self.trunk(images, regions).to(dtype)  # (R, F)
        else:
            assert self.masked_feature is not None
            feats = regions.feats.to(dtype) + regions.masked[:, None] * self.masked_feature.weight[0]
        codes = boxes.sine(regions.boxes.float(), self.waves).to(dtype)
        return F.relu(self.downsample(self.dropout(torch.cat([codes, feats], -1))))


class Scale(nn.Module):
    """x times one learnt number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return x * self.scale


class Elements(nn.Module):
    """Word part plus picture part of words, regions and [END], normalised together.

    Args:
        width: H.
        eps: of the picture part's norms; None = it is not normed but scaled by one number.
        seen: S, width of what is seen; another than H is turned into it, for words and regions apart.
    """

    KEYS = (
        ("end_embedding.", "end."),
        ("visual_1x1_text.", "text_turn."),
        ("visual_1x1_object.", "region_turn."),
        ("visual_scale_text", "text_norm.scale"),
        ("visual_scale_object", "region_norm.scale"),
        ("visual_ln_text.", "text_norm."),
        ("visual_ln_object.", "region_norm."),
    )
    """The authors' names of these, and ours."""

    def __init__(self, width: int, eps: float | None, seen: int) -> None:
        super().__init__()
        self.region_word = nn.Embedding(1, width)
        self.masked_word = nn.Embedding(1, width)
        self.no_picture = nn.Embedding(1, seen)
        self.end = nn.Embedding(1, width)
        self.text_turn, self.region_turn = (nn.Identity() if seen == width else nn.Linear(seen, width) for _ in "12")
        self.text_norm, self.region_norm = (Scale() if eps is None else nn.LayerNorm(width, eps) for _ in "12")

    def forward(
        self, words: Words, text: Text, regions: Regions, seen: Tensor, links: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embeds words and [END] (T, H) and regions (R, H).

        Args:
            words: the tables of words, positions and segments, and the norm of all elements.
            text: packed text rows; [END] is the one in segment 2.
            regions: packed regions, the last of each document the whole picture; documents may have none.
            seen: (R, S) what is seen of them.
            links: (P, 2) text row, region row: these words carry that region in place of the whole picture.
        """
        packing = regions.packing
        last = torch.where(packing.lengths > 0, packing.cu_seqlens[1:].long() - 1, len(seen))
        carried = torch.cat([seen, self.no_picture.weight])[last].index_select(0, text.packing.doc)  # (T, S)
        if links is not None and len(links):
            carried = carried.index_copy(0, links[:, 0], seen[links[:, 1]])
        said = words.word(text.ids) + self.text_norm(self.text_turn(carried))
        said = torch.where(text.segment_ids[:, None] == 2, self.end.weight, said)
        shown = torch.where(regions.masked[:, None], self.masked_word.weight, self.region_word.weight)
        shown = shown + self.region_norm(self.region_turn(seen))
        x, y = (
            words.dropout(words.norm(part + words.position(rows.position_ids) + words.segment(rows.segment_ids)))
            for part, rows in ((said, text), (shown, regions))
        )
        return x, y
