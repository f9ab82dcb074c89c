"""One network with the heads of many tasks, which share some of them: 12-in-1 (Lu et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Sample
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import initialise
from intarsia.parts.heads import AnswerHead
from intarsia.system import Lay, Task
from intarsia.tasks import HeadConfig
from intarsia.tasks.vqa import normed
from intarsia.weights import bert
from intarsia.weights.keymap import KeyMap


@dataclass(frozen=True)
class Among:
    """A task whose weights come with the heads of other tasks."""

    task: Task
    """Its own head is not made."""
    name: str
    """The head it reads."""
    heads: Mapping[str, Callable[[HeadConfig], nn.Module]]
    """All heads there are, by their authors' names."""

    def forms(self, lay: Lay, sample: Sample) -> list[Example]:
        """The task's."""
        return self.task.forms(lay, sample)

    def documents(
        self, lay: Lay, sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """The task's."""
        return self.task.documents(lay, sample, rng, draw)

    def predict(self, scores: Tensor, batch: Batch) -> list[Tensor]:
        """The task's."""
        return self.task.predict(scores, batch)

    def head(self, config: HeadConfig) -> nn.Module:
        """All heads."""
        found = nn.ModuleDict({name: make(config) for name, make in self.heads.items()})
        initialise(found, config.initializer_range)
        return found

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """Logits of the task by its head."""
        return self.task.score(head.get_submodule(self.name), encoded, batch)

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """The task's."""
        return self.task.loss(scores, batch)


# ------------------------------------------------------------------------------------- the heads of ViLBERT and 12-in-1


def _answers(outputs: int) -> Callable[[HeadConfig], nn.Module]:
    return lambda x: AnswerHead(x.pooled_size, outputs, nn.GELU(), x.layer_norm_eps)


def _row_logit(width: Callable[[HeadConfig], int]) -> Callable[[HeadConfig], nn.Module]:
    return lambda x: nn.Sequential(Dropout(x.hidden_dropout_prob), nn.Linear(width(x), 1))


SHARED: dict[str, Callable[[HeadConfig], nn.Module]] = {
    "vil_logit": lambda x: nn.Linear(x.pooled_size, 1),
    "vision_logit": _row_logit(lambda x: x.visual_size),
    "linguisic_logit": _row_logit(lambda x: x.hidden_size),
}
"""Heads that both codes have: on the pooled vector, on regions, and on words, which no task reads."""
BETA_HEADS = SHARED | {"vil_prediction": lambda x: normed(x, 3129)}
"""Those of the first code."""
HEADS = SHARED | {
    "vil_prediction": _answers(3129),
    "vil_prediction_gqa": _answers(1533),
    "vil_binary_prediction": lambda x: AnswerHead(2 * x.pooled_size, 2, nn.GELU(), x.layer_norm_eps, 2 * x.pooled_size),
    "vil_tri_prediction": lambda x: nn.Linear(x.pooled_size, 3),
}
"""Those of 12-in-1."""
TWELVE = (
    "vqa",
    "genome_qa",
    "visual7w",
    "retrieval_coco",
    "retrieval",
    "re",
    "re_plus",
    "re_g",
    "nlvr2",
    "ve",
    "gqa",
    "guesswhat",
)
"""The tasks that the authors trained together, in their order."""
_CLASSIFIERS = ("vil_prediction", "vil_prediction_gqa", "vil_binary_prediction")
_SHARED_KEYS = (
    ("vil_logit.", "head.vil_logit."),
    ("vision_logit.", "head.vision_logit.1."),
    ("linguisic_logit.", "head.linguisic_logit.1."),
)
BETA_KEYS = KeyMap(*_SHARED_KEYS, ("vil_prediction.main.", "head.vil_prediction."))
HEAD_KEYS = KeyMap(
    *_SHARED_KEYS,
    *(x for name in _CLASSIFIERS for x in bert.numbered(f"{name}.logit_fc.", f"head.{name}.", bert.ANSWER_HEAD)),
    ("vil_tri_prediction.", "head.vil_tri_prediction."),
)
"""From the names of 12-in-1 to ours."""
HEAD_TENSORS = (
    *(f"{head}.logit_fc.{i}.{part}" for head in _CLASSIFIERS for i in (0, 2, 3) for part in ("weight", "bias")),
    *(f"{head}.{part}" for head in (*SHARED, "vil_tri_prediction") for part in ("weight", "bias")),
)
"""All tensors of those heads, by the authors' names."""
