"""The key rules that nearly every system's published weights share: BERT's names, with another first word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intarsia.weights.keymap import Drop, KeyMap, Tied


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


def layers(
    theirs: str, ours: str, attention: str = "attention.", up: str = "intermediate.", down: str = "output."
) -> tuple[tuple[str, str], ...]:
    """Rules of the layers of an encoder; `{i}` in both names stands for the number.

    Args:
        theirs: prefix of a layer.
        ours: the same.
        attention: their name of attention.
        up: their name of the first half of the feed-forward.
        down: their name of the second.
    """
    return (
        (theirs + attention + "self.{query,key,value}.", ours + "attention.qkv."),
        (theirs + attention + "output.dense.", ours + "attention.out."),
        (theirs + attention + "output.LayerNorm.", ours + "attention_norm."),
        *feed_forward(theirs + up, theirs + down, ours),
    )


def feed_forward(up: str, down: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Rules of the feed-forward half of a layer. Args: up, down: prefixes of their halves of it; ours: of the layer."""
    return (up + "dense.", ours + "up."), (down + "dense.", ours + "down."), (down + "LayerNorm.", ours + "norm.")


def gates(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Rules of what the words scale in a layer of regions (`dynamic_attention`). Args as for `layers`."""
    return ((theirs + "attention.self.{dyLinear_q,dyLinear_k}.", ours + "attention.gates."),)


GATES = "encoder.visual_layers.0.attention.gates.weight"
"""The key of ours that is there exactly if they are."""


def meeting(number: str, letter: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Rules of one stream's side of every meeting of ViLBERT's. Args: number, letter: theirs of the stream; ours: our name of the side."""
    layer, side = "bert.encoder.c_layer.{i}.", f"encoder.meetings.{{i}}.{ours}."
    stacked = ",".join(name + number for name in ("query", "key", "value"))
    return (
        (f"{layer}biattention.{{{stacked}}}.", f"{side}attention.qkv."),
        (f"{layer}biOutput.dense{number}.", f"{side}attention.out."),
        (f"{layer}biOutput.q_dense{number}.", f"idle.{{i}}.{ours}."),
        (f"{layer}biOutput.LayerNorm{number}.", f"{side}attention_norm."),
        *feed_forward(f"{layer}{letter}_intermediate.", f"{layer}{letter}_output.", side),
    )


CLASS_HEAD = ("transform.dense", "transform.norm", "out")
"""Tensors of a `ClassHead`; the first two are a `TiedHead`'s."""
ANSWER_HEAD = ("up", "norm", "out")
"""Those of an `AnswerHead`."""


def numbered(theirs: str, ours: str, parts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Rules of a head that they have as a Sequential of Linear, activation, LayerNorm and Linear: 0, 2, 3.

    Args:
        theirs: its prefix.
        ours: the same.
        parts: our names of so many of the three.
    """
    return tuple((f"{theirs}{i}.", f"{ours}{part}.") for i, part in zip((0, 2, 3), parts, strict=False))


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
TWO_STREAM_SIZES = SIZES | {
    "v_hidden_size": ("regions.feature.weight", 0),
    "v_intermediate_size": ("encoder.visual_layers.0.up.weight", 0),
    "bi_hidden_size": ("text_pooler.dense.weight", 0),
    "feature_size": ("regions.feature.weight", 1),
    "classes": ("region_head.out.weight", 0),
}
"""Those of ViLBERT's network."""
TWO_STREAM_DEPTHS = {"num_hidden_layers": "encoder.layers.", "v_num_hidden_layers": "encoder.visual_layers."}
"""Its stacks, as in `System.depths`."""


@dataclass(frozen=True)
class FromBert:
    """How a paper's pre-training starts from the weights of a plain BERT."""

    segments: tuple[int | None, ...] = (0, 1)
    """For each row of our segment table BERT's row that it copies; None and rows past the end = as fresh."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Tensors of ours that start as copies of others of ours, taken from BERT: regions' positions, say."""
    matches: bool = False
    """The next-sentence head becomes `match_head`, where that has two outputs."""
    deeper: bool = False
    """The BERT may have more layers than the system, whose are its first."""


PLAIN = KeyMap(
    *body("bert."),
    ("bert.pooler.dense.", "pooler.dense."),
    *word_head(),
    ("cls.seq_relationship.", "match_head."),
    Tied("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    Tied("cls.predictions.decoder.bias", "cls.predictions.bias"),
    Drop("bert.embeddings.position_ids"),
)
"""Rules of a plain BERT's file, as Hugging Face and the PyTorch ports before it write it."""
ROBERTA = KeyMap(
    *body("roberta."),
    ("roberta.pooler.dense.", "pooler.dense."),
    ("lm_head.dense.", "word_head.transform.dense."),
    ("lm_head.layer_norm.", "word_head.transform.norm."),
    ("lm_head.bias", "word_head.bias"),
    Tied("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    Tied("lm_head.decoder.bias", "lm_head.bias"),
    Drop("roberta.embeddings.position_ids"),
)
"""Those of RoBERTa's, as Hugging Face writes it."""
