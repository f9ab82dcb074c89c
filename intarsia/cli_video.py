"""The commands of videos: `intarsia extract video` and `intarsia data films`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

out = Console()


@dataclass
class ExtractVideo:
    """Describes the clips of videos, once, and joins them with the subtitles beside them; writes film shards with their provenance."""

    source: tyro.conf.Positional[Path]
    """Folder of videos (.mp4, .mkv, .webm ..), each with NAME.srt, .vtt, .json, or NAME.LANGUAGE.srt .. beside it."""
    out: Path
    extractor: str = "frames"
    """s3d, frames or grid."""
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


def films(options: Films) -> None:
    """Moving scenes as files."""
    from intarsia.worlds.films import FilmConfig, FilmWorld, write_films

    config = FilmConfig(side=options.side, fps=options.fps)
    folder = write_films(FilmWorld(config, options.split, options.count, options.seed), options.out)
    out.print(f"{options.count} films: {folder}")
