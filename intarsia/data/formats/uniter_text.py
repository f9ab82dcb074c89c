"""UNITER's text databases (`txt_db/NAME.db`): an LMDB of lz4-compressed msgpack dicts, beside it `meta.json` and `id2len.json`.

Every example has `input_ids` (pieces, without [CLS] and [SEP]) and `img_fname` (one name, two of NLVR2, ground-truth and detected of VCR). Texts are
those stored beside the pieces (`sentence`, `sent`, `question`, ..); where there are none, the pieces are read with the `vocab.txt` of the database's
tokenizer, put into its folder or the one above. Labels of VQA are numbers: their answers are read from an `ans2label.json` found likewise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intarsia.batch import Picture
from intarsia.data.formats.corpus_lines import SIDES, read_json
from intarsia.data.formats.index import LineSource, OnError, build_index
from intarsia.data.formats.lines import SPLITS, Line
from intarsia.data.formats.lmdb_file import LmdbFile
from intarsia.data.formats.pairs import empty_picture
from intarsia.data.formats.question_lines import answer_table, named
from intarsia.errors import BadInput, needs_extra

META, LENGTHS = "meta.json", ("id2len.json", "id2len_qar.json", "id2len_qa.json")
TEXTS = ("sentence", "sent", "question", "caption", "hypothesis", "text")
ENTAILMENT = ("contradiction", "entailment", "neutral")
"""SNLI-VE's labels in UNITER's order."""
USED = {
    *TEXTS,
    "input_ids",
    "img_fname",
    "target",
    "bbox",
    "ann_id",
    "image_id",
    "sent_id",
    "ref_id",
    "qa_target",
    "input_ids_as",
}


def is_text_db(path: Path) -> bool:
    """Whether a folder is such a database."""
    return (path / "data.mdb").is_file() and (path / META).is_file()


class UniterText(LineSource):
    """A text database as a data set of captions or questions whose pictures have names only; `data convert --pairs` finds their regions.

    NLVR2's answer is "True" or "False"; SNLI-VE's is known by the folder's name, which begins with "ve"; VCR's question has its right answer; a
    referring expression is linked to its box. The split is the word in the folder's name, else "train".

    Args:
        path: the folder.
        split: "train", "val" or "test"; None = all.
        on_error: "stop" raises at the first example that cannot be used, "skip" leaves it out and keeps the message.

    Raises:
        BadInput: not such a database, or an example that cannot be used.
    """

    def __init__(self, path: str | Path, split: str | None = None, on_error: OnError = "stop") -> None:
        self.path = Path(path)
        self.file = LmdbFile(self.path)
        self.meta = read_json(self.path / META)
        lengths = next((self.path / x for x in LENGTHS if (self.path / x).is_file()), None)
        listed = [x.decode() for x in self.file.listed()] if lengths is None else list(read_json(lengths))
        self.ids: list[str] = listed
        words = self.path.stem.lower().replace("-", "_").split("_")
        self.entails = words[0] == "ve"
        self.split = next((x for x in (SIDES.get(word, word) for word in words) if x in SPLITS), "train")
        self.pieces = self._pieces()
        self.answers = answer_table(self.path)
        self.boxes = _boxes(self.path)
        self.index, _ = build_index(len(self.ids), self.parse, split, on_error)

    def _beside(self, name: str) -> Path | None:
        return next((x / name for x in (self.path, self.path.parent) if (x / name).is_file()), None)

    def _pieces(self) -> list[str]:
        path = self._beside("vocab.txt")
        pieces = path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if path else []
        expected = self.meta.get("v_range", [0, len(pieces)])[1] if isinstance(self.meta, dict) else len(pieces)
        if pieces and len(pieces) != expected:
            raise BadInput(f"{path}: {len(pieces)} pieces, {self.path / META} says {expected}")
        return pieces

    def example(self, number: int) -> tuple[dict[str, Any], str]:
        """An example as stored, and its name in errors.

        Raises:
            BadInput: not there, or not a msgpack dict compressed by lz4.
        """
        key = self.ids[number]
        where = f"{self.path}, example {key}"
        value = self.file.get(key.encode())
        if value is None:
            raise BadInput(f"{where}: listed, but not there")
        return unpack_example(value, where), where

    def read(self, number: int) -> tuple[dict[str, Any], str, str]:
        """An example as a line."""
        example, where = self.example(number)
        names = example.get("img_fname")
        if not isinstance(names, str | list | tuple):
            raise BadInput(f"{where}: img_fname is {names!r}, expected a name or two")
        pictures = [names] if isinstance(names, str) else list(names)
        # ground truth and detections of VCR are regions of one picture
        record: dict[str, Any] = {
            "image": pictures if len(pictures) > 1 and "input_ids_as" not in example else pictures[-1]
        }
        record |= {"split": self.split}
        text = self._text(example, where)
        record |= self._asked(example, text, where)
        record |= self._meant(example, text)
        left = example.keys() - USED
        if "answers" not in record and "target" in example:
            left = left | {"target"}
        return record | dict.fromkeys((f".{x}" for x in sorted(left)), ""), where, self.ids[number]

    def picture_of(self, line: Line, slot: int, number: int) -> Picture:
        """A picture: its name, and the boxes of a referring expression's."""
        return empty_picture(line, slot, line.entries[slot].size, "")

    def _text(self, example: dict[str, Any], where: str) -> str:
        stored = next((example[x] for x in TEXTS if isinstance(example.get(x), str)), None)
        return stored if stored is not None else self._joined(example.get("input_ids"), where)

    def _joined(self, ids: Any, where: str) -> str:
        """Pieces as text; cut again, it gives the same pieces."""
        if not self.pieces:
            tokenizer = self.meta.get("tokenizer") or self.meta.get("bert") or "its tokenizer"
            raise BadInput(f"{where}: its text is stored as pieces of {tokenizer}: put that vocab.txt into {self.path}")
        if not isinstance(ids, list) or not all(isinstance(x, int) and 0 <= x < len(self.pieces) for x in ids):
            raise BadInput(f"{where}: input_ids {str(ids)[:60]} are not numbers of {len(self.pieces)} pieces")
        return " ".join(self.pieces[x] for x in ids).replace(" ##", "")

    def _asked(self, example: dict[str, Any], text: str, where: str) -> dict[str, Any]:
        target = example.get("target")
        if "input_ids_as" in example:
            right, choices = example.get("qa_target", -1), example["input_ids_as"]
            if not isinstance(right, int) or not -1 <= right < len(choices):
                raise BadInput(f"{where}: qa_target is {right!r}, expected the number of a choice, or -1")
            return {
                "question": text,
                **({"answers": [[self._joined(choices[right], where), 1.0]]} if right >= 0 else {}),
            }
        if isinstance(target, dict):
            table = dict(enumerate(ENTAILMENT)) if self.entails else self.answers
            found = named(target.get("labels"), target.get("scores"), table, where) if table else []
            answers = {"answers": found} if found else {}
            return {"caption" if self.entails else "question": text} | answers
        if isinstance(target, int) and not isinstance(target, bool) and target in (0, 1):
            return {"caption": text, "answers": [[str(bool(target)), 1.0]]}
        return {"caption": text}

    def _meant(self, example: dict[str, Any], text: str) -> dict[str, Any]:
        """The boxes of a referring expression's picture, and which of them it means."""
        about = self.boxes.get(example.get("image_id", -1)) if "ann_id" in example else None
        if about is None:
            return {}
        (width, height), boxes = about
        links = [[0, 0, len(text), list(boxes).index(example["ann_id"])]] if example["ann_id"] in boxes else []
        return {"width": width, "height": height, "boxes": list(boxes.values()), "links": links}


