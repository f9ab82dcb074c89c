"""Sentences of generated films with the clips they are said in, drawn and described without files: what figures of systems that read clips show.

The files of `intarsia data films` hold the same scenes; here nothing is encoded, and the features are those of the "motion" extractor.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from intarsia.batch import Array, Film, Sample
from intarsia.data.source import Provenance
from intarsia.data.video import sentence
from intarsia.features.kmeans import Codebook, fit
from intarsia.features.motion import ClipMotion
from intarsia.worlds.films import FilmConfig, FilmWorld, frame


class FilmScenes:
    """Single sentences of rendered films, with features and visual words; a `Source`.

    Args:
        count: films.
        k: children of a node of the tree of visual words.
        depth: its levels.
    """

    def __init__(self, count: int = 6, k: int = 4, depth: int = 3) -> None:
        self.world = FilmWorld(FilmConfig(actions=(3, 4), seconds=6.0), count=count)  # some clips a sentence
        self.extractor = ClipMotion(device="cpu")
        self.provenance: Provenance | None = self.extractor.provenance
        self.k, self.depth = k, depth

    def __len__(self) -> int:
        return len(self._sentences)

    def __getitem__(self, index: int) -> Sample:
        return self._sentences[index]

    def frames(self, index: int) -> list[Array]:
        """(side, side, 3) uint8, the picture in the middle of each clip."""
        sample = self[index]
        assert sample.film is not None
        scene, middle = self.world.scene(int(sample.film.name)), sample.film.length / 2
        return [frame(scene, float(start) + middle, self.world.config.side) for start in sample.film.seconds]

    @cached_property
    def _sentences(self) -> list[Sample]:
        films = [self._film(number) for number in range(self.world.count)]
        clips = torch.from_numpy(np.concatenate([x.film.features for x in films if x.film]))
        book: Codebook = fit(clips, self.k, self.depth)
        found = []
        for x in films:
            assert x.film is not None
            whole = replace(x, film=replace(x.film, ids=book.assign(torch.from_numpy(x.film.features)).numpy()))
            found += [sentence(whole, number) for number in range(len(x.texts))]
        return found

    def _film(self, number: int) -> Sample:
        scene, side, cut = self.world.scene(number), self.world.config.side, self.extractor.sampling
        length = float(cut.length)
        starts = np.arange(int(scene.seconds / length)) * length
        shown = np.stack(
            [
                [self.extractor.shrink(frame(scene, start + tick / float(cut.fps), side)) for tick in cut.ticks]
                for start in starts
            ]
        )
        said = scene.sentences("en")
        spans = np.array([(x.start, x.end) for x in said], np.float32)
        film = Film(str(number), self.extractor(shown), starts.astype(np.float32), length, spans)
        return Sample(str(number), tuple(x.text for x in said), film=film)
