"""A world as a data source: scenes by number, each a Sample with regions, a caption, gold links and false captions.

Everything about scene i is a function of (config, seed, split, i): the same bits in any process and any order. The
defaults are the world of the demo.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from intarsia.batch import Array, Link, Picture, Sample
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.features import pixels
from intarsia.worlds import render
from intarsia.worlds.captions import ATTRIBUTES as ATTRIBUTE_KINDS
from intarsia.worlds.captions import (
    LANGUAGES,
    Caption,
    Phrase,
    Word,
    Written,
    determined,
    draw_caption,
    lexicon_of,
    write,
    write_phrase,
)
from intarsia.worlds.corrupt import corrupt, swap_colours
from intarsia.worlds.scene import COLOURS, COLUMNS, ROWS, SHAPES, Scene, draw_scene

Split = Literal["train", "validation", "test", "held_out"]
CLASSES = ("background", *SHAPES)
"""Classes of the soft labels."""
ATTRIBUTES = ("none", *COLOURS)
"""Attributes of regions: the colours."""

_SCENE, _CAPTION, _PICTURE, _REGIONS, _FALSE, _NOISE, _ALSO, _UNSEEN = range(8)  # one stream of random numbers each
_KEPT = 16_384  # samples kept in memory, some 10 kB each; and as many scenes

T = TypeVar("T")


@dataclass(frozen=True)
class WorldConfig:
    """What a world looks like."""

    level: int = 1
    """1 = drawn pictures and pixel features; 0 = attribute features on a grid of 4 x 3 slots, for fast curves."""
    side: int = 96
    """Width and height of a picture in pixels (level 1)."""
    objects: tuple[int, int] = (3, 4)
    """Fewest and most objects of a scene."""
    mentions: int = 2
    """Objects a caption names."""
    distinct: bool = True
    """True = in a scene no two objects share a colour, and no two a shape; False = only colour-shape pairs differ."""
    textures: bool = False
    """Objects have one of four textures, and captions may say so (level 1 only)."""
    languages: tuple[str, ...] = ("en",)
    """Languages of the captions, "en" and "zh"; scene i takes number i modulo their count."""
    synonyms: bool = False
    """Every content word is one of two synonyms."""
    noise: float = 0.0
    """Share of training scenes whose caption is that of another scene."""
    density: float = 1.0
    """Share of a caption's content words that name something in the picture; below 1 words that no picture shows follow the phrases."""
    false_texts: int = 5
    """Verified false captions a sample."""
    background_boxes: int = 2
    """Random background regions a picture (level 1)."""

    def __post_init__(self) -> None:
        few, many = self.objects
        most = 8 if self.level else COLUMNS * ROWS
        checks = (
            (self.level in (0, 1), f"level {self.level} is not 0 or 1"),
            (self.side >= 32, f"side {self.side} is below 32 pixels"),
            (2 <= few <= many <= min(most, 8 if self.distinct else most), f"objects {self.objects}"),
            (many <= 5 or self.level == 0, f"objects {self.objects}: a drawn scene has room for 5"),
            (1 <= self.mentions <= few, f"mentions {self.mentions} of at least {few} objects"),
            (not self.textures or self.level == 1, "textures need level 1"),
            (bool(self.languages) and set(self.languages) <= set(LANGUAGES), f"languages {self.languages}"),
            (0 <= self.noise <= 1, f"noise {self.noise} is not in 0 .. 1"),
            (0 < self.density <= 1, f"density {self.density} is not above 0 and at most 1"),
            (self.false_texts >= 0, f"false_texts {self.false_texts}"),
            (self.background_boxes >= 0, f"background_boxes {self.background_boxes}"),
        )
        for good, message in checks:
            if not good:
                raise BadInput(f"world: {message}")


class _Plan(NamedTuple):
    """A scene and the true caption drawn for it."""

    scene: Scene
    caption: Caption
    named: tuple[int, ...]
    """The object each phrase names."""


class Recent(Generic[T]):
    """The values asked for last, made when missing; pickled without them."""

    def __init__(self) -> None:
        self.values: OrderedDict[int, T] = OrderedDict()

    def get(self, index: int, make: Callable[[int], T]) -> T:
        """The value of a number."""
        if index in self.values:
            self.values.move_to_end(index)
        else:
            self.values[index] = make(index)
            if len(self.values) > _KEPT:
                self.values.popitem(last=False)
        return self.values[index]

    def __reduce__(self) -> tuple[type[Recent[T]], tuple[()]]:
        return type(self), ()


