"""Metrics against the numbers that the official scripts printed, section by section of `metrics.json`; more files are found as the systems' are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import FOLDERS

from intarsia.errors import BadInput
from intarsia.tasks.metrics import captions, choices, entities, gqa, java, overlap, ptb, ranking, vqa

FILES = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for folder in FOLDERS
    for path in sorted(folder.glob("metrics*.json"))
    if path.stem == "metrics" or "metrics_case" in path.stem
}
each_file = pytest.mark.parametrize("golden", FILES.values(), ids=list(FILES))


def near(ours: float, theirs: float, what: object = "", atol: float = 1e-6) -> None:
    assert abs(ours - theirs) <= atol, f"{what}: {ours}, theirs {theirs}"


@each_file
def test_vqa_constants(golden: dict[str, Any]) -> None:
    constants = golden["vqa_constants"]
    assert constants["contractions"] == vqa.CONTRACTIONS
    assert constants["number_words"] == vqa.NUMBERS
    assert set(constants["articles"]) == vqa.ARTICLES
    assert tuple(constants["punctuation_in_order"]) == vqa.PUNCTUATION


@each_file
def test_vqa_normalised_answers(golden: dict[str, Any]) -> None:
    for case in golden["vqa_normalise"]:
        bare = vqa.strip_punctuation(case["in"])
        assert bare == case["after_punctuation"], case
        assert vqa.settle_words(bare) == case["after_digits_articles_contractions"], case
        assert vqa.vocabulary_form(case["in"]) == case["answer_vocabulary_form"], case


@each_file
def test_vqa_accuracy(golden: dict[str, Any]) -> None:
    section = golden["vqa_accuracy"]
    asked = [
        vqa.Question(i, tuple(x["answers"]), x["answer_type"], x["question_type"])
        for i, x in enumerate(section["cases"])
    ]
    found = vqa.accuracy({i: x["prediction"] for i, x in enumerate(section["cases"])}, asked)
    for i, case in enumerate(section["cases"]):
        near(100 * found.each[i], case["accuracy_percent"], case)
    assert round(100 * found.overall, 2) == section["overall_rounded2"]
    for ours, theirs in (
        (found.by_answer_type, section["per_answer_type_rounded2"]),
        (found.by_question_type, section["per_question_type_rounded2"]),
    ):
        assert {key: round(100 * x, 2) for key, x in ours.items()} == theirs


@each_file
def test_vqa_soft_targets(golden: dict[str, Any]) -> None:
    for case in golden["vqa_soft_label"]["cases"]:
        for convention in ("bucketed", "leave_one_out"):
            found = vqa.soft_targets(case["answers"], None, convention)
            assert found.keys() == case[convention].keys()
            for answer, share in case[convention].items():
                near(found[answer], share, (convention, case))


@each_file
def test_vqa_vocabulary(golden: dict[str, Any]) -> None:
    section = golden["vqa_vocabulary"]
    said = [answer for answer, count in section["multiple_choice_answers"].items() for _ in range(count)]
    assert vqa.vocabulary(said, section["min_occurrence"]) == section["kept"]


def corpora(golden: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for name, x in golden["captioning"].items():
        yield name, x["tokenised_hyps"], x["tokenised_refs"]
    edges = golden["captioning_pretokenised_edges"]
    yield "captioning_pretokenised_edges", edges["hyps"], edges["refs"]


@each_file
def test_bleu_rouge_cider(golden: dict[str, Any]) -> None:
    for name, hypotheses, references in corpora(golden):
        case = golden["captioning"].get(name, golden["captioning_pretokenised_edges"])
        found = captions.score(hypotheses, references)
        for key, score in found.corpus.items():
            near(score, case["corpus"][key], (name, key), 1e-9)
        for i, image in enumerate(found.keys):
            theirs = case["per_image"][image]
            for n, score in enumerate(found.bleu):
                near(score.each[i], theirs[f"Bleu_{n + 1}"], (name, image, n), 1e-9)
            near(found.rouge_l.each[i], theirs["ROUGE_L"], (name, image), 1e-9)
            near(found.cider_d.each[i], theirs["CIDEr"], (name, image), 1e-9)


@each_file
def test_tokens_of_captions(golden: dict[str, Any]) -> None:
    lines = golden["ptb_tokenizer"]
    for case, found in zip(lines, ptb.of_lines([x["in"] for x in lines]), strict=True):
        assert found == case["out"], case
    for case in golden["captioning"].values():
        assert ptb.tokenise_all(case["refs"]) == case["tokenised_refs"]
        assert ptb.of_lines(list(case["hyps"].values())) == list(case["tokenised_hyps"].values())


def jar_or_skip(jar: str) -> None:
    try:
        java.find_jar(jar)
    except BadInput as missing:
        pytest.skip(str(missing))


@each_file
def test_meteor(golden: dict[str, Any]) -> None:
    jar_or_skip(java.METEOR_JAR)
    for name, case in golden["captioning"].items():
        found = java.meteor(case["tokenised_hyps"], case["tokenised_refs"])
        near(found.corpus, case["corpus"]["METEOR"], name, 1e-4)
        for score, image in zip(found.each, case["tokenised_refs"], strict=True):
            near(score, case["per_image"][image]["METEOR"], (name, image), 1e-4)


@each_file
def test_tokens_by_the_original(golden: dict[str, Any]) -> None:
    jar_or_skip(java.TOKENIZER_JAR)
    lines = {i: [x["in"]] for i, x in enumerate(golden["ptb_tokenizer"])}
    assert java.tokenise(lines) == {i: [x["out"]] for i, x in enumerate(golden["ptb_tokenizer"])}


@each_file
def test_retrieval(golden: dict[str, Any]) -> None:
    for name, case in golden["retrieval"].items():
        scores = np.array(case["sims"])
        owner = np.arange(scores.shape[1]) // 5
        worst, best = (ranking.retrieval(scores, owner, x) for x in ("pessimistic", "optimistic"))
        for ours, other, key in ((worst.text, best.text, "i2t"), (worst.image, best.image, "t2i")):
            if ours.ranks == other.ranks:  # nothing ties: the authors' numbers are the only ones
                assert list(ours.ranks) == case[key]["ranks"], (name, key)
                for k in (1, 5, 10):
                    near(100 * ours.at[k], case[key][f"R{k}"], (name, key, k))
                near(ours.median, case[key]["medr"], (name, key))
                near(ours.mean, case[key]["meanr"], (name, key))
            if f"{key}_rank_bounds" in case:
                found = [list(x) for x in zip(other.ranks, ours.ranks, strict=True)]
                assert found == case[f"{key}_rank_bounds"], (name, key)
                middle = ranking.retrieval(scores, owner, "mean")
                way = middle.text if key == "i2t" else middle.image
                assert list(way.ranks) == [(low + high) / 2 for low, high in found]
        if "uniter_eval_fractions" in case:
            theirs = {key: x for key, x in case["uniter_eval_fractions"].items() if key != "_note"}
            ours_printed = ranking.uniter(scores, owner)
            assert ours_printed.keys() == theirs.keys()
            for key, x in theirs.items():
                near(ours_printed[key], x, (name, key))


@each_file
def test_videos_by_text(golden: dict[str, Any]) -> None:
    for case in golden["video_retrieval_diagonal"]["cases"]:
        found = ranking.howto100m(case["sims"])
        for key, x in case["metrics"].items():
            near(found[key], x, key)
        near(found["entries"], case.get("entries_counted", len(case["sims"])))


@each_file
def test_overlaps(golden: dict[str, Any]) -> None:
    section = golden["refcoco_iou"]
    rights: dict[str, list[bool]] = {key: [] for key in section["accuracy"]}
    conventions = {
        "mattnet": ("iou_mattnet_uniter_xywh", "correct_mattnet_ge_half"),
        "uniter": ("iou_mattnet_uniter_xywh", "correct_uniter_gt_half"),
        "vl_bert": ("iou_vlbert_xyxy_plus1", "correct_vlbert_ge_half"),
        "vilbert": ("iou_vilbert_xyxy_plus1_float32", "correct_vilbert_gt_half"),
    }
    chosen, gold = [], []
    for case in section["cases"]:
        a, b = ([x, y, x + w, y + h] for x, y, w, h in (case["pred_xywh"], case["gold_xywh"]))
        chosen.append(a)
        gold.append(b)
        for convention, (key, right) in conventions.items():
            found = overlap.iou([a], [b], convention)
            near(float(found[0, 0]), case[key] or 0.0, (convention, case))  # theirs divides by zero where ours is 0
            assert bool(overlap.is_right(found, convention)[0, 0]) == case[right], (convention, case)
            rights[right].append(case[right])
    for convention, (_, right) in conventions.items():
        near(overlap.refer(chosen, gold, convention), section["accuracy"][right], convention)


@each_file
def test_nlvr2(golden: dict[str, Any]) -> None:
    for case in golden["nlvr2"]:
        labels = {x["identifier"]: x["label"] for x in case["labels"]}
        predictions = dict(case["predictions"])
        if not isinstance(case["result"], dict) or "accuracy" not in case["result"]:
            missing = next(x for x in labels if x not in predictions)
            with pytest.raises(BadInput, match=missing):
                choices.nlvr2(predictions, labels)
            continue
        found = choices.nlvr2(predictions, labels)
        near(found.accuracy, case["result"]["accuracy"])
        near(found.consistency, case["result"]["consistency"])


@each_file
def test_vcr(golden: dict[str, Any]) -> None:
    section = golden["vcr"]
    labels = [[x["answer_label"] for x in section["items"]], [x["rationale_label"] for x in section["items"]]]
    found = choices.vcr(section["answer_scores"], section["rationale_scores"], *labels)
    for ours, key in ((found.answer, "Answer acc"), (found.rationale, "Rationale acc"), (found.joint, "Joint acc")):
        assert float(f"{ours:.3f}") == float(section["printed"][key]), key


@each_file
def test_visual7w(golden: dict[str, Any]) -> None:
    section = golden["visual7w_pointing"]
    chosen = {x["qa_id"]: x["candidates"][0]["answer"] for x in section["results"]}
    found = choices.visual7w(chosen, section["pairs"], partial=True)
    assert f"Overall accuracy = {found.overall:.3f}" in section["printed"]
    for kind, (share, count) in found.by_type.items():
        right = round(share * count)
        assert f'Question type "{kind}" accuracy = {share:.3f} ({right} / {count})' in section["printed"]
    if len(chosen) < len(section["pairs"]):
        with pytest.raises(BadInput, match="have no prediction"):
            choices.visual7w(chosen, section["pairs"])


@each_file
def test_muge(golden: dict[str, Any]) -> None:
    section = golden["muge_retrieval"]
    predictions, right = ({x["text_id"]: x["image_ids"] for x in section[y]} for y in ("predictions", "references"))
    found = ranking.muge(predictions, right)
    for ours, theirs in zip(found.values(), section["mean_recall_r1_r5_r10_percent"], strict=True):
        near(100 * ours, theirs)


@each_file
def test_fashion(golden: dict[str, Any]) -> None:
    section = golden["fashion_rank"]
    found = ranking.fashion(ranking.Pair(text, label, (no, yes)) for text, _, label, no, yes in section["rows"])
    assert found.keys() == section["txt2img"].keys()
    for key, theirs in section["txt2img"].items():
        near(found[key], theirs, key)


@each_file
def test_entities(golden: dict[str, Any], tmp_path: Path) -> None:
    section = golden["entities"]
    for name, content in section["files"].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    for name, theirs in section["parsed"].items():
        if name.endswith(".xml"):
            seen = entities.read_annotation(tmp_path / name)
            assert {key: [list(x) for x in boxes] for key, boxes in seen.boxes.items()} == theirs["boxes"]
            assert (seen.width, seen.height, seen.depth) == tuple(theirs[x] for x in ("width", "height", "depth"))
            assert (list(seen.scene), list(seen.nobox)) == (theirs["scene"], theirs["nobox"])
            continue
        said = entities.read_sentences(tmp_path / name)
        assert [x.text for x in said] == [x["sentence"] for x in theirs]
        phrases = [[(p.first_word, p.words, p.chain, list(p.types)) for p in x.phrases] for x in said]
        keys = ("first_word_index", "phrase", "phrase_id", "phrase_type")
        assert phrases == [[tuple(p[key] for key in keys) for p in x["phrases"]] for x in theirs]
    gold = {
        (picture, number): entities.questions(
            sentence, entities.read_annotation(tmp_path / f"Annotations/{picture}.xml", 0)
        )
        for picture in section["files"]["test.txt"].split()
        for number, sentence in enumerate(entities.read_sentences(tmp_path / f"Sentences/{picture}.txt"))
    }
    predictions = {(x["image_id"], x["sentence_id"]): x["boxes"] for x in section["predictions"]}
    for convention, key in (("any", "any_box"), ("merged", "merged")):
        found = entities.recall(gold, predictions, convention)
        for k, theirs in section["recall"][key].items():
            ours = found[None if k == "-1" else int(k)]
            assert ours.keys() == theirs.keys()
            for kind, x in theirs.items():
                near(ours[kind], x, (convention, k, kind))


@each_file
def test_gqa(golden: dict[str, Any]) -> None:
    section = golden["gqa"]
    predictions = {x["questionId"]: x["prediction"] for x in section["predictions"]}
    found, theirs = gqa.scores(section["questions"], predictions, section["choices"]), section["scores"]
    for key in ("accuracy", "binary", "open", "validity", "plausibility", "consistency"):
        near(100 * getattr(found, key), theirs[key], key)
    near(found.distribution, theirs["distribution"])
    tables = {
        "accuracyPerStructuralType": found.by_structural_type,
        "accuracyPerSemanticType": found.by_semantic_type,
        "accuracyPerLength": found.by_words,
        "accuracyPerSteps": found.by_steps,
    }
    for key, ours in tables.items():
        assert {str(x) for x in ours} == theirs[key].keys()
        for kind, (share, count) in ours.items():
            near(100 * share, theirs[key][str(kind)][0], (key, kind))
            assert count == theirs[key][str(kind)][1]
