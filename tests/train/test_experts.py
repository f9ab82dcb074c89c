"""Experts: routing and capacity against a loop over rows, and two processes that share the experts against one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import two_processes
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from intarsia.errors import BadInput
from intarsia.parts.experts import Mixture, Ranks

H, INNER, E = 6, 10, 4
CASES = [
    ("top", 1, 0.0),
    ("top", 2, 1.0),
    ("top", 2, 0.5),
    ("prototypes", 2, 1.0),
    ("prototypes", 2, 0.0),
    ("top", 4, 0.0),
]


def made(routing: Any = "top", choices: int = 2, factor: float = 0.0) -> Mixture:
    torch.manual_seed(1)
    found = Mixture(H, INNER, E, choices, routing, factor, std=0.5)
    torch.nn.init.normal_(found.up_bias)
    torch.nn.init.normal_(found.down_bias)
    return found


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, H, generator=torch.Generator().manual_seed(seed))


def slowly(mixture: Mixture, x: Tensor) -> tuple[Tensor, int]:
    """A row after the other: all first choices before all second ones."""
    groups = mixture.choices if mixture.routing == "prototypes" else 1
    probs = (x @ mixture.router.weight.T).view(len(x), groups, -1).softmax(-1)
    limit, taken, dropped, out = mixture.capacity(len(x)), [0] * E, 0, torch.zeros_like(x)
    for choice in range(mixture.choices):
        for row in range(len(x)):
            if groups > 1:
                at = int(probs[row, choice].argmax())
                expert, gate = choice * E // groups + at, probs[row, choice, at]
            else:
                expert = int(probs[row, 0].argsort(descending=True)[choice])
                gate = probs[row, 0, expert]
            if taken[expert] == limit:
                dropped += 1
                continue
            taken[expert] += 1
            inner = F.gelu(x[row] @ mixture.up[expert] + mixture.up_bias[expert])
            out[row] = out[row] + gate * (inner @ mixture.down[expert] + mixture.down_bias[expert])
    return out, dropped


@pytest.mark.parametrize(("routing", "choices", "factor"), CASES)
def test_sorted_dispatch_is_the_loop_over_rows(routing: str, choices: int, factor: float) -> None:
    found = []
    for fast in (True, False):
        mixture, x = made(routing, choices, factor), rows(21, 3).requires_grad_()
        route = mixture.route(x)
        out, dropped = mixture(x, route.expert, route.gate) if fast else slowly(mixture, x)
        out.square().sum().backward()
        found.append((out, int(dropped), x.grad, *(p.grad for p in mixture.parameters())))
    assert found[0][1] == found[1][1]
    assert (found[0][1] > 0) == (0 < factor <= 1)
    for fast_, slow in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(fast_, slow, atol=1e-5, rtol=1e-5)


def test_balance_is_one_where_rows_spread_evenly_and_larger_elsewhere() -> None:
    mixture = made(choices=1)
    with torch.no_grad():
        mixture.router.weight.zero_()[:, :E] = 20 * torch.eye(E)
    even, odd = torch.eye(H)[torch.arange(40) % E], torch.eye(H)[torch.zeros(40, dtype=torch.long)]
    assert mixture.route(even).balance.item() == pytest.approx(1, abs=1e-4)
    assert mixture.route(odd).balance.item() == pytest.approx(E, abs=1e-3)


def test_the_router_keeps_float32_under_autocast() -> None:
    mixture, x = made(), rows(9, 1)
    with torch.autocast("cpu", torch.bfloat16):
        route = mixture.route(x)
    assert route.gate.dtype == torch.float32
    assert torch.equal(route.gate, mixture.route(x).gate)


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="5 choices among 4"):
        made(choices=5)
    with pytest.raises(ValueError, match="4 experts do not split into 3"):
        made("prototypes", 3)


def step(mixture: Mixture, x: Tensor) -> dict[str, Tensor]:
    """Output, dropped, gradients of the mean over two processes of each one's loss."""
    x.requires_grad_()
    route = mixture.route(x)
    out, dropped = mixture(x, route.expert, route.gate)
    out.square().sum().backward()
    grads = {name: p.grad for name, p in mixture.named_parameters() if p.grad is not None}
    grads = {name: grad.to_local() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}
    return {"out": out.detach(), "dropped": dropped, "x": x.grad, **grads}


def _rank(rank: int, folder: Path) -> None:
    with pytest.raises(BadInput, match="3 experts cannot be shared out over 2 processes"):
        Mixture(H, INNER, 3).spread(Ranks(init_device_mesh("cpu", (2,))))
    for number, case in enumerate(CASES):
        mixture = made(*case)
        mixture.spread(Ranks(init_device_mesh("cpu", (2,))))
        assert isinstance(mixture.up, DTensor) and len(mixture.up.to_local()) == E // 2
        found = step(mixture, rows(13 + 6 * rank, 5 + rank))  # the second process has more rows
        save_file({k: v.contiguous() for k, v in found.items()}, folder / f"{number}-{rank}.safetensors")


def test_two_processes_that_share_the_experts_are_one(tmp_path: Path) -> None:
    two_processes(_rank, tmp_path)
    for number, case in enumerate(CASES):
        one, halves = made(*case), [load_file(tmp_path / f"{number}-{rank}.safetensors") for rank in range(2)]
        for rank, half in enumerate(halves):
            alone = step(one, rows(13 + 6 * rank, 5 + rank))  # gradients add up over both
            for name in ("out", "dropped", "x"):
                torch.testing.assert_close(half[name], alone[name], atol=1e-5, rtol=1e-5)
        if case[2] == 0:
            both = made(*case)
            whole = step(both, torch.cat([rows(13, 5), rows(19, 6)]))
            torch.testing.assert_close(torch.cat([h["out"] for h in halves]), whole["out"], atol=1e-5, rtol=1e-5)
        for name in ("up", "up_bias", "down", "down_bias"):
            shared = torch.cat([half[name] for half in halves])
            torch.testing.assert_close(shared, one.get_parameter(name).grad / 2, atol=1e-5, rtol=1e-5)
        routers = torch.stack([half["router.weight"] for half in halves]).mean(0)
        torch.testing.assert_close(routers, one.router.weight.grad / 2, atol=1e-5, rtol=1e-5)
