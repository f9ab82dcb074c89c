"""VL-BERT against the authors' own code: outputs, losses and gradients on random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import Golden, assert_near
from torch import Tensor

from intarsia.batch import Batch, Encoded, Example, Pick, RegionRows, TextRows, pack
from intarsia.systems.vl_bert import VLBERT, VLBERTConfig
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import fill, read_weights, write_weights

CASES = Golden.cases("vl_bert")


def build(golden: Golden, norm_first: bool = False) -> VLBERT:
    about = golden.about["config"]
    named = {key: value for key, value in about.items() if key in VLBERTConfig.__dataclass_fields__}
    config = VLBERTConfig(
        **named,
        feature_size=golden.tensors["input.boxes"].shape[-1] - 4,
        classes=about["visual_region_classes"],
        with_relationship=about["WITH_REL_LOSS"],
        mlm_norm_in_batch_first=norm_first or about["MLM_LOSS_NORM_IN_BATCH_FIRST"],
        mvrc_norm_in_batch_first=norm_first or about["MVRC_LOSS_NORM_IN_BATCH_FIRST"],
    )
    vocab = Vocab([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])
    system = VLBERT(config, vocab).eval()
    fill(system, VLBERT.keys.to_ours(golden.weights("weights.")), "golden")
    return system


def words_of(ids: Tensor, labels: Tensor) -> tuple[TextRows, Pick]:
    """The authors' words and our [END], and the labelled rows."""
    real, segments = ids[ids > 0].numpy(), ids.new_zeros(int((ids > 0).sum()))
    count = len(real)
    text = TextRows(
        np.append(real, 0),
        np.append(segments, 2),
        np.append(np.arange(count), count + 1),
        np.full(count + 1, -1),
    )
    rows = np.flatnonzero((labels[: len(ids)] != -1).numpy())
    return text, Pick("text", rows, labels.numpy()[rows])


def regions_of(boxes: Tensor, size: Tensor, ops: Tensor, labels: Tensor) -> tuple[RegionRows, Pick]:
    """The authors' boxes with their first, the whole picture, moved behind the others."""
    order = np.roll(np.flatnonzero((boxes[:, 0] > -1.5).numpy()), -1)
    zeros = np.zeros(len(order), np.int64)
    scale = torch.stack([size[0], size[1], size[0], size[1]])
    rows = RegionRows(
        feats=boxes[order, 4:].numpy(),
        boxes=(boxes[order, :4] / scale).numpy(),
        segment_ids=zeros + 2,
        position_ids=zeros,
        image=zeros,
        masked=ops[order].numpy() == 1,
    )
    found = np.flatnonzero(labels[order].sum(-1).numpy() > 0)
    return rows, Pick("regions", found, labels[order].numpy()[found])


def batch_of(golden: Golden, aux: bool = True) -> Batch:
    given = golden.weights("input.")
    classes = given["mvrc_labels"].shape[-1]
    width = given["boxes"].shape[-1] - 4
    nothing = RegionRows(
        np.zeros((0, width), np.float32), np.zeros((0, 4), np.float32), *([np.zeros(0, np.int64)] * 3), np.zeros(0, bool)
    )
    examples = []
    for i in range(len(given["text"])):
        text, words = words_of(given["text"][i], given["mlm_labels"][i])
        regions, picks = regions_of(
            given["boxes"][i], given["im_info"][i], given["mvrc_ops"][i], given["mvrc_labels"][i]
        )
        regions.position_ids += len(text) - 1
        targets = {"mlm": words, "mvrc": picks, "itm": given["relationship_label"][i].numpy()}
        if aux:
            targets["mlm_text"] = Pick("text", np.zeros(0, np.int64), np.zeros(0, np.int64))
        examples.append(Example(str(i), text, regions, targets=targets))
    for i in range(len(given["aux_text"]) if aux else 0):
        text, words = words_of(given["aux_text"][i], given["aux_text_mlm_labels"][i])
        empty = Pick("text", np.zeros(0, np.int64), np.zeros(0, np.int64))
        unseen = Pick("regions", np.zeros(0, np.int64), np.zeros((0, classes), np.float32))
        targets = {"mlm": empty, "mvrc": unseen, "itm": np.array(-1), "mlm_text": words}
        examples.append(Example(f"text {i}", text, nothing, targets=targets))
    return pack(examples)


def documents(batch: Batch, words: Tensor, regions: Tensor) -> list[Tensor]:
    """Per document its rows in the authors' order: words, whole picture, boxes, [END]."""
    assert batch.text and batch.regions
    cu_t, cu_r = batch.text.packing.cu_seqlens, batch.regions.packing.cu_seqlens
    found = []
    for i in range(len(batch.keys)):
        mine, seen = words[cu_t[i] : cu_t[i + 1]], regions[cu_r[i] : cu_r[i + 1]]
        found.append(torch.cat([mine[:-1], seen[-1:], seen[:-1], mine[-1:]]))
    return found


