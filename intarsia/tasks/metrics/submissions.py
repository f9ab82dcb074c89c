"""Files for the benchmarks' servers: written, and read again with every rule checked. A file read again scores what was scored in memory.

vqa       JSON, [{"question_id": int, "answer": str}], every question of the split, also for test-dev
gqa       JSON, [{"questionId": str, "prediction": str}]
captions  JSON, [{"image_id": int, "caption": str}], COCO and NoCaps
vcr       CSV with a head, 4 probabilities of answers and 4 of rationales beside each answer
nlvr2     CSV without a head, `identifier,True`
muge      JSON lines, {"text_id": int, "image_ids": [10 ints]}; of captions {"image_id": str, "text": str}
visual7w  JSON, [{"qa_id": int, "candidates": [{"answer": int}]}], what the toolkit scores
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intarsia.errors import BadInput

VCR_COLUMNS = (
    "annot_id",
    *(f"answer_{i}" for i in range(4)),
    *(f"rationale_conditioned_on_a{i}_{j}" for i in range(4) for j in range(4)),
)


def write_vqa(path: Path, answers: Mapping[int, str]) -> None:
    """Answers by question id."""
    _write_json(path, [{"question_id": int(key), "answer": str(x)} for key, x in answers.items()])


def read_vqa(path: Path) -> dict[int, str]:
    """Answers by question id."""
    return _read_json(path, "question_id", "answer", int, str)


def write_gqa(path: Path, answers: Mapping[str, str]) -> None:
    """Answers by question id."""
    _write_json(path, [{"questionId": str(key), "prediction": str(x)} for key, x in answers.items()])


def read_gqa(path: Path) -> dict[str, str]:
    """Answers by question id."""
    return _read_json(path, "questionId", "prediction", str, str)


def write_captions(path: Path, captions: Mapping[int, str], numbered: bool = False) -> None:
    """Captions by image id; numbered = with a running "id", as Oscar's NoCaps files."""
    rows = [{"image_id": int(key), "caption": str(x)} for key, x in captions.items()]
    _write_json(path, [{**x, "id": i} for i, x in enumerate(rows)] if numbered else rows)


def read_captions(path: Path) -> dict[int, str]:
    """Captions by image id."""
    return _read_json(path, "image_id", "caption", int, str)


def write_vcr(path: Path, answers: Mapping[str, npt.ArrayLike], rationales: Mapping[str, npt.ArrayLike]) -> None:
    """VCR's leaderboard file.

    Args:
        path: where to.
        answers: by annot_id, (4) probabilities of the answers.
        rationales: by annot_id, (4, 4) probabilities of the rationales, a row beside each answer.

    Raises:
        BadInput: the ids differ, or shapes do not fit.
    """
    if answers.keys() != rationales.keys():
        raise BadInput(
            f"{path}: {len(answers)} questions with answers, {len(rationales)} with rationales, not the same"
        )
    rows = []
    for key, given in answers.items():
        first, second = np.asarray(given, np.float64), np.asarray(rationales[key], np.float64)
        if first.shape != (4,) or second.shape != (4, 4):
            raise BadInput(f"{path}: {key}: answers {first.shape} and rationales {second.shape}, not (4,) and (4, 4)")
        rows.append([key, *map(repr, map(float, [*first, *second.ravel()]))])
    _write_csv(path, [VCR_COLUMNS, *rows])


def read_vcr(path: Path) -> tuple[dict[str, npt.NDArray[np.float64]], dict[str, npt.NDArray[np.float64]]]:
    """What `write_vcr` took.

    Raises:
        BadInput: the head is another, a row has another length, a number is none, or an id comes twice.
    """
    head, *rows = _read_csv(path) or [[]]
    if tuple(head) != VCR_COLUMNS:
        raise BadInput(f"{path}: the head is not annot_id, 4 answers, 16 rationales: {','.join(head)[:60]!r}")
    answers, rationales = {}, {}
    for number, (key, *cells) in enumerate(rows, start=2):
        try:
            numbers = np.array(cells, np.float64)
        except ValueError as error:
            raise BadInput(f"{path}: line {number}: {error}") from None
        if numbers.shape != (20,) or key in answers:
            raise BadInput(f"{path}: line {number}: {key!r} has {len(cells)} numbers of 20, or comes twice")
        answers[key], rationales[key] = numbers[:4], numbers[4:].reshape(4, 4)
    return answers, rationales