class WorldSource:
    """Scenes of a world by number; a `Source`."""

    def __init__(
        self, config: WorldConfig | None = None, split: Split = "train", count: int = 8000, seed: int = 0
    ) -> None:
        """Opens a split; nothing is drawn yet.

        Args:
            config: what the world looks like; None = the demo's world.
            split: "train", "validation" and "test" show no held-out pair; every "held_out" scene shows at least two and
                its caption names two.
            count: number of scenes. A scene does not depend on it, but a shuffled caption comes from among so many.
            seed: non-negative; splits of one seed share no random numbers.

        Raises:
            BadInput: the split is unknown, or count or seed is negative.
        """
        if split not in get_args(Split) or count < 0 or seed < 0:
            raise BadInput(f"world: split {split!r} (one of {', '.join(get_args(Split))}), count {count}, seed {seed}")
        self.config = WorldConfig() if config is None else config
        self.split: Split = split
        self.count, self.seed = count, seed
        self._samples, self._plans = Recent[Sample](), Recent[_Plan]()
        drawn = self.config.level == 1
        self.provenance: Provenance | None = Provenance(
            extractor=pixels.NAME if drawn else "world0",
            width=pixels.WIDTH if drawn else render.WIDTH,
            classes=CLASSES,
            attributes=ATTRIBUTES,
            settings=dict(pixels.SETTINGS) if drawn else {"noise": "0.15"},
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """The sample of a scene; the arrays in it are shared and read-only."""
        return self._samples.get(self._check(index), self._make)

    def key(self, index: int) -> str:
        """The key of a sample."""
        return f"{self.split}-{self.seed}-{index:06d}"

    def language(self, index: int) -> str:
        """The language of a sample."""
        return self.config.languages[index % len(self.config.languages)]

    def scene(self, index: int) -> Scene:
        """The scene: objects, attributes, exact boxes."""
        return self._plan(index).scene

    def caption(self, index: int) -> Caption:
        """What the sample's caption says; with noise, perhaps of another scene."""
        return self._plan(self.origin(index)).caption

    def written(self, index: int) -> Written:
        """The sample's caption in words, with the spans of its words and phrases."""
        return write(self.caption(index), self.language(index))

    def origin(self, index: int) -> int:
        """The scene that the sample's caption was written for: its own unless noise put another there."""
        index = self._check(index)
        if self.split == "train" and self.config.noise and self.count > 1:
            rng = self._rng(index, _NOISE)
            if rng.random() < self.config.noise:
                return (index + 1 + int(rng.integers(self.count - 1))) % self.count
        return index

    def image(self, index: int) -> Array:
        """The picture, (side, side, 3) uint8 RGB.

        Raises:
            BadInput: the world is of level 0 and has no pictures.
        """
        if self.config.level == 0:
            raise BadInput("world: scenes of level 0 have no pictures")
        return render.render(self._rng(index, _PICTURE), self.scene(index), self.config.side)

    def regions_of(self, index: int) -> tuple[int, ...]:
        """For each object of the scene, the number of its region in the sample."""
        members = self._regions(index, self.scene(index))[0].members
        return tuple(int(np.flatnonzero(members == i)[0]) for i in range(int(members.max()) + 1))

    def words_to_test(self, index: int) -> tuple[Word, ...]:
        """The colour and shape words that the picture determines given the rest of the caption.

        There are none where noise put another scene's caption.
        """
        _, caption, _ = self._plan(index)
        if self.origin(index) != index:
            return ()
        words = self.written(index).words
        return tuple(
            w
            for w in words
            if w.kind in ("colour", "shape") and determined(caption, self.scene(index), w.phrase, w.kind)
        )

    def swapped(self, index: int) -> str | None:
        """The caption with two colours exchanged, false of the picture; None where there is no such caption."""
        edited = swap_colours(self.caption(index), self.scene(index), self.config.distinct, self.split == "held_out")
        return None if edited is None else write(edited, self.language(index)).text

    def false_captions(self, index: int) -> tuple[Caption, ...]:
        """Edits of the sample's caption that are false of its picture."""
        return corrupt(
            self.caption(index),
            self.scene(index),
            self._rng(index, _FALSE),
            self.config.false_texts,
            self.config.distinct,
            self.split == "held_out",
        )

    def _check(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        return int(index)

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        key = [self.seed, get_args(Split).index(self.split), index, stream]
        small = self.seed < 2**32 and index < 2**32
        return np.random.default_rng(
            np.array(key, np.uint32) if small else key
        )  # the same bits; an array is taken as it is, sooner

    def _plan(self, index: int) -> _Plan:
        return self._plans.get(self._check(index), self._draw)

    def _draw(self, index: int) -> _Plan:
        c = self.config
        held_out = self.split == "held_out"
        scene = draw_scene(self._rng(index, _SCENE), c.objects, c.distinct, c.textures, held_out, c.level == 0)
        caption, named = draw_caption(self._rng(index, _CAPTION), scene, c.mentions, c.textures, c.synonyms)
        return _Plan(scene, self._with_unseen(caption, index), named)

    def _with_unseen(self, caption: Caption, index: int) -> Caption:
        """The caption with as many words that no picture shows as the density asks for."""
        if self.config.density == 1:
            return caption
        shown = sum(x.value(kind) is not None for x in caption.phrases for kind in ATTRIBUTE_KINDS)
        count = round(shown * (1 / self.config.density - 1))
        drawn = self._rng(index, _UNSEEN).integers(len(lexicon_of("en").unseen), size=count)
        return replace(caption, unseen=tuple(drawn.tolist()))

    def _regions(self, index: int, scene: Scene) -> tuple[render.RegionSet, np.random.Generator]:
        """The regions of a scene, and the generator to go on with."""
        rng = self._rng(index, _REGIONS)
        if self.config.level == 0:
            return render.slot_regions(rng, scene), rng
        return render.draw_regions(rng, scene, self.config.background_boxes), rng

    def _picture(self, index: int, scene: Scene) -> tuple[Picture, Array]:
        (boxes, members), rng = self._regions(index, scene)
        shapes = np.array([*(1 + x.shape for x in scene.objects), 0])
        labels = shapes[members]  # -1, background, picks the last
        attributes = np.array([*(1 + x.colour for x in scene.objects), 0])[members]
        probs = render.soft_labels(rng, labels)
        side = self.config.side if self.config.level else 0
        if self.config.level:
            features = pixels.pixel_features(render.render(self._rng(index, _PICTURE), scene, side), boxes)
        else:
            features = render.slot_features(rng, scene, members)
        scores = probs.max(1)
        for array in (features, boxes, probs, labels, attributes, scores):
            array.setflags(write=False)
        shown = partial(self.image, index) if self.config.level else None
        said = (scores, probs, labels)
        return Picture(
            self.key(index), features, boxes, side, side, *said, pixels=shown, attributes=attributes
        ), members

    def _other_caption(self, index: int, text: str, language: str) -> tuple[str, ...]:
        """Another true caption of a scene, in other words; none where few draws find none."""
        c, rng = self.config, self._rng(index, _ALSO)
        for _ in range(4):
            drawn, _ = draw_caption(rng, self.scene(index), c.mentions, c.textures, c.synonyms)
            if (other := write(self._with_unseen(drawn, index), language).text) != text:
                return (other,)
        return ()

    def _make(self, index: int) -> Sample:
        scene, origin, language = self.scene(index), self.origin(index), self.language(index)
        picture, members = self._picture(index, scene)
        shapes = (scene.objects[i].shape for i in members.tolist() if i >= 0)
        tags = tuple(write_phrase(Phrase(shape=shape), language) for shape in shapes)
        _, caption, named = self._plan(origin)
        written = write(caption, language)
        place = {int(member): region for region, member in enumerate(members)}
        links = (
            [Link(a, b, place[i]) for (a, b), i in zip(written.spans, named, strict=True)] if origin == index else []
        )
        return Sample(
            key=self.key(index),
            texts=(written.text,),
            pictures=(replace(picture, tags=tags),),
            links=tuple(links),
            also=self._other_caption(origin, written.text, language),
            false_texts=tuple(write(x, language).text for x in self.false_captions(index)),
            language=language,
        )
