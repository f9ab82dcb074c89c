"""AdamW, its groups, the learning rate of a step, and clipping; nothing here waits for the device."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from intarsia.recipe import Optim, Schedule


def groups(module: nn.Module, recipe: Optim, lr_factors: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """The parameters that train, as an optimizer takes them: decayed ones first, apart from those that `no_decay` spares.

    Args:
        module: its parameters may be sharded.
        recipe: the numbers.
        lr_factors: factor on the learning rate of parameters whose name starts so; the longest start counts, 1 where none fits.
    """
    found: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            spared = any(re.search(pattern, name) for pattern in recipe.no_decay)
            found.setdefault((spared, _factor(name, lr_factors or {})), []).append(parameter)
    return [
        {"params": found[key], "weight_decay": decay, "decay": decay, "lr_factor": key[1]}
        for key in sorted(found)
        for decay in [0.0 if key[0] else recipe.weight_decay]
    ]


def adamw(module: nn.Module, recipe: Optim, lr_factors: Mapping[str, float] | None = None) -> AdamW:
    """Fused AdamW; a parameter without a gradient in a step is left alone. Arguments as for `groups`.

    Decay is applied before the step, where some authors apply it after: they differ by lr * decay * update.

    Raises:
        ValueError: nothing trains.
    """
    return AdamW(groups(module, recipe, lr_factors), lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True)


def _factor(name: str, factors: Mapping[str, float]) -> float:
    return factors[max(fits, key=len)] if (fits := [start for start in factors if name.startswith(start)]) else 1.0


def set_lr(optimizer: AdamW, recipe: Optim, schedule: Schedule, step: int) -> float:
    """Sets the learning rate of a step (0-based) in every group and gives that of the groups with factor 1.

    Without bias correction the update is lr * (m / (sqrt(v) + eps) + decay * weight), for parameters with a gradient in every step. Source: BERT,
    optimization.py. With `corrected_decay` it is that times sqrt(1 - beta2 ** t) / (1 - beta1 ** t). Source: TensorFlow's Adam; EasyTransfer.
    """
    lr = recipe.lr * schedule.scale(step)
    first, second = (1 - beta ** (step + 1) for beta in recipe.betas)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
        if not recipe.bias_correction:  # AdamW divides the moments by these; its numbers are set so that this cancels
            group["lr"] *= first / second**0.5
            group["eps"] = recipe.eps / second**0.5
            group["weight_decay"] = group["decay"] * second**0.5 / first
        elif recipe.corrected_decay:  # rate * sqrt(second) / first * (m / (sqrt(v) + eps) + decay * weight)
            group["eps"] = recipe.eps / second**0.5
            group["weight_decay"] = group["decay"] * second**0.5 / first
    return lr


def clip(
    parameters: Iterable[nn.Parameter], max_norm: float, how: Literal["joint", "each"] = "joint"
) -> tuple[Tensor, Tensor | None]:
    """How gradients come down to a 2-norm of `max_norm`, joint or each (0 = they stay).

    Returns:
        Their joint norm before, over all shards, a scalar tensor; and what the step is to divide them by, a scalar tensor, for "joint": this saves a
        pass over them. "each" scales them here and gives None.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if how == "each" and max_norm > 0:
        return _clip_each(grads, max_norm), None
    norm = torch.nn.utils.get_total_norm(grads)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    return norm, torch.clamp((norm + 1e-6) / max_norm, min=1.0) if max_norm > 0 else None


def _clip_each(grads: list[Tensor], max_norm: float) -> Tensor:
    norms = [torch.linalg.vector_norm(grad) for grad in grads]
    whole = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms])
    factors = torch.clamp(max_norm / (whole + 1e-6), max=1.0)
    torch._foreach_mul_([_local(grad) for grad in grads], list(factors.unbind()))
    norm: Tensor = torch.linalg.vector_norm(whole)
    return norm


def _local(grad: Tensor) -> Tensor:
    return grad.to_local() if isinstance(grad, DTensor) else grad


def step_if(optimizer: AdamW, bad: Tensor, divide: Tensor | None = None) -> None:
    """Steps unless `bad` is 1 (a scalar float tensor on the device, 0 or 1), without the host looking at it; the step counts stay too.

    Args: divide, a scalar tensor that the gradients are divided by first (see `clip`).
    """
    optimizer.found_inf = bad  # type: ignore[attr-defined]  # what a gradient scaler tells the fused kernels
    optimizer.grad_scale = divide  # type: ignore[attr-defined]
    optimizer.step()
