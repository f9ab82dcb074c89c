from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.data.check import inspect
from intarsia.data.opening import open_source
from intarsia.errors import BadInput

LXMERT = [
    {"img_id": "COCO_val2014_000000000042", "sentf": {"mscoco": ["A dog. ", "Two dogs"], "vqa": ["what is it?", "why?"]},
     "labelf": {"vqa": [{"dog": 1, "cat": 0.3}, {}]}},
]  # fmt: skip
VQA = [
    {
        "question_id": 42000,
        "question_type": "what",
        "answer_type": "other",
        "img_id": "COCO_val2014_000000000042",
        "sent": "what is it?",
        "label": {"dog": 0.9},
    }
]
NLVR2 = [
    {
        "uid": "u1",
        "identifier": "dev-1-0-0",
        "img0": "dev-1-0-img0",
        "img1": "dev-1-0-img1",
        "sent": "Two dogs",
        "label": 0,
    }
]
OSCAR = [{"q": "what is it?", "o": "dog;red ball", "an": [1], "s": [0.6], "img_id": 42, "q_id": 7}]
OSCAR_PAIR = [
    {
        "q": "Two dogs",
        "o": {"left": "dog", "right": ""},
        "label": 1,
        "img_id": {"left": "a-img0", "right": "a-img1"},
        "q_id": 8,
    }
]
SENTENCES = '{"img_path": "12.jpg", "sentences": ["a dog", "two"]}\n{"id": 13, "sentences": ["three"]}\n'
MEMES = (
    '{"id": 8291, "img": "img/08291.png", "label": 1, "text": "look"}\n{"id": 1, "img": "img/1.png", "text": "there"}\n'
)
DOG = "COCO_val2014_000000000042.jpg"
Rows = list[tuple[tuple[str, ...], str, tuple[tuple[str, float], ...]]]
CASES: dict[str, tuple[str, Any, Rows, str]] = {
    "lxmert": ("mscoco_minival.json", LXMERT, [((DOG,), "A dog.", ()), ((DOG,), "Two dogs", ()),
               ((DOG,), "what is it?", (("dog", 1.0), ("cat", 0.3))), ((DOG,), "why?", ())], "val"),
    "lxmert vqa": ("nominival.json", VQA, [((DOG,), "what is it?", (("dog", 0.9),))], "train"),
    "lxmert nlvr2": ("valid.json", NLVR2, [(("dev-1-0-img0.png", "dev-1-0-img1.png"), "Two dogs", (("False", 1.0),))], "val"),
    "oscar": ("train2014_qla_mrcnn.json", OSCAR, [(("42",), "what is it?", (("no", 0.6),))], "train"),
    "oscar nlvr2": ("nlvr2_dev.json", OSCAR_PAIR, [(("a-img0", "a-img1"), "Two dogs", (("True", 1.0),))], "val"),
    "vilbert": ("all_data_final_test.jsonl", SENTENCES, [(("12.jpg",), "a dog", ()), (("12.jpg",), "two", ()), (("13.jpg",), "three", ())], "test"),
    "memes": ("dev_seen.jsonl", MEMES, [(("img/08291.png",), "look", (("1", 1.0),)), (("img/1.png",), "there", ())], "val"),
}  # fmt: skip


def put(root: Path, name: str, content: Any) -> Path:
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return root / name


@pytest.mark.parametrize("name", CASES)
def test_questions_and_labels_are_known_by_looking(name: str, tmp_path: Path) -> None:
    file, content, rows, split = CASES[name]
    put(tmp_path, "trainval_ans2label.json", {"yes": 0, "no": 1})
    source = open_source(put(tmp_path, file, content))
    assert [(tuple(p.name for p in x.pictures), x.texts[0], x.answers) for x in source] == rows
    assert list(source.index.splits) == [split]
    assert len({x.key for x in source}) == len(rows)


def test_objects_of_oscar_are_tags_and_its_answers_need_a_table(tmp_path: Path) -> None:
    path = put(tmp_path, "val2014_qla.json", OSCAR)
    source = open_source(path)
    assert source[0].pictures[0].tags == ("dog", "red ball") and source[0].answers == ()
    assert inspect(str(path)).ignored == {".an": 1}
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "trainval_label2ans.pkl").write_bytes(pickle.dumps(["yes", "no"]))
    assert open_source(path)[0].answers == (("no", 0.6),)


def test_an_entry_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = put(
        tmp_path, "mscoco_train.json", [*LXMERT, {"img_id": "a", "sentf": {"vqa": ["x"]}, "labelf": {"vqa": []}}]
    )
    with pytest.raises(BadInput, match=r"mscoco_train\.json, entry 1: "):
        open_source(path)
    path = put(tmp_path, "train2014_qla.json", [*OSCAR, {"q": "x", "img_id": 1, "an": [5], "s": [1.0]}])
    put(tmp_path, "ans2label.json", {"yes": 0, "no": 1})
    with pytest.raises(BadInput, match=r"entry 1: label 5 is not among 2 answers"):
        open_source(path)
    with pytest.raises(BadInput, match=r"b\.jsonl, line 2: has no img or no text"):
        open_source(put(tmp_path, "b.jsonl", '{"img": "a", "text": "b"}\n{"img": "a"}\n'))


