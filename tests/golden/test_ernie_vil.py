"""ERNIE-ViL against the authors' own code (on a stand-in for Paddle's operators): streams, heads, losses, gradients, weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from golden import Golden, assert_near, real
from golden import regions as region_block
from golden import text as text_block
from torch import Tensor

from intarsia.batch import Batch, Picks
from intarsia.system import FineTuned, Task
from intarsia.systems.ernie_vil import ERNIEViL, ERNIEViLConfig
from intarsia.tasks.retrieval import RetrievalCircle, circle_loss
from intarsia.tasks.vqa import VQA
from intarsia.text import SPECIALS, Vocab
from intarsia.weights import paddle
from intarsia.weights.files import fill, read_weights, write_weights

CASES = Golden.cases("ernie_vil")
each_case = pytest.mark.parametrize("golden", CASES, ids=str)
HEADS = ("vqa_fc", "cls_seq_label", "match_fc", "vcr_qa")


def body(golden: Golden) -> dict[str, Tensor]:
    return {key: value for key, value in golden.weights("weights.").items() if not key.startswith(HEADS)}


def build(golden: Golden) -> ERNIEViL:
    about = golden.about["config"]
    named = {key: value for key, value in about.items() if key in ERNIEViLConfig.__dataclass_fields__}
    named |= {key: tuple(about[key]) for key in ("v_biattention_id", "t_biattention_id")}
    named |= {
        "intermediate_size": 4 * about["hidden_size"],
        "type_vocab_size": about["sent_type_vocab_size"],
        "classes": about["class_size"],
        "bi_hidden_size": about["co_hidden_size"],
        "bi_num_attention_heads": about["co_num_attention_heads"],
        "num_hidden_layers": 1 + max(about["t_biattention_id"]),  # the last meeting's layers are the last to run
        "v_num_hidden_layers": 1 + max(about["v_biattention_id"]),
    }
    config = ERNIEViLConfig(**named)
    vocab = Vocab([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])
    system = ERNIEViL(config, vocab).eval()
    fill(system, ERNIEViL.keys.to_ours(body(golden)), "golden", ERNIEViL.keys.optional)
    return system


def with_head(system: ERNIEViL, golden: Golden, name: str, task: Task | None = None) -> FineTuned:
    """The system with a task's head; the file lacks the second head of VCR, which keeps its fresh weights."""
    finetune = ERNIEViL.finetune[name]
    if task is not None:
        finetune = type(finetune)(task, finetune.tunings, finetune.keys)
    tuned = FineTuned(system, finetune).eval()
    own = {key: value for key, value in golden.weights("weights.").items() if finetune.keys.knows({key: value})}
    assert own
    wanted = {key: value for key, value in tuned.state_dict().items() if key.startswith("head.")}
    theirs = finetune.keys.to_ours(own)
    assert theirs.keys() == {key for key in wanted if "vcr_qar" not in key}
    tuned.head.load_state_dict({key.removeprefix("head."): value for key, value in theirs.items()}, strict=False)
    return tuned


def whole_last(block: Tensor, counts: Tensor) -> Tensor:
    """Rows (B, R, ..) with the first real one of each document, the whole picture, after the others."""
    out = block.clone()
    for i, count in enumerate(counts.tolist()):
        out[i, :count] = block[i, :count].roll(-1, 0)
    return out


def lengths(golden: Golden) -> tuple[Tensor, Tensor]:
    return golden.tensors["input.input_mask"].sum(1).long(), golden.tensors["input.image_mask"].sum(1).long()


def batch_of(golden: Golden) -> Batch:
    given = {key.removeprefix("input."): value for key, value in golden.tensors.items() if key.startswith("input.")}
    words, counts = lengths(golden)
    text = text_block(given["src_ids"], words, given["sentence_ids"])
    assert torch.equal(text.position_ids, real(given["position_ids"], words))
    feats, places = (whole_last(given[key], counts) for key in ("image_embeddings", "image_loc"))
    regions = region_block(feats, places[..., :4], counts, 0, None)
    labels = real(whole_last(given["refcoco_labels"], counts), counts)
    documents = len(words)
    return Batch(
        keys=tuple(map(str, range(documents))),
        sample=torch.arange(documents),
        text=text,
        regions=regions,
        targets={"vqa": given["vqa_soft_labels"], "re": Picks(torch.arange(len(labels)), labels)},
    )


