"""`intarsia data codes`, `pretrain --codes` and `intarsia show picture`: pictures as codes, and from texts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from intarsia.errors import BadInput

out = Console()
FILE = "codes.safetensors"
"""The codec in a run folder."""


@dataclass
class Codes:
    """Trains a small VQ-VAE on pictures, for systems that write pictures as codes."""

    pictures: tyro.conf.Positional[str]
    """Pictures, as --data of `intarsia pretrain`; captions do not count."""
    out: Path
    """File of the codec, .safetensors."""
    valid: str | None = None
    """Held-out pictures; None = a twentieth of the data, by picture."""
    split: str = "train"
    valid_split: str | None = None
    """Part of --valid; None = all of it."""
    side: int = 64
    """Pictures are stretched to a square of this many pixels."""
    cell: int = 8
    """Pixels a side of what a code stands for; divides the side."""
    codes: int = 512
    """How many codes there are."""
    channels: int = 96
    """Of every convolution."""
    steps: int = 2000
    batch: int = 32
    """Pictures a step."""
    lr: float = 4e-3
    seed: int = 0
    most: int = 20_000
    """Pictures to train on at most, drawn at random and kept in memory, 3 * side * side bytes each; of those held out a tenth as many."""
    device: str = "auto"


def codes(options: Codes) -> None:
    """Trains the codec, writes it, and says what it loses on held-out pictures."""
    from intarsia.data.corpora import split
    from intarsia.data.opening import open_source
    from intarsia.features.extractor import where_to_run
    from intarsia.features.vq import Fit, VQNumbers, fit, lost, read_pictures, write_vq

    if options.out.suffix != ".safetensors":
        raise BadInput(f"{options.out}: codes are written as .safetensors")
    numbers = VQNumbers(options.side, options.cell, options.codes, channels=options.channels)
    how = Fit(options.steps, options.batch, options.lr, seed=options.seed)
    source: Any = open_source(options.pictures, options.split)
    if options.valid:
        held: Any = open_source(options.valid, options.valid_split)
    else:
        source, held = split(source, 0.05, options.seed)
    pictures = read_pictures(source, numbers.side, options.most, options.seed)
    others = read_pictures(held, numbers.side, max(1, options.most // 10), options.seed)
    about = f"{len(pictures)} pictures of {options.pictures}, {how.steps} steps of {how.batch}, seed {how.seed}"

    def tell(step: int, loss: float, again: int) -> None:
        out.print(f"step {step} loss {loss:.5f} codes begun again {again}", highlight=False)

    vq = fit(pictures, numbers, how, about, str(where_to_run(options.device)), tell)
    write_vq(options.out, vq)
    out.print(f"{lost(vq, others, pictures)}: {options.out}", highlight=False)


# ----------------------------------------------------------------------------------------------------------------- pretrain


def coded(name: str, options: Any, source: Any, held: Any) -> tuple[Any, Any, Any]:
    """What `pretrain --codes` trains on: pictures with codes, the same of held-out ones, and the recipe with their numbers.

    Args:
        name: of the system.
        options: of `intarsia pretrain`.
        source: pictures.
        held: held-out ones, or None.

    Raises:
        BadInput: the system writes no pictures, or the file is no codec.
    """
    from intarsia.features.codes import WithCodes
    from intarsia.features.extractor import where_to_run
    from intarsia.features.vqgan import read_codec

    path, recipe = options.codes, options.recipe
    if "codes" not in type(recipe.config).__dataclass_fields__:
        raise BadInput(f"--codes {path}: {name} writes no pictures")
    vq = read_codec(path).to(where_to_run(options.device))
    error = options.on_error
    shown, other = (None if x is None else WithCodes(x, vq, progress=True, on_error=error) for x in (source, held))
    config = replace(recipe.config, codes=vq.codes, code_length=vq.length)
    return shown, other, replace(recipe, config=config)


def with_codes_of(config: Any, other: Any) -> Any:
    """A config with another's numbers for codes: trained weights begin to write pictures."""
    return replace(config, codes=other.codes, code_length=other.code_length, code_softmax=other.code_softmax)


