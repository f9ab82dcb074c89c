"""`intarsia data cluster`: the visual words of VideoBERT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from intarsia.errors import BadInput

out = Console()


@dataclass
class Cluster:
    """Clusters the clips of film shards by hierarchical k-means, for systems that read visual words."""

    films: tyro.conf.Positional[str]
    """Film shards, or films:COUNT."""
    out: Path
    """File of the centroids, .safetensors."""
    k: int = 12
    """Children of a node."""
    depth: int = 4
    """Levels; k ** depth words. Fewer clips than words leave words dead."""
    most: int = 1_000_000
    """Clips the tree is grown on, drawn at random; these are held in memory, all others are read film by film."""
    seed: int = 0
    split: str = "train"


def cluster(options: Cluster) -> None:
    """Grows the tree and writes its centroids."""
    from intarsia.data.opening import open_source
    from intarsia.features.kmeans import drawn, fit, quantised, write_codebook
    from intarsia.recipe import to_json

    if options.out.suffix != ".safetensors":
        raise BadInput(f"{options.out}: centroids are written as .safetensors")
    source = open_source(options.films, options.split)
    about = "" if source.provenance is None else to_json(source.provenance)
    clips, total = drawn(source, options.most, options.seed)
    book = fit(clips, options.k, options.depth, options.seed, about=about)
    write_codebook(options.out, book)
    error, variance = quantised(source, book)
    grown = "" if len(clips) == total else f"the tree grown on {len(clips):,} of them, "
    out.print(
        f"{total:,} clips, {grown}{book.words:,} words of which {int(book.alive.sum()):,} are used, "
        f"mean squared distance {error:.4g} of {variance:.4g}: {options.out}",
        highlight=False,
    )
