"""What every reader of pre-training data looks like to the loader: a map from numbers to Samples, with the provenance of its features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from intarsia.batch import Array, Sample


@dataclass(frozen=True)
class Provenance:
    """Where region features come from; stored in every shard and with every trained model."""

    extractor: str
    """Name of the extractor, e.g. "light"."""
    width: int
    """F, numbers a region."""
    weights: str = ""
    """sha256 over the extractor's weight files; empty when it has none."""
    classes: tuple[str, ...] = ()
    """Names of the C classes of the soft labels, background first; empty when it gives none."""
    attributes: tuple[str, ...] = ()
    """Names of the attributes of regions, the first for none; empty when it gives none."""
    boxes: str = "xyxy fractions"
    settings: dict[str, str] = field(default_factory=dict)
    """Everything else that changes the numbers: input size, thresholds."""


class Source(Protocol):
    """Image-text pairs by number. Each Sample holds exactly one caption in `texts` (a picture with five captions is five samples)."""

    provenance: Provenance | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class Leaving(Protocol):
    """A source some of whose samples take part in the first epochs only."""

    @property
    def epochs(self) -> Array:
        """(n) int64: in how many epochs, from the first, each sample takes part."""
