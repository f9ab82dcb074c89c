"""Where a run happens: one process, or many that copy (DDP) or shard (FSDP2) the weights, or share experts out; and the one place that chooses precision.

Processes are started by `torchrun`; gloo connects CPUs, nccl GPUs. Unusual here: a step trains one goal, so the heads of the other goals get no
gradient, nor does what they alone read. DDP is told to look for such parameters (`find_unused_parameters`) and sees the losses alone; FSDP2 reduces
only what has a gradient, which is the same on all ranks because they share the goal. Both leave the optimizer with no gradient there, as in one process.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from intarsia.batch import Batch
from intarsia.errors import BadInput
from intarsia.parts.experts import Mixture, Ranks
from intarsia.system import System

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
Sharding = Literal["ddp", "fsdp", "experts"]
Precision = Literal["fp32", "bf16"]


# ----------------------------------------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in order of rank, on every process. All must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_first(self, work: Callable[[], T]) -> T:
        """Does something in the first process only and gives its result to all; where it raises BadInput, all raise it. All must call it."""
        if self.size == 1:
            return work()
        told: list[Any] = [None, ""]
        if self.first:
            try:
                told[0] = work()
            except BadInput as error:
                told[1] = str(error)
        dist.broadcast_object_list(told, 0)
        if told[1]:
            raise BadInput(told[1])
        result: T = told[0]
        return result

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process. All must call it."""
        if self.size == 1:
            return flag
        up = torch.tensor([int(flag)])
        dist.all_reduce(up, dist.ReduceOp.MAX)
        return bool(up.item())


@contextlib.contextmanager
def enter_world(device: str = "auto") -> Iterator[World]:
    """Joins the processes that torchrun started (its environment says how many), or is alone; leaves them again at the end.

    Args:
        device: "auto" takes CUDA where there is one; "cpu", "cuda", "cuda:1".

    Raises:
        BadInput: no such device.
    """
    size, rank, local = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
    )
    if dist.is_initialized():
        size, rank = dist.get_world_size(), dist.get_rank()
    own = size > 1 and not dist.is_initialized()
    here = _device(device, local)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if own:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo", timeout=datetime.timedelta(hours=2)
        )
    try:
        yield World(here, rank, size)
    finally:
        if own:
            dist.destroy_process_group()


def _device(name: str, local: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"device {name}: no such kind of device") from None
    if device.type == "cuda":
        device = torch.device("cuda", local if device.index is None else device.index)
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise BadInput(f"device {device}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


# ------------------------------------------------------------------------------------------------------------------------------- modules


def weightless(module: M) -> M:
    """A copy of a module without its weights (they are on the meta device): light enough to send to the loader's workers."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    return copy.deepcopy(module, memo)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated layers of a module: the members of its outermost ModuleLists that have parameters."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            found.extend(block for block in child if next(block.parameters(), None) is not None)
        else:
            found.extend(blocks(child))
    return found


class _LossesAlone(nn.Module):
    """A system that gives no streams beside its losses: DDP waits for the gradients of all that a forward returns, and no loss reads all of the streams."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], None]:
        """The losses."""
        return self.inner(batch)[0], None


def spread(module: nn.Module, world: World, sharding: Sharding = "ddp", compile: bool = False) -> nn.Module:
    """Puts a module on its device and over the processes, all with the first one's weights; what it returns is to be called in its stead.

    Args:
        module: changed in place; with "fsdp" its parameters become shards.
        world: the processes.
        sharding: every process holds all weights ("ddp"), or each a share ("fsdp"), or of the experts alone each some and of the rest all ("experts").
        compile: compile the repeated layers; pays on CUDA only.

    Raises:
        BadInput: "experts", and the module has none, or they cannot be shared out evenly.
    """
    mixtures = {name: part for name, part in module.named_modules() if isinstance(part, Mixture)}
    if sharding == "experts" and not mixtures:
        raise BadInput("sharding experts: the system has no experts to share out; take ddp or fsdp")
    module.to(world.device)
    if compile:
        for block in blocks(module):
            block.compile(dynamic=True)
    if world.size == 1:
        return module
    if isinstance(module, System):
        module.gather = gather_rows
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), 0)
    if sharding == "experts":
        ranks = Ranks(_mesh(world))
        for mixture in mixtures.values():
            mixture.spread(ranks)
    if sharding != "fsdp":
        ids, copied = [world.device.index] if world.device.type == "cuda" else None, _LossesAlone(module)
        if sharding == "experts":
            apart = [f"inner.{name}.{part}" for name, mixture in mixtures.items() for part in mixture.shared]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(copied, apart)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(
            copied, ids, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
        )
    # Weights are gathered in fp32 and autocast, as everywhere else, so that sharding changes no number; gradients are summed in fp32.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = _mesh(world)
    for block in blocks(module):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    return module


def _mesh(world: World) -> DeviceMesh:
    """All processes in a row."""
    return init_device_mesh(world.device.type, (world.size,))


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (N, ..) of all processes behind one another, in order of rank, each with as many as it has; no gradient. All must call it.

    The counts travel between the CPUs, so the device is not waited for.
    """
    size = dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(counts, torch.tensor([len(rows)]))
    many = [int(count) for count in counts]
    room = rows.new_zeros(max(many), *rows.shape[1:])
    room[: len(rows)] = rows.detach()
    rooms = [torch.empty_like(room) for _ in range(size)]
    dist.all_gather(rooms, room)
    return torch.cat([x[:count] for x, count in zip(rooms, many, strict=True)])


@contextlib.contextmanager
def micro_batch(module: nn.Module, last: bool) -> Iterator[None]:
    """Around forward and backward of a micro-batch: processes put their gradients together in the last one of a step only."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        yield
    elif isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The precision of a forward pass: "bf16" multiplies matrices in bfloat16 and keeps weights and gradients in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def key_dropout(device: torch.device, seed: int, number: int) -> None:
    """Seeds the device's default generator for one micro-batch, so that its dropout depends on (seed, number) alone.

    It is the only generator that dropout layers take, hence the only global one touched; a run puts it back when it ends.
    """
    key = int(np.random.SeedSequence([seed, 0xD0, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    if device.type == "cuda":
        torch.cuda.manual_seed(key)
    else:
        torch.default_generator.manual_seed(key)


# ---------------------------------------------------------------------------------------------------------------------------- whole tensors


def whole(tensor: Tensor, world: World) -> Tensor | None:
    """A tensor of the run, gathered from its shards, on the CPU of the first process; None elsewhere. All must call it."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu() if world.first else None


@torch.no_grad()
def refill(tensor: Tensor, value: Tensor) -> None:
    """Copies a whole CPU tensor into one of the run, or this process's share of it into a shard."""
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)


def reshard(module: nn.Module) -> None:
    """Drops the gathered weights that a forward pass without backward leaves behind; needed before weights are read by name."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
