"""Checkpoints: whole or absent, plain tensors and JSON, and enough in them to go on as if the run had never stopped.

    OUT/checkpoints/step-00001000/model.safetensors       weights and buffers, whole even if they were sharded
    OUT/checkpoints/step-00001000/optimizer.safetensors   "<parameter>/<moment>" and "<parameter>/step"
    OUT/checkpoints/step-00001000/state.json              position in the run and in the data; the recipe and the mark of the data
    OUT/checkpoints/latest                                name of the last whole one

Unusual: no state of a random generator is stored, because none carries over. Data order, masks and dropout are functions of the seed and of the
micro-batch's number (`data.loader`, `parallel.key_dropout`), and the number is in state.json.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput
from intarsia.train.optim import Optimizers
from intarsia.train.parallel import World, refill, whole
from intarsia.weights.files import read_weights, write_weights


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    step: int = 0
    """The next optimizer step."""
    number: int = 0
    """The next micro-batch that no process has taken."""
    starts: tuple[int, ...] = (0,)
    """First micro-batches of the epochs known so far."""
    seconds: float = 0.0
    """Time trained so far."""
    turns: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of tasks in turn, how far each has come."""


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        out: the run folder.
        world: the processes; the first one writes.
        identity: what must be the same for a run to go on (JSON values): the recipe, the data.
        keep: how many to keep, the newest; 0 = all.
    """

    def __init__(self, out: Path, world: World, identity: dict[str, Any], keep: int = 3) -> None:
        self.folder, self.world, self.keep = out / "checkpoints", world, keep
        self.identity = json.loads(json.dumps(identity))

    def latest(self) -> Path | None:
        """The checkpoint that `latest` names; without that file the newest one; None if there is none."""
        try:
            named = self.folder / (self.folder / "latest").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            named = None
        if named is not None and not named.is_dir():
            raise BadInput(f"{self.folder / 'latest'}: names {named.name!r}, which is not there")
        return named or (self._all()[-1] if self._all() else None)

    def _all(self) -> list[Path]:
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(
            (path for path in found if re.fullmatch(r"step-\d{8,}", path.name)), key=lambda path: int(path.name[5:])
        )

    # ------------------------------------------------------------------------------------------------------------------------- writing

    def save(self, system: nn.Module, optimizer: Optimizers, position: Position) -> None:
        """Writes a checkpoint and moves `latest` to it, then removes those beyond `keep`. All processes must call it.

        Raises:
            BadInput: it cannot be written (a full disk); the older ones stay whole and `latest` stays with them.
        """
        weights = self.whole_weights(system)
        gathered = {
            f"{name}/{kind}": whole(tensor, self.world)
            for name, parameter in system.named_parameters()
            for kind, tensor in optimizer.state.get(parameter, {}).items()
        }
        moments = {name: tensor for name, tensor in gathered.items() if tensor is not None}
        self.world.on_first(lambda: self._write(weights, moments, position))

    def whole_weights(self, system: nn.Module) -> dict[str, Tensor]:
        """Every weight and buffer, whole, on the CPU of the first process; nothing on the others. All processes must call it."""
        gathered = {name: whole(tensor, self.world) for name, tensor in system.state_dict().items()}
        return {name: tensor for name, tensor in gathered.items() if tensor is not None}

    def _write(self, weights: dict[str, Tensor], moments: dict[str, Tensor], position: Position) -> None:
        final = self.folder / f"step-{position.step:08d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(left)
            if not final.is_dir():
                self._write_folder(final, weights, moments, position)
            with write_whole(self.folder / "latest") as temporary:
                temporary.write_text(final.name, encoding="utf-8")
            self._prune(final)
        except (OSError, BadInput) as error:
            last = self.latest()
            raise BadInput(
                f"{final}: the checkpoint cannot be written: {error}; last whole one: {last.name if last else 'none'}"
            ) from None

    def _write_folder(
        self, final: Path, weights: dict[str, Tensor], moments: dict[str, Tensor], position: Position
    ) -> None:
        part = final.with_name(f".{final.name}.tmp")
        part.mkdir()
        try:
            write_weights(part / "model.safetensors", weights)
            write_weights(part / "optimizer.safetensors", moments)
            with write_whole(part / "state.json") as temporary:
                temporary.write_text(
                    json.dumps({**asdict(position), **self.identity}, indent=1) + "\n", encoding="utf-8"
                )
            os.rename(part, final)
            _sync(self.folder)
        finally:
            if part.exists():
                shutil.rmtree(part)

    def _prune(self, newest: Path) -> None:
        older = [path for path in self._all() if path != newest]
        for path in older[: max(0, len(older) - self.keep + 1)] if self.keep else []:
            gone = path.rename(path.with_name(f".{path.name}.tmp"))  # so that a half-removed one never looks whole
            shutil.rmtree(gone)

    # ------------------------------------------------------------------------------------------------------------------------- reading

    def load(self, path: Path, system: nn.Module, optimizer: Optimizers) -> Position:
        """Puts a checkpoint back, each process its share. All processes must call it and see the file.

        Raises:
            BadInput: it is damaged, of another system, or of a run with another recipe or other data (names the first value that differs).
        """
        state = _read_json(path / "state.json")
        try:
            position = Position(
                int(state.pop("step")),
                int(state.pop("number")),
                tuple(map(int, state.pop("starts"))),
                float(state.pop("seconds")),
                dict(state.pop("turns", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{path / 'state.json'}: not the state of a run: {error!r}") from None
        if differs := _first_difference(state, self.identity):
            raise BadInput(f"{path}: is of another recipe or other data: {differs}; choose another folder")
        own = system.state_dict()
        for name, value in _same_keys(
            read_weights(path / "model.safetensors"), own, path / "model.safetensors"
        ).items():
            refill(own[name], value)
        self._load_moments(path / "optimizer.safetensors", dict(system.named_parameters()), optimizer)
        return position

    def _load_moments(self, path: Path, parameters: dict[str, nn.Parameter], optimizer: Optimizers) -> None:
        optimizer.state.clear()
        for key, value in read_weights(path).items():
            name, _, kind = key.rpartition("/")
            if name not in parameters:
                raise BadInput(f"{path}: {key} is of no parameter of the system")
            parameter = parameters[name]
            own = (
                torch.empty_like(parameter)
                if value.ndim or kind != "step"
                else torch.empty((), device=parameter.device)
            )
            if own.shape != value.shape:
                raise BadInput(f"{path}: {key} has shape {tuple(value.shape)}, the parameter {tuple(own.shape)}")
            refill(own, value)
            optimizer.state[parameter][kind] = own.detach()


def _same_keys(theirs: dict[str, Tensor], ours: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    if odd := sorted(theirs.keys() ^ ours.keys()):
        raise BadInput(f"{path}: {len(odd)} tensors are missing or left over, the first is {odd[0]}")
    for name, value in theirs.items():
        if value.shape != ours[name].shape:
            raise BadInput(
                f"{path}: {name} has shape {tuple(value.shape)}, the config asks for {tuple(ours[name].shape)}"
            )
    return theirs


def _first_difference(theirs: Any, ours: Any, where: str = "") -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        # a number that is new since then and off says nothing else than before
        keys = [*(key for key in ours if key in theirs or ours[key]), *(key for key in theirs if key not in ours)]
        found = (_first_difference(theirs.get(key), ours.get(key), f"{where}.{key}".lstrip(".")) for key in keys)
        return next(filter(None, found), "")
    return "" if theirs == ours else f"{where} was {theirs!r} and is now {ours!r}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: not a JSON object")
    return value


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
