"""What LXMERT lays out, hides and asks: rows by hand, rates within binomial bounds, negatives by content; its heads; its readings apart."""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.batch import Example, Picture, Sample
from intarsia.errors import BadInput
from intarsia.evaluate.crossing import score_crossed
from intarsia.evaluate.matching import match, score_pairs
from intarsia.evaluate.running import Inference
from intarsia.objectives import qa
from intarsia.pack import pack
from intarsia.system import Crossing, begin
from intarsia.systems.lxmert import LXMERT, LXMERTConfig
from intarsia.tasks.vqa import carry_over
from intarsia.text import SPECIALS, Vocab

WORDS = [f"w{i}" for i in range(300)]
VOCAB = Vocab([*SPECIALS, *WORDS])
WIDTH, REGIONS, LENGTH, COUNT = 6, 7, 12, 1200
ANSWERS = ("yes", "no", "2", "gray cat")
GOAL = "mlm+itm+obj+attr+feat+qa"
QUIET = Inference(rows=300, progress=False)


def made(number: int, regions: int = REGIONS, length: int = LENGTH, answers: Any = (("Yes.", 1.0),)) -> Sample:
    rng = np.random.default_rng([number, 7])
    low = rng.random((regions, 2)) / 2
    picture = Picture(
        name=f"p{number}",
        features=rng.standard_normal((regions, WIDTH)).astype(np.float32),
        boxes=np.concatenate([low, low + 0.4], 1).astype(np.float32),
        scores=rng.random(regions).astype(np.float32),
        labels=rng.integers(0, 6, regions),
        attributes=rng.integers(0, 4, regions),
        attribute_scores=rng.random(regions).astype(np.float32),
    )
    return Sample(f"s{number}", (" ".join(rng.choice(WORDS, length)),), (picture,), answers=answers)


@cache
def system(**changes: Any) -> LXMERT:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "r_layers": 1, "x_layers": 2, "num_attention_heads": 2}
    numbers = {"vocab_size": len(VOCAB), "feature_size": WIDTH, "intermediate_size": 16, "initializer_range": 0.3}
    labels = {"num_object_labels": 5, "num_attr_labels": 3, "num_qa_labels": len(ANSWERS), "answers": ANSWERS}
    with torch.random.fork_rng([]):
        torch.manual_seed(4)
        return LXMERT(LXMERTConfig(**(small | numbers | labels | changes)), VOCAB).eval()


def hidden(number: int, goal: str = GOAL) -> Example:
    return system().hide(made(number), goal, np.random.default_rng(number), lambda: made(number + 5000))


def within(count: int, of: int, rate: float) -> bool:
    """Inside five standard deviations of a binomial."""
    return abs(count - of * rate) <= 5 * (of * rate * (1 - rate)) ** 0.5


# ------------------------------------------------------------------------------------------------------------ hiding


def test_words_are_hidden_at_the_rate_and_as_80_10_10_in_broken_pairs_too() -> None:
    chosen = masked = kept = pieces = broken = 0
    for number in range(COUNT):
        example = hidden(number)
        true = int(example.targets["itm"])
        plain = system().lay_out(made(number if true else number + 5000)).text
        pick = example.targets["mlm"]
        assert (plain.words[pick.rows] >= 0).all()
        np.testing.assert_array_equal(pick.labels, plain.ids[pick.rows])
        rest = np.setdiff1d(np.arange(len(plain)), pick.rows)
        np.testing.assert_array_equal(example.text.ids[rest], plain.ids[rest])
        now = example.text.ids[pick.rows]
        chosen, pieces = chosen + len(now), pieces + LENGTH
        masked, kept = masked + int((now == VOCAB.mask).sum()), kept + int((now == pick.labels).sum())
        broken += (not true) * len(now)
    assert within(chosen, pieces, 0.15)
    assert within(masked, chosen, 0.8 + 0.1 / len(VOCAB))
    assert within(kept, chosen, 0.1 + 0.1 / len(VOCAB))
    assert broken > 100


def test_regions_are_hidden_at_the_rate_and_as_80_10_10() -> None:
    chosen = masked = kept = swapped = 0
    for number in range(COUNT):
        example, shown, elsewhere = hidden(number), made(number).pictures[0], made(number + 5000).pictures[0]
        pick, rows = example.targets["feat"], example.regions
        np.testing.assert_array_equal(pick.labels, shown.features[pick.rows])  # as they were
        np.testing.assert_array_equal(rows.boxes, shown.boxes)
        assert set(np.flatnonzero(rows.masked)) <= set(pick.rows)
        rest = np.setdiff1d(np.arange(REGIONS), pick.rows)
        np.testing.assert_array_equal(rows.feats[rest], shown.features[rest])
        for row in pick.rows[~rows.masked[pick.rows]]:
            same = bool((rows.feats[row] == shown.features[row]).all())
            kept += same
            swapped += not same
            assert same or (rows.feats[row] == elsewhere.features).all(1).any()
        chosen, masked = chosen + len(pick.rows), masked + int(rows.masked.sum())
    assert within(chosen, COUNT * REGIONS, 0.15)
    assert within(masked, chosen, 0.8)
    assert within(kept, chosen, 0.1)
    assert within(swapped, chosen, 0.1)


