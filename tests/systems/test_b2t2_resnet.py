"""B2T2 with its ResNet in the loop: the same numbers as by features made beforehand, what is read and what trains, the authors' decay, weights, runs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from intarsia import tuning_runs
from intarsia.batch import Link, Picture, Sample
from intarsia.cli import main
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.evaluate.grounding import pointing
from intarsia.evaluate.running import keep_regions
from intarsia.features import resnet_v2_regions
from intarsia.features.letterbox import crop, letterbox
from intarsia.features.resnet_v2 import ResNetV2, ResNetV2Config, tf_state
from intarsia.features.resnet_v2_regions import Cutouts
from intarsia.model import Model, read_ours
from intarsia.pack import pack
from intarsia.recipe import to_json
from intarsia.system import begin, fit_config
from intarsia.systems.b2t2 import B2T2, NO_DECAY, RESNET152
from intarsia.tasks.benchmarks import find
from intarsia.text import SPECIALS, Vocab
from intarsia.train.optim import groups
from intarsia.tuned import Tuned
from intarsia.weights.files import write_weights
from intarsia.worlds.twins import write_twin

VOCAB = Vocab([*SPECIALS, *B2T2.specials, *(f"w{i}" for i in range(30))])
SMALL = dataclasses.replace(RESNET152, units=(1, 2, 1), base_depth=(4, 4, 8), stem_channels=4)
"""A ResNet of three blocks, whose features have 32 numbers."""
SCOPE = "module/resnet_v2_152/"
WIDE, HIGH = 90, 60
BOXES = np.array([[9, 12, 49, 54], [0, 0, 45, 60], [80, 50, 90, 60], [20, 20, 60, 40]], np.float64)
FUSIONS = pytest.mark.parametrize(("fusion", "places"), [("early", True), ("late", False), ("dual", False)])


def net() -> ResNetV2:
    """One whose norms are not 1 and 0."""
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        found = ResNetV2(dataclasses.replace(SMALL, norm="frozen"))
        for value in found.state_dict().values():
            if value.ndim == 1:
                value.copy_(torch.rand_like(value) + 0.5)
    return found


@pytest.fixture
def trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ResNet's weights as a hub module's checkpoint names them; the extractor's own size is as small."""
    monkeypatch.setitem(resnet_v2_regions.SIZES, "resnet_v2_152", dataclasses.replace(SMALL, norm="frozen"))
    write_weights(tmp_path / "trunk.safetensors", tf_state(net(), SCOPE))
    return tmp_path / "trunk.safetensors"


def build(trainable: bool = True, **changes: Any) -> B2T2:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = fit_config(B2T2.recipes["base"].config, len(VOCAB), 0 if trainable else SMALL.width, 2)
    new = small | dropout | {"resnet": SMALL, "trainable_resnet": trainable, "use_bbox_position": True} | changes
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        system = B2T2(dataclasses.replace(config, **new), VOCAB)
        for name, value in system.state_dict().items():  # documents that differ plainly
            if value.ndim == 2 and not name.startswith(("trunk.", "dual.", "fusion.dense.")):
                value.mul_(10)
    return system


def question() -> Sample:
    """Objects 0 and 3 in the question, 1 and again 3 in choices; nobody speaks of 2."""
    image = np.random.default_rng(0).integers(0, 255, (HIGH, WIDE, 3), np.uint8)
    boxes = (BOXES / [WIDE, HIGH, WIDE, HIGH]).astype(np.float32)
    picture = Picture("p", np.zeros((4, 0), np.float32), boxes, WIDE, HIGH, pixels=lambda: image)
    links = (Link(0, 2, 0, 0), Link(3, 5, 3, 0), Link(0, 2, 1, 2), Link(0, 2, 3, 3))
    texts = ("w1 w2 w3", "w4", "w5 w6", "w7", "w8")
    return Sample("s", texts, (picture,), links, answers=(("2", 1.0),))


def extracted(sample: Sample, extractor: Cutouts) -> Sample:
    """With features of its boxes and, last, of the whole picture, made beforehand."""
    (picture,) = sample.pictures
    assert picture.pixels is not None
    boxes = np.concatenate([picture.boxes, [[0, 0, 1, 1]]]).astype(np.float32)
    (found,) = extractor.features_at([picture.pixels()], [boxes])
    stored = Picture("p", found.features, found.boxes, WIDE, HIGH)
    return dataclasses.replace(sample, pictures=(stored,))


