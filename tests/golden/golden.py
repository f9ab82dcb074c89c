"""Reads a golden file (the authors' inputs, weights, outputs and gradients) and turns their padded tensors into packed rows."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from intarsia.batch import Picks, Regions, Text
from intarsia.packed import Packing, unpad

FOLDERS = [Path(__file__).parent, *(Path(x) for x in os.environ.get("INTARSIA_GOLDEN", "").split(os.pathsep) if x)]
"""More cases are taken from the folders named in INTARSIA_GOLDEN: NAME.json with NAME.safetensors, or NAME_caseANYTHING."""


@dataclass(frozen=True)
class Golden:
    name: str
    about: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def cases(cls, system: str) -> list[Golden]:
        found = [
            path
            for folder in FOLDERS
            for path in sorted(folder.glob(f"{system}*.json"))
            if path.stem == system or f"{system}_case" in path.stem
        ]
        assert found, f"no golden file of {system}"
        return [
            cls(path.stem, json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))) for path in found
        ]

    def __str__(self) -> str:
        return self.name

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def weights(self, prefix: str) -> dict[str, Tensor]:
        return self._under(prefix)

    def inputs(self, case: str) -> dict[str, Tensor]:
        return self._under(f"input.{case}.")

    def output(self, name: str) -> Tensor:
        return self.tensors[f"output.{name}"]

    def target(self, value: Any) -> Picks | Tensor:
        if isinstance(value, Tensor):
            return value
        rows, labels = value
        return Picks(rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows, labels)


COMPARED: dict[str, dict[str, list[float]]] = {}
"""Test file -> test -> the largest difference of each tensor compared; `conftest.py` makes the parity page of it."""


def assert_near(ours: Tensor, theirs: Tensor, what: str, atol: float = 2e-5) -> None:
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, theirs {tuple(theirs.shape)}"
    worst = (ours.detach() - theirs).abs().max().item() if ours.numel() else 0.0
    file, _, test = os.environ["PYTEST_CURRENT_TEST"].partition("::")
    COMPARED.setdefault(Path(file).stem, {}).setdefault(test.split("[")[0].split(" ")[0], []).append(worst)
    assert worst <= atol, f"{what}: differs by {worst:.3g}"


def real(block: Tensor, lengths: Tensor) -> Tensor:
    """(B, L, ..) padded to (N, ..) packed rows."""
    return unpad(block, Packing.of(lengths.tolist()))


def picks(labels: Tensor, lengths: Tensor, ignore: int = -1) -> tuple[Tensor, Tensor]:
    """Rows and labels of a padded label block (B, L) in which `ignore` means none."""
    rows = real(labels, lengths)
    return rows != ignore, rows[rows != ignore]


def text(ids: Tensor, lengths: Tensor, segment: Tensor | None = None) -> Text:
    packing = Packing.of(lengths.tolist())
    segments = torch.zeros_like(ids) if segment is None else segment
    return Text(unpad(ids, packing), unpad(segments, packing), packing.pos, packing.pos, packing)


def regions(feats: Tensor, boxes: Tensor, lengths: Tensor, segment: Tensor | int, masked: Tensor | None) -> Regions:
    packing = Packing.of(lengths.tolist())
    rows = packing.doc.new_zeros(packing.rows)
    segments = rows + segment if isinstance(segment, int) else unpad(segment, packing)
    hidden = rows.bool() if masked is None else unpad(masked, packing)
    return Regions(unpad(feats, packing), unpad(boxes, packing), segments, rows, rows, hidden, packing)
