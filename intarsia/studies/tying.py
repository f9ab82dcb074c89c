"""How well an Inlay ties words to regions and texts to pictures, measured on a generated world with its gold links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intarsia.batch import Array, Batch, Encoded, Example, Pick, Sample
from intarsia.evaluate.matching import rank
from intarsia.pack import pack
from intarsia.packed import Packing, taken
from intarsia.parts.aligned import Aligned
from intarsia.studies.readouts import attention_maps
from intarsia.systems.inlay import Inlay
from intarsia.worlds import WorldSource, candidate_sets

READ_OUTS = ("sentence", "token", "cls", "words")
"""S_sent, S_tok, matching by [CLS] and by the words."""
RANKED = READ_OUTS[:2]
"""Those that rank random pairs; the others would have to read each text with each picture."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A test scene as the system reads it."""

    number: int
    sample: Sample
    example: Example
    words: tuple[tuple[str, Array], ...]
    """Kind and text rows of each colour and shape word."""


def bag(sample: Sample) -> Sample:
    """The scene as several pictures of one region each, links and all: a whole picture is then one token."""
    picture = sample.pictures[0]
    pictures = tuple(
        replace(
            picture,
            name=f"{picture.name}/{i}",
            features=picture.features[i : i + 1],
            boxes=picture.boxes[i : i + 1],
            scores=None,
            probs=None,
            labels=None,
            attributes=None,
            tags=(),
        )
        for i in range(len(picture.boxes))
    )
    links = tuple(replace(x, picture=x.region, region=0) for x in sample.links)
    return replace(sample, pictures=pictures, links=links)


def scenes(system: Inlay, source: WorldSource, count: int) -> list[Scene]:
    """The first scenes of a source, laid out."""
    found = []
    for i in range(count):
        sample = bag(source[i]) if getattr(system.config, "visual_unit", "") == "image" else source[i]
        pieces = system.vocab.encode(sample.texts[0])
        words = tuple(
            (x.kind, 1 + np.flatnonzero((pieces.spans[:, 0] < x.end) & (pieces.spans[:, 1] > x.start)))
            for x in source.written(i).words
            if x.kind in ("colour", "shape")
        )
        found.append(Scene(i, sample, system.lay_out(sample), words))
    return found


@torch.no_grad()
def measure(system: Inlay, source: WorldSource, count: int = 400, fused: int = 50) -> dict[str, Any]:
    """All of it, as JSON values.

    Args:
        system: trained.
        source: test scenes with gold links.
        count: scenes for pointing, choices and random retrieval.
        fused: candidates of the retrieval in which no caption is true of another picture, on which every read-out is tried.
    """
    system.eval()
    known = scenes(system, source, count)
    batch = pack([x.example for x in known])
    encoded = system.encode(batch)
    found: dict[str, Any] = {
        "scenes": count,
        "pointing": _pointing(system, known, batch, encoded) | {"occlusion": occlusion(system, known)},
        "alignment": _alignment(system, known, system.alignments(encoded, batch)["alignment"].numpy()),
        "choices": _choices(system, source, known, encoded),
        "retrieval": _retrieval(system, encoded, batch),
        "unambiguous": _unambiguous(system, source, known, fused),
        "ablation": _ablation(system, known),
    }
    shuffled = _exchange(batch)
    again = system.encode(shuffled)
    found["exchanged"] = {
        "pointing": _pointing(system, known, shuffled, again) | {"occlusion": occlusion(system, known, shift=1)},
        "retrieval": _retrieval(system, again, shuffled),
        "choices": _choices(system, source, known, again, shift=1),
        "unambiguous": _unambiguous(system, source, known, fused, shift=1),
    }
    return found


def _exchange(batch: Batch) -> Batch:
    """The batch in which every document has the picture of the next."""
    assert batch.regions is not None
    following = (torch.arange(len(batch.keys)) + 1) % len(batch.keys)
    rows, packing = taken(batch.regions.packing, following, batch.regions.packing.rows)
    names = ("feats", "boxes", "segment_ids", "position_ids", "image", "masked")
    moved = {name: getattr(batch.regions, name)[rows] for name in names}
    return replace(
        batch, regions=replace(batch.regions, packing=packing, probs=None, labels=None, scores=None, **moved)
    )


def _gold(scene: Scene, rows: Array) -> set[int]:
    return {int(r) for t, r in scene.example.links if t in rows}


