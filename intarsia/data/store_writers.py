"""Writers of region features in others' layouts: resumable after a kill, and nothing under the real name until all is there."""

from __future__ import annotations

import json
import os
import pickle
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from intarsia.batch import Picture
from intarsia.data.formats.butd_tsv import butd_line, lxmert_line
from intarsia.data.formats.files import write_whole
from intarsia.data.formats.oscar_tsv import oscar_lines
from intarsia.data.formats.store import in_pixels
from intarsia.data.formats.uniter_lmdb import NAMES as UNITER_NAMES
from intarsia.data.formats.uniter_lmdb import pack_record, write_counts
from intarsia.data.formats.vilbert import NAMES as VILBERT_NAMES
from intarsia.data.formats.vilbert import pack_dict
from intarsia.errors import BadInput, needs_extra


class StoreWriter(ABC):
    """Takes pictures one by one; what was begun and not finished is gone on with.

    Args:
        path: the real name, which must not be there.

    Raises:
        BadInput: it is there.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            raise BadInput(f"{path}: is already there")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        self.done: set[str] = set()
        """Names of the pictures that are safely stored, as the source calls them."""

    @abstractmethod
    def add(self, picture: Picture) -> None:
        """Takes a picture."""

    @abstractmethod
    def finish(self) -> None:
        """Gives the store its real name."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of the files, finished or not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TsvWriter(StoreWriter):
    """TSV of bottom-up attention ("butd"), LXMERT ("lxmert") or Oscar ("oscar", with files of labels and sizes), and its .lineidx."""

    def __init__(self, path: Path, layout: str) -> None:
        super().__init__(path)
        self.layout = layout
        if layout == "oscar" and not path.name.endswith(".feature.tsv"):
            raise BadInput(f"{path}: a feature file of Oscar's ends in .feature.tsv")
        stem = path.name.removesuffix(".feature.tsv")
        beside = [path.with_name(f"{stem}.{x}.tsv") for x in ("label", "hw")] if layout == "oscar" else []
        there = next((x for x in beside if x.exists()), None)
        if there is not None:
            raise BadInput(f"{there}: is already there")
        self._paths = [path, *beside]
        self._partials = [x.with_name(f".{x.name}.partial") for x in self._paths]
        lines = [_whole_lines(x) for x in self._partials]
        common = min(map(len, lines))
        for partial, found in zip(self._partials, lines, strict=True):
            _cut(partial, found[:common])
        self.done = {name for name, _ in lines[0][:common]}
        self._files: list[BinaryIO] = [open(x, "ab") for x in self._partials]  # noqa: SIM115

    def add(self, picture: Picture) -> None:
        """Takes a picture."""
        lines: tuple[bytes, ...]
        if self.layout == "oscar":
            lines = oscar_lines(picture)
        else:
            lines = (butd_line(picture) if self.layout == "butd" else lxmert_line(picture),)
        for file, line in zip(self._files, lines, strict=True):
            file.write(line)
        self.done.add(picture.name)

    def finish(self) -> None:
        """Gives the files their real names, that of the features last."""
        for file, partial, path in reversed(list(zip(self._files, self._partials, self._paths, strict=True))):
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
        for path in self._paths:
            offsets = [0, *(end for _, end in _whole_lines(path))]
            with write_whole(path.with_suffix(".lineidx")) as temporary:
                temporary.write_text("".join(f"{x}\n" for x in offsets[:-1]))

    def close(self) -> None:
        """Lets go of the files."""
        for file in self._files:
            file.close()


def _whole_lines(path: Path) -> list[tuple[str, int]]:
    """First column and end of each whole line; what comes after the last one is cut off."""
    if not path.exists():
        return []
    found, at = [], 0
    with open(path, "r+b") as handle:
        for line in handle:
            if not line.endswith(b"\n"):
                handle.truncate(at)
                break
            at += len(line)
            found.append((line.split(b"\t", 1)[0].decode(), at))
    return found


