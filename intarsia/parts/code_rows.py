"""Regions that are codes: whole numbers of a quantised picture instead of a detector's features.

Source: microsoft/Oscar, modeling_bert.py (`img_feature_type` dis_code, dis_code_t) and run_vqa.py, where a VQ-VAE made them. Unusual: code 0 is the row that
`padding_idx` shuts off from learning, although it is a code like any other; neither norm nor dropout follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from intarsia.batch import RegionRows, Regions
from intarsia.errors import BadInput
from intarsia.parts.numbers import BertNumbers


@dataclass(frozen=True)
class CodeNumbers(BertNumbers):
    """A BERT whose regions may be codes; the names are the authors'."""

    code_voc: int = 0
    """How many codes there are, where a region's feature is one number, its code; 0 = regions have features."""
    code_dim: int = 64
    """Numbers of a code."""
    code_size: int = 0
    """0 = a row for each code of a picture (dis_code); else how many codes every picture has, and a row for each number of a code, over all of them (dis_code_t)."""


def code_rows(rows: RegionRows, numbers: CodeNumbers, where: str) -> RegionRows:
    """The rows of a picture in codes.

    Args:
        rows: one for each code, the code its feature.
        numbers: how many codes there are, and which rows they become.
        where: names sample and picture in errors.

    Returns:
        The same rows; with `code_size` L as many as a code has numbers, each with all codes (L) as feature, its place the number it stands for.

    Raises:
        BadInput: features that are no codes, or with `code_size` another count.
    """
    feats, most = rows.feats, numbers.code_voc - 1
    if feats.shape[1] != 1:
        raise BadInput(f"{where}: features of width {feats.shape[1]}, codes are one number each")
    if feats.dtype == np.float16 and most > 2048:
        raise BadInput(f"{where}: codes to {most} in float16, which holds whole numbers to 2048")
    odd = ~((feats >= 0) & (feats <= most) & (feats == np.floor(feats)))
    if odd.any():
        raise BadInput(f"{where}: {feats[odd][0]} is no code, they are whole numbers from 0 to {most}")
    if not numbers.code_size:
        return rows
    if len(rows) != numbers.code_size:
        raise BadInput(f"{where}: has {len(rows)} codes, code_size is {numbers.code_size}")
    count = numbers.code_dim
    zeros, whole = np.zeros(count, np.int64), np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))
    feats = np.tile(feats[:, 0], (count, 1))
    return RegionRows(feats, whole, zeros, np.arange(count), np.full(count, rows.image[0]), np.zeros(count, np.bool_))


class CodeRows(nn.Module):
    """A projected row for each code, or for each number of a code; see `code_rows`."""

    def __init__(self, numbers: CodeNumbers) -> None:
        super().__init__()
        self.codes = nn.Embedding(numbers.code_voc, numbers.code_dim)
        self.feature = nn.Linear(numbers.code_size or numbers.code_dim, numbers.hidden_size)
        self.across = bool(numbers.code_size)

    def fill(self, book: Tensor, where: str) -> None:
        """Starts the table as the codec's that made the codes. Args: book (code_voc, code_dim); where, for errors.

        Raises:
            BadInput: of another shape.
        """
        if book.shape != self.codes.weight.shape:
            raise BadInput(
                f"{where}: (codes, width) are {tuple(book.shape)}, code_voc and code_dim {tuple(self.codes.weight.shape)}"
            )
        self.codes.weight.data.copy_(book)

    def forward(self, regions: Regions) -> Tensor:
        """Embeds packed regions: (R, H)."""
        table = torch.cat([self.codes.weight[:1].detach(), self.codes.weight[1:]])
        codes = regions.feats.long()  # (R, 1) or, across, (R, L)
        return self.feature(table[codes, regions.position_ids[:, None]] if self.across else table[codes[:, 0]])  # type: ignore[no-any-return]
