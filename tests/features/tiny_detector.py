"""Small detectors with random weights, one of each code base."""

from dataclasses import replace

import torch

from intarsia.features.detector import D2_WEIGHTS, TRUNK, VINVL, Detector, DetectorConfig
from intarsia.features.rpn import Limits, caffe_cells, d2_cells

SMALL = {"depths": (1, 1, 2, 2), "planes": (4, 4, 8, 8), "stem": 8}
BASE = DetectorConfig(
    replace(TRUNK, **SMALL),
    classes=7,
    attributes=5,
    rpn_hidden=8,
    embedding=3,
    attribute_hidden=6,
    limits=Limits(300, 30),
)
CONFIGS = {
    "caffe": BASE,
    "milvlg": replace(BASE, form="milvlg"),
    "d2": replace(BASE, form="d2", box_weights=D2_WEIGHTS),
    "maskrcnn": replace(
        BASE,
        form="maskrcnn",
        trunk=replace(VINVL.trunk, **(SMALL | {"planes": (16, 16, 16, 16)}), groups=4, group_width=16),
        anchors=15,
        box_weights=D2_WEIGHTS,
    ),
}


def tiny_detector(form, seed=0, **changes):
    """A detector whose scores spread, so that rules have something to choose."""
    detector = Detector(replace(CONFIGS[form], **changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in detector.state_dict().items():
            if "running_var" in name:
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.ndim > 1:
                spread = 4.0 if name.startswith(("classes", "attributes.score")) else 1.4
                value.copy_(torch.randn(value.shape, generator=generator) * spread / value[0].numel() ** 0.5)
            elif "weight" in name:
                value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
            else:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        detector.rpn.deltas.weight *= 0.02
        detector.boxes.weight *= 0.2
        small = {"maskrcnn": lambda: caffe_cells((1, 2, 3, 4, 6)), "d2": lambda: d2_cells((16, 32, 64, 96))}
        detector.rpn.cells.copy_(small.get(form, lambda: caffe_cells((1, 2, 4, 6)))())
    return detector.eval().requires_grad_(False)
