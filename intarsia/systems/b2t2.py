"""B2T2: Fusion of Detected Objects in Text for Visual Question Answering (Alberti et al., EMNLP 2019).

New: pictures enter inside the text. The feature of an object's box is added to the very token that names it, that of the whole picture to a token [IMAGE];
regions are no elements of the sequence.
Unusual: the sum is made after the norm and dropout of the embeddings, and a tanh of a bias is added where there is no picture. A box that touches the
right or lower edge has no position there. GELU is the tanh formula. Masked words count in true pairs only. Once the last slot for boxes is taken, later
mentions of known objects carry nothing. Features are made beforehand, or read off the pixels by a ResNet that trains along (`trainable_resnet`), whose
batch norms keep their stored statistics and whose gains and offsets decay. Also here: the late fusion of the paper's ablation, and its dual encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from intarsia.batch import Array, Batch, Encoded, Example, Picture, Pixels, RegionRows, Sample, TextRows
from intarsia.data.decode import size_of
from intarsia.errors import BadInput, TooLong
from intarsia.features import resnet_v2
from intarsia.features.letterbox import SIDE, cut_out_pixels, snapped
from intarsia.features.resnet_v2 import ResNetV2, ResNetV2Config
from intarsia.layout import bare_rows, document_key, picture_of, region_rows, whole_row, with_whole_picture
from intarsia.objectives import itm, joint, mlm
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder, gelu_tanh
from intarsia.parts.heads import Pooler, TiedHead
from intarsia.parts.named_boxes import NamedBoxes
from intarsia.parts.numbers import LARGE, TINY, BertNumbers
from intarsia.recipe import TINY_RUN, Batching, Card, Mix, Optim, Recipe, Schedule, adam
from intarsia.system import Finetune, System, Tuning
from intarsia.tasks.vcr import VCRPretrained
from intarsia.text import Vocab
from intarsia.weights import bert, tf
from intarsia.weights.keymap import KeyMap, Move

RESNET152 = ResNetV2Config(norm="stored")
NO_DECAY = (r"^(?!.*\btrunk\.).*(bias|norm)", r"\btrunk\..*\b(conv\d|shortcut)\.bias$")
"""What the authors' rule spares, by their names: LayerNorms and biases; the ResNet's batch norms have neither word in theirs."""


@dataclass(frozen=True)
class B2T2Config(BertNumbers):
    """BERT-base-uncased with ResNet features; the README's runs are BERT-large."""

    feature_size: int = 2048
    """Numbers of a picture's or crop's feature, where it is made beforehand."""
    trainable_resnet: bool = False
    """A ResNet of one's own reads the picture and its crops off the pixels and trains along; False = features are made beforehand."""
    resnet: ResNetV2Config = RESNET152
    """That ResNet's numbers."""
    use_bbox_position: bool = False
    """Boxes have a code of their place."""
    max_num_bboxes: int = 4
    """Objects of a document that carry their feature."""
    append_all_bboxes: bool = False
    """The first objects are named again after the text, where the benchmark names them."""
    max_rows: int = 64
    """Text rows of a document; the longest part is cut until they fit."""
    fusion: Literal["early", "late", "dual", "blind"] = "early"
    """Where the picture enters: before the first layer, before the last, by a product with the pooled text (dual), or nowhere."""
    mlm_rate: float = 0.15
    itm_rate: float = 0.5
    """Share of impostor captions."""

    @property
    def trunk(self) -> ResNetV2Config | None:
        """Of the ResNet in the loop; None = there is none."""
        return self.resnet if self.trainable_resnet and self.fusion != "blind" else None

    @property
    def pooled_size(self) -> int:
        """What heads read: the pooled vector, of the dual encoder its score."""
        return 1 if self.fusion in ("dual", "blind") else self.hidden_size


