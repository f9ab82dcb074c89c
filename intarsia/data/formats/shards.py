"""Region shards, the format training reads.

A folder with

    shards.json                what made the features, and every shard with its counts and sha256
    shard-00000.safetensors    what made the features, once more, as metadata; features (R, F) float16, boxes (R, 4) float32 fractions, cu_regions (n + 1) int64,
                               sizes (n, 2) int64 (wide, high); scores (R) float16, probs (R, C) float16, labels (R)
                               int64, attributes (R) int64, attribute_scores (R) float16 where the extractor gives them
    shard-00000.json           the names of its n pictures
    pairs.jsonl                the captions: lines as everywhere, `image` names the picture; boxes are not read here

Readers map the shards into memory and slice: a picture's features are never copied before they are packed.
"""

from __future__ import annotations

import json
import os
import shutil
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from intarsia.batch import Picture, Regions, Sample
from intarsia.data.formats.files import is_remote, join, sha256_of, write_whole
from intarsia.data.formats.index import LineSource, OnError, build_index
from intarsia.data.formats.lines import Line
from intarsia.data.formats.pairs import LINES, LineFile, write_pairs
from intarsia.data.formats.regions import EXTRAS, INTEGERS, check_shapes
from intarsia.data.formats.shard_files import INDEX, MADE, Mapped, Shard, ShardIndex, check_shard, map_shard, read_names
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.packed import Packing

Array = NDArray[Any]
MAPPED = 16
"""Shards of a remote folder that a process keeps open, as their copies take room until they are closed."""


# -------------------------------------------------------------------------------------------------------------- writing


