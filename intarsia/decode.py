"""Generation: pictures to captions, by any system that can name the next piece.

Each way as its authors' code has it; all documents of a step are packed into one batch. `next_piece` lays a caption out anew with every piece;
`cached_next_piece` computes new rows only, remembers keys and values, and gives the same logits. Captions may be drawn by chance, with the gradient of their
log probabilities, for self-critical training (`sample`, `log_probs`), and made to name given things (`naming`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from intarsia.attend import Memory, remember
from intarsia.batch import Encoded, Example, Sample
from intarsia.errors import BadInput
from intarsia.objectives import scst
from intarsia.pack import pack
from intarsia.parts.experts import Mixture
from intarsia.system import System

REFUSED = -10_000.0
Next = Callable[[Sequence[tuple[int, Sequence[int]]]], Tensor]
"""(sample number, pieces said) of n captions -> (n, V) logits of the next piece."""


@dataclass(frozen=True, slots=True)
class Said:
    """A generated caption."""

    ids: tuple[int, ...]
    """Pieces, without [CLS] and without what closes the caption."""
    score: float
    """Log probability, as the way of decoding counts it."""
    logits: tuple[float, ...] = field(default=())
    """Of the pieces chosen, closing one included (greedy, sample)."""
    closed: bool = True
    """False = it ran out of room and has no closing piece (greedy, sample)."""


@dataclass(frozen=True, slots=True)
class Writing:
    """What a system writes piece by piece: its texts, or what it has besides, such as the codes of pictures."""

    lay_out: Callable[[Sample, Sequence[int]], tuple[Example, int]]
    """As `System.lay_out_next`."""
    logits: Callable[[Encoded, Tensor], Tensor]
    """As `System.word_logits`."""

    @classmethod
    def texts(cls, system: System) -> Writing:
        """A system's texts."""
        return cls(system.lay_out_next, system.word_logits)


