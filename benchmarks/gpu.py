"""A training step of BERT-base size on one CUDA device: tokens a second, share of the matrix product rate, against Hugging Face's VisualBERT.

    python benchmarks/gpu.py                        all, some three minutes
    python benchmarks/gpu.py --rows 16384 --skip theirs

Ours is the packed model of `step.py` on pairs with 36 regions (w1), bf16 autocast, hidden dropout 0.1, attention dropout 0 (the fast backend has
none), fused AdamW; each attention backend that serves it, as it is and with its layers compiled. Theirs is padded to 36 pieces, bf16 autocast, as
many pairs of the same lengths, dropout 0.1, fused AdamW. First the backends must agree with the padded one in loss and gradients, and a step
must not make the host wait for the device. Times are medians of events on the device around whole steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from step import VisualBERT, hugging_face, lengths, make_examples, padded_inputs, useful_flops
from torch import Tensor, nn

from intarsia.attend import Backend, use_backend
from intarsia.batch import Batch
from intarsia.pack import pack


def milliseconds(run: Callable[[], None], warm: int = 4, repeats: int = 10) -> float:
    """Median of whole calls, by events on the device."""
    spent = []
    for i in range(warm + repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        if i >= warm:
            spent.append(start.elapsed_time(stop))
    return float(np.median(spent))


def product_rate() -> float:
    """FLOPs a second of a large bf16 matrix product on random numbers."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / milliseconds(lambda: torch.mm(a, b), 10, 20) * 1e3


def step_of(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A whole training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def gradients(model: nn.Module, batch: Batch, backend: Backend) -> tuple[float, list[Tensor]]:
    model.zero_grad(set_to_none=True)
    with use_backend(backend), torch.autocast("cuda", torch.bfloat16):
        loss = model(batch)
    loss.backward()
    return loss.item(), [p.grad.float() for p in model.parameters() if p.grad is not None]


def check_backends(model: nn.Module, batch: Batch) -> None:
    """Every backend against the padded one, dropout off.

    Raises:
        SystemExit: they do not agree.
    """
    model.eval()
    loss, grads = gradients(model, batch, "padded")
    norm = sum(float(g.square().sum()) for g in grads) ** 0.5
    for backend in ("varlen", "flex"):
        other, others = gradients(model, batch, backend)
        apart = sum(float((a - b).square().sum()) for a, b in zip(grads, others, strict=True)) ** 0.5 / norm
        print(f"  {backend} against padded: losses {other:.5f} {loss:.5f}, gradients {apart:.1e} of their norm apart")
        if abs(other - loss) > 2e-3 * abs(loss) or apart > 2e-2:
            raise SystemExit(f"gpu.py: {backend} does not agree with padded; nothing was timed")
    model.train()


def never_waits(step: Callable[[], None]) -> None:
    """One step in which any wait of the host for the device raises."""
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    print("  a step makes the host wait for the device nowhere")


def main() -> None:
    """Parses the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=65536, help="rows a step, about")
    parser.add_argument("--skip", nargs="*", default=(), choices=("theirs", "compile"))
    options = parser.parse_args()
    rate = product_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16 product {rate / 1e12:.0f} TFLOP/s")
    pairs = options.rows // 49
    words, regions = lengths(pairs, adaptive=False)
    examples = make_examples(words, regions)
    torch.manual_seed(0)
    model = VisualBERT(attention_dropout=0.0).cuda()
    check_backends(model, pack(examples[:64]).to("cuda"))
    batch, flops = pack(examples).to("cuda"), useful_flops(examples)
    step = step_of(model, lambda: model(batch))
    never_waits(step)
    print(f"{pairs} pairs, {batch.rows} rows, {flops / 1e12:.1f} useful TFLOP a step")

    def tell(name: str, spent: float) -> None:
        share = flops / spent * 1e3 / rate
        memory = torch.cuda.max_memory_allocated() / 2**30
        print(
            f"  {name:28s} {spent:8.1f} ms  {batch.rows / spent:7.0f} k rows/s  MFU {share:.3f}  {memory:.0f} GiB",
            flush=True,
        )
        torch.cuda.reset_peak_memory_stats()

    for backend in ("padded", "flex", "varlen"):
        with use_backend(backend):
            tell(f"ours, {backend}", ours := milliseconds(step))
    if "compile" not in options.skip:
        for layer in model.encoder.layers:
            layer.compile(dynamic=True)
        tell("ours, varlen, compiled", ours := milliseconds(step, 8))
        batch = pack(make_examples(*lengths(pairs - 7, adaptive=False, seed=6))).to("cuda")
        step()
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for other in range(3):
            batch = pack(make_examples(*lengths(pairs - 20 * other, adaptive=False, seed=7 + other))).to("cuda")
            step()
        print(
            f"  graphs made for three more batches of other sizes: {torch._dynamo.utils.counters['stats']['unique_graphs'] - before}"
        )
    if "theirs" not in options.skip:
        del model, step, batch
        theirs = hugging_face().cuda().train()
        inputs = {k: v.cuda() for k, v in padded_inputs(examples[: pairs // 4], 36, 36).items()}
        spent = 4 * milliseconds(step_of(theirs, lambda: theirs(**inputs).loss))
        print(f"  theirs, 4 x {pairs // 4} pairs        {spent:8.1f} ms;  ours / theirs {ours / spent:.3f}")


if __name__ == "__main__":
    main()