def both(trunk: Path, **changes: Any) -> tuple[B2T2, B2T2]:
    """A system that reads features made beforehand, and one that makes them, with the same weights."""
    stored, live = build(False, **changes), build(**changes)
    live.load_state_dict(stored.state_dict(), strict=False)
    live.fill_trunk(trunk)
    return stored.eval(), live.eval()


# --------------------------------------------------------------------------------------------------- numbers


@FUSIONS
def test_features_and_logits_are_those_of_two_steps(trunk: Path, fusion: str, places: bool) -> None:
    stored, live = both(trunk, fusion=fusion, use_bbox_position=places)
    sample, extractor = question(), Cutouts(str(trunk), device="cpu")
    before, after = (Tuned(begin(x, B2T2.finetune["vcr"]), "vcr").eval() for x in (stored, live))
    known = pack(before.forms(extracted(sample, extractor)))
    batch = pack(after.forms(sample))
    assert batch.images is not None and batch.regions is not None and known.regions is not None
    if fusion != "dual":
        feats = after.system.trunk.vectors(batch.images.pixels)[batch.images.again]
        seen = after.system.fusion.summed(
            len(batch.text.ids), dataclasses.replace(batch.regions, feats=feats), batch.links
        )
        wanted = before.system.fusion.summed(len(known.text.ids), known.regions, known.links)
        assert float(wanted.detach().abs().max()) > 0.1
        torch.testing.assert_close(seen, wanted, atol=2e-5, rtol=0)
    with torch.no_grad():
        (one,), (other,) = before.predict(known), after.predict(batch)
        assert len({round(x, 4) for x in one.tolist()}) == 4  # the choices differ
        torch.testing.assert_close(other, one, atol=2e-5, rtol=0)
        caption = dataclasses.replace(sample, texts=("w1 w2",), links=())
        pairs = [(stored, extracted(caption, extractor)), (live, caption)]
        two, three = (x.match_logits(x.encode(pack([x.lay_out(y)]))) for x, y in pairs)
    torch.testing.assert_close(three, two, atol=2e-5, rtol=0)


def test_each_object_spoken_of_is_read_once_for_all_choices(trunk: Path) -> None:
    _, live = both(trunk)
    tuned, sample = Tuned(begin(live, B2T2.finetune["vcr"]), "vcr"), question()
    examples = tuned.forms(sample)
    batch = pack(examples)
    assert [len(x.images) for x in examples] == [4, 0, 0, 0]  # objects 0, 1, 3 and the picture
    image, places = sample.pictures[0].pixels(), [(12, 9, 42, 40), (0, 0, 60, 45), (20, 20, 20, 40)]
    squares = [letterbox(x) for x in (*(crop(image, y) for y in places), image)]
    torch.testing.assert_close(batch.images.pixels, torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2))
    assert batch.images.once.tolist() == [0, 1, 2, 3] and batch.images.again.tolist() == [0, 1, 2, 3] * 4
    numbers = [[row for _, row in x.links.tolist()] for x in examples]
    assert numbers == [[0, 2, 3], [0, 2, 1, 3], [0, 2, 2, 3], [0, 2, 3]]
    named = build(append_all_bboxes=True, max_num_bboxes=3)
    shown = dataclasses.replace(sample.pictures[0], names=("w9",) * 4)
    more = named.lay_out(dataclasses.replace(sample, pictures=(shown,)), "vcr", 3)
    assert len(more.images) == 5 and sorted({row for _, row in more.links.tolist()}) == [0, 1, 3, 4]
    captioned = live.lay_out(dataclasses.replace(sample, texts=("w1 w2",)))
    assert len(captioned.images) == 1 and captioned.links.tolist() == [[1, 0]]


@FUSIONS
def test_gradients_reach_all_of_the_resnet_as_if_each_choice_read_for_itself(
    trunk: Path, fusion: str, places: bool
) -> None:
    _, live = both(trunk, fusion=fusion, use_bbox_position=places)
    kept = {name: value.clone() for name, value in live.named_buffers()}
    assert any(name.endswith("running_var") for name in kept)
    gradients = []
    once = B2T2.finetune["vcr"]
    for how in (once, dataclasses.replace(once, task=dataclasses.replace(once.task, read_once=False))):
        tuned = Tuned(begin(live, how), "vcr").train()
        examples = tuned.documents(question(), "vcr", np.random.default_rng(0), question)
        batch = pack(examples)
        assert (batch.images.once is not None) == (how is once)
        losses, _ = tuned(batch)
        losses["vcr"].backward()
        gradients.append({n: p.grad for n, p in tuned.named_parameters() if "trunk." in n})
        for name, value in tuned.system.named_buffers():  # statistics stay
            assert torch.equal(value, kept[name])
    names = [name for name in gradients[0] if name.endswith("preact.weight")]
    assert len(names) == 4  # gains and offsets of batch norms train
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-3 * float(gradient.abs().max()), rtol=1e-3)


