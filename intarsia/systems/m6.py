"""M6: A Chinese Multimodal Pretrainer (Lin et al., KDD 2021), with the experts of M6-T: Exploring Sparse Expert Models and Beyond (Yang et al., 2021).

New: one Transformer reads and writes by what its rows may see: patches and source text see each other, the target sees them and what was said. Dense to 10
billion parameters, with a mixture of experts to 100 billion.
Unusual: denoising says the whole text again, not only what was hidden; nothing matches, nothing hides patches. The body of the paper could not be read and
neither code nor weights are public: see the card for what is not verified. Target rows are stored before source rows, which nothing can see.
A target may also be a picture, in the codes of a `PictureCodec`: their numbers go on behind those of the words, their rows are a table of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.batch import Array, Batch, Encoded, Example, Pick, RegionRows, Regions, Sample, Text, TextRows
from intarsia.errors import BadInput, TooLong
from intarsia.layout import cells, code_row, region_rows
from intarsia.objectives.spans import hide_spans
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.heads import FirstRow
from intarsia.parts.numbers import LARGE, TINY
from intarsia.parts.sparse import SparseNumbers, Stack
from intarsia.parts.stream import encode_joined
from intarsia.recipe import TINY_RUN, Batching, Card, Mix, Optim, Recipe, Schedule
from intarsia.system import Captioning, Finetune, System, Tuning
from intarsia.tasks.retrieval import RetrievalTwoWay
from intarsia.text import Pieces, Vocab
from intarsia.weights.keymap import KeyMap

IMAGE, SOURCE, TARGET = range(3)
"""Segments."""


@dataclass(frozen=True)
class M6Config(SparseNumbers):
    """The numbers of the base size, 327 M parameters."""

    vocab_size: int = 21128
    """Pieces of the vocabulary (Chinese BERT)."""
    hidden_size: int = LARGE["hidden_size"]
    num_hidden_layers: int = LARGE["num_hidden_layers"]
    num_attention_heads: int = LARGE["num_attention_heads"]
    intermediate_size: int = LARGE["intermediate_size"]
    type_vocab_size: int = 3
    """Segments: 0 image, 1 source text, 2 target text. Our choice."""
    feature_size: int = 2048
    """Numbers of a patch feature (ResNet-50, frozen, on each patch)."""
    max_patches: int = 16
    """Cells of the grid, row by row; a patch's position is the cell that its centre lies in."""
    max_pieces: int = 128
    """Longer texts are left out. Not known."""
    mask_rate: float = 0.15
    """Share of a text that hidden spans cover."""
    span_mean: float = 3.0
    """Mean of the Poisson law of their lengths. Our choice, as BART's."""
    reads_question: bool = False
    """Texts are said in answer to the sample's first text (VQA) instead of from the picture alone (captions)."""
    codes: int = 0
    """Codes of pictures, for writing these; 0 = none."""
    code_length: int = 256
    """Codes of a picture, row by row."""
    code_softmax: Literal["own", "joint"] = "own"
    """Over the codes alone (MUGE's baseline has a vocabulary for them), or over words and codes. Not known."""


