"""ERNIE-ViL: Knowledge Enhanced Vision-Language Representations Through Scene Graphs (Yu et al., AAAI 2021).

New: the caption's scene graph says what to hide: words that name objects, words that describe them, words that relate them, each of them whole, while the
objects that a hidden attribute or relation stands by stay. Else the network and objectives are ViLBERT's.
Unusual: text begins as ERNIE 2.0. Of pre-training neither code nor heads nor parser were published: what is not known is a field of the config, named in
`card.unverified`; the parser is our own (`intarsia.text_graph`), or graphs made elsewhere are read from a file. Norms have an epsilon of 1e-5. Weights
are files of Paddle. Retrieval is tuned by a circle loss on 20 broken pairs; VQA drops out of the fused vector by a slip of Python 2, which is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from torch import Tensor, nn

from intarsia.batch import Array, Batch, Encoded, Example, Sample
from intarsia.errors import BadInput
from intarsia.layout import bert_rows, document_key, link_rows, region_rows, whole_feature, with_whole_picture
from intarsia.objectives import itm, joint, mlm, mrm, sgp
from intarsia.parts.coattention import LocatedRegions, ReLUPooler, TwoStreams, layer_decay
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.heads import ClassHead, TiedHead
from intarsia.parts.numbers import LARGE, TINY_TWO_STREAMS, TwoStreamNumbers
from intarsia.recipe import TINY_DUAL_RUN, Batching, Card, Mix, Recipe, Schedule, adam
from intarsia.system import Finetune, Given, System, Task, Tuning
from intarsia.tasks import HeadConfig, evenly, linear
from intarsia.tasks.among import Among
from intarsia.tasks.refer import ReferMean
from intarsia.tasks.retrieval import RetrievalCircle
from intarsia.tasks.vcr import VCREach, pair_cut
from intarsia.tasks.vqa import VQA
from intarsia.text import Pieces, Vocab
from intarsia.text_graph import TextGraph, load_graphs, read_graph
from intarsia.weights import bert, paddle
from intarsia.weights.keymap import KeyMap, Move


@dataclass(frozen=True)
class ERNIEViLConfig(TwoStreamNumbers):
    """The numbers of ERNIE-ViL-base; the recipes replace some."""

    layer_norm_eps: float = 1e-5
    type_vocab_size: int = 4
    classifier_hid_size: int = 2048
    """Width inside the head of VQA."""
    max_pieces: int = 34
    """Pieces of text in all; longer ones are left out of training. Not known; ViLBERT's."""
    mlm_rate: float = 0.15
    """Of whole words that no node holds."""
    mrm_rate: float = 0.15
    itm_rate: float = 0.5
    """Share of pairs whose caption is another's. Not known; ViLBERT's."""
    sgp_rate: float = 0.3
    """Share of the objects, attributes or relations of a caption that are hidden, at least one. Not known for sure."""
    asks_broken: bool = True
    """False = broken pairs are asked for nothing but the match. Not known."""
    graphs: str = ""
    """File of graphs that another parser made, see `text_graph.load_graphs`; empty = by the rules here."""


_load = cache(load_graphs)
_LARGE = LARGE | {"v_num_attention_heads": 16, "v_intermediate_size": 4096, "bi_num_attention_heads": 16}
CONFIGS = {"base": ERNIEViLConfig(), "large": ERNIEViLConfig(**_LARGE, t_biattention_id=(18, 19, 20, 21, 22, 23))}


def _recipes() -> dict[str, Recipe[ERNIEViLConfig]]:
    """The published sizes, of whose run little is known, and a tiny one."""
    apart, both = ([f"mlm+mrc_kl+{more}{kind}" for kind in sgp.GOALS] for more in ("", "itm+"))
    base = Recipe(
        config=CONFIGS["base"],
        mix=Mix(share=dict.fromkeys(both, 1.0)),
        optim=adam(1e-4),
        schedule=Schedule(steps=700_000, warmup=10_000, shape="noam"),
        batching=Batching(rows=3600, window=8192),
        precision="bf16",
        note="Conceptual Captions and SBU, 3.8 M pairs, batch 512 on 8 GPUs, text begins as ERNIE 2.0. From memory of the paper, "
        "none of it in code; warm-up, precision and how the kinds of node are mixed are not known.",
    )
    return {
        "tiny": replace(
            base,
            config=ERNIEViLConfig(**TINY_TWO_STREAMS, asks_broken=False),
            mix=Mix(share=dict.fromkeys(apart, 1.0) | dict.fromkeys(both, 2.0), begin=dict.fromkeys(both, 0.3)),
            **TINY_DUAL_RUN,
            note="Not a published recipe: learns generated scenes from scratch in minutes on two CPU cores.",
        ),
        "base": base,
        "large": replace(base, config=CONFIGS["large"], note="As base; one of the two adds COCO and Visual Genome."),
    }


