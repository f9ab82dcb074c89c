"""Image-text retrieval: rank pictures by a text, and texts by a picture. Data: Young et al. 2014 (Flickr30k), Lin et al. 2014 (COCO)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Sample
from intarsia.errors import BadInput
from intarsia.parts.embeddings import initialise
from intarsia.system import Lay
from intarsia.tasks import HeadConfig, Scorer, groups, linear, with_target
from intarsia.tasks.vcr import VCROneOf


@dataclass(frozen=True)
class Draws:
    """Gives samples with another picture: calling it, any; `near`, one like the sample at hand where any is known."""

    far: Callable[[], Sample]
    near: Callable[[], Sample]

    def __call__(self) -> Sample:
        """Any."""
        return self.far()


def shown_with(sample: Sample, other: Sample) -> Sample:
    """The sample's text with what another shows: its pictures, or its video."""
    return replace(sample, pictures=other.pictures, film=other.film)


def match_row(row: int) -> dict[str, tuple[str, int | None]]:
    """Where a head of one output starts: the row of the pre-trained `match_head` that says matched; for `Finetune.head_from`."""
    return {part: (f"match_head.{part}", row) for part in ("weight", "bias")}


class Ranked:
    """A true pair and broken ones of it, a document each."""

    broken_by: tuple[str, ...]
    """How broken pairs are made, one of these by chance: a letter each, p = another picture (or video), t = another text; P and T = of a picture like the sample's
    own, where such are known (`Draws`)."""

    def forms(self, lay: Lay, sample: Sample) -> list[Example]:
        """The true pair."""
        return [lay(replace(sample, links=()))]

    def documents(
        self, lay: Lay, sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """The true pair, then its broken ones."""
        true, found = replace(sample, links=()), []
        for letter in self.broken_by[int(rng.integers(len(self.broken_by)))]:
            other = draw.near() if letter.isupper() and isinstance(draw, Draws) else draw()
            changed = shown_with(true, other) if letter in "pP" else replace(true, texts=other.texts)
            found.append(lay(changed))
        return with_target([lay(true), *found], "retrieval", [1] + [0] * len(found))

    def predict(self, scores: Tensor, batch: Batch) -> list[Tensor]:
        """(1) of each document: how well it fits."""
        return list(self.fit(scores.float())[:, None])

    def fit(self, scores: Tensor) -> Tensor:
        """(B) what pairs are ranked by, higher is better."""
        return scores

    def logits(self, scores: Tensor) -> Tensor:
        """(B, 2) of being broken and true."""
        true = self.fit(scores)
        return torch.stack([torch.zeros_like(true), true], 1)


@dataclass(frozen=True)
class Retrieval(Ranked):
    """A true pair must beat its broken ones by a margin. The documents of one sample are a true pair and any number of broken ones.

    Batch.targets["retrieval"]: (B) int64, 1 = the true pair of its sample, 0 = a broken one.
    """

    margin: float = 0.2
    broken_by: tuple[str, ...] = ("pt",)

    def head(self, config: HeadConfig) -> nn.Module:
        """One number from the pooled vector."""
        head = nn.Linear(config.pooled_size, 1)
        initialise(head, config.initializer_range)
        return head

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B) scores, higher = a better match; the loss compares their sigmoids."""
        return head(encoded.pooled).squeeze(-1)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean over broken pairs of max(0, margin + s(broken) - s(true)), s = sigmoid."""
        likely, true = torch.sigmoid(scores.float()), batch.labels("retrieval").float()
        rival = likely.new_zeros(len(likely)).index_add(0, batch.sample, likely * true)[batch.sample]  # (B)
        broken = 1 - true
        return ((self.margin + likely - rival).clamp(min=0) * broken).sum() / broken.sum().clamp(min=1)


