"""Files that are whole or absent, and files that are read at any place by any process."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intarsia.errors import BadInput


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write to, and makes the file whole or absent.

    On leaving without an error the file is flushed to disk and takes its real name in one step.

    Args:
        path: the real name; its folder is made if it is not there.

    Yields:
        A name in the same folder, starting with a dot and ending in ".tmp". It is removed if the block raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Writes a value as JSON, whole or not at all."""
    with write_whole(path) as part:
        part.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes lines of text, whole or not at all."""
    with write_whole(path) as part:
        part.write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def told(path: Path | str, what: str) -> Iterator[None]:
    """Tells what a remote file system raises in one line, whatever its kind: back ends have errors of their own.

    Args:
        path: what is fetched.
        what: is done with it, such as "read".

    Raises:
        BadInput: names the path and why it cannot be.
    """
    try:
        yield
    except BadInput:
        raise
    except FileNotFoundError:
        raise BadInput(f"{path}: cannot be {what}: no such file") from None
    except Exception as error:
        raise BadInput(f"{path}: cannot be {what}: {error or type(error).__name__}") from None


def sha256_of(path: Path | str) -> str:
    """The sha256 of the bytes of a file, local or remote, in hexadecimal.

    Raises:
        BadInput: it cannot be read.
    """
    with told(path, "read"), open_file(str(path)) if is_remote(path) else open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address for fsspec: "s3://bucket/x.tar", "https://..", "memory://..". What it needs is installed by hand (s3fs, gcsfs)."""
    return "://" in str(path)


def join(folder: Path | str, *names: str) -> Path | str:
    """A path below a folder, local or remote. A name that is an address itself begins anew, as an absolute path does."""
    folder = folder if is_remote(folder) else Path(folder)
    for name in names:
        if is_remote(name) or not is_remote(folder):
            folder = name if is_remote(name) else Path(folder, name)
        else:
            protocol, _, inside = str(folder).partition("://")
            folder = f"{protocol}://{posixpath.normpath(posixpath.join(inside, name))}"
    return folder


def parent_of(path: Path | str) -> Path | str:
    """The folder of a path, local or remote."""
    return str(path).rstrip("/").rpartition("/")[0] if is_remote(path) else Path(path).parent


def is_file(path: Path | str) -> bool:
    """Whether there is such a file, local or remote.

    Raises:
        BadInput: an unknown protocol, or its package is missing.
    """
    if not is_remote(path):
        return Path(path).is_file()
    system, inside = file_system(str(path))
    return bool(system.isfile(inside))


def file_system(path: str) -> tuple[Any, str]:
    """The fsspec file system of a remote path, and the path in it.

    Raises:
        BadInput: an unknown protocol, or its package is missing.
    """
    import fsspec

    try:
        system, inside = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise BadInput(f"{path}: {error}") from None
    return system, str(inside)


def open_file(path: str) -> Any:
    """A remote file open for reading at any place.

    Raises:
        BadInput: it cannot be opened.
    """
    system, inside = file_system(path)
    with told(path, "opened"):
        return system.open(inside, "rb")


def read_remote(path: str, offset: int, size: int) -> bytes:
    """Exactly `size` bytes of a remote file from `offset`; only these are fetched.

    Raises:
        BadInput: it cannot be read or ends before them.
    """
    system, inside = file_system(path)
    with told(path, "read"):
        data = bytes(system.cat_file(inside, start=offset, end=offset + size)) if size else b""
    if len(data) != size:
        raise BadInput(
            f"{path}: ends after {offset + len(data)} bytes, {offset + size} expected (changed since it was indexed?)"
        )
    return data


def find_files(path: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files with these suffixes at a folder (the folders in it included) or a pattern with "*", local or remote, sorted.

    Raises:
        BadInput: a remote folder that cannot be listed.
    """
    system, inside = file_system(path)
    with told(path, "listed"):
        found = system.glob(inside) if "*" in inside else system.find(inside)
    whole = (system.unstrip_protocol(x) if is_remote(path) else x for x in map(str, found))
    return sorted(x for x in whole if x.endswith(suffixes))


class RandomAccess:
    """A file read at any place.

    Pickles without its handle and opens a fresh one in every process that reads, so it survives fork and spawn.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self._handle = -1
        self._pid = -1

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`.

        Raises:
            BadInput: the file cannot be opened or ends before them.
        """
        if is_remote(self.path):
            return read_remote(str(self.path), offset, size)
        if self._pid != os.getpid():
            try:
                self._handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                raise BadInput(f"{self.path}: cannot be opened: {error.strerror}") from None
            self._pid = os.getpid()
        data = os.pread(self._handle, size, offset)
        while 0 < len(data) < size:
            more = os.pread(self._handle, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        if len(data) != size:
            raise BadInput(
                f"{self.path}: ends after {os.fstat(self._handle).st_size} bytes, {offset + size} expected "
                "(changed since it was indexed?)"
            )
        return data

    def close(self) -> None:
        """Closes this process's handle, if it has one; reading again opens a new one."""
        if self._pid == os.getpid():
            os.close(self._handle)
        self._pid = -1

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()
