"""Tar shards as webdataset and img2dataset write them, read at random.

The members of one sample lie behind one another and share a key, the path up to the first dot of the base name:
`key.jpg` (or .jpeg, .png, .webp, .gif, .bmp; several as `key.0.jpg`, `key.1.jpg`), `key.txt` (the caption) or
`key.json` (fields of a `pairs.jsonl` line; img2dataset's "caption" is one of them), and perhaps `key.regions.npz` or
`key.regions.safetensors` (`key.0.regions.npz`, .. for several pictures). Other members are counted as unused fields.

Headers are walked once per tar; what was found is kept beside it as `NAME.tar.index.npz` where the folder can be
written, else in memory.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from intarsia.batch import Picture
from intarsia.data.decode import image_size, tar_address
from intarsia.data.formats.files import RandomAccess, find_files, is_remote, open_file, write_whole
from intarsia.data.formats.index import LineSource, OnError, build_index
from intarsia.data.formats.lines import Line, parse_json, parse_line
from intarsia.data.formats.pairs import empty_picture
from intarsia.data.formats.regions import SUFFIXES, encode_regions, read_picture
from intarsia.errors import BadInput

Array = NDArray[Any]
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
INDEX_VERSION = 1


@dataclass(frozen=True)
class Members:
    """Where the members of one tar lie: S samples, M members."""

    keys: Array
    """(S) UTF-8 bytes."""
    samples: Array
    """(S + 1) int64, cumulative number of members."""
    offsets: Array
    """(M) int64, where the bytes begin."""
    sizes: Array
    """(M) int64, how many bytes."""
    kinds: Array
    """(M) UTF-8 bytes, what follows the key and its dot, in lower case."""


def split_name(name: str) -> tuple[str, str]:
    """A member's key and kind: "a/b.0.jpg" is ("a/b", "0.jpg")."""
    base = PurePosixPath(name).name
    stem, _, kind = base.partition(".")
    return name[: len(name) - len(base)] + stem, kind.lower()


def _order(name: str) -> tuple[int, str]:
    number = split_name(name)[1].partition(".")[0]
    return len(number) if number.isdigit() else 0, name


def walk_tar(path: Path | str) -> Members:
    """Reads the headers of a tar.

    Raises:
        BadInput: not an uncompressed tar, cut short, or a key that comes back after other samples.
    """
    with open_file(path) if isinstance(path, str) else open(path, "rb") as handle:
        return _walk(path, handle)


