"""The key rules of BriVL's files: four towers, each a backbone and what is learnt above it."""

from __future__ import annotations

from intarsia.weights import bert
from intarsia.weights.keymap import Drop

SIZES = {field: (f"text.{key}", axis) for field, (key, axis) in bert.SIZES.items()} | {
    "queue_size": ("image_queue.keys", 1),
    "embedding_size": ("image.project.weight", 0),
}
"""Config fields that the shapes of the weights tell, as in `System.sizes`."""


def tower(side: str, end: str) -> tuple[tuple[str, str] | Drop, ...]:
    """Rules of one tower.

    Args:
        side: "image" or "text".
        end: "_mom" for the slow copies, else empty.
    """
    short = {"image": "img", "text": "text"}[side]
    theirs, ours = f"{short}encoder{end}.", f"{side}{end}."
    learnt = f"{theirs}learnable.{short}"
    rules = (
        *bert.torch_layers(f"{learnt}Att.layers.{{i}}.", f"{ours}top.encoder.layers.{{i}}."),
        (f"{learnt}FC.fc1.", f"{ours}top.out.0."),
        (f"{learnt}FC.fc2.", f"{ours}top.out.2."),
    )
    if side == "image":
        return (*rules, (f"{theirs}backbone.", f"{ours}trunk."), (f"{theirs}learnable.max_pool.0.", f"{ours}project."))
    body = f"{theirs}backbone.bert."
    return (
        *rules,
        *((old, ours + new) for old, new in bert.body(body)),
        (f"{body}pooler.dense.", f"{ours}pooler.dense."),
        Drop(f"{body}embeddings.position_ids"),
    )


def queue(side: str) -> tuple[tuple[str, str], ...]:
    """Rules of one queue, which checkpoints of a training have and the published ones lack."""
    theirs = {"image": "img", "text": "text"}[side]
    return (f"{theirs}_queue_ptr", f"{side}_queue.pointer"), (f"{theirs}_queue", f"{side}_queue.keys")