def write_nlvr2(path: Path, truths: Mapping[str, bool]) -> None:
    """Whether each example is true, by identifier."""
    _write_csv(path, [[key, str(bool(x))] for key, x in truths.items()])


def read_nlvr2(path: Path) -> dict[str, str]:
    """Predictions as they stand, by identifier; of an identifier that comes twice the last line counts, as in the official script.

    Raises:
        BadInput: a line is not `identifier,prediction`.
    """
    found = {}
    for number, row in enumerate(_read_csv(path), start=1):
        if len(row) != 2:
            raise BadInput(f"{path}: line {number}: {','.join(row)!r} is not identifier,prediction")
        found[row[0]] = row[1]
    return found


def write_muge(path: Path, ranked: Mapping[int, Sequence[int]]) -> None:
    """The ten best images of each text.

    Raises:
        BadInput: a text has not ten different images.
    """
    rows = [{"text_id": int(key), "image_ids": _ten(path, key, [int(i) for i in x])} for key, x in ranked.items()]
    path.write_text("".join(json.dumps(x) + "\n" for x in rows), encoding="utf-8")


def read_muge(path: Path) -> dict[int, list[int]]:
    """What `write_muge` took.

    Raises:
        BadInput: a line is not of that form, or a text comes twice.
    """
    rows = [_parse(path, x) for x in _text(path).splitlines() if x.strip()]
    found = _by_key(path, rows, "text_id", "image_ids", int, list)
    return {key: _ten(path, key, x) for key, x in found.items()}


def write_muge_captions(path: Path, texts: Mapping[str, str]) -> None:
    """Texts by picture."""
    rows = [{"image_id": key, "text": x} for key, x in texts.items()]
    path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in rows), encoding="utf-8")


def read_muge_captions(path: Path) -> dict[str, str]:
    """Texts by picture.

    Raises:
        BadInput: a line is not of that form, or a picture comes twice.
    """
    rows = [_parse(path, x) for x in _text(path).split("\n") if x.strip()]
    return _by_key(path, rows, "image_id", "text", str, str)


def write_visual7w(path: Path, boxes: Mapping[int, int]) -> None:
    """The number of the chosen box by question."""
    _write_json(path, [{"qa_id": int(key), "candidates": [{"answer": int(x)}]} for key, x in boxes.items()])


def read_visual7w(path: Path) -> dict[int, Any]:
    """The first candidate of each question, the one that counts.

    Raises:
        BadInput: an entry is not of that form, or a question comes twice.
    """
    found = _read_json(path, "qa_id", "candidates", int, list)
    for key, x in found.items():
        if not x or not isinstance(x[0], dict) or "answer" not in x[0]:
            raise BadInput(f"{path}: question {key}: {x} is no list of candidates")
    return {key: x[0]["answer"] for key, x in found.items()}


def _ten(path: Path, key: int, ids: list[Any]) -> list[int]:
    if len(ids) != 10 or len(set(ids)) != 10 or not all(isinstance(x, int) for x in ids):
        raise BadInput(f"{path}: text {key}: {ids} are not 10 different image numbers")
    return ids


def _write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _read_json(path: Path, key: str, value: str, key_type: type, value_type: type) -> dict[Any, Any]:
    rows = _parse(path, _text(path))
    if not isinstance(rows, list):
        raise BadInput(f"{path}: holds no list")
    return _by_key(path, rows, key, value, key_type, value_type)


def _by_key(path: Path, rows: Iterable[Any], key: str, value: str, key_type: type, value_type: type) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for number, row in enumerate(rows):
        fits = isinstance(row, dict) and isinstance(row.get(key), key_type) and isinstance(row.get(value), value_type)
        if not fits or isinstance(row[key], bool):
            shape = f'{{"{key}": {key_type.__name__}, "{value}": {value_type.__name__}}}'
            raise BadInput(f"{path}: entry {number}: {str(row)[:80]} is not {shape}")
        if row[key] in found:
            raise BadInput(f"{path}: entry {number}: {key} {row[key]} comes twice")
        found[row[key]] = row[value]
    return found


def _parse(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadInput(f"{path}: not JSON: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from None


def _write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _read_csv(path: Path) -> list[list[str]]:
    return [x for x in csv.reader(_text(path).splitlines()) if x]
