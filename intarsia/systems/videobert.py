"""VideoBERT: A Joint Model for Video and Language Representation Learning (Sun et al., ICCV 2019).

New: clips of a video become words, by hierarchical k-means of their features, and BERT reads what is said and what is shown as one text. Three regimes: what is
said alone, what is shown alone, both. Unusual: one softmax over words and visual words. The rows of visual words are the centroids themselves, and stay. Speech is
not aligned exactly: sentences are joined at random and clips left out at random. The authors published neither code nor weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Array, Batch, Clips, Encoded, Example, Pick, Sample, TextRows
from intarsia.errors import BadInput
from intarsia.features.kmeans import Codebook
from intarsia.layout import bare_text, clip_rows
from intarsia.objectives import caption, itm, mlm, mvm
from intarsia.parts.captioner import Captioner, CaptionNumbers, mean_of, writer
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder
from intarsia.parts.heads import FirstRow, TiedHead
from intarsia.parts.numbers import LARGE, TINY, BertNumbers
from intarsia.parts.stream import encode_joined
from intarsia.recipe import TINY_RUN, Batching, Card, Mix, Recipe, Schedule, adam
from intarsia.system import Captioning, Finetune, System
from intarsia.text import Vocab
from intarsia.weights import bert
from intarsia.weights.bert import FromBert
from intarsia.weights.keymap import KeyMap

BETWEEN = "[>]"
"""Stands between what is said and what is shown."""
TEMPLATE = ("now", "let", "me", "show", "you", "how", "to", None, "the", None, ".")
"""The sentence whose gaps (None) name what is done, and to what. Source: sec. 4.4."""
SLOTS = ("now", "let", "'", "s", None, "the", None, "to", "the", None, ",", "and", "then", None, "the", None, ".")
"""The sentence whose gaps the captioner reads. Source: sec. 4.6."""


@dataclass(frozen=True)
class VideoBERTConfig(BertNumbers):
    """The words of 12 ** 4 clusters; the encoder's fields are BERT-base's, which the recipes replace."""

    clusters: int = 20_736
    """Visual words."""
    feature_size: int = 1024
    """Numbers of a clip's feature, and so of a centroid."""
    max_pieces: int = 100
    """Pieces of text; longer ones are cut."""
    max_clips: int = 64
    """Clips; later ones are cut."""
    silent: int = 16
    """Clips of a segment where nothing is said."""
    mlm_rate: float = 0.15
    mvm_rate: float = 0.15
    join_rate: float = 0.5
    """How often two neighbouring sentences of a joint document are joined."""
    most_skip: int = 5
    """Of the clips of a joint document every first, second, .. up to this one is kept, from a random one of them on; one at least."""
    joint_cloze: bool = True
    """Words and clips are hidden in joint documents too."""
    cloze_on_broken: bool = False
    """They are asked for in documents that do not belong together; they are hidden in any case."""
    broken_rate: float = 0.5
    near_rate: float = 1.0
    """Of documents that do not belong together, how many have another sentence of the same passage, if it has one."""
    softmax: Literal["joint", "own"] = "joint"
    """Over all words, or over those of the kind that is asked for."""
    freeze: Literal["none", "text", "visual", "both"] = "visual"
    """Which rows of the table of words do not train."""
    captioner: CaptionNumbers = field(default_factory=CaptionNumbers)
    """What writes captions of its features; all else is then frozen."""


def _recipes() -> dict[str, Recipe[VideoBERTConfig]]:
    """The paper's run as far as it is known, and a tiny one."""
    large = Recipe(
        config=VideoBERTConfig(**LARGE),
        mix=Mix(share={"mlm": 1, "mvm": 1, "align+mlm_joint+mvm_joint": 1}),
        optim=adam(1e-5),
        schedule=Schedule(steps=500_000, warmup=0),
        batching=Batching(rows=16_384, samples=128, window=8192),
        precision="bf16",
        note="312 K cooking videos; batch 128, 0.5 M steps, Adam, rate 1e-5 falling to 0. The paper starts from BERT-large (--start).",
    )
    small = replace(VideoBERTConfig(**TINY), max_position_embeddings=160)
    small = replace(small, clusters=64, feature_size=64, max_clips=32, most_skip=1)
    tiny = replace(
        large,
        config=replace(small, mlm_rate=0.25, mvm_rate=0.25, near_rate=0.5),
        **TINY_RUN,
        note="Not a published recipe: learns generated films from scratch in minutes on two CPU cores. Their sentences last too few clips to leave some out.",
    )
    base = replace(large, config=VideoBERTConfig(), note="Not a published size: BERT-base, trained as the large one.")
    return {"tiny": tiny, "base": base, "large": large, "caption": writer(large)}


