"""Real pictures with real captions out of Tux Paint's stamps: cut-outs with transparency, captioned in up to 90 languages.

`compose` writes a data folder (pictures and `pairs.jsonl`) with two kinds of picture: each stamp alone, with its caption as given, and scenes of two
to four stamps whose captions join theirs ("a brown hen and a cello"), with the exact boxes of what was pasted and gold links from words to boxes.
Splits are by stamp: a stamp of the test split is in no training picture. Labels (and so tags) are folder names ("birds"), not words of the captions.

A stamp is `NAME.png` with `NAME.txt` beside it: its English caption in line 1, then lines `zh_CN.utf8=...`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from intarsia.data.formats.pairs import LINES, write_pairs
from intarsia.errors import BadInput

Array = NDArray[Any]
LEFT_OUT = ("symbols",)
"""Categories without objects: letters, digits, signs."""
MIRRORED = ("_mirror", "_flip", "_mirror_flip")
LOCALES = {"zh": "zh_CN", "zh-hant": "zh_TW", "pt": "pt_PT"}
"""Language -> locale of the caption files, where they differ."""
ARTICLES = ("a", "an", "the", "some", "two", "our")
VERBS = frozenset(["is", "are", "was", "has", "means", "lets", "resembles"])
LONGEST = 6
"""Words (in Chinese, pairs of characters) of the longest caption that takes part in scenes; longer ones tell facts."""
JOIN = {"en": (", ", " and "), "zh": ("、", "和"), "zh-hant": ("、", "和")}
"""Language -> what stands between the parts of a scene's caption, and before the last one."""
VISIBLE = 32
"""Alpha (of 255) from which a pixel belongs to the object; faint shadows do not."""
SIZES = ((320, 240), (240, 320), (288, 288))
"""Pixels wide and high of scenes."""
LARGEST = 224
"""Longest side of a stamp; larger ones are scaled down."""
TESTED = 0.2
"""Share of the stamps, and of the scenes, that are held out."""
OVERLAP = 0.1
"""How much of the smaller of two boxes of a scene the other may cover."""
TRIES = 30
QUALITY = 92
NOTICE = "Pictures and captions in this folder are made of Tux Paint stamps (Debian package tuxpaint-stamps-default), licence GPL-2.\n"


@dataclass(frozen=True)
class Stamp:
    """One cut-out."""

    name: str
    """Its file under the root, without suffix."""
    file: Path
    captions: Mapping[str, str]
    """Language -> caption as given."""
    phrases: Mapping[str, str]
    """Language -> the caption as part of a sentence, where it names an object."""
    digest: str
    """sha256 of the picture; stamps that share it are always in the same split."""

    @property
    def category(self) -> str:
        """Its top folder, as "animals"."""
        return self.name.split("/")[0]

    @property
    def kind(self) -> str:
        """Its folder, as "birds"."""
        return [x for x in self.name.split("/")[:-1] if x not in ("cartoon", "photo")][-1]


@dataclass(frozen=True)
class Composed:
    """What `compose` wrote."""

    stamps: int
    held_out: int
    """Stamps of the test split."""
    in_scenes: int
    """Stamps whose caption can take part in scenes."""
    lines: dict[str, int]
    """Pictures of each split."""
    captions: dict[str, int]
    """Captions of each language."""


def read_stamps(root: str | Path, languages: Sequence[str] = ("en", "zh")) -> list[Stamp]:
    """The captioned stamps with pixels, by name. Symbols, drawings without PNG and mirrored copies are left out.

    Args:
        root: the folder that holds the categories (`animals`, `food`, ..), or an unpacked package above it.
        languages: captions to read; a stamp that lacks one keeps the others, one that lacks all is left out.

    Raises:
        BadInput: no stamps there, or a caption file that is not UTF-8.
    """
    base = Path(root)
    inner = base / "usr/share/tuxpaint/stamps"
    base = inner if inner.is_dir() else base
    stamps: list[Stamp] = []
    for text in sorted(base.rglob("*.txt")):
        name, file = text.relative_to(base).with_suffix("").as_posix(), text.with_suffix(".png")
        if not file.is_file() or "/" not in name or name.split("/")[0] in LEFT_OUT or name.endswith(MIRRORED):
            continue
        captions = _captions(text, languages)
        phrases = {language: phrase(caption, language) for language, caption in captions.items()}
        if captions:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            stamps.append(Stamp(name, file, captions, {k: v for k, v in phrases.items() if v}, digest))
    if not stamps:
        raise BadInput(f"{root}: no captioned stamps in it (CATEGORY/../NAME.png with NAME.txt)")
    return stamps


def phrase(caption: str, language: str) -> str:
    """A caption as part of a sentence: first letter small, no final stop; "" when it is not the short name of an object."""
    body = caption.rstrip("。！.!").strip()
    if language.startswith(("zh", "ja")):
        return body if body and len(body) <= 2 * LONGEST and not set(body) & set('，。！？；：,.!?:;“”"') else ""
    words = body.split()
    if not 1 < len(words) <= LONGEST or set(body) & set('.!?;:,—–()“”"') or VERBS & {x.lower() for x in words}:
        return ""
    if language == "en" and words[0].lower() not in ARTICLES:
        return ""
    return body[0].lower() + body[1:]


