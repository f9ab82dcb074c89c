"""Tables of pictures and texts as a data set: Parquet and Arrow as Hugging Face, img2dataset and ViLT write them.

Pictures are binary, or structs of `bytes` and `path` of which either may be null. Rows that img2dataset could
not download (`status` other than "success") are left out and counted. ViLT's tables of VQA, lists of questions, answers and their scores in a row, give a
line a question. Other columns are counted as unused fields, with a dot
before their names; so are width and height, which are rarely those of the stored picture.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intarsia.batch import Picture
from intarsia.data.formats.columns import SUFFIXES, Columns, cell_address, columns_of
from intarsia.data.formats.corpus_lines import SIDES
from intarsia.data.formats.files import find_files, is_remote
from intarsia.data.formats.index import LineSource, OnError, build_index
from intarsia.data.formats.lines import SPLITS, Line
from intarsia.data.formats.pairs import empty_picture
from intarsia.errors import BadInput

Array = NDArray[Any]
IMAGES = ("image", "images", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes")
CAPTIONS = (
    "captions",
    "caption",
    "sentences_raw",
    "sentences",
    "raw",
    "sentence",
    "texts",
    "text",
    "TEXT",
    "alt_text",
    "questions",
)
NAMES = ("file_name", "filename", "image_id", "cocoid", "key")
QUESTIONS, ANSWERS = "questions", ("answers", "answer_scores")
WORDS = re.compile(r"[a-z]+")


def table_files(path: str) -> list[str]:
    """The Parquet or Arrow files at a path, in order: one file, those of a folder (and of the folders of its splits), or a pattern.

    A folder that `save_to_disk` wrote names its files in `state.json`; a file of a cache (`cache-*.arrow`) is none.
    """
    if path.endswith(SUFFIXES) and "*" not in path:
        return [path]
    if not is_remote(path) and (Path(path) / "state.json").is_file():
        state = Path(path) / "state.json"
        try:
            return [str(Path(path) / x["filename"]) for x in json.loads(state.read_bytes())["_data_files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{state}: not the state of a data set on disk: {error!r}") from None
    found = find_files(path, SUFFIXES)
    parquet = [x for x in found if x.endswith(".parquet")]
    return parquet or [x for x in found if not x.rsplit("/", 1)[-1].startswith("cache-")]


def is_table_folder(path: Path) -> bool:
    """Whether a folder is a table: what `save_to_disk` left, or tables without other folders (img2dataset puts some beside its folders of pictures)."""
    if not path.is_dir():
        return False
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return True
    inside = list(path.iterdir())
    return any(x.suffix in SUFFIXES for x in inside) and not any(
        x.is_dir() or x.suffix in (".jsonl", ".tar") for x in inside
    )


class TableSource(LineSource):
    """Rows with pictures and captions; a caption a sample.

    A picture is called what `file_name`, `filename`, `image_id`, `cocoid` or `key` says, else its struct's path, else its file and row.
    The split is that of the column `split`, else of the name of the file or of its folder, else "train".

    Args:
        path: a file, a folder or a pattern; remote ones too (see `files.is_remote`).
        split: "train", "val" or "test"; None = all rows.
        on_error: "stop" raises at the first row that cannot be used, "skip" leaves it out and keeps the message.

    Raises:
        BadInput: no table there, one without pictures or captions, files with other columns, or a row that cannot be used.
    """

    def __init__(self, path: str | Path, split: str | None = None, on_error: OnError = "stop") -> None:
        self.spec = str(path)
        self._files = table_files(self.spec)
        if not self._files:
            raise BadInput(f"{path}: no .parquet or .arrow file")
        tables = [columns_of(x) for x in self._files]
        self._starts = np.cumsum([0, *map(len, tables)])
        self._roles = _roles(tables[0])
        for file, table in zip(self._files, tables, strict=True):
            if _roles(table) != self._roles:
                raise BadInput(f"{file}: has other columns than {self._files[0]}")
        self._rows, failed = self._wanted()
        self._asked = np.zeros(len(self._rows), np.int64)
        if self._roles.captions == QUESTIONS:
            counts = [len(self._row(row)[0][QUESTIONS] or ()) for row in self._rows.tolist()]
            self._asked = np.concatenate([np.arange(x) for x in counts]) if counts else self._asked
            self._rows = np.repeat(self._rows, counts)
        index, _ = build_index(len(self._rows), self.parse, split, on_error)
        told = (f"{path}: {count} rows with status {status!r} left out" for status, count in sorted(failed.items()))
        self.index = replace(index, skipped=(*told, *index.skipped))

    def _wanted(self) -> tuple[Array, Counter[str]]:
        """The rows that img2dataset did not fail on, and how often it did in which way."""
        every = np.arange(self._starts[-1])
        failed: Counter[str] = Counter()
        if "status" in self._roles.fields:
            good = np.ones(len(every), bool)
            for number in range(len(every)):
                state = str(self._row(number)[0]["status"])
                if state != "success":
                    good[number] = False
                    failed[state] += 1
            every = every[good]
        return every, failed

    def _row(self, number: int) -> tuple[dict[str, Any], str, int]:
        """A row's values, its file, and which row of the file it is."""
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        file, row = self._files[place], number - int(self._starts[place])
        return columns_of(file).row(row, self._roles.fields), file, row

    def read(self, number: int) -> tuple[dict[str, Any], str, str]:
        """A row as a line."""
        values, file, row = self._row(int(self._rows[number]))
        inside = file.removeprefix(self.spec.rstrip("/") + "/")
        key, where = f"{inside if inside != file else file.rsplit('/', 1)[-1]}:{row}", f"{file}, row {row}"
        named = (values.get(x) for x in (*NAMES, f"{self._roles.image}.path"))
        record = {
            "image": next((str(x) for x in named if x not in (None, "")), key),
            **self._texts(values, int(self._asked[number]), where),
            "split": _split(values.get("split"), inside),
        }
        if self._roles.captions == QUESTIONS:
            key = f"{key}.{self._asked[number]}"
        if values.get("language") is not None:
            record["language"] = values["language"]
        return record | dict.fromkeys((f".{x}" for x in self._roles.unused), ""), where, key

    def _texts(self, values: dict[str, Any], place: int, where: str) -> dict[str, Any]:
        """The captions of a row, or one of its questions with its answers."""
        if self._roles.captions != QUESTIONS:
            return {"captions": _captions(values[self._roles.captions])}
        record = {"question": values[QUESTIONS][place]}
        answers, scores = (values.get(x) or () for x in ANSWERS)
        if not answers:  # the test's
            return record
        if len(answers) <= place or len(scores) <= place or len(answers[place]) != len(scores[place]):
            raise BadInput(f"{where}: question {place} has not as many scores as answers")
        pairs = zip(answers[place], scores[place], strict=True)
        return record | {"answers": [[str(x), float(y)] for x, y in pairs]}

    def picture_of(self, line: Line, slot: int, number: int) -> Picture:
        """A picture of a row; its path is an address that `intarsia.data.decode.decode_image` reads."""
        _, file, row = self._row(int(self._rows[int(self.index.lines[number])]))
        return empty_picture(line, slot, (0, 0), cell_address(file, self._roles.image, row))


