"""Oscar and Oscar+ against the authors' own code: streams, losses, gradients, heads, captions written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import Golden, assert_near
from torch import Tensor

from intarsia import decode
from intarsia.batch import Batch, Encoded, Picks, Picture, Regions, Sample, Text
from intarsia.packed import Packing
from intarsia.system import FineTuned
from intarsia.systems.oscar import Oscar, OscarConfig, pair_of, two_layers
from intarsia.tasks.vqa import VQA
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import fill, read_weights, write_weights

CASES = [*Golden.cases("oscar"), *Golden.cases("oscarplus")]
each_case = pytest.mark.parametrize("golden", CASES, ids=str)


def build(golden: Golden, captions: bool = False, **changes: Any) -> Oscar:
    about = golden.about
    given = about["config"]
    named = {key: value for key, value in given.items() if key in OscarConfig.__dataclass_fields__}
    named |= {"use_img_layernorm": bool(given["use_img_layernorm"]), "feature_size": given["img_feature_dim"] - 6}
    rows = max(about["max_seq_a_length"], about["max_gen_length"])
    named |= {
        "max_caption_rows": rows,
        "max_pieces": about["max_seq_length"] - 3,
        "max_regions": about["max_img_seq_length"],
    }
    state = golden.weights("weights.")
    untied = captions and not about["cap_tie"]
    if captions:
        state |= golden.weights("weights_cap.")
    config = OscarConfig(**(named | {"untied_words": untied} | changes))
    vocab = Vocab([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])
    system = Oscar(config, vocab).eval()
    fill(system, (Oscar.layouts["untied"] if untied else Oscar.keys).to_ours(state), "golden")
    return system


def batch_of(golden: Golden, case: str, mask: str = "", **changes: Any) -> Batch:
    """The authors' padded batch as packed rows; positions are places in their padded text block."""
    given, most = golden.inputs(case), golden.about["max_seq_length"]
    seen = golden.tensors[f"input.{mask or case}.attention_mask"]
    real = seen if seen.ndim == 2 else seen.diagonal(dim1=1, dim2=2)  # (B, S)
    here, shown = real[:, :most] > 0, real[:, most:] > 0
    levels = None
    places = torch.arange(most).expand_as(here)
    if case in ("cap", "gen"):
        said = places < golden.about["max_seq_a_length"]
        levels = torch.where(said, places + 1, 0)[here].numpy()
    text = Packing.of(here.sum(1).tolist(), levels)
    regions = Packing.of(shown.sum(1).tolist())
    feats = golden.tensors["input.pretrain.img_feats"][shown]
    zeros = torch.zeros(regions.rows, dtype=torch.long)
    words = Text(given["input_ids"][here], given["token_type_ids"][here], places[here], text.pos, text)
    made = Batch(
        keys=tuple(map(str, range(len(here)))),
        sample=torch.arange(len(here)),
        text=words,
        regions=Regions(feats[:, :-6], feats[:, -6:-2], zeros, zeros, zeros, zeros.bool(), regions),
    )
    return replace(made, **changes)


def compare_rows(golden: Golden, ours: Encoded, batch: Batch, real: Tensor, theirs: Tensor, what: str) -> None:
    most = golden.about["max_seq_length"]
    assert_near(ours.text, theirs[:, :most][real[:, :most] > 0], f"{what} words")
    assert_near(ours.visual, theirs[:, most:][real[:, most:] > 0], f"{what} regions")


@each_case
def test_streams(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden, "pretrain")
    encoded = system.encode(batch)
    real = golden.tensors["input.pretrain.attention_mask"]
    compare_rows(golden, encoded, batch, real, golden.output("pretrain.sequence_output"), "sequence")
    assert_near(encoded.pooled, golden.output("pretrain.pooled_output"), "pooled")


