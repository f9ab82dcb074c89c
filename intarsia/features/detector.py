"""Region detectors of the field: bottom-up attention (ResNet-101 C4, 1600 objects, 400 attributes) and VinVL's (ResNeXt-152 C4, 1594 objects, 524 attributes).

Source: Anderson et al., Bottom-Up and Top-Down Attention (CVPR 2018); Zhang et al., VinVL (CVPR 2021). Faster R-CNN on the map of layer 3; layer 4 runs on
every proposal by itself, and the mean of what it gives is the region's feature.

Unusual:
- A feature belongs to the proposal, even where the box stored with it is the regressed one.
- Bottom-up attention keeps layer 4 at stride 1, dilated, on 14 x 14 max-pooled cells; VinVL strides, on 14 x 14 RoIAlign reads.
- Attributes are asked of the feature and the class: the likeliest one, background included; VinVL pools again at the final box and takes its label.
- Zeros padded below and beside a smaller picture reach its features through the convolutions. Pictures of one size make a batch, so none are padded here.
- The Caffe form's background is class 0, detectron2's the last class; everything this module hands out has it at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from intarsia.errors import BadInput
from intarsia.features import select
from intarsia.features.resnet import EXPANSION, ResNet, ResNetConfig, layer
from intarsia.features.roi import roi_align_unshifted, roi_pool
from intarsia.features.rpn import CONVENTIONS, RPN, STRIDE, Form, Limits, anchors, clipped, decode, propose

SIZE = 14
"""Cells a side of a pooled region."""
CHUNK = 32
"""Regions run through layer 4 at once: a full-size one needs 1.6 MB an activation."""
D2_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


TRUNK = ResNetConfig((3, 4, 23, 3), stride_in="1x1", pool="ceil", layer4="dilated", norm="frozen", num_classes=0)
"""Bottom-up attention's."""


@dataclass(frozen=True)
class DetectorConfig:
    """Bottom-up attention in its Caffe form."""

    trunk: ResNetConfig = TRUNK
    """Layers 1 to 4; the fourth is the head."""
    form: Form = "caffe"
    """The pixel convention, see `rpn.CONVENTIONS`; "maskrcnn" also pools by RoIAlign."""
    classes: int = 1601
    """C, background included."""
    attributes: int = 401
    """A, background included; 0 for none."""
    anchors: int = 12
    """A cell."""
    rpn_hidden: int = 512
    embedding: int = 256
    """Width of a class in the attribute head."""
    attribute_hidden: int = 512
    box_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    """Divisors of the classes' regressions: 1 in Caffe, 10 10 5 5 in detectron2 and maskrcnn-benchmark. A converted file may hold either."""
    limits: Limits = field(default_factory=Limits)


VINVL = DetectorConfig(
    replace(
        TRUNK,
        depths=(3, 8, 36, 3),
        groups=32,
        group_width=8,
        stride_in="3x3",
        pool="padded",
        layer4="strided",
        eps=0.0,
    ),
    "maskrcnn",
    1595,
    525,
    15,
    1024,
    box_weights=D2_WEIGHTS,
)
"""VinVL's detector."""


@dataclass(frozen=True)
class Proposed:
    """The proposals of one picture, best first, and all that is known of them. R proposals, F features, C classes."""

    size: tuple[int, int]
    """Height and width of the picture as the network saw it."""
    boxes: Tensor
    """(R, 4) float32 xyxy in those pixels."""
    scores: Tensor
    """(R) float32 of the proposal network: probabilities in the Caffe form, else logits."""
    features: Tensor
    """(R, F) float32"""
    logits: Tensor
    """(R, C) float32, as the weights order the classes."""
    deltas: Tensor
    """(R, C - 1, 4) float32 regressions of each class but the background."""


@dataclass(frozen=True)
class Detections:
    """The regions of one picture, K of them."""

    rows: Tensor
    """(K) int64 the proposal of each; one may come twice under the rule of pairs."""
    boxes: Tensor
    """(K, 4) float32 xyxy in pixels of the picture as the network saw it."""
    labels: Tensor
    """(K) int64 from 1."""
    scores: Tensor
    """(K) float32 probability of the label."""