def _recipes() -> dict[str, Recipe[M6Config]]:
    """The paper's three sizes as far as they are known, answers to questions, pictures from texts, and tiny runs."""
    base = Recipe(
        config=M6Config(),
        mix=Mix(dict.fromkeys(("denoise", "lm", "caption", "multimodal"), 1), scale={"balance": 0.01, "dropped": 0.0}),
        optim=Optim(lr=8e-5, betas=(0.9, 0.999), eps=1e-8, max_norm=1.0),
        schedule=Schedule(steps=500_000, warmup=500),
        batching=Batching(rows=8192, window=8192),
        note="M6-base, 327 M parameters. Rate and warm-up are M6-T's; the shares of the tasks, batch and steps are not known.",
    )
    wide = M6Config(hidden_size=4096, num_hidden_layers=50, num_attention_heads=128, intermediate_size=16384)
    dense = replace(
        base, config=replace(wide, pre_norm=True, recompute=True), precision="bf16", note="M6-10B, dense; else as base."
    )
    sparse = replace(
        base,
        config=M6Config(pre_norm=True, recompute=True, experts=512),
        precision="bf16",
        note="M6-100B: base with 512 experts in every layer, on 128 A100; else as base.",
    )
    one = {goal: replace(base.mix, share={goal: 1}) for goal in ("caption", "answer", "text_to_image")}
    caption = replace(base, mix=one["caption"], note="Captions alone; not published.")
    vqa = replace(
        base, config=M6Config(reads_question=True), mix=one["answer"], note="Answers are said; not published."
    )
    t2i = replace(
        base,
        config=M6Config(codes=1024, max_pieces=40),
        optim=Optim(lr=1e-4, betas=(0.9, 0.999), eps=1e-8, max_norm=0.1),
        schedule=Schedule(steps=45_000, warmup=2700),
        batching=Batching(rows=8192, samples=4, window=8192, accumulate=2),
        note="Pictures from texts, begun from a trained M6 (--weights). MUGE-2021/image-generation-baseline's numbers, whose model is an encoder-decoder, not M6's.",
        mix=one["text_to_image"],
    )
    tiny = replace(
        base,
        config=M6Config(**TINY, max_pieces=60),
        **TINY_RUN,
        note="Not a published recipe: learns generated scenes from scratch in minutes on two CPU cores; regions that are no grid stand at their cells.",
    )
    t2i_tiny = replace(
        tiny,
        config=M6Config(**TINY, max_pieces=60, codes=512, code_length=64),
        note="Not a published recipe: draws generated products from scratch in minutes on a CPU core.",
        mix=one["text_to_image"],
    )
    more = {"caption": caption, "vqa": vqa, "t2i": t2i, "t2i_tiny": t2i_tiny}
    return {"tiny": tiny, "base": base, "10b": dense, "100b": sparse, **more}


def _finetune() -> dict[str, Finetune]:
    """Matching is classification; answers are generated, so they are pre-training with another recipe."""
    recipe = _recipes()["base"]
    note = "not known: the numbers of pre-training"
    tuning = Tuning(recipe.optim, recipe.schedule, recipe.batching, scale=recipe.mix.scale, note=note)
    return {"retrieval": Finetune(RetrievalTwoWay(), {"base": tuning}, KeyMap(("head.", "head.")))}


