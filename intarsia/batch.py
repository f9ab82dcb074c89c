"""What travels: Sample -> Example -> Batch -> Encoded.

A **Sample** is what a data set says (strings, regions, gold links). An **Example** is one document as a system laid it out, perhaps with words or
regions hidden and the targets that go with them; numpy, made in the loader's workers. A **Batch** is packed examples as tensors. **Encoded** is
what a system's streams return.

Shape legend, used everywhere: B documents, T text rows, R region rows, V clips, N rows of any one stream, H width, F feature width, C classes,
I images, M picked rows, P links. Integers are int64 unless said otherwise. Boxes are xyxy as fractions of the picture's width and height.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intarsia.packed import Packing, subset

Array = NDArray[Any]
Covering = Callable[[Sequence[Array], Sequence[float]], Array]
"""Outlines, each (N, 2) x, y, and box xyxy of an object, in pixels -> (n, n) bool, the cells of the box, cut into n x n, that the object covers."""
T = TypeVar("T")


# --------------------------------------------------------------------------------------------------------------------------- what the data says


@dataclass(frozen=True, slots=True)
class Picture:
    """The regions of one picture, and where its pixels are."""

    name: str
    """Key of the picture in its data set, unique there."""
    features: Array
    """(R, F) float16 or float32, one vector a region; R may be 0."""
    boxes: Array
    """(R, 4) float32, xyxy as fractions of width and height."""
    width: int = 0
    """Pixels wide; 0 when the source does not say."""
    height: int = 0
    """Pixels high; 0 when the source does not say."""
    scores: Array | None = None
    """(R) float32, the detector's confidence."""
    probs: Array | None = None
    """(R, C) float16 or float32, the detector's soft labels; class 0 is background."""
    labels: Array | None = None
    """(R) int64, class ids; 0 is background."""
    path: str = ""
    """File of the pixels; empty when only features are at hand."""
    tags: tuple[str, ...] = ()
    """Names of the objects in it, from a detector or a person."""
    attributes: Array | None = None
    """(R) int64, what the object of each region is like, one id; 0 says nothing."""
    attribute_scores: Array | None = None
    """(R) float32, the detector's confidence in it."""
    pixels: Callable[[], Array] | None = None
    """Gives its pixels, (H, W, 3) uint8 RGB, where they are made or at hand instead of in a file; must pickle for loaders with workers."""
    names: tuple[str, ...] = ()
    """(R) what people called the object of each region; "" = nothing. Empty where nobody said."""
    covers: Callable[[Covering], Array] | None = None
    """Gives (R, n, n) bool, the cells of each region's box that its object covers, by a paper's rule; must pickle for loaders with workers."""
    codes: Array | None = None
    """(L) whole numbers, the picture in codes that a `PictureCodec` made, row by row."""
    whole: Array | None = None
    """(F) feature of the whole picture; None = the mean of its regions."""


@dataclass(frozen=True, slots=True)
class Film:
    """The clips of one video, or of a passage of it, and when each text of the sample is said."""

    name: str
    """Key of the video in its data set."""
    features: Array
    """(V, F) float16 or float32, one vector a clip; V may be 0."""
    seconds: Array
    """(V) float32, when each clip begins, ascending; counted from the start of the video."""
    length: float
    """Seconds a clip lasts."""
    spans: Array
    """(S, 2) float32, when each of the sample's texts begins and ends, in seconds from the start of the video."""
    ids: Array | None = None
    """(V) int64, the visual word of each clip."""
    path: str = ""
    """File of the video; empty when only features are at hand."""


@dataclass(frozen=True, slots=True)
class Link:
    """A gold link: the characters start..end of a text name a region of a picture."""

    start: int
    end: int
    region: int
    text: int = 0
    picture: int = 0


@dataclass(frozen=True, slots=True)
class Meant:
    """The characters start..end of the first text mean what is in these boxes of the first picture, whether or not a region lies there."""

    start: int
    end: int
    boxes: Array
    """(G, 4) float, xyxy as fractions; any of them is right."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One item of a data set: its texts, its pictures and whatever else is known of them."""

    key: str
    """Unique in the data set; names the sample in every error and keys its randomness."""
    texts: tuple[str, ...]
    """The caption; or question and answer, sentence, choices: the task says which is which."""
    pictures: tuple[Picture, ...] = ()
    links: tuple[Link, ...] = ()
    also: tuple[str, ...] = ()
    """Other true captions of the same picture, in the same language."""
    false_texts: tuple[str, ...] = ()
    """Captions known to be false of the picture (hard negatives)."""
    answers: tuple[tuple[str, float], ...] = ()
    """Answers with their soft scores (VQA), or one label with score 1."""
    meant: tuple[Meant, ...] = ()
    """Gold boxes of its first text: all of it (referring expressions) or its phrases."""
    language: str = "en"
    people: int = 0
    """People among the objects of the questions before it (VCR): where names that go round would go on."""
    extra: bool = False
    """Of the second corpus of a run, whose losses are weighed apart (Oscar+)."""
    film: Film | None = None
    """The clips of its video; `texts` are then the sentences said in it, in order of time."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of all its pictures."""
        return tuple(tag for picture in self.pictures for tag in picture.tags)


