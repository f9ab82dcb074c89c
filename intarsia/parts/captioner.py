"""A small Transformer encoder-decoder that reads features of a video and writes a caption. Source: VideoBERT, sec. 4.6, after Zhou et al. (CVPR 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.attend import attend
from intarsia.batch import Batch, Encoded, Text
from intarsia.packed import Packing, subset
from intarsia.parts.dropout import Dropout
from intarsia.parts.embeddings import initialise
from intarsia.parts.encoder import Encoder, Layer, SelfAttention
from intarsia.parts.numbers import BertNumbers
from intarsia.recipe import Batching, Mix, Recipe, Schedule, adam


@dataclass(frozen=True)
class CaptionNumbers:
    """The numbers of a captioner; all from memory, see `Card.unverified`."""

    layers: int = 0
    """Of the encoder, and of the decoder; 0 = the system writes no captions."""
    hidden_size: int = 128
    num_attention_heads: int = 4
    intermediate_size: int = 512
    dropout: float = 0.4
    max_pieces: int = 60
    """Pieces of a caption; longer ones are cut."""
    max_clips: int = 128
    """Rows of the table of clips' places."""
    features: bool = False
    """The clips' own features are read beside the system's: S3D's, in the best published row."""

    def beside(self, width: int) -> int:
        """How many of a clip's own numbers are read. Args: width, how many it has."""
        return width if self.features else 0


def writer(recipe: Recipe[Any]) -> Recipe[Any]:
    """A pre-training recipe made one of its captioner, whose numbers are VideoBERT's; dropout is the captioner's alone."""
    numbers = CaptionNumbers(layers=2, features=True)
    still = replace(recipe.config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, captioner=numbers)
    return replace(
        recipe,
        config=still,
        mix=Mix(share={"caption": 1}),
        optim=adam(1e-3, decay=0.0),
        schedule=Schedule(steps=40_000, warmup=0),
        batching=Batching(rows=5120, samples=128),
        precision="fp32",
        note="YouCook2: batch 128, 40 K steps, Adam, rate 1e-3 falling to 0, all from memory. All but the captioner is frozen; it reads the features, too, as in the best row.",
    )


def apart(batch: Batch) -> tuple[Batch, Tensor]:
    """What is read of a batch of captions, and what is written.

    Args:
        batch: its text rows have levels, those of captions above 0.

    Returns:
        The batch without captions, targets and levels, and (M) the text rows of the captions.
    """
    text = batch.text
    assert text is not None and text.packing.level is not None, (
        "captions lie behind what is read, at levels of their own"
    )
    given, written = (((text.packing.level > 0) == x).nonzero()[:, 0] for x in (False, True))
    kept = text.take(given)
    kept = replace(kept, packing=replace(kept.packing, level=None))
    return replace(batch, text=kept, targets={}, read=None), written


def mean_of(rows: Tensor | None, packing: Packing, chosen: Tensor) -> Tensor:
    """(B, H) the mean of each document's chosen rows, 0 of none. Args: rows (T, H); packing, where they lie; chosen (T) bool."""
    assert rows is not None
    shares = chosen.to(rows.dtype)
    sums = rows.new_zeros(packing.documents, rows.shape[1]).index_add(0, packing.doc, rows * shares[:, None])
    counts = rows.new_zeros(packing.documents).index_add(0, packing.doc, shares)
    return sums / counts.clamp(min=1)[:, None]


