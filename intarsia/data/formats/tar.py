"""Tar shards as webdataset and img2dataset write them, read at random.

The members of one sample lie behind one another and share a key, the path up to the first dot of the base name:
`key.jpg` (or .jpeg, .png, .webp, .gif, .bmp; several as `key.0.jpg`, `key.1.jpg`), `key.txt` (the caption) or
`key.json` (fields of a `pairs.jsonl` line; img2dataset's "caption" is one of them), and perhaps `key.regions.npz` or
`key.regions.safetensors` (`key.0.regions.npz`, .. for several pictures). Other members are counted as unused fields.

Headers are walked once per tar; what was found is kept beside it as `NAME.tar.index.npz` where the folder can be
written, else in memory. Of a remote tar, which is read through once for this, its bytes compared with SHA256SUMS where that names it, the index and the texts are
kept in the cache; pictures and regions are fetched one by one.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from intarsia.batch import Picture
from intarsia.data.decode import image_size, tar_address
from intarsia.data.formats.copies import Passing, beside, stated_sum
from intarsia.data.formats.files import RandomAccess, find_files, is_remote, open_file, told, write_whole
from intarsia.data.formats.index import LineSource, OnError, build_index
from intarsia.data.formats.lines import Line, parse_json, parse_line
from intarsia.data.formats.pairs import empty_picture
from intarsia.data.formats.regions import SUFFIXES, encode_regions, read_picture
from intarsia.errors import BadInput

Array = NDArray[Any]
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
TEXTS = ("json", "txt")
INDEX_VERSION = 2


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
    texts: Array
    """(M) int64, where the bytes of a text member begin in the file of texts of a remote tar; -1 = they are in the tar only."""


def split_name(name: str) -> tuple[str, str]:
    """A member's key and kind: "a/b.0.jpg" is ("a/b", "0.jpg")."""
    base = PurePosixPath(name).name
    stem, _, kind = base.partition(".")
    return name[: len(name) - len(base)] + stem, kind.lower()


def _order(name: str) -> tuple[int, str]:
    number = split_name(name)[1].partition(".")[0]
    return len(number) if number.isdigit() else 0, name


def walk_tar(path: Path | str, texts: BinaryIO | None = None) -> Members:
    """Reads the headers of a tar.

    Args:
        path: of the tar.
        texts: gets the bytes of all text members, one behind another.

    Raises:
        BadInput: not an uncompressed tar, cut short, a key that comes back after other samples, or bytes of another sha256 than a remote tar's SHA256SUMS says.
    """
    if isinstance(path, str):
        with told(path, "read"), open_file(path) as handle:
            length, stated = handle.seek(0, 2), stated_sum(path)
            handle.seek(0)
            checked = Passing(handle, stated) if stated else None
            members = _walk(path, checked or handle, length, texts)
            if checked is not None:
                checked.finish(path)
            return members
    with open(path, "rb") as handle:
        return _walk(path, handle, path.stat().st_size, texts)


def _walk(path: Path | str, handle: Any, length: int, texts: BinaryIO | None) -> Members:
    keys: list[bytes] = []
    seen: set[str] = set()
    kinds: list[bytes] = []
    starts: list[int] = []
    offsets: list[int] = []
    sizes: list[int] = []
    said: list[int] = []
    last = ""
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
                said.append(-1 if texts is None or kind not in TEXTS else texts.tell())
                if texts is not None and kind in TEXTS:
                    handle.seek(member.offset_data)
                    texts.write(handle.read(member.size))
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
        texts=np.array(said, dtype=np.int64),
    )


