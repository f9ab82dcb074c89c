"""LXMERT against the authors' own code: streams, heads, six losses, gradients, a picture with fewer regions, weights in both layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden import Golden, assert_near, picks, real, regions, text
from torch import Tensor

from intarsia.batch import Batch, Picks
from intarsia.systems.lxmert import LXMERT, LXMERTConfig
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import fill, read_weights, write_weights

CASES = Golden.cases("lxmert")
each_case = pytest.mark.parametrize("golden", CASES, ids=str)
NAMES = {
    "l_layers": "num_hidden_layers",
    "visual_feat_dim": "feature_size",
    "obj_id_num": "num_object_labels",
    "attr_id_num": "num_attr_labels",
    "num_answers": "num_qa_labels",
    "visual_loss_weight": "visual_loss_normalizer",
}
LOSSES = {"mlm": "mask_lm", "itm": "matched", "obj": "obj", "attr": "attr", "feat": "feat", "qa": "qa"}


def build(golden: Golden) -> LXMERT:
    about = {NAMES.get(key, key): value for key, value in golden.about["config"].items()}
    config = LXMERTConfig(**{key: value for key, value in about.items() if key in LXMERTConfig.__dataclass_fields__})
    system = LXMERT(config, Vocab([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])).eval()
    fill(system, LXMERT.keys.to_ours(golden.weights("weights.")), "golden")
    return system


def batch_of(golden: Golden, masked: bool = False) -> tuple[Batch, Tensor, Tensor]:
    """The batch, and the lengths of its texts and pictures."""
    given = golden.weights("input.")
    said = given["attention_mask"].sum(1)
    shown = given["visual_attention_mask"].sum(1) if masked else torch.full_like(said, given["pos"].shape[1])
    told = {
        goal: torch.stack([real(given[f"obj_labels.{goal}.{x}"].float(), shown) for x in ("label", "conf")], 1)
        for goal in ("obj", "attr")
    }
    hidden = real(given["obj_labels.feat.conf"], shown)
    assert ((hidden == 0) | (hidden == 1)).all()  # a mask, not a weight
    rows = hidden.nonzero()[:, 0]
    targets: dict[str, Any] = {
        "mlm": golden.target(picks(given["masked_lm_labels"], said)),
        "itm": given["matched_label"],
        "obj": Picks(torch.arange(len(hidden)), told["obj"]),
        "attr": Picks(torch.arange(len(hidden)), told["attr"]),
        "feat": Picks(rows, real(given["obj_labels.feat.label"], shown)[rows]),
        "qa": given["ans"],
    }
    return (
        Batch(
            keys=tuple(map(str, range(len(said)))),
            sample=torch.arange(len(said)),
            text=text(given["input_ids"], said, given["token_type_ids"]),
            regions=regions(given["visual_feats"], given["pos"], shown, 0, None),
            targets=targets,
        ),
        said,
        shown,
    )


@each_case
def test_streams(golden: Golden) -> None:
    system, (batch, said, shown) = build(golden), batch_of(golden)
    encoded = system.encode(batch)
    assert_near(encoded.text, real(golden.output("lang_output"), said), "words")
    assert_near(encoded.visual, real(golden.output("visn_output"), shown), "regions")
    assert_near(encoded.pooled, golden.output("pooled_output"), "pooled")


@each_case
def test_pictures_of_other_sizes(golden: Golden) -> None:
    system, (batch, said, shown) = build(golden), batch_of(golden, masked=True)
    encoded = system.encode(batch)
    assert_near(encoded.text, real(golden.output("with_visual_mask.lang_output"), said), "words")
    assert_near(encoded.visual, real(golden.output("with_visual_mask.visn_output"), shown), "regions")
    assert_near(encoded.pooled, golden.output("with_visual_mask.pooled_output"), "pooled")


@each_case
def test_heads(golden: Golden) -> None:
    system, (batch, said, shown) = build(golden), batch_of(golden)
    encoded = system.encode(batch)
    logits = system.word_logits(encoded, torch.arange(len(encoded.text)))
    assert_near(logits, real(golden.output("lang_prediction_scores"), said), "word logits")
    assert_near(system.match_head(encoded.pooled), golden.output("cross_relationship_score"), "match logits")
    assert_near(system.answer_head(encoded.pooled), golden.output("answer_score"), "answer logits")
    seen = system.object_transform(encoded.visual)
    for goal, head in system.object_heads.items():
        assert_near(head(seen), real(golden.output(f"visn_prediction_scores.{goal}"), shown), f"{goal} logits")


@each_case
def test_losses_and_gradients(golden: Golden) -> None:
    system, (batch, _, _) = build(golden), batch_of(golden)
    losses, _ = system(batch)
    for goal, name in LOSSES.items():
        assert_near(losses[goal][None], golden.output(f"loss.{name}").view(1), goal)
    total = sum(losses.values(), torch.zeros(()))
    assert_near(total[None], golden.output("total_loss").view(1), "total")
    total.backward()
    ours = LXMERT.keys.to_theirs(
        {key: value.grad for key, value in system.named_parameters() if value.grad is not None}
    )
    for key, gradient in golden.weights("grad.").items():
        assert_near(ours[key], gradient, f"gradient of {key}")


@each_case
def test_row_0_of_positions_and_segments_gets_no_gradient(golden: Golden) -> None:
    system, (batch, _, _) = build(golden), batch_of(golden)
    sum(system(batch)[0].values(), torch.zeros(())).backward()
    for table in (system.words.position, system.words.segment):
        assert not table.weight.grad[0].any()
        assert table.weight.grad[1].any()
    assert system.words.word.weight.grad[0].any()  # as a row of the product with the vocabulary


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("layout", ["authors", "hf"])
@each_case
def test_weights_round_trip_byte_equal(golden: Golden, suffix: str, layout: str, tmp_path: Path) -> None:
    keys = LXMERT.keys if layout == "authors" else LXMERT.layouts[layout]
    renamed = golden.weights("weights.")
    if layout == "hf":
        renamed = {key.replace("bert.", "lxmert.", 1) if key[:5] == "bert." else key: x for key, x in renamed.items()}
    before = "module." if suffix == ".pth" else ""  # as published; it goes when a file is read
    write_weights(tmp_path / f"theirs{suffix}", {before + key: value for key, value in renamed.items()})
    state = read_weights(tmp_path / f"theirs{suffix}")
    assert keys.knows(state)
    system = build(golden)
    for parameter in system.parameters():
        parameter.data.zero_()
    fill(system, keys.to_ours(state), "theirs")
    again = keys.to_theirs(system.state_dict())
    assert again.keys() == renamed.keys()
    assert all(torch.equal(again[key], renamed[key]) for key in renamed)