class ShardWriter:
    """Writes region shards.

    Killed at any moment it leaves whole shards only, and a new writer on the same folder goes on from them.

    Args:
        root: the folder; made if it is not there.
        provenance: what makes the features; a folder begun with another is refused.
        images: folder that picture names are relative to, relative to `root`; "" when the pixels are not to be found
            later.
        pictures_per_shard: how many pictures go into one file; at most so many are lost when the writer is killed.
        regions: "found" by the extractor or "given" by the data; "" = not known.

    Raises:
        BadInput: the folder was begun by another extractor, with other settings, or with regions chosen in the other way.
    """

    def __init__(
        self,
        root: str | Path,
        provenance: Provenance,
        images: str = "",
        pictures_per_shard: int = 1024,
        regions: str = "",
    ) -> None:
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self._per_shard = pictures_per_shard
        self._index = ShardIndex(provenance, images=images, regions=regions)
        self._written = b""
        if (self.root / INDEX).exists():
            self._index = ShardIndex.read(self.root)
            self._written = (self.root / INDEX).read_bytes()
        _must_equal(self.root, self._index, provenance, regions)
        listed = {x.name for x in self._index.shards}
        for path in [*self.root.glob("shard-*.*"), *self.root.glob(".*.tmp")]:
            if path.stem not in listed:
                path.unlink()  # what a killed writer left behind: part of no index
        self._done = {name for shard in self._index.shards for name in read_names(self.root, shard)}
        self._held: list[Picture] = []

    def done(self) -> frozenset[str]:
        """Names of the pictures that are safely on disk."""
        return frozenset(self._done) - {x.name for x in self._held}

    def ready(self, picture: Picture) -> Picture:
        """A picture as it is stored.

        Raises:
            BadInput: its features or boxes cannot be, see `add`.
        """
        return _stored(picture, self._index.provenance)

    def add(self, picture: Picture) -> None:
        """Takes a picture; every `pictures_per_shard` of them one shard is written.

        Raises:
            BadInput: given before; features not as wide as the provenance says, not finite or too large for float16;
                box without area or outside the picture; labels or attributes that the provenance has no name for; or
                scores, probs, labels, attributes present in some pictures only.
        """
        if picture.name in self._done:
            raise BadInput(f"picture {picture.name}: already stored in {self.root}")
        extras = tuple(name for name in EXTRAS if getattr(picture, name) is not None)
        if not self._index.shards and not self._held:
            self._index = replace(self._index, extras=extras)
        if extras != self._index.extras:
            raise BadInput(
                f"picture {picture.name}: has {_list(extras)}, the pictures before it have {_list(self._index.extras)}"
            )
        self._held.append(self.ready(picture))
        self._done.add(picture.name)
        if len(self._held) == self._per_shard:
            self._flush()

    def finish(self, records: Iterable[Mapping[str, Any]], on_missing: OnError = "stop") -> int:
        """Writes the last shard and the captions.

        Args:
            records: JSON objects as in `lines.py`; `image` names stored pictures.
            on_missing: what to do with a line that names a picture that was not stored: "stop" raises, "skip" leaves
                it out and counts it.

        Returns:
            How many lines were left out.

        Raises:
            BadInput: a record cannot be used or ("stop") names a picture that is not stored.
        """
        self._flush()
        left_out = 0

        def present() -> Iterable[Mapping[str, Any]]:
            nonlocal left_out
            for record in records:
                names = record.get("image")
                missing = [
                    x
                    for x in (names if isinstance(names, list) else [names])
                    if isinstance(x, str) and x not in self._done
                ]
                if missing and on_missing == "stop":
                    raise BadInput(
                        f"{self.root}: line {record.get('key', '')!s} names picture {missing[0]}, which has no regions"
                    )
                left_out += bool(missing)
                if not missing:
                    yield record

        write_pairs(self.root / LINES, present())
        self._save(replace(self._index, finished=True, left_out=left_out))
        return left_out

    def close(self) -> None:
        """Writes the last shard and no captions: for a folder that another one will take over."""
        self._flush()

    def take_over(self, part: Path) -> None:
        """Makes the shards of another folder of the same extractor part of this one, and removes that folder.

        Killed at any moment, a second call ends the work: no shard is lost and none comes twice.

        Raises:
            BadInput: the folder was made by another extractor or with other settings.
        """
        index = ShardIndex.read(part) if (part / INDEX).exists() else None
        if index is not None:
            _must_equal(part, index, self._index.provenance, self._index.regions)
            known = {x.names_sha256 for x in self._index.shards}
            for shard in index.shards:
                if shard.names_sha256 not in known:
                    self._take(part, shard, index.extras)
        shutil.rmtree(part)

    def _take(self, part: Path, shard: Shard, extras: tuple[str, ...]) -> None:
        if not self._index.shards:
            self._index = replace(self._index, extras=extras)
        if extras != self._index.extras:
            raise BadInput(f"{part}: has {_list(extras)}, the shards of {self.root} have {_list(self._index.extras)}")
        name = f"shard-{len(self._index.shards):05d}"
        for suffix in (".safetensors", ".json"):
            there, here = part / f"{shard.name}{suffix}", self.root / f"{name}{suffix}"
            try:
                os.link(there, here)
            except OSError:  # a file system without links
                with write_whole(here) as temporary:
                    shutil.copyfile(there, temporary)
        self._save(replace(self._index, shards=(*self._index.shards, replace(shard, name=name)), finished=False))
        self._done |= set(read_names(part, shard))

    def _flush(self) -> None:
        if not self._held:
            return
        name = f"shard-{len(self._index.shards):05d}"
        columns = {
            field: np.concatenate([getattr(x, field) for x in self._held])
            for field in ("features", "boxes", *self._index.extras)
        }
        columns["cu_regions"] = np.cumsum([0] + [len(x.boxes) for x in self._held], dtype=np.int64)
        columns["sizes"] = np.array([(x.width, x.height) for x in self._held], dtype=np.int64).reshape(-1, 2)
        arrays, names = self.root / f"{name}.safetensors", self.root / f"{name}.json"
        with write_whole(arrays) as temporary:
            save_file(columns, temporary, metadata={MADE: self._index.provenance_text()})
        with write_whole(names) as temporary:
            temporary.write_text(
                json.dumps({"names": [x.name for x in self._held]}, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        shard = Shard(
            name, len(self._held), len(columns["boxes"]), arrays.stat().st_size, sha256_of(arrays), sha256_of(names)
        )
        self._save(replace(self._index, shards=(*self._index.shards, shard), finished=False))
        self._held = []

    def _save(self, index: ShardIndex) -> None:
        path = self.root / INDEX
        if (path.read_bytes() if path.exists() else b"") != self._written:
            raise BadInput(f"{path}: changed while this run was writing; does another run write to the same folder?")
        self._written = index.text().encode()
        with write_whole(path) as temporary:
            temporary.write_bytes(self._written)
        self._index = index


def _must_equal(folder: Path, before: ShardIndex, now: Provenance, regions: str) -> None:
    if before.regions != regions and before.regions and regions:
        raise BadInput(f"{folder}: begun with boxes {before.regions}, now {regions}; use another folder")
    for field in fields(Provenance):
        then, today = getattr(before.provenance, field.name), getattr(now, field.name)
        if then != today:
            raise BadInput(f"{folder}: begun with {field.name} {_brief(then)}, now {_brief(today)}; use another folder")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "no scores, probs, labels or attributes"


def _stored(picture: Picture, provenance: Provenance) -> Picture:
    where = f"picture {picture.name}"
    if picture.features.ndim != 2 or picture.features.shape[1] != provenance.width:
        raise BadInput(
            f"{where}: features of shape {picture.features.shape}, "
            f"expected (R, {provenance.width}) from {provenance.extractor}"
        )
    with np.errstate(over="ignore"):
        arrays: dict[str, Any] = {
            "features": picture.features.astype(np.float16),
            "boxes": picture.boxes.astype(np.float32),
        }
        for name in EXTRAS:
            if getattr(picture, name) is not None:
                arrays[name] = getattr(picture, name).astype(np.int64 if name in INTEGERS else np.float16)
    check_shapes(arrays, where)
    check_fractions(arrays["boxes"], where)
    for name, known, what in (
        ("labels", provenance.classes, "classes"),
        ("attributes", provenance.attributes, "attributes"),
    ):
        ids = arrays.get(name, np.zeros(0, np.int64))
        if known and len(ids) and not 0 <= ids.min() <= ids.max() < len(known):
            raise BadInput(
                f"{where}: {name} from {ids.min()} to {ids.max()}, but {provenance.extractor} has {len(known)} {what}"
            )
    probs = arrays.get("probs")
    if provenance.classes and probs is not None and probs.shape[1] != len(provenance.classes):
        raise BadInput(
            f"{where}: probs of {probs.shape[1]} classes, but {provenance.extractor} has {len(provenance.classes)}"
        )
    return Picture(name=picture.name, width=picture.width, height=picture.height, **arrays)


def check_fractions(boxes: Array, where: str) -> None:
    """Checks boxes (R, 4) given as fractions.

    Raises:
        BadInput: one has no area or is outside the picture (gives its number and values).
    """
    good = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] <= 1).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    if not good.all():
        bad = int(np.argmin(good))
        values = ", ".join(f"{x:g}" for x in boxes[bad])
        raise BadInput(f"{where}: box {bad} [{values}] has no area or is outside the picture (fractions from 0 to 1)")


