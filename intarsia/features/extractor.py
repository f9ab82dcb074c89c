"""What every region extractor looks like, and how one is opened by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from intarsia.data.fetch import cache_root
from intarsia.data.formats.files import sha256_of, write_whole
from intarsia.data.source import Provenance
from intarsia.errors import BadInput

Array = NDArray[Any]
WHOLE = np.array([[0, 0, 1, 1]], np.float32)
"""The box of the whole picture."""


@dataclass(frozen=True)
class Found:
    """The regions of one picture.

    An extractor that chooses the boxes gives at least one region a picture: the whole picture comes first (of blobs, butd and vinvl: only when there is none).
    """

    boxes: Array
    """(R, 4) float32, xyxy fractions."""
    features: Array
    """(R, F) float32"""
    scores: Array | None = None
    """(R) float32, 0..1; 1 for the whole picture and for boxes that were given."""
    probs: Array | None = None
    """(R, C) float32 soft labels, background first."""
    labels: Array | None = None
    """(R) int64, the likeliest class but the background."""
    attributes: Array | None = None
    """(R) int64, the likeliest attribute; 0 says nothing."""
    attribute_scores: Array | None = None
    """(R) float32, the detector's confidence in it."""


@runtime_checkable
class Extractor(Protocol):
    """Pictures to regions, many at once, on the CPU or a CUDA device."""

    name: str
    provenance: Provenance
    by_shape: bool
    """Pictures of one shape are run together."""
    adds_whole: bool
    """Whoever gives boxes adds the whole picture as one more, where it is not among them."""

    def __call__(self, images: Sequence[Array]) -> list[Found]:
        """Finds regions and describes them.

        Args:
            images: (H, W, 3) uint8 each, of any size.
        """

    def features_at(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Found]:
        """Describes given boxes, (R, 4) xyxy fractions for each picture, in their order; nothing is added or left out."""


EXTRACTORS = {
    "grid": "intarsia.features.grid:Grid",
    "pixels": "intarsia.features.blob_regions:BlobRegions",
    "patches": "intarsia.features.patches:Patches",
    "resnet": "intarsia.features.resnet_patches:ResNetPatches",
    "light": "intarsia.features.light:Light",
    "resnet_v2": "intarsia.features.resnet_v2_regions:Cutouts",
    "butd": "intarsia.features.frcnn:BottomUp",
    "vinvl": "intarsia.features.frcnn:VinVL",
}
"""Name -> "module:class"."""


def open_extractor(name: str, **options: Any) -> Extractor:
    """An extractor by name.

    Args:
        name: one of EXTRACTORS.
        options: arguments of its class.

    Raises:
        BadInput: no such extractor or option, or its weights are missing.
    """
    extractor: Extractor = make(name, options, EXTRACTORS)
    return extractor


def make(name: str, options: Mapping[str, Any], among: Mapping[str, str]) -> Any:
    """An object by name.

    Args:
        name: of its class.
        options: arguments of its class.
        among: name -> "module:class".

    Raises:
        BadInput: no such name or option, or its weights are missing.
    """
    known = parameters(name, among)
    for option in options:
        if option not in known:
            raise BadInput(f"extractor {name} has no option {option!r} (known: {', '.join(known)})")
    module, _, kind = among[name].partition(":")
    return getattr(importlib.import_module(module), kind)(**options)


def typed(name: str, options: Mapping[str, str], among: Mapping[str, str] = EXTRACTORS) -> dict[str, Any]:
    """Options of an extractor that were given as texts, of the types that its class takes.

    Raises:
        BadInput: no such extractor or option, or a text that does not say a number where one is needed.
    """
    known = parameters(name, among)
    found: dict[str, Any] = {}
    for option, text in options.items():
        if option not in known:
            raise BadInput(f"extractor {name} has no option {option!r} (known: {', '.join(known)})")
        try:
            found[option] = type(known[option].default)(text)
        except ValueError:
            raise BadInput(f"extractor {name}: option {option} is {text!r}, which is no number") from None
    return found


def parameters(name: str, among: Mapping[str, str] = EXTRACTORS) -> Mapping[str, inspect.Parameter]:
    """What the class of an extractor takes.

    Raises:
        BadInput: no such extractor.
    """
    if name not in among:
        raise BadInput(f"no extractor {name!r} (known: {', '.join(among)})")
    module, _, kind = among[name].partition(":")
    return inspect.signature(getattr(importlib.import_module(module), kind)).parameters