def _cut(path: Path, lines: list[tuple[str, int]]) -> None:
    if path.exists():
        os.truncate(path, lines[-1][1] if lines else 0)


class LmdbWriter(StoreWriter):
    """LMDB of UNITER ("uniter", "uniter-npz") or of ViLBERT, 12-in-1 and volta ("vilbert"); a transaction holds `every` pictures."""

    every = 256

    def __init__(self, path: Path, layout: str) -> None:
        super().__init__(path)
        try:
            import lmdb
        except ImportError:
            raise needs_extra("formats", "lmdb") from None
        self.layout = layout
        self._held: list[tuple[bytes, bytes]] = []
        self._env: Any = lmdb.open(str(self.partial), map_size=2**40, meminit=False)
        self.done = {x.decode() for x in self._keys()}

    def add(self, picture: Picture) -> None:
        """Takes a picture."""
        value = pack_dict(picture) if self.layout == "vilbert" else pack_record(picture, self.layout == "uniter-npz")
        name = picture.name if self.layout == "vilbert" or picture.name.endswith(".npz") else f"{picture.name}.npz"
        if not 0 < len(name.encode()) <= 511:
            raise BadInput(f"picture {picture.name[:60]}: a name in LMDB has 1 to 511 bytes")
        self._held.append((name.encode(), value))
        if len(self._held) == self.every:
            self._flush()
        self.done.add(picture.name)

    def _keys(self) -> list[bytes]:
        with self._env.begin() as transaction:
            return [bytes(x) for x in transaction.cursor().iternext(values=False)]

    def _flush(self) -> None:
        with self._env.begin(write=True) as transaction:
            for key, value in self._held:
                transaction.put(key, value)
        self._held = []

    def finish(self) -> None:
        """Stores the list of names and gives the environment its real name."""
        self._flush()
        keys = [x for x in self._keys() if x not in (UNITER_NAMES, VILBERT_NAMES)]
        listed = pickle.dumps(keys, protocol=4)
        if self.layout != "vilbert":
            listed = json.dumps([x.decode() for x in keys]).encode()
        with self._env.begin(write=True) as transaction:
            transaction.put(VILBERT_NAMES if self.layout == "vilbert" else UNITER_NAMES, listed)
        self._env.sync(True)
        self.close()
        os.replace(self.partial, self.path)
        if self.layout != "vilbert":
            write_counts(self.path)

    def close(self) -> None:
        """Lets go of the environment."""
        self._env.close()


class VoltaWriter(StoreWriter):
    """volta's HDF5. HDF5 does not survive a kill while it is written: such a run starts again."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            import h5py
        except ImportError:
            raise needs_extra("formats", "h5py") from None
        self._stack = ExitStack()
        self._file: Any = self._stack.enter_context(h5py.File(self.partial, "w"))

    def add(self, picture: Picture) -> None:
        """Takes a picture."""
        boxes = in_pixels(picture)
        group = self._file.create_group(picture.name)
        fields: dict[str, Any] = {"features": picture.features.astype(np.float32), "boxes": boxes}
        fields |= {"img_w": picture.width, "img_h": picture.height}
        for theirs, values, shift in (
            ("obj_id", picture.labels, 1),
            ("obj_conf", picture.scores, 0),
            ("attr_id", picture.attributes, 1),
            ("attr_conf", picture.attribute_scores, 0),
        ):
            if values is not None:
                if shift and len(values) and values.min() < 1:
                    raise BadInput(
                        f"picture {picture.name}: {theirs} of region {int(values.argmin())} would be background"
                    )
                fields[theirs] = values - shift if shift else values
        for name, value in fields.items():
            group[name] = value
        self.done.add(picture.name)

    def finish(self) -> None:
        """Gives the file its real name."""
        self._stack.close()
        with open(self.partial, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(self.partial, self.path)

    def close(self) -> None:
        """Lets go of the file; an unfinished one is removed."""
        self._stack.close()
        self.partial.unlink(missing_ok=True)
