"""VisualBERT against the authors' own code: streams, logits, losses, gradients, heads and weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import Golden, assert_near, picks, regions, text
from torch import Tensor

from intarsia.batch import Batch, Encoded, Picks
from intarsia.packed import Packing
from intarsia.system import FineTuned
from intarsia.systems.visualbert import VisualBERT, VisualBERTConfig
from intarsia.tasks.vqa import VQA
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import fill, read_weights, write_weights

CASES = Golden.cases("visualbert")
each_case = pytest.mark.parametrize("golden", CASES, ids=str)


def build(golden: Golden) -> VisualBERT:
    about = golden.about["config"]
    named = {key: value for key, value in about.items() if key in VisualBERTConfig.__dataclass_fields__}
    config = VisualBERTConfig(**named, feature_size=about["visual_embedding_dim"])
    vocab = Vocab([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])
    system = VisualBERT(config, vocab).eval()
    fill(system, VisualBERT.keys.to_ours(golden.weights("weights.")), "golden")
    return system


def batch_of(golden: Golden, rows: list[int] | None = None, shown: list[int] | None = None, **changes: Any) -> Batch:
    """The main batch; `rows` picks texts and `shown` pictures of it."""
    given = {key.removeprefix("input."): value for key, value in golden.tensors.items() if key.startswith("input.")}
    lengths, counts = given["input_mask"].sum(1), given["image_mask"].sum(1)
    rows = list(range(len(lengths))) if rows is None else rows
    shown = rows if shown is None else shown
    lengths, counts = lengths[rows], counts[shown]
    types = given["visual_embeddings_type"][shown] if changes.pop("types", False) else 0
    feats = given["visual_embeddings"][shown]
    made = Batch(
        keys=tuple(map(str, range(len(rows)))),
        sample=torch.arange(len(rows)),
        text=text(given["input_ids"][rows], lengths, given["token_type_ids"][rows]),
        regions=regions(feats, torch.zeros(*feats.shape[:2], 4), counts, types, None),
        targets={
            "mlm": golden.target(picks(given["masked_lm_labels"][rows], lengths)),
            "itm": given["is_random_next"][rows],
        },
    )
    return replace(made, **changes)


def links(golden: Golden, batch: Batch) -> Tensor:
    """The authors' table of aligned words as pairs of rows."""
    table = golden.tensors["input.image_text_alignment"]
    assert batch.text and batch.regions
    found = [
        [int(batch.text.packing.first[b]) + word, int(batch.regions.packing.first[b]) + r]
        for b, r, _ in (table >= 0).nonzero().tolist()
        if r < int(batch.regions.packing.lengths[b])
        for word in [int(table[b, r, _])]
    ]
    return torch.tensor(found)


def compare_rows(golden: Golden, ours: Encoded, batch: Batch, theirs: Tensor, what: str) -> None:
    """Text rows and region rows of every document with a padded block (B, T + V, ..)."""
    width = golden.tensors["input.input_ids"].shape[1]
    for rows, packing, start in ((ours.text, batch.text, 0), (ours.visual, batch.regions, width)):
        assert rows is not None and packing is not None
        for i, count in enumerate(packing.packing.lengths.tolist()):
            first = int(packing.packing.first[i])
            assert_near(rows[first : first + count], theirs[i, start : start + count], f"{what} {i}")


@each_case
def test_streams(golden: Golden) -> None:
    system, batch, seen = build(golden), batch_of(golden), {}
    system.encoder.register_forward_pre_hook(lambda _, given: seen.update(embedding_output=given[0], packing=given[1]))
    for i, layer in enumerate(system.encoder.layers):
        layer.register_forward_hook(lambda _, __, out, i=i: seen.update({f"hidden_states.{i}": out}))
    encoded = system.encode(batch)
    compare_rows(golden, encoded, batch, golden.output("sequence_output"), "sequence")
    assert_near(encoded.pooled, golden.output("pooled_output"), "pooled")
    width = golden.tensors["input.input_ids"].shape[1]
    packing: Packing = seen.pop("packing")
    for name, rows in seen.items():
        for i, (words, count) in enumerate(
            zip(batch.text.packing.lengths.tolist(), packing.lengths.tolist(), strict=True)
        ):
            ours = rows[int(packing.first[i]) :][:count]
            theirs = golden.output(name)[i]
            assert_near(ours, torch.cat([theirs[:words], theirs[width : width + count - words]]), f"{name} {i}")


