"""Embeddings of words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from intarsia.batch import Text
from intarsia.parts.dropout import Dropout
from intarsia.parts.numbers import BertNumbers


class Table(nn.Embedding):
    """A large embedding table; on the CPU the zeros of its gradient, most of it, are never written."""

    def forward(self, input: Tensor) -> Tensor:
        """(T) ids to (T, H)."""
        if self.weight.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        rows: Tensor = _LookUp.apply(self.weight, input, self.padding_idx)  # type: ignore[no-untyped-call]
        return rows


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.dtype, ctx.padding = table.shape, table.dtype, padding
        return table.index_select(0, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        if ctx.padding is not None:
            grad = grad.masked_fill((ids == ctx.padding)[:, None], 0)
        zeros = torch.from_numpy(np.zeros(ctx.shape, np.float32))  # pages that the system gives when they are touched
        return zeros.index_add_(0, ids, grad.float()).to(ctx.dtype), None, None


class Words(nn.Module):
    """Word, position and segment embeddings, summed and normalised. Source: BERT, sec. 3."""

    def __init__(self, config: BertNumbers) -> None:
        super().__init__()
        self.word = Table(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.segment = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, text: Text) -> Tensor:
        """Embeds packed text rows: (T, H)."""
        return self.dropout(self.norm(self.summed(text)))  # type: ignore[no-any-return]

    def summed(self, text: Text) -> Tensor:
        """The sum before it is normalised: (T, H)."""
        return self.word(text.ids) + self.position(text.position_ids) + self.segment(text.segment_ids)  # type: ignore[no-any-return]


class TaskWords(Words):
    """Words, and tokens for tasks: rows in the segment past the last have a task's number for an id, and nothing added. Source: the code of 12-in-1."""

    def __init__(self, config: BertNumbers, tasks: int) -> None:
        super().__init__(config)
        self.task = nn.Embedding(tasks, config.hidden_size)

    def summed(self, text: Text) -> Tensor:
        """(T, H)."""
        here = text.segment_ids == self.segment.num_embeddings
        ids, segments = (x.masked_fill(here, 0) for x in (text.ids, text.segment_ids))
        words = super().summed(replace(text, ids=ids, segment_ids=segments))
        return torch.where(here[:, None], self.task(text.ids.masked_fill(~here, 0)), words)


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """BERT's initialisation of a whole model: weights N(0, std), biases 0, norms 1 and 0. Draws from torch's default generator."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, 0.0, std)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
        if isinstance(part, (nn.Linear, nn.LayerNorm)) and part.bias is not None:
            nn.init.zeros_(part.bias)
