"""What the single-stream systems lay out, hide and swap: rows by hand, rates within binomial bounds, negatives by content. Source: their papers and code."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest

from intarsia.batch import Example, Link, Picture, Sample
from intarsia.errors import BadInput
from intarsia.system import System, fit_config
from intarsia.systems import find
from intarsia.text import SPECIALS, Vocab
from intarsia.tuned import LayOf

WORDS = [f"w{i}" for i in range(300)]
TAGS = [f"t{i}" for i in range(40)]
EXTRA = ("[IMAGE]", *(f"[OBJ-{i}]" for i in range(16)))
VOCAB = Vocab([*SPECIALS, *EXTRA, ".", "?", *WORDS, "##x", *TAGS])
WIDTH, CLASSES, REGIONS, LENGTH, COUNT = 6, 5, 7, 12, 1200


def made(number: int, regions: int = REGIONS, length: int = LENGTH) -> Sample:
    rng = np.random.default_rng([number, 7])
    low = rng.random((regions, 2)) / 2
    picture = Picture(
        name=f"p{number}",
        features=rng.standard_normal((regions, WIDTH)).astype(np.float32),
        boxes=np.concatenate([low, low + 0.4], 1).astype(np.float32),
        width=200,
        height=100,
        scores=rng.random(regions).astype(np.float32),
        probs=rng.dirichlet(np.ones(CLASSES), regions).astype(np.float32),
        tags=tuple(rng.choice(TAGS, 3)),
    )
    texts = [" ".join(rng.choice(WORDS, length)) for _ in range(2)]
    return Sample(f"s{number}", (texts[0],), (picture,), also=(texts[1],))


@cache
def system(name: str, size: str = "base", **changes: Any) -> System:
    cls = find(name)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = fit_config(cls.recipes[size].config, len(VOCAB), WIDTH, CLASSES)
    return cls(dataclasses.replace(config, **(small | changes)), VOCAB)


def within(count: int, of: int, rate: float) -> bool:
    """Inside five standard deviations of a binomial."""
    return abs(count - of * rate) <= 5 * (of * rate * (1 - rate)) ** 0.5


def hidden(name: str, goal: str, number: int, **changes: Any) -> Example:
    return system(name, **changes).hide(made(number), goal, np.random.default_rng(number), lambda: made(number + 5000))


def said(example: Example, segment: int | None = None) -> list[str]:
    """The pieces of a document, special ones left out."""
    text = example.text
    assert text is not None
    rows = [i for i in range(len(text)) if segment is None or text.segment_ids[i] == segment]
    return [VOCAB.tokens[text.ids[i]] for i in rows if not VOCAB.tokens[text.ids[i]].startswith("[")]


# ------------------------------------------------------------------------------------------------------------- rates


@pytest.mark.parametrize(
    ("name", "goal", "rate"),
    [
        ("visualbert", "mlm", 0.15),
        ("vl_bert", "mlm+mvrc", 0.15),
        ("unicoder_vl", "mlm+moc", 0.15),
        ("imagebert", "mlm+moc+mrfr", 0.15),
        ("oscar", "mlm", 0.15),
        ("b2t2", "mlm", 0.15),
    ],
)
def test_words_are_hidden_at_the_rate_and_as_80_10_10(name: str, goal: str, rate: float) -> None:
    chosen = masked = kept = pieces = none = 0
    for number in range(COUNT):
        plain = system(name).lay_out(made(number)).text
        example = hidden(name, goal, number)
        pick = example.targets["mlm"]
        assert (plain.words[pick.rows] >= 0).all()
        np.testing.assert_array_equal(pick.labels, plain.ids[pick.rows])
        now = example.text.ids[pick.rows]
        chosen, pieces = chosen + len(now), pieces + int((plain.words >= 0).sum())
        masked, kept, none = (
            masked + int((now == VOCAB.mask).sum()),
            kept + int((now == pick.labels).sum()),
            none + (not len(now)),
        )
        rest = np.setdiff1d(np.arange(len(plain)), pick.rows)
        np.testing.assert_array_equal(example.text.ids[rest], plain.ids[rest])
    assert within(chosen, pieces, rate)
    assert within(masked, chosen, 0.8 + 0.1 / len(VOCAB))
    assert within(kept, chosen, 0.1 + 0.1 / len(VOCAB))
    assert none > 0  # no minimum of one


@pytest.mark.parametrize(
    ("name", "goal", "target"),
    [("vl_bert", "mlm+mvrc", "mvrc"), ("unicoder_vl", "mlm+moc", "moc"), ("imagebert", "mlm+moc+mrfr", "mrfr")],
)
def test_regions_are_hidden_at_the_rate_and_a_tenth_stays(name: str, goal: str, target: str) -> None:
    chosen = masked = 0
    for number in range(COUNT):
        example, sample = hidden(name, goal, number), made(number)
        pick = example.targets[target]
        assert (pick.rows < REGIONS).all()  # never the whole picture
        wanted = {
            "mvrc": sample.pictures[0].probs,
            "moc": sample.pictures[0].probs[:, 1:].argmax(1),
            "mrfr": sample.pictures[0].features,
        }
        np.testing.assert_array_equal(pick.labels, wanted[target][pick.rows])
        assert set(np.flatnonzero(example.regions.masked)) <= set(pick.rows)
        chosen, masked = chosen + len(pick.rows), masked + int(example.regions.masked.sum())
    assert within(chosen, COUNT * REGIONS, 0.15)
    assert within(masked, chosen, 0.9)


# ---------------------------------------------------------------------------------------------------------- negatives


def test_visualbert_tells_whether_the_second_caption_is_of_the_same_picture() -> None:
    true = 0
    for number in range(COUNT):
        example = hidden("visualbert", "mlm+itm", number, mlm_rate=0.0)
        sample, other = made(number), made(number + 5000)
        label = int(example.targets["itm"])
        assert " ".join(said(example, 0)) == sample.texts[0]
        assert " ".join(said(example, 1)) == (sample.also[0] if label else other.texts[0])
        np.testing.assert_array_equal(example.regions.feats, sample.pictures[0].features)
        true += label
    assert within(true, COUNT, 0.5)


def test_visualbert_needs_a_second_caption_or_is_told_to_use_one() -> None:
    alone = dataclasses.replace(made(1), also=())
    with pytest.raises(BadInput, match="sample s1: its picture has one caption"):
        system("visualbert").hide(alone, "mlm+itm", np.random.default_rng(0), lambda: made(2))
    one = system("visualbert", two_captions=False, mlm_rate=0.0)
    found = Counter[tuple[int, str]]()
    for seed in range(200):
        example = one.hide(alone, "mlm+itm", np.random.default_rng(seed), lambda: made(2))
        found[int(example.targets["itm"]), " ".join(said(example))] += 1
    assert set(found) == {(1, alone.texts[0]), (0, made(2).texts[0])}
    assert within(found[1, alone.texts[0]], 200, 0.5)


@pytest.mark.parametrize(
    ("name", "goal", "label"), [("unicoder_vl", "mlm+moc+vlm", "vlm"), ("imagebert", "mlm+moc+mrfr+itm", "itm")]
)
def test_broken_pairs_change_either_side_and_ask_for_nothing(name: str, goal: str, label: str) -> None:
    true, masked, sides = 0, 0, Counter[str]()
    for number in range(COUNT):
        example, sample, other = hidden(name, goal, number, mlm_rate=0.0), made(number), made(number + 5000)
        masked += int(example.regions.masked.sum())
        if int(example.targets[label]):
            true += 1
            continue
        assert not len(example.targets["mlm"].rows)
        assert not len(example.targets["moc"].rows)
        text = " ".join(said(example))
        side = "picture" if text == sample.texts[0] else "text"
        sides[side] += 1
        assert text == (sample if side == "picture" else other).texts[0]
        shown = (other if side == "picture" else sample).pictures[0].features
        np.testing.assert_array_equal(example.regions.feats, shown)
    assert within(true, COUNT, 0.5)
    assert within(sides["picture"], COUNT - true, 0.5)
    assert within(masked, COUNT * REGIONS, 0.15 * 0.9)  # broken pairs look like true ones


@pytest.mark.parametrize(("name", "goal", "label"), [("unicoder_vl", "mlm+moc+vlm", "vlm"), ("b2t2", "mlm+itm", "itm")])
def test_masks_do_not_tell_broken_pairs(name: str, goal: str, label: str) -> None:
    masks, pieces = Counter[int](), Counter[int]()
    for number in range(COUNT):
        example = hidden(name, goal, number)
        kind = int(example.targets[label])
        masks[kind] += int((example.text.ids == VOCAB.mask).sum())
        pieces[kind] += int((example.text.words >= 0).sum())
    assert all(within(masks[kind], pieces[kind], 0.12) for kind in (0, 1))


@pytest.mark.parametrize(("size", "shares"), [("base", (0.5, 0.5, 0.0)), ("base_plus", (0.5, 0.25, 0.25))])
def test_oscar_exchanges_tags_and_in_oscar_plus_captions(size: str, shares: tuple[float, ...]) -> None:
    found, captions = Counter[int](), 0
    for number in range(COUNT):
        example = hidden("oscar", "mlm+contrast", number, size=size, mlm_rate=0.0)
        sample, other = made(number), made(number + 5000)
        label = int(example.targets["contrast"])
        found[label] += 1
        caption, tags = " ".join(said(example, 0)), " ".join(said(example, 1))
        assert caption == (other if label == 2 else sample).texts[0]
        mine, theirs = (" ".join(x.pictures[0].tags) for x in (sample, other))
        assert tags == mine if label != 1 else tags in (theirs, other.texts[0])
        captions += label == 1 and tags == other.texts[0]
    assert all(within(found[label], COUNT, share) for label, share in enumerate(shares))
    assert within(captions, found[1], 0.5 if size == "base" else 0.0)


def test_oscars_questions_stand_before_their_answers_and_change_them_for_those_of_questions() -> None:
    asked = dataclasses.replace(made(1), answers=(("w90", 1.0), ("w91 w92", 0.3)))
    pieces = [VOCAB.tokens[i] for i in system("oscar").lay_out(asked).text.ids]
    assert pieces[-5:] == ["[SEP]", "w90", "w91", "w92", "[SEP]"]
    tagged = [VOCAB.tokens[i] for i in system("oscar").lay_out(asked, "vqa").text.ids]
    assert "w90" not in tagged  # a task's question has tags
    oscar, seen = system("oscar", textb_sample_mode=2, mlm_rate=0.0), 0
    for seed in range(60):
        rest = iter([made(7), made(8), dataclasses.replace(made(9), answers=(("w93", 1.0),))])
        example = oscar.hide(asked, "mlm+contrast", np.random.default_rng(seed), lambda rest=rest: next(rest))
        said = [VOCAB.tokens[i] for i in example.text.ids]
        assert ("w93" in said, "w90" in said) == (bool(example.targets["contrast"]), not example.targets["contrast"])
        seen += int(example.targets["contrast"])
    assert 15 < seen < 45


def test_oscar_may_leave_exchanged_tags_alone() -> None:
    for number in range(300):
        example = hidden("oscar", "mlm+contrast", number, mask_loss_for_unmatched=False, mlm_rate=0.9)
        if int(example.targets["contrast"]) == 1:
            assert not example.text.segment_ids[example.targets["mlm"].rows].any()


def test_b2t2_asks_for_words_of_true_captions_only() -> None:
    true = 0
    for number in range(COUNT):
        example, plain = hidden("b2t2", "mlm+itm", number), hidden("b2t2", "mlm+itm", number, mlm_rate=0.0)
        label, sample = int(example.targets["itm"]), made(number)
        assert label == int(plain.targets["itm"])
        assert " ".join(said(plain)) == (sample if label else made(number + 5000)).texts[0]
        np.testing.assert_array_equal(plain.regions.feats[:-1], sample.pictures[0].features)
        assert label or not len(example.targets["mlm"].rows)
        true += label
    assert within(true, COUNT, 0.5)


def test_vl_berts_optional_relation_takes_the_caption_of_another_picture() -> None:
    true = 0
    for number in range(COUNT):
        example = hidden("vl_bert", "mlm+mvrc+itm", number, relation=True, mlm_rate=0.0, flip_rate=0.0)
        label, sample = int(example.targets["itm"]), made(number)
        assert " ".join(said(example)) == (sample if label else made(number + 5000)).texts[0]
        np.testing.assert_array_equal(example.regions.boxes[:-1], sample.pictures[0].boxes)
        true += label
    assert within(true, COUNT, 0.5)


def test_vl_bert_hides_words_of_texts_alone_at_the_same_rate() -> None:
    chosen = masked = 0
    for number in range(COUNT):
        alone = dataclasses.replace(made(number), pictures=())
        rng = np.random.default_rng(number)
        example = system("vl_bert").hide(alone, "mlm+mvrc+mlm_text", rng, lambda: made(2))
        pick = example.targets["mlm_text"]
        assert (pick.rows < LENGTH).all()  # never [END]
        np.testing.assert_array_equal(pick.labels, VOCAB.encode(alone.texts[0]).ids[pick.rows])
        chosen, masked = chosen + len(pick.rows), masked + int((example.text.ids[pick.rows] == VOCAB.mask).sum())
    assert within(chosen, COUNT * LENGTH, 0.15)
    assert within(masked, chosen, 0.8 + 0.1 / len(VOCAB))


def test_vlp_hides_one_piece_of_each_question_it_learns_from() -> None:
    task, counts = dataclasses.replace(find("vlp").finetune["vqa"].task, labels=("", "yes")), Counter[int]()
    masked = 0
    for number in range(COUNT):
        lay, sample = LayOf(system("vlp"), "vqa"), dataclasses.replace(made(number), answers=(("yes", 1.0),))
        (plain,), rng = task.forms(lay, sample), np.random.default_rng(number)
        (example,) = task.documents(lay, sample, rng, lambda: made(2))
        assert set(example.targets) == {"vqa"} and example.targets["vqa"].sum() == 1
        other = np.flatnonzero(example.text.ids != plain.text.ids)
        assert len(other) <= 1
        counts.update(other.tolist())
        masked += int((example.text.ids == VOCAB.mask).sum())
    assert set(counts) == set(range(2, LENGTH + 3))
    assert within(masked, COUNT, 0.8 + 0.1 / len(VOCAB))


# ------------------------------------------------------------------------------------------------------------ lay-outs


def test_visualbert_lays_out_two_captions_questions_and_two_pictures() -> None:
    short = dataclasses.replace(made(1), texts=("w1 w2", "w3"))
    rows = system("visualbert").lay_out(short).text
    assert [VOCAB.tokens[i] for i in rows.ids] == ["[CLS]", "w1", "w2", "[SEP]", "w3", "[SEP]"]
    assert rows.segment_ids.tolist() == [0, 0, 0, 0, 1, 1]
    asked = system("visualbert").lay_out(dataclasses.replace(made(1), texts=("w1 w2?",)), "vqa").text
    assert [VOCAB.tokens[i] for i in asked.ids] == ["[CLS]", "w1", "w2", "?", "[MASK]", "[SEP]"]
    two = dataclasses.replace(made(1), pictures=(made(1).pictures[0], made(2, regions=3).pictures[0]))
    both = system("visualbert").lay_out(two, "nlvr2").regions
    assert both.segment_ids.tolist() == [0] * REGIONS + [1] * 3
    assert both.image.tolist() == both.segment_ids.tolist()
    first = system("visualbert", max_regions=2).lay_out(two, "nlvr2").regions
    assert first.image.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(first.feats[2:], two.pictures[1].features[:2])
    with pytest.raises(BadInput, match="has 1 pictures, needs 2"):
        system("visualbert").lay_out(made(1), "nlvr2")


def test_visualbert_ties_regions_to_the_first_pieces_of_choices() -> None:
    links = (Link(0, 3, 2, 0), Link(3, 7, 4, 2))
    sample = dataclasses.replace(made(1), texts=("w1x is", "w2", "on w3x w4"), links=links)
    example = system("visualbert").lay_out(sample, "vcr", 1)
    pieces = [VOCAB.tokens[i] for i in example.text.ids]
    assert example.key == "s1@1"
    assert pieces[:3] == ["[CLS]", "w1", "##x"]
    found = {(pieces[row], region) for row, region in example.links.tolist()}
    assert found == {("w1", 2), ("w3", 4)}


def test_vl_bert_ends_its_documents_and_shows_the_whole_picture_without_what_is_hidden() -> None:
    sample = made(3)
    example = system("vl_bert").lay_out(sample)
    text, regions = example.text, example.regions
    count = LENGTH + 2
    assert text.segment_ids.tolist() == [0] * count + [2]
    assert text.position_ids.tolist() == [*range(count), count + 1]
    assert regions.position_ids.tolist() == [count] * (REGIONS + 1)
    np.testing.assert_allclose(regions.feats[-1], sample.pictures[0].features.mean(0), rtol=1e-6)
    np.testing.assert_allclose(regions.boxes[-1], [0, 0, 199 / 200, 99 / 100])
    for seed in range(60):
        masked = system("vl_bert").hide(sample, "mlm+mvrc", np.random.default_rng(seed), lambda: made(4)).regions
        kept = sample.pictures[0].features[~masked.masked[:-1]]
        np.testing.assert_allclose(masked.feats[-1], kept.mean(0), rtol=1e-4, atol=1e-5)
        assert not masked.masked[-1]


def test_vl_bert_cuts_the_longer_of_words_and_regions_and_keeps_the_surest() -> None:
    sample, vl_bert = made(3, regions=20, length=30), system("vl_bert", max_rows=14)
    example, picture = vl_bert.lay_out(sample), sample.pictures[0]
    assert len(example.text) - 1 + len(example.regions) == 14
    assert abs(len(example.text) - 1 - len(example.regions)) <= 1
    assert example.text.ids[-2] == VOCAB.sep
    most = picture.probs.max(1)
    kept = [i for i in range(20) if (most > most[i]).sum() < len(example.regions) - 1]
    np.testing.assert_array_equal(example.regions.feats[:-1], picture.features[kept])
    np.testing.assert_array_equal(example.regions.probs[:-1], picture.probs[kept])
    np.testing.assert_allclose(example.regions.feats[-1], picture.features.mean(0), rtol=1e-4, atol=1e-6)  # of all
    for seed in range(40):
        regions = vl_bert.hide(sample, "mvrc", np.random.default_rng(seed), lambda: made(4)).regions
        seen = np.delete(picture.features, np.array(kept)[regions.masked[:-1]], 0)
        np.testing.assert_allclose(regions.feats[-1], seen.mean(0), rtol=1e-3, atol=1e-5)


def test_vl_bert_turns_half_of_the_pictures_but_no_words_nor_features() -> None:
    turned = 0
    for number in range(COUNT):
        example, plain = hidden("vl_bert", "mlm+mvrc", number, mlm_rate=0.0), system("vl_bert").lay_out(made(number))
        np.testing.assert_array_equal(example.text.ids, plain.text.ids)
        np.testing.assert_array_equal(example.regions.feats[:-1], plain.regions.feats[:-1])
        x1, y1, x2, y2 = plain.regions.boxes.T
        if np.allclose(example.regions.boxes, plain.regions.boxes):
            continue
        turned += 1
        mirror = np.stack([199 / 200 - x2, y1, 199 / 200 - x1, y2], 1)
        np.testing.assert_allclose(example.regions.boxes, mirror, atol=1e-6)
    assert within(turned, COUNT, 0.5)


def test_vl_bert_reads_texts_alone_without_cls_and_sep() -> None:
    alone = dataclasses.replace(made(1), pictures=())
    example = system("vl_bert").hide(alone, "mlm+mvrc+mlm_text", np.random.default_rng(0), lambda: made(2))
    assert len(example.text) == LENGTH + 1
    assert not set(example.text.ids[:-1]) & {VOCAB.cls, VOCAB.sep}
    assert example.text.position_ids.tolist() == [*range(LENGTH), LENGTH + 1]
    assert len(example.regions) == 0
    assert not len(example.targets["mlm"].rows)
    assert not len(example.targets["mvrc"].rows)
    pair = system("vl_bert").hide(made(1), "mlm+mvrc+mlm_text", np.random.default_rng(0), lambda: made(2))
    assert not len(pair.targets["mlm_text"].rows)


def test_vl_bert_answers_at_a_mask_and_words_carry_their_region() -> None:
    asked = system("vl_bert", max_rows=60).lay_out(dataclasses.replace(made(1), texts=("w1 w2",)), "vqa").text
    assert [VOCAB.tokens[i] for i in asked.ids[:-1]] == ["[CLS]", "w1", "w2", "[SEP]", "[MASK]", "[SEP]"]
    assert asked.segment_ids.tolist() == [0, 0, 0, 0, 1, 1, 2]
    sample = dataclasses.replace(made(1), texts=("w1 w2", "w3", "w4 w5"), links=(Link(3, 5, 1, 0), Link(0, 2, 6, 2)))
    example = system("vl_bert", max_rows=60).lay_out(sample, "vcr", 1)
    assert example.links.tolist() == [[2, 1], [4, 6]]


def test_vlp_reads_and_writes() -> None:
    sample, vlp = made(1), system("vlp")
    read, write = vlp.lay_out(sample), vlp.lay_out_caption(sample)
    assert read.text.levels is None
    assert read.text.segment_ids.tolist() == [0, 0] + [1] * (LENGTH + 1)
    assert write.text.segment_ids.tolist() == [4, 4] + [5] * (LENGTH + 1)
    assert write.text.levels.tolist() == [0, 0, *range(1, LENGTH + 2)]
    assert write.text.position_ids.tolist() == [0, *range(REGIONS + 1, REGIONS + LENGTH + 3)]
    example, row = vlp.lay_out_next(sample, [20, 21])
    assert example.text.ids.tolist() == [VOCAB.cls, VOCAB.sep, 20, 21, VOCAB.mask]
    assert (row, example.text.levels.tolist()) == (4, [0, 0, 1, 2, 3])
    long = vlp.lay_out(made(1, length=23)).text
    assert (len(long), long.cut, long.ids[-1]) == (23, 3, VOCAB.sep)
    assert long.ids[2:-1].tolist() == VOCAB.encode(made(1, length=23).texts[0]).ids[:20].tolist()
    with pytest.raises(BadInput, match="soft labels"):
        vlp.lay_out(dataclasses.replace(sample, pictures=(dataclasses.replace(sample.pictures[0], probs=None),)))


@pytest.mark.parametrize(
    ("first", "second"), [(60, 65), (60, 66), (20, 140), (100, 40), (33, 130), (120, 20), (130, 0)]
)
def test_visualbert_cuts_pairs_from_the_front(first: int, second: int) -> None:
    """The authors' rule, piece by piece: 128 rows with [CLS] and the [SEP]s; the second text loses more than it need."""
    a, b = ([VOCAB.index[f"w{(i + start) % 40}"] for i in range(n)] for n, start in ((first, 0), (second, 7)))
    texts = tuple(" ".join(VOCAB.tokens[i] for i in x) for x in (a, b) if x)
    if second:
        over, taken = first + second + 3 - 128, 0
        while over > 0 and taken < (over + 1) // 2 and first - taken > 32:
            taken += 1
        kept = [VOCAB.cls, *a[taken:], VOCAB.sep]
        left = b[over + taken :] if over > 0 else b
        kept += [*left, VOCAB.sep] if left else []
    else:
        kept = [VOCAB.cls, *a[:126], VOCAB.sep]
    text = system("visualbert", max_position_embeddings=160).lay_out(dataclasses.replace(made(1), texts=texts)).text
    assert text.ids.tolist() == kept
    assert text.cut == first + second - sum(i not in (VOCAB.cls, VOCAB.sep) for i in kept)
    assert text.position_ids.tolist() == list(range(len(kept)))
    said = text.words[text.words >= 0]
    assert (np.diff(said) > 0).all()


