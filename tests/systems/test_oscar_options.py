"""Oscar's options: captions that stand alone, fixed words, and a second corpus whose losses are weighed apart. Source: the code of Oscar+."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from intarsia.batch import Example, Picks, Picture, Sample
from intarsia.cli import main
from intarsia.data.corpora import Beside, Pool
from intarsia.data.source import Provenance
from intarsia.errors import BadInput
from intarsia.objectives import lm
from intarsia.pack import pack
from intarsia.recipe import Batching, Mix, Schedule, adam
from intarsia.system import fit_config
from intarsia.systems.oscar import Oscar
from intarsia.text import SPECIALS, Vocab
from intarsia.train import Pace, pretrain

VOCAB = Vocab([*SPECIALS, *(f"w{i}" for i in range(200))])
WIDTH, COUNT = 6, 1200
SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 80,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def made(number: int, extra: bool = False, length: int = 6) -> Sample:
    rng = np.random.default_rng([number, 5])
    low = rng.random((3, 2)) / 2
    features = rng.standard_normal((3, WIDTH)).astype(np.float32)
    boxes = np.concatenate([low, low + 0.4], 1).astype(np.float32)
    tags = tuple(f"w{150 + i}" for i in rng.integers(0, 50, 3))
    picture = Picture(f"p{number}", features, boxes, 200, 100, tags=tags)
    return Sample(f"s{number}", (" ".join(f"w{i}" for i in rng.integers(0, 150, length)),), (picture,), extra=extra)


@cache
def oscar(size: str = "base_plus", **changes: Any) -> Oscar:
    config = fit_config(Oscar.recipes[size].config, len(VOCAB), WIDTH, 3)
    torch.manual_seed(7)
    net = Oscar(dataclasses.replace(config, **(SMALL | changes)), VOCAB)
    for value in net.parameters():
        torch.nn.init.normal_(value, 0.02, 0.3)
    return net


def said(example: Example, segment: int) -> str:
    text = example.text
    assert text is not None
    here = (text.segment_ids == segment) & (text.words >= 0)
    return " ".join(VOCAB.tokens[i] for i in text.ids[here])


def within(count: int, of: int, rate: float) -> bool:
    return abs(count - of * rate) <= 5 * (of * rate * (1 - rate)) ** 0.5


# ------------------------------------------------------------------------------------------------ captions that stand alone


@pytest.mark.parametrize(("size", "classes", "label"), [("base", 3, 2), ("base_plus", 3, 2), ("base", 2, 1)])
def test_captions_alone_are_exchanged_in_half_of_the_documents(size: str, classes: int, label: int) -> None:
    alone, found = oscar(size, use_b=False, num_contrast_classes=classes, mlm_rate=0.0), Counter[int]()
    for number in range(COUNT):
        sample, other = made(number), made(number + 5000)
        example = alone.hide(sample, "mlm+contrast", np.random.default_rng(number), lambda other=other: other)
        assert example.text is not None and not example.text.segment_ids.any()
        told = int(example.targets["contrast"])
        found[told] += 1
        assert said(example, 0) == (other if told else sample).texts[0]
        assert example.regions is not None
        np.testing.assert_array_equal(example.regions.feats, sample.pictures[0].features)
    assert set(found) == {0, label}
    assert within(found[0], COUNT, 0.5)


def test_a_caption_alone_has_the_room_of_the_second_sep() -> None:
    long = made(1, length=60)
    assert len(oscar(use_b=False).lay_out(long).text) == 35  # type: ignore[arg-type]
    both = oscar().lay_out(long).text
    assert both is not None and len(both) == 35 and both.segment_ids.any()
    assert oscar(use_b=False).lay_out(made(1), "vqa").text.segment_ids.any()  # type: ignore[union-attr]  # a task's tags stay


def test_the_last_class_says_that_a_caption_was_exchanged() -> None:
    """At a share of one half captions alone are exchanged, and there are two classes."""
    half, found = oscar("base", texta_false_prob=0.5, mlm_rate=0.0), Counter[tuple[int, bool, bool]]()
    for number in range(300):
        sample, other = made(number), made(number + 5000)
        example = half.hide(sample, "mlm+contrast", np.random.default_rng(number), lambda other=other: other)
        tags = said(example, 1) == " ".join(sample.pictures[0].tags)
        found[int(example.targets["contrast"]), said(example, 0) == sample.texts[0], tags] += 1
    assert set(found) == {(0, True, True), (1, False, True)}


# --------------------------------------------------------------------------------------------------------- a second corpus


class Corpus:
    provenance: Provenance | None = Provenance("made", WIDTH)

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        return made(self.numbers[index])


@pytest.mark.parametrize(("first", "second"), [(3, 5), (5, 3)])
def test_both_corpora_come_by_turns_and_the_shorter_again(first: int, second: int) -> None:
    both = Beside(Corpus(range(first)), Corpus(range(50, 50 + second)))
    samples = [both[i] for i in range(len(both))]
    assert len(samples) == 10
    assert [x.extra for x in samples] == [False, True] * 5
    assert [x.texts for x in samples[::2]] == [made(i % first).texts for i in range(5)]
    assert [x.texts for x in samples[1::2]] == [made(50 + i % second).texts for i in range(5)]
    assert len({x.key for x in samples}) == 10
    assert samples[1].pictures[0].name == "extra/p50"
    pool = Pool(both, np.arange(10))
    for seed in range(40):
        rng = np.random.default_rng(seed)
        assert not pool.draw(rng, samples[0]).extra
        assert pool.draw(rng, samples[1]).extra


def test_features_of_two_extractors_do_not_go_together() -> None:
    other = Corpus(range(3))
    other.provenance = Provenance("other", WIDTH)
    with pytest.raises(BadInput, match="sources data and extra: region features differ"):
        Beside(Corpus(range(2)), other)


def hidden(net: Oscar, count: int) -> list[Example]:
    made_ = [made(i, extra=i % 3 == 0) for i in range(count)]
    draws = [lambda i=i: made(i + 5000) for i in range(count)]
    return [net.hide(x, "mlm+contrast", np.random.default_rng(i), draws[i]) for i, x in enumerate(made_)]


def test_losses_are_those_of_each_corpus_alone_weighed() -> None:
    """(1 - alpha) times the loss of a batch of the first and alpha times that of a batch of the second, with their gradients."""
    weighed, plain = oscar(extra_loss_weight=0.3), oscar()
    weighed.load_state_dict(plain.state_dict())
    examples, apart = hidden(weighed, 30), hidden(plain, 30)
    mix = Mix(share={"mlm+contrast": 1})
    weighed.zero_grad()
    losses, _ = weighed(pack(examples))
    assert set(losses) == {"mlm", "mlm_extra", "contrast", "contrast_extra"}
    total = weighed.weigh(losses, mix)
    total.backward()
    plain.zero_grad()
    sums = torch.zeros(())
    for extra, share in ((False, 0.7), (True, 0.3)):
        alone, _ = plain(pack([x for i, x in enumerate(apart) if (i % 3 == 0) == extra]))
        for name, loss in alone.items():
            torch.testing.assert_close(losses[name + "_extra" * extra], loss)
        sums = sums + share * sum(alone.values())  # type: ignore[operator]
    sums.backward()
    torch.testing.assert_close(total, sums)
    for (name, one), other in zip(weighed.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)


def test_a_batch_of_one_corpus_has_its_losses_only() -> None:
    net = oscar(extra_loss_weight=0.3)
    for extra, names in ((False, {"mlm", "contrast"}), (True, {"mlm_extra", "contrast_extra"})):
        batch = pack([x for i, x in enumerate(hidden(net, 9)) if (i % 3 == 0) == extra])
        losses, encoded = net(batch)
        assert set(losses) == names
        target = batch.targets["contrast" + "_extra" * extra]
        assert isinstance(target, Picks)
        wanted = F.cross_entropy(net.match_head(encoded.pooled), target.labels)
        torch.testing.assert_close(losses["contrast" + "_extra" * extra], wanted)


def test_the_second_corpus_has_its_own_way_to_exchange_tags() -> None:
    """Oscar's first corpus may get captions in the tags' place; the second one, by the default of the authors, tags."""
    net, captions = oscar("base", extra_loss_weight=0.5, mlm_rate=0.0), Counter[bool]()
    for number in range(400):
        for extra in (False, True):
            other = made(number + 5000, extra)
            example = net.hide(
                made(number, extra), "contrast", np.random.default_rng(number), lambda other=other: other
            )
            captions[extra] += said(example, 1) == other.texts[0]
    assert captions[True] == 0
    assert within(captions[False], 400, 0.25)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = ["pretrain", "oscar", "--data", "worlds:40", "--workers", "0", "--device", "cpu", "--schedule.warmup", "0"]
    order += [
        "--schedule.steps",
        "26",
        "--batching.rows",
        "600",
        "--config.num-hidden-layers",
        "1",
        "--config.hidden-size",
        "32",
    ]
    for more, told in (
        (["--extra", "worlds:20:7"], "config.extra_loss_weight 0.0: must be above 0 and at most 1 with --extra"),
        (["--config.extra-loss-weight", "0.25"], "config.extra_loss_weight 0.25: must be 0 without --extra"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*order, "--out", str(tmp_path / "none"), *more])
        assert stop.value.code == 2
        assert told in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(SystemExit):
        main(["pretrain", "uniter", "--data", "worlds:4", "--out", str(tmp_path / "none"), "--extra", "worlds:4"])
    assert "uniter does not weigh a second corpus" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "none").exists()
    main([*order, "--out", str(tmp_path / "run"), "--extra", "worlds:20:7", "--config.extra-loss-weight", "0.25"])
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    assert '"mlm_extra"' in lines and '"contrast_extra"' in lines


def test_vinvls_captioners_leave_the_table_of_words_alone() -> None:
    for size in ("caption", "caption_plus"):
        net, table = oscar(size), "words.word.weight"
        net.zero_grad()
        losses, _ = net(
            pack([net.hide(made(i), "caption", np.random.default_rng(i), lambda: made(9)) for i in range(4)])
        )
        losses["caption"].backward()
        moved = {
            name for name, value in net.named_parameters() if value.grad is not None and value.grad.abs().max() > 0
        }
        assert (table in moved) == (size == "caption")
        assert moved >= {"words.position.weight", "word_head.bias", "regions.feature.weight"}
        assert ("decoder.weight" in moved) == (size == "caption")


# ------------------------------------------------------------------------------------------------------ the worst words


def theirs(logits: Tensor, labels: Tensor, eps: float, ratio: float, call: int, after: int) -> float:
    """The authors' loss of forward call number `call` (from 1), word by word."""
    each = []
    for row, label in zip(logits.double(), labels.tolist(), strict=True):
        wanted = [1 - eps if i == label else eps / (len(row) - 1) for i in range(len(row))]
        logs = row - row.exp().sum().log()
        each.append(sum(w * (math.log(w) - float(x)) for w, x in zip(wanted, logs, strict=True) if w))
    if ratio > 0 and call > after:
        each = sorted(each)[: int(len(each) * (1 - ratio))]
    return sum(each) / len(each)


