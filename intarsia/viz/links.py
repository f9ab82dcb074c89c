"""Every word of a caption inlaid on its region, matched by colour: as a picture, and as a page on which hovering a word lights its regions."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import ConnectionPatch, FancyBboxPatch, Rectangle
from PIL import Image

from intarsia.batch import Array, Sample
from intarsia.errors import BadInput
from intarsia.evaluate import Inference, Look, word_region_maps
from intarsia.objectives.granular import STOPS
from intarsia.system import System
from intarsia.viz import style
from intarsia.viz.regions import whole_words
from intarsia.viz.strips import natural_width

_SIDE = 4.6  # inches, longer side of the picture
_TILE = 0.62


@dataclass(frozen=True, slots=True)
class Links:
    """Which region each word lies on."""

    words: tuple[str, ...]
    """T whole words."""
    shares: Array
    """(T, R) float, rows sum to 1, or to 0 where the system gives a word nothing."""
    region: tuple[int | None, ...]
    """(T) the region with the greatest share; None for words that no region shows, and where shares are nearly even."""
    by: str
    """The map they were read from."""

    def colour(self, word: int) -> str:
        """The colour of a word's region; words of one region share it."""
        region = self.region[word]
        if region is None:
            return style.FAINT
        order = list(dict.fromkeys(x for x in self.region if x is not None))
        return style.CATEGORIES[order.index(region) % len(style.CATEGORIES)]


def word_links(system: System, sample: Sample, by: str | None = None) -> Links:
    """Reads the links of a sample's words off a system.

    Args:
        system: trained.
        sample: one text, one picture with regions.
        by: a map of the system's own by name, or "attention", the mean of all; None = its "alignment" where it has one, else attention.

    Raises:
        BadInput: the system has no such map.
    """
    example = system.lay_out(sample)
    maps = word_region_maps(system, [example], Inference(progress=False))[0].of_picture(sample)
    known = dict(maps.own)
    if len(maps.words):
        known["attention"] = maps.seen(Look())
    chosen = by or ("alignment" if "alignment" in known else "attention")
    if chosen not in known:
        raise BadInput(
            f"{system.card.name} has no word-region map {chosen!r} (it has {', '.join(sorted(known)) or 'none'})"
        )
    assert example.text is not None, "the system reads text"
    rows = np.flatnonzero(example.text.words >= 0)
    pieces = [system.vocab.tokens[int(i)] for i in example.text.ids[rows]]
    words, found = whole_words(pieces, {chosen: known[chosen][rows]})
    shares = found[chosen]
    even = 1.2 / max(1, shares.shape[1])
    region = [
        None
        if word in STOPS or not any(c.isalnum() for c in word) or not len(row) or row.max() < even
        else int(row.argmax())
        for word, row in zip(words, shares, strict=True)
    ]
    return Links(tuple(words), shares, tuple(region), chosen)


def draw_links(links: Links, pixels: Array, boxes: Array, title: str, out: Path | str) -> None:
    """The picture with its regions, and under it the caption as tiles, each inlaid with what it lies on. Written as .png or .svg.

    Args:
        links: of the words.
        pixels: (H, W, 3) uint8.
        boxes: (R, 4) xyxy as fractions.
        title: said above.
        out: file to write.

    Raises:
        BadInput: the file has another ending or cannot be written.
    """
    high, wide = pixels.shape[:2]
    scale = _SIDE / max(high, wide)
    widths = [max(_TILE, natural_width(x, 9.5) + 0.16) for x in links.words]
    lines = _lines(widths, max(wide * scale, 6.2))
    width = max(wide * scale, max(sum(widths[i] for i in line) + 0.08 * len(line) for line in lines)) + 0.6
    tall = 0.55 + high * scale + len(lines) * (_TILE + 0.62) + 0.2
    with style.settings("links"):
        figure = style.figure(width, tall)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, width)
        axes.set_ylim(tall, 0)
        axes.axis("off")
        axes.text(0.3, 0.3, title, fontsize=9, color=style.SOFT, va="center")
        left = (width - wide * scale) / 2
        part = figure.add_axes(
            (left / width, 1 - (0.5 + high * scale) / tall, wide * scale / width, high * scale / tall)
        )
        part.imshow(pixels)
        part.set_xlim(0, wide)
        part.set_ylim(high, 0)
        part.axis("off")
        named = {region: links.colour(i) for i, region in enumerate(links.region) if region is not None}
        for region, (x1, y1, x2, y2) in enumerate(boxes * np.array([wide, high, wide, high])):
            colour = named.get(region, "#ffffff")
            look: dict[str, Any] = {
                "linewidth": 2.4 if region in named else 0.7,
                "alpha": 1 if region in named else 0.6,
            }
            part.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, **look))
        y = 0.5 + high * scale + 0.42
        for number, line in enumerate(lines):
            x = (width - sum(widths[i] for i in line) - 0.08 * (len(line) - 1)) / 2
            for i in line:
                _tile(figure, axes, part, links, i, pixels, boxes, (x, y, widths[i]), (width, tall), number == 0)
                x += widths[i] + 0.08
            y += _TILE + 0.62
        style.save(figure, out)


