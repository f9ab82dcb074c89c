"""VCR: answer a question about a picture, and give the reason, each out of four choices. Data: Zellers et al. 2019.

One document a choice; the four share their sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Link, Pick, Sample
from intarsia.errors import BadInput
from intarsia.parts.embeddings import initialise
from intarsia.parts.heads import AnswerHead
from intarsia.system import Lay
from intarsia.tasks import HeadConfig, Scorer, answer_of, groups, linear, two_linear, with_target

COCO = """person bicycle car motorcycle airplane bus train truck boat trafficlight firehydrant stopsign parkingmeter bench bird cat dog horse sheep cow
elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis snowboard sportsball kite baseballbat baseballglove skateboard surfboard
tennisracket bottle wineglass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hotdog pizza donut cake chair couch pottedplant bed
diningtable toilet tv laptop mouse remote keyboard cellphone microwave oven toaster sink refrigerator book clock vase scissors teddybear hairdrier toothbrush"""
KINDS = {name: number for number, name in enumerate(COCO.split(), start=1)}
"""COCO's classes as VCR names them; 0 is background."""


def joined(sample: Sample) -> Sample:
    """A sample whose first two texts, a question and its right answer, are one."""
    question, answer, *rest = sample.texts
    moved = len(question) + 1
    links = tuple(
        Link(x.start + moved, x.end + moved, x.region, 0, x.picture)
        if x.text == 1
        else replace(x, text=max(x.text - 1, 0))
        for x in sample.links
    )
    return replace(sample, texts=(f"{question} {answer}", *rest), links=links)


@dataclass(frozen=True)
class OneOf:
    """One document a choice. A sample's texts are the question and its choices, or the question, its right answer and the rationales."""

    choices: int = 4
    layouts: tuple[str, str] = ("", "")
    """Names of the layouts of answers and of rationales where the paper tells them apart; else question and right answer are put together."""

    def forms(self, lay: Lay, sample: Sample) -> list[Example]:
        """The premise with each choice."""
        reasons = len(sample.texts) == 2 + self.choices
        name = self.layouts[reasons]
        shown = joined(sample) if reasons and not name else sample
        return [lay(shown, i, name) for i in range(self.choices)]

    def documents(
        self, lay: Lay, sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """With 1 for the choice whose number is the sample's answer."""
        right = int(answer_of(sample))
        return with_target(self.forms(lay, sample), "vcr", [int(i == right) for i in range(self.choices)])

    def ranks(self, scores: Tensor, batch: Batch) -> Tensor:
        """(S, choices) logits."""
        return scores[groups(batch.sample, self.choices)]

    def predict(self, scores: Tensor, batch: Batch) -> list[Tensor]:
        """(choices) of each sample."""
        return list(self.ranks(scores, batch).float())


@dataclass(frozen=True)
class VCR(OneOf):
    """Each choice is right or wrong by itself. Batch.targets["vcr"]: (B) int64, 1 = the right choice."""

    def head(self, config: HeadConfig) -> nn.Module:
        """Two layers on the pooled vector, ReLU between."""
        head = AnswerHead(config.pooled_size, 2, nn.ReLU(), config.layer_norm_eps)
        initialise(head, config.initializer_range)
        return head

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B, 2) logits: wrong, right."""
        return head(encoded.pooled)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy over documents."""
        return F.cross_entropy(scores.float(), batch.labels("vcr"))

    def ranks(self, scores: Tensor, batch: Batch) -> Tensor:
        """(S, choices) what the choices of a sample are compared by: the logit of being right, not the difference of both."""
        return scores[:, 1][groups(batch.sample, self.choices)]


@dataclass(frozen=True)
class VCROneOf(OneOf):
    """The choices of a sample compete. Batch.targets[goal]: (B) int64, 1 = the right choice."""

    scorer: Scorer = linear
    goal: str = "vcr"

    def head(self, config: HeadConfig) -> nn.Module:
        """One number from the pooled vector."""
        return self.scorer(config, 1)

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B) logits."""
        return head(encoded.pooled).squeeze(-1)  # type: ignore[no-any-return]

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Cross entropy over the choices of each sample, averaged over samples."""
        right = batch.labels(self.goal)[groups(batch.sample, self.choices)].argmax(1)
        return F.cross_entropy(self.ranks(scores, batch).float(), right)


@dataclass(frozen=True)
class VCREach(VCROneOf):
    """Each choice is right or wrong by itself, one number a choice. Source: VL-BERT, sec. 4.2."""

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean binary cross entropy over choices."""
        return F.binary_cross_entropy_with_logits(scores.float(), batch.labels("vcr").float())


@dataclass(frozen=True)
class VCRAndObjects(VCREach):
    """And each region's output names its object. Batch.targets["objects"]: Picks of region rows with labels (M) int64, background for the whole picture.

    Source: VL-BERT, sec. 4.2, and its code, vcr/modules/resnet_vlbert_for_vcr.py.
    """

    classes: int = 81

    def forms(self, lay: Lay, sample: Sample) -> list[Example]:
        """Only the first choice has the pixels, so that a trunk reads them once; all four stay together."""
        found = super().forms(lay, sample)
        for example in found[1:]:
            example.images = ()
        return found

    def documents(
        self, lay: Lay, sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """With the class of every region: what the benchmark names it, else what its detector says, else background."""
        found = super().documents(lay, self._labelled(sample), rng, draw)
        for example in found:
            assert example.regions is not None, "names objects by their regions"
            labels = example.regions.labels
            kinds = np.zeros(len(example.regions), np.int64) if labels is None else np.array(labels, np.int64)
            if kinds.max(initial=0) >= self.classes:
                raise BadInput(f"sample {sample.key}: region of class {kinds.max()}, the head knows {self.classes}")
            example.targets["objects"] = Pick("regions", np.arange(len(kinds)), kinds)
        return found

    def _labelled(self, sample: Sample) -> Sample:
        """With what the benchmark names as labels."""
        names = sample.pictures[0].names
        if not names:
            return sample
        unknown = next((x for x in names if x and x not in KINDS), None)
        if unknown is not None:
            raise BadInput(f"sample {sample.key}: object {unknown!r} is none of COCO's classes")
        labels = np.array([KINDS.get(x, 0) for x in names], np.int64)
        return replace(sample, pictures=(replace(sample.pictures[0], labels=labels), *sample.pictures[1:]))

    def head(self, config: HeadConfig) -> nn.Module:
        """One number from the pooled vector; two layers from each region to its class."""
        objects = two_linear(config, self.classes)
        initialise(objects, config.initializer_range)
        return nn.ModuleDict({"choice": super().head(config), "objects": objects})

    def score(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """(B) logits."""
        return super().score(head.get_submodule("choice"), encoded, batch)

    def beside(self, head: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """Mean cross entropy of the objects' classes."""
        picks = batch.picks("objects")
        assert encoded.visual is not None, "names objects by their regions"
        logits = head.get_submodule("objects")(encoded.visual.index_select(0, picks.rows))
        return F.cross_entropy(logits.float(), picks.labels)


@dataclass(frozen=True)
class VCRPretrained(VCR):
    """As `VCR`, by one layer on the pooled vector; choices are compared by the difference of both logits. Source: B2T2."""

    def head(self, config: HeadConfig) -> nn.Module:
        """One layer, no dropout."""
        head = nn.Linear(config.pooled_size, 2)
        initialise(head, config.initializer_range)
        return head

    def ranks(self, scores: Tensor, batch: Batch) -> Tensor:
        """(S, choices) log odds."""
        return (scores[:, 1] - scores[:, 0])[groups(batch.sample, self.choices)]
