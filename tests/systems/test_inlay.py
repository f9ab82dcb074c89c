"""Inlay: one switch at equal parameters and compute, and what it trains."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from intarsia.batch import Batch, Picture
from intarsia.pack import pack
from intarsia.packed import Packing, restarts, taken
from intarsia.systems.inlay import EVERY, GOALS, WARM, Inlay
from intarsia.train.start import captions, fresh
from intarsia.worlds import WorldConfig, WorldSource

WORLD = WorldSource(WorldConfig(level=0, objects=(3, 5)), count=40)


@cache
def made(**changes: Any) -> Inlay:
    recipe = Inlay.recipes["tiny"]
    recipe = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, **changes))
    system, _ = fresh(Inlay, recipe, captions(WORLD), WORLD.provenance)
    assert isinstance(system, Inlay)
    return system.eval()


def hidden(system: Inlay, goal: str = EVERY, numbers: Any = range(8)) -> Batch:
    return pack([system.hide(WORLD[i], goal, np.random.default_rng([i, 3]), lambda: WORLD[0]) for i in numbers])


def test_parameters_and_compute_are_equal_at_any_granularity() -> None:
    shapes, flops = [], []
    for granularity in ("sentence", "token", "both"):
        system = made(granularity=granularity).train()
        shapes.append({name: x.shape for name, x in system.named_parameters()})
        with FlopCounterMode(display=False) as counter:
            losses, _ = system(hidden(system))
            system.weigh(losses, Inlay.recipes["tiny"].mix).backward()
        flops.append(counter.get_total_flops())
        system.zero_grad()
        system.eval()
    assert shapes[0] == shapes[1] == shapes[2]
    assert min(flops) > 1e7
    assert max(flops) / min(flops) < 1.02


@pytest.mark.parametrize(("granularity", "idle"), [("sentence", "tok"), ("token", "sent")])
def test_the_idle_granularity_has_a_gradient_of_exactly_zero(granularity: str, idle: str) -> None:
    system = made(granularity=granularity)
    losses, _ = system(hidden(system))
    scale = system.log_scale
    whole = torch.autograd.grad(system.weigh(losses, Inlay.recipes["tiny"].mix), scale, retain_graph=True)[0]
    place = {"sent": 0, "tok": 1}[idle]
    assert whole[place] == 0
    assert whole[1 - place] != 0
    alone = {name: x for name, x in losses.items() if name.endswith(idle)}
    assert len(alone) == 3
    assert all(x.requires_grad and float(x.detach()) > 0 for x in alone.values())
    zero = system.weigh(alone, Inlay.recipes["tiny"].mix)
    trained = [x for x in system.parameters() if x.requires_grad]
    grads = torch.autograd.grad(zero, trained, allow_unused=True)
    reached = [x for x in grads if x is not None]
    assert len(reached) > 20 and not any(x.any() for x in reached)


def test_each_objective_can_be_switched_alone() -> None:
    system = made(granularity="sentence", g_b=1.0)
    losses = {name: torch.tensor(10.0**i) for i, name in enumerate(GOALS)}
    total = float(system.weigh(losses, Inlay.recipes["tiny"].mix))
    assert total == sum(10.0 ** GOALS.index(x) for x in ("a_sent", "mlm", "b_tok", "c_sent"))


def test_pictures_that_are_exchanged_take_the_contrast_to_chance() -> None:
    """Trained to fit one batch, then shown its pictures in another order: the loss rises to that of guessing and beyond."""
    system = made(granularity="both", false_captions=0).train()
    numbers = list({WORLD[i].texts[0]: i for i in range(len(WORLD))}.values())[:12]
    batch, goal = hidden(system, "a_sent+a_tok", numbers), "a_sent+a_tok"
    optimizer = torch.optim.AdamW(system.parameters(), 3e-3)
    for _ in range(60):
        losses, _ = system(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    system.eval()
    assert batch.regions is not None
    rows, packing = taken(batch.regions.packing, torch.arange(12).roll(1), batch.regions.packing.rows)
    names = ("feats", "boxes", "segment_ids", "position_ids", "image", "masked")
    exchanged = dataclasses.replace(
        batch.regions, packing=packing, **{name: getattr(batch.regions, name)[rows] for name in names}
    )
    with torch.no_grad():
        right, _ = system(batch)
        wrong, _ = system(dataclasses.replace(batch, regions=exchanged))
    made.cache_clear()
    for name in goal.split("+"):
        assert float(right[name]) < 0.5 * math.log(12)
        assert float(wrong[name]) > math.log(12)


def test_scores_do_not_feel_padding_or_false_captions() -> None:
    """A pair scores the same alone, beside longer pairs, and as the first of several captions."""
    system = made()
    with torch.no_grad():
        alone = system.encode(pack([system.lay_out(WORLD[0])]))
        longest = max(range(len(WORLD)), key=lambda i: len(WORLD[i].texts[0]))
        beside = system.encode(pack([system.lay_out(WORLD[i]) for i in (0, longest)]))
        first = system.encode(hidden(system, WARM, [0, longest]))
    for name, value in system.scores(alone).items():
        torch.testing.assert_close(system.scores(beside)[name][0], value[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(system.scores(first)[name][0], value[0], atol=1e-5, rtol=1e-5)


def test_of_no_link_both_sides_are_hidden_and_the_words_hidden_are_the_words_asked() -> None:
    system = made()
    example = system.hide(WORLD[3], EVERY, np.random.default_rng(0), lambda: WORLD[0])
    text, hidden_words, stays = example.text, example.targets["mlm"], example.targets["b_tok"]
    assert text is not None
    plain = system.lay_out(WORLD[3]).text
    assert plain is not None
    assert np.array_equal(text.ids[: len(plain)], plain.ids)
    assert not set(hidden_words.rows) & set(stays.rows)  # type: ignore[union-attr]
    assert not system.stops[stays.labels].any()  # type: ignore[union-attr]
    false = [" ".join(system.vocab.tokens[i] for i in text.ids[len(plain) + 1 : -1])]
    assert false[0] in {
        " ".join(system.vocab.tokens[i] for i in system.vocab.encode(x).ids) for x in WORLD[3].false_texts
    }


def test_words_of_a_false_caption_are_labelled_by_what_was_changed() -> None:
    from intarsia.objectives.granular import word_labels

    vocab = made().vocab
    texts = ["a red circle and a blue square", "a blue circle and a red square", "a red circle"]
    pieces = [vocab.encode(x).ids for x in texts]
    cut = Packing.of([len(x) for x in pieces])
    ids, content = torch.from_numpy(np.concatenate(pieces)), torch.from_numpy(~made().stops[np.concatenate(pieces)])
    found = word_labels(ids, content, cut, torch.ones(1, 3, dtype=torch.bool)).tolist()
    assert found == [-1, 1, 1, -1, -1, 1, 1] + [-1, 0, 1, -1, -1, 0, 1] + [-1] * 3
    unknown = word_labels(ids, content, cut, torch.tensor([[True, False, True]])).tolist()
    assert unknown[7:14] == [-1] * 7


def vectors(system: Inlay, text: str) -> torch.Tensor:
    """(L, D) aligned vectors of the pieces of a text."""
    sample = dataclasses.replace(WORLD[0], texts=(text,), links=())
    with torch.no_grad():
        return system.tower.split(system.encode(pack([system.lay_out(sample)])).told)[1][1:-1]


def test_what_asks_and_what_it_knows() -> None:
    text, other = "a red circle and a large blue square", "a red circle and a large green square"
    phrase, caption = (vectors(made(query_unit=x), text) for x in ("phrase", "caption"))
    assert torch.allclose(phrase[1], phrase[2], atol=1e-6) and torch.allclose(phrase[5], phrase[7], atol=1e-6)
    assert not torch.allclose(phrase[1], phrase[5])
    assert torch.allclose(caption[1], caption[7], atol=1e-6) and not torch.allclose(caption[1], phrase[1])
    for context, same in (("full", []), ("phrase", [0, 1, 2, 3, 4]), ("none", [0, 1, 2, 3, 4, 5, 7])):
        a, b = (vectors(made(text_context=context), x) for x in (text, other))
        near = [i for i in range(8) if torch.allclose(a[i], b[i], atol=1e-6)]
        assert near == same, context
    losses, _ = made(query_unit="phrase", text_context="phrase")(hidden(made()))
    assert all(x.isfinite() for x in losses.values())


def test_a_whole_picture_is_one_token() -> None:
    system = made(visual_unit="image")
    sample = WORLD[0]
    picture = sample.pictures[0]
    pictures = tuple(
        Picture(f"{i}", picture.features[i : i + 1], picture.boxes[i : i + 1]) for i in range(len(picture.boxes))
    )
    links = tuple(dataclasses.replace(x, picture=x.region, region=0) for x in sample.links)
    bag = dataclasses.replace(sample, pictures=pictures, links=links)
    plain, example = made().lay_out(sample), system.lay_out(bag)
    assert plain.regions is not None and example.regions is not None
    assert (
        np.array_equal(example.regions.feats, plain.regions.feats)
        and len(np.unique(example.regions.boxes, axis=0)) == 1
    )
    assert np.array_equal(example.links, plain.links)
    one = system.lay_out(sample).regions
    assert one is not None and np.allclose(one.feats, picture.features.mean(0))
    losses, _ = system(pack([system.hide(bag, EVERY, np.random.default_rng(0), lambda: bag)] * 2))
    assert all(x.isfinite() for x in losses.values())


def test_parts_and_repeated_documents() -> None:
    packing = Packing.of([5, 4])
    cut = restarts(packing, torch.tensor([1, 0, 1, 0, 0, 1, 0, 0, 1], dtype=torch.bool), 2)
    assert cut.lengths.tolist() == [2, 3, 3, 1] and cut.pos.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 0]
    rows, repeated = taken(packing, torch.tensor([1, 0, 1]), 13)
    assert rows.tolist() == [5, 6, 7, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8] and repeated.lengths.tolist() == [4, 5, 4]
