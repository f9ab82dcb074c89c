"""Linear maps, in the way that is fastest on a CPU; torch's own elsewhere and where the matrix is small.

torch gives float32 products to MKL, which on AMD processors is some tenth slower than oneDNN. For bfloat16 it takes oneDNN, but lays the matrix out anew in
each call and writes the bias in a pass of its own. Inside `laid_out`, where weights stay as they are, each is cast and laid out once, and bias and GELU are
applied while a product is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

KINDS = (torch.float32, torch.bfloat16)
LARGE, MUCH = 2**18, 2**26
"""Numbers of a matrix, and multiplications, from which oneDNN is called; below, making its kernels anew for each count of rows costs more than it gains."""

HAVE: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_laid: dict[tuple[object, ...], tuple[Tensor, Tensor]] | None = None


@contextmanager
def laid_out(module: nn.Module) -> Iterator[None]:
    """Inside the context, which must be one of inference, each large weight of the module is cast and laid out for the CPU once; none may change.

    Nothing happens where parameters are spread over processes, since those are put together in other memory at each pass.
    """
    global _laid
    plain = all(type(x) is nn.Parameter for x in module.parameters())
    before, _laid = _laid, {} if plain else None
    try:
        yield
    finally:
        _laid = before


class Linear(nn.Linear):
    """A linear map with bias."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, in) to (N, out)."""
        return product(input, self.weight, self.bias)

    def activated(self, input: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, in) to (N, out), with an activation behind the map."""
        if activation is F.gelu and _laid is not None and _serves(input, self.weight):
            return _by_laid(input, self.weight, self.bias, "gelu", _laid)
        return activation(self(input))


def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Rows x (N, in) times weight (out, in) transposed, plus bias (out)."""
    if not _serves(x, weight):
        return F.linear(x, weight, bias)
    if _laid is not None:
        return _by_laid(x, weight, bias, "none", _laid)
    if _kind(x) != torch.float32:
        return F.linear(x, weight, bias)
    out: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


def _serves(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or x.dim() != 2 or weight.numel() < LARGE or len(x) * weight.numel() < MUCH:
        return False
    plain = type(x) is Tensor and type(weight) in (Tensor, nn.Parameter)  # neither fake nor spread over processes
    known = {x.dtype, weight.dtype, _kind(x)}.issubset(KINDS)
    agreed = x.dtype == weight.dtype or torch.is_autocast_enabled("cpu")
    return plain and known and agreed and HAVE and not torch.compiler.is_compiling()


def _kind(x: Tensor) -> torch.dtype:
    """What the product is computed in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Tensor:
    """The product of x (N, in) and weight (out, in) by oneDNN, transposed views allowed."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")
    return out


def _by_laid(
    x: Tensor, weight: Tensor, bias: Tensor, then: str, laid: dict[tuple[object, ...], tuple[Tensor, Tensor]]
) -> Tensor:
    dtype = _kind(x)
    key = weight.data_ptr(), weight.shape, weight.stride(), dtype
    if key not in laid:
        laid[key] = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), len(x)), bias.to(dtype)
    return _multiply(x.to(dtype), *laid[key], then)


class _Product(torch.autograd.Function):
    """The map with its products by oneDNN, float32. The gradient of the weight is no view, so that those of a table used twice are summed in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        return (
            _multiply(grad, weight.t()) if by_x else None,
            _multiply(grad.t().contiguous(), x.t()) if by_weight else None,
            grad.sum(0) if by_bias else None,
        )
