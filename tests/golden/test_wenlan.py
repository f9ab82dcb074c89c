"""WenLan against the authors' own code: trunk, regions, BERT, towers, logits, losses, gradients, a step of the copies and queues, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden import Golden, assert_near
from torch import Tensor

from intarsia.batch import Batch, Images, Regions, Text
from intarsia.errors import BadInput
from intarsia.features.efficientnet import Shape
from intarsia.packed import Packing, unpad
from intarsia.parts.momentum import Queue
from intarsia.systems.wenlan import WenLan, WenLanConfig
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import fill, read_weights, write_weights

CASES = Golden.cases("wenlan")
each_case = pytest.mark.parametrize("golden", CASES, ids=str)


def config_of(golden: Golden, **changes: Any) -> WenLanConfig:
    about, weights = golden.about["config"], golden.weights("weights.")
    stem = weights["imgencoder.backbone.conv_stem.weight"].shape[0]
    classes = len(weights["imgencoder.backbone.classifier.bias"])
    assert about["IMG_TRANSFORMER_HEAD"] == about["TEXT_TRANSFORMER_HEAD"]
    assert about["IMG_TRANSFORMER_LAYER"] == about["TEXT_TRANSFORMER_LAYER"]
    named: dict[str, Any] = {
        "vocab_size": about["x_vocab"],
        "hidden_size": about["TEXT_FEATURE_DIM"],
        "num_hidden_layers": about["x_bert_layers"],
        "num_attention_heads": about["x_bert_heads"],
        "intermediate_size": about["x_bert_ffn"],
        "max_position_embeddings": about["x_maxpos"],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "embedding_size": about["IMG_FEATURE_DIM"],
        "trunk": Shape(about["x_width"], about["x_depth"], stem, about["IMG_FEATURE_DIM"], classes),
        "image_size": about["IMG_SIZE"],
        "max_boxes": about["MAX_IMG_LEN"] - 1,
        "box_grid": about["BOX_GRID"],
        "reads": about["GRID_SIZE"],
        "max_text": about["MAX_TEXT_LEN"],
        "top_layers": about["IMG_TRANSFORMER_LAYER"],
        "top_heads": about["IMG_TRANSFORMER_HEAD"],
        "top_intermediate": about["x_te_ffn"],
        "top_dropout": 0.0,
        "queue_size": about["QUEUE_SIZE"],
        "momentum": about["MOMENTUM"],
        "temperature": about["TEMPERATURE"],
        "topk": about["TOPK"],
        "frozen": (),
    }
    return WenLanConfig(**(named | changes))


def build(golden: Golden, **changes: Any) -> WenLan:
    config = config_of(golden, **changes)
    vocab = Vocab([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])
    system = WenLan(config, vocab).train()  # no dropout, and batch norms by stored statistics
    fill(system, WenLan.keys.to_ours(golden.weights("weights.")), "golden")
    return system


def batch_of(golden: Golden) -> Batch:
    given = {key.removeprefix("input."): value for key, value in golden.tensors.items() if key.startswith("input.")}
    said, shown = (Packing.of(given[f"mask_{x}"].sum(1).long().tolist()) for x in ("texts", "images"))
    none = torch.zeros(shown.rows, dtype=torch.long)
    boxes = unpad(given["image_boxes"], shown) / golden.about["config"]["IMG_SIZE"]
    count = len(given["images"])
    ids = unpad(given["texts"], said)
    return Batch(
        keys=tuple(map(str, range(count))),
        sample=torch.arange(count),
        text=Text(ids, torch.zeros_like(ids), said.pos, said.pos, said),
        regions=Regions(torch.zeros(shown.rows, 0), boxes, none, none, none, none.bool(), shown),
        images=Images(given["images"], torch.zeros(count, 2, dtype=torch.long), torch.arange(count)),
        targets={"i2t": torch.zeros(count, dtype=torch.long), "t2i": torch.zeros(count, dtype=torch.long)},
    )


def real(theirs: Tensor, packing: Packing) -> Tensor:
    return unpad(theirs, packing)


@each_case
def test_trunk_regions_and_bert(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    maps = system.image.trunk.features(batch.images.pixels)
    assert_near(maps, golden.output("feature_map"), "feature map")
    theirs = real(golden.output("region_feats"), batch.regions.packing)
    assert_near(system.image.rows(maps, batch.regions), theirs, "regions")
    theirs = real(golden.output("bert_last_hidden"), batch.text.packing)
    assert_near(system.text.rows(batch.text), theirs, "BERT, which sees padding")


@each_case
def test_towers(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    assert_near(system.image(batch.images, batch.regions)[1], golden.output("img_emb"), "picture")
    assert_near(system.text(batch.text)[1], golden.output("text_emb"), "text")
    encoded = system.encode(batch)
    assert_near(encoded.pooled_visual, golden.output("img_q"), "picture, length 1")
    assert_near(encoded.pooled_text, golden.output("text_q"), "text, length 1")


@each_case
def test_logits_and_keys(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    i2t, t2i, also, (texts, images) = system.contrasts(system.encode(batch), batch)
    assert also is None
    assert_near(i2t, golden.output("i2t_logits"), "picture to text logits")
    assert_near(t2i, golden.output("t2i_logits"), "text to picture logits")
    assert_near(texts, golden.output("text_k"), "text keys")
    assert_near(images, golden.output("img_k"), "picture keys")


@each_case
def test_losses_and_gradients(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    losses, _ = system(batch)
    for name in ("i2t", "t2i"):
        assert_near(losses[name], golden.output(f"{name}_loss"), name)
    total = losses["i2t"] + losses["t2i"]
    assert_near(total, golden.output("loss"), "total")
    total.backward()
    ours = {key: value.grad for key, value in system.named_parameters() if value.grad is not None}
    theirs = WenLan.keys.to_theirs(ours)
    gradients = golden.weights("grad.")
    assert gradients
    for key, gradient in gradients.items():
        assert_near(theirs[key], gradient, f"gradient of {key}")


@each_case
def test_several_positives(golden: Golden) -> None:
    losses, _ = build(golden, multi_label=True)(batch_of(golden))
    assert_near(losses["i2t"] + losses["t2i"], golden.output("loss_multi_label"), "loss")


@each_case
def test_copies_and_queues_after_a_step(golden: Golden) -> None:
    """Against the authors' keys and the code's formula of the move, and the state stored after the step where it is one.

    In the file at hand every tensor stored as "after" is bit for bit the one before, pointer and all, though the authors' keys are only met after the
    move (`test_the_authors_keys_come_after_the_move`): it was stored after the state had been put back.
    """
    system, batch = build(golden), batch_of(golden)
    weights, count = golden.weights("weights."), len(batch.keys)
    system(batch)
    after = WenLan.keys.to_theirs(system.state_dict())
    for name, key in (("img_queue", "img_k"), ("text_queue", "text_k")):
        room, start = weights[name].shape[1], int(weights[f"{name}_ptr"])
        wanted = weights[name].clone()
        wanted[:, [(start + i) % room for i in range(count)]] = golden.output(key).T
        assert_near(after[name], wanted, name)
        assert after[f"{name}_ptr"].tolist() == [(start + count) % room]
        if not torch.equal(golden.output(f"{name}_after"), weights[name]):
            assert_near(after[name], golden.output(f"{name}_after"), f"{name}, stored")
            assert torch.equal(after[f"{name}_ptr"], golden.output("queue_ptr_after"))
    momentum = golden.about["config"]["MOMENTUM"]
    copies = [key for key in weights if "_mom." in key and "running" not in key and "num_batches" not in key]
    assert copies
    for key in copies:
        wanted = momentum * weights[key] + (1 - momentum) * weights[key.replace("_mom.", ".")]
        assert_near(after[key], wanted, f"{key} after the step")
    for key, value in golden.weights("output.after_ema.").items():
        if not torch.equal(value, weights[key]):
            assert_near(after[key], value, f"{key}, stored")
    statistics = [key for key in weights if "_mom." in key and "running" in key]
    assert all(torch.equal(after[key], weights[key]) for key in statistics)


@each_case
def test_the_authors_keys_come_after_the_move(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    theirs = golden.output("img_k")
    with torch.no_grad():
        before = F.normalize(system.image_mom(batch.images, batch.regions)[1], dim=-1)
        system.follow()
        after = F.normalize(system.image_mom(batch.images, batch.regions)[1], dim=-1)
    assert (before - theirs).abs().max() > 1e-4
    assert_near(after, theirs, "keys after one move")


@each_case
def test_evaluation_moves_nothing(golden: Golden) -> None:
    system, batch = build(golden).eval(), batch_of(golden)
    before = {key: value.clone() for key, value in system.state_dict().items()}
    system(batch)
    assert all(torch.equal(value, before[key]) for key, value in system.state_dict().items())


@each_case
def test_the_reads_of_a_box_are_grid_sample(golden: Golden) -> None:
    """The two axes' weights against the authors' affine_grid and grid_sample, for boxes that leave the picture as well."""
    system = build(golden)
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(2, system.config.trunk.channels, 5, 7, generator=generator)
    boxes = torch.rand(6, 4, generator=generator) * 1.4 - 0.2
    packing = Packing.of([4, 2])
    none = torch.zeros(6, dtype=torch.long)
    regions = Regions(torch.zeros(6, 0), boxes, none, none, none, none.bool(), packing)
    ours = system.image.rows(maps, regions)
    high, wide, reads = 5, 7, system.config.reads
    x1, y1, x2, y2 = (boxes * high).unbind(-1)
    zero = torch.zeros(6)
    theta = torch.stack(
        [(x2 - x1) / (wide - 1), zero, (x1 + x2 - wide + 1) / (wide - 1),
         zero, (y2 - y1) / (high - 1), (y1 + y2 - high + 1) / (high - 1)], 1).view(6, 2, 3)  # fmt: skip
    grid = F.affine_grid(theta, [6, maps.shape[1], reads, reads], align_corners=False)
    read = system.image.project(F.grid_sample(maps[packing.doc], grid, align_corners=False)).mean((2, 3))
    torch.testing.assert_close(ours, read, atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@each_case
def test_weights_round_trip_byte_equal(golden: Golden, suffix: str, tmp_path: Path) -> None:
    theirs = golden.weights("weights.")
    write_weights(tmp_path / f"theirs{suffix}", theirs)
    system = build(golden)
    fill(system, WenLan.keys.to_ours(read_weights(tmp_path / f"theirs{suffix}")), "theirs")
    again = WenLan.keys.to_theirs(system.state_dict())
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)


@each_case
def test_the_published_file_has_no_queues_and_a_table_of_positions(golden: Golden, tmp_path: Path) -> None:
    learnable = {key: value for key, value in golden.weights("weights.").items() if "queue" not in key}
    table = torch.arange(24)[None]
    stale = {f"textencoder{x}.backbone.bert.embeddings.position_ids": table for x in ("", "_mom")}
    torch.save({"learnable": learnable | stale}, tmp_path / "BriVL.pth")
    state = WenLan.keys.to_ours(read_weights(tmp_path / "BriVL.pth"))
    system = build(golden)
    missing = fill(system, state, "published", WenLan.keys.optional)
    assert sorted(missing) == ["image_queue.keys", "image_queue.pointer", "text_queue.keys", "text_queue.pointer"]
    assert WenLan.keys.to_theirs(state).keys() == learnable.keys()


def test_the_queue_wraps_and_refuses_to_be_lapped() -> None:
    queue = Queue(2, 5)
    assert torch.allclose(queue.keys.norm(dim=0), torch.ones(5))
    queue.keys.zero_()
    queue.pointer.fill_(3)
    queue.put(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert queue.keys.tolist() == [[5, 0, 0, 1, 3], [6, 0, 0, 2, 4]]
    assert queue.pointer.tolist() == [1]
    with pytest.raises(BadInput, match="a queue of 5 keys is shorter than a step's 6 pairs"):
        queue.put(torch.zeros(6, 2))
