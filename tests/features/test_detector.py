import pickle
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_detector import CONFIGS, tiny_detector

from intarsia.boxes import iou
from intarsia.errors import BadInput
from intarsia.features import select
from intarsia.features.detector import RULES, VINVL, Detector, DetectorConfig, Rule
from intarsia.features.detector_weights import detector_state, layout_of, load_detector, published
from intarsia.features.frcnn_pixels import PREPARE, caffe, interpolated, pillow, shortest_edge, vinvl
from intarsia.features.roi import overlaps, overlaps_as_pixels
from intarsia.features.rpn import CONVENTIONS, caffe_cells, d2_cells, decode
from intarsia.weights.files import COUNTER, write_weights

FORMS = list(CONFIGS)
each_form = pytest.mark.parametrize("form", FORMS)


def pixels_of(count=2, high=96, wide=120, seed=0):
    return torch.randn(count, 3, high, wide, generator=torch.Generator().manual_seed(seed)) * 60


def run(detector, pixels):
    return detector(pixels, [tuple(pixels.shape[2:])] * len(pixels), [1.0] * len(pixels))


# ------------------------------------------------------------------------------------------------------------------------------------ weights


def test_full_size_has_the_published_shapes():
    with torch.device("meta"):
        whole = published(Detector(DetectorConfig()))
        d2 = published(Detector(replace(DetectorConfig(), form="d2")))
    assert len(d2) == 640 - 104
    assert sum(x.numel() for x in d2.values()) == pytest.approx(65.5e6, rel=0.001)
    shapes = {
        "backbone.res2.0.shortcut.weight": (256, 64, 1, 1),
        "backbone.res4.22.conv2.weight": (256, 256, 3, 3),
        "proposal_generator.rpn_head.objectness_logits.weight": (24, 512, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas.weight": (48, 512, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": (12, 4),
        "roi_heads.res5.0.conv1.weight": (512, 1024, 1, 1),
        "roi_heads.box_predictor.bbox_pred.weight": (6404, 2048),
        "roi_heads.box_predictor.cls_embed.weight": (1601, 256),
        "roi_heads.box_predictor.attr_linear1.weight": (512, 2304),
        "roi_heads.box_predictor.attr_linear2.bias": (401,),
    }
    assert {key: tuple(whole[key].shape) for key in shapes} == shapes
    shapes = {
        "roi_heads.box_predictor.bbox_pred.weight": (6400, 2048),
        "roi_heads.box_predictor.attr_score.weight": (401, 512),
        "proposal_generator.rpn_head.objectness_logits.weight": (12, 512, 1, 1),
    }
    assert {key: tuple(d2[key].shape) for key in shapes} == shapes


def test_vinvl_has_the_published_shapes():
    with torch.device("meta"):
        whole = published(Detector(VINVL))
    shapes = {
        "backbone.body.stem.conv1.weight": (64, 3, 7, 7),
        "backbone.body.layer3.35.conv2.weight": (1024, 32, 3, 3),
        "rpn.anchor_generator.cell_anchors.0": (15, 4),
        "rpn.head.conv.weight": (1024, 1024, 3, 3),
        "roi_heads.box.feature_extractor.head.layer4.2.conv2.weight": (2048, 64, 3, 3),
        "attribute.feature_extractor.head.layer4.0.downsample.1.running_var": (2048,),
        "roi_heads.box.predictor.bbox_pred.weight": (6380, 2048),
        "attribute.predictor.cls_embedding.weight": (1595, 256),
        "attribute.predictor.fc_attr.weight": (512, 2304),
        "attribute.predictor.attr_score.weight": (525, 512),
    }
    assert {key: tuple(whole[key].shape) for key in shapes} == shapes
    assert not any(key.endswith(COUNTER) for key in whole)


@each_form
def test_published_names_go_there_and_back(tmp_path, form):
    detector = tiny_detector(form)
    theirs = published(detector)
    write_weights(tmp_path / "x.pth", {f"module.{key}": value for key, value in theirs.items()})
    kept = {"limits": detector.config.limits} | ({"form": form} if form == "milvlg" else {})
    again = load_detector(tmp_path / "x.pth", **kept)
    assert again.config == detector.config
    back = published(again)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)
    one, other = (run(x, pixels_of())[0] for x in (detector, again))
    assert torch.equal(one.features, other.features)


