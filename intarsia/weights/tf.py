"""Key rules of TensorFlow's BERT: variable names with slashes, kernels stored the other way round."""

from __future__ import annotations

from intarsia.weights.keymap import Move


def dense(theirs: str, ours: str) -> tuple[Move, Move]:
    """Rules of a dense layer; both names end with their separator."""
    return Move(theirs + "kernel", ours + "weight", turned=True), Move(theirs + "bias", ours + "bias")


def norm(theirs: str, ours: str) -> tuple[Move, Move]:
    """Rules of a LayerNorm."""
    return Move(theirs + "gamma", ours + "weight"), Move(theirs + "beta", ours + "bias")


def body(prefix: str = "bert/") -> tuple[Move, ...]:
    """Rules of embeddings, encoder and pooler, for a system that calls its parts `words`, `encoder` and `pooler`."""
    theirs, ours = prefix + "encoder/layer_{i}/", "encoder.layers.{i}."
    return (
        Move(f"{prefix}embeddings/word_embeddings", "words.word.weight"),
        Move(f"{prefix}embeddings/position_embeddings", "words.position.weight"),
        Move(f"{prefix}embeddings/token_type_embeddings", "words.segment.weight"),
        *norm(f"{prefix}embeddings/LayerNorm/", "words.norm."),
        *dense(theirs + "attention/self/{query,key,value}/", ours + "attention.qkv."),
        *dense(theirs + "attention/output/dense/", ours + "attention.out."),
        *norm(theirs + "attention/output/LayerNorm/", ours + "attention_norm."),
        *dense(theirs + "intermediate/dense/", ours + "up."),
        *dense(theirs + "output/dense/", ours + "down."),
        *norm(theirs + "output/LayerNorm/", ours + "norm."),
        *dense(f"{prefix}pooler/dense/", "pooler.dense."),
    )


def word_head(prefix: str = "cls/predictions/") -> tuple[Move, ...]:
    """Rules of the masked-word head, whose table is that of the words and is not stored again."""
    return (
        *dense(prefix + "transform/dense/", "word_head.transform.dense."),
        *norm(prefix + "transform/LayerNorm/", "word_head.transform.norm."),
        Move(prefix + "output_bias", "word_head.bias"),
    )
