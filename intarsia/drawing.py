"""Pictures from texts, by a system that writes them as codes. Source: M6, text-guided image generation; MUGE-2021/image-generation-baseline for the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from intarsia import decode
from intarsia.batch import Array, Sample
from intarsia.errors import BadInput
from intarsia.features.codes import PictureCodec


def draw(
    system: Any,
    samples: Sequence[Sample],
    codec: PictureCodec,
    generator: torch.Generator,
    top_k: int = 100,
    top_p: float = 1.0,
    temperature: float = 1.0,
) -> Array:
    """A picture of each sample's text: codes drawn one by one as in `decode.sample`, then decoded.

    Args:
        system: an M6 trained with the codec, in evaluation mode.
        samples: B texts; one that is there several times is drawn several times.
        codec: of the system's training.
        generator: draws, on the CPU.
        top_k: of the likeliest codes only so many; 0 = all.
        top_p: as in `decode.sample`.
        temperature: the same.

    Returns:
        (B, S, S, 3) uint8.

    Raises:
        BadInput: the system writes other codes, or none.
    """
    config = system.config
    codes, length = config.codes, config.code_length if config.codes else 0
    if (codec.codes, codec.length) != (codes, length):
        raise BadInput(
            f"{system.card.name}: writes {length} codes below {codes}, the codec takes {codec.length} below {codec.codes}"
        )
    way = decode.next_piece if config.experts and config.capacity_factor else decode.cached_next_piece
    logits = way(system, samples, decode.Writing(system.lay_out_next_code, system.code_logits))
    said = decode.sample(logits, len(samples), length, -1, generator, top_k, top_p, temperature)
    return codec.decode(np.array([x.ids for x in said], np.int64))
