"""A system ready for raw pictures: weights, vocabulary and the extractor its features come from.

model = intarsia.open("uniter", weights="runs/demo")
match = model.match("photo.jpg", "a red cup")
"""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from intarsia.attend import watch
from intarsia.batch import Array, Picture, Sample
from intarsia.data.decode import decode_image
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.evaluate.grounding import maps_of
from intarsia.features.extractor import Extractor, must_be_alike, reopen
from intarsia.pack import pack
from intarsia.recipe import Recipe, from_json, to_json
from intarsia.system import System, fit_config, grow
from intarsia.systems import find
from intarsia.text import SPECIALS, Vocab
from intarsia.weights import paddle
from intarsia.weights.files import fill, read_weights, write_weights
from intarsia.weights.signatures import whose


@dataclass(frozen=True)
class Match:
    """How well a text fits a picture, and which word looks at which region."""

    score: float
    """Log odds that they belong together."""
    words: tuple[str, ...]
    """T pieces of the text, special tokens left out."""
    boxes: Array
    """(R, 4) float32, xyxy fractions; of systems that read pixels the cells or boxes that they lay out."""
    attention: Array
    """(T, R) float32, mean over layers and heads of the attention from each piece to each region, rows sum to 1; 0 where words see no regions (B2T2, WenLan)."""

    @property
    def probability(self) -> float:
        """The score as a probability."""
        return float(1 / (1 + np.exp(-self.score)))


class Model:
    """A system with the preparation that its weights expect.

    Args:
        system: the system, on its device, in evaluation mode.
        provenance: where its region features came from; None = unknown, then only `Sample`s can be given.
        device: where it runs.
        extractor: what raw pictures go through; None = the one that the provenance names, opened when it is first needed.

    Raises:
        BadInput: the extractor makes other features than the system takes or was trained on.
    """

    def __init__(
        self, system: System, provenance: Provenance | None, device: str = "cpu", extractor: Extractor | None = None
    ) -> None:
        self.system, self.provenance, self.device = system.to(device).eval(), provenance, torch.device(device)
        if extractor is not None:
            here = extractor.provenance
            if "regions" not in system.needs:
                raise BadInput(f"{system.card.name} reads pixels: it takes no extractor of regions")
            width = getattr(system.config, "feature_size", here.width)
            if here.width != width:
                raise BadInput(f"extractor {extractor.name}: features of width {here.width}, the weights take {width}")
            if provenance is not None:
                must_be_alike(f"extractor {extractor.name}", here, provenance)
            self.provenance, self.extractor = here, extractor

    @cached_property
    def extractor(self) -> Extractor:
        """The extractor the weights were trained with.

        Raises:
            BadInput: it is not known, what it needs is missing, or the one here makes other features.
        """
        if self.provenance is None:
            raise BadInput(
                "the weights do not say which extractor their region features came from; "
                "give regions, not pictures, or open with extractor=open_extractor(NAME, ..)"
            )
        return reopen(self.provenance, str(self.device))

    def sample(self, image: Path | str | Array, text: str) -> Sample:
        """A raw picture (file or (H, W, 3) uint8) and a text as a Sample, with regions where the system reads regions."""
        pixels = decode_image(image) if isinstance(image, str | Path) else np.asarray(image)
        name = str(image) if isinstance(image, str | Path) else "picture"
        known = self.provenance is not None and self.provenance.width > 0
        if not self.system.reads_features and not ("regions" in self.system.needs and known):
            bare = Picture(name, np.zeros((0, 0), np.float32), np.zeros((0, 4), np.float32), *pixels.shape[1::-1])
            return Sample(name, (text,), (replace(bare, path=name, pixels=lambda: pixels),))
        found, classes = self.extractor([pixels])[0], self.extractor.provenance.classes
        named = found.labels is not None and len(classes) > 0
        picture = Picture(
            name,
            found.features,
            found.boxes,
            pixels.shape[1],
            pixels.shape[0],
            found.scores,
            found.probs,
            found.labels,
            name,
            tuple(classes[i] for i in found.labels.tolist() if i > 0) if named and found.labels is not None else (),
            found.attributes,
            found.attribute_scores,
            pixels=lambda: pixels,
        )
        return Sample(name, (text,), (picture,))

    @torch.inference_mode()
    def match(self, image: Path | str | Array | Sample, text: str = "") -> Match:
        """Scores a text against a picture (a raw one, or a Sample with regions)."""
        sample = image if isinstance(image, Sample) else self.sample(image, text)
        example = self.system.lay_out(sample)
        batch = pack([example]).to(self.device)
        with watch() as seen:
            encoded = self.system.encode(batch)
        assert example.text is not None, "the system reads text"
        rows = np.flatnonzero(example.text.words >= 0)
        maps = maps_of(seen, batch)[0]
        if self.system.reads_features:
            maps, boxes = maps.of_picture(sample), sample.pictures[0].boxes
        else:
            assert example.regions is not None
            boxes = example.regions.boxes
        layers = maps.words  # (layers, heads, T, R)
        weights = layers.mean((0, 1))[rows] if len(layers) else np.zeros((len(rows), layers.shape[-1]), np.float32)
        return Match(
            score=float(self.system.match_scores(encoded)[0]),
            words=tuple(self.system.vocab.tokens[i] for i in example.text.ids[rows]),
            boxes=boxes,
            attention=weights / np.maximum(weights.sum(1, keepdims=True), 1e-9),
        )


