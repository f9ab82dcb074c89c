"""Generation: pictures to captions, by any system that can name the next piece.

Three ways, each as its authors' code has it; all documents of a step are packed into one batch. Every step lays the caption out anew with one [MASK] at
its end. Nothing is cached: the words are those of the authors' cached decoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from intarsia.batch import Sample, pack
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
    """Of the pieces chosen, closing one included (greedy)."""


def next_piece(system: System, samples: Sequence[Sample]) -> Next:
    """The logits of the next piece, by a system in evaluation mode."""
    device = next(system.parameters()).device

    @torch.inference_mode()
    def logits(asked: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        laid_out = [system.lay_out_next(samples[i], said) for i, said in asked]
        batch = pack([example for example, _ in laid_out]).to(device)
        assert batch.text is not None
        rows = batch.text.packing.first + torch.tensor([row for _, row in laid_out], device=device)
        return system.word_logits(system.encode(batch), rows).float().cpu()

    return logits


def caption(system: System, samples: Sequence[Sample], length: int = 20, beams: int = 1) -> list[str]:
    """Captions of pictures in words: greedy with one beam, else by hypotheses."""
    logits, end = next_piece(system, samples), system.vocab.sep
    found = (
        greedy(logits, len(samples), length, end)
        if beams == 1
        else hypotheses(logits, len(samples), length, end, beams)
    )
    return [system.vocab.decode(x.ids) for x in found]


def greedy(logits: Next, count: int, length: int, end: int) -> list[Said]:
    """The likeliest piece at each step, until `end` or `length` pieces; the score is the mean log probability of the pieces chosen.

    Source: VLP, decode_img2txt.py (which goes on past the end and cuts the text there); Oscar, modeling_utils.py.
    """
    said: list[list[int]] = [[] for _ in range(count)]
    logs: list[list[float]] = [[] for _ in range(count)]
    raw: list[list[float]] = [[] for _ in range(count)]
    for _ in range(length):
        going = [i for i in range(count) if not said[i] or said[i][-1] != end]
        if not going:
            break
        found = logits([(i, said[i]) for i in going])
        best = found.argmax(1)
        of_best = found.gather(1, best[:, None]).squeeze(1)
        log = of_best - found.logsumexp(1)
        for i, piece, value, chosen in zip(going, best.tolist(), log.tolist(), of_best.tolist(), strict=True):
            said[i].append(piece)
            logs[i].append(value)
            raw[i].append(chosen)
    return [
        Said(tuple(x for x in pieces if x != end), sum(log) / max(len(log), 1), tuple(values))
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
