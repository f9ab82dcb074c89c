"""The single stream: words and regions through one encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from intarsia.batch import Encoded
from intarsia.packed import Packing, join, joined_rows, split

Stage = Callable[[Tensor, Packing], Tensor]
Reader = Callable[[Tensor, Packing, Tensor | None], Tensor]


def apart(encoder: Reader, alone: Tensor) -> Reader:
    """An encoder in which some rows of each document see only each other, and the rest do.

    Args:
        encoder: takes packed rows without levels, as that of `encode_joined`.
        alone: (N) bool, those rows.
    """

    def encode(x: Tensor, packing: Packing, read: Tensor | None) -> Tensor:
        order = (2 * packing.doc + alone).argsort(stable=True)  # in each document the rest, then they
        place = order.argsort()
        rest = torch.zeros_like(packing.lengths, dtype=torch.int64).index_add(0, packing.doc, (~alone).long())
        rows = None if read is None else place[read].sort().values
        return encoder(x[order], split(packing, rest), rows)[place]

    return encode


def encode_joined(
    encoder: Reader,
    pooler: Stage,
    words: Tensor,
    text: Packing,
    regions: Tensor,
    visual: Packing,
    read: dict[str, Tensor] | None = None,
) -> Encoded:
    """Joins the two inputs of each document, encodes them and pools the output of the first word.

    Args:
        encoder: sees both; its last argument is which rows it must give, None = all.
        pooler: reads the first row of each document, which is [CLS].
        words: (T, H) embedded text rows.
        text: their packing.
        regions: (R, H) embedded regions.
        visual: their packing.
        read: rows of "text" and "regions" that somebody reads, as in `Batch`; the others come back as NaN. None = all.
    """
    joined = join(text, visual)
    rows = None
    if read is not None:
        rows = torch.cat([joined.rows_a[read["text"]], joined.rows_b[read["regions"]]]).sort().values
    x = encoder(joined_rows(joined, words, regions.to(words.dtype)), joined.packing, rows)  # (T + R, H)
    return Encoded(
        text=x.index_select(0, joined.rows_a),
        visual=x.index_select(0, joined.rows_b),
        visual_packing=visual,
        pooled=pooler(x, joined.packing),
    )