@pytest.mark.parametrize("passes", [0, 2, 3, 9])
@pytest.mark.parametrize("after", [0, 3])
def test_the_worst_words_count_until_so_many_passes_are_made(passes: int, after: int) -> None:
    net = oscar("caption_plus", drop_worst_after=after)
    batch = pack([net.hide(made(i), "caption", np.random.default_rng(i), lambda: made(9)) for i in range(12)])
    net.passes = passes
    losses, encoded = net(batch)
    picks = batch.picks("caption")
    assert len(picks.labels) > 10
    logits = net.word_logits(encoded, picks.rows).detach()
    found = [theirs(logits, picks.labels, 0.1, 0.2, passes + 1, x) for x in (after, 10**9, 0)]
    assert losses["caption"].item() == pytest.approx(found[0], rel=1e-5)
    assert found[1] - found[2] > 0.1
    assert found[0] == found[2 if passes >= after else 1]


def captioner(out: Path, after: int, stop: int = 0, accumulate: int = 2) -> list[tuple[int, bool]]:
    """Trains six steps into a folder, unless the forward pass number `stop` of this call fails; gives each pass's number and whether words are left out."""
    net = oscar.__wrapped__("caption_plus", drop_worst_after=after, hidden_dropout_prob=0.1)
    seen, real = list[tuple[int, bool]](), lm.best_words

    def watched(each: Tensor, drop: float) -> Tensor:
        seen.append((net.passes, drop > 0))
        if len(seen) == stop:
            raise RuntimeError("power cut")
        return real(each, drop)

    recipe = dataclasses.replace(
        Oscar.recipes["caption_plus"],
        config=net.config,
        optim=adam(1e-2),
        schedule=Schedule(steps=6, warmup=0),
        batching=Batching(rows=120, window=30, accumulate=accumulate),
    )
    pace = Pace(log_every=2, save_every=2, keep=0, tensorboard=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm, "best_words", watched)
        pretrain(net, Corpus(range(60)), recipe, out, workers=0, device="cpu", pace=pace)
    return seen