@pytest.mark.parametrize(("asked", "said"), [(50, 75), (50, 76), (50, 126), (100, 60), (124, 9), (130, 9)])
def test_visualbert_cuts_choices_alone_from_the_front(asked: int, said: int) -> None:
    """Of 125 pieces the question keeps its own; one that leaves nothing for its choices loses from its front too."""
    texts = (" ".join(["w1"] * asked), "w2", " ".join(f"w{i % 40}" for i in range(said)))
    shown = dataclasses.replace(made(1), texts=texts, links=())
    text = system("visualbert", max_position_embeddings=256).lay_out(shown, "vcr", 1).text
    kept = min(asked, 125)
    rest = [VOCAB.index[f"w{i % 40}"] for i in range(said)][max(kept + said - 125, 0) :]
    ids = [VOCAB.cls, *[VOCAB.index["w1"]] * kept, VOCAB.sep, *rest, *([VOCAB.sep] if rest else [])]
    assert text.ids.tolist() == ids
    assert text.cut == asked + said - kept - len(rest)


def test_cut_texts_are_counted() -> None:
    source = [made(i, length=n) for i, n in enumerate((12, 20, 25, 21))]
    example = [system("vlp").lay_out(x) for x in source]
    assert [x.text.cut for x in example] == [0, 0, 5, 1]
    caption = system("oscar", max_position_embeddings=90).lay_out_caption(made(1, length=45)).text
    assert (caption.cut, int((caption.levels > 0).sum())) == (7, 40)
    assert system("vl_bert").lay_out(dataclasses.replace(made(1, length=70), pictures=())).text.cut == 6
    assert system("vl_bert").lay_out(made(1, length=70)).text.cut > 0