@each_case
@pytest.mark.parametrize("seen", ["CLR", "CL", "LR"])
def test_who_sees_whom(golden: Golden, seen: str) -> None:
    system = build(golden, attention=seen)
    batch = batch_of(golden, "retr_CLR")
    encoded = system.encode(batch)
    real = golden.tensors["input.retr_CLR.attention_mask"]
    compare_rows(golden, encoded, batch, real, golden.output(f"retr_{seen}.sequence_output"), seen)
    assert_near(encoded.pooled, golden.output(f"retr_{seen}.pooled_output"), f"{seen} pooled")


@each_case
def test_losses_logits_and_gradients(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden, "pretrain")
    labels, most = golden.tensors["input.pretrain.masked_lm_labels"], golden.about["max_seq_length"]
    here = golden.tensors["input.pretrain.attention_mask"][:, :most] > 0
    rows = labels[:, :most][here]
    picks = Picks((rows != -1).nonzero()[:, 0], rows[rows != -1])
    batch = replace(batch, targets={"mlm": picks, "contrast": golden.tensors["input.pretrain.next_sentence_label"]})
    losses, encoded = system(batch)
    assert_near(losses["mlm"], golden.output("pretrain.masked_lm_loss"), "masked words")
    assert_near(losses["contrast"], golden.output("pretrain.contrastive_loss"), "contrast")
    assert_near(system.match_head(encoded.pooled), golden.output("pretrain.seq_relationship_score"), "contrast logits")
    logits = system.word_logits(encoded, torch.arange(len(encoded.text)))
    assert_near(logits, golden.output("pretrain.prediction_scores")[:, :most][here], "word logits")
    total = losses["mlm"] + losses["contrast"]
    assert_near(total, golden.output("pretrain.total_loss"), "total")
    total.backward()
    ours = {key: parameter.grad for key, parameter in system.named_parameters() if parameter.grad is not None}
    theirs = Oscar.keys.to_theirs(ours)
    for key, gradient in golden.weights("grad.").items():
        assert_near(theirs[key], gradient, f"gradient of {key}")


def tuned(golden: Golden, task: str, head: str, **changes: Any) -> FineTuned:
    finetune = Oscar.finetune[task]
    finetune = replace(finetune, task=replace(finetune.task, **changes))
    made = FineTuned(build(golden), finetune).eval()
    theirs = golden.weights(f"weights_{head}.")
    made.head.load_state_dict(
        {key.removeprefix("head."): value for key, value in finetune.keys.to_ours(theirs).items()}
    )
    back = finetune.keys.to_theirs({f"head.{key}": value for key, value in made.head.state_dict().items()})
    assert back.keys() == theirs.keys()
    return made


@each_case
def test_answers(golden: Golden) -> None:
    labels, width = golden.tensors["input.vqa_labels"], golden.about["config"]["hidden_size"]
    scale = golden.tensors["weights_vqa.classifier.0.weight"].shape[0] // width
    made = tuned(golden, "vqa_mlp", "vqa", answers=labels.shape[1], scorer=two_layers(scale))
    assert isinstance(made.finetune.task, VQA)
    loss, scores = made(batch_of(golden, "retr_CLR", targets={"vqa": labels}))
    assert_near(scores, golden.output("vqa.logits"), "answer logits")
    assert_near(loss, golden.output("vqa.loss"), "answer loss")


@each_case
def test_retrieval(golden: Golden) -> None:
    batch = batch_of(golden, "retr_CLR", targets={"retrieval": golden.tensors["input.labels2"]})
    loss, scores = tuned(golden, "retrieval", "retr")(batch)
    assert_near(scores, golden.output("retr.logits"), "retrieval logits")
    assert_near(loss, golden.output("retr.loss"), "retrieval loss")
    assert_near(scores.softmax(-1)[:, 1], golden.output("retr.prob_match"), "probability of a match")


