"""The VQ-VAE: straight-through gradient, moving codes, codes that begin again, what is learnt, files; sources with codes of anybody's codec."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from intarsia.batch import Picture, Sample
from intarsia.errors import BadInput
from intarsia.features.codes import WithCodes, psnr
from intarsia.features.vq import VQ, Fit, VQNumbers, fit, lost, read_pictures, read_vq, write_vq
from intarsia.worlds.product_source import ProductSource

SMALL = VQNumbers(side=16, cell=4, codes=24, width=6, channels=12, blocks=1, decay=0.9)


def pictures(count: int, seed: int = 0) -> Any:
    """Two halves of one of four colours each."""
    rng = np.random.default_rng(seed)
    colours = np.array([[240, 30, 30], [30, 200, 60], [40, 60, 220], [245, 245, 240]])
    left, right = colours[rng.integers(4, size=(2, count))]
    halves = np.stack([left, right], 1)[:, None].repeat(16, 1).repeat(8, 2)
    return (halves + rng.integers(-8, 9, halves.shape)).clip(0, 255).astype(np.uint8)


def test_the_gradient_goes_straight_through_and_pulls_outputs_to_their_codes() -> None:
    torch.manual_seed(0)
    vq = VQ(SMALL)
    vq.codebook.normal_()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    z = vq.encoder(x).detach().requires_grad_()
    flat = z.movedim(1, -1).reshape(-1, SMALL.width)
    ids = torch.stack([(vq.codebook - row).square().sum(1).argmin() for row in flat.detach()])
    codes = vq.codebook[ids]
    q = codes.view(2, 4, 4, -1).movedim(-1, 1).detach().requires_grad_()
    loss = F.mse_loss(vq.decoder(q), x)
    loss.backward()
    commitment = 0.25 * (flat - codes).square().mean()
    commitment.backward()
    assert q.grad is not None and z.grad is not None
    found = vq(x)
    assert torch.equal(found.ids.flatten(), ids)
    assert found.loss.item() == pytest.approx(loss.item() + commitment.item(), rel=1e-5)
    given = torch.autograd.grad(found.loss, found.outputs)[0].view(2, 4, 4, -1).movedim(-1, 1)
    torch.testing.assert_close(given, q.grad + z.grad, atol=1e-7, rtol=1e-4)


def test_codes_move_to_the_mean_of_what_takes_them_and_rare_ones_begin_again() -> None:
    vq, rng = VQ(dataclasses.replace(SMALL, decay=0.99, restart=0.05)), torch.Generator().manual_seed(0)
    vq.codebook.copy_(torch.randn(24, 6, generator=rng))
    vq.counts.fill_(10.0)
    vq.sums.copy_(vq.codebook * 10)
    before = vq.codebook.clone()
    outputs = torch.randn(200, 6, generator=rng)
    ids = torch.randint(0, 20, (200,), generator=rng)  # nothing takes the last four
    assert vq.move_codes(outputs, ids, rng) == 0
    for code in range(24):
        mine = outputs[ids == code]
        count, total = 0.99 * 10 + 0.01 * len(mine), 0.99 * 10 * before[code] + 0.01 * mine.sum(0)
        torch.testing.assert_close(vq.codebook[code], total / count)
    moves, again = 1, 0
    while not again:
        moves, again = moves + 1, vq.move_codes(outputs, ids, rng)
    left = 0.99**moves
    assert again == 4 and 10 * left < 0.05 * 200 / 24 < 10 * left / 0.99
    for code in range(20, 24):
        assert (vq.codebook[code] - outputs).abs().sum(1).min() < 1e-5
    for code in range(20):
        mine = outputs[ids == code]
        total = left * 10 * before[code] + (1 - left) * mine.sum(0)
        torch.testing.assert_close(
            vq.codebook[code], total / (left * 10 + (1 - left) * len(mine)), atol=1e-4, rtol=1e-3
        )


def test_held_out_pictures_come_back_near_and_files_keep_all(tmp_path: Path) -> None:
    train, held = pictures(200), pictures(60, 1)
    steps: list[int] = []
    vq = fit(train, SMALL, Fit(steps=250, batch=16, lr=4e-3), "halves", tell=lambda step, *_: steps.append(step))
    found = lost(vq, held, train)
    assert steps == [100, 200, 250]
    assert found.psnr > found.of_mean + 8 and found.used > 3 and 1 < found.perplexity <= found.used + 1e-6
    assert found.psnr == pytest.approx(psnr(held, vq.decode(vq.encode(list(held)))).mean())
    codes = vq.encode(list(held))
    assert codes.shape == (60, 16) and codes.dtype == np.int64 and vq.length == 16
    large = vq.decode(vq.encode([held[3].repeat(2, 0).repeat(2, 1)]))
    assert psnr(held[3:4], large)[0] > found.of_mean + 6, "any size"
    write_vq(tmp_path / "vq.safetensors", vq)
    again = read_vq(tmp_path / "vq.safetensors")
    assert again.about == "halves" and again.numbers == SMALL
    assert np.array_equal(again.encode(list(held)), codes) and np.array_equal(again.decode(codes), vq.decode(codes))
    same = fit(train, SMALL, Fit(steps=20, batch=8))
    assert torch.equal(same.codebook, fit(train, SMALL, Fit(steps=20, batch=8)).codebook)


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    for numbers in ({"cell": 3}, {"side": 20, "cell": 8}, {"cell": 0}, {"codes": 0}):
        with pytest.raises(BadInput, match="vq: "):
            dataclasses.replace(SMALL, **numbers)
    with pytest.raises(BadInput, match="the loss of step"):
        fit(pictures(8), SMALL, Fit(steps=40, batch=4, lr=1e6))
    path = tmp_path / "x.safetensors"
    with pytest.raises(BadInput, match=r"x\.safetensors: no picture codes can be read"):
        read_vq(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(BadInput, match="`intarsia data codes` writes them"):
        read_vq(path)
    bare = Sample("s0", ("a",))
    with pytest.raises(BadInput, match="s0: has no picture"):
        read_pictures(Source([bare]), 16, 10)
    with pytest.raises(BadInput, match="no picture"):
        read_pictures(Source([]), 16, 10)


class Source:
    provenance = None

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class Mean:
    """A codec of somebody's own: the mean grey of the picture, and how many pictures it saw."""

    codes, length = 256, 1

    def __init__(self) -> None:
        self.seen = 0

    def encode(self, pictures: Any) -> Any:
        self.seen += len(pictures)
        return np.array([[int(x.mean())] for x in pictures])

    def decode(self, codes: Any) -> Any:
        return np.asarray(codes, np.uint8).reshape(-1, 1, 1, 1).repeat(3, 3)


