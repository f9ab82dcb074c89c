"""VisualBERT: A Simple and Performant Baseline for Vision and Language (Li et al., arXiv 2019).

New: plain BERT reads words and projected regions as one sequence; self-attention alone must find which word means which region.
Unusual: two captions a document, the second true or not. Regions are never hidden, have no geometry and all stand at one position of a table of their own.
The authors' pooler never trains. A region's segment is 0, where Hugging Face's code says 1. Region features are made beforehand, or read off the pixels by
R2C's detector that trains along (`trunk`), as for VCR.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from intarsia.batch import Batch, Encoded, Example, Picture, RegionRows, Sample
from intarsia.errors import BadInput
from intarsia.features.resnet import ResNetConfig
from intarsia.features.simple_detector import CLASSES, LAYOUT, RESNET50, WIDTH, SimpleDetector, framed, inside, seen
from intarsia.layout import before_last_sep, bert_rows, picture_of, region_rows, side_by_side
from intarsia.objectives import itm, mlm
from intarsia.parts.embeddings import Words, initialise
from intarsia.parts.encoder import Encoder, Layer
from intarsia.parts.heads import Pooler, TiedHead
from intarsia.parts.linked_regions import LinkedRegions
from intarsia.parts.numbers import TINY, BertNumbers
from intarsia.parts.stream import encode_joined
from intarsia.recipe import TINY_RUN, Batching, Card, Mix, Recipe, Schedule, adam, bert_adam
from intarsia.system import Finetune, System, Tuning
from intarsia.tasks import from_end, linear
from intarsia.tasks.ground import Grounding
from intarsia.tasks.nlvr2 import NLVR2Joint, NLVR2Pair, transformed
from intarsia.tasks.own import own_text
from intarsia.tasks.vcr import VCROneOf, choice_links, first_pieces, front_cut, labelled
from intarsia.tasks.vqa import VQA, share_loss, transform_linear
from intarsia.text import Pieces, Vocab
from intarsia.weights import bert
from intarsia.weights.keymap import Drop, KeyMap, Tied


@dataclass(frozen=True)
class VisualBERTConfig(BertNumbers):
    """The numbers of the one published size, with the features of the VQA runs."""

    feature_size: int = 2048
    """Numbers of a region feature."""
    max_regions: int = 0
    """Most regions of a picture, those that come first; 0 = all."""
    trunk: ResNetConfig | None = None
    """R2C's detector, which reads regions off the pixels at given boxes (VCR); None = features are made beforehand."""
    trunk_frozen: bool = True
    """Its layers up to the third stay as they are: in pre-training."""
    object_weight: float = 0.0
    """Weight of the loss by which it names its objects; the authors leave it out."""
    box_numbers: bool = False
    """x1, y1, x2, y2, width and height are appended to the feature (the Flickr30k runs)."""
    visual_segment: int = 0
    """Segment of the regions of the first picture; weights trained with Hugging Face's code may have 1."""
    max_pieces: int = 125
    """Two texts together; more are cut from the front, a single text, which may have one more, from the end."""
    two_captions: bool = True
    """Pre-training documents hold a true caption and a second one, of the same picture or not; False = one caption."""
    own: Literal["", "vqa", "nlvr2", "vcr"] = ""
    """The task whose own texts are pre-trained on; empty = captions."""
    late_fusion: bool = False
    """The encoder sees words only, one more layer sees both (the authors' ablation)."""
    train_pooler: bool = False
    """The authors leave the pooler as BERT has it, in every phase."""
    mlm_rate: float = 0.15
    itm_rate: float = 0.5
    """Share of documents whose (second) caption is of another picture."""

    @property
    def classes(self) -> int:
        """Of regions' labels, background among them: COCO's for the detector, else Visual Genome's."""
        return CLASSES if self.trunk else 1601


