"""Bottom-up attention's detector against Hugging Face's copy (every stage), the original Caffe code (anchors, proposals, selection) and detectron2's rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden import Golden, assert_near
from torch import Tensor

from intarsia.features import select
from intarsia.features.detector import Detector, Proposed, Rule
from intarsia.features.detector_weights import detector_state
from intarsia.features.frcnn_pixels import MEAN_BUTD, interpolated
from intarsia.features.roi import roi_pool
from intarsia.features.rpn import CONVENTIONS, Limits, anchors, caffe_cells, clipped, d2_cells, decode, propose
from intarsia.weights.files import counted, fill

each_case = pytest.mark.parametrize("golden", Golden.cases("detector_butd"), ids=str)


def build(golden: Golden) -> Detector:
    said = golden.about["config"]
    state, config = detector_state(golden.weights("weights."), golden.name)
    rpn = said["RPN"]
    limits = Limits(rpn["PRE_NMS_TOPK_TEST"], rpn["POST_NMS_TOPK_TEST"], rpn["NMS_THRESH"])
    assert config.form == "d2"
    detector = Detector(replace(config, limits=limits, box_weights=tuple(said["ROI_BOX_HEAD"]["BBOX_REG_WEIGHTS"])))
    fill(detector, counted(state, detector), golden.name)
    return detector.eval()


def pictures(golden: Golden) -> list[Tensor]:
    return [golden.tensors[f"input.image.{i}"] for i in range(len(golden.weights("input.image.")))]


def prepared(golden: Golden) -> tuple[list[Tensor], Tensor, list[tuple[int, int]]]:
    """Each picture's pixels, the padded batch, the sizes."""
    said = golden.about["config"]["INPUT"]
    each = [interpolated(x.numpy(), MEAN_BUTD, said["MIN_SIZE_TEST"], said["MAX_SIZE_TEST"]) for x in pictures(golden)]
    sizes = [(x.shape[1], x.shape[2]) for x in each]
    high, wide = (max(x) for x in zip(*sizes, strict=True))
    whole = torch.stack([torch.nn.functional.pad(x, (0, wide - x.shape[2], 0, high - x.shape[1])) for x in each])
    return each, whole, sizes


@each_case
def test_pixels(golden: Golden) -> None:
    _, whole, sizes = prepared(golden)
    assert sizes == [tuple(x) for x in golden.output("sizes").tolist()]
    near(whole, golden.output("images"), "images")
    raw = torch.tensor([x.shape[:2] for x in pictures(golden)])
    assert_near(raw / torch.tensor(sizes), golden.output("scales_yx"), "scales")


