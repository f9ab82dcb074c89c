"""Captions that name given things: constrained beam search, after machines that say which pieces lead from what was named to what else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from intarsia.decode import Next, Said

IMPOSSIBLE = -1e20


@dataclass(frozen=True, slots=True)
class Machine:
    """Which pieces lead from which state to which: what was named so far."""

    allowed: Tensor
    """(S, S, V) bool: from state, to state, by piece. The first 2 ** given states are sets of things named, one bit a thing; the others are halfway
    through a thing of several pieces."""
    given: int
    """Things to name."""

    @classmethod
    def of(cls, things: Sequence[Sequence[Sequence[int]]], vocabulary: int) -> Machine:
        """Builds it.

        Args:
            things: each a sequence of places, each place the pieces that may stand there (forms of a word). Said one after the other they name it.
            vocabulary: V.

        As in the authors' code, a thing added later lets the first pieces of earlier ones pass by without naming them as well, and a piece that breaks a
        thing off leads back without counting for another.

        Source: nocaps, updown-baseline, utils/constraints.py; Oscar, utils/cbs.py.
        """
        main = 2 ** len(things)
        states = main + sum((len(places) - 1) * main // 2 for places in things)
        allowed = torch.zeros(states, states, vocabulary, dtype=torch.bool)
        allowed[range(main), range(main)] = True
        halfway = main
        for bit, places in enumerate(things):
            for start in range(main):
                if start >> bit & 1:
                    continue
                at = start
                for i, forms in enumerate(places):
                    last = i == len(places) - 1
                    to = start | 1 << bit if last else halfway
                    halfway += not last
                    allowed[at, at] = False
                    allowed[at, start] = True
                    allowed[at, start, list(forms)] = False
                    allowed[at, to, list(forms)] = True
                    at = to
        return cls(allowed, len(things))


def constrained(
    logits: Next,
    machines: Sequence[Machine],
    length: int,
    end: int,
    beams: int,
    each: int = 0,
    satisfy: int = 2,
) -> list[Said]:
    """Constrained beam search: a beam for every state of a caption's machine, so that captions which name the things survive beside likelier ones.

    A closed caption stays in its beam. Of the best captions of all states in which enough is named the one with the highest log probability over its
    pieces, closing one included, is taken; where no caption names enough, of those that name the most.

    Args:
        logits: of the next piece.
        machines: one a caption.
        length: pieces and the closing one.
        end: closes a caption.
        beams: K of every state.
        each: continuations kept of each caption for each state; 0 = K.
        satisfy: so many things must be named, or all where fewer are given.

    Source: Anderson et al. 2017; nocaps, updown-baseline, modules/cbs.py; Oscar, utils/cbs.py.
    """
    states: list[list[list[tuple[float, list[int]]]]] = [[[(0.0, [])]] for _ in machines]
    for step in range(length):
        asked = [
            (i, pieces)
            for i, beam in enumerate(states)
            for state in beam
            for score, pieces in state
            if pieces[-1:] != [end] and score > IMPOSSIBLE / 2
        ]
        if not asked:
            break
        logs = iter(F.log_softmax(logits(asked), -1))
        for i, machine in enumerate(machines):
            states[i] = _next_states(states[i], machine, logs, end, beams, each if step and each else beams)
    return [_best_named(beam, machine, end, satisfy) for beam, machine in zip(states, machines, strict=True)]


def _next_states(
    before: list[list[tuple[float, list[int]]]],
    machine: Machine,
    logs: Iterator[Tensor],
    end: int,
    beams: int,
    each: int,
) -> list[list[tuple[float, list[int]]]]:
    """The beam of every state after one more piece; takes from `logs` what was asked for."""
    count, vocabulary = machine.allowed.shape[1:]
    found: list[list[tuple[float, list[int], int]]] = [[] for _ in range(count)]
    stays = torch.full((vocabulary,), -torch.inf)
    stays[end] = 0.0
    for source, state in enumerate(before):
        for score, pieces in state:
            if score <= IMPOSSIBLE / 2:
                continue
            row = stays if pieces[-1:] == [end] else next(logs)
            ways = row.masked_fill(~machine.allowed[source], -torch.inf)  # (S, V)
            values, places = ways.topk(min(each, vocabulary), 1)
            for target in range(count):
                found[target] += [
                    (score + value, pieces, piece)
                    for value, piece in zip(values[target].tolist(), places[target].tolist(), strict=True)
                    if value > IMPOSSIBLE / 2
                ]
    best = (sorted(x, key=lambda y: -y[0])[:beams] for x in found)
    return [[(score, pieces if pieces[-1:] == [end] else [*pieces, piece]) for score, pieces, piece in x] for x in best]


def _best_named(beam: list[list[tuple[float, list[int]]]], machine: Machine, end: int, satisfy: int) -> Said:
    named = [(state.bit_count(), beam[state][0]) for state in range(2**machine.given) if beam[state]]
    enough = min(machine.given, satisfy, max(count for count, _ in named))
    best = [first for count, first in named if count >= enough]
    score, pieces = max(best, key=lambda x: x[0] / (sum(y != end for y in x[1]) + 1))
    said = tuple(piece for piece in pieces if piece != end)
    return Said(said, score / (len(said) + 1), closed=pieces[-1:] == [end])
