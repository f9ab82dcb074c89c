"""UNITER against the authors' own code: outputs, losses and gradients on random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden import Golden, assert_near, picks, real, regions, text
from torch import Tensor

from intarsia.batch import Batch, Encoded
from intarsia.packed import pad
from intarsia.systems.uniter import UNITER, UNITERConfig
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import fill, read_weights, write_weights

CASES = Golden.cases("uniter")


def build(golden: Golden) -> UNITER:
    about = golden.about
    named = {key: value for key, value in about["config"].items() if key in UNITERConfig.__dataclass_fields__}
    config = UNITERConfig(**named, feature_size=about["img_dim"], classes=about["img_label_dim"])
    vocab = Vocab([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])
    system = UNITER(config, vocab).eval()
    fill(system, UNITER.keys.to_ours(golden.weights("weights.")), "golden")
    return system


def batch_of(golden: Golden, case: str) -> Batch:
    """The authors' padded batch of one objective as packed rows with our targets."""
    given = golden.inputs(case)
    joint = given["attn_masks"].sum(1)
    counts = torch.tensor(golden.about["num_bbs"] if len(joint) == len(golden.about["num_bbs"]) else [])
    words = joint - counts if len(counts) else joint - nlvr2_counts(given)
    counts = joint - words
    masked = given.get("img_masks")
    made = Batch(
        keys=tuple(map(str, range(len(joint)))),
        sample=torch.arange(len(joint)),
        text=text(given["input_ids"], words, segment=given.get("txt_type_ids")),
        regions=regions(
            given["img_feat"],
            given["img_pos_feat"][..., :4],
            counts,
            segment=given.get("img_type_ids", 1),
            masked=masked,
        ),
    )
    targets = {
        "mlm": lambda: picks(given["txt_labels"], words),
        "mrfr": lambda: (real(given["img_masks"], counts), given["feat_targets"]),
        "mrc": lambda: (real(given["img_masks"], counts), given["label_targets"]),
        "itm": lambda: given["targets"],
    }
    return replace(made, targets={case: golden.target(targets[case]())} if case in targets else {})


def nlvr2_counts(given: dict[str, Tensor]) -> Tensor:
    return (given["img_type_ids"] > 0).sum(1)


def joint_rows(encoded: Encoded, batch: Batch) -> list[Tensor]:
    """Per document, words then regions."""
    assert batch.text and batch.regions and encoded.text is not None and encoded.visual is not None
    cu_t, cu_r = batch.text.packing.cu_seqlens, batch.regions.packing.cu_seqlens
    return [
        torch.cat([encoded.text[cu_t[i] : cu_t[i + 1]], encoded.visual[cu_r[i] : cu_r[i + 1]]])
        for i in range(len(batch.keys))
    ]


@pytest.mark.parametrize("golden", CASES, ids=str)
@pytest.mark.parametrize("case", ["mlm", "mrfr", "itm"])
def test_streams(golden: Golden, case: str) -> None:
    system = build(golden)
    batch = batch_of(golden, case)
    encoded = system.encode(batch)
    theirs = golden.output(f"{case}.sequence_output")
    for i, rows in enumerate(joint_rows(encoded, batch)):
        assert_near(rows, theirs[i, : len(rows)], f"{case} document {i}")


@pytest.mark.parametrize("golden", CASES, ids=str)
def test_losses_logits_and_gradients(golden: Golden) -> None:
    system = build(golden)
    total = torch.zeros(())
    for case, name in (("mlm", "mlm"), ("mrfr", "mrfr"), ("mrc", "mrc"), ("mrc", "mrc_kl"), ("itm", "itm")):
        batch = batch_of(golden, case)
        if case == "mrc":
            soft = batch.picks("mrc")
            labels = soft.labels if name == "mrc_kl" else soft.labels[:, 1:].argmax(-1) + 1
            batch = replace(batch, targets={name: replace(soft, labels=labels)})
        losses, encoded = system(batch)
        assert_near(losses[name], golden.output(f"{name.replace('_', '')}.loss"), name)
        total = total + losses[name] + 0.1 * losses.get("wra", 0.0)
        check_logits(golden, system, batch, encoded, name)
        if name == "itm":
            check_alignment(golden, system, batch, encoded, losses)
    assert_near(total, golden.output("total_loss"), "total")
    total.backward()
    ours = {key: parameter.grad for key, parameter in system.named_parameters() if parameter.grad is not None}
    theirs = UNITER.keys.to_theirs(ours)
    for key, gradient in golden.weights("grad.").items():
        assert_near(theirs[key], gradient, f"gradient of {key}")


def check_logits(golden: Golden, system: UNITER, batch: Batch, encoded: Encoded, name: str) -> None:
    if name == "mlm":
        assert_near(
            system.word_logits(encoded, batch.picks(name).rows), golden.output("mlm.prediction_scores"), "word logits"
        )
    if name == "mrfr":
        assert_near(
            system.region_features(encoded, batch.picks(name).rows), golden.output("mrfr.prediction_feat"), "features"
        )
    if name == "mrc_kl":
        assert_near(
            system.region_classes(encoded, batch.picks(name).rows),
            golden.output("mrc.prediction_soft_label"),
            "classes",
        )


def check_alignment(golden: Golden, system: UNITER, batch: Batch, encoded: Encoded, losses: dict[str, Tensor]) -> None:
    assert_near(encoded.pooled, golden.output("itm.pooled_output"), "pooled")
    assert_near(system.match_head(encoded.pooled), golden.output("itm.scores"), "match logits")
    assert_near(losses["wra"], golden.output("itm.ot_loss"), "wra")
    plan, cost = golden.output("itm.ot_plan"), golden.output("itm.ot_cost")
    maps = system.alignments(encoded, batch)
    for i, (words, count) in enumerate(
        zip(batch.text.packing.lengths.tolist(), batch.regions.packing.lengths.tolist(), strict=True)
    ):
        assert_near(maps["transport"][i, :words, :count], plan[i, :count, :words].T, f"plan {i}")
        assert_near(1 - maps["similarity"][i, :words, :count], cost[i, :words, :count], f"cost {i}")
        assert maps["transport"][i].sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("golden", CASES, ids=str)
def test_first_layer_and_embeddings(golden: Golden) -> None:
    system = build(golden)
    seen: dict[str, Tensor] = {}
    system.encoder.register_forward_pre_hook(lambda _, given: seen.update(embedding_output=given[0]))
    system.encoder.layers[0].register_forward_hook(lambda _, __, out: seen.update(layer0_output=out))
    batch = batch_of(golden, "mlm")
    system.encode(batch)
    from intarsia.packed import join

    packing = join(batch.text.packing, batch.regions.packing).packing
    for name, rows in seen.items():
        theirs = golden.output(f"mlm.{name}")
        block = pad(rows, packing)
        for i, count in enumerate(packing.lengths.tolist()):
            assert_near(block[i, :count], theirs[i, :count], f"{name} {i}")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("golden", CASES, ids=str)
def test_weights_round_trip_byte_equal(golden: Golden, suffix: str, tmp_path: Path) -> None:
    theirs = golden.weights("weights.")
    write_weights(tmp_path / f"theirs{suffix}", theirs)
    system = build(golden)
    fill(system, UNITER.keys.to_ours(read_weights(tmp_path / f"theirs{suffix}")), "theirs")
    again = UNITER.keys.to_theirs(system.state_dict())
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)
