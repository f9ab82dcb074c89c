"""B2T2 against the authors' TensorFlow code: rows from raw annotations, pixels to crops, streams, losses, gradients, optimizer steps, dual encoder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import Golden, assert_near
from torch import Tensor

from intarsia.batch import Batch, Picks, Picture, Regions, Sample, Text, TextRows
from intarsia.data.decode import decode_image
from intarsia.features.letterbox import crop, grid, letterbox, pixel_boxes
from intarsia.packed import Packing
from intarsia.recipe import Optim, Schedule
from intarsia.systems.b2t2 import B2T2, B2T2Config, Token, document
from intarsia.tasks.benchmarks import Annotated, Pictures, find
from intarsia.text import Vocab
from intarsia.train.optim import adamw, clip, set_lr, step_if
from intarsia.tuned import LayOf
from intarsia.weights.files import fill, read_weights, write_weights

CASES = Golden.cases("b2t2")
each_case = pytest.mark.parametrize("golden", CASES, ids=str)


def config_of(golden: Golden, **changes: Any) -> B2T2Config:
    named = {key: value for key, value in golden.about["config"].items() if key in B2T2Config.__dataclass_fields__}
    flags = golden.about["flags"]
    named |= {"feature_size": flags["image_vector_dim"], "max_num_bboxes": flags["max_num_bboxes"]}
    return B2T2Config(**(named | {"max_rows": flags["max_seq_length"], "use_bbox_position": True} | changes))


def vocab_of(golden: Golden, size: int) -> Vocab:
    tokens = golden.about["vcr"]["vocab"]
    return Vocab([*tokens, *(f"w{i}" for i in range(size - len(tokens)))])


def build(golden: Golden, weights: dict[str, Tensor] | None = None, **changes: Any) -> B2T2:
    config = config_of(golden, **changes)
    system = B2T2(config, vocab_of(golden, config.vocab_size)).eval()
    state = B2T2.keys.to_ours(golden.weights("weights.") if weights is None else weights)
    wanted = system.state_dict()
    fill(system, {key: value for key, value in state.items() if key in wanted}, "golden")
    return system


def batch_of(golden: Golden, boxes: bool = True) -> Batch:
    given = {key.removeprefix("input."): value for key, value in golden.tensors.items() if key.startswith("input.")}
    lengths = given["input_mask"].sum(1)
    here = given["input_mask"] > 0
    packing = Packing.of(lengths.tolist())
    text = Text(given["input_ids"][here], given["segment_ids"][here], packing.pos, packing.pos, packing)
    documents, slots = given["crop_feat"].shape[:2]
    shown = Packing.of([slots + 1] * documents)  # the whole picture after the slots
    feats = torch.cat([given["crop_feat"], given["img_feat"][:, None]], 1).flatten(0, 1)
    edges = torch.zeros(documents, slots + 1, 4)
    for i, (height, width) in enumerate(given["hw"].tolist()):
        edges[i, :slots] = torch.from_numpy(grid(given["bbox_pos"][i].numpy(), height, width))
    zeros = torch.zeros(shown.rows, dtype=torch.long)
    regions = Regions(feats, edges.flatten(0, 1), zeros, zeros, zeros, zeros.bool(), shown)
    links = [[int(packing.first[i]) + 1, int(shown.first[i]) + slots] for i in range(documents)]
    if boxes:
        for i, place in ((given["bbox_idx"] >= 0) & here).nonzero().tolist():
            links.append([int(packing.first[i]) + place, int(shown.first[i]) + int(given["bbox_idx"][i, place])])
    asked = (given["masked_lm_weights"] > 0) & (given["label"][:, None] > 0)
    rows = (given["masked_lm_positions"] + packing.first[:, None])[asked]
    return Batch(
        keys=tuple(map(str, range(documents))),
        sample=torch.arange(documents),
        text=text,
        regions=regions,
        links=torch.tensor(links),
        targets={"mlm": Picks(rows, given["masked_lm_ids"][asked]), "itm": given["label"]},
    )


def real(golden: Golden, block: Tensor) -> Tensor:
    return block[golden.tensors["input.input_mask"] > 0]


class Stored:
    """Pictures whose regions are the boxes of the annotation."""

    provenance = None

    def __init__(self, examples: Any, width: int) -> None:
        self.examples, self.width = examples, width

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Sample:
        about = self.examples[index]["metadata"]
        sides = [about["width"], about["height"]] * 2
        boxes = np.array(about["boxes"], np.float64).reshape(-1, 5)[:, :4] / sides
        feats = np.zeros((len(boxes), self.width), np.float32)
        return Sample(f"{index}", (), (Picture(f"{index}.jpg", feats, boxes, about["width"], about["height"]),))


def items_of(golden: Golden, config: B2T2Config, test: bool, root: Path) -> Annotated:
    """The annotation as VCR's files, read as any."""
    lines = []
    for i, one in enumerate(golden.about["vcr"]["examples"]):
        (root / f"{i}.json").write_text(json.dumps(one["metadata"]))
        line = one["example"] | {"img_fn": f"{i}.jpg", "metadata_fn": f"{i}.json"}
        lines.append({k: v for k, v in line.items() if not (test and k.endswith("_label"))})
    (root / f"{'test' if test else 'train'}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    found = find("vcr").read(root, "test" if test else "train")
    return Annotated(found, Pictures(Stored(golden.about["vcr"]["examples"], config.feature_size)))


def as_they_loop(
    system: B2T2, sample: Sample, question: list[Token], rationales: bool
) -> Iterator[tuple[TextRows, list[list[int]]]]:
    """Documents of a sample by `document`, the question as documents before have cut it."""
    parts = [question, *([system._tokens(sample, 1, mentions=True)] if rationales else [])]
    shown = range(min(len(sample.pictures[0].names), system.config.max_num_bboxes))
    extra = [
        x
        for i in shown
        if system.config.append_all_bboxes
        for x in system._named(sample, sample.pictures[0].names[i], i)
    ]
    for text in range(len(parts), len(sample.texts)):
        choice = system._tokens(sample, text, mentions=True)
        yield document(system.vocab, (*parts, choice, [])[:3], extra, len(sample.pictures[0].boxes), system.config)


@pytest.mark.parametrize("setting", ["qa", "qar", "qa_append", "qar_test_tight", "qa_test"])
@each_case
def test_rows_of_raw_annotations(golden: Golden, setting: str, tmp_path: Path) -> None:
    about = golden.about["vcr"]
    how, theirs = about["settings"][setting], about["outputs"][setting]
    reasons, test = how["include_rationales"], how["is_test"]
    changes = {name: how[name] for name in ("max_num_bboxes", "append_all_bboxes")}
    size = len(about["vocab"])
    config = config_of(golden, max_rows=how["max_seq_length"], vocab_size=size, **changes)
    system = B2T2(config, vocab_of(golden, size))
    source = items_of(golden, config, test, tmp_path)
    samples = [x for x in map(source.__getitem__, range(len(source))) if ("/qar" in x.key) == reasons]
    lay, task = LayOf(system, "vcr"), B2T2.finetune["vcr"].task
    questions: dict[str, list[Token]] = {}
    number = 0
    for sample in samples:
        key, _, part = sample.key.partition("/qa")
        answer = int(part.removeprefix("r") or 0)
        question = questions.setdefault(key, system._tokens(sample, 0, mentions=True))
        documents = task.forms(lay, sample)
        looped = as_they_loop(system, sample, question, reasons)
        for form, ((rows, links), example) in enumerate(zip(looped, documents, strict=True)):
            wanted, number = theirs[number], number + 1
            assert wanted["choice_id"] == (4 * answer + form if reasons else 4 * form)
            assert wanted["label"] == (0 if test else int(sample.answers[0][0] == str(form)))
            count = sum(wanted["input_mask"])
            assert rows.ids.tolist() == wanted["input_ids"][:count]
            assert rows.segment_ids.tolist() == wanted["segment_ids"][:count]
            slots, picture = np.array(wanted["bbox_pos"]).reshape(-1, 4), sample.pictures[0]
            boxes = pixel_boxes(np.round(picture.boxes * ([picture.width, picture.height] * 2), 3))
            places = [i for i, slot in enumerate(wanted["bbox_idx"]) if slot >= 0]
            carried = {place: slots[wanted["bbox_idx"][place]].tolist() for place in places}
            assert {place: boxes[obj].tolist() for place, obj in links} == carried
            if (
                not answer
            ):  # of the test: each answer is a sample of its own and does not know what those before have cut
                assert example.text.ids.tolist() == rows.ids.tolist()
                assert example.links.tolist() == [*links, [1, len(boxes)]]
    assert number == len(theirs)


@each_case
def test_pixels_to_crops(golden: Golden) -> None:
    for i, picture in enumerate(golden.tensors["input.pixel_index"].tolist()):
        pixels = golden.tensors[f"input.pixels.{picture}"].numpy()
        assert_near(torch.from_numpy(letterbox(pixels)[::8, ::8]), golden.output("image224_every8")[i], f"picture {i}")
        for k, box in enumerate(golden.tensors["input.bbox_pos"][i].tolist()):
            ours = torch.from_numpy(letterbox(crop(pixels, box))[::16, ::16])
            assert_near(ours, golden.output("bboxes224_every16")[i, k], f"crop {i}.{k}")
    decoded = decode_image(golden.tensors["input.jpeg.0"].numpy().tobytes())
    assert decoded.shape == golden.tensors["input.pixels.0"].shape


@each_case
def test_features_of_the_stub(golden: Golden) -> None:
    """The golden's stand-in for the ResNet, fed by our crops, gives the golden's features."""
    project = golden.tensors["input.stub_projection"]
    for i, picture in enumerate(golden.tensors["input.pixel_index"].tolist()):
        whole = torch.from_numpy(letterbox(golden.tensors[f"input.pixels.{picture}"].numpy()))
        pooled = whole.view(8, 28, 8, 28, 3).mean((1, 3)).flatten()
        assert_near(pooled @ project, golden.tensors["input.img_feat"][i], f"feature {i}")


@each_case
def test_streams(golden: Golden) -> None:
    system, batch, seen = build(golden), batch_of(golden), {}
    system.encoder.register_forward_pre_hook(lambda _, given: seen.update(embedding_output=given[0]))
    system.encoder.layers[0].register_forward_hook(lambda _, __, out: seen.update(layer0_output=out))
    summed = system.fusion.summed(len(batch.text.ids), batch.regions, batch.links)
    assert_near(summed, real(golden, golden.output("pretrain.image_embeddings")), "features by token")
    encoded = system.encode(batch)
    seen["sequence_output"] = encoded.text
    for name, rows in seen.items():
        assert_near(rows, real(golden, golden.output(f"pretrain.{name}")), name)
    assert_near(encoded.pooled, golden.output("pretrain.pooled_output"), "pooled")
    for name, other, shown in (
        ("nopos", build(golden, use_bbox_position=False), batch),
        ("nobox", build(golden, use_bbox_position=False), batch_of(golden, boxes=False)),
    ):
        encoded = other.encode(shown)
        assert_near(encoded.text, real(golden, golden.output(f"{name}.sequence_output")), name)
        assert_near(other.match_logits(encoded), golden.output(f"{name}.logits"), f"{name} logits")


@each_case
def test_losses_logits_and_gradients(golden: Golden) -> None:
    system, batch = build(golden), batch_of(golden)
    losses, encoded = system(batch)
    assert_near(losses["mlm"], golden.output("pretrain.mask_lm_loss"), "words")
    assert_near(losses["itm"], golden.output("pretrain.negative_loss"), "impostors")
    assert_near(losses["itm"], golden.output("finetune.loss"), "impostors alone")
    assert_near(system.match_logits(encoded), golden.output("predict.logits"), "impostor logits")
    places = golden.tensors["input.masked_lm_positions"] + batch.text.packing.first[:, None]
    logs = system.word_logits(encoded, places.flatten()).log_softmax(-1)
    assert_near(logs, golden.output("pretrain.mask_lm_log_probs"), "word log probabilities")
    each = -logs.gather(1, golden.tensors["input.masked_lm_ids"].view(-1, 1)).squeeze(1)
    assert_near(each, golden.output("pretrain.mask_lm_per_token_loss"), "loss of each word")
    assert torch.equal(logs.argmax(1).view_as(places), golden.output("predict.masked_lm_preds"))
    total = losses["mlm"] + losses["itm"]
    assert_near(total, golden.output("pretrain.total_loss"), "total")
    total.backward()
    ours = {key: parameter.grad for key, parameter in system.named_parameters() if parameter.grad is not None}
    theirs = B2T2.keys.to_theirs(ours)
    for key, gradient in golden.weights("grad.").items():
        assert_near(theirs[key], gradient, f"gradient of {key}")


@each_case
def test_optimizer_steps(golden: Golden) -> None:
    system, batch, flags = build(golden), batch_of(golden), golden.about["flags"]
    recipe = Optim(flags["learning_rate"], (0.9, 0.999), 1e-6, 0.01, ("bias", "norm"), 1.0, bias_correction=False)
    schedule = Schedule(flags["num_train_steps"], flags["num_warmup_steps"], shape="bert")
    optimizer = adamw(system, recipe)
    for step, (loss, norm) in enumerate(
        zip(golden.output("train5.loss"), golden.output("train5.norm_clip"), strict=True)
    ):
        losses, _ = system(batch)
        assert_near(losses["mlm"] + losses["itm"], loss, f"loss before step {step}")
        (losses["mlm"] + losses["itm"]).backward()
        ours, divide = clip(list(system.parameters()), recipe.max_norm)
        assert_near(ours / norm, torch.ones(()), f"norm before step {step}, relative")
        set_lr(optimizer, recipe, schedule, step)
        step_if(optimizer, torch.zeros(()), divide)
        optimizer.zero_grad()
    theirs = B2T2.keys.to_theirs(system.state_dict())
    for key, value in golden.weights("output.train5.final.").items():
        assert_near(theirs[key], value, f"{key} after the steps")


@pytest.mark.parametrize(("name", "fusion"), [("dual", "dual"), ("dual_noimg", "blind")])
@each_case
def test_dual_encoder(golden: Golden, name: str, fusion: str) -> None:
    weights = {
        key: x for key, x in golden.weights("weights.").items() if key.startswith("bert/") and "output_" not in key
    }
    weights = {key: x for key, x in weights.items() if not key.startswith("bert/embeddings/dense")}
    system = build(golden, weights | golden.weights(f"weights_{name}."), fusion=fusion, use_bbox_position=False)
    batch = batch_of(golden)
    batch = replace(batch, targets={"itm": batch.targets["itm"]})
    losses, encoded = system(batch)
    assert_near(system.match_logits(encoded), golden.output(f"{name}.logits"), "logits")
    assert_near(losses["itm"], golden.output(f"{name}.loss"), "loss")
    if name == "dual":
        assert_near(encoded.text, real(golden, golden.output("dual.sequence_output")), "sequence")
        losses["itm"].backward()
        theirs = B2T2.keys.to_theirs({k: p.grad for k, p in system.named_parameters() if p.grad is not None})
        for key, gradient in golden.weights("grad_dual.").items():
            assert_near(theirs[key], gradient, f"gradient of {key}")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@each_case
def test_weights_round_trip_byte_equal(golden: Golden, suffix: str, tmp_path: Path) -> None:
    theirs = golden.weights("weights.")
    write_weights(tmp_path / f"theirs{suffix}", theirs)
    system = build(golden)
    fill(system, B2T2.keys.to_ours(read_weights(tmp_path / f"theirs{suffix}")), "theirs")
    again = B2T2.keys.to_theirs(system.state_dict())
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)
