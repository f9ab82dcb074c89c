"""What one line of `pairs.jsonl` may say, checked field by field.

    {"key": "a1", "image": "images/a.jpg", "captions": ["a dog", {"text": "ein Hund", "language": "de"}],
     "width": 640, "height": 480, "boxes": [[10, 20, 200, 300]], "labels": ["dog"], "links": [[0, 2, 5, 0]],
     "tags": ["dog"], "false_captions": ["a cat"], "split": "train"}

Fields: key (text or number; the line number unless given), image (text; or a list for several pictures, and then
boxes, labels, tags, regions, width and height are lists with one entry a picture), caption or captions, question, answers
([[answer, score]], of the question if there is one, else of every caption), language ("en"), boxes (xyxy in absolute
pixels), labels (a name per box), regions (a .npz or .safetensors file, instead of boxes), links ([text number, first
character, end, box number] and, with several pictures, the picture number), tags (object names; the labels unless
given), false_captions, split ("train" unless given), width, height (pixels). Other fields are counted and not used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intarsia.batch import Link, Picture, Sample
from intarsia.data.formats.regions import to_fractions
from intarsia.errors import BadInput

Array = NDArray[Any]
SPLITS = ("train", "val", "test")
FIELDS = frozenset(
    {"key", "image", "caption", "captions", "question", "answers", "language", "boxes", "labels", "regions", "links"}
    | {"tags", "false_captions", "split", "width", "height"}
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture as a line names it."""

    name: str
    boxes: Array | None = None
    """(R, 4) float64, xyxy in pixels."""
    labels: tuple[str, ...] = ()
    regions: str = ""
    """File of its regions, or ""."""
    size: tuple[int, int] = (0, 0)
    """Pixels wide, high; 0 when the line does not say."""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One line, checked."""

    where: str
    """Names the line in errors."""
    key: str
    entries: tuple[Entry, ...]
    texts: tuple[tuple[str, str], ...]
    """Text and language: the captions, then the question; each is one Sample."""
    asks: bool = False
    """The last text is a question, and the answers are its own."""
    answers: tuple[tuple[str, float], ...] = ()
    links: tuple[Link, ...] = ()
    false_texts: tuple[str, ...] = ()
    split: str = "train"
    ignored: tuple[str, ...] = ()
    """Fields of the line that are not used."""

    def check_links(self, regions: Sequence[int]) -> None:
        """Checks the links against the pictures.

        Args:
            regions: how many regions each picture of `entries` has.

        Raises:
            BadInput: a link names a region that a picture does not have.
        """
        for link in self.links:
            if link.region >= regions[link.picture]:
                name, count = self.entries[link.picture].name, regions[link.picture]
                raise BadInput(f"{self.where}: a link names region {link.region} of {name}, which has {count}")

    def sample(self, number: int, pictures: tuple[Picture, ...]) -> Sample:
        """The Sample of one text.

        Args:
            number: which of `texts`.
            pictures: the pictures of `entries`.

        Raises:
            BadInput: a link names a region that a picture does not have.
        """
        text, language = self.texts[number]
        links = (
            tuple(Link(x.start, x.end, x.region, 0, x.picture) for x in self.links if x.text == number)
            if self.links
            else ()
        )
        if self.links:
            self.check_links([len(x.boxes) for x in pictures])
        tagged = zip(self.entries, pictures, strict=True)
        return Sample(
            key=f"{self.key}#{number}",
            texts=(text,),
            pictures=tuple(replace(picture, tags=entry.tags) if entry.tags else picture for entry, picture in tagged),
            links=links,
            also=() if self._asked(number) else tuple(self._others(number, language)),
            false_texts=self.false_texts,
            answers=self.answers if not self.asks or self._asked(number) else (),
            language=language,
        )

    def _asked(self, number: int) -> bool:
        return self.asks and number == len(self.texts) - 1

    def _others(self, number: int, language: str) -> Iterator[str]:
        """The other captions in a language; a question is none."""
        for i, (text, other) in enumerate(self.texts):
            if i != number and other == language and not self._asked(i) and text != self.texts[number][0]:
                yield text


def parse_json(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object of one line.

    Raises:
        BadInput: it is not JSON, or not an object.
    """
    try:
        record = json.loads(raw)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: not JSON: {error.msg} at character {error.pos + 1}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{where}: not UTF-8 at byte {error.start + 1}") from None
    if not isinstance(record, dict):
        raise BadInput(f"{where}: {_short(record)} is not an object")
    return record