def test_a_run_resumed_before_the_worst_words_go_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Threshold and power cut lie in different steps, both between two micro-batches of one."""
    assert captioner(tmp_path / "whole", 9) == [(i, i >= 9) for i in range(12)]
    with pytest.raises(RuntimeError, match="power cut"):
        captioner(tmp_path / "cut", 9, stop=8)
    assert captioner(tmp_path / "cut", 9) == [(i, i >= 9) for i in range(4, 12)]
    captioner(tmp_path / "later", 10)
    whole, cut, later = (load_file(tmp_path / x / "model.safetensors") for x in ("whole", "cut", "later"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert any(not torch.equal(value, later[name]) for name, value in whole.items())


def test_losses_of_weights_that_go_on_are_the_recipes(tmp_path: Path) -> None:
    """A captioner's weights keep their sizes; what its losses are is said anew, or the flags would do nothing."""
    order = ["pretrain", "oscar", "--size", "caption_plus", "--data", "worlds:30", "--workers", "0", "--device", "cpu"]
    order += ["--schedule.steps", "1", "--batching.rows", "300"]
    small = ["--config.num-hidden-layers", "1", "--config.hidden-size", "24", "--config.num-attention-heads", "2"]
    main([*order, *small, "--out", str(tmp_path / "one"), "--config.drop-worst-after", "0"])
    more = [
        "--weights",
        str(tmp_path / "one/model.safetensors"),
        "--config.drop-worst-after",
        "7",
        "--config.drop-worst",
        "0.5",
    ]
    main([*order, *more, "--out", str(tmp_path / "two"), "--config.label-smoothing", "0"])
    for name, wanted in (("one", (0.2, 0, 0.1)), ("two", (0.5, 7, 0.0))):
        config = json.loads((tmp_path / name / "recipe.json").read_text())["recipe"]["config"]
        assert config["hidden_size"] == 24
        assert (config["drop_worst"], config["drop_worst_after"], config["label_smoothing"]) == wanted


