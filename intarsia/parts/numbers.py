"""The numbers of a BERT, by the names of its published JSON; the config of nearly every system begins with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BertNumbers:
    """BERT-base-uncased."""

    vocab_size: int = 30522
    """Pieces of the vocabulary."""
    hidden_size: int = 768
    """H."""
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    """H must be a multiple."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer."""
    hidden_dropout_prob: float = 0.1
    """Dropout after embeddings and sublayers."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout on attention probabilities."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every LayerNorm."""
    max_position_embeddings: int = 512
    """Rows of the position table."""
    type_vocab_size: int = 2
    """Rows of the segment table."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""

    @property
    def visual_size(self) -> int:
        """Width of the outputs of regions: H, unless regions have a stream of their own."""
        return self.hidden_size

    @property
    def pooled_size(self) -> int:
        """Width of the pooled vector."""
        return self.hidden_size


@dataclass(frozen=True)
class RegionNumbers(BertNumbers):
    """A BERT that reads what the usual detector says of regions, beside words."""

    feature_size: int = 2048
    """Numbers of a region feature."""
    classes: int = 1601
    """Classes of the detector's soft labels, background first."""


@dataclass(frozen=True)
class TwoStreamNumbers(RegionNumbers):
    """A BERT for words beside a narrower one for regions, and how the two meet: ViLBERT-base, by the names of its published JSON."""

    v_hidden_size: int = 1024
    """Width of the regions' stream."""
    v_num_hidden_layers: int = 6
    v_num_attention_heads: int = 8
    """v_hidden_size must be a multiple."""
    v_intermediate_size: int = 1024
    """Width of the feed-forward layer in the regions' stream."""
    v_hidden_dropout_prob: float = 0.1
    """Dropout after sublayers of the regions' stream."""
    v_attention_probs_dropout_prob: float = 0.1
    """Dropout on attention probabilities over regions."""
    bi_hidden_size: int = 1024
    """Width of queries, keys and values where the streams meet, and of the pooled vectors."""
    bi_num_attention_heads: int = 8
    """bi_hidden_size must be a multiple."""
    v_biattention_id: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Meeting k comes before layer v_biattention_id[k] of the regions' stream; ascending."""
    t_biattention_id: tuple[int, ...] = (6, 7, 8, 9, 10, 11)
    """And before layer t_biattention_id[k] of the words' stream; as many. None at all: the streams never meet."""

    @property
    def visual(self) -> BertNumbers:
        """The numbers of the regions' stream as those of a BERT."""
        return BertNumbers(
            hidden_size=self.v_hidden_size,
            num_hidden_layers=self.v_num_hidden_layers,
            num_attention_heads=self.v_num_attention_heads,
            intermediate_size=self.v_intermediate_size,
            hidden_dropout_prob=self.v_hidden_dropout_prob,
            attention_probs_dropout_prob=self.v_attention_probs_dropout_prob,
            layer_norm_eps=self.layer_norm_eps,
            initializer_range=self.initializer_range,
        )

    @property
    def visual_size(self) -> int:
        """v_hidden_size."""
        return self.v_hidden_size

    @property
    def pooled_size(self) -> int:
        """bi_hidden_size."""
        return self.bi_hidden_size


LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
"""What BERT-large changes."""

ROBERTA: dict[str, Any] = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
"""What RoBERTa-base changes; its positions begin at 2."""

TINY: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.05,
}
"""A size of our own, which learns generated scenes in minutes on a CPU: few rows, so no dropout, and larger fresh weights."""

TINY_TWO_STREAMS: dict[str, Any] = TINY | {
    "num_hidden_layers": 3,
    "v_hidden_size": 128,
    "v_num_hidden_layers": 2,
    "v_num_attention_heads": 4,
    "v_intermediate_size": 256,
    "v_hidden_dropout_prob": 0.0,
    "v_attention_probs_dropout_prob": 0.0,
    "bi_hidden_size": 192,
    "bi_num_attention_heads": 6,
    "v_biattention_id": (0, 1),
    "t_biattention_id": (1, 2),
}
"""The same of two streams that meet twice."""
