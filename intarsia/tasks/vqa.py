"""VQA: answer a question about a picture, out of a fixed list. Data: Goyal et al. 2017 (VQA v2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Sample
from intarsia.objectives import qa
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import initialise
from intarsia.parts.heads import AnswerHead, NormedLinear, Transform
from intarsia.system import Lay
from intarsia.tasks import HeadConfig, Reads, Scorer, places, pooled
from intarsia.text import Vocab


def two_layers(config: HeadConfig, outputs: int) -> nn.Module:
    """Two layers, GELU between."""
    head = AnswerHead(config.pooled_size, outputs, nn.GELU(), config.layer_norm_eps)
    initialise(head, config.initializer_range)
    return head


def transformed(config: HeadConfig, outputs: int) -> nn.Module:
    """The first half of BERT's word head, dropout, answers. Source: VL-BERT."""
    head = nn.Sequential(
        Transform(config.hidden_size, config.layer_norm_eps),
        Dropout(config.hidden_dropout_prob),
        nn.Linear(config.hidden_size, outputs),
    )
    initialise(head, config.initializer_range)
    return head


def transform_linear(config: HeadConfig, outputs: int) -> nn.Module:
    """Dropout, the first half of BERT's word head, answers. Source: MMF."""
    head = nn.Sequential(
        Dropout(config.hidden_dropout_prob),
        Transform(config.hidden_size, config.layer_norm_eps),
        nn.Linear(config.hidden_size, outputs),
    )
    initialise(head, config.initializer_range)
    return head


def normed(config: HeadConfig, outputs: int) -> nn.Module:
    """Two layers of length times direction, ReLU and dropout of a half between; torch's own draws of fresh weights. Source: the first code of ViLBERT."""
    inner = 2 * config.pooled_size
    return nn.Sequential(NormedLinear(config.pooled_size, inner), nn.ReLU(), Dropout(0.5), NormedLinear(inner, outputs))


def soft_answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of (B, C) logits against (B, C) targets in [0, 1]: the mean over all elements times C."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float()) * logits.shape[1]


def each_answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy over all elements of (B, C) logits against (B, C) targets in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


def share_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """KL(targets || softmax(logits)), both (B, C), summed over the answers and averaged over documents, as VisualBERT's code has it."""
    return F.kl_div(F.log_softmax(logits.float(), -1), targets.float(), reduction="batchmean")


def one_answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of (B, C) logits against the best answer of (B, C) targets (GQA, where one answer is right)."""
    return F.cross_entropy(logits.float(), targets.argmax(1))


def one_of_all(logits: Tensor, targets: Tensor) -> Tensor:
    """`one_answer_loss` times C (LXMERT's --mceLoss)."""
    return one_answer_loss(logits, targets) * logits.shape[1]


@dataclass(frozen=True)
class VQA:
    """Every answer has a soft target. Batch.targets["vqa"]: (B, answers) float in [0, 1]."""

    answers: int = 3129
    """Answers in the list; the table itself comes with the weights and is never rebuilt."""
    reads: Reads = pooled
    scorer: Scorer = two_layers
    criterion: Callable[[Tensor, Tensor], Tensor] = soft_answer_loss
    never: int = 1
    """So many of the first answers are never given: answer 0 is "unknown" in UNITER's table."""
    labels: tuple[str, ...] = ()
    """The list itself, at most `answers` long; needed to make documents."""
    blot: Callable[[Example, Vocab, np.random.Generator], None] | None = None
    """Hides something of a training document, in place, where the authors do."""

    def forms(self, lay: Lay, sample: Sample) -> list[Example]:
        """The question with its picture."""
        return [lay(sample)]

    def documents(
        self, lay: Lay, sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """With the soft score of every answer of the list; answers that are not in it are not learnt."""
        example, target, known = lay(sample), np.zeros(self.answers, np.float32), places(self.labels)
        for answer, share in sample.answers:
            if answer in known:
                target[known[answer]] = share
        if self.blot is not None:
            self.blot(example, lay.vocab, rng)
        example.targets["vqa"] = target
        return [example]

    def predict(self, scores: Tensor, batch: Batch) -> list[Tensor]:
        """(answers) of each question, as far as the list goes; those never given are minus infinity."""
        allowed = scores.float()[:, : len(self.labels) or None].clone()
        allowed[:, : self.never] = -float("inf")
        return list(allowed)

    def head(self, config: HeadConfig) -> nn.Module:
        """The answers' classifier."""
        return self.scorer(config, self.answers)

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B, answers) logits."""
        return head(self.reads(encoded, batch))  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """A scalar, by `criterion`."""
        return self.criterion(scores, batch.labels("vqa"))

    def expected(self, scores: Tensor, batch: Batch) -> Tensor:
        """(B) the soft score of the likeliest answer of those that may be given."""
        return batch.labels("vqa").gather(1, scores[:, self.never :].argmax(1, keepdim=True) + self.never).squeeze(1)


def carry_over(head: AnswerHead, trained: AnswerHead, answers: Sequence[str], known: Sequence[str]) -> int:
    """Starts a task's head from the pre-trained one: its first layer, and the row of every answer that its table knows; other rows become 0.

    Args:
        head: of the task, one output an answer. Changed.
        trained: of pre-training, of the same width.
        answers: of the task.
        known: the table of pre-training.

    Returns:
        How many answers were known.

    Source: the code of LXMERT (--loadLXMERTQA).
    """
    rows = {qa.normalise(answer): i for i, answer in enumerate(known)}
    found = [rows.get(qa.normalise(answer), -1) for answer in answers]
    state = trained.state_dict()
    for name in ("out.weight", "out.bias"):
        old = state[name]
        state[name] = old.new_zeros((len(found), *old.shape[1:]))
        for i, row in enumerate(found):
            if row >= 0:
                state[name][i] = old[row]
    head.load_state_dict(state)
    return sum(row >= 0 for row in found)
