"""B2T2's training examples of VCR, `NAME-train-00000-of-00020`: TensorFlow's records with a choice each, the picture's bytes among them.

A choice is `[CLS] [IMAGE] question [SEP] answer [SEP]` in pieces, the rationale behind the answer where it was made so. After the pieces of an object's
class stands `[OBJ-k]`; `bbox_idx` says which row of `bbox_pos` (y, x, high, wide in pixels) is that object's. The choices of a question follow one another.
Source: google-research/language, b2t2/compute_vcr_features.py.
"""

from __future__ import annotations

import io
import re
from array import array
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from intarsia.batch import Picture
from intarsia.data.decode import BROKEN, decode_image
from intarsia.data.formats.index import LineSource, OnError, build_index
from intarsia.data.formats.lines import Line
from intarsia.data.formats.pairs import empty_picture
from intarsia.data.formats.question_lines import split_of
from intarsia.data.formats.tfrecord import Records, is_records, parse_example
from intarsia.errors import BadInput

SHARD_OF = re.compile(r"-\d+-of-\d+$")
OBJECT = re.compile(r"\[OBJ-(\d+)\]")
SPECIAL = ("[CLS]", "[IMAGE]")
FIELDS = ("img_id", "annot_id", "choice_id", "input_ids", "label", "bbox_pos", "bbox_idx", "image")
Example = dict[str, Any]


def is_b2t2(path: Path) -> bool:
    """Whether a file is of such records, by its first."""
    if not path.is_file() or not is_records(path):
        return False
    records = Records(path)
    return "bbox_idx" in parse_example(records[0], f"{path}, record 0")


def b2t2_files(folder: Path) -> list[Path]:
    """The files of such records in a folder, by their names."""
    found = sorted(x for x in folder.glob("*-of-*") if SHARD_OF.search(x.name))
    return found if found and is_b2t2(found[0]) else []


