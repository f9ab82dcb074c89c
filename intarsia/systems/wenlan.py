"""WenLan, also called BriVL: Bridging Vision and Language by Large-Scale Multi-Modal Pre-Training (Huo et al., 2021, arXiv:2103.06561).

New: pictures and captions of the web belong together loosely, so words and regions are never fused. Each side has a tower that makes one vector; a pair
is told from others by contrast with two long queues, which two slow copies of the towers fill: MoCo on both sides.
Unusual: padding is seen inside BERT and left out after it. A region is read off the last map of an EfficientNet by a grid that mixes two conventions for
corners. The top layers have no positions, so 37 boxes are a set. The copies move inside the forward pass, before they make keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Images, Picture, RegionRows, Regions, Sample, Text
from intarsia.errors import BadInput
from intarsia.features.efficientnet import SHAPES, EfficientNet, Shape, load_trunk
from intarsia.features.jitter import COLOURS, STILL, Colours
from intarsia.features.roi import read_weights
from intarsia.layout import bare_rows, bert_rows, filled, grid_boxes, picture_of
from intarsia.objectives import contrast
from intarsia.packed import Packing, pad, unpad
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder
from intarsia.parts.heads import Pooler
from intarsia.parts.momentum import Queue, follow, follower
from intarsia.parts.numbers import LARGE, TINY, BertNumbers
from intarsia.pixels import square_pixels
from intarsia.recipe import Batching, Card, Mix, Optim, Recipe, Schedule
from intarsia.system import Finetune, System
from intarsia.text import Vocab
from intarsia.weights import brivl
from intarsia.weights.keymap import KeyMap

ENDS = (r"image\.trunk\.(conv_stem|bn1|conv_head|bn2)\.", r"image\.trunk\.blocks\.[012]\.")
"""What the authors keep of the trunk."""


@dataclass(frozen=True)
class WenLanConfig(BertNumbers):
    """The released model, BriVL-1.0: EfficientNet-B5 and a Chinese BERT; the fields of BERT are those of the text tower's first half."""

    vocab_size: int = 21128
    trunk: Shape = SHAPES["b5"]
    """The EfficientNet."""
    embedding_size: int = 2048
    """D, of the vectors and of the top layers over regions; as many as the channels of the last map in the authors' sizes."""
    image_size: int = 380
    """Pixels a side that pictures are stretched to."""
    boxes: Literal["detector", "grid"] = "detector"
    """Regions: the boxes of the sample, or a fixed grid; the whole picture is one more."""
    max_boxes: int = 36
    """Boxes of a detector that count, in their order."""
    box_grid: int = 6
    """Cells a side of the fixed grid."""
    reads: int = 4
    """Reads of the map a side of a box."""
    max_text: int = 80
    """Text rows, [CLS] and [SEP] among them."""
    padding: Literal["seen", "none"] = "seen"
    """Whether BERT sees each text filled up with [PAD] to `max_text`, as the authors' does."""
    top_layers: int = 4
    """Layers above the trunk and above BERT."""
    top_heads: int = 4
    top_intermediate: int = 2048
    """Width of their feed-forward layers."""
    top_dropout: float = 0.1
    queue_size: int = 9600
    """K, keys of other pairs."""
    momentum: float = 0.99
    temperature: float = 0.07
    multi_label: bool = False
    """Pairs of the queue that are near in both towers count as positives."""
    topk: int = 1
    """With `multi_label`: how near."""
    statistics: Literal["stored", "batch"] = "stored"
    """What the trunk's batch norms go by in training; "batch" in one process only."""
    frozen: tuple[str, ...] = (*ENDS, r"text\.words\.", r"text\.encoder\.layers\.[0-7]\.")
    """Parameters whose name begins with a match of one of these regular expressions do not train."""
    colours: Colours = COLOURS
    """How colours are changed in training."""


