"""Matching of a published system, at the pair or at the token: its own on [CLS], or the same pairs judged word by word.

`tied` leaves documents, streams and every other objective of the system as they are. Wherever the system asks whether a text belongs to a picture, both
granularities are asked, each by contrast of unit vectors (A, as a sigmoid) and by matching (C); only the weights of the losses differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Array, Batch, Encoded, Example, Pick, Sample, Text
from intarsia.objectives import granular, itm
from intarsia.packed import Packing, pad
from intarsia.parts import align
from intarsia.parts.aligned import AlignedNumbers, Pool, WordWeights
from intarsia.parts.embeddings import initialise
from intarsia.recipe import Mix
from intarsia.system import System
from intarsia.text import Vocab

Granularity = Literal["sentence", "told", "token", "both"]
SHARES: dict[str, float] = {"sentence": 0.0, "told": 0.0, "token": 1.0, "both": 0.5}
TOKEN, SENTENCE = ("a_tok", "c_tok"), ("a_sent", "itm")
TOLD = "c_told"
"""Matching that is told at [CLS] which word is wrong: the labels of c_tok at the sentence's address. Counts in "told" alone, beside the sentence's own."""
SOME_WRONG = 2
"""Label of a word whose pair is broken by another's picture or text: some word is wrong, which one is not known."""


@dataclass(frozen=True, slots=True)
class TiedEncoded(Encoded):
    """What the system returns, and what the heads on it say. The vectors are of rows that have met the other side."""

    sentence: Tensor = field(kw_only=True)
    """(B) S_sent."""
    token: Tensor = field(kw_only=True)
    """(B) S_tok."""
    support: Tensor = field(kw_only=True)
    """(T) logits: the picture supports this word, by its row."""
    named: Tensor = field(kw_only=True)
    """(T) the same by [CLS], asked for the word by its piece."""
    alpha: Tensor = field(kw_only=True)
    """(B, L, 1 + P) softmax alignment, the null first."""
    content: Tensor = field(kw_only=True)
    """(T) float, 0 for words that no region shows."""
    text_packing: Packing = field(kw_only=True)


