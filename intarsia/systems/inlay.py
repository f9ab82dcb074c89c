"""Inlay: fusion of pictures and language at the granularity of the token (this project).

New: one switch moves what ties a picture to its text from the pair to the word and the region, in contrast, masked modelling and matching; all heads are
built and run at any setting, so parameters and compute are equal.
Unusual: a word's target stands where slow copies of the towers align it. False captions are laid out behind the true one and do not see it. What is hidden
is decided on the device, because it follows the alignment: of no link are both sides hidden. With `visual_unit="image"` a whole picture is one token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Array, Batch, Encoded, Example, Pick, Regions, Sample, Text, TextRows
from intarsia.errors import BadInput
from intarsia.layout import bert_rows, link_rows, picture_of, picture_rows, region_rows
from intarsia.objectives import granular, mlm
from intarsia.packed import Packing, restarts, taken, unpad
from intarsia.parts.aligned import Aligned, AlignedNumbers, Fusion, Pool, Tower, WordWeights
from intarsia.parts.embeddings import initialise
from intarsia.parts.heads import TiedHead
from intarsia.parts.momentum import follow, follower
from intarsia.parts.numbers import TINY
from intarsia.recipe import Batching, Card, Mix, Optim, Recipe, Schedule
from intarsia.system import Finetune, System
from intarsia.text import Pieces, Vocab
from intarsia.weights import bert
from intarsia.weights.keymap import KeyMap

GOALS = ("a_sent", "a_tok", "mlm", "b_sent", "b_tok", "c_sent", "c_tok")
EVERY, WARM = "+".join(GOALS), "+".join(x for x in GOALS if not x.startswith("b_"))


@dataclass(frozen=True)
class InlayConfig(AlignedNumbers):
    """The numbers of `base`; the recipes replace some."""

    x_layers: int = 6
    """Layers over both."""
    max_pieces: int = 60
    """Longer texts are left out of training."""
    granularity: Literal["sentence", "token", "both"] = "both"
    """Where supervision stands: g = 0, 1 or 1/2 in all three objectives."""
    g_a: float | None = None
    """Share of the token in contrast, where it differs from `granularity`; 0 = sentence, 1 = token."""
    g_b: float | None = None
    """The same of masked modelling."""
    g_c: float | None = None
    """The same of matching."""
    visual_unit: Literal["region", "image"] = "region"
    """image = each picture of a sample is one token, the mean of its regions."""
    loss: granular.Loss = "softmax"
    """Of contrast."""
    temperature: float = 0.1
    """Of S_sent and of S_tok at the start; each then learns its own."""
    false_captions: int = 1
    """K of a pair."""
    named: int = 8
    """k, visual tokens that are asked for a hidden word."""
    linked: int = 8
    """Most visual tokens that a word is linked to and that are hidden with it."""
    momentum: float = 0.995
    """Of the slow towers."""
    read_out: Literal["trained", "sentence", "token", "fusion"] = "trained"
    """What matching goes by; trained = the contrastive scores as `granularity` weighs them."""

    @property
    def shares(self) -> tuple[float, float, float]:
        """G of contrast, masked modelling and matching."""
        g = {"sentence": 0.0, "token": 1.0, "both": 0.5}[self.granularity]
        a, b, c = (g if x is None else x for x in (self.g_a, self.g_b, self.g_c))
        return a, b, c


def _recipes() -> dict[str, Recipe[InlayConfig]]:
    """Sizes of our own; g of masked modelling counts after the first fifth."""
    base = Recipe(
        config=InlayConfig(),
        mix=Mix(share={WARM: 1e-9, EVERY: 1}, begin={EVERY: 0.2}),
        optim=Optim(lr=1e-4, betas=(0.9, 0.98), weight_decay=0.05, no_decay=("bias", "norm"), max_norm=1.0),
        schedule=Schedule(steps=200_000, warmup=4000),
        batching=Batching(rows=12_288, samples=128),
        precision="bf16",
        note="Not run: the size of the design, for regions of a detector on a GPU.",
    )
    numbers = TINY | {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024}
    small = replace(
        base,
        config=InlayConfig(**numbers, v_layers=3, x_layers=3, align_size=128, linked=2),
        optim=replace(base.optim, lr=5e-4, max_norm=5.0),
        schedule=Schedule(steps=3000, warmup=150, floor=0.02),
        batching=Batching(rows=8192, samples=64, window=2048),
        precision="fp32",
        note="Trained by studies.drawn, on drawn scenes, with its own batch and steps; these steps were not run.",
    )
    numbers |= {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 128}
    tiny = replace(
        small,
        config=InlayConfig(**numbers, v_layers=1, x_layers=1, align_size=64, linked=2),
        optim=replace(small.optim, lr=2e-3),
        schedule=Schedule(steps=1200, warmup=60, floor=0.02),
        note="The size `micro` of the studies: unit tests and learning curves.",
    )
    return {"tiny": tiny, "small": small, "base": base}


class Inlay(System):
    """Inlay at any size; see the module's docstring."""

    Config = InlayConfig
    needs = ("text", "regions")
    card = Card(
        name="inlay",
        title="Inlay: fusion at the granularity of the token",
        venue="this project",
        paper="docs/studies/granularity.md",
        code="this repository",
        streams="dual",
        new="one switch moves supervision from the pair to word and region, at equal parameters and compute",
        objectives=GOALS,
        tasks=("retrieval and grounding, by itself",),
        weights=(),
        unverified=("base was never trained",),
    )

    def __init__(self, config: InlayConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width = config.hidden_size
        self.stops = granular.stops(vocab.tokens)
        self.tower = Tower(config, self.stops)
        self.slow = follower(self.tower)
        self.fusion = Fusion(replace(config, num_hidden_layers=config.x_layers))
        self.pool_text, self.pool_visual = Pool(config), Pool(config)
        self.word_head = TiedHead(width, config.vocab_size, config.layer_norm_eps)
        self.picture_head = nn.Linear(width, config.align_size)
        self.support = nn.Linear(width, 1)
        for part in (self.fusion, self.pool_text, self.pool_visual, self.word_head, self.picture_head):
            initialise(part, config.initializer_range)
        self.log_scale = nn.Parameter(torch.full((2,), -np.log(config.temperature), dtype=torch.float32))
        self.bias = nn.Parameter(torch.full((2,), -10.0), requires_grad=config.loss == "sigmoid")
        self.word_weights = WordWeights(self.stops, config.word_weight)

    # 1 -- inputs: [CLS] words [SEP]; regions, or one row a picture ----------------------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Words, and visual tokens of the first picture; with `visual_unit="image"` every picture is one."""
        (text, pieces), width = self._said(sample, sample.texts[0]), self.config.feature_size
        if self.config.visual_unit == "region":
            rows = region_rows(sample.key, picture_of(sample, 0), width, 1)
        else:
            rows = picture_rows(sample, width, 1)
            sample = replace(sample, links=tuple(replace(x, region=x.picture, picture=0) for x in sample.links))
        return Example(sample.key, text, rows, link_rows(sample, pieces[0]), sample=sample.key)

    def _said(self, sample: Sample, text: str) -> tuple[TextRows, list[Pieces]]:
        return bert_rows(self.vocab, sample.key, [(text, 0)], self.config.max_pieces)

    # 2 -- streams: words and visual tokens apart, then both -----------------------------------------------------------------

    def encode(self, batch: Batch) -> Aligned:
        """All of it. A training batch lays false captions behind each true one; each is read with the picture, as a document of its own."""
        text, regions = batch.text, batch.regions
        assert text is not None and regions is not None, "Inlay needs text and regions"
        seen, visual = self.encode_visual(regions), regions.packing
        if batch.targets:
            parts = batch.labels("a_sent").shape[1]
            text = replace(text, packing=restarts(text.packing, text.position_ids == 0, parts))
            owner = torch.arange(len(batch.keys), device=seen.device).repeat_interleave(parts)
            rows, visual = taken(visual, owner, parts * visual.rows)
            seen = seen[rows]
        return self.cross(self.encode_text(text), text.packing, seen, visual)

    def encode_text(self, text: Text) -> Tensor:
        """(T, H + D + 2) as `Aligned.told`."""
        return self.tower.tell(text, self.word_weights)

    def encode_visual(self, regions: Regions) -> Tensor:
        """(R, H) visual tokens among themselves."""
        return self.tower.look(regions)

    def cross(
        self, words: Tensor, text: Packing, seen: Tensor, visual: Packing, read: dict[str, Tensor] | None = None
    ) -> Aligned:
        """Scores of both granularities and the layers over both; every row is given, whatever is read."""
        rows, slots = self.tower.split(words)[0], self.tower.vectors(seen)
        said, shown = self.fusion(rows, text, seen, visual)
        return Aligned(
            text=said,
            visual=shown,
            visual_packing=visual,
            pooled=said.index_select(0, text.first),
            pooled_text=self.pool_text(rows, text),
            pooled_visual=self.pool_visual(seen, visual),
            told=words,
            seen=seen,
            slots=slots,
            text_packing=text,
            token=self.tower.scores(words, text, slots, visual),
            support=self.support(said).squeeze(-1),
        )

    # 3 -- objectives ----------------------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Lays out false captions and draws which words are hidden and which shall be pictured; the rest is decided on the device.

        Half of the content words are hidden, at least one, and .15 of the others; the content words that stay shall be pictured.
        """
        if strange := set(goal.split("+")) - set(GOALS):
            raise BadInput(f"inlay has no objective {sorted(strange)[0]!r}; it has {', '.join(GOALS)}")
        example, count = self.lay_out(sample), self.config.false_captions
        text = example.text
        assert text is not None
        hidden, stays = granular.draw_words(text, self.stops, rng)
        false = [self._said(sample, sample.false_texts[i])[0] for i in rng.permutation(len(sample.false_texts))[:count]]
        targets: dict[str, Pick | Array] = {
            "a_sent": granular.told(sample.texts[0], len(false), count),
            "a_tok": Pick("text", np.arange(len(text)), text.ids),
            "mlm": Pick("text", hidden, text.ids[hidden]),
            "b_sent": rng.random(self.config.named),
            "b_tok": Pick("text", stays, text.ids[stays]),
            "c_sent": np.array(1),
            "c_tok": np.array(1),
        }
        example.targets = {name: targets[name] for name in goal.split("+")}
        example.text = granular.behind(text, false, count)
        return example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal; each granularity is computed whatever its share."""
        assert isinstance(encoded, Aligned) and batch.text is not None
        if not batch.targets:
            return {}
        true = batch.picks("a_tok").rows
        text = batch.text.take(true)
        if self.training:
            follow(self.tower, self.slow, self.config.momentum)
            self.word_weights.count(text)
        found = self._contrast(encoded, batch)
        if "mlm" in batch.targets:
            found |= self._masked(batch, text, true)
        if "c_tok" in batch.targets:
            found |= self._matching(encoded, batch, text.packing, true)
        return {goal: found[goal] for goal in batch.targets}

    def weigh(self, losses: dict[str, Tensor], mix: Mix) -> Tensor:
        """Sentence and token share each objective as `granularity` says; a share of 0 leaves a gradient of exactly 0."""
        shares = zip("abc", self.config.shares, strict=True)
        share = {f"{name}_{unit}": x for name, g in shares for unit, x in (("tok", g), ("sent", 1 - g))}
        total: Tensor = mix.weigh({name: share.get(name, 1.0) * loss for name, loss in losses.items()})
        return total

    def _contrast(self, encoded: Aligned, batch: Batch) -> dict[str, Tensor]:
        """A: S_sent and S_tok of all pairs of the batch, and of each picture with its false captions."""
        labels = batch.labels("a_sent")
        parts = labels.shape[1]
        known, same = labels[:, 1:] > 0, labels[:, :1] == labels[:, 0]
        pairs = encoded.pooled_text[::parts] @ encoded.pooled_visual[::parts].T
        text, slots, visual = encoded.text_packing, encoded.slots, encoded.visual_packing
        tokens = self.tower.all_scores(encoded.told, text, slots, visual, every=parts)
        scale = self.log_scale.clamp(max=np.log(100.0)).exp()

        def loss(square: Tensor, own: Tensor, i: int) -> Tensor:
            false = own.view(-1, parts)[:, 1:]
            return granular.contrast(square, false, known, same, scale[i], self.bias[i], self.config.loss)

        return {"a_sent": loss(pairs, encoded.sentence, 0), "a_tok": loss(tokens, encoded.token, 1)}

    def _masked(self, batch: Batch, text: Text, true: Tensor) -> dict[str, Tensor]:
        """B: words in their own place; words on the tokens they are aligned to, tokens on words; and both at addresses that know no alignment."""
        regions, packing = batch.regions, text.packing
        assert regions is not None
        picks, linked, table = batch.picks("mlm"), "b_tok" in batch.targets, self.tower.words.word.weight
        masked = torch.searchsorted(true, picks.rows)
        stays = torch.searchsorted(true, batch.picks("b_tok").rows) if linked else masked[:0]
        links = self._links(text, regions, masked, stays)
        seen = self.encode_visual(replace(regions, masked=regions.masked | unpad(links.hidden, regions.packing)))
        words, _ = self.tower.read(replace(text, ids=text.ids.index_fill(0, masked, self.vocab.mask)))
        said, showing = self.fusion(words, packing, seen, regions.packing)
        found = {"mlm": mlm.score(self.word_head(said[masked], table), picks.labels)}
        if not linked:
            return found
        first = text.words[masked] != text.words[masked - 1]  # of a word's pieces; [CLS] is never hidden
        ids, draws = batch.picks("b_tok").labels, batch.labels("b_sent")
        for name, x in granular.addresses(links, packing, regions.packing, masked, first, stays, ids, draws).items():
            predicted = F.normalize(self.picture_head(said[x.rows]).float(), dim=-1)
            found[f"b_{name}"] = granular.name_words(self.word_head(showing[x.slots], table), picks.labels, x.shares)
            found[f"b_{name}"] += granular.picture_words(predicted, x.wanted, x.kinds, links.whole)
        return found

    @torch.no_grad()
    def _links(self, text: Text, regions: Regions, masked: Tensor, stays: Tensor) -> granular.Links:
        """What the slow towers say words are aligned to, before anything is hidden."""
        seen, vectors = self.slow.vectors(self.slow.look(regions)), self.slow.read(text)[1]
        alpha, slots = self.slow.alphas(vectors, text.packing, seen, regions.packing)
        counts = self.word_weights.content[text.ids[masked]] > 0
        return granular.link(alpha, slots, text.packing, masked, stays, counts, self.config.named, self.config.linked)

    def _matching(self, encoded: Aligned, batch: Batch, text: Packing, true: Tensor) -> dict[str, Tensor]:
        """C: true and false captions with their picture, and true ones with the picture of the next pair."""
        assert batch.text is not None
        cut, shown, labels, ids = encoded.text_packing, encoded.visual_packing, batch.labels("a_sent"), batch.text.ids
        following = torch.arange(text.documents, device=true.device).roll(-1)
        index, visual = taken(shown, following * labels.shape[1], shown.rows // labels.shape[1])
        said, _ = self.fusion(self.tower.split(encoded.told)[0][true], text, encoded.seen[index], visual)
        strange, content = self.support(said).squeeze(-1), self.word_weights.content[ids] > 0
        return granular.matching(encoded.support, strange, ids, content, labels, cut, true, text)

    # 4 -- read-outs -----------------------------------------------------------------------------------------------------------

    def scores(self, encoded: Encoded) -> dict[str, Tensor]:
        """(B) each: S_sent and S_tok, times their scales; log odds of matching by [CLS] and by the words."""
        assert isinstance(encoded, Aligned)
        scale, text = self.log_scale.exp(), encoded.text_packing
        return {
            "sentence": encoded.sentence * scale[0],
            "token": encoded.token * scale[1],
            "cls": encoded.support[text.first].float(),
            "words": granular.log_odds(granular.all_supported(encoded.support, encoded.told[:, -1] > 0, text)),
        }

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) by the configured read-out."""
        found, (a, _, c) = self.scores(encoded), self.config.shares
        found["trained"] = (1 - a) * found["sentence"] + a * found["token"]
        found["fusion"] = (1 - c) * found["cls"] + c * found["words"]
        return found[self.config.read_out]

    def alignments(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Softmax alignment, (B, Lt, Lr): a row sums to what does not lie on the null."""
        assert isinstance(encoded, Aligned) and batch.text is not None and batch.regions is not None
        vectors, text = self.tower.split(encoded.told)[1], batch.text.packing
        return {"alignment": self.tower.alphas(vectors, text, encoded.slots, batch.regions.packing)[0][..., 1:]}

    # 5 -- recipes and checkpoint ----------------------------------------------------------------------------------------------

    recipes = _recipes()
    finetune: ClassVar[Mapping[str, Finetune]] = {}
    heads = ()
    word_table = "tower.words.word.weight"
    sizes = bert.SIZES
    depths: ClassVar[Mapping[str, str]] = {"num_hidden_layers": "tower.text.layers."}
    keys = KeyMap(("", ""))  # our own names