def _falls(steps: int, warmup: int, *at: int, fall: float = 0.1) -> Schedule:
    return Schedule(steps, warmup, shape="milestones", milestones=tuple(x / steps for x in at), fall=fall)


def answers(config: HeadConfig, outputs: int) -> nn.Module:
    """Dropout that the authors did not mean to have, two layers with ReLU between, and dropout 0.5 before the second."""
    assert isinstance(config, ERNIEViLConfig)
    return nn.Sequential(
        Dropout(config.attention_probs_dropout_prob),
        nn.Linear(config.pooled_size, config.classifier_hid_size),
        nn.ReLU(),
        Dropout(0.5),
        nn.Linear(config.classifier_hid_size, outputs),
    )


def _finetune() -> dict[str, Finetune]:
    """The downstream tasks: base by the shipped conf files, large by the README's table as far as it goes; samples are those of one GPU."""

    def one(
        task: Task, keys: tuple[Move, ...], lr: float, how: Schedule, batch: int, pieces: int, note: str
    ) -> Finetune:
        sizes, head, rate = {}, 2.5 if isinstance(task, VQA) else 1.0, 0.9 if isinstance(task, VQA | ReferMean) else 1.0
        for x in CONFIGS:
            optim = replace(adam(lr), lr_factors=layer_decay(CONFIGS[x], rate))
            sizes[x] = Tuning(optim, how, Batching(rows=batch * (pieces + 103)), head, samples=batch, note=note)
        given, extra = Given() if isinstance(task, Among) else None, ("genome-qa", 2) if isinstance(task, VQA) else None
        return Finetune(task, sizes, KeyMap(*keys), config={"max_pieces": pieces}, given=given, extra=extra)

    names = ("vcr_qa_fc", "vcr_qar_fc")
    heads = {name: lambda config: linear(config, 1) for name in names}
    both = tuple(move for name in names for move in paddle.fc(name, f"head.{name}.1."))
    vcr = "both questions trained together there"
    vqa = "16 GPUs, by the steps of an epoch; 2 epochs with Visual Genome's questions first"
    refer = "8 GPUs, by the steps of an epoch"
    ranked = "8 GPUs, by the steps of an epoch; 20 broken pairs with another picture"
    fcs = tuple(
        Move(f"vqa_fc_{x}_{i}", f"head.{ours}.{what}", turned=x == "w")
        for i, ours in enumerate((1, 4))
        for x, what in (("w", "weight"), ("b", "bias"))
    )
    asked = 2e-5, _falls(26_640, 6654, 13_308, 19_962), 64
    fc, choose = paddle.fc("match_fc", "head."), VCREach(layouts=("vcr", "vcr_qar"))
    row = Move("cls_seq_label_vl_out_w", "head.weight", turned=True), Move("cls_seq_label_vl_out_b", "head.bias")
    asks, ranks = _falls(50_200, 3710, 15_100, 22_590), _falls(90_600, 9060, 54_360, 72_480)
    found = {
        "vqa": one(VQA(scorer=evenly(answers, 0.5**0.5)), fcs, 1e-4, asks, 16, 14, vqa),
        "vcr": one(Among(choose, names[0], heads), both, *asked, 57, vcr),
        "vcr_qar": one(Among(choose, names[1], heads), both, *asked, 77, vcr),
        "re": one(ReferMean(), row, 2e-5, _falls(26_640, 940, 3290, 4700, 7050, fall=0.2), 32, 78, refer),
        "retrieval": one(RetrievalCircle(), fc, 1e-5, ranks, 4, 46, ranked),
    }
    choices = 1e-4, _falls(39_924, 6654, 13_308, 19_962), 16, 0.9, "README: 4 GPUs, 6 epochs; falls of the conf file"
    long, note = _falls(28_200, 940, 3290, 4700, 7050, fall=0.2), "README: 2 GPUs, 30 epochs; falls of the conf file"
    large = {
        "vqa": (1e-4, _falls(37_650, 3710, 15_100, 22_590), 64, 0.9, "README: 4 GPUs, 15 epochs; conf's falls"),
        "vcr": choices,
        "vcr_qar": choices,
        "re": (1e-4, long, 64, 0.9, note),
        "retrieval": (2e-5, ranks, 8, 1.0, "README: 8 GPUs, 40 epochs, the conf file's steps"),
    }
    return {task: _with_large(found[task], *how) for task, how in large.items()}


