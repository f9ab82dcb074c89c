"""Weights that others fine-tuned, as they published them: a system and the head of a task in one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from intarsia.errors import BadInput
from intarsia.model import fit_to, sized
from intarsia.system import Finetune, FineTuned, System
from intarsia.text import Vocab
from intarsia.tuned import Tuned
from intarsia.weights.files import fill
from intarsia.weights.keymap import KeyMap

State = Mapping[str, Tensor]


def renamed(state: State, finetune: Finetune) -> dict[str, Tensor]:
    """A state dict whose keys are called as in pre-training, see `Finetune.renames`; the longest start counts."""
    starts = sorted(finetune.renames, key=len, reverse=True)

    def name(key: str) -> str:
        start = next((x for x in starts if key.startswith(x)), None)
        return key if start is None else finetune.renames[start] + key[len(start) :]

    return {name(key): value for key, value in state.items()}


def layout_of(cls: type[System], finetune: Finetune, state: State) -> KeyMap | None:
    """The rules for a file of a system with a task's head, ours as in `FineTuned`; None = it holds no head of this task that pre-training has not."""
    bodies = (cls.keys, *cls.layouts.values())
    heads = [key for key in state if finetune.keys.moves and finetune.keys.knows({key: state[key]})]
    if not heads or cls.keys.knows({key: state[key] for key in heads}):
        return None
    every = (body.under("system.") + finetune.keys for body in bodies)
    return next((keys for keys in every if keys.knows(state)), None)


def read_tuned(
    cls: type[System], task: str, finetune: Finetune, size: str, state: State, vocab: Vocab, where: str
) -> Tuned | None:
    """A system with a task's head from published weights; pre-training heads that tuning does not keep are left out.

    Args:
        cls: the system.
        task: its name.
        finetune: the task, its answers given.
        size: recipe that gives what shapes cannot say (the number of heads).
        state: of the file, see `weights.files.read_weights`.
        vocab: of the weights; rows that the task adds to the table of words need no pieces.
        where: the file, for errors.

    Returns:
        None where the file holds no head of this task.

    Raises:
        BadInput: it holds one that does not fit the task, the vocabulary or the size.
    """
    plain = renamed(state, finetune)
    keys = layout_of(cls, finetune, plain)
    if keys is None:
        return None
    ours = keys.to_ours(plain, where)
    left_out = tuple(f"system.{x}." for x in set(cls.heads) - set(finetune.keeps))
    ours = {key: value for key, value in ours.items() if not key.startswith(left_out)}
    body = {key.removeprefix("system."): value for key, value in ours.items() if key.startswith("system.")}
    config = fit_to(cls, sized(cls, cls.card.name, size).config, body, where)
    config = replace(config, **(dict(finetune.config) | {name: getattr(config, name) for name in cls.flags}))
    added = len(finetune.grows["vocab_size"][1]) if "vocab_size" in finetune.grows else 0
    if len(vocab) not in (config.vocab_size, config.vocab_size - added):
        raise BadInput(f"{where}: the vocabulary has {len(vocab)} pieces, the weights {config.vocab_size - added}")
    tuned = Tuned(FineTuned(cls(config, vocab), finetune), task)
    fill(tuned, ours, where, tuple(f"system.{x}" for x in cls.keys.optional))
    return tuned
