"""FashionBERT against the authors' TensorFlow code: inputs, stream, three losses, adaptive weights, gradients, steps of both optimizers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden import Golden, assert_near
from torch import Tensor

from intarsia.batch import Batch, Picks, Regions, Text
from intarsia.packed import Packing
from intarsia.recipe import Mix, Optim, Schedule
from intarsia.systems.fashionbert import ROOT, FashionBERT, FashionBERTConfig, adaptive_weights
from intarsia.text import SPECIALS, Vocab
from intarsia.train.optim import adamw, clip, set_lr, step_if
from intarsia.weights.files import fill, read_weights, write_weights

CASES = Golden.cases("fashionbert")
each_case = pytest.mark.parametrize("golden", CASES, ids=str)


def build(golden: Golden) -> FashionBERT:
    about = golden.about["config"]
    named = {key: value for key, value in about.items() if key in FashionBERTConfig.__dataclass_fields__}
    config = FashionBERTConfig(**named, feature_size=about["patch_feature_size"])
    vocab = Vocab([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])
    system = FashionBERT(config, vocab).eval()
    fill(system, FashionBERT.keys.to_ours(golden.weights("weights.")), "golden")
    return system


def here(golden: Golden) -> tuple[Tensor, Tensor]:
    """(B, S) real words, (B, N) real patches."""
    return golden.tensors["input.input_mask"] > 0, golden.tensors["input.image_mask"] > 0


def features(golden: Golden) -> Tensor:
    """(B, N, D)"""
    return golden.tensors["input.image_feature"].view(*golden.tensors["input.image_mask"].shape, -1)


def place(real: Tensor, positions: Tensor) -> Tensor:
    """(B, P) packed rows of padded positions, whose rows are real."""
    numbers = torch.cumsum(real.flatten().long(), 0).view_as(real) - 1
    assert real.gather(1, positions).all(), "a picked row is padding"
    return numbers.gather(1, positions)


def batch_of(golden: Golden, hidden: str | None = "input.masked_patch_positions") -> Batch:
    given = {key.removeprefix("input."): value for key, value in golden.tensors.items() if key.startswith("input.")}
    words, patches = here(golden)
    packing, shown = (Packing.of(x.sum(1).tolist()) for x in (words, patches))
    positions = torch.arange(words.shape[1]).expand_as(words)[words]
    text = Text(given["input_ids"][words], given["segment_ids"][words], positions, positions, packing)
    feats, targets = features(golden), {}
    if hidden is not None:
        chosen = golden.tensors[hidden]
        count = F.one_hot(chosen, feats.shape[1]).sum(1)  # (B, N); a patch named twice is turned around by theirs
        raw = feats.gather(1, chosen[:, :, None].expand(-1, -1, feats.shape[2]))
        asked = given["masked_lm_weights"] > 0
        rows = place(words, given["masked_lm_positions"])
        targets = {
            "mlm": Picks(rows[asked], given["masked_lm_ids"][asked]),
            "tia": given["nx_sent_labels"].flatten(),
            "mpm": Picks(place(patches, chosen).flatten(), raw.flatten(0, 1)),
        }
        feats = feats * (1 - count)[:, :, None]
    zeros = torch.zeros(shown.rows, dtype=torch.long)
    cell = torch.arange(patches.shape[1]).expand_as(patches)[patches]
    regions = Regions(feats[patches], torch.zeros(shown.rows, 4), zeros + 1, cell, zeros, zeros.bool(), shown)
    keys = tuple(map(str, range(len(words))))
    return Batch(keys, torch.arange(len(words)), text, regions, targets=targets)


def compare(golden: Golden, text: Tensor, patches: Tensor, name: str) -> None:
    words, shown = here(golden)
    theirs, count = golden.output(name), words.shape[1]
    assert_near(text, theirs[:, :count][words], f"{name}, words")
    assert_near(patches, theirs[:, count:][shown], f"{name}, patches")


@each_case
def test_streams(golden: Golden) -> None:
    system = build(golden)
    for mode, hidden in (("eval", "input.masked_patch_positions"), ("predict", None)):
        batch, seen = batch_of(golden, hidden), {}
        first = system.encoder.layers[0]
        hooks = [
            first.register_forward_hook(lambda _, __, out, seen=seen: seen.update(layer0_output=out)),
            first.attention_norm.register_forward_hook(
                lambda _, __, out, seen=seen: seen.update(layer0_attention_output=out)
            ),
        ]
        encoded = system.encode(batch)
        for hook in hooks:
            hook.remove()
        compare(golden, system.words(batch.text), system.patches(batch.regions), f"{mode}.embedding_output")
        compare(golden, encoded.text, encoded.visual, f"{mode}.sequence_output")
        assert_near(system.match_logits(encoded), golden.output(f"{mode}.nsp_logits"), f"{mode} match logits")
        for name, rows in seen.items():
            if f"output.{mode}.{name}" in golden.tensors:
                owner = torch.cat([batch.text.packing.doc, batch.regions.packing.doc])
                order = torch.argsort(owner, stable=True)  # documents: words, then patches
                apart = torch.empty_like(rows).index_copy(0, order, rows)
                compare(golden, *apart.split([batch.text.packing.rows, batch.regions.packing.rows]), f"{mode}.{name}")


@each_case
def test_patches_named_twice(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden, "input.dup.masked_patch_positions")
    compare(golden, system.words(batch.text), system.patches(batch.regions), "dup.embedding_output")


@each_case
def test_losses_logits_weights_and_gradients(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    losses, encoded = system(batch)
    assert list(losses) == ["mlm", "tia", "mpm"]
    each = torch.stack(list(losses.values()))
    assert_near(each, golden.output("eval.losses"), "losses")
    assert_near(adaptive_weights(each), golden.output("eval.adaptive_weights"), "adaptive weights")
    words, _ = here(golden)
    rows = place(words, golden.tensors["input.masked_lm_positions"]).flatten()
    assert_near(system.word_logits(encoded, rows), golden.output("eval.mlm_logits"), "word logits")
    picks = batch.picks("mpm")
    assert_near(system.patch_logits(encoded, picks.rows), golden.output("eval.mpm_logits"), "patch logits")
    assert_near(picks.labels, golden.output("eval.target_raw_patch_features"), "hidden features")
    logs, wanted = system.patch_logits(encoded, picks.rows).log_softmax(-1), picks.labels.log_softmax(-1)
    assert_near(F.mse_loss(logs, wanted), golden.output("eval.image_mse_loss_unused"), "the loss they left unused")
    total = system.weigh(losses, Mix())
    assert_near(total, golden.output("eval.total_loss"), "total")
    total.backward()
    theirs = FashionBERT.keys.to_theirs(
        {key: parameter.grad for key, parameter in system.named_parameters() if parameter.grad is not None}
    )
    for key, gradient in golden.weights("grad.").items():
        assert_near(theirs[key], gradient, f"gradient of {key}")


@pytest.mark.parametrize(("name", "decay", "second"), [("train5_adam", 0.0, 0.98), ("train5_adamw", 0.01, 0.999)])
@each_case
def test_optimizer_steps(golden: Golden, name: str, decay: float, second: float) -> None:
    system, batch, how = build(golden), batch_of(golden), golden.about["train"]
    recipe = Optim(how["learning_rate"], (0.9, second), 1e-6, decay, ("bias", "norm"), 1.0, corrected_decay=True)
    schedule = Schedule(how["train_steps"], how["warmup_steps"], shape="product")
    optimizer = adamw(system, recipe)
    for step, (loss, norm) in enumerate(
        zip(golden.output(f"{name}.loss"), golden.output(f"{name}.norm_clip"), strict=True)
    ):
        total = system.weigh(system(batch)[0], Mix())
        assert_near(total, loss, f"loss before step {step}")
        total.backward()
        ours, divide = clip(list(system.parameters()), recipe.max_norm)
        assert_near(ours / norm, torch.ones(()), f"norm before step {step}, relative")
        set_lr(optimizer, recipe, schedule, step)
        step_if(optimizer, torch.zeros(()), divide)
        optimizer.zero_grad()
    theirs = FashionBERT.keys.to_theirs(system.state_dict())
    for key, value in golden.weights(f"output.{name}.final.").items():
        assert_near(theirs[key], value, f"{key} after the last step")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@each_case
def test_weights_round_trip_byte_equal(golden: Golden, suffix: str, tmp_path: Path) -> None:
    theirs = golden.weights("weights.")
    write_weights(tmp_path / f"theirs{suffix}", theirs)
    system = build(golden)
    fill(system, FashionBERT.keys.to_ours(read_weights(tmp_path / f"theirs{suffix}")), "theirs")
    again = FashionBERT.keys.to_theirs(system.state_dict())
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)
    bare = {key.removeprefix(ROOT): value for key, value in theirs.items()}
    ours = FashionBERT.layouts["bare"].to_ours(bare)
    assert all(torch.equal(ours[key], value) for key, value in system.state_dict().items())
