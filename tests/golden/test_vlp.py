"""VLP against the authors' own code: both visibilities, losses, gradients, place codes, answers and generated words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import Golden, assert_near
from torch import Tensor

from intarsia import decode
from intarsia.batch import Batch, Encoded, Picks, Picture, Regions, Sample, Text
from intarsia.packed import Packing
from intarsia.system import FineTuned
from intarsia.systems.vlp import VLP, VLPConfig, place_codes
from intarsia.tasks.vqa import VQA
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import fill, read_weights, write_weights

CASES = Golden.cases("vlp")
each_case = pytest.mark.parametrize("golden", CASES, ids=str)
each_kind = pytest.mark.parametrize("kind", ["s2s", "bi"])


def build(golden: Golden, **changes: float) -> VLP:
    about = golden.about
    named = {key: value for key, value in about["config"].items() if key in VLPConfig.__dataclass_fields__}
    named |= {"label_smoothing": 0.0, "feature_size": about["vis_dim"], "classes": about["cls_dim"]}
    config = VLPConfig(**(named | changes))
    vocab = Vocab([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])
    system = VLP(config, vocab).eval()
    fill(system, VLP.keys.to_ours(golden.weights("weights.")), "golden")
    return system


def places(golden: Golden) -> list[list[int]]:
    """Per document, the authors' positions of our text rows: [CLS], the [SEP] after the regions, words, [SEP]."""
    count, most = golden.about["len_vis_input"], golden.about["max_len_b"]
    return [[0, *range(count + 1, count + 3 + min(n, most))] for n in golden.about["txt_lens_without_specials"]]


def batch_of(golden: Golden, kind: str) -> Batch:
    given, rows = golden.inputs(kind), places(golden)
    levels = [np.array([0, 0, *range(1, len(x) - 1)]) for x in rows] if kind == "s2s" else None
    packing = Packing.of([len(x) for x in rows], None if levels is None else np.concatenate(levels))

    def column(name: str) -> Tensor:
        return torch.cat([given[name][i, x] for i, x in enumerate(rows)])

    text = Text(
        column("input_ids"), column("segment_ids"), torch.tensor([p for x in rows for p in x]), packing.pos, packing
    )
    count = golden.about["len_vis_input"]
    raw, shown = golden.inputs("raw"), Packing.of([count] * len(rows))
    zeros = torch.zeros(shown.rows, dtype=torch.long)
    box = raw["bbox"].flatten(0, 1)
    regions = Regions(
        feats=raw["feat"].flatten(0, 1),
        boxes=box[:, :4] / 1000,  # the picture's size does not count
        segment_ids=given["segment_ids"][:, 1 : count + 1].flatten(),
        position_ids=zeros,
        image=zeros,
        masked=zeros.bool(),
        packing=shown,
        probs=raw["cls_prob"].flatten(0, 1),
        scores=box[:, 5],
    )
    real = given["masked_weights"] > 0
    first = packing.first[:, None].expand_as(real)[real]
    picks = Picks(given["masked_pos"][real] - count + first, given["masked_ids"][real])
    return Batch(tuple(map(str, range(len(rows)))), torch.arange(len(rows)), text, regions, targets={"lm": picks})


def compare_rows(golden: Golden, text: Tensor, visual: Tensor, batch: Batch, theirs: Tensor, what: str) -> None:
    count = golden.about["len_vis_input"]
    for i, rows in enumerate(places(golden)):
        first = int(batch.text.packing.first[i])
        assert_near(text[first : first + len(rows)], theirs[i, rows], f"{what} words {i}")
        assert_near(visual[i * count : (i + 1) * count], theirs[i, 1 : count + 1], f"{what} regions {i}")


@each_kind
@each_case
def test_streams(golden: Golden, kind: str) -> None:
    system, batch = build(golden), batch_of(golden, kind)
    encoded: Encoded = system.encode(batch)
    compare_rows(golden, encoded.text, encoded.visual, batch, golden.output(f"{kind}.sequence_output"), "sequence")
    assert_near(encoded.pooled, golden.output(f"{kind}.pooled_output"), "pooled")
    theirs = golden.output(f"{kind}.embedding_output")
    compare_rows(
        golden, system.words(batch.text), system.regions(batch.regions, system.words), batch, theirs, "embeddings"
    )


@each_case
def test_place_codes(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden, "s2s")
    theirs = golden.tensors["input.s2s.vis_pe"].flatten(0, 1)
    assert_near(place_codes(batch.regions), theirs, "place codes of raw boxes")
    seen, place = system.regions.parts(batch.regions)
    assert_near(seen, golden.output("vis_feats_embedded").flatten(0, 1), "features")
    assert_near(place, golden.output("vis_pe_embedded").flatten(0, 1), "places")