@pytest.mark.parametrize("golden", CASES, ids=str)
def test_streams_and_embeddings(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    seen: dict[str, Tensor] = {}
    system.encoder.register_forward_pre_hook(lambda _, given: seen.update(embedding_output=given[0], packing=given[1]))
    system.regions.register_forward_hook(lambda _, __, out: seen.update(obj_reps=out))
    encoded = system.encode(batch)
    assert encoded.text is not None and encoded.visual is not None and batch.regions
    lengths = golden.output("attention_mask").sum(1).tolist()
    split = torch.split(seen["embedding_output"], lengths)
    for i, rows in enumerate(documents(batch, encoded.text, encoded.visual)):
        assert len(rows) == lengths[i]
        assert_near(rows, golden.output("sequence_output")[i, : len(rows)], f"document {i}")
        n = len(batch.text.packing.doc[batch.text.packing.doc == i])
        mine = split[i]
        mine = torch.cat([mine[: n - 1], mine[n:][-1:], mine[n:][:-1], mine[n - 1 : n]])
        assert_near(mine, golden.output("embedding_output")[i, : len(rows)], f"embeddings {i}")
    cu = batch.regions.packing.cu_seqlens
    for i in range(len(golden.tensors["input.boxes"])):
        reps = seen["obj_reps"][cu[i] : cu[i + 1]].roll(1, 0)
        assert_near(reps, golden.output("obj_reps")[i, : len(reps)], f"regions {i}")
    assert_near(encoded.pooled, golden.output("pooled_output"), "pooled")


def check_words(golden: Golden, system: VLBERT, batch: Batch, encoded: Encoded, first: int, name: str, ids: str) -> None:
    assert batch.text
    for i, given in enumerate(golden.tensors[f"input.{ids}"]):
        rows = batch.text.packing.cu_seqlens[first + i] + torch.arange(int((given > 0).sum()))
        assert_near(system.word_logits(encoded, rows), golden.output(name)[i, : len(rows)], f"{name} {i}")


def check_regions(golden: Golden, system: VLBERT, batch: Batch, encoded: Encoded, name: str) -> None:
    assert batch.regions
    cu = batch.regions.packing.cu_seqlens
    for i in range(len(golden.tensors["input.boxes"])):
        logits = system.region_classes(encoded, torch.arange(int(cu[i]), int(cu[i + 1]))).roll(1, 0)
        assert_near(logits, golden.output(name)[i, : len(logits)], f"{name} {i}")


@pytest.mark.parametrize("golden", CASES, ids=str)
def test_losses_logits_and_gradients(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    losses, encoded = system(batch)
    names = {"mlm": "mlm_loss_wvc", "mlm_text": "mlm_loss_aux", "mvrc": "mvrc_loss", "itm": "relationship_loss"}
    for ours, theirs in names.items():
        assert_near(losses[ours], golden.output(theirs), ours)
    check_words(golden, system, batch, encoded, 0, "mlm_logits_wvc", "text")
    check_words(golden, system, batch, encoded, len(golden.tensors["input.text"]), "mlm_logits_aux", "aux_text")
    check_regions(golden, system, batch, encoded, "mvrc_logits")
    logits = system.match_head(encoded.pooled)
    theirs = golden.output("relationship_logits")
    assert_near(logits[: len(theirs)], theirs, "relationship logits")
    total = sum(losses.values())
    assert_near(total, golden.output("loss"), "total")
    total.backward()
    grads = {key: parameter.grad for key, parameter in system.named_parameters() if parameter.grad is not None}
    grads = VLBERT.keys.to_theirs(grads)
    for key, gradient in golden.weights("grad.").items():
        assert_near(grads[key], gradient, f"gradient of {key}")


@pytest.mark.parametrize("golden", CASES, ids=str)
def test_losses_normalised_in_the_batch_first(golden: Golden) -> None:
    losses, _ = build(golden, norm_first=True)(batch_of(golden))
    for ours, theirs in (("mlm", "mlm_loss_wvc"), ("mlm_text", "mlm_loss_aux"), ("mvrc", "mvrc_loss")):
        assert_near(losses[ours], golden.output(f"norm_first.{theirs}"), ours)


@pytest.mark.parametrize("golden", CASES, ids=str)
def test_without_text_alone(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden, aux=False)
    losses, encoded = system(batch)
    assert_near(losses["mlm"], golden.output("no_aux.mlm_loss"), "mlm")
    assert_near(losses["mvrc"], golden.output("no_aux.mvrc_loss"), "mvrc")
    check_words(golden, system, batch, encoded, 0, "no_aux.mlm_logits", "text")
    check_regions(golden, system, batch, encoded, "no_aux.mvrc_logits")
    assert_near(system.match_head(encoded.pooled), golden.output("no_aux.relationship_logits"), "relationship logits")
    assert_near(sum(losses.values()), golden.output("no_aux.loss"), "total")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("published", [True, False], ids=["published", "all heads"])
@pytest.mark.parametrize("golden", CASES, ids=str)
def test_weights_round_trip_byte_equal(golden: Golden, published: bool, suffix: str, tmp_path: Path) -> None:
    theirs = golden.weights("weights.")
    config = build(golden).config
    if published:  # no pooler and no relationship head, keys behind "module."
        theirs = {key: value for key, value in theirs.items() if "pooler" not in key and "relationsip" not in key}
        config = replace(config, with_pooler=False, with_relationship=False)
    stored = {f"module.{key}": value for key, value in theirs.items()}
    write_weights(tmp_path / f"theirs{suffix}", stored if suffix == ".pt" else theirs)
    system = VLBERT(config, build(golden).vocab)
    fill(system, VLBERT.keys.to_ours(read_weights(tmp_path / f"theirs{suffix}")), "theirs")
    again = VLBERT.keys.to_theirs(system.state_dict())
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)
