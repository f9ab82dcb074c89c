"""VL-BERT with its Fast R-CNN in the loop, against a slow reading of its sheet: pixels, regions, what is hidden, what trains, weights, heads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from intarsia.batch import Pick, Picture, Sample
from intarsia.errors import BadInput
from intarsia.features.resnet import ResNet, ResNetConfig
from intarsia.pack import pack
from intarsia.system import begin, fit_config
from intarsia.systems.vl_bert import VLBERT
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import read_weights

VOCAB = Vocab([*SPECIALS, *(f"w{i}" for i in range(40))])
TRUNK = ResNetConfig((1, 2, 1, 2), (4, 4, 8, 8), stem=4, stride_in="1x1", layer4="dilated", num_classes=0)
MEAN = np.array([102.9801, 115.9465, 122.7717], np.float32)
CLASSES = 5


def build(**changes: Any) -> VLBERT:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {
        "trunk": TRUNK,
        "short_side": 64,
        "long_side": 96,
        "geometry_waves": 4,
        "visual_scale": 1.0,
        "flip_rate": 0.0,
    }
    config = fit_config(VLBERT.recipes["e2e"].config, len(VOCAB), 3, CLASSES)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        system = VLBERT(dataclasses.replace(config, **(small | dropout | sizes | changes)), VOCAB)
        for name, value in system.state_dict().items():  # norms that are not 1 and 0
            if "trunk" in name and value.ndim == 1 and value.is_floating_point():
                value.copy_(0.5 + torch.rand_like(value))
    return system


def made(number: int, regions: int = 3) -> Sample:
    rng = np.random.default_rng(number)
    wide, high = 80 + 7 * number, 70
    image = rng.integers(0, 255, (high, wide, 3), np.uint8)
    low = rng.random((regions, 2)) / 2
    boxes = np.concatenate([low, low + 0.4], 1).astype(np.float32)
    probs = rng.dirichlet(np.ones(CLASSES), regions).astype(np.float32)
    picture = Picture(f"p{number}", np.zeros((regions, 3), np.float32), boxes, wide, high, probs=probs)
    return Sample(f"s{number}", ("w1 w2 w3 w4",), (dataclasses.replace(picture, pixels=lambda: image),))


def slow_size(wide: int, high: int, short: int = 64, long: int = 96) -> tuple[int, int]:
    """Wide, high: the shorter side to `short`, cut down where the longer would pass `long`; whole numbers by cutting."""
    side = short
    if max(wide, high) / min(wide, high) * side > long:
        side = int(long * min(wide, high) / max(wide, high))
    return (side, int(side * high / wide)) if wide < high else (int(side * wide / high), side)


def slow_pixels(sample: Sample) -> Tensor:
    picture = sample.pictures[0]
    assert picture.pixels is not None
    image = np.asarray(picture.pixels())
    size = slow_size(image.shape[1], image.shape[0])
    bgr = np.asarray(Image.fromarray(image[:, :, ::-1].copy()).resize(size, Image.Resampling.BILINEAR))
    return torch.from_numpy((bgr.astype(np.float32) - MEAN).transpose(2, 0, 1))


def slow_boxes(picture: Picture, wide: int, high: int) -> Tensor:
    """(R + 1, 4) pixels of the resized picture, the whole one last: scaled as the picture was, then moved into it."""
    whole = [[0, 0, picture.width - 1, picture.height - 1]]
    boxes = np.concatenate([picture.boxes * ([picture.width, picture.height] * 2), whole])
    boxes = boxes * ([wide / picture.width, high / picture.height] * 2)
    return torch.from_numpy(boxes.clip(0, [wide - 1, high - 1] * 2).astype(np.float32))


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{x}"][:, None, None] for x in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def block(x: Tensor, state: dict[str, Tensor], name: str, stride: int, dilation: int) -> Tensor:
    def conv(x: Tensor, part: str, **how: Any) -> Tensor:
        return F.conv2d(x, state[f"{name}.{part}.weight"], **how)

    y = norm(conv(x, "conv1", stride=stride), state, f"{name}.bn1").relu()
    y = norm(conv(y, "conv2", padding=dilation, dilation=dilation), state, f"{name}.bn2").relu()
    y = norm(conv(y, "conv3"), state, f"{name}.bn3")
    if f"{name}.downsample.0.weight" in state:
        x = norm(conv(x, "downsample.0", stride=stride), state, f"{name}.downsample.1")
    return (x + y).relu()


def slow_features(pixels: Tensor, boxes: Tensor, state: dict[str, Tensor], covers: Any = None) -> Tensor:
    """Boxes in pixels, one image; reads in the middle of each of 14 x 14 bins; of the last map only cells that are covered."""
    x = F.conv2d(pixels[None], state["backbone.conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(norm(x, state, "backbone.bn1").relu(), 3, 2, 1)
    x = block(x, state, "backbone.layer1.0", 1, 1)
    x = block(block(x, state, "backbone.layer2.0", 2, 1), state, "backbone.layer2.1", 1, 1)
    (x,) = block(x, state, "backbone.layer3.0", 2, 1)
    high, wide = x.shape[1:]
    out = []
    for x1, y1, x2, y2 in (boxes / 16).tolist():
        cells = torch.zeros(x.shape[0], 14, 14)
        for i in range(14):
            for j in range(14):
                at = [y1 + (i + 0.5) * max(y2 - y1, 1) / 14, x1 + (j + 0.5) * max(x2 - x1, 1) / 14]
                if not (-1 <= at[0] <= high and -1 <= at[1] <= wide):
                    continue
                (b, t), (a, s) = (
                    (min(max(p, 0.0), n - 1.0) % 1, int(min(max(p, 0.0), n - 1.0)))
                    for p, n in zip(at, (high, wide), strict=True)
                )
                below, right = min(t + 1, high - 1), min(s + 1, wide - 1)
                top = x[:, t, s] * (1 - a) + x[:, t, right] * a
                cells[:, i, j] = top * (1 - b) + (x[:, below, s] * (1 - a) + x[:, below, right] * a) * b
        y = block(block(cells[None], state, "head.0", 1, 2), state, "head.1", 1, 2)
        if covers is not None:
            y = torch.stack(
                [torch.stack([y[0, :, i, j] * bool(covers[len(out)][i][j]) for j in range(14)], -1) for i in range(14)],
                1,
            )[None]
        out.append(y.sum((2, 3))[0] / 196)
    return torch.stack(out)


def test_features_are_those_of_the_slow_reading() -> None:
    system = build().train()
    samples = [made(0), made(3, regions=5)]
    batch = pack([system.lay_out(x) for x in samples])
    assert batch.regions and batch.images
    trunk = system.sight.trunk
    assert trunk is not None
    found, first = trunk(batch.images, batch.regions), 0
    state = dict(trunk.state_dict())
    for sample, image in zip(samples, batch.images.pixels, strict=True):
        pixels = slow_pixels(sample)
        torch.testing.assert_close(image[:, : pixels.shape[1], : pixels.shape[2]], pixels, atol=1e-4, rtol=0)
        boxes = slow_boxes(sample.pictures[0], pixels.shape[2], pixels.shape[1])
        theirs = slow_features(image, boxes, state)  # filled up to the larger picture, as in their batches
        ours = found[first : first + len(boxes)]
        torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)
        first += len(boxes)
    assert first == len(found)


def test_a_hidden_region_is_black_and_so_are_parts_of_the_others() -> None:
    system, sample = build(mvrc_rate=1.0), made(1)
    plain = system.lay_out(sample).images[0].read()
    seen = 0
    for seed in range(12):
        example = system.hide(sample, "mvrc", np.random.default_rng(seed), lambda: made(2))
        assert example.regions is not None and example.regions.feats.shape == (4, 0)
        pixels, high, wide = example.images[0].read(), *plain.shape[1:]
        black = np.zeros((high, wide), np.bool_)
        for x1, y1, x2, y2 in example.regions.boxes[example.regions.masked]:
            black[int(y1 * high) : int(y2 * high) + 1, int(x1 * wide) : int(x2 * wide) + 1] = True
        assert (pixels[:, black] == 0).all()
        assert (pixels[:, ~black] == plain[:, ~black]).all()
        assert not example.regions.masked[-1]
        assert isinstance(example.targets["mvrc"], Pick)
        seen += int(example.regions.masked.sum())
    assert 25 < seen <= 36


def test_a_turned_picture_is_read_and_hidden_turned() -> None:
    system, sample = build(flip_rate=1.0, mvrc_rate=0.5), made(1)
    plain = system.lay_out(sample)
    example = system.hide(sample, "mvrc", np.random.default_rng(1), lambda: made(2))
    assert example.regions is not None and plain.regions is not None and example.regions.masked.any()
    pixels, wide = example.images[0].read(), plain.images[0].width
    seen = pixels != 0
    assert (pixels == plain.images[0].read()[:, :, ::-1])[seen].all() and 0.1 < seen.mean() < 1
    columns = (wide - 1) / wide - plain.regions.boxes[:, [2, 0]]
    np.testing.assert_allclose(example.regions.boxes[:, [0, 2]], columns, atol=1e-6)


def test_what_trains_and_what_stays() -> None:
    system = build().train()
    alone = dataclasses.replace(made(4), pictures=())
    samples = [made(0), alone, made(1)]
    examples = [
        system.hide(x, "mlm+mvrc+mlm_text", np.random.default_rng(i), lambda: made(9))
        for i, x in enumerate(samples * 4)
    ]
    assert [len(x.images) for x in examples[:3]] == [1, 0, 1]
    before = {name: value.clone() for name, value in system.state_dict().items()}
    losses, _ = system(pack(examples))
    sum(losses.values(), torch.zeros(())).backward()
    reached = {name for name, p in system.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    held = {name for name, p in system.named_parameters() if not p.requires_grad}
    assert {"sight.trunk.backbone.layer2.0.conv1.weight", "sight.trunk.head.1.conv3.weight"} <= reached
    assert {"sight.trunk.backbone.conv1.weight", "sight.trunk.backbone.layer1.0.conv2.weight"} <= held
    assert all("trunk" in name for name in held)
    assert {name for name in before if ".bn" in name and name.endswith(".weight")} <= held
    for name, value in system.state_dict().items():  # no statistics moved
        assert torch.equal(value, before[name]), name


def test_only_texts_need_no_pixels() -> None:
    system = build()
    alone = dataclasses.replace(made(4), pictures=())
    batch = pack([system.hide(alone, "mlm_text", np.random.default_rng(1), lambda: made(9))])
    assert batch.images is None
    assert torch.isfinite(system(batch)[0]["mlm_text"])


def test_weights_round_trip_with_the_copies_of_the_head(tmp_path: Path) -> None:
    system = build()
    theirs = VLBERT.keys.to_theirs(system.state_dict())
    assert "image_feature_extractor.head.0.1.conv2.weight" in theirs
    assert "image_feature_extractor.backbone.layer2.1.bn3.running_var" in theirs
    assert not any("mask_visual" in key for key in theirs)
    ours = VLBERT.keys.to_ours(theirs)
    assert ours.keys() == system.state_dict().keys()
    assert all(torch.equal(ours[key], value) for key, value in system.state_dict().items())
    theirs["image_feature_extractor.head.0.1.conv2.weight"] = (
        theirs["image_feature_extractor.head.0.1.conv2.weight"] + 1
    )
    with pytest.raises(BadInput, match=r"head\.0\.1\.conv2\.weight should be the same tensor as .*roi_head"):
        VLBERT.keys.to_ours(theirs)


def test_the_trunk_starts_from_a_resnet(tmp_path: Path) -> None:
    net = ResNet(TRUNK)
    save_file(net.state_dict(), tmp_path / "resnet.safetensors")
    system = build()
    system.fill_trunk(tmp_path / "resnet.safetensors")
    trunk = system.sight.trunk
    assert trunk is not None
    assert torch.equal(trunk.head[1].conv2.weight, net.layer4[1].conv2.weight)
    assert torch.equal(trunk.backbone.layer3[0].conv1.weight, net.layer3[0].conv1.weight)
    with pytest.raises(BadInput, match="no image trunk"):
        build(trunk=None, feature_size=3).fill_trunk(tmp_path / "resnet.safetensors")
    assert read_weights(tmp_path / "resnet.safetensors").keys() == net.state_dict().keys()


def test_heads_start_from_pretrained_ones_and_the_pooler_afresh() -> None:
    system = build()
    for task, first in (("vqa", system.word_head.transform.dense), ("re", system.class_head[0])):
        tuned = begin(system, VLBERT.finetune[task])
        start = tuned.head[0].dense if task == "vqa" else tuned.head[0]
        assert torch.equal(start.weight, first.weight)
        assert torch.equal(start.bias, first.bias)
        assert tuned.system.config.with_pooler
        assert torch.equal(tuned.system.words.word.weight, system.words.word.weight)


def test_vcr_has_a_second_loss_on_the_objects() -> None:
    tuned = begin(build(), VLBERT.finetune["vcr"])
    sample = dataclasses.replace(made(1), texts=("w1 w2", "w3", "w4", "w5", "w6"))
    examples = [tuned.system.lay_out(sample, "vcr", form) for form in range(4)]
    for form, example in enumerate(examples):
        example.targets = {
            "vcr": np.array(int(form == 2)),
            "objects": Pick("regions", np.arange(4), np.array([7, 80, 3, 0])),
        }
    batch = pack(examples)
    loss, scores = tuned(batch)
    encoded = tuned.system.encode(batch)
    logits = tuned.head["objects"](encoded.visual)
    right = torch.tensor([7, 80, 3, 0] * 4)
    choice = F.binary_cross_entropy_with_logits(scores, torch.tensor([0.0, 0, 1, 0]))
    torch.testing.assert_close(loss, choice + F.cross_entropy(logits, right))
    theirs = tuned.keys.to_theirs(tuned.state_dict())
    assert {"cnn_loss_reg.0.dense.weight", "cnn_loss_reg.2.bias", "final_mlp.1.weight"} <= theirs.keys()
    assert theirs["cnn_loss_reg.2.weight"].shape == (81, 16)
