"""ResNet against torchvision's class and VL-BERT's, ResNet-v2 against TensorFlow-Slim's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden import Golden, assert_near
from torch import Tensor
from torch.nn import functional

from intarsia.features.resnet import ResNet, ResNetConfig, layer, resnet_state
from intarsia.features.resnet_v2 import ResNetV2, ResNetV2Config, resnet_v2_state, tf_state
from intarsia.weights.files import fill

RESNET = pytest.mark.parametrize("golden", Golden.cases("resnet"), ids=str)
RESNET_V2 = pytest.mark.parametrize("golden", Golden.cases("resnet_v2"), ids=str)


def config_of(golden: Golden) -> ResNetConfig:
    said = golden.about["config"]
    return ResNetConfig(
        tuple(said["layers"]),
        tuple(said["planes"]),
        said["stem_channels"],
        eps=said["batch_norm_eps"],
        momentum=said["batch_norm_momentum"],
        num_classes=said["num_classes"],
    )


def build(golden: Golden, **changes: object) -> ResNet:
    net = ResNet(replace(config_of(golden), **changes))
    fill(net, resnet_state(golden.weights("weights."), net), golden.name)
    return net.eval()


@RESNET
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_maps_and_logits(golden: Golden, norm: str) -> None:
    net, pixels = build(golden, norm=norm), golden.tensors["input.pixel_values"]
    for number, found in enumerate(net.maps(pixels), start=1):
        assert_near(found, golden.output(f"layer{number}"), f"layer{number}")
    assert_near(net.features(pixels).mean((2, 3)), golden.output("pooled"), "pooled")
    assert_near(net(pixels), golden.output("logits"), "logits")


@RESNET
def test_loss_and_gradients(golden: Golden) -> None:
    net = build(golden)
    logits = net(golden.tensors["input.pixel_values"])
    loss = functional.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1])
    assert_near(loss[None], golden.output("loss"), "loss")
    loss.backward()
    expected = golden.weights("grad.")
    assert expected
    named = dict(net.named_parameters())
    for key, gradient in expected.items():
        found = named[key].grad
        assert isinstance(found, Tensor)
        assert_near(found, gradient, key)


@RESNET
def test_where_the_stride_sits_and_how_layer_4_is_dilated(golden: Golden) -> None:
    pixels = golden.tensors["input.pixel_values"]
    caffe = build(golden, stride_in="1x1").maps(pixels)
    assert_near(caffe[2], golden.output("layer3_stride_in_1x1"), "layer3, stride in 1x1")
    assert_near(caffe[3], golden.output("layer4_stride_in_1x1"), "layer4, stride in 1x1")
    dilated = build(golden, layer4="dilated_after_first").features(pixels)
    assert_near(dilated, golden.output("layer4_torchvision_dilated"), "layer4, dilated after the first block")


@RESNET
@pytest.mark.parametrize(("layer4", "name"), [("dilated", "roi_head_c5_dilated"), ("strided", "roi_head_strided")])
def test_layer_4_is_the_head_of_regions(golden: Golden, layer4: str, name: str) -> None:
    head = layer(4, replace(config_of(golden), stride_in="1x1", layer4=layer4, norm="frozen"))
    state = golden.weights("weights.layer4.")
    fill(head, {key: value for key, value in state.items() if "num_batches" not in key}, "layer4")
    assert_near(head(golden.tensors["input.roi_feature"]).mean((2, 3)), golden.output(name), name)


@RESNET
def test_training_moves_the_statistics(golden: Golden) -> None:
    net, pixels = build(golden).train(), golden.tensors["input.pixel_values"]
    assert_near(net(pixels), golden.output("train_mode_logits"), "train mode logits")
    for key, expected in golden.weights("output.train_mode_after.").items():
        assert_near(net.state_dict()[key], expected, key)
    assert net.bn1.num_batches_tracked == golden.tensors["weights.bn1.num_batches_tracked"] + 1


@RESNET
def test_a_frozen_norm_never_moves(golden: Golden) -> None:
    net, pixels = build(golden, norm="frozen").train(), golden.tensors["input.pixel_values"]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert_near(net(pixels), golden.output("logits"), "frozen, in training")
    net(pixels).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any("bn" in key for key, _ in net.named_parameters())


def build_v2(golden: Golden, norm: str = "frozen") -> ResNetV2:
    said = golden.about["config"]
    net = ResNetV2(
        ResNetV2Config(
            tuple(said["units"]),
            tuple(said["base_depth"]),
            said["stem_channels"],
            said["num_classes"],
            norm=norm,
            eps=said["batch_norm_eps"],
            pixel_range=(0, 1),
        )
    )
    fill(net, resnet_v2_state(golden.weights("weights."), net), golden.name)
    return net.eval()


@RESNET_V2
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_pre_activated_blocks_and_vectors(golden: Golden, norm: str) -> None:
    net, pixels = build_v2(golden, norm), golden.tensors["input.images_nhwc"].permute(0, 3, 1, 2)
    for number, found in enumerate(net.maps(pixels), start=1):
        assert_near(found.permute(0, 2, 3, 1), golden.output(f"block{number}_nhwc"), f"block{number}")
    assert_near(net.vectors(pixels), golden.output("pooled"), "pooled")
    assert_near(net(pixels), golden.output("logits"), "logits")


@RESNET_V2
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_tensorflow_names_go_there_and_back(golden: Golden, norm: str) -> None:
    theirs = golden.weights("weights.")
    back = tf_state(build_v2(golden, norm), golden.about["config"]["scope"] + "/")
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)
