"""Which region does a word mean: attention, a system's own alignments and occlusion against gold links."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from rich.table import Table

from intarsia.attend import Seen, watch
from intarsia.batch import Array, Batch, Example, Sample
from intarsia.errors import BadInput
from intarsia.evaluate.running import (
    FP32,
    Inference,
    Share,
    first_picture,
    fitting,
    hide_rows,
    keep_regions,
    percent,
    piece_rows,
    pieces_in,
    plain,
    run,
)
from intarsia.evaluate.words import ChosenWord, every_word
from intarsia.packed import Packing
from intarsia.system import System


@dataclass(frozen=True, slots=True)
class Look:
    """Which attention is looked at: one head, the mean of a layer, or the mean of all."""

    seer: Literal["words", "regions"] = "words"
    """Who attends: a word to the regions, or each region to the word."""
    layer: int | None = None
    """From 0, among the layers in which words and regions meet; None = the mean of all."""
    head: int | None = None
    """From 0; None = the mean of all."""

    def __str__(self) -> str:
        layer = "all layers" if self.layer is None else f"layer {self.layer + 1}"
        head = "mean of heads" if self.head is None else f"head {self.head + 1}"
        return f"{layer}, {head}, {'word to region' if self.seer == 'words' else 'region to word'}"


@dataclass(frozen=True, slots=True)
class WordRegionMaps:
    """How the text rows and the regions of one document see one another."""

    words: Array
    """(layers, heads, T, R) float32, attention of text rows to regions."""
    regions: Array
    """(layers, heads, T, R) float32, attention of regions to text rows."""
    own: dict[str, Array]
    """Named (T, R) maps of the system's own, such as its transport plan."""
    cells: Array | None = None
    """(R, 4) boxes of the regions, where they are cells of the system's own instead of the sample's regions."""

    def of_picture(self, sample: Sample) -> WordRegionMaps:
        """The same for the regions of the sample's first picture: less those that a system adds, such as the whole picture; of cells the mean over each region."""
        boxes = first_picture(sample).boxes
        if self.cells is not None:
            share = overlap_shares(boxes, self.cells).T
            own = {name: x @ share for name, x in self.own.items()}
            return WordRegionMaps(self.words @ share, self.regions @ share, own)
        count = len(boxes)
        own = {name: x[:, :count] for name, x in self.own.items()}
        return WordRegionMaps(self.words[..., :count], self.regions[..., :count], own)

    def seen(self, look: Look) -> Array:
        """(T, R) one attention map.

        Raises:
            ValueError: the system has no such attention.
        """
        stack = self.words if look.seer == "words" else self.regions
        if not len(stack):
            raise ValueError(f"no attention of {look.seer} was seen")
        chosen = stack.mean(0) if look.layer is None else stack[look.layer]  # (heads, T, R)
        found: Array = chosen.mean(0) if look.head is None else chosen[look.head]
        return found

    def looks(self) -> Iterator[Look]:
        """Every attention there is: all, layer by layer, head by head, seen from words and from regions."""
        for seer, stack in (("words", self.words), ("regions", self.regions)):
            if len(stack):
                yield Look(seer)  # type: ignore[arg-type]
                for layer in range(stack.shape[0]):
                    for head in (None, *range(stack.shape[1])):
                        yield Look(seer, layer, head)  # type: ignore[arg-type]


