"""M6: every task against a reference with explicit masks, spans that cover their share, nothing seen that must not be, experts that change nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intarsia.batch import Example, Picture, Sample
from intarsia.drawing import draw
from intarsia.errors import BadInput, TooLong
from intarsia.objectives.spans import hide_spans
from intarsia.pack import pack
from intarsia.system import begin
from intarsia.systems.m6 import M6, M6Config
from intarsia.text import SPECIALS, Vocab

HAN = "红黄蓝绿大小圆方心星上下左右的一个和"
VOCAB = Vocab([*SPECIALS, *HAN])
WIDTH, GOALS = 6, ("denoise", "lm", "caption", "multimodal", "answer")
CODES, LENGTH = 8, 9


def made(number: int, length: int = 9, side: int = 2) -> Sample:
    rng = np.random.default_rng([number, 4])
    rows, columns = np.divmod(np.arange(side * side), side)
    boxes = (np.stack([columns, rows, columns + 1, rows + 1], 1) / side).astype(np.float32)
    picture = Picture(f"p{number}", rng.standard_normal((side * side, WIDTH)).astype(np.float32), boxes)
    text = "".join(rng.choice(list(HAN), length))
    return Sample(f"s{number}", (text,), (picture,), answers=(("大", 0.3), ("蓝色的心"[0], 1.0)), language="zh")


def system(**changes: Any) -> M6:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    numbers = {"vocab_size": len(VOCAB), "feature_size": WIDTH, "max_position_embeddings": 40, "max_pieces": 30}
    config = M6Config(**(small | numbers | {"max_patches": 4, "initializer_range": 0.3} | changes))
    torch.manual_seed(0)
    return M6(config, VOCAB).eval()


def hidden(model: M6, number: int, goal: str) -> Example:
    return model.hide(made(number), goal, np.random.default_rng([number, 7]), lambda: made(99))


def reference(
    model: M6, sample: Sample, source: list[int], target: list[int], picture: bool, codes: bool = False
) -> Tensor:
    """Logits of the target rows, over words or over codes, one document, the paper's order (image, source, target) and a mask matrix. Source: the sheet, sec. 2 and 3."""
    w, config = {k: v for k, v in model.state_dict().items()}, model.config
    feats = torch.from_numpy(sample.pictures[0].features) if picture else torch.zeros(0, WIDTH)
    count, ids = len(feats), [*source, VOCAB.cls, *target]
    image = feats @ w["patches.weight"].T + w["patches.bias"]
    table = torch.cat([w["words.word.weight"], w.get("codes.weight", torch.zeros(0, config.hidden_size))])
    words = table[ids]
    positions = [*range(count), *range(len(source)), *range(len(target) + 1)]
    segments = [0] * count + [1] * len(source) + [2] * (len(target) + 1)
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], config.layer_norm_eps)  # noqa: E731
    x = torch.cat([image, words]) + w["words.position.weight"][positions] + w["words.segment.weight"][segments]
    x = norm(x, "words.norm")
    context, n = count + len(source), len(positions)
    allowed = torch.tensor([[j < context or (i >= context and j <= i) for j in range(n)] for i in range(n)])
    for layer in range(config.num_hidden_layers):
        at = f"encoder.layers.{layer}."
        lin = lambda y, name, at=at: y @ w[at + name + ".weight"].T + w[at + name + ".bias"]  # noqa: E731
        y = norm(x, at + "attention_norm") if config.pre_norm else x
        q, k, v = (z.view(n, 2, -1).transpose(0, 1) for z in lin(y, "attention.qkv").chunk(3, -1))
        scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
        mixed = lin((scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1), "attention.out")
        x = x + mixed if config.pre_norm else norm(x + mixed, at + "attention_norm")
        y = norm(x, at + "norm") if config.pre_norm else x
        fed = lin(F.gelu(lin(y, "feed.up")), "feed.down")
        x = x + fed if config.pre_norm else norm(x + fed, at + "norm")
    x = norm(x, "encoder.norm") if config.pre_norm else x
    logits = x[context:] @ table.T
    if not codes:
        return logits if config.code_softmax == "joint" else logits[:, : len(VOCAB)]
    return logits if config.code_softmax == "joint" else logits[:, len(VOCAB) :]


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("goal", GOALS)
def test_losses_are_those_of_the_sheet(goal: str, pre_norm: bool) -> None:
    model, sums, count = system(pre_norm=pre_norm), 0.0, 0
    examples = [hidden(model, i, goal) for i in range(4)]
    for i, example in enumerate(examples):
        text, pick = example.text, example.targets[goal]
        source = text.ids[text.segment_ids == 1].tolist()
        target = pick.labels[:-1].tolist()
        assert pick.labels[-1] == VOCAB.sep and text.ids[: len(target) + 1].tolist() == [VOCAB.cls, *target]
        said = made(i).texts[0] if goal != "answer" else "蓝"
        assert [VOCAB.tokens[x] for x in target] == list(said)
        assert bool(source) == (goal in ("denoise", "multimodal", "answer"))
        picture = goal not in ("denoise", "lm")
        assert len(example.regions) == 4 * picture
        logits = reference(model, made(i), source, target, picture)
        sums, count = (
            sums + float(F.cross_entropy(logits, torch.from_numpy(pick.labels), reduction="sum")),
            count + len(pick.labels),
        )
    losses, _ = model(pack(examples))
    assert losses[goal].item() == pytest.approx(sums / count, abs=2e-5)


