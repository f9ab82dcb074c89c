import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from intarsia.errors import BadInput
from intarsia.features.s3d import LAYOUTS, S3D, SIZES, load_s3d
from intarsia.features.s3d_text import (
    Sentences,
    Words,
    kylemin_pixels,
    milnce_pixels,
    sentences_of,
    torchvision_pixels,
)
from intarsia.objectives import mil_nce
from intarsia.weights.files import write_weights
from intarsia.weights.pickles import read_words


@pytest.mark.parametrize(
    ("size", "entries", "parameters"), [("kinetics", 464, 8_320_048), ("milnce", 537 - 5, 9_670_800)]
)
def test_published_sizes(size, entries, parameters):
    with torch.device("meta"):
        net = S3D(SIZES[size])
    assert len(net.state_dict()) == entries
    assert sum(x.numel() for x in net.parameters()) == parameters
    assert net.width == 1024


def test_published_names():
    with torch.device("meta"):
        kinetics = S3D(SIZES["kinetics"]).state_dict()
        theirs = {x: LAYOUTS[x].to_theirs(kinetics) for x in ("torchvision", "kylemin")}
        theirs["milnce"] = LAYOUTS["milnce"].to_theirs(S3D(SIZES["milnce"]).state_dict())
    assert theirs["milnce"]["conv1.conv1.weight"].shape == (64, 24, 2, 4, 4)
    assert theirs["milnce"]["gating.fc.weight"].shape == (192, 192)
    assert theirs["milnce"]["mixed_5c.conv_b1_b.conv2.weight"].shape == (384, 384, 3, 1, 1)
    assert theirs["torchvision"]["features.15.branch3.1.0.weight"].shape == (128, 832, 1, 1, 1)
    assert theirs["torchvision"]["classifier.1.weight"].shape == (400, 1024, 1, 1, 1)
    chain = (("base.", "features."), (".conv_s.", ".0.0."), (".bn_s.", ".0.1."), (".conv_t.", ".1.0."))
    chain += ((".bn_t.", ".1.1."), (".conv.", ".0."), (".bn.", ".1."), ("fc.0.", "classifier.1."))
    renamed = set()
    for key in theirs["kylemin"]:
        for old, new in chain:
            key = key.replace(old, new)
        renamed.add(key.replace("branch0.0.", "branch0.") if "branch0.0." in key else key)
    assert renamed == set(theirs["torchvision"])


def small(size, **changes):
    torch.manual_seed(0)
    return S3D(replace(SIZES[size], width_divisor=16, **changes)).eval()


def test_vectors_of_small_pictures_and_short_clips():
    net = small("kinetics")
    assert net.vectors(torch.randn(2, 3, 8, 112, 112)).shape == (2, net.width)
    assert small("milnce").features(torch.rand(1, 3, 30, 64, 50)).shape[2:] == (4, 2, 2)
    with pytest.raises(BadInput, match=r"7 frames, 64 x 50 pixels; all three must be even"):
        small("milnce").features(torch.rand(1, 3, 7, 64, 50))
    with pytest.raises(BadInput, match="without a classifier"):
        small("milnce")(torch.rand(1, 3, 8, 64, 64))
    with pytest.raises(BadInput, match="without a space"):
        net.embed(torch.rand(1, net.width))


def test_space_to_depth_is_a_strided_convolution_padded_behind():
    net = small("milnce")
    kernel = net.conv1.conv.weight  # (C, 24, 2, 4, 4)
    full = kernel.view(-1, 2, 2, 2, 3, 2, 4, 4).permute(0, 4, 5, 1, 6, 2, 7, 3).reshape(-1, 3, 4, 8, 8)
    video = torch.rand(2, 3, 6, 10, 12)
    expected = functional.conv3d(functional.pad(video, (2, 4, 2, 4, 0, 2)), full, stride=2)
    found = net._stem(video)
    torch.testing.assert_close(found, functional.relu(net.conv1.bn(expected)), atol=1e-5, rtol=1e-5)
    assert found.shape[2:] == (3, 5, 6)


