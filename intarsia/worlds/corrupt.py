"""False captions: small edits of a caption, each checked to be false of the scene.

An edit must not be told from the text alone. So it names no held-out pair where the world shows none, and in a world of
distinct colours and shapes it does not give two phrases the same colour or shape.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np

from intarsia.worlds.captions import Caption, Kind, change, holds, names_held_out, with_phrases
from intarsia.worlds.scene import COLOURS, Scene

_EDITED: tuple[Kind, ...] = ("colour", "shape")


def swap_colours(caption: Caption, scene: Scene, distinct: bool, held_out: bool) -> Caption | None:
    """The caption with the colours of two of its phrases exchanged; None where no exchange is false and allowed.

    Args:
        caption: the caption to edit.
        scene: the scene that the result must be false of.
        distinct: True = phrases must keep different colours and shapes.
        held_out: True = held-out pairs may be named.
    """
    for i, j in combinations(range(len(caption.phrases)), 2):
        phrases = list(caption.phrases)
        phrases[i] = replace(phrases[i], colour=caption.phrases[j].colour)
        phrases[j] = replace(phrases[j], colour=caption.phrases[i].colour)
        swapped = with_phrases(caption, tuple(phrases))
        if _usable(swapped, caption, scene, distinct, held_out):
            return swapped
    return None


def replace_word(
    caption: Caption, scene: Scene, rng: np.random.Generator, present: bool, distinct: bool, held_out: bool
) -> Caption | None:
    """The caption with one colour or shape replaced; None where no replacement is false and allowed.

    Args:
        caption: the caption to edit.
        scene: the scene that the result must be false of.
        rng: chooses among the possible replacements.
        present: True = by a value that another object of the scene has; False = by any value.
        distinct: True = phrases must keep different colours and shapes.
        held_out: True = held-out pairs may be named.
    """
    options: list[tuple[int, Kind, int]] = []
    for i in range(len(caption.phrases)):
        for kind in _EDITED:
            shown = {x.colour if kind == "colour" else x.shape for x in scene.objects}
            options += [(i, kind, value) for value in range(len(COLOURS)) if not present or value in shown]
    for k in rng.permutation(len(options)).tolist():
        edited = change(caption, *options[k])
        if _usable(edited, caption, scene, distinct, held_out):
            return edited
    return None


def corrupt(
    caption: Caption, scene: Scene, rng: np.random.Generator, count: int, distinct: bool, held_out: bool
) -> tuple[Caption, ...]:
    """At most `count` different captions that are false of the scene.

    The colours swapped, once, where that is possible; then one word replaced by another object's, one by any, and so on
    in turn. Every result is false of the scene.
    """
    swapped = swap_colours(caption, scene, distinct, held_out) if count else None
    found = [] if swapped is None else [swapped]
    for attempt in range(3 * count):
        if len(found) == count:
            break
        edited = replace_word(caption, scene, rng, attempt % 2 == 0, distinct, held_out)
        if edited is not None and edited not in found:
            found.append(edited)
    return tuple(found)


def _usable(edited: Caption, caption: Caption, scene: Scene, distinct: bool, held_out: bool) -> bool:
    if edited == caption or (not held_out and names_held_out(edited)):
        return False
    number = len(edited.phrases)
    if distinct and (
        len({p.colour for p in edited.phrases}) < number or len({p.shape for p in edited.phrases}) < number
    ):
        return False
    return not holds(edited, scene)