def _recipes() -> dict[str, Recipe[B2T2Config]]:
    """Pre-training on captions, whose numbers are not known, and a tiny run."""
    base = Recipe(
        config=B2T2Config(),
        mix=Mix(share={"mlm+itm": 1}),
        optim=_adam(3e-5),
        schedule=Schedule(steps=250_000, warmup=25_000, shape="bert"),
        batching=Batching(rows=2048, window=8192),
        note="Conceptual Captions, 3 M pairs; steps, batch and rate of this stage are not known.",
    )
    large = replace(base, config=B2T2Config(**LARGE, use_bbox_position=True, max_num_bboxes=8), optim=_adam(2e-5))
    small = replace(RESNET152, units=(1, 1, 1, 1), base_depth=(8, 16, 16, 32), stem_channels=16)
    tiny = replace(
        base,
        config=B2T2Config(**TINY, mlm_rate=0.25, resnet=small),
        mix=Mix(share={"mlm": 1, "mlm+itm": 2}, begin={"mlm+itm": 0.3}),
        **(TINY_RUN | {"batching": Batching(rows=600, window=2048)}),
        note="Not a published recipe: generated scenes from scratch in minutes; the whole picture is all that is seen.",
    )
    return {"tiny": tiny, "base": base, "large": large}


def _adam(lr: float) -> Optim:
    """BERT's own: no bias correction."""
    return replace(adam(lr, eps=1e-6), bias_correction=False, no_decay=NO_DECAY)


def _finetune() -> dict[str, Finetune]:
    """VCR with the head of pre-training."""
    schedule, batching = Schedule(steps=133_087, warmup=13_308, shape="bert"), Batching(rows=8192)
    tuning = Tuning(_adam(2e-5), schedule, batching, samples=8, note="5 epochs, batch 32, four documents a question")
    return {
        "vcr": Finetune(
            VCRPretrained(layouts=("vcr", "vcr_reasons"), read_once=True),
            {"base": tuning, "large": tuning},
            KeyMap(("bert/output_weights", "head.weight"), ("bert/output_bias", "head.bias")),
            head_from={x: (f"match_head.{x}", None) for x in ("weight", "bias")},
            with_trunk={"trainable_resnet": True},
        )
    }


