"""Readers and writers of weight files. Nothing here runs code from a file.

`safetensors`, torch files of plain tensors, pickles of plain arrays, TensorFlow checkpoints, Caffe's blobs, Paddle's variables.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from intarsia.errors import BadInput
from intarsia.weights import caffe, paddle
from intarsia.weights.pickles import read_pickle
from intarsia.weights.tf_checkpoint import is_checkpoint, read_checkpoint, weights_of

WRAPPERS = ("model_state", "model_state_dict", "state_dict", "model", "module", "learnable")
"""Names under which training scripts of the field wrap a state dict."""
COUNTER = ".num_batches_tracked"
TRAINERS = ("pytorch_lightning.", "lightning.")
"""Classes of training frameworks that are named beside weights. They are neither looked up nor run: an empty class stands for each."""


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Reads a state dict.

    From .safetensors, a torch file (.pt, .pth, .bin) or a pickle of arrays (.pkl), unwrapped, a TensorFlow checkpoint, without what its optimizer left, or a
    folder or .tar.gz of Paddle's variables, or a .caffemodel, whose blobs are "LAYER.0", "LAYER.1", ..

    Raises:
        BadInput: no such file, damaged, a pickle that wants to run code, or not a state dict.
    """
    path = Path(path)
    if is_checkpoint(path):
        return weights_of(read_checkpoint(path))
    if path.is_dir() or (path.is_file() and path.name.endswith(paddle.ARCHIVES)):
        return paddle.read_folder(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise BadInput(f"{path}: not a whole safetensors file: {error}") from None
    if path.suffix == caffe.SUFFIX:
        return caffe.read_caffemodel(path)
    if path.suffix == ".pkl":
        return _unwrap(_tensors(read_pickle(path)), path)
    try:
        with torch.serialization.safe_globals(_stand_ins(path)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = (
            str(error).split("GLOBAL ")[-1].split(" was not")[0][:80] if "GLOBAL " in str(error) else "code of its own"
        )
        raise BadInput(f"{path}: refused: the pickle wants to run {wanted}; only plain tensors are read") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise BadInput(f"{path}: not a whole torch file: {str(error)[:120]}") from None
    return _unwrap(content, path)


def _stand_ins(path: Path) -> list[Any]:
    """An empty class for each name of `TRAINERS` that a torch file has."""
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, OSError, pickle.UnpicklingError):
        return []  # an older file, or a damaged one, of which the reader says so
    return [(type("Left", (), {}), name) for name in wanted if name.startswith(TRAINERS)]


def _tensors(content: Any) -> Any:
    """Arrays in dicts as tensors."""
    if isinstance(content, Mapping):
        return {key: _tensors(value) for key, value in content.items()}
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiub":
        return torch.from_numpy(np.array(content, content.dtype.newbyteorder("=")))
    return content


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise BadInput(f"{path}: holds {type(content).__name__}, not a state dict of tensors")
    bare = {str(key).removeprefix("module."): value for key, value in content.items()}
    return {key: value.clone().contiguous() for key, value in bare.items()}


def write_weights(path: Path | str, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a state dict whole or not at all: to a temporary name, synced, renamed. `.safetensors`, `.tar.gz` of Paddle's variables, else a torch file.

    Raises:
        BadInput: the disk is full or the folder cannot be written; an older file of the name stays as it was.
    """
    path = Path(path)
    plain = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file(_unshared(plain), part, metadata=dict(metadata or {}))
        elif path.name.endswith(paddle.ARCHIVES):
            paddle.write_archive(part, plain)
        else:
            torch.save(plain, part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise BadInput(f"{path}: cannot be written: {error}") from None


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    own = {}
    for key, value in state.items():
        own[key] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return own


def fill(module: nn.Module, state: Mapping[str, Tensor], where: str, optional: tuple[str, ...] = ()) -> list[str]:
    """Loads a state dict strictly; each part named in `optional` may be missing, but only as a whole.

    Returns:
        Our keys that the file did not have (all of them under `optional`).

    Raises:
        BadInput: keys missing or left over, or shapes that differ (names the first of each).
    """
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state]
    left = [key for key in state if key not in wanted]
    absent = tuple(part for part in optional if not any(key.startswith(part) for key in state))
    lacking = [key for key in missing if not key.startswith(absent)]
    if lacking or left:
        raise BadInput(
            f"{where}: {len(lacking)} tensors missing (e.g. {', '.join(lacking[:3]) or 'none'}), {len(left)} left over (e.g. {', '.join(left[:3]) or 'none'})"
        )
    for key, value in state.items():
        if value.shape != wanted[key].shape:
            raise BadInput(
                f"{where}: {key} has shape {tuple(value.shape)}, the config asks for {tuple(wanted[key].shape)}"
            )
    module.load_state_dict(dict(state), strict=False)
    return missing


def counted(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A state dict with the counters of batches that the batch norms of a module have.

    Files of before 2019, frozen detectors and TensorFlow have none: those that lack are 0. A frozen norm has no use for its counter: it goes. No
    number of a network depends on a counter as long as its batch norms have a momentum.

    Args:
        state: keys as the module's, with or without `num_batches_tracked`.
        module: what will be filled.
    """
    wanted = module.state_dict()
    own = {key: value for key, value in state.items() if key in wanted or not key.endswith(COUNTER)}
    lacking = {key: torch.zeros_like(wanted[key]) for key in wanted if key.endswith(COUNTER) and key not in own}
    return own | lacking
