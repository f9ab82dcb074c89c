"""The systems of a detector's regions at tiny size on one budget, with the picture and without: does each objective use what it sees?

    python -m intarsia.studies.family --data worlds:6000 --valid worlds:300:1 --out runs/family --page docs/family.md

A run is one system, seeing or blind. Blind means: all regions hidden, their boxes and soft labels made alike, pixels all 0, no tags; what is asked for stays. A blind
model knows the texts and how common each class and feature is, so an objective whose held-out loss is lower with the picture has used it. Each run
leaves `result.json` in its folder; runs that are there are not made again, and a run that was killed goes on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from intarsia.batch import Example, Pixels, Sample
from intarsia.data.opening import open_source
from intarsia.errors import BadInput
from intarsia.evaluate.evaluation import pairs
from intarsia.evaluate.matching import retrieval
from intarsia.studies.runs import program
from intarsia.system import System
from intarsia.systems import find
from intarsia.train import Pace, pretrain
from intarsia.train.start import answers_for, captions, fresh, with_answers, without_classes

FAMILY = ("visualbert", "vl_bert", "unicoder_vl", "b2t2", "uniter", "vlp", "oscar", "imagebert")
"""The single streams of a detector's regions; others may be named as far as they read regions or pixels."""


@dataclass
class Family:
    """The runs to make and the table of all of them."""

    data: str
    """Training pairs, as for `intarsia pretrain`."""
    valid: str
    """Held-out pairs."""
    out: Path
    """A folder for all runs."""
    valid_split: str = "test"
    """Part of a data folder that is held out; generated worlds are told apart by their seed."""
    systems: tuple[str, ...] = FAMILY
    steps: int = 1500
    rows: int = 800
    dropout: float = 0.0
    seeds: tuple[int, ...] = (42,)
    """A run each; the table names their numbers in this order."""
    device: str = "cpu"
    """What trains and ranks, as for `intarsia pretrain`."""
    candidates: int = 100
    """Held-out pairs that retrieval ranks."""
    workers: int = 1
    page: Path | None = None
    """Write the table here, as Markdown."""
    section: str = "worlds"
    """Name of the part of the page that is written anew, between its two marks."""


