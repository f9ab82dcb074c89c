"""The downstream heads of UNITER against the authors' own code: scores on random weights, and the layout of fine-tuned weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import Golden, assert_near
from test_uniter import CASES, batch_of, build

from intarsia.batch import Batch
from intarsia.packed import pad
from intarsia.system import FineTuned
from intarsia.systems.uniter import UNITER
from intarsia.weights.files import fill

HEADS = {  # task: weights, batch, output
    "vqa": ("weights_vqa.", "itm", "vqa.answer_scores"),
    "vcr": ("weights_vcr.", "itm", "vcr.rank_scores"),
    "retrieval": ("weights_itm_rank.", "itm", "itm_rank.rank_scores"),
    "nlvr2": ("weights_nlvr2.", "nlvr2", "nlvr2.answer_scores"),
    "nlvr2_pair": ("weights_nlvr2pair.", "nlvr2", "nlvr2pair.answer_scores"),
    "re": ("weights_re.", "re", "re.scores"),
}


def tuned(golden: Golden, task: str) -> tuple[FineTuned, dict[str, Any]]:
    own = golden.weights(HEADS[task][0])
    theirs = {**golden.weights("weights."), **own}
    config = build(golden).config
    config = replace(config, type_vocab_size=theirs["uniter.embeddings.token_type_embeddings.weight"].shape[0])
    finetune = UNITER.finetune[task]
    if task == "vqa":
        finetune = replace(finetune, task=type(finetune.task)(golden.about["num_answer"]))
    model = FineTuned(UNITER(config, build(golden).vocab), finetune).eval()
    skip = ("cls.", "feat_regress.", "region_classifier.") + (
        () if "match_head" in finetune.keeps else ("itm_output.",)
    )
    theirs = {key: value for key, value in theirs.items() if not key.startswith(skip)}
    fill(model, model.keys.to_ours(theirs), task)
    return model, theirs


def batch_for(golden: Golden, task: str) -> Batch:
    case = HEADS[task][1]
    batch = replace(batch_of(golden, case), targets={})
    if task == "vcr":
        segments = golden.tensors["input.vcr_txt_type_ids"]
        assert batch.text is not None
        rows = segments[batch.text.packing.doc, batch.text.packing.pos]
        batch = replace(batch, text=replace(batch.text, segment_ids=rows))
    if case == "nlvr2":
        batch = replace(batch, sample=torch.arange(len(batch.keys)) // 2)
    return batch


@pytest.mark.parametrize("golden", CASES, ids=str)
@pytest.mark.parametrize("task", HEADS)
def test_scores(golden: Golden, task: str) -> None:
    model, _ = tuned(golden, task)
    batch = batch_for(golden, task)
    with torch.no_grad():
        ours = model.scores(batch)
    theirs = golden.output(HEADS[task][2])
    if task == "re":
        block = pad(ours.view(-1), batch.regions.packing, theirs.shape[1], -1e4)
        assert_near(block, theirs, task)
    elif task == "vcr":
        assert_near(ours.reshape(len(theirs), -1)[:, -1], theirs[:, 0], task)
    else:
        assert_near(ours.reshape(theirs.shape), theirs, task)


@pytest.mark.parametrize("golden", CASES, ids=str)
@pytest.mark.parametrize("task", HEADS)
def test_fine_tuned_weights_round_trip(golden: Golden, task: str) -> None:
    model, theirs = tuned(golden, task)
    again = model.keys.to_theirs(model.state_dict())
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)


LOSSES = {  # task: target in the golden file, loss
    "vqa": ("vqa_targets", "vqa.loss"),
    "vcr": ("vcr_targets", "vcr.loss"),
    "nlvr2": ("nlvr2.targets", "nlvr2.loss"),
    "nlvr2_pair": ("nlvr2.targets", "nlvr2pair.loss"),
    "re": ("re.targets", "re.loss"),
}


@pytest.mark.parametrize("golden", CASES, ids=str)
@pytest.mark.parametrize("task", LOSSES)
def test_losses(golden: Golden, task: str) -> None:
    target, loss = LOSSES[task]
    labels = golden.tensors[f"input.{target}"]
    if not labels.is_floating_point():
        labels = labels.flatten().repeat_interleave(2 if task.startswith("nlvr2") else 1)  # a label a document
    model, _ = tuned(golden, task)
    goal = "nlvr2" if task.startswith("nlvr2") else task
    batch = replace(batch_for(golden, task), targets={goal: labels})
    with torch.no_grad():
        ours, _ = model(batch)
    assert_near(ours, golden.output(loss), task)


def test_retrieval_loss_is_the_mean_hinge_over_broken_pairs() -> None:
    scores = torch.tensor([2.0, 1.9, -3.0, 0.5, 0.4, 0.6])
    batch = Batch(
        keys=tuple("abcdef"),
        sample=torch.tensor([0, 0, 0, 1, 1, 1]),
        targets={"retrieval": torch.tensor([1, 0, 0, 0, 1, 0])},
    )
    s = torch.sigmoid(scores)
    wanted = sum(max(0.0, 0.2 + float(s[i] - s[j])) for i, j in ((1, 0), (2, 0), (3, 4), (5, 4))) / 4
    ours = UNITER.finetune["retrieval"].task.loss(scores, batch)
    assert float(ours) == pytest.approx(wanted, abs=1e-6)
    assert wanted > 0.1
