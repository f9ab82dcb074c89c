"""What all figures share: colours, fonts, and files that are written whole or not at all.

Text stays text in SVG files, so a browser shows any script with its own fonts. PNG files need a font of this machine; where it has none for a
character, `save` puts a number such as ⟨1⟩ in the place of the word and says so below the picture, instead of drawing empty boxes.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from intarsia.errors import BadInput

WORDS, REGIONS, SPECIAL, CHANGED, WRITTEN = "#3f6fb5", "#d9822b", "#8b93a3", "#b8336a", "#1f9d7a"
"""Streams and specials; CHANGED marks what an objective put in another's place, WRITTEN a target that names the next piece."""
INK, SOFT, FAINT = "#20242c", "#7d8593", "#d9dde4"
CATEGORIES = ("#2f7ed8", "#d9642b", "#1f9d7a", "#a44fc4", "#c2a000", "#d13a5e", "#4aa3c7", "#7d6b3d")
"""Colours that tell apart on light and on dark ground."""

_FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "Arial Unicode MS",
)


@cache
def families() -> tuple[str, ...]:
    """Font families of this machine that figures use, the usual one first."""
    known = {x.name for x in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(x for x in _FALLBACKS if x in known))


@cache
def _characters() -> frozenset[int]:
    found: set[int] = set()
    for name in families():
        path = font_manager.findfont(font_manager.FontProperties(family=name))
        found.update(font_manager.get_font(path).get_charmap())
    return frozenset(found)


def drawable(text: str) -> bool:
    """Whether this machine's fonts have every character of a text."""
    return all(ord(c) in _characters() or c.isspace() for c in text)


@contextmanager
def settings(salt: str) -> Iterator[None]:
    """Inside, figures have our fonts, text in SVG stays text, and equal figures give equal files. Args: salt, of the names inside an SVG."""
    with mpl.rc_context(
        {
            "font.family": list(families()),
            "font.size": 8.0,
            "svg.fonttype": "none",
            "svg.hashsalt": salt,
            "text.parse_math": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; drawn without a display."""
    made = Figure(figsize=(width, height))
    FigureCanvasAgg(made)
    return made


def rgb(colour: str) -> tuple[float, float, float]:
    """A colour as three numbers from 0 to 1."""
    return to_rgb(colour)


def svg(drawn: Figure, transparent: bool = False) -> str:
    """A figure as an SVG element, to be put into a page."""
    text = _written(drawn, "svg", transparent=transparent, metadata={"Date": None, "Creator": None}).decode()
    return text[text.index("<svg") :]


def _written(drawn: Figure, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a browser has them
        drawn.savefig(out, format=kind, **options)
    return out.getvalue()


def save(drawn: Figure, out: Path | str, dpi: int = 200) -> None:
    """Writes a figure as .svg or .png.

    Raises:
        BadInput: another ending, or the file cannot be written.
    """
    path = Path(out)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise BadInput(f"{path}: figures are written as .svg or .png")
    if kind == "png":
        _number(drawn, path.with_suffix(".svg").name)
    about: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    store(path, _written(drawn, kind, dpi=dpi, metadata=about))


def _number(drawn: Figure, instead: str) -> None:
    """Puts numbers in the place of text that this machine cannot draw, and a line about it at the foot."""
    numbers: dict[str, int] = {}
    for part in drawn.findobj(Text):
        if isinstance(part, Text) and part.get_visible() and not drawable(part.get_text()):
            words = part.get_text().split(" ")
            shown = [x if drawable(x) else f"⟨{numbers.setdefault(x, len(numbers) + 1)}⟩" for x in words]
            part.set_text(" ".join(shown))
    if numbers:
        said = f"no font of this machine has the characters of ⟨1⟩ .. ⟨{len(numbers)}⟩; write {instead} to see them"
        drawn.text(0.5, 0.004, said, fontsize=6, color=SOFT, ha="center", va="bottom")


def store(path: Path, data: bytes) -> None:
    """Writes a file under another name, then renames it.

    Raises:
        BadInput: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error}") from None
