"""Constrained beam search, drawing and self-critical training, against slow references on tiny models."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intarsia import decode, naming
from intarsia.batch import Picture, Sample
from intarsia.objectives import scst
from intarsia.system import System, fit_config
from intarsia.systems import find
from intarsia.tasks.metrics.captions import Frequencies, cider_d
from intarsia.text import SPECIALS, Vocab

PIECES, END = 5, 4


def toy(seed: int) -> decode.Next:
    """A language: the logits of the next piece hang on the sample and on all that was said."""

    def logits(asked: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        rows = [np.random.default_rng([seed, i, *said]).standard_normal(PIECES) * 2 for i, said in asked]
        return torch.tensor(np.array(rows), dtype=torch.float32)

    return logits


def log_probability(logits: decode.Next, sample: int, said: Sequence[int]) -> float:
    return sum(float(logits([(sample, said[:i])]).log_softmax(-1)[0, piece]) for i, piece in enumerate(said))


def names(said: Sequence[int], thing: Sequence[Sequence[int]]) -> bool:
    """Whether the places of a thing are said one after the other."""
    return any(
        all(said[start + i] in forms for i, forms in enumerate(thing)) for start in range(len(said) - len(thing) + 1)
    )


def named(machine: naming.Machine, said: Sequence[int]) -> set[int]:
    """The states that some way through the machine leads to; the closing piece goes through it once."""
    at = {0}
    for piece in said:
        at = {int(to) for state in at for to in machine.allowed[state, :, piece].nonzero()[:, 0]}
    return {state for state in at if state < 2**machine.given}


def everything(length: int) -> list[tuple[int, ...]]:
    """All captions: closed ones of up to `length` pieces, and open ones of `length`."""
    open_, found = range(PIECES - 1), []
    for count in range(length + 1):
        for words in itertools.product(open_, repeat=count):
            found += [(*words, END)] if count < length else [words]
    return found


THINGS = [
    [[[0]]],
    [[[0, 1]], [[2]]],
    [[[0], [1]]],
    [[[0]], [[2], [3]]],
]


@pytest.mark.parametrize("things", THINGS, ids=str)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_wide_constrained_search_finds_the_best_caption_of_all(things: list[list[list[int]]], seed: int) -> None:
    """With room for every caption the search is exact: per set of things named the likeliest, then by mean log probability."""
    length, logits = 4, toy(seed)
    machine = naming.Machine.of(things, PIECES)
    found = naming.constrained(logits, [machine] * 2, length, END, 700, satisfy=len(things))
    for i, one in enumerate(found):
        all_named = [said for said in everything(length) if 2 ** len(things) - 1 in named(machine, said)]
        score, said = max((log_probability(logits, i, said), said) for said in all_named)
        wanted = tuple(piece for piece in said if piece != END)
        assert (one.ids, one.closed) == (wanted, said[-1] == END)
        assert one.score == pytest.approx(score / (len(wanted) + 1), abs=1e-5)


@pytest.mark.parametrize("things", THINGS, ids=str)
def test_the_machine_reads_as_the_definition(things: list[list[list[int]]]) -> None:
    """What it reads as all things named names them; it misses only what begins anew within a thing half said, as the authors' does."""
    machine, missed = naming.Machine.of(things, PIECES), 0
    everywhere = 2 ** len(things) - 1
    for said in itertools.product(range(PIECES), repeat=4):
        reads = everywhere in named(machine, said)
        if all(names(said, thing) for thing in things):
            missed += not reads
            again = any(len(thing) > 1 and sum(said.count(x) for x in thing[0]) > 1 for thing in things)
            assert reads or again or len(things) > 1, said
        else:
            assert not reads, said
    assert (missed > 0) == any(len(thing) > 1 for thing in things)