class B2T2Examples(LineSource):
    """Such files as a data set of questions with their right answers; the pictures have their pixels and the boxes of the objects that are spoken of.

    Of an object in the question, the word before its `[OBJ-k]` is linked to its box. In test sets no answer is right, and none is given.

    Args:
        path: a file, or a folder of them; the split is in a file's name.
        split: "train", "val" or "test"; None = all.
        on_error: "stop" raises at the first question that cannot be used, "skip" leaves it out and keeps the message.

    Raises:
        BadInput: not such files, no `vocab.txt` beside them, or a question that cannot be used.
    """

    def __init__(self, path: str | Path, split: str | None = None, on_error: OnError = "stop") -> None:
        self.path = Path(path)
        names = b2t2_files(self.path) if self.path.is_dir() else [self.path]
        self.files = [Records(x) for x in names]
        self.pieces = self._vocab()
        self._starts = [self._questions(file) for file in self.files]
        self._ends = np.cumsum([0] + [len(x) - 1 for x in self._starts]).tolist()
        self.index, _ = build_index(self._ends[-1], self.parse, split, on_error)

    def _vocab(self) -> list[str]:
        folder = self.files[0].path.parent
        found = next((x / "vocab.txt" for x in (folder, folder.parent) if (x / "vocab.txt").is_file()), None)
        if found is None:
            raise BadInput(
                f"{self.path}: its texts are stored as pieces: put the vocab.txt they were cut by into {folder}"
            )
        return found.read_text(encoding="utf-8").removesuffix("\n").split("\n")

    def _questions(self, file: Records) -> Any:
        """(Q + 1) int64: the first record of each question, and the number of records."""
        starts, last = array("q"), None
        for number in range(len(file)):
            example = parse_example(file.unchecked(number), f"{file.path}, record {number}")
            question = tuple(np.asarray(example.get(x, ())).tolist() for x in ("img_id", "annot_id"))
            if question != last:
                starts.append(number)
            last = question
        return np.array([*starts, len(file)], np.int64)

    def _place(self, number: int) -> tuple[Records, range]:
        """The file and the records of a question."""
        at = int(np.searchsorted(self._ends, number, side="right")) - 1
        starts, local = self._starts[at], number - self._ends[at]
        return self.files[at], range(int(starts[local]), int(starts[local + 1]))

    def _choice(self, file: Records, number: int) -> Example:
        where = f"{file.path}, record {number}"
        example: Example = parse_example(file[number], where)
        missing = [x for x in FIELDS if not len(example.get(x, ()))]
        if missing:
            raise BadInput(f"{where}: has no {missing[0]}")
        if len(example["bbox_pos"]) % 4 or len(example["bbox_idx"]) != len(example["input_ids"]):
            raise BadInput(f"{where}: {len(example['bbox_pos'])} numbers of boxes, {len(example['bbox_idx'])} of words")
        if not 0 <= example["input_ids"].min() <= example["input_ids"].max() < len(self.pieces):
            raise BadInput(
                f"{where}: input_ids {example['input_ids'][:9].tolist()}.. are not numbers of {len(self.pieces)} pieces"
            )
        if example["bbox_idx"].max() >= len(example["bbox_pos"]) // 4:
            raise BadInput(f"{where}: bbox_idx {int(example['bbox_idx'].max())}, {len(example['bbox_pos']) // 4} boxes")
        return example

    def read(self, number: int) -> tuple[dict[str, Any], str, str]:
        """A question as a line."""
        file, records = self._place(number)
        choices = [self._choice(file, x) for x in records]
        where = f"{file.path}, record {records[0]}"
        boxes: dict[int, list[int]] = {}
        labels: dict[int, str] = {}
        for choice in choices:
            boxes |= self._objects(choice, labels)
        order = sorted(boxes)
        question, spoken = self._said(choices[0], 0)
        record: dict[str, Any] = {
            "image": self._name(file, choices[0]),
            "question": question,
            "split": split_of(file.path),
        }
        record |= dict(zip(("width", "height"), self._size(choices[0], where), strict=True))
        if order:
            record |= {"boxes": [boxes[k] for k in order], "labels": [labels[k] for k in order]}
            record["links"] = [[0, start, end, order.index(k)] for k, start, end in spoken if k in boxes]
        right = [self._said(x, 1)[0] for x in choices if int(x["label"][0]) == 1]
        return record | ({"answers": [[right[0], 1.0]]} if right else {}), where, record["image"]

    def picture_of(self, line: Line, slot: int, number: int) -> Picture:
        """The picture of a question, decoded from the record when its pixels are asked for."""
        entry = line.entries[slot]
        found = empty_picture(line, slot, entry.size, "")
        return replace(found, pixels=partial(self._pixels, int(self.index.lines[number])))

    def _pixels(self, number: int) -> Any:
        file, records = self._place(number)
        return decode_image(self._choice(file, records[0])["image"][0], f"{file.path}, record {records[0]}")

    def _name(self, file: Records, choice: Example) -> str:
        """Each question's picture has a name of its own, as each speaks of other objects."""
        return f"{split_of(file.path)}-{int(choice['img_id'][0])}-{int(choice['annot_id'][0])}"

    def _size(self, choice: Example, where: str) -> tuple[int, int]:
        try:
            with Image.open(io.BytesIO(choice["image"][0])) as opened:
                return opened.size
        except BROKEN as error:
            raise BadInput(f"{where}: its image is no picture: {error}") from None

    def _objects(self, choice: Example, labels: dict[int, str]) -> dict[int, list[int]]:
        """The boxes of a choice's objects, xyxy in pixels, by k; puts the words for them into `labels`."""
        words = [self.pieces[x] for x in choice["input_ids"].tolist()]
        rows = choice["bbox_pos"].reshape(-1, 4).tolist()
        found: dict[int, list[int]] = {}
        for place, row in enumerate(choice["bbox_idx"].tolist()):
            named = OBJECT.fullmatch(words[place])
            if row >= 0 and named is not None:
                y, x, high, wide = rows[row]
                found[int(named[1])] = [x, y, x + wide, y + high]
                labels[int(named[1])] = _joined(words[:place]).rsplit(" ", 1)[-1]
        return found

    def _said(self, choice: Example, part: int) -> tuple[str, list[tuple[int, int, int]]]:
        """The question (0) or what follows it (1) as text without `[OBJ-k]`, and of each object: k, where the word for it begins and ends."""
        words = [self.pieces[x] for x in choice["input_ids"].tolist()]
        ends = [i for i, x in enumerate(words) if x == "[SEP]"]
        first, last = (0, ends[0]) if part == 0 and ends else (ends[0] + 1, ends[1]) if len(ends) > 1 else (0, 0)
        kept: list[str] = []
        spoken: list[tuple[int, int, int]] = []
        for word in words[first:last]:
            named = OBJECT.fullmatch(word)
            if named is not None:
                text = _joined(kept)
                spoken.append((int(named[1]), text.rfind(" ") + 1, len(text)))
            elif word not in SPECIAL:
                kept.append(word)
        return _joined(kept), [x for x in spoken if x[1] < x[2]]


def _joined(words: list[str]) -> str:
    """Pieces as text."""
    return " ".join(words).replace(" ##", "")
