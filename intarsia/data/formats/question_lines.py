"""Questions, sentences and their labels in the files of LXMERT, Oscar, Pythia and mmf, ViLBERT and others, as the lines of `pairs.jsonl`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.data.formats.corpus_lines import SIDES, read_json, text_lines
from intarsia.data.formats.records import Record
from intarsia.data.formats.torch_file import read_torch
from intarsia.errors import BadInput
from intarsia.weights.pickles import read_object_npy, read_pickle

TABLES = (
    *("trainval_label2ans.json", "trainval_ans2label.json", "ans2label.json"),
    *("trainval_label2ans.pkl", "trainval_ans2label.pkl"),
)
"""Files that number the answers."""
OSCAR = frozenset({"q", "o", "an", "s", "img_id", "q_id", "id", "label"})
"""Fields of Oscar's questions that are read; others are counted."""
LANGUAGES = ("en", "de", "fr", "cs")


def split_of(path: Path) -> str:
    """What a file's name says of its split; "train" where it says nothing. LXMERT's nominival is training, its minival validation."""
    words = [SIDES.get(x, x) for x in re.findall(r"[a-z]+", path.stem.lower())]
    for word in words:
        if word in ("train", "nominival"):
            return "train"
        if word in ("val", "minival", "valid", "trainval"):
            return "train" if word == "trainval" else "val"
        if word in ("test", "testdev"):
            return "test"
    return "train"


def answer_table(folder: Path) -> dict[int, str]:
    """The answers by number, from a table beside, or in `cache` beside, a file of questions; empty where there is none."""
    places = (where / name for where in (folder, folder / "cache", folder.parent) for name in TABLES)
    path = next((x for x in places if x.is_file()), None)
    return {} if path is None else read_numbers(path)


def read_numbers(path: Path) -> dict[int, str]:
    """The answers by number of a table: a list of them, or a dict of numbers by answer, as JSON or pickled.

    Raises:
        BadInput: it is neither.
    """
    table = read_json(path) if path.suffix == ".json" else read_pickle(path)
    if isinstance(table, list) and all(isinstance(x, str) for x in table):
        return dict(enumerate(table))
    if isinstance(table, dict) and all(isinstance(x, int) for x in table.values()):
        return {number: str(answer) for answer, number in table.items()}
    raise BadInput(f"{path}: neither a list of answers nor numbers by answer")


def from_list(path: Path, one: Callable[[int, Any], Iterator[Record]]) -> Iterator[Record]:
    """The lines that each entry of a JSON list gives.

    Raises:
        BadInput: no JSON list, or an entry that cannot be used (named by its number).
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise BadInput(f"{path}: not a JSON list")
    for number, item in enumerate(content):
        try:
            made = list(one(number, item))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"{path}, entry {number}: {error!r}") from None
        yield from made


def named(labels: Any, scores: Any, table: Mapping[int, str], where: str) -> list[list[Any]]:
    """Labels, numbers of a table or answers themselves, with their scores.

    Raises:
        BadInput: as many labels as scores are not there, or a number is not in the table.
    """
    if not isinstance(labels, list) or not isinstance(scores, list) or len(labels) != len(scores):
        raise BadInput(f"{where}: {str(labels)[:40]} and {str(scores)[:40]} are not labels and their scores")
    strange = next((x for x in labels if not isinstance(x, str) and x not in table), None)
    if strange is not None:
        raise BadInput(f"{where}: label {strange!r} is not among {len(table)} answers")
    return [[x if isinstance(x, str) else table[x], float(y)] for x, y in zip(labels, scores, strict=True)]


# --------------------------------------------------------------------------------------------------------------- LXMERT


def lxmert_corpus(path: Path) -> Iterator[Record]:
    """LXMERT's pre-training files: of a picture, captions and questions by data set; a line the captions of one, a line a question."""
    split = split_of(path)

    def one(_: int, item: Any) -> Iterator[Record]:
        image, about = item["img_id"], {"image": f"{item['img_id']}.jpg", "split": split}
        for name, sentences in item["sentf"].items():
            labels = item["labelf"].get(name)
            if labels is None:
                yield {"key": f"{image}_{name}", "captions": [x.strip() for x in sentences], **about}
                continue
            for number, (text, label) in enumerate(zip(sentences, labels, strict=True)):
                yield {"key": f"{image}_{name}_{number:03d}", **_question(text, label), **about}

    return from_list(path, one)


def _question(text: str, label: Mapping[str, float]) -> Record:
    return {"question": text.strip(), **({"answers": [[x, float(y)] for x, y in label.items()]} if label else {})}