def _lines(widths: Sequence[float], room: float) -> list[list[int]]:
    lines: list[list[int]] = [[]]
    spent = 0.0
    for i, width in enumerate(widths):
        if lines[-1] and spent + width > room:
            lines.append([])
            spent = 0.0
        lines[-1].append(i)
        spent += width + 0.08
    return lines


def _tile(
    figure: Any, axes: Any, part: Any, links: Links, i: int, pixels: Array, boxes: Array, at: Any, size: Any, tied: bool
) -> None:
    """One word: its region's pixels, the word under them, and, if tied, a line to where they lie."""
    (x, y, width), (wide, tall), region, colour = at, size, links.region[i], links.colour(i)
    edge = FancyBboxPatch(
        (x + 0.04, y + 0.04),
        width - 0.08,
        _TILE + 0.24,
        boxstyle="round,pad=0.04,rounding_size=0.05",
        facecolor=(*style.rgb(colour), 0.14),
        edgecolor=colour,
        linewidth=1.1,
    )
    axes.add_patch(edge)
    axes.text(x + width / 2, y + _TILE + 0.15, links.words[i], fontsize=9.5, color=style.INK, ha="center", va="center")
    if region is None:
        return
    crop = _crop(pixels, boxes[region])
    side = _TILE - 0.12
    inlay = figure.add_axes(((x + (width - side) / 2) / wide, 1 - (y + 0.06 + side) / tall, side / wide, side / tall))
    inlay.imshow(crop)
    inlay.axis("off")
    if not tied:
        return
    x1, _, x2, y2 = boxes[region]
    foot = ((x1 + x2) / 2 * pixels.shape[1], y2 * pixels.shape[0])
    line = ConnectionPatch(
        foot, (x + width / 2, y), part.transData, axes.transData, color=colour, linewidth=1.1, alpha=0.75
    )
    figure.add_artist(line)


def _crop(pixels: Array, box: Array) -> Array:
    high, wide = pixels.shape[:2]
    x1, y1, x2, y2 = (np.clip(box, 0, 1) * np.array([wide, high, wide, high])).round().astype(int)
    return pixels[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 18px/1.6 system-ui, sans-serif; color: #20242c; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }}
#picture {{ position: relative; display: inline-block; line-height: 0; }}
#picture img {{ width: {width}px; max-width: 100%; image-rendering: auto; }}
#picture i {{ position: absolute; border: 2px solid; box-sizing: border-box; transition: opacity .12s; pointer-events: none; }}
#caption b {{ font-weight: normal; padding: .1em .35em; margin: 0 .06em; border-radius: .3em; cursor: default; border-bottom: 3px solid; display: inline-block; }}
#caption b:focus, #caption b:hover {{ outline: 2px solid #20242c; }}
small {{ color: #7d8593; }}
</style>
<p id="caption"></p>
<div id="picture"><img alt="{title}" src="data:image/png;base64,{image}"></div>
<p><small>{title}. Hover or focus a word: the regions it lies on, the stronger the more. Read from the map "{by}".</small></p>
<script>
const links = {data};
const picture = document.getElementById("picture"), caption = document.getElementById("caption");
const frames = links.boxes.map(box => {{
  const frame = document.createElement("i");
  frame.style.left = 100 * box[0] + "%"; frame.style.top = 100 * box[1] + "%";
  frame.style.width = 100 * (box[2] - box[0]) + "%"; frame.style.height = 100 * (box[3] - box[1]) + "%";
  picture.append(frame);
  return frame;
}});
const rest = () => frames.forEach((frame, r) => {{
  const word = links.region.indexOf(r);
  frame.style.borderColor = word < 0 ? "#8b93a3" : links.colours[word];
  frame.style.opacity = word < 0 ? .25 : 1; frame.style.background = "none";
}});
links.words.forEach((text, i) => {{
  const word = document.createElement("b");
  word.textContent = text; word.tabIndex = 0;
  word.style.borderColor = links.colours[i]; word.style.background = links.colours[i] + "22";
  const show = () => {{
    const most = Math.max(...links.shares[i], 1e-9);
    frames.forEach((frame, r) => {{
      const share = links.shares[i][r] / most;
      frame.style.borderColor = links.region[i] === null ? "#8b93a3" : links.colours[i];
      frame.style.opacity = .08 + .92 * share; frame.style.background = share > .5 ? links.colours[i] + "44" : "none";
    }});
  }};
  word.onmouseenter = word.onfocus = show; word.onmouseleave = word.onblur = rest;
  caption.append(word, " ");
}});
rest();
</script></html>
"""


def links_page(links: Links, pixels: Array, boxes: Array, title: str, out: Path) -> None:
    """A page that stands alone: hovering a word lights its regions. Args as of `draw_links`; out is an .html file.

    Raises:
        BadInput: the file cannot be written.
    """
    image = io.BytesIO()
    Image.fromarray(pixels).save(image, "PNG")
    data = {
        "words": links.words,
        "region": links.region,
        "colours": [links.colour(i) for i in range(len(links.words))],
        "shares": np.round(links.shares, 4).tolist(),
        "boxes": np.round(boxes.astype(float), 4).tolist(),
    }
    text = _PAGE.format(
        title=html.escape(title),
        by=html.escape(links.by),
        width=max(320, min(720, pixels.shape[1])),
        image=base64.b64encode(image.getvalue()).decode(),
        data=json.dumps(data).replace("</", "<\\/"),
    )
    style.store(out, text.encode())