def test_vlp_hides_at_most_three_and_writes_three_of_four() -> None:
    writes = closing = 0
    for number in range(COUNT):
        example = hidden("vlp", "lm", number)
        pick = example.targets["lm"]
        assert len(pick.rows) == min(3, max(1, round(0.15 * LENGTH)))
        assert (pick.rows >= 2).all()
        writes += example.text.levels is not None
        closing += LENGTH + 2 in pick.rows
    assert within(writes, COUNT, 0.75)
    assert within(closing, COUNT, 2 / (LENGTH + 1))


def test_oscar_cuts_the_longer_of_caption_and_tags_and_keeps_fifty_regions() -> None:
    sample = made(1, regions=60, length=40)
    example = system("oscar").lay_out(sample)
    tags = len(VOCAB.encode(" ".join(sample.pictures[0].tags)))
    assert len(said(example, 0)) + len(said(example, 1)) == 32
    assert len(said(example, 1)) == tags
    assert len(example.regions) == 50
    assert example.text.segment_ids.tolist() == [0] * (32 - tags + 2) + [1] * (tags + 1)
    bare = dataclasses.replace(sample, pictures=(dataclasses.replace(sample.pictures[0], tags=()),))
    assert not system("oscar").lay_out(bare).text.segment_ids.any()