def imdb(path: Path, items: list[Any]) -> Path:
    whole = np.empty(len(items), object)
    whole[:] = items
    np.save(path, whole, allow_pickle=True)
    return path


def test_an_imdb_of_pythia(tmp_path: Path) -> None:
    item = {
        "image_name": "COCO_val2014_000000000042",
        "question_id": 42,
        "question_str": "what is it?",
        "answers": ["dog"] * 7 + ["cat"] * 2 + ["cow"],
    }
    path = imdb(
        tmp_path / "imdb_minival2014.npy",
        [{"has_answer": True}, item, {**item, "question_id": 43, "answers": None, "valid_answers": []}],
    )
    source = open_source(path)
    assert source[0].answers == (("dog", 1.0), ("cat", 0.6), ("cow", 0.3)) and source[1].answers == ()
    assert (source[0].pictures[0].name, source.index.splits) == (DOG, {"val": 2})
    with pytest.raises(BadInput, match="entry 1: has no question or no picture"):
        open_source(imdb(tmp_path / "imdb_b.npy", [{"has_answer": True}, {"image_name": "a"}]))


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["npy", "pt", "old", "pkl"])
def test_hostile_pickles_are_refused_by_name_and_do_not_run(kind: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    if kind == "npy":
        path = imdb(tmp_path / "imdb_a.npy", [{}, {"image_name": Hostile(mark)}])
    elif kind == "pkl":
        path = put(tmp_path, "val2014_qla.json", OSCAR)
        (tmp_path / "trainval_ans2label.pkl").write_bytes(pickle.dumps(Hostile(mark)))
    else:
        path = tmp_path / "val_captions.pt"
        torch.save({1: Hostile(mark)}, path, _use_new_zipfile_serialization=kind == "pt")
    with pytest.raises(BadInput, match=r"refused: it wants \w+\.mkdir"):
        inspect(str(path))
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [False, True])
def test_captions_in_a_torch_file(zipped: bool, tmp_path: Path) -> None:
    said = {42: ["a dog", "two dogs"], 43: '["a cat"]'}
    torch.save(said, tmp_path / "val_captions.pt", _use_new_zipfile_serialization=zipped)
    source = open_source(tmp_path / "val_captions.pt")
    assert [(x.pictures[0].name, x.texts[0]) for x in source] == [("42", "a dog"), ("42", "two dogs"), ("43", "a cat")]


def test_multi30k_in_all_its_languages(tmp_path: Path) -> None:
    put(tmp_path, "val.en", "A dog.\nA cat.\n")
    put(tmp_path, "val.de", "Ein Hund.\nEine Katze.\n")
    put(tmp_path, "val.txt", "10.jpg#0\n11.jpg#0\n")
    source = open_source(tmp_path / "val.en")
    found = [(x.pictures[0].name, x.texts[0], x.language) for x in source]
    assert found == [
        ("10.jpg", "A dog.", "en"),
        ("10.jpg", "Ein Hund.", "de"),
        ("11.jpg", "A cat.", "en"),
        ("11.jpg", "Eine Katze.", "de"),
    ]
    put(tmp_path, "val.de", "Ein Hund.\n")
    with pytest.raises(BadInput, match=r"val\.de: 1 sentences for 2 pictures of val\.txt"):
        open_source(tmp_path / "val.en")


def test_vilberts_cache_of_answers_finds_its_questions(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    entries = [
        {"question_id": 42001, "image_id": 42, "labels": [1, 0], "scores": [1.0, 0.3]},
        {"question_id": 42002, "image_id": 42, "labels": [], "scores": []},
    ]
    path = cache / "val_target.pkl"
    path.write_bytes(pickle.dumps(entries, protocol=2))  # as Python 2 wrote it
    with pytest.raises(BadInput, match=r"val_target\.pkl: its answers are numbers: put trainval_label2ans\.pkl"):
        open_source(path)
    (cache / "trainval_label2ans.pkl").write_bytes(pickle.dumps(["yes", "no"]))
    with pytest.raises(
        BadInput,
        match=r"val_target\.pkl: holds answers only: put v2_OpenEnded_mscoco_val2014_questions\.json beside it",
    ):
        open_source(path)
    asked = [{"question_id": 42000 + i, "image_id": 42, "question": f"what is {i}?"} for i in (1, 2)]
    put(tmp_path, "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    source = open_source(path)
    assert [(x.key, x.texts[0], x.answers) for x in source] == [
        ("42001#0", "what is 1?", (("no", 1.0), ("yes", 0.3))),
        ("42002#0", "what is 2?", ()),
    ]
    assert source[0].pictures[0].name == "COCO_val2014_000000000042.jpg" and source.index.splits == {"val": 2}
    assert inspect(str(path)).samples == 2
    path.write_bytes(pickle.dumps([{**entries[0], "labels": [7, 0]}]))
    with pytest.raises(BadInput, match=r"val_target\.pkl, entry 0: label 7 is not among 2 answers"):
        open_source(path)
    path.write_bytes(b"cos\nsystem\n(S'touch /nowhere/pwned'\ntR.")
    with pytest.raises(BadInput, match=r"val_target\.pkl: .*(os|posix)\.system"):
        open_source(path)
