"""One network with the heads of many tasks, which share some of them: 12-in-1 (Lu et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from intarsia.batch import Batch, Encoded
from intarsia.parts.embeddings import initialise
from intarsia.system import Task
from intarsia.tasks import HeadConfig


@dataclass(frozen=True)
class Among:
    """A task whose weights come with the heads of other tasks."""

    task: Task
    """Its own head is not made."""
    name: str
    """The head it reads."""
    heads: Mapping[str, Callable[[HeadConfig], nn.Module]]
    """All heads there are, by their authors' names."""

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
