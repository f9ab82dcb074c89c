"""ViLBERT and 12-in-1 against the authors' own code: streams, heads, losses, gradients, weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import Golden, assert_near, picks, real, regions, text
from torch import Tensor

from intarsia.batch import Batch, Encoded, Picks
from intarsia.objectives import mrm
from intarsia.system import FineTuned
from intarsia.systems.vilbert import ViLBERT, ViLBERTConfig
from intarsia.tasks.among import BETA_HEADS
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import fill, read_weights, write_weights

CASES = Golden.cases("vilbert")
TASK_CASES = Golden.cases("vilbert_12in1")
each_case = pytest.mark.parametrize("golden", CASES, ids=str)
each_task_case = pytest.mark.parametrize("golden", TASK_CASES, ids=str)
either = pytest.mark.parametrize("golden", CASES + TASK_CASES, ids=str)


def build(golden: Golden, **changes: Any) -> ViLBERT:
    about = golden.about["config"]
    named = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in about.items()
        if key in ViLBERTConfig.__dataclass_fields__
    }
    # the head is as wide as its target, whatever that is; `objective` is the training script's, the authors' module does not read it
    numbers = {
        "feature_size": about["v_feature_size"],
        "classes": about["v_target_size"],
        "visual_target": 0,
        "objective": 0,
    }
    config = ViLBERTConfig(**(named | numbers | changes))
    vocab = Vocab([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])
    return ViLBERT(config, vocab).eval()


def loaded(golden: Golden) -> ViLBERT:
    system = build(golden)
    theirs = {k: v for k, v in golden.weights("weights.").items() if k.startswith(("bert.", "cls."))}
    fill(system, ViLBERT.keys.to_ours(theirs), "golden")
    return system


def lengths(golden: Golden) -> tuple[Tensor, Tensor]:
    given = golden.tensors
    return given["input.attention_mask"].sum(1), given["input.image_attention_mask"].sum(1)


def whole_last(block: Tensor, counts: Tensor) -> Tensor:
    """Theirs have the whole picture first: (B, L, ..) with it after the other real rows."""
    order = torch.arange(block.shape[1]).repeat(len(block), 1)
    for row, count in zip(order, counts, strict=True):
        row[:count] = row[:count].roll(-1)
    return torch.stack([x[i] for x, i in zip(block, order, strict=True)])


def batch_of(golden: Golden, feature: bool = False) -> Batch:
    given, (said, shown) = golden.tensors, lengths(golden)
    words = text(given["input.input_ids"], said, given["input.token_type_ids"])
    feats, places = (whole_last(given[f"input.image_{x}"], shown) for x in ("feat", "loc"))
    targets: dict[str, Any] = {}
    if "input.image_label" in given:
        asked = real(given["input.image_label"], shown - 1)  # those less the whole picture, which is no row there
        here = torch.cat([x for part in asked.split((shown - 1).tolist()) for x in (part, part.new_zeros(1))]) == 1
        what = given["input.image_target_mse" if feature else "input.image_target"]
        targets = {
            "mlm": Picks(
                *(
                    x.nonzero()[:, 0] if x.dtype == torch.bool else x
                    for x in picks(given["input.masked_lm_labels"], said)
                )
            ),
            "mrfr" if feature else "mrc_kl": Picks(here.nonzero()[:, 0], real(what, shown - 1)[asked == 1]),
            "itm": 1 - given["input.next_sentence_label"],
        }
    return Batch(
        keys=tuple(map(str, range(len(said)))),
        sample=torch.arange(len(said)),
        text=words,
        regions=regions(feats, places[..., :4], shown, 0, None),
        targets=targets,
    )


def compare_streams(golden: Golden, encoded: Encoded, said: Tensor, shown: Tensor) -> None:
    assert_near(encoded.text, real(golden.output("sequence_output_t"), said), "words")
    theirs = whole_last(golden.output("sequence_output_v"), shown)
    assert_near(encoded.visual, real(theirs, shown), "regions")
    assert_near(encoded.pooled_text, golden.output("pooled_output_t"), "pooled words")
    assert_near(encoded.pooled_visual, golden.output("pooled_output_v"), "pooled picture")
    both = (golden.output("pooled_output_t"), golden.output("pooled_output_v"))
    fused = both[0] * both[1] if golden.about["config"]["fusion_method"] == "mul" else both[0] + both[1]
    assert_near(encoded.pooled, fused, "fused")


@each_case
def test_streams_and_logits(golden: Golden) -> None:
    system, (said, shown) = loaded(golden), lengths(golden)
    encoded = system.encode(batch_of(golden))
    compare_streams(golden, encoded, said, shown)
    words = system.word_logits(encoded, torch.arange(len(encoded.text)))
    assert_near(words, real(golden.output("prediction_scores_t"), said), "word logits")
    theirs = whole_last(golden.output("prediction_scores_v"), shown)
    assert_near(system.region_head(encoded.visual), real(theirs, shown), "region logits")
    match = golden.output("seq_relationship_score")
    assert_near(system.match_head(encoded.pooled), match, "match logits")
    assert_near(system.match_scores(encoded), match[:, 0] - match[:, 1], "match score")


@each_case
def test_losses_and_gradients(golden: Golden) -> None:
    system = loaded(golden)
    losses, _ = system(batch_of(golden))
    names = {"mlm": "masked_lm", "mrc_kl": "masked_img_kl", "itm": "next_sentence"}
    for goal, name in names.items():
        assert_near(losses[goal], golden.output(f"loss.{name}")[0], goal)
    total = sum(losses.values(), torch.zeros(()))
    assert_near(total, golden.output("loss.total")[0], "total")
    total.backward()
    ours = {key: x.grad for key, x in system.named_parameters() if x.grad is not None}
    theirs = ViLBERT.keys.to_theirs(ours)
    for key, gradient in golden.weights("grad.").items():
        assert_near(theirs[key], gradient, f"gradient of {key}")


@each_case
def test_features_regressed(golden: Golden) -> None:
    losses, _ = loaded(golden)(batch_of(golden, feature=True))
    assert_near(losses["mrfr"], golden.output("loss.masked_img_mse")[0], "mrfr")


# ------------------------------------------------------------------------------------------------------------ 12-in-1


def tuned(golden: Golden, task: str = "vqa") -> FineTuned:
    made = FineTuned(build(golden), ViLBERT.finetune[task]).eval()
    fill(made, made.keys.to_ours(golden.weights("weights.")), "golden")
    return made


def task_batch(golden: Golden) -> tuple[Batch, Tensor, Tensor]:
    """Their words with a row for the task after the first, in the segment past the last."""
    given, (said, shown) = golden.tensors, lengths(golden)
    segment = golden.about["config"]["type_vocab_size"]

    def insert(block: Tensor, value: Tensor | int) -> Tensor:
        row = block.new_zeros(len(block), 1) + value
        return torch.cat([block[:, :1], row, block[:, 1:]], 1)

    words = text(
        insert(given["input.input_ids"], given["input.task_ids"]),
        said + 1,
        insert(given["input.token_type_ids"], segment),
    )
    places = (words.position_ids - 1).clamp(min=0)  # the words keep theirs
    places[words.packing.first] = 0
    batch = batch_of(golden)
    return replace(batch, text=replace(words, position_ids=places)), said + 1, shown


@each_task_case
def test_task_token_and_streams(golden: Golden) -> None:
    batch, said, shown = task_batch(golden)
    system = tuned(golden).system
    compare_streams(golden, system.encode(batch), said, shown)


HEADS_OF = {
    "vqa": "vil_prediction",
    "gqa": "vil_prediction_gqa",
    "vcr": "vil_logit",
    "retrieval": "vil_logit",
    "nlvr2": "vil_binary_prediction",
    "ve": "vil_tri_prediction",
    "re_plus": "vision_logit",
}


@pytest.mark.parametrize("task", HEADS_OF)
@each_task_case
def test_heads(golden: Golden, task: str) -> None:
    batch, _, shown = task_batch(golden)
    if task == "nlvr2":  # rows 2i and 2i + 1 are one sample
        batch = replace(batch, sample=torch.arange(len(batch.keys)) // 2)
    scores = tuned(golden, task).scores(batch)
    theirs = golden.output(HEADS_OF[task])
    if task == "re_plus":
        theirs = real(whole_last(theirs, shown), shown).squeeze(-1)
    assert_near(scores, theirs.squeeze(-1) if task in ("vcr", "retrieval") else theirs, task)


@each_task_case
def test_heads_on_rows(golden: Golden) -> None:
    batch, said, shown = task_batch(golden)
    made = tuned(golden)
    encoded = made.system.encode(batch)
    words = made.head.get_submodule("linguisic_logit")(encoded.text)
    assert_near(words, real(golden.output("linguisic_logit"), said), "word scores")
    full = loaded(golden)
    said_logits = full.word_logits(encoded, torch.arange(len(encoded.text)))
    assert_near(said_logits, real(golden.output("linguisic_prediction"), said), "word logits")
    theirs = whole_last(golden.output("vision_prediction"), shown)
    assert_near(full.region_head(encoded.visual), real(theirs, shown), "region logits")


# ------------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@either
def test_weights_round_trip_byte_equal(golden: Golden, suffix: str, tmp_path: Path) -> None:
    theirs = golden.weights("weights.")
    named = {f"module.{key}": x for key, x in theirs.items()}  # as some files were saved; the prefix goes when read
    write_weights(tmp_path / f"theirs{suffix}", named if suffix == ".bin" else theirs)
    state = read_weights(tmp_path / f"theirs{suffix}")
    if "vil_logit.weight" in theirs:
        made: Any = FineTuned(build(golden), ViLBERT.finetune["vqa"])
        keys = made.keys
    else:
        made, keys = build(golden), ViLBERT.keys
    fill(made, keys.to_ours(state), "theirs")
    again = keys.to_theirs(made.state_dict())
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)


@each_case
def test_weights_of_the_first_code_with_its_heads(golden: Golden) -> None:
    """Its answer head is normed: the same numbers as torch's weight norm over the whole matrix, under the same names."""
    system = loaded(golden)
    width = system.config.bi_hidden_size
    shapes = {"main.0": (2 * width, width), "main.3": (3129, 2 * width)}
    state = {k: v for k, v in golden.weights("weights.").items() if k.startswith(("bert.", "cls."))}
    draw = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        state[f"vil_prediction.{name}.weight_g"] = torch.rand((), generator=draw) + 1
        state[f"vil_prediction.{name}.weight_v"] = torch.randn(shape, generator=draw)
        state[f"vil_prediction.{name}.bias"] = torch.randn(shape[0], generator=draw)
    sizes = {
        "vil_logit": width,
        "vision_logit": system.config.v_hidden_size,
        "linguisic_logit": system.config.hidden_size,
    }
    for name, size in sizes.items():
        state |= {
            f"{name}.weight": torch.randn(1, size, generator=draw),
            f"{name}.bias": torch.randn(1, generator=draw),
        }
    made = FineTuned(build(golden), ViLBERT.finetune["beta_vqa"]).eval()
    fill(made, made.keys.to_ours(state), "first code")
    again = made.keys.to_theirs(made.state_dict())
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
    assert set(made.head) == set(BETA_HEADS)
    batch = replace(batch_of(golden), targets={})
    x = made.system.encode(batch).pooled
    for name, after in (("main.0", torch.relu), ("main.3", lambda y: y)):
        g, v, bias = (state[f"vil_prediction.{name}.{part}"] for part in ("weight_g", "weight_v", "bias"))
        x = after(
            torch.nn.functional.linear(x, torch._weight_norm(v.flatten()[None], g.view(1, 1), 0).view_as(v), bias)
        )
    assert_near(made.scores(batch), x, "normed answers")


