"""Subtitle files to sentences with times: SRT, WebVTT (rolling captions of YouTube too), JSON of speech recognisers, CSV.

Everything becomes words with times first. Where a file times only its cues, a cue's seconds are shared out over its words by their characters. Then the
words become sentences, the same way whatever the file was:

- If the text is punctuated (at least one word in `PUNCTUATED` ends a sentence), a sentence ends at . ! ? and their Chinese forms, not behind an
  abbreviation, nor before a small letter where the text has capitals.
- If not, as recognisers write, it ends where nobody speaks for `pause` seconds.
- In both cases a sentence that would last more than `seconds` or have more than `words` is cut before the word that is too much, at its longest pause in
  the second half.

A sentence's times are those of its first and last word. Chinese and Japanese characters are words of their own and are joined without spaces.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from intarsia.errors import BadInput

SUFFIXES = (".json3", ".json", ".vtt", ".srt", ".csv")
"""Known endings; of several files of one language the first of these is read: it is the likeliest to time words."""
PUNCTUATED = 40
LONGEST = 1.0
"""Seconds a word lasts at the most where a file says only when words begin; what is left until the next word is silence."""
_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
_CLOSERS = "\"')\\]}»”’」』》）"
_WORD = re.compile(rf"[{_CJK}][^\w\s]*|[^\s{_CJK}]+")
_END = re.compile(rf"[.!?…。！？][{_CLOSERS}]*$")
_SHORT = re.compile(r"(?i)^(mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|approx|tbsp|tsp|oz|lb|[a-hj-z])\.$")
_TIME = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})")
_ARROW = re.compile(rf"^\s*({_TIME.pattern})\s*-->\s*({_TIME.pattern})")
_INLINE = re.compile(r"<((?:\d+:)?\d{1,2}:\d{1,2}\.\d{1,3})>")
_TAG = re.compile(r"</?[a-zA-Z][^>]*>|\{\\[^}]*\}")
_SOUND = re.compile(r"\[[^\]]*\]|♪+")


class Word(NamedTuple):
    """A word and when it is said, in seconds."""

    text: str
    start: float
    end: float
    space: bool = True
    """Whether it stands apart from the word before it."""


class Sentence(NamedTuple):
    """A sentence and when it is said, in seconds."""

    text: str
    start: float
    end: float


class _Cue(NamedTuple):
    start: float
    end: float
    lines: list[str]


@dataclass(frozen=True)
class Segmentation:
    """How words become sentences."""

    pause: float = 0.6
    """Seconds of silence that end a sentence of unpunctuated text."""
    words: int = 30
    """The most words a sentence has; of Chinese, characters."""
    seconds: float = 15.0
    """The longest a sentence lasts."""


def find_subtitles(video: Path) -> dict[str, Path]:
    """The subtitle files beside a video by their language: NAME.LANGUAGE.SUFFIX, or NAME.SUFFIX, whose language is "".

    "zh-Hans" and "en-US" count as "zh" and "en"; of two files of a language the better one is taken, see SUFFIXES.
    """
    found: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in sorted(video.parent.glob(f"{_escaped(video.stem)}*{suffix}")):
            match = re.fullmatch(r"(?:\.([a-z]{2,3})(?:[-_]\w+)?)?", path.name[len(video.stem) : -len(suffix)])
            if match:
                found.setdefault(match[1] or "", path)
    return dict(sorted(found.items()))


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def read_subtitles(path: str | Path, how: Segmentation | None = None) -> list[Sentence]:
    """The sentences of a subtitle file.

    Args:
        path: the file; its ending says the format.
        how: how words become sentences.

    Raises:
        BadInput: cannot be read, an unknown ending, not of its format (gives the line), or a time that is not one.
    """
    return sentences(read_words(path), how)


def read_words(path: str | Path) -> list[Word]:
    """The words of a subtitle file with their times, in order; names of sounds in brackets and notes are not words.

    Raises:
        BadInput: as `read_subtitles`.
    """
    path = Path(path)
    readers = {".srt": _cues, ".vtt": _cues, ".json": _json, ".json3": _json, ".csv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise BadInput(f"{path}: not a subtitle file of a known kind ({', '.join(SUFFIXES)})")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8: byte {error.start}") from None
    words = reader(text, path)
    return sorted(words, key=lambda word: word.start)  # stable: overlapping cues interleave by time


# ----------------------------------------------------------------------------------------------------------- SRT, VTT


def _cues(text: str, path: Path) -> list[Word]:
    cues: list[_Cue] = []
    timed = _INLINE.search(text) is not None
    web = text.startswith("WEBVTT")
    inside, before, numbered = False, "", False
    for number, line in enumerate(text.splitlines(), 1):
        arrow = _ARROW.match(line)
        if arrow:
            start, end = _seconds(arrow[1]), _seconds(arrow[6])
            if end < start:
                raise BadInput(f"{path}: line {number}: a cue from {start:g} s to {end:g} s")
            numbered = before.isdigit() if not cues else numbered
            if numbered and not web and cues and cues[-1].lines and cues[-1].lines[-1].isdigit():
                cues[-1].lines.pop()  # the number of this cue
            cues.append(_Cue(start, end, []))
            inside = True
        elif "-->" in line:
            raise BadInput(f"{path}: line {number}: {line.strip()!r} is no pair of times")
        elif (
            web and not line
        ):  # notes, styles and names of cues stand outside; SubRip has none, and empty lines inside cues
            inside = False
        elif inside and line.strip():
            cues[-1].lines.append(line.strip())
        before = line.strip() or before
    if not cues and text.strip() and not web:
        raise BadInput(f"{path}: no times in it (00:00:01,000 --> 00:00:02,000)")
    return [word for cue in _unrolled(cues, timed) for word in _cue_words(cue)]


def _seconds(text: str) -> float:
    match = _TIME.fullmatch(text)
    assert match is not None
    return int(match[1] or 0) * 3600 + int(match[2]) * 60 + int(match[3]) + int(match[4].ljust(3, "0")) / 1000


def _plain(line: str) -> str:
    return " ".join(html.unescape(_TAG.sub("", _INLINE.sub("", line))).split())


def _unrolled(cues: Sequence[_Cue], timed: bool) -> list[_Cue]:
    """Rolling captions show a line again while the next one is spoken: every cue without the lines that the cue before it ended with.

    Done where words are timed inside cues, or where at least half of all cues begin with the last line of the one before.
    """
    plain = [[y for y in (_plain(x) for x in cue.lines) if y] for cue in cues]
    again = sum(bool(a and b and a[-1] == b[0]) for a, b in pairwise(plain))
    if not timed and 2 * again < len(cues):
        return list(cues)
    found, before = [], list[str]()
    for cue, now in zip(cues, plain, strict=True):
        old = next((k for k in range(min(len(before), len(now)), 0, -1) if before[-k:] == now[:k]), 0)
        kept = [x for x in cue.lines if _plain(x)][old:]
        if kept:
            found.append(_Cue(cue.start, cue.end, kept))
        before = now or before
    return found


def _cue_words(cue: _Cue) -> list[Word]:
    """A cue's words; times inside it are kept, stretches between them shared out."""
    text = " ".join(cue.lines)
    parts = _INLINE.split(text)  # text, time, text, time, ..
    begins = [cue.start, *(min(max(_seconds(x), cue.start), cue.end) for x in parts[1::2])]
    ends = [*begins[1:], cue.end]
    found: list[Word] = []
    for part, start, end in zip(parts[::2], begins, ends, strict=True):
        said = html.unescape(_TAG.sub("", part))
        found += spread(said, start, _until(said, start, end) if len(parts) > 1 else end)
    return found