def lxmert_tasks(path: Path) -> Iterator[Record]:
    """LXMERT's files of VQA and GQA (a question, its answers' scores) and of NLVR2 (two pictures, 1 = true)."""
    split = split_of(path)

    def one(_: int, item: Any) -> Iterator[Record]:
        if "img0" in item:
            truth = {} if item.get("label") is None else {"answers": [[str(bool(int(item["label"]))), 1.0]]}
            about = {"image": [f"{item[x]}.png" for x in ("img0", "img1")], "split": split, **truth}
            yield {"key": str(item.get("uid", item["identifier"])), "caption": item["sent"].strip(), **about}
        else:
            asked = _question(item["sent"], item.get("label") or {})
            yield {"key": str(item["question_id"]), "image": f"{item['img_id']}.jpg", **asked, "split": split}

    return from_list(path, one)


# ---------------------------------------------------------------------------------------------------------------- Oscar


def oscar_questions(path: Path) -> Iterator[Record]:
    """Oscar's VQA and GQA (q, o, an, s, img_id, q_id) and NLVR2, whose pictures and objects are "left" and "right". Objects become tags.

    Answers are numbers of a table beside the file; without one they are not taken, and counted.
    """
    table, split = answer_table(path.parent), split_of(path)

    def one(number: int, item: Any) -> Iterator[Record]:
        record: Record = {"key": str(item.get("q_id", item.get("id", number))), "split": split}
        record |= _pair(item) if isinstance(item["img_id"], dict) else _asked(item, table, f"{path}, entry {number}")
        yield record | {f".{x}": "" for x in item if x not in OSCAR}

    return from_list(path, one)


def _pair(item: Any) -> Record:
    sides = ("left", "right")
    objects = item["o"] if isinstance(item.get("o"), dict) else {}
    record: Record = {"image": [str(item["img_id"][x]) for x in sides], "caption": item["q"].strip()}
    truth = {} if item.get("label") is None else {"answers": [[str(bool(int(item["label"]))), 1.0]]}
    return record | {"tags": [_tags(objects.get(x, "")) for x in sides]} | truth


def _asked(item: Any, table: Mapping[int, str], where: str) -> Record:
    record: Record = {"image": str(item["img_id"]), "question": item["q"].strip(), "tags": _tags(item.get("o", ""))}
    labels = item.get("an")
    if labels and (table or isinstance(labels[0], str)):
        record["answers"] = named(labels, item["s"], table, where)
    elif labels:
        record[".an"] = ""
    return record


def _tags(objects: str) -> list[str]:
    return [x.strip() for x in objects.split(";") if x.strip()]


def captions_file(path: Path) -> Iterator[Record]:
    """Oscar's `SPLIT_captions.pt` of retrieval: a dict of captions, or of JSON lists of them, by picture."""
    content, split = read_torch(path), split_of(path)
    for image, said in content.items():
        try:
            captions = json.loads(said) if isinstance(said, str) else said
        except ValueError:
            raise BadInput(f"{path}, picture {image}: {said[:60]!r} is not a JSON list of captions") from None
        yield {"key": str(image), "image": str(image), "captions": [str(x).strip() for x in captions], "split": split}


# ------------------------------------------------------------------------------------------------------------ Pythia, mmf


def imdb(path: Path) -> Iterator[Record]:
    """Pythia's imdb of VQA, an .npy of dicts behind a head: a question, the answers of ten people (0.3 a person, 1 from four on)."""
    content = read_object_npy(path)
    for number, item in enumerate(content):
        if not isinstance(item, dict) or (number == 0 and "image_name" not in item and "image_id" not in item):
            continue
        where = f"{path}, entry {number}"
        text = item.get("question_str") or " ".join(item.get("question_tokens") or ())
        name = item.get("image_name", item.get("image_id"))
        if not text or name is None:
            raise BadInput(f"{where}: has no question or no picture (has: {', '.join(map(str, item))})")
        given = item.get("answers") or item.get("valid_answers") or ()
        shares = [[str(x), min(0.3 * count, 1.0)] for x, count in Counter(given).items()]
        key = str(item.get("question_id", number))
        record = {"key": key, "image": f"{name}.jpg", "question": str(text), "split": split_of(path)}
        yield record | ({"answers": shares} if shares else {})


# ------------------------------------------------------------------------------------------------------- ViLBERT's VQA


