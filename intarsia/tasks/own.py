"""Pre-training on a task's own texts, between captions and fine-tuning. Source: VisualBERT, sec. 3.3 and its readers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from intarsia.batch import Sample
from intarsia.objectives import qa
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
