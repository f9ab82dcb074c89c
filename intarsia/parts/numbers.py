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


LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
"""What BERT-large changes."""

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
