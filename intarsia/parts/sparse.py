"""A stack of layers that norm before or after and whose feed-forward may be a mixture of experts. Source: M6; M6-T; GPT-2 (norms before)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from intarsia.packed import Packing
from intarsia.parts.dropout import Dropout
from intarsia.parts.encoder import SelfAttention
from intarsia.parts.experts import Mixture, Routing
from intarsia.parts.linear import Linear
from intarsia.parts.numbers import BertNumbers


@dataclass(frozen=True)
class SparseNumbers(BertNumbers):
    """A BERT's numbers, where its norms are and which layers are mixtures."""

    pre_norm: bool = False
    """LayerNorm before attention and feed-forward instead of after the sums. Not known."""
    experts: int = 0
    """Experts of a layer; 0 = dense."""
    experts_every: int = 1
    """Every so manieth layer has them, the others are dense."""
    expert_choices: int = 1
    """k, experts a row takes."""
    expert_routing: Routing = "top"
    """top = the k likeliest; prototypes = the likeliest of each of k groups (M6-T)."""
    capacity_factor: float = 1.25
    """An expert takes at most k * rows / experts times this; 0 = all."""
    recompute: bool = False
    """Layers are computed again in the backward pass instead of kept; the experts chosen stay the same."""


class Dense(nn.Module):
    """The feed-forward of a dense layer."""

    def __init__(self, config: SparseNumbers) -> None:
        super().__init__()
        self.up = Linear(config.hidden_size, config.intermediate_size)
        self.down = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H) to (N, H)."""
        return self.down(self.up.activated(x, F.gelu))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward or experts, normed before or after."""

    def __init__(self, config: SparseNumbers, sparse: bool) -> None:
        super().__init__()
        self.pre_norm, self.recompute = config.pre_norm, config.recompute
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        sizes = config.hidden_size, config.intermediate_size, config.experts, config.expert_choices
        self.feed = (
            Mixture(*sizes, config.expert_routing, config.capacity_factor, config.initializer_range)
            if sparse
            else Dense(config)
        )
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, packing: Packing, read: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """(N, H) to (N, H), of `read` (M) to (M, H); and of experts the balance loss and the share dropped."""
        again: Callable[..., Any] = self._plain
        if self.recompute and self.training:
            again = partial(checkpoint, use_reentrant=False)
        x = again(self._attend, x, packing, read)
        if not isinstance(self.feed, Mixture):
            return again(self._feed, x), []
        inner = self.norm(x) if self.pre_norm else x
        route = self.feed.route(inner)  # outside of what is computed again
        fed, dropped = again(self.feed, inner, route.expert, route.gate)
        return self._close(x, fed), [route.balance, dropped.detach() / max(1, len(route.expert))]

    @staticmethod
    def _plain(work: Callable[..., Any], *given: Any) -> Any:
        return work(*given)

    def _attend(self, x: Tensor, packing: Packing, read: Tensor | None) -> Tensor:
        kept = x if read is None else x.index_select(0, read)
        if self.pre_norm:
            return kept + self.dropout(self.attention(self.attention_norm(x), packing, read))  # type: ignore[no-any-return]
        return self.attention_norm(kept + self.dropout(self.attention(x, packing, read)))  # type: ignore[no-any-return]

    def _feed(self, x: Tensor) -> Tensor:
        return self._close(x, self.feed(self.norm(x) if self.pre_norm else x))

    def _close(self, x: Tensor, fed: Tensor) -> Tensor:
        x = x + self.dropout(fed)
        return x if self.pre_norm else self.norm(x)


class Stack(nn.Module):
    """The layers, and a last norm where they norm before."""

    def __init__(self, config: SparseNumbers) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Block(config, bool(config.experts) and i % config.experts_every == config.experts_every - 1)
            for i in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if config.pre_norm else nn.Identity()
        self.sparse = bool(config.experts)
        self.routed: list[Tensor] = []
        """Of the last forward pass: the mean over layers of the balance loss and of the share dropped."""

    def forward(self, x: Tensor, packing: Packing, read: Tensor | None = None) -> Tensor:
        """(N, H) to (N, H). With experts all rows are computed, so that what an expert takes does not depend on what is read."""
        read, found, last, shape = (None if self.sparse else read), [], len(self.layers) - 1, x.shape
        for i, layer in enumerate(self.layers):
            x, routed = layer(x, packing, read if i == last else None)
            found += [torch.stack(routed)] if routed else []
        self.routed = list(torch.stack(found).mean(0)) if found else []
        x = self.norm(x)
        return x if read is None else x.new_full(shape, torch.nan).index_copy(0, read, x)
