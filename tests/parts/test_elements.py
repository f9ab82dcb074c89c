"""VL-BERT's picture part of another width than words, and scaled by one number in place of a norm, against a slow reading of the authors' embedding."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intarsia.batch import Batch, Picture, Sample
from intarsia.model import read_ours
from intarsia.pack import pack
from intarsia.system import fit_config
from intarsia.systems.vl_bert import VLBERT
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import fill, write_weights

VOCAB = Vocab([*SPECIALS, *(f"w{i}" for i in range(20))])
WAYS = [(True, 6), (False, 0), (False, 6)]


def build(normed: bool, size: int) -> VLBERT:
    numbers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = fit_config(VLBERT.recipes["tiny"].config, len(VOCAB), 3, 5)
    config = dataclasses.replace(config, **numbers, geometry_waves=4, picture_norm=normed, picture_size=size)
    torch.manual_seed(0)
    system = VLBERT(config, VOCAB)
    with torch.no_grad():
        for norm in (system.elements.text_norm, system.elements.region_norm):
            next(norm.parameters()).mul_(0.7)
    return system


def samples() -> list[Sample]:
    rng = np.random.default_rng(1)
    found = []
    for number in range(3):
        low = rng.random((4, 2)) * 30
        boxes = np.concatenate([low, low + 20], 1).astype(np.float32)
        probs = rng.dirichlet(np.ones(5), 4).astype(np.float32)
        picture = Picture(f"p{number}", rng.standard_normal((4, 3)).astype(np.float32), boxes, 60, 50, probs=probs)
        found.append(Sample(f"s{number}", ("w1 w2 w3",), (picture,)))
    return [*found, Sample("alone", ("w4 w5",))]


def hidden(system: VLBERT) -> Batch:
    rng = np.random.default_rng(2)
    return pack([system.hide(x, "mlm+mvrc+mlm_text", rng, samples().pop) for x in samples()])


def normed(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    x = x - x.mean()
    return x / (x.square().mean() + 1e-12).sqrt() * gain + bias


def slow(system: VLBERT, batch: Batch) -> tuple[Tensor, Tensor]:
    """(T, H) and (R, H), an element at a time, by the authors' names of the weights."""
    theirs = VLBERT.keys.to_theirs(dict(system.named_parameters()))
    seen = system.sight(batch.regions, None)

    def part(x: Tensor, kind: str) -> Tensor:
        if f"vlbert.visual_1x1_{kind}.weight" in theirs:
            x = theirs[f"vlbert.visual_1x1_{kind}.weight"] @ x + theirs[f"vlbert.visual_1x1_{kind}.bias"]
        if f"vlbert.visual_scale_{kind}" in theirs:
            return x * theirs[f"vlbert.visual_scale_{kind}"]
        return normed(x, theirs[f"vlbert.visual_ln_{kind}.weight"], theirs[f"vlbert.visual_ln_{kind}.bias"])

    def placed(x: Tensor, rows: Any, i: int) -> Tensor:
        x = x + theirs["vlbert.position_embeddings.weight"][rows.position_ids[i]]
        x = x + theirs["vlbert.token_type_embeddings.weight"][rows.segment_ids[i]]
        norm = (theirs[f"vlbert.embedding_LayerNorm.{y}"] for y in ("weight", "bias"))
        return normed(x, *norm)

    text, shown = [], []
    for i, (doc, piece) in enumerate(zip(batch.text.packing.doc, batch.text.ids, strict=True)):
        of = [r for r, d in enumerate(batch.regions.packing.doc) if d == doc]
        whole = seen[of[-1]] if of else theirs["aux_text_visual_embedding.weight"][0]
        said = theirs["vlbert.word_embeddings.weight"][piece] + part(whole, "text")
        ends = batch.text.segment_ids[i] == 2
        text.append(placed(theirs["vlbert.end_embedding.weight"][0] if ends else said, batch.text, i))
    for i, masked in enumerate(batch.regions.masked):
        said = theirs[f"object_{'mask_word_embedding' if masked else 'linguistic_embeddings'}.weight"][0]
        shown.append(placed(said + part(seen[i], "object"), batch.regions, i))
    return torch.stack(text), torch.stack(shown)


@pytest.mark.parametrize(("norm", "size"), WAYS)
def test_elements_and_their_gradients(norm: bool, size: int) -> None:
    system = build(norm, size)
    batch = hidden(system)
    assert batch.regions is not None and batch.text is not None
    assert batch.regions.masked.any()
    ours = system.elements(system.words, batch.text, batch.regions, system.sight(batch.regions, None), None)
    wanted = slow(system, batch)
    for x, y in zip(ours, wanted, strict=True):
        assert torch.allclose(x, y, atol=2e-5)
    weights = [x for x in system.elements.parameters() if x.requires_grad]
    torch.manual_seed(3)
    by = [torch.randn_like(x) for x in wanted]
    found = [
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(y, by, strict=True)), weights) for y in (ours, wanted)
    ]
    assert all(torch.allclose(x, y, atol=2e-5) for x, y in zip(*found, strict=True))
    assert all(x.any() for x in found[0])


@pytest.mark.parametrize(("norm", "size"), WAYS)
def test_a_file_says_which_it_is(norm: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = build(norm, size)
    theirs = VLBERT.keys.to_theirs(system.state_dict())
    assert ("vlbert.visual_scale_text" in theirs) != norm and ("vlbert.visual_1x1_object.bias" in theirs) == bool(size)
    write_weights(tmp_path / "theirs.pt", theirs)
    usual = dataclasses.replace(system.config, picture_norm=True, picture_size=0)
    monkeypatch.setitem(VLBERT.recipes, "small", dataclasses.replace(VLBERT.recipes["tiny"], config=usual))
    state, config = read_ours(VLBERT, "vl_bert", tmp_path / "theirs.pt", "small")
    assert config == system.config
    again = VLBERT(config, VOCAB)
    fill(again, state, "theirs")
    assert all(torch.equal(x, theirs[key]) for key, x in VLBERT.keys.to_theirs(again.state_dict()).items())
    losses, _ = again(hidden(again))
    assert losses.keys() == {"mlm", "mvrc", "mlm_text"} and all(x.isfinite() for x in losses.values())


def test_the_scale_starts_as_the_gain() -> None:
    config = dataclasses.replace(VLBERT.recipes["base"].config, num_hidden_layers=0, picture_norm=False)
    system = VLBERT(dataclasses.replace(config, vocab_size=len(VOCAB)), VOCAB)
    assert system.elements.text_norm.scale.item() == system.elements.region_norm.scale.item() == 0.0
