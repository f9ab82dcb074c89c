import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.batch import Batch, Encoded, Example, Pick, Picks, RegionRows, TextRows
from intarsia.pack import pack
from intarsia.packed import Packing

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
F, C = 5, 3


def text(n: int, rng: np.random.Generator, levels: bool = False) -> TextRows:
    draw = [rng.integers(0, 100, n) for _ in range(4)]
    return TextRows(*draw, levels=rng.integers(0, 3, n).astype(np.int32) if levels else None)


def regions(n: int, rng: np.random.Generator, width: int = F, soft: bool = True) -> RegionRows:
    return RegionRows(
        feats=rng.random((n, width), np.float32) + 1,
        boxes=rng.random((n, 4), np.float32),
        segment_ids=rng.integers(0, 2, n),
        position_ids=rng.integers(0, 2, n),
        image=np.zeros(n, np.int64),
        masked=rng.random(n) < 0.3,
        probs=rng.random((n, C), np.float32) if soft else None,
        labels=rng.integers(0, C, n),
    )


def example(i: int, words: int, seen: int, rng: np.random.Generator, **changes) -> Example:
    picked = np.flatnonzero(rng.random(words) < 0.5)
    picked_regions = np.flatnonzero(rng.random(seen) < 0.5)
    links = np.array([[t, r] for t in range(words) for r in range(seen) if rng.random() < 0.1], np.int64).reshape(-1, 2)
    made = Example(
        key=f"pair-{i}",
        text=text(words, rng, levels=bool(i % 2)),
        regions=regions(seen, rng),
        links=links,
        targets={
            "mlm": Pick("text", picked, rng.integers(0, 100, len(picked))),
            "mrfr": Pick("regions", picked_regions, rng.random((len(picked_regions), F), np.float32)),
            "itm": np.array(i % 2),
        },
        sample=f"sample-{i // 2}",
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@st.composite
def examples(draw) -> list[Example]:
    sizes = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 6)), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return [example(i, a, b, rng) for i, (a, b) in enumerate(sizes)]


@SETTINGS
@given(examples())
def test_every_row_of_every_example_is_there_in_order(parts):
    batch = pack(parts)
    assert batch.keys == tuple(x.key for x in parts)
    assert batch.rows == sum(x.rows for x in parts)
    assert batch.text is not None
    assert batch.regions is not None
    for b, x in enumerate(parts):
        mine = batch.text.packing.doc == b
        for name in ("ids", "segment_ids", "position_ids", "words"):
            assert getattr(batch.text, name)[mine].tolist() == getattr(x.text, name).tolist()
        if any(y.text.levels is not None for y in parts):
            expected = np.zeros(len(x.text)) if x.text.levels is None else x.text.levels
            assert batch.text.packing.level[mine].tolist() == expected.tolist()
        else:
            assert batch.text.packing.level is None
        mine = batch.regions.packing.doc == b
        for name in ("boxes", "segment_ids", "position_ids", "image", "masked", "probs", "labels"):
            assert np.array_equal(getattr(batch.regions, name)[mine].numpy(), getattr(x.regions, name))
        feats = np.where(x.regions.masked[:, None], 0, x.regions.feats)
        assert np.array_equal(batch.regions.feats[mine].numpy(), feats)


@SETTINGS
@given(examples())
def test_packing_leaves_the_examples_alone(parts):
    before = [x.regions.feats.copy() for x in parts]
    pack(parts)
    assert all((x.regions.feats == y).all() for x, y in zip(parts, before, strict=True))


@SETTINGS
@given(examples())
def test_targets_and_links_point_at_the_same_rows_as_before(parts):
    batch = pack(parts)
    words, picks = batch.picks("mlm"), [x.targets["mlm"] for x in parts]
    expected = [x.text.ids[pick.rows].tolist() for x, pick in zip(parts, picks, strict=True)]
    assert batch.text.ids[words.rows].tolist() == [i for ids in expected for i in ids]
    assert words.labels.tolist() == [i for pick in picks for i in pick.labels]
    seen, picks = batch.picks("mrfr"), [x.targets["mrfr"] for x in parts]
    boxes = np.concatenate([x.regions.boxes[pick.rows] for x, pick in zip(parts, picks, strict=True)])
    assert np.array_equal(batch.regions.boxes[seen.rows].numpy(), boxes)
    assert np.array_equal(seen.labels.numpy(), np.concatenate([pick.labels for pick in picks]))
    assert batch.labels("itm").tolist() == [i % 2 for i in range(len(parts))]
    assert batch.links.shape == (sum(len(x.links) for x in parts), 2)
    linked = np.concatenate([x.text.ids[x.links[:, 0]] for x in parts])
    assert batch.text.ids[batch.links[:, 0]].tolist() == linked.tolist()
    named = np.concatenate([x.regions.boxes[x.links[:, 1]] for x in parts])
    assert np.array_equal(batch.regions.boxes[batch.links[:, 1]].numpy(), named)


def test_documents_of_one_sample_share_a_number():
    rng = np.random.default_rng(0)
    parts = [example(i, 3, 2, rng) for i in range(5)]
    assert pack(parts).sample.tolist() == [0, 0, 1, 1, 2]
    for x in parts:
        x.sample = ""
    assert pack(parts).sample.tolist() == [0, 1, 2, 3, 4]


def test_text_alone():
    rng = np.random.default_rng(0)
    batch = pack([Example(key="a", text=text(3, rng)), Example(key="b", text=text(2, rng))])
    assert batch.regions is None
    assert batch.links is None
    assert batch.rows == 5


def test_soft_labels_missing_from_one_are_missing_from_all():
    rng = np.random.default_rng(0)
    parts = [example(0, 3, 2, rng), example(1, 3, 2, rng, regions=regions(2, rng, soft=False))]
    for x in parts:
        x.targets = {}
    batch = pack(parts)
    assert batch.regions.probs is None
    assert batch.regions.labels is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "sample pair-1: its streams"),
        ({"regions": None}, "sample pair-1: its streams"),
        ({"targets": {}}, "sample pair-1: its streams or targets"),
        ({"regions": regions(2, np.random.default_rng(0), width=F + 1)}, r"sample pair-1: features of shape \(2, 6\)"),
    ],
)
def test_examples_that_differ_are_named(changes, message):
    rng = np.random.default_rng(0)
    parts = [example(0, 3, 2, rng), example(1, 3, 2, rng, **changes)]
    with pytest.raises(ValueError, match=message):
        pack(parts)


def test_the_wrong_kind_of_target_is_named():
    batch = pack([example(0, 3, 2, np.random.default_rng(0))])
    with pytest.raises(TypeError, match="itm"):
        batch.picks("itm")
    with pytest.raises(TypeError, match="mlm"):
        batch.labels("mlm")


def test_a_batch_moves_whole():
    batch = pack([example(i, 3, 2, np.random.default_rng(0)) for i in range(2)])
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert moved.keys == batch.keys
    for x in (moved.sample, moved.links, moved.text.ids, moved.text.packing.doc, moved.regions.feats):
        assert x.device.type == "meta"
    picks = moved.targets["mlm"]
    assert isinstance(picks, Picks)
    assert picks.rows.device.type == "meta"
    assert moved.text.packing.max_seqlen == batch.text.packing.max_seqlen


def test_encoded_without_regions_moves():
    encoded = Encoded(text=torch.zeros(2, 3), visual=None, visual_packing=Packing.of([2]), pooled=torch.zeros(1, 3))
    moved = encoded.to("meta")
    assert moved.visual is None
    assert moved.visual_packing.cu_seqlens.device.type == "meta"