def near(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Within 2e-5 of the largest number: features and logits here run into hundreds."""
    assert_near(ours, theirs, what, atol=2e-5 * max(1.0, theirs.abs().max().item()))


@each_case
@torch.no_grad()
def test_every_stage(golden: Golden) -> None:
    detector, (_, whole, sizes) = build(golden), prepared(golden)
    near(detector.trunk.stem(whole[:1]), golden.output("stem"), "stem")
    maps = detector.maps(whole)
    near(maps, golden.output("res4"), "res4")
    assert_near(anchors(detector.rpn.cells, *maps.shape[2:]), golden.output("anchors"), "anchors")
    scores, deltas = detector.rpn(maps)
    near(scores.permute(0, 3, 1, 2), golden.output("rpn_objectness_logits"), "objectness")
    near(deltas.flatten(3).permute(0, 3, 1, 2), golden.output("rpn_anchor_deltas"), "anchor deltas")
    found = detector(whole, sizes, [1.0] * len(sizes))
    for i, one in enumerate(found):
        near(one.boxes, golden.output(f"proposals.{i}"), f"proposals {i}")
        near(one.scores, golden.output(f"proposal_logits.{i}"), f"proposal logits {i}")
    first = golden.output("roi_pooled_first4")
    near(detector.pool(maps, found[0].boxes[: len(first)], torch.zeros(len(first), dtype=torch.int64)), first, "pooled")
    near(torch.cat([x.features for x in found]), golden.output("feature_pooled"), "features")
    near(torch.cat([x.logits for x in found]), golden.output("obj_logits"), "object logits")
    near(torch.cat([x.deltas.flatten(1) for x in found]), golden.output("box_deltas"), "box deltas")
    asked = torch.cat([detector.attributes(x.features, x.logits.argmax(1)) for x in found])
    near(asked, golden.output("attr_logits"), "attribute logits")


def compare(golden: Golden, detector: Detector, found: Proposed, row: int, group: str) -> None:
    said = golden.about["config"]
    tried = tuple(said["ROI_HEADS"]["NMS_THRESH_TEST"])
    rule = Rule(said["MIN_DETECTIONS"], said["MAX_DETECTIONS"], overlaps=tried)
    chosen = detector.select(found, rule)
    count = int(golden.output(f"{group}.preds_per_image")[row])
    assert len(chosen.rows) == count
    expected = {key: value[row] for key, value in golden.weights(f"output.{group}.").items()}
    assert (chosen.labels - 1).tolist() == expected["obj_ids"][:count].tolist()
    near(chosen.scores, expected["obj_probs"][:count], "object probabilities")
    near(found.features[chosen.rows], expected["roi_features"][:count], "features")
    probs, ids = detector.attribute_probs(found.features, found.logits)[chosen.rows].max(1)
    near(probs, expected["attr_probs"][:count], "attribute probabilities")
    assert ids.tolist() == expected["attr_ids"][:count].tolist()
    scale = golden.output("scales_yx")[row].flip(0).repeat(2)
    near(chosen.boxes * scale, expected["boxes"][:count], "boxes")
    if "normalized_boxes" in expected:
        high, wide = found.size
        near(chosen.boxes / torch.tensor([wide, high, wide, high]), expected["normalized_boxes"][:count], "fractions")


@each_case
@torch.no_grad()
def test_regions_of_a_batch_and_of_a_picture_alone(golden: Golden) -> None:
    detector, (each, whole, sizes) = build(golden), prepared(golden)
    for row, found in enumerate(detector(whole, sizes, [1.0] * len(sizes))):
        compare(golden, detector, found, row, "final")
    (alone,) = detector(each[0][None], sizes[:1], [1.0])
    compare(golden, detector, alone, 0, "single0")


@each_case
@torch.no_grad()
def test_regions_by_pairs_of_a_proposal_and_a_class(golden: Golden) -> None:
    detector, (_, whole, sizes) = build(golden), prepared(golden)
    found = detector(whole, sizes, [1.0] * len(sizes))[0]
    expected = golden.weights("d2_classaware.output.")
    rule = Rule(len(expected["ids"]), len(expected["ids"]), overlaps=(0.5, 0.6, 0.7, 0.8, 0.9), by="pairs")
    chosen = detector.select(found, rule)
    assert chosen.rows.tolist() == expected["ids"].tolist()
    assert (chosen.labels - 1).tolist() == expected["classes"].tolist()
    near(chosen.boxes, expected["boxes"], "boxes")
    near(chosen.scores, expected["scores"], "scores")


CAFFE = CONVENTIONS["caffe"]


@each_case
def test_caffe_anchors_and_proposals(golden: Golden) -> None:
    given = golden.weights("caffe.input.")
    cells = golden.tensors["caffe.output.anchors"]
    assert_near(caffe_cells(), cells, "anchors")
    pairs = given["rpn_cls_score"].unflatten(1, (2, -1)).softmax(1)
    assert_near(pairs.flatten(1, 2), golden.tensors["caffe.output.rpn_cls_prob"], "probabilities")
    high, wide, scale = given["im_info"][0].tolist()
    grid = anchors(cells, *given["rpn_cls_score"].shape[2:])
    boxes = decode(grid, given["rpn_bbox_pred"][0].permute(1, 2, 0).reshape(-1, 4), CAFFE)
    expected = golden.tensors["caffe.output.rois"]
    scores = pairs[0, 1].permute(1, 2, 0).reshape(-1)
    rows = propose(boxes, scores, (int(high), int(wide)), scale, CAFFE, Limits(400, 70))
    picked = clipped(boxes[rows], (int(high), int(wide)), CAFFE)
    assert len(picked) == len(expected)
    assert_near(picked, expected[:, 1:], "proposals", atol=5e-5)  # pixels; coordinates run into hundreds
    assert_near(picked / scale, golden.tensors["caffe.output.boxes_raw"], "boxes", atol=5e-5)
    pooled = golden.tensors["caffe.output.roi_pool"]
    image = torch.zeros(len(pooled), dtype=torch.int64)
    assert_near(roi_pool(given["feature_map"], expected[: len(pooled), 1:], image, 14, 1 / 16), pooled, "pooled")


@each_case
def test_caffe_selection(golden: Golden) -> None:
    raw, probs = golden.tensors["caffe.output.boxes_raw"], golden.tensors["caffe.input.cls_prob"]
    confidence = select.best_confidence(probs, raw, 0.3, CAFFE.clash)
    assert_near(confidence, golden.tensors["caffe.output.max_conf"], "confidence")
    kept = golden.weights("caffe.output.keep.")
    assert len(kept) >= 3
    for name, expected in kept.items():
        least, most = map(int, name.split("_"))
        assert select.above_or_best(confidence, 0.2, least, most).tolist() == expected.tolist()


@each_case
def test_caffe_boxes_of_classes(golden: Golden) -> None:
    expected = golden.tensors["caffe.output.head_boxes"]
    deltas = golden.tensors["caffe.input.head_bbox_pred"][: len(expected)].unflatten(1, (-1, 4))
    raw = golden.tensors["caffe.output.boxes_raw"][: len(expected), None]
    high, wide = golden.tensors["caffe.input.raw_hw"].tolist()
    found = clipped(decode(raw, deltas, CAFFE), (high, wide), CAFFE)
    assert_near(found.flatten(1), expected, "boxes of classes", atol=5e-5)


@each_case
def test_detectron_anchors(golden: Golden) -> None:
    sizes = tuple(golden.about["config"]["ANCHOR_GENERATOR"]["SIZES"][0])
    assert_near(
        d2_cells(sizes), golden.weights("weights.")["proposal_generator.anchor_generator.cell_anchors.0"], "cells"
    )
