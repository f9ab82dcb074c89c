"""FashionBERT: Text and Image Matching with Adaptive Loss for Cross-modal Retrieval (Gao et al., SIGIR 2020).

New: pictures of products are read as patches, an 8 x 8 grid in reading order, with no detector; the three losses are weighed by what they are.
Unusual: text and patches are normalised apart; patches have a type and a position from tables of their own; the projection of a patch has no bias. Exactly
five patches are hidden. Words and patches are hidden and asked for in broken pairs as in true ones. A gradient flows through the adaptive weights. In the
authors' repository the model is called ImageBert; it has nothing to do with the paper of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Regions, Sample
from intarsia.layout import bert_rows, cells, link_rows, region_rows
from intarsia.objectives import itm, mlm, mrm
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder, gelu_tanh
from intarsia.parts.heads import Pooler, TiedHead
from intarsia.parts.numbers import TINY, BertNumbers
from intarsia.parts.stream import encode_joined
from intarsia.recipe import TINY_RUN, Batching, Card, Mix, Optim, Recipe, Schedule
from intarsia.system import Finetune, System, Tuning
from intarsia.tasks.category import Category
from intarsia.tasks.retrieval import RetrievalTwoWay
from intarsia.text import Vocab
from intarsia.weights import bert, tf
from intarsia.weights.keymap import KeyMap, Move


@dataclass(frozen=True)
class FashionBERTConfig(BertNumbers):
    """The numbers of the released model, by its names where they are ours too."""

    feature_size: int = 2048
    """Numbers of a patch feature (`patch_feature_size`)."""
    max_patch_position_embeddings: int = 64
    """Cells of the grid, row by row; a patch's position is the cell that its centre lies in."""
    patch_type_vocab_size: int = 2
    """Rows of the table of patch types, of which the second alone is used."""
    max_pieces: int = 62
    """Longer texts are left out: 64 text rows less [CLS] and [SEP]."""
    mlm_rate: float = 0.15
    max_hidden_pieces: int = 10
    """Hidden pieces of a text at most (`masked_text_token_num`)."""
    hidden_patches: int = 5
    """Hidden patches of a picture (`masked_image_token_num`), of small grids at most half."""
    tia_rate: float = 0.5
    """Share of broken pairs. Not known."""
    category_draws: int = 8
    """Pictures drawn until one has the category, the first tag, of the text's own; the last one is taken else."""
    adaptive_alpha: float = 1.0
    """Of the adaptive weights; 0 = the losses are weighed as the mix says."""
    detach_weights: bool = False
    """True = no gradient through the adaptive weights, unlike the authors' code."""


class PatchEmbeddings(nn.Module):
    """Projected features, a type and a position, summed and normalised. Source: sec. 3.1; EasyTransfer, layers/embedding.py."""

    def __init__(self, config: FashionBERTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.feature = nn.Linear(config.feature_size, width, bias=False)
        self.position = nn.Embedding(config.max_patch_position_embeddings, width)
        self.kind = nn.Embedding(config.patch_type_vocab_size, width)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, patches: Regions) -> Tensor:
        """Embeds packed patches: (R, H). The feature of a hidden one is 0, its type and position stay."""
        seen = self.feature(self.dropout(patches.feats.to(self.feature.weight.dtype)))
        summed = seen + self.kind(patches.segment_ids) + self.position(patches.position_ids)
        return self.dropout(self.norm(summed))  # type: ignore[no-any-return]


def adaptive_weights(losses: Tensor, alpha: float = 1.0) -> Tensor:
    """(K) weights of (K) losses, which sum to 1; a larger loss weighs more, within narrow bounds. Source: sec. 3.3, as the code has it.

    With g = softmax(losses) ** 2 a weight is 1 / (alpha * K - g), over their sum.
    """
    shares = 1 / (alpha * len(losses) - losses.softmax(0) ** 2)
    return shares / shares.sum()


