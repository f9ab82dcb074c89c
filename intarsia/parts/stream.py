"""The single stream: words and regions through one encoder."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from intarsia.batch import Encoded
from intarsia.packed import Packing, join, joined_rows

Stage = Callable[[Tensor, Packing], Tensor]


def encode_joined(
    encoder: Stage,
    pooler: Stage,
    words: Tensor,
    text: Packing,
    regions: Tensor,
    visual: Packing,
) -> Encoded:
    """Joins the two inputs of each document, encodes them and pools the output of the first word.

    Args:
        encoder: sees both.
        pooler: reads the first row of each document, which is [CLS].
        words: (T, H) embedded text rows.
        text: their packing.
        regions: (R, H) embedded regions.
        visual: their packing.
    """
    joined = join(text, visual)
    x = encoder(joined_rows(joined, words, regions.to(words.dtype)), joined.packing)  # (T + R, H)
    return Encoded(
        text=x.index_select(0, joined.rows_a),
        visual=x.index_select(0, joined.rows_b),
        visual_packing=visual,
        pooled=pooler(x, joined.packing),
    )