def targets(path: Path) -> Iterator[Record]:
    """ViLBERT's cache of VQA's answers, `{train,val}_target.pkl`: dicts of question_id, image_id, labels and scores.

    The questions themselves are taken from VQA's file beside it or in a folder above, `v2_OpenEnded_mscoco_train2014_questions.json`; the answers from
    `trainval_label2ans.pkl` beside it.

    Raises:
        BadInput: one of the two is missing, or an entry cannot be used.
    """
    entries, split = read_pickle(path), split_of(path)
    if not isinstance(entries, list):
        raise BadInput(f"{path}: holds a {type(entries).__name__}, expected a list of answers to questions")
    table = answer_table(path.parent)
    if not table:
        raise BadInput(f"{path}: its answers are numbers: put {TABLES[3]} beside it")
    wanted = f"v2_OpenEnded_mscoco_{split}2014_questions.json"
    asked = next((x / wanted for x in (path.parent, *path.resolve().parents[1:3]) if (x / wanted).is_file()), None)
    if asked is None:
        raise BadInput(f"{path}: holds answers only: put {wanted} beside it")
    texts = {x["question_id"]: x["question"] for x in read_json(asked)["questions"]}
    for number, item in enumerate(entries):
        where = f"{path}, entry {number}"
        try:
            question, image = int(item["question_id"]), int(item["image_id"])
            labels, scores = (
                [y.item() if isinstance(y, np.generic) else y for y in item[x]] for x in ("labels", "scores")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{where}: {error!r}") from None
        if question not in texts:
            raise BadInput(f"{where}: question {question} is not in {asked}")
        record = {
            "key": str(question),
            "image": f"COCO_{split}2014_{image:012d}.jpg",
            "question": texts[question].strip(),
        }
        answers = named(labels, scores, table, where)
        yield record | {"split": split} | ({"answers": answers} if answers else {})


# ------------------------------------------------------------------------------------------------------- lines of JSON


def sentences(path: Path) -> Iterator[Record]:
    """ViLBERT's lines of retrieval: a picture by `img_path` or `id`, and its `sentences`."""
    split = split_of(path)
    for number, line in text_lines(path):
        item = _object(line, path, number)
        image = str(item.get("img_path", item.get("id", "")))
        said = item.get("sentences")
        if not image or not isinstance(said, list):
            raise BadInput(f"{path}, line {number}: has no picture or no list of sentences")
        name = image if Path(image).suffix else f"{image}.jpg"
        yield {"key": str(number), "image": name, "captions": [str(x).strip() for x in said], "split": split}


def memes(path: Path) -> Iterator[Record]:
    """Hateful Memes: the text of a meme, its label "1" (hateful) or "0" where it is published."""
    split = split_of(path)
    for number, line in text_lines(path):
        item = _object(line, path, number)
        if not isinstance(item.get("img"), str) or not isinstance(item.get("text"), str):
            raise BadInput(f"{path}, line {number}: has no img or no text")
        record = {
            "key": str(item.get("id", number)),
            "image": item["img"],
            "caption": item["text"].strip(),
            "split": split,
        }
        yield record | ({"answers": [[str(item["label"]), 1.0]]} if item.get("label") is not None else {})


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        item = json.loads(line)
        if isinstance(item, dict):
            return item
    except ValueError:
        pass
    raise BadInput(f"{path}, line {number}: {line[:60]!r} is not a JSON object")


# ----------------------------------------------------------------------------------------------------------- Multi30k


def picture_list(path: Path) -> Path | None:
    """Multi30k's list of pictures of a file of sentences such as `train.en`."""
    names = (
        f"{path.stem}.txt",
        f"{path.stem}_images.txt",
        f"image_splits/{path.stem}.txt",
        f"image_splits/{path.stem}_images.txt",
    )
    return next((x for name in names if (x := path.parent / name).is_file()), None)


def multi30k(path: Path) -> Iterator[Record]:
    """Multi30k: sentences of a language a file, aligned by line with one another and with a list of pictures; all languages at hand are taken."""
    listed = picture_list(path)
    assert listed is not None, "recognised by its list of pictures"
    names = [x.strip() for _, x in text_lines(listed)]
    texts = {
        x: [y.strip() for _, y in text_lines(path.with_suffix(f".{x}"))]
        for x in LANGUAGES
        if path.with_suffix(f".{x}").is_file()
    }
    for language, lines in texts.items():
        if len(lines) != len(names):
            raise BadInput(
                f"{path.with_suffix(f'.{language}')}: {len(lines)} sentences for {len(names)} pictures of {listed.name}"
            )
    for i, name in enumerate(names):
        image = name.split("#")[0]
        said = [{"text": lines[i], "language": language} for language, lines in texts.items()]
        yield {
            "key": str(i),
            "image": image if Path(image).suffix else f"{image}.jpg",
            "captions": said,
            "split": split_of(path),
        }