def in_codes(number: int, length: int = 9) -> Sample:
    sample = made(number, length)
    codes = np.random.default_rng([number, 8]).integers(CODES, size=LENGTH)
    return dataclasses.replace(sample, pictures=(dataclasses.replace(sample.pictures[0], codes=codes),))


@pytest.mark.parametrize("softmax", ["own", "joint"])
def test_a_picture_is_told_code_by_code_from_the_text_alone(softmax: str) -> None:
    model = system(codes=CODES, code_length=LENGTH, code_softmax=softmax)
    samples = [in_codes(i, 4 + i) for i in range(4)]
    examples = [model.hide(x, "text_to_image", np.random.default_rng(0), lambda: made(99)) for x in samples]
    each = []
    for sample, example in zip(samples, examples, strict=True):
        codes = torch.from_numpy(sample.pictures[0].codes)
        source = VOCAB.encode(sample.texts[0]).ids.tolist()
        target = (len(VOCAB) + codes[:-1]).tolist()
        assert not len(example.regions), "the picture itself is not seen"
        logits = reference(model, sample, source, target, picture=False, codes=True)
        each.append(F.cross_entropy(logits, codes + (len(VOCAB) if softmax == "joint" else 0), reduction="none"))
        assert model.forms(sample)[0].rows == max(example.rows, model.lay_out(sample).rows)
    losses, _ = model(pack(examples))
    assert losses["text_to_image"].item() == pytest.approx(torch.cat(each).mean().item(), abs=2e-5)
    caption, _ = model(pack([model.hide(x, "caption", np.random.default_rng(0), lambda: made(99)) for x in samples]))
    told = [
        F.cross_entropy(
            reference(model, x, [], VOCAB.encode(x.texts[0]).ids.tolist(), picture=True),
            torch.tensor([*VOCAB.encode(x.texts[0]).ids, VOCAB.sep]),
            reduction="none",
        )
        for x in samples
    ]
    assert caption["caption"].item() == pytest.approx(torch.cat(told).mean().item(), abs=2e-5)