def test_arrays_in_a_pickle_counters_and_no_attributes(tmp_path):
    detector = tiny_detector("d2", attributes=0)
    arrays = {key: value.numpy() for key, value in published(detector).items()}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}))
    again = load_detector(tmp_path / "x.pkl", limits=detector.config.limits)
    assert again.config == replace(detector.config, attributes=0, embedding=256, attribute_hidden=512)
    assert torch.equal(run(again, pixels_of())[0].logits, run(detector, pixels_of())[0].logits)
    with pytest.raises(BadInput, match="have no attributes"):
        again.attribute_probs(torch.zeros(1, 32), torch.zeros(1, 7))
    counters = {"backbone.stem.conv1.norm.num_batches_tracked": torch.zeros(1)}
    assert detector_state(published(detector) | counters)[0].keys() == detector_state(published(detector))[0].keys()


def detectron2s(state):
    """py-bottom-up-attention's pickle: arrays, as detectron2's converters leave them."""
    arrays = {key: value.numpy() for key, value in state.items()}
    return "faster_rcnn_from_caffe_attr.pkl", {"model": arrays, "__author__": "Caffe2", "matching_heuristics": True}


def hugging_faces(state):
    """frcnn-vg-finetuned's pytorch_model.bin, with the counters of its converter."""
    norms = [key.removesuffix("running_mean") for key in state if key.endswith("running_mean")]
    return "pytorch_model.bin", OrderedDict(state | {f"{x}num_batches_tracked": torch.zeros(1) for x in norms})


def milvlgs(state):
    """bottom-up-attention.pytorch's checkpoint of a training run of detectron2's."""
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return "bua-caffe-frcn-r101-k10-100.pth", {"model": OrderedDict(state), "optimizer": optimizer, "iteration": 9}


def vinvls(state):
    """maskrcnn-benchmark's checkpoint, from several GPUs."""
    model = OrderedDict((f"module.{key}", value) for key, value in state.items())
    return "vinvl_vg_x152c4.pth", {"model": model, "scheduler": {"last_epoch": 3}, "iteration": 9}


def folded(state):
    """Frozen norms of Caffe2's and detectron2's, their statistics in weight and bias."""
    kept = {key: value for key, value in state.items() if not key.endswith(("running_mean", "running_var"))}
    return "folded.pth", kept


