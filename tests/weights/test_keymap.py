"""Rules of weights: renamed, stacked, turned, tied, dropped; there and back; strict."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from intarsia.errors import BadInput
from intarsia.systems import SYSTEMS, find
from intarsia.text import SPECIALS, Vocab
from intarsia.weights import tf
from intarsia.weights.keymap import Drop, KeyMap, Move, Tied

RULES = KeyMap(
    ("body.{i}.{q,k}.", "layers.{i}.qk."),
    ("table.", "words."),
    Tied("head.weight", "table.weight"),
    Drop("counter"),
)


def theirs() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {f"body.{i}.{part}.weight": torch.randn(2, 3) for i in range(2) for part in "qk"}
    return state | {"table.weight": (table := torch.randn(5, 3)), "head.weight": table}


def test_there_and_back() -> None:
    ours = RULES.to_ours(theirs() | {"counter": torch.arange(3)})
    assert ours.keys() == {"layers.0.qk.weight", "layers.1.qk.weight", "words.weight"}
    assert torch.equal(ours["layers.1.qk.weight"][2:], theirs()["body.1.k.weight"])
    again = RULES.to_theirs(ours)
    assert again.keys() == theirs().keys()
    assert all(torch.equal(again[key], value) for key, value in theirs().items())


def test_strict_both_ways() -> None:
    with pytest.raises(BadInput, match=r"1 keys of another layout, e\.g\. strange"):
        RULES.to_ours(theirs() | {"strange": torch.zeros(1)})
    with pytest.raises(BadInput, match=r"needs q, k, only q are there"):
        RULES.to_ours({key: value for key, value in theirs().items() if key != "body.0.k.weight"})
    with pytest.raises(BadInput, match=r"head\.weight should be the same tensor as table\.weight"):
        RULES.to_ours(theirs() | {"head.weight": torch.zeros(5, 3)})
    with pytest.raises(BadInput, match=r"no rule writes 1 of our keys, e\.g\. odd"):
        RULES.to_theirs({"odd": torch.zeros(1)})


def test_a_layout_knows_its_files() -> None:
    assert RULES.knows(theirs() | {"counter": torch.zeros(1)})
    assert not RULES.knows(theirs() | {"strange": torch.zeros(1)})
    assert not RULES.knows(theirs() | {"head.weight": torch.zeros(5, 3)})  # should be tied
    wrapped = RULES.behind("module.")
    named = {f"module.{key}": value for key, value in theirs().items()}
    assert wrapped.knows(named) and not RULES.knows(named)
    assert wrapped.to_theirs(wrapped.to_ours(named)).keys() == named.keys()
    assert RULES.under("system.").to_ours(theirs()).keys() == {f"system.{key}" for key in RULES.to_ours(theirs())}


def test_kernels_of_tensorflow_are_turned_and_stacked() -> None:
    rules = KeyMap(*tf.dense("layer_{i}/{query,key}/", "layers.{i}.qk."), *tf.norm("norm/", "norm."))
    torch.manual_seed(1)
    state = {f"layer_0/{part}/kernel": torch.randn(3, 2) for part in ("query", "key")}
    state |= {f"layer_0/{part}/bias": torch.randn(2) for part in ("query", "key")}
    state |= {"norm/gamma": torch.randn(2), "norm/beta": torch.randn(2)}
    ours = rules.to_ours(state)
    assert torch.equal(
        ours["layers.0.qk.weight"], torch.cat([state["layer_0/query/kernel"].T, state["layer_0/key/kernel"].T])
    )
    assert torch.equal(ours["norm.weight"], state["norm/gamma"])
    again = rules.to_theirs(ours)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_layouts_of_a_system_go_there_and_back(name: str) -> None:
    cls = find(name)
    vocab = Vocab([*SPECIALS, *cls.specials, *(f"w{i}" for i in range(40))])
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": len(vocab)}
    untied = {"untied_words": True} if name == "oscar" else {}
    for layout, keys in {"authors": cls.keys, **cls.layouts}.items():
        changes = small | (untied if layout == "untied" else {})
        state = cls(replace(cls.recipes["tiny"].config, **changes), vocab).state_dict()
        written = keys.to_theirs(state)
        assert keys.knows(written)
        again = keys.to_ours(written)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[key], value) for key, value in state.items())


def test_kernels_of_convolutions_are_turned_both_ways():
    keys = KeyMap(Move("conv/weights", "conv.weight", turned=True), Move("dense/kernel", "dense.weight", turned=True))
    theirs = {"conv/weights": torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5), "dense/kernel": torch.ones(6, 7)}
    ours = keys.to_ours(theirs)
    assert torch.equal(ours["conv.weight"], theirs["conv/weights"].permute(3, 2, 0, 1))
    assert ours["dense.weight"].shape == (7, 6)
    back = keys.to_theirs(ours)
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)