def reopen(provenance: Provenance, device: str = "auto", cache: str = "") -> Extractor:
    """The extractor that made some features, with the same settings: what a trained system needs for raw pictures.

    Args:
        provenance: as the features' files or the system's weights say it.
        device: where it runs, if it can be chosen.
        cache: folder of fetched parts; the default one when empty.

    Raises:
        BadInput: there is no such extractor, or the one there is makes other features (names the difference).
    """
    if provenance.extractor not in EXTRACTORS:
        raise BadInput(
            f"features were made by {provenance.extractor!r}, which cannot be run here (known: {', '.join(EXTRACTORS)})"
        )
    known = parameters(provenance.extractor)
    options: dict[str, Any] = {"device": device, "cache": cache}
    options |= typed(provenance.extractor, {k: v for k, v in provenance.settings.items() if k in known})
    if "weights" in known:
        options["weights"] = str(_remembered(provenance))
    extractor = open_extractor(provenance.extractor, **{k: v for k, v in options.items() if k in known})
    for field in ("width", "weights", "settings"):
        then, now = getattr(provenance, field), getattr(extractor.provenance, field)
        if then != now:
            raise BadInput(f"features were made by {provenance.extractor} with {field} {then!r}, here it has {now!r}")
    return extractor


def must_be_alike(spec: str, found: Provenance | None, known: Provenance) -> None:
    """Raises unless the same extractor made both; whether soft labels came along does not matter to a trained system.

    Args:
        spec: the data, as the user named them.
        found: of their features; None = they have none.
        known: of the features that a system was trained on.

    Raises:
        BadInput: says what differs, and how to get features of the known kind.
    """
    if found is None:
        raise BadInput(f"{spec}: has no region features; {how_to_get(known, spec)}")
    for name in ("extractor", "width", "weights", "settings"):
        here, there = getattr(found, name), getattr(known, name)
        if here != there:
            raise BadInput(
                f"{spec}: features with {name} {here!r}, the weights were trained on {there!r}; {how_to_get(known)}"
            )


def how_to_get(known: Provenance, pictures: str = "PICTURES") -> str:
    """What to run for features of a kind, in words.

    Args:
        known: the kind.
        pictures: what to run it on.
    """
    from intarsia.features.clips import CLIP_EXTRACTORS  # built on this module

    films = known.extractor in CLIP_EXTRACTORS
    among = CLIP_EXTRACTORS if films else EXTRACTORS
    if known.extractor not in among:
        return f"{known.extractor} cannot be run here: bring its files with `intarsia data convert FILES OUT --extractor {known.extractor}`"
    takes = parameters(known.extractor, among)
    options = {name: value for name, value in known.settings.items() if name in takes}
    command = f"intarsia extract {'video ' if films else ''}{pictures} --out OUT --extractor {known.extractor}"
    which = ""
    if "weights" in takes:
        command += " --options weights FILE" if films else " --weights FILE"
        which = f" (FILE: sha256 {known.weights[:16]}.., {_last_seen(known.weights) or 'not seen here'})"
    if options:
        words = " ".join(f"{name} {value}" for name, value in options.items())
        command += f" {words}" if films and which else f" --options {words}"
    return f"run `{command}`{which}"


def remember_weights(path: Path) -> str:
    """The sha256 of a user's weight file, and a note in the cache where that file lies, so that `reopen` finds it."""
    checksum = sha256_of(path)
    with write_whole(cache_root() / "weights" / checksum) as note:
        note.write_text(str(path.resolve()), encoding="utf-8")
    return checksum


def _last_seen(checksum: str) -> Path | None:
    note = cache_root() / "weights" / checksum
    return Path(note.read_text(encoding="utf-8")) if checksum and note.is_file() else None


def _remembered(provenance: Provenance) -> Path:
    path = _last_seen(provenance.weights)
    if path is None or not path.is_file():
        where = "" if path is None else f" (they lay at {path})"
        raise BadInput(
            f"features were made by {provenance.extractor} with weights {provenance.weights[:12]}, which were not seen here{where}: "
            f"run `intarsia extract` with --extractor {provenance.extractor} --weights FILE once"
        )
    return path


def given_boxes(boxes: Array, place: int) -> Array:
    """Boxes a caller gave, checked: (R, 4) float32.

    Raises:
        BadInput: not (R, 4), not finite, outside 0..1 or turned around; names the picture's place in the call and the box.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4) if np.size(boxes) == 0 else np.asarray(boxes, np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise BadInput(f"picture {place}: boxes of shape {boxes.shape}, expected (R, 4)")
    good = np.isfinite(boxes).all(1) & (boxes >= 0).all(1) & (boxes <= 1).all(1) & (boxes[:, :2] <= boxes[:, 2:]).all(1)
    if not good.all():
        row = int(np.argmin(good))
        raise BadInput(
            f"picture {place}: box {row} is {boxes[row].tolist()}, expected x1 y1 x2 y2 as fractions of width and height"
        )
    return boxes


@contextmanager
def whole_floats() -> Iterator[None]:
    """Convolutions on CUDA in whole float32, also as a decorator: in TensorFloat-32, the default there, other proposals pass a detector's thresholds."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def where_to_run(device: str) -> torch.device:
    """The device of an option: "auto" is CUDA where there is one.

    Raises:
        BadInput: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device {device!r} cannot be used: {error}") from None
    return chosen
