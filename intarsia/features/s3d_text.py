"""MIL-NCE's text branch, and clips as the public S3D networks want their pixels.

Source: Miech et al., End-to-End Learning of Visual Representations from Uncurated Instructional Videos (CVPR 2020).

Unusual: words the dictionary has not are dropped; the maximum over words counts the padding, so the zeroth row of the table speaks in every short sentence;
a sentence of unknown words is all padding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from intarsia.errors import BadInput
from intarsia.features.s3d import TEXT
from intarsia.weights.pickles import read_words

WORD = re.compile(r"[\w']+")
NAMES = ("word_embd.weight", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
"""Of Kinetics' pixels in 0..1, red, green, blue (torchvision)."""


class Sentences(nn.Module):
    """Words to the space shared with video: table, layer, ReLU, maximum over words, layer.

    Args:
        words: rows of the table, the padding's included.
        width: of the table.
        hidden: of the layer.
        joint: of the shared space.
    """

    def __init__(self, words: int = 66250, width: int = 300, hidden: int = 2048, joint: int = 512) -> None:
        super().__init__()
        self.word_embd = nn.Embedding(words, width)
        self.word_embd.weight.requires_grad_(False)  # word2vec, never trained
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, joint)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, words a sentence) int64, 0 = padding, to (N, joint)."""
        out: Tensor = self.fc2(functional.relu(self.fc1(self.word_embd(ids))).amax(1))
        return out


def sentences_of(state: Mapping[str, Tensor], where: str = "weights") -> Sentences:
    """The text branch of a public MIL-NCE state dict, in evaluation mode.

    Raises:
        BadInput: it has none.
    """
    own = {key.removeprefix(TEXT): value for key, value in state.items() if key.startswith(TEXT)}
    if set(own) != set(NAMES):
        raise BadInput(
            f"{where}: text branch of {sorted(own) or 'nothing'}, expected {', '.join(TEXT + x for x in NAMES)}"
        )
    table, hidden, joint = own["word_embd.weight"], own["fc1.weight"], own["fc2.weight"]
    net = Sentences(table.shape[0], table.shape[1], len(hidden), len(joint))
    net.load_state_dict(own)
    return net.eval()


class Words:
    """The dictionary: ids are places from 1.

    Args:
        words: all of them, in order.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.place = {word: i + 1 for i, word in enumerate(words)}

    @classmethod
    def read(cls, path: Path | str) -> Words:
        """From an array of words, `s3d_dict.npy`; nothing in it is run."""
        return cls(read_words(path))

    def ids(self, sentences: Sequence[str], length: int = 16) -> Tensor:
        """(N, length) int64: known words in lower case, cut or filled with 0. The public loaders use 16, 20 or 30 words."""
        out = torch.zeros(len(sentences), length, dtype=torch.int64)
        for row, sentence in zip(out, sentences, strict=True):
            known = [self.place[x] for x in WORD.findall(sentence.lower()) if x in self.place][:length]
            row[: len(known)] = torch.tensor(known, dtype=torch.int64)
        return out


# --------------------------------------------------------------------------------------------------------------------------------------- pixels


def milnce_pixels(frames: NDArray[Any]) -> Tensor:
    """(T, H, W, 3) uint8 RGB to (3, T, H, W) in 0..1."""
    return _channels_first(frames) / 255


def kylemin_pixels(frames: NDArray[Any]) -> Tensor:
    """(T, H, W, 3) uint8 RGB to (3, T, H, W) in -1..1."""
    return (2 * _channels_first(frames) - 255) / 255


def torchvision_pixels(frames: NDArray[Any], side: int = 256, crop: int = 224) -> Tensor:
    """(T, H, W, 3) uint8 RGB to (3, T, crop, crop), normed: stretched to a square without smoothing, rounded, its middle cut out."""
    pixels = _channels_first(frames).transpose(0, 1)
    pixels = functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=False).round()
    start = round((side - crop) / 2)
    pixels = pixels[:, :, start : start + crop, start : start + crop] / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    return ((pixels - mean) / std).transpose(0, 1)


def _channels_first(frames: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2))).float()
