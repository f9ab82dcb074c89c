"""CBT: Learning Video Representations using Contrastive Bidirectional Transformer (Sun et al., arXiv 2019).

New: BERT over real-valued clip features: a hidden clip must be told from all other clips of the batch, by noise-contrastive estimation, so that no clusters are
needed; and speech must be told to its video by a shallow Transformer over both. Unusual: the text encoder is a finished BERT that stays as it is. Speech belongs to a
video as a whole, not word by word, so matching is a contest of whole sentences. Only the abstract and the introduction could be read: `Card.unverified` lists the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from intarsia.batch import Array, Batch, Clips, Encoded, Example, Pick, Sample
from intarsia.layout import bert_rows, clip_rows, cut_ends, none_said
from intarsia.objectives import caption, contrast, mlm, mvm
from intarsia.packed import Packing, join, joined_rows, taken
from intarsia.parts.captioner import Captioner, CaptionNumbers, writer
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder
from intarsia.parts.heads import FirstRow, TiedHead
from intarsia.parts.numbers import TINY, BertNumbers
from intarsia.recipe import TINY_RUN, Batching, Card, Mix, Recipe, Schedule, adam
from intarsia.system import Captioning, Finetune, System, Tuning
from intarsia.tasks import mean_shown
from intarsia.tasks.category import Category
from intarsia.tasks.retrieval import RetrievalOneOf
from intarsia.text import Vocab
from intarsia.weights import bert
from intarsia.weights.bert import FromBert
from intarsia.weights.keymap import KeyMap

FOUND = ("nce_found", "nce_within", "nce_across")
"""Told beside the losses: how often a hidden clip is first among all clips of the batch, of its passage, of other passages."""


@dataclass(frozen=True)
class CBTConfig(BertNumbers):
    """The fields of BERT are the text encoder's."""

    feature_size: int = 1024
    """Numbers of a clip's feature."""
    v_layers: int = 2
    """Layers of the video encoder."""
    v_heads: int = 4
    cross_layers: int = 1
    """Layers over both."""
    max_pieces: int = 100
    """Pieces of text; longer ones are cut."""
    max_clips: int = 48
    """Clips; later ones are cut."""
    nce_rate: float = 0.15
    """Share of the clips that are hidden, at least one."""
    temperature: float = 1.0
    """Divides the products of the contest of clips."""
    normalize: bool = False
    """Features and predictions are scaled to length 1 first."""
    neg_min_gap_clips: int = 1
    """Clips of the same passage nearer than so many are no rivals."""
    num_cross_negatives: int = 8
    """Rival sentences of a video, drawn from the batch; 0 = all others."""
    mlm_rate: float = 0.15
    """Of words, where they are trained; the paper's weight of that loss is 0."""
    freeze_text: bool = True
    """The text encoder stays as it is."""
    captioner: CaptionNumbers = field(default_factory=CaptionNumbers)
    """What writes captions of its features; all else is then frozen."""


@dataclass(frozen=True)
class Met(Encoded):
    """Also what speech meets."""

    whole: Tensor | None = None
    """(V, H) clips with nothing hidden, where `mi` is asked for."""


def _recipes() -> dict[str, Recipe[CBTConfig]]:
    """Our run at the size of the paper, and a tiny one."""
    base = Recipe(
        config=CBTConfig(),
        mix=Mix(share={"nce+mi": 1}, scale=dict.fromkeys(FOUND, 0.0)),
        optim=adam(1e-4),
        schedule=Schedule(steps=500_000, warmup=5000),
        batching=Batching(rows=9600, samples=128, window=8192),
        precision="bf16",
        note="Our recipe, not the paper's, whose numbers are not known: VideoBERT's scaled. Start the text encoder from BERT (--start).",
    )
    small = CBTConfig(**(TINY | {"max_position_embeddings": 128}), feature_size=64, nce_rate=0.25, max_clips=32)
    tiny = replace(
        base,
        config=replace(small, normalize=True, temperature=0.1, freeze_text=False),
        **TINY_RUN,
        note="Not a published recipe: learns generated films from scratch, the text encoder along with the rest.",
    )
    return {"tiny": tiny, "base": base, "caption": writer(base)}


