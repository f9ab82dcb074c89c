"""R2C's "SimpleDetector": a ResNet-50 up to layer 3, RoIAlign of given boxes, layer 4 on each, and what the object is. Trained with the system that reads it.

Detects nothing: boxes, outlines and classes are given. Source: VisualBERT, sec. 4.2; rowanz/r2c 39b42af, utils/detector.py, and uclanlp/visualbert,
dataloaders/box_utils.py and mask_utils.py.

Unusual: strides of layers 2 and 3 sit in their first 1x1 convolutions, layer 4 has none. The outline is added to the first 32 channels of what is aligned.
Pictures are fitted into one wide frame, black around them, anywhere in it in training. Batch norms train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from intarsia.batch import Array, Covering, Images, Picture, Pixels, Regions, Sample
from intarsia.data.decode import pixels_of, size_of
from intarsia.errors import BadInput
from intarsia.features.resnet import ResNet, ResNetConfig, fill_split, layer, normalised
from intarsia.features.roi import roi_align_unshifted
from intarsia.weights.keymap import KeyMap

FRAME = (768, 384)
"""Pixels wide and high of what is read."""
SIZE, STRIDE = 7, 16
"""Cells a side of a region; pixels a side of what a cell of layer 3's map stands for."""
CLASSES, CLASS_SIZE = 81, 128
"""COCO's classes, 0 = background; numbers that stand for one."""
COVER, COVERED = 14, 32
"""Cells a side of what an object covers; channels that it is added to."""
WIDTH = 512
"""Numbers of a feature."""
RESNET50 = ResNetConfig(stride_in="1x1", layer4="unstrided", num_classes=0)
LAYOUT = KeyMap(
    ("backbone.0.", "backbone.conv1."),
    ("backbone.1.", "backbone.bn1."),
    *((f"backbone.{3 + n}.", f"backbone.layer{n}.") for n in (1, 2, 3)),
    ("after_roi_align.0.", "head."),
    ("mask_upsample.", "cover."),
    ("object_embed.", "kind."),
    ("obj_downsample.1.", "downsample."),
    ("regularizing_predictor.", "names."),
)
"""From the authors' names to ours."""


