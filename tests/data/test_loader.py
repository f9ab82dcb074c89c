"""Every sample once an epoch whoever reads; the same batches whoever makes them; nothing dropped in silence."""

from __future__ import annotations

import pickle
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Pairs, toy

from intarsia.batch import Batch, Sample
from intarsia.data.corpora import Pool
from intarsia.data.loader import Loaded, Plan, Prepare, load, measure, requests
from intarsia.errors import BadInput, TooLong
from intarsia.recipe import Batching, Mix
from intarsia.train.parallel import weightless


def rows_of(layout: Any, sample: Sample) -> tuple[int, int]:
    return int(layout.lay_out(sample).rows), 0


LAYOUT = weightless(toy())
LENGTH = partial(rows_of, LAYOUT)
EVERY = np.arange(60)
MIX = Mix(share={"mlm": 2, "itm": 1})


def goal_of(step: int) -> str:
    return MIX.goal(5, step, 100)


def plan(rows: int = 60, window: int = 25, seed: int = 5, **more: Any) -> Plan:
    return Plan(measure(Pairs(), LENGTH).rows, Batching(rows=rows, window=window), seed, **more)


def made(wanted: Any, workers: int = 0, source: Any = None) -> list[Loaded]:
    return list(load(wanted, Prepare(source or Pairs(), LAYOUT, EVERY, 5), workers=workers))


def tensors(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    match value:
        case torch.Tensor():
            found.append(value)
        case dict():
            found.extend(x for key in sorted(value) for x in tensors(value[key]))
        case _ if hasattr(value, "__dataclass_fields__"):
            found.extend(x for name in value.__dataclass_fields__ for x in tensors(getattr(value, name)))
    return found


def same(a: Batch, b: Batch) -> bool:
    return a.keys == b.keys and all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


# ------------------------------------------------------------------------------------------------------------- the plan


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    rows=st.lists(st.integers(0, 20), min_size=1, max_size=80).filter(any),
    budget=st.integers(20, 60),
    window=st.integers(1, 90),
    seed=st.integers(0, 9),
    block=st.integers(0, 20),
)
def test_an_epoch_has_every_sample_once_under_the_budget(
    rows: list[int], budget: int, window: int, seed: int, block: int
) -> None:
    lengths = np.array(rows, np.int32)
    order = Plan(lengths, Batching(rows=budget, window=window, block=block), seed)
    for epoch in (0, 1, 7):
        batches = order.epoch(epoch)
        assert sorted(np.concatenate(batches)) == list(np.flatnonzero(lengths))
        assert all(len(batch) > 0 and lengths[batch].sum() <= budget for batch in batches)


def test_batches_hold_like_lengths_and_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(8, 80, 20_000).astype(np.int32)
    batches = Plan(lengths, Batching(rows=2000, window=4000), 1).epoch(0)
    assert np.mean([lengths[batch].sum() for batch in batches]) > 0.97 * 2000
    assert np.mean([np.ptp(lengths[batch]) for batch in batches]) < 5
    first = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(np.arange(len(first)), first)[0, 1]) < 0.3  # in no order of length