def compose(
    stamps: Sequence[Stamp],
    out: str | Path,
    languages: Sequence[str] = ("en", "zh"),
    scenes: int = 4000,
    seed: int = 0,
    notice: str = NOTICE,
    show: Callable[[int, int], None] | None = None,
) -> Composed:
    """Writes the data folder, whole or not at all. The same arguments and stamps give the same pictures and lines.

    Args:
        stamps: see `read_stamps`, or `emoji.read_emoji`.
        out: the folder; it must not be there.
        languages: of the captions; a scene has every one of them that all its stamps have, and always the first.
        scenes: how many, a fifth of them for the test split.
        seed: of the split and the scenes.
        notice: said in the folder: whose the pictures are.
        show: called with pictures done and pictures in all, for a progress bar.

    Raises:
        BadInput: too few stamps for scenes, one that cannot be decoded, or `out` is there.
    """
    out = Path(out)
    if out.exists():
        raise BadInput(f"{out}: is already there")
    if not languages or scenes < 0 or seed < 0:
        raise BadInput(
            f"stamps: languages {list(languages)}, scenes {scenes}, seed {seed}: expected a language, and no number below 0"
        )
    tested = held_out(stamps, seed)
    able = {
        split: [x for x in stamps if languages[0] in x.phrases and (x.digest in tested) == (split == "test")]
        for split in ("train", "test")
    }
    if scenes and min(len({x.phrases[languages[0]] for x in pool}) for pool in able.values()) < 4:
        raise BadInput(
            f"{out}: {sum(map(len, able.values()))} stamps can take part in scenes, too few for {scenes} scenes"
        )
    of_test = round(scenes * TESTED)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch) / "made"
        for folder in ("alone", "scenes"):
            (made / "images" / folder).mkdir(parents=True)
        records = []
        for number, stamp in enumerate(stamps):
            records.append(
                _alone(
                    stamp, made, np.random.default_rng([seed, 1, number]), "test" if stamp.digest in tested else "train"
                )
            )
            _tell(show, len(records), len(stamps) + scenes)
        for number in range(scenes):
            split = "test" if number >= scenes - of_test else "train"
            rng = np.random.default_rng([seed, 2, number])
            records.append(_scene(number, able[split], languages, made, rng, split))
            _tell(show, len(records), len(stamps) + scenes)
        write_pairs(made / LINES, records)
        (made / "NOTICE").write_text(notice, encoding="utf-8")
        made.rename(out)
    return Composed(
        stamps=len(stamps),
        held_out=sum(x.digest in tested for x in stamps),
        in_scenes=sum(map(len, able.values())),
        lines=dict(Counter(x["split"] for x in records)),
        captions=dict(Counter(c["language"] for x in records for c in x["captions"])),
    )


def held_out(stamps: Sequence[Stamp], seed: int) -> frozenset[str]:
    """The digests of the test split's stamps: a fifth of the different pictures."""
    digests = sorted({x.digest for x in stamps})
    order = np.random.default_rng([seed, 0]).permutation(len(digests))
    return frozenset(digests[i] for i in order[: round(TESTED * len(digests))])


def _tell(show: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if show is not None:
        show(done, total)


def _captions(text: Path, languages: Sequence[str]) -> dict[str, str]:
    """Language -> caption, in the order of the languages."""
    try:
        lines = text.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{text}: not UTF-8 at byte {error.start + 1}") from None
    given = {"en": lines[0].strip() if lines else ""}
    for line in lines[1:]:
        locale, sign, caption = line.partition("=")
        if sign:
            given.setdefault(locale.strip().removesuffix(".utf8"), caption.strip())
    found = {language: given.get(LOCALES.get(language, language), "") for language in languages}
    return {language: caption for language, caption in found.items() if caption}


# ------------------------------------------------------------------------------------------------------------------------------- pictures


@lru_cache(maxsize=1024)
def _cut_out(file: Path) -> Image.Image:
    """The stamp as RGBA, cut to the extent of its object and at most LARGEST pixels a side."""
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadInput(f"{file}: cannot be decoded: {error}") from None
    box = _extent(image)
    if box is None:
        raise BadInput(f"{file}: has no visible pixel")
    image = image.crop(box)
    scale = min(1.0, LARGEST / max(image.size))
    return _scaled(image, scale) if scale < 1 else image


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC
    )