# ------------------------------------------------------------------------------------------------------------------- one document, as laid out


@dataclass(slots=True)
class TextRows:
    """The text rows of one example; all arrays are (T)."""

    ids: Array
    segment_ids: Array
    position_ids: Array
    words: Array
    """Index of the word each piece belongs to; -1 for special tokens, which are never hidden."""
    levels: Array | None = None
    cut: int = 0
    """Pieces of the sample's texts that did not fit and were left out."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class RegionRows:
    """The region rows of one example."""

    feats: Array
    """(R, F)"""
    boxes: Array
    """(R, 4)"""
    segment_ids: Array
    """(R)"""
    position_ids: Array
    """(R)"""
    image: Array
    """(R), which picture of the sample the region belongs to."""
    masked: Array
    """(R) bool, True where the feature is hidden from the system (its row is zeroed when packed)."""
    probs: Array | None = None
    """(R, C)"""
    labels: Array | None = None
    """(R)"""
    scores: Array | None = None
    """(R)"""
    attributes: Array | None = None
    """(R)"""
    attribute_scores: Array | None = None
    """(R)"""
    levels: Array | None = None
    covers: Array | None = None
    """(R, n, n) bool"""

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: Array | slice) -> RegionRows:
        """Some of them, by number."""
        cut: dict[str, Any] = {
            f.name: value if value is None else value[rows] for f in fields(self) for value in [getattr(self, f.name)]
        }
        return RegionRows(**cut)

    def first(self, count: int) -> RegionRows:
        """The first `count` of them."""
        return self.take(slice(count))


@dataclass(slots=True)
class ClipRows:
    """The clip rows of one example."""

    feats: Array
    """(V, F), F may be 0 where only visual words are read."""
    seconds: Array
    """(V) when each clip begins."""
    segment_ids: Array
    """(V)"""
    position_ids: Array
    """(V)"""
    masked: Array
    """(V) bool, True where the clip is hidden from the system (its feature is zeroed when packed)."""
    ids: Array
    """(V) int64 visual words; -1 where there are none."""

    def __len__(self) -> int:
        return len(self.seconds)


@dataclass(frozen=True, slots=True)
class Pixels:
    """One picture of an example, decoded only when the example is packed, so that laying out stays cheap."""

    read: Callable[[], Array]
    """Gives (3, height, width) float32 as the system takes them; raises BadInput naming the sample."""
    height: int
    width: int

    @property
    def rows(self) -> int:
        """What it costs in rows: one for every 32 x 32 pixels, the cells of the last map of the usual trunks."""
        return -(-self.height // 32) * -(-self.width // 32)


@dataclass(slots=True)
class Pick:
    """Rows of one stream of one example that a loss is computed on, and what should be found there."""

    stream: str
    """"text", "regions" or "clips"."""
    rows: Array
    """(M) places inside the document."""
    labels: Array
    """(M, ..)"""


@dataclass(slots=True)
class Example:
    """One document as a system laid it out, with the targets of the objective at hand."""

    key: str
    text: TextRows | None = None
    regions: RegionRows | None = None
    links: Array = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """(P, 2) text row, region row it names."""
    targets: dict[str, Pick | Array] = field(default_factory=dict)
    """Per objective: a Pick, or one value a document (any shape, the same for all examples)."""
    sample: str = ""
    """Key of the Sample; documents of one sample (the four choices of VCR) share it."""
    images: tuple[Pixels, ...] = ()
    """Its pictures, for systems that see pixels."""
    clips: ClipRows | None = None

    @property
    def rows(self) -> int:
        """All rows of the document, and what its pixels count for: what it costs."""
        streams = sum(len(x) for x in (self.text, self.regions, self.clips) if x is not None)
        return streams + sum(x.rows for x in self.images)


# ------------------------------------------------------------------------------------------------------------------------- packed, as tensors


class Movable:
    """A dataclass of tensors (and of the like) that moves as one."""

    __slots__ = ()

    def to(self: T, device: torch.device | str, non_blocking: bool = False) -> T:
        """The same value with every tensor in it on another device."""
        return cast(T, each_tensor(self, lambda x: x.to(device, non_blocking=non_blocking)))

    def pin_memory(self: T) -> T:
        """The same value in page-locked memory, for asynchronous copies to a CUDA device."""
        return cast(T, each_tensor(self, lambda x: x.pin_memory()))


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value with each of its tensors changed, those inside of dictionaries and dataclasses too; all else stays."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: each_tensor(v, change) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: each_tensor(getattr(value, f.name), change) for f in fields(value)})
    return value


@dataclass(frozen=True, slots=True)
class Text(Movable):
    """Packed text rows."""

    ids: Tensor
    """(T)"""
    segment_ids: Tensor
    """(T)"""
    position_ids: Tensor
    """(T)"""
    words: Tensor
    """(T), -1 for special tokens."""
    packing: Packing

    def take(self, rows: Tensor) -> Text:
        """Some of the rows, sorted, each once; documents stay as many."""
        ids, segments, positions, words = (x[rows] for x in (self.ids, self.segment_ids, self.position_ids, self.words))
        return Text(ids, segments, positions, words, subset(self.packing, rows))


@dataclass(frozen=True, slots=True)
class Regions(Movable):
    """Packed region rows; patches and grid cells are regions whose boxes are the cells."""

    feats: Tensor
    """(R, F) float; zero where masked."""
    boxes: Tensor
    """(R, 4) float32"""
    segment_ids: Tensor
    """(R)"""
    position_ids: Tensor
    """(R)"""
    image: Tensor
    """(R)"""
    masked: Tensor
    """(R) bool"""
    packing: Packing
    probs: Tensor | None = None
    """(R, C) float"""
    labels: Tensor | None = None
    """(R)"""
    scores: Tensor | None = None
    """(R) float32, the detector's confidence."""
    covers: Tensor | None = None
    """(R, n, n) bool, the cells of each box that its object covers."""


