"""The extractors "butd" and "vinvl": the field's region detectors with a user's weight file.

Published files are read as they are (`features.detector_weights`). What a file cannot say has the default of its code base: how pictures are prepared, which
proposals become regions. Classes and attributes get their names from the code base's lists, where these are given; else they are numbered.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.features import frcnn_pixels
from intarsia.features.detector import RULES, Detections, Proposed
from intarsia.features.detector_weights import load_detector
from intarsia.features.extractor import WHOLE, Array, Found, given_boxes, remember_weights, where_to_run, whole_floats
from intarsia.features.select import attribute_hits

DEFAULTS = {"caffe": "caffe", "milvlg": "caffe", "d2": "pillow", "maskrcnn": "vinvl"}
"""Form of the weights -> how its scripts prepare pictures."""
THIN = 100
"""Pictures whose one side is longer than so many times the other are refused: prepared, they are less than a cell of the network high or wide."""


class BottomUp:
    """Bottom-up attention's Faster R-CNN.

    Args:
        weights: the file.
        rule: which proposals become regions, one of `detector.RULES`.
        prepare: how pictures are prepared, one of `frcnn_pixels.PREPARE`; the default of the weights' form when empty.
        objects: file with the names of the classes but the background, one a line, synonyms behind commas; or VinVL's JSON of labels.
        attributes: the same for attributes; not needed beside a JSON.
        device: "auto", "cpu", "cuda", "cuda:1", ..
        regress: what the four numbers of a class's regression were multiplied by in training, such as "1,1,1,1"; the default of the weights' form when
            empty. Converted files may hold either, and nothing in them says which.
    """

    name, by_shape, adds_whole = "butd", True, False
    forms: tuple[str, ...] = ("caffe", "milvlg", "d2")

    def __init__(
        self,
        weights: str = "",
        rule: str = "10-100",
        prepare: str = "",
        objects: str = "",
        attributes: str = "",
        device: str = "auto",
        regress: str = "",
    ) -> None:
        if not weights:
            raise BadInput(f"extractor {self.name}: name its weights with --weights FILE")
        if rule not in RULES:
            raise BadInput(f"extractor {self.name}: rule {rule!r} is not one of {', '.join(RULES)}")
        self.device = where_to_run(device)
        factors = {"box_weights": _factors(regress)} if regress else {}
        self.detector = load_detector(weights, **factors).to(self.device)
        config = self.detector.config
        if config.form not in self.forms:
            raise BadInput(f"{weights}: a detector of the form {config.form}, which is not {self.name}'s")
        prepare = prepare or DEFAULTS[config.form]
        if prepare not in frcnn_pixels.PREPARE:
            raise BadInput(
                f"extractor {self.name}: prepare {prepare!r} is not one of {', '.join(frcnn_pixels.PREPARE)}"
            )
        self.rule, self.prepare = RULES[rule], prepare
        self.provenance = Provenance(
            extractor=self.name,
            width=self.detector.width,
            weights=remember_weights(Path(weights)),
            classes=("background", *_names("object", objects, config.classes - 1)),
            attributes=("none", *_names("attribute", attributes or objects, config.attributes - 1))
            if config.attributes
            else (),
            settings={"rule": rule, "prepare": prepare, "form": config.form}
            | ({"regress": regress} if regress else {}),
        )

    @whole_floats()
    @torch.inference_mode()
    def __call__(self, images: Sequence[Array]) -> list[Found]:
        """The regions that the rule picks, in its order; the whole picture where there is none.

        Raises:
            BadInput: a picture is too thin.
        """
        return self._each(images, [None] * len(images))

    @whole_floats()
    @torch.inference_mode()
    def features_at(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Found]:
        """Given boxes, described as proposals are."""
        return self._each(images, [given_boxes(x, i) for i, x in enumerate(boxes)])

    def _each(self, images: Sequence[Array], boxes: Sequence[Array | None]) -> list[Found]:
        """Pictures that are of one size once prepared make a batch, so that none is padded: padding reaches the features."""
        for high, wide, _ in (x.shape for x in images):
            if max(high, wide) > THIN * min(high, wide):
                raise BadInput(
                    f"{wide}x{high} pixels are too thin for {self.name}: one side is over {THIN} times the other"
                )
        ready = [frcnn_pixels.PREPARE[self.prepare](np.ascontiguousarray(x[:, :, ::-1])) for x in images]
        sizes: dict[torch.Size, list[int]] = {}
        for number, pixels in enumerate(ready):
            sizes.setdefault(pixels.shape, []).append(number)
        out: dict[int, Found] = {}
        for size, numbers in sizes.items():
            scales = [self._scale(images[i], size) for i in numbers]
            sides = [
                torch.tensor([*images[i].shape[1::-1]] * 2, device=self.device)
                * torch.tensor(scale * 2, device=self.device)
                for i, scale in zip(numbers, scales, strict=True)
            ]
            pixels = torch.stack([ready[i] for i in numbers]).to(self.device)
            out |= zip(numbers, self._describe(pixels, scales, sides, [boxes[i] for i in numbers]), strict=True)
        return [out[i] for i in range(len(images))]

    def _scale(self, image: Array, size: torch.Size) -> tuple[float, float]:
        """By how much a picture was resized, across and down."""
        high, wide = image.shape[:2]
        if self.prepare == "caffe":
            return (frcnn_pixels.caffe_scale(high, wide),) * 2
        return size[2] / wide, size[1] / high

    def _describe(
        self,
        pixels: Tensor,
        scales: Sequence[tuple[float, float]],
        sides: Sequence[Tensor],
        boxes: Sequence[Array | None],
    ) -> list[Found]:
        """Of pictures of one size; `sides` (4) are what their boxes are fractions of, in pixels of the network."""
        maps = self.detector.maps(pixels)
        size = (pixels.shape[2], pixels.shape[3])
        sizes = [size] * len(boxes)
        chosen = self.detector.proposals(maps, sizes, [x for x, _ in scales])
        given: list[tuple[Tensor, Tensor]] = []
        for own, asked, side in zip(chosen, boxes, sides, strict=True):
            fixed = WHOLE if asked is None and not len(own[0]) else asked
            if fixed is None:
                given.append(own)
            else:
                corners = torch.from_numpy(np.ascontiguousarray(fixed)).to(self.device) * side
                given.append((corners, corners.new_ones(len(corners))))
        described = self.detector.at(maps, [x for x, _ in given], sizes, [x for _, x in given])
        out = []
        for i, found in enumerate(described):
            picked = self._all(found) if boxes[i] is not None else self.detector.select(found, self.rule)
            out.append(self._found(maps[i : i + 1], found, picked, sides[i], boxes[i]))
        return out

    def _all(self, found: Proposed) -> Detections:
        """Every box as it is, with its likeliest class."""
        scores, column = self.detector.probs(found.logits)[:, 1:].max(1)
        return Detections(torch.arange(len(scores), device=scores.device), found.boxes, column + 1, scores)

    def _found(self, maps: Tensor, found: Proposed, picked: Detections, sides: Tensor, given: Array | None) -> Found:
        rows = picked.rows
        features, logits = found.features[rows], found.logits[rows]
        attributes = scores = None
        if self.detector.config.attributes:
            probs = self._attribute_probs(maps, picked, features, logits)
            best, column = probs.max(1)
            attributes, scores = torch.where(best > 0, column + 1, 0).cpu().numpy(), best.cpu().numpy()
        own = (_with_area(picked.boxes, sides) / sides).clamp(0, 1).float().cpu().numpy()
        boxes = own if given is None else given
        return Found(
            boxes=boxes,
            features=features.float().cpu().numpy(),
            scores=picked.scores.float().cpu().numpy() if given is None else np.ones(len(rows), np.float32),
            probs=self.detector.probs(logits).float().cpu().numpy(),
            labels=picked.labels.cpu().numpy(),
            attributes=attributes,
            attribute_scores=scores,
        )

    def _attribute_probs(self, maps: Tensor, picked: Detections, features: Tensor, logits: Tensor) -> Tensor:
        return self.detector.attribute_probs(features, logits)


class VinVL(BottomUp):
    """VinVL's detector; arguments as `BottomUp`'s. A region of which no attribute is likely enough says none (0, score 0)."""

    name = "vinvl"
    forms = ("maskrcnn",)

    def _attribute_probs(self, maps: Tensor, picked: Detections, features: Tensor, logits: Tensor) -> Tensor:
        owner = torch.zeros_like(picked.labels)
        return attribute_hits(self.detector.attribute_probs_at(maps, picked.boxes, owner, picked.labels))


def _with_area(boxes: Tensor, sides: Tensor) -> Tensor:
    """Boxes (K, 4) in pixels with those that are a line or a point made a pixel wide or high, inside the picture's sides (4).

    The field's boxes name their last pixel, so that one that ends where it begins, or just before, is a pixel; and some are clipped to nothing.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    thin = high - low < 0.1
    low = torch.where(thin, torch.minimum(torch.minimum(low, high), sides[2:] - 1).clamp(min=0), low)
    return torch.cat([low, torch.where(thin, low + 1, high)], 1)


def _factors(text: str) -> tuple[float, ...]:
    """Four numbers.

    Raises:
        BadInput: it is not four numbers over 0.
    """
    try:
        found = tuple(float(x) for x in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 4 or min(found) <= 0:
        raise BadInput(f"regress {text!r} is not four numbers over 0 with commas between")
    return found


def _names(what: str, path: str, count: int) -> tuple[str, ...]:
    """So many names out of a list or JSON file; "object 1", "object 2", .. without one.

    Raises:
        BadInput: the file cannot be read, or has another number of names.
    """
    if not path:
        return tuple(f"{what} {i}" for i in range(1, count + 1))
    try:
        text = Path(path).read_text(encoding="utf-8")
        if path.endswith(".json"):
            places = json.loads(text)["label_to_idx" if what == "object" else "attribute_to_idx"]
            names = sorted(places, key=lambda name: int(places[name]))
        else:
            names = [line.split(",")[0].strip() for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: no list of {what}s: {error}") from None
    if len(names) != count:
        raise BadInput(f"{path}: {len(names)} names, the weights know {count} {what}s")
    return tuple(names)
