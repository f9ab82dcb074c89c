"""UNITER and LXMERT with matching at either granularity: equal compute, idle twins idle, words labelled by what is false."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from intarsia.batch import Batch
from intarsia.pack import pack
from intarsia.studies.tied import SOME_WRONG, tied, word_labels
from intarsia.systems import find
from intarsia.train.start import captions, fresh
from intarsia.worlds import WorldConfig, WorldSource

WORLD = WorldSource(WorldConfig(level=0, objects=(3, 5)), count=24)
GOALS = {"uniter": "itm", "lxmert": "mlm+itm+obj+attr+feat"}


@cache
def made(name: str, granularity: Any) -> Any:
    cls = tied(find(name), granularity)
    system, _ = fresh(cls, cls.recipes["tiny"], captions(WORLD), WORLD.provenance)  # type: ignore[arg-type]
    return system


def hidden(system: Any, name: str) -> Batch:
    rng = np.random.default_rng(3)
    return pack([system.hide(WORLD[i], GOALS[name], rng, lambda i=i: WORLD[(i + 5) % 24]) for i in range(12)])


@pytest.mark.parametrize("name", GOALS)
def test_parameters_and_compute_are_equal_at_any_granularity(name: str) -> None:
    shapes, flops = [], []
    for granularity in ("sentence", "told", "token", "both"):
        system = made(name, granularity).train()
        system.zero_grad()
        shapes.append({key: x.shape for key, x in system.named_parameters()})
        with FlopCounterMode(display=False) as counter:
            losses, _ = system(hidden(system, name))
            system.weigh(losses, system.recipes["tiny"].mix).backward()
        flops.append(counter.get_total_flops())
    assert all(x == shapes[0] for x in shapes)
    assert min(flops) > 1e7
    assert max(flops) / min(flops) < 1.02


@pytest.mark.parametrize("name", GOALS)
def test_idle_heads_have_a_gradient_of_exactly_zero(name: str) -> None:
    of = {
        "sentence": ("match_head.weight", "tie.pool_text.out.weight"),
        "token": ("tie.support.weight", "tie.word_vector.weight"),
        "told": ("tie.of_pair.weight", "tie.of_piece.weight"),
    }
    trained = {
        "sentence": {"sentence"},
        "token": {"token"},
        "told": {"sentence", "told"},
        "both": {"sentence", "token"},
    }
    for granularity, live in trained.items():
        system = made(name, granularity).eval()
        system.zero_grad()
        losses, _ = system(hidden(system, name))
        assert all(torch.isfinite(x) for x in losses.values())
        system.weigh(losses, system.recipes["tiny"].mix).backward()
        for group, keys in of.items():
            for key in keys:
                assert bool(system.get_parameter(key).grad.any()) == (group in live), (granularity, key)


def test_the_pair_says_of_each_word_what_it_reads_at_cls() -> None:
    """`named` depends on a word's piece and on the [CLS] row alone."""
    system = made("uniter", "told").eval()
    example = system.lay_out(WORLD[0])
    batch = pack([example])
    with torch.no_grad():
        encoded = system.encode(batch)
        heads = system.tie
        cls = encoded.text[0]
        wanted = [float(heads.of_pair(cls) @ heads.of_piece.weight[i]) for i in example.text.ids]
    torch.testing.assert_close(encoded.named, torch.tensor(wanted), atol=1e-5, rtol=1e-5)


def test_word_labels_by_hand() -> None:
    content = np.array([False, True, True, True, False])
    said, true = np.array([0, 1, 2, 4]), np.array([0, 1, 3, 4])
    assert word_labels(said, said, said, content, 1, True).tolist() == [-1, 1, 1, -1]
    assert word_labels(said, said, true, content, 0, True).tolist() == [-1, 1, 0, -1]
    assert word_labels(said, said, true[:3], content, 0, True).tolist() == [-1, 2, 2, -1]
    assert word_labels(said, said, said, content, 0, False).tolist() == [-1, SOME_WRONG, SOME_WRONG, -1]
    assert word_labels(np.array([0, 4, 2, 4]), said, said, content, 1, True).tolist() == [-1, -1, 1, -1]


@pytest.mark.parametrize("name", GOALS)
def test_scores_do_not_change_with_neighbours(name: str) -> None:
    system = made(name, "both").eval()
    examples = [system.lay_out(WORLD[i]) for i in range(5)]
    with torch.inference_mode():
        alone, all_ = (system.scores(system.encode(pack(x))) for x in (examples[:1], examples))
    for key, value in alone.items():
        torch.testing.assert_close(value, all_[key][:1], atol=1e-5, rtol=1e-5)