class Top(nn.Module):
    """Layers over a set of rows, their mean, two linear maps: a tower's second half. Source: BriVL's code, imgAtt/imgFC and textAtt/textFC."""

    def __init__(self, config: WenLanConfig, width: int) -> None:
        super().__init__()
        drop, layers = config.top_dropout, (config.top_layers, config.top_heads, config.top_intermediate)
        numbers = BertNumbers(0, width, *layers, drop, drop, layer_norm_eps=1e-5)
        self.encoder = Encoder(numbers, nn.Sequential(nn.ReLU(), Dropout(drop)))
        self.out = nn.Sequential(nn.Linear(width, size := config.embedding_size), nn.ReLU(), nn.Linear(size, size))
        for layer in self.encoder.layers:
            nn.init.xavier_uniform_(layer.get_parameter("attention.qkv.weight"))

    def forward(self, rows: Tensor, packing: Packing) -> Tensor:
        """(N, width) to (B, D)."""
        x = self.encoder(F.normalize(rows, dim=-1), packing)
        summed = x.new_zeros(packing.documents, x.shape[1]).index_add(0, packing.doc, x)
        return self.out(summed / packing.lengths[:, None])  # type: ignore[no-any-return]


class ImageTower(nn.Module):
    """Pixels and boxes to one vector."""

    def __init__(self, config: WenLanConfig) -> None:
        super().__init__()
        self.reads = config.reads
        self.trunk = EfficientNet(config.trunk)
        self.project = nn.Conv2d(config.trunk.channels, config.embedding_size, 1)
        self.top = Top(config, config.embedding_size)

    def rows(self, maps: Tensor, regions: Regions) -> Tensor:
        """(R, D) what the boxes show of maps (B, D, h, w): the mean of reads x reads bilinear reads, then a linear map, which commutes with the mean."""
        weights = read_weights(regions.boxes.float(), maps.shape[2], maps.shape[3], self.reads).to(maps.dtype)
        mixed = pad(weights, regions.packing) @ maps.flatten(2).transpose(1, 2)  # (B, L, h w) by (B, h w, D)
        return self.project(unpad(mixed, regions.packing)[:, :, None, None]).flatten(1)  # type: ignore[no-any-return]

    def forward(self, images: Images, regions: Regions) -> tuple[Tensor, Tensor]:
        """(R, D) rows and (B, D) vectors, not of length 1. There is one image a document."""
        rows = self.rows(self.trunk.features(images.pixels), regions)
        return rows, self.top(rows, regions.packing)


class TextTower(nn.Module):
    """Characters to one vector."""

    def __init__(self, config: WenLanConfig, filler: int) -> None:
        super().__init__()
        self.filler = filler
        self.length = config.max_text if config.padding == "seen" else 0
        self.words = Words(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config.hidden_size)  # in the files, and never asked
        self.top = Top(config, config.hidden_size)
        for part in (self.words, self.encoder, self.pooler):
            initialise(part, config.initializer_range)

    def rows(self, text: Text) -> Tensor:
        """(T, H) BERT's rows; with padding seen, each document takes part in it at its full length."""
        full = filled(text, self.length, self.filler) if self.length else text
        x: Tensor = self.encoder(self.words(full), full.packing)
        return unpad(x.view(-1, self.length, x.shape[1]), text.packing) if self.length else x

    def forward(self, text: Text) -> tuple[Tensor, Tensor]:
        """(T, H) rows and (B, D) vectors, not of length 1."""
        rows = self.rows(text)
        return rows, self.top(rows, text.packing)