@each_case
def test_losses_logits_and_gradients(golden: Golden) -> None:
    system, total = build(golden), torch.zeros(())
    for kind in ("s2s", "bi"):
        batch = batch_of(golden, kind)
        losses, encoded = system(batch)
        assert_near(losses["lm"], golden.output(f"{kind}.loss"), kind)
        real = golden.inputs(kind)["masked_weights"] > 0
        logits = system.word_logits(encoded, batch.picks("lm").rows)
        assert_near(logits, golden.output(f"{kind}.prediction_scores_masked")[real], f"{kind} word logits")
        total = total + losses["lm"]
        variants = golden.weights(f"output.{kind}.loss_")  # such as drop_worst_0.3
        assert variants
        for name, theirs in variants.items():
            field, _, value = name.rpartition("_")
            other = build(golden, **{field: float(value)})(batch)[0]["lm"]
            assert_near(other, theirs, f"{kind} {name}")
    assert_near(total, golden.output("total_loss"), "total")
    total.backward()
    ours = {key: parameter.grad for key, parameter in system.named_parameters() if parameter.grad is not None}
    theirs = VLP.keys.to_theirs(ours)
    for key, gradient in golden.weights("grad.").items():
        assert_near(theirs[key], gradient, f"gradient of {key}")


@each_case
def test_answers(golden: Golden) -> None:
    finetune, labels = VLP.finetune["vqa"], golden.tensors["input.ans_labels"]
    task = replace(finetune.task, answers=labels.shape[1])
    assert isinstance(task, VQA)
    made = FineTuned(build(golden), replace(finetune, task=task)).eval()
    theirs = golden.weights("weights_vqa.")
    named = {key.removeprefix("head."): value for key, value in finetune.keys.to_ours(theirs).items()}
    made.head.load_state_dict(named)
    batch = replace(batch_of(golden, "bi"), targets={"vqa": labels})
    loss, scores = made(batch)
    assert_near(scores, golden.output("vqa.logits"), "answer logits")
    assert_near(loss, golden.output("vqa.loss"), "answer loss")
    assert torch.equal(scores[:, 1:].argmax(1) + 1, golden.output("vqa.ans_idx"))


def samples(golden: Golden) -> list[Sample]:
    raw = {key: value.numpy() for key, value in golden.inputs("raw").items()}
    return [
        Sample(
            str(i),
            ("w0",),
            (Picture(str(i), feat, box[:, :4] / 1000, 1, 1, box[:, 5], probs),),
        )
        for i, (feat, box, probs) in enumerate(zip(raw["feat"], raw["bbox"], raw["cls_prob"], strict=True))
    ]


@each_case
def test_generated_words(golden: Golden) -> None:
    system, given = build(golden), samples(golden)
    logits, end = decode.next_piece(system, given), system.vocab.sep
    length = golden.about["max_tgt_length"]
    found = decode.greedy(logits, len(given), length, end)
    for i, one in enumerate(found):
        theirs = golden.output("greedy.ids")[i].tolist()
        cut = [*theirs, end].index(end)
        assert list(one.ids) == theirs[:cut]
        raw = golden.output("greedy.max_logits")[i, : len(one.logits)]
        assert_near(torch.tensor(one.logits), raw, f"logits of the words of {i}")


@each_case
def test_beams(golden: Golden) -> None:
    system, given = build(golden), samples(golden)
    logits, end = decode.next_piece(system, given), system.vocab.sep
    for name, how in golden.about["beams"].items():
        found = decode.frames(
            logits,
            len(given),
            golden.about["max_tgt_length"],
            end,
            how["search_beam_size"],
            how["length_penalty"],
            how.get("min_len", 0),
            how.get("ngram_size", 0) if how.get("forbid_duplicate_ngrams") else 0,
        )
        for i, one in enumerate(found):
            theirs = golden.output(f"{name}.pred_seq")[i].tolist()
            wanted = [x for x in theirs[: ([*theirs, 0].index(0))] if x != end]
            assert list(one.ids) == wanted, (name, i)
            scores = golden.output(f"{name}.scores")[i]
            bonus = how["length_penalty"] * (len(wanted) + (end in theirs))
            last = scores[len(wanted) + (end in theirs) - 1]
            assert (last - (one.score - bonus)).abs().min() <= 2e-5


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@each_case
def test_weights_round_trip_byte_equal(golden: Golden, suffix: str, tmp_path: Path) -> None:
    theirs = golden.weights("weights.")
    write_weights(tmp_path / f"theirs{suffix}", theirs)
    system = build(golden)
    fill(system, VLP.keys.to_ours(read_weights(tmp_path / f"theirs{suffix}")), "theirs")
    again = VLP.keys.to_theirs(system.state_dict())
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)
