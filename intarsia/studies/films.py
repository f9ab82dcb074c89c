"""What VideoBERT and CBT learn of generated films, in minutes on a CPU.

    python -m intarsia.studies.films --out runs/films                            films of vectors
    python -m intarsia.studies.films --out runs/films --data CLIPS               films read back from files, see docs/video.md

Both are trained from scratch and measured on passages that were never trained on: words that name what is shown, with the clips, without them, and by a
VideoBERT that was trained on text alone; whether speech belongs to a video; hidden clips; captions, beside those of a captioner that is blind. Numbers are
printed and written to `films.json`; runs that are there are not made again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from intarsia import decode
from intarsia.batch import Array, Film, Sample
from intarsia.cli_video import sentences
from intarsia.data.corpora import speaking
from intarsia.data.opening import open_source
from intarsia.data.source import Provenance
from intarsia.evaluate.films import BATCH, hidden_clip_logits, unseen
from intarsia.evaluate.running import piece_rows, pieces_in
from intarsia.evaluate.words import guess_words
from intarsia.features.kmeans import CODEBOOK, Codebook, WithWords, drawn, fit, read_codebook, write_codebook
from intarsia.model import open as open_model
from intarsia.pack import pack
from intarsia.recipe import Recipe, to_json
from intarsia.system import System
from intarsia.systems.cbt import CBT, FOUND
from intarsia.systems.videobert import VideoBERT
from intarsia.tasks.metrics import ptb
from intarsia.tasks.metrics.captions import score
from intarsia.train import Pace, pretrain
from intarsia.train.start import captions, fresh, with_words
from intarsia.weights.files import fill
from intarsia.worlds.captions import LEXICONS
from intarsia.worlds.film_features import ACTIONS, CHINESE, COLOURS, SHAPES, FilmWorld

RIVALS = 20
_EN, _ZH = (LEXICONS[x].words for x in ("en", "zh"))
WORDS = {
    "colour": [*COLOURS, *(CHINESE[x] for x in COLOURS), *(x for x, _ in (*_EN["colour"], *_ZH["colour"]))],
    "shape": [*SHAPES, *(CHINESE[x] for x in SHAPES), *(x for x, _ in (*_EN["shape"], *_ZH["shape"]))],
    "action": [*ACTIONS, *(CHINESE[x] for x in ACTIONS), "vanishes", "appears", "变小", "转动", "出现"],
    "direction": ["left", "right", "up", "down", "左", "右", "上", "下"],
}
"""The words that name what is shown, by kind, in both languages and of both sorts of films."""


@dataclass
class Options:
    """A run of both systems."""

    out: Path = Path("runs/films")
    data: Path | None = None
    """Film shards with the splits train and test; without, films of vectors."""
    films: int = 3000
    """Of vectors."""
    held_out: int = 200
    k: int = 6
    depth: int = 3
    steps: int = 3000
    """Of VideoBERT."""
    joint: float = 1.0
    """How often it reads clips and words, to one step of each alone."""
    text_steps: int = 1000
    """Of its twin of text alone."""
    cbt_steps: int = 1000
    caption_steps: int = 1000
    """Of each captioner."""
    systems: tuple[Literal["videobert", "cbt"], ...] = ("videobert", "cbt")
    device: str = "cpu"
    """Of training; what comes of it is measured on the CPU."""
    seed: int = 42


def main() -> None:
    """Trains, measures, prints."""
    options = tyro.cli(Options)
    options.out.mkdir(parents=True, exist_ok=True)
    world: Any = FilmWorld(options.films)
    held: Any = FilmWorld(options.held_out, split="test")
    if options.data is not None:
        world, held = (open_source(options.data, split) for split in ("train", "test"))
    measured: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
        "videobert": lambda: _videobert(options, world, held, _codebook(options, world)),
        "cbt": lambda: _cbt(options, world, held),
    }
    found: dict[str, dict[str, str]] = {}
    for name in options.systems:
        for what, value in measured[name]():
            print(f"{name:<10} {what:<60} {value}", flush=True)
            found.setdefault(name, {})[what] = value
            (options.out / "films.json").write_text(json.dumps(found, indent=2, ensure_ascii=False))


def _codebook(options: Options, world: Any) -> Codebook:
    path = options.out / CODEBOOK
    if not path.is_file():
        about = to_json(world.provenance)
        write_codebook(path, fit(drawn(world, 100_000)[0], options.k, options.depth, options.seed, about=about))
    return read_codebook(path)


def _trained(cls: Any, options: Options, source: Any, book: Codebook | None, text_alone: bool = False) -> Any:
    """A run's system; trained first if there is none."""
    name, recipe = cls.card.name, cls.recipes["tiny"]
    out = options.out / (f"{name}-text" if text_alone else name)
    if not (out / "model.safetensors").is_file():
        steps, share = options.cbt_steps if cls is CBT else options.steps, dict(recipe.mix.share)
        if text_alone:
            steps, share = options.text_steps, {"mlm": 1.0}
        elif cls is VideoBERT:
            share |= {goal: options.joint for goal in share if "+" in goal}
        mix = dataclasses.replace(recipe.mix, share=share)
        recipe = dataclasses.replace(_of(recipe, steps, options), mix=mix)
        recipe = recipe if book is None else with_words(recipe, book)
        system, recipe = fresh(cls, recipe, captions(source, cls.specials), source.provenance)
        if book is not None:
            system.fill_words(book)
            write_codebook(out / CODEBOOK, book)
        _train(system, source, recipe, out, options)
    return open_model(name, weights=out).system


