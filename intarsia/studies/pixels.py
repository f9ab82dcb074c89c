"""Pixel-BERT from raw pixels, with the picture and without: what is learnt of it where nothing but pixels and words is given?

    python -m intarsia.studies.pixels --data worlds:6000 --held worlds:300:1 --out runs/worlds --page docs/systems/pixel_bert.md
    python -m intarsia.studies.pixels --data stamps --held stamps@test --out runs/stamps --page docs/systems/pixel_bert.md --section stamps

No detector and no region takes part. The paper's CNN comes from ImageNet, where it has learnt to name what a picture shows. Ours has no weights to come from, so it
may first learn to name objects that are cut out of the training pictures (`--trunk-steps`), with the labels they have there; 0 = the CNN starts from random weights. Both
arms start from the same CNN. A run is seeing or blind (`studies.family`); runs that are there are not made again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from intarsia.batch import Array
from intarsia.data.decode import pixels_of
from intarsia.data.opening import open_source
from intarsia.data.source import Source
from intarsia.errors import BadInput
from intarsia.evaluate.evaluation import pairs
from intarsia.evaluate.matching import retrieval
from intarsia.features.resnet import ResNet, normalised
from intarsia.features.roi import crops
from intarsia.pack import pack
from intarsia.studies.family import blind, write_section
from intarsia.studies.runs import program
from intarsia.systems.pixel_bert import PixelBERT
from intarsia.train import Pace, pretrain
from intarsia.train.start import NO_FEATURES, captions, fresh

GOALS = {"mlm": "mlm", "itm": "mlm+itm"}
"""Loss -> the objective that it is measured in."""
SIDE = 48
"""Pixels a side of an object that the CNN learns to name."""


@dataclass
class Pixels:
    """The runs to make and the table of them."""

    data: str
    """Training pairs, as for `intarsia pretrain`."""
    held: tuple[str, ...]
    """Held-out pairs, several data sets if one likes; `PATH@SPLIT` for a part of a folder."""
    out: Path
    steps: int = 3000
    rows: int = 2400
    trunk_steps: int = 400
    """Steps in which the CNN learns to name objects before."""
    seed: int = 42
    seeds: int = 1
    candidates: int = 100
    """Held-out pairs that retrieval ranks."""
    workers: int = 1
    device: str = "cpu"
    page: Path | None = None
    """Write the table here, as Markdown."""
    section: str = "worlds"
    """Name of the part of the page that is written anew, between its two marks."""


def opened(spec: str) -> Source:
    """A data set, or a part of it."""
    path, _, split = spec.partition("@")
    return open_source(path, split or None)


def objects(source: Source, most: int) -> tuple[Array, Array]:
    """Objects cut out of training pictures.

    Args:
        source: pictures whose boxes have labels, and perhaps attributes, or tags, one a box.
        most: samples looked at.

    Returns:
        (N, SIDE, SIDE, 3) uint8, and (N, K) int64: a number for each of K kinds of name.

    Raises:
        BadInput: no box has a name.
    """
    cut, named, seen, tags = [], [], set[str](), dict[str, int]()
    for i in range(min(len(source), most)):
        sample = source[i]
        for picture in sample.pictures[:1]:
            if picture.name in seen:
                continue
            seen.add(picture.name)
            names = [x for x in (picture.labels, picture.attributes) if x is not None]
            if not names and len(picture.tags) == len(picture.boxes):
                names = [np.array([tags.setdefault(x, len(tags)) for x in picture.tags], np.int64)]
            if names:
                cut.append(crops(pixels_of(picture, sample.key), picture.boxes, SIDE))
                named.append(np.stack(names, 1))
    if not cut:
        raise BadInput("no box of the training pictures has a label or a tag; take --trunk-steps 0")
    return np.concatenate(cut), np.concatenate(named)


def name_objects(net: ResNet, cut: Array, named: Array, steps: int, seed: int, batch: int = 96) -> list[float]:
    """Trains a CNN to name objects: cross entropy of its map's maximum, one linear layer for each kind of name. In place.

    Args:
        net: its device is where this runs.
        cut: (N, S, S, 3) uint8.
        named: (N, K) int64.
        steps: of AdamW, the rate falling to 0.
        seed: of the layers and the batches.
        batch: objects a step.

    Returns:
        For each kind of name, the share of the last tenth of the steps' objects that were named right.
    """
    device = next(net.parameters()).device
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        heads = nn.ModuleList(nn.Linear(net.width, int(x.max()) + 1) for x in named.T).to(device)
    optimizer = torch.optim.AdamW([*net.parameters(), *heads.parameters()], 3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    rng, right = np.random.default_rng([seed, 0x7A]), list[Tensor]()
    net.train()
    for _ in range(steps):
        at = rng.integers(len(cut), size=batch)
        seen = net.features(normalised(cut[at]).to(device)).amax((2, 3))
        truth = torch.from_numpy(named[at].T.copy()).to(device)
        said = [head(seen) for head in heads]
        loss = torch.stack([nn.functional.cross_entropy(x, y) for x, y in zip(said, truth, strict=True)]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        right.append(torch.stack([(x.argmax(1) == y).float().mean() for x, y in zip(said, truth, strict=True)]))
    return [round(x, 4) for x in torch.stack(right[-max(1, steps // 10) :]).mean(0).tolist()]


@torch.inference_mode()
def losses(system: PixelBERT, source: Source, most: int = 400) -> dict[str, float]:
    """Held-out losses, over the first samples, always with the same parts hidden and the same pairs broken."""
    device, found = next(system.parameters()).device, dict[str, float]()
    for name, goal in GOALS.items():
        total, count = 0.0, min(most, len(source))
        for start in range(0, count, 50):
            rng = np.random.default_rng([start, 0x10])
            batch = pack(
                [
                    system.hide(source[i], goal, rng, lambda: source[int(rng.integers(len(source)))])  # noqa: B023
                    for i in range(start, min(start + 50, count))
                ]
            )
            total += float(system(batch.to(device))[0][name]) * len(batch.keys)
        found[name] = total / count
    return found


def run(options: Pixels, sees: bool) -> dict[str, Any]:
    """One run, or what it left when it was made before."""
    folder = options.out / f"{'seeing' if sees else 'blind'}-{options.seed}"
    result = folder / "result.json"
    if result.is_file():
        made: dict[str, Any] = json.loads(result.read_text())
        return made
    source, held = opened(options.data), {name: opened(name) for name in options.held}
    tiny = PixelBERT.recipes["tiny"]
    recipe = dataclasses.replace(
        tiny,
        schedule=dataclasses.replace(tiny.schedule, steps=options.steps, warmup=options.steps // 20),
        batching=dataclasses.replace(tiny.batching, rows=options.rows),
        seed=options.seed,
    )
    cls = PixelBERT if sees else blind(PixelBERT)
    system, recipe = fresh(cls, recipe, captions(source), source.provenance or NO_FEATURES)
    assert isinstance(system, PixelBERT)
    found: dict[str, Any] = {"sees": sees}
    if options.trunk_steps:
        cut, named = objects(source, 4000)
        system.to(options.device)
        found["objects named"] = name_objects(system.backbone, cut, named, options.trunk_steps, options.seed)
        system.cpu()
    pace = Pace(log_every=100, save_every=10**9, valid_every=max(1, options.steps // 6), tensorboard=False)
    on = options.device
    watched = next(iter(held.values()))
    outcome = pretrain(system, source, recipe, folder, valid=watched, workers=options.workers, device=on, pace=pace)
    if not outcome.finished:
        raise SystemExit(f"stopped by {outcome.stopped_by}; the same command goes on")
    system.eval()
    found["held"] = {name: losses(system, x) for name, x in held.items()}
    for name, x in held.items() if sees else ():
        ranked = retrieval(system, *pairs([x[i] for i in range(min(len(x), options.candidates))]))
        found["held"][name]["R@1"] = [ranked.text_to_image.at[1], ranked.image_to_text.at[1]]
    result.write_text(json.dumps(found, indent=1) + "\n")
    return found


def table(options: Pixels, runs: dict[bool, Sequence[dict[str, Any]]]) -> str:
    """The runs as Markdown: means, and lowest and highest of several seeds."""

    def over(sees: bool, spec: str, name: str) -> str:
        found = [x["held"][spec][name] for x in runs[sees]]
        spread = f" ({min(found):.3f} - {max(found):.3f})" if len(found) > 1 else ""
        return f"{float(np.mean(found)):.3f}{spread}"

    lines = ["| held out | loss | seeing | blind | R@1, text to picture / back |", "|---|---|---|---|---|"]
    for spec in options.held:
        ranks = np.mean([x["held"][spec]["R@1"] for x in runs[True]], 0)
        for name in GOALS:
            ends = " / ".join(f"{100 * x:.0f} %" for x in ranks) if name == "itm" else ""
            lines.append(f"| {spec} | {name} | {over(True, spec, name)} | {over(False, spec, name)} | {ends} |")
    named = [x["objects named"] for x in runs[True] if "objects named" in x]
    if named:
        shares = " and ".join(f"{100 * x:.0f} %" for x in np.mean(named, 0))
        lines += ["", f"The CNN named {shares} of the objects right before."]
    return "\n".join(lines) + "\n"


def main(args: Sequence[str] | None = None) -> None:
    """Makes the runs and prints the table."""
    options = tyro.cli(Pixels, args=args, prog="python -m intarsia.studies.pixels")
    each = [dataclasses.replace(options, seed=x) for x in range(options.seed, options.seed + options.seeds)]
    told = table(options, {sees: [run(x, sees) for x in each] for sees in (True, False)})
    print(told)
    if options.page:
        names = ("data", "held", "steps", "rows", "trunk_steps", "seed", "seeds")
        given = {x: getattr(options, x) for x in names} | {"held": " ".join(options.held)}
        about = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items())
        write_section(options.page, options.section, f"`{about}`\n\n{told}", "pixels")


if __name__ == "__main__":
    program(main, "pixels")
