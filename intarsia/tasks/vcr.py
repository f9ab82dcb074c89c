"""VCR: answer a question about a picture, and give the reason, each out of four choices. Data: Zellers et al. 2019.

One document a choice; the four share their sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Array, Batch, Encoded, Example, Link, Pick, Sample, TextRows
from intarsia.errors import BadInput
from intarsia.layout import Cut, bert_rows, link_rows, without
from intarsia.parts.embeddings import initialise
from intarsia.parts.heads import AnswerHead
from intarsia.system import Lay
from intarsia.tasks import HeadConfig, Scorer, answer_of, groups, linear, two_linear, with_target
from intarsia.text import Pieces, Vocab

COCO = """person bicycle car motorcycle airplane bus train truck boat trafficlight firehydrant stopsign parkingmeter bench bird cat dog horse sheep cow
elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis snowboard sportsball kite baseballbat baseballglove skateboard surfboard
tennisracket bottle wineglass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hotdog pizza donut cake chair couch pottedplant bed
diningtable toilet tv laptop mouse remote keyboard cellphone microwave oven toaster sink refrigerator book clock vase scissors teddybear hairdrier toothbrush"""
KINDS = {name: number for number, name in enumerate(COCO.split(), start=1)}
"""COCO's classes as VCR names them; 0 is background."""


PERSON = "person"
NAMES = (
    *("Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry"),
    *("Jody", "Kendall", "Frankie", "Pat", "Quinn"),
)
"""What people are called in turn, from question to question. Source: VL-BERT, vcr/data/datasets/vcr.py."""


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


def choice_links(sample: Sample, pieces: Sequence[Pieces], form: int) -> Array:
    """Gold links of a question and one of its choices, laid out as [CLS] question (right answer) [SEP] choice [SEP]: (P, 2) text row, region row.

    Args:
        sample: its texts are the question (the right answer) and the choices.
        pieces: of the question (the right answer) and the choice, as laid out.
        form: number of the choice.
    """
    starts = np.cumsum([1, *map(len, pieces[:-1])]).tolist()
    asked = [link_rows(sample, piece, starts[i], i) for i, piece in enumerate(pieces[:-1])]
    return np.concatenate([*asked, link_rows(sample, pieces[-1], starts[-1] + 1, len(asked) + form)])


def renamed(sample: Sample) -> Sample:
    """A sample whose objects are called anew in all texts: people by `NAMES` in the order of the objects, going on from `Sample.people`, others by their class.

    Objects that are no region of the first picture stay as they are called. Source: VL-BERT, vcr/data/datasets/vcr.py.
    """
    called, turn = list[str](), sample.people
    for name in sample.pictures[0].names:
        called.append(NAMES[turn % len(NAMES)] if name == PERSON else name)
        turn += name == PERSON
    texts, links = list(sample.texts), list[Link]()
    for number, text in enumerate(sample.texts):
        said, at = "", 0
        for link in sorted((x for x in sample.links if x.text == number and x.picture == 0), key=lambda x: x.start):
            said += text[at : link.start]
            name = (called[link.region] if called else "") or text[link.start : link.end]
            links.append(replace(link, start=len(said), end=len(said) + len(name)))
            said, at = said + name, link.end
        texts[number] = said + text[at:]
    return replace(sample, texts=tuple(texts), links=(*links, *(x for x in sample.links if x.picture)))


def labelled(sample: Sample) -> Sample:
    """A sample whose regions have as labels (R) the class that people gave them, background where they gave none; as it is where nobody named any.

    Raises:
        BadInput: a name is none of COCO's, spaces aside.
    """
    names = [x.replace(" ", "") for x in sample.pictures[0].names]
    if not names:
        return sample
    unknown = next((x for x in names if x and x not in KINDS), None)
    if unknown is not None:
        raise BadInput(f"sample {sample.key}: object {unknown!r} is none of COCO's classes")
    labels = np.array([KINDS.get(x, 0) for x in names], np.int64)
    return replace(sample, pictures=(replace(sample.pictures[0], labels=labels), *sample.pictures[1:]))


