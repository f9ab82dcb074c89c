"""The files of a folder of region shards: its index, and arrays mapped into memory. `shards.py` says what they hold."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray

from intarsia.data.formats.copies import at_hand
from intarsia.data.formats.files import is_file, is_remote, join, sha256_of
from intarsia.data.source import Provenance
from intarsia.errors import BadInput

Array = NDArray[Any]
INDEX = "shards.json"
VERSION = 1
MADE = "provenance"
"""Name of the metadata of a shard that says what made its features."""
DTYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "U8": np.uint8}


class Listed(Protocol):
    """What an index says of the files NAME.safetensors and NAME.json of one shard, whatever it holds."""

    @property
    def name(self) -> str:
        """Of both files, without suffix."""

    @property
    def size(self) -> int:
        """Bytes of the .safetensors file."""

    @property
    def sha256(self) -> str:
        """Of the .safetensors file."""

    @property
    def names_sha256(self) -> str:
        """Of the .json file."""


@dataclass(frozen=True)
class Shard:
    """One shard as `shards.json` lists it."""

    name: str
    pictures: int
    regions: int
    size: int
    """Bytes of the .safetensors file."""
    sha256: str
    """Of the .safetensors file."""
    names_sha256: str
    """Of the .json file."""


@dataclass(frozen=True)
class ShardIndex:
    """`shards.json`."""

    provenance: Provenance
    extras: tuple[str, ...] = ()
    """Which of scores, probs, labels, attributes and attribute_scores the shards hold."""
    shards: tuple[Shard, ...] = ()
    images: str = ""
    """Folder that picture names are relative to, itself relative to the shards' folder; "" = pixels not at hand."""
    finished: bool = False
    """Whether `pairs.jsonl` was written."""
    left_out: int = 0
    """Lines that were not written because a picture of theirs has no regions."""
    regions: str = ""
    """How the boxes were chosen: "found" by the extractor, "given" by the data; "" = not known."""

    @classmethod
    def read(cls, root: Path | str) -> ShardIndex:
        """The index of a folder, local or remote.

        Raises:
            BadInput: no such file, or not an index of this version.
        """
        path = join(root, INDEX)
        try:
            tree = json.loads(at_hand(path).read_bytes())
            if tree.pop("format") != "intarsia region shards" or tree.pop("version") != VERSION:
                raise ValueError(f"not region shards of version {VERSION}")
            provenance = tree.pop("provenance")
            names = {name: tuple(provenance.get(name, ())) for name in ("classes", "attributes")}
            made = Provenance(**{**provenance, **names})
            return cls(made, tuple(tree.pop("extras")), tuple(Shard(**x) for x in tree.pop("shards")), **tree)
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path}: not an index of region shards: {error}") from None

    def provenance_text(self) -> str:
        """What made the features, as the shards say it."""
        return json.dumps(asdict(self.provenance), ensure_ascii=False)

    def text(self) -> str:
        """The file's text."""
        return (
            json.dumps(
                {"format": "intarsia region shards", "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False
            )
            + "\n"
        )


def read_names(root: Path | str, shard: Shard) -> list[str]:
    """Names of the pictures of a shard, in order."""
    path = join(root, f"{shard.name}.json")
    try:
        names = json.loads(at_hand(path, shard.names_sha256).read_bytes())["names"]
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: not a list of picture names") from None
    if not isinstance(names, list) or len(names) != shard.pictures:
        raise BadInput(f"{path}: {len(names)} names, {INDEX} says {shard.pictures} pictures")
    return names


def map_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a safetensors file, mapped into memory.

    Nothing is read until it is used, and no file handle stays open, however many shards there are.

    Raises:
        BadInput: not a safetensors file, or cut short.
    """
    try:
        size = path.stat().st_size
        whole = (
            torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
            if size
            else np.zeros(0, np.uint8)
        )
        whole.flags.writeable = False
        begin = 8 + int.from_bytes(whole[:8].tobytes(), "little")
        header = json.loads(whole[8:begin].tobytes())
        arrays = {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                arrays[name] = whole[begin + start : begin + end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return arrays
    except (OSError, RuntimeError) as error:
        raise BadInput(f"{path}: cannot be mapped: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: not a whole safetensors file: {error}") from None


@dataclass(frozen=True, slots=True)
class Mapped:
    """An open shard."""

    arrays: dict[str, Array]
    cu: list[int]
    """(n + 1) cumulative region counts, as plain numbers."""


def map_shard(root: Path | str, shard: Shard, index: ShardIndex) -> Mapped:
    """Opens a shard; one of a remote folder is fetched first, and its sha256 compared.

    Raises:
        BadInput: it cannot be fetched, its bytes have changed, it is not a whole safetensors file, or it says that other than the index's extractor made it.
    """
    path = join(root, f"{shard.name}.safetensors")
    arrays, made = map_whole(path, shard.sha256)
    if made and made != index.provenance_text():
        raise BadInput(f"{path}: says its features were made by {made[:160]}.., {INDEX} says something else")
    return Mapped(arrays, arrays["cu_regions"].tolist())


def map_whole(path: Path | str, sha256: str) -> tuple[dict[str, Array], str]:
    """The arrays of a .safetensors file, and what it says made them; a remote one is fetched first and compared with its sha256.

    Raises:
        BadInput: as `map_shard`.
    """
    file = at_hand(path, sha256, passing=True)
    try:
        arrays = map_arrays(file)
        with safetensors.safe_open(file, "numpy") as opened:
            return arrays, (opened.metadata() or {}).get(MADE, "")
    except (BadInput, FileNotFoundError):
        if not is_remote(path) or file.exists():
            raise
        return map_whole(path, sha256)  # another process has just made room


def check_shard(root: Path | str, shard: Listed, verify: bool, index: str = INDEX) -> None:
    """Checks the files of a shard against the index: their size, and with `verify` their sha256.

    A remote shard is looked at with `verify` only: whoever fetches it compares its sha256.

    Raises:
        BadInput: a file is missing, has another size or other bytes.
    """
    path = join(root, f"{shard.name}.safetensors")
    if isinstance(path, Path):
        if not path.is_file():
            raise BadInput(f"{path}: no such file, but {index} lists it")
        if path.stat().st_size != shard.size:
            raise BadInput(f"{path}: {path.stat().st_size} bytes, {index} says {shard.size}")
    names = join(root, f"{shard.name}.json")
    for file, expected in ((path, shard.sha256), (names, shard.names_sha256)) if verify else ():
        found = sha256_of(file) if is_file(file) else "absent"
        if found != expected:
            raise BadInput(f"{file}: its bytes have changed: sha256 {found[:16]}.., {index} says {expected[:16]}..")
