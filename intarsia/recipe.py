"""What a run is: the system's config, the mix of objectives, optimizer, schedule and batching, as frozen dataclasses.

A published training run is one `Recipe` value in its system's file. The command line overrides leaves, the resolved recipe is saved as JSON in the
run folder, and `--config run/recipe.json` replays it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np

C = TypeVar("C")


@dataclass(frozen=True)
class Card:
    """What a system is, for tables and pages."""

    name: str
    title: str
    venue: str
    paper: str
    """arXiv number or address of the paper."""
    code: str
    """Repository and commit that the sheet was read from."""
    streams: Literal["single", "dual"]
    new: str
    """What the paper added, in one sentence."""
    objectives: tuple[str, ...]
    tasks: tuple[str, ...]
    weights: tuple[str, ...]
    """Layouts of published weights that load."""
    unverified: tuple[str, ...] = ()
    """Facts of the recipes that could not be confirmed in code."""
    features: tuple[tuple[str, str], ...] = ()
    """Extractors, with their rules, whose regions the published weights were trained on; empty = not told, or none of this library's."""


@dataclass(frozen=True)
class Optim:
    """AdamW with decoupled weight decay and gradient clipping."""

    lr: float = 5e-5
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    no_decay: tuple[str, ...] = ("bias", "norm")
    """Parameters whose name matches one of these regular expressions (anywhere) are not decayed."""
    max_norm: float = 5.0
    """Gradients are scaled down to this norm; 0 = no clipping."""
    clip: Literal["joint", "each"] = "joint"
    """joint = the norm of all gradients together; each = every tensor by its own norm (BertAdam)."""
    bias_correction: bool = True
    """False = the moments are used as they are, as in BERT's own code (BertAdam)."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Factors on the learning rate of parameters whose name starts so; the longest start counts."""
    corrected_decay: bool = False
    """True = TensorFlow's form: epsilon is not corrected with the moments, and the corrected rate multiplies the decay too."""


@dataclass(frozen=True)
class SGD:
    """A second optimizer, for some of the parameters: SGD with momentum, whose decay is part of the gradient. Clipping is AdamW's, of all together."""

    only: str = r"(^|\.)backbone\."
    """It steps the parameters whose name matches this regular expression (anywhere), AdamW the others."""
    lr: float = 1e-2
    """Peak learning rate; it follows the same schedule."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    no_decay: tuple[str, ...] = ()
    """As in `Optim`."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from 0, then linear decay, falls at milestones, or one over the root of the steps."""

    steps: int = 200_000
    """Optimizer steps in all."""
    warmup: int = 10_000
    floor: float = 0.0
    """Share of the peak learning rate left at the end."""
    shape: Literal["peak", "bert", "zero", "product", "milestones", "noam"] = "peak"
    """peak = step t (from 0) warms up by (t + 1) / warmup and decays from the peak; zero = by t / warmup, then the same (LXMERT); bert = by t / warmup,
    then 1 - t / steps, as in BERT's code; product = 1 - t / steps from the start, times t / warmup while that is below 1 (EasyTransfer); milestones = warms
    up as peak does, then falls at each milestone; noam = warms up as peak does, then sqrt(warmup / (t + 1))."""
    milestones: tuple[float, ...] = ()
    """Fractions of the run, for that shape."""
    fall: float = 0.1
    """What is left of the learning rate at a milestone."""

    def scale(self, step: int) -> float:
        """The factor on the peak learning rate at a step (0-based)."""
        if self.shape == "product":
            return max(self.floor, (1 - step / self.steps) * (step / self.warmup if step < self.warmup else 1))
        if self.shape == "bert":
            return max(self.floor, step / self.warmup if step < self.warmup else 1 - step / self.steps)
        if self.shape == "milestones":
            fallen: float = self.fall ** sum(step >= round(milestone * self.steps) for milestone in self.milestones)
            return max(self.floor, fallen * min(1.0, (step + 1) / max(1, self.warmup)))
        if self.shape == "noam":
            risen = (step + 1) / max(1, self.warmup)
            return max(self.floor, min(risen, math.sqrt(1 / risen)))
        if step < self.warmup:
            return (step + (self.shape == "peak")) / self.warmup
        left = max(0.0, (self.steps - step) / max(1, self.steps - self.warmup))
        return max(self.floor, left)


@dataclass(frozen=True)
class Mix:
    """Which objectives a step trains, and how their losses are weighed."""

    share: dict[str, float] = field(default_factory=dict)
    """Per goal: how often it is drawn (one goal a step). "mlm+itm" is one goal: both losses on the same documents."""
    begin: dict[str, float] = field(default_factory=dict)
    """Per goal: the fraction of the run from which it takes part; 0 unless named."""
    scale: dict[str, float] = field(default_factory=dict)
    """Per loss: its weight in the sum; 1 unless named."""

    def goal(self, seed: int, step: int, steps: int) -> str:
        """The goal of an optimizer step: a function of (seed, step), the same on every rank and in every worker."""
        open_ = {g: w for g, w in self.share.items() if w > 0 and step >= self.begin.get(g, 0.0) * steps}
        if not open_:
            raise ValueError(
                f"mix: no goal takes part at step {step} of {steps} (share {self.share}, begin {self.begin})"
            )
        weights = np.array(list(open_.values()), dtype=np.float64)
        rng = np.random.default_rng([seed, 0x60A1, step])
        return list(open_)[int(rng.choice(len(open_), p=weights / weights.sum()))]

    def weigh(self, losses: dict[str, Any]) -> Any:
        """The weighted sum of a step's losses."""
        return sum(self.scale.get(name, 1.0) * value for name, value in losses.items())