def test_the_published_captioners_wait() -> None:
    """VinVL's drop a fifth of the words after 20,000 passes, Oscar's none; the number is a leaf of the command line."""
    for size in ("caption_plus", "caption_large_plus"):
        config = Oscar.recipes[size].config
        assert (config.drop_worst, config.drop_worst_after) == (0.2, 20_000)
    assert Oscar.recipes["caption"].config.drop_worst == Oscar.recipes["caption_large"].config.drop_worst == 0


def test_epochs_batches_and_processes_make_the_published_steps() -> None:
    """Epochs of 566,435 captions, or of 113,287 pictures, over batch times processes, as the authors' tables of models say; their decay is .05."""
    wanted = {"caption": (30, 64 * 4), "caption_large": (30, 32 * 8)}
    wanted |= {x: (60, 64 * 8) for x in ("caption_plus", "caption_large_plus")}
    for size, (epochs, batch) in wanted.items():
        recipe = Oscar.recipes[size]
        assert recipe.schedule.steps == pytest.approx(epochs * 566_435 / batch, rel=0.01)
        assert (recipe.optim.weight_decay, recipe.optim.max_norm) == (0.05, 1.0)
    assert Oscar.captioning is not None
    critical = {"base": (5, 16 * 4), "large": (5, 8 * 8), "base_plus": (75, 16 * 8), "large_plus": (25, 6 * 8)}
    for size, (epochs, batch) in critical.items():
        tuning = Oscar.captioning.critical[size]
        assert tuning.schedule.steps == pytest.approx(epochs * 113_287 / batch, rel=0.01)
        assert batch % tuning.samples == 0 and tuning.optim.weight_decay == 0.05