def word_region_maps(
    system: System, examples: Sequence[Example], how: Inference = FP32, what: str = "word-region maps"
) -> list[WordRegionMaps]:
    """Attention between words and regions in every layer where they meet, and the system's own alignments, of each document.

    Attention is what `intarsia.attend.watch` records, so any system has it: a layer over words and regions together gives both directions, a
    layer of one stream that attends to the other gives one. A region row is one of the example's: a whole picture among them counts as one.
    """
    found: list[WordRegionMaps | None] = [None] * len(examples)

    def read(numbers: Array, batch: Batch) -> None:
        assert batch.text is not None and batch.regions is not None
        with watch() as seen:
            encoded = system.encode(batch)
        own = {name: x.float().cpu().numpy() for name, x in system.alignments(encoded, batch).items()}
        for i, maps in zip(numbers, maps_of(seen, batch, own), strict=True):
            found[i] = maps if "regions" in system.needs else replace(maps, cells=examples[i].regions.boxes)

    run(system, np.array([x.rows for x in examples]), lambda i: examples[i], read, what, how)
    return [x for x in found if x is not None]


def overlap_shares(boxes: Array, cells: Array) -> Array:
    """(P, R) float32 how much of what the cells (R, 4) cover of a box (P, 4) lies in each of them; rows sum to 1, or 0 where none touches the box."""
    low, high = np.maximum(boxes[:, None, :2], cells[None, :, :2]), np.minimum(boxes[:, None, 2:], cells[None, :, 2:])
    areas = (high - low).clip(0).prod(-1)
    return np.asarray(areas / np.maximum(areas.sum(1, keepdims=True), 1e-12), np.float32)


def maps_of(seen: Seen, batch: Batch, own: Mapping[str, Array] | None = None) -> list[WordRegionMaps]:
    """What `watch` recorded while a batch was encoded, one a document: every layer in which words and regions meet, in call order.

    Args:
        seen: the record.
        batch: with text and regions.
        own: named (B, Lt, Lr) maps of the system's own.
    """
    assert batch.text is not None and batch.regions is not None, "needs words and regions"
    texts, shown = (x.packing.lengths.tolist() for x in (batch.text, batch.regions))
    calls = [
        (x.cpu().numpy(), streams_of(*packings, batch)) for x, packings in zip(seen.maps, seen.packings, strict=True)
    ]
    found = []
    for i, (t, r) in enumerate(zip(texts, shown, strict=True)):
        to_regions, to_words = [], []
        for block, between in calls:
            if between == ("both", "both"):
                to_regions.append(block[i, :, :t, t : t + r])
                to_words.append(block[i, :, t : t + r, :t])
            elif between == ("words", "regions"):
                to_regions.append(block[i, :, :t, :r])
            elif between == ("regions", "words"):
                to_words.append(block[i, :, :r, :t])
        found.append(
            WordRegionMaps(
                np.stack(to_regions) if to_regions else np.zeros((0, 0, t, r), np.float32),
                np.stack(to_words).swapaxes(2, 3) if to_words else np.zeros((0, 0, t, r), np.float32),
                {name: x[i, :t, :r] for name, x in (own or {}).items()},
            )
        )
    return found


def streams_of(queries: Packing, keys: Packing, batch: Batch) -> tuple[str, str]:
    """Between which streams of a batch an `attend` call lay: seer and seen, each "words", "regions" (or clips), "both" or, when it is neither, "".

    A stream is known by its packing: the batch's own object, or else by its row counts.
    """
    asked, answering = _stream(queries, batch), _stream(keys, batch)
    return asked, answering


def _stream(packing: Packing, batch: Batch) -> str:
    shown = batch.regions or batch.clips
    assert batch.text is not None and shown is not None, "needs words, and regions or clips"
    words, regions = batch.text.packing, shown.packing
    if packing is words:
        return "words"
    if packing is regions:
        return "regions"
    counts = (("both", words.lengths + regions.lengths), ("words", words.lengths), ("regions", regions.lengths))
    return next((name for name, lengths in counts if torch.equal(packing.lengths, lengths)), "")


# ------------------------------------------------------------------------------------------------- words and their gold


@dataclass(frozen=True, slots=True)
class LinkedWord:
    """A word with the regions it names."""

    document: int
    start: int
    end: int
    rows: Array
    """(P) text rows of its pieces."""
    ids: Array
    """(P) its pieces."""
    gold: frozenset[int]
    """Regions it names."""


