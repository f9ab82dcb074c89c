"""A word head with a part of its own for each visibility. Source: the code of VLP, after UniLM's (relax_projection)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from intarsia.parts.heads import TiedHead, Transform
from intarsia.parts.linear import product

SLICES, READS, WRITES = 4, 0, 3
"""How many; that of texts seen whole, and that of texts of which only what stands before is seen. The other two are UniLM's, for texts without pictures."""


class SlicedHead(TiedHead):
    """A `TiedHead` whose first half is four times as wide, one LayerNorm over all of it; of a row only the slice of its visibility meets the table."""

    def __init__(self, hidden_size: int, outputs: int, layer_norm_eps: float) -> None:
        super().__init__(hidden_size, outputs, layer_norm_eps)
        self.transform = Transform(hidden_size, layer_norm_eps, times=SLICES)

    def forward(self, x: Tensor, table: Tensor, writes: Tensor | None = None) -> Tensor:
        """Args: x (M, H); table (outputs, H); writes (M) bool, rows that see only what stands before, None = all. Returns: (M, outputs)."""
        slices = self.transform(x).unflatten(-1, (SLICES, x.shape[-1]))  # (M, 4, H)
        chosen = slices[:, WRITES]
        if writes is not None:
            chosen = torch.where(writes[:, None], chosen, slices[:, READS])
        return product(chosen, table, self.bias)


def is_sliced(state: Mapping[str, Tensor]) -> bool:
    """Whether the `word_head` of a state dict is a `SlicedHead`; not where there is none."""
    return _times(state) == SLICES


def resliced(state: Mapping[str, Tensor], sliced: bool, where: str) -> Mapping[str, Tensor]:
    """Weights for a system with slices or without: a plain head serves for all four, of four the one that writes is taken, with a warning; else as they are.

    Args:
        state: whose `word_head` is plain, sliced or missing.
        sliced: what the system has.
        where: the file, for the warning.
    """
    own = {key for key in state if key.startswith("word_head.transform.")}
    if sliced and _times(state) == 1:
        warnings.warn(f"{where}: its word head is plain: each of the {SLICES} slices begins as a copy", stacklevel=3)
        return {key: torch.cat([x] * SLICES) if key in own else x for key, x in state.items()}
    if not sliced and _times(state) == SLICES:
        warnings.warn(f"{where}: its word head has {SLICES} slices: only the one that writes is taken", stacklevel=3)
        return {key: x.chunk(SLICES)[WRITES] if key in own else x for key, x in state.items()}
    return state


def _times(state: Mapping[str, Tensor]) -> float:
    """How many times as wide as the rows the first half of the word head is; 0 without one."""
    dense = state.get("word_head.transform.dense.weight")
    return 0 if dense is None else len(dense) / dense.shape[1]
