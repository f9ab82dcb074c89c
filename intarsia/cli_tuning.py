"""What every fine-tuning command is told of the run: what to begin from, how long, how fast, in which batches, on what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

LEAST = {"steps": 0, "warmup": 0, "rows": 1, "samples": 1, "accumulate": 1, "lr": 0, "max_norm": 0}
"""The smallest values of numbers that may be given."""


@dataclass(kw_only=True)
class RunOptions:
    """What a run on one task and a run on many share."""

    out: Path
    """Folder of the run."""
    weights: Path | None = None
    """What to begin from: folder of a pre-training run, or weights, ours or the authors', with the head of the task if they have it; None = random, which
    no paper does."""
    size: str = "base"
    vocab: Path | None = None
    """vocab.txt of the weights; run folders bring their own."""
    steps: int | None = None
    """Optimizer steps, of tasks in turn rounds; None, here and below = as in the paper. 0 = published fine-tuned weights become a run that can be scored."""
    warmup: int | None = None
    lr: float | None = None
    """Of tasks in turn the smallest; the others, and those of heads, keep their ratio to it."""
    max_norm: float | None = None
    """Norm at which the gradients of an update are clipped; 0 = they are not."""
    rows: int | None = None
    """Budget of rows of a micro-batch."""
    samples: int | None = None
    """Most items of a micro-batch."""
    accumulate: int | None = None
    hard_negatives: str = ""
    """Retrieval whose paper has hard negatives: `nearest`, by the regions' features, or a file of pictures like each (ViLBERT's pickle, or JSON from
    name to names); FashionGen's need none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 42
    workers: int = 1
    device: str = "auto"


def begun_from(weights: Path | None) -> str:
    """What a run begins from, by name and content."""
    from intarsia.data.formats.files import sha256_of

    if weights is None:
        return ""
    file = weights / "model.safetensors" if weights.is_dir() else weights
    return f"{weights} {sha256_of(file)[:16]}" if file.is_file() else str(weights)


def overridden(recipe: Any, options: RunOptions) -> Any:
    """A recipe with the numbers that were given; a warm-up longer than the run becomes a tenth of it.

    Raises:
        BadInput: a number is too small.
    """
    from intarsia.errors import BadInput

    for name, least in LEAST.items():
        if (value := getattr(options, name)) is not None and not value >= least:
            raise BadInput(f"--{name.replace('_', '-')} {value}: at least {least}")
    steps = recipe.schedule.steps if options.steps is None else options.steps
    warmup = recipe.schedule.warmup if options.warmup is None else options.warmup
    warmup = steps // 10 if warmup >= steps else warmup
    norm = recipe.optim.max_norm if options.max_norm is None else options.max_norm
    batching = {
        name: value for name in ("rows", "samples", "accumulate") if (value := getattr(options, name)) is not None
    }
    return replace(
        recipe,
        schedule=replace(recipe.schedule, steps=steps, warmup=warmup),
        optim=replace(recipe.optim, lr=recipe.optim.lr if options.lr is None else options.lr, max_norm=norm),
        batching=replace(recipe.batching, **batching),
        precision=options.precision,
    )