def _pointing(system: Any, known: Sequence[Scene], batch: Batch, encoded: Encoded) -> dict[str, float]:
    """Shares of colour and shape words whose most aligned visual token is the gold one, by every read-out of MAPS; "chance" is 1 / P."""
    maps = {"dot": list(system.alignments(encoded, batch)["alignment"].numpy()), **attention_maps(system, batch)}
    hits: dict[str, list[bool]] = {name: [] for name in maps}
    kinds: dict[str, list[bool]] = {}
    chance = []
    for scene, *seens in zip(known, *maps.values(), strict=True):
        assert scene.example.regions is not None
        size = len(scene.example.regions)
        for kind, rows in scene.words:
            gold = _gold(scene, rows)
            if not gold:
                continue
            chance.append(len(gold) / size)
            for name, where in zip(maps, seens, strict=True):
                hit = int(where[rows, :size].mean(0).argmax()) in gold
                hits[name].append(hit)
                if name == "dot":
                    kinds.setdefault(kind, []).append(hit)
    shares = {name: float(np.mean(x)) for name, x in hits.items()}
    return (
        shares | {f"dot, {k}": float(np.mean(x)) for k, x in sorted(kinds.items())} | {"chance": float(np.mean(chance))}
    )


@torch.no_grad()
def occlusion(system: Any, known: Sequence[Scene], count: int = 100, shift: int = 0) -> float:
    """Share of colour and shape words whose gold region counts most: of all regions hidden one at a time, it makes the hidden word least likely.

    Args:
        system: names hidden words.
        known: the scenes.
        count: how many of them, from the first.
        shift: each text is shown the picture of the scene so many further on.
    """
    hits = []
    for k, scene in enumerate(known[:count]):
        text, regions = scene.example.text, known[(k + shift) % len(known)].example.regions
        assert text is not None and regions is not None
        asked = [(rows, gold) for _, rows in scene.words if (gold := _gold(scene, rows))]
        examples = [
            replace(
                scene.example,
                text=replace(text, ids=np.where(np.isin(np.arange(len(text)), rows), system.vocab.mask, text.ids)),
                regions=replace(regions, masked=np.arange(len(regions)) == hidden),
            )
            for rows, _ in asked
            for hidden in range(len(regions))
        ]
        if not examples:
            continue
        batch = pack(examples)
        assert batch.text is not None
        firsts = torch.tensor([int(rows[0]) for rows, _ in asked]).repeat_interleave(len(regions))
        wanted = torch.from_numpy(text.ids)[firsts]
        logits = system.word_logits(system.encode(batch), batch.text.packing.first + firsts).float()
        losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none").view(len(asked), -1)
        hits += [x in gold for x, (_, gold) in zip(losses.argmax(1).tolist(), asked, strict=True)]
    return float(np.mean(hits)) if hits else float("nan")


def _alignment(system: Any, known: Sequence[Scene], alpha: Array) -> dict[str, float]:
    """AUC of linked against other pairs and soft IoU with the gold; for content and other words the share on the null, and the entropy over regions in nats.

    Args:
        system: has stop words.
        known: the scenes.
        alpha: (N, L, P) softmax alignments; what is missing of a row lies on the null.
    """
    right, wrong, overlap = [], [], []
    null: dict[bool, list[float]] = {True: [], False: []}
    entropy: dict[bool, list[float]] = {True: [], False: []}
    for scene, shares in zip(known, alpha, strict=True):
        assert scene.example.text is not None and scene.example.regions is not None
        text, size = scene.example.text, len(scene.example.regions)
        for row in np.flatnonzero(text.words >= 0):
            content = not bool(system.stops[text.ids[row]])
            part = np.maximum(shares[row, :size], 1e-12)
            null[content].append(float(1 - part.sum()))
            entropy[content].append(float(-(part / part.sum() * np.log(part / part.sum())).sum()))
        for _, rows in scene.words:
            gold = _gold(scene, rows)
            if gold:
                mine = shares[rows, :size].mean(0)
                hot = np.isin(np.arange(size), list(gold))
                right += mine[hot].tolist()
                wrong += mine[~hot].tolist()
                overlap.append(float(np.minimum(mine, hot).sum() / np.maximum(mine, hot).sum()))
    found = {"auc": auc(np.array(right), np.array(wrong)), "soft iou": float(np.mean(overlap))}
    for name, values in (("null", null), ("entropy", entropy)):
        found |= {f"{name}, content": float(np.mean(values[True])), f"{name}, other": float(np.mean(values[False]))}
    return found