@each_case
def test_two_pictures(golden: Golden) -> None:
    plus = "weights_nlvr2.classifier.3.weight" in golden.tensors
    scale = golden.tensors["weights_nlvr2.classifier.0.weight"].shape[0] // golden.about["config"]["hidden_size"]
    made = tuned(golden, "nlvr2_plus" if plus else "nlvr2", "nlvr2", scorer=pair_of(scale, plus))
    labels = golden.tensors["input.nlvr2.labels"].repeat_interleave(2)
    batch = batch_of(golden, "retr_CLR", targets={"nlvr2": labels})
    loss, scores = made(replace(batch, sample=batch.sample // 2))
    assert_near(scores, golden.output("nlvr2.logits"), "NLVR2 logits")
    assert_near(loss, golden.output("nlvr2.loss"), "NLVR2 loss")


@each_case
def test_captions(golden: Golden) -> None:
    given = golden.inputs("cap")
    hidden = given["masked_pos"] > 0
    labels = torch.cat([ids[: int(count)] for ids, count in zip(given["masked_ids"], hidden.sum(1), strict=True)])
    for name, changes in (("cap", {"label_smoothing": 0.1, "drop_worst": 0.2}), ("cap_plain", {})):
        system, batch = build(golden, captions=True, **changes), batch_of(golden, "cap")
        seen = golden.tensors["input.cap.attention_mask"].diagonal(dim1=1, dim2=2)
        here = seen[:, : golden.about["max_seq_length"]] > 0
        batch = replace(batch, targets={"caption": Picks(hidden[here].nonzero()[:, 0], labels)})
        losses, encoded = system(batch)
        assert_near(losses["caption"], golden.output(f"{name}.loss"), f"{name} loss")
        logits = system.word_logits(encoded, batch.picks("caption").rows)
        assert_near(logits, golden.output("cap.class_logits"), "caption logits")


def samples(golden: Golden, vocab: Vocab) -> list[Sample]:
    given, most = golden.inputs("gen"), golden.about["max_seq_length"]
    start = max(golden.about["max_seq_a_length"], golden.about["max_gen_length"])
    seen = golden.tensors["input.gen.attention_mask"].diagonal(dim1=1, dim2=2)
    feats, found = golden.tensors["input.pretrain.img_feats"].numpy(), []
    for i, ids in enumerate(given["input_ids"]):
        said = golden.about["max_gen_length"]
        tags = [vocab.tokens[x] for x in ids[said:].tolist() if x not in (vocab.pad, vocab.sep)]
        count = int(seen[i, most:].sum())
        picture = Picture(str(i), feats[i, :count, :-6], feats[i, :count, -6:-2], tags=tuple(tags))
        found.append(Sample(str(i), ("w0",), (picture,)))
    assert start >= golden.about["max_gen_length"]
    return found


@each_case
def test_generated_captions(golden: Golden) -> None:
    system = build(golden, captions=True)
    given, end = samples(golden, system.vocab), system.vocab.sep
    logits, length = decode.next_piece(system, given), golden.about["max_gen_length"] - 1
    beams, penalty = golden.about["num_beams"], golden.about["length_penalty"]
    for name, found in (
        ("greedy", decode.greedy(logits, len(given), length, end)),
        ("beam", decode.hypotheses(logits, len(given), length, end, beams, penalty)),
    ):
        for i, one in enumerate(found):
            theirs = golden.output(f"gen.{name}_ids")[i, 0].tolist()[1:]
            wanted = theirs[: theirs.index(end)]
            assert list(one.ids)[: len(wanted)] == wanted, (name, i)
            assert len(one.ids) <= len(wanted) + (name == "greedy")
            assert_near(torch.tensor([one.score]), golden.output(f"gen.{name}_logprobs")[i], f"{name} score {i}")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@each_case
def test_weights_round_trip_byte_equal(golden: Golden, suffix: str, tmp_path: Path) -> None:
    theirs = golden.weights("weights.")
    write_weights(tmp_path / f"theirs{suffix}", theirs)
    system = build(golden)
    fill(system, Oscar.keys.to_ours(read_weights(tmp_path / f"theirs{suffix}")), "theirs")
    again = Oscar.keys.to_theirs(system.state_dict())
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)
