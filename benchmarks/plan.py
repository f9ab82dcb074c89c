"""What `intarsia plan` foretells of one GPU against what real steps on it hold and take.

    python benchmarks/plan.py

Each case is planned, then trained for some steps on the made-up batch of its goal that keeps the most: AdamW's fused step, dropout as in the recipe.
Memory is the most that tensors held (`torch.cuda.max_memory_allocated`), without what the allocator and CUDA keep beside it: that is what
`--gpu.reserve` is for. Of the time it is told which share of the peak the counted FLOPs make.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from gpu import milliseconds

from intarsia.plan import cost
from intarsia.plan.documents import Documents, vocabulary
from intarsia.plan.given import Room, Size
from intarsia.plan.outline import outline
from intarsia.recipe import Recipe
from intarsia.systems import find
from intarsia.train.optim import Optimizers
from intarsia.train.parallel import autocast

SIZE = Size()
CASES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "uniter base": ("uniter", "base", 8192, {}),
    "uniter base, no attention dropout": ("uniter", "base", 8192, {"attention_probs_dropout_prob": 0.0}),
    "lxmert base": ("lxmert", "base", 8192, {}),
    "vilbert base": ("vilbert", "base", 8192, {}),
    "m6, 12 layers of 1024": ("m6", "tiny", 16384, {"hidden_size": 1024, "num_hidden_layers": 12}),
    "m6, 12 layers of 1024, computed again": (
        "m6",
        "tiny",
        16384,
        {"hidden_size": 1024, "num_hidden_layers": 12, "recompute": True},
    ),
    "m6, 6 layers of 1024, 16 experts": ("m6", "tiny", 16384, {"hidden_size": 1024, "experts": 16}),
}


def recipe_of(name: str, size: str, rows: int, changes: dict[str, Any], precision: Any) -> Recipe[Any]:
    """The recipe of a case."""
    recipe = find(name).recipes[size]
    if wide := changes.get("hidden_size"):
        changes = {"num_hidden_layers": 6, "num_attention_heads": wide // 64, "intermediate_size": 4 * wide, **changes}
    batching = replace(recipe.batching, rows=rows, samples=0, accumulate=1)
    return replace(recipe, config=replace(recipe.config, **changes), batching=batching, precision=precision)


def compare(case: str, precision: Any, peak: float) -> None:
    """Plans a case, runs it, and prints both."""
    name, size, rows, changes = CASES[case]
    cls, recipe = find(name), recipe_of(name, size, rows, changes, precision)
    found = outline(cls, recipe, SIZE)
    goal = max(found.passes, key=lambda x: found.passes[x].activations)
    told = cost.memory(found, recipe, 1, "ddp")
    system = cls(recipe.config, vocabulary(cls, recipe.config.vocab_size)).train().cuda()
    optimizers = Optimizers(system, recipe)
    drawn, _ = Documents(system, SIZE).batch(goal, recipe)
    batch = drawn.to("cuda")
    bad, count = torch.zeros((), device="cuda"), iter(range(1000))

    def step() -> None:
        with autocast(torch.device("cuda"), recipe.precision):
            losses, _ = system(batch)
            total = system.weigh(losses, recipe.mix)
        total.backward()  # type: ignore[no-untyped-call]
        optimizers.step(next(count), bad)

    step()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what an earlier case left
    torch.cuda.reset_peak_memory_stats()
    spent = milliseconds(step, 2, 6)
    held = torch.cuda.max_memory_allocated()
    rate = found.passes[goal].flops / spent * 1e3
    print(
        f"| {case} | {recipe.precision} | {goal} | {batch.rows:,} | {told.total / 2**30:.2f} | {held / 2**30:.2f} | {told.total / held:.3f} "
        f"| {spent:.0f} | {rate / 1e12:.0f} | {rate / peak:.2f} |",
        flush=True,
    )


def main() -> None:
    """Parses the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--precisions", nargs="*", default=["bf16"], choices=["bf16", "fp32"])
    options = parser.parse_args()
    room = Room()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| | precision | goal | rows | GiB, planned | held | planned / held | ms a step | TFLOP/s | of the peak |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for precision in options.precisions:
        for case in options.cases:
            compare(case, precision, room.peak(precision))


if __name__ == "__main__":
    main()
