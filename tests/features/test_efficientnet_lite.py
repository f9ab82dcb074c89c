import pickle

import numpy as np
import pytest
import torch
from torch import nn

from intarsia.errors import BadInput
from intarsia.features.efficientnet_lite import (
    EfficientNetLite0,
    from_published,
    load_efficientnet,
    normalised,
    to_published,
)


@pytest.fixture(scope="module")
def net():
    net = EfficientNetLite0()
    generator = torch.Generator().manual_seed(0)
    for value in net.parameters():
        value.data = (
            torch.randn(value.shape, generator=generator) * (2 / max(1, value[0].numel())) ** 0.5
            if value.ndim > 1
            else value.data
        )
    return net.eval()


def test_names_and_shapes_are_the_published_ones(net):
    state = to_published(net.state_dict())
    assert len(state) == 296
    assert from_published(state).keys() == net.state_dict().keys()
    assert sum(x.numel() for x in state.values()) == 4_694_073
    shapes = {
        "_conv_stem.weight": (32, 3, 3, 3),
        "_bn0.running_var": (32,),
        "_blocks.0._depthwise_conv.weight": (32, 1, 3, 3),
        "_blocks.0._project_conv.weight": (16, 32, 1, 1),
        "_blocks.1._expand_conv.weight": (96, 16, 1, 1),
        "_blocks.3._depthwise_conv.weight": (144, 1, 5, 5),
        "_blocks.8._depthwise_conv.weight": (480, 1, 5, 5),
        "_blocks.14._project_conv.weight": (192, 1152, 1, 1),
        "_blocks.15._depthwise_conv.weight": (1152, 1, 3, 3),
        "_blocks.15._project_conv.weight": (320, 1152, 1, 1),
        "_blocks.15._bn2.num_batches_tracked": (),
        "_conv_head.weight": (1280, 320, 1, 1),
        "_bn1.bias": (1280,),
        "_fc.weight": (1000, 1280),
        "_fc.bias": (1000,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert not any(name.startswith("_blocks.0._expand") or name.startswith("_blocks.0._bn0") for name in state)
    assert {x.eps for x in net.modules() if isinstance(x, nn.BatchNorm2d)} == {1e-3}


@pytest.mark.parametrize(("high", "wide"), [(224, 224), (160, 97), (33, 64)])
def test_map_has_stride_32_and_covers_odd_sizes(net, high, wide):
    maps = net.features(torch.zeros(2, 3, high, wide))
    assert maps.shape == (2, 1280, -(-high // 32), -(-wide // 32))
    assert net(torch.zeros(1, 3, high, wide)).shape == (1, 1000)


def test_only_blocks_of_one_shape_add_their_input(net):
    adds = [block.adds for stage in net.blocks for block in stage]
    assert adds == [i in (2, 4, 6, 7, 9, 10, 12, 13, 14) for i in range(16)]


def test_pixels_are_centred_on_127():
    images = np.array([0, 127, 255], np.uint8).reshape(1, 1, 1, 3)
    assert normalised(images)[0, :, 0, 0].tolist() == [-127 / 128, 0.0, 1.0]


def test_loading_is_strict_and_gives_the_same_network(net, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(to_published(net.state_dict()), path)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    loaded = load_efficientnet(path)
    torch.testing.assert_close(loaded(pixels), net(pixels), rtol=1e-4, atol=1e-5)
    assert not loaded.training
    state = to_published(net.state_dict())
    del state["_blocks.4._bn1.weight"]
    torch.save(state, path)
    with pytest.raises(BadInput, match=r"net\.pth: .*_blocks\.4\._bn1\.weight"):
        load_efficientnet(path)


def test_pickles_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    path = tmp_path / "net.pth"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BadInput, match="not EfficientNet-Lite0 weights"):
        load_efficientnet(path)
    assert not (tmp_path / "written").exists()
