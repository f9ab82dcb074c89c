"""Weights of PaddlePaddle's fluid: one file a variable, named like it, in a folder or a .tar.gz of one. Read byte by byte; no Paddle, nothing is run.

    uint32 0 | uint64 levels, then each level: uint64 bytes, data | uint32 0 | int32 n | n bytes protobuf: 1 = type, 2 = sizes | numbers

All little-endian. Levels (of sequences of sequences) are passed over: parameters have none. The layout is that of fluid's `save_vars`, from memory; no file
that Paddle itself wrote was at hand.
"""

from __future__ import annotations

import io
import math
import struct
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from intarsia.errors import BadInput
from intarsia.weights.keymap import Move

TYPES = {0: "?", 1: "<i2", 2: "<i4", 3: "<i8", 4: "<f2", 5: "<f4", 6: "<f8", 20: "u1", 21: "i1"}
"""Number of a type in the header -> numpy's name."""
ARCHIVES = (".tar.gz", ".tgz", ".tar")
BESIDE = (".json", ".txt", ".md")
"""Endings of files that lie beside the variables (config, vocabulary) and are none."""
MOST_AXES = 9


def read_folder(path: Path | str) -> dict[str, Tensor]:
    """Every variable of a folder, or of an archive of one, by its name.

    Raises:
        BadInput: there is none, or a file is no whole variable (names it).
    """
    path = Path(path)
    found: dict[str, Tensor] = {}
    for name, content in _files(path):
        if name in found:
            raise BadInput(f"{path}: the variable {name} is there twice")
        found[name] = read_variable(content, f"{path}: {name}")
    if not found:
        raise BadInput(f"{path}: no variables of Paddle in it")
    return found


def read_combined(path: Path | str, names: Sequence[str]) -> dict[str, Tensor]:
    """The variables of one file that holds them behind one another without names, in the order of `names` (fluid sorts them).

    Raises:
        BadInput: no such file, or it does not hold as many whole variables.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    stream, found = io.BytesIO(content), {}
    for name in names:
        found[name] = _variable(stream, len(content), f"{path}: {name}")
    if left := len(content) - stream.tell():
        raise BadInput(f"{path}: {left} bytes are left over behind {len(names)} variables")
    return found


def read_variable(content: bytes, where: str) -> Tensor:
    """One variable from the bytes of its file.

    Raises:
        BadInput: not a whole variable, or more than one.
    """
    stream = io.BytesIO(content)
    value = _variable(stream, len(content), where)
    if left := len(content) - stream.tell():
        raise BadInput(f"{where}: {left} bytes are left over behind the variable")
    return value


def write_archive(path: Path | str, state: Mapping[str, Tensor]) -> None:
    """Writes a .tar.gz with one file a variable; the same state gives the same members in the same order."""
    path = Path(path)
    mode = "w" if ".tar" in path.suffixes and ".gz" not in path.suffixes else "w:gz"
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, value in sorted(state.items()):
            content = write_variable(value)
            about = tarfile.TarInfo(f"params/{name}")
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))


def write_variable(value: Tensor) -> bytes:
    """One variable as the bytes of its file.

    Raises:
        BadInput: a type that the format has no number for.
    """
    array = np.ascontiguousarray(value.detach().cpu().numpy())
    kind = next((number for number, name in TYPES.items() if np.dtype(name) == array.dtype), None)
    if kind is None:
        raise BadInput(f"Paddle's files hold no numbers of type {array.dtype}")
    about = b"\x08" + _varint(kind) + b"".join(b"\x10" + _varint(size) for size in value.shape)
    return struct.pack("<IQIi", 0, 0, 0, len(about)) + about + array.tobytes()


def is_folder(path: Path) -> bool:
    """Whether a folder looks like one of variables: it has files without an ending of `BESIDE`, all of which begin like one."""
    names = [x for x in path.iterdir() if x.is_file() and not x.name.endswith(BESIDE)]
    return bool(names) and all(_begins(x) for x in names)


def fc(theirs: str, ours: str) -> tuple[Move, Move]:
    """Rules of a fully connected layer, whose matrix is stored [in, out]. `theirs` has no separator at its end, `ours` has."""
    return Move(theirs + ".w_0", ours + "weight", turned=True), Move(theirs + ".b_0", ours + "bias")


def norm(theirs: str, ours: str) -> tuple[Move, Move]:
    """Rules of a LayerNorm; names as for `fc`."""
    return Move(theirs + "_scale", ours + "weight"), Move(theirs + "_bias", ours + "bias")


def layer(theirs: str, ours: str) -> tuple[Move, ...]:
    """Rules of the layers of ERNIE's encoder; `{i}` in both names stands for the number, `theirs` ends with "_"."""
    return (
        *fc(theirs + "multi_head_att_{query,key,value}_fc", ours + "attention.qkv."),
        *fc(theirs + "multi_head_att_output_fc", ours + "attention.out."),
        *after_attention(theirs, ours),
    )


