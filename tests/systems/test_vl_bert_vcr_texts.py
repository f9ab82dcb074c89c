"""What VL-BERT reads of VCR's questions, against a slow reading of its reader's rules: names that go round, mentions, shared cuts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intarsia.batch import Example, Link, Picture, Sample
from intarsia.pack import pack
from intarsia.system import fit_config
from intarsia.systems.vl_bert import VLBERT
from intarsia.tasks.benchmarks import Annotated, Pictures, find
from intarsia.text import Vocab
from intarsia.tuned import Tuned, start

CALLED = ["Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry", "Jody", "Kendall", "Frankie"]
CALLED += ["Pat", "Quinn"]
WORDS = [f"w{i}" for i in range(40)]
VOCAB = Vocab.learn([" ".join([*WORDS, *CALLED[:9], "dog", "car", "and"])])  # the other names fall into letters
LIMIT = 64


def lines(count: int, seed: int, answers: bool = True) -> Iterator[dict[str, Any]]:
    """Lines as VCR's, of all lengths up to far beyond the limit."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        objects = [str(x) for x in rng.choice(["person", "person", "dog", "car"], rng.integers(1, 9))]

        def say(longest: int, objects: list[str] = objects) -> list[Any]:
            said: list[Any] = [str(x) for x in rng.choice(WORDS, rng.integers(1, longest))]
            for _ in range(rng.integers(0, 3)):
                who = rng.choice(len(objects), rng.integers(1, min(3, len(objects)) + 1), replace=False)
                said.insert(int(rng.integers(len(said) + 1)), who.tolist())
            return said

        long = 70 if number % 2 else 20
        line = {"annot_id": f"val-{number}", "img_fn": f"{number}.jpg", "metadata_fn": f"{number}.json"}
        line |= {"objects": objects, "question": say(long)}
        line |= {f"{part}_choices": [say(long) for _ in range(4)] for part in ("answer", "rationale")}
        yield line | ({"answer_label": number % 4, "rationale_label": 3 - number % 4} if answers else {})


def slow_text(tokens: list[Any], called: list[str]) -> list[tuple[int, int]]:
    """(piece, object or -1), token by token."""
    found = []
    for token in tokens:
        for i, one in enumerate(token if isinstance(token, list) else [token]):
            if i:
                found += [(x, -1) for x in VOCAB.encode("and").ids.tolist()]
            word, tag = (called[one], one) if isinstance(one, int) else (one, -1)
            found += [(x, tag) for x in VOCAB.encode(word).ids.tolist()]
    return found


def slow_documents(line: dict[str, Any], called: list[str], reasons: bool, cut: bool = True) -> list[list[Any]]:
    """(piece, segment, object or -1) of [CLS] question (answer) [SEP] choice [SEP] of the four choices, popped as the authors pop."""
    question = slow_text(line["question"], called)
    answer = slow_text(line["answer_choices"][line["answer_label"]], called) if reasons else []
    choices = [slow_text(x, called) for x in line["rationale_choices" if reasons else "answer_choices"]]
    for choice in choices if cut else []:
        while len(question) + len(answer) + len(choice) > LIMIT:
            if len(choice) > len(question) + len(answer):
                choice.pop()
            elif len(question) > 1 or not reasons:
                question.pop()
            else:
                answer.pop()
    sep = (VOCAB.sep, -1)
    return [
        [(*x, 0) for x in [(VOCAB.cls, -1), *question, *answer, sep]] + [(*x, 1) for x in [*choice, sep]]
        for choice in choices
    ]


class Shown:
    """Pictures without pixels, with the objects' boxes."""

    provenance = None

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Sample:
        boxes = np.tile(np.array([[0.1, 0.1, 0.6, 0.9]], np.float32), (8, 1))
        return Sample(str(index), (), (Picture(f"{index}.jpg", np.ones((8, 4), np.float32), boxes, 100, 80),))


