"""`intarsia show links`: every word of a caption inlaid on its region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from intarsia.errors import BadInput


@dataclass
class ShowLinks:
    """Draws every word of a caption on its region, matched by colour."""

    image: tyro.conf.Positional[Path]
    caption: tyro.conf.Positional[str]
    weights: Path
    """Folder of a run, of any system that reads regions."""
    by: str | None = None
    """The word-region map: "attention", or one of the system's own; None = its "alignment" where it has one, else attention."""
    out: Path = Path("links.png")
    """.png, .svg, or .html: a page on which hovering a word lights its regions."""
    device: str = "cpu"


def show_links(args: Sequence[str]) -> str:
    """Draws the links of a picture and a caption; returns what to say."""
    options = tyro.cli(ShowLinks, args=args, prog="intarsia show links")
    from intarsia.data.decode import decode_image
    from intarsia.model import open as open_model
    from intarsia.model import read_system
    from intarsia.viz.links import draw_links, links_page, word_links

    name = read_system(options.weights)
    if options.out.suffix.lower() not in (".png", ".svg", ".html"):
        raise BadInput(f"{options.out}: links are written as .png, .svg or .html")
    model = open_model(name, weights=options.weights, device=options.device)
    if "regions" not in model.system.needs:
        raise BadInput(f"{options.weights}: {name} reads no regions, so its words lie on none")
    pixels = decode_image(options.image)
    sample = model.sample(pixels, options.caption)
    links = word_links(model.system, sample, options.by)
    boxes, title = sample.pictures[0].boxes, f"{name}, {links.by}"
    (links_page if options.out.suffix.lower() == ".html" else draw_links)(links, pixels, boxes, title, options.out)
    told = [f"  {w:<14} {'-' if r is None else f'region {r}'}" for w, r in zip(links.words, links.region, strict=True)]
    return "\n".join([*told, f"links: {options.out}"])
