"""Films as vectors: narrated actions on coloured shapes, without pixels. What is said of a clip can be seen in its feature, up to noise.

A passage is a row of actions; each lasts two to four clips and is told by one sentence while it goes on ("now the red circle grows ."). The feature of a clip is
a fixed random map of action, colour and shape, with noise. The rendered counterpart is `worlds.films`.
"""

from __future__ import annotations

import numpy as np

from intarsia.batch import Film, Sample
from intarsia.data.source import Provenance
from intarsia.errors import BadInput

WIDTH = 64
"""Numbers a clip."""
LENGTH = 1.5
"""Seconds a clip."""
ACTIONS = ("moves", "grows", "shrinks", "spins", "falls", "jumps", "fades", "shakes")
COLOURS = ("red", "blue", "green", "yellow", "purple", "white")
SHAPES = ("circle", "square", "star", "cross", "heart", "arrow")
CHINESE = dict(
    zip(
        (*ACTIONS, *COLOURS, *SHAPES),
        (
            "移动",
            "变大",
            "缩小",
            "旋转",
            "下落",
            "跳起",
            "消失",
            "抖动",
            "红",
            "蓝",
            "绿",
            "黄",
            "紫",
            "白",
            "圆",
            "方块",
            "星",
            "十字",
            "心",
            "箭头",
        ),
        strict=True,
    )
)
SPLITS = {"train": 0, "val": 1, "test": 2}


class FilmWorld:
    """Passages by number; a `Source`.

    Args:
        count: how many.
        seed: of the passages; the map from actions to features is always the same.
        split: "train", "val" or "test"; they share no random numbers.
        language: "en" or "zh".
        noise: spread of the noise of a feature.
    """

    def __init__(
        self, count: int, seed: int = 0, split: str = "train", language: str = "en", noise: float = 0.3
    ) -> None:
        if count < 0 or seed < 0 or split not in SPLITS or language not in ("en", "zh"):
            raise BadInput(f"films: count {count}, seed {seed}, split {split!r}, language {language!r}")
        self.count, self.seed, self.split, self.language, self.noise = count, seed, split, language, noise
        rng = np.random.default_rng(0xF11A)
        parts = len(ACTIONS) + len(COLOURS) + len(SHAPES)
        self.inner = rng.standard_normal((parts, 96)).astype(np.float32)
        self.outer = (rng.standard_normal((96, WIDTH)) / 96**0.5).astype(np.float32)
        self.provenance: Provenance | None = Provenance("films", WIDTH, settings={"noise": str(noise)})

    def __len__(self) -> int:
        return self.count

    def told(self, index: int) -> list[tuple[str, str, str]]:
        """Action, colour and shape of each sentence of a passage."""
        rng = np.random.default_rng([self.seed, SPLITS[self.split], index, 0])
        return [
            (str(rng.choice(ACTIONS)), str(rng.choice(COLOURS)), str(rng.choice(SHAPES)))
            for _ in range(rng.integers(3, 7))
        ]

    def say(self, action: str, colour: str, shape: str) -> str:
        """The sentence about an action."""
        if self.language == "zh":
            return f"现在{CHINESE[colour]}色的{CHINESE[shape]}{CHINESE[action]}了。"
        return f"now the {colour} {shape} {action} ."

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"passage {index} of {self.count}")
        rng = np.random.default_rng([self.seed, SPLITS[self.split], index, 1])
        names = (*ACTIONS, *COLOURS, *SHAPES)
        texts, spans, features = list[str](), list[tuple[float, float]](), list[np.ndarray]()
        for told in self.told(index):
            many, start = int(rng.integers(2, 5)), len(features) * LENGTH
            clear = np.tanh(self.inner[[names.index(x) for x in told]].sum(0)) @ self.outer
            features += list(clear + self.noise * rng.standard_normal((many, WIDTH)))
            texts.append(self.say(*told))
            spans.append((start, start + many * LENGTH))
        name = f"{self.split}{self.seed}-{index}"
        film = Film(
            name,
            np.array(features, np.float32),
            np.arange(len(features), dtype=np.float32) * LENGTH,
            LENGTH,
            np.array(spans, np.float32),
        )
        return Sample(name, tuple(texts), language=self.language, film=film)