@each_case
def test_losses_logits_and_gradients(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    losses, encoded = system(batch)
    assert_near(losses["mlm"], golden.output("masked_lm_loss"), "mlm")
    assert_near(losses["itm"], golden.output("next_sentence_loss"), "sentence-image")
    assert_near(losses["mlm"] + losses["itm"], golden.output("loss"), "total")
    assert_near(system.match_head(encoded.pooled), golden.output("seq_relationship_score"), "match logits")
    logits = replace(encoded, text=system.word_logits(encoded, torch.arange(len(encoded.text))))
    for i, count in enumerate(batch.text.packing.lengths.tolist()):
        rows = logits.text[int(batch.text.packing.first[i]) :][:count]
        assert_near(rows, golden.output("logits")[i, :count], f"word logits {i}")
    alone = system(replace(batch, targets={"mlm": batch.targets["mlm"]}))[0]
    assert_near(alone["mlm"], golden.output("mlm_only.loss"), "words alone")
    (losses["mlm"] + losses["itm"]).backward()
    ours = {key: parameter.grad for key, parameter in system.named_parameters() if parameter.grad is not None}
    theirs = VisualBERT.keys.to_theirs(ours)
    for key, gradient in golden.weights("grad.").items():
        assert_near(theirs[key], gradient, f"gradient of {key}")


@each_case
def test_other_inputs(golden: Golden) -> None:
    """Two visual segments; regions tied to their words; no picture at all."""
    system, batch = build(golden), batch_of(golden)
    for name, other in (
        ("types01", batch_of(golden, types=True)),
        ("aligned", replace(batch, links=links(golden, batch))),
        ("textonly", replace(batch, regions=None)),
    ):
        losses, encoded = system(other)
        assert_near(losses["mlm"] + losses["itm"], golden.output(f"{name}.loss"), f"{name} loss")
        logits = system.word_logits(encoded, torch.arange(len(encoded.text)))
        for i, count in enumerate(batch.text.packing.lengths.tolist()):
            rows = logits[int(batch.text.packing.first[i]) :][:count]
            assert_near(rows, golden.output(f"{name}.logits")[i, :count], f"{name} {i}")
        if f"output.{name}.seq_relationship_score" in golden.tensors:
            scores = golden.output(f"{name}.seq_relationship_score")
            assert_near(system.match_head(encoded.pooled), scores, f"{name} match logits")


def tuned(golden: Golden, name: str, head: str, **changes: Any) -> FineTuned:
    finetune = replace(VisualBERT.finetune[name], **changes)
    made = FineTuned(build(golden), finetune).eval()
    theirs = golden.weights(f"heads.{head}.")
    made.head.load_state_dict(
        {key.removeprefix("head."): value for key, value in finetune.keys.to_ours(theirs).items()}
    )
    assert (
        finetune.keys.to_theirs({f"head.{key}": value for key, value in made.head.state_dict().items()}).keys()
        == theirs.keys()
    )
    return made


@each_case
def test_answers(golden: Golden) -> None:
    labels = golden.tensors["input.vqa_label"]
    task = replace(VisualBERT.finetune["vqa"].task, answers=labels.shape[1])
    assert isinstance(task, VQA)
    made, batch = tuned(golden, "vqa", "vqa", task=task), batch_of(golden, targets={"vqa": labels})
    loss, scores = made(batch)
    assert_near(scores, golden.output("vqa.logits")[:, 0], "answer logits")
    assert_near(loss, golden.output("vqa.loss"), "answer loss")
    assert_near(task.expected(scores, batch).mean(), golden.output("vqa.accuracy"), "answer accuracy")


@each_case
def test_two_pictures(golden: Golden) -> None:
    batch = batch_of(golden, types=True, targets={"nlvr2": golden.tensors["input.nlvr_label"]})
    loss, scores = tuned(golden, "nlvr2", "nlvr")(batch)
    assert_near(scores, golden.output("nlvr.logits"), "NLVR2 logits")
    assert_near(loss, golden.output("nlvr.loss"), "NLVR2 loss")


@each_case
def test_choices(golden: Golden) -> None:
    rows = golden.tensors["input.multichoice_text_index"].tolist()
    right = golden.tensors["input.multichoice_label"]
    labels = torch.nn.functional.one_hot(right, len(rows))[0]
    batch = batch_of(
        golden, rows, [0] * len(rows), targets={"vcr": labels}, sample=torch.zeros(len(rows), dtype=torch.long)
    )
    made = tuned(golden, "vcr", "multichoice")
    loss, scores = made(batch)
    assert_near(made.finetune.task.ranks(scores, batch), golden.output("multichoice.logits"), "choice logits")
    assert_near(loss, golden.output("multichoice.loss"), "choice loss")


@each_case
def test_phrases(golden: Golden) -> None:
    place, soft = golden.tensors["input.flickr_position"], golden.tensors["input.flickr_label"]
    batch = batch_of(golden)
    real = place >= 0
    rows = (place + batch.text.packing.first[:, None])[real]
    batch = replace(batch, targets={"ground": Picks(rows, soft[real])})
    made = tuned(golden, "ground", "flickr")
    loss, scores = made(batch)
    theirs = golden.output("flickr.scores")[real]
    here = theirs > -5000
    assert_near(torch.where(here, scores[:, : theirs.shape[1]], 0.0), torch.where(here, theirs, 0.0), "phrase scores")
    assert_near(loss, golden.output("flickr.loss"), "phrase loss")
    right = made.finetune.task.right(scores, batch).float().mean()
    assert_near(right, golden.output("flickr.accuracy"), "phrase accuracy")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@each_case
def test_weights_round_trip_byte_equal(golden: Golden, suffix: str, tmp_path: Path) -> None:
    theirs = golden.weights("weights.")
    for prefix, keys in (("", VisualBERT.keys), ("bert.", VisualBERT.layouts["wrapped"])):
        named = {prefix + key: value for key, value in theirs.items()}
        write_weights(tmp_path / f"theirs{suffix}", named)
        system = build(golden)
        fill(system, keys.to_ours(read_weights(tmp_path / f"theirs{suffix}")), "theirs")
        again = keys.to_theirs(system.state_dict())
        assert again.keys() == named.keys()
        assert all(torch.equal(again[key], named[key]) for key in named)


@each_case
def test_hugging_face_is_equal_with_visual_segment_zero(golden: Golden) -> None:
    transformers = pytest.importorskip("transformers")
    about = golden.about["config"]
    config = transformers.VisualBertConfig(
        **{key: about[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")},
        intermediate_size=about["intermediate_size"],
        max_position_embeddings=about["max_position_embeddings"],
        visual_embedding_dim=about["visual_embedding_dim"],
        layer_norm_eps=1e-12,
    )
    torch.manual_seed(0)
    theirs = transformers.VisualBertForPreTraining(config).eval()
    state = {key: value for key, value in theirs.state_dict().items()}
    system = build(golden)
    fill(system, VisualBERT.layouts["hf"].to_ours(state), "hugging face")
    back = VisualBERT.layouts["hf"].to_theirs(system.state_dict())
    assert back.keys() == state.keys() - {"visual_bert.embeddings.position_ids"}
    given = {key.removeprefix("input."): value for key, value in golden.tensors.items() if key.startswith("input.")}
    with torch.no_grad():
        found = theirs(
            input_ids=given["input_ids"],
            attention_mask=given["input_mask"],
            token_type_ids=given["token_type_ids"],
            visual_embeds=given["visual_embeddings"],
            visual_attention_mask=given["image_mask"],
            visual_token_type_ids=torch.zeros_like(given["image_mask"]),
        )
        batch = batch_of(golden)
        encoded = system.encode(batch)
        torch.testing.assert_close(system.match_head(encoded.pooled), found.seq_relationship_logits, atol=2e-5, rtol=0)
        logits = system.word_logits(encoded, torch.arange(len(encoded.text)))
    for i, count in enumerate(batch.text.packing.lengths.tolist()):
        rows = logits[int(batch.text.packing.first[i]) :][:count]
        torch.testing.assert_close(rows, found.prediction_logits[i, :count], atol=2e-5, rtol=0)
