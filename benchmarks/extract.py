"""Region features of generated pictures with full-size detectors: pictures a second, milliseconds of each step, and how far CUDA is from the CPU.

    python benchmarks/extract.py                             96 pictures on CUDA, two of them on the CPU too
    python benchmarks/extract.py --device cpu --pictures 4   the CPU alone

The weights are random, of the published shapes: the work is that of published ones, but for how many regions pass a threshold.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from intarsia.features import frcnn_pixels, open_extractor
from intarsia.features.detector import VINVL, Detector, DetectorConfig
from intarsia.features.detector_weights import published
from intarsia.features.rpn import caffe_cells
from intarsia.weights.files import write_weights

CONFIGS = {"butd": DetectorConfig(), "vinvl": VINVL}
SHAPES = ((640, 480), (480, 640))
STEPS = ("maps", "proposals", "describe", "select")
BOXES = np.array([[0.1, 0.1, 0.6, 0.8], [0, 0, 1, 1], [0.4, 0.2, 0.9, 0.5]], np.float32)


def main() -> None:
    """Runs both detectors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    shown = [picture(i) for i in range(options.pictures)]
    by_shape = [[x for x in shown if x.shape[:2] == (high, wide)] for wide, high in SHAPES]
    batches = [x[i : i + options.batch] for x in by_shape for i in range(0, len(x), options.batch)]
    with tempfile.TemporaryDirectory() as scratch:
        for name, config in CONFIGS.items():
            path = Path(scratch) / f"{name}.pth"
            write_weights(path, published(spread(Detector(config))))
            extractor: Any = open_extractor(name, weights=str(path), device=options.device)
            extractor(batches[0])
            begin = time.perf_counter()
            count = sum(len(found.boxes) for batch in batches for found in extractor(batch))
            seconds = time.perf_counter() - begin
            print(
                f"{name} on {device_name(options.device)}: {len(shown) / seconds:.2f} pictures a second, {count} regions",
                flush=True,
            )
            print(
                "  milliseconds a picture: "
                + ", ".join(f"{k} {v:.1f}" for k, v in steps(extractor, batches[0]).items()),
                flush=True,
            )
            if options.device != "cpu":
                slow = open_extractor(name, weights=str(path), device="cpu")
                print(
                    f"  largest difference of a feature to the CPU's, of the largest feature: {difference(extractor, slow, shown[:2]):.1e}",
                    flush=True,
                )


def picture(seed: int) -> Any:
    """Smooth colours, (H, W, 3) uint8."""
    low = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
    return np.asarray(Image.fromarray(low).resize(SHAPES[seed % len(SHAPES)], Image.Resampling.BICUBIC))


def spread(detector: Detector) -> Detector:
    """Random weights whose maps neither vanish nor explode, so that scores differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in detector.state_dict().items():
            if value.ndim > 1 and name != "rpn.cells":
                gain = 30.0 if name.startswith(("classes", "attributes.score")) else 0.35 if "conv3" in name else 1.3
                value.copy_(torch.randn(value.shape, generator=generator) * gain / value[0].numel() ** 0.5)
        detector.trunk.conv1.weight /= 60
        detector.rpn.deltas.weight *= 0.02
        detector.boxes.weight *= 0.02
        detector.rpn.cells.copy_(caffe_cells((2, 4, 8, 16, 32)[-len(detector.rpn.cells) // 3 :]))
    return detector


def steps(extractor: Any, batch: list[Any]) -> dict[str, float]:
    """Milliseconds a picture of each step, the device waited for before and after."""
    spent: dict[str, float] = {}

    def timed(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            wait()
            begin = time.perf_counter()
            out = function(*args)
            wait()
            spent[label] = spent.get(label, 0.0) + time.perf_counter() - begin
            return out

        return call

    net, prepare = extractor.detector, frcnn_pixels.PREPARE
    own = prepare[extractor.prepare]
    try:
        prepare[extractor.prepare] = timed("prepare", own)
        for name in STEPS:
            object.__setattr__(net, name, timed(name, getattr(net, name)))
        timed("all", extractor)(batch)
    finally:
        prepare[extractor.prepare] = own
        for name in STEPS:
            object.__delattr__(net, name)
    return {label: 1000 * seconds / len(batch) for label, seconds in spent.items()}


def difference(fast: Any, slow: Any, shown: list[Any]) -> float:
    """Of the features of the same boxes."""
    pairs = zip(
        fast.features_at(shown, [BOXES] * len(shown)), slow.features_at(shown, [BOXES] * len(shown)), strict=True
    )
    return max(float(np.abs(x.features - y.features).max() / np.abs(y.features).max()) for x, y in pairs)


def wait() -> None:
    """Until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device_name(device: str) -> str:
    """In words."""
    return torch.cuda.get_device_name() if device.startswith("cuda") else "the CPU"


if __name__ == "__main__":
    main()