def keep_codes(path: Path | None, run: Path) -> None:
    """Keeps a codec, if there is one, in a run folder, whose pictures nothing else can decode: ours as it is, a VQGAN in our layout.

    Raises:
        BadInput: the run has another one.
    """
    import torch

    from intarsia.data.formats.files import write_whole
    from intarsia.features.vqgan import VQGAN, read_codec, write_vqgan

    if path is None:
        return
    kept, codec = run / FILE, read_codec(path)
    if kept.is_file():
        mine, other = codec.state_dict(), read_codec(kept).state_dict()
        if mine.keys() != other.keys() or not all(torch.equal(x, other[name]) for name, x in mine.items()):
            raise BadInput(f"--codes {path}: the run {run} was begun with other codes ({kept})")
    elif isinstance(codec, VQGAN):
        write_vqgan(kept, codec)
    else:
        with write_whole(kept) as temporary:
            shutil.copyfile(path, temporary)


# -------------------------------------------------------------------------------------------------------------------- show


@dataclass
class ShowPicture:
    """Draws pictures from a text, side by side."""

    text: tyro.conf.Positional[str]
    weights: Path
    """Folder of a run of `pretrain --codes`."""
    out: Path = Path("picture.png")
    count: int = 4
    """Pictures."""
    top_k: int = 100
    """Of the likeliest codes only so many; 0 = all."""
    top_p: float = 1.0
    """Of these the fewest likeliest that reach this probability."""
    temperature: float = 1.0
    judge: Path | None = None
    """Folder of a run whose system matches pictures and texts: what fits the text best comes first."""
    seed: int = 0
    device: str = "cpu"


def show_picture(args: Sequence[str]) -> str:
    """Draws pictures from a text; returns what to say."""
    options = tyro.cli(ShowPicture, args=args, prog="intarsia show picture")
    import numpy as np
    import torch
    from PIL import Image

    from intarsia.batch import Sample
    from intarsia.data.formats.files import write_whole
    from intarsia.drawing import draw
    from intarsia.features.vqgan import read_codec
    from intarsia.model import open as open_model
    from intarsia.model import read_system

    if options.out.suffix.lower() != ".png":
        raise BadInput(f"{options.out}: pictures are written as .png")
    if options.count < 1 or options.top_k < 0 or not 0 < options.top_p <= 1 or options.temperature <= 0:
        raise BadInput(
            f"count {options.count} (from 1), top_k {options.top_k} (from 0), top_p {options.top_p} (above 0, to 1), "
            f"temperature {options.temperature} (above 0)"
        )
    name = read_system(options.weights)
    system: Any = open_model(name, weights=options.weights, device=options.device).system
    if not getattr(system.config, "codes", 0):
        raise BadInput(f"{options.weights}: {name} was not trained to write pictures (`pretrain m6 --codes`)")
    vq = read_codec(options.weights / FILE).to(options.device)
    generator = torch.Generator().manual_seed(options.seed)
    samples = [Sample("text", (options.text,))] * options.count
    judge: Any = None
    if options.judge:
        judge = open_model(read_system(options.judge), weights=options.judge, device=options.device)
        if not judge.system.matches:
            raise BadInput(f"--judge {options.judge}: {judge.system.card.name} does not match pictures and texts")
    drawn = draw(system, samples, vq, generator, options.top_k, options.top_p, options.temperature)
    told = ""
    if judge is not None:
        fit = np.array([judge.match(x, options.text).score for x in drawn])
        order = np.argsort(-fit, kind="stable")
        drawn, told = drawn[order], f", fit {' '.join(f'{x:.2f}' for x in fit[order])}"
    with write_whole(options.out) as temporary:
        Image.fromarray(np.concatenate(list(drawn), 1)).save(temporary, "PNG")
    return f"{options.count} pictures{told}: {options.out}"
