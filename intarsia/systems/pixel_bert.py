"""Pixel-BERT: Aligning Image Pixels with Text by Deep Multi-Modal Transformers (Huang et al., arXiv 2020).

New: no detector. A ResNet runs on the whole picture and is trained together with the Transformer; every position of its last map, pooled 2 x 2, is a row.
Unusual: rows of the picture have no positions, so they are a set. In pre-training a random 100 of them enter the Transformer, drawn for each picture anew;
elsewhere all. Two optimizers in one step: SGD for the CNN, AdamW for the rest. Nothing of the picture is ever hidden or asked for.
The authors published neither code nor weights: what follows is the paper's text, and `Card.unverified` lists what it does not say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Images, RegionRows, Regions, Sample, Text
from intarsia.errors import BadInput
from intarsia.features.resnet import MEAN, SIZES, STD, ResNet, ResNetConfig, resnet_state
from intarsia.layout import bert_rows, cell_rows, picture_of
from intarsia.objectives import contrast, itm, joint, mlm
from intarsia.packed import Packing
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder
from intarsia.parts.heads import FirstRow, TiedHead
from intarsia.parts.numbers import TINY, BertNumbers
from intarsia.parts.stream import encode_joined
from intarsia.pixels import bounded_pixels
from intarsia.recipe import SGD, Batching, Card, Mix, Recipe, Schedule, adam
from intarsia.system import Finetune, System, Tuning
from intarsia.tasks.nlvr2 import NLVR2Pair
from intarsia.tasks.retrieval import RetrievalHardest
from intarsia.tasks.vqa import VQA
from intarsia.text import Vocab
from intarsia.weights import bert
from intarsia.weights.files import fill, read_weights
from intarsia.weights.keymap import KeyMap, Tied

POOL = 2
"""Side of the max-pool after the CNN; it keeps what is left over at the right and lower edge."""


@dataclass(frozen=True)
class PixelBERTConfig(BertNumbers):
    """BERT-base above ResNet-50."""

    trunk: ResNetConfig = field(default_factory=lambda: replace(SIZES["resnet50"], num_classes=0))
    """The CNN; its `norm` is what `batch_norm` says, and it has no classifier."""
    batch_norm: Literal["frozen", "stored", "batch"] = "frozen"
    """frozen = norms never change; stored = their weights train, their statistics stay; batch = both change, in one process only."""
    short_side: int = 800
    """Pixels of a picture's shorter side."""
    long_side: int = 1333
    """Most pixels of the longer one."""
    sampled_pixels: int = 100
    """Positions of a picture that enter the Transformer in pre-training; 0 = all."""
    max_pieces: int = 62
    """Longer texts are left out."""
    mlm_rate: float = 0.15
    itm_rate: float = 0.5
    """Share of broken pairs."""
    mlm_on_broken: bool = False
    """Hidden words of broken pairs are asked for too; they are hidden in any case."""

    @property
    def cell(self) -> int:
        """Pixels a side that become one row: 64 with four layers."""
        return POOL << len(self.trunk.depths) + 1


def _recipes() -> dict[str, Recipe[PixelBERTConfig]]:
    """The paper's two sizes (`base` is r50) and a tiny run."""
    r50 = Recipe(
        config=PixelBERTConfig(),
        mix=Mix(share={"mlm+itm": 1}),
        optim=adam(1e-4, max_norm=0.0),
        sgd=SGD(),
        schedule=Schedule(steps=58_000, warmup=0, shape="milestones", milestones=(25 / 40, 35 / 40)),
        batching=Batching(rows=86_000, samples=64, window=8192),
        note="40 epochs of COCO captions (train and restval) and Visual Genome's regions, 4096 pairs on 64 V100, rates fall at epochs 25 and 35; the steps are our count.",
    )
    x152 = replace(
        r50,
        config=PixelBERTConfig(trunk=replace(SIZES["resnext152_32x8d"], num_classes=0), short_side=600, long_side=1000),
        batching=Batching(rows=50_000, samples=64, window=8192),
        note="As r50, on smaller pictures. The paper says ResNeXt-152; that it is 32x8d is not verified.",
    )
    tiny = replace(
        r50,
        config=PixelBERTConfig(
            **TINY,
            trunk=ResNetConfig((1, 1), (16, 32), stem=16, num_classes=0),
            batch_norm="batch",
            short_side=96,
            long_side=160,
            sampled_pixels=0,
            mlm_rate=0.25,
        ),
        mix=Mix(share={"mlm": 1, "mlm+itm": 2}, begin={"mlm+itm": 0.4}),
        optim=replace(adam(1e-3, max_norm=5.0, eps=1e-6), betas=(0.9, 0.98)),
        sgd=SGD(lr=0.3),
        schedule=Schedule(steps=2400, warmup=120, floor=0.02),
        batching=Batching(rows=2400, samples=64, window=2048),
        note="Not a published recipe: from scratch on generated scenes. A CNN of two layers, a row for 16 x 16 pixels, all of which enter: an object has but one to four (docs).",
    )
    return {"tiny": tiny, "base": r50, "r50": r50, "x152": x152}


