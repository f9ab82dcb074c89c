"""Checkpoints: whole or not at all, without pickles, enough to go on to the same bits.

`OUT/checkpoints/step-00001000/` holds model.safetensors, optimizer.safetensors and state.json. It is written under another name, synced, renamed;
only then does `OUT/checkpoints/latest` name it, and only then are older ones removed.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from intarsia.errors import BadInput
from intarsia.train.parallel import Ranks

FOLDER = "checkpoints"
LATEST = "latest"


@dataclass(frozen=True)
class Position:
    """Where a run stands."""

    step: int
    """Optimizer steps done."""
    number: int
    """Micro-batches taken by all ranks."""
    world: int = 1
    seconds: float = 0.0
    """Time spent training so far."""


def save(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, at: Position, ranks: Ranks, keep: int = 2) -> None:
    """Saves a checkpoint; every rank calls it.

    Raises:
        BadInput: it cannot be written (disk full); the checkpoint before stays whole.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = get_state_dict(model, optimizer, options=options)
    draws = _draws(ranks)
    if ranks.first:
        folder = out / FOLDER
        name = f"step-{at.step:08d}"
        part = folder / f".{name}.part"
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            _write(part / "model.safetensors", {k: v.contiguous() for k, v in weights.items()})
            flat = {f"{key}|{slot}": v for key, slots in moments["state"].items() for slot, v in slots.items()}
            _write(part / "optimizer.safetensors", {**flat, **draws})
            (part / "state.json").write_text(json.dumps(asdict(at)))
            for file in part.iterdir():
                sync(file)
            sync(part)
            shutil.rmtree(folder / name, ignore_errors=True)
            part.rename(folder / name)
            pointer = folder / f".{LATEST}"
            pointer.write_text(name)
            sync(pointer)
            pointer.replace(folder / LATEST)
            sync(folder)
        except (OSError, safetensors.SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise BadInput(f"{folder / name}: the checkpoint cannot be written: {error}; the one before is whole") from None
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    ranks.wait()


def restore(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> Position | None:
    """Puts the latest checkpoint back; None when there is none.

    Raises:
        BadInput: it is damaged, or was made by another number of ranks.
    """
    pointer = out / FOLDER / LATEST
    if not pointer.is_file():
        return None
    folder = out / FOLDER / pointer.read_text().strip()
    try:
        at = Position(**json.loads((folder / "state.json").read_text()))
        weights, flat = load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors")
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise BadInput(f"{folder}: not a whole checkpoint: {error}") from None
    if at.world != ranks.world:
        raise BadInput(f"{folder}: made by {at.world} ranks, there are {ranks.world}: the order of the data would differ")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    _, template = get_state_dict(model, optimizer, options=options)
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        if "|" in key:
            name, slot = key.split("|")
            slots.setdefault(name, {})[slot] = value
    moments: Any = {"state": slots, "param_groups": template["param_groups"]}
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=options)
    torch.set_rng_state(flat[f"rng.{ranks.rank}"])
    if ranks.device.type == "cuda":
        torch.cuda.set_rng_state(flat[f"rng.cuda.{ranks.rank}"])
    return at


def _draws(ranks: Ranks) -> dict[str, Tensor]:
    """The state of every rank's random generators."""
    mine = {f"rng.{ranks.rank}": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        mine[f"rng.cuda.{ranks.rank}"] = torch.cuda.get_rng_state()
    if ranks.world == 1:
        return mine
    everyone: list[Any] = [None] * ranks.world
    torch.distributed.all_gather_object(everyone, {k: v.numpy().tobytes() for k, v in mine.items()})
    return {k: torch.frombuffer(bytearray(v), dtype=torch.uint8) for x in everyone for k, v in x.items()}


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path)


def sync(path: Path) -> None:
    """Asks the system to put a file or folder on the disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