def _recipes() -> dict[str, Recipe[VisualBERTConfig]]:
    """The authors' COCO runs, one for each kind of feature, those on each task's own texts that follow, and a tiny one."""

    def run(steps: int, rows: int, note: str, lr: float = 5e-5, warm: float = 0.1, **changes: Any) -> Any:
        config, goal = VisualBERTConfig(**changes), "mlm" if changes.get("own") == "vqa" else "mlm+itm"
        how = Schedule(steps=steps, warmup=int(warm * steps), shape="bert")
        return Recipe(config, Mix({goal: 1}), bert_adam(lr), schedule=how, batching=Batching(rows), note=note)

    base = run(
        *(123_000, 1500),
        "COCO captions, 10 epochs at batch 48 on 4 GPUs; fp32; features of the VQA runs (Detectron, 100 regions).",
    )
    nlvr2 = "As base with the features of the NLVR2 runs (Mask R-CNN FPN, 1024 numbers, 144 regions), batch 64."
    vcr = "As base with R2C's detector (--trunk resnet50.pth), whose first three layers stay as they are, on pictures with boxes; batch 128."
    flickr = "As base with the features of the Flickr30k runs (bottom-up attention and six box numbers), batch 32."
    own = "From {0} (--weights) on the task's own texts (--benchmark {1}), {2}.".format
    tiny = replace(
        base,
        config=VisualBERTConfig(**TINY, mlm_rate=0.25, two_captions=False, train_pooler=True),
        mix=Mix(share={"mlm": 1, "mlm+itm": 2}, begin={"mlm+itm": 0.3}),
        **TINY_RUN,
        note="Not a published recipe: learns generated scenes from scratch in minutes on two CPU cores; one caption a document.",
    )
    captions = run(45_000, 1000, own("base_flickr", "flickr30k", "10 epochs, batch 32"), box_numbers=True)
    one, first = replace(captions.config, two_captions=False), {"feature_size": 1024, "max_regions": 144}
    return {
        "tiny": tiny,
        "base": base,
        "base_nlvr2": run(92_000, 2750, nlvr2, **first),
        "base_vcr": run(46_000, 10_500, vcr, 1e-4, trunk=RESNET50),
        "base_flickr": run(185_000, 1000, flickr, box_numbers=True),
        "own_vqa": run(99_000, 2080, own("base", "vqa", "10 epochs, batch 64"), own="vqa"),
        "own_nlvr2": run(13_500, 2560, own("base_nlvr2", "nlvr2", "10 epochs, batch 64, 8 GPUs"), own="nlvr2", **first),
        "own_vcr": run(6650, 2900, own("base_vcr", "vcr", "1 epoch, batch 32"), warm=0.1879, own="vcr", trunk=RESNET50),
        "own_flickr": replace(captions, config=one, mix=Mix({"mlm": 1})),
    }


