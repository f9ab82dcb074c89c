"""CBT by the tests of its sheet: the contest of clips by hand, what leaks, what trains, what is learnt."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from intarsia import decode
from intarsia.batch import Batch, Film, Pick, Sample
from intarsia.data.video import sentence
from intarsia.errors import BadInput
from intarsia.objectives import contrast
from intarsia.pack import pack
from intarsia.parts.captioner import CaptionNumbers
from intarsia.systems.cbt import CBT, FOUND
from intarsia.text import Vocab
from intarsia.weights.files import fill
from intarsia.worlds.film_features import ACTIONS, COLOURS, SHAPES, FilmWorld

WORLD = FilmWorld(64, seed=5)
TOPICS = (*ACTIONS, *COLOURS, *SHAPES)
VOCAB = Vocab.learn([text for i in range(64) for text in WORLD[i].texts])


def build(**changes: Any) -> CBT:
    tiny = CBT.recipes["tiny"].config
    sizes = {
        "vocab_size": len(VOCAB),
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "v_heads": 2,
    }
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return CBT(dataclasses.replace(tiny, **(sizes | {"max_position_embeddings": 128} | changes)), VOCAB).eval()


def batch_of(system: CBT, goal: str, numbers: Any = range(8)) -> Batch:
    return pack([system.hide(WORLD[i], goal, np.random.default_rng(i), lambda: WORLD[9]) for i in numbers])


def test_the_contest_by_hand() -> None:
    query, keys = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.0], [1.0, 0.0], [-1.0, 2.0]])
    products = [2.5, 1.0, 3.0]
    none = torch.zeros(1, 3, dtype=torch.bool)
    own = torch.tensor([0])
    found = contrast.among(contrast.products(query, keys, none, 1.0, False), own)
    assert float(found) == pytest.approx(-np.log(np.exp(2.5) / np.exp(products).sum()), abs=1e-6)
    order = torch.tensor([0, 2, 1])
    again = contrast.among(contrast.products(query, keys[order], none, 1.0, False), own)
    assert float(again) == pytest.approx(float(found))
    left_out = torch.tensor([[False, False, True]])
    found = contrast.among(contrast.products(query, keys, left_out, 2.0, False), own)
    assert float(found) == pytest.approx(np.log(1 + np.exp(-0.75)), abs=1e-6)


def test_how_often_the_own_clip_comes_first_by_kind_of_rival() -> None:
    system = build(neg_min_gap_clips=2, num_hidden_layers=1)
    batch = batch_of(system, "nce")
    losses, encoded = system(batch)
    clips, picks = batch.clips, batch.picks("nce")
    assert clips is not None and encoded.visual is not None
    true = clips.feats.index_copy(0, picks.rows, picks.labels)
    keys = F.normalize(system.targets(dataclasses.replace(clips, feats=true)), dim=-1)
    hits = []
    for row in picks.rows.tolist():
        scores = (F.normalize(encoded.visual[row], dim=-1) @ keys.T).tolist()
        same = (clips.packing.doc == clips.packing.doc[row]).tolist()
        gaps = (clips.position_ids - clips.position_ids[row]).abs().tolist()
        rivals = [j for j in range(len(keys)) if j != row and not (same[j] and gaps[j] < 2)]
        kinds = [rivals, [j for j in rivals if same[j]], [j for j in rivals if not same[j]]]
        hits.append([all(scores[row] > scores[j] for j in kind) for kind in kinds])
    told = [float(losses[name]) for name in FOUND]
    assert told == pytest.approx(np.mean(hits, 0).tolist(), abs=1e-6)
    assert not any(losses[name].requires_grad for name in FOUND)
    mix = CBT.recipes["tiny"].mix
    assert torch.equal(mix.weigh(losses), losses["nce"])


def topical(topic: int, seed: int) -> Sample:
    """A passage of one word and two noisy clips of what it names."""
    rng = np.random.default_rng(seed)
    rows = np.random.default_rng(topic).standard_normal(64) + 0.5 * rng.standard_normal((2, 64))
    seconds, span = np.arange(2, dtype=np.float32), np.array([[0.0, 2.0]], np.float32)
    return Sample(f"t{seed}", (TOPICS[topic],), film=Film(f"t{seed}", rows.astype(np.float32), seconds, 1.0, span))


def test_speech_finds_its_video() -> None:
    """The sheet's test of the cross-modal loss: more than 90 % of the pairs of a synthetic corpus, each among eight."""
    system = build(num_cross_negatives=0, num_hidden_layers=1, v_layers=1).train()
    optimizer, rng, steps = torch.optim.AdamW(system.parameters(), lr=2e-3), np.random.default_rng(0), 300
    for step in range(steps):
        samples = [topical(topic, 20 * step + topic) for topic in rng.permutation(20)[:8].tolist()]
        losses, _ = system(pack([system.hide(x, "mi", rng, lambda: WORLD[9]) for x in samples]))
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        optimizer.zero_grad()
        losses["mi"].backward()
        optimizer.step()
    system.eval()
    right = 0
    for number in range(60):
        shown, texts = topical(number % 20, 10**6 + number), [topical((number + s * 7) % 20, 0) for s in range(8)]
        pairs = [said(shown, x, system) for x in texts]
        right += int(system.match_scores(system.encode(pack(pairs))).argmax() == 0)
    assert right > 54