def shown(name: str, grey: int) -> Picture:
    none = np.zeros((0, 4), np.float32)
    return Picture(name, none, none, pixels=lambda: np.full((4, 5, 3), grey, np.uint8))


def test_every_picture_is_encoded_once_by_any_codec() -> None:
    samples = [Sample(f"s{i}", ("a",), (shown(f"p{i // 2}", 10 * (i // 2)),)) for i in range(10)] + [
        Sample("t", ("b",))
    ]
    codec = Mean()
    source = WithCodes(Source(samples), codec, batch=2)
    assert codec.seen == 5 and len(source) == 11 and source.provenance is None
    assert [source[i].pictures[0].codes.tolist() for i in range(10)] == [[10 * (i // 2)] for i in range(10)]
    assert source[10] == samples[10]
    products = pickle.loads(pickle.dumps(WithCodes(ProductSource(count=3), Mean())))
    assert products[1].pictures[0].codes.tolist() == [int(products[1].pictures[0].pixels().mean())]


def test_a_codec_that_breaks_its_promise_is_refused() -> None:
    source = Source([Sample("s", ("a",), (shown("p", 200),))])
    for changed, said in (
        ({"length": 2}, r"picture p: its codec gave int64 of shape \(1, 1\)"),
        ({"codes": 100}, "picture p: codes from 200 to 200, the codec has 100"),
        ({"encode": lambda self, x: np.zeros((1, 1))}, "gave float64"),
    ):
        with pytest.raises(BadInput, match=said):
            WithCodes(source, type("Other", (Mean,), changed)())
    with pytest.raises(BadInput, match="sample s: picture p has no pixels"):
        WithCodes(Source([Sample("s", ("a",), (dataclasses.replace(shown("p", 1), pixels=None),))]), Mean())


def test_what_cannot_be_read_can_be_left_to_the_loader() -> None:
    bad = Sample("bad", ("a",), (dataclasses.replace(shown("p", 1), pixels=None),))
    source = WithCodes(Source([bad, Sample("good", ("a",), (shown("q", 7),))]), Mean(), on_error="skip")
    with pytest.raises(BadInput, match="sample bad: picture p has no pixels"):
        source[0]
    assert source[1].pictures[0].codes.tolist() == [7]