def test_samples_are_not_changed() -> None:
    sample = made(3)
    before = sample.pictures[0].features.copy()
    for seed in range(100):
        system().hide(sample, GOAL, np.random.default_rng(seed), lambda: made(9))
    np.testing.assert_array_equal(sample.pictures[0].features, before)


def test_half_of_the_texts_are_anothers_and_have_no_answer() -> None:
    true = 0
    for number in range(COUNT):
        example = system(mlm_rate=0.0).hide(made(number), "itm+qa", np.random.default_rng(number), lambda: made(9999))
        label = int(example.targets["itm"])
        np.testing.assert_array_equal(example.text.ids, system().lay_out(made(number if label else 9999)).text.ids)
        np.testing.assert_array_equal(example.regions.feats, made(number).pictures[0].features)
        assert int(example.targets["qa"]) == (0 if label else -1)
        true += label
    assert within(true, COUNT, 0.5)


def test_classes_and_attributes_are_asked_of_every_region_with_the_detectors_confidence() -> None:
    example, shown = hidden(5), made(5).pictures[0]
    for goal, ids, sure in (
        ("obj", shown.labels, shown.scores),
        ("attr", shown.attributes, shown.attribute_scores),
    ):
        pick = example.targets[goal]
        assert pick.rows.tolist() == list(range(REGIONS))
        for (label, weight), i, confidence in zip(pick.labels, ids, sure, strict=True):
            assert (label, weight) == ((i - 1, confidence) if i else (0, 0))
    probs = np.random.default_rng(0).dirichlet(np.ones(6), REGIONS).astype(np.float32)
    soft = dataclasses.replace(shown, labels=None, probs=probs)
    asked = system().hide(dataclasses.replace(made(5), pictures=(soft,)), "obj", np.random.default_rng(0), made)
    np.testing.assert_array_equal(asked.targets["obj"].labels[:, 0], probs[:, 1:].argmax(1))
    np.testing.assert_array_equal(asked.targets["obj"].labels[:, 1], probs[:, 1:].max(1))


@pytest.mark.parametrize(
    ("goal", "field", "what"), [("obj", "labels", "classes"), ("attr", "attributes", "attributes")]
)
def test_what_the_detector_did_not_say_is_an_error(goal: str, field: str, what: str) -> None:
    bare = dataclasses.replace(made(1).pictures[0], **{field: None})
    with pytest.raises(BadInput, match=f"sample s1: {goal} needs the {what} of regions"):
        system().hide(dataclasses.replace(made(1), pictures=(bare,)), goal, np.random.default_rng(0), made)


def test_texts_are_cut_at_eighteen_pieces() -> None:
    example = system().lay_out(made(1, length=25))
    assert len(example.text) == 20
    assert example.text.ids[-1] == VOCAB.sep
    assert not example.text.segment_ids.any()
    assert example.text.position_ids.tolist() == list(range(20))


# ------------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("said", "spelt"),
    [
        ("Yes.", "yes"),
        ("A  cat", "cat"),
        ("the man", "man"),
        ("an apple.", "apple"),
        ("Two", "2"),
        ("grey", "gray"),
        ("ten dogs", "ten dogs"),
    ],
)
def test_answers_are_spelt_alike(said: str, spelt: str) -> None:
    assert qa.normalise(said) == spelt


def test_one_answer_is_drawn_by_the_scores_of_those_in_the_table() -> None:
    sample = made(1, answers=(("two", 0.9), ("No", 0.3), ("never heard", 1.0)))
    found = [qa.label(sample, ANSWERS, np.random.default_rng(seed)) for seed in range(COUNT)]
    assert set(found) == {1, 2}
    assert within(found.count(2), COUNT, 0.75)
    twice = made(1, answers=(("a yes", 0.9), ("yes.", 0.1), ("no", 0.3)))  # the last of two alike counts
    found = [qa.label(twice, ANSWERS, np.random.default_rng(seed)) for seed in range(COUNT)]
    assert within(found.count(0), COUNT, 0.25)
    assert qa.label(made(1, answers=(("unheard", 1.0),)), ANSWERS, np.random.default_rng(0)) == qa.NONE
    assert qa.label(made(1, answers=()), (), np.random.default_rng(0)) == qa.NONE
    with pytest.raises(BadInput, match="sample s1: has an answer"):
        qa.label(made(1), (), np.random.default_rng(0))


def test_a_batch_without_answers_costs_nothing() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    assert qa.score(logits, torch.tensor([-1, -1, -1])).item() == 0
    labels = torch.tensor([-1, 2, 0])
    torch.testing.assert_close(qa.score(logits, labels), torch.nn.functional.cross_entropy(logits[1:], labels[1:]))