class B2T2(System):
    """B2T2; see the module's docstring."""

    Config = B2T2Config
    needs = ("text", "regions")
    specials = ("[IMAGE]", *(f"[OBJ-{i}]" for i in range(100)))
    card = Card(
        name="b2t2",
        title="B2T2: Fusion of Detected Objects in Text for Visual Question Answering",
        venue="EMNLP 2019",
        paper="arXiv:1908.05054",
        code="github.com/google-research/language 865fae6",
        streams="single",
        new="adds the feature of a box to the token that names it",
        objectives=("mlm", "itm"),
        tasks=("vcr",),
        weights=("TensorFlow variable names, as tensors",),
        unverified=("pre-training: hidden words, rate, steps, batch", "eight boxes", "late fusion", "published scores"),
    )

    def __init__(self, config: B2T2Config, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width, trunk = config.hidden_size, config.trunk
        features = trunk.width if trunk else config.feature_size
        self.words = Words(config)
        self.encoder = Encoder(config, gelu_tanh)
        self.pooler = Pooler(width)
        if config.fusion in ("early", "late"):
            self.fusion = NamedBoxes(features, width, config.use_bbox_position)
            self.word_head = TiedHead(width, config.vocab_size, config.layer_norm_eps, gelu_tanh)
            self.match_head = nn.Linear(width, 2)
        else:
            self.dual = nn.Linear(features, width) if config.fusion == "dual" else nn.Linear(width, 1)
        initialise(self, config.initializer_range)
        self.trunk = ResNetV2(trunk) if trunk else None

    def fill_trunk(self, path: Path) -> None:
        """The ResNet starts from weights of its own, in TensorFlow's names."""
        self.trunk.fill(path) if self.trunk else super().fill_trunk(path)

    # 1 -- inputs: [CLS] [IMAGE] question [SEP] answer rationale [SEP] --------------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """A caption after [IMAGE], which carries the region that is the whole picture; where the data have none, the mean of the regions.

        vcr: question and choice; vcr_reasons: question, right answer and rationale; `form` says which. Objects that are mentioned are called by their class, and
        their [OBJ] follows. What is cut of a question or an answer stays cut in the next choices. A ResNet in the loop reads what any of these texts mentions.
        """
        picture, config, asked = picture_of(sample, 0), self.config, 1 + (task == "vcr_reasons")
        first = [self._tokens(sample, i, mentions=task is not None) for i in range(asked if task else 1)]
        if not first[0]:
            raise BadInput(f"sample {sample.key}: the caption {sample.texts[0]!r} is empty")
        if task is None and len(first[0]) + 3 > config.max_rows:
            raise TooLong(f"sample {sample.key}: {len(first[0])} pieces of text, the limit is {config.max_rows - 3}")
        count = min(len(picture.names), config.max_num_bboxes) if config.append_all_bboxes and task else 0
        extra = [token for i in range(count) for token in self._named(sample, picture.names[i], i)]
        said = sum(map(len, first))
        for i in range(form + 1):
            choice = self._tokens(sample, asked + i, mentions=True) if task else []
            parts, given = (*first, choice, [])[:3], said + len(choice)
            text, links = document(self.vocab, parts, extra, len(picture.boxes), config)
        text.cut = given - sum(map(len, parts))
        rows = np.arange(len(picture.boxes))
        if config.trunk:
            named = [*range(count), *(x.region for x in sample.links if not x.picture)]
            rows = rows[np.isin(rows, named) & bool(task and config.max_num_bboxes and config.fusion != "dual")]
        placed = {number: row for row, number in enumerate(rows.tolist())}
        links = [*([place, placed[number]] for place, number in links if number in placed), [1, len(rows)]]
        key, (regions, images) = document_key(sample, task, form), self._shown(sample.key, picture, rows)
        return Example(key, text, regions, np.array(links), sample=sample.key, images=images)

    def _shown(self, key: str, picture: Picture, rows: Array) -> tuple[RegionRows, tuple[Pixels, ...]]:
        """Some regions, on the grid of the position tables, and the whole picture; what a ResNet in the loop reads of each."""
        if self.config.trunk is None:
            whole, size = whole_row(picture), (picture.height or SIDE, picture.width or SIDE)
            shown = region_rows(key, replace(picture, boxes=snapped(picture.boxes, *size)), self.config.feature_size, 0)
            return with_whole_picture(shown, picture, feature=None if whole is None else picture.features[whole]), ()
        wide, high = size_of(picture, key)
        boxes = picture.boxes[rows]
        regions = with_whole_picture(bare_rows(snapped(boxes, high, wide)), picture, feature=np.zeros(0))
        return regions, cut_out_pixels(key, picture, np.concatenate([boxes, [[0, 0, 1, 1]]]))

    def _tokens(self, sample: Sample, number: int, mentions: bool) -> list[Token]:
        """The pieces of a text, its mentions by the names of their objects."""
        text, names = sample.texts[number], sample.pictures[0].names
        links = [x for x in sample.links if x.text == number and not x.picture] if mentions else []
        found, at = list[Token](), 0
        for link in sorted(links, key=lambda x: x.start):
            found += map(Token, self.vocab.encode(text[at : link.start]).ids.tolist())
            name = names[link.region] if names else ""
            found += self._named(sample, name or text[link.start : link.end], link.region)
            at = link.end
        return [*found, *map(Token, self.vocab.encode(text[at:]).ids.tolist())]

    def _named(self, sample: Sample, name: str, number: int) -> list[Token]:
        """The pieces of a name and the object's own token."""
        own = f"[OBJ-{number}]"
        if own not in self.vocab.index:
            raise BadInput(f"sample {sample.key}: object {number} is mentioned, the vocabulary has no {own}")
        return [*map(Token, self.vocab.encode(name).ids.tolist()), Token(self.vocab.index[own], number)]

    # 2 -- stream: BERT over tokens that carry pictures -----------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Adds pictures to tokens, encodes the text. In the dual encoder `pooled` is the score, (B, 1)."""
        text, regions, links = batch.text, batch.regions, batch.links
        assert text is not None and regions is not None and links is not None, "B2T2 needs text and regions"
        fusion, x = self.config.fusion, self.words(text)
        if self.trunk is not None:
            assert batch.images is not None, "the ResNet needs pixels"
            regions = replace(regions, feats=self.trunk.vectors(batch.images.pixels)[batch.images.shared[1]])
        added = {fusion: self.fusion(len(x), regions, links).to(x.dtype)} if fusion in ("early", "late") else {}
        x = self.encoder(x + added.get("early", 0), text.packing, to_last=added.get("late"))
        pooled = self.pooler(x, text.packing)
        if fusion == "dual":
            whole = regions.feats[regions.packing.last]
            pooled = (torch.tanh(self.dual(whole.to(pooled.dtype))) * pooled).sum(-1, keepdim=True)
        elif fusion == "blind":
            pooled = torch.tanh(self.dual(pooled))
        return Encoded(text=x, visual=None, visual_packing=None, pooled=pooled)

    # 3 -- objectives -----------------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Words are hidden in all documents, asked for in true ones; the caption of another picture is the impostor (sec. 3.4)."""
        goals, label = goal.split("+"), 1
        if "itm" in goals and rng.random() < self.config.itm_rate:
            sample, label = replace(sample, texts=draw().texts, links=(), also=()), 0
        example = self.lay_out(sample)
        joint.hide(example, self.vocab, rng, goals, self.config.mlm_rate, told=bool(label))
        if "itm" in goals:
            example.targets["itm"] = np.array(label)
        return example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal, which are added."""
        found: dict[str, Tensor] = {}
        if "mlm" in batch.targets:
            picks = batch.picks("mlm")
            found["mlm"] = mlm.score_tf(self.word_logits(encoded, picks.rows), picks.labels)
        if "itm" in batch.targets:
            found["itm"] = itm.score(self.match_logits(encoded), batch.labels("itm"))
        return found

    def match_logits(self, encoded: Encoded) -> Tensor:
        """(B, 2) logits: impostor, true."""
        if self.config.fusion in ("dual", "blind"):
            return torch.cat([-encoded.pooled, encoded.pooled], -1)
        return self.match_head(encoded.pooled)  # type: ignore[no-any-return]

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) log odds that text and picture belong together."""
        return itm.log_odds(self.match_logits(encoded))

    # 4 -- recipes ------------------------------------------------------------------------------------------------------

    recipes = _recipes()
    from_bert = bert.FromBert()

    # 5 -- downstream ---------------------------------------------------------------------------------------------------

    heads = ("word_head", "match_head")
    finetune = _finetune()

    # 6 -- checkpoint: none was published; the names are those of the authors' TensorFlow variables -----------------------

    sizes = bert.SIZES | {"feature_size": ("fusion.dense.weight", 1)}
    flags = {"use_bbox_position": "fusion.across", "trainable_resnet": "trunk.conv1.weight"}  # noqa: RUF012
    keys = resnet_v2.keys("module/resnet_v2_152/").under("trunk.") + KeyMap(
        *tf.body(),
        *tf.dense("bert/embeddings/dense/", "fusion.dense."),
        *(Move(f"position_{axis}_embeddings", f"fusion.{way}") for axis, way in (("x", "across"), ("y", "down"))),
        Move("bert/output_weights", "match_head.weight"),
        Move("bert/output_bias", "match_head.bias"),
        *tf.word_head(),
        *tf.dense("bert/dense/", "dual."),
        optional=("word_head.", "match_head."),
    )


# ------------------------------------------------------------------------------------------------- documents of the authors


class Token(NamedTuple):
    """A piece, and the object it stands for."""

    piece: int
    obj: int = -1


def document(
    vocab: Vocab,
    parts: Sequence[list[Token]],
    extra: list[Token],
    objects: int,
    config: B2T2Config,
) -> tuple[TextRows, list[list[int]]]:
    """[CLS] [IMAGE] question [SEP] answer rationale [SEP] extra, cut from the end of the longest part, in place, as the authors do.

    Args:
        vocab: has [IMAGE].
        parts: question or caption, answer, rationale; without an answer there is no second [SEP].
        extra: objects named again.
        objects: how many there are.
        config: rows and slots.

    Returns:
        The rows, and (row, object) of those that carry an object; later mentions carry nothing once all slots are taken.
    """
    q, a, r = parts
    while a and len(q) + len(a) + len(r) >= config.max_rows - 4 - len(extra):
        max((r, a, q), key=len).pop()
    sep, image = Token(vocab.sep), vocab.index["[IMAGE]"]
    first = [Token(vocab.cls), Token(image), *q, sep]
    tokens = [*first, *a, *r, sep, *extra] if a else first
    seen, links = set[int](), list[list[int]]()
    for place, token in enumerate(tokens):
        if 0 <= token.obj < objects and len(seen) < config.max_num_bboxes:
            seen.add(token.obj)
            links.append([place, token.obj])
    ids = np.array([token.piece for token in tokens])
    special = np.isin(ids, [vocab.cls, vocab.sep, image]) | np.array([token.obj >= 0 for token in tokens])
    segments = (np.arange(len(ids)) >= len(first)).astype(np.int64)
    return TextRows(ids, segments, np.arange(len(ids)), np.where(special, -1, np.cumsum(~special) - 1)), links
