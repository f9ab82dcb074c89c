"""What VideoBERT and CBT learn of generated films, in minutes on a CPU.

    python -m intarsia.studies.films --out runs/films

Both are trained from scratch on passages of `films:COUNT` and measured on passages that were never trained on: words that name what is shown, with the clips and
without; whether speech belongs to a video; hidden clips. Numbers are printed and written to `films.json`; runs that are there are not made again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import tyro
from torch import Tensor

from intarsia.batch import Example, Sample, pack
from intarsia.features.kmeans import Codebook, WithWords, fit
from intarsia.model import open as open_model
from intarsia.systems.cbt import CBT
from intarsia.systems.videobert import VideoBERT
from intarsia.train import Pace, pretrain
from intarsia.train.start import captions, fresh
from intarsia.worlds.film_features import ACTIONS, COLOURS, SHAPES, FilmWorld

KINDS = {"colour": COLOURS, "shape": SHAPES, "action": ACTIONS}
RIVALS = 20
BATCH = 32


@dataclass
class Options:
    """A run of both systems."""

    out: Path = Path("runs/films")
    films: int = 3000
    held_out: int = 200
    k: int = 6
    depth: int = 3
    steps: int = 3000
    """Of VideoBERT."""
    cbt_steps: int = 1000
    seed: int = 42


def main() -> None:
    """Trains, measures, prints."""
    options = tyro.cli(Options)
    world, held = FilmWorld(options.films), FilmWorld(options.held_out, split="test")
    clips = torch.from_numpy(np.concatenate([world[i].film.features for i in range(len(world))]))  # type: ignore[union-attr]
    book = fit(clips, options.k, options.depth, options.seed)
    found = {"videobert": _videobert(options, world, held, book), "cbt": _cbt(options, world, held)}
    for name, numbers in found.items():
        for what, value in numbers.items():
            print(f"{name:<10} {what:<60} {value}")
    (options.out / "films.json").write_text(json.dumps(found, indent=2))


def _trained(cls: Any, options: Options, source: Any, book: Codebook | None) -> Any:
    """A run's system; trained first if there is none."""
    name, recipe = cls.card.name, cls.recipes["tiny"]
    out = options.out / name
    if not (out / "model.safetensors").is_file():
        steps = options.cbt_steps if cls is CBT else options.steps
        schedule = dataclasses.replace(recipe.schedule, steps=steps)
        recipe = dataclasses.replace(recipe, schedule=schedule, seed=options.seed)
        if book is not None:
            sizes = {"clusters": book.words, "feature_size": book.leaves.shape[1]}
            recipe = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, **sizes))
        system, recipe = fresh(cls, recipe, captions(source, cls.specials), source.provenance)
        if book is not None:
            cast(VideoBERT, system).fill_words(book)
        pretrain(system, source, recipe, out, device="cpu", workers=1, pace=Pace(log_every=100), size="tiny")
    return open_model(name, weights=out).system


# -------------------------------------------------------------------------------------------------------------- VideoBERT


def _videobert(options: Options, world: FilmWorld, held: FilmWorld, book: Codebook) -> dict[str, str]:
    system = _trained(VideoBERT, options, WithWords(world, book), book)
    samples = [WithWords(held, book)[i] for i in range(len(held))]
    segments = [segment(x, s) for x in samples for s in range(len(x.texts))]
    told = [told for i in range(len(held)) for told in held.told(i)]
    found: dict[str, str] = {}
    for kind, place in (("colour", 2), ("shape", 3), ("action", 4)):
        known = [{"action": a, "colour": c, "shape": s}[kind] for a, c, s in told]
        seen, blind = (_named(system, segments, place, KINDS[kind], known, clips) for clips in (True, False))
        found[f"{kind} of a sentence whose three content words are hidden"] = (
            f"{seen:.3f} with the clips, {blind:.3f} without, chance {1 / len(KINDS[kind]):.3f}"
        )
    found["own speech above that of another sentence of the passage"] = (
        f"{_aligned(system, segments):.3f}, chance 0.500"
    )
    found["visual word of a clip, all clips hidden, from the sentence"] = _pictured(system, segments, book.words)
    return found


def segment(sample: Sample, number: int) -> Sample:
    """One sentence of a passage with the clips of its time."""
    film = sample.film
    assert film is not None
    middles, (start, stop) = film.seconds + film.length / 2, film.spans[number]
    kept = (middles >= start) & (middles < stop)
    cut = dataclasses.replace(
        film,
        features=film.features[kept],
        seconds=film.seconds[kept],
        spans=film.spans[number : number + 1],
        ids=None if film.ids is None else film.ids[kept],
    )
    return dataclasses.replace(sample, key=f"{sample.key}/{number}", texts=(sample.texts[number],), film=cut)


