"""What every reader of pre-training data looks like to the loader: a map from numbers to Samples, with the provenance of its features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from intarsia.batch import Sample
from intarsia.errors import BadInput


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


def must_be_alike(spec: str, found: Provenance | None, known: Provenance) -> None:
    """Raises unless the same extractor made both; whether soft labels came along does not matter to a trained system.

    Args:
        spec: the data, as the user named them.
        found: of their features; None = they have none.
        known: of the features that a system was trained on.

    Raises:
        BadInput: says what differs, and how to get features of the known kind.
    """
    options = " ".join(f"{name} {value}" for name, value in known.settings.items())
    how = f"run `intarsia extract {spec} --extractor {known.extractor}{' --options ' + options if options else ''}`"
    if found is None:
        raise BadInput(f"{spec}: has no region features; {how}")
    for name in ("extractor", "width", "weights", "settings"):
        here, there = getattr(found, name), getattr(known, name)
        if here != there:
            raise BadInput(f"{spec}: features with {name} {here!r}, the weights were trained on {there!r}; {how}")


class Source(Protocol):
    """Image-text pairs by number. Each Sample holds exactly one caption in `texts` (a picture with five captions is five samples)."""

    provenance: Provenance | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
