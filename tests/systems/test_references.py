"""Systems whose authors published no code, against slow references written from their descriptions: one document at a time, loops, plain torch."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intarsia.batch import Example, Sample
from intarsia.pack import pack
from intarsia.system import System, fit_config
from intarsia.systems import find
from intarsia.text import Vocab
from intarsia.worlds import WorldSource

WORLD = WorldSource(count=16)
Weights = dict[str, Tensor]


def build(name: str, **changes: Any) -> System:
    cls = find(name)
    vocab = Vocab.learn(WORLD[i].texts[0] for i in range(16))
    assert WORLD.provenance is not None
    config = fit_config(cls.recipes["base"].config, len(vocab), WORLD.provenance.width, len(WORLD.provenance.classes))
    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    torch.manual_seed(3)
    system = cls(dataclasses.replace(config, **(small | changes)), vocab).eval()
    with torch.no_grad():
        for parameter in system.parameters():  # biases and norms away from 0 and 1
            parameter += 0.1 * torch.randn_like(parameter)
    return system


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(spread + 1e-12) * w[name + ".weight"] + w[name + ".bias"]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def bert(w: Weights, x: Tensor, layers: int, heads: int) -> Tensor:
    """Post-norm layers over the rows of one document, head by head."""
    width = x.shape[1]
    size = width // heads
    for i in range(layers):
        at = f"encoder.layers.{i}."
        q, k, v = (part for part in linear(w, at + "attention.qkv", x).split(width, 1))
        mixed = []
        for h in range(heads):
            cut = slice(h * size, (h + 1) * size)
            mixed.append(torch.softmax(q[:, cut] @ k[:, cut].T / math.sqrt(size), -1) @ v[:, cut])
        x = norm(w, at + "attention_norm", x + linear(w, at + "attention.out", torch.cat(mixed, 1)))
        x = norm(w, at + "norm", x + linear(w, at + "down", gelu(linear(w, at + "up", x))))
    return x


def words(w: Weights, example: Example) -> Tensor:
    text = example.text
    assert text is not None
    x = w["words.word.weight"][text.ids] + w["words.position.weight"][text.position_ids]
    return norm(w, "words.norm", x + w["words.segment.weight"][text.segment_ids])


def location(box: Any) -> Tensor:
    x1, y1, x2, y2 = (float(value) for value in box)
    return torch.tensor([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)])


def unicoder_regions(w: Weights, example: Example) -> Tensor:
    regions, rows = example.regions, []
    assert regions is not None
    for i in range(len(regions)):
        feature = (
            torch.zeros(regions.feats.shape[1])
            if regions.masked[i]
            else torch.from_numpy(regions.feats[i].astype(np.float32))
        )
        seen = norm(
            w,
            "regions.norm",
            linear(w, "regions.feature", feature) + linear(w, "regions.location", location(regions.boxes[i])),
        )
        place = w["words.segment.weight"][1] + w["words.position.weight"][0]
        rows.append(norm(w, "words.norm", seen + w["regions.image_word"] + place))
    return torch.stack(rows)


def imagebert_regions(w: Weights, example: Example) -> Tensor:
    regions, rows = example.regions, []
    assert regions is not None and example.text is not None
    dummy = len(example.text) - 1  # the text's rows without the closing [SEP]
    for i in range(len(regions)):
        feature = (
            torch.zeros(regions.feats.shape[1])
            if regions.masked[i]
            else torch.from_numpy(regions.feats[i].astype(np.float32))
        )
        x = linear(w, "regions.feature", feature) + linear(w, "regions.location", location(regions.boxes[i]))
        rows.append(norm(w, "regions.norm", x + w["words.segment.weight"][1] + w["words.position.weight"][dummy]))
    return torch.stack(rows)


def word_losses(w: Weights, out: Tensor, example: Example) -> list[Tensor]:
    pick = example.targets["mlm"]
    found = []
    for row, label in zip(pick.rows, pick.labels, strict=True):
        x = norm(w, "word_head.transform.norm", gelu(linear(w, "word_head.transform.dense", out[row])))
        logits = w["words.word.weight"] @ x + w["word_head.bias"]
        found.append(logits.logsumexp(0) - logits[label])
    return found


def class_losses(w: Weights, out: Tensor, example: Example, head: bool) -> list[Tensor]:
    pick, found = example.targets["moc"], []
    start = len(example.text)
    for row, label in zip(pick.rows, pick.labels, strict=True):
        x = out[start + row]
        if head:
            x = norm(w, "class_head.transform.norm", gelu(linear(w, "class_head.transform.dense", x)))
        logits = linear(w, "class_head.out" if head else "class_head", x)
        found.append(logits.logsumexp(0) - logits[label])
    return found


def feature_losses(w: Weights, out: Tensor, example: Example) -> list[Tensor]:
    pick, start = example.targets["mrfr"], len(example.text)
    return [
        ((linear(w, "feature_head", out[start + row]) - torch.from_numpy(label)) ** 2).sum()
        for row, label in zip(pick.rows, pick.labels, strict=True)
    ]


def match_loss(w: Weights, out: Tensor, example: Example, goal: str) -> Tensor:
    logit = linear(w, "match_head", torch.tanh(linear(w, "pooler.dense", out[0])))[0]
    probability = torch.sigmoid(logit)
    return -torch.log(probability if int(example.targets[goal]) else 1 - probability)


def mean(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).mean() if parts else torch.zeros(())


@pytest.mark.parametrize(("name", "goal"), [("unicoder_vl", "mlm+moc+vlm"), ("imagebert", "mlm+moc+mrfr+itm")])
def test_streams_losses_and_gradients(name: str, goal: str) -> None:
    system = build(name)
    config = system.config

    def other() -> Sample:
        return WORLD[15]

    examples = [system.hide(WORLD[i], goal, np.random.default_rng([i, 1]), other) for i in range(8)]
    batch = pack(examples)
    losses, encoded = system(batch)
    w = dict(system.named_parameters())
    regions = unicoder_regions if name == "unicoder_vl" else imagebert_regions
    outs = []
    for i, example in enumerate(examples):
        x = torch.cat([words(w, example), regions(w, example)])
        out = bert(w, x, config.num_hidden_layers, config.num_attention_heads)
        text, visual = int(batch.text.packing.first[i]), int(batch.regions.packing.first[i])
        torch.testing.assert_close(
            encoded.text[text : text + len(example.text)], out[: len(example.text)], atol=2e-5, rtol=0
        )
        torch.testing.assert_close(
            encoded.visual[visual : visual + len(example.regions)], out[len(example.text) :], atol=2e-5, rtol=0
        )
        outs.append(out)
    both = list(zip(outs, examples, strict=True))
    slow = {
        "mlm": mean([x for out, e in both for x in word_losses(w, out, e)]),
        "moc": mean([x for out, e in both for x in class_losses(w, out, e, name == "unicoder_vl")]),
        goal.split("+")[-1]: mean([match_loss(w, out, e, goal.split("+")[-1]) for out, e in both]),
    }
    if name == "imagebert":
        slow["mrfr"] = mean([x for out, e in both for x in feature_losses(w, out, e)])
    assert slow.keys() == losses.keys()
    for key, value in slow.items():
        torch.testing.assert_close(losses[key], value, atol=2e-5, rtol=2e-6)
    ours = torch.autograd.grad(sum(losses.values()), list(w.values()), retain_graph=True)
    theirs = torch.autograd.grad(sum(slow.values()), list(w.values()))
    for key, a, b in zip(w, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("field", ["l2_normalise_features", "l2_normalise_boxes"])
def test_unicoder_may_normalise_what_it_sees(field: str) -> None:
    system, example = build("unicoder_vl", **{field: True}), build("unicoder_vl").lay_out(WORLD[0])
    pooled = system.encode(pack([example])).pooled
    assert (build("unicoder_vl").encode(pack([example])).pooled - pooled).abs().max() > 1e-4
    assert example.regions is not None
    if field == "l2_normalise_features":
        larger = dataclasses.replace(example.regions, feats=3 * example.regions.feats.astype(np.float32))
        other = system.encode(pack([dataclasses.replace(example, regions=larger)])).pooled
        torch.testing.assert_close(pooled, other, atol=2e-5, rtol=0)


def test_unicoders_regions_without_a_position() -> None:
    plain, without = build("unicoder_vl"), build("unicoder_vl", region_position="none")
    batch = pack([plain.lay_out(WORLD[i]) for i in range(3)])
    w = dict(plain.named_parameters())
    seen = unicoder_regions(
        {**w, "words.position.weight": torch.zeros_like(w["words.position.weight"])}, plain.lay_out(WORLD[0])
    )
    torch.testing.assert_close(without.regions(batch.regions, without.words)[: len(seen)], seen, atol=2e-5, rtol=0)