def auc(right: Array, wrong: Array) -> float:
    """How often a value of `right` is above one of `wrong`; ties count half."""
    if not len(right) or not len(wrong):
        return float("nan")
    ordered = np.sort(wrong)
    below = np.searchsorted(ordered, right, "left") + np.searchsorted(ordered, right, "right")
    return float(below.mean() / 2 / len(wrong))


def _choices(
    system: Inlay, source: WorldSource, known: Sequence[Scene], encoded: Aligned, shift: int = 0
) -> dict[str, Any]:
    """The true caption against the one with two colours exchanged (binding) and against all false ones; and which word is wrong.

    Args:
        system: trained.
        source: of the scenes.
        known: the scenes.
        encoded: true captions with their pictures, or with those `shift` further on.
        shift: see above; false captions get the same pictures.
    """
    true = {name: x.numpy() for name, x in system.scores(encoded).items()}
    owners, examples, swaps = [], [], []
    for k, scene in enumerate(known):
        picture = known[(k + shift) % len(known)].sample
        swapped = source.swapped(scene.number)
        for text in dict.fromkeys([*([swapped] if swapped else []), *scene.sample.false_texts]):
            owners.append(k)
            swaps.append(text == swapped)
            examples.append(system.lay_out(replace(scene.sample, texts=(text,), pictures=picture.pictures, links=())))
    owner, swap = np.array(owners), np.array(swaps)
    parts = [system.encode(pack(examples[i : i + 512])) for i in range(0, len(examples), 512)]
    scores = [system.scores(x) for x in parts]
    wins = {name: own[owner] > torch.cat([x[name] for x in scores]).numpy() for name, own in true.items()}
    found: dict[str, Any] = {
        "swap": {name: float(x[swap].mean()) for name, x in wins.items()},
        "replace": {name: float(x[~swap].mean()) for name, x in wins.items()},
        "best of all": {
            name: float(np.mean([x[owner == k].all() for k in np.unique(owner)])) for name, x in wins.items()
        },
        "swaps": int(swap.sum()),
    }
    for name, logits in (("fault", "support"), ("fault, named", "named")):
        if hasattr(encoded, logits):
            said = torch.cat([getattr(x, logits) for x in parts]).numpy()
            found[name], found["fault, chance"] = _faults(system, known, examples, owners, said)
    return found


def _faults(
    system: Any, known: Sequence[Scene], examples: Sequence[Example], owners: Sequence[int], support: Array
) -> tuple[float, float]:
    """How often the least supported content word of a false caption is one that was changed, and by chance."""
    start, hits, chances = 0, [], []
    for k, example in zip(owners, examples, strict=True):
        text, plain = example.text, known[k].example.text
        assert text is not None and plain is not None
        mine = support[start : start + len(text)]
        start += len(text)
        if len(text) != len(plain):
            continue
        content = np.flatnonzero((text.words >= 0) & ~system.stops[text.ids])
        changed = text.ids[content] != plain.ids[content]
        hits.append(bool(changed[mine[content].argmin()]))
        chances.append(float(changed.mean()))
    return float(np.mean(hits)), float(np.mean(chances))


def _pairs(system: Inlay, encoded: Aligned, text: Packing, visual: Packing) -> dict[str, Array]:
    """(N, N) S_sent and S_tok of all texts with all pictures."""
    tokens: Tensor = system.tower.all_scores(encoded.told, text, encoded.slots, visual, most=1 << 19)
    return {"sentence": (encoded.pooled_text @ encoded.pooled_visual.T).numpy(), "token": tokens.numpy()}


def _retrieval(system: Inlay, encoded: Aligned, batch: Batch) -> dict[str, Any]:
    """Recall at 1, 5 and 10 among random pairs, both ways; captions may be true of several pictures. And their contrastive loss, log N for one that knows nothing."""
    assert batch.text is not None and batch.regions is not None
    scores = _pairs(system, encoded, batch.text.packing, batch.regions.packing)
    scales = dict(zip(scores, system.log_scale.exp().tolist(), strict=True))
    found = {}
    for name, x in scores.items():
        logits, right = scales[name] * torch.from_numpy(x), torch.arange(len(x))
        losses = [torch.nn.functional.cross_entropy(y, right) for y in (logits, logits.T)]
        found[name] = _recalls(x) | {"loss": float(sum(losses)) / 2}
    return found


