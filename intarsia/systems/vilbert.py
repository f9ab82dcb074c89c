"""ViLBERT: Pretraining Task-Agnostic Visiolinguistic Representations for Vision-and-Language Tasks (Lu et al., NeurIPS 2019).

New: words and regions have a stream each, of different depth and width, which meet in co-attention layers: each asks, the other answers. One network
for twelve data sets, told apart by a task token, is 12-in-1 (Lu et al., CVPR 2020), whose code and weights these are too.
Unusual: a meeting comes before the layers with its number, so regions meet words before they ever see each other, and plain layers close both streams.
The whole picture is one more region, the mean of the others after some were hidden. Both pooled vectors go through a ReLU and are multiplied.
The released weights ask hidden words and regions of true pairs only (`objective` 1), the paper of all (0). The norms after co-attention are decayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Pick, Regions, Sample, Text
from intarsia.errors import BadInput
from intarsia.layout import bert_rows, document_key, link_rows, picture_of, region_rows, with_piece, with_whole_picture
from intarsia.objectives import itm, joint, mlm, mrm
from intarsia.packed import Packing
from intarsia.parts.coattention import DynamicStreams, LocatedRegions, ReLUPooler, TwoStreams
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import TaskWords, Words, initialise
from intarsia.parts.heads import ClassHead, TiedHead
from intarsia.parts.numbers import LARGE, ROBERTA, TINY_TWO_STREAMS, TwoStreamNumbers
from intarsia.recipe import TINY_DUAL_RUN, Batching, Card, Mix, Optim, Recipe, Schedule, bert_adam
from intarsia.system import Finetune, Given, System, Task, Tuning
from intarsia.tasks.among import BETA_HEADS, BETA_KEYS, HEAD_KEYS, HEAD_TENSORS, HEADS, Among
from intarsia.tasks.entail import Entailment
from intarsia.tasks.nlvr2 import NLVR2PairEach
from intarsia.tasks.refer import ReferShare
from intarsia.tasks.retrieval import RetrievalOneOf
from intarsia.tasks.vcr import VCROneOf, choice_cut, pair_cut
from intarsia.tasks.vqa import VQA, each_answer_loss
from intarsia.text import Vocab
from intarsia.weights import bert
from intarsia.weights.keymap import Drop, KeyMap, Tied


@dataclass(frozen=True)
class ViLBERTConfig(TwoStreamNumbers):
    """The numbers of ViLBERT-base with six meetings; the recipes replace some."""

    max_pieces: int = 34
    """Pieces of text in all; longer captions are left out (the authors cut them), texts of tasks are cut."""
    fusion_method: Literal["mul", "sum"] = "mul"
    """How the two pooled vectors become one."""
    objective: Literal[0, 1, 2] = 0
    """1 = broken pairs are asked for nothing but the match. 2 = no pair is broken, the match counts nothing."""
    visual_target: Literal[0, 1, 2] = 0
    """What hidden regions give back: 0 = soft labels (mrc_kl), 1 = features (mrfr), 2 = features told from others (mrnce)."""
    num_negative: int = 128
    """Features that a hidden one is told from, with `visual_target` 2."""
    mlm_rate: float = 0.15
    mrm_rate: float = 0.15
    itm_rate: float = 0.5
    """Share of pairs whose caption is another's."""
    whole_mean: Literal["all", "uncovered"] = "all"
    """Hidden features are summed as zeros; divided by all regions, or by `region_len` less those that overlap a hidden one by more than .4."""
    region_len: int = 36
    """Rows that the authors' loader pads regions to."""
    task_specific_tokens: bool = False
    """A row for the task after [CLS] (12-in-1)."""
    dynamic_attention: bool = False
    """The mean of the words scales queries and keys of the regions' own attention."""
    fixed_t_layer: int = 0
    """So many of the first layers of words, and what is before them, do not train; at most those before the first meeting."""
    fixed_v_layer: int = 0
    """The same of regions."""
    model: Literal["bert", "roberta"] = "bert"
    """Whose words: RoBERTa's have positions from 2."""


TASKS = {"vqa": 1, "genome_qa": 2, "visual7w": 4, "vcr": 5, "vcr_qar": 6, "retrieval_coco": 7, "retrieval": 8, "re": 9, "re_plus": 10,
         "re_g": 11, "nlvr2": 12, "ve": 13, "gqa": 15, "guesswhat": 17}  # fmt: skip
