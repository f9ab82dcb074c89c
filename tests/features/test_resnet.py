from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from intarsia.errors import BadInput
from intarsia.features.norm import FrozenBatchNorm
from intarsia.features.resnet import LAYOUTS, SIZES, ResNet, ResNetConfig, load_resnet, normalised, resnet_state
from intarsia.features.resnet_v2 import SIZES as SIZES_V2
from intarsia.features.resnet_v2 import ResNetV2, ResNetV2Config, load_resnet_v2, resnet_v2_state, tf_state
from intarsia.weights.files import COUNTER, write_weights

TINY = ResNetConfig((1, 2, 1, 1), (8, 8, 16, 16), 4, num_classes=5)
TINY_V2 = ResNetV2Config((2, 1, 1, 1), (4, 4, 8, 8), 4, 5)


def shaken(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in [*net.parameters(), *net.buffers()]:
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.1)
    return net.eval()


PIXELS = torch.randn(2, 3, 65, 50, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "entries", "parameters"),
    [
        ("resnet50", 320, 25_557_032),
        ("resnet101", 626, 44_549_160),
        ("resnet152", 932, 60_192_808),
        ("resnext101_32x8d", 626, 88_791_336),
    ],
)
def test_published_sizes(name, entries, parameters):
    with torch.device("meta"):
        net = ResNet(SIZES[name])
    assert len(net.state_dict()) == entries
    assert sum(x.numel() for x in net.parameters()) == parameters


def test_resnext_152_has_the_shapes_of_the_detectors():
    with torch.device("meta"):
        state = ResNet(SIZES["resnext152_32x8d"]).state_dict()
    shapes = [tuple(state[f"layer{n}.0.conv2.weight"].shape) for n in (1, 2, 3, 4)]
    assert shapes == [(256, 8, 3, 3), (512, 16, 3, 3), (1024, 32, 3, 3), (2048, 64, 3, 3)]
    assert [state[f"layer{n}.0.conv3.weight"].shape[0] for n in (1, 2, 3, 4)] == [256, 512, 1024, 2048]
    assert sum(key.endswith("conv1.weight") for key in state) == 1 + 3 + 8 + 36 + 3


@pytest.mark.parametrize("layout", [x for x in LAYOUTS if x != "torchvision"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_every_layout_goes_there_and_back(layout, prefix):
    classifier = "transformers" in layout
    net = shaken(ResNet(replace(TINY, num_classes=5 if classifier else 0)))
    theirs = {prefix + key: value for key, value in LAYOUTS[layout].to_theirs(net.state_dict()).items()}
    assert not {"conv1.weight", "bn1.weight", "fc.weight"} & set(theirs)
    again = ResNet(net.config).eval()
    again.load_state_dict(resnet_state(theirs, again))
    assert torch.equal(again.features(PIXELS), net.features(PIXELS))
    back = {prefix + key: value for key, value in LAYOUTS[layout].to_theirs(again.state_dict()).items()}
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


def test_detectron_names():
    keys = set(LAYOUTS["detectron"].to_theirs(ResNet(replace(TINY, num_classes=0, norm="frozen")).state_dict()))
    assert {"stem.conv1.weight", "stem.conv1.norm.running_var", "res2.0.shortcut.norm.bias"} <= keys
    assert {"res3.1.conv2.norm.weight", "res5.0.conv3.weight"} <= keys


def test_a_trunk_leaves_out_what_it_has_no_use_for(tmp_path):
    net = shaken(ResNet(TINY))
    write_weights(tmp_path / "net.pth", net.state_dict())
    short = replace(TINY, depths=TINY.depths[:3], planes=TINY.planes[:3], num_classes=0, norm="frozen")
    trunk = load_resnet(tmp_path / "net.pth", short)
    torch.testing.assert_close(trunk.features(PIXELS), net.maps(PIXELS)[2])
    assert not trunk.training
    assert not any(key.endswith(COUNTER) for key in trunk.state_dict())
    with pytest.raises(BadInput, match="without a classifier"):
        trunk(PIXELS)


def test_files_without_counters_load_and_all_else_is_strict(tmp_path):
    net = shaken(ResNet(TINY))
    state = {key: value for key, value in net.state_dict().items() if not key.endswith(COUNTER)}
    write_weights(tmp_path / "old.safetensors", state)
    assert torch.equal(load_resnet(tmp_path / "old.safetensors", TINY)(PIXELS), net(PIXELS))
    with pytest.raises(BadInput, match=r"old\.safetensors: 0 tensors missing .*15 left over .*layer2\.1\.bn1\.bias"):
        load_resnet(tmp_path / "old.safetensors", replace(TINY, depths=(1, 1, 1, 1)))
    write_weights(tmp_path / "more.safetensors", state | {"head.weight": torch.ones(1)})
    with pytest.raises(BadInput, match=r"more\.safetensors: 1 keys of another layout, e\.g\. head\.weight"):
        load_resnet(tmp_path / "more.safetensors", TINY)


def test_folded_statistics_change_nothing():
    net = shaken(ResNet(replace(TINY, norm="frozen")))
    bare = {key: value for key, value in net.state_dict().items() if "running" not in key}
    full = resnet_state(bare, net)
    norm = FrozenBatchNorm(4)
    norm.load_state_dict({key.removeprefix("bn1."): value for key, value in full.items() if key.startswith("bn1.")})
    x = PIXELS[:, :1].expand(-1, 4, -1, -1)
    folded = x * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), folded, rtol=1e-6, atol=1e-6)


