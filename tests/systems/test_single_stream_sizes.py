"""Single-stream systems at odd sizes, batches of one, without regions, at one word and at the longest documents they take."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from test_single_stream import made, system

from intarsia.batch import Sample
from intarsia.errors import TooLong
from intarsia.pack import pack
from intarsia.systems import find

LONGEST = {
    "visualbert": (125, 30),
    "vl_bert": (31, 30),
    "unicoder_vl": (42, 100),
    "b2t2": (61, 30),
    "vlp": (20, 100),
    "imagebert": (41, 100),
    "oscar": (32, 50),
}
"""Words and regions of a document that is as long as can be; VL-BERT's and Oscar's longer ones are cut."""
ODD = {"hidden_size": 30, "num_attention_heads": 5, "num_hidden_layers": 3, "intermediate_size": 17}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bare(sample: Sample) -> Sample:
    """Without regions."""
    picture = sample.pictures[0]
    none: dict[str, Any] = {x: getattr(picture, x)[:0] for x in ("features", "boxes", "scores", "probs", "tags")}
    return dataclasses.replace(sample, pictures=(dataclasses.replace(picture, **none),))


@pytest.mark.parametrize("name", list(LONGEST))
def test_any_size_any_document(name: str) -> None:
    words, regions = LONGEST[name]
    torch.manual_seed(0)
    odd = system(name, **ODD, **STILL).train()
    goal = next(iter(find(name).recipes["base"].mix.share))
    samples = [
        made(0),
        bare(made(1)),
        made(2, regions=1, length=1),
        made(3, regions=regions, length=words),
        bare(made(4, length=1)),
    ]

    def hide(i: int, seed: int = 0) -> Any:
        return odd.hide(samples[i], goal, np.random.default_rng([i, seed]), lambda: made(9))

    together = pack([hide(i) for i in range(len(samples))])
    losses, encoded = odd(together)
    assert all(torch.isfinite(x) for x in losses.values()), losses
    sum(losses.values(), torch.zeros(())).backward()
    assert all(torch.isfinite(p.grad).all() for p in odd.parameters() if p.grad is not None)
    for i in range(len(samples)):
        for seed in range(3):
            found, alone = odd(pack([hide(i, seed)]))
            assert all(torch.isfinite(x) for x in found.values()), (i, found)
            if seed == 0:
                torch.testing.assert_close(alone.pooled[0], encoded.pooled[i], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["unicoder_vl", "b2t2", "imagebert"])
def test_a_word_more_is_too_long(name: str) -> None:
    words, regions = LONGEST[name]
    assert not system(name).lay_out(made(3, regions, words)).text.cut
    with pytest.raises(TooLong, match=rf"sample s3: {words + 1} pieces of text, the limit is {words}"):
        system(name).lay_out(made(3, regions, words + 1))