class Tiles:
    """A codec of somebody's own: a picture in 3 x 3 tiles of one of eight greys."""

    codes, length = 8, 9

    def encode(self, pictures: Any) -> Any:
        tiles = [x.reshape(3, x.shape[0] // 3, 3, -1, 3).mean((1, 3, 4)) for x in pictures]
        return np.stack([(x // 32).astype(np.int64).ravel() for x in tiles])

    def decode(self, codes: Any) -> Any:
        return np.repeat(np.asarray(codes, np.uint8).reshape(-1, 3, 3, 1) * 32 + 16, 3, 3)


def test_what_was_learnt_by_heart_is_drawn_from_its_text() -> None:
    codec, model = Tiles(), system(codes=8, code_length=9, initializer_range=0.1).train()
    samples = [in_codes(i) for i in range(3)]
    assert len({x.texts for x in samples}) == 3
    batch = pack([model.hide(x, "text_to_image", np.random.default_rng(0), lambda: made(9)) for x in samples])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(80):
        optimizer.zero_grad()
        model(batch)[0]["text_to_image"].backward()
        optimizer.step()
    model.eval()
    drawn = draw(model, samples, codec, torch.Generator().manual_seed(0), top_k=1)
    assert drawn.shape == (3, 3, 3, 3) and drawn.dtype == np.uint8
    assert codec.encode(drawn).tolist() == [x.pictures[0].codes.tolist() for x in samples]
    first = draw(model, samples[:1] * 8, codec, torch.Generator().manual_seed(1), top_k=0, temperature=30.0)
    again = draw(model, samples[:1] * 8, codec, torch.Generator().manual_seed(1), top_k=0, temperature=30.0)
    assert np.array_equal(first, again) and len({x.tobytes() for x in first}) > 1
    with pytest.raises(BadInput, match="writes 9 codes below 8, the codec takes 4 below 8"):
        draw(model, samples, type("Small", (Tiles,), {"length": 4})(), torch.Generator())


def test_pictures_without_the_right_codes_are_refused() -> None:
    model = system(codes=CODES, code_length=LENGTH)
    goal = ("text_to_image", np.random.default_rng(0), lambda: made(9))
    with pytest.raises(BadInput, match="s1: its picture has no codes; run `intarsia data codes`"):
        model.hide(made(1), *goal)
    with pytest.raises(BadInput, match="s1: its picture has no codes"):
        system().hide(in_codes(1), *goal)
    for codes, said in ((np.zeros(3, int), "3 codes up to 0"), (np.full(LENGTH, CODES), f"{LENGTH} codes up to")):
        picture = dataclasses.replace(made(1).pictures[0], codes=codes)
        with pytest.raises(BadInput, match=said):
            model.hide(dataclasses.replace(made(1), pictures=(picture,)), *goal)
    with pytest.raises(BadInput, match="50 codes of a picture is more than max_position_embeddings 40"):
        system(codes=8, code_length=50)
    alone = model.hide(dataclasses.replace(made(1), pictures=()), *goal)
    assert model(pack([alone]))[0]["text_to_image"].item() == 0


def test_a_target_sees_no_later_target_and_the_context_no_target() -> None:
    model = system()
    example = hidden(model, 1, "multimodal")
    changed = hidden(model, 1, "multimodal")
    at = 4
    changed.text.ids[at] = VOCAB.index["红"] if changed.text.ids[at] != VOCAB.index["红"] else VOCAB.index["黄"]
    with torch.inference_mode():
        one, two = (model.encode(pack([x])) for x in (example, changed))
    same = (one.text == two.text).all(1)
    source = torch.from_numpy(example.text.segment_ids == 1)
    assert same[:at].all() and same[source].all() and torch.equal(one.visual, two.visual)
    assert not same[at : (~source).sum()].any()
    blank = dataclasses.replace(example, regions=dataclasses.replace(example.regions, feats=example.regions.feats + 1))
    with torch.inference_mode():
        assert not (model.encode(pack([blank])).text == one.text).all(1).any(), "everything sees the picture"


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.floats(0.05, 1.0), st.floats(0.5, 6.0), st.integers(0, 1000))
def test_spans_cover_their_share_and_do_not_touch(count: int, rate: float, mean: float, seed: int) -> None:
    ids = np.arange(10, 10 + count)
    found = hide_spans(ids, 4, np.random.default_rng(seed), rate, mean)
    kept = found[found != 4]
    assert count - len(kept) == min(count, max(1, round(rate * count)))
    assert (np.diff(kept) > 0).all()
    masks = np.flatnonzero(found == 4)
    assert (np.diff(masks) > 1).all(), "one mask a span"
    holes = 1 + int((np.diff(np.concatenate([[9], kept, [10 + count]])) > 1).sum()) - 1
    assert len(masks) == holes


def test_lengths_of_spans_are_poisson_and_every_piece_is_as_likely() -> None:
    rng, lengths, hits = np.random.default_rng(0), [], np.zeros(400)
    for _ in range(300):
        found = hide_spans(np.arange(10, 410), 4, rng, 0.15, 3.0)
        missing = ~np.isin(np.arange(10, 410), found)
        hits += missing
        edges = np.flatnonzero(np.diff(np.concatenate([[0], missing.astype(int), [0]])))
        lengths += (edges[1::2] - edges[::2]).tolist()
    assert abs(np.mean(lengths) - 3 / (1 - np.exp(-3))) < 0.1
    assert abs(hits[5:-5].mean() / 300 - 0.15) < 0.005
    assert (hits[5:-5] > 15).all() and (hits[5:-5] < 80).all()


def test_what_does_not_fit_is_refused() -> None:
    model = system()
    with pytest.raises(TooLong, match="s1: 31 pieces of text, the limit is 30"):
        model.lay_out(made(1, length=31))
    with pytest.raises(BadInput, match="m6 has no objective 'itm'"):
        hidden(model, 1, "itm")
    with pytest.raises(BadInput, match="s1: has no answer"):
        model.hide(dataclasses.replace(made(1), answers=()), "answer", np.random.default_rng(0), lambda: made(2))
    with pytest.raises(BadInput, match="max_pieces 40"):
        system(max_pieces=40)


def test_samples_without_pictures_take_part() -> None:
    model = system()
    alone = dataclasses.replace(made(1), pictures=())
    for goal in GOALS:
        rng = np.random.default_rng(3)
        example = model.hide(alone, goal, rng, lambda: made(2))
        losses, _ = model(pack([example, hidden(model, 2, goal)]))
        assert losses[goal].isfinite()


def test_matching_reads_cls_after_everything() -> None:
    model = system()
    tuned = begin(model, M6.finetune["retrieval"]).eval()
    example = model.lay_out(made(1), "retrieval")
    assert example.text.segment_ids.tolist() == [2] + [1] * 9
    with torch.inference_mode():
        base = tuned.scores(pack([example]))
        for i in (1, 9):
            other = model.lay_out(made(1), "retrieval")
            other.text.ids[i] = VOCAB.mask
            assert not torch.allclose(tuned.scores(pack([other])), base)


def test_experts_lose_nothing_when_computed_again_and_tell_what_is_dropped() -> None:
    numbers: dict[str, Any] = {"experts": 4, "expert_choices": 2, "capacity_factor": 0.5, "hidden_dropout_prob": 0.2}
    found = []
    for again in (False, True):
        model = system(**numbers, recompute=again).train()
        batch = pack([hidden(model, i, "caption") for i in range(4)])
        torch.manual_seed(5)
        losses, _ = model(batch)
        assert 0 < losses["dropped"].item() < 1 and losses["balance"].item() > 0.9
        total = model.weigh(losses, M6.recipes["base"].mix)
        assert total.item() == pytest.approx(losses["caption"].item() + 0.01 * losses["balance"].item())
        total.backward()
        found.append({name: x.grad for name, x in model.named_parameters()})
        assert all(x.router.weight.grad.any() for x in (layer.feed for layer in model.encoder.layers))
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, atol=1e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
