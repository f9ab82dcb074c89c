"""LXMERT against Hugging Face's LxmertForPreTraining on random weights: outputs, logits, the loss and every gradient. Needs transformers."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intarsia.batch import Batch, Picks, Regions, Text
from intarsia.packed import Packing, unpad
from intarsia.systems.lxmert import LXMERT, LXMERTConfig
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import fill

transformers = pytest.importorskip("transformers")
TINY = {
    "vocab_size": 90,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
    "l_layers": 3,
    "r_layers": 2,
    "x_layers": 2,
    "visual_feat_dim": 10,
    "num_object_labels": 8,
    "num_attr_labels": 5,
    "num_qa_labels": 7,
}
KEYS = LXMERT.layouts["hf"]
TEXT, REGIONS = 9, 6


def theirs(numbers: dict[str, Any]) -> nn.Module:
    torch.manual_seed(1)
    config = transformers.LxmertConfig(**numbers, visual_loss_normalizer=1 / 0.15)
    model = transformers.LxmertForPreTraining(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():  # biases and norms away from 0 and 1
            if name.endswith("bias") or "norm" in name.lower():
                value += 0.05 * torch.randn_like(value)
    return model


def ours(model: nn.Module) -> LXMERT:
    about = model.config.to_dict()
    about |= {"num_hidden_layers": about["l_layers"], "feature_size": about["visual_feat_dim"]}
    config = LXMERTConfig(**{key: x for key, x in about.items() if key in LXMERTConfig.__dataclass_fields__})
    system = LXMERT(config, Vocab([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])).eval()
    fill(system, KEYS.to_ours(model.state_dict()), "theirs")
    return system


def inputs(model: nn.Module, pairs: int = 3) -> dict[str, Any]:
    torch.manual_seed(2)
    about = model.config
    lengths = torch.tensor([TEXT, TEXT - 3, TEXT - 5])[:pairs]
    here = torch.arange(TEXT)[None] < lengths[:, None]
    ids = torch.randint(1, about.vocab_size, (pairs, TEXT)) * here
    labels = torch.where(here & (torch.rand(pairs, TEXT) < 0.4), ids, -100)
    low = torch.rand(pairs, REGIONS, 2) / 2
    shape = (pairs, REGIONS)
    return {
        "input_ids": ids,
        "attention_mask": here.long(),
        "token_type_ids": torch.zeros_like(ids),
        "visual_feats": torch.randn(*shape, about.visual_feat_dim),
        "visual_pos": torch.cat([low, low + 0.4], -1),
        "labels": labels,
        "matched_label": torch.tensor([1, 0, 1])[:pairs],
        "obj_labels": {
            "obj": (torch.randint(about.num_object_labels, shape), torch.rand(shape)),
            "attr": (torch.randint(about.num_attr_labels, shape), torch.rand(shape)),
            "feat": (torch.randn(*shape, about.visual_feat_dim), (torch.rand(shape) < 0.5).float()),
        },
        "ans": torch.tensor([4, -100, 2])[:pairs],
    }


def batch_of(given: dict[str, Any]) -> Batch:
    said = Packing.of(given["attention_mask"].sum(1).tolist())
    shown = Packing.of([REGIONS] * len(given["input_ids"]))
    labels, none = unpad(given["labels"], said), torch.zeros(shown.rows, dtype=torch.long)
    masked = given["obj_labels"]["feat"][1].flatten().nonzero()[:, 0]
    told = {x: torch.stack([y.flatten().float() for y in given["obj_labels"][x]], 1) for x in ("obj", "attr")}
    words = unpad(given["input_ids"], said)
    targets: dict[str, Picks | Tensor] = {
        "mlm": Picks((labels >= 0).nonzero()[:, 0], labels[labels >= 0]),
        "itm": given["matched_label"],
        **{x: Picks(torch.arange(shown.rows), y) for x, y in told.items()},
        "feat": Picks(masked, given["obj_labels"]["feat"][0].flatten(0, 1)[masked]),
        "qa": given["ans"].clamp(min=-1),
    }
    seen = Regions(
        given["visual_feats"].flatten(0, 1), given["visual_pos"].flatten(0, 1), none, none, none, none.bool(), shown
    )
    text = Text(words, torch.zeros_like(words), said.pos, said.pos, said)
    return Batch(tuple(map(str, range(said.documents))), torch.arange(said.documents), text, seen, targets=targets)


def compare(numbers: dict[str, Any], atol: float) -> None:
    model = theirs(numbers)
    system, given = ours(model), inputs(model)
    batch = batch_of(given)
    assert batch.text is not None
    with torch.no_grad():
        body = model.lxmert(
            **{key: x for key, x in given.items() if key not in ("labels", "matched_label", "obj_labels", "ans")}
        )
        encoded = system.encode(batch)
    torch.testing.assert_close(encoded.text, unpad(body.language_output, batch.text.packing), atol=atol, rtol=0)
    torch.testing.assert_close(encoded.visual, body.vision_output.flatten(0, 1), atol=atol, rtol=0)
    torch.testing.assert_close(encoded.pooled, body.pooled_output, atol=atol, rtol=0)
    out = model(**given)
    losses, encoded = system(batch)
    rows = torch.arange(batch.text.packing.rows)
    words = unpad(out.prediction_logits, batch.text.packing)
    torch.testing.assert_close(system.word_logits(encoded, rows), words, atol=atol, rtol=0)
    torch.testing.assert_close(system.match_head(encoded.pooled), out.cross_relationship_score, atol=atol, rtol=0)
    torch.testing.assert_close(system.answer_head(encoded.pooled), out.question_answering_score, atol=atol, rtol=0)
    total = sum(losses.values(), torch.zeros(()))
    torch.testing.assert_close(total, out.loss, atol=atol, rtol=1e-6)
    out.loss.backward()
    total.backward()
    wanted = KEYS.to_ours({key: x.grad for key, x in model.named_parameters()})
    found = {key: x.grad for key, x in system.named_parameters()}
    assert found.keys() == wanted.keys()
    for key, grad in wanted.items():
        torch.testing.assert_close(found[key], grad, atol=atol, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


def test_a_small_one_is_theirs() -> None:
    compare(TINY, 2e-5)
    assert "torchvision" not in sys.modules


@pytest.mark.slow
def test_the_published_size_is_theirs() -> None:
    compare({}, 5e-5)


def test_weights_round_trip_byte_equal() -> None:
    state = theirs(TINY).state_dict()
    again = KEYS.to_theirs(KEYS.to_ours(state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
