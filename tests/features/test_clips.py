from dataclasses import replace

import numpy as np
import pytest
import torch

from intarsia.data.fetch import fetched
from intarsia.data.formats.files import sha256_of
from intarsia.errors import BadInput
from intarsia.features.clips import CLIP_EXTRACTORS, ClipExtractor, bilinear, open_clip_extractor
from intarsia.features.extractor import typed
from intarsia.features.s3d import LAYOUTS, S3D, SIZES
from intarsia.features.s3d_text import kylemin_pixels, milnce_pixels, torchvision_pixels


def films(count, ticks, high=60, wide=84):
    return np.random.default_rng(0).integers(0, 256, (count, ticks, high, wide, 3), dtype=np.uint8)


def shrunk(extractor, raw):
    wanted = raw[:, list(extractor.sampling.ticks)]
    return np.stack([np.stack([extractor.shrink(x) for x in clip]) for clip in wanted])


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Random narrow networks under the three sets of public names."""
    for size, config in SIZES.items():
        monkeypatch.setitem(SIZES, size, replace(config, width_divisor=16))
    root, found = tmp_path, {}
    for layout, rules in LAYOUTS.items():
        torch.manual_seed(1)
        net = S3D(SIZES["milnce" if layout == "milnce" else "kinetics"]).eval()
        for weight in net.parameters():
            if weight.ndim == 5:  # so that what comes out is neither tiny nor the same for all pictures
                torch.nn.init.kaiming_normal_(weight)
        path = root / f"{layout}.pth"
        torch.save(rules.to_theirs(net.state_dict()), path)
        found[layout] = path, net
    return found


def test_s3d_sees_the_pixels_that_its_weights_were_trained_on(weights):
    raw = films(2, 6)
    for layout, (path, net) in weights.items():
        extractor = open_clip_extractor("s3d", weights=str(path), size=56, frames=6, fps="8", device="cpu")
        assert isinstance(extractor, ClipExtractor)
        assert extractor.provenance.settings == {"layout": layout, "size": "56", "fps": "8", "frames": "6"}
        assert (extractor.provenance.width, extractor.provenance.weights) == (64, sha256_of(path))
        found = extractor(shrunk(extractor, raw))
        if layout == "torchvision":
            video = torch.stack([torchvision_pixels(x, 64, 56) for x in raw])
        elif layout == "kylemin":
            scaled = np.stack([[bilinear(x, 64, 90)[4:60, 17:73] for x in clip] for clip in raw])
            video = torch.stack([kylemin_pixels(x) for x in scaled])
        else:
            video = torch.stack([milnce_pixels(x) for x in shrunk(extractor, raw[:, :, :, 12:72])])
        with torch.inference_mode():
            expected = net.vectors(video)
        scale = expected.std()
        assert scale > 1e-6  # gates halve everything some ten times
        torch.testing.assert_close(torch.from_numpy(found) / scale, expected / scale, atol=1e-4, rtol=1e-4)


def test_s3d_needs_weights_that_fit(weights, tmp_path):
    with pytest.raises(BadInput, match="name the file of its weights"):
        open_clip_extractor("s3d")
    with pytest.raises(BadInput, match="must be even"):
        open_clip_extractor("s3d", weights=str(weights["milnce"][0]), frames=15)
    with pytest.raises(BadInput, match="frames 4 "):
        open_clip_extractor("s3d", weights=str(weights["kylemin"][0]), frames=4)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=r"other\.pth: no S3D in it"):
        open_clip_extractor("s3d", weights=str(tmp_path / "other.pth"))


def test_grid_tells_motion_and_forgets_nothing_of_the_mean():
    extractor = open_clip_extractor("grid", device="cpu")
    still = films(1, 1).repeat(30, 1)
    moving = np.zeros((1, 30, 60, 84, 3), np.uint8)
    for tick in range(30):
        moving[0, tick, 20:40, tick : tick + 20] = 255
    there, back = (extractor(shrunk(extractor, x)) for x in (moving, moving[:, ::-1]))
    half = extractor.provenance.width // 2
    assert not extractor(shrunk(extractor, still))[:, half:].any()
    # ticks 5, 15 and 25 reversed are 24, 14 and 4: nearly the same pictures, in the other order
    change = np.abs(there[:, half:]).mean()
    assert np.abs(there[:, :half] - back[:, :half]).mean() < 0.2 * change
    assert np.corrcoef(there[0, half:], back[0, half:])[0, 1] < -0.8


def test_clips_do_not_depend_on_their_neighbours():
    extractor = open_clip_extractor("grid", device="cpu")
    clips = shrunk(extractor, films(3, 30))
    np.testing.assert_allclose(extractor(clips)[1], extractor(clips[1:2])[0], atol=1e-5)


def test_frames_are_averaged():
    try:
        fetched("light", "efficientnet-lite0.pth")
    except BadInput:
        pytest.skip("the part light was not fetched")
    extractor = open_clip_extractor("frames", look=2, size=64, frames=4, device="cpu")
    assert extractor.sampling.ticks == (1, 3)
    clips = shrunk(extractor, films(2, 4))
    single = extractor(clips.reshape(4, 1, 64, 64, 3)).reshape(2, 2, -1)
    found = extractor(clips)
    assert found.shape == (2, extractor.provenance.width) == (2, 1280)
    np.testing.assert_allclose(found, single.mean(1), atol=1e-5)


def test_options_are_typed_and_checked():
    assert typed("grid", {"cells": "3", "fps": "30000/1001"}, CLIP_EXTRACTORS) == {"cells": 3, "fps": "30000/1001"}
    with pytest.raises(BadInput, match="no extractor 'resnet'"):
        open_clip_extractor("resnet")
    with pytest.raises(BadInput, match="extractor grid has no option 'depth'"):
        open_clip_extractor("grid", depth=3)
    with pytest.raises(BadInput, match="fps 'fast' is no rate"):
        open_clip_extractor("grid", fps="fast")
