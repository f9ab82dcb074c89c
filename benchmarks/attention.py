"""The attention core alone, forward and backward, one layer at BERT-base size, backend against backend.

    python benchmarks/attention.py
    python benchmarks/attention.py --device cuda --pairs 1024 --precision bf16

Prints milliseconds a call (CPU time with one thread, wall time otherwise) on the pairs of `step.py`: w1 with 36 regions a picture, w2 with 10..100.
A backend that cannot serve a case says why. Before timing, every backend must agree with `padded`, dropout off.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
from step import lengths
from torch import Tensor

from intarsia.attend import Backend, attend, refusal, use_backend
from intarsia.packed import Packing

HEADS, D = 12, 64


def on_device(packing: Packing, device: str) -> Packing:
    moved = (packing.cu_seqlens.to(device), packing.max_seqlen, packing.doc.to(device), packing.pos.to(device))
    return Packing(*moved, None if packing.level is None else packing.level.to(device))


def both_ways(inputs: tuple[Tensor, ...], packing: Packing, backend: Backend, dropout: float) -> list[Tensor]:
    """Output and gradients of one call."""
    with use_backend(backend):
        out = attend(*inputs, packing, packing, dropout)
    return [out.detach(), *torch.autograd.grad(out, inputs, out.detach())]


def milliseconds(run: Callable[[], object], device: str, threads: int, repeats: int = 5, calls: int = 4) -> float:
    """Median over repeats of the mean over calls."""
    clock = time.process_time if device == "cpu" and threads == 1 else time.perf_counter
    spent = []
    for _ in range(repeats + 1):
        start = clock()
        for _ in range(calls):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
        spent.append((clock() - start) / calls * 1e3)
    return float(np.median(spent[1:]))


def main() -> None:
    """Parses the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = torch.float32 if options.precision == "fp32" else torch.bfloat16
    tolerance = 1e-4 if options.precision == "fp32" else 5e-2
    for name, adaptive in (("w1", False), ("w2", True)):
        words, regions = lengths(options.pairs, adaptive)
        for kind in ("all see all", "prefix"):
            sizes = zip(words, regions, strict=True)
            levels = np.concatenate([np.r_[np.arange(w) + 1, np.zeros(r, int)] for w, r in sizes])
            packing = on_device(Packing.of(words + regions, levels if kind == "prefix" else None), options.device)
            inputs = tuple(
                torch.randn(packing.rows, HEADS, D, device=options.device, dtype=dtype).requires_grad_() for _ in "qkv"
            )
            for dropout in (0.0, 0.1):
                print(f"{name}, {packing.rows} rows, {kind}, dropout {dropout}:")
                reference = both_ways(inputs, packing, "padded", 0.0)
                for backend in get_args(Backend):
                    why = refusal(backend, inputs[0], packing, packing, dropout)
                    if why:
                        print(f"  {backend:8s} {why}")
                        continue
                    for a, b in zip(both_ways(inputs, packing, backend, 0.0), reference, strict=True):
                        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
                    taken = milliseconds(
                        lambda backend=backend, inputs=inputs, packing=packing, dropout=dropout: both_ways(
                            inputs, packing, backend, dropout
                        ),
                        options.device,
                        options.threads,
                    )
                    print(f"  {backend:8s} {taken:8.2f} ms")


if __name__ == "__main__":
    main()
