"""How ranks share the work, and precision: decided here and nowhere else. torchrun starts the ranks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from intarsia.batch import Batch
from intarsia.errors import BadInput
from intarsia.system import System

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            dist.barrier()


def join_ranks(device: str = "auto") -> Ranks:
    """Joins the group that torchrun started, or stands alone; gloo on the CPU, nccl on CUDA.

    Raises:
        BadInput: CUDA was asked for and is not there.
    """
    cuda = torch.cuda.is_available()
    if device.startswith("cuda") and not cuda:
        raise BadInput(f"device {device!r}: CUDA is not available here")
    use_cuda = cuda and device != "cpu"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if use_cuda else "gloo")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device("cuda", local) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(place)
    return Ranks(dist.get_rank() if world > 1 else 0, world, place)


class Losses(nn.Module):
    """A system as the loop calls it: a batch in, its losses out."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The unweighted losses."""
        losses: dict[str, Tensor] = self.system(batch)[0]
        return losses


def share(system: System, ranks: Ranks, how: Literal["ddp", "fsdp"], precision: Precision) -> nn.Module:
    """The system wrapped for its ranks. DDP looks for unused parameters, since a step trains one goal and leaves other heads alone."""
    system.to(ranks.device)
    if how == "fsdp" and ranks.world > 1:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if precision == "bf16" else MixedPrecisionPolicy()
        for block in [x for part in system.modules() if isinstance(part, nn.ModuleList) for x in part]:
            fully_shard(block, mp_policy=policy)
        fully_shard(system, mp_policy=policy)
        return Losses(system)
    whole = Losses(system)
    if ranks.world == 1:
        return whole
    return DistributedDataParallel(whole, device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None, find_unused_parameters=True)


@contextlib.contextmanager
def micro_step(module: nn.Module, device: torch.device, precision: Precision, last: bool) -> Iterator[None]:
    """Around the forward and backward pass of a micro-batch: precision, and gradients exchanged only on the last."""
    with contextlib.ExitStack() as stack:
        if isinstance(module, DistributedDataParallel) and not last:
            stack.enter_context(module.no_sync())
        inner: Any = getattr(module, "system", None)
        if isinstance(inner, FSDPModule):
            inner.set_requires_gradient_sync(last)
        stack.enter_context(autocast(device, precision))
        yield


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """bf16 = matrix products in bfloat16 over fp32 weights; norms, softmax and losses stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