def _extent(image: Image.Image) -> tuple[int, int, int, int] | None:
    """x1 y1 x2 y2 of the visible pixels, x2 and y2 excluded."""
    seen = np.asarray(image)[:, :, 3] >= VISIBLE
    if not seen.any():
        return None
    columns, rows = np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _background(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A plain light colour, darker towards one end."""
    colour = rng.integers(150, 256, 3)
    shade = 1 - float(rng.uniform(0, 0.25)) * np.linspace(0, 1, size[1])[:, None]
    rows = np.rint(shade * colour).astype(np.uint8)[:, None, :]
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows, (size[1], size[0], 3))))


def _paste(canvas: Image.Image, image: Image.Image, left: int, top: int) -> list[int]:
    """Pastes and gives the box of the visible pixels."""
    canvas.paste(image, (left, top), image)
    x1, y1, x2, y2 = _extent(image) or (0, 0, image.width, image.height)
    return [left + x1, top + y1, left + x2, top + y2]


def _alone(stamp: Stamp, made: Path, rng: np.random.Generator, split: str) -> dict[str, Any]:
    """One stamp on a plain background, its caption as given."""
    image = _cut_out(stamp.file)
    wide, high = (max(48, round(x * float(rng.uniform(1.1, 1.5)))) for x in image.size)
    canvas = _background((wide, high), rng)
    box = _paste(
        canvas, image, int(rng.integers(0, wide - image.width + 1)), int(rng.integers(0, high - image.height + 1))
    )
    file = f"images/alone/{stamp.name.replace('/', '-')}.jpg"
    canvas.save(made / file, quality=QUALITY, subsampling=0)
    captions = [{"text": text, "language": language} for language, text in stamp.captions.items()]
    links = [[i, 0, len(stamp.phrases[x]), 0] for i, x in enumerate(stamp.captions) if x in stamp.phrases]
    return _record(f"alone-{stamp.name}", file, captions, [box], [stamp.kind], links, split, canvas.size)


def _scene(
    number: int, pool: Sequence[Stamp], languages: Sequence[str], made: Path, rng: np.random.Generator, split: str
) -> dict[str, Any]:
    """Two to four stamps whose phrases all differ, and the captions that name them."""
    picked: list[Stamp] = []
    wanted = int(rng.integers(2, 5))
    while len(picked) < wanted:
        stamp = pool[int(rng.integers(len(pool)))]
        if not any(set(stamp.phrases.items()) & set(x.phrases.items()) or stamp.digest == x.digest for x in picked):
            picked.append(stamp)
    canvas = _background(SIZES[int(rng.integers(len(SIZES)))], rng)
    boxes: list[list[int]] = []
    for stamp in picked:
        boxes.append(_place(canvas, stamp, boxes, rng))
    captions: list[dict[str, str]] = []
    links: list[list[int]] = []
    order = rng.permutation(wanted).tolist()  # who is named first says nothing about who was pasted first
    for language in languages:
        if all(language in x.phrases for x in picked):
            text, spans = _joined([picked[i].phrases[language] for i in order], language)
            links += [[len(captions), start, end, i] for (start, end), i in zip(spans, order, strict=True)]
            captions.append({"text": text, "language": language})
    file = f"images/scenes/{number:05d}.jpg"
    canvas.save(made / file, quality=QUALITY, subsampling=0)
    return _record(f"scene-{number:05d}", file, captions, boxes, [x.kind for x in picked], links, split, canvas.size)


def _place(canvas: Image.Image, stamp: Stamp, boxes: Sequence[Sequence[int]], rng: np.random.Generator) -> list[int]:
    """Pastes a stamp at a random size where it hardly covers the others; smaller when there is no room."""
    image = _cut_out(stamp.file)
    side = float(rng.uniform(0.35, 0.6)) * min(canvas.size)
    while True:
        small = _scaled(image, side / max(image.size))
        for _ in range(TRIES):
            left, top = (
                int(rng.integers(0, whole - part + 1)) for whole, part in zip(canvas.size, small.size, strict=True)
            )
            new = (left, top, left + small.width, top + small.height)
            if all(_covered(new, old) <= OVERLAP for old in boxes):
                return _paste(canvas, small, left, top)
        side *= 0.85


def _covered(a: Sequence[int], b: Sequence[int]) -> float:
    """The part of the smaller box that lies in the other."""
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / min((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))


def _joined(phrases: Sequence[str], language: str) -> tuple[str, list[tuple[int, int]]]:
    """One caption out of phrases, and where each stands in it."""
    comma, last = JOIN.get(language, (", ", ", "))
    text, spans = "", []
    for i, part in enumerate(phrases):
        text += "" if i == 0 else last if i == len(phrases) - 1 else comma
        spans.append((len(text), len(text) + len(part)))
        text += part
    return text, spans


def _record(
    key: str,
    file: str,
    captions: list[dict[str, str]],
    boxes: list[list[int]],
    labels: list[str],
    links: list[list[int]],
    split: str,
    size: tuple[int, int],
) -> dict[str, Any]:
    return {
        "key": key,
        "image": file,
        "width": size[0],
        "height": size[1],
        "captions": captions,
        "boxes": boxes,
        "labels": labels,
        "links": links,
        "split": split,
    }
