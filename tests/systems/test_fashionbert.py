"""FashionBERT: patches at their cells, whole words and exactly five patches hidden, pictures of the same category as negatives, losses weighed by themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.batch import Example, Picture, Sample
from intarsia.errors import BadInput, TooLong
from intarsia.pack import pack
from intarsia.recipe import Mix
from intarsia.system import begin, fit_config
from intarsia.systems.fashionbert import FashionBERT, adaptive_weights, cells
from intarsia.text import SPECIALS, Vocab

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
WORDS = [f"w{i}" for i in range(200)]
VOCAB = Vocab([*SPECIALS, *WORDS, "##x"])
WIDTH, COUNT, GOAL = 6, 1200, "mlm+mpm+tia"
CATEGORIES = ("dress", "shirt", "shoe")


def made(number: int, side: int = 8, length: int = 20) -> Sample:
    rng = np.random.default_rng([number, 9])
    rows, columns = np.divmod(np.arange(side * side), side)
    boxes = (np.stack([columns, rows, columns + 1, rows + 1], 1) / side).astype(np.float32)
    picture = Picture(
        f"p{number}",
        rng.random((side * side, WIDTH)).astype(np.float32),
        boxes,
        tags=(CATEGORIES[number % 3],),
    )
    words = rng.choice(WORDS, length)
    text = " ".join(word + ("x" if rng.random() < 0.3 else "") for word in words)  # a third are two pieces
    return Sample(f"s{number}", (text,), (picture,))


def system(**changes: Any) -> FashionBERT:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = fit_config(FashionBERT.recipes["base"].config, len(VOCAB), WIDTH, 2)
    torch.manual_seed(0)
    return FashionBERT(dataclasses.replace(config, **(small | changes)), VOCAB).eval()


def within(count: int, of: int, rate: float) -> bool:
    """Inside five standard deviations of a binomial."""
    return abs(count - of * rate) <= 5 * (of * rate * (1 - rate)) ** 0.5


def hidden(model: FashionBERT, number: int, goal: str = GOAL) -> tuple[Example, list[int]]:
    """A document, and the samples that were drawn for it, in order."""
    rng, drawn = np.random.default_rng(number), []

    def draw() -> Sample:
        drawn.append(10_000 + int(rng.integers(1000)))
        return made(drawn[-1])

    return model.hide(made(number), goal, np.random.default_rng([number, 1]), draw), drawn


def test_patches_stand_at_their_cells_row_by_row() -> None:
    example = system().lay_out(made(1))
    assert example.regions.position_ids.tolist() == list(range(64))
    assert example.regions.segment_ids.tolist() == [1] * 64
    assert example.text.segment_ids.tolist() == [0] * len(example.text)
    assert example.text.position_ids.tolist() == list(range(len(example.text)))
    assert VOCAB.tokens[example.text.ids[0]] == "[CLS]" and VOCAB.tokens[example.text.ids[-1]] == "[SEP]"
    with pytest.raises(TooLong, match="limit is 62"):
        system().lay_out(made(1, length=63))


@SETTINGS
@given(st.integers(1, 12), st.integers(1, 150))
def test_cells_are_in_the_table_and_a_grid_of_its_size_fills_it(side: int, count: int) -> None:
    boxes = made(0, side).pictures[0].boxes
    found = cells(boxes, count)
    assert ((found >= 0) & (found < count)).all()
    if side * side == count:
        assert found.tolist() == list(range(count))
    order = np.random.default_rng(0).permutation(len(boxes))
    np.testing.assert_array_equal(cells(boxes[order], count), found[order])


def test_whole_words_are_hidden_up_to_the_rate_and_ten() -> None:
    model, masked, kept, pieces = system(), 0, 0, 0
    for number in range(COUNT):
        example, _ = hidden(model, number, "mlm")
        plain, pick = model.lay_out(made(number)).text, example.targets["mlm"]
        limit = min(10, max(1, round(0.15 * len(plain))))
        assert limit - 1 <= len(pick.rows) <= limit  # a word of two pieces may not fit
        chosen = set(plain.words[pick.rows].tolist())
        assert -1 not in chosen
        np.testing.assert_array_equal(pick.rows, np.flatnonzero(np.isin(plain.words, list(chosen))))
        np.testing.assert_array_equal(pick.labels, plain.ids[pick.rows])
        now = example.text.ids[pick.rows]
        masked, kept, pieces = (
            masked + int((now == VOCAB.mask).sum()),
            kept + int((now == pick.labels).sum()),
            pieces + len(now),
        )
    assert within(masked, pieces, 0.8 + 0.1 / len(VOCAB))
    assert within(kept, pieces, 0.1 + 0.1 / len(VOCAB))
    long, _ = hidden(system(mlm_rate=0.9), 5, "mlm")
    assert len(long.targets["mlm"].rows) == 10


def test_five_patches_are_hidden_each_as_likely() -> None:
    model, seen = system(), np.zeros(64, np.int64)
    for number in range(COUNT):
        example, _ = hidden(model, number, "mpm")
        pick = example.targets["mpm"]
        assert len(set(pick.rows.tolist())) == 5
        np.testing.assert_array_equal(np.flatnonzero(example.regions.masked), pick.rows)
        np.testing.assert_array_equal(pick.labels, made(number).pictures[0].features[pick.rows])
        seen[pick.rows] += 1
    assert all(within(int(x), COUNT, 5 / 64) for x in seen)
    batch = pack([hidden(model, 3, "mpm")[0]])
    assert not batch.regions.feats[batch.picks("mpm").rows].any()
    few = model.hide(made(1, side=2), "mpm", np.random.default_rng(0), lambda: made(2))
    assert len(few.targets["mpm"].rows) == 2, "at most half"
    bare = dataclasses.replace(made(1), pictures=(made(1, side=0).pictures[0],))
    with pytest.raises(BadInput, match="s1: mpm needs at least one region"):
        model.hide(bare, "mpm", np.random.default_rng(0), lambda: made(2))


def test_broken_pairs_take_a_picture_of_the_same_category_and_are_asked_as_true_ones() -> None:
    model, true, alike = system(), 0, 0
    for number in range(COUNT):
        example, drawn = hidden(model, number)
        label = int(example.targets["tia"])
        picture = made(number if label else drawn[-1]).pictures[0]
        pick = example.targets["mpm"]
        np.testing.assert_array_equal(pick.labels, picture.features[pick.rows])
        assert len(pick.rows) == 5 and len(example.targets["mlm"].rows)
        np.testing.assert_array_equal(model.lay_out(made(number)).text.words, example.text.words)
        true += label
        if not label:
            assert len(drawn) <= 8
            same = [x % 3 == number % 3 for x in drawn]
            assert not any(same[:-1])
            alike += same[-1]
    assert within(true, COUNT, 0.5)
    assert within(alike, COUNT - true, 1 - (2 / 3) ** 8)


@SETTINGS
@given(st.lists(st.floats(0, 20), min_size=1, max_size=6))
def test_adaptive_weights_are_the_formula_of_the_code(values: list[float]) -> None:
    losses = torch.tensor(values, dtype=torch.float64)
    squares, count = losses.softmax(0) ** 2, len(values)
    products = torch.stack(
        [torch.prod(torch.cat([count - squares[:i], count - squares[i + 1 :]])) for i in range(count)]
    )
    found = adaptive_weights(losses) if count > 1 else torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(found, products / products.sum())
    assert abs(float(found.sum()) - 1) < 1e-9
    assert (found[losses.argmax()] >= found - 1e-12).all()
    if count == 3:
        assert ((found > 0.2857) & (found < 0.4286)).all()


def test_weights_carry_a_gradient_unless_detached() -> None:
    losses = {name: torch.tensor(x, requires_grad=True) for name, x in (("mlm", 2.0), ("tia", 1.0), ("mpm", 0.5))}
    stacked = torch.stack(list(losses.values()))
    total = system().weigh(losses, Mix())
    fixed = system(detach_weights=True).weigh(losses, Mix())
    assert total.item() == pytest.approx(fixed.item())
    slopes = torch.autograd.grad(fixed, list(losses.values()))
    torch.testing.assert_close(torch.stack(slopes), adaptive_weights(stacked).detach())
    through = torch.stack(torch.autograd.grad(total, list(losses.values())))
    assert (through - torch.stack(slopes)).abs().max() > 1e-3
    plain = system(adaptive_alpha=0.0).weigh(losses, Mix(scale={"mpm": 4.0}))
    assert plain.item() == pytest.approx(5.0)
    scaled = system().weigh(losses, Mix(scale={"mpm": 2.0}))
    assert scaled.item() == pytest.approx(
        float((adaptive_weights(torch.tensor([2.0, 1.0, 1.0])) * torch.tensor([2.0, 1, 1])).sum())
    )


def test_retrieval_goes_on_from_the_head_that_pre_training_made() -> None:
    model = system()
    tuned = begin(model, FashionBERT.finetune["retrieval"]).eval()
    batch = pack([model.lay_out(made(i)) for i in range(3)])
    with torch.inference_mode():
        encoded = model.encode(batch)
        torch.testing.assert_close(tuned.scores(batch), model.match_logits(encoded))
        torch.testing.assert_close(model.match_scores(encoded), model.match_logits(encoded).diff(dim=1).squeeze(1))
    theirs = tuned.keys.to_theirs(tuned.state_dict())
    assert "image_bert_pre_trained_model/cls/seq_relationship/output_weights" in theirs
    again = tuned.keys.to_ours(theirs)
    assert all(torch.equal(again[key], value) for key, value in tuned.state_dict().items())