@pytest.mark.parametrize("task", ["nlvr2", "nlvr2_plus"])
@pytest.mark.parametrize(("size", "scale"), [("base", 3), ("large", 2)])
def test_the_head_of_two_pictures_is_narrower_in_the_large_model(task: str, size: str, scale: int) -> None:
    """As `cls_hidden_scale` of the published runs, whose weights would not fit otherwise."""
    config = Oscar.recipes[size].config
    with torch.device("meta"):
        head = Oscar.finetune[task].task.head(config)
    shapes = [tuple(x.shape) for name, x in head.named_parameters() if name.endswith("weight")]
    inner = scale * config.hidden_size
    assert shapes == [(inner, 2 * config.hidden_size), *[(inner,)] * (task == "nlvr2_plus"), (2, inner)]


# ------------------------------------------------------------------------------------------------------------- who sees whom


@pytest.mark.parametrize(("who", "alone"), [("CL", "R"), ("CR", "L"), ("LR", "C")])
def test_what_an_ablation_does_not_name_is_alone(who: str, alone: str) -> None:
    """As the authors' (S, S) masks: what is not named and the rest do not hear of each other."""
    net = oscar(attention=who).eval()
    examples = [net.lay_out(made(i, length=3 + i)) for i in range(3)]

    def heard(changed: str) -> set[str]:
        with torch.no_grad():
            batch = pack(examples)
            assert batch.text is not None and batch.regions is not None
            words, regions = net.words(batch.text), net.regions(batch.regions)
            kinds = {"C": batch.text.segment_ids == 0, "L": batch.text.segment_ids == 1}
            seen = []
            for noise in (0.0, 1.0):
                net.words.forward = lambda text, n=noise: (
                    words + n * kinds.get(changed, kinds["C"] & kinds["L"])[:, None]
                )  # type: ignore[method-assign]
                net.regions.forward = lambda x, n=noise: regions + n * (changed == "R")  # type: ignore[method-assign]
                seen.append(net.encode(batch))
            del net.words.forward, net.regions.forward
            found = {k for k, rows in kinds.items() if not torch.equal(seen[0].text[rows], seen[1].text[rows])}
            return found | ({"R"} if not torch.equal(seen[0].visual, seen[1].visual) else set())

    for kind in "CLR":
        assert heard(kind) == ({alone} if kind == alone else set(who))