def _with_large(found: Finetune, lr: float, how: Schedule, samples: int, rate: float, note: str) -> Finetune:
    """With the README's numbers for the large model."""
    optim = replace(adam(lr), lr_factors=layer_decay(CONFIGS["large"], rate))
    batching = Batching(rows=samples * (found.config["max_pieces"] + 103))
    tuning = replace(found.tunings["large"], optim=optim, schedule=how, batching=batching, samples=samples, note=note)
    drop = ("hidden_dropout_prob", "v_hidden_dropout_prob") if isinstance(found.task, ReferMean) else ()
    return replace(found, tunings={**found.tunings, "large": replace(tuning, config=dict.fromkeys(drop, 0.2))})


def _meeting(own: str, other: str, ours: str) -> tuple[Move, ...]:
    """Rules of one side of every meeting: it asks under its own name, and its keys and values bear the name of the side that reads them."""
    layer, side = "encoder_colayer_{i}", f"encoder.meetings.{{i}}.{ours}."
    asked = ",".join((f"{own}multi_head_att_query", f"{other}multi_head_att_key", f"{other}multi_head_att_value"))
    return (
        *paddle.fc(f"{layer}_{{{asked}}}_fc", f"{side}attention.qkv."),
        *paddle.fc(f"{layer}_{own}multi_head_att_output_fc", f"{side}attention.out."),
        *paddle.after_attention(f"{layer}_{own}", side),
    )


