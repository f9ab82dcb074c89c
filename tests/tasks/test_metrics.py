"""What metrics do with ties, missing and doubled ids, empty captions and boxes; rules that hold for every input."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.errors import BadInput
from intarsia.tasks.metrics import captions, choices, entities, folding, gqa, java, overlap, ptb, ranking, vqa

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
ANSWERS = st.lists(
    st.sampled_from(["yes", "Yes", "no", "a dog", "dog", "2", "two", "t-shirt", ""]), min_size=10, max_size=10
)


# ---------------------------------------------------------------------------------------------------------------- folding


@SETTINGS
@given(st.lists(st.integers(0, 50), unique=True, min_size=1), st.integers(1, 5), st.randoms(use_true_random=False))
def test_predictions_of_processes_fold_to_one_table(ids: list[int], processes: int, rng: random.Random) -> None:
    padded = ids + ids[: -len(ids) % processes]
    parts = [[(i, f"answer {i}") for i in padded[rank::processes]] for rank in range(processes)]
    rng.shuffle(parts)
    table = folding.fold(parts)
    assert {key: f"answer {key}" for key in ids} == table
    assert folding.complete(ids, table, "question") == ids


def test_missing_and_strange_ids_are_told() -> None:
    with pytest.raises(BadInput, match=r"7 of 9 questions have no prediction: 2, 3, 4, 5, 6, \.\.\."):
        folding.complete(range(9), {0: "", 1: ""}, "question")
    with pytest.raises(BadInput, match="1 predictions are of no question that is scored: 5"):
        folding.complete([1], {1: "", 5: ""}, "question")
    with pytest.raises(BadInput, match="no question to score"):
        folding.complete([], {}, "question")


# -------------------------------------------------------------------------------------------------------------------- VQA


@SETTINGS
@given(st.text(max_size=30))
def test_normalised_answers_hold_no_article_and_single_spaces(answer: str) -> None:
    words = vqa.normalise(answer).split(" ")
    assert not vqa.ARTICLES & set(words)
    assert words == [""] or all(words)


@SETTINGS
@given(st.sampled_from(["dog", "yes", "2", ""]), ANSWERS)
def test_accuracy_by_the_number_of_people(prediction: str, answers: list[str]) -> None:
    found = vqa.score(prediction, answers)
    if len(set(answers)) > 1:
        agree = sum(vqa.normalise(x) == vqa.normalise(prediction) for x in answers)
        assert math.isclose(found, (0, 0.3, 0.6, 0.9, 1)[min(agree, 4)], abs_tol=1e-12)
    else:
        assert found == float(prediction == answers[0])


@SETTINGS
@given(ANSWERS)
def test_both_kinds_of_soft_targets_agree(answers: list[str]) -> None:
    buckets, means = vqa.soft_targets(answers), vqa.soft_targets(answers, None, "leave_one_out")
    assert buckets.keys() == means.keys() == set(answers)
    assert all(math.isclose(buckets[x], means[x], abs_tol=1e-12) for x in buckets)
    assert vqa.soft_targets(answers, {"dog"}).keys() <= {"dog"}


def test_older_copies_score_otherwise() -> None:
    same, mixed = ["yes"] * 10, ["a dog"] * 5 + ["a cat."] * 5
    assert vqa.score("Yes", same) == 0 and vqa.score("Yes", same, "2015") == 1
    assert vqa.score("a dog", mixed) == 1 and vqa.score("a dog", mixed, "2015") == 0
    assert vqa.score("dog", ["dog."] * 4 + ["cat"] * 6, "2015") == 1


def test_annotations() -> None:
    people = [{"answer": "yes", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
    entry = {"question_id": 7, "answers": people, "answer_type": "yes/no", "question_type": "is the"}
    found = vqa.questions({"annotations": [entry]})
    assert vqa.accuracy({7: "yes"}, found).by_question_type == {"is the": 1.0}
    with pytest.raises(BadInput, match="question 7: answer_ids .* not distinct"):
        vqa.questions({"annotations": [{**entry, "answers": [people[0]] * 10}]})
    with pytest.raises(BadInput, match="file.json: question 7: no field 'answers'"):
        vqa.questions({"annotations": [{"question_id": 7}]}, "file.json")
    with pytest.raises(BadInput, match="has no list"):
        vqa.questions({})
    with pytest.raises(BadInput, match="without human answers"):
        vqa.score("yes", [])


# -------------------------------------------------------------------------------------------------------------------- GQA


def gqa_question(answer: str, entailed: list[str], balanced: bool = True) -> dict[str, object]:
    return {
        "question": "is it red ?",
        "answer": answer,
        "isBalanced": balanced,
        "semantic": [{"operation": "select", "argument": "x"}],
        "types": {"structural": "verify", "semantic": "attr", "detailed": "verifyAttr"},
        "groups": {"global": "color"},
        "entailed": entailed,
    }


def test_gqa_without_all_predictions_or_choices() -> None:
    questions = {"1": gqa_question("yes", ["1", "2"]), "2": gqa_question("no", [], balanced=False)}
    found = gqa.scores(questions, {"1": "yes"})
    assert (found.accuracy, found.consistency, found.validity) == (1.0, None, None)
    assert gqa.scores(questions, {"1": "yes", "2": "maybe"}).consistency == 0
    assert gqa.scores(questions, {"1": "no", "2": "no"}).consistency == 0, "the mean of nothing"
    with pytest.raises(BadInput, match="1 of 1 balanced questions have no prediction: 1"):
        gqa.scores(questions, {"2": "no"})
    with pytest.raises(BadInput, match="question 1 entails 9"):
        gqa.scores({"1": gqa_question("yes", ["9"])}, {"1": "yes"})


# ---------------------------------------------------------------------------------------------------------------- choices


def test_vcr_takes_the_row_of_the_right_answer() -> None:
    answers = np.eye(4)
    rationales = np.zeros((4, 4, 4))
    rationales[range(4), range(4), [1, 1, 2, 3]] = 1
    found = choices.vcr(answers, rationales, range(4), [1, 1, 2, 0])
    assert (found.answer, found.rationale, found.joint) == (1, 0.75, 0.75)
    with pytest.raises(BadInput, match="no number"):
        choices.vcr(np.full((4, 4), np.nan), rationales, range(4), range(4))
    with pytest.raises(BadInput, match="4 answers, 3 rationales"):
        choices.vcr(answers, np.zeros((3, 4)), range(4), range(4))


def test_first_of_equal_choices_wins() -> None:
    assert choices.accuracy(np.zeros((4, 3)), [0, 0, 1, 2]) == 0.5


def test_nlvr2_identifiers() -> None:
    with pytest.raises(BadInput, match="'dev-1-0' is not split-set-pair-sentence"):
        choices.nlvr2({"dev-1-0": "True"}, {"dev-1-0": "True"})


# ---------------------------------------------------------------------------------------------------------------- ranking


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 12), st.booleans())
def test_ranks_are_those_of_a_stable_sort(seed: int, queries: int, candidates: int, many_ties: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (queries, candidates)) if many_ties else rng.normal(size=(queries, candidates))
    right = rng.random((queries, candidates)) < 0.4
    right[np.arange(queries), rng.integers(0, candidates, queries)] = True
    for row, gold, low, high in zip(
        scores, right, ranking.ranks(scores, right, "optimistic"), ranking.ranks(scores, right), strict=True
    ):
        for last in (0, 1):  # right ones first among equals, or last
            order = np.lexsort((gold if last else ~gold, -row))
            assert int(np.flatnonzero(gold[order])[0]) == (high if last else low)


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_without_ties_all_protocols_agree(seed: int, count: int) -> None:
    scores = np.random.default_rng(seed).permutation(count * count).reshape(count, count)
    found, theirs = ranking.retrieval(scores, np.arange(count)).text, ranking.howto100m(scores)
    assert [found.at[k] for k in (1, 5, 10)] == [theirs[f"R{k}"] for k in (1, 5, 10)]
    rows = [ranking.Pair(i, int(i == j), (0.0, float(scores[i, j]))) for i in range(count) for j in range(count)]
    fashion = ranking.fashion(rows)
    assert all(math.isclose(found.at[k], fashion[f"rank@{k}"], rel_tol=1e-4) for k in (1, 5, 10))


def test_auc_is_scikit_learns() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    logits, labels = rng.integers(-3, 4, 200).astype(float), rng.integers(0, 2, 200)  # many ties
    rows = [ranking.Pair(0, int(y), (0.0, float(x))) for x, y in zip(logits, labels, strict=True)]
    assert ranking.auc(rows) == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    with pytest.raises(BadInput, match="right and 0 wrong rows have no ROC curve"):
        ranking.auc([x for x in rows if x.label])


def test_an_image_without_captions_stays_a_candidate() -> None:
    found = ranking.retrieval([[0.0, 3.0], [9.0, 9.0], [1.0, 2.0]], [0, 2])  # the captions of image 1 were left out
    assert found.text.ranks == (1.0, 0.0)
    assert found.image.ranks == (2.0, 2.0)


def test_a_constant_scorer_gets_nothing() -> None:
    found = ranking.retrieval(np.zeros((20, 100)), np.arange(100) // 5)
    assert found.rsum == 0 and found.r_mean == 0
    assert ranking.retrieval(np.zeros((20, 100)), np.arange(100) // 5, "optimistic").rsum == 600


def test_folds_are_averaged() -> None:
    good = ranking.retrieval(np.eye(2), np.arange(2))
    bad = ranking.retrieval(1 - np.eye(2), np.arange(2))
    assert ranking.folds([good, bad])["text R@1"] == 50


def test_candidates_are_of_the_category_and_of_the_seed() -> None:
    categories = [("dress", "shirt", "shoe")[i % 3] for i in range(60)] + ["hat"] * 5
    found = ranking.fashion_candidates(categories, queries=50, wrong=10, seed=3)
    assert found == ranking.fashion_candidates(categories, queries=50, wrong=10, seed=3)
    assert found != ranking.fashion_candidates(categories, queries=50, wrong=10, seed=4)
    assert len({query for query, _ in found}) == 50
    places = []
    for query, candidates in found:
        assert len(set(candidates)) == 11 and {categories[x] for x in candidates} == {categories[query]}
        places.append(candidates.index(query))
    assert len(set(places)) > 5, "the right one stands anywhere"
    with pytest.raises(BadInput, match="60 pairs have 10 others of their category, 61 are to be asked"):
        ranking.fashion_candidates(categories, queries=61, wrong=10)


def test_bad_rankings() -> None:
    with pytest.raises(BadInput, match="candidate 1 of query 0 has a score that is no number"):
        ranking.ranks([[0, np.nan]], [[True, False]])
    with pytest.raises(BadInput, match="query 1 has no right candidate"):
        ranking.ranks(np.zeros((2, 2)), [[True, False], [False, False]])
    with pytest.raises(BadInput, match="caption 1 belongs to image 5 of 2"):
        ranking.retrieval(np.zeros((2, 2)), [0, 5])
    with pytest.raises(BadInput, match="query 3: .* not 10 different"):
        ranking.muge({3: [1] * 10}, {3: [1]})
    with pytest.raises(BadInput, match="no rows"):
        ranking.fashion([])


# ---------------------------------------------------------------------------------------------------------------- overlap

BOX = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@SETTINGS
@given(BOX, BOX)
def test_overlaps_count_pixels(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    def drawn(box: tuple[int, ...], more: int) -> np.ndarray:
        picture = np.zeros((42, 42), bool)
        picture[box[1] : box[3] + more, box[0] : box[2] + more] = True
        return picture

    for convention, more in (("exclusive", 0), ("vl_bert", 1), ("vilbert", 1)):
        x, y = drawn(a, more), drawn(b, more)
        found = float(overlap.iou([a], [b], convention)[0, 0])
        assert math.isclose(found, (x & y).sum() / (x | y).sum(), rel_tol=1e-6, abs_tol=1e-12)
        assert found == float(overlap.iou([b], [a], convention)[0, 0])
    strict = float(overlap.iou([a], [b], "mattnet")[0, 0])
    exclusive = float(overlap.iou([a], [b])[0, 0])
    assert strict in (0.0, exclusive), "one pixel row less is no overlap, else the same"


def test_boxes_without_area() -> None:
    empty = [[3, 3, 3, 3]]
    for convention in ("exclusive", "mattnet", "uniter"):
        assert overlap.iou(empty, empty, convention)[0, 0] == 0
    assert overlap.iou(empty, empty, "vl_bert")[0, 0] == 1
    assert overlap.refer([None, empty[0]], [[0, 0, 1, 1], [3, 3, 4, 4]]) == 0
    with pytest.raises(BadInput, match="no convention 'coco'"):
        overlap.iou(empty, empty, "coco")
    with pytest.raises(BadInput, match="1 chosen boxes, 2 gold"):
        overlap.refer([None], [[0, 0, 1, 1]] * 2)


# --------------------------------------------------------------------------------------------------------------- captions

WORDS = st.lists(st.sampled_from(["a", "dog", "runs", "on", "the", "red", "grass"]), max_size=9).map(" ".join)


@SETTINGS
@given(st.lists(WORDS, min_size=1, max_size=4), WORDS)
def test_longest_common_subsequence(others: list[str], caption: str) -> None:
    for other in others:
        a, b = caption.split(), other.split()
        assert captions.common_length(a, b) == captions.common_length(b, a) <= min(len(a), len(b))
        assert captions.common_length(a, a + b) == len(a)


@SETTINGS
@given(
    st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_scores_do_not_depend_on_order(images: list[tuple[str, list[str]]], rng: random.Random) -> None:
    first = captions.score(dict(enumerate(x[0] for x in images)), dict(enumerate(x[1] for x in images)))
    order = list(range(len(images)))
    rng.shuffle(order)
    again = captions.score({i: images[i][0] for i in order}, {i: images[i][1][::-1] for i in order})
    for key, x in first.corpus.items():
        assert math.isclose(x, again.corpus[key], rel_tol=1e-9, abs_tol=1e-12), key
        assert -1e-12 <= x <= (10 if key == "CIDEr" else 1) + 1e-12


def test_given_frequencies_make_single_images_comparable() -> None:
    known = captions.Frequencies.of([["a red dog runs"], ["a blue cat sits"], ["a dog"]])
    assert captions.cider_d(["a red dog runs"], [["a red dog runs"]]).corpus == 0
    assert math.isclose(captions.cider_d(["a red dog runs"], [["a red dog runs"]], known).corpus, 10)
    with pytest.raises(BadInput, match="image 2 has no reference"):
        captions.score({1: "a", 2: "b"}, {1: ["a"], 2: []})


@SETTINGS
@given(st.text("abcXYZ 019.,'-!?/\"", max_size=40))
def test_tokens_keep_letters_and_digits(caption: str) -> None:
    found = ptb.tokenise(caption)
    assert [x for x in found if x.isalnum()] == [x for x in caption.lower() if x.isalnum()]
    assert not ptb.DROPPED & set(found.split(" "))


@SETTINGS
@given(st.text(max_size=40))
def test_any_text_has_tokens(caption: str) -> None:
    found = ptb.tokenise(caption)
    assert "\n" not in found and "  " not in found and found == found.strip(" ")


@pytest.mark.parametrize(
    ("lines", "cut"),
    [  # as the original cuts them: a line is not cut alone
        (["the vitamin C.", "The man"], ["the vitamin c", "the man"]),
        (["vitamin C. ", "", "The man"], ["vitamin c", "", "the man"]),
        (["vitamin C.", "a man"], ["vitamin c.", "a man"]),
        (["vitamin C."], ["vitamin c."]),
        (["made in the U.S.", "The man"], ["made in the u.s.", "the man"]),
        (["C. Ms. x", "go C. Ms x", "C. Mr."], ["c ms. x", "go c. ms x", "c mr."]),
        (["he says no.", "2 men"], ["he says no.", "2 men"]),
        (["he says no.", "two men"], ["he says no", "two men"]),
    ],
)
def test_the_next_line_says_whether_a_letter_ends_a_sentence(lines: list[str], cut: list[str]) -> None:
    assert ptb.of_lines(lines) == cut
    assert ptb.tokenise_all({7: lines}) == {7: cut}


def test_captions_are_there() -> None:
    with pytest.raises(BadInput, match="image 4 has no caption"):
        ptb.tokenise_all({4: []})


# --------------------------------------------------------------------------------------------------------------- entities


def test_phrases_of_several_types_and_no_boxes() -> None:
    gold = {("1", 0): [entities.Question(np.array([[0.0, 0, 10, 10]]), ("people", "clothing"))] * 2}
    found = entities.recall(gold, {("1", 0): [np.zeros((0, 4)), [[0, 0, 10, 5], [0, 0, 9, 9]]]})
    assert found[1] == {"all": 0.5, "people": 0.5, "clothing": 0.5}, "half the area is enough, no box is a miss"
    with pytest.raises(BadInput, match="picture 1, sentence 0: 2 phrases, predictions for 0"):
        entities.recall(gold, {})


def test_broken_entity_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no phrase at '\\[/EN#1/people'"):
        entities.read_sentence("[/EN#1/people A man rides .")
    file = tmp_path / "1.xml"
    with pytest.raises(BadInput, match=r"1\.xml: No such file"):
        entities.read_annotation(file)
    file.write_text("<annotation><size><width>5</width></size></annotation>")
    with pytest.raises(BadInput, match=r"1\.xml: an element has no size/height"):
        entities.read_annotation(file)
    file.write_text("<annotation>")
    with pytest.raises(BadInput, match=r"1\.xml: no element found"):
        entities.read_annotation(file)


# ------------------------------------------------------------------------------------------------------------------- java

JAVA = """#!{python}
import sys
if "-cp" in sys.argv:
    for line in open(sys.argv[-1], encoding="utf-8").read().split("\\n"):
        print(line.lower().replace(".", " . "))
    sys.exit()