@torch.inference_mode()
def _named(
    system: VideoBERT, samples: Sequence[Sample], place: int, words: Sequence[str], known: Sequence[str], clips: bool
) -> float:
    """How often the likeliest word of a kind in a gap is the one that was said."""
    ids = torch.tensor([system.vocab.index[x] for x in words])
    right = 0
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        asked = [
            system.ask(x if clips else dataclasses.replace(x, film=None), ("now", "the", None, None, None, "."))
            for x in part
        ]
        batch = pack([example for example, _ in asked])
        assert batch.text is not None
        rows = batch.text.packing.first + place + 1
        best = system.word_logits(system.encode(batch), rows)[:, ids].argmax(1).tolist()
        right += sum(words[i] == true for i, true in zip(best, known[start : start + BATCH], strict=True))
    return right / len(samples)


@torch.inference_mode()
def _aligned(system: VideoBERT, samples: Sequence[Sample]) -> float:
    """How often a sentence scores above the next of the same passage, with its own clips."""

    def passage(sample: Sample) -> str:
        return sample.key.split("/")[0]

    pairs = [(a, b) for a, b in itertools.pairwise(samples) if passage(a) == passage(b) and a.texts != b.texts]
    right = 0
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        own, other = (
            system.match_scores(system.encode(pack([system.lay_out(x) for x in side])))
            for side in ([a for a, _ in part], [dataclasses.replace(a, texts=b.texts) for a, b in part])
        )
        right += int((own > other).sum())
    return right / len(pairs)


@torch.inference_mode()
def _pictured(system: VideoBERT, samples: Sequence[Sample], words: int) -> str:
    """The visual word of hidden clips: right, and among the likeliest ten."""
    first = ten = count = 0
    for start in range(0, len(samples), BATCH):
        examples = [system.lay_out(x) for x in samples[start : start + BATCH]]
        for example in examples:
            assert example.clips is not None
            example.clips.masked[:] = True
        batch = pack(examples)
        assert batch.clips is not None
        logits = system.clip_logits(system.encode(batch), torch.arange(batch.clips.packing.rows))
        likely = logits.topk(10, 1).indices == batch.clips.ids[:, None]
        first, ten, count = first + int(likely[:, 0].sum()), ten + int(likely.any(1).sum()), count + len(likely)
    return f"{first / count:.3f} first, {ten / count:.3f} among ten, chance {1 / words:.3f} and {10 / words:.3f}"


# -------------------------------------------------------------------------------------------------------------------- CBT


def _cbt(options: Options, world: FilmWorld, held: FilmWorld) -> dict[str, str]:
    system = _trained(CBT, options, world, None)
    samples = [held[i] for i in range(len(held))]
    return {
        f"own speech first among {RIVALS}": f"{_first(system, samples):.3f}, chance {1 / RIVALS:.3f}",
        "hidden clip first among all clips of 32 passages": _told_apart(system, samples),
    }


@torch.inference_mode()
def _first(system: CBT, samples: Sequence[Sample]) -> float:
    """How often a passage's own speech has the highest score."""
    right = 0
    for i, sample in enumerate(samples):
        texts = [samples[(i + shift) % len(samples)].texts for shift in range(RIVALS)]
        batch = pack([system.lay_out(dataclasses.replace(sample, texts=x)) for x in texts])
        right += int(system.match_scores(system.encode(batch)).argmax() == 0)
    return right / len(samples)


@torch.inference_mode()
def _told_apart(system: CBT, samples: Sequence[Sample]) -> str:
    """How often a hidden clip is found among all of a batch, among those of its passage, and among those of others and itself."""
    hits: list[Tensor] = []
    clips = []
    for start in range(0, len(samples), BATCH):
        examples: list[Example] = []
        for i, sample in enumerate(samples[start : start + BATCH]):
            examples.append(system.hide(sample, "nce", np.random.default_rng([start, i]), lambda: samples[0]))
        batch = pack(examples)
        picks, rows = batch.picks("nce"), batch.clips
        assert rows is not None
        true = rows.feats.index_copy(0, picks.rows, picks.labels)
        keys = system.targets(dataclasses.replace(rows, feats=true))
        query = system.look(rows)[picks.rows]
        if system.config.normalize:
            query, keys = (torch.nn.functional.normalize(x, dim=-1) for x in (query, keys))
        scores = query @ keys.T
        same = rows.packing.doc[picks.rows][:, None] == rows.packing.doc
        own = torch.zeros_like(same).scatter(1, picks.rows[:, None], True)
        apart = [scores, scores.masked_fill(~same, -torch.inf), scores.masked_fill(same & ~own, -torch.inf)]
        hits.append(torch.stack([x.argmax(1) == picks.rows for x in apart], 1))
        clips.append(rows.packing.rows)
    every, within, across = torch.cat(hits).float().mean(0).tolist()
    return f"{every:.3f}; among those of its passage {within:.3f}, against those of other passages {across:.3f}; chance {1 / np.mean(clips):.4f}"


if __name__ == "__main__":
    main()
