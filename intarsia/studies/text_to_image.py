"""M6 draws products from Chinese descriptions, by the codes of a small VQ-VAE trained on such pictures; beside a twin that cannot know what is said.

    python -m intarsia.studies.text_to_image --out runs/t2i --page docs/systems/m6.md

The VQ-VAE, then M6 twice from scratch on one budget: with the descriptions, and with each description put to another picture. Everything is measured on products
that none was trained on: what the codes lose, the loss of a code, and whether what is drawn is what was said, judged by the training picture that is nearest in
shrunk pixels. Parts that are there are not made again, so a run that was killed goes on. Several seeds are told as their mean, the lowest and the highest.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import tyro

from intarsia.batch import Array, Sample
from intarsia.cli_codes import FILE, keep_codes
from intarsia.data.source import Source
from intarsia.drawing import draw
from intarsia.features.codes import WithCodes
from intarsia.features.roi import stretched
from intarsia.features.vq import VQ, Fit, VQNumbers, fit, lost, read_pictures, read_vq, write_vq
from intarsia.model import open as open_model
from intarsia.pack import pack
from intarsia.studies.family import write_section
from intarsia.studies.runs import program
from intarsia.systems.m6 import M6
from intarsia.train import Pace, pretrain
from intarsia.train.start import captions, fresh
from intarsia.viz.sheet import draw_rows
from intarsia.worlds.product_source import ProductSource
from intarsia.worlds.products import KINDS, write_description

RESULT, SHEET = "result.json", "sheet.png"
JUDGED = 24
"""Pixels a side of the pictures that are compared."""


@dataclass
class TextToImage:
    """The runs to make."""

    out: Path
    count: int = 6000
    """Products to train on."""
    held: int = 200
    """Products to measure on."""
    vq_steps: int = 700
    steps: int = 750
    """Of each M6."""
    rows: int = 800
    top_k: int = 100
    shown: int = 8
    """Held-out descriptions in the picture."""
    seed: int = 0
    seeds: int = 1
    """Runs, with this seed and those after it; the picture is the first one's."""
    device: str = "cpu"
    page: Path | None = None
    """Write the numbers here, and the picture beside it."""

    @property
    def each(self) -> list[TextToImage]:
        """The runs one by one, a folder each."""
        numbers = range(self.seed, self.seed + self.seeds)
        return [dataclasses.replace(self, seed=x, seeds=1, out=self.out / f"seed-{x}") for x in numbers]


class Elsewhere:
    """A source whose texts belong to other pictures: text and picture say nothing of each other, and each is as common as before."""

    def __init__(self, source: Source, seed: int = 0) -> None:
        self.source, self.provenance = source, source.provenance
        order = np.random.default_rng([seed, 0xE15E]).permutation(len(source))
        self.other = np.empty_like(order)
        self.other[order] = np.roll(order, 1)  # one round through all: none keeps its own

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        texts = self.source[int(self.other[index])].texts
        return dataclasses.replace(self.source[index], texts=texts, also=(), false_texts=())


def run(options: TextToImage) -> dict[str, Any]:
    """One run, or what it left when it was made before: makes what is missing, measures, draws; writes result.json, sheet.png and sheet.svg."""
    if (options.out / RESULT).is_file():
        made: dict[str, Any] = json.loads((options.out / RESULT).read_text())
        return made
    source, held = ProductSource("train", options.count, 0, "zh"), ProductSource("test", options.held, 0, "zh")
    vq, found = _codec(options, source, held)
    known, other = WithCodes(source, vq), WithCodes(held, vq)
    arms: dict[str, Source] = {"seeing": known, "blind": Elsewhere(known)}
    systems = {name: _trained(options, name, x, other) for name, x in arms.items()}
    found["code loss"] = {name: code_loss(x, other) for name, x in systems.items()}
    found["code loss"]["seeing, descriptions exchanged"] = code_loss(systems["seeing"], Elsewhere(other))
    found["code loss"]["how common each code is"] = _common(known, other, vq.codes)
    shown = [held[i].pictures[0] for i in range(len(held))]
    truth = np.stack([stretched(x.pixels(), vq.numbers.side) for x in shown if x.pixels is not None])
    rebuilt = vq.decode(np.stack([cast(Array, other[i].pictures[0].codes) for i in range(len(other))]))
    drawn = {name: _draw(x, vq, options, other, len(held)) for name, x in systems.items()}
    judge = Judge(source, vq.numbers.side)
    pictures = {
        "truth": truth,
        "rebuilt from its codes": rebuilt,
        "drawn": drawn["seeing"],
        "drawn, blind": drawn["blind"],
    }
    found["as said"] = {name: judge(x, held) for name, x in pictures.items()}
    _sheet(options, vq, systems["seeing"], held, truth, rebuilt)
    (options.out / RESULT).write_text(json.dumps(found, indent=1) + "\n")
    return found


