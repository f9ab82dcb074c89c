"""Files that say what is said in many videos: HowTo100M's `raw_caption.json`, YouCook2's and MSR-VTT's annotations."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from intarsia.data.subtitles import Segmentation, Sentence, Word, sentences, spread
from intarsia.errors import BadInput

CHUNK = 1 << 20
_GAP = re.compile(r"[\s,]*")


def read_annotations(
    path: str | Path, names: Collection[str], how: Segmentation | None = None
) -> dict[str, list[Sentence]]:
    """The sentences of some videos, in order of time; the file is read a video at a time, whatever its size.

    HowTo100M's parallel lists of speech become sentences as subtitles do; annotations of YouCook2 (a sentence a segment) and MSR-VTT
    (its sentences are said of the whole clip, which lasts from "start time" to "end time") stay whole.

    Args:
        path: the JSON file.
        names: ids of the videos to take (YouTube's; MSR-VTT's "video0").
        how: how words become sentences.

    Returns:
        The sentences by id; ids that the file does not have are absent.

    Raises:
        BadInput: cannot be read, or not whole; names the video.
    """
    found: dict[str, list[Sentence]] = {}
    lengths: dict[str, float] = {}
    captions: dict[str, list[str]] = {}
    for at, value in _items(Path(path)):
        where, name = f"{path}: video {at[-1]}", str(at[-1])
        try:
            match at:
                case ("database", _) if name in names:
                    steps = [(x["sentence"], *_pair(x["segment"])) for x in value["annotations"]]
                    said = [_sentence(text, start, end, where) for text, start, end in steps]
                    found[name] = sorted(said, key=lambda x: x.start)
                case ("videos", _) if value["video_id"] in names:
                    lengths[value["video_id"]] = float(value["end time"]) - float(value["start time"])
                case ("sentences", _) if value["video_id"] in names:
                    captions.setdefault(value["video_id"], []).append(value["caption"])
                case (_,) if name in names:
                    rows = zip(value["text"], value["start"], value["end"], strict=True)
                    words: list[Word] = []
                    for row in rows:
                        words += spread(*_sentence(*row, where))
                    found[name] = sentences(words, how)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{where}: not an annotation of a video: {type(error).__name__} {error}") from None
    for name, texts in captions.items():
        if name not in lengths:
            raise BadInput(f"{path}: video {name}: has captions but no times")
        found[name] = [_sentence(x, 0, lengths[name], f"{path}: video {name}") for x in texts]
    return found


def _pair(values: Any) -> tuple[Any, Any]:
    start, end = values
    return start, end


def _sentence(text: Any, start: Any, end: Any, where: str) -> Sentence:
    if not isinstance(text, str) or not 0 <= float(start) <= float(end) < float("inf"):
        raise BadInput(f"{where}: {text!r} from {start} s to {end} s")
    return Sentence(text.strip(), float(start), float(end))


def _items(path: Path) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """The members of a JSON object, and of its objects and lists called database, videos and sentences, one by one with where they are."""
    try:
        with open(path, encoding="utf-8-sig") as handle:
            yield from _Reader(handle, path).members(())
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None


class _Reader:
    def __init__(self, handle: Any, path: Path) -> None:
        self.handle, self.path, self.text, self.at, self.read = handle, path, "", 0, json.JSONDecoder().raw_decode

    def members(self, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
        opened = self.peek()
        if opened not in ("{", "["):
            raise BadInput(f"{self.path}: not a JSON object of videos")
        self.at += 1
        number = 0
        while self.peek() not in ("}", "]"):
            key: str | int = number
            if opened == "{":
                key = self.value()
                if self.peek() != ":":
                    raise BadInput(f"{self.path}: not JSON behind {key!r}")
                self.at += 1
            if place == () and key in ("database", "videos", "sentences") and self.peek() in ("{", "["):
                yield from self.members((key,))
            else:
                yield (*place, key), self.value()
            number += 1
        self.at += 1

    def peek(self) -> str:
        while True:
            gap = _GAP.match(self.text, self.at)
            self.at = gap.end() if gap else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                raise BadInput(f"{self.path}: not whole JSON: it ends inside")

    def more(self) -> bool:
        fresh = self.handle.read(max(CHUNK, len(self.text) - self.at))
        self.text, self.at = self.text[self.at :] + fresh, 0
        return bool(fresh)

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.read(self.text, self.at)
                if end < len(self.text) or not self.more():  # a number could go on
                    self.at = end
                    return value
            except ValueError as error:
                if not self.more():
                    raise BadInput(f"{self.path}: not whole JSON: {error}") from None