def _of(recipe: Recipe[Any], steps: int, options: Options) -> Recipe[Any]:
    """The recipe with so many steps and the run's seed."""
    return dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, steps=steps), seed=options.seed)


def _train(system: System, source: Any, recipe: Recipe[Any], out: Path, options: Options) -> None:
    pretrain(system, source, recipe, out, device=options.device, workers=0, pace=Pace(log_every=100), size="tiny")


# --------------------------------------------------------------------------------------------------------------- captions


class Kept:
    """Samples in memory, so that their visual words are looked up once; a `Source`."""

    def __init__(self, samples: Iterable[Sample], provenance: Provenance | None) -> None:
        self.samples, self.provenance = list(samples), provenance

    @classmethod
    def told(cls, source: Any, blind: bool, most: int) -> Kept:
        """Single sentences with the clips of their time.

        Args:
            source: films.
            blind: what the clips show is taken away; how many there are stays.
            most: passages.
        """
        found = [x for i in range(min(most, len(source))) for x in sentences(source[i])]
        if blind:
            found = [dataclasses.replace(x, film=_blank(x.film)) for x in found]
        return cls(found, source.provenance)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def _blank(film: Film) -> Film:
    ids = None if film.ids is None else np.zeros_like(film.ids)
    return dataclasses.replace(film, features=np.zeros_like(film.features), ids=ids)


WAYS = {"with the clips": (True, False), "blind": (True, True), "without the clips' own features": (False, False)}
"""Captioners: whether they read the clips' features beside what the system makes of them, and whether both are of blank clips."""


def _captions(cls: Any, options: Options, world: Any, held: Any) -> Iterator[tuple[str, str]]:
    """What captioners on the frozen system write of held-out sentences' clips, greedily. English."""
    name = cls.card.name
    for way, (features, blind) in WAYS.items() if options.caption_steps else ():
        out = options.out / f"{name}-caption-{way.split()[0]}"
        samples = Kept.told(speaking(held, "en"), blind, options.held_out).samples
        if not (out / "model.safetensors").is_file():
            whole = open_model(name, weights=options.out / name).system
            recipe = _of(cls.recipes["caption"], options.caption_steps, options)
            config = dataclasses.replace(
                whole.config, captioner=dataclasses.replace(recipe.config.captioner, features=features)
            )
            with torch.random.fork_rng([]):
                torch.manual_seed(options.seed)
                writer = cls(config, whole.vocab)
            fill(writer, whole.state_dict(), name, cls.captioning.fresh)
            told = Kept.told(speaking(world, "en"), blind, len(world))
            _train(writer, told, dataclasses.replace(recipe, config=config), out, options)
        said = decode.caption(open_model(name, weights=out).system, samples, cls.captioning.length)
        yield f"captions, {way}", _written(samples, said)


def _written(samples: Sequence[Sample], said: Sequence[str]) -> str:
    """How like the sentences the captions are, and how often the words that name something are theirs."""
    keys = [x.key for x in samples]
    texts = {x.key: [ptb.tokenise(x.texts[0])] for x in samples}
    scores = score({key: ptb.tokenise(x) for key, x in zip(keys, said, strict=True)}, texts).corpus
    right: dict[str, list[bool]] = {}
    for sample, text in zip(samples, said, strict=True):
        words = {text[start:end].lower() for _, start, end in _spans(text)}
        for kind, start, end in _spans(sample.texts[0]):
            right.setdefault(kind, []).append(sample.texts[0][start:end].lower() in words)
    named = ", ".join(f"{kind} {np.mean(x):.3f}" for kind, x in right.items())
    liked = ", ".join(f"{x} {scores[x]:.3f}" for x in ("Bleu_4", "ROUGE_L", "CIDEr"))
    return f"{liked}; named rightly: {named}; {len(set(said))} different of {len(said)}, such as: {said[0]}"


# -------------------------------------------------------------------------------------------------------------- VideoBERT


