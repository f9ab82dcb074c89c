"""Remote files at hand: whole copies in the cache of this machine, each checked when it comes.

What data say of a file's bytes is compared with them: the sha256 in `shards.json`, or that in a file SHA256SUMS of the same folder, as `sha256sum` writes
it. Captions and lists of names stay. Region shards pass through: where the disk gets full, those that were not used for the longest time go, so that a data
set may be larger than the disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from intarsia.data.fetch import cache_root
from intarsia.data.formats.files import file_system, is_file, is_remote, join, parent_of, sha256_of, told, write_whole
from intarsia.errors import BadInput

SUMS = "SHA256SUMS"
PIECE = 1 << 22
"""Bytes read at once."""
SPARE = 20
"""One part in so many of the disk is left free by what passes through."""


def at_hand(path: Path | str, sha256: str = "", passing: bool = False) -> Path:
    """A local file with the bytes of a path: itself, or a copy of the remote file.

    A copy is known by its sha256 where that is said, else by the address and what the file system says of the file (size, time or tag): a file that has
    changed is fetched anew.

    Args:
        path: a local path, which is given back, or an address for fsspec.
        sha256: of its bytes; "" = what SHA256SUMS in its folder says, if it does.
        passing: whether the copy may go when the disk gets full. Its bytes stay where they are open or mapped.

    Raises:
        BadInput: it cannot be fetched, or its bytes are not those of the sum.
    """
    if not is_remote(path):
        return Path(path)
    address = str(path)
    system, inside = file_system(address)
    folder = _cache() / ("passing" if passing else "kept")
    with told(address, "fetched"):
        sha256 = sha256 or _sums(str(parent_of(address))).get(inside.rsplit("/", 1)[-1], "")
        copy = folder / (sha256 or _mark(address))
        folder.mkdir(parents=True, exist_ok=True)
        while not _touched(copy):
            with FileLock(folder / f".{copy.name[:16]}.lock"):  # of several processes, one fetches
                if not copy.exists():
                    _fetch(address, system, inside, copy, sha256, passing)
    return copy


def beside(path: str, suffix: str) -> Path:
    """Where something that was made of a remote file, as it is now, is kept: a file with this suffix in the cache.

    Raises:
        BadInput: there is no such remote file.
    """
    with told(path, "opened"):
        return _cache() / "kept" / f"{_mark(path)}{suffix}"


def _touched(copy: Path) -> bool:
    """Whether a copy is there; it counts as used now."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def _cache() -> Path:
    return cache_root() / "remote"


def _mark(address: str) -> str:
    system, inside = file_system(address)
    return hashlib.sha256(f"{address} {system.ukey(inside)}".encode()).hexdigest()


def _fetch(address: str, system: Any, inside: str, copy: Path, sha256: str, passing: bool) -> None:
    size = int(system.info(inside).get("size") or 0)
    if passing:
        _make_room(copy.parent, size)
    try:
        with write_whole(copy) as temporary:
            system.get_file(inside, str(temporary))
            if size and temporary.stat().st_size != size:
                raise BadInput(f"{address}: {temporary.stat().st_size:,} of {size:,} bytes came")
            if sha256 and (found := sha256_of(temporary)) != sha256:
                raise BadInput(f"{address}: its bytes have changed: sha256 {found[:16]}.., {sha256[:16]}.. is expected")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise BadInput(f"{address}: {copy.parent} has no room for its {size:,} bytes") from None


def _make_room(folder: Path, size: int) -> None:
    """Removes copies, the longest unused first, until a file of `size` bytes leaves one part in SPARE of the disk free."""
    disk = shutil.disk_usage(folder)
    missing = size + disk.total // SPARE - disk.free
    copies = []
    for copy in folder.iterdir():
        with suppress(FileNotFoundError):  # other processes make room too
            if not copy.name.startswith("."):
                about = copy.stat()
                copies.append((about.st_mtime, about.st_size, copy))
    for _, gained, copy in sorted(copies):
        if missing <= 0:
            return
        copy.unlink(missing_ok=True)
        missing -= gained


def stated_sums(folder: Path | str) -> dict[str, str]:
    """What SHA256SUMS in a folder, local or remote, says of its files: name -> sha256; empty where there is no such file.

    Raises:
        BadInput: it cannot be read, or a line of it is none of `sha256sum`'s.
    """
    path = join(folder, SUMS)
    if not is_file(path):
        return {}
    with told(path, "read"):
        if is_remote(path):
            system, inside = file_system(str(path))
            text = system.cat_file(inside).decode()
        else:
            text = Path(path).read_text(encoding="utf-8")
    sums = {}
    for number, line in enumerate(text.splitlines(), 1):
        value, _, name = line.partition(" ")
        if len(value) != 64 or not set(value.lower()) <= set("0123456789abcdef") or not name[1:]:
            raise BadInput(f"{path}, line {number}: {line[:80]!r} is not a sha256 and a name")
        sums[name[1:].removeprefix("./")] = value.lower()
    sums.pop(SUMS, None)
    return sums


_sums = lru_cache(maxsize=256)(stated_sums)


class Passing:
    """A file read forward, whose bytes are compared with a sha256 as they pass; what is jumped over is read all the same.

    Args:
        handle: open at its beginning.
        sha256: of all its bytes.
    """

    def __init__(self, handle: Any, sha256: str) -> None:
        self._handle, self._sha256 = handle, sha256
        self._seen, self._sum = 0, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        at = self._handle.tell()
        data = bytes(self._handle.read(size))
        fresh = data[max(self._seen - at, 0) :]
        self._sum.update(fresh)
        self._seen += len(fresh)
        return data

    def seek(self, place: int) -> int:
        """Goes to a place from the beginning."""
        if place > self._seen:
            self._handle.seek(self._seen)
            while self._seen < place and self.read(min(PIECE, place - self._seen)):
                pass
        return int(self._handle.seek(place))

    def tell(self) -> int:
        """The place."""
        return int(self._handle.tell())

    def finish(self, path: str) -> None:
        """Reads what is left.

        Raises:
            BadInput: the bytes have another sha256.
        """
        self._handle.seek(self._seen)
        while self.read(PIECE):
            pass
        if (found := self._sum.hexdigest()) != self._sha256:
            raise BadInput(f"{path}: its bytes have changed: sha256 {found[:16]}.., {SUMS} says {self._sha256[:16]}..")


def stated_sum(path: str) -> str:
    """What SHA256SUMS beside a remote file says of it; "" where it says nothing."""
    return _sums(str(parent_of(path))).get(path.rpartition("/")[2], "")


def check_sum(folder: Path | str, name: str, sha256: str) -> None:
    """Compares a file's bytes with what SHA256SUMS says of them.

    Raises:
        BadInput: it cannot be read or has other bytes.
    """
    found = sha256_of(join(folder, name))
    if found != sha256:
        raise BadInput(
            f"{join(folder, name)}: its bytes have changed: sha256 {found[:16]}.., {SUMS} says {sha256[:16]}.."
        )
