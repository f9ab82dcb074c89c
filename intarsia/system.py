"""The contracts: what a system must say, what a task must say, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Sample
from intarsia.errors import BadInput
from intarsia.recipe import Batching, Card, Optim, Recipe, Schedule
from intarsia.text import Vocab
from intarsia.weights.keymap import KeyMap


class TooLong(BadInput):
    """A text has more pieces than the system takes; such samples are counted and left out of training, never cut."""


class System(nn.Module, ABC):
    """One published system: its inputs, streams, objectives, recipes, downstream heads and checkpoint layout.

    A system whose parameters live on the meta device can still `lay_out` and `hide`: that is what the loader's workers hold.
    """

    card: ClassVar[Card]
    Config: ClassVar[type[Any]]
    recipes: ClassVar[Mapping[str, Recipe[Any]]]
    finetune: ClassVar[Mapping[str, Finetune]]
    keys: ClassVar[KeyMap]
    sizes: ClassVar[Mapping[str, tuple[str, int]]]
    """Config fields that the shapes of weights tell: field -> (key, axis)."""
    needs: ClassVar[tuple[str, ...]]
    """Streams of a Batch that must be there."""

    config: Any
    vocab: Vocab

    @abstractmethod
    def __init__(self, config: Any, vocab: Vocab) -> None:
        super().__init__()

    @abstractmethod
    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Rows, segments and positions of one sample, nothing hidden. No randomness.

        Args:
            sample: the sample.
            task: a downstream task of `finetune` that the paper lays out in its own way; None = as in pre-training.
            form: which of the task's documents of the sample (the second picture of NLVR2, the third choice of VCR).

        Raises:
            TooLong: the text does not fit.
        """

    @abstractmethod
    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Lays a sample out for one objective: what it hides or swaps, and the targets.

        Args:
            sample: the sample.
            goal: the objective, one of the recipe's mix.
            rng: the only source of randomness.
            draw: gives another sample of the data set, with another picture.
        """

    @abstractmethod
    def encode(self, batch: Batch) -> Encoded:
        """The streams."""

    @abstractmethod
    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Unweighted scalar losses of every goal in batch.targets."""

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Encoded]:
        """The one entry that DDP, FSDP and compile wrap."""
        encoded = self.encode(batch)
        return self.losses(encoded, batch), encoded

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) float: how well each document's text fits its picture, higher is better; what retrieval ranks by."""
        raise TypeError(f"{self.card.name} was not trained to match texts and pictures")

    def word_logits(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, vocabulary) logits of the words at the given text rows."""
        raise TypeError(f"{self.card.name} does not predict words")

    def alignments(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Named word-region maps of the system's own, each (B, Lt, Lr), beside its attention; none by default."""
        return {}


class Task(Protocol):
    """A benchmark's head and loss; it meets a system only through Encoded and Batch."""

    def head(self, config: Any) -> nn.Module:
        """The module put on the system."""

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """Logits."""

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """A scalar."""


@dataclass(frozen=True)
class Finetune:
    """A task as a paper fine-tuned it."""

    task: Task
    optim: Optim
    schedule: Schedule
    batching: Batching
    head_lr: float = 1.0
    """Factor on the learning rate of the head."""
    note: str = ""
