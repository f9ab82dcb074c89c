"""The commands of videos: `intarsia extract video`, `data films`, `predict film` and `show film`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from intarsia.errors import BadInput

out = Console()


@dataclass
class ExtractVideo:
    """Describes the clips of videos, once, and joins them with the subtitles beside them; writes film shards with their provenance."""

    source: tyro.conf.Positional[Path]
    """Folder of videos (.mp4, .mkv, .webm ..), each with NAME.srt, .vtt, .json, or NAME.LANGUAGE.srt .. beside it."""
    out: Path
    extractor: str = "frames"
    """s3d, frames, grid or motion; stored = .npy files of features instead of videos."""
    options: dict[str, str] = field(default_factory=dict)
    """Of the extractor, name and value in turn: such as `--options weights s3d.pth size 112`."""
    batch: int = 4
    """Clips at once."""
    on_error: Literal["stop", "skip"] = "stop"
    """skip = films that cannot be used are named in skipped.txt and left out."""
    language: str = "en"
    """Of subtitles whose name says none."""
    captions: str = ""
    """File of HowTo100M (raw_caption.json), YouCook2 or MSR-VTT with what is said in the videos, by their names without endings."""
    device: str = "auto"


def extract_video(args: Sequence[str]) -> None:
    """Videos to film shards."""
    options = tyro.cli(ExtractVideo, args=args, prog="intarsia extract video")
    from intarsia.extract_video import extract_video as run
    from intarsia.features.clips import CLIP_EXTRACTORS, open_clip_extractor
    from intarsia.features.extractor import typed

    chosen: dict[str, Any] = {"device": options.device, **typed(options.extractor, options.options, CLIP_EXTRACTORS)}
    extractor = open_clip_extractor(options.extractor, **chosen)
    report = run(
        options.source,
        options.out,
        extractor,
        options.batch,
        options.on_error,
        options.language,
        captions=options.captions,
    )
    for line in report.lines():
        out.print(line, highlight=False, soft_wrap=True)


@dataclass
class Films:
    """Writes generated moving scenes as mp4 files with English and Chinese narration."""

    out: tyro.conf.Positional[Path]
    count: int = 100
    split: Literal["train", "val", "test"] = "train"
    seed: int = 0
    side: int = 96
    """Pixels."""
    fps: int = 25
    objects: tuple[int, int] = (2, 3)
    """The fewest and the most objects of a film."""


def films(options: Films) -> None:
    """Moving scenes as files."""
    from intarsia.worlds.films import FilmConfig, FilmWorld, write_films

    config = FilmConfig(side=options.side, fps=options.fps, objects=options.objects)
    folder = write_films(FilmWorld(config, options.split, options.count, options.seed), options.out)
    out.print(f"{options.count} films: {folder}")


# ---------------------------------------------------------------------------------------------- what a trained system makes of films


@dataclass
class OfFilms:
    """A trained system and the films it is asked about."""

    system: tyro.conf.Positional[str]
    """One that reads clips as words: videobert."""
    weights: Path
    """Folder of its run."""
    data: str
    """Film shards."""
    split: str = "test"
    centroids: Path | None = None
    """File of `intarsia data cluster`; default: the run's own."""
    device: str = "cpu"


@dataclass
class PredictFilm(OfFilms):
    """Names what films show, without training: the likeliest words in the gaps of a sentence above their clips."""

    sentence: str = "now let me show you how to [MASK] the [MASK] ."
    """Words with spaces between, [MASK] for a gap; the default is VideoBERT's."""
    choices: tuple[Path, ...] = ()
    """A file of words for each gap, a word a line; none = all words. Words of several pieces are left out and counted. With them it is told how often a word
    that the sentence says comes first, and among five."""
    blind: bool = False
    """The clips are not shown: what the sentence alone suggests."""
    top: int = 5
    whole: bool = False
    """One prediction a passage; else one a sentence's time."""
    count: int = 10
    """Passages; 0 = all."""
    out: Path | None = None
    """File of the predictions, a JSON object a line; else they are printed."""


@dataclass
class ShowFilm(OfFilms):
    """Draws a passage: its clips, their visual words, and the words that the system gives each sentence, as the training frames nearest to them."""

    number: int = 0
    """Of the passage."""
    out: Path = Path("filmstrip.png")
    """.png or .svg"""