@dataclass(frozen=True, slots=True)
class Images(Movable):
    """Pixels, for systems that see raw pictures; smaller ones are filled up with 0 to the right and below."""

    pixels: Tensor
    """(I, 3, H, W) float, ImageNet-normalised unless the system says otherwise."""
    valid: Tensor
    """(I, 2) pixels high, wide."""
    doc: Tensor
    """(I), the document each image belongs to."""
    once: Tensor | None = None
    """(K) the region rows of the documents that have images, where others share these (VCR's choices); None = none does."""
    again: Tensor | None = None
    """(R) which of those each region row shows again."""

    @property
    def shared(self) -> tuple[Tensor | slice, Tensor | slice]:
        """What to index region rows with to read each once, and what is read to have it for every row."""
        every = slice(None)
        return (every, every) if self.once is None or self.again is None else (self.once, self.again)


@dataclass(frozen=True, slots=True)
class Clips(Movable):
    """Packed rows of video clips."""

    ids: Tensor
    """(V), visual words; -1 where there are none."""
    feats: Tensor
    """(V, F) float; zero where masked."""
    seconds: Tensor
    """(V) float32, when the clip starts."""
    segment_ids: Tensor
    """(V)"""
    position_ids: Tensor
    """(V)"""
    masked: Tensor
    """(V) bool"""
    packing: Packing


@dataclass(frozen=True, slots=True)
class Picks(Movable):
    """Rows of a stream that a loss is computed on, and what should be found there."""

    rows: Tensor
    """(M)"""
    labels: Tensor
    """(M, ..)"""


@dataclass(frozen=True, slots=True)
class Batch(Movable):
    """Packed examples."""

    keys: tuple[str, ...]
    """(B) names of the documents."""
    sample: Tensor
    """(B), documents of one sample share a number."""
    text: Text | None = None
    regions: Regions | None = None
    images: Images | None = None
    clips: Clips | None = None
    links: Tensor | None = None
    """(P, 2) text row, region row."""
    targets: dict[str, Picks | Tensor] = field(default_factory=dict)
    read: dict[str, Tensor] | None = None
    """Stream -> (M), sorted, the rows that targets pick, and of the text every document's first; None = not known."""

    @property
    def rows(self) -> int:
        """All rows of the batch; pixels are none."""
        return sum(x.packing.rows for x in (self.text, self.regions, self.clips) if x is not None)

    def picks(self, goal: str) -> Picks:
        """The picked rows of an objective.

        Raises:
            TypeError: the objective's target is one value a document.
        """
        target = self.targets[goal]
        if not isinstance(target, Picks):
            raise TypeError(f"{goal}: its target has one value a document, not picked rows")
        return target

    def labels(self, goal: str) -> Tensor:
        """The per-document target (B, ..) of an objective.

        Raises:
            TypeError: the objective's target is picked rows.
        """
        target = self.targets[goal]
        if not isinstance(target, Tensor):
            raise TypeError(f"{goal}: its target is picked rows, not one value a document")
        return target


@dataclass(frozen=True, slots=True)
class Encoded(Movable):
    """What a system's streams return."""

    text: Tensor | None
    """(T, H)"""
    visual: Tensor | None
    """(N, H'), regions, cells or clips."""
    visual_packing: Packing | None
    pooled: Tensor
    """(B, P)"""
    pooled_text: Tensor | None = None
    pooled_visual: Tensor | None = None
    segments: Tensor | None = None
    """(T) those of the text rows, where the word head depends on them."""
