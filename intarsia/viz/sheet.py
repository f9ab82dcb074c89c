"""Pictures side by side: with a line below each, or in rows with a text before each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from intarsia.batch import Array
from intarsia.data.decode import decode_image
from intarsia.viz.style import figure, save, settings

COLUMNS = 5


def draw_sheet(title: str, pictures: Sequence[tuple[Path, str]], out: Path) -> None:
    """Writes pictures in rows of five.

    Args:
        title: said above.
        pictures: files, and what is said below each.
        out: .svg or .png
    """
    rows = -(-len(pictures) // COLUMNS)
    with settings("sheet"):
        drawn = figure(2.0 * COLUMNS, 0.6 + 2.2 * rows)
        drawn.suptitle(title, fontsize=11)
        for number, (path, said) in enumerate(pictures):
            axes = drawn.add_subplot(rows, COLUMNS, number + 1)
            axes.set_axis_off()
            axes.imshow(decode_image(path))
            axes.set_title(f"{path.name}\n{said}", fontsize=7)
        save(drawn, out, dpi=110)


def draw_rows(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Array]]], out: Path) -> None:
    """Writes a table of pictures: a text and some pictures a row.

    Args:
        title: said above.
        columns: what the pictures of each column are.
        rows: the text, and (H, W, 3) uint8 for each column.
        out: .svg or .png
    """
    side, text = 0.95, 2.6
    with settings("rows"):
        drawn = figure(text + side * len(columns) + 0.1, 0.75 + side * len(rows))
        wide, high = drawn.get_size_inches()
        drawn.suptitle(title, fontsize=10, y=1 - 0.08 / high, va="top")
        for r, (said, pictures) in enumerate(rows):
            top = high - 0.7 - side * r
            drawn.text((text - 0.1) / wide, (top - side / 2) / high, said, ha="right", va="center", fontsize=7.5)
            for c, pixels in enumerate(pictures):
                at = ((text + side * c) / wide, (top - side + 0.05) / high, (side - 0.05) / wide, (side - 0.05) / high)
                axes = drawn.add_axes(at)
                axes.set_axis_off()
                axes.imshow(pixels, interpolation="nearest")
                if not r:
                    axes.set_title(columns[c], fontsize=7.5, pad=3)
        save(drawn, out, dpi=130)