def _boxes(folder: Path) -> dict[int, tuple[tuple[int, int], dict[int, list[float]]]]:
    """By picture: its size, and by annotation xyxy in pixels, in the order in which UNITER stores their regions."""
    images, annotations = folder / "images.json", folder / "annotations.json"
    if not images.is_file() or not annotations.is_file():
        return {}
    try:
        box = {x["id"]: x["bbox"] for x in read_json(annotations)}
        corners = {key: [x, y, x + w, y + h] for key, (x, y, w, h) in box.items()}
        return {
            x["id"]: ((x["width"], x["height"]), {i: corners[i] for i in x["ann_ids"] if i in corners})
            for x in read_json(images)
        }
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{images}: does not fit {annotations.name}: {error!r}") from None


def unpack_example(value: bytes, where: str) -> dict[str, Any]:
    """A value of such a database.

    Raises:
        BadInput: not a msgpack dict compressed by lz4, or a package is missing.
    """
    try:
        import lz4.frame
        import msgpack
    except ImportError as error:
        raise needs_extra("formats", error.name or "lz4") from None
    try:
        example = msgpack.unpackb(lz4.frame.decompress(value), raw=False, strict_map_key=False)
        if not isinstance(example, dict):
            raise ValueError(f"holds a {type(example).__name__}")
        return example
    except (RuntimeError, ValueError, TypeError, EOFError, msgpack.UnpackException) as error:
        raise BadInput(f"{where}: not a msgpack dict compressed by lz4: {error}") from None


def pack_example(example: dict[str, Any]) -> bytes:
    """An example as a value of such a database."""
    try:
        import lz4.frame
        import msgpack
    except ImportError as error:
        raise needs_extra("formats", error.name or "lz4") from None
    return bytes(lz4.frame.compress(msgpack.packb(example, use_bin_type=True)))