def parse_line(record: Mapping[str, Any], where: str, key: str) -> Line:
    """Checks one record.

    Args:
        record: the JSON object.
        where: names the line in errors.
        key: its key unless the record gives one.

    Raises:
        BadInput: a field is missing, has a wrong type or a wrong value; names it.
    """
    given: Any = record.get("key", key)
    if not isinstance(given, str | int) or isinstance(given, bool) or given == "":
        raise BadInput(f"{where}: key is {_short(given)}, expected text or a whole number")
    texts = _texts(record, where)
    entries = _entries(record, where)
    split = record.get("split", "train")
    if split not in SPLITS:
        raise BadInput(f"{where}: split is {_short(split)}, expected train, val or test")
    return Line(
        where=where,
        key=str(given),
        entries=entries,
        texts=texts,
        asks="question" in record,
        answers=_answers(record["answers"], where) if "answers" in record else (),
        links=_links(record["links"], texts, entries, where) if "links" in record else (),
        false_texts=_names(record, "false_captions", where),
        split=split,
        ignored=tuple(record.keys() - FIELDS),
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _names(record: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    if field not in record:
        return ()
    values = record[field]
    if not isinstance(values, list | tuple) or not all(isinstance(x, str) and x.strip() for x in values):
        raise BadInput(f"{where}: {field} is {_short(values)}, expected a list of texts, none empty")
    return tuple(values)


def _texts(record: Mapping[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    if "caption" in record and "captions" in record:
        raise BadInput(f"{where}: has both caption and captions")
    captions = [record["caption"]] if "caption" in record else record.get("captions", [])
    if not isinstance(captions, list):
        raise BadInput(f"{where}: captions is {_short(captions)}, expected a list")
    given = [*captions, record["question"]] if "question" in record else captions
    if not given:
        raise BadInput(f"{where}: no caption and no question")
    texts = []
    for number, item in enumerate(given):
        what = "question" if number == len(captions) else f"caption {number}"
        text, language = (item.get("text"), item.get("language")) if isinstance(item, dict) else (item, None)
        language = record.get("language", "en") if language is None else language
        if not isinstance(text, str):
            raise BadInput(f"{where}: {what} is {_short(item)}, expected text")
        if not text.strip():
            raise BadInput(f"{where}: {what} is empty")
        if not isinstance(language, str) or not language:
            raise BadInput(f"{where}: language is {_short(language)}, expected text")
        texts.append((text, language))
    return tuple(texts)


def _entries(record: Mapping[str, Any], where: str) -> tuple[Entry, ...]:
    names = record.get("image")
    if names is None:
        raise BadInput(f"{where}: no image")
    if isinstance(names, str):
        return (_entry(names, record, where),)
    if not isinstance(names, list) or not names:
        raise BadInput(f"{where}: image is {_short(names)}, expected text or a list of texts")
    columns: dict[str, list[Any]] = {}
    for field in ("boxes", "labels", "tags", "regions", "width", "height"):
        if field in record:
            column = record[field]
            if not isinstance(column, list) or len(column) != len(names):
                raise BadInput(
                    f"{where}: {field} is {_short(column)}, expected a list of {len(names)}, one for each image"
                )
            columns[field] = column
    return tuple(
        _entry(name, {field: column[i] for field, column in columns.items()}, where) for i, name in enumerate(names)
    )


def _entry(name: Any, record: Mapping[str, Any], where: str) -> Entry:
    if not isinstance(name, str) or not name:
        raise BadInput(f"{where}: image is {_short(name)}, expected text")
    regions = record.get("regions") or ""
    if not isinstance(regions, str) or (regions and not regions.endswith((".npz", ".safetensors"))):
        raise BadInput(f"{where}: regions is {_short(regions)}, expected the name of a .npz or .safetensors file")
    size = (_pixels(record, "width", where), _pixels(record, "height", where))
    labels = _names(record, "labels", where)
    boxes = None
    if record.get("boxes") is not None:
        if regions:
            raise BadInput(f"{where}: has both boxes and regions; the boxes belong in {regions}")
        boxes = _boxes(record["boxes"], size, where)
        if labels and len(labels) != len(boxes):
            raise BadInput(f"{where}: {len(labels)} labels for {len(boxes)} boxes")
    elif labels and not regions:
        raise BadInput(f"{where}: {len(labels)} labels but no boxes")
    return Entry(name, boxes, labels, regions, size, _names(record, "tags", where) or labels)


def _pixels(record: Mapping[str, Any], field: str, where: str) -> int:
    value = record.get(field) or 0
    if value == 0:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadInput(f"{where}: {field} is {_short(value)}, expected a whole number of pixels")
    return value


def _boxes(values: Any, size: tuple[int, int], where: str) -> Array:
    if not isinstance(values, list):
        raise BadInput(f"{where}: boxes is {_short(values)}, expected a list of [x1, y1, x2, y2]")
    for number, box in enumerate(values):
        if (
            not isinstance(box, list)
            or len(box) != 4
            or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in box)
        ):
            raise BadInput(f"{where}: box {number} is {_short(box)}, expected [x1, y1, x2, y2] in pixels")
    boxes = np.array(values, dtype=np.float64).reshape(-1, 4)
    # a size not yet known is as large as the boxes need: the borders are checked when the picture is read
    known = [side or int(np.nan_to_num(boxes, posinf=0, neginf=0).max(initial=0)) + 1 for side in size]
    to_fractions(boxes, known[0], known[1], where)
    return boxes


def _answers(values: Any, where: str) -> tuple[tuple[str, float], ...]:
    if not isinstance(values, list | tuple):
        raise BadInput(f"{where}: answers is {_short(values)}, expected a list of [answer, score]")
    for item in values:
        whole = isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)
        if not whole or not isinstance(item[1], int | float) or isinstance(item[1], bool) or not 0 <= item[1] <= 1:
            raise BadInput(f"{where}: answer {_short(item)} is not [answer, score between 0 and 1]")
    return tuple((str(answer), float(score)) for answer, score in values)


def _links(values: Any, texts: Sequence[tuple[str, str]], entries: Sequence[Entry], where: str) -> tuple[Link, ...]:
    if not isinstance(values, list):
        raise BadInput(f"{where}: links is {_short(values)}, expected a list of [text, first character, end, box]")
    links = []
    for item in values:
        if (
            not isinstance(item, list)
            or len(item) not in (4, 5)
            or not all(isinstance(x, int) and not isinstance(x, bool) for x in item)
        ):
            raise BadInput(
                f"{where}: link {_short(item)} is not [text, first character, end, box] or that and a picture"
            )
        text, start, end, region, picture = item if len(item) == 5 else [*item, 0]
        if not 0 <= text < len(texts):
            raise BadInput(f"{where}: link {_short(item)} names text {text} of {len(texts)}")
        if not 0 <= start < end <= len(texts[text][0]):
            raise BadInput(
                f"{where}: link {_short(item)} spans characters {start} to {end} of a text of {len(texts[text][0])}"
            )
        if not 0 <= picture < len(entries):
            raise BadInput(f"{where}: link {_short(item)} names picture {picture} of {len(entries)}")
        boxes = entries[picture].boxes
        if region < 0 or (boxes is not None and region >= len(boxes)):
            raise BadInput(f"{where}: link {_short(item)} names box {region} of {'?' if boxes is None else len(boxes)}")
        links.append(Link(start, end, region, text, picture))
    return tuple(links)
