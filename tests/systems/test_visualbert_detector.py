"""VisualBERT with R2C's detector in the loop, against a slow reading of its sheet in the authors' names: frame, outlines, features, what trains, weights, runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from test_vl_bert_trunk import block, norm
from test_vl_bert_vcr import BOXES, HIGH, OUTLINES, WIDE, items
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from intarsia import tuning_runs
from intarsia.batch import Picture, Sample, each_tensor
from intarsia.cli import main
from intarsia.errors import BadInput
from intarsia.features.fast_rcnn import FastRCNN
from intarsia.features.resnet import ResNet, ResNetConfig
from intarsia.features.simple_detector import LAYOUT, RESNET50, SimpleDetector, framed, inside
from intarsia.model import read_ours
from intarsia.pack import pack
from intarsia.recipe import to_json
from intarsia.system import fit_config
from intarsia.systems.visualbert import VisualBERT
from intarsia.tasks.benchmarks import find
from intarsia.tasks.vcr import KINDS
from intarsia.text import SPECIALS, Vocab
from intarsia.train.start import captions
from intarsia.tuned import Tuned, start
from intarsia.tuned_files import read_tuned
from intarsia.weights.files import write_weights
from intarsia.worlds.twins import write_twin

VOCAB = Vocab([*SPECIALS, *(f"w{i}" for i in range(40)), "casey", "riley", "dog", "diningtable", "and", "?"])
TRUNK = ResNetConfig((1, 2, 1, 2), (4, 4, 8, 8), stem=4, stride_in="1x1", layer4="unstrided", num_classes=0)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
NAMED = ["person", "dog", "diningtable"]


def build(**changes: Any) -> VisualBERT:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = fit_config(VisualBERT.recipes["base_vcr"].config, len(VOCAB), 0, 2)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        system = VisualBERT(replace(config, **(small | dropout | {"trunk": TRUNK} | changes)), VOCAB)
        for name, value in system.state_dict().items():  # norms that are not 1 and 0
            if "trunk" in name and value.ndim == 1 and value.is_floating_point():
                value.copy_(0.5 + torch.rand_like(value))
    return system


def tuned(**changes: Any) -> Tuned:
    return start(build(**changes), VisualBERT.finetune["vcr"], "vcr")


# --------------------------------------------------------------------------------------------------- the slow reading


def slow_frame(image: np.ndarray, boxes: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """768 x 384: proportions kept, bilinear, the middle, zeros around; then normalised. Boxes in its pixels, the picture's own first."""
    high, wide = image.shape[:2]
    scale = min(768 / wide, 384 / high)
    w, h = round(wide * scale), round(high * scale)
    left, top = (768 - w) // 2, (384 - h) // 2
    frame = np.zeros((384, 768, 3), np.uint8)
    frame[top : top + h, left : left + w] = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
    moved = [[x1 * scale + left, y1 * scale + top, x2 * scale + left, y2 * scale + top] for x1, y1, x2, y2 in boxes]
    pixels = ((frame / 255 - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)
    return torch.from_numpy(pixels), torch.tensor([[left, top, left + w, top + h], *moved])


def slow_inside(outlines: Any, box: Sequence[float]) -> np.ndarray:
    """The middle of each of 14 x 14 cells: odd number of edges to its right."""
    found = np.zeros((14, 14), np.bool_)
    for points in outlines:
        for i in range(14):
            for j in range(14):
                y, x = (low + (k + 0.5) * (high - low) / 14 for k, low, high in ((i, *box[1:4:2]), (j, *box[0:3:2])))
                crossed = 0
                for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
                    if (y0 > y) != (y1 > y):
                        crossed += x < x0 + (x1 - x0) * (y - y0) / (y1 - y0)
                found[i, j] |= crossed % 2 == 1
    return found


def slow_align(x: Tensor, box: Sequence[float]) -> Tensor:
    """RoIAlign of 7 x 7 at 1/16, as many reads a bin as it has cells."""
    high, wide = x.shape[1:]
    x1, y1, x2, y2 = (v / 16 for v in box)
    bins = max(y2 - y1, 1.0) / 7, max(x2 - x1, 1.0) / 7
    reads = [ceil(b) for b in bins]
    out = torch.zeros(x.shape[0], 7, 7)
    for i in range(7):
        for j in range(7):
            for p in range(reads[0]):
                for q in range(reads[1]):
                    v = y1 + (i + (p + 0.5) / reads[0]) * bins[0]
                    u = x1 + (j + (q + 0.5) / reads[1]) * bins[1]
                    if not (-1 <= v <= high and -1 <= u <= wide):
                        continue
                    v, u = min(max(v, 0.0), high - 1.0), min(max(u, 0.0), wide - 1.0)
                    t, s = int(v), int(u)
                    below, right, b, a = min(t + 1, high - 1), min(s + 1, wide - 1), v - t, u - s
                    above = x[:, t, s] * (1 - a) + x[:, t, right] * a
                    under = x[:, below, s] * (1 - a) + x[:, below, right] * a
                    out[:, i, j] += (above * (1 - b) + under * b) / (reads[0] * reads[1])
    return out


def slow_features(
    pixels: Tensor, boxes: Tensor, covers: Any, kinds: Sequence[int], state: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Of one image, by the authors' keys, in evaluation: features (R, 512), and the classes' mean cross entropy."""
    state = {key.removeprefix("detector."): value for key, value in state.items()}
    x = F.conv2d(pixels[None], state["backbone.0.weight"], stride=2, padding=3)
    x = F.max_pool2d(norm(x, state, "backbone.1").relu(), 3, 2, 1)
    x = block(x, state, "backbone.4.0", 1, 1)
    x = block(block(x, state, "backbone.5.0", 2, 1), state, "backbone.5.1", 1, 1)
    (x,) = block(x, state, "backbone.6.0", 2, 1)
    feats, losses = [], []
    for box, cover, kind in zip(boxes.tolist(), covers, kinds, strict=True):
        cells = slow_align(x, box)
        outline = torch.from_numpy(np.asarray(cover, np.float32))[None, None] - 0.5
        weight, bias = state["mask_upsample.weight"], state["mask_upsample.bias"]
        cells[:32] += F.conv2d(outline, weight, bias, stride=2, padding=1)[0]
        y = block(block(cells[None], state, "after_roi_align.0.0", 1, 1), state, "after_roi_align.0.1", 1, 1)
        seen = F.avg_pool2d(y, 7)[0, :, 0, 0]
        logits = state["regularizing_predictor.weight"] @ seen + state["regularizing_predictor.bias"]
        losses.append(-logits.log_softmax(0)[kind])
        whole = torch.cat([seen, state["object_embed.weight"][kind]])
        feats.append((state["obj_downsample.1.weight"] @ whole + state["obj_downsample.1.bias"]).relu())
    return torch.stack(feats), torch.stack(losses).mean()


def plain(image: np.ndarray, boxes: np.ndarray, labels: Sequence[int] = (3, 0), **more: Any) -> Sample:
    """A picture with labelled boxes and two captions."""
    none = np.zeros((0, 0), np.float32)
    picture = Picture("p", none, boxes, image.shape[1], image.shape[0], labels=np.array(labels), pixels=lambda: image)
    return Sample("s", ("w1 w2 w3 w4",), (replace(picture, **more),), also=("w5 w6 w7",))


# -------------------------------------------------------------------------------------------------------------- tests


def test_features_of_raw_files_are_those_of_the_slow_reading(tmp_path: Path) -> None:
    system, sample = tuned().eval(), items(tmp_path)[0]
    batch = pack(system.forms(sample))
    assert batch.regions and batch.images and batch.images.doc.tolist() == [0]  # once for all four choices
    image = np.asarray(Image.open(sample.pictures[0].path))
    assert image.shape[:2] == (HIGH, WIDE)
    pixels, boxes = slow_frame(image, [x[:4] for x in BOXES])
    torch.testing.assert_close(batch.images.pixels, pixels[None], atol=1e-5, rtol=0)
    covers = [np.ones((14, 14)), *(slow_inside(x, box) for x, box in zip(OUTLINES, BOXES, strict=True))]
    state = {
        key: value
        for key, value in VisualBERT.layouts["wrapped"].to_theirs(system.system.state_dict()).items()
        if key.startswith("detector.")
    }
    feats, loss = slow_features(pixels, boxes, covers, [0, *(KINDS[x] for x in NAMED)], state)
    read: list[int] = []
    watch = system.system.trunk.head.register_forward_pre_hook(lambda _, given: read.append(len(given[0])))
    ours, named = system.system.trunk(batch.images, batch.regions)
    watch.remove()
    assert read == [4]
    feats = torch.roll(feats, -1, 0)  # here the whole picture is last
    for choice in ours.split(4):
        torch.testing.assert_close(choice, feats, atol=1e-4 * float(feats.abs().max()), rtol=1e-4)
    torch.testing.assert_close(named, loss, atol=1e-4, rtol=1e-4)
    assert batch.text is not None and batch.links is not None
    count = batch.text.packing.lengths.tolist()[0]
    tied = [(row, region) for row, region in batch.links.tolist() if row < count]
    assert tied == [(2, 1), (7, 0), (9, 1)]  # dog; Casey and dog, by the first piece
    assert [VOCAB.tokens[batch.text.ids[row]] for row, _ in tied] == ["dog", "casey", "dog"]


@pytest.mark.parametrize("trunk", [SimpleDetector, FastRCNN])
def test_no_shape_depends_on_what_a_device_holds(trunk: type[SimpleDetector] | type[FastRCNN], tmp_path: Path) -> None:
    """Of choices that share a picture it is known beforehand what is read: a step does not wait for the device."""
    batch = pack(tuned().forms(items(tmp_path)[0]))
    assert batch.images is not None and batch.regions is not None
    with FakeTensorMode() as fake:
        net = trunk(TRUNK)
        images, regions = (
            each_tensor(x, fake.from_tensor) for x in (batch.images, replace(batch.regions, covers=None))
        )
        found = net(images, regions)
    feats = found if isinstance(found, Tensor) else found[0]
    assert len(feats) == len(batch.regions.boxes) == 16


def test_outlines_are_brought_to_cells_as_in_the_slow_reading() -> None:
    rng, seen = np.random.default_rng(0), 0
    for _ in range(40):
        low = rng.random(2) * 100
        box = [*low, *(low + 1 + rng.random(2) * 80)]
        outlines = [
            (low - 5 + rng.random((rng.integers(3, 9), 2)) * (np.array(box[2:]) - low + 10)).round()
            for _ in range(rng.integers(0, 4))
        ]
        ours = inside(outlines, box)
        np.testing.assert_array_equal(ours, slow_inside([x.tolist() for x in outlines], box))
        seen += int(ours.sum())
    assert seen > 1000


@pytest.mark.parametrize(("wide", "high"), [(300, 150), (123, 457), (1000, 90), (768, 384), (1921, 803)])
def test_pictures_stand_in_the_middle_and_in_training_anywhere(wide: int, high: int) -> None:
    image = np.random.default_rng(1).integers(1, 255, (high, wide, 3), np.uint8)
    boxes = np.array([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 1.0, 1.0]], np.float32)
    sample = plain(image, boxes)
    (shown,) = framed(sample).pictures
    _, theirs = slow_frame(image, (boxes * [wide, high, wide, high]).tolist())
    np.testing.assert_allclose(shown.boxes * [768, 384, 768, 384], torch.roll(theirs, -1, 0), atol=1e-3)
    assert shown.labels.tolist() == [3, 0, 0] and (shown.width, shown.height) == (768, 384)
    assert framed(replace(sample, pictures=(shown,))).pictures[0] is shown
    places = set()
    for seed in range(40):
        (moved,) = framed(sample, np.random.default_rng(seed)).pictures
        left, top, right, low = (moved.boxes[-1] * [768, 384, 768, 384]).round().astype(int)
        seen = moved.pixels()
        assert (seen[top:low, left:right] > 0).all() and (seen > 0).all(-1).sum() == (right - left) * (low - top)
        np.testing.assert_allclose(
            moved.boxes[:2] - moved.boxes[-1:, [0, 1, 0, 1]],
            shown.boxes[:2] - shown.boxes[-1:, [0, 1, 0, 1]],
            atol=1e-6,
        )
        places.add((left, top))
        spare = 768 - (right - left), 384 - (low - top)
        assert 0 <= left <= spare[0] and 0 <= top <= spare[1]
    assert len(places) > 20 or wide == 2 * high


def test_what_trains_and_what_stays() -> None:
    """Pre-training leaves the stem, layers 1 to 3 and their statistics; fine-tuning nothing but what names objects."""
    image = np.random.default_rng(2).integers(0, 255, (90, 150, 3), np.uint8)
    sample = plain(image, np.array([[0.1, 0.2, 0.6, 0.9], [0.3, 0.0, 0.8, 0.5]], np.float32))
    choices = replace(sample, texts=("w1", "w2", "w3", "w4", "w5"), answers=(("2", 1.0),))
    for weight in (0.0, 0.5):
        before = build(object_weight=weight)
        first = before.hide(sample, "mlm+itm", np.random.default_rng(0), lambda: sample)
        after = start(before, VisualBERT.finetune["vcr"], "vcr")
        each = after.documents(choices, "vcr", np.random.default_rng(0), lambda: sample)
        assert [len(x.images) for x in each] == [1, 0, 0, 0]
        for system, examples, frozen in ((before, [first], True), (after, each, False)):
            kept = {name: value.clone() for name, value in system.state_dict().items()}
            losses, _ = system.train()(pack(examples))
            assert ("objects" in losses) == (weight > 0)
            sum(losses.values(), torch.zeros(())).backward()
            reached = {n for n, p in system.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
            moved = {n for n, value in system.state_dict().items() if not torch.equal(value, kept[n])}
            parts = {n.split("trunk.")[1]: n in reached for n, _ in system.named_parameters() if "trunk." in n}
            for name, found in parts.items():
                idle = (name.startswith("backbone.") and frozen) or (name.startswith("names.") and not weight)
                assert found != idle, name
            statistics = {n.split("trunk.")[1] for n in moved}
            assert "head.0.bn1.running_mean" in statistics
            assert any(n.startswith("backbone.") for n in statistics) != frozen
    batch = pack([first])
    loss = before.eval()(batch)[0]["objects"]
    torch.testing.assert_close(loss, 0.5 * before.trunk(batch.images, batch.regions)[1])


def test_weights_of_the_authors_round_trip(tmp_path: Path) -> None:
    """Body behind their wrapper's "bert.", the detector beside it; pre-trained and fine-tuned."""
    system = build()
    theirs = VisualBERT.layouts["wrapped"].to_theirs(system.state_dict())
    assert {"bert.bert.embeddings.projection.weight", "bert.cls.seq_relationship.bias"} <= theirs.keys()
    own = {key: value.shape for key, value in theirs.items() if key.startswith("detector.")}
    with torch.device("meta"):
        assert len(LAYOUT.to_theirs(SimpleDetector(RESNET50).state_dict())) == 258 + 60 + 7
        known = LAYOUT.to_theirs(SimpleDetector(RESNET50).state_dict())
    assert own.keys() <= known.keys() | {f"detector.{x}" for x in known}
    assert known["backbone.6.5.conv3.weight"].shape == (1024, 256, 1, 1)
    assert known["after_roi_align.0.2.bn3.running_var"].shape == (2048,)
    assert known["mask_upsample.weight"].shape == (32, 1, 3, 3) and known["object_embed.weight"].shape == (81, 128)
    assert known["obj_downsample.1.weight"].shape == (512, 2176)
    assert known["regularizing_predictor.weight"].shape == (81, 2048)
    with pytest.MonkeyPatch.context() as patch:
        recipe = VisualBERT.recipes["base_vcr"]
        patch.setattr(VisualBERT, "recipes", VisualBERT.recipes | {"small": replace(recipe, config=system.config)})
        torch.save(theirs, tmp_path / "theirs.th")
        ours, config = read_ours(VisualBERT, "visualbert", tmp_path / "theirs.th", "small")
        assert config.trunk == TRUNK
        assert ours.keys() == system.state_dict().keys()
        assert all(torch.equal(ours[key], value) for key, value in system.state_dict().items())
        after = tuned()
        mine = {key: value for key, value in after.state_dict().items()}
        finetune = VisualBERT.finetune["vcr"]
        plain = (VisualBERT.keys.under("system.") + finetune.keys).to_theirs(mine)
        wrapped = {key if key.startswith("detector.") else f"bert.{key}": value for key, value in plain.items()}
        found = read_tuned(VisualBERT, "vcr", finetune, "small", wrapped, VOCAB, "theirs")
        assert found is not None and not found.config.trunk_frozen
        assert all(torch.equal(value, mine[key]) for key, value in found.state_dict().items())
        wrapped.pop("detector.object_embed.weight")
        with pytest.raises(BadInput, match=r"1 tensors missing .*kind\.weight"):
            read_tuned(VisualBERT, "vcr", finetune, "small", wrapped, VOCAB, "theirs")


def test_the_detector_starts_from_a_resnet(tmp_path: Path) -> None:
    net = ResNet(TRUNK)
    save_file(net.state_dict(), tmp_path / "resnet.safetensors")
    system = build()
    kinds = system.trunk.kind.weight.clone()
    system.fill_trunk(tmp_path / "resnet.safetensors")
    assert torch.equal(system.trunk.head[1].conv2.weight, net.layer4[1].conv2.weight)
    assert torch.equal(system.trunk.backbone.layer3[0].conv1.weight, net.layer3[0].conv1.weight)
    assert torch.equal(system.trunk.kind.weight, kinds)
    with pytest.raises(BadInput, match="no image trunk"):
        build(trunk=None, feature_size=3).fill_trunk(tmp_path / "resnet.safetensors")


def test_classes_that_the_detector_does_not_know_are_named() -> None:
    image, boxes = np.zeros((9, 9, 3), np.uint8), np.array([[0, 0, 1, 1]], np.float32)
    with pytest.raises(BadInput, match="sample s: region of class 81, the detector knows 81"):
        build().lay_out(plain(image, boxes, [81]))
    with pytest.raises(BadInput, match="sample s: object 'unicorn' is none of COCO's classes"):
        build().lay_out(plain(image, boxes, [0], names=("unicorn",)))
    assert build().lay_out(plain(image, boxes, [0], names=("traffic light",))).regions.labels.tolist() == [10, 0]


def test_a_run_end_to_end_by_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The twin's raw files: pre-training on its own texts, fine-tuning, its score and the server's file."""
    data, run, regions = tmp_path / "vcr", tmp_path / "run", str(tmp_path / "vcr/images")
    write_twin("vcr", data, 4, 2, level=1, pictures=True)
    main(["data", "objects", str(data), regions])
    source = tuning_runs.open_items(find("vcr"), data, regions, "train")
    vocab = captions(source, VisualBERT.specials)
    body = VisualBERT(replace(build().config, vocab_size=len(vocab)), vocab)
    write_weights(
        tmp_path / "body.safetensors", body.state_dict(), {"system": "visualbert", "config": to_json(body.config)}
    )
    vocab.write(tmp_path / "vocab.txt")
    begun = ["--weights", str(tmp_path / "body.safetensors"), "--vocab", str(tmp_path / "vocab.txt"), "--device", "cpu"]
    few = ["--schedule.steps", "2", "--schedule.warmup", "1", "--workers", "0"]
    where = ["--data", str(data), "--benchmark", "vcr", "--regions", regions]
    main(["pretrain", "visualbert", "--size", "own_vcr", *where, *begun, *few, "--out", str(tmp_path / "own")])
    where = ["--data", str(data), "--regions", regions, "--size", "base_vcr", "--out", str(run)]
    main(
        [
            "finetune",
            "visualbert",
            "vcr",
            *where,
            "--weights",
            str(tmp_path / "own"),
            "--steps",
            "2",
            "--workers",
            "0",
            "--device",
            "cpu",
        ]
    )
    for folder, goals in ((tmp_path / "own", {"mlm", "itm"}), (run, {"vcr"})):
        losses = [json.loads(x)["loss"] for x in (folder / "metrics.jsonl").read_text().splitlines()]
        assert losses and all(set(x) == goals and np.isfinite(list(x.values())).all() for x in losses)
    main(["score", str(run), "--split", "val"])
    assert "Q->AR" in capsys.readouterr().out
    lines = [json.loads(x) for x in (data / "val.jsonl").read_text().splitlines()]
    hidden = [{k: v for k, v in x.items() if not k.endswith("_label")} for x in lines]
    (data / "test.jsonl").write_text("".join(json.dumps(x) + "\n" for x in hidden))
    main(["submit", str(run), "--split", "test", "--out", str(tmp_path / "sent.csv")])
    assert len((tmp_path / "sent.csv").read_text().splitlines()) == 1 + len(lines)
