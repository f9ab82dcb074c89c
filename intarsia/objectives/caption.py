"""Captions of videos, written by a decoder beside the document that is read: every piece from those before. Source: VideoBERT, sec. 4.6."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from intarsia.batch import Example, Pick
from intarsia.errors import BadInput
from intarsia.text import Vocab


def lay_out(example: Example, vocab: Vocab, said: Sequence[int]) -> tuple[Example, int]:
    """The document with what was said behind it, each piece at a level of its own: [CLS], which begins a caption, and its pieces.

    Args:
        example: what is read, level 0.
        vocab: gives [CLS].
        said: pieces of the caption.

    Returns:
        The document, and the text row from which the next piece is told.
    """
    text = example.text
    assert text is not None, f"{example.key}: needs text"
    ids, read = np.array([vocab.cls, *said], np.int64), len(text)
    none, count = np.zeros(len(ids), np.int64), np.arange(len(ids))
    rows = replace(
        text,
        ids=np.concatenate([text.ids, ids]),
        segment_ids=np.concatenate([text.segment_ids, none]),
        position_ids=np.concatenate([text.position_ids, count]),
        words=np.concatenate([text.words, none - 1]),
        levels=np.concatenate([np.zeros(read), count + 1]).astype(np.int32),
    )
    return replace(example, text=rows), read + len(said)


def hide(example: Example, vocab: Vocab, text: str, most: int) -> Example:
    """The document with a whole caption behind it; each of its pieces and the [SEP] that closes it are asked for one row earlier.

    Args:
        example: what is read, level 0.
        vocab: cuts the caption.
        text: the caption.
        most: pieces that are kept; the others are counted in `TextRows.cut`.

    Raises:
        BadInput: the caption is empty.
    """
    pieces = vocab.encode(text)
    if not len(pieces):
        raise BadInput(f"sample {example.key}: the caption {text!r} is empty")
    kept = pieces.ids[:most]
    found, last = lay_out(example, vocab, kept.tolist())
    assert found.text is not None
    found.text.cut += len(pieces) - len(kept)
    rows = np.arange(last - len(kept), last + 1)
    return replace(found, targets={"caption": Pick("text", rows, np.append(kept, vocab.sep))})