def test_blocks_keep_neighbours_in_one_window() -> None:
    """Of data larger than the disk few shards are in use at a time, and negatives ask for no other."""
    lengths = np.random.default_rng(0).integers(8, 30, 4000).astype(np.int32)
    for block, least, most in ((100, 4, 12), (0, 35, 40)):
        batches = Plan(lengths, Batching(rows=500, window=400, block=block), 1).epoch(0)
        in_use = [len(np.unique(np.concatenate(batches[i : i + 10]) // 100)) for i in range(0, len(batches) - 10, 10)]
        assert least <= min(in_use) <= max(in_use) <= most
        firsts = [int(x.min()) for x in batches]
        assert firsts != sorted(firsts)
    pool, rng = Pool(Pairs(), EVERY, near=16), np.random.default_rng(0)
    for number in (0, 15, 16, 40, 59):
        drawn = {int(pool.draw(rng, Pairs()[number], number).key.removeprefix("pair")) for _ in range(200)}
        first = min(number // 16 * 16, 44)
        assert first <= min(drawn) and max(drawn) < first + 16
        assert len(drawn) > 10


def test_a_micro_batch_is_a_function_of_its_number() -> None:
    whole = plan()
    wanted = [whole.batch(number) for number in range(40)]
    assert [epoch for epoch, _ in wanted] == sorted(epoch for epoch, _ in wanted)
    assert wanted[-1][0] >= 2
    for number in (39, 0, 17, 3):
        epoch, samples = plan().batch(number)
        assert epoch == wanted[number][0]
        assert np.array_equal(samples, wanted[number][1])
        assert np.array_equal(plan(starts=tuple(whole.starts)).batch(number)[1], samples)
    assert not np.array_equal(plan(seed=6).batch(0)[1], wanted[0][1])
    assert not np.array_equal(whole.epoch(0)[0], whole.epoch(1)[0])


def test_a_sample_over_the_budget_is_told() -> None:
    with pytest.raises(BadInput, match=r"sample 1 of the data: 9 rows, more than .*batching\.rows = 8"):
        Plan(np.array([3, 9], np.int32), Batching(rows=8), 0)
    with pytest.raises(BadInput, match="no sample that takes part"):
        Plan(np.zeros(3, np.int32), Batching(), 0)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (3, 2), (1, 6)])
def test_ranks_share_an_epoch(world: int, accumulate: int) -> None:
    batches = len(plan().epoch(0))
    steps = range(-(-batches // (world * accumulate)))
    ranks = [
        list(requests(plan(), goal_of, steps, accumulate=accumulate, rank=rank, world=world)) for rank in range(world)
    ]
    taken = [request for rank in ranks for request in rank]
    assert sorted(request.number for request in taken) == list(range(len(steps) * world * accumulate))
    seen = Counter(int(i) for request in taken if request.epoch == 0 for i in request.samples)
    assert seen == Counter(range(60))
    for together in zip(*ranks, strict=True):
        assert len({request.goal for request in together}) == 1
    goals = [request.goal for request in ranks[0]]
    assert goals == [goal_of(step) for step in steps for _ in range(accumulate)]


def test_requests_go_on_at_any_step_and_with_other_ranks() -> None:
    whole = list(requests(plan(), goal_of, range(12), accumulate=2))
    rest = list(requests(plan(), goal_of, range(5, 12), number=10, accumulate=2))
    assert [(x.number, x.epoch, x.goal, tuple(x.samples)) for x in rest] == [
        (x.number, x.epoch, x.goal, tuple(x.samples)) for x in whole[10:]
    ]
    two = [list(requests(plan(), goal_of, range(5, 12), number=10, rank=rank, world=2)) for rank in range(2)]
    assert [x.number for pair in zip(*two, strict=True) for x in pair] == list(range(10, 24))


# ---------------------------------------------------------------------------------------------------------- the batches


def test_workers_make_the_same_batches_in_the_same_order() -> None:
    alone = made(requests(plan(), goal_of, range(8)))
    assert {item.goal for item in alone} == {"mlm", "itm"}
    for workers in (1, 2):
        many = made(requests(plan(), goal_of, range(8)), workers)
        assert [item.number for item in many] == list(range(8))
        assert all(
            a.goal == b.goal and a.epoch == b.epoch and same(a.batch, b.batch) for a, b in zip(alone, many, strict=True)
        )


def test_what_is_hidden_depends_on_the_sample_and_the_epoch_alone() -> None:
    prepare = Prepare(Pairs(), LAYOUT, EVERY, 5)
    alone = prepare(np.array([8]), "mlm", 2)
    company = prepare(np.array([3, 8]), "mlm", 2)
    assert alone.text is not None
    assert company.text is not None
    place = company.keys.index("pair8")
    assert torch.equal(alone.text.ids, company.text.ids[company.text.packing.doc == place])
    many = [prepare(EVERY, "mlm", epoch).picks("mlm").rows for epoch in (2, 3)]
    assert not torch.equal(*many)


def test_documents_of_a_size_lie_side_by_side() -> None:
    batch = Prepare(Pairs(), LAYOUT, EVERY, 5)(EVERY, "itm", 0)
    assert batch.text is not None
    assert batch.regions is not None
    lengths = batch.text.packing.lengths + batch.regions.packing.lengths
    assert len(set(lengths.tolist())) > 1
    assert torch.equal(lengths, lengths.sort().values)
    assert sorted(batch.keys) == sorted(Pairs()[int(i)].key for i in EVERY)


def test_prepare_pickles_without_weights() -> None:
    big = weightless(toy())
    prepare = Prepare(Pairs(), big, EVERY, 5)
    heavy = toy()
    heavy.extra = torch.nn.Linear(1000, 1000)
    text = pickle.dumps(Prepare(Pairs(), weightless(heavy), EVERY, 5))
    assert len(text) < 200_000
    assert same(pickle.loads(text)(EVERY[:5], "itm", 1), prepare(EVERY[:5], "itm", 1))


class Odd(Pairs):
    """One sample cannot be read, another has a wider feature."""

    def __init__(self, unreadable: int = -1, wide: int = -1) -> None:
        super().__init__()
        self.unreadable, self.wide = unreadable, wide

    def __getitem__(self, index: int) -> Sample:
        if index == self.unreadable:
            raise BadInput(f"regions.bin: sample pair{index}: 3 bytes missing")
        sample = super().__getitem__(index)
        if index == self.wide:
            picture = sample.pictures[0]
            object.__setattr__(picture, "features", np.zeros((len(picture.boxes), 4), np.float32))
        return sample


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_workers_are_told_in_one_line(workers: int) -> None:
    with pytest.raises(BadInput) as raised:
        made(requests(plan(), lambda step: "mlm", range(20)), workers, Odd(unreadable=31))
    assert str(raised.value) == "regions.bin: sample pair31: 3 bytes missing"
    with pytest.raises(BadInput, match=r"^goal mlm: sample pair\d+: features of shape"):
        made(requests(plan(), lambda step: "mlm", range(20)), workers, Odd(wide=31))


# ----------------------------------------------------------------------------------------------------------- the lengths


@pytest.mark.parametrize("workers", [0, 2])
def test_lengths_are_measured_and_left_out_samples_counted(workers: int) -> None:
    layout = weightless(toy(longest=9))
    length = partial(rows_of, layout)
    with pytest.raises(BadInput, match="pair31: 3 bytes missing"):
        measure(Odd(31), length, leave_out=(TooLong,), workers=workers)
    found = measure(Odd(31), length, leave_out=(TooLong, BadInput), workers=workers)
    words = np.array([len(Pairs()[i].texts[0].split()) for i in range(60)])
    expected = np.array([rows_of(LAYOUT, Pairs()[i])[0] for i in range(60)])
    expected[(words > 9) | (EVERY == 31)] = 0
    assert np.array_equal(found.rows, expected)
    assert np.array_equal(found.kept, np.flatnonzero(expected))
    assert found.left_out == {"TooLong": int((words[EVERY != 31] > 9).sum()), "BadInput": 1}
    assert 0 < len(found.examples) <= 5
    assert "10 pieces, at most 9" in found.examples[0]


def test_cut_texts_are_counted_and_kept(tmp_path: Path) -> None:
    def length(sample: Sample) -> tuple[int, int]:
        words = len(sample.texts[0].split())
        return min(words, 9), max(words - 9, 0)

    cache = tmp_path / "lengths.safetensors"
    for _ in range(2):  # measured, then read
        found = measure(Pairs(), length, cache=cache)
        words = np.array([len(Pairs()[i].texts[0].split()) for i in range(60)])
        assert np.array_equal(found.cut, np.maximum(words - 9, 0))
        assert found.cut.any()


def test_lengths_are_kept_as_long_as_the_data_and_the_layout_are_the_same(tmp_path: Path) -> None:
    class Counting(Pairs):
        reads = 0

        def __getitem__(self, index: int) -> Sample:
            Counting.reads += 1
            return super().__getitem__(index)

    def reads(source: Pairs, spec: str = "a") -> int:
        Counting.reads = 0
        found = measure(source, LENGTH, spec=spec, cache=tmp_path / "lengths.safetensors", leave_out=(TooLong,))
        assert len(found.rows) == len(source)
        return Counting.reads

    assert reads(Counting()) >= 60
    assert reads(Counting()) < 30
    assert reads(Counting(), spec="b") >= 60
    assert reads(Counting(58), spec="b") >= 58
    (tmp_path / "lengths.safetensors").write_bytes(b"half a fi")
    assert reads(Counting(58), spec="b") >= 58
    assert reads(Counting(58), spec="b") < 30


def test_no_data_is_told() -> None:
    with pytest.raises(BadInput, match="holds no sample"):
        measure(Pairs(0), LENGTH)
    with pytest.raises(BadInput, match="all 60 samples are left out; the first: sample pair0"):
        measure(Pairs(), partial(rows_of, weightless(toy(longest=1))), leave_out=(TooLong,))
    with pytest.raises(BadInput, match="sample pair0: has neither words nor regions"):
        measure(Pairs(), lambda sample: (0, 0))