"""Number of each task's token."""


NO_DECAY = ("bias", r"(words|regions|transform)\.norm", r"layers\.\d+\.(attention_)?norm", r"meetings\.\d+\.\w+\.norm")
"""What the authors' rule spares: its LayerNorm names miss those after co-attention and in the answer heads."""
PRETRAINING_HEADS = ("word_head", "region_head", "match_head")
Read = dict[str, Tensor] | None


def _meeting(count: int, layers: int = 12) -> dict[str, Any]:
    """As many layers of regions as meetings, which are spread over the last layers of words."""
    text = tuple(range(layers - count, layers))
    return {"v_num_hidden_layers": count, "v_biattention_id": tuple(range(count)), "t_biattention_id": text}


def _recipes() -> dict[str, Recipe[ViLBERTConfig]]:
    """The shipped configs by size, the first code's run, and a tiny one."""
    steps = 10 * 3_119_449 // 512
    base = Recipe(
        config=ViLBERTConfig(objective=1, whole_mean="uncovered"),
        mix=Mix(share={"mlm+mrc_kl+itm": 1}),
        optim=Optim(1e-4, (0.9, 0.98), 1e-8, 0.01, NO_DECAY, max_norm=0.0),
        schedule=Schedule(steps=steps, warmup=steps // 10),
        batching=Batching(rows=3200, window=8192),
        note="facebookresearch/vilbert-multi-task: Conceptual Captions, 10 epochs at batch 512 (8 GPUs, 64 pairs each); text begins as BERT.",
    )
    slow = dict.fromkeys(("words.", "encoder.layers.", "word_head."), 0.1)
    beta = replace(
        base,
        config=ViLBERTConfig(),
        optim=replace(bert_adam(1e-4), no_decay=NO_DECAY, lr_factors=slow),
        schedule=replace(base.schedule, shape="bert"),
        note="jiasenlu/vilbert_beta, as the paper: masked losses of broken pairs too; what BERT brought (--start) learns at a tenth of the rate.",
    )
    tiny = replace(
        base,
        config=ViLBERTConfig(**TINY_TWO_STREAMS, objective=1, mlm_rate=0.25),
        mix=Mix(share={"mlm+mrc_kl": 1, "mlm+mrc_kl+itm": 2}, begin={"mlm+mrc_kl+itm": 0.3}),
        **TINY_DUAL_RUN,
        note="Not a published recipe: learns generated scenes from scratch in minutes on two CPU cores.",
    )

    def sized(file: str, **numbers: Any) -> Recipe[ViLBERTConfig]:
        note = f"As base with the numbers of config/{file}.json."
        return replace(base, config=replace(base.config, **numbers), note=note)

    found = {"tiny": tiny, "base": base, "base_beta": beta}
    found |= {f"base_{n}": sized(f"bert_base_{n}layer_{n}conect", **_meeting(n)) for n in (2, 4, 8)}
    found["roberta"] = sized("roberta_base_6layer_6connect", model="roberta", **ROBERTA)
    large = (("large", 6), ("large_2", 2))
    return found | {name: sized(f"bert_large_{n}layer_{n}conect", **LARGE, **_meeting(n, 24)) for name, n in large}


def _finetune() -> dict[str, Finetune]:
    """The downstream tasks: head, task, pieces, batch, learning rate, epochs, samples; of 12-in-1 (and VCR), then of the first code."""
    refer, choose = ReferShare(), RetrievalOneOf()
    table: dict[str, tuple[str, Task, int, int, float, int, int]] = {
        "vqa": ("vil_prediction", VQA(), 21, 128, 4e-5, 20, 542_104),
        "genome_qa": ("vil_prediction", VQA(), 24, 128, 4e-5, 20, 1_294_255),
        "gqa": ("vil_prediction_gqa", VQA(1533), 24, 128, 4e-5, 20, 962_928),
        "visual7w": ("vision_logit", refer, 18, 256, 2e-5, 20, 93_813),
        "guesswhat": ("vision_logit", refer, 254, 64, 2e-5, 20, 100_398),
        "re": ("vision_logit", refer, 18, 256, 2e-5, 20, 96_221),
        "re_plus": ("vision_logit", refer, 18, 256, 2e-5, 20, 95_852),
        "re_g": ("vision_logit", refer, 18, 256, 2e-5, 20, 65_514),
        "vcr": ("vil_logit", VCROneOf(layouts=("vcr", "vcr_qar")), 57, 64, 2e-5, 10, 212_923),
        "vcr_qar": ("vil_logit", VCROneOf(layouts=("vcr", "vcr_qar")), 77, 64, 2e-5, 10, 212_923),
        "retrieval_coco": ("vil_logit", choose, 28, 128, 2e-5, 20, 487_600),
        "retrieval": ("vil_logit", choose, 28, 128, 2e-5, 20, 140_485),
        "nlvr2": ("vil_binary_prediction", NLVR2PairEach(), 38, 64, 2e-5, 20, 86_373),
        "ve": ("vil_tri_prediction", Entailment(each_answer_loss), 54, 256, 2e-5, 20, 500_906),
        "beta_vqa": ("vil_prediction", VQA(), 14, 256, 4e-5, 20, 542_104),
        "beta_vcr": ("vil_logit", VCROneOf(layouts=("beta_vcr", "beta_vcr_qar")), 57, 64, 2e-5, 20, 212_923),
        "beta_re_plus": ("vision_logit", refer, 18, 256, 4e-5, 20, 95_852),
        "beta_retrieval": ("vil_logit", choose, 28, 64, 2e-5, 20, 140_485),
    }
    found, given = {}, dict.fromkeys(("re", "re_plus", "re_g", "beta_re_plus"), Given(tested=False, in_whole=False))
    given |= {x: Given(in_whole="vcr" in x) for x in ("vcr", "vcr_qar", "beta_vcr", "visual7w", "guesswhat")}
    for name, (head, task, pieces, batch, lr, epochs, samples) in table.items():
        beta, steps = name.startswith("beta_"), epochs * samples // batch
        among, keys = (Among(task, head, BETA_HEADS), BETA_KEYS) if beta else (Among(task, head, HEADS), HEAD_KEYS)
        optim = replace(bert_adam(lr), no_decay=NO_DECAY, max_norm=float(beta), clip="each" if beta else "joint")
        head_lr = 1e-4 / lr if head.startswith("vil_") and not beta else 1.0
        schedule = Schedule(steps, steps // 10, shape="milestones" if beta else "peak", milestones=(0.6, 0.8))
        batching, config, note = Batching(rows=batch * (pieces + 100)), {"max_pieces": pieces}, f"{epochs} epochs"
        tuning = {"base": Tuning(optim, schedule, batching, head_lr, samples=batch, note=note)}
        found[name] = Finetune(among, tuning, keys, PRETRAINING_HEADS, config=config, given=given.get(name))
    return found


class ViLBERT(System):
    """ViLBERT and 12-in-1 at any size; see the module's docstring."""

    Config = ViLBERTConfig
    needs = ("text", "regions")
    card = Card(
        name="vilbert",
        title="ViLBERT: Pretraining Task-Agnostic Visiolinguistic Representations for Vision-and-Language Tasks",
        venue="NeurIPS 2019",
        paper="arXiv:1908.02265",
        code="github.com/facebookresearch/vilbert-multi-task f22b84a",
        streams="dual",
        new="words and regions have a stream each, which meet in co-attention layers",
        objectives=("mlm", "mrc_kl", "mrfr or mrnce instead", "itm"),
        tasks=tuple(TASKS),
        weights=("facebookresearch/vilbert-multi-task .bin (ViLBERT, 12-in-1)", "jiasenlu/vilbert_beta .bin"),
        unverified=(
            "samples of the fine-tuning sets, and so their steps",
            "that the newer code clips no gradients",
            "which class of visual entailment is which",
            "published scores",
        ),
    )

    def __init__(self, config: ViLBERTConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width, visual, eps = config.hidden_size, config.v_hidden_size, config.layer_norm_eps
        self.words = TaskWords(config, 20) if config.task_specific_tokens else Words(config)
        self.regions = LocatedRegions(config)
        self.encoder = (DynamicStreams if config.dynamic_attention else TwoStreams)(config)
        self.text_pooler = ReLUPooler(width, config.bi_hidden_size)
        self.visual_pooler = ReLUPooler(visual, config.bi_hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.word_head = TiedHead(width, config.vocab_size, eps)
        self.region_head = ClassHead(visual, config.classes if config.visual_target == 0 else config.feature_size, eps)
        self.match_head = nn.Linear(config.bi_hidden_size, 2)
        sides = {"regions": visual, "words": width}  # the authors' files have these maps, nothing reads them
        self.idle = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(config.bi_hidden_size, size) for name, size in sides.items()})
            for _ in config.t_biattention_id
        ).requires_grad_(False)
        initialise(self, config.initializer_range)
        self.encoder.fix(self.words, config.fixed_t_layer, self.regions, config.fixed_v_layer)

    # 1 -- inputs: [CLS] (task) words [SEP]; the regions and the whole picture ----------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Words in segment 0, the regions and after them the whole picture.

        vcr, vcr_qar: texts are the question (for rationales the right answer) and four choices, `form` says which, in segment 1. nlvr2: one
        document a picture, `form` says which. With `task_specific_tokens` the task has a row after [CLS].
        """
        name, config = (task or "").removeprefix("beta_"), self.config
        asked = max(len(sample.texts) - 4, 1) if name in ("vcr", "vcr_qar") else 0
        shown = form if name == "nlvr2" else 0
        second = [(sample.texts[asked + form], config.type_vocab_size > 1)] if asked else []
        parts = [*((x, 0) for x in sample.texts[: asked or 1]), *second]
        earlier = [len(self.vocab.encode(x)) for x in sample.texts[asked : asked + form]] if asked else []
        cut = (pair_cut(earlier) if task != name else choice_cut) if asked else task is not None
        text, pieces = bert_rows(self.vocab, sample.key, parts, config.max_pieces, cut, own_sep=True)
        text.position_ids += 2 * (config.model == "roberta")
        token = config.task_specific_tokens and name in TASKS
        picture = picture_of(sample, shown)
        regions = region_rows(sample.key, picture, config.feature_size, 0, shown)
        return Example(
            key=document_key(sample, task, form),
            text=with_piece(text, 1, TASKS[name], config.type_vocab_size, 0) if token else text,
            regions=with_whole_picture(regions, picture, (1.0, 1.0)),
            links=link_rows(sample, pieces[0], 1 + token)[: None if shown == 0 else 0],
            sample=sample.key,
        )

    # 2 -- streams: words and regions apart, meeting by co-attention (sec. 3.1) ----------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds and encodes both streams; pools [CLS] and the whole picture and multiplies (or adds) the two."""
        text, regions = batch.text, batch.regions
        assert text is not None and regions is not None, "ViLBERT needs text and regions"
        words, seen = self.encode_text(text), self.encode_visual(regions)
        return self.cross(words, text.packing, seen, regions.packing, self.read(batch))

    def encode_text(self, text: Text) -> Tensor:
        """(T, H) words before the first meeting, see `Crossing`: their first half in `base`. The authors' `fast_mode` shares them among pictures."""
        return self.encoder.read_words(self.words(text), text.packing)

    def encode_visual(self, regions: Regions) -> Tensor:
        """(R, Hv) regions before the first meeting: embedded, in all shipped configs."""
        return self.encoder.read_regions(self.regions(regions), regions.packing)

    def cross(self, words: Tensor, text: Packing, seen: Tensor, visual: Packing, read: Read = None) -> Encoded:
        """The meetings and all layers after the first, and what is pooled."""
        x, v = self.encoder.meet(words, seen, text, visual, read)
        said = self.text_pooler(x.index_select(0, text.first))  # (B, P)
        shown = self.visual_pooler(v.index_select(0, visual.last))
        both = said * shown if self.config.fusion_method == "mul" else said + shown
        return Encoded(x, v, visual, self.dropout(both), said, shown)

    # 3 -- objectives ---------------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Words and regions, in pairs half of which have another's caption (sec. 3.2)."""
        config, goals, label = self.config, goal.split("+"), 1
        target = ("mrc_kl", "mrfr", "mrnce")[config.visual_target]
        if wrong := [x for x in goals if x not in ("mlm", "itm", target)]:
            raise BadInput(
                f"vilbert with visual_target {config.visual_target} has no objective {wrong[0]!r}; it has mlm, {target}, itm"
            )
        if "itm" in goals and config.objective != 2:
            sample, label = itm.swap_text(sample, rng, draw, config.itm_rate)
        example = joint.hide(self.lay_out(sample), self.vocab, rng, goals, config.mlm_rate, config.mrm_rate, spare=1)
        if target in goals:
            pick, rows = example.targets[target], example.regions
            assert isinstance(pick, Pick) and rows is not None
            picture, padded = sample.pictures[0], config.region_len if config.whole_mean == "uncovered" else None
            rows.feats[-1] = mrm.whole_of_rest(rows, pick.rows, (picture.width, picture.height), padded)
            if target == "mrnce":
                example.targets[target] = mrm.draw_negatives(pick, rng, config.num_negative)
        if config.objective == 1 and not label:
            joint.ask_nothing(example)
        if "itm" in goals:
            example.targets["itm"] = np.array(label)
        return example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal, which are added."""
        assert encoded.visual is not None and batch.regions is not None
        found: dict[str, Tensor] = {}
        for goal in batch.targets:
            if goal == "itm":
                counts = self.config.objective != 2
                found[goal] = counts * itm.score(self.match_head(encoded.pooled), 1 - batch.labels(goal))
                continue
            picks = batch.picks(goal)
            if goal == "mlm":
                found[goal] = mlm.score(self.word_logits(encoded, picks.rows), picks.labels)
                continue
            guess = self.region_head(encoded.visual.index_select(0, picks.rows))
            if goal == "mrnce":
                found[goal] = mrm.contrast(guess, picks.labels, picks.rows, batch.regions, spare=1)
            else:
                found[goal] = (mrm.region_divergence if goal == "mrc_kl" else mrm.regress)(guess, picks.labels)
        return found

    def match_scores(self, encoded: Encoded) -> Tensor:
        """(B) log odds that caption and picture belong together; theirs have the true pair first."""
        return -itm.log_odds(self.match_head(encoded.pooled))

    # 4 -- recipes and downstream: the shipped configs, and one that a laptop core learns from generated scenes -----------

    recipes = _recipes()
    from_bert = bert.FromBert()
    picked_goals = ("mlm", "mrc_kl", "mrfr", "mrnce", "itm")
    heads = PRETRAINING_HEADS
    finetune = _finetune()

    # 5 -- checkpoint: the same in both codes; a "module." in front of all keys goes when a file is read ----------------

    sizes, depths = bert.TWO_STREAM_SIZES, bert.TWO_STREAM_DEPTHS
    flags = {"task_specific_tokens": "words.task.weight", "dynamic_attention": bert.GATES}  # noqa: RUF012
    keys = KeyMap(
        *bert.body("bert."),
        ("bert.embeddings.task_embeddings.", "words.task."),
        ("bert.v_embeddings.image_embeddings.", "regions.feature."),
        ("bert.v_embeddings.image_location_embeddings.", "regions.location."),
        ("bert.v_embeddings.LayerNorm.", "regions.norm."),
        *bert.gates("bert.encoder.v_layer.{i}.", "encoder.visual_layers.{i}."),
        *bert.layers("bert.encoder.v_layer.{i}.", "encoder.visual_layers.{i}."),
        *bert.meeting("1", "v", "regions"),
        *bert.meeting("2", "t", "words"),
        ("bert.t_pooler.dense.", "text_pooler.dense."),
        ("bert.v_pooler.dense.", "visual_pooler.dense."),
        *bert.word_head(),
        ("cls.bi_seq_relationship.", "match_head."),
        ("cls.imagePredictions.transform.dense.", "region_head.transform.dense."),
        ("cls.imagePredictions.transform.LayerNorm.", "region_head.transform.norm."),
        ("cls.imagePredictions.decoder.", "region_head.out."),
        Tied("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        optional=("word_head.", "region_head.", "match_head.", "idle."),
    )
    layouts = {"tasks": keys + KeyMap(*(Drop(key) for key in HEAD_TENSORS))}  # noqa: RUF012  # 12-in-1 less the heads of its tasks
