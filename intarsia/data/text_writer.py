"""UNITER's text database from any data set of lines: what its own code trains and tests on beside an image database."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intarsia.data.formats.files import write_whole
from intarsia.data.formats.index import LineSource
from intarsia.data.formats.lines import Line
from intarsia.data.formats.uniter_text import META, pack_example
from intarsia.errors import BadInput, needs_extra

EVERY = 1000
"""Examples of a transaction."""


@dataclass(frozen=True)
class WrittenTexts:
    """What `write_uniter_text` did."""

    texts: int
    answers_left_out: int
    """Answers that the table does not have."""
    unused: Mapping[str, int]
    """Fields of the source that are not kept: on how many lines."""

    def lines_of_text(self) -> list[str]:
        """The report."""
        unused = ", ".join(f"{name} {count:,}" for name, count in self.unused.items())
        more = (
            f", {self.answers_left_out:,} answers that the table does not have left out"
            if self.answers_left_out
            else ""
        )
        return [f"{self.texts:,} texts written{more}", *([f"fields not kept: {unused}"] if unused else [])]


def write_uniter_text(
    source: LineSource,
    target: Path,
    encode: Callable[[str], list[int]],
    meta: Mapping[str, Any],
    table: Mapping[str, int] | None,
) -> WrittenTexts:
    """Writes `NAME.db`: the LMDB, `meta.json`, `id2len.json`, `txt2img.json` and `img2txts.json`; whole or absent.

    Captions are examples of matching; a caption of two pictures with the answer "True" or "False" is NLVR2's; a question has its answers as the labels of a
    table. Pictures are called as in an image database of ours: with `.npz` behind.

    Args:
        source: the lines.
        target: the folder to make.
        encode: a text as pieces, without special ones.
        meta: CLS, SEP, MASK, UNK, v_range and the tokenizer's name.
        table: answers and their numbers; None = numbered as they come, and written as `ans2label.json`.

    Raises:
        BadInput: the target is there, or a key has more than 511 bytes.
    """
    if target.exists():
        raise BadInput(f"{target}: is already there")
    try:
        import lmdb
    except ImportError:
        raise needs_extra("formats", "lmdb") from None
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    examples = _Examples(source, encode, table)
    with lmdb.open(str(partial), map_size=2**40, meminit=False) as environment:
        held: list[tuple[bytes, bytes]] = []
        for key, example in examples:
            if not 0 < len(key.encode()) <= 511:
                raise BadInput(f"{target}: key {key[:60]} has {len(key.encode())} bytes, LMDB takes 1 to 511")
            held.append((key.encode(), pack_example(example)))
            if len(held) == EVERY:
                _put(environment, held)
        _put(environment, held)
        environment.sync(True)
    files = {
        META: dict(meta),
        "id2len.json": examples.lengths,
        "txt2img.json": examples.images,
        "img2txts.json": examples.texts,
    }
    if table is None and examples.table:
        files["ans2label.json"] = examples.table
    for name, content in files.items():
        with write_whole(partial / name) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, target)
    return WrittenTexts(len(examples.lengths), examples.left_out, source.index.ignored)


def _put(environment: Any, held: list[tuple[bytes, bytes]]) -> None:
    with environment.begin(write=True) as transaction:
        for key, value in held:
            transaction.put(key, value)
    held.clear()


class _Examples:
    """Examples one by one, and what is told of all of them."""

    def __init__(self, source: LineSource, encode: Callable[[str], list[int]], table: Mapping[str, int] | None) -> None:
        self.source, self.encode = source, encode
        self.grows, self.table = table is None, dict(table or {})
        self.left_out = 0
        self.lengths: dict[str, int] = {}
        self.images: dict[str, str | list[str]] = {}
        self.texts: dict[str, list[str]] = {}

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for number in range(len(self.source.index.lines)):
            line = self.source.line(number)
            names = [x.name if x.name.endswith(".npz") else f"{x.name}.npz" for x in line.entries]
            for place, (text, _) in enumerate(line.texts):
                key = f"{line.key}#{place}" if len(line.texts) > 1 else line.key
                asks = line.asks and place == len(line.texts) - 1
                pieces = self.encode(text)
                self.lengths[key] = len(pieces)
                self.images[key] = names if len(names) > 1 else names[0]
                for name in names:
                    self.texts.setdefault(name, []).append(key)
                example = {"question" if asks else "sent": text, "input_ids": pieces, "img_fname": self.images[key]}
                yield key, example | self._target(line, asks)

    def _target(self, line: Line, asks: bool) -> dict[str, Any]:
        if len(line.entries) == 2 and [x for x, _ in line.answers] in (["True"], ["False"]):
            return {"target": int(line.answers[0][0] == "True")}
        if not line.answers or asks != line.asks:
            return {}
        if self.grows:
            for answer, _ in line.answers:
                self.table.setdefault(answer, len(self.table))
        known = [(self.table[x], score) for x, score in line.answers if x in self.table]
        self.left_out += len(line.answers) - len(known)
        return {"target": {"labels": [x for x, _ in known], "scores": [x for _, x in known]}}
