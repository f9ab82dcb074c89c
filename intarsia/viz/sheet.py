"""Pictures side by side with a line below each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