def _until(said: str, start: float, end: float) -> float:
    return max(start, min(end, start + LONGEST * len(_WORD.findall(said))))


def spread(text: str, start: float, end: float) -> list[Word]:
    """The words of a text, its seconds shared out over them by their characters; [sounds] and notes are left out."""
    text = _SOUND.sub(" ", text)
    matches = list(_WORD.finditer(text))
    total = sum(len(x[0]) for x in matches)
    found: list[Word] = []
    said = 0
    for match in matches:
        begin = start + (end - start) * said / total
        said += len(match[0])
        before = text[: match.start()]
        apart = before != before.rstrip() or not before
        if apart and found and _joins(found[-1].text, match[0]):
            apart = False
        found.append(Word(match[0], begin, start + (end - start) * said / total, apart))
    return found


def _joins(left: str, right: str) -> bool:
    return re.match(f"[{_CJK}]", right) is not None and re.match(f"[{_CJK}]", left) is not None


# ---------------------------------------------------------------------------------------------------------- JSON, CSV


def _json(text: str, path: Path) -> list[Word]:
    """Whisper's segments, YouTube's json3 events, HowTo100M's parallel lists, or a list of timed pieces."""
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{path}: not JSON: {error}") from None
    try:
        if isinstance(tree, dict) and "events" in tree:
            return _events(tree["events"])
        if isinstance(tree, dict) and "segments" in tree:
            return _pieces(tree["segments"], path)
        if isinstance(tree, dict) and {"text", "start", "end"} <= tree.keys() and isinstance(tree["start"], list):
            lists = zip(tree["text"], tree["start"], tree["end"], strict=True)
            return _pieces([{"text": a, "start": b, "end": c} for a, b, c in lists], path)
        if isinstance(tree, list):
            return _pieces(tree, path)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path}: not timed text: {type(error).__name__} {error}") from None
    raise BadInput(f"{path}: neither events, segments, lists of text, start and end, nor a list of timed pieces")