def _walk(path: Path | str, handle: BinaryIO) -> Members:
    keys: list[bytes] = []
    seen: set[str] = set()
    kinds: list[bytes] = []
    starts: list[int] = []
    offsets: list[int] = []
    sizes: list[int] = []
    last = ""
    length = handle.seek(0, 2)
    handle.seek(0)
    try:
        with tarfile.open(fileobj=handle, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # headers already read are not kept
                key, kind = split_name(member.name)
                base = PurePosixPath(key).name
                if not member.isfile() or not kind or not base or base.startswith("__"):
                    continue  # folders, hidden files and webdataset's own notes
                if member.offset_data + member.size > length:
                    raise BadInput(f"{path}: cut short inside member {member.name}")
                if key != last or not starts:
                    if key in seen:
                        raise BadInput(
                            f"{path}: key {key!r} comes back at {member.name}; members of a sample must lie together"
                        )
                    seen.add(key)
                    keys.append(key.encode())
                    starts.append(len(offsets))
                    last = key
                offsets.append(member.offset_data)
                sizes.append(member.size)
                kinds.append(kind.encode())
            # the walk ends at an empty block, or where a header is cut or broken
            handle.seek(archive.offset)
            if handle.read(512) != bytes(512):
                raise BadInput(f"{path}: cut short or broken at byte {archive.offset}")
    except (tarfile.TarError, EOFError) as error:
        raise BadInput(f"{path}: not a whole, uncompressed tar: {error}") from None
    return Members(
        keys=np.array(keys, dtype=np.bytes_),
        samples=np.array([*starts, len(offsets)], dtype=np.int64),
        offsets=np.array(offsets, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
        kinds=np.array(kinds, dtype=np.bytes_),
    )


def members_of(path: Path | str) -> Members:
    """The members of a tar.

    From the index beside it if that was made for this very file, else by walking it (and leaving an index). A remote tar, named by
    text, is always walked.

    Raises:
        BadInput: as `walk_tar`, or the file is missing.
    """
    if isinstance(path, str):
        return walk_tar(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    beside = path.with_name(path.name + ".index.npz")
    stamp = np.array([INDEX_VERSION, path.stat().st_size, path.stat().st_mtime_ns], dtype=np.int64)
    names = ("keys", "samples", "offsets", "sizes", "kinds")
    # an index that is absent, broken or of another version is made anew
    broken = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with suppress(*broken), np.load(beside, allow_pickle=False) as kept:
        if np.array_equal(kept["stamp"], stamp):
            return Members(*(kept[name] for name in names))
    members = walk_tar(path)
    # in a folder that cannot be written the index lives in memory only
    with suppress(OSError), write_whole(beside) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, stamp=stamp, **{name: getattr(members, name) for name in names})
    return members


def _tars(path: str | Path) -> Sequence[Path | str]:
    if is_remote(path):
        return [str(path)] if str(path).endswith(".tar") and "*" not in str(path) else find_files(str(path), (".tar",))
    path = Path(path)
    return sorted(path.glob("*.tar")) if path.is_dir() else [path]


class TarSource(LineSource):
    """Tar shards as one data set. `Picture.path` is an address that `intarsia.data.decode.decode_image` reads.

    Args:
        paths: a folder of tars, one tar, or several; or remote ones, of which members are fetched one by one.
        split: "train", "val" or "test"; None = all samples.
        on_error: "stop" raises at the first tar that is broken or sample whose text cannot be used; "skip" leaves them
            out and keeps the messages in `skipped`.

    Raises:
        BadInput: no tar, a broken one, a sample that cannot be used, or a key in two tars.
    """

    def __init__(
        self, paths: str | Path | Sequence[str | Path], split: str | None = None, on_error: OnError = "stop"
    ) -> None:
        given = [paths] if isinstance(paths, str | Path) else paths
        tars = [tar for path in given for tar in _tars(path)]
        if not tars:
            raise BadInput(f"{', '.join(map(str, given))}: no .tar file")
        whole: list[tuple[Path | str, Members]] = []
        broken: list[str] = []
        for tar in tars:
            try:
                whole.append((tar, members_of(tar)))
            except BadInput as error:
                if on_error == "stop":
                    raise
                broken.append(str(error))
        self._members = [members for _, members in whole]
        self._files = [RandomAccess(tar) for tar, _ in whole]
        self._starts = np.cumsum([0] + [len(x.keys) for x in self._members])
        index, _ = build_index(int(self._starts[-1]), self.parse, split, on_error)
        self.index = replace(index, skipped=(*broken, *index.skipped))

    def read(self, number: int) -> tuple[dict[str, Any], str, str]:
        """A sample as a line: its .json, the caption in its .txt, and its pictures and region files by member name."""
        file, key, members = self._sample(number)
        where = f"{file.path}, sample {key}"
        record: dict[str, Any] = {}
        images, regions, unused = [], [], []
        for kind, (offset, size) in members.items():
            if kind == "json":
                record = parse_json(file.read(offset, size), where)
            elif kind.rsplit(".", 1)[-1] in IMAGES:
                images.append(f"{key}.{kind}")
            elif kind.removesuffix(".npz").removesuffix(".safetensors").split(".")[-1] == "regions" and kind.endswith(
                SUFFIXES
            ):
                regions.append(f"{key}.{kind}")
            elif kind != "txt":
                unused.append("." + kind)
        if record.get("status", "success") != "success":
            why = record.get("error_message") or "no reason given"
            raise BadInput(f"{where}: img2dataset could not fetch it: {record['status']}: {why}")
        if not images:
            raise BadInput(f"{where}: no picture among its members ({', '.join(members)})")
        record = {
            name: value
            for name, value in record.items()
            if value is not None and name not in ("key", "image", "regions")
        }
        if "txt" in members and not record.keys() & {"caption", "captions", "question"}:
            try:
                record["caption"] = file.read(*members["txt"]).decode().strip()
            except UnicodeDecodeError as error:
                raise BadInput(f"{where}: its .txt is not UTF-8 at byte {error.start + 1}") from None
        if regions and len(regions) != len(images):
            raise BadInput(f"{where}: {len(regions)} region files for {len(images)} pictures")
        images.sort(key=_order)
        regions.sort(key=_order)
        record |= {"image": images if len(images) > 1 else images[0]}
        record |= {"regions": regions if len(images) > 1 else regions[0]} if regions else {}
        return record | dict.fromkeys(unused, ""), where, key

    def parse(self, number: int) -> Line:
        """A sample as a line, checked; its key is the tar's."""
        record, where, key = self.read(number)
        return parse_line(record | {"key": key}, where, key)

    def picture_of(self, line: Line, slot: int, number: int) -> Picture:
        """A picture of a sample, with its boxes or its regions."""
        entry = line.entries[slot]
        file, key, members = self._sample(int(self.index.lines[number]))
        offset, size = members[entry.name[len(key) + 1 :]]
        path = self._address(file, offset, size)
        width, height = entry.size
        if not (width and height) and (entry.regions or entry.boxes is not None):
            width, height = image_size(file.read(offset, size), f"{line.where}: {entry.name}")
        if entry.regions:
            kind = entry.regions[len(key) + 1 :]
            data = file.read(*members[kind])
            return read_picture(
                data, kind.rsplit(".", 1)[-1], (width, height), entry.name, path, f"{line.where}: {entry.regions}"
            )
        return empty_picture(line, slot, (width, height), path)

    def _address(self, file: Any, place: Any, size: int) -> str:
        """What a picture's path says."""
        return tar_address(file.path, place, size)

    def _sample(self, number: int) -> tuple[Any, str, dict[str, tuple[Any, int]]]:
        tar = int(np.searchsorted(self._starts, number, side="right")) - 1
        table, local = self._members[tar], number - int(self._starts[tar])
        span = slice(int(table.samples[local]), int(table.samples[local + 1]))
        places = zip(table.offsets[span].tolist(), table.sizes[span].tolist(), strict=True)
        members = dict(zip((kind.decode() for kind in table.kinds[span].tolist()), places, strict=True))
        return self._files[tar], table.keys[local].decode(), members


def write_tar(
    path: str | Path, samples: Iterable[tuple[str, Mapping[str, Any], Sequence[tuple[str, bytes]], Sequence[Picture]]]
) -> int:
    """Writes one tar shard, whole or not at all; the same samples give the same bytes.

    Args:
        path: the tar.
        samples: for each, its key (no dot in its last part), the fields of a `pairs.jsonl` line (without key, image
            and regions), its pictures as (suffix such as "jpg", bytes of the file), and the regions of the pictures
            (none, or one for each; their size must be known).

    Returns:
        How many samples were written.

    Raises:
        BadInput: a key with a dot or given twice, an unknown suffix, or fields that cannot be used.
    """
    from webdataset.writer import TarWriter

    path = Path(path)
    seen: set[str] = set()
    with (
        write_whole(path) as temporary,
        open(temporary, "wb") as handle,
        TarWriter(handle, encoder=False, mtime=0.0, format="PAX_FORMAT", compress=False) as writer,
    ):
        for key, record, images, regions in samples:
            where = f"{path}, sample {key}"
            if key in seen:
                raise BadInput(f"{where}: its key was already given")
            if not key or split_name(key)[1]:
                raise BadInput(f"{where}: a key is not empty and has no dot in its last part")
            seen.add(key)
            writer.write({"__key__": key, **_members(key, record, images, regions, where)})
    return len(seen)


def _members(
    key: str,
    record: Mapping[str, Any],
    images: Sequence[tuple[str, bytes]],
    regions: Sequence[Picture],
    where: str,
) -> dict[str, bytes]:
    suffixes = [suffix for suffix, _ in images]
    if not images or not set(suffixes) <= set(IMAGES):
        raise BadInput(f"{where}: its pictures are {suffixes}, expected one or more of {', '.join(IMAGES)}")
    if len(regions) not in (0, len(images)):
        raise BadInput(f"{where}: {len(regions)} region files for {len(images)} pictures")
    prefixes = [f"{number}." for number in range(len(images))] if len(images) > 1 else [""]
    members = {prefix + suffix: data for prefix, (suffix, data) in zip(prefixes, images, strict=True)}
    names = list(members)
    parse_line({**record, "key": key, "image": names if len(names) > 1 else names[0]}, where, key)
    for prefix, picture in zip(prefixes, regions, strict=False):
        members[f"{prefix}regions.npz"] = encode_regions(picture, "npz")
    members["json"] = json.dumps({**record, "key": key}, ensure_ascii=False).encode()
    return members
