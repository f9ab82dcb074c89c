"""Attention read-outs by hand: rollout of two layers, and gradients of probabilities without keeping them in the graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intarsia.attend import Seen, attend, watch
from intarsia.pack import pack
from intarsia.packed import Packing, pad
from intarsia.studies.readouts import MAPS, _weighted, attention_maps, rollout
from intarsia.systems.inlay import Inlay
from intarsia.train.start import captions, fresh
from intarsia.worlds import WorldConfig, WorldSource

WORLD = WorldSource(WorldConfig(level=0, objects=(3, 5)), count=12)


def test_rollout_by_hand() -> None:
    system, _ = fresh(Inlay, Inlay.recipes["tiny"], captions(WORLD), WORLD.provenance)  # type: ignore[arg-type]
    batch = pack([system.lay_out(WORLD[0])])
    assert batch.text is not None and batch.regions is not None
    t, r = batch.text.packing.rows, batch.regions.packing.rows
    rng = np.random.default_rng(0)
    own, both = (torch.from_numpy(rng.dirichlet(np.ones(n), (1, 2, n)).astype(np.float32)) for n in (r, t + r))
    of_both = Packing.of([t + r])
    seen = Seen([own, both], [(batch.regions.packing, batch.regions.packing), (of_both, of_both)])
    first = np.eye(t + r)
    first[t:, t:] = (np.eye(r) + own.mean(1)[0].numpy()) / 2
    wanted = (first + both.mean(1)[0].numpy() @ first) / 2
    np.testing.assert_allclose(rollout(seen, batch)[0], wanted[:t, t:], atol=1e-6)


@pytest.mark.parametrize("same", [True, False])
def test_the_gradient_of_probabilities_is_that_of_a_written_out_attention(same: bool) -> None:
    torch.manual_seed(0)
    queries = Packing.of([3, 2])
    keys = queries if same else Packing.of([2, 4])
    q, k, v = (torch.randn(p.rows, 2, 4, requires_grad=True) for p in (queries, keys, keys))
    with watch() as seen:
        out = attend(q, k, v, queries, keys)
    weight = torch.randn_like(out)
    (grad,) = torch.autograd.grad((out * weight).sum(), [seen.flows[0][1]])
    probs = seen.maps[0].clone().requires_grad_()
    written = torch.einsum("bhqk,bkhd->bqhd", probs, pad(v.detach(), keys))
    (slope,) = torch.autograd.grad((written * pad(weight, queries)).sum(), [probs])
    torch.testing.assert_close(_weighted(seen, 0, grad), (slope * probs).clamp(min=0).detach(), atol=1e-6, rtol=1e-5)
    assert not _weighted(seen, 0, None).any()


def test_every_read_out_has_a_map_for_each_word_and_region() -> None:
    system, _ = fresh(Inlay, Inlay.recipes["tiny"], captions(WORLD), WORLD.provenance)  # type: ignore[arg-type]
    examples = [system.eval().lay_out(WORLD[i]) for i in range(4)]
    with torch.no_grad():
        found = attention_maps(system, pack(examples))
    assert set(found) == set(MAPS[1:])
    for maps in found.values():
        for one, example in zip(maps, examples, strict=True):
            assert example.text is not None and one.shape == (len(example.text), 12)
            assert np.isfinite(one).all() and (one >= 0).all() and one.any()
