"""LMDB environments read in any process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from intarsia.errors import BadInput, needs_extra


class _Opened:
    """An open environment. LMDB allows one a process and path: all who read it share it."""

    def __init__(self, path: Path) -> None:
        try:
            import lmdb
        except ImportError:
            raise needs_extra("formats", "lmdb") from None
        if not path.exists():
            raise BadInput(f"{path}: no such file or folder")
        try:
            self.environment: Any = lmdb.open(
                str(path),
                subdir=path.is_dir(),
                readonly=True,
                lock=False,
                readahead=False,
                create=False,
                max_spare_txns=4,
            )
        except lmdb.Error as error:
            raise BadInput(f"{path}: not an LMDB environment: {error}") from None


_OPENED: WeakValueDictionary[tuple[int, str], _Opened] = WeakValueDictionary()


def _close_inherited() -> None:
    for opened in list(_OPENED.values()):
        opened.environment.close()
    _OPENED.clear()


os.register_at_fork(after_in_child=_close_inherited)


def _shared(path: Path) -> _Opened:
    key = os.getpid(), os.path.realpath(path)
    opened = _OPENED.get(key)
    if opened is None:
        opened = _OPENED[key] = _Opened(path)
    return opened


class LmdbFile:
    """An LMDB environment, read only; pickles without its handle and is opened anew in every process.

    Args:
        path: the folder that holds `data.mdb`, or that file.

    Raises:
        BadInput: no such environment, a damaged one, or the package lmdb is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid = -1
        self._env: Any = None
        self._open()

    def _open(self) -> Any:
        if self._pid != os.getpid():
            self._env = _shared(self.path)
            self._pid = os.getpid()
        return self._env.environment

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        with self._open().begin() as transaction:
            value: bytes | None = transaction.get(key)
        return value

    def first(self) -> tuple[bytes, bytes] | None:
        """The first record, if there is one."""
        with self._open().begin() as transaction:
            cursor = transaction.cursor()
            return (bytes(cursor.key()), bytes(cursor.value())) if cursor.first() else None

    def listed(self) -> list[bytes]:
        """All keys, in the order stored."""
        with self._open().begin() as transaction:
            return list(transaction.cursor().iternext(values=False))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pid": -1, "_env": None}