def shared_cut(pieces: Sequence[Pieces], asked: int, form: int, limit: int) -> list[Pieces]:
    """The pieces of a question (its right answer) and one of its choices, cut from their ends until all choices fit.

    A choice is cut while it is longer than what is asked, else the question down to its last piece, then the right answer. Choices take turns and share
    what is asked: every document has what the last one left of it. Source: VL-BERT, vcr/data/datasets/vcr.py.

    Args:
        pieces: of the question (the right answer) and all choices.
        asked: how many of them are no choices, 1 or 2.
        form: number of the choice.
        limit: pieces of a document.
    """
    kept = list(map(len, pieces))
    for i in range(asked, len(pieces)):
        while sum(kept[:asked]) + kept[i] > limit:
            longer = kept[i] > sum(kept[:asked])
            kept[i if longer else 0 if kept[0] > 1 or asked == 1 else 1] -= 1
    return [pieces[i].part(0, kept[i]) for i in (*range(asked), asked + form)]


def pair_cut(earlier: Sequence[int]) -> Cut:
    """How a question (its right answer, behind a [SEP]) and a choice come down to a limit: from the end of the longer one, of the choice where both are alike.

    What the choices before took of the question is gone. Source: the first code of ViLBERT, vcr_dataset.py; ERNIE-ViL's, reader/vcr_finetuning.py.

    Args: earlier, pieces of the choices before this one.
    """

    def cut(pieces: list[Pieces], limit: int) -> list[Pieces]:
        said, kept = _said(pieces), 0
        for kept in (*earlier, len(pieces[-1])):
            while said + kept > limit:
                said, kept = (said - 1, kept) if said > kept else (said, kept - 1)
        return _shorter(pieces, said, kept)

    return cut


def choice_cut(pieces: list[Pieces], limit: int) -> list[Pieces]:
    """The same, but of the choice alone; of what is asked only where nothing of the choice would be left. Source: the second code of ViLBERT, vcr_dataset.py."""
    said = min(_said(pieces), limit - 1)
    return _shorter(pieces, said, limit - said)


def front_cut(pieces: list[Pieces], limit: int) -> list[Pieces]:
    """What passes the limit goes from the front of the choice; from that of the question only where it alone is longer.

    Source: the code of VisualBERT, whose reader of VCR takes a question for two pieces long when it asks whether one can lose any.
    """
    asked = min(len(pieces[0]), limit)
    over = max(asked + len(pieces[1]) - limit, 0)
    return [pieces[0].part(len(pieces[0]) - asked, None), pieces[1].part(over, None)]


def first_pieces(links: Array, words: Array) -> Array:
    """Of links (P, 2) to several pieces of a mention only the first. Args: words, (T) the word of each text row."""
    follows = np.zeros(len(links), np.bool_)
    follows[1:] = (links[1:, 1] == links[:-1, 1]) & (links[1:, 0] == links[:-1, 0] + 1)
    found: Array = links[~follows]
    return found


def _said(pieces: Sequence[Pieces]) -> int:
    return sum(map(len, pieces[:-1])) + len(pieces) - 2


def _shorter(pieces: Sequence[Pieces], said: int, kept: int) -> list[Pieces]:
    """The first `said` rows of what is asked, a [SEP] before an answer among them, and the first `kept` of the choice."""
    asked = [min(len(pieces[0]), said), *(max(said - len(pieces[0]) - 1, 0) for _ in pieces[1:-1])]
    return [piece.part(0, count) for piece, count in zip(pieces, (*asked, kept), strict=True)]