def _recipes() -> dict[str, Recipe[WenLanConfig]]:
    """The released model, its follow-up on a grid, the paper's large one, two small ones."""
    base = Recipe(
        config=WenLanConfig(),
        mix=Mix(share={"i2t+t2i": 1}),
        optim=Optim(lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-5, no_decay=(), max_norm=0.0),
        schedule=Schedule(steps=300_000, warmup=2000),
        batching=Batching(rows=6400, samples=24, window=8192),
        precision="bf16",
        note="cfg/test_xyb.yml of BriVL-1.0 (55 M pairs, some 7 days of 128 A100); the optimizer's numbers and pairs a step are not public.",
    )
    grid = replace(
        base,
        config=WenLanConfig(image_size=456, boxes="grid"),
        note="cfg/eval.yml of the follow-up (Nature Communications 2022), 650 M pairs, a grid in place of a detector; as base in what is not public.",
    )
    held = (*ENDS, r"text\.words\.", r"text\.encoder\.layers\.(1?[0-9])\.")
    large = replace(
        base,
        config=WenLanConfig(**LARGE, trunk=SHAPES["b7"], embedding_size=2560, image_size=600, frozen=held),
        batching=Batching(rows=12_000, samples=24, window=8192),
        note="The paper's large model, EfficientNet-B7 and RoBERTa-large; its numbers are not in the code.",
    )
    top = {"embedding_size": 128, "top_layers": 1, "top_intermediate": 256, "top_dropout": 0.0, "queue_size": 64}
    seen = {"trunk": Shape(0.25, 0.4, stem=16, head=128, classes=8), "image_size": 96, "box_grid": 3, "reads": 2}
    said = TINY | {"hidden_size": 128, "intermediate_size": 256, "max_text": 64}
    numbers: dict[str, Any] = top | seen | said
    tiny = replace(
        base,
        config=WenLanConfig(**numbers, boxes="grid", padding="none", statistics="batch", frozen=(), colours=STILL),
        optim=Optim(lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, max_norm=5.0),
        schedule=Schedule(steps=1500, warmup=100, floor=0.02),
        batching=Batching(rows=3200, samples=32, window=2048),
        precision="fp32",
        note="Not a published recipe: all from scratch on small pictures and short texts, in minutes on a CPU.",
    )
    lite = replace(tiny.config, trunk=SHAPES["lite0"], image_size=224, statistics="stored", frozen=(r"image\.trunk\.",))
    light = replace(tiny, config=lite, note="Our own: as tiny above EfficientNet-Lite0 (--trunk light), which is kept.")
    return {"tiny": tiny, "light": light, "base": base, "grid": grid, "large": large}


