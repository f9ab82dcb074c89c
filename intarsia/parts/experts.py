"""Mixture of experts: many feed-forward layers of which each row takes few, on one process or with the experts spread over several.

Source: M6-T, Exploring Sparse Expert Models and Beyond (arXiv:2105.15082), after GShard and Switch Transformer.

Rows are sorted by expert and laid into one block of equal rooms, so that all experts are two batched products; nothing of the size rows x experts x room
is made. Packed rows hold no padding, so a room is a share of real rows only.

Experts that are shared out are sharded tensors: what gathers, refills and norms shards of other kinds does so with these.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from intarsia.errors import BadInput

Routing = Literal["top", "prototypes"]


class Route(NamedTuple):
    """Which experts the rows of one call go to; A = choices * N assignments, the first choices of all rows first."""

    expert: Tensor
    """(A) int64"""
    gate: Tensor
    """(A) float32, what the expert's output is multiplied by."""
    balance: Tensor
    """Scalar: the loss that is 1 where rows spread evenly and larger elsewhere."""


class Ranks:
    """The processes that share experts, all of them in a row."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh, self.group = mesh, mesh.get_group()
        self.size: int = mesh.size()

    def share(self, whole: Tensor) -> Tensor:
        """This process's part of a tensor (E, ..) that all have, as a shard of it."""
        own = whole.chunk(self.size)[self.mesh.get_local_rank()].clone()
        return DTensor.from_local(own, self.mesh, [Shard(0)], run_check=False)

    def largest(self, number: int, device: torch.device) -> int:
        """The largest of all processes' numbers; waits for the device."""
        found = torch.tensor(number, device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX, self.group)
        return int(found)

    def swap(self, x: Tensor) -> Tensor:
        """(size, ..): part i goes to process i, and part i of what comes is from process i."""
        x = x.contiguous()
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x, group=self.group)
        return out


