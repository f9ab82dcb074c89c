"""What the objectives hide: rates within binomial bounds, the right rows, the right labels. Source of the numbers: UNITER's code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from intarsia.batch import Example, Picture, RegionRows, Sample, TextRows
from intarsia.errors import BadInput
from intarsia.objectives import itm, mlm, mrm
from intarsia.text import SPECIALS, Vocab

VOCAB = Vocab([*SPECIALS, "!", *(f"w{i}" for i in range(500))])
PIECES, REGIONS, DOCUMENTS = 22, 9, 1500


def document(seed: int) -> Example:
    rng = np.random.default_rng([seed, 1])
    ids = rng.integers(VOCAB.first_ordinary, len(VOCAB), PIECES)
    ids[0], ids[-1] = VOCAB.cls, VOCAB.sep
    words = np.arange(-1, PIECES - 1)
    words[-1] = -1
    zeros = np.zeros(REGIONS, np.int64)
    probs = rng.dirichlet(np.ones(5), REGIONS).astype(np.float32)
    feats = rng.standard_normal((REGIONS, 6)).astype(np.float32)
    boxes = np.tile(np.float32([0, 0, 1, 1]), (REGIONS, 1))
    return Example(
        key=str(seed),
        text=TextRows(ids, np.zeros(PIECES, np.int64), np.arange(PIECES), words),
        regions=RegionRows(feats, boxes, zeros, zeros, zeros, np.zeros(REGIONS, bool), probs=probs),
        sample=str(seed),
    )


def within(count: int, of: int, rate: float) -> bool:
    """Inside five standard deviations of a binomial."""
    return abs(count - of * rate) <= 5 * (of * rate * (1 - rate)) ** 0.5


def test_words_are_hidden_at_the_rate_and_as_80_10_10() -> None:
    chosen = masked = kept = swapped = 0
    for seed in range(DOCUMENTS):
        before = document(seed).text
        after = mlm.hide(document(seed), VOCAB, np.random.default_rng(seed))
        pick = after.targets["mlm"]
        assert before is not None
        assert after.text is not None
        assert (after.text.words[pick.rows] >= 0).all()  # never [CLS] or [SEP]
        np.testing.assert_array_equal(pick.labels, before.ids[pick.rows])
        rest = np.setdiff1d(np.arange(PIECES), pick.rows)
        np.testing.assert_array_equal(after.text.ids[rest], before.ids[rest])
        now = after.text.ids[pick.rows]
        chosen, masked = chosen + len(now), masked + int((now == VOCAB.mask).sum())
        kept += int((now == pick.labels).sum())
        others = now[(now != pick.labels) & (now != VOCAB.mask)]
        assert (others >= VOCAB.first_ordinary).all()
        swapped += len(others)
    inner = DOCUMENTS * (PIECES - 2)
    empty = DOCUMENTS * 0.85 ** (PIECES - 2)  # documents where chance chose none, which hide their first piece
    assert abs(chosen - inner * 0.15 - empty) <= 5 * (inner * 0.15 * 0.85) ** 0.5
    assert within(masked, chosen, (inner * 0.15 * 0.8 + empty) / (inner * 0.15 + empty))
    assert within(kept, chosen, 0.1)
    assert within(swapped, chosen, 0.1)


def test_linked_words_have_their_own_rate() -> None:
    linked = plain = 0
    for seed in range(DOCUMENTS):
        example = document(seed)
        example.links = np.array([[3, 0], [4, 1]])
        rows = mlm.hide(example, VOCAB, np.random.default_rng(seed), 0.1, 0.5).targets["mlm"].rows
        linked += int(np.isin(rows, [3, 4]).sum())
        plain += int((~np.isin(rows, [3, 4])).sum())
    assert within(linked, 2 * DOCUMENTS, 0.5)
    assert within(plain, (PIECES - 4) * DOCUMENTS, 0.1 + 0.9 ** (PIECES - 4) * 0.25 / (PIECES - 4))


def test_at_least_the_first_piece_is_hidden() -> None:
    example = mlm.hide(document(0), VOCAB, np.random.default_rng(0), rate=0.0)
    assert example.text is not None
    assert example.targets["mlm"].rows.tolist() == [1]
    assert example.text.ids[1] == VOCAB.mask


@pytest.mark.parametrize("goal", ["mrfr", "mrc", "mrc_kl"])
def test_regions_are_hidden_at_the_rate_with_the_words_intact(goal: mrm.Goal) -> None:
    count = 0
    for seed in range(DOCUMENTS):
        before, after = document(seed), mrm.hide(document(seed), np.random.default_rng(seed), goal)
        assert before.regions is not None
        assert after.regions is not None
        assert before.text is not None
        assert after.text is not None
        assert before.regions.probs is not None
        pick = after.targets[goal]
        assert len(pick.rows) >= 1
        np.testing.assert_array_equal(np.flatnonzero(after.regions.masked), pick.rows)
        np.testing.assert_array_equal(after.text.ids, before.text.ids)
        np.testing.assert_array_equal(after.regions.boxes, before.regions.boxes)
        wanted = {
            "mrfr": before.regions.feats[pick.rows],
            "mrc": before.regions.probs[pick.rows, 1:].argmax(1) + 1,
            "mrc_kl": before.regions.probs[pick.rows],
        }[goal]
        np.testing.assert_array_equal(pick.labels, wanted)
        count += len(pick.rows)
    none = DOCUMENTS * 0.85**REGIONS
    total = DOCUMENTS * REGIONS
    assert abs(count - total * 0.15 - none) <= 5 * (total * 0.15 * 0.85) ** 0.5


def test_regions_that_cannot_be_hidden_are_named() -> None:
    example = document(7)
    assert example.regions is not None
    example.regions.probs = None
    with pytest.raises(BadInput, match="sample 7: mrc_kl needs soft labels"):
        mrm.hide(example, np.random.default_rng(0), "mrc_kl")
    example.regions = None
    with pytest.raises(BadInput, match="sample 7: mrfr needs at least one region"):
        mrm.hide(example, np.random.default_rng(0), "mrfr")


def sample(key: str, false_texts: tuple[str, ...] = ()) -> Sample:
    picture = Picture(key, np.zeros((1, 2), np.float32), np.float32([[0, 0, 1, 1]]))
    return Sample(key, (f"text {key}",), (picture,), false_texts=false_texts)


def test_pairs_break_at_the_rate_and_only_the_picture_changes() -> None:
    rng, mine, other, broken = np.random.default_rng(3), sample("a"), sample("b"), 0
    for _ in range(DOCUMENTS):
        pair, label = itm.swap(mine, rng, lambda: other)
        assert pair.texts == mine.texts
        assert pair.pictures == (mine if label else other).pictures
        broken += 1 - label
    assert within(broken, DOCUMENTS, 0.5)


def test_false_texts_take_their_share_of_the_broken_pairs() -> None:
    rng, mine, other = np.random.default_rng(3), sample("a", ("no", "nor")), sample("b")
    edited = exchanged = 0
    for _ in range(DOCUMENTS):
        pair, label = itm.swap(mine, rng, lambda: other, false_text_share=0.25)
        if label:
            assert pair is mine
        elif pair.texts == mine.texts:
            assert pair.pictures == other.pictures
            exchanged += 1
        else:
            assert pair.texts[0] in mine.false_texts
            assert pair.pictures == mine.pictures
            edited += 1
    assert within(edited, edited + exchanged, 0.25)


def test_false_texts_of_the_same_words_can_be_told_apart() -> None:
    rng, other = np.random.default_rng(3), sample("b")
    mine = replace(sample("a", ("red cup, blue box", "red cup, red box")), texts=("blue cup, red box",))
    drawn = {itm.swap(mine, rng, lambda: other, 1.0, 1.0)[0].texts[0] for _ in range(50)}
    assert drawn == set(mine.false_texts)
    for reordered, wanted in ((True, "red cup, blue box"), (False, "red cup, red box")):
        drawn = {itm.swap(mine, rng, lambda: other, 1.0, 1.0, reordered)[0].texts[0] for _ in range(50)}
        assert drawn == {wanted}
    only = replace(mine, false_texts=mine.false_texts[:1])
    pair, label = itm.swap(only, rng, lambda: other, 1.0, 1.0, reordered=False)
    assert (label, pair.texts, pair.pictures[0].name) == (0, mine.texts, "b")


def test_a_pair_without_false_texts_takes_another_picture() -> None:
    pair, label = itm.swap(
        replace(sample("a"), links=()), np.random.default_rng(0), lambda: sample("b"), rate=1.0, false_text_share=1.0
    )
    assert label == 0
    assert pair.pictures[0].name == "b"


def test_hidden_words_share_one_fate_and_may_be_none() -> None:
    whole = masked = kept = pieces = none = torn = 0
    for seed in range(DOCUMENTS):
        before, example = document(seed), document(seed)
        words = np.repeat(np.arange(10), 2)  # ten words of two pieces
        for x in (before, example):
            x.text.words = np.concatenate([[-1], words, [-1]])
        pick = mlm.hide_words(example, VOCAB, np.random.default_rng(seed)).targets["mlm"]
        hidden = example.text.words[pick.rows]
        assert (hidden >= 0).all()
        assert set(np.bincount(hidden, minlength=10)) <= {0, 2}
        np.testing.assert_array_equal(pick.labels, before.text.ids[pick.rows])
        now = example.text.ids[pick.rows].reshape(-1, 2)
        all_masked = (now == VOCAB.mask).all(1)
        torn += int((all_masked != (now == VOCAB.mask).any(1)).sum())
        whole, masked, pieces = whole + len(now), masked + int(all_masked.sum()), pieces + now.size
        kept += int((now == pick.labels.reshape(-1, 2)).all(1).sum())
        none += not len(pick.rows)
    assert within(whole, DOCUMENTS * 10, 0.15)
    assert within(masked, whole, 0.8)
    assert within(kept, whole, 0.1)
    assert within(none, DOCUMENTS, 0.85**10)
    assert torn < 0.002 * whole  # a random piece may be [MASK]


def test_any_piece_may_be_hidden_or_none_and_any_piece_may_take_its_place() -> None:
    chosen, strange, none = 0, [], 0
    for seed in range(DOCUMENTS):
        example = document(seed)
        pick = mlm.hide_any(example, VOCAB, np.random.default_rng(seed)).targets["mlm"]
        assert (example.text.words[pick.rows] >= 0).all()
        now = example.text.ids[pick.rows]
        strange.extend(now[(now != pick.labels) & (now != VOCAB.mask)])
        chosen, none = chosen + len(now), none + (not len(now))
    assert within(chosen, DOCUMENTS * (PIECES - 2), 0.15)
    assert within(none, DOCUMENTS, 0.85 ** (PIECES - 2))
    assert min(strange) < VOCAB.first_ordinary  # special tokens among them
    assert max(strange) > len(VOCAB) - 20


def test_most_chosen_regions_are_hidden_and_some_stay() -> None:
    chosen = hidden = 0
    for seed in range(DOCUMENTS):
        example = mrm.hide_most(document(seed), np.random.default_rng(seed), ("moc", "mrfr", "mvrc"), spare=1)
        moc, mrfr, mvrc = (example.targets[goal] for goal in ("moc", "mrfr", "mvrc"))
        before = document(seed).regions
        assert not set(moc.rows) & {REGIONS - 1}
        assert set(np.flatnonzero(example.regions.masked)) <= set(moc.rows)
        np.testing.assert_array_equal(moc.labels, before.probs[moc.rows, 1:].argmax(1))
        np.testing.assert_array_equal(mrfr.labels, before.feats[moc.rows])
        np.testing.assert_array_equal(mvrc.labels, before.probs[moc.rows])
        chosen, hidden = chosen + len(moc.rows), hidden + int(example.regions.masked.sum())
    assert within(chosen, DOCUMENTS * (REGIONS - 1), 0.15)
    assert within(hidden, chosen, 0.9)


def test_losses_of_nothing_are_zero() -> None:
    none, classes = torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)
    found = [
        mlm.score(none, classes),
        mrm.classify(none, classes),
        mrm.regress(none, none),
        mrm.soft_losses(none, none).sum(),
    ]
    assert [x.item() for x in found] == [0.0] * 4


def test_soft_labels_that_do_not_sum_to_one_are_not_asked_for() -> None:
    for seed in range(60):
        example = document(seed)
        example.regions.probs[:4] *= 0.5
        hidden = mrm.hide_most(example, np.random.default_rng(seed), ("mvrc", "mrfr"), rate=0.5)
        told, chosen = hidden.targets["mvrc"].rows, hidden.targets["mrfr"].rows
        assert set(told) == {row for row in chosen if row >= 4}


def test_soft_losses_are_cross_entropies() -> None:
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    probs = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 0.0]])
    logs = logits.log_softmax(-1)
    expected = torch.stack([-(probs[0] * logs[0]).sum(), -logs[1, 1]])
    torch.testing.assert_close(mrm.soft_losses(logits, probs), expected)
