"""VL-BERT against the authors' own code: elements, streams, losses, gradients, weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import Golden, assert_near
from torch import Tensor

from intarsia.batch import Batch, Encoded, Picks, Regions, Text
from intarsia.packed import Packing
from intarsia.systems.vl_bert import VLBERT, VLBERTConfig
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import fill, read_weights, write_weights

CASES = Golden.cases("vl_bert")
each_case = pytest.mark.parametrize("golden", CASES, ids=str)


def build(golden: Golden, **changes: Any) -> VLBERT:
    about = golden.about["config"]
    named = {key: value for key, value in about.items() if key in VLBERTConfig.__dataclass_fields__}
    named |= {"classes": about["visual_region_classes"], "relation": about["WITH_REL_LOSS"]}
    named |= {"norm_in_batch_first": about["MLM_LOSS_NORM_IN_BATCH_FIRST"]}
    named |= {"picture_norm": about.get("visual_ln", True), "picture_size": about.get("visual_size", 0)}
    config = VLBERTConfig(**(named | changes))
    vocab = Vocab([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])
    system = VLBERT(config, vocab).eval()
    fill(system, VLBERT.keys.to_ours(golden.weights("weights.")), "golden")
    return system


def last(here: Tensor) -> Tensor:
    """(N) the order in which the first of the real boxes comes last of them."""
    count = int(here.sum())
    return torch.tensor([*range(1, count), 0, *range(count, len(here))])


def spread(order: Tensor, block: Tensor) -> Tensor:
    return order.view(*order.shape, *([1] * (block.ndim - 2))).expand_as(block)


def add_end(labels: Tensor) -> Tensor:
    return torch.cat([labels, labels.new_full((1,), -1)])


def batch_of(golden: Golden, alone: bool = True) -> Batch:
    """The pairs, and after them the texts without pictures; their targets."""
    given = {key.removeprefix("input."): value for key, value in golden.tensors.items() if key.startswith("input.")}
    rows = [x[x > 0] for x in given["text"]]
    others = [x[x > 0] for x in given["aux_text"]] if alone else []
    ended = [torch.cat([x, x.new_zeros(1)]) for x in (*rows, *others)]  # [END] closes every document
    packing = Packing.of([len(x) for x in ended])
    end = packing.pos == packing.lengths[packing.doc] - 1
    text = Text(torch.cat(ended), 2 * end, packing.pos + end, packing.pos, packing)
    here = given["boxes"][..., 0] > -1.5  # (B, N)
    order = torch.stack([last(x) for x in here])  # the whole picture after the others
    given |= {key: given[key].gather(1, spread(order, given[key])) for key in ("boxes", "mvrc_ops", "mvrc_labels")}
    counts = here.sum(1)
    shown = Packing.of([*counts.tolist(), *([0] * len(others))])
    size = given["im_info"][:, None, [0, 1, 0, 1]].expand(-1, here.shape[1], -1)
    boxes = (given["boxes"][..., :4] / size)[here]
    places = torch.tensor([len(x) for x in rows])[:, None].expand_as(here)[here]
    masked = given["mvrc_ops"][here] > 0
    feats = given["boxes"][..., 4:][here] * ~masked[:, None]
    none = torch.zeros(shown.rows, dtype=torch.long)
    labels, soft = given["mvrc_labels"][here], given["mvrc_labels"][here].sum(-1) > 0.5
    words = torch.cat([add_end(x[: len(y)]) for x, y in zip(given["mlm_labels"], rows, strict=True)])
    targets: dict[str, Any] = {
        "mlm": Picks((words != -1).nonzero()[:, 0], words[words != -1]),
        "mvrc": Picks(soft.nonzero()[:, 0], labels[soft]),
    }
    if golden.about["config"]["WITH_REL_LOSS"]:
        targets["itm"] = torch.cat([given["relationship_label"], torch.full((len(others),), -1)])
    if alone:
        said = torch.cat([add_end(x[: len(y)]) for x, y in zip(given["aux_text_mlm_labels"], others, strict=True)])
        targets["mlm_text"] = Picks((said != -1).nonzero()[:, 0] + sum(map(len, rows)) + len(rows), said[said != -1])
    return Batch(
        keys=tuple(map(str, range(packing.documents))),
        sample=torch.arange(packing.documents),
        text=text,
        regions=Regions(feats, boxes, none + 2, places, none, masked, shown),
        targets=targets,
    )


def compare_rows(batch: Batch, text: Tensor, visual: Tensor, theirs: Tensor, what: str) -> None:
    """Their documents are text, the whole picture, boxes, [END], then padding."""
    for i in range(len(batch.keys)):
        words, count = int(batch.text.packing.lengths[i]) - 1, int(batch.regions.packing.lengths[i])
        first, shown = int(batch.text.packing.first[i]), int(batch.regions.packing.first[i])
        said, seen = text[first : first + words + 1], visual[shown : shown + count]
        ours = torch.cat([said[:-1], seen[-1:], seen[:-1], said[-1:]])
        assert_near(ours, theirs[i, : words + count + 1], f"{what} {i}")


@each_case
def test_elements(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    seen = system.sight(batch.regions, None)
    theirs = golden.output("obj_reps")
    for i in range(len(theirs)):
        first, count = int(batch.regions.packing.first[i]), int(batch.regions.packing.lengths[i])
        assert_near(seen[first : first + count].roll(1, 0), theirs[i, :count], f"regions {i}")
    text, visual = system.elements(system.words, batch.text, batch.regions, seen, None)
    compare_rows(batch, text, visual, golden.output("embedding_output"), "elements")


@each_case
def test_streams(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    encoded: Encoded = system.encode(batch)
    compare_rows(batch, encoded.text, encoded.visual, golden.output("sequence_output"), "sequence")
    if system.config.with_pooler:
        assert_near(encoded.pooled, golden.output("pooled_output"), "pooled")
    if system.config.relation:
        theirs = golden.output("relationship_logits")
        assert_near(system.match_head(encoded.pooled)[: len(theirs)], theirs, "relation logits")


@each_case
def test_losses_logits_and_gradients(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    losses, encoded = system(batch)
    names = {"mlm": "mlm_loss_wvc", "mlm_text": "mlm_loss_aux", "mvrc": "mvrc_loss", "itm": "relationship_loss"}
    assert losses.keys() == names.keys() - ({"itm"} if not system.config.relation else set())
    for goal, loss in losses.items():
        assert_near(loss, golden.output(names[goal]), goal)
    total = sum(losses.values(), torch.zeros(()))
    assert_near(total, golden.output("loss"), "total")
    logits = system.word_logits(encoded, torch.arange(len(encoded.text)))
    pairs = len(golden.tensors["input.text"])
    for i in range(len(batch.keys)):
        first, words = int(batch.text.packing.first[i]), int(batch.text.packing.lengths[i]) - 1
        theirs = golden.output("mlm_logits_wvc")[i] if i < pairs else golden.output("mlm_logits_aux")[i - pairs]
        assert_near(logits[first : first + words], theirs[:words], f"word logits {i}")
    classes = system.class_head(encoded.visual)
    for i in range(pairs):
        first, count = int(batch.regions.packing.first[i]), int(batch.regions.packing.lengths[i])
        assert_near(
            classes[first : first + count].roll(1, 0), golden.output("mvrc_logits")[i, :count], f"class logits {i}"
        )
    total.backward()
    ours = {key: parameter.grad for key, parameter in system.named_parameters() if parameter.grad is not None}
    theirs_ = VLBERT.keys.to_theirs(ours)
    for key, gradient in golden.weights("grad.").items():
        assert_near(theirs_[key], gradient, f"gradient of {key}")


@each_case
def test_without_texts_alone(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden, alone=False)
    losses, encoded = system(batch)
    for goal, name in (("mlm", "mlm_loss"), ("mvrc", "mvrc_loss")):
        assert_near(losses[goal], golden.output(f"no_aux.{name}"), goal)
    if system.config.relation:
        assert_near(system.match_head(encoded.pooled), golden.output("no_aux.relationship_logits"), "relation logits")
    assert_near(sum(losses.values(), torch.zeros(())), golden.output("no_aux.loss"), "total")


@each_case
def test_losses_by_document(golden: Golden) -> None:
    losses, _ = build(golden, norm_in_batch_first=True)(batch_of(golden))
    for goal, name in (("mlm", "mlm_loss_wvc"), ("mlm_text", "mlm_loss_aux"), ("mvrc", "mvrc_loss")):
        assert_near(losses[goal], golden.output(f"norm_first.{name}"), goal)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@each_case
def test_weights_round_trip_byte_equal(golden: Golden, suffix: str, tmp_path: Path) -> None:
    theirs = golden.weights("weights.")
    named = {
        f"module.{key}": value for key, value in theirs.items()
    }  # as published; the prefix goes when a file is read
    write_weights(tmp_path / f"theirs{suffix}", named if suffix == ".pt" else theirs)
    system = build(golden)
    fill(system, VLBERT.keys.to_ours(read_weights(tmp_path / f"theirs{suffix}")), "theirs")
    again = VLBERT.keys.to_theirs(system.state_dict())
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)


@each_case
def test_published_weights_have_no_pooler_and_no_relation(golden: Golden) -> None:
    state = {k: v for k, v in golden.weights("weights.").items() if "pooler" not in k and "relationsip" not in k}
    system = build(golden)
    bare = VLBERT(replace(system.config, relation=False, with_pooler=False), system.vocab)
    fill(bare, VLBERT.keys.to_ours(state), "published")
    batch = batch_of(golden)
    batch = replace(batch, targets={goal: value for goal, value in batch.targets.items() if goal != "itm"})
    assert_near(bare.eval()(batch)[0]["mlm"], golden.output("mlm_loss_wvc"), "mlm")
