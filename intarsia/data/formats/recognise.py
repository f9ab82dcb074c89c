"""Which corpus a file is of: captions (`corpus_lines.py`), boxes (`box_lines.py`) or questions and labels (`question_lines.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from intarsia.data.formats import corpus_lines
from intarsia.data.formats.box_lines import by_name
from intarsia.data.formats.corpus_lines import Make
from intarsia.data.formats.open_images import is_open_images, open_images
from intarsia.data.formats.question_lines import (
    LANGUAGES,
    captions_file,
    imdb,
    lxmert_corpus,
    lxmert_tasks,
    memes,
    multi30k,
    oscar_questions,
    picture_list,
    sentences,
    targets,
)
from intarsia.data.formats.torch_file import read_torch

HEAD = 1 << 20
"""Bytes that the first entry of a list lies within."""


def recognise(path: Path) -> tuple[str, Make] | None:
    """The corpus's name, and what makes its lines; None = of no known corpus.

    Raises:
        BadInput: a .json that is none, or a damaged torch file.
    """
    suffix, known = path.suffix, by_name(path)
    if known is not None:
        return known
    if suffix in (".json", ".jsonl"):
        return _by_object(path) or corpus_lines.recognise(path)
    if path.name.endswith("_target.pkl"):
        return "ViLBERT VQA answers", targets
    if suffix == ".csv" and is_open_images(path):
        return "Open Images", open_images
    if suffix == ".npy":
        return ("Pythia imdb", imdb) if holds_objects(path) else None
    if suffix == ".pt":
        return ("Oscar captions", captions_file) if _says(read_torch(path)) else None
    if suffix[1:] in LANGUAGES:
        return ("Multi30k", multi30k) if picture_list(path) else None
    return corpus_lines.recognise(path)


def _by_object(path: Path) -> tuple[str, Make] | None:
    """By the first object of a list or of a file of lines."""
    with open(path, "rb") as handle:
        head = handle.read(HEAD).decode("utf-8-sig", "replace").lstrip()
    if path.suffix == ".json" and head[:1] != "[":
        return None
    try:
        first, _ = json.JSONDecoder().raw_decode(head.removeprefix("[").lstrip())
    except ValueError:
        return None
    if not isinstance(first, dict):
        return None
    has = first.keys()
    if path.suffix == ".jsonl":
        if "sentences" in has and "image_id" not in has:
            return "ViLBERT retrieval", sentences
        return ("Hateful Memes", memes) if {"img", "text"} <= has else None
    if {"img_id", "sentf", "labelf"} <= has:
        return "LXMERT pre-training", lxmert_corpus
    if "sent" in has and ("img0" in has or {"question_id", "img_id"} <= has):
        return "LXMERT questions", lxmert_tasks
    return ("Oscar questions", oscar_questions) if {"q", "img_id"} <= has else None


def holds_objects(path: Path, one: bool = False) -> bool:
    """Whether a .npy file is a row of objects (Pythia's imdb), or `one` object (a dict of features), and no array of numbers."""
    with open(path, "rb") as handle:
        head = handle.read(256)
    return b"|O'" in head and (b"'shape': ()" in head) == one


def _says(content: Any) -> bool:
    """Whether what a torch file holds is captions by picture."""
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    return isinstance(first, str) or (isinstance(first, list) and bool(first) and isinstance(first[0], str))
