"""Pickles of plain numbers, names and arrays, read without running anything else that they ask for."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from intarsia.errors import BadInput

ALLOWED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("builtins", "complex"),
    ("builtins", "bytearray"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
"""All that a pickle may name: what arrays are rebuilt with under numpy 1 and 2, and plain containers."""


class Plain(pickle.Unpickler):
    """Reads what `ALLOWED` names, refuses the rest; nothing else that a pickle asks for is looked up, let alone run."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle names, if that is allowed."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}")
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def read_pickle(path: Path | str) -> Any:
    """What a pickle holds, strings of Python 2 included.

    Raises:
        BadInput: no such file, damaged, an array of objects, or a pickle that wants to run code (named).
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    with path.open("rb") as file:
        return _load(file, str(path))


def loads_pickle(data: bytes, where: str) -> Any:
    """What the bytes of a pickle hold, as `read_pickle`.

    Args:
        data: the pickle.
        where: names it in errors.

    Raises:
        BadInput: as `read_pickle`.
    """
    return _load(io.BytesIO(data), where)


def read_object_npy(path: Path | str) -> Any:
    """What the one object of an .npy file of objects is (such files wrap a pickle), or the array of one of numbers.

    Raises:
        BadInput: no such file, no .npy, or as `read_pickle`.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            _, _, kind = read(file)
            rest = file.read() if kind.hasobject else b""
        if not kind.hasobject:
            return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path}: not a whole .npy file: {str(error)[:100]}") from None
    # the wrapped array of objects itself is looked into, its members must be plain
    content = _load(io.BytesIO(rest), str(path), wrapped=True)
    content = content.tolist()
    no_objects(content, path)
    return content


def load_one(reader: Plain, where: str) -> Any:
    """The next pickle of a reader.

    Raises:
        BadInput: damaged, or a pickle that wants to run code (named).
    """
    try:
        return reader.load()
    except pickle.UnpicklingError as error:
        raise BadInput(f"{where}: refused: {error}; only numbers, names and arrays are read") from None
    except Exception as error:  # a damaged pickle raises anything
        raise BadInput(f"{where}: not a whole pickle: {type(error).__name__}: {str(error)[:100]}") from None


def _load(file: BinaryIO, where: str, wrapped: bool = False) -> Any:
    content = load_one(Plain(file, encoding="latin1"), where)
    if not wrapped:
        no_objects(content, where)
    elif not isinstance(content, np.ndarray):
        raise BadInput(f"{where}: holds a {type(content).__name__}, not an array")
    return content


def no_objects(content: Any, path: Path | str) -> None:
    """Raises BadInput if an array of objects is somewhere in plain containers."""
    if isinstance(content, np.ndarray) and content.dtype.hasobject:
        raise BadInput(f"{path}: refused: an array of objects; only numbers, names and arrays are read")
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list | tuple | set | frozenset):
        for part in content:
            no_objects(part, path)


def read_words(path: Path | str) -> list[str]:
    """A list of strings from an .npy file; one of objects is read as a pickle is, without running anything.

    Raises:
        BadInput: no such file, damaged, no row of strings, or a pickle that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            _, _, kind = read(file)
            content = Plain(file, encoding="latin1").load() if kind.hasobject else np.load(path, allow_pickle=False)
    except pickle.UnpicklingError as error:
        raise BadInput(f"{path}: refused: {error}; only strings are read") from None
    except Exception as error:
        raise BadInput(f"{path}: not a whole .npy file: {type(error).__name__}: {str(error)[:100]}") from None
    words = np.asarray(content).tolist()
    if not isinstance(words, list) or not all(isinstance(x, str) for x in words):
        raise BadInput(f"{path}: not a row of strings")
    return words