def _pieces(pieces: Iterable[dict[str, Any]], path: Path) -> list[Word]:
    """Segments or words with `start` and `end` (or `duration`), and perhaps `words` of their own that are timed."""
    found: list[Word] = []
    for number, piece in enumerate(pieces):
        timed = [x for x in piece.get("words") or () if "start" in x and "end" in x]
        if timed and len(timed) == len(piece["words"]):
            found += _pieces(timed, path)
            continue
        start = float(piece["start"])
        end = float(piece["end"] if "end" in piece else start + float(piece["duration"]))
        said = piece["word"] if "word" in piece else piece["text"]
        if not (0 <= start <= end < float("inf")) or not isinstance(said, str):
            raise BadInput(f"{path}: piece {number} is {said!r} from {start:g} s to {end:g} s")
        found += spread(said, start, end)
    return found


def _events(events: Sequence[dict[str, Any]]) -> list[Word]:
    """YouTube's: windows of `segs` with offsets in milliseconds; events that only append a line break say nothing."""
    spoken = [x for x in events if any(y.get("utf8", "").strip() for y in x.get("segs") or ())]
    found: list[Word] = []
    for number, event in enumerate(spoken):
        start = event["tStartMs"] / 1000
        stop = start + event.get("dDurationMs", 0) / 1000
        if number + 1 < len(spoken):  # a window stays on the screen while the next is spoken
            stop = max(start, min(stop, spoken[number + 1]["tStartMs"] / 1000))
        segments = event["segs"]
        begins = [start + x.get("tOffsetMs", 0) / 1000 for x in segments]
        for segment, begin, end in zip(segments, begins, [*begins[1:], max(stop, begins[-1])], strict=True):
            said = segment.get("utf8", "")
            found += spread(said, begin, _until(said, begin, end))
    return found


def _csv(text: str, path: Path) -> list[Word]:
    """Columns start, end and text."""
    rows = csv.DictReader(io.StringIO(text))
    if not {"start", "end", "text"} <= set(rows.fieldnames or ()):
        raise BadInput(f"{path}: columns {', '.join(rows.fieldnames or ()) or 'none'}, expected start, end, text")
    try:
        return _pieces(list(rows), path)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{path}: not a number among its times: {error}") from None


# ----------------------------------------------------------------------------------------------------------- sentences


def sentences(words: Sequence[Word], how: Segmentation | None = None) -> list[Sentence]:
    """Words as sentences; every word is in exactly one.

    Args:
        words: in order of their starts.
        how: where sentences end.
    """
    how = how or Segmentation()
    enders = sum(_END.search(x.text) is not None for x in words)
    punctuated = enders * PUNCTUATED >= len(words)
    cased = any(x.text[:1].isupper() for x in words)
    found: list[Sentence] = []
    held: list[Word] = []
    for number, word in enumerate(words):
        after = words[number + 1] if number + 1 < len(words) else None
        if held and (len(held) >= how.words or word.end - held[0].start > how.seconds):
            cut = _longest_pause([*held, word])
            found.append(_sentence(held[:cut]))
            held = held[cut:]
        held.append(word)
        if after is None or (_ends(word, after, cased) if punctuated else after.start - word.end >= how.pause):
            found.append(_sentence(held))
            held = []
    return found


def _ends(word: Word, after: Word, cased: bool) -> bool:
    ends = _END.search(word.text) is not None and not _SHORT.match(word.text)
    return ends and not (cased and after.text[:1].islower())


def _longest_pause(words: Sequence[Word]) -> int:
    """Where to cut before the last word: in the second half, behind the longest pause, the latest of equal ones."""
    pauses = {i: round(words[i].start - words[i - 1].end, 3) for i in range(max(1, len(words) // 2), len(words))}
    return max(pauses, key=lambda i: (pauses[i], i))


def _sentence(words: Sequence[Word]) -> Sentence:
    text = words[0].text
    for before, word in pairwise(words):
        text += (" " if word.space and not _joins(before.text, word.text) else "") + word.text
    return Sentence(text, words[0].start, max(x.end for x in words))


# ------------------------------------------------------------------------------------------------------------- writing


def srt(said: Iterable[Sentence]) -> str:
    """Sentences as the text of an SRT file, a cue each."""
    cues = (f"{i}\n{_stamp(x.start)} --> {_stamp(x.end)}\n{x.text}\n" for i, x in enumerate(said, 1))
    return "\n".join(cues)


def _stamp(seconds: float) -> str:
    total = round(seconds * 1000)
    return f"{total // 3600000:02d}:{total // 60000 % 60:02d}:{total // 1000 % 60:02d},{total % 1000:03d}"
