"""Attention over packed rows: one function, several backends, one rule of visibility (see `intarsia.packed`).

All backends compute softmax(q k^T / sqrt(D)) v over the rows that a row sees, and 0 for a row that sees nothing. They
differ in what they serve:

- ``padded``: the reference. Pads inside attention only; any device, any dtype, levels, dropout.
- ``loop``: one document after another on the CPU, where the lengths are at hand, neighbours of the same size at once; levels, dropout.
- ``varlen``: FlashAttention over cumulative lengths; CUDA, half precision, no levels, no dropout.
- ``flex``: compiled block-sparse attention; CUDA, levels, no dropout.

`choose` is the one place that picks; `use_backend` overrides it. Everything that runs on CUDA is free of host syncs,
and `torch.compile` traces it. Inside `watch`, every call also records its probabilities, computed the same way whatever
backend runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from intarsia.packed import Joined, Packing, join, joined_rows, pad, subset, unpad, visible

Backend = Literal["padded", "loop", "varlen", "flex"]
Kernel = Callable[[Tensor, Tensor, Tensor, Packing, Packing, float], Tensor]
"""What `attend` takes and gives."""
BLOCK = 128


def attend(q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing, dropout: float = 0.0) -> Tensor:
    """Multi-head attention of packed rows on packed rows of the same documents.

    Args:
        q: (Nq, heads, D) float.
        k: (Nk, heads, D), dtype of q.
        v: (Nk, heads, D), dtype of q.
        queries: where the rows of q lie.
        keys: where the rows of k and v lie; the very object `queries` for self-attention.
        dropout: probability of dropping an attention weight now; 0 in evaluation.

    Returns:
        (Nq, heads, D), 0 where a row sees nothing.

    Raises:
        ValueError: the forced backend cannot serve the call (says why), or the packings differ in documents.
    """
    if queries.documents != keys.documents:
        raise ValueError(f"cannot attend from {queries.documents} documents to {keys.documents}")
    if _memory is not None:
        k, v, keys = _memory.extend(k, v, keys)
    if callable(_forced):
        return _forced(q, k, v, queries, keys, dropout)
    name = choose(q, queries, keys, dropout)
    if name == "padded":
        out = _padded(q, k, v, queries, keys, dropout)
    elif name == "loop":
        levels = queries.level is not None or keys.level is not None
        learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        if levels or dropout or learns:
            out = _Loop.apply(q, k, v, queries, keys, dropout)  # type: ignore[no-untyped-call]
        else:
            out = _glance(q, k, v, queries, keys)
    elif name == "varlen":
        out = _varlen(q, k, v, queries, keys)
    else:
        out = _flex(q, k, v, queries, keys)
    if _watching is not None:
        _watching.maps.append(probabilities(q.detach(), k.detach(), queries, keys))
        _watching.packings.append((queries, keys))
        _watching.flows.append((v, out))
    return out


# ------------------------------------------------------------------------------------------------------------- choosing

_forced: Backend | Kernel | None = None


def choose(q: Tensor, queries: Packing, keys: Packing, dropout: float) -> Backend:
    """The backend that serves a call: the forced one, else the fastest that can.

    Raises:
        ValueError: the forced backend cannot serve the call (says why).
    """
    if isinstance(_forced, str):
        why = refusal(_forced, q, queries, keys, dropout)
        if why:
            raise ValueError(f"attention backend {_forced} {why}")
        return _forced
    if not refusal("loop", q, queries, keys, dropout):
        return "loop"
    if not refusal("varlen", q, queries, keys, dropout):
        return "varlen"
    levels = queries.level is not None or keys.level is not None
    return "flex" if levels and not refusal("flex", q, queries, keys, dropout) else "padded"


def refusal(backend: Backend, q: Tensor, queries: Packing, keys: Packing, dropout: float) -> str:
    """Why a backend cannot serve a call; empty when it can."""
    if backend == "padded":
        return ""
    if backend == "loop":
        if q.device.type != "cpu":
            return f"needs the CPU, the rows are on {q.device}"
        return "cannot be traced by torch.compile" if torch.compiler.is_compiling() else ""
    if q.device.type != "cuda":
        return f"needs a CUDA device, the rows are on {q.device}"
    if dropout:
        return f"has no attention dropout, {dropout} was asked for"
    if backend == "flex":
        return f"needs at least 16 numbers a head, there are {q.shape[-1]}" if q.shape[-1] < 16 else ""
    if queries.level is not None or keys.level is not None:
        return "knows no visibility levels"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"needs float16 or bfloat16, the rows are {q.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        return f"needs a multiple of 8, at most 256, numbers a head, there are {q.shape[-1]}"
    return "" if torch.cuda.get_device_properties(q.device).major >= 8 else "needs compute capability 8.0 or newer"


@contextmanager
def use_backend(name: Backend | Kernel) -> Iterator[None]:
    """Inside the context every `attend` runs on the named backend, or raises if that one cannot serve the call; or on a kernel of the caller's."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


