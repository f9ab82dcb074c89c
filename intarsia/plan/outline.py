"""One training step of a live system on tensors without storage: what it computes, keeps and sends is counted, nothing is allocated.

Torch's fake tensors know shapes and types only. What a CPU does in another way than a GPU is put back for the count: look-ups are torch's own, dropout keeps a
byte a number, and attention is one kernel that keeps no probabilities: over packed rows, or in fp32 and with attention dropout over padded ones.
"""

from __future__ import annotations

import re
import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from intarsia.attend import use_backend
from intarsia.batch import Batch, each_tensor
from intarsia.errors import BadInput
from intarsia.packed import Packing, pad, unpad, visible
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Table
from intarsia.parts.experts import Mixture, Ranks
from intarsia.plan.documents import Documents, vocabulary
from intarsia.plan.given import Size
from intarsia.recipe import Recipe
from intarsia.system import System
from intarsia.train.parallel import autocast, blocks

DEPTH = 6
"""Layers up to which a stack is counted whole."""


@dataclass(frozen=True)
class Weights:
    """Numbers that a system has, by what happens to them."""

    trained: int
    """Parameters that an optimizer steps, experts left out."""
    experts: int
    """Parameters of experts, which `--sharding experts` shares out."""
    frozen: int
    """Parameters that do not train, and buffers."""
    largest: int
    """Parameters of the largest repeated layer, which FSDP gathers at a time."""
    root: int
    """Parameters outside of repeated layers, which FSDP keeps gathered."""
    moments: int
    """Numbers that optimizers keep of what is trained without experts: two a parameter of AdamW, one of SGD. Of experts they keep two."""


@dataclass(frozen=True)
class Pass:
    """Forward and backward of one micro-batch of a goal, on one process."""

    flops: int
    """Of matrix products and convolutions, forward, backward and what is computed again."""
    activations: int
    """Most bytes alive at once, without weights and their gradients: the batch, what forward keeps for backward, temporaries."""
    together: int
    """Most bytes alive at once, gradients of weights among them."""
    kept: int
    """Bytes alive after forward, without weights and batch."""
    exchanged: int
    """Bytes that one process sends to others to reach their experts."""
    rows: int
    samples: int


@dataclass(frozen=True)
class Outline:
    """What a recipe's step is made of."""

    weights: Weights
    passes: dict[str, Pass]
    """By goal of the mix."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Goals that could not be laid out, and why."""