class VideoBERT(System):
    """VideoBERT; see the module's docstring."""

    Config = VideoBERTConfig
    needs = ("text", "clips")
    specials = (BETWEEN,)
    reads_text_alone = True
    card = Card(
        name="videobert",
        title="VideoBERT: A Joint Model for Video and Language Representation Learning",
        venue="ICCV 2019",
        paper="arXiv:1904.01766",
        code="none published; unofficial ammesatyajit/VideoBERT 9e17940 was read as a warning",
        streams="single",
        new="clips as words; one BERT over what is said and what is shown",
        objectives=("mlm", "mvm", "align", "mlm_joint", "mvm_joint", "caption"),
        tasks=("zero-shot verbs and objects", "text to clips", "caption"),
        weights=(),
        unverified=(
            "weights of the regimes; rate of masking; lengths; segments; negatives; whether joint documents are masked",
            "what is frozen of the table of words; chance of joined sentences; warm-up and decay; the captioner; published scores",
        ),
    )

    def __init__(self, config: VideoBERTConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width = config.hidden_size
        self.words = Words(config)
        self.clip_words = nn.Embedding(config.clusters, config.feature_size)
        self.project = nn.Linear(config.feature_size, width) if config.feature_size != width else nn.Identity()
        self.encoder = Encoder(config)
        self.first = FirstRow()
        self.word_head = TiedHead(width, config.vocab_size + config.clusters, config.layer_norm_eps)
        self.align_head = nn.Linear(width, 2)
        initialise(self, config.initializer_range)
        self.words.word.weight.requires_grad_(config.freeze not in ("text", "both"))
        self.clip_words.weight.requires_grad_(config.freeze not in ("visual", "both"))
        self.captioner = None
        if config.captioner.layers:
            self.requires_grad_(False)
            seen = 2 * width + config.captioner.beside(config.feature_size)
            self.captioner = Captioner(config.captioner, seen, config.vocab_size)

    def fill_words(self, book: Codebook) -> None:
        """Visual words begin as the centroids of a codebook; where these are projected, less their mean, which says nothing and may be large."""
        if book.leaves.shape != self.clip_words.weight.shape:
            raise BadInput(
                f"the codebook has {tuple(book.leaves.shape)} centroids, the config asks for {tuple(self.clip_words.weight.shape)}"
            )
        with torch.no_grad():
            self.clip_words.weight.copy_(book.leaves)
            if isinstance(self.project, nn.Linear):
                self.project.bias.copy_(-self.project.weight @ book.leaves[book.alive].mean(0))

    # 1 -- inputs: [CLS] words [>] clips [SEP] --------------------------------------------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """All that is said and all that is shown, as far as they fit; either may be missing."""
        return self._document(sample, " ".join(sample.texts), np.arange(len(sample.film.seconds) if sample.film else 0))

    def _document(self, sample: Sample, said: str, shown: Array) -> Example:
        pieces = bare_text(self.vocab, sample.key, said, self.config.max_pieces) if said else None
        return self._around(sample, pieces, shown)

    def _around(self, sample: Sample, said: TextRows | None, shown: Array) -> Example:
        """[CLS], [>] where there are both, and [SEP] around pieces and clips; positions run on from the ones to the others."""
        vocab, shown = self.vocab, shown[: self.config.max_clips]
        pieces = np.zeros(0, np.int64) if said is None else said.ids
        words = np.zeros(0, np.int64) if said is None else said.words
        between = [vocab.index[BETWEEN]] if len(pieces) and len(shown) else []
        ids = np.concatenate([[vocab.cls], pieces, between, [vocab.sep]]).astype(np.int64)
        begin = len(ids) - 1
        places = np.append(np.arange(begin), begin + len(shown))
        segments = np.append(np.zeros(begin, np.int64), int(len(shown) > 0))
        alone = np.concatenate([[-1], words, [-1] * len(between), [-1]]).astype(np.int64)
        text = TextRows(ids, segments, places, alone, cut=0 if said is None else said.cut)
        config = self.config
        clips = clip_rows(sample, shown, config.clusters, config.captioner.beside(config.feature_size))
        clips.segment_ids, clips.position_ids = np.ones(len(shown), np.int64), begin + np.arange(len(shown))
        return Example(sample.key, text, clips=clips, sample=sample.key)

    def ask(self, sample: Sample, sentence: Sequence[str | None] = TEMPLATE) -> tuple[Example, Array]:
        """A sentence, None for a gap, above the sample's clips, for naming what they show. Returns: the document, and the text row of each gap."""
        ids = np.array([self.vocab.mask if x is None else self.vocab.index.get(x, self.vocab.unk) for x in sentence])
        rows = TextRows(ids, np.zeros(len(ids), np.int64), np.arange(len(ids)), np.arange(len(ids)))
        shown = np.arange(len(sample.film.seconds) if sample.film else 0)
        return self._around(sample, rows, shown), 1 + np.flatnonzero([x is None for x in sentence])

    def lay_out_next(self, sample: Sample, said: Sequence[int]) -> tuple[Example, int]:
        """The sentence whose gaps the captioner reads, the clips, and what was said."""
        return caption.lay_out(self.ask(sample, SLOTS)[0], self.vocab, said)

    # 2 -- stream: one encoder over both --------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds, joins and encodes; what is pooled is the output of [CLS] as it is."""
        text, clips = batch.text, batch.clips
        assert text is not None and clips is not None, "VideoBERT needs text and clips"
        if text.packing.level is not None:
            assert self.captioner is not None, "the config has a captioner of no layer"
            return self.captioner.write(batch, self.encode, self._gaps)
        read = self.read(batch)
        read = None if read is None else {"text": read["text"], "regions": read["clips"]}
        return encode_joined(
            self.encoder, self.first, self.words(text), text.packing, self._seen(clips), clips.packing, read
        )

    def _gaps(self, encoded: Encoded, read: Batch) -> Tensor:
        """(V, H) the mean output of the gaps, which the captioner reads beside each clip's own (sec. 4.6)."""
        text, clips = read.text, read.clips
        assert text is not None and clips is not None
        return mean_of(encoded.text, text.packing, text.ids == self.vocab.mask)[clips.packing.doc]

    def _seen(self, clips: Clips) -> Tensor:
        """(V, H) visual words, or [MASK], with position and segment."""
        words = self.words
        shown = self.project(self.clip_words(clips.ids.clamp(min=0)))
        shown = torch.where(clips.masked[:, None], words.word.weight[self.vocab.mask], shown)
        return words.dropout(  # type: ignore[no-any-return]
            words.norm(shown + words.position(clips.position_ids) + words.segment(clips.segment_ids))
        )

    # 3 -- objectives ---------------------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """A segment: what is said, what is shown, or both. What a sample lacks is not asked for. Captions are of all that is shown."""
        config, goals = self.config, goal.split("+")
        if goal == "caption":
            read, said = self.ask(sample, SLOTS)[0], " ".join(sample.texts)
            return caption.hide(read, self.vocab, said, config.captioner.max_pieces)
        rate = config.join_rate if "align" in goals else 0.0
        segment = partial(mvm.segment, rng=rng, join_rate=rate, silent=config.silent)
        said, shown = segment(sample)
        if "mlm" in goals:
            return self._cloze(self._document(sample, said, shown[:0]), rng, "mlm", "", True, True)
        if "mvm" in goals:
            return self._cloze(self._document(sample, "", shown), rng, "", "mvm", True, True)
        known, label = bool(said) and len(shown) > 0, 1
        if known and rng.random() < config.broken_rate:
            said, label = mvm.said_elsewhere(sample, said, rng, config.near_rate, lambda: segment(draw())[0]), 0
        step = int(rng.integers(1, config.most_skip + 1))
        first = int(rng.integers(max(1, min(step, len(shown)))))
        example = self._document(sample, said, shown[first::step])
        told = config.joint_cloze and (bool(label) or config.cloze_on_broken)
        self._cloze(example, rng, "mlm_joint", "mvm_joint", told, config.joint_cloze)
        example.targets["align"] = np.array(label if known else -1)
        example.targets = {name: example.targets[name] for name in goals}
        return example

    def _cloze(
        self, example: Example, rng: np.random.Generator, words: str, clips: str, told: bool, hide: bool
    ) -> Example:
        """Hides words and clips as BERT does, under the goals named; what is not told is hidden and not asked for."""
        text, config, none = example.text, self.config, np.zeros(0, np.int64)
        assert text is not None
        if words and hide and (text.words >= 0).any():
            mlm.hide(example, self.vocab, rng, config.mlm_rate, goal=words)
        if clips and hide:
            mvm.hide(example, rng, config.mvm_rate, config.clusters, clips)
        for goal, stream in ((words, "text"), (clips, "clips")):
            if goal and not (told and goal in example.targets):
                example.targets[goal] = Pick(stream, none, none)
        return example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal, which are added."""
        found: dict[str, Tensor] = {}
        tables = self._tables() if any(goal.startswith("m") for goal in batch.targets) else []
        for goal in batch.targets:
            if goal == "align":
                found[goal] = itm.score_known(self.align_head(encoded.pooled), batch.labels(goal))
                continue
            picks = batch.picks(goal)
            if goal == "caption":
                found[goal] = mlm.score(self.word_logits(encoded, picks.rows), picks.labels)
                continue
            visual = goal.startswith("mvm")
            rows = encoded.visual if visual else encoded.text
            assert rows is not None
            logits = self._logits(rows.index_select(0, picks.rows), visual, tables)
            first = self.config.vocab_size if visual and self.config.softmax == "joint" else 0
            found[goal] = mlm.score(logits, picks.labels + first)
        return found

    def _tables(self) -> list[Tensor]:
        """(vocab_size, H) of words and (clusters, H) of visual words; one behind the other where one softmax is over both."""
        tables = [self.words.word.weight, self.project(self.clip_words.weight)]
        return [torch.cat(tables)] if self.config.softmax == "joint" else tables

    def _logits(self, rows: Tensor, visual: bool, tables: Sequence[Tensor]) -> Tensor:
        """(M, words) of the joint vocabulary, or (M, ..) of the kind that is asked for."""
        rows, bias = self.word_head.transform(rows), self.word_head.bias
        if len(tables) == 1:
            return F.linear(rows, tables[0], bias)
        return F.linear(rows, tables[visual], bias.tensor_split([self.config.vocab_size])[visual])

    def word_logits(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, vocab_size) of words of the text alone; of a captioner's rows, of the piece that follows."""
        assert encoded.text is not None
        text = encoded.text.index_select(0, rows)
        if self.captioner is not None:
            return self.captioner.logits(text)
        return self._logits(text, False, self._tables())[:, : self.config.vocab_size]

    def clip_logits(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, clusters) of visual words, for hidden clips."""
        assert encoded.visual is not None
        return self._logits(encoded.visual.index_select(0, rows), True, self._tables())[:, -self.config.clusters :]

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) log odds that what is said and what is shown belong together."""
        return itm.log_odds(self.align_head(encoded.pooled))

    # 4 -- recipes ------------------------------------------------------------------------------------------------------------

    recipes = _recipes()
    from_bert = FromBert()

    # 5 -- downstream: zero-shot, by `ask`; the features of its layers go to a captioner ----------------------------------------

    picked_goals = ("mlm", "mvm", "align", "mlm_joint", "mvm_joint")
    remembers = False
    heads = ("word_head", "align_head")
    finetune: Mapping[str, Finetune] = MappingProxyType({})  # type: ignore[misc]
    captioning = Captioning({"large": "caption"}, "hypotheses", 40, fresh=("captioner.",), published="CIDEr 0.55 (T)")

    # 6 -- checkpoint: none was published; BERT's names, visual words apart ----------------------------------------------------

    sizes = bert.SIZES | {"clusters": ("clip_words.weight", 0), "feature_size": ("clip_words.weight", 1)}
    keys = KeyMap(
        *bert.body("bert."),
        *bert.word_head(),
        ("clip_words.", "clip_words."),
        ("project.", "project."),
        ("align_head.", "align_head."),
        ("captioner.", "captioner."),
        optional=("project.", "word_head.", "align_head.", "captioner."),
    )