# ------------------------------------------------------------------------------------------------------------- watching


@dataclass(slots=True)
class Seen:
    """What was recorded inside `watch`."""

    maps: list[Tensor] = field(default_factory=list)
    """Per `attend` call: (B, heads, Lq, Lk) float32 probabilities before dropout, 0 where nothing is seen."""
    packings: list[tuple[Packing, Packing]] = field(default_factory=list)
    """Per call: where its queries and its keys lie, the very objects it was given."""
    flows: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Per call: values (Nk, heads, D) and output (Nq, heads, D), in the graph; with the output's gradient they give that of the probabilities."""


_watching: Seen | None = None


@contextmanager
def watch() -> Iterator[Seen]:
    """Inside the context every `attend` records its probabilities, padded per document, and its packings, in call order."""
    global _watching
    before, _watching = _watching, Seen()
    try:
        yield _watching
    finally:
        _watching = before


# ---------------------------------------------------------------------------------------------------------- remembering


class Memory:
    """Keys and values of rows that no later row changes, by call of `attend`; for generation piece by piece, where calls come in the same order each time."""

    def __init__(self) -> None:
        self.packing: Packing | None = None
        """Of the rows remembered."""
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._fresh: list[tuple[Tensor, Tensor]] = []
        self._joined: Joined | None = None

    def extend(self, k: Tensor, v: Tensor, keys: Packing) -> tuple[Tensor, Tensor, Packing]:
        """What is remembered of the documents before the new rows (N, heads, D); and where all of it lies."""
        if self.packing is None:
            self._fresh.append((k, v))
            self._joined = Joined(keys, keys.doc, keys.doc)
            return k, v, keys
        if self._joined is None:
            self._joined = join(self.packing, keys)
        old_k, old_v = self._kept[len(self._fresh)]
        k, v = joined_rows(self._joined, old_k, k), joined_rows(self._joined, old_v, v)
        self._fresh.append((k, v))
        return k, v, self._joined.packing

    def keep(self, levels: Tensor) -> None:
        """After a forward pass: remembers the rows of each document whose level is at most its number in `levels` (B)."""
        assert self._joined is not None and self._joined.packing.level is not None, "remembers rows with levels only"
        packing = self._joined.packing
        rows = (self._joined.packing.level <= levels[packing.doc]).nonzero()[:, 0]
        self._kept = [(k[rows], v[rows]) for k, v in self._fresh]
        self.packing, self._fresh, self._joined = subset(packing, rows), [], None

    def take(self, documents: Tensor) -> None:
        """Goes on with these documents (n), each as often as it is named."""
        assert self.packing is not None and self.packing.level is not None, "nothing is remembered"
        lengths, first = self.packing.lengths[documents], self.packing.first[documents]
        new = Packing.of(lengths.tolist()).to(lengths.device)
        rows = first[new.doc] + new.pos
        self._kept = [(k[rows], v[rows]) for k, v in self._kept]
        self.packing = Packing(new.cu_seqlens, new.max_seqlen, new.doc, new.pos, self.packing.level[rows])


_memory: Memory | None = None


@contextmanager
def remember(memory: Memory) -> Iterator[None]:
    """Inside the context every `attend`, of rows on themselves, also sees what the memory holds and adds to it."""
    global _memory
    before, _memory = _memory, memory
    try:
        yield
    finally:
        _memory = before


def probabilities(q: Tensor, k: Tensor, queries: Packing, keys: Packing) -> Tensor:
    """Attention probabilities (B, heads, Lq, Lk) float32, 0 where a row sees nothing.

    Args: q (Nq, heads, D) and k (Nk, heads, D), packed.
    """
    block_q, block_k = pad(q.float(), queries), pad(k.float(), keys)
    scores = torch.einsum("bqhd,bkhd->bhqk", block_q, block_k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~visible(queries, keys)[:, None], -torch.inf)
    probs: Tensor = scores.softmax(-1).nan_to_num(0.0)
    return probs


