"""The last fully connected layer of a detector, from Detectron's pickles, which are read and never run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from intarsia.errors import BadInput
from intarsia.weights.pickles import read_pickle

BLOBS = {"weight": "fc7_w", "bias": "fc7_b"}
"""Our names of the layer's tensors, and Detectron's."""


def read_fc7(path: Path) -> dict[str, Tensor]:
    """Weight (out, in) and bias (out) of fc7.

    Args:
        path: a folder with fc7_w.pkl and fc7_b.pkl, as VLP's code wants them, or Detectron's .pkl of a whole detector, with or without "blobs".

    Raises:
        BadInput: no such file, a pickle that wants to run code, or one without these two as matrix and vector of floats.
    """
    if path.is_dir():
        blobs = {name: read_pickle(path / f"{name}.pkl") for name in BLOBS.values()}
    else:
        whole = read_pickle(path)
        blobs = whole.get("blobs", whole) if isinstance(whole, dict) else {}
    found = {}
    for (name, blob), axes in zip(BLOBS.items(), (2, 1), strict=True):
        value = blobs.get(blob)
        if not isinstance(value, np.ndarray) or value.ndim != axes or value.dtype.kind != "f":
            raise BadInput(f"{path}: has no {blob} of {axes} axes of floats: not the fc7 of a Detectron detector")
        found[name] = torch.from_numpy(value.astype(np.float32))
    return found
