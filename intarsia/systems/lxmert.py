"""LXMERT: Learning Cross-Modality Encoder Representations from Transformers (Tan and Bansal, EMNLP 2019).

New: three encoders, of words, of regions and of both; five tasks at once, the classes and attributes of regions and questions about pictures among them.
Unusual: where the streams meet, one set of weights serves both directions, and both read what was before. No feed-forward stands between meeting and
self-attention. A region is the mean of its feature and its box, normalised apart; it has no position, no segment. Classes and attributes are asked of all
regions, weighted by the detector's confidence; only features are asked of hidden ones. Broken pairs keep the picture and hide like true ones. Row 0 of
the position and segment tables gets no gradient: [CLS]'s position and the only segment in use stay as drawn. Weight decay spares nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from intarsia.attend import attend
from intarsia.batch import Batch, Encoded, Example, Regions, Sample, Text
from intarsia.errors import BadInput
from intarsia.layout import bert_rows, document_key, link_rows, picture_of, region_rows
from intarsia.objectives import itm, mlm, objects, qa
from intarsia.packed import Packing
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder, Layer
from intarsia.parts.heads import AnswerHead, Pooler, TiedHead, Transform
from intarsia.parts.linear import Linear, product
from intarsia.parts.numbers import TINY, BertNumbers
from intarsia.recipe import TINY_DUAL_RUN, Batching, Card, Mix, Optim, Recipe, Schedule
from intarsia.system import Finetune, System, Tuning
from intarsia.tasks import nlvr2
from intarsia.tasks.vqa import VQA, one_of_all
from intarsia.text import Vocab
from intarsia.weights import bert
from intarsia.weights.keymap import KeyMap, Tied

Rows = dict[str, Tensor]
Both = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LXMERTConfig(BertNumbers):
    """The numbers of LXMERT, by the names of Hugging Face's JSON; the recipes replace some."""

    num_hidden_layers: int = 9
    """Layers of words (l_layers there)."""
    r_layers: int = 5
    """Layers of regions."""
    x_layers: int = 5
    """Layers in which both meet."""
    feature_size: int = 2048
    """Numbers of a region feature."""
    num_object_labels: int = 1600
    """Classes of the detector, background not among them."""
    num_attr_labels: int = 400
    """Attributes of the detector, "none" not among them."""
    num_qa_labels: int = 9500
    """Answers in the table."""
    answers: tuple[str, ...] = ()
    """The table itself; empty = not at hand, then nothing can be asked."""
    max_pieces: int = 18
    """Longer texts are cut."""
    mlm_rate: float = 0.15
    mrm_rate: float = 0.15
    itm_rate: float = 0.5
    visual_loss_normalizer: float = 1 / 0.15
    """Factor on the three losses of regions."""