def _videobert(options: Options, world: Any, held: Any, book: Codebook) -> Iterator[tuple[str, str]]:
    worded = WithWords(world, book)
    source = Kept((worded[i] for i in range(len(worded))), world.provenance)
    system = _trained(VideoBERT, options, source, book)
    alone = _trained(VideoBERT, options, source, book, text_alone=True)
    samples = [WithWords(held, book)[i] for i in range(min(len(held), options.held_out))]
    parts = [x for sample in samples for x in sentences(sample)]
    for language in dict.fromkeys(x.language for x in parts):
        told = [x for x in parts if x.language == language]
        blank = [unseen(x) for x in told]
        by = {"with the clips": (system, told), "without": (system, blank), "text alone": (alone, blank)}
        right = {how: _named(*asked) for how, asked in by.items()}
        for kind, words in _content(told).items():
            common = Counter(words).most_common(1)[0][1] / len(words)
            shares = ", ".join(f"{how} {np.mean(x[kind]):.3f}" for how, x in right.items())
            what = f"{language}: {kind}, all that name something hidden"
            yield what, f"{shares}, always the commonest {common:.3f} ({len(words)})"
    yield "own speech above that of another sentence of the passage", f"{_aligned(system, parts):.3f}, chance 0.500"
    yield "visual word of a clip, all clips hidden, from the sentence", _pictured(system, parts)
    yield from _captions(VideoBERT, options, source, WithWords(held, book))


def _spans(text: str) -> list[tuple[str, int, int]]:
    """Kind, start and end of the words that name something."""
    found = []
    for kind, words in WORDS.items():
        edge = r"\b" if text.isascii() else ""
        for word in re.finditer(f"{edge}(?:{'|'.join(sorted(words, key=len, reverse=True))}){edge}", text):
            found.append((kind, word.start(), word.end()))
    return found


def _content(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """The words that name something, by kind."""
    found: dict[str, list[str]] = {}
    for sample in samples:
        for kind, start, end in _spans(sample.texts[0]):
            found.setdefault(kind, []).append(sample.texts[0][start:end])
    return found


def _named(system: VideoBERT, samples: Sequence[Sample]) -> dict[str, list[bool]]:
    """By kind whether each word is found again, of all words there are, with all words that name something hidden at once."""
    examples, rows, kinds = [], list[Array](), list[list[tuple[str, Array]]]()
    for sample in samples:
        example, pieces = system.lay_out(sample), system.vocab.encode(sample.texts[0])
        places = piece_rows(example, pieces)
        words = [(kind, places[pieces_in(pieces, a, b, sample.key)]) for kind, a, b in _spans(sample.texts[0])]
        examples.append(example)
        kinds.append(words)
        rows.append(np.unique(np.concatenate([x for _, x in words])))
    found: dict[str, list[bool]] = {}
    for example, hidden, words, guess in zip(examples, rows, kinds, guess_words(system, examples, rows), strict=True):
        assert example.text is not None
        said = dict(zip(hidden.tolist(), guess, strict=True))
        for kind, own in words:
            found.setdefault(kind, []).append(all(said[r] == example.text.ids[r] for r in own.tolist()))
    return found


@torch.inference_mode()
def _aligned(system: VideoBERT, samples: Sequence[Sample]) -> float:
    """How often a sentence scores above the next of the same passage, with its own clips."""

    def passage(sample: Sample) -> str:
        return sample.key.rsplit("/", 1)[0]

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


def _pictured(system: VideoBERT, samples: Sequence[Sample]) -> str:
    """The visual word of hidden clips: right, and among the likeliest ten."""
    ids = [torch.from_numpy(x.film.ids) for x in samples if x.film is not None]
    likely = [x.topk(10, 1).indices for x in hidden_clip_logits(system, samples)]
    hits = torch.cat([x == y[:, None] for x, y in zip(likely, ids, strict=True)]).float()
    usual = torch.bincount(torch.cat(ids)).float().sort(descending=True).values / len(hits)
    return f"{hits[:, 0].mean():.3f} first, {hits.sum(1).mean():.3f} among ten, always the commonest {usual[0]:.3f} and {usual[:10].sum():.3f}"


# -------------------------------------------------------------------------------------------------------------------- CBT


def _cbt(options: Options, world: Any, held: Any) -> Iterator[tuple[str, str]]:
    world = Kept((world[i] for i in range(len(world))), world.provenance)
    system = _trained(CBT, options, world, None)
    told = speaking(held, "en")
    samples = [told[i] for i in range(min(len(told), options.held_out))]
    yield f"own speech first among {RIVALS}", f"{_first(system, samples):.3f}, chance {1 / RIVALS:.3f}"
    yield f"hidden clip first among all clips of {BATCH} passages", _told_apart(system, samples)
    yield from _captions(CBT, options, world, held)


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
    found, weights, clips = [], [], []
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        rngs = [np.random.default_rng([start, i]) for i in range(len(part))]
        batch = pack([system.hide(x, "nce", rng, lambda: samples[0]) for x, rng in zip(part, rngs, strict=True)])
        losses, _ = system(batch)
        assert batch.clips is not None
        found.append([float(losses[x]) for x in FOUND])
        weights.append(len(batch.picks("nce").rows))
        clips.append(batch.clips.packing.rows)
    every, within, across = np.average(found, 0, weights)
    return f"{every:.3f}; among those of its passage {within:.3f}, against those of other passages {across:.3f}; chance {1 / np.mean(clips):.4f}"


if __name__ == "__main__":
    main()