def open(  # the name users type: intarsia.open
    name: str,
    size: str = "base",
    weights: Path | str | None = None,
    vocab: Path | str | None = None,
    device: str = "cpu",
    extractor: Extractor | None = None,
) -> Model:
    """Opens a system.

    Args:
        name: as in `intarsia list`.
        size: the recipe whose numbers to use, where the weights do not bring their own.
        weights: a run folder, our .safetensors, or the authors' file or folder; None = random.
        vocab: a vocab.txt; needed unless `weights` is a run folder.
        device: "cpu", "cuda", ..
        extractor: what raw pictures go through, where `weights` is no run folder; run folders remember theirs.

    Raises:
        BadInput: anything missing, of another system, or that does not fit together.
    """
    cls = find(name)
    path = None if weights is None else Path(weights)
    if path is not None and path.is_dir() and not paddle.is_folder(path):
        return _open_run(cls, name, path, device, extractor)
    if vocab is None:
        raise BadInput(f"{name}: name the vocabulary with --vocab vocab.txt (only run folders bring their own)")
    words = Vocab.read(vocab)
    if path is None:
        config = dataclasses.replace(sized(cls, name, size).config, vocab_size=len(words))
        if extractor is not None:
            about = extractor.provenance
            config = fit_config(config, len(words), about.width, max(len(about.classes), 2), len(about.attributes))
        return Model(cls(config, words), None, device, extractor)
    must_suit(cls, None if extractor is None else extractor.provenance, path)
    state, config = read_ours(cls, name, path, size)
    if len(words) != config.vocab_size:
        raise BadInput(
            f"{vocab}: {len(words)} pieces, the weights {path} have {config.vocab_size}: not the vocabulary they were trained with"
        )
    return Model(build(cls, config, words, state, str(path)), None, device, extractor)


def must_suit(cls: type[System], found: Provenance | None, weights: Path) -> None:
    """Raises if features are known to be of another kind than those that an authors' weights file was trained on.

    A file of ours brings its own note, or none: then nothing is known. Of features that others stored the rule may not be known.

    Raises:
        BadInput: says what the weights need and how to get it.
    """
    kinds = cls.card.features
    if found is None or not kinds or weights.suffix == ".safetensors":
        return
    rule = found.settings.get("rule", "")
    if not any(found.extractor == extractor and rule in ("", wanted) for extractor, wanted in kinds):
        needed = " or ".join(f"{extractor} (rule {wanted})" for extractor, wanted in kinds)
        extractor, wanted = kinds[0]
        raise BadInput(
            f"{weights}: {cls.card.name}'s published weights were trained on regions of {needed}, these are of {found.extractor}"
            f"{f' (rule {rule})' if rule else ''}: use `intarsia extract PICTURES --out OUT --extractor {extractor} --weights FILE "
            f"--options rule {wanted}`, in Python open_extractor({extractor!r}, weights=FILE, rule={wanted!r})"
        )


def _open_run(cls: type[System], name: str, run: Path, device: str, extractor: Extractor | None) -> Model:
    recipe = read_recipe(cls, name, run)
    vocab = Vocab.read(run / "vocab.txt")
    state = read_weights(run / "model.safetensors")
    provenance = read_provenance(run) if (run / "provenance.json").is_file() else None
    system = build(cls, recipe.config, vocab, state, str(run / "model.safetensors"))
    return Model(system, provenance, device, extractor)


def read_provenance(run: Path) -> Provenance:
    """Where the features of a run came from.

    Raises:
        BadInput: its note is damaged.
    """
    about = run / "provenance.json"
    try:
        return from_json(Provenance, about.read_text(encoding="utf-8"), str(about))  # type: ignore[no-any-return]
    except ValueError as error:
        raise BadInput(f"{about}: {error}") from None


