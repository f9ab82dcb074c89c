"""The field's ways to overlap two boxes, and the accuracy of referring expressions. The same pair can be right for one paper and wrong for the next.

convention  boxes as pixels   sides                                right if   found in
exclusive   x1 y1 x2 y2       x2 - x1                              >= 0.5     the default here, MDETR without its generalised term
mattnet     x y w h           ends x + w - 1; shared sides + 1,    >= 0.5     MAttNet
                              none where they share one pixel row
uniter      as mattnet        as mattnet                           >  0.5     UNITER
vl_bert     x1 y1 x2 y2       x2 - x1 + 1 everywhere               >= 0.5     VL-BERT
vilbert     x1 y1 x2 y2       as vl_bert, in float32               >  0.5     ViLBERT, 12-in-1, ERNIE-ViL
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from intarsia.errors import BadInput

Convention = Literal["exclusive", "mattnet", "uniter", "vl_bert", "vilbert"]
Floats = npt.NDArray[np.floating]


def iou(a: npt.ArrayLike, b: npt.ArrayLike, convention: Convention = "exclusive") -> Floats:
    """(N, M) intersection over union of every box of a with every box of b, where the union is empty 0.

    Args:
        a: (N, 4) x1, y1, x2, y2 in pixels; x2 = x1 + width.
        b: (M, 4) likewise.
        convention: see the head of this file. The convention's own form of boxes is made here.

    Returns:
        float64, for "vilbert" float32.

    Raises:
        BadInput: no such convention, or the boxes are not (N, 4).
    """
    if convention not in get_args(Convention):
        raise BadInput(f"no convention {convention!r} of overlaps, only {', '.join(get_args(Convention))}")
    first, second = _boxes(a, convention), _boxes(b, convention)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    extra = 1 if convention in ("vl_bert", "vilbert") else 0  # a weak scalar: float32 stays
    if convention in ("mattnet", "uniter"):  # their boxes end at the last pixel, 1 before x2
        shared = np.where((low < high - 1).all(-1), (high - low).prod(-1), 0)
    else:
        shared = np.clip(high - low + extra, 0, None).prod(-1)
    area, other = ((x[:, 2:] - x[:, :2] + extra).prod(-1) for x in (first, second))
    union = area[:, None] + other[None] - shared
    found: Floats = np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
    return found


def _boxes(boxes: npt.ArrayLike, convention: Convention) -> Floats:
    given: Floats = np.asarray(boxes, np.float64).reshape(-1, 4)
    return given.astype(np.float32) if convention == "vilbert" else given


def is_right(overlap: npt.ArrayLike, convention: Convention = "exclusive") -> npt.NDArray[np.bool_]:
    """Whether overlaps are enough: half, or, for "uniter" and "vilbert", more than half."""
    given = np.asarray(overlap)
    return np.asarray(given > 0.5 if convention in ("uniter", "vilbert") else given >= 0.5)


def refer(chosen: Sequence[npt.ArrayLike | None], gold: npt.ArrayLike, convention: Convention = "exclusive") -> float:
    """Accuracy of referring expressions, one entry a sentence: RefCOCO, RefCOCO+, RefCOCOg. Data: Yu et al. 2016, Mao et al. 2016.

    Args:
        chosen: (N) the box chosen for each sentence, x1, y1, x2, y2 in pixels; None = there was none to choose: wrong.
        gold: (N, 4) boxes meant.
        convention: see the head of this file.

    Raises:
        BadInput: no sentences, or the lists differ in length.
    """
    meant = np.asarray(gold, np.float64).reshape(-1, 4)
    if len(chosen) != len(meant) or not len(meant):
        raise BadInput(f"referring expressions: {len(chosen)} chosen boxes, {len(meant)} gold boxes")
    right = [
        box is not None and bool(is_right(iou(np.asarray(box)[None], x[None], convention), convention)[0, 0])
        for box, x in zip(chosen, meant, strict=True)
    ]
    return sum(right) / len(right)
