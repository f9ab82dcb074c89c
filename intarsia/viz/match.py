"""One picture and one text: which region each word looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from intarsia.batch import Array

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#666666")


def draw_match(pixels: Array, words: tuple[str, ...], boxes: Array, weights: Array, title: str, out: Path) -> None:
    """Writes a picture: the boxes on the pixels beside a heat map of words x regions.

    Args:
        pixels: (H, W, 3) uint8.
        words: T pieces.
        boxes: (R, 4) xyxy fractions.
        weights: (T, R) float, rows sum to 1; the box of each word's greatest weight is drawn strongest.
        title: said above.
        out: file to write; its ending says the format.
    """
    high, wide = pixels.shape[:2]
    figure = Figure(figsize=(11, 0.9 + max(4.2, 0.3 * len(words))), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    left.imshow(pixels)
    left.set_axis_off()
    most = weights.max(0) if len(weights) else np.zeros(len(boxes))
    for i, (x1, y1, x2, y2) in enumerate(boxes * np.array([wide, high, wide, high])):
        colour, strength = PALETTE[i % len(PALETTE)], 0.35 + 0.65 * float(most[i] / max(most.max(), 1e-9))
        left.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=colour, lw=1 + 2 * strength, alpha=strength)
        )
        left.text(
            x1,
            y1,
            f" {i} ",
            color="white",
            fontsize=9,
            va="top",
            bbox={"facecolor": colour, "lw": 0, "pad": 1},
            alpha=strength,
        )
    right.imshow(weights, cmap="Blues", vmin=0, aspect="auto")
    right.set_yticks(range(len(words)), words)
    right.set_xticks(range(len(boxes)), [str(i) for i in range(len(boxes))])
    right.set_xlabel("region")
    for row, column in enumerate(weights.argmax(1)):
        right.text(
            column,
            row,
            f"{100 * weights[row, column]:.0f} %",
            ha="center",
            va="center",
            fontsize=8,
            color="#d55e00",
            weight="bold",
        )
    figure.suptitle(title)
    part = out.with_name(f".{out.name}")
    figure.savefig(part, dpi=150, format=out.suffix.lstrip(".") or "png")
    part.replace(out)
