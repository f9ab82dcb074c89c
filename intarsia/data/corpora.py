"""Sources made of other sources: joined, narrowed, split by picture; and the pool that negatives are drawn from."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from intarsia.batch import Sample
from intarsia.data.source import Provenance, Source
from intarsia.errors import BadInput


class Subset:
    """Some samples of a source, in the order given.

    Args:
        source: the whole.
        indices: (k) numbers of samples in it.
    """

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.provenance: Provenance | None = source.provenance

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[int(self.indices[index])]


def speaking(source: Source, language: str) -> Subset:
    """The samples of a source whose caption is in a language; reads every sample once.

    Raises:
        BadInput: there is none.
    """
    found = [i for i in range(len(source)) if source[i].language == language]
    if not found:
        raise BadInput(f"none of {len(source)} captions is in language {language!r}")
    return Subset(source, np.array(found))


class Joined:
    """Several sources behind one another; keys and picture names get the source's name in front, so they stay unique.

    Args:
        sources: by name.
        repeat: how often each sample of a source comes in one epoch, 1 unless named. Copies are other samples to the loader: their keys end in
            "#2", "#3", .., so that each is hidden in its own way.

    Raises:
        BadInput: region features of different extractors, or a repeat of an unknown source or below 1.
    """

    def __init__(self, sources: Mapping[str, Source], repeat: Mapping[str, int] | None = None) -> None:
        repeat = dict(repeat or {})
        for name, times in repeat.items():
            if name not in sources or times < 1:
                raise BadInput(f"source {name}: cannot be repeated {times} times (sources: {', '.join(sources)})")
        names = list(sources)
        _must_agree(sources)
        self._parts = [(name, copy, sources[name]) for name in names for copy in range(1, repeat.get(name, 1) + 1)]
        self._ends = np.cumsum([len(source) for _, _, source in self._parts], dtype=np.int64)
        self.provenance: Provenance | None = sources[names[0]].provenance if names else None

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        name, copy, source = self._parts[part]
        sample = source[index - int(self._ends[part - 1]) if part else index]
        return _named(sample, name, copy)


class Beside:
    """Pairs and, after each of them, one of a second corpus, whose samples say that they are `extra`.

    As many of both as the larger has; those of the other come again from the first when they run out.

    Args:
        pairs: the first corpus.
        extra: the second; its keys and picture names get "extra/" in front.

    Raises:
        BadInput: region features of different extractors.
    """

    def __init__(self, pairs: Source, extra: Source) -> None:
        _must_agree({"data": pairs, "extra": extra})
        self.sources = (pairs, extra)
        self.provenance: Provenance | None = pairs.provenance

    def __len__(self) -> int:
        return 2 * max(map(len, self.sources))

    def __getitem__(self, index: int) -> Sample:
        number, extra = divmod(index, 2)
        again, place = divmod(number, len(self.sources[extra]))
        sample = self.sources[extra][place]
        if extra:
            return dataclasses.replace(_named(sample, "extra", again + 1), extra=True)
        return dataclasses.replace(sample, key=f"{sample.key}#{again + 1}") if again else sample


class Early:
    """Samples and, in the first epochs only, those of a second source behind them; a `Leaving`.

    Args:
        source: the first; its keys stay, so that it is shuffled and hidden by the same chances as alone.
        extra: the second; its keys and picture names get the name and a slash in front.
        name: of the second.
        epochs: in which it takes part; 0 = in all.

    Raises:
        BadInput: region features of different extractors, or epochs below 0.
    """

    def __init__(self, source: Source, extra: Source, name: str, epochs: int) -> None:
        if epochs < 0:
            raise BadInput(f"source {name}: cannot take part in {epochs} epochs")
        _must_agree({"data": source, name: extra})
        self.source, self.extra, self.name = source, extra, name
        self.provenance: Provenance | None = source.provenance
        always = np.iinfo(np.int64).max
        self.epochs = np.repeat([always, epochs or always], [len(source), len(extra)])

    def __len__(self) -> int:
        return len(self.source) + len(self.extra)

    def __getitem__(self, index: int) -> Sample:
        if index < len(self.source):
            return self.source[index]
        return _named(self.extra[index - len(self.source)], self.name, 1)


def _named(sample: Sample, name: str, copy: int) -> Sample:
    """A sample of a named source, or a copy of it."""
    pictures = tuple(dataclasses.replace(picture, name=f"{name}/{picture.name}") for picture in sample.pictures)
    return dataclasses.replace(sample, key=f"{name}/{sample.key}" + (f"#{copy}" if copy > 1 else ""), pictures=pictures)


def _must_agree(sources: Mapping[str, Source]) -> None:
    """All sources have region features of one extractor."""
    first = next(iter(sources), "")
    for name in sources:
        if sources[name].provenance != sources[first].provenance:
            raise BadInput(
                f"sources {first} and {name}: region features differ ({_where(sources[first])} and {_where(sources[name])})"
            )


class Alongside:
    """Pairs and, after each of them, a text without picture: as many texts as pairs, from the first again when they run out.

    Args:
        pairs: the master source.
        texts: samples whose pictures do not count.
    """

    def __init__(self, pairs: Source, texts: Source) -> None:
        self.pairs, self.texts = pairs, texts
        self.provenance: Provenance | None = pairs.provenance

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        number, other = divmod(index, 2)
        if not other:
            return self.pairs[number]
        again, place = divmod(number, len(self.texts))
        text = self.texts[place]
        return Sample(
            key=f"text/{text.key}" + (f"#{again + 1}" if again else ""), texts=text.texts, language=text.language
        )


def _where(source: Source) -> str:
    if source.provenance is None:
        return "unknown extractor"
    return f"{source.provenance.extractor}, {source.provenance.width} wide, weights {source.provenance.weights[:8] or 'none'}"


def split(source: Source, share: float, seed: int = 0) -> tuple[Subset, Subset]:
    """Splits a source by picture, so that no picture is on both sides; reads every sample once.

    The side of a picture depends on its name and the seed alone: it stays when the data set grows.

    Args:
        source: the whole.
        share: the share of the pictures to hold out, in (0, 1).
        seed: another seed gives another split.

    Returns:
        The rest and the held-out part.

    Raises:
        BadInput: one of the sides is empty.
    """
    held = np.fromiter(
        (_draw(_name(source[i]), seed) < share for i in range(len(source))), dtype=bool, count=len(source)
    )
    if held.all() or not held.any():
        raise BadInput(
            f"held-out share {share}: {int(held.sum())} of {len(held)} samples would be held out, both sides need some"
        )
    return Subset(source, np.flatnonzero(~held)), Subset(source, np.flatnonzero(held))


def _name(sample: Sample) -> str:
    return sample.pictures[0].name if sample.pictures else sample.key


def _draw(name: str, seed: int) -> float:
    return float(np.random.default_rng([seed, 0x5B117, zlib.crc32(name.encode())]).random())


class Pool:
    """What negatives are drawn from: samples of a source that the system takes.

    Args:
        source: the data.
        indices: (k) numbers of the samples to draw from, ascending.
        near: draw from the block of so many of them that a sample is in; 0 = from all.
    """

    tries = 200
    """Draws in search of another picture before giving up."""

    def __init__(self, source: Source, indices: NDArray[np.int64], near: int = 0) -> None:
        self.source = source
        self.indices = indices
        self.near = near

    def draw(self, rng: np.random.Generator, other_than: Sample, number: int = 0) -> Sample:
        """A sample with another picture (another key where samples have no pictures), of the same corpus if there are two.

        Args:
            rng: where chance comes from.
            other_than: the sample.
            number: of that sample in the source.

        Raises:
            BadInput: none was found; the samples show the same picture.
        """
        first, count = 0, len(self.indices)
        if 0 < self.near < count:
            block = int(np.searchsorted(self.indices, number)) // self.near
            first, count = min(block * self.near, count - self.near), self.near
        for _ in range(self.tries):
            sample = self.source[int(self.indices[first + rng.integers(count)])]
            if _name(sample) != _name(other_than) and sample.extra == other_than.extra:
                return sample
        raise BadInput(
            f"sample {other_than.key}: no other picture than {_name(other_than)} in {self.tries} draws from {count} samples"
        )