def opened(root: Path, name: str, count: int = 40, **more: Any) -> tuple[list[dict[str, Any]], Annotated]:
    rows = list(lines(count, 1, **more))
    split = "val" if more.get("answers", True) else "test"
    (root / f"{split}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    return rows, Annotated(find(name).read(root, split), Pictures(Shown()))


def system(**changes: Any) -> Tuned:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = fit_config(VLBERT.recipes["base"].config, len(VOCAB), 4, 5)
    return start(VLBERT(replace(config, **small, geometry_waves=4, **changes), VOCAB), VLBERT.finetune["vcr"], "vcr")


def rows_of(example: Example) -> list[tuple[int, int, int]]:
    """(piece, object or -1, segment) of the text rows without [END]."""
    text = example.text
    assert text is not None
    tags = np.full(len(text), -1)
    assert len(np.unique(example.links[:, 0])) == len(example.links)  # a row carries one object
    tags[example.links[:, 0]] = example.links[:, 1]
    assert text.position_ids[:-1].tolist() == list(range(len(text) - 1))
    assert ((text.words >= 0) == ~np.isin(text.ids, [VOCAB.cls, VOCAB.sep, VOCAB.pad])).all()
    return [(int(a), int(b), int(c)) for a, b, c in zip(text.ids, tags, text.segment_ids, strict=True)][:-1]


@pytest.mark.parametrize(("name", "reasons"), [("vcr-answers", False), ("vcr-rationales", True)])
def test_texts_are_those_of_the_authors_reader(name: str, reasons: bool, tmp_path: Path) -> None:
    rows, source = opened(tmp_path, name)
    tuned, turn, seen = system(), 0, {"cut": 0, "question cut": 0, "several": 0, "round": 0}
    for number, line in enumerate(rows):
        called = []
        for kind in line["objects"]:  # the counter runs across questions
            called.append(CALLED[turn % 13] if kind == "person" else kind)
            turn += kind == "person"
        whole = slow_documents(line, called, reasons, cut=False)
        expected = slow_documents(line, called, reasons)
        found = tuned.forms(source[number])
        for ours, theirs, uncut in zip(found, expected, whole, strict=True):
            assert rows_of(ours) == theirs
            assert ours.text is not None and ours.text.cut == len(uncut) - len(theirs)
            seen["cut"] += ours.text.cut > 0
        seen["question cut"] += len({str(x[: x.index((VOCAB.sep, -1, 0))]) for x in expected}) == 1  # one for all
        seen["several"] += any(isinstance(x, list) and len(x) > 1 for x in line["question"])
    seen["round"] = turn // 13
    assert seen["question cut"] == len(rows) and min(seen["cut"], seen["several"], seen["round"]) >= 5


def test_a_choice_shares_what_the_last_one_left_of_the_question(tmp_path: Path) -> None:
    _, source = opened(tmp_path, "vcr-answers", 1)
    texts = (" ".join(["w1"] * 60), "w2", " ".join(["w3"] * 50), "w4", "w5 w6")
    documents = system().forms(replace(source[0], texts=texts, links=()))
    assert [len(x.text) - 4 for x in documents] == [32 + 1, 32 + 32, 32 + 1, 32 + 2]
    assert [x.text.cut for x in documents] == [28, 28 + 18, 28, 28]


def test_rationales_of_the_test_are_not_cut(tmp_path: Path) -> None:
    """There the right answer is not known: each is asked with every answer."""
    rows, source = opened(tmp_path, "vcr-rationales", 8, answers=False)
    longest = 0
    for number, line in enumerate(rows):
        for answer in range(4):
            sample = source[4 * number + answer]
            found = system().forms(sample)
            assert all(x.text.cut == 0 for x in found)
            longest = max(longest, *(len(x.text) for x in found))
            assert len(found) == 4 and sample.key == f"{line['annot_id']}/qar{answer}"
    assert longest > LIMIT + 4


def test_a_small_table_of_positions_bounds_them_too(tmp_path: Path) -> None:
    for answers in (True, False):
        _, source = opened(tmp_path, "vcr-rationales", 8, answers=answers)
        tuned = system(max_position_embeddings=40)
        for i in range(len(source)):
            for example in tuned.forms(source[i]):
                assert len(example.text) <= 40 and example.text.position_ids.max() <= 39
        tuned.encode(pack(tuned.forms(source[0])))


def test_training_begins_the_round_anywhere_and_all_regions_stay(tmp_path: Path) -> None:
    _, source = opened(tmp_path, "vcr-answers", 1)
    tuned, sample = system(), source[0]
    boxes = np.tile(np.array([[0.1, 0.1, 0.6, 0.9]], np.float32), (300, 1))
    many = Picture("0.jpg", np.ones((300, 4), np.float32), boxes, 100, 80, names=("person", "dog", *["person"] * 298))
    texts = ("w1 w2", "w3", "w4", "w5", "w6")
    sample = replace(sample, pictures=(many,), texts=texts, links=(Link(0, 2, 0),))
    first = set()
    for seed in range(200):
        examples = tuned.documents(sample, "vcr", np.random.default_rng(seed), lambda: sample)
        (example, *_) = examples
        assert len(example.regions) == 301
        first.add(int(example.text.ids[1]))
    assert first == {int(VOCAB.encode(x).ids[0]) for x in CALLED}