def next_piece(system: System, samples: Sequence[Sample], writing: Writing | None = None) -> Next:
    """The logits of the next piece, by a system in evaluation mode; `writing` is what it writes, None = texts."""
    device = next(system.parameters()).device
    writes = writing or Writing.texts(system)

    @torch.inference_mode()
    def logits(asked: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        laid_out = [writes.lay_out(samples[i], said) for i, said in asked]
        batch = pack([example for example, _ in laid_out]).to(device)
        assert batch.text is not None
        rows = batch.text.packing.first + torch.tensor([row for _, row in laid_out], device=device)
        return writes.logits(system.encode(batch), rows).float().cpu()

    return logits


def cached_next_piece(system: System, samples: Sequence[Sample], writing: Writing | None = None) -> Next:
    """The same logits as `next_piece`, computed for new rows only: keys and values of all rows before are remembered.

    Each call must go on from captions of the call before, as all ways of decoding here do; a call without pieces begins anew.

    Raises:
        BadInput: experts have limited room: what a row gets hangs on the rows beside it, so that remembered rows are not those of a whole document.
        TypeError: the system's captions are not written by levels.
        ValueError: a caption does not go on from one of the call before.
    """
    for part in system.modules():
        if isinstance(part, Mixture) and part.capacity_factor:
            raise BadInput(
                f"{system.card.name}: cannot write with remembered rows while an expert's room is limited "
                f"(capacity_factor {part.capacity_factor:g}): open it with capacity_factor 0, the weights are the same, or decode with next_piece"
            )
    device = next(system.parameters()).device
    writes = writing or Writing.texts(system)
    memory, known = Memory(), dict[tuple[int, tuple[int, ...]], int]()

    @torch.inference_mode()
    def logits(asked: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        nonlocal memory
        laid_out = [writes.lay_out(samples[i], said) for i, said in asked]
        final = [_final_level(system, *x) for x in laid_out]
        if any(said for _, said in asked):
            parents = [known.get((i, tuple(said[:-1])), -1) for i, said in asked]
            if -1 in parents:
                raise ValueError(f"caption {asked[parents.index(-1)]} does not go on from one of the call before")
            memory.take(torch.tensor(parents, device=device))
            laid_out = [_rows_from(*x, level) for x, level in zip(laid_out, final, strict=True)]
        else:
            memory = Memory()
        batch = pack([example for example, _ in laid_out]).to(device)
        assert batch.text is not None
        rows = batch.text.packing.first + torch.tensor([row for _, row in laid_out], device=device)
        with remember(memory):
            encoded = system.encode(batch)
        memory.keep(torch.tensor(final, device=device))
        known.clear()
        known.update({(i, tuple(said)): n for n, (i, said) in enumerate(asked)})
        return writes.logits(encoded, rows).float().cpu()

    return logits


def _final_level(system: System, example: Example, row: int) -> int:
    """The level of the last row that stays as it is when the caption goes on: that of the row asked, or before it where that is a [MASK]."""
    text = example.text
    if text is None or text.levels is None:
        raise TypeError(f"{system.card.name} does not write captions by levels")
    return int(text.levels[row]) - int(text.ids[row] == system.vocab.mask)


def _rows_from(example: Example, row: int, level: int) -> tuple[Example, int]:
    """The text rows of a document from a level on, and where the row asked is among them."""
    text = example.text
    assert text is not None and text.levels is not None
    kept = text.levels >= level
    names = ("ids", "segment_ids", "position_ids", "words", "levels")
    some = replace(text, **{name: getattr(text, name)[kept] for name in names})
    regions = None if example.regions is None else example.regions.first(0)
    return Example(example.key, some, regions, sample=example.sample), int(kept[:row].sum())


def log_probs(system: System, samples: Sequence[Sample], captions: Sequence[tuple[int, Said]]) -> tuple[Tensor, Tensor]:
    """Log probabilities of the pieces of captions, closing ones included, with gradient: a document for every piece, in one batch.

    Args:
        system: in training or evaluation, which decides on dropout.
        samples: with pictures.
        captions: sample number, what was said of it.

    Returns:
        (M) log probabilities, and (M) the caption of each.
    """
    end, device = system.vocab.sep, next(system.parameters()).device
    whole = [(number, [*said.ids, end] if said.closed else [*said.ids]) for number, said in captions]
    laid_out = [
        system.lay_out_next(samples[number], pieces[:i]) for number, pieces in whole for i in range(len(pieces))
    ]
    batch = pack([example for example, _ in laid_out]).to(device)
    assert batch.text is not None
    rows = batch.text.packing.first + torch.tensor([row for _, row in laid_out], device=device)
    logs = F.log_softmax(system.word_logits(system.encode(batch), rows).float(), -1)
    chosen = torch.tensor([piece for _, pieces in whole for piece in pieces], device=device)
    owner = torch.tensor([i for i, (_, pieces) in enumerate(whole) for _ in pieces], device=device)
    return logs.gather(1, chosen[:, None]).squeeze(1), owner


def self_critical(
    system: System,
    samples: Sequence[Sample],
    reward: scst.Reward,
    generator: torch.Generator,
    length: int = 19,
    times: int = 5,
    over: Literal["captions", "pieces"] = "captions",
) -> tuple[Tensor, float]:
    """The loss of self-critical training on some pictures, and the mean reward of the greedy captions.

    Captions are drawn and spoken greedily in evaluation mode; the gradient runs through `log_probs` in the mode the system is in. One that ran out of room
    is judged without its last piece, in whose place the authors write the closing one.

    Args:
        system: can generate.
        samples: B pictures.
        reward: of captions in words; CIDEr-D with fixed document frequencies in both papers.
        generator: draws, on the CPU.
        length: pieces with the closing one; 19 of Oscar's 20, which count [CLS].
        times: S captions drawn of each picture; 5 (Oscar), 1 (VLP).
        over: what the loss is the mean over, see `objectives.scst`.

    Source: Oscar, run_captioning.py; VLP, scst_utils.py.
    """
    training = system.training
    system.eval()
    try:
        logits, end, count = next_piece(system, samples), system.vocab.sep, len(samples)
        best = greedy(logits, count, length, end)
        again: Next = lambda asked: logits([(i // times, pieces) for i, pieces in asked])  # noqa: E731
        drawn = sample(again, count * times, length, end, generator)
    finally:
        system.train(training)
    numbers = [i // times for i in range(count * times)]
    words = [system.vocab.decode(x.ids if x.closed else x.ids[:-1]) for x in (*drawn, *best)]
    worth = torch.tensor([*map(float, reward(words, [*numbers, *range(count)]))])
    advantage = scst.advantages(worth[: count * times].view(count, times), worth[count * times :]).flatten()
    logs, owner = log_probs(system, samples, list(zip(numbers, drawn, strict=True)))
    return scst.score(logs, owner, advantage.to(logs.device), over), float(worth[count * times :].mean())


def caption(
    system: System,
    samples: Sequence[Sample],
    length: int = 20,
    beams: int = 1,
    search: Literal["frames", "hypotheses"] = "hypotheses",
) -> list[str]:
    """Captions of pictures in words: greedy with one beam, else by one of the two beam searches."""
    logits = (cached_next_piece if system.remembers else next_piece)(system, samples)
    end = system.vocab.sep
    if beams == 1:
        found = greedy(logits, len(samples), length, end)
    else:
        by = frames if search == "frames" else hypotheses
        found = by(logits, len(samples), length, end, beams)
    return [system.vocab.decode(x.ids) for x in found]


def greedy(logits: Next, count: int, length: int, end: int) -> list[Said]:
    """The likeliest piece at each step, until `end` or `length` pieces; the score is the mean log probability of the pieces chosen.

    Source: VLP, decode_img2txt.py (which goes on past the end and cuts the text there); Oscar, modeling_utils.py.
    """
    return _piece_by_piece(logits, count, length, end, lambda found: found.argmax(1))


def sample(
    logits: Next,
    count: int,
    length: int,
    end: int,
    generator: torch.Generator,
    top_k: int = 0,
    top_p: float = 1.0,
    temperature: float = 1.0,
) -> list[Said]:
    """As `greedy`, but every piece is drawn by its probability. Source: Oscar, modeling_utils.py.

    Args:
        logits: of the next piece.
        count: captions.
        length: pieces and the closing one.
        end: closes a caption.
        generator: draws, on the CPU.
        top_k: only the likeliest so many; 0 = all.
        top_p: of these only the fewest likeliest whose probabilities reach this sum.
        temperature: divides the logits before.
    """

    def choose(found: Tensor) -> Tensor:
        probs = likeliest(found / temperature, top_k, top_p).softmax(1)
        return torch.multinomial(probs, 1, generator=generator)[:, 0]

    return _piece_by_piece(logits, count, length, end, choose)


def likeliest(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (n, V) with -inf for all but the likeliest `top_k` (0 = all), of which the fewest that reach probability `top_p` stay, at least one."""
    if top_k:
        found, places = logits.topk(min(top_k, logits.shape[1]), 1)
        logits = torch.full_like(logits, -torch.inf).scatter(1, places, found)
    if top_p < 1:
        found, places = logits.sort(dim=1, descending=True, stable=True)
        probs = found.softmax(1)
        late = probs.cumsum(1) - probs >= top_p
        late[:, 0] = False
        logits = logits.masked_fill(late.gather(1, places.argsort(1)), -torch.inf)
    return logits


def _piece_by_piece(logits: Next, count: int, length: int, end: int, choose: Callable[[Tensor], Tensor]) -> list[Said]:
    said: list[list[int]] = [[] for _ in range(count)]
    logs: list[list[float]] = [[] for _ in range(count)]
    raw: list[list[float]] = [[] for _ in range(count)]
    for _ in range(length):
        going = [i for i in range(count) if not said[i] or said[i][-1] != end]
        if not going:
            break
        found = logits([(i, said[i]) for i in going])
        best = choose(found)
        of_best = found.gather(1, best[:, None]).squeeze(1)
        log = of_best - found.logsumexp(1)
        for i, piece, value, chosen in zip(going, best.tolist(), log.tolist(), of_best.tolist(), strict=True):
            said[i].append(piece)
            logs[i].append(value)
            raw[i].append(chosen)
    return [
        Said(
            tuple(x for x in pieces if x != end),
            sum(log) / max(len(log), 1),
            tuple(values),
            closed=bool(pieces) and pieces[-1] == end,
        )
        for pieces, log, values in zip(said, logs, raw, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Frame:
    """One step of a beam: for each of the K places its score, piece and the place it came from."""

    scores: list[float]
    pieces: list[int]
    back: list[int]


def frames(
    logits: Next,
    count: int,
    length: int,
    end: int,
    beams: int,
    penalty: float = 0.0,
    shortest: int = 0,
    no_repeat: int = 0,
) -> list[Said]:
    """Beam search that keeps finished captions in the beam, at a price, and picks the best place of all steps at the end.

    Args:
        logits: of the next piece.
        count: captions.
        length: steps, all of which are run.
        end: closes a caption.
        beams: K.
        penalty: added to the score for every step.
        shortest: `end` is refused for so many steps.
        no_repeat: no run of so many pieces is said twice; 0 = may be.

    Source: VLP, modeling.py, after UniLM.
    """
    kept: list[list[_Frame]] = [[] for _ in range(count)]
    said: list[list[list[int]]] = [[[]] for _ in range(count)]
    for step in range(length):
        asked = [(i, pieces) for i in range(count) for pieces in said[i]]
        logs = F.log_softmax(logits(asked), -1)
        if no_repeat and step >= no_repeat:
            for row, (_, pieces) in enumerate(asked):
                logs[row, _repeats(pieces, no_repeat)] += REFUSED
        if shortest and step < shortest:
            logs[:, end] = REFUSED
        for i, part in enumerate(torch.split(logs, [len(x) for x in said])):
            frame = _next_frame(part, kept[i], end, beams)
            kept[i].append(frame)
            said[i] = [[*said[i][back], piece] for back, piece in zip(frame.back, frame.pieces, strict=True)]
    return [_best_place(x, end, penalty) for x in kept]


def _next_frame(logs: Tensor, before: list[_Frame], end: int, beams: int) -> _Frame:
    scores, pieces = logs.topk(beams, dim=1)  # (1 or K, K)
    if not before:
        return _Frame(scores[0].tolist(), pieces[0].tolist(), [0] * beams)
    last = before[-1]
    ended = torch.tensor([float(piece == end) for piece in last.pieces])
    scores = scores + (ended * REFUSED + torch.tensor(last.scores))[:, None]
    best, places = scores.flatten().topk(beams)
    return _Frame(best.tolist(), pieces.flatten()[places].tolist(), (places // beams).tolist())


def _repeats(pieces: Sequence[int], size: int) -> list[int]:
    """The pieces that would end a run of `size` already said."""
    tail = list(pieces[len(pieces) - size + 1 :])
    return [pieces[i + size - 1] for i in range(len(pieces) - size + 1) if list(pieces[i : i + size - 1]) == tail]


def _best_place(kept: list[_Frame], end: int, penalty: float) -> Said:
    last = next((i for i, frame in enumerate(kept) if all(x == end for x in frame.pieces)), len(kept) - 1)
    best, at, place = -math.inf, 0, 0
    for i, frame in enumerate(kept[: last + 1]):
        for k, (score, piece) in enumerate(zip(frame.scores, frame.pieces, strict=True)):
            total = score + penalty * (i + 1)
            if (piece == end or i == last) and total > best:
                best, at, place = total, i, k
    pieces = []
    for frame in kept[at::-1]:
        pieces.append(frame.pieces[place])
        place = frame.back[place]
    return Said(tuple(x for x in reversed(pieces) if x != end), best)


def hypotheses(
    logits: Next, count: int, length: int, end: int, beams: int, penalty: float = 1.0, keep: int = 1
) -> list[Said]:
    """Beam search that moves finished captions out of the beam; a score is the log probability over (1 + pieces) ** penalty.

    At the last step every candidate is closed: its last piece is dropped, its log probability stays in the score.

    Args:
        logits: of the next piece.
        count: captions.
        length: pieces and the closing one, so that many steps.
        end: closes a caption.
        beams: K.
        penalty: power of the length, which counts [CLS] and not the closing piece.
        keep: finished captions kept while others may still beat them.

    Source: Oscar, modeling_utils.py, after XLM.
    """
    done: list[list[tuple[float, tuple[int, ...]]]] = [[] for _ in range(count)]
    beam: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(count)]
    for step in range(1, length + 1):
        going = [i for i in range(count) if beam[i]]
        if not going:
            break
        logs = F.log_softmax(logits([(i, pieces) for i in going for _, pieces in beam[i]]), -1)
        for i, part in zip(going, torch.split(logs, [len(beam[i]) for i in going]), strict=True):
            before = beam[i]
            total = part + torch.tensor([score for score, _ in before])[:, None]
            scores, places = total.flatten().topk(min(2 * beams, total.numel()))
            beam[i] = []
            if len(done[i]) >= keep and min(done[i])[0] >= scores[0].item() / length**penalty:
                continue
            for score, place in zip(scores.tolist(), places.tolist(), strict=True):
                source, piece = divmod(place, part.shape[1])
                pieces = before[source][1]
                if piece == end or step == length:
                    done[i].append((score / step**penalty, tuple(pieces)))
                    done[i] = sorted(done[i], key=lambda x: -x[0])[:keep]
                else:
                    beam[i].append((score, [*pieces, piece]))
                if len(beam[i]) == beams:
                    break
    return [Said(found[0][1], found[0][0]) for found in done]
