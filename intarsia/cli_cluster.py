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
    """Clips the tree is grown on, drawn at random."""
    seed: int = 0
    split: str = "train"


def cluster(options: Cluster) -> None:
    """Grows the tree and writes its centroids."""
    import numpy as np
    import torch

    from intarsia.data.opening import open_source
    from intarsia.features.kmeans import fit, write_codebook
    from intarsia.recipe import to_json

    if options.out.suffix != ".safetensors":
        raise BadInput(f"{options.out}: centroids are written as .safetensors")
    source = open_source(options.films, options.split)
    films = (source[i].film for i in range(len(source)))
    parts = [np.asarray(film.features, np.float32) for film in films if film is not None and len(film.features)]
    if not parts:
        raise BadInput(f"{options.films}: no clips in it")
    clips = np.concatenate(parts)
    if len(clips) > options.most:
        clips = clips[np.sort(np.random.default_rng(options.seed).choice(len(clips), options.most, replace=False))]
    about = "" if source.provenance is None else to_json(source.provenance)
    book = fit(torch.from_numpy(clips), options.k, options.depth, options.seed, about=about)
    write_codebook(options.out, book)
    error = float((torch.from_numpy(clips) - book.leaves[book.assign(torch.from_numpy(clips))]).square().sum(1).mean())
    out.print(
        f"{len(clips):,} clips, {book.words:,} words of which {int(book.alive.sum()):,} are used, "
        f"mean squared distance {error:.4g} of {clips.var(0).sum():.4g}: {options.out}",
        highlight=False,
    )
