"""The pictures of region shards, and the videos of film shards, by themselves, captions or not: where a benchmark finds what it asks about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from intarsia.batch import Film, Sample
from intarsia.data.formats.films import INDEX as FILMS
from intarsia.data.formats.films import FilmSource
from intarsia.data.formats.shard_files import INDEX, Mapped, ShardIndex, check_shard, read_names
from intarsia.data.formats.shards import ShardSource
from intarsia.data.opening import open_source
from intarsia.data.source import Source
from intarsia.errors import BadInput


class StoredPictures(ShardSource):
    """Every picture of a folder of region shards, as a sample without text.

    Args:
        root: the folder.

    Raises:
        BadInput: an unfinished folder, or a missing or cut file.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.shards = ShardIndex.read(self.root)
        self.provenance = self.shards.provenance
        if not self.shards.finished:
            raise BadInput(f"{self.root}: not finished; run the extraction again to go on")
        for shard in self.shards.shards:
            check_shard(self.root, shard, False)
        self._starts = np.cumsum([0] + [x.pictures for x in self.shards.shards]).tolist()
        self._mapped: list[Mapped | None] = [None] * len(self.shards.shards)
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
        root: the folder.

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
            path=str(self.root / path / name) if path else "",
        )
        return Sample(name, (), film=film)


def open_pictures(spec: str | Path) -> Source:
    """Pictures with regions: those of region shards, or of any data set that `open_source` opens. Of film shards, videos with their clips."""
    path = Path(spec)
    if (path / FILMS).exists():
        return StoredFilms(path)
    return StoredPictures(path) if (path / INDEX).exists() else open_source(spec)