def test_the_table_is_the_commonest_first() -> None:
    samples = [made(i, answers=((x, 1.0),)) for i, x in enumerate(["no", "Yes", "yes.", "two", "2", "a yes"])]
    assert qa.table(samples) == ("yes", "2", "no")
    assert qa.table(samples, least=3) == ("yes",)


def test_a_tasks_head_starts_from_the_answers_of_pre_training() -> None:
    tuned = begin(system(), LXMERT.finetune["gqa"])
    trained = system().answer_head
    torch.testing.assert_close(tuned.head.up.weight, trained.up.weight)
    torch.testing.assert_close(tuned.head.norm.weight, trained.norm.weight)
    wanted = ["a Gray cat", "no", *(f"other {i}" for i in range(1840))]
    assert carry_over(tuned.head, trained, wanted, ANSWERS) == 2
    torch.testing.assert_close(tuned.head.out.weight[:2], trained.out.weight[[3, 1]])
    assert not tuned.head.out.weight[2:].any()
    assert not tuned.head.out.bias[2:].any()


def test_nlvr2_reads_both_pictures() -> None:
    sample = dataclasses.replace(made(1), pictures=(*made(1).pictures, *made(2).pictures))
    documents = [system().lay_out(sample, "nlvr2", form) for form in (0, 1)]
    np.testing.assert_array_equal(documents[1].regions.feats, made(2).pictures[0].features)
    batch = pack(documents)
    tuned = begin(system(), LXMERT.finetune["nlvr2"]).eval()
    pooled = system().encode(batch).pooled.view(1, -1)
    x = torch.nn.functional.gelu(tuned.head.up(pooled))
    torch.testing.assert_close(tuned.scores(batch), tuned.head.out(tuned.head.norm(x)))
    assert tuned.head.up.weight.shape == (32, 32)
    with pytest.raises(BadInput, match="has 1 pictures, needs 2"):
        system().lay_out(made(1), "nlvr2", 1)


# ------------------------------------------------------------------------------------------------------- read apart


def test_scores_are_the_same_when_texts_and_pictures_are_read_once() -> None:
    lxmert = system()
    assert isinstance(lxmert, Crossing)
    texts = [made(i, length=3 + i % 5) for i in range(9)]
    pictures = [made(100 + i, regions=2 + i % 4).pictures[0] for i in range(7)]
    kept, scores = match(lxmert, texts, pictures, QUIET)
    said, shown = ([lxmert.lay_out(x) for x in texts], [lxmert.lay_out(made(100 + i, 2 + i % 4)) for i in range(7)])
    assert kept == list(range(9))
    assert np.ptp(scores) > 0.1
    np.testing.assert_array_equal(scores, score_crossed(lxmert, said, shown, QUIET))
    np.testing.assert_allclose(scores, score_pairs(lxmert, said, shown, None, QUIET), atol=1e-5, rtol=0)
    for i in range(9):
        for j in range(7):
            pair = dataclasses.replace(texts[i], pictures=(pictures[j],))
            alone = lxmert.match_scores(lxmert.encode(pack([lxmert.lay_out(pair)])))
            assert abs(float(alone[0].detach()) - scores[i, j]) <= 1e-5


def test_each_text_and_each_picture_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lxmert, read = system(), {"text": 0, "regions": 0}
    inner = {"text": lxmert.encode_text, "regions": lxmert.encode_visual}

    def counted(stream: str, rows: Any) -> Any:
        read[stream] += rows.packing.documents
        return inner[stream](rows)

    monkeypatch.setattr(lxmert, "encode_text", partial(counted, "text"))
    monkeypatch.setattr(lxmert, "encode_visual", partial(counted, "regions"))
    match(lxmert, [made(i) for i in range(5)], [made(50 + i).pictures[0] for i in range(4)], QUIET)
    assert read == {"text": 5, "regions": 4}


def test_the_last_meeting_gives_only_what_is_read() -> None:
    lxmert, batch = system(), pack([hidden(i) for i in range(4)])
    words, seen = lxmert.encode_text(batch.text), lxmert.encode_visual(batch.regions)
    text, visual = batch.text.packing, batch.regions.packing
    whole = lxmert.cross(words, text, seen, visual)
    some = lxmert.cross(words, text, seen, visual, {"text": text.first, "regions": text.first[:0]})
    torch.testing.assert_close(some.pooled, whole.pooled, atol=5e-6, rtol=1e-5)
    assert some.visual.isnan().all()
    assert some.text.isnan().all(1).sum() == len(some.text) - 4


def test_an_id_of_the_padding_row_gets_no_gradient() -> None:
    table = system().words.word
    ids = torch.tensor([0, 3, 0, 5])
    (grad,) = torch.autograd.grad(table(ids).sum(), [table.weight])
    assert grad[[3, 5]].eq(1).all()
    assert not grad[[0, 1, 2, 4]].any()