# ------------------------------------------------------------------------------------------------------------- backends


def _padded(q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing, dropout: float) -> Tensor:
    see = visible(queries, keys)
    blind = ~see.any(
        -1, keepdim=True
    )  # padding, and rows of documents without keys: let them see all, so no softmax is empty
    block_q, block_k, block_v = (
        pad(x, p).transpose(1, 2) for x, p in ((q, queries), (k, keys), (v, keys))
    )  # (B, heads, L, D)
    block = F.scaled_dot_product_attention(block_q, block_k, block_v, (see | blind)[:, None], dropout)
    rows = unpad(block.transpose(1, 2), queries)
    return rows if queries is keys else rows.masked_fill(unpad(blind, queries)[..., None], 0.0)


@dataclass(frozen=True, slots=True)
class _Run:
    """Documents of the same size that lie side by side: one product serves them all."""

    count: int
    queries: slice
    keys: slice
    probs: slice
    """Their place in a flat tensor of probabilities."""


def _runs(queries: Packing, keys: Packing, heads: int) -> list[_Run]:
    """All documents with queries and keys, in order."""
    runs, at_q, at_k, at = [], 0, 0, 0
    for (size_q, size_k), same in groupby(zip(queries.lengths.tolist(), keys.lengths.tolist(), strict=True)):
        count = len(list(same))
        end_q, end_k = at_q + count * size_q, at_k + count * size_k
        if size_q and size_k:
            end = at + count * heads * size_q * size_k
            runs.append(_Run(count, slice(at_q, end_q), slice(at_k, end_k), slice(at, end)))
            at = end
        at_q, at_k = end_q, end_k
    return runs


def _take(x: Tensor, rows: slice, count: int) -> Tensor:
    """Rows of `count` documents, (N, heads, D), as (count * heads, L, D)."""
    part = x[rows]
    if count == 1:
        return part.transpose(0, 1)
    return part.view(count, -1, *x.shape[1:]).transpose(1, 2).flatten(0, 1)


def _put(x: Tensor, rows: slice, count: int, value: Tensor) -> None:
    """The way back of `_take`."""
    if count == 1:
        x[rows].transpose(0, 1).copy_(value)
    else:
        part = x[rows].view(count, -1, *x.shape[1:])
        part.copy_(value.view(count, -1, *value.shape[1:]).transpose(1, 2))