def outline(cls: type[System], recipe: Recipe[Any], size: Size, processes: int = 1) -> Outline:
    """Counts a step. Of a single stack deeper than `DEPTH` two shallower ones are counted, and what a layer adds goes on to its depth.

    Args:
        cls: the system.
        recipe: its config, mix, batching and precision count.
        size: of the samples.
        processes: that share experts; 1 = each has all.

    Raises:
        BadInput: no goal of the mix can be laid out, or experts cannot be shared out evenly.
    """
    found = _outline(cls, recipe, size, processes, count=False)
    passes, skipped = found.passes, found.skipped
    layers, step = getattr(recipe.config, "num_hidden_layers", 0), getattr(recipe.config, "experts_every", 1)
    if layers <= DEPTH or cls.depths.keys() != {"num_hidden_layers"}:
        passes, skipped = (whole := _outline(cls, recipe, size, processes)).passes, whole.skipped
    else:
        low = layers - step * ((layers - DEPTH // 2) // step)
        few, more = (
            _outline(cls, replace(recipe, config=replace(recipe.config, num_hidden_layers=n)), size, processes)
            for n in (low, low + step)
        )
        passes, skipped = (
            {goal: _deeper(one, more.passes[goal], (layers - low) // step) for goal, one in few.passes.items()},
            few.skipped,
        )
        trained = found.weights.trained + found.weights.experts // processes
        passes = {goal: replace(x, together=x.activations + 4 * trained) for goal, x in passes.items()}
    if not passes:
        raise BadInput(f"no objective can be laid out: {next(iter(skipped.values()), 'the mix has none')}")
    return Outline(found.weights, passes, skipped)


def _deeper(few: Pass, more: Pass, times: int) -> Pass:
    """What `few` layers take, and as many times what `more` layers take beyond them; all else is alike."""
    names = ("flops", "activations", "together", "kept", "exchanged")
    return replace(few, **{x: getattr(few, x) + times * (getattr(more, x) - getattr(few, x)) for x in names})


def _outline(cls: type[System], recipe: Recipe[Any], size: Size, processes: int, count: bool = True) -> Outline:
    """The weights of a system and, if they are to be counted, its passes."""
    vocab = vocabulary(cls, recipe.config.vocab_size)
    with torch.device("meta"):
        system = cls(recipe.config, vocab).train()
    documents = Documents(system, size)
    passes, skipped = dict[str, Pass](), dict[str, str]()
    fake, ranks = FakeTensorMode(allow_non_fake_inputs=True), Elsewhere(processes)
    whole = sum(parameter.numel() for parameter in _shared(system))
    with fake:
        _as_on_a_gpu(system)
        for part in system.modules() if processes > 1 else ():
            if isinstance(part, Mixture):
                part.spread(ranks)
    for goal in (goal for goal, share in recipe.mix.share.items() if share > 0 and count):
        try:
            batch, sizes = documents.batch(goal, recipe)
        except BadInput as error:
            skipped[goal] = str(error)
            continue
        with fake:
            passes[goal] = measure(system, _emptied(batch, sizes, fake), recipe, ranks)
    return Outline(_weigh(system, recipe, whole), passes, skipped)


def _as_on_a_gpu(system: System) -> None:
    """Gives a system on the meta device fake weights, and what a GPU does in the place of what is quick on a CPU."""
    made: dict[int, Any] = {}
    for part in system.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                fresh = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
                part._parameters[name] = made.setdefault(id(weight), fresh)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = made.setdefault(id(buffer), torch.empty(buffer.shape, dtype=buffer.dtype))
        kinds: dict[type[nn.Module], type[nn.Module]] = {Table: nn.Embedding, Dropout: _Dropout}
        part.__class__ = kinds.get(type(part), type(part))


def _emptied(batch: Batch, sizes: list[tuple[int, int]], fake: FakeTensorMode) -> Batch:
    """The batch without its numbers, its pictures in their true sizes."""
    batch = each_tensor(batch, fake.from_tensor)
    if batch.images is None:
        return batch
    room = torch.empty(len(sizes), 3, *(max(x) for x in zip(*sizes, strict=True)))
    return replace(batch, images=replace(batch.images, pixels=room))


def _shared(module: nn.Module) -> list[nn.Parameter]:
    return [x.get_parameter(name) for x in module.modules() if isinstance(x, Mixture) for name in x.shared]


def _weigh(system: System, recipe: Recipe[Any], experts: int) -> Weights:
    apart = {id(parameter) for parameter in _shared(system)}
    trained = frozen = once = 0
    for name, parameter in system.named_parameters():
        if id(parameter) in apart:
            continue
        if not parameter.requires_grad:
            frozen += parameter.numel()
            continue
        trained += parameter.numel()
        once += parameter.numel() if recipe.sgd and re.search(recipe.sgd.only, name) else 0
    layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in blocks(system)]
    frozen += sum(buffer.numel() for buffer in system.buffers())
    every = sum(parameter.numel() for parameter in system.parameters())
    return Weights(trained, experts, frozen, max(layers, default=0), every - sum(layers), 2 * trained - once)


class Elsewhere(Ranks):
    """Processes that are only counted: what is sent to them comes back as it is, in shape."""

    def __init__(self, size: int) -> None:
        self.size, self.sent = size, 0

    def share(self, whole: Tensor) -> Tensor:
        """The first part."""
        return whole.chunk(self.size)[0].clone()

    def largest(self, number: int, device: torch.device) -> int:
        """The number: all have batches alike."""
        return number

    def swap(self, x: Tensor) -> Tensor:
        """Counts what goes to others."""
        self.sent += x.numel() * x.element_size() * (self.size - 1) // self.size
        return torch.empty_like(x.contiguous())


# ------------------------------------------------------------------------------------------------------------- one pass


def measure(system: System, batch: Batch, recipe: Recipe[Any], ranks: Elsewhere) -> Pass:
    """Forward and backward of a micro-batch, counted; works on real tensors too."""
    device = next(system.parameters()).device
    sent = ranks.sent
    kernel = _Kernel()
    with Ledger(system) as ledger, use_backend(kernel):
        each_tensor(batch, ledger.see)
        given = ledger.live
        with autocast(device, recipe.precision):
            losses, encoded = system(batch)
            total = system.weigh(losses, recipe.mix)
        kept = ledger.live - given
        total.backward()  # type: ignore[no-untyped-call]
    del losses, encoded, total
    for parameter in system.parameters():
        parameter.grad = None
    return Pass(
        ledger.flops + kernel.flops,
        ledger.most,
        ledger.most_together,
        kept,
        ranks.sent - sent,
        batch.rows,
        len(batch.keys),
    )


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up FLOPs, and the bytes of all storages that operations make, until they go; weights are left out, and their gradients kept apart.

    Args:
        system: its weights.
    """

    def __init__(self, system: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.live = self.most = self.gradients = self.most_together = 0
        self._weights = {x.untyped_storage()._cdata for x in (*system.parameters(), *system.buffers())}
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._owned: set[int] = set()
        trained: list[Any] = [x for x in system.parameters() if x.requires_grad]
        self._hooks = [x.register_post_accumulate_grad_hook(self._own) for x in trained]

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and sees what it made."""
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for leaf in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return out

    def see(self, tensor: Tensor) -> Tensor:
        """Counts the storage of a tensor, once; gives the tensor."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._weights or key in self._known:
            return tensor
        self._known[key] = weakref.ref(storage, lambda _: self._gone(key)), size
        self.live += size
        self.most = max(self.most, self.live)
        self.most_together = max(self.most_together, self.live + self.gradients)
        return tensor

    def _own(self, parameter: Tensor) -> None:
        """A gradient that stays: no activation any more."""
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if key in self._known and key not in self._owned:
            self._owned.add(key)
            self.live -= self._known[key][1]
            self.gradients += self._known[key][1]

    def _gone(self, key: int) -> None:
        _, size = self._known.pop(key)
        if key in self._owned:
            self._owned.remove(key)
            self.gradients -= size
        else:
            self.live -= size


class _Kernel:
    """Attention that keeps its inputs, its output and a number a row. Documents count as alike: rows by rows over documents."""

    def __init__(self) -> None:
        self.flops = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing, dropout: float) -> Tensor:
        """As `attend`; nothing but shapes."""
        pairs = q.shape[0] * k.shape[0] // max(1, queries.documents) * q.shape[1] * q.shape[2]
        if not dropout and q.dtype != torch.float32:
            return _Attention.apply(q, k, v, None, self, pairs)  # type: ignore[no-untyped-call, no-any-return]
        block_q, block_k, block_v = (pad(x, p).transpose(1, 2) for x, p in ((q, queries), (k, keys), (v, keys)))
        seen = visible(queries, keys)
        bias = (seen | ~seen.any(-1, keepdim=True))[:, None].to(q.dtype)
        block = _Attention.apply(block_q, block_k, block_v, bias, self, pairs)  # type: ignore[no-untyped-call]
        return unpad(block.transpose(1, 2), queries)

    def count(self, pairs: int, products: int) -> None:
        """Adds so many products of queries with keys."""
        self.flops += 2 * products * pairs


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel: _Kernel, pairs: int) -> Tensor:
        out, sums = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, bias, out, sums)
        ctx.kernel, ctx.pairs = kernel, pairs
        kernel.count(pairs, 2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *_ = ctx.saved_tensors
        ctx.kernel.count(ctx.pairs, 5)  # one of the first two again
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None, None, None


class _Dropout(Dropout):
    def forward(self, input: Tensor) -> Tensor:
        """As a GPU keeps it: a byte a number."""
        if not self.training or self.p == 0:
            return input
        return _Dropped.apply(input)  # type: ignore[no-untyped-call, no-any-return]


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty_like(x, dtype=torch.bool))
        return torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.empty_like(grad)