class ERNIEViL(System):
    """ERNIE-ViL at any size; see the module's docstring."""

    Config = ERNIEViLConfig
    needs = ("text", "regions")
    card = Card(
        name="ernie_vil",
        title="ERNIE-ViL: Knowledge Enhanced Vision-Language Representations Through Scene Graphs",
        venue="AAAI 2021",
        paper="arXiv:2006.16934",
        code="github.com/PaddlePaddle/ERNIE, branch repro, ernie-vil 5846cc3 (fine-tuning only)",
        streams="dual",
        new="hides the words that name the objects, attributes and relations of the caption's scene graph",
        objectives=("mlm", "mrc_kl", "itm", *sgp.GOALS),
        tasks=("vqa", "vcr", "vcr_qar", "re", "retrieval"),
        weights=("PaddlePaddle/ERNIE ernie-vil, folders and .tar.gz of variables",),
        unverified=(
            "all of pre-training: rates, mixing of the kinds of node, broken pairs, heads, optimizer, steps",
            "the parser, which is ours",
            "the byte layout of Paddle's files, LayerNorm's epsilon and erf GELU: from memory of its API",
            "published scores",
        ),
    )

    def __init__(self, config: ERNIEViLConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width, visual, eps = config.hidden_size, config.v_hidden_size, config.layer_norm_eps
        self.words = Words(config)
        self.regions = LocatedRegions(config)
        self.encoder = TwoStreams(config)
        self.text_pooler = ReLUPooler(width, config.bi_hidden_size)
        self.visual_pooler = ReLUPooler(visual, config.bi_hidden_size)
        self.word_head = TiedHead(width, config.vocab_size, eps)
        self.region_head = ClassHead(visual, config.classes, eps)
        self.match_head = nn.Linear(config.bi_hidden_size, 2)
        initialise(self, config.initializer_range)

    # 1 -- inputs: [CLS] words [SEP]; the regions and the whole picture ----------------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Words in segment 0, the regions and after them the whole picture.

        vcr: texts are the question and the choices; vcr_qar: question, right answer and choices. `form` says which choice, in segment 1. Texts of
        tasks are cut where they are too long, as the authors do.
        """
        return self._lay(sample, task, form)[0]

    def _lay(self, sample: Sample, task: str | None, form: int) -> tuple[Example, Pieces]:
        given = {"vcr": 1, "vcr_qar": 2}.get(task or "", 0)
        if given and given + form >= len(sample.texts):
            raise BadInput(
                f"sample {sample.key}: has {len(sample.texts)} texts, {task} {form} needs {given + form + 1}"
            )
        choice = [(sample.texts[given + form], 1)] if given else []
        parts = [*((x, 0) for x in sample.texts[: max(given, 1)]), *choice]
        earlier = [len(self.vocab.encode(x)) for x in sample.texts[given : given + form]] if given else []
        cut = pair_cut(earlier) if given else task is not None
        text, pieces = bert_rows(self.vocab, sample.key, parts, self.config.max_pieces, cut, own_sep=True)
        picture = sample.pictures[0]
        regions = region_rows(sample.key, picture, self.config.feature_size, 0)
        example = Example(
            key=document_key(sample, task, form),
            text=text,
            regions=with_whole_picture(regions, picture, (1.0, 1.0)),
            links=link_rows(sample, pieces[0]),
            sample=sample.key,
        )
        return example, pieces[0]

    # 2 -- streams: those of ViLBERT (sec. 3.1) ------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds and encodes both streams; pools [CLS] and the whole picture and multiplies the two."""
        text, regions = batch.text, batch.regions
        assert text is not None and regions is not None, "ERNIE-ViL needs text and regions"
        x, v = self.encoder(self.words(text), self.regions(regions), text.packing, regions.packing)
        said = self.text_pooler(x.index_select(0, text.packing.first))  # (B, P)
        seen = self.visual_pooler(v.index_select(0, regions.packing.last))
        return Encoded(x, v, regions.packing, said * seen, said, seen)

    # 3 -- objectives --------------------------------------------------------------------------------------------------------

    def graph(self, sample: Sample) -> TextGraph:
        """The scene graph of a sample's caption.

        Raises:
            BadInput: the file of graphs lacks it, or no rules read its language.
        """
        if not self.config.graphs:
            return read_graph(sample.texts[0], sample.language)
        found = _load(self.config.graphs).get(sample.texts[0])
        if found is None:
            raise BadInput(f"{self.config.graphs}: no graph of the caption {sample.texts[0]!r} of sample {sample.key}")
        return found

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Nodes of one kind, other words beside them, and regions, in pairs half of which have another's caption (sec. 3.2)."""
        config, goals, label = self.config, goal.split("+"), 1
        if wrong := [x for x in goals if x not in self.card.objectives]:
            raise BadInput(f"ernie_vil has no objective {wrong[0]!r}; it has {', '.join(self.card.objectives)}")
        if "itm" in goals:
            sample, label = itm.swap_text(sample, rng, draw, config.itm_rate)
        example, pieces = self._lay(sample, None, 0)
        held: list[Array] = [np.zeros(0, np.int64)]
        for kind in [x for x in goals if x in sgp.GOALS]:
            held.append(sgp.hide(example, pieces, self.graph(sample), self.vocab, rng, kind, config.sgp_rate))
        if "mlm" in goals:
            sgp.hide_others(example, self.vocab, rng, np.concatenate(held), config.mlm_rate)
        if "mrc_kl" in goals:
            mrm.hide_most(example, rng, ("mrc_kl",), config.mrm_rate, spare=1)
            assert example.regions is not None
            example.regions.feats[-1] = whole_feature(example.regions.feats[:-1], example.regions.masked[:-1])
        if not (label or config.asks_broken):
            joint.ask_nothing(example)
        if "itm" in goals:
            example.targets["itm"] = np.array(label)
        return example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal, which are added; nodes are told by the head of masked words."""
        assert encoded.visual is not None
        found: dict[str, Tensor] = {}
        for goal in batch.targets:
            if goal == "itm":
                found[goal] = itm.score(self.match_head(encoded.pooled), batch.labels(goal))
                continue
            picks = batch.picks(goal)
            if goal == "mrc_kl":
                guess = self.region_head(encoded.visual.index_select(0, picks.rows))
                found[goal] = mrm.region_divergence(guess, picks.labels)
            else:
                found[goal] = mlm.score(self.word_logits(encoded, picks.rows), picks.labels)
        return found

    # 4 -- recipes -----------------------------------------------------------------------------------------------------------

    recipes = _recipes()
    from_bert = bert.FromBert()

    # 5 -- downstream --------------------------------------------------------------------------------------------------------

    heads = ("word_head", "region_head", "match_head")
    finetune = _finetune()

    # 6 -- checkpoint: one file a variable, matrices stored [in, out]; pre-training heads were not published ---------------------------

    sizes, depths = bert.TWO_STREAM_SIZES, bert.TWO_STREAM_DEPTHS
    keys = KeyMap(
        Move("word_embedding", "words.word.weight"),
        Move("pos_embedding", "words.position.weight"),
        Move("sent_embedding", "words.segment.weight"),
        *paddle.norm("pre_encoder_layer_norm", "words.norm."),
        *paddle.fc("image_emb", "regions.feature."),
        *paddle.fc("image_loc", "regions.location."),
        *paddle.norm("vl_pre_encoder_layer_norm", "regions.norm."),
        *paddle.layer("encoder_layer_{i}_", "encoder.layers.{i}."),
        *paddle.layer("encoder_vlayer_{i}_", "encoder.visual_layers.{i}."),
        *_meeting("", "vl_", "words"),
        *_meeting("vl_", "", "regions"),
        *paddle.fc("pooled_fc_text", "text_pooler.dense."),
        *paddle.fc("pooled_fc_image", "visual_pooler.dense."),
        *bert.word_head(),
        ("region_head.", "region_head."),
        ("match_head.", "match_head."),
        optional=("word_head.", "region_head.", "match_head."),
    )
