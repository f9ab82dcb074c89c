"""Annotation files with odd values, in every place of every kind: told in one line that names the file, never a traceback."""

from __future__ import annotations

import copy
import gzip
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks import find
from intarsia.worlds.twins import write_twin

BENCHMARKS = (
    "vqa",
    "genome-qa",
    "nlvr2",
    "snli-ve",
    "vcr",
    "refcoco",
    "visual7w",
    "guesswhat",
    "coco",
    "coco-captions",
)
FILMS = ("youcook2", "msr-vtt-captions", "activitynet", "coin")
ODD: tuple[Any, ...] = (None, 7, "zzz", [], {})


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands; of a list the first entry, of keys that are numbers or names of videos the first."""
    if path:
        yield path
    if isinstance(tree, dict):
        named = not any(isinstance(x, dict) for x in tree.values()) or len(tree) < 12
        for key in list(tree)[: None if named else 1]:
            yield from places(tree[key], (*path, key))
    elif isinstance(tree, list) and tree:
        yield from places(tree[0], (*path, 0))


def broken(tree: Any) -> Iterator[tuple[str, Any]]:
    for path in places(tree):
        for value in (*ODD, "gone"):
            changed = copy.deepcopy(tree)
            inside = changed
            for key in path[:-1]:
                inside = inside[key]
            if value == "gone":
                del inside[path[-1]]
            else:
                inside[path[-1]] = value
            yield f"{value!r} at {path}", changed


def opened(path: Path) -> tuple[Any, Any]:
    """What a file holds, and how that is written; None where it is no tree."""
    raw = path.read_bytes()
    if path.suffix == ".p":
        return pickle.loads(raw), lambda x: pickle.dumps(x, 2)
    packed = path.suffix == ".gz"
    text = (gzip.decompress(raw) if packed else raw).decode()
    try:
        return json.loads(text), lambda x: json.dumps(x).encode()
    except ValueError:
        lines = [json.loads(x) for x in text.splitlines()]
    wrap = (lambda x: gzip.compress(x, 1)) if packed else (lambda x: x)
    return lines, lambda tree: wrap("\n".join(map(json.dumps, tree)).encode())


@pytest.mark.parametrize("name", [*BENCHMARKS, *FILMS])
def test_odd_values_are_told_and_not_thrown(name: str, tmp_path: Path) -> None:
    write_twin(name, tmp_path, 2, 2, level=0)
    benchmark, told = find(name), 0
    split = benchmark.splits[0]
    assert benchmark.read(tmp_path, split).items
    kinds = {".json", ".jsonl", ".p", ".gz"}
    files = [x for x in sorted(tmp_path.rglob("*")) if x.suffix in kinds and "regions" not in x.parts]
    read = [x for x in files if not re.search(r"(^|[_.])(val|dev|test)", x.name)]
    for file in {(x.parent.name, x.suffix, x.stem.rstrip("0123456789")): x for x in read}.values():
        raw, (tree, written) = file.read_bytes(), opened(file)
        for where, content in (("half of it", raw[: len(raw) // 2]), *((x, written(y)) for x, y in broken(tree))):
            file.write_bytes(content)
            try:
                benchmark.read(tmp_path, split)
            except BadInput:
                told += 1
            except Exception as error:
                raise AssertionError(f"{file.name}, {where}: {error!r}") from error
        file.write_bytes(raw)
    assert told > 3, "what was broken was not read"