def test_losses_are_those_of_a_slow_reading() -> None:
    system = build(normalize=False, temperature=1.0, neg_min_gap_clips=2, num_cross_negatives=3)
    batch = batch_of(system, "nce+mi")
    losses, encoded = system(batch)
    examples = [system.lay_out(WORLD[i]) for i in range(8)]
    plain = pack(examples)
    assert plain.clips and batch.clips and batch.text and encoded.visual is not None and encoded.text is not None
    keys = system.clip(plain.clips.feats)
    each = []
    for row in batch.picks("nce").rows.tolist():
        scores = {}
        for other in range(len(keys)):
            same = plain.clips.packing.doc[other] == plain.clips.packing.doc[row]
            gap = abs(int(plain.clips.position_ids[other]) - int(plain.clips.position_ids[row]))
            if not (same and 0 < gap < 2):
                scores[other] = float(encoded.visual[row].detach() @ keys[other].detach())
        total = torch.logsumexp(torch.tensor(list(scores.values())), 0)
        each.append(float(total) - scores[row])
    assert float(losses["nce"]) == pytest.approx(np.mean(each), abs=2e-5)

    rows = []
    for i in range(8):
        scores = [
            system.match_scores(system.encode(pack([said(WORLD[i], WORLD[(i + s) % 8], system)]))) for s in range(4)
        ]
        rows.append(float(F.cross_entropy(torch.stack(scores, 1), torch.tensor([0]))))
    assert float(losses["mi"]) == pytest.approx(np.mean(rows), abs=2e-5)


def said(shown: Sample, told: Sample, system: CBT) -> Any:
    return system.lay_out(dataclasses.replace(shown, texts=told.texts))


def test_a_hidden_clip_does_not_leak_and_keeps_its_target() -> None:
    system = build()
    example = system.hide(WORLD[2], "nce", np.random.default_rng(0), lambda: WORLD[9])
    pick = example.targets["nce"]
    assert isinstance(pick, Pick) and example.clips is not None and WORLD[2].film is not None
    np.testing.assert_array_equal(pick.labels, WORLD[2].film.features[pick.rows])
    batch = pack([example])
    assert batch.clips is not None and (batch.clips.feats[pick.rows] == 0).all()
    once = system.look(batch.clips)
    other = dataclasses.replace(batch.clips, feats=batch.clips.feats.index_fill(0, torch.from_numpy(pick.rows), 7.0))
    assert torch.equal(once, system.look(other))


def test_rates_of_hidden_clips() -> None:
    system, hidden, places = build(nce_rate=0.3), 0, 0
    for seed in range(60):
        example = system.hide(WORLD[seed], "nce", np.random.default_rng(seed), lambda: WORLD[9])
        pick = example.targets["nce"]
        assert isinstance(pick, Pick) and example.clips is not None and len(pick.rows) >= 1
        hidden, places = hidden + len(pick.rows), places + len(example.clips)
    assert abs(hidden - 0.3 * places) < 5 * (0.21 * places) ** 0.5


def test_without_the_contest_of_speech_the_cross_encoder_gets_no_gradient() -> None:
    system = build(freeze_text=True).train()
    losses, _ = system(batch_of(system, "nce"))
    losses["nce"].backward()
    touched = {name.split(".")[0] for name, p in system.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"clip", "hidden_clip", "clip_position", "clip_norm", "visual"}
    assert not any(p.requires_grad for p in (*system.words.parameters(), *system.encoder.parameters()))
    assert not system.encoder.training and system.visual.training


def test_what_a_passage_lacks_is_not_asked_for() -> None:
    system = build()
    silent = dataclasses.replace(WORLD[0], texts=())
    unseen = dataclasses.replace(WORLD[1], film=None)
    rng = np.random.default_rng(0)
    batch = pack([system.hide(x, "nce+mi", rng, lambda: WORLD[9]) for x in (silent, unseen, WORLD[2], WORLD[3])])
    assert batch.labels("mi").tolist() == [0, 0, 1, 1]
    losses, _ = system(batch)
    assert all(x.isfinite() for x in losses.values())
    assert WORLD[0].film is not None
    wide = dataclasses.replace(WORLD[0].film, features=np.zeros((len(WORLD[0].film.seconds), 7), np.float32))
    with pytest.raises(BadInput, match="clips have 7 numbers, the system takes 64"):
        system.lay_out(dataclasses.replace(WORLD[0], film=wide))


