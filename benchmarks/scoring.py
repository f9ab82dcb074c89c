"""Every text with every picture through a single stream of BERT-base size: what share of the matrix product rate does `score_pairs` reach?

    python benchmarks/scoring.py                     CPU, bf16, one thread
    python benchmarks/scoring.py --device cuda

UNITER-base, random weights; pairs of 14 pieces and 36 regions of 2048 numbers, 50 rows each. The whole path is timed that `intarsia score` runs: documents
are put together, packed, moved, encoded, scored. First the scores must agree with those of whole last layers in fp32. Useful FLOPs are those that no exact
method of one stream can leave out of a pair: eleven layers of all rows, keys and values of the twelfth, the rest of that for [CLS] alone; features count once a picture. The
product rate is measured before every timed run, on a product of 8192 x 8192 x 8192 on CUDA and as in `step.py` on a CPU; the largest counts. Medians; CPU
time with one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import step
import torch

from intarsia.batch import Example
from intarsia.evaluate.matching import score_pairs
from intarsia.evaluate.running import Inference
from intarsia.pack import pack
from intarsia.systems.uniter import UNITER, UNITERConfig
from intarsia.text import SPECIALS, Vocab

WORDS, REGIONS = 14, 36
ROWS = WORDS + REGIONS
BAR = 0.78
H, INNER, LAYERS, WIDTH = step.H, step.INNER, step.LAYERS, step.WIDTH


def useful_flops(texts: int, pictures: int) -> float:
    """FLOPs of all pairs; see the module's docstring."""
    layer = ROWS * 2 * (4 * H * H + 2 * H * INNER) + 4 * H * ROWS**2
    last = ROWS * 2 * 2 * H * H + 2 * (2 * H * H + 2 * H * INNER) + 4 * H * ROWS
    return float(texts * pictures * ((LAYERS - 1) * layer + last) + pictures * REGIONS * 2 * WIDTH * H)


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds: of the processor on a CPU, of the wall on a device."""
    if device == "cpu":
        return step.seconds(run, torch.get_num_threads())
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def product_rate(device: str) -> float:
    """FLOPs a second of bf16 matrix products."""
    if device == "cpu":
        return step.peak(True, torch.get_num_threads())
    from gpu import product_rate as on_device

    return on_device()


def check(model: UNITER, said: list[Example], shown: list[Example]) -> None:
    """Scores of `score_pairs` in fp32 against those of whole last layers.

    Raises:
        SystemExit: they do not agree.
    """
    device, some = next(model.parameters()).device, 4
    pairs = [Example(x.key, x.text, y.regions) for x in said[:some] for y in shown[:some]]
    with torch.inference_mode():
        whole = model.match_scores(model.encode(pack(pairs).to(device))).cpu().numpy()
    found = score_pairs(model, said[:some], shown[:some], how=Inference(progress=False)).ravel()
    apart = float(np.abs(whole - found).max())
    print(
        f"scores of {len(pairs)} pairs differ by {apart:.1e} from those of whole last layers, and spread over {np.ptp(whole):.3f}"
    )
    if apart > 1e-4:
        raise SystemExit("scoring.py: they do not agree; nothing was timed")


def main() -> None:
    """Parses the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", type=int, help="default: 16 on a CPU, 256 on a device")
    parser.add_argument("--pictures", type=int, help="the same")
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        help="rows of a batch; default: 800, 1600 and 4096 on a CPU, 16384 and 65536 on a device",
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cpu = options.device == "cpu"
    texts, pictures = options.texts or (16 if cpu else 256), options.pictures or (8 if cpu else 256)
    vocab = Vocab([*SPECIALS, *(f"w{i}" for i in range(step.VOCAB - len(SPECIALS)))])
    model = UNITER(UNITERConfig(vocab_size=step.VOCAB), vocab).eval().to(options.device)
    made = step.make_examples(np.full(max(texts, pictures), WORDS), np.full(max(texts, pictures), REGIONS))
    for x in made:
        x.targets = {}
    said, shown = made[:texts], made[:pictures]
    check(model, said, shown)
    runs = {
        rows: (lambda rows=rows: score_pairs(model, said, shown, how=Inference(rows, "bf16", progress=False)))
        for rows in options.rows or ((800, 1600, 4096) if cpu else (16384, 65536))
    }
    rate, spent = 0.0, {rows: list[float]() for rows in runs}
    for i in range(options.rounds + 1):
        for rows, run in runs.items():
            rate = max(rate, product_rate(options.device))
            taken = timed(run, options.device)
            spent[rows] += [taken] if i else []
    pairs, flops = texts * pictures, useful_flops(texts, pictures)
    print(f"{options.device}, torch {torch.__version__}: bf16 product {rate / 1e12:.3f} TFLOP/s")
    print(f"{pairs} pairs of {ROWS} rows, {flops / 1e9 / pairs:.2f} useful GFLOP each")
    for rows, values in spent.items():
        median = float(np.median(values))
        share = flops / median / rate
        print(
            f"  {rows:6d} rows a batch  {pairs / median:8.1f} pairs/s  MFU {share:.3f}  {'met' if share >= BAR else 'MISSED'} (bar {BAR})"
        )


if __name__ == "__main__":
    main()