def test_oscar_writes_captions_that_see_tags_and_regions() -> None:
    sample, oscar = made(1), system("oscar", size="caption")
    rows = oscar.lay_out_caption(sample).text
    count, tags = LENGTH + 2, len(VOCAB.encode(" ".join(sample.pictures[0].tags)))
    assert rows.levels.tolist() == [*range(1, count + 1)] + [0] * (tags + 1)
    assert rows.position_ids.tolist() == [*range(count), *range(40, 40 + tags + 1)]
    places = Counter[int]()
    for seed in range(400):
        pick = oscar.hide(sample, "caption", np.random.default_rng(seed), lambda: made(2)).targets["caption"]
        assert len(pick.rows) == 2  # round(.15 * 14)
        places.update(pick.rows.tolist())
    assert set(places) == set(range(1, count))


def test_imagebert_puts_regions_between_two_seps() -> None:
    example = system("imagebert").lay_out(made(1))
    count = LENGTH + 2
    assert example.text.ids[-2:].tolist() == [VOCAB.sep, VOCAB.sep]
    assert example.text.segment_ids.tolist() == [0] * count + [1]
    assert example.text.position_ids.tolist() == [*range(count), count + 1]
    assert example.regions.position_ids.tolist() == [count] * REGIONS
    assert example.regions.segment_ids.tolist() == [1] * REGIONS
    other = system("imagebert", closing_sep=False, region_position=0).lay_out(made(1))
    assert len(other.text) == count
    assert other.regions.position_ids.tolist() == [0] * REGIONS


def test_unicoder_regions_share_a_position_or_have_their_own() -> None:
    assert system("unicoder_vl").lay_out(made(1)).regions.position_ids.tolist() == [0] * REGIONS
    ordered = system("unicoder_vl", region_position="sequential").lay_out(made(1))
    assert ordered.regions.position_ids.tolist() == list(range(REGIONS))
    assert ordered.text.position_ids[0] == 0
    behind = system("unicoder_vl", region_position="first").lay_out(made(1))
    assert behind.regions.position_ids.tolist() == list(range(REGIONS))
    assert behind.text.position_ids.tolist() == list(range(REGIONS, REGIONS + len(behind.text)))
