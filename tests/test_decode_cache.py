"""Decoding with remembered keys and values against laying every caption out anew; drawing among the likeliest pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from intarsia import decode
from intarsia.attend import use_backend
from intarsia.errors import BadInput
from intarsia.system import System, fit_config
from intarsia.systems import find
from intarsia.text import Vocab
from intarsia.worlds import WorldSource

WORLD = WorldSource(count=6)
SAMPLES = [WORLD[i] for i in range(4)]


def made(name: str, **more: Any) -> System:
    cls = find(name)
    vocab = Vocab.learn((WORLD[i].texts[0] for i in range(len(WORLD))), specials=cls.specials)
    source = WORLD.provenance
    config = fit_config(
        cls.recipes["tiny"].config, len(vocab), source.width, len(source.classes), len(source.attributes)
    )
    config = dataclasses.replace(
        config, hidden_size=32, num_attention_heads=4, intermediate_size=48, initializer_range=0.3, **more
    )
    torch.manual_seed(2)
    return cls(config, vocab).eval()


class Both:
    """Asks the fast way and the slow one and holds them to each other, call by call."""

    def __init__(self, system: System, writing: decode.Writing | None = None) -> None:
        ways = (decode.cached_next_piece, decode.next_piece)
        self.fast, self.slow = (way(system, SAMPLES, writing) for way in ways)
        self.calls = 0

    def __call__(self, asked: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        fast, slow = self.fast(asked), self.slow(asked)
        torch.testing.assert_close(fast, slow, atol=2e-4, rtol=1e-4)
        self.calls += 1
        return fast


@pytest.mark.parametrize(
    ("name", "more"),
    [("vlp", {}), ("oscar", {}), ("m6", {}), ("m6", {"experts": 4, "expert_choices": 2, "capacity_factor": 0.0})],
)
def test_remembered_rows_give_the_logits_of_whole_documents_piece_by_piece(name: str, more: dict[str, Any]) -> None:
    system = made(name, **more)
    both, end = Both(system), system.vocab.sep
    decode.greedy(both, 4, 6, end)
    decode.frames(both, 4, 5, end, 3)
    decode.hypotheses(both, 4, 5, end, 3)
    drawn = decode.sample(both, 4, 6, end, torch.Generator().manual_seed(1), top_k=5, top_p=0.9)
    assert both.calls > 15 and len({x.ids for x in drawn}) > 1
    with use_backend("padded"):
        decode.greedy(both, 4, 4, end)
    with pytest.raises(ValueError, match="does not go on"):
        both.fast([(0, [1, 2, 3])])
    assert decode.caption(system, SAMPLES, 5, 2) == [
        system.vocab.decode(x.ids) for x in decode.hypotheses(decode.next_piece(system, SAMPLES), 4, 5, end, 2)
    ]


def test_codes_of_pictures_are_remembered_too() -> None:
    plain = made("m6")
    torch.manual_seed(3)
    system = type(plain)(dataclasses.replace(plain.config, codes=12, code_length=6), plain.vocab).eval()
    writing = decode.Writing(system.lay_out_next_code, system.code_logits)
    both = Both(system, writing)
    drawn = decode.sample(both, 4, 6, -1, torch.Generator().manual_seed(1), top_k=8)
    assert both.calls == 6 and all(len(x.ids) == 6 and max(x.ids) < 12 for x in drawn)


def test_experts_of_limited_room_are_refused_in_one_line() -> None:
    system = made("m6", experts=4, capacity_factor=1.25)
    with pytest.raises(BadInput, match=r"m6: cannot write .*capacity_factor 1\.25\): open it with capacity_factor 0"):
        decode.caption(system, SAMPLES, 5)
    assert decode.greedy(decode.next_piece(system, SAMPLES), 4, 3, system.vocab.sep)


def test_systems_without_levels_are_refused() -> None:
    system = made("uniter")
    with pytest.raises(TypeError, match="does not generate"):
        decode.cached_next_piece(system, SAMPLES)([(0, [])])


@pytest.mark.parametrize(
    ("k", "p", "left"),
    [(0, 1.0, [0, 1, 2, 3]), (2, 1.0, [0, 1]), (0, 0.5, [0]), (0, 0.51, [0, 1]), (3, 0.99, [0, 1, 2]), (9, 0.0, [0])],
)
def test_the_likeliest_pieces_stay(k: int, p: float, left: list[int]) -> None:
    probs = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    found = decode.likeliest(probs.log()[order][None], k, p)[0]
    assert sorted(order[found.isfinite()].tolist()) == left


def test_draws_follow_what_is_left() -> None:
    probs = torch.tensor([0.5, 0.3, 0.2]).log()
    logits: Any = lambda asked: probs.repeat(len(asked), 1)  # noqa: E731
    drawn = decode.sample(logits, 4000, 1, 9, torch.Generator().manual_seed(0), top_k=2)
    counts = torch.bincount(torch.tensor([x.ids[0] for x in drawn]), minlength=3) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.625, 0.375, 0.0]), atol=0.04, rtol=0)
