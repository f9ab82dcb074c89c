"""From the outline of a step to what a GPU holds, sends and spends under a way of sharding; and what would fit where that does not.

Weights, gradients and moments are fp32 (4 bytes); "bf16" multiplies copies, which the outline counts among activations. See docs/plan.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from intarsia.errors import BadInput
from intarsia.plan.given import Room, Size
from intarsia.plan.outline import Outline, Pass, Weights, outline
from intarsia.recipe import Recipe
from intarsia.system import System
from intarsia.train.parallel import Sharding

MOST = 4096
"""GPUs up to which a fit is looked for."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: float
    gradients: float
    moments: float
    """Of the optimizer."""
    gathered: float
    """With FSDP: weights gathered to be used, and gradients not yet shared out again."""
    activations: float
    """What forward keeps for backward, the batch, copies of weights in bf16, temporaries; of the goal that needs the most."""
    total: float
    """At the worst moment. On one GPU without accumulation less than the sum: gradients come while activations go."""


@dataclass(frozen=True)
class Sent:
    """Bytes that one GPU sends in a step."""

    all_reduce: float
    all_gather: float
    reduce_scatter: float
    all_to_all: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.all_reduce + self.all_gather + self.reduce_scatter + self.all_to_all


@dataclass(frozen=True)
class Spent:
    """Seconds."""

    compute: float
    """Of a step: its FLOPs at the share of the peak."""
    communication: float
    """Of a step: what is sent at the speed of the link."""
    step: float
    """From: exchanges of experts wait, all else hides behind computing."""
    step_at_most: float
    """To: nothing hides."""
    run: float
    run_at_most: float
    gpu_hours: float
    gpu_hours_at_most: float


@dataclass(frozen=True)
class Training:
    """What a step trains on."""

    rows: int
    """Of a micro-batch."""
    samples: int
    accumulate: int
    flops: float
    """Of a step of one GPU, the mean over the goals by their shares."""
    steps: int


@dataclass(frozen=True)
class Plan:
    """A run, planned."""

    system: str
    size: str
    gpus: int
    sharding: Sharding
    precision: str
    sample: Size
    room: Room
    weights: Weights
    training: Training
    memory: Memory
    sent: Sent
    spent: Spent
    fits: bool
    advice: tuple[str, ...] = ()
    """Where it does not fit: what would, each by itself."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Goals that were not counted, and why."""


def plan(
    name: str,
    size: str,
    cls: type[System],
    recipe: Recipe[Any],
    gpus: int,
    sharding: Sharding,
    sample: Size,
    room: Room,
) -> Plan:
    """Plans a run.

    Args:
        name: of the system.
        size: of the recipe.
        cls: the system.
        recipe: what to train.
        gpus: processes, one a GPU.
        sharding: as for `train.pretrain`.
        sample: how large samples are.
        room: what the GPUs can do.

    Raises:
        BadInput: the numbers do not go together.
    """
    if gpus < 1:
        raise BadInput(f"--gpus {gpus}: must be at least 1")

    def outlined(recipe: Recipe[Any], processes: int) -> Outline:
        return outline(cls, recipe, sample, processes)

    found = outlined(recipe, gpus if sharding == "experts" else 1)
    if sharding == "experts" and not found.weights.experts:
        raise BadInput(f"--sharding experts: {name} {size} has no experts to share out; take ddp or fsdp")
    held = memory(found, recipe, gpus, sharding)
    sends = sent(found, recipe, gpus, sharding)
    fits = held.total <= room.usable
    any_pass = max(found.passes.values(), key=lambda x: x.activations)
    return Plan(
        system=name,
        size=size,
        gpus=gpus,
        sharding=sharding,
        precision=recipe.precision,
        sample=sample,
        room=room,
        weights=found.weights,
        training=Training(
            any_pass.rows, any_pass.samples, recipe.batching.accumulate, flops(found, recipe), recipe.schedule.steps
        ),
        memory=held,
        sent=sends,
        spent=spent(found, recipe, sends, gpus, room),
        fits=fits,
        advice=() if fits else tuple(_advice(found, recipe, gpus, sharding, room, outlined)),
        skipped=found.skipped,
    )


# ------------------------------------------------------------------------------------------------------------- formulas


def memory(found: Outline, recipe: Recipe[Any], gpus: int, sharding: Sharding) -> Memory:
    """What a GPU holds."""
    w, passes, accumulate = found.weights, found.passes.values(), recipe.batching.accumulate
    trained, everything = w.trained + w.experts, w.trained + w.experts + w.frozen
    moments, gathered = float(w.moments + 2 * w.experts), 0.0
    if sharding == "fsdp":
        gradients = trained / gpus if accumulate == 1 else trained  # not shared out before the last micro-batch
        layers = 2 * min(w.largest, everything - w.root)  # the one at work and the next
        gathered = 0.0 if gpus == 1 else 8.0 * (w.root + layers)
        held = everything / gpus, float(gradients), moments / gpus
    elif sharding == "experts":
        held = (
            w.trained + w.frozen + w.experts / gpus,
            w.trained + w.experts / gpus,
            w.moments + 2 * w.experts / gpus,
        )
    else:
        held = everything, trained, moments
    weights, gradients, moments = (4.0 * x for x in held)
    activations = float(max(x.activations for x in passes))
    total = weights + gradients + moments + gathered + activations
    if gpus == 1 and accumulate == 1:
        total = weights + moments + max(x.together for x in passes)
    return Memory(weights, gradients, moments, gathered, activations, total)