def test_narrow_constrained_search_step_by_step() -> None:
    """Two beams a state, against the rule written out over plain lists of all ways."""
    things = [[[0]], [[1]]]
    machine, logits, length = naming.Machine.of(things, PIECES), toy(9), 5
    beams: dict[int, list[tuple[float, tuple[int, ...]]]] = {0: [(0.0, ())]}
    for _ in range(length):
        after: dict[int, list[tuple[float, tuple[int, ...]]]] = {state: [] for state in range(4)}
        for source, state in beams.items():
            for score, said in state:
                closed = said[-1:] == (END,)
                logs = (
                    [0.0 if p == END else -math.inf for p in range(PIECES)]
                    if closed
                    else logits([(0, said)]).log_softmax(-1)[0].tolist()
                )
                for target in range(4):
                    ways = [
                        (score + logs[p], said if closed else (*said, p))
                        for p in range(PIECES)
                        if machine.allowed[source, target, p]
                    ]
                    after[target] += sorted((x for x in ways if x[0] > -math.inf), reverse=True)[:2]
        beams = {state: sorted(found, reverse=True)[:2] for state, found in after.items()}
    for satisfy in (0, 1, 2):
        best = [beams[s][0] for s in range(4) if bin(s).count("1") >= satisfy]
        score, said = max(best, key=lambda x: x[0] / (sum(p != END for p in x[1]) + 1))
        one = naming.constrained(logits, [machine], length, END, 2, satisfy=satisfy)[0]
        assert one.ids == tuple(p for p in said if p != END)
        assert one.score == pytest.approx(score / (len(one.ids) + 1), abs=1e-5)


def test_nothing_to_name_and_too_much_to_name() -> None:
    free = naming.constrained(toy(3), [naming.Machine.of([], PIECES)], 4, END, 700)[0]
    best = max(everything(4), key=lambda said: log_probability(toy(3), 0, said))
    assert free.ids == tuple(p for p in best if p != END)
    crowded = naming.constrained(toy(3), [naming.Machine.of([[[0]], [[1]], [[2]]], PIECES)], 2, END, 50, satisfy=3)[0]
    assert len(crowded.ids) == 2  # room for two of three things
    assert len(set(crowded.ids) & {0, 1, 2}) == 2


# --------------------------------------------------------------------------------------------------------------------- drawing and rewards

VOCAB = Vocab([*SPECIALS, *(f"w{i}" for i in range(12))])


def made(number: int) -> Sample:
    rng = np.random.default_rng(number)
    boxes = np.tile(np.array([0.1, 0.1, 0.5, 0.6], np.float32), (3, 1))
    probs = rng.dirichlet(np.ones(4), 3).astype(np.float32)
    feats = rng.standard_normal((3, 6)).astype(np.float32)
    return Sample(
        f"s{number}",
        ("w1 w2 w3",),
        (Picture(f"p{number}", feats, boxes, 20, 20, probs=probs, tags=("w4",)),),
        also=("w1 w2 w5",),
    )


def captioner(name: str) -> System:
    torch.manual_seed(3)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
    config = fit_config(find(name).recipes["caption"].config, len(VOCAB), 6, 4)
    return find(name)(dataclasses.replace(config, **small, **off), VOCAB)


def test_drawn_pieces_have_their_probabilities() -> None:
    logits, count = toy(5), 4000
    again: decode.Next = lambda asked: logits([(0, said) for _, said in asked])  # noqa: E731
    drawn = decode.sample(again, count, 2, END, torch.Generator().manual_seed(1))
    found = Counter((*one.ids, END) if one.closed else one.ids for one in drawn)
    assert sum(found.values()) == count
    for said in everything(2):
        p = math.exp(log_probability(logits, 0, said))
        assert abs(found[said] - count * p) <= 5 * math.sqrt(count * p * (1 - p)) + 1e-6, said
    same = decode.sample(again, 50, 2, END, torch.Generator().manual_seed(1))
    assert same == decode.sample(again, 50, 2, END, torch.Generator().manual_seed(1))
    whole = (*drawn[0].ids, END) if drawn[0].closed else drawn[0].ids
    assert drawn[0].score == pytest.approx(log_probability(logits, 0, whole) / len(whole), abs=1e-5)


@pytest.mark.parametrize("name", ["oscar", "vlp"])
def test_log_probabilities_are_those_of_decoding(name: str) -> None:
    system, samples = captioner(name).eval(), [made(1), made(2)]
    logits = decode.next_piece(system, samples)
    said = [(0, decode.Said((7, 8, 9), 0.0)), (1, decode.Said((6,), 0.0, closed=False)), (0, decode.Said((), 0.0))]
    logs, owner = decode.log_probs(system, samples, said)
    assert owner.tolist() == [0, 0, 0, 0, 1, 2]
    wanted = []
    for number, one in said:
        whole = (*one.ids, VOCAB.sep) if one.closed else one.ids
        wanted += [float(logits([(number, whole[:i])]).log_softmax(-1)[0, p]) for i, p in enumerate(whole)]
    assert (logs.detach() - torch.tensor(wanted)).abs().max() < 1e-5
    logs.sum().backward()
    assert all(p.grad is not None for n, p in system.named_parameters() if n.startswith("encoder."))


