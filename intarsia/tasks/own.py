"""Pre-training on a task's own texts, between captions and fine-tuning. Source: VisualBERT, sec. 3.3 and its readers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from intarsia.batch import Sample
from intarsia.errors import BadInput
from intarsia.objectives import qa
from intarsia.recipe import Batching, Mix, Recipe, Schedule
from intarsia.tasks import answer_of
from intarsia.tasks.vcr import joined


def own_text(task: str, sample: Sample, rng: np.random.Generator) -> tuple[Sample, str | None, int, int]:
    """What is read of an item of a benchmark, and whether it is true.

    vqa: the question and one of its answers, one text. nlvr2: the sentence of two pictures. vcr: the question with one of its choices, or question and
    right answer with a rationale.

    Returns:
        The sample, the task and the form by which it is laid out, 1 = true.

    Raises:
        BadInput: it has no answer, or several where there is one.
    """
    if task == "vqa":
        said = f"{sample.texts[0].rstrip(' ?')} ? {qa.drawn(sample, rng)}"
        return replace(sample, texts=(said,)), None, 0, 1
    if task == "nlvr2":
        return sample, task, 0, int(answer_of(sample).lower() == "true")
    choices = 4
    form = int(rng.integers(choices))
    shown = joined(sample) if len(sample.texts) == 2 + choices else sample
    return shown, task, form, int(form == int(answer_of(sample)))


def right_text(sample: Sample, choices: int = 4) -> Sample:
    """An item of VCR with what is true of it alone: question and right answer, and the right rationale where it has them.

    Source: UNITER, its code's second stage of pre-training.

    Raises:
        BadInput: it has another number of texts, or no right choice.
    """
    given = len(sample.texts) - choices
    if given not in (1, 2):
        raise BadInput(
            f"sample {sample.key}: has {len(sample.texts)} texts, a question of VCR has {choices + 1} or {choices + 2}"
        )
    right = given + int(answer_of(sample))
    return replace(sample, texts=(*sample.texts[:given], sample.texts[right]))


def second_stage(first: Recipe[Any], words: int) -> Recipe[Any]:
    """UNITER's second stage of pre-training, on VCR's texts. Args: first, what came before; words, share of hidden words where regions have 1 + 1."""
    return replace(
        first,
        config=replace(first.config, own="vcr", max_pieces=220, type_vocab_size=4),
        mix=Mix(share={"mlm": words, "mrfr": 1, "mrc_kl": 1}),
        optim=replace(first.optim, lr=3e-5, max_norm=0.0),
        schedule=Schedule(steps=45_000, warmup=4500),
        batching=Batching(rows=4000, window=8192, accumulate=5, reduce="sum"),
        note="From pre-trained weights (--weights) on VCR's texts (--benchmark vcr-rationales); warm-up and rows, not known, as in its fine-tuning.",
    )