def linked_words(
    system: System,
    samples: Sequence[Sample],
    examples: Sequence[Example],
    chosen: Sequence[Sequence[ChosenWord]] | None = None,
) -> list[LinkedWord]:
    """The words of first texts that lie in gold links to the first picture: all of them, or those among the chosen."""
    found = []
    for document, (sample, example) in enumerate(zip(samples, examples, strict=True)):
        links = [x for x in sample.links if x.text == 0 and x.picture == 0]
        if not links:
            continue
        pieces = system.vocab.encode(sample.texts[0])
        rows = piece_rows(example, pieces)
        for word in every_word(system.vocab, sample.texts[0]) if chosen is None else chosen[document]:
            gold = frozenset(x.region for x in links if x.start < word.end and word.start < x.end)
            if gold:
                inside = pieces_in(pieces, word.start, word.end, sample.key)
                found.append(LinkedWord(document, word.start, word.end, rows[inside], pieces.ids[inside], gold))
    return found


def occlusion(
    system: System,
    samples: Sequence[Sample],
    examples: Sequence[Example],
    words: Sequence[LinkedWord],
    how: Inference = FP32,
) -> list[Array]:
    """For each word (R) float32: by how much hiding the word and taking a region away lowers the word's log probability, up to a constant.

    Uses the word itself: it says which region the system needs to find the word again, not what it reads.
    """
    without: dict[int, list[Example]] = {}
    for document in sorted({x.document for x in words}):
        count = len(first_picture(samples[document]).boxes)
        kept = (np.delete(np.arange(count), r) for r in range(count))
        without[document] = [system.lay_out(keep_regions(samples[document], x)) for x in kept]
    plan = [(number, r) for number, word in enumerate(words) for r in range(len(without[word.document]))]
    hurt = [np.zeros(len(without[x.document]), np.float32) for x in words]

    def build(i: int) -> Example:
        number, r = plan[i]
        word = words[number]
        return hide_rows(without[word.document][r], word.rows, system.vocab.mask)

    def read(numbers: Array, batch: Batch) -> None:
        assert batch.text is not None
        start = batch.text.packing.cu_seqlens.cpu().numpy()
        asked = [words[plan[i][0]] for i in numbers]
        rows = batch.text.ids.new_tensor(np.concatenate([s + x.rows for s, x in zip(start, asked, strict=False)]))
        ids = batch.text.ids.new_tensor(np.concatenate([x.ids for x in asked]))
        logits = system.word_logits(system.encode(batch), rows).float().log_softmax(-1)
        said = logits.gather(1, ids[:, None])[:, 0].cpu().numpy()
        ends = np.cumsum([len(x.rows) for x in asked])[:-1]
        for i, part in zip(numbers, np.split(said, ends), strict=True):
            number, r = plan[i]
            hurt[number][r] = -part.sum()

    lengths = np.array([without[words[n].document][r].rows for n, r in plan])
    run(system, lengths, build, read, f"{len(words)} words, one region taken away at a time", how)
    return hurt


# ------------------------------------------------------------------------------------------------------------ the score


@dataclass(frozen=True, slots=True)
class Pointing:
    """How often the region that stands out for a word is one that the word names."""

    ways: dict[str, Share]
    """By attention (the look below), by the mean of all attention, by each of the system's own maps, by occlusion."""
    chance: float
    """A region at random."""
    chance_objects: float | None
    """A region at random among those that are no background; None where the data do not say."""
    look: Look
    """The attention that did best on the validation samples; the mean of all when there were none."""
    validation: Share | None
    """How well it did there."""
    left_out: int = 0
    """Samples too long for the system."""

    def to_json(self) -> str:
        """The numbers as JSON text."""
        return json.dumps(plain(self), indent=2)

    def table(self) -> Table:
        """The numbers as a table, chance beside them."""
        found = Table("pointing", "right", title=f"attention: {self.look}")
        for name, share in self.ways.items():
            found.add_row(f"{name} ({share.of} words)", str(share))
        found.add_row("chance, all regions", percent(self.chance))
        found.add_row("chance, objects only", percent(self.chance_objects))
        return found