def after_attention(theirs: str, ours: str) -> tuple[Move, ...]:
    """Rules of what follows attention in a layer of ERNIE; names as for `layer`."""
    return (
        *norm(theirs + "post_att_layer_norm", ours + "attention_norm."),
        *fc(theirs + "ffn_fc_0", ours + "up."),
        *fc(theirs + "ffn_fc_1", ours + "down."),
        *norm(theirs + "post_ffn_layer_norm", ours + "norm."),
    )


def _begins(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == bytes(4)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file that should hold a variable; an archive is read member by member, nothing is unpacked to disk."""
    try:
        if path.is_dir():
            for file in sorted(x for x in path.iterdir() if x.is_file() and not x.name.endswith(BESIDE)):
                yield file.name, file.read_bytes()
            return
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                content = archive.extractfile(member) if member.isfile() and not name.endswith(BESIDE) else None
                if content is not None:
                    yield name, content.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None


def _variable(stream: BinaryIO, size: int, where: str) -> Tensor:
    """The next variable of a stream of `size` bytes."""

    def take(count: int) -> bytes:
        if count < 0 or count > size - stream.tell():
            raise BadInput(f"{where}: {count} bytes wanted at byte {stream.tell()}, the file has {size}")
        return stream.read(count)

    version, levels = struct.unpack("<IQ", take(12))
    if version != 0:
        raise BadInput(f"{where}: not a variable of Paddle: it begins with version {version}, not 0")
    for _ in range(levels):
        take(struct.unpack("<Q", take(8))[0])
    version, count = struct.unpack("<Ii", take(8))
    if version != 0:
        raise BadInput(f"{where}: a tensor of version {version}, only 0 is known")
    kind, shape = _describe(take(count), where)
    numbers = np.frombuffer(take(math.prod(shape) * kind.itemsize), kind)
    return torch.from_numpy(numbers.reshape(shape).copy())


def _describe(about: bytes, where: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape out of the protobuf message TensorDesc: field 1 a number, field 2 numbers one by one or packed."""
    fields = _Numbers(about, where)
    kind, shape = -1, list[int]()
    while fields.more():
        match fields.next():
            case 0x08:
                kind = fields.next()
            case 0x10:
                shape.append(fields.next())
            case 0x12:
                packed = fields.next()
                end = fields.at + packed
                while fields.at < end:
                    shape.append(fields.next())
            case tag:
                raise BadInput(f"{where}: its description has an unknown field {tag >> 3}")
    if kind not in TYPES:
        raise BadInput(f"{where}: numbers of type {kind}, known are {', '.join(map(str, TYPES))}")
    if len(shape) > MOST_AXES or any(not 0 <= x < 1 << 40 for x in shape):
        raise BadInput(f"{where}: shape {shape}")
    return np.dtype(TYPES[kind]), tuple(shape)


class _Numbers:
    """The varints of a protobuf message, one after another."""

    def __init__(self, content: bytes, where: str) -> None:
        self.content, self.where, self.at = content, where, 0

    def more(self) -> bool:
        return self.at < len(self.content)

    def next(self) -> int:
        value = shift = 0
        while self.more() and shift < 64:
            byte = self.content[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
        raise BadInput(f"{self.where}: its description ends early")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