def predict_film(args: Sequence[str]) -> None:
    """Words in the gaps of a sentence above clips."""
    options = tyro.cli(PredictFilm, args=args, prog="intarsia predict film")
    from intarsia.data.formats.files import write_whole
    from intarsia.evaluate.films import Choices, Hits, gap_logits, unseen

    system, source, _ = _opened(options)
    sentence = tuple(None if x == "[MASK]" else x for x in options.sentence.split())
    gaps = sentence.count(None)
    if not gaps or len(options.choices) not in (0, gaps):
        raise BadInput(f"--sentence {options.sentence!r}: {gaps} gaps, {len(options.choices)} files of --choices")
    if strange := [x for x in sentence if x is not None and x not in system.vocab.index]:
        raise BadInput(f"--sentence: {', '.join(strange)}: not one piece of the run's vocabulary each")
    files: Sequence[Path | None] = options.choices or (None,) * gaps
    choices = [Choices.of(system.vocab, None if x is None else _words(x)) for x in files]
    for path, choice in zip(options.choices, choices, strict=False):
        told = f"{path}: {len(choice.words)} words, {choice.dropped} left out that are not one piece each"
        out.print(told, highlight=False, soft_wrap=True)
    count = min(options.count or len(source), len(source))
    samples = [x for i in range(count) for x in ([source[i]] if options.whole else sentences(source[i]))]
    samples = [unseen(x) for x in samples] if options.blind else samples
    lines, hits = [], [Hits() for _ in options.choices]
    for sample, logits in zip(samples, gap_logits(system, samples, sentence), strict=True):
        best = [choice.best(gap, max(5, options.top)) for choice, gap in zip(choices, logits, strict=True)]
        for hit, choice, found in zip(hits, choices, best, strict=False):
            hit.count(choice.said(system.vocab, " ".join(sample.texts)), [word for word, _ in found])
        best = [x[: options.top] for x in best]
        lines.append({"key": sample.key, "said": " ".join(sample.texts), "gaps": best})
        if options.out is None:
            told = "; ".join(", ".join(f"{word} {share:.2f}" for word, share in x) for x in best)
            out.print(f"{sample.key} ({' '.join(sample.texts)}): {told}", highlight=False, soft_wrap=True)
    if options.out is not None:
        with write_whole(options.out) as part:
            part.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), encoding="utf-8")
        out.print(f"{len(lines)} predictions: {options.out}", soft_wrap=True)
    for path, hit in zip(options.choices, hits, strict=False):
        out.print(f"{path}: {hit}", highlight=False, soft_wrap=True)


def show_film(args: Sequence[str]) -> str:
    """A passage as strips of pictures; says what was drawn."""
    options = tyro.cli(ShowFilm, args=args, prog="intarsia show film")
    import torch

    from intarsia.data.video import picture_at
    from intarsia.evaluate.films import hidden_clip_logits
    from intarsia.features.kmeans import nearest_clips
    from intarsia.viz.filmstrip import Scene, Strip, draw_filmstrip

    system, source, train = _opened(options)
    if not 0 <= options.number < len(source):
        raise BadInput(f"{options.data}: passage {options.number} of {len(source)} of split {options.split}")
    parts = sentences(source[options.number])
    if not parts:
        raise BadInput(f"{options.data}: nothing is said while there are clips in passage {options.number}")
    given = [x.argmax(1) for x in hidden_clip_logits(system, parts)]
    true = [torch.from_numpy(x.film.ids) for x in parts if x.film is not None]
    numbers = torch.unique(torch.cat([*given, *true]))
    found = nearest_clips(train, source.book.leaves[numbers])

    def shown(film: Any, clip: int) -> Any:
        if not film.path:
            raise BadInput(f"{options.data}: the files of its films are not at hand, so there are no pictures to show")
        return picture_at(film.path, float(film.seconds[clip]) + film.length / 2)

    frames = {int(n): shown(train[sample].film, clip) for n, (sample, clip) in zip(numbers, found, strict=True)}
    scenes, right = [], 0
    for part, words, guessed in zip(parts, true, given, strict=True):
        film, marks = part.film, [a == b for a, b in zip(words.tolist(), guessed.tolist(), strict=True)]
        right += sum(marks)
        told = tuple(f"{n} = as shown" if same else str(n) for n, same in zip(guessed.tolist(), marks, strict=True))
        strips = (
            Strip("shown", tuple(shown(film, i) for i in range(len(words)))),
            Strip("its visual words", tuple(frames[n] for n in words.tolist()), tuple(map(str, words.tolist()))),
            Strip("from what is said", tuple(frames[n] for n in guessed.tolist()), told),
        )
        scenes.append(Scene(part.texts[0], strips))
    draw_filmstrip(scenes, options.out, f"{options.system}: clips from sentences, {source[options.number].key}")
    return f"{right} of {sum(map(len, true))} visual words are those of the clips: {options.out}"


def _opened(options: OfFilms) -> tuple[Any, Any, Any]:
    """The system, the films with words, and those it was trained on."""
    from intarsia.data.opening import open_source
    from intarsia.evaluate.films import readable
    from intarsia.features.kmeans import CODEBOOK, WithWords, read_codebook
    from intarsia.model import open as open_model

    system = readable(open_model(options.system, weights=options.weights, device=options.device).system)
    book = read_codebook(options.centroids or options.weights / CODEBOOK)
    return system, *(WithWords(open_source(options.data, split), book) for split in (options.split, "train"))


def sentences(sample: Any) -> list[Any]:
    """The sentences of a passage, each with the clips of its time, less those without any."""
    from intarsia.data.video import sentence

    found = [sentence(sample, number) for number in range(len(sample.texts))] if sample.film is not None else []
    return [x for x in found if x.film is not None and len(x.film.seconds)]


def _words(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