def test_it_learns_what_only_pixels_tell() -> None:
    """One caption for all; stripes run down or across, at any place, in the same two greys."""
    live, examples = build().train(), []
    for number in range(8):
        rng = np.random.default_rng(number)
        lines = np.where((np.arange(64) + rng.integers(8)) // 4 % 2, 200, 60).astype(np.uint8)
        image = np.stack([np.broadcast_to(lines[:, None] if number % 2 else lines, (64, 64))] * 3, -1)
        picture = dataclasses.replace(question().pictures[0], width=64, height=64, pixels=lambda image=image: image)
        example = live.lay_out(Sample(f"s{number}", ("w1 w2",), (picture,)))
        example.targets["itm"] = np.array(number % 2)
        examples.append(example)
    batch, optimizer, losses = pack(examples), torch.optim.AdamW(live.parameters(), lr=2e-3), []
    for _ in range(40):
        loss = live(batch)[0]["itm"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.5 and losses[-1] < 0.1, losses


def test_batch_norms_go_by_stored_statistics_while_they_train(trunk: Path) -> None:
    """The authors' hub module is opened without the tag "train"."""
    _, live = both(trunk)
    pixels = torch.rand(3, 3, 224, 224)
    with torch.no_grad():
        wanted = net().vectors(pixels)
        for mode in (True, False):
            torch.testing.assert_close(live.train(mode).trunk.vectors(pixels), wanted, atol=2e-5, rtol=1e-5)


def test_decay_spares_what_the_authors_rule_spares() -> None:
    live = build()
    theirs: dict[str, bool] = {}
    for name, parameter in live.named_parameters():
        (key, *_) = B2T2.keys.to_theirs({name: parameter.detach()})
        theirs[name] = any(re.search(x, key) for x in ("LayerNorm", "layer_norm", "bias"))
    assert not theirs["trunk.postnorm.weight"] and not theirs["trunk.block1.unit_1.bn1.bias"]
    assert theirs["trunk.conv1.bias"] and theirs["trunk.block1.unit_1.conv3.bias"]
    tuned = Tuned(begin(live, B2T2.finetune["vcr"]), "vcr")
    for module, prefix in ((live, ""), (tuned, "system.")):
        optim = B2T2.finetune["vcr"].tunings["large"].optim
        assert optim.no_decay == NO_DECAY == B2T2.recipes["base"].optim.no_decay
        spared = {id(p) for group in groups(module, optim) if not group["decay"] for p in group["params"]}
        for name, parameter in module.named_parameters():
            if name.startswith(prefix) and not name.startswith("head."):
                assert (id(parameter) in spared) == theirs[name.removeprefix(prefix)], name
        assert id(parameter) in spared or module is live  # the head's bias


# --------------------------------------------------------------------------------------------------- weights


def test_weights_of_the_authors_names_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = build()
    theirs = B2T2.keys.to_theirs(live.state_dict())
    mine = {key.removeprefix(SCOPE): value for key, value in theirs.items() if key.startswith(SCOPE)}
    assert mine.keys() == {x.removeprefix("r/") for x in tf_state(live.trunk, "r/")}
    assert theirs[f"{SCOPE}block2/unit_1/bottleneck_v2/conv2/weights"].shape == (3, 3, 4, 4)
    assert f"{SCOPE}block1/unit_1/bottleneck_v2/preact/moving_mean" in theirs
    assert "position_x_embeddings" in theirs and "bert/embeddings/dense/kernel" in theirs
    recipe = B2T2.recipes["base"]
    small = dataclasses.replace(live.config, trainable_resnet=False)
    monkeypatch.setattr(B2T2, "recipes", B2T2.recipes | {"small": dataclasses.replace(recipe, config=small)})
    for state, trains in ((theirs, True), ({k: v for k, v in theirs.items() if not k.startswith(SCOPE)}, False)):
        torch.save(state, tmp_path / "theirs.pt")
        ours, config = read_ours(B2T2, "b2t2", tmp_path / "theirs.pt", "small")
        assert config.trainable_resnet == trains
        assert ours.keys() == {key for key in live.state_dict() if trains or not key.startswith("trunk.")}
        assert all(torch.equal(value, live.state_dict()[key]) for key, value in ours.items())
    with torch.device("meta"):
        whole = B2T2.keys.to_theirs({f"trunk.{k}": v for k, v in ResNetV2(RESNET152).state_dict().items()})
    assert len(whole) == 2 + 50 * 16 + 4 * 2 + 4 == 814  # of TensorFlow-Slim's network without its classifier
    assert whole[f"{SCOPE}block3/unit_36/bottleneck_v2/conv1/BatchNorm/gamma"].shape == (256,)
    assert whole[f"{SCOPE}postnorm/beta"].shape == (2048,)


def test_the_resnet_starts_from_a_file_and_others_are_refused(tmp_path: Path, trunk: Path) -> None:
    live = build()
    live.fill_trunk(trunk)
    assert torch.equal(live.trunk.block2.unit_2.conv2.weight, net().block2.unit_2.conv2.weight)
    with pytest.raises(BadInput, match="b2t2 has no image trunk"):
        build(False).fill_trunk(trunk)
    other = ResNetV2(ResNetV2Config((1, 1), (4, 4), 4))
    write_weights(tmp_path / "other.safetensors", tf_state(other))
    with pytest.raises(BadInput, match=r"other.safetensors: \d+ tensors missing"):
        live.fill_trunk(tmp_path / "other.safetensors")
    write_weights(tmp_path / "none.safetensors", {"x": torch.ones(1)})
    with pytest.raises(BadInput, match=r"none.safetensors: no ResNet-v2 in it"):
        live.fill_trunk(tmp_path / "none.safetensors")


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    live, sample = build(), question()
    bare = dataclasses.replace(sample, pictures=(dataclasses.replace(sample.pictures[0], pixels=None),))
    with pytest.raises(BadInput, match="sample s: picture p has no pixels, only regions"):
        pack([live.lay_out(bare, "vcr")])
    (tmp_path / "p.jpg").write_bytes(b"no picture")
    torn = dataclasses.replace(bare.pictures[0], path=str(tmp_path / "p.jpg"))
    with pytest.raises(BadInput, match=r"sample s: .*p.jpg: cannot be decoded"):
        pack([live.lay_out(dataclasses.replace(bare, pictures=(torn,)), "vcr")])
    examples = [live.lay_out(sample, "vcr", form) for form in range(2)]
    examples[0].images = ()
    with pytest.raises(ValueError, match="sample s@0: 4 regions, and no image to read them off"):
        pack(examples)


# --------------------------------------------------------------------------------------------------- runs


DRAWN = ("pretrain", "b2t2", "--size", "tiny", "--data", "worlds:24", "--config.trainable-resnet", "--device", "cpu")
FEW = ("--batching.rows", "260", "--schedule.warmup", "1", "--workers", "0")
TINY = tuple(
    f"--config.{name}={value}"
    for name, value in {"hidden-size": 16, "num-hidden-layers": 1, "intermediate-size": 16}.items()
)


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model.safetensors")


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = [*DRAWN, *FEW, *TINY, "--schedule.steps", "4"]
    main([*order, "--out", str(tmp_path / "whole")])
    calls: list[int] = []
    read = ResNetV2.vectors

    def stopping(self: ResNetV2, pixels: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, pixels)

    monkeypatch.setattr(ResNetV2, "vectors", stopping)
    main([*order, "--out", str(tmp_path / "parts")])
    assert not (tmp_path / "parts/model.safetensors").exists()
    main([*order, "--out", str(tmp_path / "parts")])
    assert len(calls) == 4
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_runs_from_raw_files_by_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captions of drawn scenes, then VCR's raw files: pictures, no features anywhere."""
    small = dataclasses.replace(RESNET152, units=(1, 1, 1, 1), base_depth=(8, 16, 16, 32), stem_channels=16)
    write_weights(tmp_path / "resnet.safetensors", tf_state(ResNetV2(small), SCOPE))
    start = ["--trunk", str(tmp_path / "resnet.safetensors"), "--schedule.steps", "2"]
    main([*DRAWN, *FEW, *TINY, *start, "--out", str(tmp_path / "captions")])
    data, run = tmp_path / "vcr", tmp_path / "run"
    write_twin("vcr", data, 4, 2, level=1, pictures=True)
    main(["data", "objects", str(data), str(data / "images")])
    where = ["--data", str(data), "--regions", str(data / "images"), "--weights", str(tmp_path / "captions")]
    short = ["--steps", "2", "--lr", "1e-3", "--workers", "0", "--device", "cpu"]
    main(["finetune", "b2t2", "vcr", *where, *short, "--out", str(run)])
    for folder, goals in ((tmp_path / "captions", {"mlm", "itm"}), (run, {"vcr"})):
        losses = [json.loads(x)["loss"] for x in (folder / "metrics.jsonl").read_text().splitlines()]
        assert losses and all(set(x) <= goals and np.isfinite(list(x.values())).all() for x in losses)
    before, after = weights_of(tmp_path / "captions"), weights_of(run)
    name = "trunk.block2.unit_1.conv1.weight"
    assert not torch.equal(before[name], after[f"system.{name}"])
    main(["score", str(run), "--split", "val"])
    assert "Q->AR" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([*DRAWN, *FEW, *TINY, "--trunk", str(tmp_path / "no.ckpt"), "--out", str(tmp_path / "other")])
    assert stopped.value.code == 2 and not (tmp_path / "other").exists()


def test_a_resnet_may_first_train_downstream(tmp_path: Path, trunk: Path) -> None:
    """Pre-trained on features made beforehand; VCR then reads pixels."""
    data, regions, vocab = tmp_path / "vcr", str(tmp_path / "vcr/images"), tmp_path / "vocab.txt"
    write_twin("vcr", data, 4, 2, level=1, pictures=True)
    main(["data", "objects", str(data), regions])
    source = tuning_runs.open_items(find("vcr"), data, regions, "train")
    before, body = build(False), tmp_path / "body.safetensors"
    write_weights(body, before.state_dict(), {"system": "b2t2", "config": to_json(before.config)})
    VOCAB.write(vocab)
    tuned, recipe = tuning_runs.begin("b2t2", "vcr", "base", body, vocab, source, (), trunk=trunk)
    assert recipe.config.trainable_resnet and tuned.config.trainable_resnet
    after = tuned.system.state_dict()
    assert all(torch.equal(after[f"trunk.{key}"], value) for key, value in net().state_dict().items())
    assert all(torch.equal(after[key], value) for key, value in before.state_dict().items() if key in after)
    losses, _ = tuned(pack(tuned.documents(source[0], "vcr", np.random.default_rng(0), lambda: source[0])))
    assert torch.isfinite(losses["vcr"])
    for name, weights, reason in (("visualbert", body, "takes none for vcr"), ("b2t2", None, "needs --weights")):
        with pytest.raises(BadInput, match=rf"--trunk .*trunk.safetensors: .*{reason}"):
            tuning_runs.begin(name, "vcr", "base", weights, vocab, source, (), trunk=trunk)
    order = [
        "finetune",
        "b2t2",
        "vcr",
        "--data",
        str(data),
        "--regions",
        regions,
        "--vocab",
        str(vocab),
        "--device",
        "cpu",
    ]
    how = [
        "--weights",
        str(body),
        "--trunk",
        str(trunk),
        "--steps",
        "1",
        "--workers",
        "0",
        "--out",
        str(tmp_path / "run"),
    ]
    main([*order, *how])
    assert "system.trunk.conv1.weight" in weights_of(tmp_path / "run")


def test_raw_pictures_are_scored_and_a_black_one_stands_for_none(trunk: Path) -> None:
    """A run on raw pictures needs no extractor; what is blind sees black."""
    _, live = both(trunk)
    image = question().pictures[0].pixels()
    model = Model(live, Provenance("none", 0))
    match, sample = model.match(image, "w1 w2 w3"), model.sample(image, "w1 w2 w3")
    assert match.boxes.shape == (1, 4) and match.attention.shape == (3, 1)
    none = keep_regions(sample, np.zeros(0, np.int64))
    pixels = live.lay_out(none).images[0].read()
    assert pixels.shape == (3, 224, 224) and not pixels.any()
    assert abs(model.match(none).score - match.score) > 1e-3
    assert not live.reads_features and "occlusion" not in pointing(live, [linked(sample)]).ways


def linked(sample: Sample) -> Sample:
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], np.float32)
    picture = dataclasses.replace(sample.pictures[0], boxes=boxes, features=np.zeros((2, 0), np.float32))
    return dataclasses.replace(sample, pictures=(picture,), links=(Link(0, 2, 1, 0),))