def members_of(path: Path | str) -> tuple[Members, Path | None]:
    """The members of a tar, and of a remote one, named by text, the file of its texts.

    From the index beside it (of a remote one: in the cache) if that was made for this very file, else by walking it (and leaving an index).

    Raises:
        BadInput: as `walk_tar`, or the file is missing.
    """
    if isinstance(path, str):
        return _remote_members(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    index = path.with_name(path.name + ".index.npz")
    stamp = [path.stat().st_size, path.stat().st_mtime_ns]
    if (known := _read_members(index, stamp)) is not None:
        return known, None
    members = walk_tar(path)
    with suppress(OSError):  # in a folder that cannot be written the index lives in memory only
        _write_members(index, members, stamp)
    return members, None


def _remote_members(path: str) -> tuple[Members, Path]:
    index, texts = (beside(path, suffix) for suffix in (".index.npz", ".texts"))
    if texts.is_file() and (known := _read_members(index, [texts.stat().st_size])) is not None:
        return known, texts
    try:
        with write_whole(texts) as temporary, open(temporary, "wb") as handle:
            members = walk_tar(path, handle)
        _write_members(index, members, [texts.stat().st_size])
    except OSError as error:
        raise BadInput(f"{path}: its index cannot be kept in {index.parent}: {error}") from None
    return members, texts


def _read_members(index: Path, stamp: Sequence[int]) -> Members | None:
    """The index that was kept for a file of this stamp; None if it is absent, broken or of another file or version."""
    broken = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with suppress(*broken), np.load(index, allow_pickle=False) as kept:
        if kept["stamp"].tolist() == [INDEX_VERSION, *stamp]:
            return Members(*(kept[field.name] for field in fields(Members)))
    return None


def _write_members(index: Path, members: Members, stamp: Sequence[int]) -> None:
    with write_whole(index) as temporary, open(temporary, "wb") as handle:
        arrays = {field.name: getattr(members, field.name) for field in fields(Members)}
        np.savez(handle, stamp=np.array([INDEX_VERSION, *stamp], np.int64), **arrays)


class _Tar:
    """One tar, open for reading."""

    def __init__(self, path: Path | str, members: Members, texts: Path | None) -> None:
        self.path, self.members = path, members
        self._file, self._texts = RandomAccess(path), None if texts is None else RandomAccess(texts)

    def __len__(self) -> int:
        return len(self.members.keys)

    def sample(self, number: int) -> tuple[str, dict[str, int]]:
        """The key of a sample, and the number of its member of each kind."""
        numbers = range(int(self.members.samples[number]), int(self.members.samples[number + 1]))
        return self.members.keys[number].decode(), {self.members.kinds[i].decode(): i for i in numbers}

    def place(self, member: int) -> tuple[int, int]:
        """Where the bytes of a member begin in the tar, and how many there are."""
        return int(self.members.offsets[member]), int(self.members.sizes[member])

    def read(self, member: int) -> bytes:
        """The bytes of a member."""
        offset, size = self.place(member)
        said = int(self.members.texts[member])
        return self._file.read(offset, size) if self._texts is None or said < 0 else self._texts.read(said, size)


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
        self._tars: list[_Tar] = []
        broken: list[str] = []
        for tar in tars:
            try:
                self._tars.append(_Tar(tar, *members_of(tar)))
            except BadInput as error:
                if on_error == "stop":
                    raise
                broken.append(str(error))
        self._starts = np.cumsum([0] + [len(x) for x in self._tars])
        index, _ = build_index(int(self._starts[-1]), self.parse, split, on_error)
        self.index = replace(index, skipped=(*broken, *index.skipped))

    def read(self, number: int) -> tuple[dict[str, Any], str, str]:
        """A sample as a line: its .json, the caption in its .txt, and its pictures and region files by member name."""
        tar, key, members = self._sample(number)
        where = f"{tar.path}, sample {key}"
        record: dict[str, Any] = {}
        images, regions, unused = [], [], []
        for kind, member in members.items():
            if kind == "json":
                record = parse_json(tar.read(member), where)
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
                record["caption"] = tar.read(members["txt"]).decode().strip()
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
        tar, key, members = self._sample(int(self.index.lines[number]))
        member = members[entry.name[len(key) + 1 :]]
        path = self._address(tar, member)
        width, height = entry.size
        if not (width and height) and (entry.regions or entry.boxes is not None):
            width, height = image_size(tar.read(member), f"{line.where}: {entry.name}")
        if entry.regions:
            kind = entry.regions[len(key) + 1 :]
            data = tar.read(members[kind])
            return read_picture(
                data, kind.rsplit(".", 1)[-1], (width, height), entry.name, path, f"{line.where}: {entry.regions}"
            )
        return empty_picture(line, slot, (width, height), path)

    def _address(self, tar: Any, member: Any) -> str:
        """What a picture's path says."""
        return tar_address(tar.path, *tar.place(member))

    def _sample(self, number: int) -> tuple[Any, str, dict[str, Any]]:
        at = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._tars[at], *self._tars[at].sample(number - int(self._starts[at]))


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
