"""The benchmarks, a file each: their published annotation files to items, the official numbers, the server's file.

A benchmark knows no system. Which one a system's task is trained on by default is said by the task's name.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import get_args

from intarsia.errors import BadInput
from intarsia.tasks.benchmarks import (
    captions,
    chinese,
    classes,
    cloze,
    entail,
    entities,
    fashion,
    genome,
    gqa,
    guesswhat,
    karpathy,
    named,
    nlvr2,
    refer,
    vcr,
    video,
    visual7w,
    vqa,
)
from intarsia.tasks.benchmarks.items import Annotated, Annotations, Item, Pictures
from intarsia.tasks.benchmarks.table import Benchmark, Predictions
from intarsia.tasks.metrics import entities as metrics_entities
from intarsia.tasks.metrics import overlap, ranking
from intarsia.tasks.metrics import vqa as metrics_vqa

__all__ = [
    "BENCHMARKS",
    "Annotated",
    "Annotations",
    "Benchmark",
    "Item",
    "Pictures",
    "Predictions",
    "benchmark_of",
    "find",
]

_CAPTIONS = "image R@1"
_VCR = tuple(vcr.SPLITS)
RANKED = (*get_args(ranking.Ties), "uniter")
"""Ways to count ranked pairs."""
FILMS_RANKED = (*get_args(ranking.Ties), "howto100m")
"""And ranked films."""

BENCHMARKS = {
    x.name: x
    for x in (
        Benchmark(
            "vqa",
            "VQA v2",
            (*vqa.SPLITS, *vqa.PARTS),
            vqa.read,
            "accuracy",
            vqa.measure,
            conventions=get_args(metrics_vqa.Convention),
            labels=vqa.labels,
            chance=vqa.chance,
            submit=vqa.submit,
        ),
        Benchmark(
            "gqa",
            "GQA",
            tuple(gqa.SPLITS),
            gqa.read,
            "accuracy",
            gqa.measure,
            labels=gqa.labels,
            chance=gqa.chance,
            submit=gqa.submit,
        ),
        Benchmark(
            "genome-qa",
            "Visual Genome questions",
            ("train",),
            genome.read,
            "accuracy",
            genome.measure,
            labels=genome.labels,
            chance=genome.chance,
        ),
        Benchmark(
            "nlvr2",
            "NLVR2",
            tuple(nlvr2.SPLITS),
            nlvr2.read,
            "accuracy",
            nlvr2.measure,
            chance=nlvr2.chance,
            submit=nlvr2.submit,
        ),
        *(
            Benchmark(name, title, tuple(entail.SPLITS), read, "accuracy", entail.measure, chance=entail.chance)
            for name, title, read in (
                ("snli-ve", "SNLI-VE", entail.read),
                ("e-snli-ve", "e-SNLI-VE, neutral pairs corrected", entail.corrected),
                ("e-snli-ve-2", "e-SNLI-VE-2.0, neutral pairs labelled again", entail.relabelled),
            )
        ),
        Benchmark("vcr", "VCR", _VCR, vcr.both, "Q->A", vcr.measure, chance=vcr.chance, submit=vcr.submit),
        Benchmark("vcr-answers", "VCR Q->A", _VCR, vcr.answers, "Q->A", vcr.measure, chance=vcr.chance),
        Benchmark("vcr-rationales", "VCR QA->R", _VCR, vcr.rationales, "QA->R", vcr.measure, chance=vcr.chance),
        *(
            Benchmark(
                name,
                title,
                refer.SPLITS[name][1],
                refer.READERS[name],
                "accuracy",
                measure_regions=refer.measure,
                conventions=get_args(overlap.Convention),
            )
            for name, title in (("refcoco", "RefCOCO"), ("refcoco+", "RefCOCO+"), ("refcocog", "RefCOCOg"))
        ),
        Benchmark(
            "entities",
            "Flickr30k Entities",
            entities.SPLITS,
            entities.read,
            "R@1",
            measure_regions=entities.measure,
            conventions=get_args(metrics_entities.Convention),
        ),
        Benchmark(
            "visual7w",
            "Visual7W pointing",
            visual7w.SPLITS,
            visual7w.read,
            "accuracy",
            measure_regions=visual7w.measure,
            chance=visual7w.chance,
            submit_regions=visual7w.submit,
        ),
        Benchmark(
            "guesswhat",
            "GuessWhat?!",
            ("train", "val", "test"),
            guesswhat.read,
            "accuracy",
            measure_regions=guesswhat.measure,
            chance=guesswhat.chance,
        ),
        *(
            Benchmark(name, title, karpathy.SPLITS, karpathy.READERS[name], _CAPTIONS, fold=fold, conventions=RANKED)
            for name, title, fold in (
                ("flickr30k", "Flickr30k", 0),
                ("coco", "COCO captions", 1000),
                (karpathy.ALL, "COCO captions, all of a picture", 1000),
                ("flickr8k", "Flickr8k", 0),
            )
        ),
        Benchmark(cloze.NAME, "Flickr30k, nodes of scene graphs hidden", cloze.SPLITS, cloze.read, "top-1", hides=True),
        *(
            Benchmark(name, title, splits, read, "CIDEr", measure_captions=captions.measure, submit_captions=send)
            for name, title, splits, read, send in (
                (
                    "coco-captions",
                    "COCO captions, written",
                    (*captions.KARPATHY, *captions.SERVER),
                    captions.COCO,
                    captions.submit,
                ),
                ("flickr30k-captions", "Flickr30k, written", captions.KARPATHY, captions.FLICKR30K, None),
                ("aic-icc-captions", "AIC-ICC, written", ("train", "val"), chinese.aic_icc_captions, None),
                (
                    "muge-captions",
                    "MUGE, written",
                    tuple(chinese.MUGE),
                    chinese.muge_captions,
                    chinese.submit_muge_captions,
                ),
                ("nocaps", "NoCaps", tuple(captions.NOCAPS), captions.nocaps, captions.submit),
            )
        ),
        *(
            Benchmark(name, title, splits, read, _CAPTIONS, conventions=RANKED)
            for name, title, splits, read in (
                ("coco-cn", "COCO-CN", ("train", "val", "test"), chinese.coco_cn),
                ("aic-icc", "AIC-ICC", ("train", "val"), chinese.aic_icc),
                ("flickr30k-cn", "Flickr30k-CN", ("train", "val", "test"), chinese.flickr30k_cn),
                ("fashiongen-all", "FashionGen, all products", tuple(fashion.SPLITS), fashion.whole),
            )
        ),
        Benchmark(
            "muge",
            "MUGE",
            tuple(chinese.MUGE),
            chinese.muge,
            "mean recall",
            measure_lists=chinese.measure_muge,
            submit_lists=chinese.submit_muge,
        ),
        Benchmark(
            "fashiongen",
            "FashionGen, 101 candidates",
            tuple(fashion.SPLITS),
            fashion.pairs,
            "image rank@1",
            groups=lambda annotations: annotations.gold,
            candidates=fashion.candidates,
        ),
        *(
            Benchmark(
                f"fashiongen-{name}",
                title,
                tuple(fashion.SPLITS),
                read,
                "accuracy",
                classes.measure,
                labels=classes.labels_of(read),
                chance=classes.chance,
            )
            for name, title, read in (
                ("category", "FashionGen categories", fashion.categories),
                ("subcategory", "FashionGen sub-categories", fashion.subcategories),
            )
        ),
        *(
            Benchmark(name, title, tuple(splits), read, _CAPTIONS, conventions=FILMS_RANKED)
            for name, title, splits, read in (
                ("youcook2", "YouCook2", video.YOUCOOK2, partial(video.youcook2, "youcook2")),
                ("msr-vtt", "MSR-VTT, 1k-A", video.MSR_VTT, video.msr_vtt),
            )
        ),
        Benchmark(
            named.NAME,
            "YouCook2, named in a sentence",
            tuple(video.YOUCOOK2),
            named.read,
            "verb top-5",
            named.measure,
            chance=named.chance,
            sentence=named.SENTENCE,
        ),
        *(
            Benchmark(name, title, tuple(splits), read, "CIDEr", measure_captions=captions.measure)
            for name, title, splits, read in (
                (
                    "youcook2-captions",
                    "YouCook2, written",
                    video.YOUCOOK2,
                    partial(video.youcook2, "youcook2-captions"),
                ),
                ("msr-vtt-captions", "MSR-VTT, written", video.MSR_VTT, video.msr_vtt_captions),
            )
        ),
        *(
            Benchmark(
                name,
                title,
                splits,
                read,
                "accuracy",
                classes.measure,
                labels=classes.labels_of(read, splits[0]),
                chance=classes.chance,
            )
            for name, (title, splits, read) in video.CLASSES.items()
        ),
    )
}
"""By name."""

_BY_TASK = {
    "vqa": "vqa",
    "vqa_mlp": "vqa",
    "vqa_mmf": "vqa",
    "genome_qa": "genome-qa",
    "gqa": "gqa",
    "gqa_one": "gqa",
    "nlvr2": "nlvr2",
    "nlvr2_plus": "nlvr2",
    "nlvr2_pair": "nlvr2",
    "nlvr2_mmf": "nlvr2",
    "ve": "snli-ve",
    "vcr": "vcr",
    "vcr_qar": "vcr-rationales",
    "re": "refcoco",
    "re_plus": "refcoco+",
    "re_g": "refcocog",
    "ground": "entities",
    "visual7w": "visual7w",
    "guesswhat": "guesswhat",
    "retrieval": "flickr30k",
    "retrieval_hard": "flickr30k",
    "retrieval_triplet": "flickr30k",
    "retrieval_one": "flickr30k",
    "retrieval_coco": "coco",
    "retrieval_plus": "coco",
    "retrieval_fashion": "fashiongen",
    "category": "fashiongen-category",
    "sub_category": "fashiongen-subcategory",
    "retrieval_youcook2": "youcook2",
    "retrieval_msrvtt": "msr-vtt",
    "action": "ucf101",
    "action_hmdb51": "hmdb51",
    "anticipation": "breakfast",
    "anticipation_50salads": "50salads",
    "anticipation_activitynet": "activitynet",
    "segmentation": "coin",
    "caption": "coco-captions",
    "words": "youcook2-words",
}


def find(name: str) -> Benchmark:
    """A benchmark by its name.

    Raises:
        BadInput: there is none of that name.
    """
    if name not in BENCHMARKS:
        raise BadInput(f"no benchmark {name!r} (there are {', '.join(BENCHMARKS)})")
    return BENCHMARKS[name]


def benchmark_of(task: str, tasks: Collection[str], films: bool = False) -> Benchmark:
    """What a system's task is trained on unless another is named.

    Args:
        task: its name.
        tasks: all of the system: one that trains rationales apart trains "vcr" on answers alone.
        films: the system reads videos: it writes captions of YouCook2's.

    Raises:
        BadInput: the name says nothing.
    """
    plain = task.removeprefix("beta_")
    if films and plain == "caption":
        return BENCHMARKS["youcook2-captions"]
    if plain not in _BY_TASK:
        raise BadInput(f"task {task}: say which --benchmark (there are {', '.join(BENCHMARKS)})")
    apart = plain == "vcr" and ("vcr_qar" in tasks or task != plain)
    return BENCHMARKS["vcr-answers" if apart else _BY_TASK[plain]]
