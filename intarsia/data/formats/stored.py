"""The pictures of region shards, and the videos of film shards, by themselves, captions or not: where a benchmark finds what it asks about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from intarsia.batch import Film, Sample
from intarsia.data.formats.files import is_file, join
from intarsia.data.formats.films import INDEX as FILMS
from intarsia.data.formats.films import FilmSource
from intarsia.data.formats.shard_files import INDEX, read_names
from intarsia.data.formats.shards import ShardSource
from intarsia.data.opening import open_source
from intarsia.data.source import Source


class StoredPictures(ShardSource):
    """Every picture of a folder of region shards, as a sample without text.

    Args:
        root: the folder, local or remote.

    Raises:
        BadInput: an unfinished folder, or a missing or cut file.
    """

    def __init__(self, root: str | Path) -> None:
        self._open(root, verify=False)
        self.names = [name for shard in self.shards.shards for name in read_names(self.root, shard)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        picture, classes = self._view(index, self.names[index]), self.shards.provenance.classes
        if picture.labels is not None and classes:
            picture = replace(picture, tags=tuple(classes[i] for i in picture.labels.tolist() if i > 0))
        return Sample(self.names[index], (), (picture,))


class StoredFilms(FilmSource):
    """Every video of a folder of film shards, whole, as a sample without text.

    Args:
        root: the folder, local or remote.

    Raises:
        BadInput: see `FilmSource`.
    """

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        shard, local = self._place(index)
        some = slice(*shard.cu_clips[local : local + 2])
        name, path = shard.films[local]["name"], self.films.videos
        film = Film(
            name,
            shard.arrays["features"][some],
            shard.arrays["starts"][some],
            self.length,
            np.zeros((0, 2), np.float32),
            path=str(join(self.root, path, name)) if path else "",
        )
        return Sample(name, (), film=film)


def open_pictures(spec: str | Path) -> Source:
    """Pictures with regions: those of region shards, or of any data set that `open_source` opens. Of film shards, videos with their clips."""
    if is_file(join(spec, FILMS)):
        return StoredFilms(spec)
    return StoredPictures(spec) if is_file(join(spec, INDEX)) else open_source(spec)
