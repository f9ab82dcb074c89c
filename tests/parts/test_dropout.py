"""Dropout on the CPU: rates, factors, gradients, and that it follows the generator."""

from __future__ import annotations

import pytest
import torch

from intarsia.parts.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_numbers_are_dropped_at_the_rate_and_the_rest_scaled(p: float) -> None:
    layer, x = Dropout(p), torch.full((400, 333), 2.0, requires_grad=True)
    torch.manual_seed(0)
    out = layer(x)
    kept = out != 0
    assert abs((~kept).float().mean().item() - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-15
    assert out[kept].unique().tolist() == pytest.approx([2 / (1 - p)], rel=1e-4)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad * 2, out.detach())
    torch.manual_seed(0)
    assert torch.equal(layer(x), out)
    assert not torch.equal(layer(x), out)


def test_nothing_is_dropped_in_evaluation_or_at_zero() -> None:
    x = torch.randn(5, 7)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert Dropout(0.1)(x.bfloat16()).dtype == torch.bfloat16