@dataclass(frozen=True)
class Rule:
    """Which proposals become regions."""

    least: int = 10
    most: int = 100
    threshold: float = 0.2
    """Of the confidence, where the rule has one."""
    overlap: float = 0.3
    """Of the classes' suppression."""
    overlaps: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Tried in turn where detectron2's rule counts what one suppression leaves."""
    by: str = "picture"
    """picture: the code base's own rule. pairs: pairs of a proposal and a class (detectron2 only)."""
    regressed: bool = False
    """VinVL: boxes moved by the regression, as its demo gives them; its published features stand at the proposals."""


RULES = {
    "10-100": Rule(),
    "36": Rule(36, 36),
    "pairs": Rule(36, 36, overlaps=(0.5, 0.6, 0.7, 0.8, 0.9), by="pairs"),
}
"""10-100 and 36: as the published feature files are named. pairs: py-bottom-up-attention's notebooks."""


class Attributes(nn.Module):
    """Attribute logits of a feature and a class."""

    def __init__(self, features: int, config: DetectorConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.classes, config.embedding)
        self.hidden = nn.Linear(features + config.embedding, config.attribute_hidden)
        self.score = nn.Linear(config.attribute_hidden, config.attributes)

    def forward(self, features: Tensor, columns: Tensor) -> Tensor:
        """(R, F) and the class of each (R) as the weights order them: (R, A) logits."""
        given = torch.cat([features, self.embedding(columns)], 1)
        logits: Tensor = self.score(torch.relu(self.hidden(given)))
        return logits