def _finetune() -> dict[str, Finetune]:
    """The downstream tasks with the paper's numbers."""

    def tunings(samples: int, steps: int, milestones: tuple[float, ...], note: str, cnn: bool = True) -> Any:
        schedule = Schedule(steps=steps, warmup=0, shape="milestones", milestones=milestones)
        rows = {"base": 1340, "r50": 1340, "x152": 770}
        return {
            size: Tuning(
                adam(1e-4, max_norm=0.0),
                schedule,
                Batching(rows=samples * one),
                samples=samples,
                sgd=SGD() if cnn else None,
                note=note,
            )
            for size, one in rows.items()
        }

    thirds = (12 / 18, 16 / 18)
    own = KeyMap(("head.", "head."))
    return {
        "vqa": Finetune(
            VQA(never=0), tunings(16, 46_000, thirds, "18 epochs, batch 256 on 16 V100, falls at epochs 12 and 16"), own
        ),
        "nlvr2": Finetune(
            NLVR2Pair(),
            tunings(16, 12_000, thirds, "18 epochs, batch 128, falls at epochs 12 and 16; two documents"),
            own,
        ),
        "retrieval": Finetune(
            RetrievalHardest(),
            tunings(64, 2800, (0.6,), "Flickr30k: 10 epochs, 8 GPUs x 64, falls at epoch 6; COCO: 4 epochs", cnn=False),
            own,
            frozen=("backbone.",),
        ),
    }


