"""Rules that turn an author's state dict into ours and back, as data.

A rule is a pair of key prefixes, theirs and ours. `{i}` stands for a number. `{query,key,value}` on their side means three tensors of theirs lie
stacked along the first axis in one of ours. A `Tied` key is theirs only: the same tensor as another of their keys, checked when read, written out
again when written. A `Drop` key is left out because a rule says so. Nothing else is: a key no rule matches is an error that lists it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intarsia.errors import BadInput

State = dict[str, Tensor]


@dataclass(frozen=True)
class Move:
    """Keys that begin with `theirs` begin with `ours` in our state dict."""

    theirs: str
    ours: str
    turned: bool = False
    """The matrix is theirs transposed; of a convolution, theirs is [.., in, out] and ours [out, in, ..] (TensorFlow's kernels)."""


@dataclass(frozen=True)
class Tied:
    """A key of theirs that holds the same tensor as another key of theirs; with a dot at the end, all keys that begin so."""

    theirs: str
    same_as: str

    def twin(self, key: str) -> str | None:
        """The key that this one is the same as, if the rule is about it."""
        whole = key.startswith(self.theirs) if self.theirs.endswith(".") else key == self.theirs
        return self.same_as + key[len(self.theirs) :] if whole else None

    def back(self, key: str) -> str | None:
        """The other key that holds the same as this one, if the rule is about it."""
        whole = key.startswith(self.same_as) if self.theirs.endswith(".") else key == self.same_as
        return self.theirs + key[len(self.same_as) :] if whole else None


@dataclass(frozen=True)
class Drop:
    """A key of theirs that holds nothing to keep, such as a table of the numbers 0, 1, 2, .."""

    theirs: str


class KeyMap:
    """An ordered list of rules; the first that matches a key wins.

    Args:
        rules: `Move`, `Tied` and `Drop` values, or plain (theirs, ours) pairs.
        spellings: older spellings of key endings, replaced before anything else (gamma and beta of early BERT files).
        optional: prefixes of ours that a file may lack as a whole (heads that were not published).
    """

    def __init__(
        self,
        *rules: Move | Tied | Drop | tuple[str, str],
        spellings: Mapping[str, str] | None = None,
        optional: tuple[str, ...] = (),
    ) -> None:
        whole = [Move(*rule) if isinstance(rule, tuple) else rule for rule in rules]
        self.moves = [rule for rule in whole if isinstance(rule, Move)]
        self.tied = [rule for rule in whole if isinstance(rule, Tied)]
        self.dropped = [rule for rule in whole if isinstance(rule, Drop)]
        self.spellings = dict(spellings or {".gamma": ".weight", ".beta": ".bias"})
        self.optional = optional

    def __add__(self, more: KeyMap) -> KeyMap:
        """The rules of both, the added ones first."""
        return KeyMap(
            *more.moves,
            *self.moves,
            *more.tied,
            *self.tied,
            *more.dropped,
            *self.dropped,
            spellings=self.spellings,
            optional=self.optional + more.optional,
        )

    def under(self, prefix: str) -> KeyMap:
        """The same rules for a module that holds ours under a name: every key of ours begins with `prefix`."""
        return KeyMap(
            *(replace(move, ours=prefix + move.ours) for move in self.moves),
            *self.tied,
            *self.dropped,
            spellings=self.spellings,
            optional=tuple(prefix + start for start in self.optional),
        )

    def behind(self, prefix: str) -> KeyMap:
        """The same rules for files whose every key begins with one more prefix."""
        return KeyMap(
            *(replace(rule, theirs=prefix + rule.theirs) for rule in self.moves),
            *(Tied(prefix + rule.theirs, prefix + rule.same_as) for rule in self.tied),
            *(Drop(prefix + rule.theirs) for rule in self.dropped),
            spellings=self.spellings,
            optional=self.optional,
        )

    def knows(self, theirs: Mapping[str, Tensor]) -> bool:
        """Whether some rule matches every key, and what should be tied is."""
        twins = {key: twin for rule in self.tied for key in theirs if (twin := rule.twin(key))}
        if any(twin in theirs and not torch.equal(theirs[key], theirs[twin]) for key, twin in twins.items()):
            return False
        known = twins.keys() | {rule.theirs for rule in self.dropped}
        return all(key in known or any(_forward(move, key) for move in self.moves) for key in map(self._spell, theirs))

    def to_ours(self, theirs: Mapping[str, Tensor], where: str = "weights") -> State:
        """Their state dict in our layout.

        Raises:
            BadInput: a key that no rule knows, a part of a stack that is missing, or a tied key that is not tied.
        """
        spelled = {self._spell(key): value for key, value in theirs.items()}
        ours: State = {}
        stacks: dict[str, dict[str, Tensor]] = {}
        unknown = []
        for key, value in spelled.items():
            if self._check_tied(key, value, spelled, where) or any(rule.theirs == key for rule in self.dropped):
                continue
            found = next((hit for move in self.moves if (hit := _forward(move, key))), None)
            if found is not None and found[2]:
                value = _turned(value)
            if found is None:
                unknown.append(key)
            elif found[1]:
                stacks.setdefault(found[0], {})[found[1]] = value
            else:
                ours[found[0]] = value
        if unknown:
            raise BadInput(
                f"{where}: {len(unknown)} keys of another layout, e.g. {_some(unknown)}; expected keys like {_some(m.theirs for m in self.moves)}"
            )
        for key, parts in stacks.items():
            order = next(names for move in self.moves if (names := _braces(move.theirs)) and set(parts) <= set(names))
            if set(parts) != set(order):
                raise BadInput(f"{where}: {key} needs {', '.join(order)}, only {', '.join(parts)} are there")
            ours[key] = torch.cat([parts[name] for name in order])
        return {key: value.contiguous() for key, value in ours.items()}

    def to_theirs(self, ours: Mapping[str, Tensor]) -> State:
        """Our state dict in their layout, tied keys written out.

        Raises:
            BadInput: a key that no rule knows.
        """
        theirs: State = {}
        unknown = []
        for key, value in ours.items():
            found = next((hit for move in self.moves if (hit := _backward(move, key))), None)
            if found is None:
                unknown.append(key)
                continue
            names = found[1] or [""]
            parts = value.chunk(len(names)) if found[1] else (value,)
            for name, part in zip(names, parts, strict=True):
                part = _turned_back(part) if found[2] else part
                theirs[re.sub(r"\{[^}]*,[^}]*\}", name, found[0])] = part
        if unknown:
            raise BadInput(f"no rule writes {len(unknown)} of our keys, e.g. {_some(unknown)}")
        for rule in self.tied:
            theirs |= {twin: value for key, value in theirs.items() if (twin := rule.back(key))}
        return {key: value.contiguous() for key, value in theirs.items()}

    def _spell(self, key: str) -> str:
        for old, new in self.spellings.items():
            if key.endswith(old):
                return key[: -len(old)] + new
        return key

    def _check_tied(self, key: str, value: Tensor, theirs: Mapping[str, Tensor], where: str) -> bool:
        twin = next((twin for rule in self.tied if (twin := rule.twin(key))), None)
        if twin is None:
            return False
        other = theirs.get(twin)
        if other is None or not torch.equal(other, value):
            raise BadInput(f"{where}: {key} should be the same tensor as {twin}, and is not")
        return True


def _braces(pattern: str) -> list[str]:
    found = re.search(r"\{([^}]*,[^}]*)\}", pattern)
    return found[1].split(",") if found else []


def _forward(move: Move, key: str) -> tuple[str, str, bool] | None:
    pattern = re.escape(move.theirs).replace(r"\{i\}", r"(?P<i>\d+)")
    names = _braces(move.theirs)
    if names:
        pattern = re.sub(r"\\\{[^}]*,[^}]*\\\}", f"(?P<part>{'|'.join(map(re.escape, names))})", pattern)
    found = re.match(pattern, key)
    if not found:
        return None
    groups = found.groupdict()
    return move.ours.replace("{i}", groups.get("i") or "") + key[found.end() :], groups.get("part") or "", move.turned


def _backward(move: Move, key: str) -> tuple[str, list[str], bool] | None:
    found = re.match(re.escape(move.ours).replace(r"\{i\}", r"(?P<i>\d+)"), key)
    if not found:
        return None
    return (
        move.theirs.replace("{i}", found.groupdict().get("i") or "") + key[found.end() :],
        _braces(move.theirs),
        move.turned,
    )


def _turned(kernel: Tensor) -> Tensor:
    """[.., in, out] to [out, in, ..]."""
    return kernel.permute(-1, -2, *range(kernel.ndim - 2))


def _turned_back(kernel: Tensor) -> Tensor:
    """[out, in, ..] to [.., in, out]."""
    return kernel.permute(*range(2, kernel.ndim), 1, 0)


def _some(keys: Iterable[str], most: int = 4) -> str:
    listed = list(keys)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