class SimpleDetector(nn.Module):
    """Pixels, boxes, outlines and classes to a feature a box.

    Args:
        config: layers 1 to 4; the fourth reads regions.
        frozen: the stem and layers 1 to 3 do not train, nor their statistics move.
        names: what names the objects trains.
    """

    def __init__(self, config: ResNetConfig = RESNET50, frozen: bool = False, names: bool = False) -> None:
        super().__init__()
        self.config, self.frozen = config, frozen
        seen = 4 * config.planes[3]
        self.backbone = ResNet(replace(config, depths=config.depths[:3], planes=config.planes[:3]))
        self.backbone.requires_grad_(not frozen)
        self.head = layer(4, config)
        self.cover = nn.Conv2d(1, COVERED, 3, 2, 1)
        self.kind = nn.Embedding(CLASSES, CLASS_SIZE)
        self.downsample = nn.Linear(seen + CLASS_SIZE, WIDTH)
        self.names = nn.Linear(seen, CLASSES).requires_grad_(names)
        self.dropout = nn.Dropout(0.1)

    def train(self, mode: bool = True) -> SimpleDetector:
        """A frozen backbone goes by its stored statistics in training too."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def fill(self, path: Path) -> None:
        """Starts from a ResNet's published weights; the rest stays as it was drawn.

        Raises:
            BadInput: as `resnet.fill_split`.
        """
        fill_split(self, self.config, path, ("cover.", "kind.", "downsample.", "names."))

    def forward(self, images: Images | None, regions: Regions) -> tuple[Tensor, Tensor]:
        """What the boxes show, each off the image of its document or, where it has none, of the last before it that has (VCR's choices).

        Args:
            images: I images, see `framed`.
            regions: boxes as fractions of the images, classes and what their objects cover. Documents that share an image have the same.

        Returns:
            (R, WIDTH) features, and the mean cross entropy of the classes, named by what is seen before they are told, a scalar.

        Raises:
            ValueError: no image.
        """
        if images is None or regions.labels is None:
            raise ValueError(f"{len(regions.boxes)} regions, and no image to read them off")
        maps, (once, again) = self.backbone.features(images.pixels), images.shared
        number = torch.searchsorted(images.doc, regions.packing.doc[once]) + regions.image[once]
        boxes = regions.boxes[once].float() * regions.boxes.new_tensor([*FRAME, *FRAME])
        cells = roi_align_unshifted(maps, boxes, number, SIZE, 1 / STRIDE, most=ceil(FRAME[0] / STRIDE / SIZE))
        covers = cells.new_ones(len(boxes), COVER, COVER) if regions.covers is None else regions.covers[once]
        added = self.cover(covers[:, None].to(cells.dtype) - 0.5)
        cells = torch.cat([cells[:, :COVERED] + added, cells[:, COVERED:]], 1)
        seen, kinds = self.head(cells).mean((2, 3)), regions.labels[once]  # (K, F), (K)
        loss = F.cross_entropy(self.names(seen).float(), kinds)
        feats = F.relu(self.downsample(self.dropout(torch.cat([seen, self.kind(kinds)], -1))))
        return feats[again], loss


@dataclass(frozen=True, slots=True)
class Framed(Picture):
    """A picture put into the frame, its boxes too; its last region is what the frame shows of it, of class background."""


def framed(sample: Sample, rng: np.random.Generator | None = None) -> Sample:
    """A sample whose pictures are fitted into the frame, proportions kept, with black around them; those that are stay.

    Args:
        sample: the classes of its pictures' regions are their labels; without any, background.
        rng: for the place in the frame; None = the middle.

    Raises:
        BadInput: a class is none of COCO's, or the size of a picture is not to be found.
    """
    pictures = (x if isinstance(x, Framed) else _framed(sample.key, x, rng) for x in sample.pictures)
    return replace(sample, pictures=tuple(pictures))


def _framed(key: str, picture: Picture, rng: np.random.Generator | None) -> Framed:
    wide, high = size_of(picture, key)
    scale = min(FRAME[0] / wide, FRAME[1] / high)
    size = (max(1, round(wide * scale)), max(1, round(high * scale)))
    spare = [whole - part for whole, part in zip(FRAME, size, strict=True)]
    left, top = (x // 2 if rng is None else int(rng.integers(x + 1)) for x in spare)
    corner, frame = np.array([left, top, left, top]), np.array([*FRAME, *FRAME])
    boxes = picture.boxes * (np.array([wide, high, wide, high]) * scale) + corner
    boxes = np.concatenate([boxes, [[left, top, left + size[0], top + size[1]]]]) / frame
    count = len(picture.boxes)
    labels = np.zeros(count + 1, np.int64)
    if picture.labels is not None:
        labels[:count] = picture.labels
    if labels.max() >= CLASSES or labels.min() < 0:
        raise BadInput(f"sample {key}: region of class {labels.max()}, the detector knows {CLASSES}")
    return Framed(
        name=picture.name,
        features=np.zeros((count + 1, 0), np.float32),
        boxes=boxes.clip(0, 1).astype(np.float32),
        width=FRAME[0],
        height=FRAME[1],
        labels=labels,
        names=(*picture.names, "") if picture.names else (),
        pixels=partial(_in_frame, key, picture, size, (left, top)),
        covers=None if picture.covers is None else partial(_covers, picture.covers),
    )


def _in_frame(key: str, picture: Picture, size: tuple[int, int], corner: tuple[int, int]) -> Array:
    """(H, W, 3) uint8 of the frame."""
    image = Image.fromarray(np.ascontiguousarray(pixels_of(picture, key)))
    whole = Image.new("RGB", FRAME)
    whole.paste(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR), corner)
    return np.array(whole)


def _covers(objects: Callable[[Covering], Array], rule: Covering) -> Array:
    found = objects(rule)
    return np.concatenate([found, np.ones((1, *found.shape[1:]), np.bool_)])


def seen(key: str, picture: Picture) -> Pixels:
    """What `SimpleDetector` reads of a framed picture: ImageNet-normalised, the black around it too. Args: key, of the sample, for errors."""
    return Pixels(partial(_read, key, picture), picture.height, picture.width)


def _read(key: str, picture: Picture) -> Array:
    found: Array = normalised(pixels_of(picture, key)[None])[0].numpy()
    return found


def inside(outlines: Sequence[Array], box: Sequence[float]) -> Array:
    """(COVER, COVER) bool: the cells of a box whose middle lies in one of an object's outlines; a `Covering`."""
    from matplotlib.path import Path as Outline

    x, y = (low + (np.arange(COVER) + 0.5) * (high - low) / COVER for low, high in zip(box[:2], box[2:4], strict=True))
    middles = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    found = np.zeros(len(middles), np.bool_)
    for outline in outlines:
        found |= Outline(outline).contains_points(middles)
    return found.reshape(COVER, COVER)