def choice_rows(vocab: Vocab, sample: Sample, asked: int, form: int, limit: int, room: int) -> tuple[TextRows, Array]:
    """[CLS] question (right answer) [SEP] choice [SEP], cut by `shared_cut`, and its links.

    Rationales of the test, whose right answers nobody knows, may have `room` pieces. Source: VL-BERT, vcr/data/datasets/vcr.py, which does not cut them.
    Other arguments as of `shared_cut`.
    """
    pieces = [vocab.encode(x) for x in sample.texts]
    kept = shared_cut(pieces, asked, form, room if asked == 2 and not sample.answers else limit)
    parts = [*((x, 0) for x in sample.texts[:asked]), (sample.texts[asked + form], 1)]
    text, _ = bert_rows(vocab, sample.key, parts, limit, lambda *_: kept, own_sep=True)
    return without(text, 1 + len(kept[0])) if asked == 2 else text, choice_links(sample, kept, form)


@dataclass(frozen=True)
class OneOf:
    """One document a choice. A sample's texts are the question and its choices, or the question, its right answer and the rationales."""

    choices: int = 4
    layouts: tuple[str, str] = ("", "")
    """Names of the layouts of answers and of rationales where the paper tells them apart; else question and right answer are put together."""
    read_once: bool = False
    """Only the first choice has the pixels, for a trunk that reads them once for all four, which stay together."""

    def forms(self, lay: Lay, sample: Sample) -> list[Example]:
        """The premise with each choice."""
        reasons = len(sample.texts) == 2 + self.choices
        name = self.layouts[reasons]
        shown = joined(sample) if reasons and not name else sample
        found = [lay(shown, i, name) for i in range(self.choices)]
        for example in found[1:] if self.read_once else ():
            example.images = ()
        return found

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
    """And each region's output names its object; people have names that go round from question to question.

    Batch.targets["objects"]: Picks of region rows with labels (M) int64, background for the whole picture.

    Source: VL-BERT, sec. 4.2, and its code, vcr/modules/resnet_vlbert_for_vcr.py.
    """

    read_once: bool = True
    classes: int = 81

    def forms(self, lay: Lay, sample: Sample) -> list[Example]:
        """Under names that go round."""
        return super().forms(lay, renamed(sample))

    def documents(
        self, lay: Lay, sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample]
    ) -> list[Example]:
        """With the class of every region: what the benchmark names it, else what its detector says, else background.

        Names go on from anywhere, as those of a loader that shuffles.
        """
        sample = replace(sample, people=int(rng.integers(len(NAMES))))
        found = super().documents(lay, labelled(sample), rng, draw)
        for example in found:
            assert example.regions is not None, "names objects by their regions"
            labels = example.regions.labels
            kinds = np.zeros(len(example.regions), np.int64) if labels is None else np.array(labels, np.int64)
            if kinds.max(initial=0) >= self.classes:
                raise BadInput(f"sample {sample.key}: region of class {kinds.max()}, the head knows {self.classes}")
            example.targets["objects"] = Pick("regions", np.arange(len(kinds)), kinds)
        return found

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


class Opposed(nn.Module):
    """A score as logits of wrong and right. Source: B2T2's dual encoder."""

    def forward(self, score: Tensor) -> Tensor:
        """(B, 1) to (B, 2)."""
        return torch.cat([-score, score], -1)


@dataclass(frozen=True)
class VCRPretrained(VCR):
    """As `VCR`, by one layer on the pooled vector; choices are compared by the difference of both logits. Source: B2T2."""

    def head(self, config: HeadConfig) -> nn.Module:
        """One layer, no dropout; of a system that pools a score already, nothing that trains."""
        if config.pooled_size == 1:
            return Opposed()
        head = nn.Linear(config.pooled_size, 2)
        initialise(head, config.initializer_range)
        return head

    def ranks(self, scores: Tensor, batch: Batch) -> Tensor:
        """(S, choices) log odds."""
        return (scores[:, 1] - scores[:, 0])[groups(batch.sample, self.choices)]