@each_case
def test_negatives_by_hand(golden: Golden) -> None:
    """The contrastive variant against a loop over hidden regions."""
    batch = batch_of(golden, feature=True)
    rows = batch.picks("mrfr").rows
    feats, packing = batch.regions.feats, batch.regions.packing
    draw = torch.Generator().manual_seed(1)
    labels = torch.cat([feats[rows], torch.rand(len(rows), 10, generator=draw)], 1)
    guess = torch.randn(len(rows), feats.shape[1], generator=draw)
    chosen = mrm.negatives(labels[:, feats.shape[1] :], rows, packing, 1)
    losses = []
    for i, row in enumerate(rows.tolist()):
        document = int(packing.doc[row])
        for j, other in enumerate(chosen[i].tolist()):
            assert other != int(packing.last[packing.doc[other]])  # never the whole picture
            assert (int(packing.doc[other]) == document) == (j >= 7)
            assert other != row
        scores = torch.stack([guess[i] @ feats[k] for k in (row, *chosen[i].tolist())])
        losses.append(-scores.log_softmax(0)[0])
    hidden = replace(batch.regions, feats=feats.index_fill(0, rows, 0.0))
    assert_near(mrm.contrast(guess, labels, rows, hidden, 1), torch.stack(losses).mean(), "mrnce")