class Mixture(nn.Module):
    """Experts in place of a feed-forward layer.

    Args:
        hidden_size: H.
        intermediate_size: inner width of an expert.
        experts: E.
        choices: k, experts a row takes.
        routing: "top" = the k likeliest of all; "prototypes" = experts in k groups with a router each, the likeliest of each group.
        capacity_factor: an expert takes at most ceil(k * N / E * factor) of the N rows of a process, those of first choices first, then by place; the
            others get nothing from it. 0 = all.
        std: of fresh weights.

    Raises:
        ValueError: the numbers do not fit together.
    """

    shared = ("up", "up_bias", "down", "down_bias")
    """Parameters (E, ..) that `spread` shares out."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        experts: int,
        choices: int = 1,
        routing: Routing = "top",
        capacity_factor: float = 1.25,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        if not 1 <= choices <= experts:
            raise ValueError(f"{choices} choices among {experts} experts")
        if routing == "prototypes" and experts % choices:
            raise ValueError(f"{experts} experts do not split into {choices} prototypes")
        self.experts, self.choices, self.routing, self.capacity_factor = experts, choices, routing, capacity_factor
        self.router = nn.Linear(hidden_size, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, hidden_size, intermediate_size) * std)
        self.up_bias = nn.Parameter(torch.zeros(experts, intermediate_size))
        self.down = nn.Parameter(torch.randn(experts, intermediate_size, hidden_size) * std)
        self.down_bias = nn.Parameter(torch.zeros(experts, hidden_size))
        self.ranks: Ranks | None = None

    def capacity(self, rows: int) -> int:
        """Rows an expert takes at most."""
        if not self.capacity_factor:
            return max(1, rows)
        return max(1, math.ceil(self.choices * rows / self.experts * self.capacity_factor))

    def route(self, x: Tensor) -> Route:
        """Chooses experts for rows (N, H), in float32 whatever the precision around it."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.router.weight.float())  # (N, E)
        groups = self.choices if self.routing == "prototypes" else 1
        size = self.experts // groups
        probs = logits.view(-1, groups, size).softmax(-1)  # (N, groups, E / groups)
        gate, expert = probs.topk(self.choices // groups, -1)
        expert = expert + torch.arange(groups, device=x.device)[:, None] * size
        expert, gate = (y.flatten(1).t().flatten() for y in (expert, gate))  # (A)
        taken = torch.zeros(self.experts, device=x.device).index_add(0, expert, torch.ones_like(gate))
        share = taken.view(groups, size) / max(1, len(x) * self.choices // groups)
        balance = size * (share * probs.sum(0) / max(1, len(x))).sum(1).mean()
        return Route(expert, gate, balance)

    def forward(self, x: Tensor, expert: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        """Sends rows through their experts. The choice is an argument, so that a forward pass done again takes the same.

        Args:
            x: (N, H).
            expert: as in `Route`.
            gate: the same.

        Returns:
            (N, H), 0 for rows that no expert took; and the number of assignments dropped, a float scalar.
        """
        rows, experts, limit = len(x), self.experts, self.capacity(len(x))
        room = limit if self.ranks is None else self.ranks.largest(limit, x.device)
        order = expert.argsort(stable=True)
        sizes = torch.zeros_like(expert[:1]).expand(experts).index_add(0, expert, torch.ones_like(expert))
        starts = sizes.cumsum(0) - sizes
        places = torch.arange(len(expert), device=x.device) - starts[expert[order]]
        place = torch.empty_like(places).index_copy(0, order, places)
        kept = place < limit
        nowhere = experts * room
        slot = torch.where(kept, expert * room + place, nowhere)
        row = torch.arange(rows, device=x.device).repeat(self.choices)
        laid = x.new_zeros(nowhere + 1, x.shape[1]).index_copy(0, slot, x.index_select(0, row))
        out = self._apply_experts(laid[:-1].view(experts, room, -1)).flatten(0, 1)
        back = torch.cat([out, out.new_zeros(1, out.shape[1])]).index_select(0, slot)
        mixed = torch.zeros(rows, out.shape[1], dtype=torch.float32, device=x.device)
        mixed = mixed.index_add(0, row, back.float() * gate[:, None])
        return mixed.to(x.dtype), (~kept).sum().float()

    def _apply_experts(self, laid: Tensor) -> Tensor:
        """(E, room, H) to the same; with experts on other processes, there and back."""
        if self.ranks is None:
            return self._feed(laid)
        size, room, width = self.ranks.size, *laid.shape[1:]
        arrived = _Exchange.apply(laid.reshape(size, -1, room, width), self.ranks)  # type: ignore[no-untyped-call]
        own = arrived.transpose(0, 1).flatten(1, 2)  # (E / size, size * room, H)
        out = self._feed(own).view(len(own), size, room, width).transpose(0, 1)
        returned: Tensor = _Exchange.apply(out, self.ranks)  # type: ignore[no-untyped-call]
        return returned.flatten(0, 1)

    def _feed(self, laid: Tensor) -> Tensor:
        up, up_bias, down, down_bias = (_local(getattr(self, name)) for name in self.shared)
        inner = F.gelu(torch.bmm(laid, up.to(laid.dtype)) + up_bias[:, None])
        return torch.bmm(inner, down.to(inner.dtype)) + down_bias[:, None]

    def spread(self, ranks: Ranks) -> None:
        """Keeps this process's share of the experts, of which all must hold the same; from now on all processes must call together.

        A call waits once for the device, to agree on the room. The gradients of experts are then those of the mean of the processes' losses, as data
        parallelism averages those of everything else; they must not be averaged again.

        Raises:
            BadInput: the experts cannot be shared out evenly.
        """
        size = ranks.size
        if self.experts % size:
            raise BadInput(f"{self.experts} experts cannot be shared out over {size} processes")
        for name in self.shared:
            share = nn.Parameter(ranks.share(getattr(self, name).detach()))
            share.register_hook(lambda grad: grad / size)  # type: ignore[no-untyped-call]
            setattr(self, name, share)
        self.ranks = ranks


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


class _Exchange(torch.autograd.Function):
    """`Ranks.swap`. Its gradient takes the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.swap(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.swap(grad), None