class PixelBERT(System):
    """Pixel-BERT; see the module's docstring."""

    Config = PixelBERTConfig
    needs = ("text", "images")
    card = Card(
        name="pixel_bert",
        title="Pixel-BERT: Aligning Image Pixels with Text by Deep Multi-Modal Transformers",
        venue="arXiv 2020",
        paper="arXiv:2004.00849",
        code="none published; a rendering of the paper's text",
        streams="single",
        new="a CNN on raw pixels, trained end to end, instead of a detector; random pixels in pre-training",
        objectives=("mlm", "itm"),
        tasks=("vqa", "nlvr2", "retrieval"),
        weights=(),
        unverified=(
            "the linear map from 2048 channels to the width of the Transformer",
            "how batch norms are treated",
            "80/10/10 of hidden words; whether words are asked for in broken pairs",
            "momentum of SGD; warm-up; clipping",
            "ResNeXt-152 being 32x8d",
            "length of texts; steps of pre-training and of the tasks",
            "3129 answers of VQA; the loss over all 21 captions in retrieval; epoch of the fall on COCO",
            "published scores but for VQA and NLVR2 of x152",
        ),
    )

    def __init__(self, config: PixelBERTConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width = config.hidden_size
        self.words = Words(config)
        self.pixel_proj = nn.Linear(4 * config.trunk.planes[-1], width)
        self.pixel_type = nn.Parameter(torch.zeros(width))
        self.encoder = Encoder(config)
        self.first = FirstRow()
        self.word_head = TiedHead(width, config.vocab_size, config.layer_norm_eps)
        self.match_head = nn.Linear(width, 1)
        initialise(self, config.initializer_range)
        nn.init.normal_(self.pixel_type, 0.0, config.initializer_range)
        norm: Literal["frozen", "batch"] = "frozen" if config.batch_norm == "frozen" else "batch"
        self.backbone = ResNet(replace(config.trunk, norm=norm, num_classes=0))

    def train(self, mode: bool = True) -> PixelBERT:
        """Training mode; the CNN's norms go by the batch only where the config says so and the CNN trains."""
        super().train(mode)
        trains = any(parameter.requires_grad for parameter in self.backbone.parameters())
        if self.config.batch_norm != "batch" or not trains:
            self.backbone.eval()
        return self

    def fill_trunk(self, path: Path) -> None:
        """The CNN starts from published weights, in torchvision's or another layout that `features.resnet` knows."""
        fill(self.backbone, resnet_state(read_weights(path), self.backbone, str(path)), str(path))

    # 1 -- inputs: [CLS] words [SEP], then the cells of the last map, row by row -------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Text rows, the picture's pixels, and a row for each of its cells. nlvr2: the sentence with picture number `form`."""
        config = self.config
        text, _ = bert_rows(self.vocab, sample.key, [(sample.texts[0], 0)], config.max_pieces)
        picture = picture_of(sample, form if task == "nlvr2" else 0)
        image = bounded_pixels(sample.key, picture, config.short_side, config.long_side, (MEAN, STD))
        cells = cell_rows(image.height, image.width, config.cell)
        key = f"{sample.key}@{form}" if task == "nlvr2" else sample.key
        return Example(key, text, cells, sample=sample.key, images=(image,))

    # 2 -- stream: a CNN, then BERT over both ------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds, joins and encodes; what is pooled is the output of [CLS] as it is."""
        text, regions = batch.text, batch.regions
        assert text is not None and regions is not None, "Pixel-BERT needs text and pixels"
        words, seen = self.encode_text(text), self.encode_visual(regions, batch.images)
        return self.cross(words, text.packing, seen, regions.packing, self.read(batch))

    def encode_text(self, text: Text) -> Tensor:
        """(T, H) embedded words; BERT's first segment is the paper's vector of the modality."""
        return self.words(text)  # type: ignore[no-any-return]

    def encode_visual(self, regions: Regions, images: Images | None = None) -> Tensor:
        """(R, H) the cells that the rows name. Only they are projected, and padding is none of them."""
        assert images is not None, "Pixel-BERT needs pixels"
        if self.training and self.config.batch_norm == "batch" and self.gather is not contrast.alone:
            raise BadInput(
                "batch_norm=batch: statistics of several processes differ; use one process, frozen or stored"
            )
        maps = F.max_pool2d(self.backbone.features(images.pixels), POOL, ceil_mode=True)  # (I, C, h, w)
        cells = (
            maps.permute(0, 2, 3, 1)
            .flatten(0, 2)
            .index_select(0, places(regions, images, maps.shape, self.config.cell))
        )
        return self.pixel_proj(cells) + self.pixel_type  # type: ignore[no-any-return]

    def cross(
        self, words: Tensor, text: Packing, seen: Tensor, visual: Packing, read: dict[str, Tensor] | None = None
    ) -> Encoded:
        """One encoder over words and cells."""
        return encode_joined(self.encoder, self.first, words, text, seen, visual, read)

    # 3 -- objectives -------------------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Pairs are broken by another picture in half of the cases, words are hidden, and a random part of the cells is kept (sec. 3.3, 3.4)."""
        config, goals, label = self.config, goal.split("+"), 1
        if "itm" in goals:
            sample, label = itm.swap(sample, rng, draw, config.itm_rate)
        example = joint.hide(
            self.lay_out(sample), self.vocab, rng, goals, config.mlm_rate, told=bool(label) or config.mlm_on_broken
        )
        if "itm" in goals:
            example.targets["itm"] = np.array(label)
        if config.sampled_pixels and example.regions is not None:
            example.regions = sampled(example.regions, config.sampled_pixels, rng)
        return example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal; their sum is trained."""
        found: dict[str, Tensor] = {}
        if "mlm" in batch.targets:
            picks = batch.picks("mlm")
            found["mlm"] = mlm.score(self.word_logits(encoded, picks.rows), picks.labels)
        if "itm" in batch.targets:
            found["itm"] = itm.score_one(self.match_scores(encoded), batch.labels("itm"))
        return found

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) log odds that text and picture belong together."""
        return self.match_head(encoded.pooled).squeeze(-1)  # type: ignore[no-any-return]

    # 4 -- recipes ----------------------------------------------------------------------------------------------------------

    recipes = _recipes()
    from_bert = bert.FromBert()

    # 5 -- downstream -------------------------------------------------------------------------------------------------------

    picked_goals = ("mlm", "itm")
    heads = ("word_head", "match_head")
    finetune = _finetune()

    # 6 -- checkpoint: none was published; BERT's and torchvision's names --------------------------------------------------

    sizes = bert.SIZES
    keys = KeyMap(
        *bert.body("bert."),
        ("backbone.", "backbone."),
        ("pixel_proj.", "pixel_proj."),
        ("pixel_type", "pixel_type"),
        *bert.word_head(),
        ("match_head.", "match_head."),
        Tied("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        optional=("word_head.", "match_head."),
    )


def sampled(rows: RegionRows, count: int, rng: np.random.Generator) -> RegionRows:
    """So many of the rows, or all if there are fewer; each set of that size is as likely as any other."""
    if len(rows) <= count:
        return rows
    chosen = np.sort(rng.choice(len(rows), count, replace=False))
    columns: dict[str, Any] = {name: getattr(rows, name) for name in RegionRows.__slots__}
    columns = {name: None if x is None else x[chosen] for name, x in columns.items()}
    return RegionRows(**columns)


def places(regions: Regions, images: Images, shape: torch.Size, cell: int) -> Tensor:
    """(R) where the cells of packed rows lie in the flattened maps of all images, which are filled up to one size.

    Args:
        regions: `position_ids` count the cells of each image by itself, row by row; `image` counts the images of a document.
        images: in the order of their documents.
        shape: (I, C, h, w) of the maps.
        cell: pixels a side of a cell.
    """
    number = (
        torch.searchsorted(images.doc, regions.packing.doc) + regions.image
    )  # (R) the first of the document, and on
    across = ((images.valid[:, 1] + cell - 1) // cell)[number]
    y, x = regions.position_ids // across, regions.position_ids % across
    return (number * shape[2] + y) * shape[3] + x
