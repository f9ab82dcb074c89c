"""A second corpus beside the first, in the same steps, whose losses are weighed apart. Source: the code of Oscar+, extra_dataset_file.

A target's name says its corpus: "mlm" of the second is "mlm_extra". Every document has both, one of them with nothing picked.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from intarsia.batch import Batch, Example, Pick, Picks

SUFFIX = "_extra"


def share_out(example: Example, extra: bool) -> Example:
    """Puts a document's targets under the names of its corpus. Changes and returns the example.

    A label of the document becomes a pick of its first text row, so that it can be missing.
    """
    targets, example.targets = example.targets, {}
    for goal, target in targets.items():
        mine = target if isinstance(target, Pick) else Pick("text", np.zeros(1, np.int64), np.asarray(target)[None])
        none = Pick(mine.stream, mine.rows[:0], mine.labels[:0])
        example.targets |= {goal: none if extra else mine, goal + SUFFIX: mine if extra else none}
    return example


def missing(batch: Batch, goal: str) -> bool:
    """Whether a target is shared out and nothing of it is in the batch, so that it has no loss."""
    target = batch.targets[goal]
    shared = goal.endswith(SUFFIX) or goal + SUFFIX in batch.targets
    return shared and isinstance(target, Picks) and not len(target.rows)


def labelled(batch: Batch, goal: str, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (M, ..) and labels (M) of the documents that have a label, of logits (B, ..) of all; without a second corpus that is all."""
    if not isinstance(batch.targets[goal], Picks):
        return logits, batch.labels(goal)
    assert batch.text is not None
    picks = batch.picks(goal)
    return logits.index_select(0, batch.text.packing.doc[picks.rows]), picks.labels


def weighed(losses: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The losses of the second corpus times `share`, those of the first times the rest."""
    return {name: loss * (share if name.endswith(SUFFIX) else 1 - share) for name, loss in losses.items()}