@each_case
def test_streams(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    encoded, (words, counts) = system.encode(batch), lengths(golden)
    assert_near(encoded.text, real(golden.output("enc_out"), words), "text")
    assert_near(encoded.visual, real(whole_last(golden.output("enc_vl_out"), counts), counts), "regions")
    assert_near(encoded.pooled_text, golden.output("pooled_text"), "pooled text")
    assert_near(encoded.pooled_visual, golden.output("pooled_image"), "pooled image")
    assert_near(encoded.pooled, golden.output("fused_mul"), "product")
    assert_near(encoded.pooled_text + encoded.pooled_visual, golden.output("fused_sum"), "sum")


@each_case
def test_heads_losses_and_gradients(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    answers = len(golden.weights("weights.")["vqa_fc_b_1"])
    vqa = with_head(system, golden, "vqa", VQA(answers, scorer=ERNIEViL.finetune["vqa"].task.scorer))  # type: ignore[attr-defined]
    loss, logits = vqa(batch)
    assert_near(logits, golden.output("vqa_logits"), "answers")
    assert_near(loss[None], golden.output("loss.vqa"), "loss of VQA")
    best = logits.argmax(1)
    assert torch.equal(best, golden.output("vqa_pred_label"))
    assert_near(batch.labels("vqa").gather(1, best[:, None]).mean()[None], golden.output("vqa_acc"), "accuracy")
    refer = with_head(system, golden, "re")
    meant, scores = refer(batch)
    _, counts = lengths(golden)
    assert_near(scores, real(whole_last(golden.output("refcoco_logits"), counts), counts), "regions")
    assert_near(meant[None] / len(batch.keys), golden.output("loss.refcoco"), "loss of RefCOCO+")
    (loss + meant / len(batch.keys)).backward()
    ours = {key: value.grad for key, value in system.named_parameters() if value.grad is not None}
    theirs = ERNIEViL.keys.to_theirs(ours)
    stored = golden.weights("grad.")
    assert stored
    for key, gradient in stored.items():
        assert_near(theirs[key], gradient, f"gradient of {key}")


@each_case
def test_scores_of_pairs_and_choices(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    for name, output in (("retrieval", "match_score_logit"), ("vcr", "vcr_qa_logit")):
        assert_near(with_head(system, golden, name).scores(batch)[:, None], golden.output(output), output)


@each_case
def test_circle_loss(golden: Golden) -> None:
    about = golden.about["config"]
    true, broken = (golden.tensors[f"input.circle_{x}"].sigmoid() for x in ("sp", "sn"))
    found = circle_loss(true, broken, about["margin"], about["scale_circle"])
    assert_near(found.float()[None], golden.output("loss.circle"), "circle loss")
    task = RetrievalCircle(margin=about["margin"], scale=about["scale_circle"]).broken_as("pt" * broken.shape[1])
    halves = [golden.tensors["input.circle_sn"]] * 2
    raw = torch.cat([golden.tensors["input.circle_sp"], *halves], 1)
    samples = torch.arange(len(raw)).repeat_interleave(raw.shape[1])
    loss = task.loss(raw.flatten(), Batch(keys=(), sample=samples))
    assert_near(loss[None], golden.output("loss.circle"), "circle loss of the task")


def folder(path: Path, state: Mapping[str, Tensor]) -> Path:
    """One file a variable, as published."""
    path.mkdir()
    for name, value in state.items():
        (path / name).write_bytes(paddle.write_variable(value))
    return path


@pytest.mark.parametrize("kind", ["folder", ".tar.gz", ".safetensors", ".pt"])
@each_case
def test_weights_round_trip_byte_equal(golden: Golden, kind: str, tmp_path: Path) -> None:
    theirs, path = body(golden), tmp_path / f"theirs{kind}"
    if kind == "folder":
        folder(path, theirs)
    else:
        write_weights(path, theirs)
    system = build(golden)
    fill(system, ERNIEViL.keys.to_ours(read_weights(path)), "theirs", ERNIEViL.keys.optional)
    bare = {key: value for key, value in system.state_dict().items() if not key.startswith(ERNIEViL.keys.optional)}
    again = ERNIEViL.keys.to_theirs(bare)
    assert again.keys() == theirs.keys()
    assert all(paddle.write_variable(again[key]) == paddle.write_variable(theirs[key]) for key in theirs)


@each_case
def test_fine_tuned_weights_round_trip(golden: Golden) -> None:
    every = golden.weights("weights.")
    vqa = {key: value for key, value in every.items() if key in body(golden) or key.startswith("vqa_fc")}
    system = build(golden)
    answers = len(every["vqa_fc_b_1"])
    tuned = with_head(system, golden, "vqa", VQA(answers, scorer=ERNIEViL.finetune["vqa"].task.scorer))  # type: ignore[attr-defined]
    fill(tuned, tuned.keys.to_ours(vqa), "tuned")
    again = tuned.keys.to_theirs(tuned.state_dict())
    assert again.keys() == vqa.keys()
    assert all(torch.equal(again[key], vqa[key]) for key in vqa)
