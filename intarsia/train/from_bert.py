"""Pre-training that starts from a plain BERT: which of its tensors a system takes, which it leaves, what stays as drawn.

The file is read as plain tensors; a pickle that wants to run code is refused. A key of no known layout, a tensor of words, encoder or heads that
lacks, and a number that differs from the recipe's are errors: nothing is passed over without being named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.recipe import Recipe
from intarsia.system import System
from intarsia.text import Vocab
from intarsia.train.start import fresh
from intarsia.weights import bert
from intarsia.weights.files import read_weights

SEGMENTS = "words.segment.weight"


@dataclass(frozen=True)
class Begun:
    """What became of a BERT's tensors, and what of the system is not from it."""

    taken: tuple[str, ...]
    """Keys of the file whose numbers now fill the system."""
    left: tuple[str, ...]
    """Keys of the file that the system has no use for."""
    drawn: tuple[str, ...]
    """Tensors of the system, by our names, that are random or hold rows that are."""

    @property
    def told(self) -> str:
        """All three in a line; ours by their modules."""
        modules = dict.fromkeys(key.rpartition(".")[0] for key in self.drawn)
        left, drawn = ", ".join(self.left) or "none", ", ".join(modules) or "none"
        return f"{len(self.taken)} tensors of BERT taken; left out: {left}; drawn: {drawn}"


def from_bert(
    cls: type[System], recipe: Recipe[Any], vocab: Vocab, provenance: Provenance, path: Path
) -> tuple[System, Recipe[Any], Begun]:
    """As `fresh`, with the weights of a plain BERT wherever the system's paper takes them (`System.from_bert`).

    Args:
        cls: a system whose pre-training starts from BERT.
        recipe: its config has the BERT's width and layers; the number of positions is taken from the file.
        vocab: the BERT's.
        provenance: of the regions.
        path: .safetensors, or a torch file of plain tensors, in Hugging Face's names; with or without heads, with or without "bert." in front. A RoBERTa's,
            with "roberta." in front, where the config's `model` says so.

    Raises:
        BadInput: the system does not start from BERT; keys of another layout; tensors missing; numbers that differ.
    """
    if cls.from_bert is None:
        raise BadInput(f"{path}: {cls.card.name} is not pre-trained from BERT")
    theirs = read_weights(path)
    kind = "roberta" if any(key.startswith("roberta.") for key in theirs) else "bert"
    if kind != (wanted := getattr(recipe.config, "model", "bert")):
        raise BadInput(f"{path}: is a {kind}, the recipe of {cls.card.name} begins as a {wanted}: name another --size")
    layout = bert.ROBERTA if kind == "roberta" else bert.PLAIN
    if not any(key.startswith(f"{kind}.") for key in theirs):
        theirs = {f"{kind}.{key}": value for key, value in theirs.items()}
    found = layout.to_ours(theirs, str(path))
    _check_numbers(recipe.config, found, len(vocab), path, cls.from_bert.deeper)
    config = replace(recipe.config, max_position_embeddings=len(found["words.position.weight"]))
    system, recipe = fresh(cls, replace(recipe, config=config), vocab, provenance)
    state = system.state_dict()
    use = {key: value for key, value in found.items() if _wanted(key, cls.from_bert, state)}
    use = dict(system.fitted(use, str(path)))
    _check_whole(state, use, path)
    use[SEGMENTS], drawn_rows = _segments(state[SEGMENTS], found[SEGMENTS], cls.from_bert)
    use |= {to: use[source] for to, source in cls.from_bert.copies.items()}
    system.load_state_dict(state | use)
    left = layout.to_theirs({key: value for key, value in found.items() if key not in use}).keys()
    idle = {rule.theirs for rule in layout.dropped}
    return (
        system,
        recipe,
        Begun(
            taken=tuple(key for key in theirs if key not in left and key not in idle),
            left=tuple(key for key in theirs if key in left),
            drawn=tuple(key for key in state if key not in use or (key == SEGMENTS and drawn_rows)),
        ),
    )


def _wanted(key: str, rule: bert.FromBert, state: Mapping[str, Tensor]) -> bool:
    """The next-sentence head serves only where the paper keeps it, and has two classes."""
    if key.startswith("match_head."):
        return rule.matches and len(state.get("match_head.bias", ())) == 2
    return key in state


def _segments(drawn: Tensor, found: Tensor, rule: bert.FromBert) -> tuple[Tensor, bool]:
    """The segment table, and whether rows of it are as drawn."""
    rows = [*rule.segments, *[None] * len(drawn)][: len(drawn)]
    table = [drawn[i] if source is None else found[source] for i, source in enumerate(rows)]
    return torch.stack(table), None in rows


def _check_numbers(config: Any, found: Mapping[str, Tensor], pieces: int, path: Path, deeper: bool) -> None:
    """Width, layers (if `deeper`, at least) and vocabulary are the recipe's."""
    lacking = [key for key, _ in bert.SIZES.values() if key not in found]
    if lacking:
        raise BadInput(f"{path}: no BERT: it lacks what fills {', '.join(dict.fromkeys(lacking))}")
    layers = [int(m[1]) for key in found if (m := re.match(r"encoder\.layers\.(\d+)\.", key))]
    numbers = {name: found[key].shape[axis] for name, (key, axis) in bert.SIZES.items()}
    numbers |= {"num_hidden_layers": max(layers) + 1, "vocab_size": pieces}
    if pieces != len(found["words.word.weight"]):
        raise BadInput(
            f"{path}: has {len(found['words.word.weight'])} pieces, the vocabulary {pieces}: name its own with --vocab"
        )
    for name in ("hidden_size", "num_hidden_layers", "intermediate_size"):
        if numbers[name] != (own := getattr(config, name)) and not (
            deeper and name == "num_hidden_layers" and numbers[name] > own
        ):
            raise BadInput(
                f"{path}: {name} is {numbers[name]}, the recipe has {getattr(config, name)}: name another --size"
            )


def _check_whole(state: Mapping[str, Tensor], use: Mapping[str, Tensor], path: Path) -> None:
    """All of words and encoder is there, each head is there whole or not at all, and shapes agree."""
    for part in ("words.", "encoder.layers.", "pooler.", "word_head."):
        lacking = [key for key in state if key.startswith(part) and key not in use]
        if lacking and (part in ("words.", "encoder.layers.") or any(key.startswith(part) for key in use)):
            raise BadInput(f"{path}: {len(lacking)} tensors missing (e.g. what fills {', '.join(lacking[:3])})")
    for key, value in use.items():
        if key != SEGMENTS and value.shape != state[key].shape:
            raise BadInput(f"{path}: {key} has shape {tuple(value.shape)}, {tuple(state[key].shape)} is needed")