def noise(count: int, dropout: float) -> Tensor:
    """(count) float32 dropout factors on the CPU, 0 or 1 / keep, from 15-bit lanes of 64-bit draws.

    Several times cheaper on a CPU than one draw a number. keep is 1 - dropout, rounded to a multiple of 2^-15.
    """
    kept = round((1 - dropout) * 2**15)
    if not kept:
        return torch.zeros(count)
    lanes = torch.empty(-(-count // 4), dtype=torch.int64).random_().view(torch.int16)[:count]
    lanes.bitwise_and_(0x7FFF).sub_(kept).bitwise_right_shift_(15)  # -1 where kept, else 0
    return lanes.float().mul_(-(2**15) / kept)


def _glance(q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing) -> Tensor:
    """The loop where nothing is learnt, dropped or hidden: torch's own kernel on each run, which keeps no probabilities and takes half precision as it is."""
    out = q.new_zeros(q.shape)
    for run in _runs(queries, keys, q.shape[1]):
        given = ((q, run.queries), (k, run.keys), (v, run.keys))
        block_q, block_k, block_v = (x[rows].view(run.count, -1, *x.shape[1:]).transpose(1, 2) for x, rows in given)
        mixed = F.scaled_dot_product_attention(block_q, block_k, block_v)  # (count, heads, L, D)
        out[run.queries].view(run.count, -1, *q.shape[1:]).copy_(mixed.transpose(1, 2))
    return out


class _Loop(torch.autograd.Function):
    """Attention of one run of documents after another, always in float32: small half-precision products are slow on CPUs."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing, dropout: float) -> Tensor:
        runs, scale = _runs(queries, keys, q.shape[1]), q.shape[2] ** -0.5
        count = runs[-1].probs.stop if runs else 0
        probs, factors = torch.empty(count), noise(count, dropout) if dropout else None
        levels = None
        if queries.level is not None or keys.level is not None:
            levels = [torch.zeros_like(x.pos) if x.level is None else x.level for x in (queries, keys)]
        out = torch.zeros(q.shape)
        with torch.autocast("cpu", enabled=False):
            float_q, float_k, float_v = (x.float() for x in (q, k, v))
            for run in runs:
                many = run.count
                block_k = _take(float_k, run.keys, many)
                block = torch.bmm(_take(float_q, run.queries, many) * scale, block_k.transpose(1, 2))
                weights = probs[run.probs].view(block.shape)
                if levels is None:
                    torch.softmax(block, -1, out=weights)
                else:
                    seers, seen = levels[0][run.queries].view(many, -1, 1), levels[1][run.keys].view(many, 1, -1)
                    hidden = (seen > seers).repeat_interleave(q.shape[1], 0)
                    torch.softmax(block.masked_fill_(hidden, -torch.inf), -1, out=weights)
                    weights.masked_fill_(hidden.all(-1, keepdim=True), 0.0)  # rows that see nothing
                if factors is not None:
                    weights = weights * factors[run.probs].view(block.shape)
                _put(out, run.queries, many, torch.bmm(weights, _take(float_v, run.keys, many)))
        ctx.save_for_backward(q, k, v, probs, factors)
        ctx.runs = runs
        return out.to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, probs, factors = ctx.saved_tensors
        (grad_q, grad_k, grad_v), scale = [torch.zeros(x.shape) for x in (q, k, v)], q.shape[2] ** -0.5
        with torch.autocast("cpu", enabled=False):
            float_q, float_k, float_v, float_grad = (x.float() for x in (q, k, v, grad))
            for run in ctx.runs:
                many = run.count
                g = _take(float_grad, run.queries, many)
                block = torch.bmm(g, _take(float_v, run.keys, many).transpose(1, 2))
                weights = dropped = probs[run.probs].view(block.shape)
                if factors is not None:
                    block.mul_(factors[run.probs].view(block.shape))
                    dropped = weights * factors[run.probs].view(block.shape)
                _put(grad_v, run.keys, many, torch.bmm(dropped.transpose(1, 2), g))
                block = torch._softmax_backward_data(block, weights, -1, torch.float32).mul_(scale)
                _put(grad_q, run.queries, many, torch.bmm(block, _take(float_k, run.keys, many)))
                _put(grad_k, run.keys, many, torch.bmm(block.transpose(1, 2), _take(float_q, run.queries, many)))
        return (*(x.to(q.dtype) for x in (grad_q, grad_k, grad_v)), None, None, None)


def _varlen(q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(q, k, v, queries.cu_seqlens, keys.cu_seqlens, queries.max_seqlen, keys.max_seqlen)
    assert isinstance(out, Tensor)
    return out


def _flex(q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing) -> Tensor:
    if not (q.shape[0] and k.shape[0]):
        return torch.zeros_like(q)
    direct = torch.compiler.is_compiling() or not q.is_cuda
    kernel: Any = flex_attention if direct else _compiled_flex()
    out = kernel(
        *(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=block_mask(queries, keys)
    )  # (1, heads, Nq, D)
    rows: Tensor = out[0].transpose(0, 1)
    return rows


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def block_mask(queries: Packing, keys: Packing) -> BlockMask:
    """The visibility rule as a block mask, from cumulative lengths alone: no (Nq, Nk) matrix, no host sync.

    Rows of a document lie together, so a block of queries meets one contiguous range of key blocks.
    """
    doc_q, doc_k, level_q, level_k = queries.doc, keys.doc, queries.level, keys.level

    def rule(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same = doc_q[i] == doc_k[j]
        if level_q is None and level_k is None:
            return same
        zero = torch.zeros_like(i)
        return same & ((zero if level_k is None else level_k[j]) <= (zero if level_q is None else level_q[i]))

    blocks_q, blocks_k = (-(-x.rows // BLOCK) for x in (queries, keys))
    first = torch.arange(blocks_q, device=doc_q.device) * BLOCK
    last = (first + BLOCK - 1).clamp(max=queries.rows - 1)
    start = keys.cu_seqlens[doc_q[first]] // BLOCK  # first key block met
    stop = (keys.cu_seqlens[doc_q[last] + 1] + BLOCK - 1) // BLOCK  # one behind the last
    indices = (start[:, None] + torch.arange(blocks_k, device=doc_q.device)).clamp(max=blocks_k - 1)
    return BlockMask.from_kv_blocks(
        (stop - start).clamp(min=0)[None, None].int(),
        indices[None, None].int(),
        BLOCK_SIZE=BLOCK,
        mask_mod=rule,
        seq_lengths=(queries.rows, keys.rows),
    )