class M6(System):
    """M6; see the module's docstring."""

    Config = M6Config
    needs = ("text", "regions")
    card = Card(
        name="m6",
        title="M6: A Chinese Multimodal Pretrainer",
        venue="KDD 2021",
        paper="arXiv:2103.00823, arXiv:2105.15082",
        code="none public",
        streams="single",
        new="one Transformer that reads and writes, scaled by a mixture of experts",
        objectives=("denoise", "lm", "caption", "multimodal", "answer", "text_to_image"),
        tasks=("caption", "vqa", "retrieval", "text to image"),
        weights=(),
        unverified=(
            "everything but the two large sizes: the body of the paper could not be read",
            "segments, positions that begin again in each segment, [CLS] and [SEP] around the target: our choice",
            "norms after the sums at base, before from 10B on",
            "lengths of hidden spans (Poisson, mean 3, as BART's)",
            "shares of the tasks, batch, steps, rate, longest text",
            "weight of the balance loss",
            "how codes of pictures are embedded and told: a table of their own, tied, softmax over codes alone",
        ),
    )

    def __init__(self, config: M6Config, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        longest = config.code_length if config.codes else 0
        if max(config.max_pieces + 1, config.max_patches, longest) > config.max_position_embeddings:
            raise BadInput(
                f"m6: max_pieces {config.max_pieces} + 1, max_patches {config.max_patches} or {longest} codes of a picture "
                f"is more than max_position_embeddings {config.max_position_embeddings}"
            )
        self.config, self.vocab = config, vocab
        self.words = Words(config)
        self.codes = nn.Embedding(config.codes, config.hidden_size) if config.codes else None
        self.patches = nn.Linear(config.feature_size, config.hidden_size)
        self.encoder = Stack(config)
        self.pooler = FirstRow()
        initialise(self, config.initializer_range)

    # 1 -- inputs: patches, source text, [CLS] target ---------------------------------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """The caption as target, after the picture. retrieval: as source, the target is [CLS] alone, whose output is classified."""
        pieces = self._pieces(sample, sample.texts[0])
        both = (pieces.ids, pieces.ids[:0]) if task == "retrieval" else (pieces.ids[:0], pieces.ids)
        example = self._document(sample, *both)
        assert example.text is not None
        example.text.words[1:] = pieces.words
        return example

    def lay_out_next(self, sample: Sample, said: Sequence[int]) -> tuple[Example, int]:
        """The picture, with `reads_question` the sample's first text, [CLS] and what was said, whose last row names the next piece."""
        source = self._pieces(sample, sample.texts[0]).ids if self.config.reads_question else np.zeros(0, np.int64)
        return self._document(sample, source, np.array(said, np.int64)), len(said)

    def lay_out_next_code(self, sample: Sample, said: Sequence[int]) -> tuple[Example, int]:
        """The sample's text as source, [CLS] and the codes so far, from 0 on, whose last row names the next."""
        source = self._pieces(sample, sample.texts[0]).ids
        return self._document(sample, source, len(self.vocab) + np.array(said, np.int64), picture=False), len(said)

    def forms(self, sample: Sample) -> list[Example]:
        """The document of a sample in pre-training; of a picture in codes the longer one, that with patches or that with codes."""
        caption = self.lay_out(sample)
        if not self.config.codes or not any(x.codes is not None for x in sample.pictures[:1]):
            return [caption]
        drawn, _ = self.lay_out_next_code(
            sample, code_row(sample, self.config.codes, self.config.code_length)[:-1].tolist()
        )
        return [max(caption, drawn, key=lambda x: x.rows)]

    def _pieces(self, sample: Sample, text: str) -> Pieces:
        pieces = self.vocab.encode(text)
        if not len(pieces):
            raise BadInput(f"sample {sample.key}: the text {text!r} is empty")
        if len(pieces) > self.config.max_pieces:
            raise TooLong(f"sample {sample.key}: {len(pieces)} pieces of text, the limit is {self.config.max_pieces}")
        return pieces

    def _document(self, sample: Sample, source: Array, target: Array, picture: bool = True) -> Example:
        after, before = len(target) + 1, len(source)
        text = TextRows(
            ids=np.concatenate([[self.vocab.cls], target, source]),
            segment_ids=np.repeat([TARGET, SOURCE], [after, before]),
            position_ids=np.concatenate([np.arange(after), np.arange(before)]),
            words=np.full(after + before, -1),
            levels=np.concatenate([np.arange(1, after + 1), np.zeros(before)]).astype(np.int32),
        )
        return Example(sample.key, text, self._patches(sample, picture), sample=sample.key)

    def _patches(self, sample: Sample, picture: bool) -> RegionRows:
        if not picture or not sample.pictures:
            none = np.zeros(0, np.int64)
            empty = np.zeros((0, self.config.feature_size), np.float32)
            return RegionRows(empty, np.zeros((0, 4), np.float32), none, none, none, none.astype(np.bool_))
        rows = region_rows(sample.key, sample.pictures[0], self.config.feature_size, IMAGE)
        return replace(
            rows,
            feats=rows.feats.astype(np.float32, copy=False),
            position_ids=cells(rows.boxes, self.config.max_patches),
            probs=None,
            labels=None,
            scores=None,
            attributes=None,
            attribute_scores=None,
        )

    # 2 -- stream: one encoder over all ------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds, joins and encodes; who sees whom is in the rows' levels. Pools the output of [CLS]."""
        text, patches = batch.text, batch.regions
        assert text is not None and patches is not None, "M6 needs text and patches"
        seen = self.embed(patches)
        return encode_joined(
            self.encoder, self.pooler, self._written(text), text.packing, seen, patches.packing, self.read(batch)
        )

    def _written(self, text: Text) -> Tensor:
        """(T, H) embedded words and codes."""
        words, count = self.words, self.config.vocab_size
        if self.codes is None:
            return words(text)  # type: ignore[no-any-return]
        said, drawn = words.word(text.ids.clamp(max=count - 1)), self.codes((text.ids - count).clamp(min=0))
        rows = torch.where((text.ids >= count)[:, None], drawn, said)
        summed = rows + words.position(text.position_ids) + words.segment(text.segment_ids)
        return words.dropout(words.norm(summed))  # type: ignore[no-any-return]

    def embed(self, patches: Regions) -> Tensor:
        """(R, H): projected features with the positions and segments of words, normed."""
        words = self.words
        seen = self.patches(patches.feats.to(self.patches.weight.dtype))
        summed = seen + words.position(patches.position_ids) + words.segment(patches.segment_ids)
        return words.dropout(words.norm(summed))  # type: ignore[no-any-return]

    # 3 -- objectives: the target is said piece by piece -------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """One task; each says a whole target.

        denoise: text from itself with spans hidden; lm: text; caption: text from the picture; multimodal: from both; answer: from picture and question;
        text_to_image: the picture in codes, from the text.

        A sample without picture is told from what is left: caption is lm there, multimodal is denoise, and of text_to_image nothing is asked.
        """
        if goal not in self.card.objectives:
            raise BadInput(f"m6 has no objective {goal!r}; it has {', '.join(self.card.objectives)}")
        if goal == "text_to_image":
            codes = code_row(sample, self.config.codes, self.config.code_length)
            example, _ = self.lay_out_next_code(sample, codes[:-1].tolist())
            example.targets[goal] = Pick("text", np.arange(len(codes)), len(self.vocab) + codes)
            return example
        ids = self._pieces(sample, sample.texts[0]).ids
        source = ids[:0]
        if goal == "answer":
            if not sample.answers:
                raise BadInput(f"sample {sample.key}: has no answer to say")
            source, ids = ids, self._pieces(sample, max(sample.answers, key=lambda x: x[1])[0]).ids
        elif goal in ("denoise", "multimodal"):
            source = hide_spans(ids, self.vocab.mask, rng, self.config.mask_rate, self.config.span_mean)
        example = self._document(sample, source, ids, picture=goal not in ("denoise", "lm"))
        example.targets[goal] = Pick("text", np.arange(len(ids) + 1), np.append(ids, self.vocab.sep))
        return example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of every goal, and what is beside them."""
        found: dict[str, Tensor] = {}
        for goal in batch.targets:
            picks, drawn = batch.picks(goal), goal == "text_to_image"
            if self.codes is not None and self.config.code_softmax == "joint":
                assert encoded.text is not None
                table = torch.cat([self.words.word.weight, self.codes.weight])
                logits, first = F.linear(encoded.text.index_select(0, picks.rows), table), 0
            else:
                logits = (self.code_logits if drawn else self.word_logits)(encoded, picks.rows)
                first = drawn * self.config.vocab_size
            loss = F.cross_entropy(logits.float(), picks.labels - first, reduction="sum")
            found[goal] = loss / max(1, len(picks.labels))
        return found | self.beside()

    def beside(self) -> dict[str, Tensor]:
        """Of experts the loss "balance" and, told only, the share of choices "dropped"."""
        return dict(zip(("balance", "dropped"), self.encoder.routed, strict=False))

    def word_logits(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, vocabulary) logits of the piece after each of the given text rows, by the table of words."""
        assert encoded.text is not None
        return F.linear(encoded.text.index_select(0, rows), self.words.word.weight)

    def code_logits(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, codes) logits of the code after each of the given text rows, by the table of codes."""
        assert encoded.text is not None and self.codes is not None
        return F.linear(encoded.text.index_select(0, rows), self.codes.weight)

    # 4 -- recipes ---------------------------------------------------------------------------------------------------------

    recipes = _recipes()
    reads_text_alone = True

    # 5 -- downstream ------------------------------------------------------------------------------------------------------

    picked_goals = ("denoise", "caption", "multimodal", "answer", "text_to_image")
    heads = ()
    finetune = _finetune()
    captioning = Captioning(recipes={"base": "caption"}, search="hypotheses", length=30)

    # 6 -- checkpoint: none is public; names are ours ----------------------------------------------------------------------

    sizes = {  # noqa: RUF012
        "vocab_size": ("words.word.weight", 0),
        "hidden_size": ("words.word.weight", 1),
        "max_position_embeddings": ("words.position.weight", 0),
        "type_vocab_size": ("words.segment.weight", 0),
        "feature_size": ("patches.weight", 1),
        "codes": ("codes.weight", 0),
    }
    flags = {"pre_norm": "encoder.norm.weight"}  # noqa: RUF012
    keys = KeyMap(*((x, x) for x in ("words.", "patches.", "encoder.", "codes.")), optional=("codes.",))
