"""What ViLBERT lays out, hides and swaps: rows by hand, rates within binomial bounds. Source: its two codes."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.batch import Example, Picks, Picture, Sample
from intarsia.errors import BadInput, TooLong
from intarsia.evaluate import word_region_maps
from intarsia.model import Model, convert, read_ours
from intarsia.pack import pack
from intarsia.system import FineTuned, begin, fit_config
from intarsia.systems.vilbert import TASKS, ViLBERT
from intarsia.text import SPECIALS, Vocab
from intarsia.weights.files import write_weights

VOCAB = Vocab([*SPECIALS, *(f"w{i}" for i in range(300))])
WIDTH, CLASSES, REGIONS, LENGTH, COUNT = 6, 5, 7, 12, 1200
SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "v_hidden_size": 16,
    "v_num_hidden_layers": 2,
    "v_num_attention_heads": 2,
    "v_intermediate_size": 12,
    "bi_hidden_size": 20,
    "bi_num_attention_heads": 5,
    "v_biattention_id": (0, 1),
    "t_biattention_id": (1, 2),
    "max_position_embeddings": 80,
}


def made(number: int, regions: int = REGIONS, length: int = LENGTH) -> Sample:
    rng = np.random.default_rng([number, 7])
    low = rng.random((regions, 2)) / 2
    picture = Picture(
        name=f"p{number}",
        features=rng.standard_normal((regions, WIDTH)).astype(np.float32),
        boxes=np.concatenate([low, low + 0.4], 1).astype(np.float32),
        width=200,
        height=100,
        probs=rng.dirichlet(np.ones(CLASSES), regions).astype(np.float32),
    )
    return Sample(f"s{number}", (" ".join(rng.choice(VOCAB.tokens[len(SPECIALS) :], length)),), (picture,))


@cache
def system(size: str = "base", **changes: Any) -> ViLBERT:
    config = fit_config(ViLBERT.recipes[size].config, len(VOCAB), WIDTH, CLASSES)
    return ViLBERT(dataclasses.replace(config, **(SMALL | changes)), VOCAB).eval()


def hidden(number: int, goal: str = "mlm+mrc_kl+itm", size: str = "base", **changes: Any) -> Example:
    draw = lambda: made(number + 5000)  # noqa: E731
    return system(size, **changes).hide(made(number), goal, np.random.default_rng(number), draw)


def within(count: int, of: int, rate: float) -> bool:
    """Inside five standard deviations of a binomial."""
    return abs(count - of * rate) <= 5 * (of * rate * (1 - rate)) ** 0.5


# ------------------------------------------------------------------------------------------------------------ hiding


def test_words_and_regions_are_hidden_at_the_rates_and_specials_never() -> None:
    words = masked = kept = regions = dark = none = 0
    for number in range(COUNT):
        example = hidden(number, size="base_beta")
        label, other = int(example.targets["itm"]), made(number + 5000)
        sample = made(number)
        plain = system("base_beta").lay_out(dataclasses.replace(sample, texts=(sample if label else other).texts))
        pick = example.targets["mlm"]
        assert (plain.text.words[pick.rows] >= 0).all()
        np.testing.assert_array_equal(pick.labels, plain.text.ids[pick.rows])
        now = example.text.ids[pick.rows]
        rest = np.setdiff1d(np.arange(len(plain.text)), pick.rows)
        np.testing.assert_array_equal(example.text.ids[rest], plain.text.ids[rest])
        words, masked, kept = (
            words + len(now),
            masked + int((now == VOCAB.mask).sum()),
            kept + int((now == pick.labels).sum()),
        )
        none += not len(now)
        shown = example.targets["mrc_kl"]
        assert (shown.rows < REGIONS).all()  # never the whole picture
        np.testing.assert_array_equal(shown.labels, sample.pictures[0].probs[shown.rows])
        assert set(np.flatnonzero(example.regions.masked)) <= set(shown.rows)
        regions, dark = regions + len(shown.rows), dark + int(example.regions.masked.sum())
    assert within(words, COUNT * LENGTH, 0.15)
    assert within(masked, words, 0.8 + 0.1 / len(VOCAB))
    assert within(kept, words, 0.1 + 0.1 / len(VOCAB))
    assert none > 0  # no minimum of one
    assert within(regions, COUNT * REGIONS, 0.15)
    assert within(dark, regions, 0.9)


@pytest.mark.parametrize(("objective", "true"), [(0, 0.5), (1, 0.5), (2, 1.0)])
def test_broken_pairs_take_another_text_and_may_be_asked_for_nothing(objective: int, true: float) -> None:
    matched, dark = 0, {0: 0, 1: 0}
    for number in range(COUNT):
        example, sample = hidden(number, objective=objective, mlm_rate=0.4), made(number)
        label = int(example.targets["itm"])
        matched += label
        asked = [len(example.targets[goal].rows) for goal in ("mlm", "mrc_kl")]
        if objective == 1 and not label:
            assert asked == [0, 0]
        np.testing.assert_array_equal(example.regions.feats[:-1], sample.pictures[0].features)
        dark[label] += int(example.regions.masked.sum())
        words = example.text.ids[example.text.words >= 0]
        left = {VOCAB.tokens[i] for i in np.delete(words, example.targets["mlm"].rows - 1)}
        if len(example.targets["mlm"].rows):  # else [MASK] and random pieces stand among them
            assert left <= set((sample if label else made(number + 5000)).texts[0].split())
    assert matched == COUNT if true == 1 else within(matched, COUNT, true)
    for label, count in dark.items():  # masks do not tell broken pairs
        of = REGIONS * (matched if label else COUNT - matched)
        assert within(count, of, 0.15 * 0.9) if of else not count
    losses, _ = system(objective=objective, mlm_rate=0.4)(
        pack([hidden(i, objective=objective, mlm_rate=0.4) for i in range(8)])
    )
    assert (losses["itm"] == 0) == (objective == 2)


def test_the_whole_picture_forgets_what_is_hidden() -> None:
    sizes = set()
    for number in range(200):
        features, boxes = made(number).pictures[0].features, made(number).pictures[0].boxes * [200, 100, 200, 100]
        early, late = hidden(number, size="base_beta"), hidden(number, size="base")
        for example in (early, late):
            assert not example.regions.masked[-1]
            np.testing.assert_array_equal(example.regions.boxes[-1], [0, 0, 1, 1])
        kept = features[~early.regions.masked[:-1]].sum(0)
        np.testing.assert_allclose(early.regions.feats[-1], kept / REGIONS, rtol=1e-4, atol=1e-6)
        chosen = early.targets["mrc_kl"].rows  # both draw alike; the newer one asks true pairs only
        covered = [any(_overlap(boxes[i], boxes[j]) > 0.4 for j in chosen) for i in range(REGIONS)]
        sizes.add(sum(covered))
        np.testing.assert_allclose(late.regions.feats[-1], kept / (36 - sum(covered)), rtol=1e-4, atol=1e-6)
    assert len(sizes) > 3


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    wide, high = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1))
    shared = max(wide, 0) * max(high, 0)
    return shared / (sum((x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)) - shared)


@pytest.mark.parametrize(("target", "goal"), [(1, "mrfr"), (2, "mrnce")])
def test_the_other_targets_of_regions(target: int, goal: str) -> None:
    changes = {"visual_target": target, "num_negative": 9, "objective": 0}
    examples = [hidden(i, f"mlm+{goal}+itm", **changes) for i in range(12)]
    for number, example in enumerate(examples):
        pick = example.targets[goal]
        np.testing.assert_array_equal(pick.labels[:, :WIDTH], made(number).pictures[0].features[pick.rows])
        assert pick.labels.shape[1] == WIDTH + (9 if goal == "mrnce" else 0)
    net = system(**changes)
    batch = pack(examples)
    losses, _ = net(batch)
    assert losses[goal].isfinite()
    assert torch.equal(losses[goal], net(batch)[0][goal])
    losses[goal].backward()
    assert net.region_head.out.weight.grad.any()
    alone = pack([next(x for x in examples if len(x.targets[goal].rows))])
    assert net(alone)[0][goal].isfinite()  # no other picture in the batch
    with pytest.raises(BadInput, match=f"visual_target {target} has no objective 'mrc_kl'; it has mlm, {goal}, itm"):
        hidden(0, "mlm+mrc_kl+itm", **changes)


def test_nothing_hidden_costs_nothing() -> None:
    for changes, goal in (({}, "mrc_kl"), ({"visual_target": 1}, "mrfr"), ({"visual_target": 2}, "mrnce")):
        losses, _ = system(mlm_rate=0.0, mrm_rate=0.0, **changes)(
            pack([hidden(i, f"mlm+{goal}+itm", mlm_rate=0.0, mrm_rate=0.0, **changes) for i in range(4)])
        )
        assert losses["mlm"] == losses[goal] == 0


# ----------------------------------------------------------------------------------------------------------- lay-outs


def test_two_pictures_are_two_documents_and_choices_second_texts() -> None:
    pictures = (made(1).pictures[0], made(2, regions=3).pictures[0])
    both = dataclasses.replace(made(1), texts=("w1 w2", "w3", "w4 w5"), pictures=pictures)
    assert [len(system().lay_out(both, "nlvr2", i).regions) for i in (0, 1)] == [REGIONS + 1, 4]
    with pytest.raises(BadInput, match="has 1 pictures, needs 2"):
        system().lay_out(made(1), "nlvr2", 1)
    for task in ("vcr", "beta_vcr"):
        rows = system().lay_out(both, task, 1).text
        assert [VOCAB.tokens[i] for i in rows.ids] == ["[CLS]", "w1", "w2", "[SEP]", "w4", "w5", "[SEP]"]
        assert rows.segment_ids.tolist() == [0] * 4 + [1] * 3
    with pytest.raises(TooLong, match="35 pieces of text, the limit is 34"):
        system().lay_out(made(1, length=35))


def test_a_task_has_a_row_after_cls() -> None:
    told = system(task_specific_tokens=True)
    plain = system().lay_out(made(1), "gqa").text
    rows = told.lay_out(made(1), "gqa").text
    assert rows.ids.tolist() == [plain.ids[0], TASKS["gqa"], *plain.ids[1:]]
    assert rows.position_ids.tolist() == [0, 0, *plain.position_ids[1:]]
    assert rows.segment_ids.tolist() == [0, 2, *plain.segment_ids[1:]]
    assert rows.words[1] == -1
    assert told.lay_out(made(1)).text.ids.tolist() == plain.ids.tolist()
    one, other = (told.encode(pack([told.lay_out(made(1), task)])).pooled for task in ("gqa", "vqa"))
    assert not torch.allclose(one, other)


# ---------------------------------------------------------------------------------------------------------- downstream


@pytest.mark.parametrize("task", list(ViLBERT.finetune))
def test_every_task_trains_its_head(task: str) -> None:
    made_ = begin(system(), dataclasses.replace(ViLBERT.finetune[task], config={"max_pieces": 60}))
    name = task.removeprefix("beta_")
    forms = {"nlvr2": 2, "vcr": 4, "vcr_qar": 4, "retrieval": 4, "retrieval_coco": 4}.get(name, 1)
    samples = [
        dataclasses.replace(
            made(i),
            texts=tuple(made(i + 50 * j).texts[0] for j in range(5)),
            pictures=(made(i).pictures[0], made(i + 9).pictures[0]),
        )
        for i in range(3)
    ]
    batch = pack([made_.system.lay_out(x, task, form) for x in samples for form in range(forms)])
    count = len(batch.keys)
    answers = {"vqa": 3129, "genome_qa": 3129, "gqa": 1533}.get(name, 0)
    rows = torch.arange(batch.regions.packing.rows)
    target: Any = {
        "vcr": torch.arange(count) % 4 == 1,
        "nlvr2": torch.arange(count) // 2 % 2,
        "ve": torch.arange(count) % 3,
    }.get(name.removesuffix("_qar"), Picks(rows, torch.rand(len(rows))))
    if answers:
        target = torch.rand(count, answers)
    if name.startswith("retrieval"):
        target = (torch.arange(count) % 4 == 0).long()
    goal = "vqa" if answers else {"vcr_qar": "vcr", "retrieval_coco": "retrieval"}.get(name, name)
    goal = goal if goal in ("vqa", "vcr", "retrieval", "nlvr2", "ve") else "re"
    batch = dataclasses.replace(batch, targets={goal: target.long() if goal == "vcr" else target})
    loss, _ = made_(batch)
    assert loss.isfinite()
    loss.backward()
    head = made_.head.get_submodule(ViLBERT.finetune[task].task.name)
    # where choices compete, a bias that all share has no gradient but rounding
    assert all(x.grad is not None and (x.grad.any() or key == "bias") for key, x in head.named_parameters())
    others = [key for key, x in made_.head.named_parameters() if x.grad is not None]
    assert all(key.startswith(ViLBERT.finetune[task].task.name + ".") for key in others)


def test_soft_regions_are_summed_and_averaged_over_documents() -> None:
    task = ViLBERT.finetune["re"].task.task
    batch = pack([system().lay_out(made(i, regions=3 + i)) for i in range(2)])
    rows, labels = torch.tensor([0, 2, 5]), torch.tensor([0.7, 0.0, 1.0])
    batch = dataclasses.replace(batch, targets={"re": Picks(rows, labels)})
    scores = torch.linspace(-1, 1, batch.regions.packing.rows)
    p = scores[rows].sigmoid()
    by_hand = -(labels * p.log() + (1 - labels) * (1 - p).log()).sum() / 2
    torch.testing.assert_close(task.loss(scores, batch), by_hand)


# ------------------------------------------------------------------------------------------------------------- weights


def test_files_tell_their_numbers_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = system(feature_size=9, classes=4, objective=0, whole_mean="all")
    recipe = dataclasses.replace(
        ViLBERT.recipes["tiny"], config=dataclasses.replace(ViLBERT.recipes["base_beta"].config, **SMALL)
    )
    monkeypatch.setattr(ViLBERT, "recipes", {**ViLBERT.recipes, "small": recipe})
    theirs = ViLBERT.keys.to_theirs(net.state_dict())
    torch.save({f"module.{k}": v for k, v in theirs.items()}, tmp_path / "theirs.bin")
    convert("vilbert", tmp_path / "theirs.bin", tmp_path / "ours.safetensors", "small")
    state, config = read_ours(ViLBERT, "vilbert", tmp_path / "ours.safetensors", "base")
    assert config == net.config
    convert("vilbert", tmp_path / "ours.safetensors", tmp_path / "again.bin", to="authors")
    again = torch.load(tmp_path / "again.bin", weights_only=True)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)
    assert state.keys() == net.state_dict().keys()


def test_weights_of_many_tasks_open_for_matching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = system(task_specific_tokens=True)
    recipe = dataclasses.replace(
        ViLBERT.recipes["tiny"], config=dataclasses.replace(ViLBERT.recipes["base"].config, **SMALL)
    )
    monkeypatch.setattr(ViLBERT, "recipes", {**ViLBERT.recipes, "small": recipe})
    whole = FineTuned(net, ViLBERT.finetune["vqa"])
    write_weights(tmp_path / "many.bin", whole.keys.to_theirs(whole.state_dict()))
    state, config = read_ours(ViLBERT, "vilbert", tmp_path / "many.bin", "small")
    assert config.task_specific_tokens
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[key], x) for key, x in net.state_dict().items())


@pytest.mark.parametrize("size", [x for x in ViLBERT.recipes if x != "tiny"])
def test_published_sizes_are_built(size: str) -> None:
    config = ViLBERT.recipes[size].config
    with torch.device("meta"):
        net = ViLBERT(config, VOCAB)
    meetings = int(size.rsplit("_", 1)[-1]) if size[-1].isdigit() else 6
    assert len(net.encoder.meetings) == meetings
    assert config.t_biattention_id[-1] == config.num_hidden_layers - 1


# --------------------------------------------------------------------------------------------------------- word to region


@pytest.mark.parametrize("regions", [REGIONS, LENGTH + 1])
def test_maps_are_those_of_the_meetings(regions: int) -> None:
    """Also where a document has as many words as regions."""
    net, samples = system(), [made(3, regions=regions), made(4, regions=regions)]
    maps = word_region_maps(net, [net.lay_out(x) for x in samples])[0]
    assert maps.words.shape == maps.regions.shape == (2, 5, LENGTH + 2, regions + 1)
    np.testing.assert_allclose(maps.words.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(maps.regions.sum(-2), 1, atol=1e-5)
    batch = pack([net.lay_out(samples[0])])
    x, v = net.encoder.layers[0](net.words(batch.text), batch.text.packing), net.regions(batch.regions)
    side, other = net.encoder.meetings[0].words.attention, net.encoder.meetings[0].regions.attention
    (q, _, _), (_, k, _) = side(x), other(v)
    by_hand = torch.einsum("qhd,khd->hqk", q, k).mul(4**-0.5).softmax(-1).detach().numpy()
    np.testing.assert_allclose(maps.words[0], by_hand, atol=1e-5)
    match = Model(net, None).match(samples[0])
    assert match.attention.shape == (LENGTH, regions)
    shown = maps.words.mean((0, 1))[1:-1, :regions]
    np.testing.assert_allclose(match.attention, shown / shown.sum(1, keepdims=True), atol=1e-5)