def test_score_is_the_sum_written_out() -> None:
    torch.manual_seed(0)
    logs, owner = torch.randn(9, requires_grad=True), torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 3])
    plain = logs.detach()
    worth = scst.advantages(torch.tensor([[1.0, 0.5], [0.2, 2.0]]), torch.tensor([0.7, 0.3])).flatten()
    assert worth.tolist() == pytest.approx([0.3, -0.2, -0.1, 1.7])
    by_caption = -sum(float(worth[k] * plain[owner == k].mean()) for k in range(4)) / 4
    by_piece = -sum(float(worth[owner[i]] * plain[i]) for i in range(9)) / 9
    assert float(scst.score(logs, owner, worth).detach()) == pytest.approx(by_caption, abs=1e-6)
    assert float(scst.score(logs, owner, worth, "pieces").detach()) == pytest.approx(by_piece, abs=1e-6)


@pytest.mark.parametrize("over", ["captions", "pieces"])
def test_self_critical_is_the_definition(over: Any) -> None:
    """Every drawn caption's log probability by itself, its CIDEr-D less the greedy caption's, summed by hand."""
    system, samples, times, length = captioner("oscar"), [made(1), made(2)], 3, 4
    known = Frequencies.of([["w1 w2 w3", "w1 w2 w5"], ["w6 w7"], ["w2 w9 w8"]])
    references = [[*x.texts, *x.also] for x in samples]
    judged: list[tuple[str, int]] = []

    def reward(captions: Sequence[str], numbers: Sequence[int]) -> Sequence[float]:
        judged.extend(zip(captions, numbers, strict=True))
        return cider_d(captions, [references[i] for i in numbers], known).each

    loss, baseline = decode.self_critical(
        system, samples, reward, torch.Generator().manual_seed(4), length, times, over
    )
    assert system.training
    logits = decode.next_piece(system.eval(), samples)
    drawn = decode.sample(
        lambda asked: logits([(i // times, said) for i, said in asked]),
        6,
        length,
        VOCAB.sep,
        torch.Generator().manual_seed(4),
    )
    best = decode.greedy(logits, 2, length, VOCAB.sep)
    words = [VOCAB.decode(x.ids if x.closed else x.ids[:-1]) for x in (*drawn, *best)]
    assert judged == list(zip(words, [0, 0, 0, 1, 1, 1, 0, 1], strict=True))
    worth = cider_d(words, [references[i] for i in (0, 0, 0, 1, 1, 1, 0, 1)], known).each
    assert baseline == pytest.approx((worth[6] + worth[7]) / 2, abs=1e-6)
    total = pieces = 0.0
    for k, one in enumerate(drawn):
        whole = (*one.ids, VOCAB.sep) if one.closed else one.ids
        log = log_probability(logits, k // times, whole)
        gain = worth[k] - worth[6 + k // times]
        total += gain * (log / len(whole) if over == "captions" else log)
        pieces += len(whole)
    assert float(loss.detach()) == pytest.approx(-total / (6 if over == "captions" else pieces), abs=1e-5)


def test_self_critical_training_raises_the_reward() -> None:
    """Captions that hold w7 are rewarded: after some steps they are what is drawn, and what is said greedily."""
    system, samples, generator = captioner("oscar"), [made(1), made(2)], torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(system.parameters(), 2e-2)

    def reward(captions: Sequence[str], numbers: Sequence[int]) -> list[float]:
        return [float("w7" in caption.split()) for caption in captions]

    def drawn() -> float:
        logits = decode.next_piece(system.eval(), samples)
        again: decode.Next = lambda asked: logits([(i // 40, said) for i, said in asked])  # noqa: E731
        said = decode.sample(again, 80, 3, VOCAB.sep, torch.Generator().manual_seed(2))
        system.train()
        return sum(VOCAB.index["w7"] in x.ids for x in said) / 80

    before = drawn()
    for _ in range(40):
        loss, _ = decode.self_critical(system, samples, reward, generator, length=3, times=8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.5
    assert drawn() > 0.9
