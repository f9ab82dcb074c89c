"""Slow copies of modules, and queues of the keys they make. Source: He et al., MoCo (CVPR 2020), sec. 3.2."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from intarsia.errors import BadInput

M = TypeVar("M", bound=nn.Module)


def follower(module: M) -> M:
    """A copy whose parameters are buffers: it is saved, moved and resumed with the system, and is no business of optimizers, gradients or sharding."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            del part._parameters[name]
            part.register_buffer(name, value.detach())
    return twin


@torch.no_grad()
def follow(leader: nn.Module, twin: nn.Module, momentum: float) -> None:
    """Moves a copy in place: every parameter becomes momentum times itself plus the rest of the leader's, which may be sharded. Statistics stay."""
    named = {name: value.detach() for name, value in leader.named_parameters()}
    mine = [twin.get_buffer(name) for name in named]
    whole = [x.full_tensor() if isinstance(x, DTensor) else x for x in named.values()]
    torch._foreach_mul_(mine, momentum)
    torch._foreach_add_(mine, whole, alpha=1 - momentum)


class Queue(nn.Module):
    """Keys of earlier pairs, the same on all processes; at first random ones of length 1.

    Args:
        width: D.
        size: K.
    """

    keys: Tensor
    """(D, K)"""
    pointer: Tensor
    """(1) int64, the oldest column."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(width, size), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def put(self, keys: Tensor) -> None:
        """Overwrites the oldest columns, in place, with the keys (B, D) of all processes; nothing waits for the device.

        Raises:
            BadInput: more keys than columns.
        """
        count, room = len(keys), self.keys.shape[1]
        if count > room:
            raise BadInput(f"a queue of {room} keys is shorter than a step's {count} pairs: more room or fewer pairs")
        columns = (self.pointer + torch.arange(count, device=self.keys.device)) % room
        self.keys.index_copy_(1, columns, keys.T.to(self.keys.dtype))
        self.pointer.add_(count).remainder_(room)