class CrossAttention(nn.Module):
    """Multi-head attention of one stream to another."""

    def __init__(self, config: BertNumbers) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query, self.key_value, self.out = (nn.Linear(width, n * width) for n in (1, 2, 1))

    def forward(self, x: Tensor, queries: Packing, seen: Tensor, keys: Packing) -> Tensor:
        """(N, H) rows and (M, H) what they look at, to (N, H)."""
        q = self.query(x).view(len(x), self.heads, -1)
        k, v = self.key_value(seen).view(len(seen), 2, self.heads, -1).unbind(1)
        mixed = attend(q, k, v, queries, keys, self.dropout if self.training else 0.0)
        return self.out(mixed.flatten(1))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """A caption's rows see those before, then the video, then themselves."""

    def __init__(self, config: BertNumbers) -> None:
        super().__init__()
        self.own, self.own_norm = SelfAttention(config), nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.look = Layer(config, attention=CrossAttention(config))
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, text: Packing, seen: Tensor, video: Packing) -> Tensor:
        """(T, H) to (T, H)."""
        x = self.own_norm(x + self.dropout(self.own(x, text)))
        return self.look.after(x, self.look.attention(x, text, seen, video))


class Captioner(nn.Module):
    """Encoder over features of clips, decoder over the pieces of a caption, whose table is also the output's.

    Args:
        numbers: its own.
        seen: numbers of a clip's features.
        vocab_size: pieces.
    """

    def __init__(self, numbers: CaptionNumbers, seen: int, vocab_size: int) -> None:
        super().__init__()
        config = BertNumbers(
            vocab_size=vocab_size,
            hidden_size=numbers.hidden_size,
            num_hidden_layers=numbers.layers,
            num_attention_heads=numbers.num_attention_heads,
            intermediate_size=numbers.intermediate_size,
            hidden_dropout_prob=numbers.dropout,
            attention_probs_dropout_prob=numbers.dropout,
        )
        width, self.features = config.hidden_size, numbers.features
        self.project, self.project_norm = nn.Linear(seen, width), nn.LayerNorm(width, config.layer_norm_eps)
        self.clip_place, self.place = (nn.Embedding(n, width) for n in (numbers.max_clips, numbers.max_pieces + 1))
        self.words, self.bias = nn.Embedding(vocab_size, width), nn.Parameter(torch.zeros(vocab_size))
        self.word_norm, self.dropout = nn.LayerNorm(width, config.layer_norm_eps), Dropout(numbers.dropout)
        self.encoder = Encoder(config)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(numbers.layers))
        initialise(self, config.initializer_range)

    def forward(self, seen: Tensor, video: Packing, text: Text, written: Tensor) -> Tensor:
        """What the captions' rows become.

        Args:
            seen: (V, F) features of clips.
            video: where they lie.
            text: captions, and what else is read.
            written: (M) the rows of captions.

        Returns:
            (T, H), 0 in rows that are no caption's.
        """
        seen = self.dropout(self.project_norm(self.project(seen) + self.clip_place(video.pos)))
        seen = self.encoder(seen, video)
        packing = subset(text.packing, written)
        x = self.dropout(self.word_norm(self.words(text.ids[written]) + self.place(packing.pos)))
        for layer in self.decoder:
            x = layer(x, packing, seen, video)
        whole: Tensor = x.new_zeros(len(text.ids), x.shape[1])
        return whole.index_copy(0, written, x)

    def write(
        self,
        batch: Batch,
        encode: Callable[[Batch], Encoded],
        more: Callable[[Encoded, Batch], Tensor] | None = None,
    ) -> Encoded:
        """What a system makes of what is read of a batch, its text rows replaced by those of the captions.

        Args:
            batch: captions lie at levels of their own.
            encode: the system's, of what is read alone.
            more: (V, ..) what is read beside the output of each clip.
        """
        read, written = apart(batch)
        encoded, clips, text = encode(read), read.clips, batch.text
        assert clips is not None and text is not None and encoded.visual is not None
        seen = [encoded.visual] if more is None else [encoded.visual, more(encoded, read)]
        if self.features:
            seen.append(clips.feats.to(encoded.visual.dtype))
        return replace(encoded, text=self(torch.cat(seen, 1), clips.packing, text, written))

    def logits(self, rows: Tensor) -> Tensor:
        """(M, H) rows of captions to (M, vocab_size) logits of what follows."""
        return F.linear(rows, self.words.weight, self.bias)