def pointing(
    system: System,
    samples: Sequence[Sample],
    validation: Sequence[Sample] = (),
    chosen: Sequence[Sequence[ChosenWord]] | None = None,
    how: Inference = FP32,
) -> Pointing:
    """Scores word-to-region pointing against the gold links of the samples.

    Args:
        system: the system; occlusion is left out when it predicts no words, or reads pixels, from which no region can be taken away.
        samples: captions with pictures and gold links.
        validation: other samples with links, on which the attention map is chosen from all heads, layers and means; the samples never choose.
        chosen: for each sample the words to ask for; None = every word that has a link.
        how: batch size, precision, bar.

    Raises:
        BadInput: no word of the samples has a link.
    """
    numbers, examples = fitting(system, samples)
    kept = [samples[i] for i in numbers]
    words = linked_words(system, kept, examples, None if chosen is None else [chosen[i] for i in numbers])
    if not words:
        raise BadInput(f"pointing: no word of {len(samples)} samples has a gold link to a region")
    look, learnt = choose_look(system, validation, how)
    maps = [x.of_picture(y) for x, y in zip(word_region_maps(system, examples, how), kept, strict=True)]
    ways: dict[str, Share] = {}
    if next(maps[0].looks(), None) is not None:
        ways["attention"] = _score(words, [x.seen(look) for x in maps])
        if look != Look():
            ways["attention, mean of all"] = _score(words, [x.seen(Look()) for x in maps])
    for name in maps[0].own:
        ways[name] = _score(words, [x.own[name] for x in maps])
    if system.predicts_words and system.reads_features:
        hurt = occlusion(system, kept, examples, words, how)
        ways["occlusion"] = Share.count([int(h.argmax()) in x.gold for h, x in zip(hurt, words, strict=True)])
    chance, objects = _chances(kept, words)
    return Pointing(ways, chance, objects, look, learnt, len(samples) - len(numbers))


def choose_look(system: System, validation: Sequence[Sample], how: Inference = FP32) -> tuple[Look, Share | None]:
    """The attention map that points best on samples with links, and how well; the mean of all without such samples. The first wins a tie."""
    numbers, examples = fitting(system, validation)
    kept = [validation[i] for i in numbers]
    words = linked_words(system, kept, examples)
    if not words:
        return Look(), None
    found = word_region_maps(system, examples, how, "choosing an attention map")
    maps = [x.of_picture(y) for x, y in zip(found, kept, strict=True)]
    scored = [(look, _score(words, [x.seen(look) for x in maps])) for look in maps[0].looks()]
    return max(scored, key=lambda x: x[1].right, default=(Look(), None))


def _score(words: Sequence[LinkedWord], maps: Sequence[Array]) -> Share:
    return Share.count([pointed(x.rows, maps[x.document]) in x.gold for x in words])


def pointed(rows: Array, seen: Array) -> int:
    """The region that stands out in a (T, R) map for the word in some text rows."""
    return int(seen[rows].mean(0).argmax())


def _chances(samples: Sequence[Sample], words: Sequence[LinkedWord]) -> tuple[float, float | None]:
    everywhere, among_objects = [], []
    for word in words:
        picture = first_picture(samples[word.document])
        everywhere.append(len(word.gold) / len(picture.boxes))
        labels = picture.labels
        if labels is None and picture.probs is not None:
            labels = picture.probs.argmax(-1)
        if labels is not None:
            objects = set(np.flatnonzero(labels).tolist())
            among_objects.append(len(word.gold & objects) / max(1, len(objects)))
    return float(np.mean(everywhere)), float(np.mean(among_objects)) if len(among_objects) == len(words) else None