class RegionEmbeddings(nn.Module):
    """The mean of feature and box, each projected and normalised. Source: sec. 2.1, eq. 1."""

    def __init__(self, config: LXMERTConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.feature = nn.Linear(config.feature_size, width)
        self.feature_norm = nn.LayerNorm(width, eps)
        self.box, self.box_norm = nn.Linear(4, width), nn.LayerNorm(width, eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, regions: Regions) -> Tensor:
        """Embeds packed regions: (R, H)."""
        dtype = self.feature.weight.dtype
        feats, places = self.feature(regions.feats.to(dtype)), self.box(regions.boxes.to(dtype))
        return self.dropout((self.feature_norm(feats) + self.box_norm(places)) / 2)  # type: ignore[no-any-return]


class CrossLayer(nn.Module):
    """Words and regions attend to each other by the same weights, then each stream to itself. Source: sec. 2.2; fig. 1, right."""

    def __init__(self, config: LXMERTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.attention_dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.words, self.regions = Layer(config), Layer(config)

    def forward(self, words: Tensor, text: Packing, seen: Tensor, visual: Packing, read: Rows | None) -> Both:
        """One meeting of words (T, H) with regions (R, H); of `read` only those rows, the others are NaN."""
        if read is not None and not len(read["regions"]):
            met = self._words_alone(words, text, seen, visual)
            return self.words(met, text, read["text"]), torch.full_like(seen, torch.nan)
        both = torch.cat([words, seen])  # (T + R, H)
        q, k, v = self.qkv(both).view(len(both), 3, self.heads, -1).unbind(1)  # (T + R, heads, D) each
        cut, dropout = len(words), self.attention_dropout if self.training else 0.0
        of_words = attend(q[:cut], k[cut:], v[cut:], text, visual, dropout)
        of_regions = attend(q[cut:], k[:cut], v[:cut], visual, text, dropout)
        met = self._after(both, torch.cat([of_words, of_regions]))
        rows = (None, None) if read is None else (read["text"], read["regions"])
        return self.words(met[:cut], text, rows[0]), self.regions(met[cut:], visual, rows[1])

    def _words_alone(self, words: Tensor, text: Packing, seen: Tensor, visual: Packing) -> Tensor:
        """What words see, where nobody asks what regions see."""
        width, weight, bias = len(self.norm.weight), self.qkv.weight, self.qkv.bias
        q = product(words, weight[:width], bias[:width]).view(len(words), self.heads, -1)
        k, v = product(seen, weight[width:], bias[width:]).view(len(seen), 2, self.heads, -1).unbind(1)
        return self._after(words, attend(q, k, v, text, visual, self.attention_dropout if self.training else 0.0))

    def _after(self, x: Tensor, mixed: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.out(mixed.flatten(1))))  # type: ignore[no-any-return]


def _recipes() -> dict[str, Recipe[LXMERTConfig]]:
    """The authors' run, the paper's, and a tiny one."""
    every = "mlm+itm+obj+attr+feat+qa"
    base = Recipe(
        config=LXMERTConfig(),
        mix=Mix(share={every: 1}),
        optim=_adam(1e-4, 1.0),
        schedule=Schedule(steps=717_000, warmup=35_850, shape="zero"),
        batching=Batching(rows=14_336, window=8192),
        note="run/lxmert_pretrain.bash: from scratch, 20 epochs of 9.18 M pairs, 256 a step, 4 GPUs, 8.5 days. `paper` asks questions otherwise.",
    )
    late = Mix({every.removesuffix("+qa"): 1e-9, every: 1}, {every: 0.5}, {"qa": 2})
    note = "As base, but as the paper has it: questions are asked in the last 10 epochs only, with weight 2."
    paper = replace(base, mix=late, note=note)
    tiny = replace(
        base,
        config=LXMERTConfig(**TINY, r_layers=1, x_layers=2, mlm_rate=0.25),
        mix=Mix({every.replace("itm+", ""): 1, every: 2}, {every: 0.3}, dict.fromkeys(("obj", "attr", "feat"), 0.15)),
        **TINY_DUAL_RUN,
        note="Not a published recipe: for generated scenes on two CPU cores. Losses of regions weigh less; pairs are broken after the first third.",
    )
    return {"tiny": tiny, "base": base, "paper": paper}


def _adam(lr: float, max_norm: float) -> Optim:
    """BertAdam with global clipping; it decays biases and norms too."""
    return Optim(lr, (0.9, 0.999), 1e-6, 0.01, no_decay=(), max_norm=max_norm, bias_correction=False)


def _finetune() -> dict[str, Finetune]:
    """The downstream tasks: 4 epochs of 32 each; the first layer of a question's head starts from pre-training (tasks.vqa.carry_over does the answers)."""

    def tuning(lr: float, samples: int, note: str) -> dict[str, Tuning]:
        how = Schedule(samples // 8, samples // 80, shape="zero"), Batching(rows=32 * 56)
        return {"base": Tuning(_adam(lr, 5.0), *how, samples=32, note=note)}

    keys = KeyMap(*bert.numbered("logit_fc.", "head.", bert.ANSWER_HEAD))
    head = {f"{x}.{y}": (f"answer_head.{x}.{y}", None) for x in ("up", "norm") for y in ("weight", "bias")}
    vqa = tuning(5e-5, 632_117, "run/vqa_finetune.bash: train and val2014 less 5,000 pictures")
    gqa = tuning(1e-5, 1_075_062, "run/gqa_finetune.bash: train and valid")
    pairs, wrapped = tuning(5e-5, 86_373, "run/nlvr2_finetune.bash"), {"lxrt_encoder.model.": ""}
    return {
        "vqa": Finetune(VQA(never=0), vqa, keys, renames=wrapped, head_from=head),
        "gqa": Finetune(VQA(1842, never=0), gqa, keys, renames=wrapped, head_from=head),
        "gqa_one": Finetune(VQA(1842, never=0, criterion=one_of_all), gqa, keys, renames=wrapped, head_from=head),
        "nlvr2": Finetune(nlvr2.NLVR2Pair(nlvr2.two_layers), pairs, keys, renames=wrapped),
    }


HEADS = ("word_head.", "match_head.", "object_transform.", "object_heads.", "answer_head.")
REGIONS = {"visn_fc": "feature", "visn_layer_norm": "feature_norm", "box_fc": "box", "box_layer_norm": "box_norm"}


def _keys(body: str) -> KeyMap:
    """The authors' names and Hugging Face's, which call the body "bert." and "lxmert."."""
    cross = body + "encoder.x_layers.{i}."
    return KeyMap(
        *bert.body(body),
        *bert.layers(body + "encoder.r_layers.{i}.", "relations.layers.{i}."),
        *bert.layers(cross + "lang_", "cross_layers.{i}.words.", "self_att.", "inter.", "output."),
        *bert.layers(cross + "visn_", "cross_layers.{i}.regions.", "self_att.", "inter.", "output."),
        (cross + "visual_attention.att.{query,key,value}.", "cross_layers.{i}.qkv."),
        (cross + "visual_attention.output.dense.", "cross_layers.{i}.out."),
        (cross + "visual_attention.output.LayerNorm.", "cross_layers.{i}.norm."),
        *((f"{body}encoder.visn_fc.{theirs}.", f"regions.{ours}.") for theirs, ours in REGIONS.items()),
        (body + "pooler.dense.", "pooler.dense."),
        *bert.word_head(),
        ("cls.seq_relationship.", "match_head."),
        ("obj_predict_head.transform.dense.", "object_transform.dense."),
        ("obj_predict_head.transform.LayerNorm.", "object_transform.norm."),
        ("obj_predict_head.decoder_dict.", "object_heads."),
        *bert.numbered("answer_head.logit_fc.", "answer_head.", bert.ANSWER_HEAD),
        Tied("cls.predictions.decoder.weight", body + "embeddings.word_embeddings.weight"),
        optional=HEADS,
    )


class LXMERT(System):
    """LXMERT at any size; see the module's docstring."""

    Config = LXMERTConfig
    needs = ("text", "regions")
    card = Card(
        name="lxmert",
        title="LXMERT: Learning Cross-Modality Encoder Representations from Transformers",
        venue="EMNLP 2019",
        paper="arXiv:1908.07490",
        code="github.com/airsplay/lxmert 0db1182",
        streams="dual",
        new="encoders of words, of regions and of both; classes, attributes and questions are asked beside hidden words",
        objectives=("mlm", "itm", "obj", "attr", "feat", "qa"),
        tasks=("vqa", "gqa", "gqa_one", "nlvr2"),
        weights=("airsplay/lxmert .pth", "Hugging Face LxmertForPreTraining"),
        unverified=("corpus sizes and so the steps", "the authors' table of 9,500 answers", "published scores"),
        features=(("butd", "36"),),
    )

    def __init__(self, config: LXMERTConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width, eps = config.hidden_size, config.layer_norm_eps
        self.words = Words(config)
        self.regions = RegionEmbeddings(config)
        self.encoder = Encoder(config)
        self.relations = Encoder(replace(config, num_hidden_layers=config.r_layers))
        self.cross_layers = nn.ModuleList(CrossLayer(config) for _ in range(config.x_layers))
        self.pooler = Pooler(width)
        self.word_head = TiedHead(width, config.vocab_size, eps)
        self.match_head = nn.Linear(width, 2)
        self.object_transform = Transform(width, eps)
        sizes = {"obj": config.num_object_labels, "attr": config.num_attr_labels, "feat": config.feature_size}
        self.object_heads = nn.ModuleDict({goal: nn.Linear(width, size) for goal, size in sizes.items()})
        self.answer_head = AnswerHead(width, config.num_qa_labels, nn.GELU(), eps)
        initialise(self, config.initializer_range)
        for table in (self.words.word, self.words.position, self.words.segment):
            table.padding_idx = 0  # row 0 is as drawn, and gets no gradient where it is looked up

    # 1 -- inputs: [CLS] words [SEP] and the regions, in streams of their own ------------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Words in segment 0, regions. nlvr2: one document a picture, `form` says which."""
        second = form if task == "nlvr2" else 0
        text, pieces = bert_rows(self.vocab, sample.key, [(sample.texts[0], 0)], self.config.max_pieces, cut=True)
        return Example(
            key=document_key(sample, task, form),
            text=text,
            regions=region_rows(sample.key, picture_of(sample, second), self.config.feature_size, 0, second),
            links=link_rows(sample, pieces[0]),
            sample=sample.key,
        )

    # 2 -- streams: words and regions apart, then both -------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Both streams, their meetings, and what is pooled of [CLS]."""
        text, regions = batch.text, batch.regions
        assert text is not None and regions is not None, "LXMERT needs text and regions"
        words, seen = self.encode_text(text), self.encode_visual(regions)
        return self.cross(words, text.packing, seen, regions.packing, self.read(batch))

    def encode_text(self, text: Text) -> Tensor:
        """(T, H) words among themselves."""
        return self.encoder(self.words(text), text.packing)  # type: ignore[no-any-return]

    def encode_visual(self, regions: Regions) -> Tensor:
        """(R, H) regions among themselves."""
        return self.relations(self.regions(regions), regions.packing)  # type: ignore[no-any-return]

    def cross(self, words: Tensor, text: Packing, seen: Tensor, visual: Packing, read: Rows | None = None) -> Encoded:
        """The meetings; the last one gives only the rows of `read`, the first of each text among them."""
        last = len(self.cross_layers) - 1
        for i, layer in enumerate(self.cross_layers):
            words, seen = layer(words, text, seen, visual, read if i == last else None)
        return Encoded(text=words, visual=seen, visual_packing=visual, pooled=self.pooler(words, text))

    # 3 -- objectives -----------------------------------------------------------------------------------------------------------

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """All five tasks on one document (sec. 3.1): the text is another's in half of the pairs, words and regions are hidden, questions are asked of true pairs."""
        config, goals, label = self.config, goal.split("+"), 1
        if "itm" in goals:
            sample, label = itm.swap_text(sample, rng, draw, config.itm_rate)
        example = self.lay_out(sample)
        for name in goals:
            match name:
                case "mlm":
                    mlm.hide_any(example, self.vocab, rng, config.mlm_rate)
                case "itm":
                    example.targets[name] = np.array(label)
                case "obj" | "attr":
                    example.targets[name] = objects.told(example, name)
                case "feat":
                    objects.hide_or_exchange(example, rng, draw, config.mrm_rate)
                case "qa":
                    example.targets[name] = np.array(qa.label(sample, config.answers, rng))
                case _:
                    raise BadInput(f"lxmert has no objective {name!r}; it has {', '.join(self.card.objectives)}")
        return example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal, which are added."""
        assert encoded.visual is not None
        found: dict[str, Tensor] = {}
        scale, regions = self.config.visual_loss_normalizer, len(encoded.visual)
        every = self.object_transform(encoded.visual) if {"obj", "attr"} & batch.targets.keys() else None
        for goal in batch.targets:
            match goal:
                case "mlm":
                    picks = batch.picks(goal)
                    found[goal] = mlm.score(self.word_logits(encoded, picks.rows), picks.labels)
                case "itm":
                    found[goal] = itm.score(self.match_head(encoded.pooled), batch.labels(goal))
                case "obj" | "attr":
                    assert every is not None
                    found[goal] = scale * objects.classify(self.object_heads[goal](every), batch.picks(goal).labels)
                case "feat":
                    picks = batch.picks(goal)
                    x = self.object_transform(encoded.visual[picks.rows]) if every is None else every[picks.rows]
                    found[goal] = scale * objects.regress(self.object_heads[goal](x), picks.labels, regions)
                case "qa":
                    found[goal] = qa.score(self.answer_head(encoded.pooled), batch.labels(goal))
        return found

    # 4 -- recipes and downstream: the authors', and a recipe that a laptop core learns generated scenes by ---------------------

    recipes, from_bert = _recipes(), bert.FromBert(matches=True, deeper=True)
    picked_goals = ("mlm", "itm", "obj", "attr", "feat", "qa")
    untrained = ("words.segment.weight",)
    heads = tuple(name.removesuffix(".") for name in HEADS)
    finetune = _finetune()

    # 5 -- checkpoint: a "module." in front of all keys goes when a file is read --------------------------------------------------

    sizes = bert.SIZES | {
        "feature_size": ("regions.feature.weight", 1),
        "num_object_labels": ("object_heads.obj.weight", 0),
        "num_attr_labels": ("object_heads.attr.weight", 0),
        "num_qa_labels": ("answer_head.out.weight", 0),
    }
    depths = dict(System.depths) | {"r_layers": "relations.layers.", "x_layers": "cross_layers."}
    keys = _keys("bert.")
    layouts = {"hf": _keys("lxmert.")}  # noqa: RUF012
