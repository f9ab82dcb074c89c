"""A small system with dropout, two goals that use different heads, and repeated layers; and data for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Pick, Picture, RegionRows, Sample, TextRows
from intarsia.data.source import Provenance
from intarsia.errors import TooLong
from intarsia.recipe import Batching, Card, Mix, Optim, Recipe, Schedule
from intarsia.system import System
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.keymap import KeyMap

WORDS = ("a", "red", "blue", "cat", "dog", "on", "the", "mat", "tree", "sky")
VOCAB = Vocab([*SPECIALS, *WORDS])


@dataclass(frozen=True)
class ToyConfig:
    hidden_size: int = 8
    dropout: float = 0.1
    longest: int = 12


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.up(self.norm(x)))


class Toy(System):
    card = Card("toy", "", "", "", "", "single", "", ("mlm", "itm"), (), ())
    Config = ToyConfig
    keys: KeyMap
    needs = ("text", "regions")

    def __init__(self, config: ToyConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        self.words = nn.Embedding(len(vocab), config.hidden_size)
        self.regions = nn.Linear(3, config.hidden_size)
        self.layers = nn.ModuleList(Block(config.hidden_size) for _ in range(2))
        self.word_head = nn.Linear(config.hidden_size, len(vocab))
        self.word_head.weight = self.words.weight
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)  # what it gives, hidden words do not read
        self.match_head = nn.Linear(config.hidden_size, 2)
        self.drop = nn.Dropout(config.dropout)

    def lay_out(self, sample: Sample) -> Example:
        ids = self.vocab.encode(sample.texts[0]).ids
        if len(ids) > self.config.longest:
            raise TooLong(f"sample {sample.key}: {len(ids)} pieces, at most {self.config.longest}")
        n, picture = len(ids), sample.pictures[0]
        r = len(picture.boxes)
        text = TextRows(ids.copy(), np.zeros(n, np.int64), np.arange(n), np.arange(n))
        zeros = np.zeros(r, np.int64)
        regions = RegionRows(picture.features, picture.boxes, zeros, zeros, zeros, np.zeros(r, bool))
        return Example(sample.key, text, regions, sample=sample.key)

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        if goal == "itm":
            other = rng.random() < 0.5
            example = self.lay_out(draw() if other else sample)
            example.key, example.targets["itm"] = sample.key, np.array(int(not other))
            return example
        example = self.lay_out(sample)
        assert example.text is not None
        row = rng.integers(len(example.text), size=1)
        example.targets["mlm"] = Pick("text", row, example.text.ids[row].copy())
        example.text.ids[row] = self.vocab.mask
        return example

    def encode(self, batch: Batch) -> Encoded:
        assert batch.text is not None
        assert batch.regions is not None
        x, r = self.drop(self.words(batch.text.ids)), self.drop(self.regions(batch.regions.feats.float()))
        seen = x.new_zeros(len(batch.keys), x.shape[1]).index_add(0, batch.regions.packing.doc, r)
        x = x + seen[batch.text.packing.doc]
        for layer in self.layers:
            x = layer(x)
        pooled = x.new_zeros(len(batch.keys), x.shape[1]).index_add(0, batch.text.packing.doc, x)
        return Encoded(x, r, batch.regions.packing, self.pooler(pooled))

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        assert encoded.text is not None
        if "itm" in batch.targets:
            return {"itm": nn.functional.cross_entropy(self.match_head(encoded.pooled).float(), batch.labels("itm"))}
        picks = batch.picks("mlm")
        logits = self.word_head(encoded.text[picks.rows]).float()
        return {"mlm": nn.functional.cross_entropy(logits, picks.labels)}


class Pairs:
    """Captions of 3 to 10 words over pictures of 1 to 4 regions; every picture has two captions. `nan_at` spoils one."""

    provenance: Provenance | None = Provenance("toy", 3)

    def __init__(self, count: int = 60, nan_at: int = -1) -> None:
        self.count, self.nan_at = count, nan_at

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([index, 1])
        shown = np.random.default_rng([index // 2, 2])
        text = " ".join(rng.choice(WORDS, size=rng.integers(3, 11)))
        r = int(shown.integers(1, 5))
        features = shown.normal(size=(r, 3)).astype(np.float32)
        if index == self.nan_at:
            features[:] = np.nan
        boxes = np.tile(np.float32([0, 0, 1, 1]), (r, 1))
        return Sample(f"pair{index}", (text,), (Picture(f"picture{index // 2}", features, boxes),))


def toy(seed: int = 0, **config: Any) -> Toy:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Toy(ToyConfig(**config), VOCAB)


def recipe(
    steps: int = 12, dropout: float = 0.1, lr: float = 1e-2, seed: int = 3, **batching: Any
) -> Recipe[ToyConfig]:
    return Recipe(
        config=ToyConfig(dropout=dropout),
        mix=Mix(share={"mlm": 2, "itm": 1}),
        optim=Optim(lr=lr, max_norm=1.0),
        schedule=Schedule(steps=steps, warmup=2),
        batching=Batching(**{"rows": 60, "window": 25, **batching}),
        seed=seed,
    )
