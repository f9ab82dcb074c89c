"""AdamW, SGD beside it, their groups, the learning rate of a step, and clipping; nothing here waits for the device."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.sgd import sgd

from intarsia import recipe as recipes
from intarsia.errors import BadInput
from intarsia.recipe import Optim, Recipe, Schedule


def groups(
    module: nn.Module,
    recipe: Optim | recipes.SGD,
    lr_factors: Mapping[str, float] | None = None,
    mine: Callable[[str], bool] | None = None,
) -> list[dict[str, Any]]:
    """The parameters that train, as an optimizer takes them: decayed ones first, apart from those that `no_decay` spares.

    Args:
        module: its parameters may be sharded.
        recipe: the numbers.
        lr_factors: factor on the learning rate of parameters whose name starts so, beside those of the recipe; the longest start counts, 1 where none fits.
        mine: which parameters to take, by name; None = all.
    """
    found: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    factors = dict(lr_factors or {}) | getattr(recipe, "lr_factors", {})
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and (mine is None or mine(name)):
            spared = any(re.search(pattern, name) for pattern in recipe.no_decay)
            key = spared, _factor(name, factors), isinstance(parameter, DTensor)  # a step takes shards or none
            found.setdefault(key, []).append(parameter)
    return [
        {"params": found[key], "weight_decay": decay, "decay": decay, "lr_factor": key[1]}
        for key in sorted(found)
        for decay in [0.0 if key[0] else recipe.weight_decay]
    ]


def adamw(
    module: nn.Module,
    recipe: Optim,
    lr_factors: Mapping[str, float] | None = None,
    mine: Callable[[str], bool] | None = None,
) -> AdamW:
    """Fused AdamW; a parameter without a gradient in a step is left alone. Arguments as for `groups`.

    Decay is applied before the step, where some authors apply it after: they differ by lr * decay * update.

    Raises:
        ValueError: nothing trains.
    """
    return AdamW(groups(module, recipe, lr_factors, mine), lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True)


def _factor(name: str, factors: Mapping[str, float]) -> float:
    return factors[max(fits, key=len)] if (fits := [start for start in factors if name.startswith(start)]) else 1.0


def set_lr(optimizer: AdamW, recipe: Optim, schedule: Schedule, step: int, updates: int | None = None) -> float:
    """Sets the learning rate of a step (0-based) in every group and gives that of the groups with factor 1; `updates` were made before, if not one a step.

    Without bias correction the update is lr * (m / (sqrt(v) + eps) + decay * weight), for parameters with a gradient in every step. Source: BERT,
    optimization.py. With `corrected_decay` it is that times sqrt(1 - beta2 ** t) / (1 - beta1 ** t). Source: TensorFlow's Adam; EasyTransfer.
    """
    lr = recipe.lr * schedule.scale(step)
    count = 1 + (step if updates is None else updates)
    first, second = (1 - beta**count for beta in recipe.betas)
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
    norm = _joint_norm(grads)
    return norm, torch.clamp((norm + 1e-6) / max_norm, min=1.0) if max_norm > 0 else None


def _joint_norm(grads: list[Tensor]) -> Tensor:
    """The 2-norm of all gradients: of shards over all processes, of the others, which all processes have, once."""
    kinds = [[grad for grad in grads if isinstance(grad, DTensor) == sharded] for sharded in (False, True)]
    norms = [torch.nn.utils.get_total_norm(kind) for kind in kinds if kind]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def _clip_each(grads: list[Tensor], max_norm: float) -> Tensor:
    norms = [torch.linalg.vector_norm(grad) for grad in grads]
    whole = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms])
    factors = torch.clamp(max_norm / (whole + 1e-6), max=1.0)
    torch._foreach_mul_([_local(grad) for grad in grads], list(factors.unbind()))
    norm: Tensor = torch.linalg.vector_norm(whole)
    return norm


def _local(tensor: Any) -> Tensor:
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local


def step_if(optimizer: Optimizer, bad: Tensor, divide: Tensor | None = None) -> None:
    """Steps unless `bad` is 1 (a scalar float tensor on the device, 0 or 1), without the host looking at it; the step counts stay too.

    Args: divide, a scalar tensor that the gradients are divided by first (see `clip`).
    """
    optimizer.found_inf = bad  # type: ignore[attr-defined]  # what a gradient scaler tells the fused kernels
    optimizer.grad_scale = divide  # type: ignore[attr-defined]
    optimizer.step()


class SGD(Optimizer):
    """Torch's fused SGD with momentum, on the local part of sharded parameters. Momentum begins at 0, so a refused first step leaves no trace."""

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(self, parameters: list[dict[str, Any]], recipe: recipes.SGD) -> None:
        super().__init__(parameters, {"lr": recipe.lr, "momentum": recipe.momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Steps what has a gradient; see `step_if`. There is no closure."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            sgd(
                [_local(parameter) for parameter in moved],
                [_local(parameter.grad) for parameter in moved],
                [_local(self.state[parameter]["momentum_buffer"]) for parameter in moved],
                fused=True,
                grad_scale=self.grad_scale,
                found_inf=self.found_inf,
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )


class Optimizers:
    """What a recipe steps with: AdamW and, where the recipe has one, SGD for the parameters that it names, perhaps all. Both follow one schedule.

    Args:
        module: its parameters may be sharded.
        recipe: the numbers.
        lr_factors: as for `groups`.

    Raises:
        BadInput: SGD is to step parameters that the module does not have.
        ValueError: nothing trains.
    """

    state: dict[Any, Any]
    """Of both: parameter -> its moments."""

    def __init__(self, module: nn.Module, recipe: Recipe[Any], lr_factors: Mapping[str, float] | None = None) -> None:
        self.recipe, second = recipe, recipe.sgd
        self.first: AdamW | None = None
        self.second: SGD | None = None
        self.state = {}

        def named(name: str) -> bool:
            return second is not None and re.search(second.only, name) is not None

        names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        if second is not None and not any(named(name) for name, _ in module.named_parameters()):
            raise BadInput(f"sgd.only {second.only!r}: matches no parameter")
        if second is None or not all(named(name) for name in names):
            self.first = adamw(module, recipe.optim, lr_factors, lambda name: not named(name))
            self.state = self.first.state
        if second is not None and (found := groups(module, second, lr_factors, named)):
            self.second = SGD(found, second)
            self.state.update(self.second.state)
            self.second.state = self.state  # type: ignore[assignment]
        if not self._parts:
            raise ValueError("nothing trains")

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that train."""
        return [parameter for part in self._parts for group in part.param_groups for parameter in group["params"]]

    @property
    def _parts(self) -> list[Optimizer]:
        return [part for part in (self.first, self.second) if part is not None]

    def step(self, step: int, bad: Tensor, divide: Tensor | None = None, updates: int | None = None) -> None:
        """Sets the learning rates of a step (0-based), see `set_lr`, and takes it, see `step_if`; then gradients are gone."""
        recipe = self.recipe
        if (
            updates is not None
        ):  # a head that has no turn moves on by its momentum, as the authors' does, whose gradients are then zeros
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if self.first is not None:
            set_lr(self.first, recipe.optim, recipe.schedule, step, updates)
        if self.second is not None and recipe.sgd is not None:
            for group in self.second.param_groups:
                group["lr"] = recipe.sgd.lr * recipe.schedule.scale(step) * group["lr_factor"]
        for part in self._parts:
            step_if(part, bad, divide)
            part.zero_grad(set_to_none=True)
