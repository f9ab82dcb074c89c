"""Linear maps by oneDNN give what torch's own give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from intarsia.parts import linear
from intarsia.parts.linear import Linear, laid_out

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def made(rows: int = 300) -> tuple[Linear, torch.Tensor]:
    torch.manual_seed(0)
    return Linear(384, 768), torch.randn(rows, 384)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What oneDNN was asked to do behind each product."""
    seen: list[str] = []
    real = linear._multiply

    def multiply(x, weight, bias=None, then="none"):
        seen.append(then)
        return real(x, weight, bias, then)

    monkeypatch.setattr(linear, "_multiply", multiply)
    return seen


@needs_onednn
def test_gradients_are_those_of_torch(calls: list[str]) -> None:
    layer, x = made()
    x.requires_grad_()
    weigh = torch.randn(300, 768)
    parameters = x, layer.weight, layer.bias
    found = torch.autograd.grad((layer(x) * weigh).sum(), parameters)
    wanted = torch.autograd.grad((F.linear(x, layer.weight, layer.bias) * weigh).sum(), parameters)
    assert len(calls) == 3
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-5)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        assert a.is_contiguous()


@needs_onednn
@pytest.mark.parametrize("half", [False, True])
def test_laid_out_weights_give_the_same(calls: list[str], half: bool) -> None:
    layer, x = made()
    auto = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with torch.inference_mode(), auto:
        wanted = layer(x), layer.activated(x, F.gelu), F.linear(x, layer.weight[:700], layer.bias[:700])
        calls.clear()
        with laid_out(layer):
            found = layer(x), layer.activated(x, F.gelu), linear.product(x, layer.weight[:700], layer.bias[:700])
    assert calls == ["none", "gelu", "none"]
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype == (torch.bfloat16 if half else torch.float32)
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2 if half else 1e-5)


@needs_onednn
def test_changed_weights_count_in_the_next_context() -> None:
    layer, x = made()
    with torch.inference_mode(), laid_out(layer):
        before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    with torch.inference_mode(), laid_out(layer):
        after = layer(x)
    torch.testing.assert_close(after - layer.bias, 2 * (before - layer.bias), rtol=0, atol=1e-5)


@needs_onednn
def test_a_matrix_and_its_transpose_are_told_apart(calls: list[str]) -> None:
    torch.manual_seed(0)
    layer, x = Linear(512, 512), torch.randn(300, 512)
    with torch.inference_mode(), laid_out(layer):
        found = layer(x), linear.product(x, layer.weight.t(), layer.bias)
        wanted = F.linear(x, layer.weight, layer.bias), F.linear(x, layer.weight.t(), layer.bias)
    assert len(calls) == 2
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_torch_serves_the_rest(calls: list[str]) -> None:
    layer, x = made()
    few, small = x[:8], Linear(16, 16)
    with laid_out(layer), torch.inference_mode():
        assert torch.equal(layer(few), F.linear(few, layer.weight, layer.bias))
        small(torch.randn(100, 16))
        layer(x[None])
        layer.double()(x.double())
    assert not calls