class Detector(nn.Module):
    """A detector of either family, in the convention of its weights.

    Raises:
        BadInput: the trunk has not four layers.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        if len(config.trunk.depths) != 4:
            raise BadInput(f"detector: trunk of {len(config.trunk.depths)} layers, expected 4 (the last is the head)")
        self.config, self.how = config, CONVENTIONS[config.form]
        below = replace(config.trunk, depths=config.trunk.depths[:3], planes=config.trunk.planes[:3], num_classes=0)
        self.trunk = ResNet(below)
        self.rpn = RPN(self.trunk.width, config.rpn_hidden, config.anchors, config.form in ("caffe", "milvlg"))
        self.head = layer(4, config.trunk)
        self.width = config.trunk.planes[3] * EXPANSION
        """F."""
        self.classes = nn.Linear(self.width, config.classes)
        self.boxes = nn.Linear(self.width, 4 * (config.classes - (config.form == "d2")))
        if config.attributes:
            self.attributes = Attributes(self.width, config)

    def maps(self, pixels: Tensor) -> Tensor:
        """(I, C, h, w), stride 16, of pixels (I, 3, H, W), blue green red, 0..255 less the mean."""
        return self.trunk.features(pixels)

    def proposals(
        self, maps: Tensor, sizes: Sequence[tuple[int, int]], scales: Sequence[float]
    ) -> list[tuple[Tensor, Tensor]]:
        """Boxes (R, 4) and scores (R) of each picture, best first; arguments as `forward`'s."""
        scores, deltas = self.rpn(maps)
        grid, out = anchors(self.rpn.cells, maps.shape[2], maps.shape[3]), []
        for i, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
            boxes, flat = decode(grid, deltas[i].reshape(-1, 4), self.how), scores[i].reshape(-1)
            rows = propose(boxes, flat, size, scale, self.how, self.config.limits)
            out.append((clipped(boxes[rows], size, self.how), flat[rows]))
        return out

    def pool(self, maps: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        """(R, C, 14, 14) the cells of boxes (R, 4), in pixels, of the maps of pictures (R)."""
        read = roi_align_unshifted if self.config.form == "maskrcnn" else roi_pool
        return read(maps, boxes, image, SIZE, 1 / STRIDE)

    def describe(self, maps: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        """(R, F) the features of boxes (R, 4), in pixels, of the maps of pictures (R)."""
        rows = [maps.new_zeros((0, self.width))]
        for start in range(0, len(boxes), CHUNK):
            part, owner = boxes[start : start + CHUNK], image[start : start + CHUNK]
            rows.append(self.head(self.pool(maps, part, owner)).mean((2, 3)))
        return torch.cat(rows)

    def forward(self, pixels: Tensor, sizes: Sequence[tuple[int, int]], scales: Sequence[float]) -> list[Proposed]:
        """Proposals of pictures, described.

        Args:
            pixels: (I, 3, H, W) float, blue green red, 0..255 less the mean; a smaller picture is padded below and right with zeros.
            sizes: height and width of each without padding.
            scales: by which each was resized.
        """
        maps = self.maps(pixels)
        found = self.proposals(maps, sizes, scales)
        return self.at(maps, [boxes for boxes, _ in found], sizes, [scores for _, scores in found])

    def at(
        self, maps: Tensor, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]], scores: Sequence[Tensor]
    ) -> list[Proposed]:
        """Given boxes, described as proposals are: for each picture (R, 4) in pixels of the network's input, its size, and scores (R)."""
        counts = [len(x) for x in boxes]
        image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64)).to(
            maps.device
        )
        features = self.describe(maps, torch.cat([*boxes]), image)
        logits, deltas = self.classes(features), self.boxes(features).unflatten(1, (-1, 4))
        if self.how.background_first:
            deltas = deltas[:, 1:]
        ends = torch.tensor(counts).cumsum(0)[:-1].tolist()
        split = (torch.tensor_split(x, ends) for x in (features, logits, deltas))
        parts = zip(sizes, boxes, scores, *split, strict=True)
        return [Proposed(*part) for part in parts]

    # ----------------------------------------------------------------------------------------------------------------- what the numbers mean

    def probs(self, logits: Tensor) -> Tensor:
        """(R, C) probabilities, background first, of logits as the weights order them."""
        probs = logits.softmax(1)
        return probs if self.how.background_first else probs.roll(1, 1)

    def regressed(self, found: Proposed) -> Tensor:
        """(R, C - 1, 4) the box of each class but the background, clipped."""
        return clipped(
            decode(found.boxes[:, None], found.deltas, self.how, self.config.box_weights), found.size, self.how
        )

    def attribute_probs(self, features: Tensor, logits: Tensor) -> Tensor:
        """(R, A - 1) probabilities of the attributes but the background, of proposals: for the likeliest class, background included.

        The Caffe form's still have the background's share in the sum, detectron2's do not. VinVL's are `attribute_probs_at`.

        Raises:
            BadInput: the detector knows no attributes.
        """
        self._needs_attributes()
        found: Tensor = self.attributes(features, logits.argmax(1))
        return found.softmax(1)[:, 1:] if self.how.background_first else found[:, :-1].softmax(1)

    def attribute_probs_at(self, maps: Tensor, boxes: Tensor, image: Tensor, labels: Tensor) -> Tensor:
        """(K, A - 1) as VinVL asks: features pooled at the final boxes (K, 4) of pictures (K), and their labels (K) from 1."""
        self._needs_attributes()
        found: Tensor = self.attributes(self.describe(maps, boxes, image), labels)
        return found.softmax(1)[:, 1:]

    def _needs_attributes(self) -> None:
        if not self.config.attributes:
            raise BadInput("the detector's weights have no attributes")

    # ------------------------------------------------------------------------------------------------------------------------------ selection

    def select(self, found: Proposed, rule: Rule) -> Detections:
        """The regions of a picture.

        Raises:
            BadInput: the code base of these weights has no rule of pairs.
        """
        if rule.by == "pairs" and self.config.form != "d2":
            raise BadInput(f"rule pairs: only of detectron2's form, these weights are of the form {self.config.form}")
        probs = self.probs(found.logits)
        if self.config.form == "d2":
            return self._as_detectron(found, probs, rule)
        if self.config.form == "maskrcnn":
            boxes = self.regressed(found) if rule.regressed else found.boxes
            rows, labels, scores = select.best_class(boxes, probs, rule.overlap, rule.threshold, rule.least, rule.most)
            return Detections(rows, boxes[rows, labels - 1] if rule.regressed else boxes[rows], labels, scores)
        confidence = select.best_confidence(probs, found.boxes, rule.overlap, self.how.clash)
        rows = select.above_or_best(confidence, rule.threshold, rule.least, rule.most)
        scores, column = probs[rows, 1:].max(1)
        return Detections(rows, found.boxes[rows], column + 1, scores)

    def _as_detectron(self, found: Proposed, probs: Tensor, rule: Rule) -> Detections:
        boxes = self.regressed(found)
        if rule.by == "pairs":
            rows, labels = select.pairs(boxes, probs, rule.threshold, rule.overlaps, rule.most)
        else:
            scores, column = probs[:, 1:].max(1)
            each = torch.arange(len(boxes), device=boxes.device)
            rows = select.tighter_until(boxes[each, column], scores, rule.overlaps, rule.least, rule.most)
            labels = column[rows] + 1
        return Detections(rows, boxes[rows, labels - 1], labels, probs[rows, labels])
