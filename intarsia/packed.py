"""Documents packed row by row: how they lie in one tensor, and who sees whom.

A *document* is what one example feeds a stream: the words of a caption, the regions of a picture, or both. The rows of all documents of a batch
lie behind one another in one tensor, with no padding between them, so every layer but attention works on real rows only.

Visibility has one rule. A row sees a row iff both belong to the same document and ``level[seen] <= level[seer]``; without levels every row of a
document sees every other. All levels 0 is bidirectional; 0 for the source and 1, 2, 3, .. for the target is a prefix language model;
0, 1, 2, .. is causal. One integer a row replaces every mask matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each document lies in a stream of N rows."""

    cu_seqlens: Tensor
    """(B + 1) int32, cumulative row counts: document b owns rows cu_seqlens[b] .. cu_seqlens[b + 1]."""
    max_seqlen: int
    """Rows of the longest document, rounded up to 16 (at least 16), known to the host."""
    doc: Tensor
    """(N) int64, the document each row belongs to."""
    pos: Tensor
    """(N) int64, the place of each row inside its document, from 0."""
    level: Tensor | None = None
    """(N) int32, visibility level of each row; None = all rows of a document see each other."""

    @classmethod
    def of(cls, lengths: Sequence[int] | np.ndarray, levels: np.ndarray | None = None) -> Packing:
        """Builds the packing of documents with the given row counts, on the CPU.

        Args:
            lengths: B row counts, each >= 0.
            levels: (N) int, visibility levels of the rows, or None.
        """
        counts = np.asarray(lengths, dtype=np.int64)
        cu = np.zeros(len(counts) + 1, dtype=np.int32)
        np.cumsum(counts, out=cu[1:])
        doc = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        pos = np.arange(cu[-1], dtype=np.int64) - cu[doc]
        return cls(
            torch.from_numpy(cu),
            round_up(int(counts.max(initial=0))),
            torch.from_numpy(doc),
            torch.from_numpy(pos),
            None if levels is None else torch.from_numpy(np.asarray(levels, dtype=np.int32)),
        )

    def to(self, device: torch.device | str) -> Packing:
        """The same on another device."""
        level = None if self.level is None else self.level.to(device)
        return Packing(self.cu_seqlens.to(device), self.max_seqlen, self.doc.to(device), self.pos.to(device), level)

    @property
    def documents(self) -> int:
        """B, the number of documents (some may have no row)."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def rows(self) -> int:
        """N, the number of rows."""
        return self.doc.shape[0]

    @property
    def lengths(self) -> Tensor:
        """(B) int32, rows of each document."""
        return self.cu_seqlens[1:] - self.cu_seqlens[:-1]

    @property
    def first(self) -> Tensor:
        """(B) int64, the first row of each document (meaningless where a document is empty)."""
        return self.cu_seqlens[:-1].long()

    @property
    def last(self) -> Tensor:
        """(B) int64, the last row of each document (meaningless where a document is empty)."""
        return self.cu_seqlens[1:].long() - 1


@dataclass(frozen=True, slots=True)
class Joined:
    """Two streams joined into one: the packing of the whole and the rows each stream took."""

    packing: Packing
    rows_a: Tensor
    """(Na) int64, rows of the first stream in the joined tensor."""
    rows_b: Tensor
    """(Nb) int64, rows of the second stream in the joined tensor."""


def round_up(n: int, multiple: int = 16) -> int:
    """The smallest positive multiple that is at least n."""
    return max(multiple, -(-n // multiple) * multiple)


def join(a: Packing, b: Packing) -> Joined:
    """Joins two streams of the same documents: inside each document the rows of ``a`` come first. Arithmetic only, no sort, no host sync.

    Raises:
        ValueError: the streams do not have the same number of documents.
    """
    if a.documents != b.documents:
        raise ValueError(f"cannot join streams of {a.documents} and {b.documents} documents")
    rows_a = torch.arange(a.rows, device=a.doc.device) + b.cu_seqlens[a.doc]
    rows_b = torch.arange(b.rows, device=b.doc.device) + a.cu_seqlens[b.doc + 1]
    doc = _place(a.doc, rows_a, b.doc, rows_b)
    pos = _place(a.pos, rows_a, b.pos + a.lengths[b.doc], rows_b)
    level = None
    if a.level is not None or b.level is not None:
        zeros = (x.doc.new_zeros(x.rows, dtype=torch.int32) if x.level is None else x.level for x in (a, b))
        level = _place(next(zeros), rows_a, next(zeros), rows_b)
    return Joined(
        Packing(a.cu_seqlens + b.cu_seqlens, round_up(a.max_seqlen + b.max_seqlen), doc, pos, level), rows_a, rows_b
    )


def split(packing: Packing, first: Tensor) -> Packing:
    """Every document cut in two, which then do not see each other.

    Args:
        packing: of B documents, without levels.
        first: (B) int64, rows of the first part of each.

    Returns:
        The packing of 2 B documents over the same rows.
    """
    second = packing.pos >= first[packing.doc]  # (N)
    ends = torch.stack([packing.cu_seqlens[:-1] + first, packing.cu_seqlens[1:].long()], 1).flatten()  # (2 B)
    return Packing(
        torch.cat([packing.cu_seqlens[:1], ends.int()]),
        packing.max_seqlen,
        2 * packing.doc + second,
        packing.pos - second * first[packing.doc],
    )


def subset(packing: Packing, rows: Tensor) -> Packing:
    """The packing of some rows of a stream, which keep their documents and levels.

    Args:
        packing: of N rows.
        rows: (M) int64, sorted, each once.
    """
    cu = torch.searchsorted(rows, packing.cu_seqlens.long()).int()
    doc = packing.doc[rows]
    pos = torch.arange(rows.shape[0], device=rows.device) - cu[doc]
    return Packing(cu, packing.max_seqlen, doc, pos, None if packing.level is None else packing.level[rows])


def restarts(packing: Packing, first: Tensor, parts: int) -> Packing:
    """Every document cut into as many parts, which then do not see each other.

    Args:
        packing: of B documents, without levels.
        first: (N) bool, True at the first row of each part; `parts` of them a document.
        parts: known to the host.

    Returns:
        The packing of parts * B documents over the same rows. Its longest part is looked up on a CPU; other devices are not waited for.
    """
    doc = first.long().cumsum(0) - 1  # (N)
    starts = torch.arange(packing.documents * parts + 1, device=doc.device)
    cu = torch.searchsorted(doc, starts).int()
    rows = torch.arange(packing.rows, device=doc.device)
    known = type(doc) is Tensor and doc.device.type == "cpu"  # not a fake one, whose numbers nobody knows
    longest = round_up(int(cu.diff().max())) if known else packing.max_seqlen
    return Packing(cu, longest, doc, rows - cu[doc])


def taken(packing: Packing, documents: Tensor, rows: int) -> tuple[Tensor, Packing]:
    """Some documents of a stream, repeats allowed, behind one another.

    Args:
        packing: of the stream, without levels.
        documents: (C) int64, which.
        rows: how many rows they have in all, known to the host.

    Returns:
        (rows) int64 rows of the stream, and the packing of C documents over them.
    """
    lengths = packing.lengths[documents]
    cu = torch.cat([lengths.new_zeros(1), lengths.cumsum(0).int()])
    place = torch.arange(rows, device=documents.device)
    doc = torch.searchsorted(cu[1:].long(), place, right=True)
    pos = place - cu[doc]
    return packing.first[documents][doc] + pos, Packing(cu, packing.max_seqlen, doc, pos)


def joined_rows(joined: Joined, a: Tensor, b: Tensor) -> Tensor:
    """Lays the rows of two streams (Na, ..) and (Nb, ..) into one tensor (Na + Nb, ..)."""
    return _place(a, joined.rows_a, b, joined.rows_b)


def _place(a: Tensor, rows_a: Tensor, b: Tensor, rows_b: Tensor) -> Tensor:
    both = torch.cat([a, b])
    return torch.empty_like(both).index_copy(0, torch.cat([rows_a, rows_b]), both)


def pad(x: Tensor, packing: Packing, length: int | None = None, fill: float = 0.0) -> Tensor:
    """Packed rows (N, ..) to a padded block (B, L, ..), L = ``length`` or ``packing.max_seqlen``."""
    length = packing.max_seqlen if length is None else length
    block = x.new_full((packing.documents * length, *x.shape[1:]), fill)
    return block.index_copy(0, packing.doc * length + packing.pos, x).view(packing.documents, length, *x.shape[1:])


def unpad(block: Tensor, packing: Packing) -> Tensor:
    """A padded block (B, L, ..) back to packed rows (N, ..)."""
    return block.flatten(0, 1).index_select(0, packing.doc * block.shape[1] + packing.pos)


def visible(queries: Packing, keys: Packing) -> Tensor:
    """The visibility rule as a boolean block (B, Lq, Lk), True = may be seen; padding sees nothing and is not seen."""
    here_q, here_k = (pad(torch.ones_like(x.pos, dtype=torch.bool), x) for x in (queries, keys))
    seen = here_q[:, :, None] & here_k[:, None, :]
    if queries.level is not None or keys.level is not None:
        level_q, level_k = (
            pad(torch.zeros_like(x.pos) if x.level is None else x.level.long(), x) for x in (queries, keys)
        )
        seen = seen & (level_k[:, None, :] <= level_q[:, :, None])
    return seen
