"""FashionBERT on generated products: pre-training, matching by its protocol, recognition of category and sub-category.

    python -m intarsia.studies.products --out runs/products --steps 1500

Pictures are cut into cells, each described by its own pixels; broken pairs of pre-training show another product of the sub-category. Matching is by the head of
pre-training, as in the paper. For recognition the description does not name the kind. Everything is measured on other products than those trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from intarsia.batch import Batch
from intarsia.evaluate.products import product_matching
from intarsia.evaluate.running import Inference
from intarsia.pack import pack
from intarsia.recipe import Recipe
from intarsia.system import Finetune, FineTuned, System, begin
from intarsia.systems import find
from intarsia.tasks.category import Category
from intarsia.tasks.metrics.choices import accuracy, macro_f1
from intarsia.train import Pace, pretrain
from intarsia.train.optim import Optimizers, clip
from intarsia.train.start import captions, fresh, without_classes
from intarsia.weights.keymap import KeyMap
from intarsia.worlds.product_source import ProductSource
from intarsia.worlds.products import Level, class_names


@dataclass
class Products:
    """One run."""

    out: Path
    system: str = "fashionbert"
    """Any that reads regions or pixels and matches."""
    count: int = 6000
    """Products to train on."""
    held: int = 1500
    """Products to measure on."""
    cells: int = 8
    """A side of the grid."""
    steps: int = 1500
    rows: int = 2400
    queries: int = 100
    wrong: int = 100
    """Wrong candidates of a query, all of its sub-category."""
    tune_steps: int = 150
    language: str = "en"
    workers: int = 1


def recognise(
    system: System, source: ProductSource, held: ProductSource, level: Level, steps: int, recipe: Recipe[Any]
) -> dict[str, float]:
    """Fine-tunes a system to tell what a product is, 32 a step, and measures it on held-out products.

    Args:
        system: pre-trained; it stays as it is.
        source: products to learn from.
        held: products to measure on.
        level: category or sub-category.
        steps: of the fine-tuning, at a third of the rate of `recipe`.
        recipe: the optimizers and the seed.

    Returns:
        Accuracy and macro F1.
    """
    names = class_names(level, source.language)
    tuned = begin(system, Finetune(Category(len(names)), {}, KeyMap()))
    optim = replace(recipe.optim, lr=recipe.optim.lr / 3)
    optimizers = Optimizers(
        tuned, replace(recipe, optim=optim, schedule=replace(recipe.schedule, steps=steps, warmup=steps // 10))
    )
    rng, fine = np.random.default_rng([recipe.seed, 0xCA7]), torch.zeros(())
    tuned.train()
    for step in range(steps):
        loss, _ = tuned(_asked(tuned, source, rng.integers(len(source), size=32).tolist(), level))
        loss.backward()
        _, divide = clip(optimizers.parameters, recipe.optim.max_norm)
        optimizers.step(step, fine, divide)
    tuned.eval()
    with torch.inference_mode():
        parts = [range(i, min(i + 64, len(held))) for i in range(0, len(held), 64)]
        scores = torch.cat([tuned.scores(_asked(tuned, held, list(part), level)) for part in parts])
    labels = [names.index(held.recognition(i, level).answers[0][0]) for i in range(len(held))]
    return {"accuracy": accuracy(scores.numpy(), labels), "macro F1": macro_f1(scores.numpy(), labels)}


def _asked(tuned: FineTuned, source: ProductSource, numbers: list[int], level: Level) -> Batch:
    names, examples = class_names(level, source.language), []
    for i in numbers:
        sample = source.recognition(i, level)
        example = tuned.system.lay_out(sample)
        example.targets["category"] = np.array(names.index(sample.answers[0][0]))
        examples.append(example)
    return pack(examples)


def run(options: Products) -> dict[str, Any]:
    """Trains, measures, and writes result.json."""
    source = ProductSource("train", options.count, 0, options.language, cells=options.cells)
    held = ProductSource("test", options.held, 0, options.language, cells=options.cells)
    cls = find(options.system)
    tiny = cls.recipes["tiny"]
    recipe = replace(
        tiny,
        schedule=replace(tiny.schedule, steps=options.steps, warmup=options.steps // 20),
        batching=replace(tiny.batching, rows=options.rows),
    )
    assert source.provenance is not None
    system, recipe = fresh(cls, recipe, captions(source, cls.specials), source.provenance)
    recipe, _ = without_classes(recipe, source.provenance)
    pace = Pace(log_every=50, save_every=500, valid_every=250, tensorboard=False)
    pretrain(system, source, recipe, options.out, valid=held, workers=options.workers, device="cpu", pace=pace)
    samples = [held[i] for i in range(len(held))]
    asked = held.candidates(options.queries, options.wrong)
    found: dict[str, Any] = dict(product_matching(system, samples, asked, Inference(progress=False)))
    levels: tuple[Level, ...] = ("category", "sub_category")
    for level in levels:
        found[level] = recognise(system, source, held, level, options.tune_steps, recipe)
    (options.out / "result.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    print(json.dumps(run(tyro.cli(Products, prog="python -m intarsia.studies.products")), indent=1))
