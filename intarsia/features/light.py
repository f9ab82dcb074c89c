"""The "light" extractor: CenterNet boxes and soft labels, EfficientNet-Lite0 features of the cut-out regions. Real regions on a CPU.

Every region is cut out of the full-size picture, stretched to a small square and described by the 1280 numbers before the classifier. A detector of
this size is well below a Faster R-CNN: boxes are usable, class names are right about half of the time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from intarsia.data.fetch import fetched
from intarsia.data.source import Provenance
from intarsia.features.centernet import CLASSES, CenterNet, Detections, detect, heat_in, soft_labels
from intarsia.features.efficientnet_lite import FEATURES, load_efficientnet, normalised
from intarsia.features.extractor import WHOLE, Array, Found, given_boxes, where_to_run, whole_floats
from intarsia.features.roi import crops


class Light:
    """CenterNet-MobileNetV3 with EfficientNet-Lite0.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", ..
        cache: folder of fetched parts; the default one when empty.
        score: detections below this confidence are left out ..
        least: .. unless fewer than this many would be left.
        most: detections a picture at the most; the whole picture comes on top.
        overlap: IoU above which the lower of two boxes of one class goes.
        crop: side in pixels of the square a region is stretched to.
        crop_batch: regions described at once.
    """

    name, by_shape, adds_whole = "light", False, False

    def __init__(
        self,
        device: str = "auto",
        cache: str = "",
        score: float = 0.15,
        least: int = 4,
        most: int = 20,
        overlap: float = 0.5,
        crop: int = 160,
        crop_batch: int = 64,
    ) -> None:
        root = Path(cache) if cache else None
        files = [fetched("light", x, root) for x in ("centernet.json", "centernet.bin", "efficientnet-lite0.pth")]
        self.device = where_to_run(device)
        self.detector = CenterNet(files[0]).to(self.device).eval()
        self.trunk = load_efficientnet(files[2]).to(self.device)
        self.score, self.least, self.most, self.overlap = score, least, most, overlap
        self.crop, self.crop_batch = crop, crop_batch
        limits = {"score": score, "least": least, "most": most, "overlap": overlap, "crop": crop}
        self.provenance = Provenance(
            extractor=self.name,
            width=FEATURES,
            weights=hashlib.sha256(b"".join(hashlib.sha256(x.read_bytes()).digest() for x in files)).hexdigest(),
            classes=CLASSES,
            settings={name: str(value) for name, value in limits.items()},
        )

    @whole_floats()
    @torch.inference_mode()
    def __call__(self, images: Sequence[Array]) -> list[Found]:
        """The whole picture, then the detections, best first."""
        if not images:
            return []
        heat, reach = self.detector.maps(list(images), self.device)
        found = detect(heat, reach, self.score, self.overlap, self.least, self.most)
        whole = soft_labels(heat.amax((1, 2)))
        boxes = [np.concatenate([WHOLE, x.boxes.cpu().numpy()]) for x in found]
        features = self._describe(images, boxes)
        return [_found(boxes[i], features[i], x, whole[i : i + 1]) for i, x in enumerate(found)]

    @whole_floats()
    @torch.inference_mode()
    def features_at(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Found]:
        """Given boxes, described; soft labels are read off the heat maps in the middle half of each box."""
        if not images:
            return []
        asked = [given_boxes(x, i) for i, x in enumerate(boxes)]
        heat, _ = self.detector.maps(list(images), self.device)
        features = self._describe(images, asked)
        out: list[Found] = []
        for i, given in enumerate(asked):
            probs = soft_labels(heat_in(heat[i], torch.from_numpy(given))).cpu().numpy()
            out.append(Found(given, features[i], np.ones(len(given), np.float32), probs, probs[:, 1:].argmax(1) + 1))
        return out

    def _describe(self, images: Sequence[Array], boxes: Sequence[Array]) -> list[Array]:
        """(R, 1280) float32 for each picture."""
        with ThreadPoolExecutor(min(8, len(images))) as pool:  # Pillow lets other threads run while it resizes
            cut = np.concatenate(list(pool.map(crops, images, boxes, [self.crop] * len(images))))
        rows: list[Tensor] = [torch.zeros(0, FEATURES)]
        for start in range(0, len(cut), self.crop_batch):
            pixels = torch.from_numpy(cut[start : start + self.crop_batch]).to(self.device)
            rows.append(self.trunk.features(normalised(pixels)).mean((2, 3)).cpu())
        return np.split(torch.cat(rows).numpy(), np.cumsum([len(b) for b in boxes])[:-1])


def _found(boxes: Array, features: Array, found: Detections, whole: Tensor) -> Found:
    probs = torch.cat([whole, found.probs]).cpu().numpy()
    scores = np.concatenate([np.ones(1, np.float32), found.scores.cpu().numpy()])
    labels = np.concatenate([whole[:, 1:].argmax(1).cpu().numpy() + 1, found.labels.cpu().numpy()])
    return Found(boxes, features, scores, probs, labels)