# -------------------------------------------------------------------------------------------------------------- reading


class ShardSource(LineSource):
    """Region shards as a data set. Pictures are views into mapped files: read them, do not write to them.

    Samples whose line gives neither tags nor labels get the names of the detector's labels as tags,
    background (class 0) left out.

    Args:
        root: the folder, local or remote; remote shards are fetched when they are first needed (see `copies.at_hand`).
        split: "train", "val" or "test"; None = all lines.
        verify: compares the sha256 of every file first (reads all of it).
        on_error: "stop" raises at the first line that cannot be used, "skip" leaves it out and keeps the message in
            `skipped`.

    Raises:
        BadInput: an unfinished folder, a missing, cut or (`verify`) changed file, or a line that cannot be used.
    """

    def __init__(
        self, root: str | Path, split: str | None = None, verify: bool = False, on_error: OnError = "stop"
    ) -> None:
        self._open(root, verify)
        names = (name for shard in self.shards.shards for name in read_names(self.root, shard))
        hashes = np.fromiter(map(hash, names), np.int64)
        order = hashes.argsort(kind="stable")
        ordered = hashes[order]

        def parse_stored(number: int) -> Line:
            line = self.parse(number)
            for entry in line.entries:
                place = int(ordered.searchsorted(hash(entry.name)))
                if place == len(ordered) or ordered[place] != hash(entry.name):
                    raise BadInput(f"{line.where}: picture {entry.name} is in none of the shards")
            return line

        self.lines = LineFile(join(self.root, LINES))
        self.index, named = build_index(len(self.lines), parse_stored, split, on_error)
        self._stored = order[ordered.searchsorted(named)]

    def _open(self, root: str | Path, verify: bool) -> None:
        self.root: Path | str = join(root)
        self.shards = ShardIndex.read(self.root)
        self.provenance = self.shards.provenance
        if not self.shards.finished:
            done = sum(x.pictures for x in self.shards.shards)
            raise BadInput(
                f"{self.root}: not finished ({done} pictures so far, no captions); run the extraction again to go on"
            )
        for shard in self.shards.shards:
            check_shard(self.root, shard, verify)
        self._images = join(self.root, self.shards.images)
        self._starts = np.cumsum([0] + [x.pictures for x in self.shards.shards]).tolist()
        self._mapped: list[Mapped | None] = [None] * len(self.shards.shards)
        self._opened: deque[int] = deque()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": [None] * len(self._mapped), "_opened": deque()}

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        classes = self.shards.provenance.classes
        if sample.tags or not classes:
            return sample
        pictures = tuple(
            x if x.labels is None else replace(x, tags=tuple(classes[i] for i in x.labels.tolist() if i > 0))
            for x in sample.pictures
        )
        return replace(sample, pictures=pictures)

    def read(self, number: int) -> tuple[dict[str, Any], str, str]:
        """A line of `pairs.jsonl`."""
        return self.lines.read(number)

    def picture_of(self, line: Line, slot: int, number: int) -> Picture:
        """A picture of a line: views into its shard."""
        unique = int(self.index.pictures[self.index.slots[number] + slot])
        return self._view(int(self._stored[unique]), line.entries[slot].name)

    def gather(self, pictures: Sequence[int]) -> Regions:
        """The regions of pictures by number, packed, in one copy from the mapped files.

        What `intarsia.pack.pack` makes of the pictures when nothing is hidden.

        Args:
            pictures: picture numbers as `picture` takes them; repeats are allowed.
        """
        spans = []
        for number in self._stored[np.asarray(pictures, dtype=np.int64)].tolist():
            shard, local = self._place(number)
            spans.append((shard.arrays, shard.cu[local], shard.cu[local + 1]))

        def column(name: str) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([arrays[name][start:end] for arrays, start, end in spans]))

        packing = Packing.of([end - start for _, start, end in spans])
        zeros = torch.zeros(packing.rows, dtype=torch.int64)
        extras = self.shards.extras
        return Regions(
            feats=column("features"),
            boxes=column("boxes"),
            segment_ids=zeros,
            position_ids=packing.pos,
            image=zeros,
            masked=torch.zeros(packing.rows, dtype=torch.bool),
            packing=packing,
            probs=column("probs") if "probs" in extras else None,
            labels=column("labels") if "labels" in extras else None,
        )

    def _place(self, number: int) -> tuple[Mapped, int]:
        at = bisect_right(self._starts, number) - 1
        shard = self._mapped[at]
        if shard is None:
            shard = self._mapped[at] = map_shard(self.root, self.shards.shards[at], self.shards)
            self._opened.append(at)
            if is_remote(self.root) and len(self._opened) > MAPPED:
                self._mapped[self._opened.popleft()] = None
        return shard, number - self._starts[at]

    def _view(self, number: int, name: str) -> Picture:
        shard, local = self._place(number)
        arrays, start, end = shard.arrays, shard.cu[local], shard.cu[local + 1]
        width, height = arrays["sizes"][local].tolist()
        said: dict[str, Any] = {x: arrays[x][start:end] for x in EXTRAS if x in arrays}
        said |= {x: said[x].astype(np.float32) for x in ("scores", "attribute_scores") if x in said}
        return Picture(
            name=name,
            features=arrays["features"][start:end],
            boxes=arrays["boxes"][start:end],
            width=width,
            height=height,
            path=str(join(self._images, name)) if self.shards.images else "",
            **said,
        )