def test_the_ceil_pool_may_give_one_more():
    padded, ceil = (ResNet(replace(TINY, pool=x)).eval().stem(torch.zeros(1, 3, 64, 66)) for x in ("padded", "ceil"))
    assert (padded.shape[2:], ceil.shape[2:]) == ((16, 17), (16, 16))
    assert ResNet(replace(TINY, pool="ceil")).stem(torch.zeros(1, 3, 68, 68)).shape[2:] == (17, 17)
    assert ResNet(replace(TINY, pool="ceil")).stem(torch.zeros(1, 3, 600, 1000)).shape[2:] == (150, 250)


def test_maps_have_the_strides_they_say():
    for layer4, stride in (("strided", 32), ("dilated", 16), ("dilated_after_first", 16)):
        net = ResNet(replace(TINY, layer4=layer4))
        assert net.features(torch.zeros(1, 3, 64, 96)).shape == (1, net.width, 64 // stride, 96 // stride)


def test_impossible_configs_are_named():
    with pytest.raises(BadInput, match=r"depths \(1, 1\) and planes \(8,\)"):
        ResNet(ResNetConfig((1, 1), (8,)))
    with pytest.raises(BadInput, match="32 groups of 8"):
        ResNet(ResNetConfig((1,), (9,), groups=32, group_width=8))


def test_a_frozen_norm_is_batch_norm_in_evaluation():
    one, other = shaken(nn.BatchNorm2d(3, 0.01)), FrozenBatchNorm(3, 0.01)
    other.load_state_dict({key: value for key, value in one.state_dict().items() if "num_batches" not in key})
    torch.testing.assert_close(other.train()(PIXELS), one(PIXELS))
    torch.testing.assert_close(other.double()(PIXELS.double()).float(), one(PIXELS))
    assert not list(other.parameters())


def test_pixels_are_normalised_as_imagenets():
    image = np.full((1, 2, 1, 3), 255, np.uint8)
    expected = [(1 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    assert normalised(image)[0, :, 1, 0].tolist() == pytest.approx(expected)


def test_v2_files_of_b2t2_are_told_by_their_names(tmp_path):
    net = shaken(ResNetV2(TINY_V2))
    write_weights(tmp_path / "hub.safetensors", tf_state(net, "module/resnet_v2_50/"))
    pixels = torch.rand(2, 3, 33, 64, generator=torch.Generator().manual_seed(2))
    again = load_resnet_v2(tmp_path / "hub.safetensors", TINY_V2)
    assert torch.equal(again(pixels), net(pixels))
    bare = load_resnet_v2(tmp_path / "hub.safetensors", replace(TINY_V2, num_classes=0))
    assert torch.equal(bare.vectors(pixels), net.vectors(pixels))
    with pytest.raises(BadInput, match="1 keys of another layout"):
        resnet_v2_state(tf_state(net) | {"resnet_v2_152/block9/unit_1/x": torch.ones(1)}, net)
    with pytest.raises(BadInput, match="no ResNet-v2 in it"):
        resnet_v2_state({"bert/embeddings/word_embeddings": torch.ones(1)}, net)


def test_v2_pixels_are_moved_to_the_range_the_config_says():
    net = shaken(ResNetV2(TINY_V2))
    plain = ResNetV2(replace(TINY_V2, pixel_range=(0, 1))).eval()
    plain.load_state_dict(net.state_dict())
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(net.vectors(pixels), plain.vectors(pixels * 2 - 1))


def test_v2_published_size():
    with torch.device("meta"):
        net = ResNetV2(replace(SIZES_V2["resnet_v2_152"], num_classes=1001, norm="batch"))
    names = net.state_dict()
    assert net.width == 2048
    assert names["block3.unit_36.conv2.weight"].shape == (256, 256, 3, 3)
    assert sum("shortcut.weight" in x for x in names) == 4
    assert tuple(net.block1.unit_3.conv2.stride) == (2, 2)
    assert tuple(net.block2.unit_1.conv2.stride) == tuple(net.block4.unit_3.conv2.stride) == (1, 1)