def _recalls(scores: Array) -> dict[str, float]:
    found = rank(scores, np.arange(len(scores)))
    ways = (("t2i", found.text_to_image), ("i2t", found.image_to_text))
    return {f"{way} R@{k}": x.at[k] for way, x in ways for k in (1, 5, 10)}


def _unambiguous(system: Any, source: WorldSource, known: Sequence[Scene], size: int, shift: int = 0) -> dict[str, Any]:
    """Recall among pairs of which no caption is true of another's picture, by every read-out; with `shift` each picture stands in for one before it."""
    chosen = candidate_sets(source, size)[0]
    own = scenes(system, source, 1 + max(chosen)) if max(chosen) >= len(known) else known
    picked = [own[i].example for i in chosen]
    scores: dict[str, list[Array]] = {}
    for one in picked:
        row = [replace(x, text=one.text, targets={}) for x in (*picked[shift:], *picked[:shift])]
        for name, values in system.scores(system.encode(pack(row))).items():
            scores.setdefault(name, []).append(values.numpy())
    return {name: _recalls(np.stack(x)) for name, x in scores.items()} | {"candidates": size}


def _ablation(system: Inlay, known: Sequence[Scene]) -> dict[str, float]:
    """Cross entropy of hidden colour and shape words with all regions, and with the gold ones, as many random others, or all of them hidden."""
    rng = np.random.default_rng(0)
    sets: dict[str, list[Example]] = {name: [] for name in ("none", "linked", "random", "all")}
    rows, labels = [], []
    for scene in known:
        text, regions = scene.example.text, scene.example.regions
        assert text is not None and regions is not None
        _, mine = scene.words[int(rng.integers(len(scene.words)))]
        gold = np.isin(np.arange(len(regions)), list(_gold(scene, mine)))
        others = np.flatnonzero(~gold)
        drawn = np.isin(np.arange(len(regions)), rng.permutation(others)[: gold.sum()])
        ids = text.ids.copy()
        ids[mine] = system.vocab.mask
        rows.append(int(mine[0]))
        labels.append(int(text.ids[mine[0]]))
        for name, hidden in (("none", gold & ~gold), ("linked", gold), ("random", drawn), ("all", gold | ~gold)):
            masked = replace(regions, masked=hidden)
            sets[name].append(replace(scene.example, text=replace(text, ids=ids), regions=masked))
    found = {}
    for name, examples in sets.items():
        batch = pack(examples)
        assert batch.text is not None
        asked = batch.text.packing.first + torch.tensor(rows)
        logits = system.word_logits(system.encode(batch), asked).float()
        found[name] = float(torch.nn.functional.cross_entropy(logits, torch.tensor(labels)))
    return found


def region_ablation(system: Any, known: Sequence[Scene], goal: str) -> dict[str, float]:
    """Loss of giving back a hidden region that the caption names: with all words, and with its own, as many other content words, or all content words hidden.

    Args:
        system: gives back features.
        known: the scenes.
        goal: under which its features are asked.
    """
    rng = np.random.default_rng(0)
    sets: dict[str, list[Example]] = {name: [] for name in ("none", "linked", "random", "all")}
    for scene in known:
        text, regions, links = scene.example.text, scene.example.regions, scene.example.links
        assert text is not None and regions is not None
        gold = int(rng.choice(np.unique(links[:, 1])))
        mine, content = np.unique(links[links[:, 1] == gold, 0]), ~system.stops[text.ids] & (text.words >= 0)
        others = np.setdiff1d(np.flatnonzero(content), mine)
        hidden = {"none": mine[:0], "linked": mine, "random": rng.permutation(others)[: len(mine)]}
        target = Pick("regions", np.array([gold]), regions.feats[[gold]].astype(np.float32))
        masked = replace(regions, masked=np.arange(len(regions)) == gold)
        for name, rows in (hidden | {"all": np.flatnonzero(content)}).items():
            ids = text.ids.copy()
            ids[rows] = system.vocab.mask
            one = replace(scene.example, text=replace(text, ids=ids), regions=masked, targets={goal: target})
            sets[name].append(one)
    found = {}
    for name, examples in sets.items():
        batch = pack(examples)
        found[name] = float(system.losses(system.encode(batch), batch)[goal])
    return found