@dataclass(frozen=True)
class Batching:
    """How samples become batches."""

    rows: int = 10_240
    """Budget of rows (words + regions, and one for every 32 x 32 pixels) of one micro-batch on one rank."""
    samples: int = 0
    """Most samples of a micro-batch, for systems whose batch is counted in pairs; 0 = as many as the rows allow."""
    window: int = 8192
    """Samples shuffled together, then cut into batches of like lengths."""
    block: int = 0
    """For data larger than memory or disk: blocks of so many neighbouring samples are shuffled, then the samples within a window, and a negative comes from the
    block of its sample; about as many as a shard holds. 0 = all samples are shuffled."""
    accumulate: int = 1
    """Micro-batches a step."""
    reduce: Literal["sum", "mean"] = "mean"
    """How micro-batch gradients are put together."""


@dataclass(frozen=True)
class Turns:
    """Many tasks in one run, a batch of each in turn, each batch an optimizer step of its own; a task that has converged pauses. Source: 12-in-1, sec. 3.2."""

    tasks: dict[str, Batching] = field(default_factory=dict)
    """The goals, in their order, and how samples of each become batches; `Batching.accumulate` of the recipe counts for all."""
    gap: int = 4
    """Rounds after which a paused task has a turn."""
    better: float = 0.001
    """Share of the best score that a score must be above it to count as better."""
    patience: int = 1
    """Evaluations without a better score that are borne; one more and the task pauses."""
    cooldown: int = 1
    """Evaluations after a change that are not counted."""
    fallen: float = 0.005
    """Share of the best score that the score of a paused task may lose; below, it goes on."""
    every: int = 0
    """Rounds between the evaluations of a task; 0 = the batches of its own epoch."""


@dataclass(frozen=True)
class Recipe(Generic[C]):
    """One training run, whole."""

    config: C
    """The system's own numbers."""
    mix: Mix = field(default_factory=Mix)
    optim: Optim = field(default_factory=Optim)
    sgd: SGD | None = None
    """A second optimizer beside it, where the paper has one."""
    schedule: Schedule = field(default_factory=Schedule)
    batching: Batching = field(default_factory=Batching)
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 42
    turns: Turns | None = None
    """Many tasks in turn: a step of the schedule is then a round of all."""
    note: str = ""
    """Where the numbers come from, what the run costs and what it should reach."""


TINY_RUN: dict[str, Any] = {
    "optim": Optim(lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, no_decay=("bias", "norm"), max_norm=5.0),
    "schedule": Schedule(steps=2400, warmup=120, floor=0.02),
    "batching": Batching(rows=800, window=2048),
    "precision": "fp32",
}
"""How every system's `tiny` size is trained, unless it says otherwise."""
TINY_DUAL_RUN = TINY_RUN | {
    "schedule": Schedule(steps=1200, warmup=60, floor=0.02),
    "batching": Batching(rows=1600, window=2048),
}
"""The same of two streams: as many rows in half as many steps."""


def adam(lr: float, max_norm: float = 1.0, eps: float = 1e-8, decay: float = 0.01) -> Optim:
    """AdamW that spares biases and norms of decay, as most of the field sets it."""
    return Optim(lr=lr, betas=(0.9, 0.999), eps=eps, weight_decay=decay, no_decay=("bias", "norm"), max_norm=max_norm)


def bert_adam(lr: float) -> Optim:
    """BERT's Adam: moments without bias correction, every tensor clipped by its own norm."""
    return dataclasses.replace(adam(lr, eps=1e-6), clip="each", bias_correction=False)


def to_json(value: Any) -> str:
    """A nested dataclass as JSON text."""
    return json.dumps(dataclasses.asdict(value), indent=2) + "\n"


def from_json(kind: type[Any], text: str, where: str = "recipe") -> Any:
    """A nested dataclass from JSON text; `kind` may be generic, as in Recipe[UNITERConfig].

    Raises:
        ValueError: an unknown key, a missing key or a value of the wrong type (names it).
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    return _build(kind, tree, where, {})


def _build(kind: Any, value: Any, where: str, bound: dict[Any, Any]) -> Any:
    kind = bound.get(kind, kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    base = origin or kind
    if dataclasses.is_dataclass(base):
        return _build_dataclass(base, args, value, where)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _build(next(a for a in args if a is not type(None)), value, where, bound)
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ValueError(f"{where}: {len(value)} values, expected {len(kinds)}")
        return tuple(_build(k, v, f"{where}[{i}]", bound) for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {k: _build(args[1], v, f"{where}.{k}", bound) for k, v in value.items()}
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, base) or (base is int and isinstance(value, bool)):
        raise ValueError(f"{where}: {value!r} is not a {getattr(base, '__name__', base)}")
    return value


def _build_dataclass(base: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {value!r} is not an object")
    hints = typing.get_type_hints(base)
    known = {f.name for f in dataclasses.fields(base)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r} (known: {', '.join(sorted(known))})")
    bound = dict(zip(getattr(base, "__parameters__", ()), args, strict=False))
    built = {name: _build(hints[name], item, f"{where}.{name}", bound) for name, item in value.items()}
    try:
        return base(**built)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None
