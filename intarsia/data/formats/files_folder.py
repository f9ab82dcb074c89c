"""A folder as img2dataset's `files` layout leaves it: in folders 00000, 00001, .. a picture, its .txt and its .json side by side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from intarsia.data.formats.index import OnError, build_index
from intarsia.data.formats.tar import IMAGES, TarSource, split_name
from intarsia.errors import BadInput

TEXTS = ("txt", "json")


class FilesSource(TarSource):
    """Files of one stem are a sample, as members of one key are in a tar; what they may be is the same.

    Args:
        root: the folder.
        split: "train", "val" or "test"; None = all samples.
        on_error: "stop" raises at the first sample that cannot be used; "skip" leaves it out and keeps the message.

    Raises:
        BadInput: no sample that can be used.
    """

    def __init__(self, root: str | Path, split: str | None = None, on_error: OnError = "stop") -> None:
        self._folder = _Folder(Path(root))
        found: dict[str, dict[str, str]] = {}
        for name in self._folder.names():
            key, kind = split_name(name)
            if kind and "/" in key:  # files beside the folders are img2dataset's own notes
                found.setdefault(key, {})[kind] = name
        self._samples = sorted(found.items())
        self.index, _ = build_index(len(self._samples), self.parse, split, on_error)

    def _sample(self, number: int) -> tuple[Any, str, dict[str, Any]]:
        key, members = self._samples[number]
        return self._folder, key, dict(members)

    def _address(self, tar: Any, member: Any) -> str:
        return str(tar.path / member)


class _Folder:
    """Files of a folder, read whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """All files below it, without hidden ones."""
        found = []
        for folder, _, files in os.walk(self.path):
            inside = Path(folder).relative_to(self.path)
            found += [(inside / x).as_posix() for x in files if not x.startswith(".")]
        return sorted(found)

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise BadInput(f"{self.path / name}: cannot be read: {error.strerror}") from None


def is_files_layout(path: Path) -> bool:
    """Whether folders in a folder hold pictures and, of the same names, texts."""
    inner = sorted(x for x in path.iterdir() if x.is_dir() and not x.name.startswith("."))
    for file in (x for folder in inner[:1] for x in folder.iterdir()):
        key, kind = split_name(file.name)
        if kind in IMAGES and any(file.with_name(f"{key}.{x}").is_file() for x in TEXTS):
            return True
    return False
