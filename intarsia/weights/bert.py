"""The key rules that nearly every system's published weights share: BERT's names, with another first word."""

from __future__ import annotations


def body(prefix: str, encoder: str = "encoder.layer.{i}.") -> tuple[tuple[str, str], ...]:
    """Rules of embeddings and encoder, for a system that calls its parts `words` and `encoder`.

    Args:
        prefix: their first word, such as "bert.".
        encoder: their name of a layer.
    """
    layer = prefix + encoder
    return (
        (f"{prefix}embeddings.word_embeddings.", "words.word."),
        (f"{prefix}embeddings.position_embeddings.", "words.position."),
        (f"{prefix}embeddings.token_type_embeddings.", "words.segment."),
        (f"{prefix}embeddings.LayerNorm.", "words.norm."),
        *layers(layer, "encoder.layers.{i}."),
    )


def layers(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Rules of the layers of an encoder; `{i}` in both names stands for the number."""
    return (
        (theirs + "attention.self.{query,key,value}.", ours + "attention.qkv."),
        (theirs + "attention.output.dense.", ours + "attention.out."),
        (theirs + "attention.output.LayerNorm.", ours + "attention_norm."),
        (theirs + "intermediate.dense.", ours + "up."),
        (theirs + "output.dense.", ours + "down."),
        (theirs + "output.LayerNorm.", ours + "norm."),
    )


def torch_layers(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """The same for layers of torch's own nn.TransformerEncoderLayer."""
    return (
        (theirs + "self_attn.in_proj_weight", ours + "attention.qkv.weight"),
        (theirs + "self_attn.in_proj_bias", ours + "attention.qkv.bias"),
        (theirs + "self_attn.out_proj.", ours + "attention.out."),
        (theirs + "linear1.", ours + "up."),
        (theirs + "linear2.", ours + "down."),
        (theirs + "norm1.", ours + "attention_norm."),
        (theirs + "norm2.", ours + "norm."),
    )


def word_head(prefix: str = "cls.predictions.") -> tuple[tuple[str, str], ...]:
    """Rules of the masked-word head, less its table, which is tied."""
    return (
        (prefix + "transform.dense.", "word_head.transform.dense."),
        (prefix + "transform.LayerNorm.", "word_head.transform.norm."),
        (prefix + "bias", "word_head.bias"),
    )


SIZES = {
    "vocab_size": ("words.word.weight", 0),
    "hidden_size": ("words.word.weight", 1),
    "max_position_embeddings": ("words.position.weight", 0),
    "type_vocab_size": ("words.segment.weight", 0),
    "intermediate_size": ("encoder.layers.0.up.weight", 0),
}
"""Config fields that the shapes of a BERT's weights tell, as in `System.sizes`."""
