"""All measurements of one system on one set of samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rich.console import Group

from intarsia.batch import Sample
from intarsia.evaluate.grounding import Pointing, pointing
from intarsia.evaluate.matching import Choice, Retrieval, choice, retrieval
from intarsia.evaluate.running import FP32, Inference, Shown, name_of, plain, shown_of
from intarsia.evaluate.words import ChosenWord, MaskedWords, masked_words
from intarsia.system import System


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured; None or empty where the system or the samples allow no such measurement."""

    samples: int
    retrieval: Retrieval | None = None
    words: MaskedWords | None = None
    pointing: Pointing | None = None
    choices: dict[str, Choice] = field(default_factory=dict)
    """"edited": against the samples' false captions; "swapped": against captions with two words exchanged."""
    baselines: dict[str, Retrieval] = field(default_factory=dict)
    """Retrieval of the same candidates without the system."""

    def to_json(self) -> str:
        """The numbers as JSON text."""
        return json.dumps(plain(self), indent=2) + "\n"

    def tables(self) -> Group:
        """All tables, to print."""
        parts = [self.retrieval, self.words, self.pointing, *self.choices.values()]
        return Group(*(x.table() for x in parts if x is not None))


def evaluate(
    system: System,
    samples: Sequence[Sample],
    *,
    validation: Sequence[Sample] = (),
    candidates: Sequence[int] | None = None,
    words: Sequence[Sequence[ChosenWord]] | None = None,
    swapped: Sequence[str | None] = (),
    how: Inference = FP32,
) -> Evaluation:
    """Measures what the system and the samples allow: retrieval, hidden words, pointing, choice.

    Args:
        system: the system.
        samples: N samples with one caption and one picture each; several may share a picture, which its name tells.
        validation: samples on which the attention map for pointing is chosen.
        candidates: numbers of the samples that retrieval is done on; None = all.
        words: for each sample the words to hide and to point from; None = every word.
        swapped: for each sample a caption with two words exchanged that is false of its picture, or None; may be empty.
        how: batch size, precision, bar.
    """
    exchanged = [replace(x, false_texts=(y,)) for x, y in zip(samples, swapped, strict=False) if y is not None]
    asked = {"edited": [x for x in samples if x.false_texts], "swapped": exchanged}
    return Evaluation(
        samples=len(samples),
        retrieval=retrieval(system, *pairs(samples, candidates), how) if system.matches else None,
        words=masked_words(system, samples, words, how)
        if system.predicts_words and (words is None or any(words))
        else None,
        pointing=pointing(system, samples, validation, words, how)
        if any(x.links for x in samples) and not system.towers
        else None,
        choices={name: choice(system, x, how) for name, x in asked.items() if x and system.matches},
    )


def pairs(
    samples: Sequence[Sample], candidates: Sequence[int] | None = None
) -> tuple[list[Sample], list[Shown], list[int]]:
    """Texts, pictures and gold for `retrieval`: the captions of some samples (all by default) and their pictures, each once, in order.

    Of samples with a video each passage of it is one candidate.

    Raises:
        BadInput: a sample has no picture.
    """
    texts = [samples[i] for i in (range(len(samples)) if candidates is None else candidates)]
    pictures: dict[str, Shown] = {}
    names = [name_of(shown_of(x)) for x in texts]
    for name, x in zip(names, texts, strict=True):
        pictures.setdefault(name, shown_of(x))
    place = {name: i for i, name in enumerate(pictures)}
    return texts, list(pictures.values()), [place[x] for x in names]
