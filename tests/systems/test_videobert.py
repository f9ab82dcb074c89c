"""VideoBERT against a slow reading of its sheet: documents, what is hidden, the joint softmax, what is frozen, negatives."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from intarsia import decode
from intarsia.batch import Example, Pick, Sample
from intarsia.data.video import sentence
from intarsia.decode import next_piece
from intarsia.errors import BadInput
from intarsia.features.kmeans import WithWords, fit
from intarsia.pack import pack
from intarsia.parts.captioner import CaptionNumbers
from intarsia.systems.videobert import BETWEEN, VideoBERT
from intarsia.text import Vocab
from intarsia.weights.files import fill
from intarsia.worlds.film_features import FilmWorld

WORLD = FilmWorld(300, seed=3)
BOOK = fit(torch.from_numpy(np.concatenate([WORLD[i].film.features for i in range(60)])), 3, 3)
FILMS = WithWords(WORLD, BOOK)
VOCAB = Vocab.learn([text for i in range(60) for text in WORLD[i].texts], specials=VideoBERT.specials)


@cache
def build(**changes: Any) -> VideoBERT:
    tiny = VideoBERT.recipes["tiny"].config
    sizes = {"vocab_size": len(VOCAB), "clusters": 27, "hidden_size": 32, "num_attention_heads": 2}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        system = VideoBERT(dataclasses.replace(tiny, **(sizes | {"intermediate_size": 32} | changes)), VOCAB)
    system.fill_words(BOOK)
    return system.eval()


def hidden(number: int, goal: str, **changes: Any) -> Example:
    return build(**changes).hide(FILMS[number], goal, np.random.default_rng(number), lambda: FILMS[(number + 9) % 300])


JOINT = "align+mlm_joint+mvm_joint"


def test_a_joint_document_runs_on_from_words_to_clips() -> None:
    sample = FILMS[0]
    example = build().lay_out(sample)
    text, clips = example.text, example.clips
    assert text is not None and clips is not None and sample.film is not None
    tokens = [VOCAB.tokens[i] for i in text.ids]
    said = " ".join(sample.texts).split()
    assert tokens == ["[CLS]", *said, BETWEEN, "[SEP]"]
    count = len(sample.film.seconds)
    assert text.position_ids.tolist() == [*range(len(said) + 2), len(said) + 2 + count]
    assert clips.position_ids.tolist() == list(range(len(said) + 2, len(said) + 2 + count))
    assert text.segment_ids.tolist() == [0] * (len(said) + 2) + [1]
    assert set(clips.segment_ids) == {1}
    assert clips.ids.tolist() == sample.film.ids.tolist()
    assert clips.feats.shape == (count, 0)


def test_either_side_may_be_missing() -> None:
    alone = build().lay_out(dataclasses.replace(FILMS[0], film=None))
    assert alone.text is not None and alone.clips is not None
    assert BETWEEN not in [VOCAB.tokens[i] for i in alone.text.ids]
    assert len(alone.clips) == 0 and set(alone.text.segment_ids) == {0}
    silent = build().lay_out(dataclasses.replace(FILMS[0], texts=()))
    assert silent.text is not None and silent.clips is not None
    assert [VOCAB.tokens[i] for i in silent.text.ids] == ["[CLS]", "[SEP]"]
    assert silent.clips.position_ids[0] == 1
    assert silent.text.position_ids.tolist() == [0, 1 + len(silent.clips)]
    with pytest.raises(BadInput, match="no visual words; run `intarsia data cluster`"):
        build().lay_out(WORLD[0])


def test_regimes_show_what_they_are_about() -> None:
    for number in range(40):
        words, clips, both = (hidden(number, goal) for goal in ("mlm", "mvm", JOINT))
        assert words.clips is not None and len(words.clips) == 0
        assert clips.text is not None and len(clips.text) == 2
        assert isinstance(clips.targets["mvm"], Pick) and len(clips.targets["mvm"].rows) >= 1
        assert both.text is not None and both.clips is not None and len(both.clips)
        assert set(both.targets) == set(JOINT.split("+"))


def test_rates_of_hiding_and_what_stands_there_instead() -> None:
    kinds: Counter[str] = Counter()
    places, alone = 0, 0.0
    for number in range(300):
        example = hidden(number, "mvm", mvm_rate=0.15)
        pick, rows, sample = example.targets["mvm"], example.clips, FILMS[number]
        assert isinstance(pick, Pick) and rows is not None and sample.film is not None
        places += len(rows)
        alone += 0.85 ** len(rows)  # where none was drawn one is hidden all the same
        for row, label in zip(pick.rows, pick.labels, strict=True):
            kinds["masked" if rows.masked[row] else "kept" if rows.ids[row] == label else "other"] += 1
        assert (rows.masked.sum()) <= len(pick.rows)
    total = sum(kinds.values())
    assert abs(total - 0.15 * places - alone) < 5 * (0.15 * 0.85 * places) ** 0.5
    assert abs(kinds["masked"] / total - 0.8) < 5 * (0.16 / total) ** 0.5
    assert abs(kinds["other"] / total - 0.1 * 26 / 27) < 5 * (0.09 / total) ** 0.5


def test_sentences_are_joined_and_clips_left_out_at_the_rates() -> None:
    joined, steps = 0, Counter[int]()
    for number in range(300):
        example = hidden(number, "align", broken_rate=0.0, joint_cloze=False, most_skip=5)
        assert example.text is not None and example.clips is not None
        joined += [VOCAB.tokens[i] for i in example.text.ids].count(".") == 2
        gaps = set(np.diff(example.clips.seconds) / 1.5)
        assert len(gaps) <= 1
        if gaps:
            steps[int(gaps.pop())] += 1
    for number in range(40):  # in documents of one kind nothing is joined
        words, clips = hidden(number, "mlm", join_rate=1.0), hidden(number, "mvm", join_rate=1.0)
        assert words.text is not None and clips.clips is not None
        said = build().vocab.decode([int(x) for x in words.text.ids[1:-1]])
        assert said.count(".") <= 1 and len(clips.clips) <= 4
    # Between a third and a sixth of the sentences are the last, which has no neighbour.
    assert 0.25 * 300 < joined < 0.5 * 300
    assert {1, 2, 3} <= set(steps)
    assert max(steps) <= 5


def test_of_few_clips_one_is_kept_whatever_the_step() -> None:
    counts = Counter[int]()
    for number in range(200):
        example = hidden(number, "align", joint_cloze=False, join_rate=0.0, broken_rate=0.0, most_skip=5)
        assert example.clips is not None
        counts[len(example.clips)] += 1
    assert set(counts) == {1, 2, 3, 4}
    one = (4 / 5 + (1 / 2 + 3) / 5 + (2 / 3 + 2) / 5) / 3  # sentences of 2, 3 and 4 clips, a third each
    assert abs(counts[1] / 200 - one) < 5 * (one * (1 - one) / 200) ** 0.5


def test_negatives_by_content() -> None:
    labels, near = Counter[int](), 0
    for number in range(300):
        example = hidden(number, "align", joint_cloze=False, join_rate=0.0, most_skip=1)
        sample, label = FILMS[number], int(example.targets["align"])
        assert example.text is not None and example.clips is not None and sample.film is not None
        said = " ".join(VOCAB.tokens[i] for i in example.text.ids[1:-2])
        begins = example.clips.seconds[0]
        (told,) = [x for x, span in zip(sample.texts, sample.film.spans, strict=True) if span[0] <= begins < span[1]]
        assert (said == told) == bool(label)
        labels[label] += 1
        near += label == 0 and said in sample.texts
    assert abs(labels[0] - 150) < 5 * 75**0.5
    assert abs(near - labels[0] / 2) < 5 * (labels[0] / 4) ** 0.5


@pytest.mark.parametrize(("near_rate", "near"), [(0.0, False), (1.0, True)])
def test_where_negatives_come_from(near_rate: float, near: bool) -> None:
    for number in range(60):
        example = hidden(number, "align", joint_cloze=False, join_rate=0.0, broken_rate=1.0, near_rate=near_rate)
        assert example.text is not None and int(example.targets["align"]) == 0
        said = " ".join(VOCAB.tokens[i] for i in example.text.ids[1:-2])
        assert said in FILMS[number if near else number + 9].texts


def test_sizes() -> None:
    found = {name: recipe.config for name, recipe in VideoBERT.recipes.items()}
    shapes = {x: (c.num_hidden_layers, c.hidden_size, c.num_attention_heads) for x, c in found.items()}
    assert shapes["large"] == (24, 1024, 16)
    assert shapes["base"] == (12, 768, 12)
    assert found["large"].near_rate == found["base"].near_rate == 1.0


def test_nothing_is_asked_for_in_broken_pairs_but_as_much_is_hidden() -> None:
    asked, masked = Counter[int](), Counter[int]()
    for number in range(300):
        example = hidden(number, JOINT)
        label, pick = int(example.targets["align"]), example.targets["mlm_joint"]
        assert isinstance(pick, Pick) and example.text is not None
        asked[label] += len(pick.rows)
        masked[label] += int((example.text.ids == VOCAB.mask).any())
    assert asked[0] == 0 < asked[1]
    assert 0.5 < masked[0] / masked[1] < 2


@pytest.mark.parametrize("softmax", ["joint", "own"])
def test_losses_are_those_of_the_slow_reading(softmax: str) -> None:
    system = build(softmax=softmax)
    examples = [hidden(i, JOINT, softmax=softmax) for i in range(8)]
    batch = pack(examples)
    losses, encoded = system(batch)
    state = system.state_dict()
    table = F.linear(state["clip_words.weight"], state["project.weight"], state["project.bias"])
    tables = {"mlm_joint": state["words.word.weight"], "mvm_joint": table}
    whole = torch.cat(list(tables.values()))
    for goal, own in tables.items():
        rows = encoded.text if goal == "mlm_joint" else encoded.visual
        picks, bias = batch.picks(goal), state["word_head.bias"]
        x = system.word_head.transform(rows[picks.rows])
        first = 0 if goal == "mlm_joint" else len(VOCAB)
        if softmax == "joint":
            expected = F.cross_entropy(x @ whole.T + bias, picks.labels + first)
        else:
            expected = F.cross_entropy(x @ own.T + bias[first : first + len(own)], picks.labels)
        torch.testing.assert_close(losses[goal], expected, atol=2e-5, rtol=1e-5)
    assert losses["align"].isfinite()


def test_masked_clips_are_mask_tokens_and_features_play_no_part() -> None:
    system = build()
    example = system.lay_out(FILMS[1])
    assert example.clips is not None
    example.clips.masked[:] = True
    once = system.encode(pack([example])).pooled
    example.clips.ids[:] = 5
    assert torch.equal(once, system.encode(pack([example])).pooled)


@pytest.mark.parametrize(("freeze", "free"), [("none", (1, 1)), ("text", (0, 1)), ("visual", (1, 0)), ("both", (0, 0))])
def test_what_is_frozen(freeze: str, free: tuple[int, int]) -> None:
    system = build(freeze=freeze)
    assert (system.words.word.weight.requires_grad, system.clip_words.weight.requires_grad) == free
    assert torch.equal(system.clip_words.weight, BOOK.leaves)


def test_the_template_has_gaps_above_the_clips() -> None:
    example, rows = build().ask(FILMS[0], ("now", "the", None, None, None, "."))
    assert example.text is not None
    assert rows.tolist() == [3, 4, 5]
    assert (example.text.ids[rows] == VOCAB.mask).all()
    sample: Sample = dataclasses.replace(FILMS[0], film=None)
    assert len(build().ask(sample)[0].clips or ()) == 0


def test_the_joint_table_is_made_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    system, calls = build(), []
    batch = pack([hidden(i, JOINT) for i in range(4)])
    encoded = system.encode(batch)
    tables = VideoBERT._tables
    monkeypatch.setattr(VideoBERT, "_tables", lambda self: calls.append(1) or tables(self))
    assert set(system.losses(encoded, batch)) == set(JOINT.split("+"))
    assert len(calls) == 1


# ---------------------------------------------------------------------------------------------------------------- captions


def captioner(features: bool = False) -> VideoBERT:
    tiny = build().config
    writer = CaptionNumbers(layers=2, hidden_size=64, dropout=0.0, max_pieces=20, features=features)
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        system = VideoBERT(dataclasses.replace(tiny, captioner=writer), VOCAB)
    fill(system, build().state_dict(), "a run", VideoBERT.captioning.fresh)
    return system


def caption_batch(system: VideoBERT, samples: list[Sample]) -> Any:
    return pack([system.hide(x, "caption", np.random.default_rng(0), lambda: FILMS[0]) for x in samples])


PARTS = [sentence(FILMS[i], 0) for i in range(8)]


def test_every_piece_of_a_caption_is_told_from_those_before_and_the_clips() -> None:
    system = captioner().eval()
    batch = caption_batch(system, PARTS[:4])
    text, picks = batch.text, batch.picks("caption")
    assert text is not None and batch.clips is not None
    said = [VOCAB.encode(x.texts[0]).ids.tolist() for x in PARTS[:4]]
    assert picks.labels.tolist() == [piece for pieces in said for piece in [*pieces, VOCAB.sep]]
    assert [VOCAB.tokens[i] for i in text.ids[picks.rows[:3]]] == ["[CLS]", *PARTS[0].texts[0].split()[:2]]
    logits = system.word_logits(system.encode(batch), picks.rows)
    changed = text.ids.clone()
    changed[picks.rows[4]] = VOCAB.first_ordinary  # a piece of the first caption
    other = dataclasses.replace(batch, text=dataclasses.replace(text, ids=changed))
    again = system.word_logits(system.encode(other), picks.rows)
    first = len(said[0]) + 1
    torch.testing.assert_close(logits[:4], again[:4])
    assert (logits[4:first] - again[4:first]).abs().amax(1).min() > 1e-6
    torch.testing.assert_close(logits[first:], again[first:])
    blind = dataclasses.replace(batch, clips=dataclasses.replace(batch.clips, ids=batch.clips.ids * 0))
    assert not torch.allclose(logits, system.word_logits(system.encode(blind), picks.rows))
    step = next_piece(system, PARTS[:4])([(0, said[0][:3]), (2, [])])
    torch.testing.assert_close(step, torch.stack([logits[3], logits[first + len(said[1]) + 1]]))


def test_a_captioner_reads_the_features_of_clips_where_it_is_asked_to() -> None:
    for features in (False, True):
        system = captioner(features).eval()
        batch = caption_batch(system, PARTS[:4])
        assert batch.clips is not None
        assert batch.clips.feats.shape[1] == (64 if features else 0)
        logits = system.word_logits(system.encode(batch), batch.picks("caption").rows)
        other = dataclasses.replace(batch, clips=dataclasses.replace(batch.clips, feats=batch.clips.feats + 1))
        again = system.word_logits(system.encode(other), batch.picks("caption").rows)
        assert torch.allclose(logits, again) != features


def test_a_captioner_learns_with_all_else_frozen_and_writes_by_the_common_search() -> None:
    system = captioner().train()
    before = {name: x.clone() for name, x in system.state_dict().items() if not name.startswith("captioner.")}
    optimizer = torch.optim.Adam([x for x in system.parameters() if x.requires_grad], lr=3e-3)
    batch = caption_batch(system, PARTS)
    for _ in range(70):
        losses, _ = system(batch)
        optimizer.zero_grad()
        losses["caption"].backward()
        optimizer.step()
    assert all(torch.equal(x, system.state_dict()[name]) for name, x in before.items())
    system.eval()
    for beams in (1, 2):
        said = decode.caption(system, PARTS, 12, beams)
        right = sum(x == VOCAB.decode(VOCAB.encode(y.texts[0]).ids) for x, y in zip(said, PARTS, strict=True))
        assert right >= 7  # two of them may share their visual words


def test_captions_need_a_captioner_and_are_cut_and_counted() -> None:
    system = captioner()
    long = dataclasses.replace(PARTS[0], texts=("now " * 30,))
    example = system.hide(long, "caption", np.random.default_rng(0), lambda: FILMS[0])
    assert example.text is not None and example.text.cut == 10
    with pytest.raises(BadInput, match="the caption '' is empty"):
        system.hide(dataclasses.replace(PARTS[0], texts=("",)), "caption", np.random.default_rng(0), lambda: FILMS[0])
    recipe, plain = VideoBERT.recipes["caption"], VideoBERT.recipes["large"].config
    changed = {x.name for x in dataclasses.fields(plain) if getattr(recipe.config, x.name) != getattr(plain, x.name)}
    assert changed == {"captioner", "hidden_dropout_prob", "attention_probs_dropout_prob"}  # all that tuning sets