if "{fails}":
    sys.exit("out of memory")
for line in sys.stdin:
    kind, *fields = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":
        print(len(set(fields[-1].split()) & set(fields[0].split())), len(fields), flush=True)
    else:
        numbers = [float(x.split()[0]) for x in fields]
        print(*numbers, sum(numbers), sep="\\n", flush=True)
"""


def jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str = "") -> Path:
    """A folder of empty jars and a program `java` that speaks as METEOR does."""
    import sys

    program = tmp_path / "bin/java"
    program.parent.mkdir(exist_ok=True)
    program.write_text(JAVA.format(python=sys.executable, fails=fails))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    for jar in (java.METEOR_JAR, java.SPICE_JAR, java.TOKENIZER_JAR):
        (tmp_path / Path(jar).name).touch()
    return tmp_path


def test_dialogue_with_the_jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = jars(tmp_path, monkeypatch)
    found = java.meteor({1: "a  dog\nruns", 2: "x ||| y"}, {1: ["a dog", "z"], 2: ["x y"]}, folder)
    assert (found.each, found.corpus) == ((2.0, 2.0), 4.0)
    assert java.tokenise({1: ["A dog.", "two\nlines"], 2: [""]}, folder) == {1: ["a dog", "two lines"], 2: [""]}


def test_what_jars_lack_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, said, meant = jars(tmp_path, monkeypatch, "yes"), {1: "a"}, {1: ["a"]}
    with pytest.raises(BadInput, match=r"meteor-1\.5\.jar: stopped: out of memory"):
        java.meteor(said, meant, folder)
    with pytest.raises(BadInput, match=r"put stanford-corenlp-3\.6\.0\.jar and .* into .*/lib"):
        java.spice(said, meant, folder)
    (folder / "meteor-1.5.jar").unlink()
    with pytest.raises(BadInput, match=r"has no meteor/meteor-1\.5\.jar"):
        java.meteor(said, meant, folder)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(BadInput, match=r"meteor-1\.5\.jar needs Java: no program 'java'"):
        java.meteor(said, meant, folder)
