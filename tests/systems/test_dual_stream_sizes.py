"""Dual-stream systems at odd sizes, batches of one, without regions, at one word and at the longest documents they take."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.batch import Example, Picture, Sample
from intarsia.errors import BadInput, TooLong
from intarsia.pack import pack
from intarsia.system import System, fit_config
from intarsia.systems import find
from intarsia.text import SPECIALS, Vocab

WORDS = [f"w{i}" for i in range(40)] + ["red", "cup", "dog", "on", "a"]
VOCAB = Vocab([*SPECIALS, *WORDS])
WIDTH, CLASSES = 7, 6
LONGEST = {"vilbert": (34, 50), "lxmert": (18, 36), "ernie_vil": (34, 100)}
"""Words and regions of a long document; LXMERT's longer ones are cut."""
STILL = {x: 0.0 for x in ("hidden_dropout_prob", "attention_probs_dropout_prob")}
ODD: dict[str, Any] = {"hidden_size": 30, "num_attention_heads": 5, "num_hidden_layers": 3, "intermediate_size": 17}
STREAMS: dict[str, Any] = {
    "v_hidden_size": 21,
    "v_num_hidden_layers": 4,
    "v_num_attention_heads": 3,
    "v_intermediate_size": 11,
    "v_hidden_dropout_prob": 0.0,
    "v_attention_probs_dropout_prob": 0.0,
    "bi_hidden_size": 28,
    "bi_num_attention_heads": 7,
    "v_biattention_id": (1, 3),
    "t_biattention_id": (0, 2),
}
MORE: dict[str, dict[str, Any]] = {
    "vilbert": STREAMS,
    "lxmert": {"r_layers": 1, "x_layers": 3, "answers": ("yes",), "num_qa_labels": 1},
    "ernie_vil": STREAMS,
}


def made(number: int, regions: int = 5, length: int = 6) -> Sample:
    rng = np.random.default_rng([number, 7])
    low = rng.random((regions, 2)) / 2
    picture = Picture(
        name=f"p{number}",
        features=rng.standard_normal((regions, WIDTH)).astype(np.float32),
        boxes=np.concatenate([low, low + 0.4], 1).astype(np.float32).reshape(-1, 4),
        width=100 + number,
        height=90,
        scores=rng.random(regions).astype(np.float32),
        labels=rng.integers(0, CLASSES, regions),
        probs=rng.dirichlet(np.ones(CLASSES), regions).astype(np.float32).reshape(-1, CLASSES),
        attributes=rng.integers(0, 4, regions),
        attribute_scores=rng.random(regions).astype(np.float32),
    )
    return Sample(f"s{number}", (" ".join(rng.choice(WORDS, length)),), (picture,), answers=(("yes", 1.0),))


def system(name: str) -> System:
    cls = find(name)
    config = fit_config(cls.recipes["base"].config, len(VOCAB), WIDTH, CLASSES, 4)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return cls(dataclasses.replace(config, **(ODD | STILL | MORE[name])), VOCAB).train()


@pytest.mark.parametrize("name", list(LONGEST))
def test_any_size_any_document(name: str) -> None:
    words, regions = LONGEST[name]
    odd = system(name)
    bare = [] if name == "lxmert" else [made(1, 0), made(4, 0, 1)]  # LXMERT asks of every region
    samples = [made(0), made(2, 1, 1), made(3, regions, words), *bare]
    for goal in find(name).recipes["base"].mix.share:

        def hide(i: int, seed: int = 0, goal: str = goal) -> Example:
            return odd.hide(samples[i], goal, np.random.default_rng([i, seed]), lambda: made(9))

        losses, encoded = odd(dataclasses.replace(pack([hide(i) for i in range(len(samples))]), read=None))
        assert all(torch.isfinite(x) for x in losses.values()), losses
        sum(losses.values(), torch.zeros(())).backward()
        assert all(torch.isfinite(p.grad).all() for p in odd.parameters() if p.grad is not None)
        for i in range(len(samples)):
            for seed in range(3):
                found, alone = odd(pack([hide(i, seed)]))
                assert all(torch.isfinite(x) for x in found.values()), (i, found)
                if seed == 0:
                    torch.testing.assert_close(alone.pooled[0], encoded.pooled[i], atol=2e-5, rtol=0)


def test_lxmert_needs_a_region_and_cuts_texts() -> None:
    odd = system("lxmert")
    with pytest.raises(BadInput, match="sample s1: obj needs at least one region"):
        odd.hide(made(1, 0), "obj", np.random.default_rng(0), lambda: made(9))
    text = odd.lay_out(made(3, 2, 25)).text
    assert text is not None and (len(text), text.cut) == (20, 7)


@pytest.mark.parametrize("name", ["vilbert", "ernie_vil"])
def test_a_word_more_is_too_long(name: str) -> None:
    words, regions = LONGEST[name]
    with pytest.raises(TooLong, match=rf"sample s3: {words + 1} pieces of text, the limit is {words}"):
        system(name).lay_out(made(3, regions, words + 1))