def blind(cls: type[System]) -> type[System]:
    """The system without eyes: the same class, whose examples show nothing of their pictures."""

    def hide(self: System, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        return without_picture(cls.hide(self, untagged(sample), goal, rng, lambda: untagged(draw())))

    return type(f"Blind{cls.__name__}", (cls,), {"hide": hide})


def untagged(sample: Sample) -> Sample:
    """The sample without the tags of its pictures."""
    return dataclasses.replace(sample, pictures=tuple(dataclasses.replace(x, tags=()) for x in sample.pictures))


def without_picture(example: Example) -> Example:
    """The example with all regions hidden and alike, and all pixels 0; its targets stay."""
    regions = example.regions
    if regions is None:
        return example
    return dataclasses.replace(
        example,
        images=tuple(_black(x) for x in example.images),
        regions=dataclasses.replace(
            regions,
            masked=np.ones(len(regions), np.bool_),
            boxes=np.tile(np.array([0, 0, 1, 1], np.float32), (len(regions), 1)),
            probs=None if regions.probs is None else np.full_like(regions.probs, 1 / regions.probs.shape[1]),
            labels=None if regions.labels is None else np.zeros_like(regions.labels),
            scores=None if regions.scores is None else np.ones_like(regions.scores),
            attributes=None if regions.attributes is None else np.zeros_like(regions.attributes),
            covers=None,
        ),
    )


def _black(image: Pixels) -> Pixels:
    return Pixels(partial(np.zeros, (3, image.height, image.width), np.float32), image.height, image.width)


def run(options: Family, name: str, sees: bool, seed: int = 42) -> dict[str, Any]:
    """One run, or what it left when it was made before."""
    folder = options.out / f"{name}-{'seeing' if sees else 'blind'}{'' if seed == 42 else f'-{seed}'}"
    result = folder / "result.json"
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    cls = find(name) if sees else blind(find(name))
    source, held = open_source(options.data, "train"), open_source(options.valid, options.valid_split)
    assert source.provenance is not None, f"{options.data}: extract its regions first"
    answers = answers_for(cls, source)
    budget = with_answers(_budget(cls, options, seed), answers)
    system, recipe = fresh(cls, budget, captions(source, cls.specials), source.provenance)
    recipe, _ = without_classes(recipe, source.provenance, answers)
    pace = Pace(log_every=100, save_every=500, valid_every=options.steps // 4, valid_batches=24, tensorboard=False)
    outcome = pretrain(
        system, source, recipe, folder, valid=held, workers=options.workers, device=options.device, pace=pace
    )
    if not outcome.finished:
        raise SystemExit(f"stopped by {outcome.stopped_by}; the same command goes on")
    found = {"system": name, "sees": sees, "parameters": sum(x.numel() for x in system.parameters())}
    found["valid"] = _last(folder / "metrics.jsonl", "valid")
    found["seconds"] = _last(folder / "metrics.jsonl", "seconds")
    if sees and system.matches:
        samples = [held[i] for i in range(min(len(held), options.candidates))]
        ranked = retrieval(system, *pairs(samples))
        found["retrieval"] = [ranked.text_to_image.at[1], ranked.image_to_text.at[1]]
    result.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _budget(cls: type[System], options: Family, seed: int) -> Any:
    recipe = cls.recipes["tiny"]
    plan = recipe.schedule
    return dataclasses.replace(
        recipe,
        config=dataclasses.replace(recipe.config, hidden_dropout_prob=options.dropout),
        schedule=dataclasses.replace(plan, steps=options.steps, warmup=plan.warmup * options.steps // plan.steps),
        batching=dataclasses.replace(recipe.batching, rows=options.rows),
        seed=seed,
    )


def _last(path: Path, field: str) -> Any:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line[field] for line in lines if field in line][-1]


def table(results: Sequence[dict[str, Any]]) -> str:
    """The runs as a Markdown table: a row an objective of a system; where it has several runs of a kind, the numbers of all."""
    lines = [
        "| system | objective | held-out loss, seeing | blind | R@1, text to picture / back | minutes |",
        "|---|---|---|---|---|---|",
    ]
    by_name: dict[str, dict[bool, list[dict[str, Any]]]] = {}
    for result in results:
        by_name.setdefault(result["system"], {True: [], False: []})[result["sees"]].append(result)
    for name, arms in by_name.items():
        assert arms[True], f"{name}: no seeing run"
        ranked = (x.get("retrieval", []) for x in arms[True])
        ends = ", ".join(" / ".join(f"{100 * x:.0f} %" for x in found) or "-" for found in ranked)
        ends += " | " + ", ".join(f"{x['seconds'] / 60:.1f}" for x in arms[True])
        for i, goal in enumerate(arms[True][0]["valid"]):
            losses = (
                ", ".join(f"{x['valid'].get(goal, float('nan')):.3g}" for x in arms[sees]) for sees in (True, False)
            )
            lines.append(f"| {'' if i else name} | {goal} | {' | '.join(losses)} | {' | ' if i else ends} |")
    return "\n".join(lines) + "\n"


def main(args: Sequence[str] | None = None) -> None:
    """Makes the runs and prints the table."""
    options = tyro.cli(Family, args=args, prog="python -m intarsia.studies.family")
    results = [
        run(options, name, sees, seed) for name in options.systems for sees in (True, False) for seed in options.seeds
    ]
    print(table(results))
    if options.page:
        about = f"--data {options.data} --valid {options.valid} --steps {options.steps} --rows {options.rows}"
        write_section(options.page, options.section, f"`{about} --dropout {options.dropout:g}`\n\n{table(results)}")


def write_section(page: Path, name: str, text: str, by: str = "family") -> None:
    """Writes what stands between the marks of a section anew and leaves the rest of the page alone.

    Raises:
        BadInput: the page has no such section.
    """
    begin, end = f"<!-- {name}: written by python -m intarsia.studies.{by} -->", f"<!-- {name}: end -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise BadInput(f"{page}: has no section {name!r}; it stands between {begin} and {end}")
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")


if __name__ == "__main__":
    program(main, "family")