class WenLan(System):
    """WenLan; see the module's docstring."""

    Config = WenLanConfig
    needs = ("text", "images")
    towers = True
    memory = ("image_queue.", "text_queue.")
    card = Card(
        name="wenlan",
        title="WenLan: Bridging Vision and Language by Large-Scale Multi-Modal Pre-Training",
        venue="arXiv 2021",
        paper="arXiv:2103.06561",
        code="github.com/BAAI-WuDao/BriVL bb8d95b, github.com/neilfei/brivl-nmi 6dcdc70",
        streams="dual",
        new="two towers without fusion, told apart by contrast with queues that momentum encoders fill",
        objectives=("i2t", "t2i"),
        tasks=("retrieval, by itself",),
        weights=("BriVL-1.0 and brivl-with-roberta-base .pth",),
        unverified=(
            "optimizer, rate, decay, steps and pairs a step",
            "whether batch norms went by stored or batch statistics in training; where colours were changed",
            "the large model; published scores",
        ),
    )

    def __init__(self, config: WenLanConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        if config.image_size <= 32:
            raise BadInput(f"image_size is {config.image_size}: the last map needs more than one cell a side")
        self.image, self.text = ImageTower(config), TextTower(config, vocab.pad)
        self.image_mom, self.text_mom = follower(self.image), follower(self.text)
        self.image_queue, self.text_queue = (Queue(config.embedding_size, config.queue_size) for _ in range(2))
        for name, value in self.named_parameters():
            held = any(re.match(pattern, name) for pattern in config.frozen)
            value.requires_grad_(not held and not name.startswith(("image.trunk.classifier.", "text.pooler.")))

    def train(self, mode: bool = True) -> WenLan:
        """Training mode; the trunk's norms stay with their stored statistics unless the config says otherwise."""
        super().train(mode)
        if self.config.statistics == "stored":
            self.image.trunk.eval()
            self.image_mom.trunk.eval()
        return self

    def fill_trunk(self, path: Path) -> None:
        """Both trunks start from weights in timm's names."""
        load_trunk(self.image.trunk, path)
        self.image_mom.trunk.load_state_dict(self.image.trunk.state_dict())

    # 1 -- inputs: [CLS] characters [SEP]; a stretched picture, its boxes, the whole of it -----------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Text rows, the picture's pixels, and boxes without features; a sample without picture is its text alone."""
        text, _ = bert_rows(self.vocab, sample.key, [(sample.texts[0], 0)], self.config.max_text - 2)
        example = Example(sample.key, text, sample=sample.key)
        for picture in sample.pictures[:1]:
            example.regions = self._regions(picture)
            example.images = (square_pixels(sample.key, picture, self.config.image_size, self.config.trunk.normal),)
        return example

    def _regions(self, picture: Picture) -> RegionRows:
        grid, cut = self.config.boxes == "grid", self.config.max_boxes
        return bare_rows([*(grid_boxes(self.config.box_grid) if grid else picture.boxes[:cut]), (0, 0, 1, 1)])

    # 2 -- two towers -----------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Either side alone or both; `pooled_text` and `pooled_visual` have length 1, `pooled` is both behind one another."""
        rows = vectors = shown = seen = None
        if batch.text is not None:
            rows, vectors = self.text(batch.text)
            vectors = F.normalize(vectors.float(), dim=-1)
        if batch.images is not None and batch.regions is not None:
            shown, seen = self.image(batch.images, batch.regions)
            seen = F.normalize(seen.float(), dim=-1)
        pooled = torch.cat([x for x in (vectors, seen) if x is not None], -1)
        packing = None if batch.regions is None else batch.regions.packing
        return Encoded(rows, shown, packing, pooled, vectors, seen)

    # 3 -- objectives -----------------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Nothing is hidden: the picture's colours are jittered. The label says that a pair's own key comes first."""
        c, example, picture = self.config, self.lay_out(sample), picture_of(sample, 0)
        example.images = (square_pixels(sample.key, picture, c.image_size, c.trunk.normal, c.colours.draw(rng)),)
        example.targets = {name: np.array(0) for name in goal.split("+")}
        return example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Picture to text and text to picture, which are added. In training the copies move before and the queues after."""
        if not batch.targets:
            return {}
        i2t, t2i, also, keys = self.contrasts(encoded, batch)
        if self.training:
            self.text_queue.put(self.gather(keys[0]))
            self.image_queue.put(self.gather(keys[1]))
        found = {"i2t": contrast.info_nce(i2t, also), "t2i": contrast.info_nce(t2i, also)}
        return {name: found[name] for name in batch.targets}

    def contrasts(self, encoded: Encoded, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, Tensor]]:
        """(B, 1 + K) logits of pictures and of texts, (B, K) further positives, and the keys (B, D) of texts and of pictures."""
        texts, images, regions = batch.text, batch.images, batch.regions
        said, seen = encoded.pooled_text, encoded.pooled_visual
        assert texts and images and regions and said is not None and seen is not None, "WenLan needs texts and pictures"
        c = self.config
        with torch.no_grad():
            if self.training:
                self.follow()
            key_text = F.normalize(self.text_mom(texts)[1].float(), dim=-1)
            key_image = F.normalize(self.image_mom(images, regions)[1].float(), dim=-1)
            # Copies, since the queues are overwritten before the backward pass.
            text_queue, image_queue = self.text_queue.keys.clone(), self.image_queue.keys.clone()
            also = contrast.agreed(key_text, text_queue, key_image, image_queue, c.topk) if c.multi_label else None
        i2t = contrast.logits(seen, key_text, text_queue, c.temperature)
        t2i = contrast.logits(said, key_image, image_queue, c.temperature)
        return i2t, t2i, also, (key_text, key_image)

    def follow(self) -> None:
        """The copies move towards the towers, parameters alone: the statistics of batch norms do not."""
        if self.config.statistics == "batch" and self.gather is not contrast.alone:
            raise BadInput("statistics=batch: batch norms of several processes differ; use one, or statistics=stored")
        follow(self.image, self.image_mom, self.config.momentum)
        follow(self.text, self.text_mom, self.config.momentum)

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) the product of both vectors over the temperature: of two candidates, the difference is their log odds."""
        assert encoded.pooled_text is not None and encoded.pooled_visual is not None
        scores: Tensor = (encoded.pooled_text * encoded.pooled_visual).sum(-1) / self.config.temperature
        return scores

    # 4 -- recipes ------------------------------------------------------------------------------------------------------

    recipes = _recipes()

    # 5 -- downstream: retrieval is what the towers do; the authors go on with the same loss -----------------------------

    heads = ("image_mom", "text_mom")
    finetune = MappingProxyType[str, Finetune]({})

    # 6 -- checkpoint: what is under "learnable" in the authors' file, whose queues were not published ---------------------

    sizes = brivl.SIZES
    keys = KeyMap(
        *(rule for side in ("image", "text") for end in ("", "_mom") for rule in brivl.tower(side, end)),
        *brivl.queue("image"),
        *brivl.queue("text"),
        optional=memory,
    )
