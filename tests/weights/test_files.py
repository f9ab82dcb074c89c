"""Weights files: whole or not at all, strict, and never code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from intarsia.errors import BadInput
from intarsia.systems import SYSTEMS, find
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import fill, read_weights, write_weights
from intarsia.weights.keymap import KeyMap, Tied

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.bin"])
def test_there_and_back(tmp_path: Path, name: str) -> None:
    write_weights(tmp_path / name, STATE)
    found = read_weights(tmp_path / name)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) and found[key].dtype == STATE[key].dtype for key in STATE)
    assert [x.name for x in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("wrapper", ["model_state", "model_state_dict", "state_dict", "model"])
def test_wrappers_and_prefixes_of_data_parallel_are_taken_off(tmp_path: Path, wrapper: str) -> None:
    torch.save({wrapper: {f"module.{key}": value for key, value in STATE.items()}, "epoch": 3}, tmp_path / "x.pt")
    assert read_weights(tmp_path / "x.pt").keys() == STATE.keys()


def test_views_of_one_storage_are_read_apart(tmp_path: Path) -> None:
    both = torch.arange(4.0)
    write_weights(tmp_path / "x.safetensors", {"a": both, "b": both})
    found = read_weights(tmp_path / "x.safetensors")
    found["a"].zero_()
    assert torch.equal(found["b"], both)


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(BadInput, match="not a state dict"):
        read_weights(tmp_path / "x.pt")


def test_filling_is_strict() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    whole = {key: value.clone() + 1 for key, value in module.state_dict().items()}
    assert fill(module, whole, "here") == []
    assert all(torch.equal(value, whole[key]) for key, value in module.state_dict().items())
    without = {key: value for key, value in whole.items() if not key.startswith("1.")}
    assert fill(module, without, "here", optional=("1.",)) == ["1.weight", "1.bias"]
    with pytest.raises(BadInput, match=r"here: 2 tensors missing \(e\.g\. 1\.weight, 1\.bias\), 0 left over"):
        fill(module, without, "here")
    half = {key: value for key, value in whole.items() if key != "1.bias"}
    with pytest.raises(BadInput, match=r"1 tensors missing \(e\.g\. 1\.bias\)"):
        fill(module, half, "here", optional=("1.",))
    with pytest.raises(BadInput, match=r"1 left over \(e\.g\. more\)"):
        fill(module, {**whole, "more": torch.zeros(1)}, "here")
    with pytest.raises(BadInput, match=r"0\.weight has shape \(2, 2\), the config asks for \(3, 2\)"):
        fill(module, {**whole, "0.weight": torch.zeros(2, 2)}, "here")


RULES = KeyMap(
    ("old.{i}.{q,k}.", "new.{i}.qk."),
    ("top.", "head."),
    Tied("again.weight", "top.weight"),
)


def test_rules_work_both_ways() -> None:
    theirs = {
        "old.0.q.weight": torch.full((2, 3), 1.0),
        "old.0.k.weight": torch.full((2, 3), 2.0),
        "top.weight": torch.ones(2),
        "again.weight": torch.ones(2),
    }
    ours = RULES.to_ours(theirs)
    assert set(ours) == {"new.0.qk.weight", "head.weight"}
    assert ours["new.0.qk.weight"][:, 0].tolist() == [1, 1, 2, 2]
    back = RULES.to_theirs(ours)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"odd": torch.ones(1)}, "1 keys of another layout, e.g. odd"),
        ({"old.1.q.weight": torch.ones(2, 3)}, "new.1.qk.weight needs q, k, only q"),
        ({"top.weight": torch.ones(2), "again.weight": torch.zeros(2)}, "again.weight should be the same tensor"),
    ],
)
def test_rules_are_strict(spoil: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        RULES.to_ours(spoil)


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_every_system_goes_to_its_authors_layout_and_back(name: str) -> None:
    cls = find(name)
    config = cls.recipes["tiny"].config
    vocab = Vocab([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])
    state = cls(config, vocab).state_dict()
    again = cls.keys.to_ours(cls.keys.to_theirs(state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