@dataclass(frozen=True)
class Roles:
    """What the columns of a table are for."""

    image: str
    captions: str
    fields: tuple[str, ...]
    """Columns to read for a line; "image.path" is the path in its structs."""
    unused: tuple[str, ...]


def _roles(table: Columns) -> Roles:
    """Which column holds the pictures, which the captions.

    Raises:
        BadInput: none that could.
    """
    import pyarrow as pa

    def holds_pictures(name: str) -> bool:
        kind = table.schema.field(name).type
        if pa.types.is_struct(kind):
            return {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    names = table.schema.names
    able = [x for x in names if holds_pictures(x)]
    image = next((x for x in IMAGES if x in able), able[0] if len(able) == 1 else None)
    captions = next((x for x in CAPTIONS if x in names), None)
    if image is None or captions is None:
        what = (
            "pictures (binary, or structs of bytes and path)" if image is None else f"captions ({', '.join(CAPTIONS)})"
        )
        raise BadInput(f"{table.path}: no column of {what} among {', '.join(names)}")
    answers = ANSWERS if captions == QUESTIONS else ()
    used = [x for x in (captions, *answers, *NAMES, "split", "language", "status") if x in names]
    path = [f"{image}.path"] if pa.types.is_struct(table.schema.field(image).type) else []
    return Roles(image, captions, (*used, *path), tuple(x for x in names if x not in used and x != image))


def _captions(value: Any) -> Any:
    """Captions as a list: a text, a list of texts, or Karpathy's list of sentences with `raw`."""
    if isinstance(value, list):
        return [x["raw"] if isinstance(x, dict) and "raw" in x else x for x in value]
    return [] if value is None else [value]


def _split(value: Any, file: str) -> Any:
    """The split a row says, else the one its file or folder is named for."""
    if value is not None:
        return SIDES.get(value, value)
    words = [SIDES.get(x, x) for x in WORDS.findall("/".join(file.lower().split("/")[-2:]))]
    return next((x for x in reversed(words) if x in SPLITS), "train")
