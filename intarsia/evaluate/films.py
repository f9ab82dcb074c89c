"""What a system that reads clips as words makes of films: words in the gaps of a sentence, and clips from a sentence alone. Source: VideoBERT, sec. 4.4 and 4.6."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from intarsia.batch import Array, Encoded, Example, Sample
from intarsia.errors import BadInput
from intarsia.pack import pack
from intarsia.system import System
from intarsia.tasks.benchmarks import Benchmark
from intarsia.text import Vocab

BATCH = 32


@runtime_checkable
class ReadsVisualWords(Protocol):
    """A system whose clips are words, too."""

    def ask(self, sample: Sample, sentence: Sequence[str | None] = ...) -> tuple[Example, Array]:
        """A sentence with gaps (None) above the sample's clips, and the text row of each gap."""

    def clip_logits(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, clusters) of visual words, for hidden clips."""


def readable(system: System) -> Any:
    """The system, if it reads clips as words.

    Raises:
        BadInput: it does not.
    """
    if not isinstance(system, ReadsVisualWords):
        raise BadInput(f"{system.card.name} does not read clips as words: there is nothing to ask it by a sentence")
    return system


@torch.inference_mode()
def gap_logits(system: System, samples: Sequence[Sample], sentence: Sequence[str | None]) -> Iterator[Tensor]:
    """For each sample (gaps, vocabulary) float32: what stands in the gaps of a sentence above its clips.

    Args:
        system: reads clips as words; in evaluation mode.
        samples: with films, or without, for what the sentence alone says.
        sentence: words of one piece, None for a gap.
    """
    reader, device = readable(system), next(system.parameters()).device
    for start in range(0, len(samples), BATCH):
        asked = [reader.ask(x, sentence) for x in samples[start : start + BATCH]]
        batch = pack([example for example, _ in asked]).to(device)
        assert batch.text is not None
        gaps = torch.from_numpy(asked[0][1]).to(device)
        rows = (batch.text.packing.first[:, None] + gaps).flatten()
        found = system.word_logits(system.encode(batch), rows).float().cpu()
        yield from found.view(len(asked), len(gaps), -1)


def name_words(
    system: System, samples: Sequence[Sample], benchmark: Benchmark, labels: Sequence[str]
) -> tuple[dict[str, Array], int]:
    """Scores of a benchmark's labels in the gaps of its sentence, by sample.

    Args:
        system: reads clips as words; in evaluation mode.
        samples: with films, or without.
        benchmark: says the sentence.
        labels: what stands in which gap, "verb cut": those of one gap together, gaps in order.

    Returns:
        By sample (labels) float32, -inf for a label of several pieces; and how many there are of these.
    """
    gaps = list(dict.fromkeys(x.partition(" ")[0] for x in labels))
    pieces = [system.vocab.encode(x.partition(" ")[2]).ids for x in labels]
    able = [i for i, x in enumerate(pieces) if len(x) == 1 and x[0] != system.vocab.unk]
    at = [gaps.index(labels[i].partition(" ")[0]) for i in able]
    found = {}
    for sample, logits in zip(samples, gap_logits(system, samples, benchmark.sentence), strict=True):
        scores = np.full(len(labels), -np.inf, np.float32)
        scores[able] = logits[at, [int(pieces[i][0]) for i in able]].numpy()
        found[sample.key] = scores
    return found, len(labels) - len(able)


@torch.inference_mode()
def hidden_clip_logits(system: System, samples: Sequence[Sample]) -> Iterator[Tensor]:
    """For each sample (V, clusters) float32: which visual word each of its clips is, all of them hidden, from what is said alone."""
    reader, device = readable(system), next(system.parameters()).device
    for start in range(0, len(samples), BATCH):
        examples = [system.lay_out(x) for x in samples[start : start + BATCH]]
        for example in examples:
            assert example.clips is not None
            example.clips.masked[:] = True
        batch = pack(examples).to(device)
        assert batch.clips is not None
        packing = batch.clips.packing
        logits = reader.clip_logits(system.encode(batch), torch.arange(packing.rows, device=device))
        yield from torch.split(logits.float().cpu(), packing.lengths.tolist())


@dataclass(frozen=True)
class Choices:
    """What may stand in a gap: words of one piece."""

    words: tuple[str, ...]
    ids: Tensor
    dropped: int
    """Words of several pieces, which one gap cannot hold."""

    @classmethod
    def of(cls, vocab: Vocab, words: Sequence[str] | None = None) -> Choices:
        """These words, less those of several pieces; None = every ordinary piece.

        Raises:
            BadInput: none is left.
        """
        if words is None:
            ids = range(vocab.first_ordinary, len(vocab))
            return cls(tuple(vocab.tokens[i] for i in ids), torch.tensor(list(ids)), 0)
        pieces = {word: vocab.encode(word).ids for word in dict.fromkeys(words)}
        kept = {word: int(x[0]) for word, x in pieces.items() if len(x) == 1 and x[0] != vocab.unk}
        if not kept:
            raise BadInput(f"none of {len(pieces)} words is one piece of the vocabulary: {', '.join([*pieces][:5])}")
        return cls(tuple(kept), torch.tensor(list(kept.values())), len(pieces) - len(kept))

    def said(self, vocab: Vocab, text: str) -> set[str]:
        """Those of the words that a text says."""
        ids = set(vocab.encode(text).ids.tolist())
        return {word for word, i in zip(self.words, self.ids.tolist(), strict=True) if i in ids}

    def best(self, logits: Tensor, count: int) -> list[tuple[str, float]]:
        """The likeliest words of a gap (vocabulary), with their share of the probability of all choices."""
        shares, places = logits[self.ids].softmax(0).topk(min(count, len(self.ids)))
        return [(self.words[i], share) for i, share in zip(places.tolist(), shares.tolist(), strict=True)]


@dataclass
class Hits:
    """How often a gap is filled with a word that the sentence says. Source: VideoBERT, table 2."""

    asked: int = 0
    """Sentences that say one of the words."""
    first: int = 0
    five: int = 0
    """In how many of them it is the likeliest, and among the likeliest five."""

    def count(self, said: set[str], best: Sequence[str]) -> None:
        """Counts a sentence. Args: said, those of the words it says; best, from the likeliest on."""
        if said:
            self.asked += 1
            self.first += best[0] in said
            self.five += not said.isdisjoint(best[:5])

    def __str__(self) -> str:
        if not self.asked:
            return "no sentence says one of them"
        return f"{self.asked} sentences say one of them, first {self.first / self.asked:.3f}, among five {self.five / self.asked:.3f}"


def unseen(sample: Sample) -> Sample:
    """The sample without its film."""
    return replace(sample, film=None)
