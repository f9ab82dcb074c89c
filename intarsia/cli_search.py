"""`intarsia index | search`: a folder of pictures made searchable by text, for systems of two towers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from intarsia.errors import BadInput

out = Console()


@dataclass
class IndexOptions:
    """Makes a folder of pictures searchable; run again after a kill, it goes on."""

    pictures: tyro.conf.Positional[Path]
    """Folder with pictures, in folders or not."""
    out: Path
    """Folder of the index."""
    weights: Path
    """Folder of a run."""
    system: str = "wenlan"
    """One that encodes texts and pictures apart."""
    batch: int = 32
    """Pictures at once; what a kill may cost."""
    faiss: bool = False
    """Sort the vectors into cells too, so that a search need not read all of them (needs faiss)."""
    on_error: Literal["stop", "skip"] = "stop"
    """skip = pictures that cannot be read are counted and listed in skipped.txt."""
    device: str = "cpu"


def index(args: Sequence[str]) -> None:
    """A folder of pictures to an index that `search` reads."""
    options = tyro.cli(IndexOptions, args=args, prog="intarsia index")
    import hashlib

    from intarsia.data.formats.files import sha256_of
    from intarsia.data.formats.picture_folder import PictureFolder
    from intarsia.search import About, Index, Writer, sort_into_cells

    if not options.pictures.is_dir():
        raise BadInput(f"{options.pictures}: no such folder")
    names = PictureFolder(options.pictures).names
    model = _towers(options.system, options.weights, options.device)
    weights = options.weights.resolve()
    said = hashlib.sha256("\n".join(names).encode()).hexdigest()
    checksum = sha256_of(weights / "model.safetensors")
    width = model.system.config.embedding_size
    writer = Writer(
        options.out, About(options.system, str(weights), checksum, str(options.pictures.resolve()), said, width)
    )
    skipped: list[str] = []
    if not writer.finished:
        for block, vectors, failed in _encoded(model, options, names, writer.names):
            if failed and options.on_error == "stop":
                raise failed[0]
            skipped += map(str, failed)
            if block:
                writer.add(block, vectors)
        writer.finish(skipped)
    made = Index(options.out)
    out.print(f"{len(made.names)} pictures, {made.about.skipped} left out: {options.out}", highlight=False)
    if options.faiss:
        out.print(f"sorted into {sort_into_cells(made)} cells", highlight=False)


def _towers(system: str, weights: Path, device: str) -> Any:
    from intarsia.model import open as open_model

    model = open_model(system, weights=weights, device=device)
    if not model.system.towers:
        raise BadInput(
            f"{system} reads texts and pictures together: only systems of two towers can be searched (wenlan)"
        )
    return model


def _encoded(
    model: Any, options: IndexOptions, names: Sequence[str], done: Sequence[str]
) -> Iterator[tuple[list[str], Any, list[BadInput]]]:
    """Names, vectors (n, D) and errors of each block of pictures still to do."""
    from intarsia.evaluate.running import QUIET
    from intarsia.evaluate.towers import embed
    from intarsia.extract import Bar

    # Pictures come in the order of their names; those left out before the last one done are tried again, to be counted.
    have = set(done)
    todo = [name for name in names if name not in have]
    with Bar("index", len(todo)) as bar:
        for start in range(0, len(todo), options.batch):
            good, examples, failed = [], [], []
            for name in todo[start : start + options.batch]:
                try:
                    examples.append(model.system.lay_out(model.sample(options.pictures / name, ".")))
                    good.append(name)
                except BadInput as error:
                    failed.append(error)
            yield good, embed(model.system, examples, "picture", QUIET).numpy() if good else None, failed
            bar.show(min(start + options.batch, len(todo)))


@dataclass
class SearchOptions:
    """The pictures of an index that fit a text best."""

    text: tyro.conf.Positional[str]
    index: Path
    """Folder that `intarsia index` made."""
    top: int = 10
    cells: int = 0
    """Read only the vectors of so many cells, the nearest, of an index made with --faiss; 0 = compare all."""
    weights: Path | None = None
    """Where the run is now, if it was moved since."""
    out: Path | None = None
    """Picture to write: what was found, side by side."""
    device: str = "cpu"


def search(args: Sequence[str]) -> None:
    """Finds pictures by a text in an index."""
    options = tyro.cli(SearchOptions, args=args, prog="intarsia search")
    from intarsia.batch import Sample
    from intarsia.data.formats.files import sha256_of
    from intarsia.evaluate.running import QUIET
    from intarsia.evaluate.towers import embed
    from intarsia.search import Cells, Index

    if not options.text.strip():
        raise BadInput("the text to search for is empty")
    if options.top < 1:
        raise BadInput(f"--top {options.top}: at least 1")
    index = Index(options.index)
    weights = options.weights or Path(index.about.weights)
    model = _towers(index.about.system, weights, options.device)
    if (found := sha256_of(weights / "model.safetensors")) != index.about.checksum:
        raise BadInput(
            f"{weights}: other weights ({found[:8]}) than those that made {options.index} ({index.about.checksum[:8]})"
        )
    query = embed(model.system, [model.system.lay_out(Sample("query", (options.text,)))], "text", QUIET)[0].numpy()
    hits = Cells(index).search(query, options.top, options.cells) if options.cells else index.search(query, options.top)
    for rank, hit in enumerate(hits, 1):
        out.print(f"{rank:>3}  {hit.score:+.3f}  {hit.name}", highlight=False, soft_wrap=True)
    if options.out:
        from intarsia.viz.sheet import draw_sheet

        draw_sheet(options.text, [(Path(index.about.root) / x.name, f"{x.score:+.3f}") for x in hits], options.out)
        out.print(f"picture: {options.out}")
