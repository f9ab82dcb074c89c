"""S3D against MIL-NCE's port and against torchvision's and kylemin's classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from golden import Golden, assert_near

from intarsia.features.s3d import LAYOUTS, S3D, SIZES, s3d_state
from intarsia.features.s3d_text import Words, sentences_of
from intarsia.objectives import mil_nce
from intarsia.weights.files import fill

MILNCE = pytest.mark.parametrize("golden", Golden.cases("s3d_milnce"), ids=str)
KINETICS = pytest.mark.parametrize("golden", Golden.cases("s3d_kinetics"), ids=str)


def build(golden: Golden, size: str, **changes: object) -> S3D:
    said = golden.about["config"]
    known = {
        "width_divisor": said["width_divisor"],
        "eps": said["batch_norm_eps"],
        "momentum": said["batch_norm_momentum"],
    }
    known |= {"num_classes": said["num_classes"]} if size == "kinetics" else {"joint": said["num_classes"]}
    if not said.get("space_to_depth", True):
        known["stem"] = "whole"
    net = S3D(replace(SIZES[size], **(known | changes)))
    fill(net, s3d_state(golden.weights("weights."), net), golden.name)
    return net.eval()


@MILNCE
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_milnce_every_part(golden: Golden, norm: str) -> None:
    net = build(golden, "milnce", norm=norm)
    maps = net.maps(golden.tensors["input.video"])
    taps = golden.weights("output.tap_")
    assert taps
    for name, expected in taps.items():
        assert_near(maps[name], expected, name)
    vectors = maps["mixed_5c"].mean((2, 3, 4))
    assert_near(vectors, golden.output("mixed_5c_pooled"), "vectors")
    assert_near(net.embed(vectors), golden.output("video_embedding"), "video embedding")


@MILNCE
def test_milnce_text_loss_and_gradients(golden: Golden) -> None:
    net, text = build(golden, "milnce"), sentences_of(golden.weights("weights."))
    said = golden.about["config"]
    ids = Words(said["dictionary"]).ids(said["sentences"], said["max_words"])
    assert torch.equal(ids, golden.tensors["input.text_ids"])
    sentences = text(ids)
    assert_near(sentences, golden.output("text_embedding"), "text embedding")
    loss = mil_nce.score(net.embed(net.vectors(golden.tensors["input.video"])), sentences)
    assert_near(loss[None], golden.output("milnce_loss"), "loss")
    loss.backward()
    expected = golden.weights("grad.")
    assert expected
    ours = {key: value.grad for key, value in net.named_parameters() if value.grad is not None}
    found = LAYOUTS["milnce"].to_theirs(ours)
    found |= {f"text_module.{key}": value.grad for key, value in text.named_parameters() if value.grad is not None}
    for key, gradient in expected.items():
        assert_near(found[key], gradient, key)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Norms over the six numbers of a channel are so ill conditioned that the order of sums shows: 7e-4 between float32 and float64."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@MILNCE
@pytest.mark.usefixtures("one_thread")
def test_milnce_training_moves_the_statistics(golden: Golden) -> None:
    net = build(golden, "milnce").train()
    assert_near(net.vectors(golden.tensors["input.video"]), golden.output("train_mode_mixed_5c_pooled"), "training")
    state = LAYOUTS["milnce"].to_theirs(net.state_dict())
    moved = golden.weights("output.train_mode_after.")
    assert moved
    for key, expected in moved.items():
        assert_near(state[key], expected, key)


@MILNCE
def test_milnce_names_go_there_and_back(golden: Golden) -> None:
    theirs = golden.weights("weights.")
    text = {f"text_module.{key}": value for key, value in sentences_of(theirs).state_dict().items()}
    back = LAYOUTS["milnce"].to_theirs(build(golden, "milnce").state_dict()) | text
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


@KINETICS
@pytest.mark.parametrize("norm", ["batch", "frozen"])
@torch.no_grad()
def test_kinetics_clip(golden: Golden, norm: str) -> None:
    net = build(golden, "kinetics", norm=norm)
    clip = golden.tensors["input.clip"]
    maps = net.features(clip)
    assert_near(maps, golden.output("clip_features"), "features")
    assert_near(net.vectors(clip), golden.output("clip_feature_mean"), "vectors")
    assert_near(net.windows(maps).mean((2, 3, 4)), golden.output("clip_feature_overlap2"), "windows")
    assert_near(net(clip), golden.output("clip_logits_full_spatial_pool"), "logits")


@KINETICS
@torch.no_grad()
def test_kinetics_at_224_pixels(golden: Golden) -> None:
    small = golden.tensors["input.video_small"]
    video = small.repeat_interleave(16, 3).repeat_interleave(16, 4)
    for window in ("picture", "seven"):
        net = build(golden, "kinetics", window=window)
        assert_near(net(video), golden.output("video_224_logits"), f"logits, {window}")
    assert_near(net.features(video), golden.output("video_224_features"), "features")


@KINETICS
@pytest.mark.parametrize("layout", ["torchvision", "kylemin"])
def test_kinetics_names_go_there_and_back(golden: Golden, layout: str) -> None:
    theirs = golden.weights("weights.")
    net = build(golden, "kinetics")
    other = LAYOUTS[layout].to_theirs(net.state_dict())
    again = S3D(net.config)
    fill(again, s3d_state(other, again), layout)
    back = LAYOUTS["torchvision"].to_theirs(again.state_dict())
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)
    assert len(other) == len(theirs)