@pytest.mark.parametrize("size", ["kinetics", "milnce"])
def test_files_say_which_network_they_are(tmp_path, size):
    net = S3D(SIZES[size]).eval()
    layout = "kylemin" if size == "kinetics" else "milnce"
    theirs = {f"module.{key}": value for key, value in LAYOUTS[layout].to_theirs(net.state_dict()).items()}
    write_weights(tmp_path / "net.pth", theirs)
    again = load_s3d(tmp_path / "net.pth")
    assert again.config == SIZES[size]
    clip = torch.rand(1, 3, 16, 32, 32)
    assert torch.equal(again.vectors(clip), net.vectors(clip))


def test_the_trainers_stem_is_told_by_its_shape(tmp_path):
    net = S3D(replace(SIZES["milnce"], stem="whole")).eval()
    write_weights(tmp_path / "net.pth", LAYOUTS["milnce"].to_theirs(net.state_dict()))
    assert load_s3d(tmp_path / "net.pth").config.stem == "whole"
    write_weights(tmp_path / "other.pth", {"conv1.weight": torch.ones(1)})
    with pytest.raises(BadInput, match=r"other\.pth: no S3D in it"):
        load_s3d(tmp_path / "other.pth")


def test_text_branch():
    net = Sentences(5, 3, 4, 2)
    state = {f"text_module.{key}": value for key, value in net.state_dict().items()}
    ids = torch.tensor([[1, 2, 0], [0, 0, 0]])
    assert torch.equal(sentences_of(state | {"fc.weight": torch.ones(1)})(ids), net(ids))
    assert not net.word_embd.weight.requires_grad
    with pytest.raises(BadInput, match="text branch of nothing"):
        sentences_of({"fc.weight": torch.ones(1)})


def test_words_are_lowered_dropped_and_cut(tmp_path):
    names = ["don't", "stop", "now"]
    np.save(tmp_path / "words.npy", np.array(names))
    np.save(tmp_path / "objects.npy", np.array(names, dtype=object))
    for name in ("words", "objects"):
        words = Words.read(tmp_path / f"{name}.npy")
        assert words.ids(["DON'T stop, never now stop", "what?"], 3).tolist() == [[1, 2, 3], [0, 0, 0]]


def test_dictionaries_run_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object))
    with pytest.raises(BadInput, match="refused: it wants"):
        read_words(tmp_path / "evil.npy")
    assert not (tmp_path / "written").exists()
    np.save(tmp_path / "numbers.npy", np.arange(3))
    with pytest.raises(BadInput, match="not a row of strings"):
        read_words(tmp_path / "numbers.npy")
    (tmp_path / "cut.npy").write_bytes(pickle.dumps([1]))
    with pytest.raises(BadInput, match=r"not a whole \.npy file"):
        read_words(tmp_path / "cut.npy")


def test_mil_nce_is_the_loop():
    generator = torch.Generator().manual_seed(0)
    videos, sentences = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (3, 6))
    total = 0.0
    for i in range(3):
        own = [float(videos[i] @ sentences[2 * i + c]) for c in range(2)]
        every = [float(videos[i] @ x) for x in sentences]
        every += [float(v @ sentences[2 * i + c]) for v in videos for c in range(2)]
        total += np.log(np.exp(every).sum()) - np.log(np.exp(own).sum())
    assert mil_nce.score(videos, sentences).item() == pytest.approx(total / 3, abs=1e-5)


def test_ranges_of_pixels():
    frames = np.zeros((2, 300, 400, 3), np.uint8)
    frames[..., 0] = 255
    assert milnce_pixels(frames).shape == kylemin_pixels(frames).shape == (3, 2, 300, 400)
    assert milnce_pixels(frames)[:, 0, 0, 0].tolist() == [1, 0, 0]
    assert kylemin_pixels(frames)[:, 0, 0, 0].tolist() == [1, -1, -1]
    found = torchvision_pixels(frames)
    assert found.shape == (3, 2, 224, 224)
    assert found[:, 0, 0, 0].tolist() == pytest.approx([0.56784 / 0.22803, -0.394666 / 0.22145, -0.37645 / 0.216989])
