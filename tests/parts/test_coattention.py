"""The order of layers and meetings is the authors' loop, written out; ids that do not fit are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intarsia.errors import BadInput
from intarsia.packed import Packing
from intarsia.parts.coattention import TwoStreams, layer_decay, schedule
from intarsia.parts.numbers import TwoStreamNumbers

SMALL = TwoStreamNumbers(
    hidden_size=12,
    num_attention_heads=2,
    num_hidden_layers=3,
    intermediate_size=8,
    v_hidden_size=8,
    v_num_attention_heads=2,
    v_num_hidden_layers=2,
    v_intermediate_size=6,
    bi_hidden_size=10,
    bi_num_attention_heads=5,
    v_biattention_id=(0, 1),
    t_biattention_id=(1, 2),
)


@given(st.data())
def test_the_order_is_the_authors_loop(data: st.DataObject) -> None:
    text, visual = (data.draw(st.integers(1, 6)) for _ in range(2))
    count = data.draw(st.integers(0, min(text, visual)))
    t_ids, v_ids = (
        tuple(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=count, max_size=count)))) for n in (text, visual)
    )
    config = replace(
        SMALL, num_hidden_layers=text, v_num_hidden_layers=visual, t_biattention_id=t_ids, v_biattention_id=v_ids
    )
    steps = list(schedule(config))
    assert [i for what, i in steps if what == "words"] == list(range(text))
    assert [i for what, i in steps if what == "regions"] == list(range(visual))
    assert [i for what, i in steps if what == "meet"] == list(range(count))
    for k in range(count):  # right before both layers of its ids, in each stream
        at = steps.index(("meet", k))
        for what, ids in (("words", t_ids), ("regions", v_ids)):
            after = next(i for w, i in steps[at:] if w == what)
            assert after == ids[k]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"t_biattention_id": (1,)}, "t_biattention_id names 1 meetings, v_biattention_id 2"),
        ({"t_biattention_id": (1, 3)}, r"t_biattention_id \(1, 3\): must ascend within the stream's 3 layers"),
        ({"v_biattention_id": (1, 0)}, r"v_biattention_id \(1, 0\): must ascend within the stream's 2 layers"),
        ({"bi_hidden_size": 11}, "bi_hidden_size 11 is no multiple of bi_num_attention_heads 5"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        TwoStreams(replace(SMALL, **changes))


def test_streams_that_never_meet_do_not_know_of_each_other() -> None:
    torch.manual_seed(0)
    apart = TwoStreams(replace(SMALL, t_biattention_id=(), v_biattention_id=())).eval()
    text, visual = Packing.of([3, 2]), Packing.of([2, 4])
    words, regions = torch.randn(5, 12), torch.randn(6, 8)
    x, v = apart(words, regions, text, visual)
    again, other = apart(words, regions + 1, text, visual)
    assert torch.equal(x, again)
    assert not torch.equal(v, other)


def test_a_meeting_reads_both_streams_as_they_were() -> None:
    torch.manual_seed(0)
    body = TwoStreams(SMALL).eval()
    meet = body.meetings[0]
    text, visual = Packing.of([3, 2]), Packing.of([2, 0])  # a document without regions
    words, regions = torch.randn(5, 12), torch.randn(2, 8)
    x, v = meet(words, regions, text, visual)
    for first, last, a, b in ((0, 3, 0, 2), (3, 5, 2, 2)):
        (q, k, value), (vq, vk, vv) = meet.words.attention(words[first:last]), meet.regions.attention(regions[a:b])
        seen = torch.einsum("qhd,khd->hqk", q, vk).mul(2**-0.5).softmax(-1)
        said = torch.einsum("qhd,khd->hqk", vq, k).mul(2**-0.5).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", seen, vv)
        torch.testing.assert_close(x[first:last], meet.words.read(words[first:last], mixed), atol=1e-5, rtol=0)
        mixed = torch.einsum("hqk,khd->qhd", said, value)
        torch.testing.assert_close(v[a:b], meet.regions.read(regions[a:b], mixed), atol=1e-5, rtol=0)


def test_layers_learn_less_the_earlier_they_run() -> None:
    """ERNIE-ViL's numbers: 18 layers, six of words alone."""
    found = layer_decay(TwoStreamNumbers(), 0.9)
    told = {
        "words.word.": 19,
        "words.position.": 19,
        "words.segment.": 19,
        "regions.feature.": 13,
        "regions.location.": 13,
        "encoder.layers.0.": 18,
        "encoder.layers.5.": 13,
        "encoder.meetings.0.": 12,
        "encoder.layers.6.": 11,
        "encoder.visual_layers.0.": 11,
        "encoder.meetings.5.": 2,
        "encoder.layers.11.": 1,
        "encoder.visual_layers.5.": 1,
    }
    assert {name: found[f"system.{name}"] for name in told} == pytest.approx({k: 0.9**v for k, v in told.items()})
    assert len(found) == 5 + 12 + 6 + 6
    assert layer_decay(TwoStreamNumbers(), 1.0) == {}