def read_system(run: Path) -> str:
    """The name of the system of a run folder.

    Raises:
        BadInput: it is none.
    """
    path = run / "recipe.json"
    try:
        return str(json.loads(path.read_text())["system"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: no such recipe; is this the folder of a run?") from None


def read_recipe(cls: type[System], name: str, run: Path) -> Recipe[Any]:
    """The resolved recipe of a run folder, or of a recipe.json.

    Raises:
        BadInput: there is none, it is damaged, or it is of another system.
    """
    path = run / "recipe.json" if run.is_dir() else run
    try:
        tree = json.loads(path.read_text())
        if tree.get("system") != name:
            raise BadInput(f"{path}: a run of {tree.get('system')!r}, not of {name!r}")
        return from_json(Recipe[cls.Config], json.dumps(tree["recipe"]), str(path))  # type: ignore[no-any-return, name-defined]
    except OSError:
        raise BadInput(f"{path}: no such recipe; is this the folder of a run?") from None
    except (ValueError, KeyError) as error:
        raise BadInput(f"{path}: {error}") from None


def build(cls: type[System], config: Any, vocab: Vocab, state: Mapping[str, Tensor], where: str) -> System:
    """A system with weights, loaded strictly but for pre-training heads that were never published: these are fresh, with a warning."""
    if len(vocab) != config.vocab_size:
        raise BadInput(f"{where}: the vocabulary has {len(vocab)} pieces, the config says {config.vocab_size}")
    heads = [x for x in cls.heads if f"{x}." in cls.keys.optional and not any(key.startswith(f"{x}.") for key in state)]
    if heads:
        warnings.warn(f"{where}: holds no {', '.join(heads)}: they are random", stacklevel=2)
    memory = [part for part in cls.memory if not any(key.startswith(part) for key in state)]
    if fresh := (*(f"{x}." for x in heads), *memory):
        system = cls(config, vocab)
    else:
        with torch.device("meta"):
            system = cls(config, vocab)
        system.to_empty(device="cpu")
    fill(system, system.fitted(state, where), where, fresh)
    return system


def read_ours(cls: type[System], name: str, path: Path, size: str) -> tuple[dict[str, Tensor], Any]:
    """A weights file, ours or the authors', as our state dict and its config.

    Raises:
        BadInput: the file is of another system (names the nearest), or does not fit the size.
    """
    config = None
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safetensors.safe_open(path, "pt") as file:
                about = file.metadata() or {}
        except safetensors.SafetensorError as error:
            raise BadInput(f"{path}: not a whole safetensors file: {error}") from None
        if "config" in about:
            if about.get("system") != name:
                raise BadInput(f"{path}: weights of {about.get('system')}, not of {name}")
            return read_weights(path), from_json(cls.Config, about["config"], str(path))
    state = read_weights(path)
    owner = whose(state)
    if owner not in (None, "bert", name) and set(cls(_smallest(cls), Vocab(SPECIALS)).state_dict()).isdisjoint(state):
        raise BadInput(f"{path}: these look like weights of {owner}, not of {name} (keys like {next(iter(state))})")
    layout = next((keys for keys in (cls.keys, *cls.layouts.values()) if keys.knows(state)), cls.keys)
    ours = layout.to_ours(state, str(path))
    config = fit_to(cls, sized(cls, name, size).config, ours, path)
    return ours, config


def _smallest(cls: type[System]) -> Any:
    return dataclasses.replace(cls.recipes["tiny"].config, vocab_size=len(SPECIALS))


def fit_to(cls: type[System], config: Any, state: Mapping[str, Tensor], path: Path | str) -> Any:
    """The config with the numbers that the shapes of the weights say."""
    found: dict[str, Any] = {x: key in state if isinstance(key, str) else key(state) for x, key in cls.flags.items()}
    for field, (key, axis) in cls.sizes.items():
        if key not in state:
            continue
        found[field] = state[key].shape[axis]
    for field, start in cls.depths.items():
        layers = [int(m[1]) for key in state if (m := re.match(re.escape(start) + r"(\d+)\.", key))]
        if layers:
            found[field] = max(layers) + 1
    if found.get("hidden_size", config.hidden_size) != config.hidden_size:
        raise BadInput(
            f"{path}: hidden_size is {found['hidden_size']}, the chosen size has {config.hidden_size}: name another --size"
        )
    return dataclasses.replace(config, **found)


def grown_for_own(cls: type[System], state: dict[str, Tensor], config: Any) -> Any:
    """The config with the segments that a task's own texts need; their rows are added to the state dict, in place."""
    own = getattr(config, "own", "")
    changes = grow(state, config, cls.finetune[own], ("type_vocab_size",)) if own in cls.finetune else {}
    return dataclasses.replace(config, **changes)


def sized(cls: type[System], name: str, size: str) -> Recipe[Any]:
    """The recipe of a size; BadInput where there is none."""
    if size not in cls.recipes:
        raise BadInput(f"{name} has no size {size!r} (it has {', '.join(cls.recipes)})")
    return cls.recipes[size]


def convert(name: str, source: Path, target: Path, size: str = "base", to: str = "ours") -> int:
    """Converts a weights file between the authors' layout and ours, strictly.

    Args:
        name: the system.
        source: weights to read, in either layout.
        target: file to write.
        size: recipe that gives what shapes cannot say (the number of heads).
        to: "ours", "authors", or another layout of the system.

    Returns:
        Tensors written.
    """
    cls = find(name)
    state, config = read_ours(cls, name, source, size)
    layouts = {"authors": cls.keys, **cls.layouts}
    if to != "ours":
        if to not in layouts:
            raise BadInput(f"{name} has no layout {to!r} (it has ours, {', '.join(layouts)})")
        theirs = layouts[to].to_theirs(state)
        write_weights(target, theirs)
        return len(theirs)
    if target.suffix != ".safetensors":
        raise BadInput(f"{target}: our own format is .safetensors")
    write_weights(target, state, {"system": name, "config": to_json(config)})
    return len(state)
