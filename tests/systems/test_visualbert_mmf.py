"""MMF's NLVR2 of VisualBERT: each picture read by itself with the sentence, its head against a slow reading of MMF's code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_single_stream import REGIONS, made, system

from intarsia.errors import BadInput
from intarsia.pack import pack
from intarsia.systems.visualbert import VisualBERT
from intarsia.tuned import start


@torch.no_grad()
def test_each_picture_is_read_by_itself_and_both_pooled_vectors_are_judged() -> None:
    tuned = start(system("visualbert"), VisualBERT.finetune["nlvr2_mmf"], "nlvr2_mmf").eval()
    assert tuned.system.config.train_pooler and tuned.system.pooler.dense.weight.requires_grad
    pairs = []
    for number, answer in ((1, "True"), (3, "False")):
        pictures = (made(number).pictures[0], made(number + 1, regions=3).pictures[0])
        pairs.append(replace(made(number), pictures=pictures, answers=((answer, 1.0),)))
    draw, rng = (lambda: pairs[0]), np.random.default_rng(0)
    examples = [x for pair in pairs for x in tuned.documents(pair, "nlvr2_mmf", rng, draw)]
    assert [len(x.regions) for x in examples] == [REGIONS, 3] * 2
    assert not any(x.regions.segment_ids.any() for x in examples)
    assert len({tuple(x.text.ids) for x in examples[:2]}) == 1
    losses, _ = tuned(pack(examples))
    found = tuned.predict(pack(examples))
    head, wrong = tuned.head.state_dict(), 0.0
    for i, label in enumerate((1, 0)):
        pooled = [tuned.system.encode(pack([x])).pooled[0] for x in examples[2 * i : 2 * i + 2]]
        x = head["1.dense.weight"] @ torch.cat(pooled) + head["1.dense.bias"]
        x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        x = (x - x.mean()) / (x.var(unbiased=False) + 1e-12).sqrt() * head["1.norm.weight"] + head["1.norm.bias"]
        logits = head["2.weight"] @ x + head["2.bias"]
        torch.testing.assert_close(found[i], logits, atol=1e-5, rtol=1e-4)
        wrong -= float(logits.log_softmax(0)[label]) / 2
    assert abs(float(losses["nlvr2_mmf"]) - wrong) < 1e-5
    with pytest.raises(BadInput, match="has 1 pictures, needs 2"):
        tuned.forms(made(1))