@dataclass(frozen=True)
class RetrievalTriplet(Retrieval):
    """The same against the hardest of a sample's broken pairs alone. Source: ImageBERT, sec. 5."""

    broken_by: tuple[str, ...] = ("ppp", "ttt")

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean over samples of max(0, margin + the highest s(broken) - s(true)), s = sigmoid."""
        likely, true = torch.sigmoid(scores.float()), batch.labels("retrieval").bool()
        places = groups(batch.sample, 1 + len(self.broken_by[0]))  # (S, 1 + K)
        likely, true = likely[places], true[places]
        hardest = likely.masked_fill(true, -1.0).amax(1)
        return (self.margin + hardest - likely[true]).clamp(min=0).mean()


@dataclass(frozen=True)
class RetrievalMined(Retrieval):
    """Of many broken pairs only those train that the system, as it now is, finds the best. Source: UNITER, train_itm_hard_negatives.py.

    The authors give every step one text with its pictures and one picture with its texts; here it is one or the other by chance, a sample each.
    """

    broken_by: tuple[str, ...] = ("p" * 399, "t" * 399)
    broken: int = 399
    """Broken pairs of a sample."""
    kept: int = 31
    """How many of them train."""

    def mined(self, scores: Tensor, batch: Batch) -> Tensor:
        """(S * (1 + kept)) documents that train: of each sample the true pair, and the broken ones that score highest."""
        documents = groups(batch.sample, 1 + self.broken)
        best = self.fit(scores.float())[documents[:, 1:]].topk(min(self.kept, self.broken), 1).indices
        return torch.cat([documents[:, :1], documents[:, 1:].gather(1, best)], 1).flatten()


@dataclass(frozen=True)
class RetrievalBinary(Ranked):
    """Each pair is true or broken by itself. Batch.targets["retrieval"] as for `Retrieval`. Source: Unicoder-VL; ImageBERT, sec. 5."""

    broken_by: tuple[str, ...] = ("p", "t")

    def head(self, config: HeadConfig) -> nn.Module:
        """One number from the pooled vector."""
        head = nn.Linear(config.pooled_size, 1)
        initialise(head, config.initializer_range)
        return head

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B) logits, higher = a better match."""
        return head(encoded.pooled).squeeze(-1)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean binary cross entropy."""
        return F.binary_cross_entropy_with_logits(scores.float(), batch.labels("retrieval").float())


@dataclass(frozen=True)
class RetrievalTwoWay(Ranked):
    """Each pair is broken or true, two classes. Batch.targets["retrieval"] as for `Retrieval`. Source: Oscar, sec. 5."""

    scorer: Scorer = linear
    broken_by: tuple[str, ...] = ("p", "t")

    def fit(self, scores: Tensor) -> Tensor:
        """(B) log odds of being true."""
        return scores[:, 1] - scores[:, 0]

    def logits(self, scores: Tensor) -> Tensor:
        """(B, 2), as they are: FashionBERT's authors rank by the second alone."""
        return scores

    def head(self, config: HeadConfig) -> nn.Module:
        """Two classes from the pooled vector."""
        return self.scorer(config, 2)

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B, 2) logits: broken, true."""
        return head(encoded.pooled)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        return F.cross_entropy(scores.float(), batch.labels("retrieval"))


def circle_loss(true: Tensor, broken: Tensor, margin: float, scale: float) -> Tensor:
    """Circle loss in float64, averaged over samples: far-off scores weigh more. Source: Sun et al. 2020; the code of ERNIE-ViL.

    Args:
        true: (S, P) scores in [0, 1] of pairs that should reach 1 - margin.
        broken: (S, K) scores of pairs that should stay below margin.
        margin: of both.
        scale: how sharp.

    Returns:
        A scalar; no gradient flows through the weights.
    """
    true, broken = true.double(), broken.double()
    weigh_true, weigh_broken = (F.relu(x.detach()) for x in (1 + margin - true, broken + margin))
    pull = torch.exp(-scale * weigh_true * (true - (1 - margin))).sum(1)
    push = torch.exp(scale * weigh_broken * (broken - margin)).sum(1)
    return torch.log1p(pull * push).mean()


SCHEMA = {"ei": "p", "ec": "t", "hi": "P", "hc": "T"}
"""ERNIE-ViL's letters of a broken pair -> those of `Ranked`: e = of any other picture, h = of one like the sample's own; i = its picture comes in, c = a text of it."""


def read_schema(spec: str) -> str:
    """How a sample's broken pairs are made, as ERNIE-ViL's `negative_schema` says it, in the letters of `Ranked`.

    Args:
        spec: pairs of its letters with commas between, each perhaps times a number: "ei*10,hc*10".

    Raises:
        BadInput: other letters, or no number.
    """
    found = ""
    for part in spec.split(","):
        letters, _, times = part.strip().partition("*")
        if letters not in SCHEMA or (times and not (times.isdigit() and int(times))):
            raise BadInput(
                f"negatives {spec!r}: {part!r} is none of {', '.join(SCHEMA)}, perhaps times a number as in hc*10"
            )
        found += SCHEMA[letters] * int(times or 1)
    return found


@dataclass(frozen=True)
class RetrievalCircle(RetrievalBinary):
    """The first document of a sample is its true pair, the others are broken, in two halves with a circle loss each. Source: ERNIE-ViL's code."""

    broken_by: tuple[str, ...] = ("p" * 20,)
    margin: float = 0.3
    scale: float = 32.0

    def broken_as(self, letters: str) -> RetrievalCircle:
        """With other broken pairs, in the letters of `Ranked`: the first half (of an odd number the smaller) has a loss of its own, and so has the second.

        Raises:
            BadInput: fewer than two.
        """
        if len(letters) < 2:
            raise BadInput(
                f"negatives: {len(letters)} broken pair of a sample; the two halves of the loss need one each"
            )
        return replace(self, broken_by=(letters,))

    def head(self, config: HeadConfig) -> nn.Module:
        """One number from the pooled vector, its weights by Glorot's rule, its bias from [-1, 1)."""
        head = nn.Linear(config.pooled_size, 1)
        nn.init.xavier_uniform_(head.weight)
        nn.init.uniform_(head.bias, -1.0, 1.0)
        return head

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """The mean of the halves' losses. Needs no targets."""
        count = len(self.broken_by[0])
        likely = torch.sigmoid(scores.float())[groups(batch.sample, 1 + count)]  # (S, 1 + K)
        true, *halves = likely.split([1, count // 2, count - count // 2], 1)  # type: ignore[no-untyped-call]
        return torch.stack([circle_loss(true, x, self.margin, self.scale) for x in halves]).mean().float()


@dataclass(frozen=True)
class RetrievalOneOf(Ranked, VCROneOf):
    """The true pair competes with its broken ones: any text, any picture, and a text of a picture like its own. Source: ViLBERT's code."""

    goal: str = "retrieval"
    broken_by: tuple[str, ...] = ("tpT",)


@dataclass(frozen=True)
class RetrievalHardest(RetrievalBinary):
    """The first document of a sample is its true pair and must win among all; of the broken ones only the hardest train. Source: Pixel-BERT, sec. 4.

    The loss is the cross entropy over all documents of the sample; no gradient flows through the scores of the broken ones that are not among the hardest.
    """

    broken_by: tuple[str, ...] = ("t" * 20,)
    broken: int = 20
    """Broken pairs of a sample."""
    hardest: int = 5
    """How many of them, those of the highest scores, get a gradient."""

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean over samples. Needs no targets."""
        by_sample = scores.float()[groups(batch.sample, 1 + self.broken)]  # (S, 1 + K)
        true, broken = by_sample.split([1, self.broken], 1)  # type: ignore[no-untyped-call]
        chosen = broken.detach().topk(min(self.hardest, self.broken), 1).indices
        kept = torch.zeros_like(broken, dtype=torch.bool).scatter(1, chosen, True)
        logits = torch.cat([true, torch.where(kept, broken, broken.detach())], 1)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