@pytest.mark.parametrize(
    ("form", "published_as"),
    [("d2", detectron2s), ("d2", hugging_faces), ("milvlg", milvlgs), ("maskrcnn", vinvls), ("d2", folded)],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_files_as_their_projects_publish_them(tmp_path, form, published_as, zipped):
    detector = tiny_detector(form)
    name, content = published_as(published(detector))
    if name.endswith(".pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=4 if zipped else 2))
    else:
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    again = load_detector(tmp_path / name, limits=detector.config.limits)
    assert again.config == replace(detector.config, form="caffe" if form == "milvlg" else form)
    ours, theirs = detector.state_dict(), again.state_dict()
    kept = [key for key in ours if published_as is not folded or "running" not in key]
    assert all(torch.equal(theirs[key], ours[key]) for key in kept) and ours.keys() == theirs.keys()
    if published_as is folded:
        assert all(float(theirs[key].abs().max()) == 0 for key in ours if "running_mean" in key)


@each_form
def test_anchors_that_a_file_lacks_are_its_code_bases(form):
    theirs = published(tiny_detector(form))
    without = {key: value for key, value in theirs.items() if "cell_anchors" not in key}
    cells = detector_state(without)[0]["rpn.cells"]
    expected = {"d2": d2_cells, "maskrcnn": lambda: caffe_cells((2, 4, 8, 16, 32))}.get(form, caffe_cells)()
    assert torch.equal(cells, expected)


def test_other_networks_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no region detector"):
        layout_of({"conv1.weight": torch.ones(1)})
    theirs = published(tiny_detector("caffe"))
    with pytest.raises(BadInput, match=r"1 keys of another layout, e\.g\. backbone\.res2\.0\.conv4\.weight"):
        detector_state(theirs | {"backbone.res2.0.conv4.weight": torch.ones(1)})
    del theirs["backbone.res4.1.conv2.weight"]
    write_weights(tmp_path / "x.pth", theirs)
    with pytest.raises(BadInput, match=r"1 tensors missing \(e\.g\. trunk\.layer3\.1\.conv2\.weight\)"):
        load_detector(tmp_path / "x.pth")
    twice = published(tiny_detector("maskrcnn"))
    twice["attribute.feature_extractor.head.layer4.0.conv1.weight"] = torch.ones(16, 64, 1, 1)
    with pytest.raises(BadInput, match="should be the same tensor"):
        detector_state(twice)
    with pytest.raises(BadInput, match="trunk of 3 layers"):
        Detector(replace(CONFIGS["d2"], trunk=replace(CONFIGS["d2"].trunk, depths=(1, 1, 1), planes=(4, 4, 4))))


# -------------------------------------------------------------------------------------------------------------------------- boxes and anchors


def test_caffe_cells_are_the_published_ones():
    assert caffe_cells()[0].tolist() == [-38, -16, 53, 31]
    assert caffe_cells()[-1].tolist() == [-168, -344, 183, 359]
    wide = caffe_cells((2, 4, 8, 16, 32))
    assert wide.shape == (15, 4)
    assert torch.equal(wide[[1, 2, 3, 4, 6]], caffe_cells()[[0, 1, 2, 3, 4]])


@each_form
def test_no_regression_leaves_a_box_where_it_is(form):
    boxes = torch.tensor([[3.0, 5.0, 20.0, 9.0]])
    how = CONVENTIONS[form]
    moved = decode(boxes, torch.zeros(1, 4), how)
    assert moved.tolist() == [[3.0, 5.0, 20.0 + how.extra - how.inset, 9.0 + how.extra - how.inset]]


@each_form
def test_regressed_sides_are_limited_where_the_code_limits_them(form):
    side = decode(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([[0, 0, 8.0, 0]]), CONVENTIONS[form])
    far = (side[0, 2] - side[0, 0]).item()
    assert (far > 10_000) == (form == "caffe")


# ---------------------------------------------------------------------------------------------------------------------------------- selection


def slow_survivors(probs, boxes, clash, threshold):
    """The loop of generate_tsv.py: one suppression a class."""
    kept = torch.zeros(probs.shape, dtype=torch.bool)
    for k in range(probs.shape[1]):
        left = sorted(range(len(probs)), key=lambda i: (-float(probs[i, k]), i))
        own = boxes if boxes.ndim == 2 else boxes[:, k]
        while left:
            best = left.pop(0)
            kept[best, k] = True
            left = [i for i in left if not clash(own[[best]], own[[i]], threshold)[0, 0]]
    return kept


def spread(seed, rows=25, classes=6):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (rows, classes, 2))
    boxes = torch.from_numpy(np.concatenate([corner, corner + rng.uniform(5, 60, (rows, classes, 2))], 2)).float()
    probs = torch.from_numpy(rng.dirichlet([0.3] * (classes + 1), rows)).float()
    return boxes, probs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clash", [overlaps, overlaps_as_pixels])
def test_all_classes_at_once_are_one_after_another(seed, clash):
    boxes, probs = spread(seed)
    expected = slow_survivors(probs[:, 1:], boxes[:, 0], clash, 0.3)
    confidence = select.best_confidence(probs, boxes[:, 0], 0.3, clash)
    assert torch.equal(confidence, (probs[:, 1:] * expected).amax(1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("moved", [False, True])
def test_vinvls_rule_is_the_loop(seed, moved):
    boxes, probs = spread(seed)
    given = boxes if moved else boxes[:, 0]
    kept = slow_survivors(probs[:, 1:], given, overlaps, 0.3) * probs[:, 1:]
    best = sorted(((float(s.max()), -i, int(s.argmax()) + 1) for i, s in enumerate(kept) if s.max() > 0), reverse=True)
    for least, most in ((1, 100), (10, 100), (24, 100), (3, 5)):
        count = min(max(sum(score >= 0.2 for score, _, _ in best), least), most)
        rows, labels, scores = select.best_class(given, probs, 0.3, 0.2, least, most)
        assert rows.tolist() == [-i for _, i, _ in best[:count]]
        assert labels.tolist() == [k for _, _, k in best[:count]]
        assert scores.tolist() == pytest.approx([s for s, _, _ in best[:count]])


def test_thresholds_rise_until_enough_are_left():
    boxes, probs = spread(1)
    scores = probs[:, 1:].amax(1)
    left = [len(select.tighter_until(boxes[:, 0], scores, [t], 0, 100)) for t in (0.03, 0.1, 0.3)]
    assert left[0] < left[1] < left[2] < 25
    kept = select.tighter_until(boxes[:, 0], scores, (0.03, 0.1, 0.3), left[1], 100)
    assert len(kept) == left[1]
    assert len(select.tighter_until(boxes[:, 0], scores, (0.03, 0.1), 25, 100)) == left[1]
    assert len(select.tighter_until(boxes[:, 0], scores, (0.03, 0.1, 0.3), 3, 4)) == 4


def test_above_or_best_keeps_the_order_it_was_given():
    confidence = torch.tensor([0.1, 0.5, 0.3, 0.9, 0.0])
    assert select.above_or_best(confidence, 0.2, 2, 4).tolist() == [1, 2, 3]
    assert select.above_or_best(confidence, 0.2, 4, 5).tolist() == [3, 1, 2, 0]
    assert select.above_or_best(confidence, 0.2, 1, 2).tolist() == [3, 1]
    assert select.above_or_best(confidence, 0.2, 36, 36).tolist() == [3, 1, 2, 0, 4]


@each_form
@pytest.mark.parametrize("name", list(RULES))
def test_every_rule_on_every_form(form, name):
    detector = tiny_detector(form)
    found = run(detector, pixels_of())[0]
    if name == "pairs" and form != "d2":
        with pytest.raises(BadInput, match="rule pairs"):
            detector.select(found, RULES[name])
        return
    chosen = detector.select(found, RULES[name])
    rule = RULES[name]
    assert min(rule.least, len(chosen.rows)) <= len(chosen.rows) <= rule.most
    assert len(chosen.boxes) == len(chosen.labels) == len(chosen.scores) == len(chosen.rows) >= 1
    probs = detector.probs(found.logits)
    assert torch.equal(probs[chosen.rows, chosen.labels], chosen.scores)
    torch.testing.assert_close(probs.sum(1), torch.ones(len(probs)))
    if form in ("caffe", "milvlg") or (form == "maskrcnn" and not rule.regressed):
        assert torch.equal(chosen.boxes, found.boxes[chosen.rows])
    limit = torch.tensor([120.0, 96, 120, 96]) - detector.how.extra
    assert (chosen.boxes >= 0).all() and (chosen.boxes <= limit).all()


def test_vinvls_demo_moves_the_boxes_and_not_the_features():
    detector = tiny_detector("maskrcnn")
    found = run(detector, pixels_of())[0]
    chosen = detector.select(found, Rule(regressed=True))
    assert torch.equal(chosen.boxes, detector.regressed(found)[chosen.rows, chosen.labels - 1])
    maps, none = detector.maps(pixels_of()), torch.zeros(len(chosen.rows), dtype=torch.int64)
    attributes = detector.attribute_probs_at(maps, chosen.boxes, none, chosen.labels)
    assert attributes.shape == (len(chosen.rows), 4)
    features = detector.describe(maps, chosen.boxes, none)
    expected = detector.attributes(features, chosen.labels).softmax(1)[:, 1:]
    torch.testing.assert_close(attributes, expected)


def vinvls_own_filter(logits, threshold=0.05, most=100, each=16):
    """The steps of its attribute post-processing, one by one, on (K, A) logits: the best column of each region, 0 for none, and its score."""
    scores = logits.softmax(-1).tolist()
    for row in scores:
        row[0] = 0.0
        row[:] = [x if x > threshold else 0.0 for x in row]
    hits = sum(x > 0 for row in scores for x in row)
    if hits > most:
        bound = sorted(x for row in scores for x in row)[hits - most]
        scores = [[x if x >= bound else 0.0 for x in row] for row in scores]
    best = [sorted(((x, -i) for i, x in enumerate(row)), reverse=True)[:each][0] for row in scores]
    return [-i if x > 0 else 0 for x, i in best], [x for x, _ in best]


@pytest.mark.parametrize(
    ("regions", "attributes", "spread"), [(7, 30, 4.0), (60, 30, 1.0), (100, 5, 0.3), (100, 525, 0.1), (1, 3, 0.0)]
)
def test_attributes_are_said_as_vinvl_says_them(regions, attributes, spread):
    logits = torch.randn(regions, attributes, generator=torch.Generator().manual_seed(regions)).double() * spread
    said = select.attribute_hits(logits.softmax(1)[:, 1:])
    scores, column = said.max(1)
    labels, expected = vinvls_own_filter(logits)
    assert torch.where(scores > 0, column + 1, 0).tolist() == labels
    torch.testing.assert_close(scores.tolist(), expected)
    assert (said > 0.05).sum() == (said > 0).sum()
    if attributes == 525:
        assert not said.any()  # a flat distribution says nothing
    if (regions, attributes) == (100, 5):  # nearly all are hits: here the bound for the picture drops some
        assert 100 <= (said > 0).sum() < (logits.softmax(1)[:, 1:] > 0.05).sum()
        assert 0 in labels


@each_form
def test_a_picture_is_the_same_alone_and_in_company(form):
    detector, pixels = tiny_detector(form).double(), pixels_of(3).double()
    together = run(detector, pixels)
    for i, one in enumerate(together):
        (alone,) = run(detector, pixels[i : i + 1])
        torch.testing.assert_close(one.boxes, alone.boxes, atol=1e-6, rtol=0)
        torch.testing.assert_close(one.features, alone.features, atol=1e-4, rtol=1e-6)
    assert (iou(together[0].boxes, together[0].boxes) - torch.eye(len(together[0].boxes))).max() < 0.72


@each_form
def test_given_boxes_are_described_as_proposals_are(form):
    detector, pixels = tiny_detector(form), pixels_of()
    found = run(detector, pixels)
    sizes = [x.size for x in found]
    again = detector.at(detector.maps(pixels), [x.boxes for x in found], sizes, [x.scores for x in found])
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one.features, other.features)
    some, none = detector.at(
        detector.maps(pixels), [found[0].boxes[:2], torch.zeros(0, 4)], sizes, [x.scores for x in found]
    )
    torch.testing.assert_close(some.features, found[0].features[:2])
    assert none.features.shape == (0, detector.width)


# -------------------------------------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    ("high", "wide", "expected"),
    [(480, 640, (600, 800)), (333, 500, (600, 901)), (400, 1000, (400, 1000)), (700, 300, (1000, 429))],
)
def test_sizes_as_detectron_rounds_them(high, wide, expected):
    assert shortest_edge(high, wide, 600, 1000) == expected


def test_vinvl_cuts_the_longer_side():
    assert vinvl(np.zeros((333, 500, 3), np.uint8)).shape == (3, 600, 900)
    assert vinvl(np.zeros((700, 300, 3), np.uint8)).shape == (3, int(429 * 700 / 300), 429)


def test_caffes_reads_are_the_loop():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (7, 12, 3), dtype=np.uint8)
    found = caffe(image, (1.0, 2.0, 3.0), 10, 15)
    scale = 15 / 12
    assert found.shape == (3, round(7 * scale), 15)
    for c, i, j in [(0, 0, 0), (1, 3, 7), (2, 8, 14), (0, 5, 1)]:
        y, x = (min(max((k + 0.5) / scale - 0.5, 0), n - 1) for k, n in ((i, 7), (j, 12)))
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, 6), min(x0 + 1, 11)
        plane = image[..., c].astype(float) - (c + 1)
        top = plane[y0, x0] * (1 - x + x0) + plane[y0, x1] * (x - x0)
        bottom = plane[y1, x0] * (1 - x + x0) + plane[y1, x1] * (x - x0)
        assert found[c, i, j].item() == pytest.approx(top * (1 - y + y0) + bottom * (y - y0), abs=1e-3)


def test_without_resizing_all_ways_only_take_the_mean_off():
    image = np.random.default_rng(1).integers(0, 256, (600, 620, 3), dtype=np.uint8)
    plain = torch.from_numpy(image.transpose(2, 0, 1).copy()).float()
    for prepare in (caffe, pillow, lambda x: interpolated(x, short=600, longest=1000)):
        mean = torch.tensor([102.9801, 115.9465, 122.7717])[:, None, None]
        torch.testing.assert_close(prepare(image), plain - mean, atol=1e-4, rtol=0)
    assert set(PREPARE) == {"caffe", "pillow", "interpolated", "vinvl"}