def _finetune() -> dict[str, Finetune]:
    """The downstream tasks with the authors' numbers, on 4 GPUs, and two with those of MMF."""

    def tuning(samples: int, steps: int, note: str, rows: int = 130) -> dict[str, Tuning]:
        schedule, batching = Schedule(steps=steps, warmup=steps // 10, shape="bert"), Batching(rows=rows * samples // 4)
        return {"base": Tuning(bert_adam(2e-5), schedule, batching, samples=samples // 4, note=note)}

    classifier = KeyMap(("classifier.", "head.1."))
    wrapped = {f"bert.{x}.": f"{x}." for x in ("bert", "cls", "classifier", "flickr_attention")}
    halves = ("classifier.0.dense.", "head.1.dense."), ("classifier.0.LayerNorm.", "head.1.norm.")
    vqa, ten = VQA(reads=from_end(2), scorer=transform_linear), "10 epochs, batch 64; train and val less minival"
    own = Tuning(adam(5e-5, 0), Schedule(60_000, 6000, shape="zero"), Batching(16_000), samples=60, note="batch 480")
    mmf: dict[str, Any] = {"tunings": {"base": own}, "keys": KeyMap(*halves, ("classifier.1.", "head.2."))}
    mmf |= {"config": {"train_pooler": True}}
    hf = {"cls.weight": "classifier.weight", "cls.bias": "classifier.bias", "attention.": "flickr_attention."}
    found = {
        "vqa": Finetune(replace(vqa, scorer=linear, criterion=share_loss), tuning(64, 99_000, ten), classifier),
        "vqa_mmf": Finetune(vqa, **mmf),
        "nlvr2": Finetune(NLVR2Joint(), tuning(64, 13_500, "10 epochs, batch 64; 144 regions each", 330), classifier),
        "nlvr2_mmf": Finetune(NLVR2Pair(transformed), **mmf),
        "vcr": Finetune(
            VCROneOf(read_once=True),
            tuning(32, 53_000, "8 epochs of Q to A (12 of QA to R), batch 32; boxes tied to their words", 900),
            classifier,
            config={"trunk_frozen": False},
        ),
        "ground": Finetune(
            Grounding(),
            tuning(32, 23_000, "5 epochs of Flickr30k, batch 32"),
            KeyMap(("flickr_attention.", "head.")),
            keeps=("word_head", "match_head"),
        ),
    }
    renames = wrapped | hf | {"model.": ""}
    return {name: replace(each, renames=renames) for name, each in found.items()}


class VisualBERT(System):
    """VisualBERT; see the module's docstring."""

    Config = VisualBERTConfig
    needs = ("text", "regions")
    card = Card(
        name="visualbert",
        title="VisualBERT: A Simple and Performant Baseline for Vision and Language",
        venue="arXiv 2019",
        paper="arXiv:1908.03557",
        code="github.com/uclanlp/visualbert 2a9e8bd",
        streams="single",
        new="BERT over words and regions in one sequence, nothing else",
        objectives=("mlm", "itm"),
        tasks=("vqa", "vqa_mmf", "nlvr2", "nlvr2_mmf", "vcr", "ground"),
        weights=("uclanlp/visualbert .th", "Hugging Face VisualBertForPreTraining"),
        unverified=("published VQA scores", "names of some checkpoints"),
    )

    def __init__(self, config: VisualBERTConfig, vocab: Vocab) -> None:
        super().__init__(config, vocab)
        self.config, self.vocab = config, vocab
        width = config.hidden_size
        self.words = Words(config)
        self.regions = LinkedRegions(config, WIDTH if config.trunk else config.feature_size, config.box_numbers)
        self.encoder = Encoder(config)
        if config.late_fusion:
            self.fusion = Layer(config)
        self.pooler = Pooler(width).requires_grad_(config.train_pooler)
        self.word_head = TiedHead(width, config.vocab_size, config.layer_norm_eps)
        self.match_head = nn.Linear(width, 2)
        initialise(self, config.initializer_range)
        trunk, names, self.object_loss = config.trunk, config.object_weight > 0, torch.zeros(())
        self.trunk = SimpleDetector(trunk, config.trunk_frozen, names) if trunk else None

    def fill_trunk(self, path: Path) -> None:
        """The detector starts from a ResNet's weights."""
        self.trunk.fill(path) if self.trunk else super().fill_trunk(path)

    # 1 -- inputs: [CLS] caption [SEP] second caption [SEP], then the regions ------------------------------------------

    def lay_out(self, sample: Sample, task: str | None = None, form: int = 0) -> Example:
        """Texts in segments 0 and 1, then the regions.

        vqa: the question and [MASK]. nlvr2: the regions of both pictures, the second's in segment 1; nlvr2_mmf: of one, `form` says which. vcr: texts
        are the question (with the right answer, for rationales) and the choices, `form` says which; links tie regions to the first piece of their words.
        """
        texts = sample.texts[:2] if task != "vcr" else (sample.texts[0], sample.texts[1 + form])
        if task == "vqa":
            texts = (sample.texts[0].rstrip(" ?") + " ?",)
        parts, limit = [(text, i) for i, text in enumerate(texts)], self.config.max_pieces - (task == "vqa")
        cut = front_cut if task == "vcr" else cut_front
        text, pieces = bert_rows(self.vocab, sample.key, parts, limit, cut, own_sep=True)
        if task == "vqa":
            text = before_last_sep(text, self.vocab.mask)
        sample, numbers = self._framed(sample), {"nlvr2": (0, 1), "nlvr2_mmf": (form,)}.get(task or "", ())
        shown = [picture_of(sample, i) for i in numbers] or sample.pictures[:1]
        regions = [self._regions(sample.key, picture, i) for i, picture in enumerate(shown)]
        example = Example(sample.key, text, side_by_side(regions) if regions else None, sample=sample.key)
        example.images = tuple(seen(sample.key, x) for x in shown if self.config.trunk)
        if task == "vcr":
            example.key = f"{sample.key}@{form}"
            example.links = first_pieces(choice_links(sample, pieces, form), text.words)
        return example

    def _regions(self, key: str, picture: Picture, number: int) -> RegionRows:
        width = 0 if self.config.trunk else self.config.feature_size
        rows = region_rows(key, picture, width, self.config.visual_segment + number, number)
        rows.covers = picture.covers(inside) if self.config.trunk and picture.covers else None
        return rows.first(self.config.max_regions) if self.config.max_regions else rows

    def _framed(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        """What the detector reads, with the whole picture as a last region; the authors' first, which is the same."""
        return framed(labelled(sample), rng) if self.config.trunk and sample.pictures else sample

    # 2 -- stream: BERT over both --------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Embeds, joins and encodes; pools the output of [CLS]. Without regions it is BERT."""
        text, regions = batch.text, batch.regions
        assert text is not None, "VisualBERT needs text"
        words = self.words(text)
        if regions is None:
            x = self.encoder(words, text.packing)
            return Encoded(text=x, visual=None, visual_packing=None, pooled=self.pooler(x, text.packing))
        feats = regions.feats
        if self.trunk is not None:
            feats, self.object_loss = self.trunk(batch.images, regions)
        shown = self.regions(feats, regions, text, self.words, batch.links)
        if self.config.late_fusion:
            words = self.encoder(words, text.packing)
        both = self.fusion if self.config.late_fusion else self.encoder
        return encode_joined(both, self.pooler, words, text.packing, shown, regions.packing, self.read(batch))

    # 3 -- objectives ---------------------------------------------------------------------------------------------------

    def vary(self, sample: Sample, task: str | None, rng: np.random.Generator) -> Sample:
        """In training what the detector reads stands anywhere in its frame."""
        return self._framed(sample, rng)

    def hide(self, sample: Sample, goal: str, rng: np.random.Generator, draw: Callable[[], Sample]) -> Example:
        """Words are hidden, regions never; the second caption (or the only one) is of another picture half of the time (sec. 3.3)."""
        sample, goals, label = self.vary(sample, None, rng), goal.split("+"), 1
        task, form = None, 0
        if self.config.own:
            sample, task, form, label = own_text(self.config.own, sample, rng)
        elif "itm" in goals:
            if self.config.two_captions and not sample.also:
                raise BadInput(f"sample {sample.key}: its picture has one caption, two_captions needs two")
            if rng.random() < self.config.itm_rate:
                label, other = 0, draw().texts[0]
            else:
                other = str(rng.choice(sample.also)) if self.config.two_captions else sample.texts[0]
            sample = replace(sample, texts=(sample.texts[0], other) if self.config.two_captions else (other,))
        example = mlm.hide_any(self.lay_out(sample, task, form), self.vocab, rng, self.config.mlm_rate)
        if "itm" in goals:
            example.targets["itm"] = np.array(label)
        return example

    def losses(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """One loss a goal; the sum of both is trained."""
        found: dict[str, Tensor] = {}
        if "mlm" in batch.targets:
            picks = batch.picks("mlm")
            found["mlm"] = mlm.score(self.word_logits(encoded, picks.rows), picks.labels)
        if "itm" in batch.targets:
            found["itm"] = itm.score(self.match_head(encoded.pooled), batch.labels("itm"))
        return found | self.beside()

    def beside(self) -> dict[str, Tensor]:
        """The detector's loss, where it counts."""
        weight = self.config.object_weight if self.trunk else 0.0
        return {"objects": weight * self.object_loss} if weight else {}

    # 4 -- recipes ------------------------------------------------------------------------------------------------------

    recipes, chosen = _recipes(), ("own", "two_captions")
    from_bert = bert.FromBert(
        copies={"regions.segment.weight": "words.segment.weight", "regions.position.weight": "words.position.weight"},
        matches=True,
    )

    # 5 -- downstream ---------------------------------------------------------------------------------------------------

    picked_goals = ("mlm", "itm")
    heads = ("word_head", "match_head")
    finetune = _finetune()

    # 6 -- checkpoint: the authors' files have one more "bert." in front, their wrapper's; MMF's have "model." ------------------

    sizes = bert.SIZES | {"feature_size": ("regions.feature.weight", 1)}
    flags = {"late_fusion": "fusion.norm.weight"}  # noqa: RUF012
    detector = LAYOUT.behind("detector.").under("trunk.")
    body = KeyMap(
        *bert.body("bert."),
        ("bert.embeddings.projection.", "regions.feature."),
        ("bert.embeddings.token_type_embeddings_visual.", "regions.segment."),
        ("bert.embeddings.position_embeddings_visual.", "regions.position."),
        *bert.layers("bert.additional_layer.", "fusion."),
        ("bert.pooler.dense.", "pooler.dense."),
        *bert.word_head(),
        ("cls.seq_relationship.", "match_head."),
        Tied("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        optional=("word_head.", "match_head."),
    )
    keys = body + detector
    layouts = {  # noqa: RUF012
        "wrapped": body.behind("bert.") + detector,
        "mmf": body.behind("model."),
        "hf": KeyMap(
            *bert.body("visual_bert."),
            ("visual_bert.embeddings.visual_projection.", "regions.feature."),
            ("visual_bert.embeddings.visual_token_type_embeddings.", "regions.segment."),
            ("visual_bert.embeddings.visual_position_embeddings.", "regions.position."),
            *bert.layers("visual_bert.additional_layer.", "fusion."),
            ("visual_bert.pooler.dense.", "pooler.dense."),
            *bert.word_head(),
            ("cls.seq_relationship.", "match_head."),
            Tied("cls.predictions.decoder.weight", "visual_bert.embeddings.word_embeddings.weight"),
            Tied("cls.predictions.decoder.bias", "cls.predictions.bias"),
            Drop("visual_bert.embeddings.position_ids"),
            optional=("word_head.", "match_head."),
        ),
    }


def cut_front(pieces: list[Pieces], limit: int) -> list[Pieces]:
    """The authors' rule: of two texts both lose from the front, the second more than it need (which is kept); one text loses from the end."""
    if len(pieces) == 1:
        return [pieces[0].part(0, limit + 1)]
    over = max(sum(map(len, pieces)) - limit, 0)
    first = min((over + 1) // 2, max(len(pieces[0]) - 32, 0))
    return [pieces[0].part(first, None), pieces[1].part(over + first, None)]
