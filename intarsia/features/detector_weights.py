"""Published weights of the region detectors: four layouts of names, told by the names, with sizes read off the shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from intarsia.errors import BadInput
from intarsia.features.caffe_blobs import caffe_names
from intarsia.features.detector import D2_WEIGHTS, VINVL, Detector, DetectorConfig
from intarsia.features.resnet import EXPANSION, detectron_layer, with_statistics
from intarsia.features.rpn import Form, caffe_cells, d2_cells
from intarsia.weights.files import counted, fill, read_weights
from intarsia.weights.keymap import KeyMap, Tied

Layout = Literal["d2", "milvlg", "maskrcnn", "caffemodel"]
_PREDICTOR = "roi_heads.box_predictor."
_BOX, _AGAIN = "roi_heads.box.feature_extractor.head.layer4.", "attribute.feature_extractor.head.layer4."
_DETECTRON = (
    ("backbone.stem.conv1.norm.", "trunk.bn1."),
    ("backbone.stem.conv1.", "trunk.conv1."),
    *(rule for n in (1, 2, 3) for rule in detectron_layer(f"backbone.res{n + 1}.", f"trunk.layer{n}.")),
    *detectron_layer("roi_heads.res5.", "head."),
    ("proposal_generator.anchor_generator.cell_anchors.0", "rpn.cells"),
    ("proposal_generator.rpn_head.conv.", "rpn.conv."),
    ("proposal_generator.rpn_head.objectness_logits.", "rpn.objectness."),
    ("proposal_generator.rpn_head.anchor_deltas.", "rpn.deltas."),
    (_PREDICTOR + "cls_score.", "classes."),
    (_PREDICTOR + "bbox_pred.", "boxes."),
)
LAYOUTS: dict[str, KeyMap] = {
    "d2": KeyMap(
        *_DETECTRON,
        (_PREDICTOR + "cls_embedding.", "attributes.embedding."),
        (_PREDICTOR + "fc_attr.", "attributes.hidden."),
        (_PREDICTOR + "attr_score.", "attributes.score."),
    ),
    "milvlg": KeyMap(
        *_DETECTRON,
        (_PREDICTOR + "cls_embed.", "attributes.embedding."),
        (_PREDICTOR + "attr_linear1.", "attributes.hidden."),
        (_PREDICTOR + "attr_linear2.", "attributes.score."),
    ),
    "maskrcnn": KeyMap(
        ("backbone.body.stem.conv1.", "trunk.conv1."),
        ("backbone.body.stem.bn1.", "trunk.bn1."),
        ("backbone.body.layer", "trunk.layer"),
        ("rpn.anchor_generator.cell_anchors.0", "rpn.cells"),
        ("rpn.head.conv.", "rpn.conv."),
        ("rpn.head.cls_logits.", "rpn.objectness."),
        ("rpn.head.bbox_pred.", "rpn.deltas."),
        (_BOX, "head."),
        ("roi_heads.box.predictor.cls_score.", "classes."),
        ("roi_heads.box.predictor.bbox_pred.", "boxes."),
        ("attribute.predictor.cls_embedding.", "attributes.embedding."),
        ("attribute.predictor.fc_attr.", "attributes.hidden."),
        ("attribute.predictor.attr_score.", "attributes.score."),
    ),
}
"""d2: py-bottom-up-attention and Hugging Face. milvlg: bottom-up-attention.pytorch. maskrcnn: VinVL. caffemodel: bottom-up-attention, see `features.caffe_blobs`."""


def layout_of(state: Mapping[str, Tensor], where: str = "weights") -> Layout:
    """Whose names these are.

    Raises:
        BadInput: nobody's known here.
    """
    if any(key.startswith("rpn.head.") for key in state):
        return "maskrcnn"
    if "rpn_cls_score.0" in state:
        return "caffemodel"
    score, boxes = (state.get(_PREDICTOR + name + ".weight") for name in ("cls_score", "bbox_pred"))
    if score is None or boxes is None:
        raise BadInput(
            f"{where}: no region detector: neither rpn.head. (VinVL) nor rpn_cls_score (Caffe) nor {_PREDICTOR}cls_score and bbox_pred (bottom-up attention) among the keys"
        )
    return "milvlg" if len(boxes) == 4 * len(score) else "d2"


def rules(layout: Layout, attributes: bool = True) -> KeyMap:
    """The rules of a layout; VinVL's files hold layer 4 twice when they have attributes."""
    found = LAYOUTS[layout]
    return found + KeyMap(Tied(_AGAIN, _BOX)) if layout == "maskrcnn" and attributes else found