def _codec(options: TextToImage, source: ProductSource, held: ProductSource) -> tuple[VQ, dict[str, Any]]:
    path, numbers = options.out / FILE, VQNumbers()
    pictures, others = (read_pictures(x, numbers.side, len(x)) for x in (source, held))
    if not path.is_file():
        about = f"{len(source)} products, {options.vq_steps} steps, seed {options.seed}"
        vq = fit(
            pictures,
            numbers,
            Fit(steps=options.vq_steps, seed=options.seed),
            about,
            options.device,
            tell=lambda *x: print("vq", *x),
        )
        write_vq(path, vq)
    vq = read_vq(path).to(options.device)
    return vq, {"codes": lost(vq, others, pictures)._asdict()}


def _trained(options: TextToImage, name: str, source: Source, held: Source) -> M6:
    """An arm's system; trained first if there is none."""
    out, recipe = options.out / name, M6.recipes["t2i_tiny"]
    keep_codes(options.out / FILE, out)
    if not (out / "model.safetensors").is_file():
        recipe = dataclasses.replace(
            recipe,
            schedule=dataclasses.replace(recipe.schedule, steps=options.steps, warmup=options.steps // 20),
            batching=dataclasses.replace(recipe.batching, rows=options.rows),
            seed=options.seed,
        )
        assert source.provenance is not None
        system, recipe = fresh(M6, recipe, captions(source), source.provenance)
        pace = Pace(log_every=100, save_every=500, valid_every=max(1, options.steps // 4), tensorboard=False)
        run_on = options.device
        done = pretrain(system, source, recipe, out, valid=held, device=run_on, workers=0, pace=pace, size="t2i_tiny")
        if not done.finished:
            raise SystemExit(f"stopped by {done.stopped_by}; the same command goes on")
    return cast(M6, open_model("m6", weights=out, device=options.device).system)


@torch.inference_mode()
def code_loss(system: M6, source: Source) -> float:
    """Mean cross entropy of a code, in nats, over all pictures of a source."""
    rng, total, device = np.random.default_rng(0), 0.0, system.words.word.weight.device
    for start in range(0, len(source), 50):
        samples = [source[i] for i in range(start, min(start + 50, len(source)))]
        batch = pack([system.hide(x, "text_to_image", rng, lambda: source[0]) for x in samples])
        total += float(system(batch.to(device))[0]["text_to_image"]) * len(samples)
    return total / len(source)


def _common(known: Source, other: Source, codes: int) -> float:
    """The same of a guess that knows how common each code is in training, and nothing else."""
    counts = [np.bincount(cast(Array, known[i].pictures[0].codes), minlength=codes) for i in range(len(known))]
    share = np.sum(counts, 0) + 1.0
    logs = np.log(share / share.sum())
    return float(-np.mean([logs[other[i].pictures[0].codes].mean() for i in range(len(other))]))


def _draw(system: M6, vq: VQ, options: TextToImage, source: Source, count: int, times: int = 1) -> Array:
    """(count * times, S, S, 3): the first `count` texts drawn, each so often."""
    generator = torch.Generator().manual_seed(options.seed)
    parts = []
    for start in range(0, count, 25):
        samples = [source[i] for i in range(start, min(start + 25, count)) for _ in range(times)]
        parts.append(draw(system, samples, vq, generator, options.top_k))
    return np.concatenate(parts)


class Judge:
    """Says what a picture shows: kind and colour of the training picture that is nearest in shrunk pixels.

    Args:
        source: products to compare with.
        side: pixels of the pictures.
    """

    def __init__(self, source: ProductSource, side: int) -> None:
        self.known = self._small(read_pictures(source, side, len(source)))
        self.products = [source.product(i) for i in range(len(source))]

    def _small(self, pictures: Array) -> Array:
        return np.stack([stretched(x, JUDGED) for x in pictures]).reshape(len(pictures), -1).astype(np.float32)

    def __call__(self, pictures: Array, held: ProductSource) -> dict[str, float]:
        """How often kind, colour, and both are those of the product at the same place of `held`."""
        small = self._small(pictures)
        nearest = (np.square(self.known).sum(1) - 2 * small @ self.known.T).argmin(1)
        hits = [
            (mine.kind == true.kind, mine.colour == true.colour)
            for mine, true in ((self.products[n], held.product(i)) for i, n in enumerate(nearest.tolist()))
        ]
        kind, colour = np.array(hits).T
        return {"kind": float(kind.mean()), "colour": float(colour.mean()), "both": float((kind & colour).mean())}


def _sheet(options: TextToImage, vq: VQ, system: M6, held: ProductSource, truth: Array, rebuilt: Array) -> None:
    """The first held-out descriptions: the picture, what its codes keep of it, and four drawings."""
    rows = options.shown
    drawn = _draw(system, vq, options, held, rows, 4).reshape(rows, 4, *truth.shape[1:])
    columns = ["truth", "its codes", *(f"drawn {i}" for i in range(1, 5))]
    table = []
    for i in range(rows):
        said = textwrap.fill(f"{i + 1}. {write_description(held.said(i), 'en')}", 32)
        table.append((said, [truth[i], rebuilt[i], *drawn[i]]))
    title = "Held-out descriptions (said to M6 in Chinese), drawn code by code"
    draw_rows(title, columns, table, options.out / SHEET)


def _picture(page: Path) -> Path:
    return page.with_name(f"{page.stem}_pictures.png")


def tell(options: TextToImage, runs: Sequence[dict[str, Any]]) -> str:
    """The numbers of the runs as Markdown: their mean, the lowest and the highest."""
    held = ProductSource("test", options.held, 0, "zh")
    numbers = ("count", "held", "vq_steps", "steps", "rows", "top_k", "seed", "seeds")
    names = ("kind", "colour", "both")

    def over(*path: str, scale: float = 1.0, digits: int = 0, unit: str = "") -> str:
        found = [scale * float(cast(Any, reduce(operator.getitem, path, run))) for run in runs]
        mean, low, high = (f"{x:.{digits}f}" for x in (float(np.mean(found)), min(found), max(found)))
        return f"{mean}{unit}" + ("" if low == high else f" ({low} - {high})")

    losses = {
        "trained with the descriptions": "seeing",
        "the same, descriptions exchanged when measured": "seeing, descriptions exchanged",
        "trained with exchanged descriptions": "blind",
        "how common each code is, no model": "how common each code is",
    }
    lines = [
        "`" + " ".join(f"--{name.replace('_', '-')} {getattr(options, name)}" for name in numbers) + "`",
        "",
        f"The codes: {runs[0]['codes']['pictures']} held-out pictures come back at {over('codes', 'psnr', digits=1, unit=' dB')} (one mean picture for all: "
        f"{over('codes', 'of_mean', digits=1, unit=' dB')}); they take {over('codes', 'used')} of {runs[0]['codes']['codes']} codes, perplexity "
        f"{over('codes', 'perplexity')}.",
        "",
        "| held-out loss of a code, nats | |",
        "|---|---|",
        *(f"| {told} | {over('code loss', name, digits=3)} |" for told, name in losses.items()),
        "",
        f"| what a picture shows is what was said | kind ({len(KINDS)}) | colour (8) | both |",
        "|---|---|---|---|",
        *(
            f"| {arm} | " + " | ".join(over("as said", arm, x, scale=100, unit=" %") for x in names) + " |"
            for arm in runs[0]["as said"]
        ),
        "",
        f"![held-out descriptions, the pictures, their codes and what M6 draws]({_picture(options.page or Path('m6.md')).name})",
        "",
        *(f"{i + 1}. {held[i].texts[0]}" for i in range(options.shown)),
    ]
    return "\n".join(lines)


def main() -> None:
    """Makes the runs, prints and writes."""
    options = tyro.cli(TextToImage, prog="python -m intarsia.studies.text_to_image")
    told = tell(options, [run(x) for x in options.each])
    print(told)
    if options.page:
        write_section(options.page, "drawn", told, "text_to_image")
        shutil.copyfile(options.each[0].out / SHEET, _picture(options.page))


if __name__ == "__main__":
    program(main, "text_to_image")
