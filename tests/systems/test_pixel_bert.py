"""Pixel-BERT: streams, losses and gradients against a slow reference, sampled pixels, padding, batch norms, tasks, and a run that resumes to the same bits."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pixel_bert_reference as slow
import pytest
import torch
from ranks import two_processes
from safetensors.torch import load_file, save_file

from intarsia.batch import Example, Picture, Sample
from intarsia.cli import main
from intarsia.errors import BadInput, TooLong
from intarsia.evaluate import match
from intarsia.evaluate.grounding import overlap_shares
from intarsia.evaluate.running import Inference
from intarsia.features.resnet import ResNet, ResNetConfig
from intarsia.pack import pack
from intarsia.pixels import bounded_pixels
from intarsia.recipe import SGD, Batching, Mix, Optim, Recipe, Schedule
from intarsia.studies.family import blind
from intarsia.system import Crossing, begin
from intarsia.systems.pixel_bert import PixelBERT, PixelBERTConfig, sampled
from intarsia.text import SPECIALS, Vocab
from intarsia.train import Pace, pretrain
from intarsia.train.start import fresh
from intarsia.worlds import WorldSource

WORDS = [f"w{i}" for i in range(40)]
VOCAB = Vocab([*SPECIALS, *WORDS])
TRUNK = ResNetConfig((1, 2, 1, 1), (4, 4, 8, 8), stem=4, num_classes=0)
SMALL: dict[str, Any] = {
    "vocab_size": len(VOCAB),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "trunk": TRUNK,
    "short_side": 130,
    "long_side": 400,
}
QUIET = Inference(progress=False)


def drawn(number: int, height: int, width: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng([number, 4]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def made(number: int, height: int = 160, width: int = 200, length: int = 8) -> Sample:
    words = np.random.default_rng([number, 5]).choice(WORDS, length)
    picture = Picture(f"p{number}", np.zeros((0, 0), np.float32), np.zeros((0, 4), np.float32), width, height)
    shown = dataclasses.replace(picture, pixels=partial(drawn, number, height, width))
    return Sample(f"s{number}", (" ".join(words),), (shown,))


def system(seed: int = 0, **changes: Any) -> PixelBERT:
    torch.manual_seed(seed)
    found = PixelBERT(PixelBERTConfig(**(SMALL | changes)), VOCAB).eval()
    with torch.no_grad():
        for name, value in found.state_dict().items():  # norms away from the identity
            if "running_mean" in name or name.endswith("bias"):
                value.normal_(0, 0.2)
            elif "running_var" in name or (".bn" in name and name.endswith("weight")):
                value.uniform_(0.7, 1.4)
    return found


def within(count: int, of: int, rate: float) -> bool:
    """Inside five standard deviations of a binomial."""
    return abs(count - of * rate) <= 5 * (of * rate * (1 - rate)) ** 0.5


def hidden(model: PixelBERT, number: int, goal: str = "mlm+itm", **shape: int) -> Example:
    return model.hide(made(number, **shape), goal, np.random.default_rng(number), lambda: made(number + 1000, **shape))


SIZES = ((160, 200), (260, 150), (140, 390), (150, 150))


def test_streams_losses_and_gradients_are_those_of_the_description() -> None:
    model = system(sampled_pixels=5, batch_norm="stored", mlm_on_broken=True).train()
    examples = [hidden(model, i, height=h, width=w) for i, (h, w) in enumerate(SIZES)]
    batch = pack(examples)
    assert batch.images is not None and batch.text is not None and batch.regions is not None
    assert len(np.unique(batch.images.valid.numpy(), axis=0)) >= 3  # so there is padding
    losses, _ = model(batch)
    encoded = model.encode(dataclasses.replace(batch, read=None))
    room = (batch.images.pixels.shape[2], batch.images.pixels.shape[3])
    w = dict(model.state_dict(keep_vars=True))
    words, matches = [], []
    for i, example in enumerate(examples):
        assert example.text is not None and example.regions is not None
        image = example.images[0]
        kept = example.regions.position_ids.tolist()
        assert len(kept) == 5
        out = slow.document(w, model.config, example.text.ids.tolist(), torch.from_numpy(image.read()), room, kept)
        first, seen = int(batch.text.packing.first[i]), int(batch.regions.packing.first[i])
        rows = len(example.text)
        torch.testing.assert_close(encoded.text[first : first + rows], out[:rows], atol=2e-5, rtol=0)
        torch.testing.assert_close(encoded.visual[seen : seen + 5], out[rows:], atol=2e-5, rtol=0)
        pick = example.targets["mlm"]
        words += [slow.word_loss(w, out[r], label) for r, label in zip(pick.rows, pick.labels, strict=True)]
        matches.append(slow.match_loss(w, out[0], int(example.targets["itm"])))
    expected = {"mlm": torch.stack(words).mean(), "itm": torch.stack(matches).mean()}
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, atol=2e-5, rtol=0)
    named = dict(model.named_parameters())
    ours = torch.autograd.grad(sum(losses.values()), list(named.values()))
    theirs = torch.autograd.grad(sum(expected.values()), list(named.values()))
    assert sum(name.startswith("backbone.") for name in named) > 30
    for name, a, b in zip(named, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("size", "short", "long", "resized", "rows"),
    [
        ((600, 1000), 800, 1333, (800, 1333), 13 * 21),
        ((480, 640), 800, 1333, (800, 1067), 13 * 17),
        ((480, 640), 600, 1000, (600, 800), 10 * 13),
        ((500, 1500), 600, 1000, (333, 1000), 6 * 16),
        ((1500, 500), 600, 1000, (1000, 333), 16 * 6),
    ],
)
def test_pictures_keep_their_proportions_between_two_bounds(
    size: Any, short: int, long: int, resized: Any, rows: int
) -> None:
    example = system(short_side=short, long_side=long).lay_out(made(0, *size))
    assert (example.images[0].height, example.images[0].width) == resized
    assert example.images[0].read().shape == (3, *resized)
    assert example.regions is not None and len(example.regions) == rows
    boxes = example.regions.boxes
    assert boxes[0, :2].tolist() == [0, 0] and boxes[-1, 2:].tolist() == [1, 1]
    assert boxes[1, 0] == pytest.approx(64 / resized[1])


def test_a_picture_whose_size_is_not_known_is_looked_at_and_a_wrong_size_is_told(tmp_path: Path) -> None:
    sample = made(0)
    unknown = dataclasses.replace(sample.pictures[0], width=0, height=0)
    same = bounded_pixels("s", unknown, 130, 400, ((0.5,) * 3, (0.5,) * 3))
    assert (same.height, same.width) == (130, 162)
    wrong = dataclasses.replace(sample.pictures[0], width=300, height=200)
    with pytest.raises(BadInput, match=r"sample s: picture p0 is 200 x 160 pixels, its data say 300 x 200"):
        bounded_pixels("s", wrong, 130, 400, ((0.5,) * 3, (0.5,) * 3)).read()
    with pytest.raises(BadInput, match="sample s0: has 1 pictures, needs 2"):
        system().lay_out(sample, "nlvr2", 1)
    with pytest.raises(TooLong):
        system(max_pieces=7).lay_out(sample)


def test_pixels_are_drawn_for_each_picture_anew_and_all_are_as_likely() -> None:
    model = system(sampled_pixels=4)
    every = len(model.lay_out(made(0)).regions)
    assert every == 3 * 3
    counts: Counter[int] = Counter()
    sets = set()
    for seed in range(900):
        rows = model.hide(made(0), "mlm", np.random.default_rng(seed), lambda: made(1)).regions
        assert rows is not None and len(rows) == 4 == len(set(rows.position_ids.tolist()))
        counts.update(rows.position_ids.tolist())
        sets.add(tuple(rows.position_ids.tolist()))
    assert set(counts) == set(range(every))
    assert all(within(count, 900, 4 / 9) for count in counts.values())
    assert len(sets) == 126  # 9 over 4
    batch = pack([hidden(model, i) for i in range(6)])
    assert len({tuple(x.tolist()) for x in batch.regions.position_ids.view(6, 4)}) > 1
    again = pack([hidden(model, i) for i in range(6)])
    assert torch.equal(batch.regions.position_ids, again.regions.position_ids)
    few = model.lay_out(made(0)).regions
    assert sampled(few, 9, np.random.default_rng(0)) is few
    assert (
        len(system(sampled_pixels=0).hide(made(0), "mlm", np.random.default_rng(0), lambda: made(1)).regions) == every
    )


@torch.inference_mode()
def test_rows_of_pixels_are_a_set() -> None:
    model, example = system(), system().lay_out(made(3, 260, 390))
    rows = example.regions
    order = np.random.default_rng(0).permutation(len(rows))
    mixed = dataclasses.replace(rows, position_ids=rows.position_ids[order], boxes=rows.boxes[order])
    one, other = (model.encode(pack([dataclasses.replace(example, regions=x)])) for x in (rows, mixed))
    assert len(rows) == 12
    torch.testing.assert_close(other.text, one.text, atol=2e-6, rtol=0)
    torch.testing.assert_close(other.visual, one.visual[order], atol=2e-6, rtol=0)
    assert (one.visual[0] - one.visual[1]).abs().max() > 1e-3


@torch.inference_mode()
def test_padding_is_no_row_and_is_felt_near_the_border_only() -> None:
    model = system(short_side=330, long_side=700)
    small, large = model.lay_out(made(1, 330, 330)), model.lay_out(made(2, 690, 330))
    alone, company = pack([small]), pack([small, large])
    seen = [model.encode_visual(x.regions, x.images)[: 6 * 6].view(6, 6, -1) for x in (alone, company)]
    assert company.regions.packing.lengths.tolist() == [36, 66]
    differs = (seen[0] - seen[1]).abs().amax((1, 2))
    assert differs[:3].max() <= 1e-6
    assert differs[5] > 1e-4


def test_batch_norms_do_what_the_config_says() -> None:
    batches = [pack([hidden(system(), i) for i in range(4)]) for _ in range(2)]
    for mode, trained, moving in (("frozen", 0, 0), ("stored", 40, 0), ("batch", 40, 20)):
        model = system(batch_norm=mode).train()
        norms = [name for name, _ in model.backbone.named_parameters() if "bn" in name or "downsample.1" in name]
        before = {name: value.clone() for name, value in model.backbone.named_buffers()}
        sum(model(batches[0])[0].values()).backward()
        assert len(norms) == trained, mode
        assert all(model.backbone.get_parameter(name).grad is not None for name in norms)
        moved = [x for x, value in model.backbone.named_buffers() if "mean" in x and not torch.equal(value, before[x])]
        assert len(moved) == moving, mode
        assert model.backbone.conv1.weight.grad.any()
    model.gather = lambda rows: rows
    with pytest.raises(BadInput, match="batch_norm=batch: statistics of several processes differ"):
        model(batches[1])


def test_words_are_hidden_and_pairs_broken_as_often_as_said() -> None:
    model, count = system(short_side=64, long_side=80), 1200
    shape = {"height": 64, "width": 64}
    chosen = masked = kept = broken = pieces = 0
    for i in range(count):
        example, plain = hidden(model, i, **shape), model.lay_out(made(i, **shape))
        label, pick = int(example.targets["itm"]), example.targets["mlm"]
        broken += not label
        if label:
            pieces += 8
            chosen += len(pick.rows)
            masked += int((example.text.ids[pick.rows] == VOCAB.mask).sum())
            kept += int((example.text.ids[pick.rows] == pick.labels).sum())
            assert not {0, 9} & set(pick.rows.tolist())
            assert np.array_equal(plain.text.ids[pick.rows], pick.labels)
        else:
            assert not len(pick.rows)  # hidden all the same, so that masks do not tell
        if i < 100:
            assert np.array_equal(example.images[0].read(), plain.images[0].read()) == bool(label)
    assert within(broken, count, 0.5)
    assert within(chosen, pieces, 0.15)
    assert within(masked, chosen, 0.8)
    assert within(kept, chosen, 0.1 + 0.1 / len(VOCAB))
    asked = [hidden(system(mlm_on_broken=True, short_side=64, long_side=80), i, **shape) for i in range(60)]
    assert any(len(x.targets["mlm"].rows) for x in asked if not x.targets["itm"])


def test_a_blind_twin_sees_nothing() -> None:
    model = blind(PixelBERT)(PixelBERTConfig(**SMALL), VOCAB).eval()
    one, other = (
        model.hide(
            dataclasses.replace(made(0), pictures=made(i).pictures), "mlm", np.random.default_rng(1), lambda: made(9)
        )
        for i in (0, 1)
    )
    assert not one.images[0].read().any()
    for a, b in zip(*(model.encode(pack([x])).text for x in (one, other)), strict=True):
        assert torch.equal(a, b)
    assert one.targets["mlm"].labels.tolist() == other.targets["mlm"].labels.tolist()


def test_retrieval_reads_each_picture_once_and_scores_as_pairs() -> None:
    model, read = system(), []
    assert isinstance(model, Crossing)
    model.backbone.conv1.register_forward_hook(lambda module, inputs, output: read.append(len(output)))
    texts, pictures = [made(i) for i in range(4)], [made(i).pictures[0] for i in range(3)]
    _, scores = match(model, texts, pictures, QUIET)
    assert sum(read) == 3
    for i, text in enumerate(texts):
        for j, picture in enumerate(pictures):
            pair = pack([model.lay_out(dataclasses.replace(text, pictures=(picture,)))])
            assert scores[i, j] == pytest.approx(float(model.match_scores(model.encode(pair)).detach()[0]), abs=1e-5)


def test_attention_to_cells_is_shared_out_over_boxes() -> None:
    cells = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]], np.float32)
    boxes = np.array([[0, 0, 0.5, 0.5], [0.25, 0, 0.75, 1], [0.4, 0.1, 0.8, 0.2], [1, 1, 1, 1]], np.float32)
    assert overlap_shares(boxes, cells) == pytest.approx(np.array([[1, 0], [0.5, 0.5], [0.25, 0.75], [0, 0]]))


def documents(model: PixelBERT, task: str, sample: Sample, forms: int) -> list[Example]:
    return [model.lay_out(sample, task, form) for form in range(forms)]


def test_vqa_and_nlvr2_read_the_first_row() -> None:
    for task, forms, outputs in (("vqa", 1, 3129), ("nlvr2", 2, 2)):
        tuned = begin(system(), PixelBERT.finetune[task])
        samples = [
            dataclasses.replace(made(i), pictures=(made(i).pictures[0], made(i + 50).pictures[0])) for i in range(3)
        ]
        examples = [x for sample in samples for x in documents(tuned.system, task, sample, forms)]
        for number, x in enumerate(examples):
            answers = np.random.default_rng(number).random(3129).astype(np.float32)
            x.targets[task] = answers if task == "vqa" else np.array(number // 2 % 2)
        batch = pack(examples)
        loss, scores = tuned(batch)
        assert scores.shape == (3, outputs)
        pooled = tuned.system.encode(batch).text[batch.text.packing.first]
        if task == "nlvr2":
            both = torch.cat([pooled[0::2], pooled[1::2]], 1)
            torch.testing.assert_close(scores, tuned.head(both))
            expected = -scores.log_softmax(1)[torch.arange(3), torch.tensor([0, 1, 0])].mean()
        else:
            targets = batch.labels("vqa")
            p = torch.sigmoid(scores)
            expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum(1).mean()
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert tuned.system.backbone.conv1.weight.grad.any()
        assert PixelBERT.finetune[task].tunings["r50"].sgd == SGD()


def test_retrieval_trains_the_hardest_with_the_cnn_frozen() -> None:
    finetune = PixelBERT.finetune["retrieval"]
    tuned = begin(system(batch_norm="batch"), finetune).train()
    assert all(tuning.sgd is None for tuning in finetune.tunings.values())
    assert not any(x.requires_grad for x in tuned.system.backbone.parameters())
    assert tuned.system.pixel_proj.weight.requires_grad and not tuned.system.backbone.bn1.training
    scores = torch.randn(2 * 21, generator=torch.Generator().manual_seed(1), requires_grad=True)
    examples = [
        dataclasses.replace(tuned.system.lay_out(made(0, 64, 64)), key=f"{i}", sample=str(i // 21)) for i in range(42)
    ]
    loss = finetune.task.loss(scores, pack(examples))
    loss.backward()
    expected = 0.0
    for s in (0, 1):
        mine = scores[21 * s : 21 * s + 21].detach()
        shares = mine.softmax(0)
        expected -= float(shares[0].log()) / 2
        hardest = set((1 + mine[1:].argsort(descending=True)[:5]).tolist())
        for i in range(21):
            grad = (float(shares[i]) - (i == 0)) / 2 if i == 0 or i in hardest else 0.0
            assert float(scores.grad[21 * s + i]) == pytest.approx(grad, abs=1e-6)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_the_cnn_starts_from_torchvisions_names_and_is_checked(tmp_path: Path) -> None:
    model = system()
    torch.manual_seed(7)
    published = ResNet(dataclasses.replace(TRUNK, num_classes=10))
    save_file(published.state_dict(), tmp_path / "resnet.safetensors")
    model.fill_trunk(tmp_path / "resnet.safetensors")
    assert torch.equal(model.backbone.layer4[0].conv2.weight, published.layer4[0].conv2.weight)
    save_file(ResNet(dataclasses.replace(TRUNK, stem=8)).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match=r"other.safetensors: bn1.bias has shape \(8,\), the config asks for \(4,\)"):
        model.fill_trunk(tmp_path / "other.safetensors")
    state = model.state_dict()
    theirs = PixelBERT.keys.to_theirs(state)
    assert theirs["pixel_type"].shape == (16,) and theirs["pixel_proj.weight"].shape == (16, 32)
    assert "backbone.layer1.0.downsample.0.weight" in theirs and "bert.encoder.layer.1.output.dense.weight" in theirs
    back = PixelBERT.keys.to_ours(theirs)
    assert back.keys() == state.keys() and all(torch.equal(back[x], state[x]) for x in state)


WORLD = WorldSource(count=40)


def recipe() -> Recipe[PixelBERTConfig]:
    tiny = ResNetConfig((1, 1), (4, 4), stem=4, num_classes=0)
    numbers = SMALL | {
        "trunk": tiny,
        "batch_norm": "batch",
        "short_side": 48,
        "sampled_pixels": 6,
        "hidden_dropout_prob": 0.1,
    }
    return Recipe(
        config=PixelBERTConfig(**numbers),
        mix=Mix(share={"mlm": 1, "mlm+itm": 1}),
        optim=Optim(lr=1e-3, max_norm=5.0),
        sgd=SGD(lr=1e-2),
        schedule=Schedule(steps=6, warmup=0, shape="milestones", milestones=(0.5,)),
        batching=Batching(rows=300, window=40),
    )


def together(rank: int, folder: Path) -> None:
    apart(folder / "two", 1)


def apart(out: Path, accumulate: int) -> None:
    """A run whose batch norms go by stored statistics."""
    plan = recipe()
    config = dataclasses.replace(plan.config, batch_norm="stored")
    batching = dataclasses.replace(plan.batching, accumulate=accumulate)
    vocab = Vocab.learn(WORLD[i].texts[0] for i in range(len(WORLD)))
    plan = dataclasses.replace(plan, config=config, batching=batching, schedule=Schedule(steps=3, warmup=0))
    model, plan = fresh(PixelBERT, plan, vocab, WORLD.provenance)
    pretrain(model, WORLD, plan, out, workers=0, device="cpu", pace=Pace(tensorboard=False))


def test_two_processes_are_one_with_two_micro_batches(tmp_path: Path) -> None:
    two_processes(together, tmp_path)
    apart(tmp_path / "one", 2)
    one, two = (load_file(tmp_path / x / "model.safetensors") for x in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_a_run_on_pixels_stops_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    vocab = Vocab.learn(WORLD[i].texts[0] for i in range(len(WORLD)))

    def run(out: str, stop: int = 0) -> None:
        model, plan = fresh(PixelBERT, recipe(), vocab, WORLD.provenance)
        calls: list[int] = []

        def interrupt(*_: Any) -> None:
            calls.append(1)
            if len(calls) == stop:
                raise KeyboardInterrupt

        if stop:
            model.backbone.conv1.register_forward_pre_hook(interrupt)
        pretrain(
            model, WORLD, plan, tmp_path / out, workers=0, device="cpu", pace=Pace(save_every=2, tensorboard=False)
        )

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop=5)
    assert (tmp_path / "cut/checkpoints/latest").read_text() == "step-00000004"
    run("cut")
    for name in ("model.safetensors", "checkpoints/step-00000006/optimizer.safetensors"):
        one, other = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[x], other[x]) for x in one), name
    moments = load_file(tmp_path / "cut/checkpoints/step-00000006/optimizer.safetensors")
    kinds = {name.rpartition("/")[2] for name in moments if name.startswith("backbone.")}
    assert kinds == {"momentum_buffer"}
    assert {name.rpartition("/")[2] for name in moments if not name.startswith("backbone.")} == {
        "exp_avg",
        "exp_avg_sq",
        "step",
    }


def test_the_command_starts_from_a_bert_and_from_a_resnet(tmp_path: Path) -> None:
    plain = [
        "pretrain",
        "pixel_bert",
        "--data",
        "worlds:40",
        "--workers",
        "0",
        "--schedule.steps",
        "1",
        "--sgd.lr",
        "0",
    ]
    run = [*plain, "--config.batch-norm", "stored", "--optim.lr", "0", "--batching.rows", "600"]
    main([*run, "--out", str(tmp_path / "first")])
    first = load_file(tmp_path / "first/model.safetensors")
    names = PixelBERT.keys.to_theirs(first)
    vocab = ["--vocab", str(tmp_path / "first/vocab.txt")]
    bert = {
        name: value + 0.25 for name, value in names.items() if name.startswith(("bert.", "cls.predictions.transform"))
    }
    save_file(bert | {"cls.predictions.bias": names["cls.predictions.bias"]}, tmp_path / "bert.safetensors")
    torch.manual_seed(9)
    trunk = ResNet(dataclasses.replace(PixelBERT.recipes["tiny"].config.trunk, num_classes=0)).state_dict()
    save_file(trunk, tmp_path / "resnet.safetensors")
    starts = ["--start", str(tmp_path / "bert.safetensors"), "--trunk", str(tmp_path / "resnet.safetensors")]
    main([*run, *vocab, *starts, "--out", str(tmp_path / "both")])
    both = load_file(tmp_path / "both/model.safetensors")
    assert torch.equal(both["backbone.layer2.0.conv2.weight"], trunk["layer2.0.conv2.weight"])
    assert torch.equal(both["words.word.weight"], first["words.word.weight"] + 0.25)
    again = [
        *run,
        *vocab,
        "--weights",
        str(tmp_path / "first/model.safetensors"),
        *starts[2:],
        "--out",
        str(tmp_path / "no"),
    ]
    with pytest.raises(SystemExit):
        main(again)