def _finetune() -> dict[str, Finetune]:
    """Small heads on the mean of the video encoder's rows; texts and clips found by each other. Numbers are ours: the paper's could not be read."""

    def tuning(note: str) -> Tuning:
        return Tuning(adam(1e-4), Schedule(steps=10_000, warmup=1000), Batching(rows=9600), samples=64, note=note)

    def classes(answers: int, note: str = "clips until one second before the action", frozen: bool = False) -> Finetune:
        task = Category(answers, reads=mean_shown)
        return Finetune(task, {"base": tuning(note)}, KeyMap(), frozen=("",) if frozen else ())

    found = Finetune(RetrievalOneOf(broken_by=("tpt",)), {"base": tuning("not in the paper")}, KeyMap())
    still = "the head alone, on features as they are"
    ahead = {"anticipation": 48, "anticipation_50salads": 17, "anticipation_activitynet": 200}
    return {
        "action": classes(101, still, frozen=True),
        "action_hmdb51": classes(51, still, frozen=True),
        **{task: classes(answers) for task, answers in ahead.items()},
        "segmentation": classes(779, "every moment by the clips around it"),
        **dict.fromkeys(("retrieval_youcook2", "retrieval_msrvtt"), found),
    }


class CBT(System):
    """CBT; see the module's docstring."""

    Config = CBTConfig
    needs = ("text", "clips")
    card = Card(
        name="cbt",
        title="Learning Video Representations using Contrastive Bidirectional Transformer",
        venue="arXiv 2019",
        paper="arXiv:1906.05743",
        code="none published; abstract and introduction alone could be read",
        streams="dual",
        new="masked clips told apart by noise-contrastive estimation instead of clusters; speech and video matched as wholes",
        objectives=("nce", "mi", "mlm", "caption"),
        tasks=("action", "anticipation", "segmentation", "retrieval of videos", "caption"),
        weights=(),
        unverified=(
            "length of clips and passages; sizes of the video and the cross-modal encoder; what stands for a hidden clip",
            "rivals of both contests; temperature; normalisation; weights of the losses (0, 1 and 1)",
            "the head of the mutual information; optimizer, rate, batch, steps; the captioner; published scores",
        ),
    )

    def __init__(self, config: CBTConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width = config.hidden_size
        self.words, self.encoder = Words(config), Encoder(config)
        self.word_head = TiedHead(width, config.vocab_size, config.layer_norm_eps)
        self.clip = nn.Linear(config.feature_size, width)
        self.hidden_clip = nn.Parameter(torch.zeros(width))
        self.clip_position = nn.Embedding(config.max_clips, width)
        self.clip_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.visual = Encoder(replace(config, num_hidden_layers=config.v_layers, num_attention_heads=config.v_heads))
        self.kind = nn.Embedding(2, width)
        self.cross_encoder = Encoder(replace(config, num_hidden_layers=config.cross_layers))
        self.first = FirstRow()
        self.mi = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        initialise(self, config.initializer_range)
        nn.init.normal_(self.hidden_clip, 0.0, config.initializer_range)
        for part in (self.words, self.encoder):
            part.requires_grad_(not config.freeze_text)
        self.captioner = None
        if config.captioner.layers:
            self.requires_grad_(False)
            seen = width + config.captioner.beside(config.feature_size)
            self.captioner = Captioner(config.captioner, seen, config.vocab_size)

    def train(self, mode: bool = True) -> CBT:
        """Training mode; a text encoder that stays as it is drops nothing."""
        super().train(mode)
        if self.config.freeze_text:
            self.words.eval()
            self.encoder.eval()
        return self

    # 1 -- inputs: [CLS] words [SEP]; clips -------------------------------------------------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """All that is said and all that is shown, as far as they fit; either may be missing."""
        said, limit = " ".join(sample.texts), self.config.max_pieces
        text = bert_rows(self.vocab, sample.key, [(said, 0)], limit, cut_ends)[0] if said else none_said(self.vocab)
        count = 0 if sample.film is None else min(len(sample.film.seconds), self.config.max_clips)
        clips = clip_rows(sample, np.arange(count), width=self.config.feature_size)
        clips.position_ids = np.arange(count)
        return Example(sample.key, text, clips=clips, sample=sample.key)

    def lay_out_next(self, sample: Sample, said: Sequence[int]) -> tuple[Example, int]:
        """The clips, without speech, and what was said of them."""
        return caption.lay_out(self.lay_out(replace(sample, texts=())), self.vocab, said)

    # 2 -- streams: text, video, then both -----------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Text and video apart, and both together: what is pooled is [CLS] of both. Clips see none that is hidden; speech does where `mi` is asked for."""
        text, clips = batch.text, batch.clips
        assert text is not None and clips is not None, "CBT needs text and clips"
        if text.packing.level is not None:
            assert self.captioner is not None, "the config has a captioner of no layer"
            return self.captioner.write(batch, self.encode)
        said = self.encoder(self.words(text), text.packing)
        shown = whole = self.look(clips)
        if {"nce", "mi"} <= batch.targets.keys():
            whole = self.look(replace(clips, feats=self._true(batch), masked=clips.masked & False))
        pooled = self.meet(said, text.packing, whole, clips.packing)
        return Met(said, shown, clips.packing, pooled, said.index_select(0, text.packing.first), whole=whole)

    def targets(self, clips: Clips) -> Tensor:
        """(V, H) features as the contest compares them: projected, seen by no Transformer."""
        return self.clip(clips.feats.to(self.clip.weight.dtype))  # type: ignore[no-any-return]

    def look(self, clips: Clips) -> Tensor:
        """(V, H) clips among themselves."""
        x = torch.where(clips.masked[:, None], self.hidden_clip, self.targets(clips))
        x = self.dropout(self.clip_norm(x + self.clip_position(clips.position_ids)))
        return self.visual(x, clips.packing)  # type: ignore[no-any-return]

    def meet(self, said: Tensor, text: Packing, shown: Tensor, video: Packing) -> Tensor:
        """(B, H) the output at [CLS] of the shallow encoder over both."""
        joined = join(text, video)
        rows = joined_rows(joined, said + self.kind.weight[0], (shown + self.kind.weight[1]).to(said.dtype))
        return self.first(self.cross_encoder(rows, joined.packing), joined.packing)  # type: ignore[no-any-return]

    # 3 -- objectives --------------------------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Some clips are hidden, with their true features as targets; words too where `mlm` is trained. Captions are of all that is shown."""
        if goal == "caption":
            read, most = self.lay_out(replace(sample, texts=())), self.config.captioner.max_pieces
            return caption.hide(read, self.vocab, " ".join(sample.texts), most)
        example, goals = self.lay_out(sample), goal.split("+")
        rows, text = example.clips, example.text
        assert rows is not None and text is not None
        if "nce" in goals:
            chosen = mvm.choose(len(rows), self.config.nce_rate, rng)
            example.targets["nce"] = Pick("clips", chosen, rows.feats[chosen].copy())
            rows.masked[chosen] = True
        if "mi" in goals:
            example.targets["mi"] = np.array(int(len(rows) > 0 and bool((text.words >= 0).any())))
        if "mlm" in goals:
            empty: Array = np.zeros(0, np.int64)
            example.targets["mlm"] = Pick("text", empty, empty)
            if (text.words >= 0).any():
                mlm.hide(example, self.vocab, rng, self.config.mlm_rate)
        return example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal, which are added."""
        found: dict[str, Tensor] = {}
        assert encoded.visual is not None and encoded.text is not None and batch.clips is not None
        if "nce" in batch.targets:
            found = self._nce(encoded.visual, batch)
        if "mi" in batch.targets:
            found["mi"] = self._contest(encoded, batch)
        for goal in [x for x in ("mlm", "caption") if x in batch.targets]:
            picks = batch.picks(goal)
            found[goal] = mlm.score(self.word_logits(encoded, picks.rows), picks.labels)
        return found

    def word_logits(self, encoded: Encoded, rows: Tensor) -> Tensor:
        """(M, vocab_size) of words; of a captioner's rows, of the piece that follows."""
        if self.captioner is None:
            return super().word_logits(encoded, rows)
        assert encoded.text is not None
        return self.captioner.logits(encoded.text.index_select(0, rows))

    def _nce(self, seen: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Each hidden clip among all clips of the batch; and how often it comes first, by kind of rival, which is told and not trained."""
        clips, picks, config = batch.clips, batch.picks("nce"), self.config
        assert clips is not None
        keys = self.targets(replace(clips, feats=self._true(batch))).float()
        apart = (clips.position_ids[picks.rows][:, None] - clips.position_ids).abs()
        same = clips.packing.doc[picks.rows][:, None] == clips.packing.doc
        near = same & (apart < config.neg_min_gap_clips) & (apart > 0)
        query = seen.index_select(0, picks.rows).float()
        scores = contrast.products(query, keys, near, config.temperature, config.normalize)
        told = dict(zip(FOUND, contrast.found(scores, picks.rows, same), strict=True))
        return {"nce": contrast.among(scores, picks.rows)} | told

    def _contest(self, encoded: Encoded, batch: Batch) -> Tensor:
        """Each video's own text among those of other documents, which are so many places further in the batch."""
        text, clips = batch.text, batch.clips
        assert text is not None and clips is not None and encoded.text is not None
        assert isinstance(encoded, Met) and encoded.whole is not None
        count, real, shown = len(batch.keys), batch.labels("mi"), encoded.whole
        rivals = min(count - 1, self.config.num_cross_negatives or count - 1)
        scores = [self._mutual(encoded.pooled)]
        for shift in range(1, rivals + 1):
            owner = (torch.arange(count, device=real.device) + shift) % count
            rows, packing = taken(text.packing, owner, text.packing.rows)
            score = self._mutual(self.meet(encoded.text[rows], packing, shown, clips.packing))
            scores.append(torch.where(real[owner] > 0, score, -1e4))
        each = -torch.stack(scores, 1).log_softmax(1)[:, 0]  # the own text is first of 1 + rivals
        return (each * real).sum() / real.sum().clamp(min=1)

    def _true(self, batch: Batch) -> Tensor:
        """(V, F) features with nothing hidden."""
        assert batch.clips is not None
        picks = batch.picks("nce")
        return batch.clips.feats.index_copy(0, picks.rows, picks.labels.to(batch.clips.feats.dtype))

    def _mutual(self, pooled: Tensor) -> Tensor:
        return self.mi(pooled).squeeze(-1).float()  # type: ignore[no-any-return]

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) what text and video have in common; differences between texts of one video count."""
        return self._mutual(encoded.pooled)

    # 4 -- recipes ------------------------------------------------------------------------------------------------------------------

    recipes = _recipes()
    from_bert = FromBert()

    # 5 -- downstream: the video encoder's rows are features for other heads ------------------------------------------------------------

    heads = ("word_head",)
    untrained = (
        "word_head.bias",
        *(f"word_head.transform.{x}" for x in ("dense.weight", "dense.bias", "norm.weight", "norm.bias")),
    )
    finetune = _finetune()
    remembers = False
    captioning = Captioning({"base": "caption"}, "hypotheses", 40, fresh=("captioner.",), published="CIDEr 0.64 (T)")

    # 6 -- checkpoint: none was published; BERT's names for the text -----------------------------------------------------------------------

    sizes = bert.SIZES | {"feature_size": ("clip.weight", 1)}
    depths: Mapping[str, str] = MappingProxyType(  # type: ignore[misc]
        {"num_hidden_layers": "encoder.layers.", "v_layers": "visual.layers.", "cross_layers": "cross_encoder.layers."}
    )
    keys = KeyMap(
        *bert.body("text."),
        *bert.word_head(),
        ("visual.proj.", "clip."),
        ("visual.mask_embedding", "hidden_clip"),
        ("visual.position_embeddings.", "clip_position."),
        ("visual.norm.", "clip_norm."),
        ("visual.encoder.", "visual."),
        ("cross.kind.", "kind."),
        ("cross.encoder.", "cross_encoder."),
        ("mi.", "mi."),
        ("captioner.", "captioner."),
        optional=("word_head.", "captioner."),
    )