def sent(found: Outline, recipe: Recipe[Any], gpus: int, sharding: Sharding) -> Sent:
    """What a GPU sends in a step, by rings: an all-reduce sends everything twice but for its own part, a gather or scatter once."""
    w, accumulate, others = found.weights, recipe.batching.accumulate, (gpus - 1) / gpus
    if sharding == "fsdp":
        everything = w.trained + w.experts + w.frozen
        gathered = 2 * (everything - w.root) + w.root  # a layer again for backward
        return Sent(0.0, 4 * others * accumulate * gathered, 4 * others * (w.trained + w.experts), 0.0)
    copied = w.trained if sharding == "experts" else w.trained + w.experts
    return Sent(8 * others * copied, 0.0, 0.0, accumulate * _mean(found, recipe, lambda x: x.exchanged))


def flops(found: Outline, recipe: Recipe[Any]) -> float:
    """Of a step of one GPU."""
    return recipe.batching.accumulate * _mean(found, recipe, lambda x: x.flops)


def _mean(found: Outline, recipe: Recipe[Any], of: Callable[[Pass], float]) -> float:
    shares = {goal: recipe.mix.share[goal] for goal in found.passes}
    return sum(share * of(found.passes[goal]) for goal, share in shares.items()) / sum(shares.values())


def spent(found: Outline, recipe: Recipe[Any], sends: Sent, gpus: int, room: Room) -> Spent:
    """How long a step and a run take."""
    compute = flops(found, recipe) / (room.peak(recipe.precision) * room.efficiency)
    wait, hide = (x / room.speed(gpus) for x in (sends.all_to_all, sends.total - sends.all_to_all))
    steps = [max(compute, hide) + wait, compute + hide + wait]
    runs = [recipe.schedule.steps * x for x in steps]
    return Spent(compute, wait + hide, *steps, *runs, *(x * gpus / 3600 for x in runs))


# --------------------------------------------------------------------------------------------------------- what would fit


def _advice(
    found: Outline,
    recipe: Recipe[Any],
    gpus: int,
    sharding: Sharding,
    room: Room,
    outlined: Callable[[Recipe[Any], int], Outline],
) -> Iterator[str]:
    """Ways to make it fit, each by itself: another sharding or more GPUs, fewer rows at a time, layers computed again. Every one was counted."""

    def fits(recipe: Recipe[Any], gpus: int, sharding: Sharding, known: Outline) -> bool:
        return memory(known, recipe, gpus, sharding).total <= room.usable

    counts = [gpus, *(2**i for i in range(MOST.bit_length()) if gpus < 2**i <= MOST)]
    whole = found if sharding != "experts" else outlined(recipe, 1)
    for kind in ("ddp", "fsdp"):
        if enough := next((n for n in counts if fits(recipe, n, kind, whole)), 0):
            yield f"--sharding {kind} --gpus {enough}"
    if found.weights.experts:
        for n in (n for n in counts if recipe.config.experts % n == 0):
            states = memory(whole, recipe, n, "experts")
            if states.total - states.activations > room.usable:
                continue
            shared = found if (sharding, gpus) == ("experts", n) else outlined(recipe, n)
            if fits(recipe, n, "experts", shared):
                yield f"--sharding experts --gpus {n}"
                break
    processes = gpus if sharding == "experts" else 1
    now = memory(found, recipe, gpus, sharding)
    for rows, accumulate in _fewer_rows(recipe) if now.total - now.activations <= room.usable else ():
        batching = replace(recipe.batching, rows=rows, accumulate=accumulate)
        try:
            fewer = outlined(other := replace(recipe, batching=batching), processes)
        except BadInput:  # a sample has more rows
            break
        if fits(other, gpus, sharding, fewer):
            yield f"--batching.rows {rows} --batching.accumulate {accumulate}"
            break
    if getattr(recipe.config, "recompute", True) is False:
        again = replace(recipe, config=replace(recipe.config, recompute=True))
        if fits(again, gpus, sharding, outlined(again, processes)):
            yield "--config.recompute"


def _fewer_rows(recipe: Recipe[Any]) -> Iterator[tuple[int, int]]:
    """Half, a quarter, .. of the rows of a micro-batch, and how many micro-batches then make a step of as many rows."""
    rows, accumulate = recipe.batching.rows, recipe.batching.accumulate
    while rows >= 64:
        rows, accumulate = rows // 2, accumulate * 2
        yield rows, accumulate
