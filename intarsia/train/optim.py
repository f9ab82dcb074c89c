"""The optimizer of a recipe."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from intarsia.recipe import Optim


def groups(module: nn.Module, optim: Optim) -> list[dict[str, object]]:
    """Parameters in two groups, decayed and not: a name that any pattern of `no_decay` matches is not decayed."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        (spared if any(re.search(pattern, name) for pattern in optim.no_decay) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": spared, "weight_decay": 0.0}]


def adamw(module: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW with decoupled decay. Decay is applied before the step, where some authors apply it after: they differ by lr * decay * update."""
    return torch.optim.AdamW(groups(module, optim), lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def clip(module: nn.Module, max_norm: float) -> Tensor:
    """Scales all gradients down to a norm; gives the norm before, without a host sync. 0 = no clipping."""
    norm: Tensor = torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm if max_norm > 0 else float("inf"))
    return norm