def detector_state(state: Mapping[str, Tensor], where: str = "weights") -> tuple[dict[str, Tensor], DetectorConfig]:
    """A published state dict in our names, and the config its shapes tell; anchors that it lacks are its code base's.

    The form of bottom-up attention's PyTorch version is read as "caffe", whose features were published; see `DetectorConfig.form`.

    Raises:
        BadInput: another network, or a name no rule knows.
    """
    layout = layout_of(state, where)
    plain = {key: value.float() for key, value in state.items() if not key.endswith(".num_batches_tracked")}
    ours = caffe_names(plain, where) if layout == "caffemodel" else rules(layout).to_ours(plain, where)
    form: Form = layout if layout in ("d2", "maskrcnn") else "caffe"
    try:
        config = _config(ours, form)
    except KeyError as error:
        raise BadInput(f"{where}: tensors missing, e.g. {error.args[0]}") from None
    if "rpn.cells" not in ours:
        cells = (
            d2_cells() if layout == "d2" else caffe_cells((2, 4, 8, 16, 32) if layout == "maskrcnn" else (4, 8, 16, 32))
        )
        if len(cells) != config.anchors:
            raise BadInput(f"{where}: {config.anchors} anchors a cell, and the file does not say which")
        ours["rpn.cells"] = cells
    return ours, config


def _config(ours: Mapping[str, Tensor], form: Form) -> DetectorConfig:
    first = VINVL if form == "maskrcnn" else DetectorConfig()
    layers = [f"trunk.layer{n}." for n in (1, 2, 3)] + ["head."]
    planes = tuple(len(ours[name + "0.conv3.weight"]) // EXPANSION for name in layers)
    grouped = ours["trunk.layer1.0.conv2.weight"]
    groups = grouped.shape[0] // grouped.shape[1]
    trunk = replace(
        first.trunk,
        depths=tuple(_count(ours, name) for name in layers),
        planes=planes,
        stem=len(ours["trunk.conv1.weight"]),
        groups=groups,
        group_width=grouped.shape[1] * 64 // planes[0],
    )
    asks = "attributes.score.weight" in ours
    return replace(
        first,
        trunk=trunk,
        form=form,
        classes=len(ours["classes.weight"]),
        attributes=len(ours["attributes.score.weight"]) if asks else 0,
        anchors=len(ours["rpn.deltas.weight"]) // 4,
        rpn_hidden=len(ours["rpn.conv.weight"]),
        embedding=ours["attributes.embedding.weight"].shape[1] if asks else first.embedding,
        attribute_hidden=len(ours["attributes.hidden.weight"]) if asks else first.attribute_hidden,
        box_weights=D2_WEIGHTS if form in ("d2", "maskrcnn") else first.box_weights,
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Blocks under a prefix."""
    return len({found[1] for key in state if (found := re.match(re.escape(prefix) + r"(\d+)\.", key))})


def load_detector(path: Path | str, **changes: object) -> Detector:
    """A detector with weights from a published file, in evaluation mode. Strict; the file runs no code.

    Args:
        path: .pth, .bin, .safetensors, .pkl of plain arrays, or .caffemodel.
        changes: fields of the config that the shapes cannot tell, such as `form="milvlg"`, `box_weights` or `limits`.

    Raises:
        BadInput: no such file, another network, tensors missing or left over.
    """
    ours, config = detector_state(read_weights(path), str(path))
    detector = Detector(replace(config, **changes))  # type: ignore[arg-type]
    whole = counted(with_statistics(ours, detector, config.trunk.eps), detector)
    fill(detector, whole, str(path))
    return detector.eval().requires_grad_(False)


def published(detector: Detector) -> dict[str, Tensor]:
    """The detector's weights under the names of its code base."""
    layout: Layout = {"caffe": "milvlg", "milvlg": "milvlg", "d2": "d2", "maskrcnn": "maskrcnn"}[detector.config.form]  # type: ignore[assignment]
    whole = rules(layout, bool(detector.config.attributes))
    return whole.to_theirs({key: torch.clone(value) for key, value in detector.state_dict().items()})