def _recipes() -> dict[str, Recipe[FashionBERTConfig]]:
    """The released command, the authors' small size, and a tiny run."""
    base = Recipe(
        config=FashionBERTConfig(),
        mix=Mix(share={"mlm+mpm+tia": 1}),
        optim=_adam(1e-4),
        schedule=Schedule(steps=54_198, warmup=5420, shape="product"),
        batching=Batching(rows=8192, window=8192),
        note="FashionGen, 260 k pairs; the released weights are of step 54,198; batch, share of broken pairs and length of the whole run are not known.",
    )
    small = replace(
        base,
        config=FashionBERTConfig(hidden_size=128, num_hidden_layers=6, num_attention_heads=2, intermediate_size=512),
        note="The size of icbu-imagebert-small-en, trained as base; its feed-forward width is not known.",
    )
    tiny = replace(
        base,
        config=FashionBERTConfig(**TINY, mlm_rate=0.25, hidden_patches=1),
        mix=Mix(share={"mlm+mpm": 1, "mlm+mpm+tia": 2}, begin={"mlm+mpm+tia": 0.3}),
        **TINY_RUN,
        note="Not a published recipe: learns generated scenes from scratch in minutes on two CPU cores. One patch is hidden; regions that are no grid stand at their cells.",
    )
    return {"tiny": tiny, "base": base, "small": small}


def _adam(lr: float) -> Optim:
    """TensorFlow's Adam; with a decay above 0 the authors' code is AdamW with a second beta of .999."""
    names = ("bias", "norm")
    return Optim(lr, (0.9, 0.98), 1e-6, 0.0, no_decay=names, max_norm=1.0, corrected_decay=True)


ROOT = "image_bert_pre_trained_model/"


def _finetune() -> dict[str, Finetune]:
    """Retrieval goes on from the head of pre-training, which the paper itself ranks by, without tuning; recognition is Kaleido-BERT's, as it tells FashionBERT."""
    tuning = Tuning(
        _adam(1e-4),
        Schedule(steps=54_198, warmup=5420, shape="product"),
        Batching(rows=8192),
        note="not in the paper: the numbers of pre-training",
    )
    output = ROOT + "cls/seq_relationship/output_"
    first = {"1.weight": ("match_head.weight", None), "1.bias": ("match_head.bias", None)}
    keys = KeyMap(Move(output + "weights", "head.1.weight"), Move(output + "bias", "head.1.bias"))
    sizes, fresh = {"base": tuning, "small": tuning}, KeyMap()
    return {
        "retrieval_fashion": Finetune(RetrievalTwoWay(broken_by=("P", "T")), sizes, keys, head_from=first),
        "retrieval": Finetune(RetrievalTwoWay(), sizes, keys, head_from=first),
        "category": Finetune(Category(), sizes, fresh),
        "sub_category": Finetune(Category(answers=121), sizes, fresh),
    }


