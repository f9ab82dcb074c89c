"""ITM, image-text matching: does this text belong to this picture? Source: UNITER, sec. 3.2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from intarsia.batch import Sample


def swap(
    sample: Sample,
    rng: np.random.Generator,
    draw: Callable[[], Sample],
    rate: float = 0.5,
    false_text_share: float = 0.0,
    reordered: bool | None = None,
) -> tuple[Sample, int]:
    """Keeps a pair or breaks it.

    Args:
        sample: a matched pair.
        rng: source of randomness.
        draw: another sample, with another picture.
        rate: probability of breaking the pair.
        false_text_share: of the broken pairs that know false captions, how many keep the picture and take one of those instead of taking
            another picture.
        reordered: take only false captions of the very words of the true one, such as "a red cup and a blue box" for "a blue cup and a red box", or
            only others (False). None = any.

    Returns:
        The pair to lay out and its label: 1 matched, 0 broken. A broken pair has no gold links.
    """
    if rng.random() >= rate:
        return sample, 1
    told = [x for x in sample.false_texts if reordered in (None, sorted(x) == sorted(sample.texts[0]))]
    if told and rng.random() < false_text_share:
        false = str(rng.choice(told))
        return replace(sample, texts=(false, *sample.texts[1:]), links=(), also=()), 0
    return replace(sample, pictures=draw().pictures, links=(), also=()), 0


def swap_either(
    sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample], rate: float = 0.5
) -> tuple[Sample, int]:
    """Keeps a pair or breaks it, by another picture for the text or by another text for the picture, one as often as the other.

    Args and Returns: as for `swap`. Source: Unicoder-VL, sec. 3; ImageBERT, sec. 4.
    """
    if rng.random() >= rate:
        return sample, 1
    other = draw()
    if rng.random() < 0.5:
        return replace(sample, pictures=other.pictures, links=(), also=()), 0
    return replace(sample, texts=other.texts, language=other.language, links=(), also=()), 0


def swap_text(
    sample: Sample, rng: np.random.Generator, draw: Callable[[], Sample], rate: float = 0.5
) -> tuple[Sample, int]:
    """Keeps a pair or gives its picture the text of another; what is known of the text goes with it.

    Args and Returns: as for `swap`. Source: LXMERT, sec. 3.1.3.
    """
    if rng.random() >= rate:
        return sample, 1
    other = draw()
    return replace(sample, texts=other.texts, language=other.language, links=(), also=(), answers=()), 0


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of (B, 2) logits against (B) labels, 1 = matched."""
    return F.cross_entropy(logits.float(), labels)


def score_known(logits: Tensor, labels: Tensor) -> Tensor:
    """As `score`, over the documents whose label is not -1; 0 where there are none."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


def score_one(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross entropy of (B) logits against (B) labels, 1 = matched."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def log_odds(logits: Tensor) -> Tensor:
    """(B) log odds of a match from (B, 2) logits."""
    return logits[:, 1].float() - logits[:, 0].float()
