"""From what a user types to a Source: looks at the path and opens the format found there."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Literal

from intarsia.data.corpora import Joined
from intarsia.data.formats import corpus_lines
from intarsia.data.formats.b2t2 import SHARD_OF, B2T2Examples, b2t2_files, is_b2t2
from intarsia.data.formats.box_lines import KINDS
from intarsia.data.formats.columns import SUFFIXES as TABLES
from intarsia.data.formats.corpus import CorpusSource
from intarsia.data.formats.fashiongen import FILE as FASHIONGEN
from intarsia.data.formats.fashiongen import FashionGen
from intarsia.data.formats.files import is_file, is_remote, join
from intarsia.data.formats.files_folder import FilesSource, is_files_layout
from intarsia.data.formats.films import INDEX as FILMS
from intarsia.data.formats.films import FilmSource
from intarsia.data.formats.index import OnError
from intarsia.data.formats.mirror import as_remote, listing, mirrored
from intarsia.data.formats.pairs import LINES, PairsFolder
from intarsia.data.formats.picture_table import PictureTable, is_picture_table
from intarsia.data.formats.plain import TextLines
from intarsia.data.formats.recognise import recognise
from intarsia.data.formats.shard_files import INDEX
from intarsia.data.formats.shards import ShardSource
from intarsia.data.formats.table import TableSource, table_files
from intarsia.data.formats.tar import TarSource
from intarsia.data.formats.uniter_text import META, UniterText, is_text_db
from intarsia.data.source import Source
from intarsia.errors import BadInput

WORLDS = re.compile(r"worlds(-(?P<language>zh))?:(?P<count>\d+)(:(?P<seed>\d+))?")
PRODUCTS = re.compile(r"products(-(?P<language>zh))?:(?P<count>\d+)(:(?P<seed>\d+))?")
FILM_WORLDS = re.compile(r"films(-(?P<language>zh))?:(?P<count>\d+)(:(?P<seed>\d+))?")
ACCEPTED = (
    f"a folder with {INDEX}, {FILMS}, {LINES}, *.tar, *.parquet or *.arrow, a UNITER text database, folders of pictures with texts; "
    "a .jsonl, .tar, .parquet or .arrow file; a caption file of a known corpus, FashionGen's .h5, MUGE's tables of pictures or B2T2's records; "
    "worlds:COUNT[:SEED], products:COUNT[:SEED] or films:COUNT[:SEED]"
)
REMOTE = f"a folder with {INDEX}, {FILMS}, {LINES}, *.tar, *.parquet or *.arrow, a UNITER text database, a file of these kinds, or one of a known corpus"


def open_source(spec: str | Path, split: str | None = None, on_error: OnError = "stop") -> Source:
    """Opens a data set.

    Args:
        spec: a folder with `shards.json`, `films.json`, `pairs.jsonl`, `*.tar`, `*.parquet` or `*.arrow` (looked for in
            this order), a `.jsonl`, `.tar`, `.parquet` or `.arrow` file, a caption file of a known corpus, any of these
            on another machine ("s3://bucket/shards", "https://..", by fsspec), of tars and tables a pattern too
            ("s3://bucket/*.tar"), "worlds:COUNT[:SEED]", generated
            scenes, "products:COUNT[:SEED]", generated products, "worlds-zh:.." and "products-zh:..", the same in Chinese,
            "films:COUNT[:SEED]" and "films-zh:..", generated films as vectors, or several of these with commas between.
        split: "train", "val" or "test"; None = everything (of generated worlds: the training split). Lines that do
            not say are "train".
        on_error: "stop" raises at the first line that cannot be used; "skip" leaves such lines out.

    Raises:
        BadInput: no such path, or nothing in it that can be opened (lists what can be), or what the format's reader
            raises.
    """
    if "," in str(spec) and not Path(spec).exists():
        return _join(str(spec).split(","), split, on_error)
    world = WORLDS.fullmatch(str(spec))
    if world is not None:
        return _open_world(int(world["count"]), int(world["seed"] or 0), split, world["language"] or "en")
    products = PRODUCTS.fullmatch(str(spec))
    if products is not None:
        from intarsia.worlds.product_source import ProductSource

        part = _part(split)
        return ProductSource(part, int(products["count"]), int(products["seed"] or 0), products["language"] or "en")
    films = FILM_WORLDS.fullmatch(str(spec))
    if films is not None:
        from intarsia.worlds.film_features import FilmWorld

        return FilmWorld(int(films["count"]), int(films["seed"] or 0), split or "train", films["language"] or "en")
    if is_remote(spec):
        return _open_remote(str(spec), split, on_error)
    return _open_local(Path(spec), split, on_error)


def _open_local(path: Path, split: str | None, on_error: OnError) -> Source:
    if path.is_dir():
        if (path / INDEX).exists():
            return ShardSource(path, split, on_error=on_error)
        if (path / FILMS).exists():
            return FilmSource(path, split)
        if (path / LINES).exists():
            return PairsFolder(path, split, on_error)
        if any(path.glob("*.tar")):
            return TarSource(path, split, on_error)
        if is_text_db(path):
            return UniterText(path, split, on_error)
        if b2t2_files(path):
            return B2T2Examples(path, split, on_error)
        if is_files_layout(path):
            return FilesSource(path, split, on_error)
        if table_files(str(path)):
            return TableSource(path, split, on_error)
        _not_features(path)
        found = sorted(x.name for x in path.iterdir())
        holds = ", ".join(found[:5]) + (", .." if len(found) > 5 else "") if found else "nothing"
        raise BadInput(f"{path}: a folder that holds {holds}; expected {ACCEPTED}")
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder; expected {ACCEPTED}")
    if (corpus := recognise(path)) is not None:
        return CorpusSource(path, split, on_error, corpus)
    if path.suffix == ".jsonl":
        return PairsFolder(path, split, on_error)
    if path.suffix == ".tar":
        return TarSource(path, split, on_error)
    if path.suffix in TABLES:
        return TableSource(path, split, on_error)
    if FASHIONGEN.fullmatch(path.name):
        return FashionGen(path, split, on_error)
    if is_picture_table(path):
        return PictureTable(path, split, on_error)
    if is_b2t2(path):
        return B2T2Examples(path, split, on_error)
    _not_features(path)
    raise BadInput(f"{path}: not a file of a known kind; expected {ACCEPTED}")


def _not_features(path: Path) -> None:
    """Raises what to do with region features of another project, if these are some.

    Raises:
        BadInput: they are, or are damaged.
    """
    from intarsia.data.stores import open_store  # knows how to open data sets itself

    store = open_store(path)
    if store is not None:
        command = f"intarsia data convert {path} OUT --extractor WHAT_MADE_THEM --pairs CAPTIONS"
        raise BadInput(f"{path}: region features ({store.kind}), no data set; make it one: `{command}`")


def _open_remote(spec: str, split: str | None, on_error: OnError) -> Source:
    if spec.endswith(".tar"):
        return TarSource(spec, split, on_error)
    if "*" not in spec and not spec.endswith(TABLES):
        if is_file(spec):
            return _open_remote_file(spec, split, on_error)
        if is_file(join(spec, INDEX)):
            return ShardSource(spec, split, on_error=on_error)
        if is_file(join(spec, LINES)):
            return PairsFolder(spec, split, on_error)
        if is_file(join(spec, FILMS)):
            return FilmSource(spec, split)
        names = listing(spec)
        if any(x.endswith(".tar") for x in names):
            return TarSource(spec, split, on_error)
        if META in names or any(SHARD_OF.search(x) for x in names):
            return _open_copy(spec, split, on_error)
    if table_files(spec):
        return TableSource(spec, split, on_error)
    raise BadInput(f"{spec}: nothing there that can be opened; expected {REMOTE}")


def _open_remote_file(spec: str, split: str | None, on_error: OnError) -> Source:
    special = any(re.fullmatch(pattern, PurePath(spec).name) for pattern, _, _ in KINDS)
    if not special and (corpus := corpus_lines.recognise(spec)) is not None:
        return CorpusSource(spec, split, on_error, corpus)
    if spec.endswith(tuple(f"/{x}" for x in (LINES, INDEX))):
        return PairsFolder(spec, split, on_error)
    here = mirrored(spec)
    with as_remote(here, spec):
        found = recognise(here)
        if found is not None:  # its pictures are looked for beside the remote file
            kind, make = found
            return CorpusSource(spec, split, on_error, (kind, lambda _: make(here)))
        if spec.endswith(".jsonl"):
            return PairsFolder(spec, split, on_error)
        if FASHIONGEN.fullmatch(here.name) or is_b2t2(here):
            return _open_local(here, split, on_error)
    raise BadInput(f"{spec}: not a file of a known kind; expected {REMOTE}")


def _open_copy(spec: str, split: str | None, on_error: OnError) -> Source:
    here = mirrored(spec)
    with as_remote(here, spec):
        return _open_local(here, split, on_error)


def _join(specs: list[str], split: str | None, on_error: OnError) -> Source:
    sources: dict[str, Source] = {}
    for part in specs:
        name = Path(part).name
        if name in sources:
            raise BadInput(f"{','.join(specs)}: two data sets are called {name!r}")
        sources[name] = open_source(part, split, on_error)
    return Joined(sources)


def open_texts(spec: str | Path) -> Source:
    """Opens texts without pictures: a file with a passage a line, or "worlds:COUNT[:SEED]", the captions of scenes.

    Raises:
        BadInput: no such file, or nothing in it.
    """
    return open_source(spec) if WORLDS.fullmatch(str(spec)) else TextLines(spec)


def _open_world(count: int, seed: int, split: str | None, language: str) -> Source:
    from intarsia.worlds import WorldConfig, WorldSource

    return WorldSource(WorldConfig(languages=(language,)), _part(split), count, seed)


def _part(split: str | None) -> Literal["train", "validation", "test"]:
    match split:
        case None | "train":
            return "train"
        case "val":
            return "validation"
        case "test":
            return "test"
        case _:
            raise BadInput(f"split {split!r} is not one of train, val, test")