class Heads(nn.Module):
    """Scores of word and region rows at both granularities.

    Args:
        width: of the rows.
        stops: (V) bool, pieces that no region shows.
        spread: sd of the initial weights.
    """

    def __init__(self, width: int, stops: Array, spread: float, size: int = 64) -> None:
        super().__init__()
        numbers = AlignedNumbers(hidden_size=width, align_size=size, initializer_range=spread)
        self.pool_text, self.pool_visual = Pool(numbers), Pool(numbers)
        self.word_vector, self.slot_vector = nn.Linear(width, size), nn.Linear(width, size)
        self.null = nn.Parameter(torch.randn(size))
        self.support = nn.Linear(width, 1)
        self.of_pair, self.of_piece = nn.Linear(width, size), nn.Embedding(len(stops), size)
        initialise(self, spread)
        self.log_temperature = nn.Parameter(torch.tensor(0.1).log())
        self.log_scale = nn.Parameter(torch.full((2,), np.log(10.0), dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(2))
        self.weights = WordWeights(stops, "content")

    def forward(self, encoded: Encoded, text: Text, visual: Packing) -> TiedEncoded:
        """All of it, whatever is read. Args: text, visual: where the rows lie."""
        words, seen = encoded.text, encoded.visual
        assert words is not None and seen is not None, "needs rows of words and regions"
        means = align.word_means(words.float(), text.words, text.packing)
        u = pad(F.normalize(self.word_vector(means).float(), dim=-1), text.packing)
        v = F.normalize(self.slot_vector(seen).float(), dim=-1)
        slots, here = align.with_null(v, visual, F.normalize(self.null.float(), dim=-1))
        scores = u @ slots.transpose(1, 2)
        alpha = align.shares(scores, here, "softmax", True, self.log_temperature.exp())
        of_words = align.word_scores(alpha, scores, slots @ slots.transpose(1, 2))
        token = align.mean_over_words(of_words, pad(self.weights(text), text.packing))
        asked = self.of_pair(words[text.packing.first]).float()[text.packing.doc]
        sentence = (self.pool_text(words, text.packing) * self.pool_visual(seen, visual)).sum(-1)
        own = {x.name: getattr(encoded, x.name) for x in dataclasses.fields(Encoded)}
        return TiedEncoded(
            **own,
            sentence=sentence,
            token=token,
            support=self.support(words).squeeze(-1),
            named=(asked * self.of_piece(text.ids).float()).sum(-1),
            alpha=alpha,
            content=self.weights.content[text.ids],
            text_packing=text.packing,
        )

    def losses(self, encoded: TiedEncoded, labels: Tensor, of_words: Tensor) -> dict[str, Tensor]:
        """A of both granularities, and C of words, asked at their rows and at [CLS]. Args: labels (B), 1 = matched; of_words (T), see `word_labels`."""
        scale, text = self.log_scale.clamp(max=np.log(100.0)).exp(), encoded.text_packing
        found = {
            name: itm.score_one(scale[i] * score + self.bias[i], labels)
            for i, (name, score) in enumerate((("a_sent", encoded.sentence), ("a_tok", encoded.token)))
        }
        vague = of_words == SOME_WRONG
        asked = labels.new_zeros(text.documents).index_add(0, text.doc, vague.long()) > 0
        known = torch.where(vague, -1, of_words)
        for name, logits in (("c_tok", encoded.support), (TOLD, encoded.named)):
            log_all = granular.all_supported(logits, vague, text)
            found[name] = granular.supported(logits, known) + granular.some_unsupported(log_all, asked)
        return found

    def scores(self, encoded: TiedEncoded, own: Tensor) -> dict[str, Tensor]:
        """(B) each: S_sent, S_tok, the system's `own` log odds of matching, those of the words, and of what [CLS] says of each word."""
        found = {"sentence": encoded.sentence, "token": encoded.token, "cls": own}
        for name, logits in (("words", encoded.support), ("named", encoded.named)):
            every = granular.all_supported(logits, encoded.content > 0, encoded.text_packing)
            found[name] = granular.log_odds(every)
        return found


def word_labels(shown: Array, said: Array, true: Array, content: Array, label: int, own_picture: bool) -> Array:
    """(T) of the words of a document: 1 supported, 0 not, SOME_WRONG, -1 not asked.

    Args:
        shown: (T) pieces as the system reads them, some perhaps hidden; hidden ones are not asked.
        said: (T) pieces of the text.
        true: pieces of the picture's own text.
        content: (V) bool, pieces that a region can show.
        label: 1 = the pair is matched.
        own_picture: the picture is that of `true`, so a broken pair has a false caption.
    """
    if label:
        found = np.ones(len(said), np.int64)
    elif own_picture and len(said) == len(true):
        found = (said == true).astype(np.int64)
    else:
        found = np.full(len(said), SOME_WRONG, np.int64)
    return np.where(content[said] & (shown == said), found, -1)


class Tied(System):
    """What `tied` puts on a system. That one stands behind it in the order of bases, so its methods are what `super` means here."""

    picked_goals = ()  # every row is read
    share: ClassVar[float]
    """Of the token in contrast and matching."""
    parts: ClassVar[Mapping[str, float]]
    """Weight of each loss of contrast and matching; 1 of all others."""
    false_texts: ClassVar[float]

    def __init__(self, config: Any, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.stops = granular.stops(vocab.tokens)
        self.tie = Heads(config.hidden_size, self.stops, config.initializer_range)

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """One document; where the goal asks for matching, with the labels of its words."""
        goals = goal.split("+")
        if "itm" not in goals:
            return super().hide(sample, goal, rng, draw)  # type: ignore[safe-super]
        pair, label = itm.swap(sample, rng, draw, 0.5, self.false_texts)
        rest = "+".join(x for x in goals if x != "itm")
        example = super().hide(pair, rest, rng, draw) if rest else self.lay_out(pair)  # type: ignore[safe-super]
        texts = (x.text for x in (example, self.lay_out(pair), self.lay_out(sample)))
        shown, said, true = (x.ids for x in texts if x is not None)
        labels = word_labels(shown, said, true, ~self.stops, label, pair.pictures is sample.pictures)
        example.targets |= {"itm": np.array(label), "c_tok": Pick("text", np.arange(len(labels)), labels)}
        return example

    def encode(self, batch: Batch) -> TiedEncoded:
        """What the system returns, and what the heads say of it."""
        encoded = super().encode(batch)  # type: ignore[safe-super]
        assert batch.text is not None and batch.regions is not None
        return self.tie(encoded, batch.text, batch.regions.packing)  # type: ignore[no-any-return]

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """The system's own, and where matching is asked those of both granularities."""
        own = {name: x for name, x in batch.targets.items() if name != "c_tok"}
        found = super().losses(encoded, replace(batch, targets=own))  # type: ignore[safe-super]
        if "c_tok" in batch.targets:
            assert isinstance(encoded, TiedEncoded)
            found |= self.tie.losses(encoded, batch.labels("itm"), batch.picks("c_tok").labels)
        return found

    def weigh(self, losses: dict[str, Tensor], mix: Mix) -> Tensor:
        """Contrast and matching count as the granularity says."""
        total: Tensor = mix.weigh({name: self.parts.get(name, 1.0) * loss for name, loss in losses.items()})
        return total

    def scores(self, encoded: Encoded) -> dict[str, Tensor]:
        """(B) by every read-out, see `Heads.scores`."""
        assert isinstance(encoded, TiedEncoded)
        return self.tie.scores(encoded, super().match_scores(encoded))

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) log odds by [CLS] and by the words, weighed as trained."""
        found = self.scores(encoded)
        return (1 - self.share) * found["cls"] + self.share * found["words"]

    def alignments(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """The system's own, and softmax alignment (B, Lt, Lr)."""
        assert isinstance(encoded, TiedEncoded)
        return super().alignments(encoded, batch) | {"alignment": encoded.alpha[..., 1:]}


def tied(cls: type[System], granularity: Granularity, false_texts: float = 0.6) -> type[System]:
    """The system with both granularities of matching, weighed by one switch; its own matching is the sentence's.

    Args:
        cls: a system with rows of words and regions and the objective "itm".
        granularity: sentence = its own matching and the contrast of pooled vectors; token = their twins instead; both = half of each; told = sentence, and [CLS]
            is told which word is wrong, as words are in token.
        false_texts: of the broken pairs that know false captions, how many take one; the same for every system.
    """
    share = SHARES[granularity]
    parts = dict.fromkeys(TOKEN, share) | dict.fromkeys(SENTENCE, 1 - share) | {TOLD: float(granularity == "told")}
    own = {"share": share, "parts": parts, "false_texts": false_texts, "heads": (*cls.heads, "tie")}
    return type(f"Tied{cls.__name__}", (Tied, cls), own)