def test_a_process_that_turns_is_learnt() -> None:
    """The next feature is the last one turned: a hidden clip can be told from all others."""
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.standard_normal((16, 16)))

    def never() -> Sample:
        raise AssertionError("no other sample is needed")

    def passage(number: int) -> Sample:
        x = np.random.default_rng(number).standard_normal(16)
        rows = [x := turn @ x for _ in range(8)]
        seconds = np.arange(8, dtype=np.float32)
        film = Film(f"f{number}", np.array(rows, np.float32), seconds, 1.0, np.zeros((0, 2), np.float32))
        return Sample(f"f{number}", (), film=film)

    system = build(feature_size=16, hidden_size=64, num_attention_heads=4, v_heads=4, temperature=0.1).train()
    optimizer = torch.optim.AdamW(system.parameters(), lr=3e-3)
    for step in range(260):
        samples = [passage(step * 32 + i) for i in range(32)]
        examples = [system.hide(x, "nce", np.random.default_rng([step, i]), never) for i, x in enumerate(samples)]
        loss = system(pack(examples))[0]["nce"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    system.eval()
    samples = [passage(10**6 + i) for i in range(32)]
    batch = pack([system.hide(x, "nce", np.random.default_rng(i), never) for i, x in enumerate(samples)])
    picks, clips = batch.picks("nce"), batch.clips
    assert clips is not None
    true = clips.feats.index_copy(0, picks.rows, picks.labels)
    keys = F.normalize(system.targets(dataclasses.replace(clips, feats=true)), dim=-1)
    found = (F.normalize(system.look(clips)[picks.rows], dim=-1) @ keys.T).argmax(1)
    assert float((found == picks.rows).float().mean()) > 0.95


def test_speech_meets_all_clips_in_one_pass_a_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    system, meetings = build(num_cross_negatives=3), []
    meet = CBT.meet
    monkeypatch.setattr(CBT, "meet", lambda self, *x: meetings.append(1) or meet(self, *x))
    losses, encoded = system(batch_of(system, "nce+mi"))
    assert len(meetings) == 4
    plain = system.encode(pack([system.lay_out(WORLD[i]) for i in range(8)]))
    torch.testing.assert_close(encoded.pooled, plain.pooled)
    assert not torch.allclose(encoded.visual, plain.visual)
    assert losses["mi"].isfinite()


# ---------------------------------------------------------------------------------------------------------------- captions

PARTS = [sentence(WORLD[i], 0) for i in range(8)]


def captioner(features: bool) -> CBT:
    writer = CaptionNumbers(layers=2, hidden_size=64, dropout=0.0, max_pieces=20, features=features)
    system = build(captioner=writer, num_hidden_layers=1, freeze_text=True)
    fill(system, build(num_hidden_layers=1).state_dict(), "a run", CBT.captioning.fresh)
    return system


def test_captions_are_told_from_the_clips_and_the_pieces_before() -> None:
    for features, reads in ((False, 32), (True, 32 + 64)):
        system = captioner(features)
        assert system.captioner is not None and system.captioner.project.in_features == reads
        batch = pack([system.hide(x, "caption", np.random.default_rng(0), lambda: WORLD[9]) for x in PARTS[:4]])
        text, picks = batch.text, batch.picks("caption")
        assert text is not None and batch.clips is not None
        said = [VOCAB.encode(x.texts[0]).ids.tolist() for x in PARTS[:4]]
        assert picks.labels.tolist() == [piece for pieces in said for piece in [*pieces, VOCAB.sep]]
        logits = system.word_logits(system.encode(batch), picks.rows)
        step = decode.next_piece(system, PARTS[:4])([(0, said[0][:3]), (2, [])])
        third = len(said[0]) + len(said[1]) + 2
        torch.testing.assert_close(step, torch.stack([logits[3], logits[third]]))
        blind = dataclasses.replace(batch, clips=dataclasses.replace(batch.clips, feats=batch.clips.feats * 0))
        assert not torch.allclose(logits, system.word_logits(system.encode(blind), picks.rows))


def test_a_captioner_learns_with_all_else_frozen() -> None:
    system = captioner(True).train()
    before = {name: x.clone() for name, x in system.state_dict().items() if not name.startswith("captioner.")}
    optimizer = torch.optim.Adam([x for x in system.parameters() if x.requires_grad], lr=3e-3)
    batch = pack([system.hide(x, "caption", np.random.default_rng(0), lambda: WORLD[9]) for x in PARTS])
    for _ in range(70):
        losses, _ = system(batch)
        optimizer.zero_grad()
        losses["caption"].backward()
        optimizer.step()
    assert all(torch.equal(x, system.state_dict()[name]) for name, x in before.items())
    said = decode.caption(system.eval(), PARTS, 12, 1)
    assert said == [VOCAB.decode(VOCAB.encode(x.texts[0]).ids) for x in PARTS]
    recipe, plain = CBT.recipes["caption"], CBT.recipes["base"].config
    changed = {x.name for x in dataclasses.fields(plain) if getattr(recipe.config, x.name) != getattr(plain, x.name)}
    assert changed == {"captioner", "hidden_dropout_prob", "attention_probs_dropout_prob"}
