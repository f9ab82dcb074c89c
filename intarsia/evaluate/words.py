"""Hidden words: does the system find a word of the caption again, with the picture and without it?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from rich.table import Table

from intarsia.batch import Array, Batch, Example, Sample
from intarsia.errors import BadInput
from intarsia.evaluate.running import (
    FP32,
    Inference,
    Share,
    fitting,
    hide_rows,
    keep_regions,
    percent,
    piece_rows,
    pieces_in,
    plain,
    run,
)
from intarsia.system import System
from intarsia.text import Vocab


class ChosenWord(Protocol):
    """A word of a caption to be hidden."""

    @property
    def start(self) -> int:
        """First character."""

    @property
    def end(self) -> int:
        """Past-last character."""

    @property
    def kind(self) -> str:
        """What it is, e.g. "colour"; accuracy is given per kind."""

    @property
    def accepted(self) -> tuple[str, ...]:
        """Right answers: the word and its synonyms; none = the word itself."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a caption to be hidden, where nothing is known of it but its place."""

    start: int
    end: int
    kind: str = "word"
    accepted: tuple[str, ...] = ()


def every_word(vocab: Vocab, text: str) -> tuple[Word, ...]:
    """All words of a text, as the vocabulary cuts it; punctuation is none."""
    pieces = vocab.encode(text)
    found = []
    for number in np.unique(pieces.words):
        spans = pieces.spans[pieces.words == number]
        start, end = int(spans[0, 0]), int(spans[-1, 1])
        if any(c.isalnum() for c in text[start:end]):
            found.append(Word(start, end))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Hidden:
    """Accuracy on hidden words of one kind."""

    seeing: Share
    """With the picture."""
    blind: Share
    """With no region at all."""
    commonest: Share
    """Had one always said the commonest of these words."""


@dataclass(frozen=True, slots=True)
class MaskedWords:
    """Accuracy on hidden words."""

    all: Hidden
    kinds: dict[str, Hidden]
    left_out: int = 0
    """Samples too long for the system."""

    def to_json(self) -> str:
        """The numbers as JSON text."""
        return json.dumps(plain(self), indent=2)

    def table(self) -> Table:
        """The numbers as a table, the baselines beside them."""
        found = Table("hidden words", "with the picture", "without", "always the commonest")
        for kind, x in {**self.kinds, "all": self.all}.items():
            found.add_row(f"{kind} ({x.seeing.of})", *(percent(s.share) for s in (x.seeing, x.blind, x.commonest)))
        return found


@dataclass(frozen=True, slots=True)
class _Item:
    """One hidden word: whose it is, the rows it took and the answers that count."""

    document: int
    rows: Array
    answers: tuple[tuple[int, ...], ...]
    kind: str
    word: str


def masked_words(
    system: System,
    samples: Sequence[Sample],
    chosen: Sequence[Sequence[ChosenWord]] | None = None,
    how: Inference = FP32,
) -> MaskedWords:
    """Hides one whole word at a time and asks for it; right when every piece of it is the likeliest at its place.

    Args:
        system: a system that predicts words.
        samples: captions with pictures.
        chosen: for each sample the words to hide; None = every word.
        how: batch size, precision, bar.

    Raises:
        BadInput: the lists differ in length, or no word is left to hide.
    """
    if chosen is not None and len(chosen) != len(samples):
        raise BadInput(f"hidden words: {len(samples)} samples, words chosen for {len(chosen)}")
    kept, examples = fitting(system, samples)
    items = [
        item
        for document, i in enumerate(kept)
        for item in _items(
            system.vocab, samples[i], examples[document], document, None if chosen is None else chosen[i]
        )
    ]
    if not items:
        raise BadInput(f"hidden words: none in {len(samples)} samples")
    none = np.zeros(0, np.int64)
    blank = [system.lay_out(keep_regions(samples[i], none)) for i in kept]
    rows = [x.rows for x in items]
    seeing, blind = (
        np.array([guess in item.answers for guess, item in zip(guesses, items, strict=True)])
        for guesses in (
            guess_words(system, [examples[x.document] for x in items], rows, how),
            guess_words(system, [blank[x.document] for x in items], rows, how, "hidden words, no picture"),
        )
    )
    kinds = sorted({x.kind for x in items})
    return MaskedWords(
        _tell(items, seeing, blind, None),
        {kind: _tell(items, seeing, blind, kind) for kind in kinds},
        len(samples) - len(kept),
    )


def _items(
    vocab: Vocab, sample: Sample, example: Example, document: int, chosen: Sequence[ChosenWord] | None
) -> list[_Item]:
    text = sample.texts[0]
    pieces = vocab.encode(text)
    rows = piece_rows(example, pieces)
    found = []
    for word in every_word(vocab, text) if chosen is None else chosen:
        inside = pieces_in(pieces, word.start, word.end, sample.key)
        itself = tuple(pieces.ids[inside].tolist())
        others = (tuple(vocab.encode(x).ids.tolist()) for x in word.accepted)
        answers = (itself, *(x for x in others if len(x) == len(itself)))
        found.append(
            _Item(document, rows[inside], answers, word.kind, (word.accepted or (text[word.start : word.end],))[0])
        )
    return found


def guess_words(
    system: System,
    examples: Sequence[Example],
    rows: Sequence[Array],
    how: Inference = FP32,
    what: str = "hidden words",
) -> list[tuple[int, ...]]:
    """Hides some text rows of each example, all at once, and asks for them: the likeliest piece at each."""
    return [tuple(x[:, 0].tolist()) for x in guess_best(system, examples, rows, how, what)]


def guess_best(
    system: System,
    examples: Sequence[Example],
    rows: Sequence[Array],
    how: Inference = FP32,
    what: str = "hidden words",
    best: int = 1,
) -> list[Array]:
    """The same, but some of the likeliest: of each example (M, best) int64 pieces, the likeliest first."""
    hidden = [hide_rows(x, r, system.vocab.mask) for x, r in zip(examples, rows, strict=True)]
    found: list[Array] = [np.zeros((0, best), np.int64)] * len(hidden)

    def read(numbers: Array, batch: Batch) -> None:
        assert batch.text is not None
        start = batch.text.packing.cu_seqlens.cpu().numpy()
        asked = [start[place] + rows[i] for place, i in enumerate(numbers)]
        logits = system.word_logits(system.encode(batch), batch.text.ids.new_tensor(np.concatenate(asked)))
        likeliest = logits.topk(best).indices.cpu().numpy()
        ends = np.cumsum([len(x) for x in asked])[:-1]
        for i, part in zip(numbers, np.split(likeliest, ends), strict=True):
            found[i] = part

    run(system, np.array([x.rows for x in hidden]), lambda i: hidden[i], read, what, how)
    return found


def _tell(items: list[_Item], seeing: Array, blind: Array, kind: str | None) -> Hidden:
    mine = np.array([kind is None or x.kind == kind for x in items])
    said = Counter(x.word for x, here in zip(items, mine, strict=True) if here)
    return Hidden(Share.count(seeing[mine]), Share.count(blind[mine]), Share(max(said.values()), int(mine.sum())))