class FashionBERT(System):
    """FashionBERT; see the module's docstring."""

    Config = FashionBERTConfig
    needs = ("text", "regions")
    card = Card(
        name="fashionbert",
        title="FashionBERT: Text and Image Matching with Adaptive Loss for Cross-modal Retrieval",
        venue="SIGIR 2020",
        paper="arXiv:2005.09801",
        code="github.com/alibaba/EasyTransfer d6912e2",
        streams="single",
        new="patches of a grid instead of detected regions; losses weighed by what they are",
        objectives=("mlm", "mpm", "tia"),
        tasks=("retrieval_fashion", "retrieval", "category", "sub_category"),
        weights=("TensorFlow 1 checkpoints (.index and .data), read without TensorFlow",),
        unverified=(
            "batch and length of pre-training",
            "share of broken pairs",
            "10 % of patches in the paper, 5 of 64 in the released data",
            "feed-forward width of the small size",
            "CNN of the paper's own features (the released ones are ResNet-50's)",
            "scores of the paper",
        ),
    )

    def __init__(self, config: FashionBERTConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width = config.hidden_size
        self.words = Words(config)
        self.patches = PatchEmbeddings(config)
        self.encoder = Encoder(config, gelu_tanh)
        self.pooler = Pooler(width)
        self.word_head = TiedHead(width, config.vocab_size, config.layer_norm_eps, gelu_tanh)
        self.patch_head = nn.Linear(width, config.feature_size, bias=False)
        self.match_head = nn.Linear(width, 2)
        initialise(self, config.initializer_range)

    # 1 -- inputs: [CLS] words [SEP], then the patches, row by row ------------------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """[CLS] words [SEP] in segment 0; patches of type 1 at the cells of their centres."""
        text, pieces = bert_rows(self.vocab, sample.key, [(sample.texts[0], 0)], self.config.max_pieces)
        patches = region_rows(sample.key, sample.pictures[0], self.config.feature_size, 1)
        patches.position_ids = cells(patches.boxes, self.config.max_patch_position_embeddings)
        links = link_rows(sample, pieces[0])
        return Example(key=sample.key, text=text, regions=patches, links=links, sample=sample.key)

    # 2 -- stream: one encoder over words and patches -------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds, joins and encodes; pools the output of [CLS]."""
        text, patches = batch.text, batch.regions
        assert text is not None and patches is not None, "FashionBERT needs text and patches"
        words, seen = self.words(text), self.patches(patches)
        return encode_joined(self.encoder, self.pooler, words, text.packing, seen, patches.packing, self.read(batch))

    # 3 -- objectives ---------------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Whole words and patches, in broken pairs too: the text of one product with the picture of another of its category (sec. 3.2)."""
        config, goals, label = self.config, goal.split("+"), 1
        if "tia" in goals:
            sample, label = itm.swap(sample, rng, lambda: self._of_category(sample, draw), config.tia_rate)
        example = self.lay_out(sample)
        if "mlm" in goals:
            mlm.hide_some_words(example, self.vocab, rng, config.mlm_rate, config.max_hidden_pieces)
        if "mpm" in goals:
            mrm.hide_count(example, rng, "mpm", config.hidden_patches)
        if "tia" in goals:
            example.targets["tia"] = np.array(label)
        return example

    def _of_category(self, sample: Sample, draw: Callable[[], Sample]) -> Sample:
        other = draw()
        for _ in range(self.config.category_draws - 1):
            if other.tags[:1] == sample.tags[:1]:
                break
            other = draw()
        return other

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal; see `weigh`."""
        found: dict[str, Tensor] = {}
        if "mlm" in batch.targets:
            picks = batch.picks("mlm")
            found["mlm"] = mlm.score_tf(self.word_logits(encoded, picks.rows), picks.labels)
        if "tia" in batch.targets:
            found["tia"] = itm.score(self.match_logits(encoded), batch.labels("tia"))
        if "mpm" in batch.targets:
            picks = batch.picks("mpm")
            found["mpm"] = mrm.feature_divergence(self.patch_logits(encoded, picks.rows), picks.labels)
        return found

    def weigh(self, losses: dict[str, Tensor], mix: Mix) -> Tensor:
        """The losses times their adaptive weights, summed; what the mix scales is scaled before (sec. 3.3)."""
        if not self.config.adaptive_alpha:
            return super().weigh(losses, mix)
        scaled = torch.stack([mix.scale.get(name, 1.0) * loss for name, loss in losses.items()])
        weights = adaptive_weights(scaled, self.config.adaptive_alpha)
        return ((weights.detach() if self.config.detach_weights else weights) * scaled).sum()

    def patch_logits(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, F) of patches: the softmax is compared with that of the feature."""
        assert encoded.visual is not None
        return self.patch_head(encoded.visual.index_select(0, rows))  # type: ignore[no-any-return]

    def match_logits(self, encoded: Encoded) -> Tensor:
        """(B, 2) logits: broken, true. The authors rank by the second alone."""
        return self.match_head(encoded.pooled)  # type: ignore[no-any-return]

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) log odds that text and picture belong together."""
        return itm.log_odds(self.match_logits(encoded))

    # 4 -- recipes ------------------------------------------------------------------------------------------------------

    recipes = _recipes()

    # 5 -- downstream ---------------------------------------------------------------------------------------------------

    picked_goals = ("mlm", "mpm", "tia")
    heads = ("word_head", "patch_head", "match_head")
    finetune = _finetune()

    # 6 -- checkpoint: TensorFlow's variable names; files of the authors' other tools have them without the first word -----

    sizes = bert.SIZES | {
        "feature_size": ("patches.feature.weight", 1),
        "max_patch_position_embeddings": ("patches.position.weight", 0),
        "patch_type_vocab_size": ("patches.kind.weight", 0),
    }
    layouts = {  # noqa: RUF012
        "bare": KeyMap(
            *tf.body(),
            Move("bert/image_embeddings/image_projector", "patches.feature.weight", turned=True),
            Move("bert/image_embeddings/patch_position_embeddings", "patches.position.weight"),
            Move("bert/image_embeddings/patch_type_embeddings", "patches.kind.weight"),
            *tf.norm("bert/image_embeddings/ImageEmbLayerNorm/", "patches.norm."),
            *tf.word_head(),
            Move("cls/img_predictions/output_weights", "patch_head.weight", turned=True),
            Move("cls/seq_relationship/output_weights", "match_head.weight"),
            Move("cls/seq_relationship/output_bias", "match_head.bias"),
            optional=("word_head.", "patch_head.", "match_head."),
        )
    }
    keys = layouts["bare"].behind(ROOT)
