"""Files and folders of other projects on another machine: copied into the cache under their own names, so that every reader finds them as it would here.

A folder is copied whole, with those of `BESIDE` in the folder above. Of a file also what belongs to it: files of the same name with other endings
(X.lineidx, X.tsv.1), tables that readers look for beside a file (`BESIDE`), and what it names in its first megabyte (the files and folders of a .yaml, the
zips of VL-BERT's lines). Copies are those of `copies.at_hand`: compared with SHA256SUMS where there is one, and made anew when the remote file has changed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from intarsia.data.fetch import cache_root
from intarsia.data.formats.copies import at_hand
from intarsia.data.formats.files import file_system, is_file, join, parent_of, told
from intarsia.errors import BadInput

BESIDE = re.compile(
    r"predictions(_gt)?\.tsv|imageid2idx\.json|QA_\w+|image_data\.json|\w*(ans2label|label2ans)\.(json|pkl)|vocab\.txt|.*class-descriptions.*\.csv"
    r"|(v2_)?OpenEnded_mscoco_\w+_questions\.json|coco-cn_\w+\.txt|imageid\..+\.txt"
)
"""Names of small files that readers look for beside another."""
NAMING = (".yaml", ".yml", ".json", ".jsonl")
"""Files that name others."""
HEAD = 1 << 20


def mirrored(address: str) -> Path:
    """The local copy of a remote file or folder, among copies of what belongs to it.

    Raises:
        BadInput: it cannot be fetched, or its bytes are not those that SHA256SUMS says.
    """
    single = is_file(address)
    folder = str(parent_of(address)) if single else address.rstrip("/")
    names = _belonging(address, folder) if single else [*_inside(folder, folder), *_above(folder)]
    copies = {name: at_hand(join(folder, name)) for name in sorted(names)}
    mark = hashlib.sha256(
        "\n".join([folder, *(f"{name} {copy.name}" for name, copy in copies.items())]).encode()
    ).hexdigest()
    here = cache_root() / "remote" / "named" / mark[:24] / PurePosixPath(folder).name
    for name, copy in copies.items():
        link = here / name
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another process may be as far
            link.symlink_to(os.path.relpath(copy, link.parent))
    return here / address.rpartition("/")[2] if single else here


@contextmanager
def as_remote(here: Path, address: str) -> Iterator[None]:
    """Names what is remote in errors about its copy."""
    try:
        yield
    except BadInput as error:
        raise BadInput(str(error).replace(str(here.parent), str(parent_of(address.rstrip("/"))))) from None


def listing(folder: str) -> list[str]:
    """The names of the files in a remote folder, and in the folders in it, relative to it; none where there is no such folder."""
    return _inside(folder.rstrip("/"), folder.rstrip("/"))


def _inside(path: str, folder: str) -> list[str]:
    """The files below a path, relative to a folder above it."""
    system, inside = file_system(path)
    with told(path, "listed"):
        found = [str(x) for x in system.find(inside)]
    root = str(file_system(folder)[1]).rstrip("/") + "/"
    return [x.removeprefix(root) for x in found]


def _above(folder: str) -> list[str]:
    """What readers look for in the folder above one."""
    try:
        return [
            f"../{name}" for name, kind in _entries(str(parent_of(folder))) if kind == "file" and BESIDE.fullmatch(name)
        ]
    except BadInput:
        return []  # a bucket's root need not be open to all


def _entries(folder: str) -> list[tuple[str, str]]:
    """Names in a folder, each "file" or "directory"."""
    system, inside = file_system(folder)
    with told(folder, "listed"):
        listed: list[dict[str, Any]] = system.ls(inside, detail=True)
    return [(str(x["name"]).rstrip("/").rpartition("/")[2], x["type"]) for x in listed]


def _belonging(address: str, folder: str) -> set[str]:
    own = address.rpartition("/")[2]
    stem, named = own.partition(".")[0], set[str]()
    text = b""
    if own.endswith(NAMING):
        with told(address, "read"), open(at_hand(address), "rb") as handle:
            text = handle.read(HEAD)
    for name, kind in _entries(folder):
        mentioned = re.search(rb"(?<![\w.-])" + re.escape(name.encode()) + rb"(?![\w.-]*\w)", text) is not None
        if kind == "directory":
            named |= set(_inside(f"{folder}/{name}", folder)) if mentioned and own.endswith(NAMING[:2]) else set()
        elif mentioned or name.partition(".")[0] == stem or BESIDE.fullmatch(name):
            named.add(name)
    return named | {own}
