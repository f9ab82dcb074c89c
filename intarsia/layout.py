"""How samples become rows: what systems with BERT's words and a detector's regions share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Any

import numpy as np
import torch

from intarsia.batch import Array, ClipRows, Covering, Picture, Pixels, RegionRows, Sample, Text, TextRows
from intarsia.data.decode import pixels_of
from intarsia.errors import BadInput, TooLong
from intarsia.packed import Packing, pad, round_up
from intarsia.text import Pieces, Vocab

Cut = Callable[[list[Pieces], int], list[Pieces]]
"""Pieces of several parts and the limit of all -> fewer of them; a part may end up empty."""


def cut_ends(pieces: list[Pieces], limit: int) -> list[Pieces]:
    """Takes pieces from the end of the longest part, of the last among several, until all fit."""
    kept = list(map(len, pieces))
    while sum(kept) > limit:
        kept[max(range(len(kept)), key=lambda i: (kept[i], i))] -= 1
    return [piece.part(0, count) for piece, count in zip(pieces, kept, strict=True)]


def bert_rows(
    vocab: Vocab,
    key: str,
    parts: Sequence[tuple[str, int]],
    limit: int,
    cut: bool | Cut = False,
    own_sep: bool = False,
) -> tuple[TextRows, list[Pieces]]:
    """[CLS] part [SEP] part [SEP] .., positions from 0.

    Args:
        vocab: cuts the texts.
        key: of the sample, for errors.
        parts: texts with their segments.
        limit: pieces in all, special tokens not counted.
        cut: how longer texts are cut, instead of being refused; True = `cut_ends`. A part of which nothing is left goes, with its [SEP].
        own_sep: a [SEP] has the segment of the part it closes, as in BERT; else that of the part which follows, the last one excepted (UNITER).

    Returns:
        The rows, and the pieces of each part.

    Raises:
        BadInput: a text is empty.
        TooLong: more pieces than the limit.
    """
    pieces = [vocab.encode(text) for text, _ in parts]
    for piece, (text, _) in zip(pieces, parts, strict=True):
        if not len(piece):
            raise BadInput(f"sample {key}: the caption {text!r} is empty")
    count = sum(map(len, pieces))
    if cut:
        pieces = (cut_ends if cut is True else cut)(pieces, limit)
    elif count > limit:
        raise TooLong(f"sample {key}: {count} pieces of text, the limit is {limit}")
    ids, segments, words, after = [np.array([vocab.cls])], [parts[0][1]], [np.array([-1])], 0
    for i, piece in enumerate(pieces):
        if not len(piece):
            continue
        ids += [piece.ids, np.array([vocab.sep])]
        segments += [parts[i][1]] * len(piece) + [parts[i if own_sep else min(i + 1, len(parts) - 1)][1]]
        words += [piece.words + after, np.array([-1])]
        after += int(piece.words[-1]) + 1
    rows = TextRows(np.concatenate(ids), np.array(segments), np.arange(len(segments)), np.concatenate(words))
    rows.cut = count - sum(map(len, pieces))
    return rows, pieces


def bare_text(vocab: Vocab, key: str, text: str, limit: int) -> TextRows:
    """The pieces of a text without special tokens, positions from 0, cut at its end.

    Raises:
        BadInput: it is empty.
    """
    pieces = vocab.encode(text)
    if not len(pieces):
        raise BadInput(f"sample {key}: the text {text!r} is empty")
    kept = pieces.part(0, limit)
    none = np.zeros(len(kept), np.int64)
    return TextRows(kept.ids, none, np.arange(len(kept)), kept.words, cut=len(pieces) - len(kept))


def none_said(vocab: Vocab) -> TextRows:
    """[CLS] [SEP], where a sample has no text."""
    ids = np.array([vocab.cls, vocab.sep])
    return TextRows(ids, np.zeros(2, np.int64), np.arange(2), np.array([-1, -1]))


def picture_of(sample: Sample, number: int) -> Picture:
    """A picture of a sample by its number.

    Raises:
        BadInput: there are not so many.
    """
    if number >= len(sample.pictures):
        raise BadInput(f"sample {sample.key}: has {len(sample.pictures)} pictures, needs {number + 1}")
    return sample.pictures[number]


def document_key(sample: Sample, task: str | None, form: int) -> str:
    """The key of one of a sample's documents: the sample's own in pre-training."""
    return sample.key if task is None else f"{sample.key}@{form}"


def region_rows(key: str, picture: Picture, width: int, segment: int, image: int = 0) -> RegionRows:
    """The regions of a picture, all at position 0, none hidden.

    Args:
        key: of the sample, for errors.
        picture: with features.
        width: numbers of a feature that the weights take.
        segment: segment id of all of them.
        image: which picture of the document this is.

    Raises:
        BadInput: features of another width.
    """
    count = len(picture.boxes)
    if picture.features.shape != (count, width):
        raise BadInput(
            f"sample {key}: picture {picture.name} has features of shape {picture.features.shape}, the weights take ({count}, {width})"
        )
    return RegionRows(
        feats=picture.features,
        boxes=picture.boxes,
        segment_ids=np.full(count, segment),
        position_ids=np.zeros(count, np.int64),
        image=np.full(count, image),
        masked=np.zeros(count, np.bool_),
        probs=picture.probs,
        labels=picture.labels,
        scores=picture.scores,
        attributes=picture.attributes,
        attribute_scores=picture.attribute_scores,
    )


def surest(picture: Picture, count: int) -> Array:
    """(at most `count`) numbers of the regions whose likeliest class is likeliest, in the picture's order; without soft labels those that come first."""
    if picture.probs is None:
        return np.arange(min(count, len(picture.boxes)))
    found: Array = np.sort(np.argsort(-picture.probs.max(1), kind="stable")[:count])
    return found


def before_last_sep(rows: TextRows, piece: int) -> TextRows:
    """The rows with one more special piece, such as [MASK], before the closing [SEP]."""
    return replace(
        rows,
        ids=np.insert(rows.ids, -1, piece),
        segment_ids=np.insert(rows.segment_ids, -1, rows.segment_ids[-1]),
        position_ids=np.append(rows.position_ids, rows.position_ids[-1] + 1),
        words=np.insert(rows.words, -1, -1),
    )


def with_piece(rows: TextRows, row: int, piece: int, segment: int, position: int) -> TextRows:
    """The rows with one more special piece as the given row; the others keep their positions."""
    added = {"ids": piece, "segment_ids": segment, "position_ids": position, "words": -1}
    columns: dict[str, Any] = {name: np.insert(getattr(rows, name), row, value) for name, value in added.items()}
    return replace(rows, **columns)


def without(rows: TextRows, row: int) -> TextRows:
    """The rows without one, as if it had never been; positions from 0."""
    columns: dict[str, Any] = {name: np.delete(getattr(rows, name), row) for name in ("ids", "segment_ids", "words")}
    return replace(rows, position_ids=np.arange(len(rows) - 1), **columns)


def side_by_side(rows: Sequence[RegionRows]) -> RegionRows:
    """The regions of several pictures as those of one document."""

    def column(name: str) -> Any:
        values = [getattr(x, name) for x in rows]
        return None if any(x is None for x in values) else np.concatenate(values)

    return RegionRows(**{name: column(name) for name in RegionRows.__slots__})


def link_rows(sample: Sample, pieces: Pieces, first: int = 1, text: int = 0) -> Array:
    """Gold links between a text and the first picture.

    Args:
        sample: with links.
        pieces: of the text.
        first: row of the text's first piece.
        text: its number.

    Returns:
        (P, 2) text row, region row.
    """
    rows = [
        (first + row, link.region)
        for link in sample.links
        if link.text == text and link.picture == 0
        for row in np.flatnonzero((pieces.spans[:, 0] < link.end) & (pieces.spans[:, 1] > link.start))
    ]
    return np.array(rows, np.int64).reshape(-1, 2)


def last_pixel(picture: Picture, images: Sequence[Pixels] = ()) -> tuple[float, float]:
    """Where the last pixel begins of what is read, as fractions: of the first image, else of the picture; the far corner where its size is not known."""
    read = images[0] if images else picture
    across, down = ((size - 1) / size if size else 1.0 for size in (read.width, read.height))
    return across, down


def whole_row(picture: Picture) -> int | None:
    """The number of the first region whose box is the whole picture; None = there is none."""
    rows = np.flatnonzero((picture.boxes == np.array([0, 0, 1, 1])).all(1))
    return int(rows[0]) if len(rows) else None


def mirrored(picture: Picture, edge: float) -> Picture:
    """A picture whose left and right are exchanged: its boxes, what they cover and its pixels; features stay as they are.

    Args:
        picture: the picture.
        edge: where its last column begins, as a fraction.
    """
    boxes = picture.boxes.copy()
    boxes[:, [0, 2]] = edge - boxes[:, [2, 0]]
    covers = None if picture.covers is None else partial(_turned_covers, picture.covers)
    pixels = partial(_turned, picture) if picture.path or picture.pixels else None
    return replace(picture, boxes=boxes, covers=covers, pixels=pixels)


def turned(sample: Sample, edge: float, words: bool) -> Sample:
    """A sample whose first picture is `mirrored`, the boxes that it means too.

    Args:
        sample: with a picture.
        edge: see `mirrored`.
        words: "left" and "right" change places in its texts and answers.
    """
    meant = []
    for x in sample.meant:
        boxes = np.array(x.boxes)
        boxes[:, [0, 2]] = edge - boxes[:, [2, 0]]
        meant.append(replace(x, boxes=boxes))
    pictures = (mirrored(sample.pictures[0], edge), *sample.pictures[1:])
    sample = replace(sample, pictures=pictures, meant=tuple(meant))
    if not words:
        return sample
    answers = tuple((_other_side(answer), share) for answer, share in sample.answers)
    return replace(sample, texts=tuple(map(_other_side, sample.texts)), answers=answers)


def _other_side(text: str) -> str:
    return re.sub(r"\b(left|right)\b", lambda x: "right" if x[0] == "left" else "left", text)


def _turned_covers(covers: Callable[[Covering], Array], rule: Covering) -> Array:
    return covers(rule)[:, :, ::-1]


def _turned(picture: Picture) -> Array:
    return np.ascontiguousarray(pixels_of(picture, picture.name)[:, ::-1])


def with_whole_picture(
    rows: RegionRows, picture: Picture, corner: tuple[float, float] | None = None, feature: Array | None = None
) -> RegionRows:
    """The regions and, after them, the whole picture as one more; its class is background.

    Order inside a document is free: the papers put it first.

    Args:
        rows: of the picture.
        picture: for its size.
        corner: the far corner of the whole picture's box; None = its last pixel.
        feature: (F) of the whole picture; None = the picture's own, or else the mean of the regions.
    """
    count = len(rows)
    feature = picture.whole if feature is None else feature
    edge = corner or last_pixel(picture)
    last: dict[str, Any] = {
        "feats": whole_feature(rows.feats, np.zeros(count, np.bool_)) if feature is None else feature,
        "boxes": [0, 0, *edge],
        "segment_ids": rows.segment_ids[:1].sum(),
        "position_ids": rows.position_ids[:1].sum(),
        "image": rows.image[:1].sum(),
        "masked": False,
        "probs": 0,
        "labels": 0,
        "scores": 1,
        "attributes": 0,
        "attribute_scores": 1,
        "covers": True,
    }

    def column(name: str) -> Any:
        column = getattr(rows, name)
        if column is None or name not in last:
            return column
        row = np.broadcast_to(np.asarray(last[name], column.dtype), (1, *column.shape[1:]))
        return np.concatenate([column, row])

    return RegionRows(**{name: column(name) for name in RegionRows.__slots__})


def picture_rows(sample: Sample, width: int, segment: int) -> RegionRows:
    """Whole pictures, each as one row, the mean of its regions, without labels; else as `region_rows`."""
    found, one = [], np.ones(1, np.int64)
    for i in range(max(1, len(sample.pictures))):
        rows = region_rows(sample.key, picture_of(sample, i), width, segment, i)
        feature, box = whole_feature(rows.feats, rows.masked)[None], np.array([[0, 0, 1, 1]], np.float32)
        found.append(RegionRows(feature, box, one * segment, 0 * one, one * i, one == 0))
    return side_by_side(found)


def whole_feature(feats: Array, hidden: Array) -> Array:
    """(F) the feature of the whole picture: the mean of the regions (R, F) that are not hidden (R), so that it tells nothing of those that are.

    Source: VL-BERT, pretrain/data/datasets/conceptual_captions.py.
    """
    kept = feats[~hidden].astype(np.float32)
    return np.asarray(kept.sum(0) / max(len(kept) + 1e-5 * hidden.any(), 1e-5))


def rest_feature(picture: Picture, hidden: Array) -> Array:
    """(F) the same of a picture whose `surest` regions have rows, some of them hidden (R); those without a row count as seen."""
    rows = surest(picture, len(hidden))[hidden]
    return whole_feature(picture.features, np.isin(np.arange(len(picture.boxes)), rows))


def no_regions(width: int, classes: int) -> RegionRows:
    """Those of a document without picture."""
    none = np.zeros(0, np.int64)
    feats, probs = np.zeros((0, width), np.float16), np.zeros((0, classes), np.float16)
    return RegionRows(feats, np.zeros((0, 4), np.float32), none, none, none, none.astype(np.bool_), probs)


def bare_rows(boxes: Sequence[Any] | Array) -> RegionRows:
    """Boxes (R, 4) as region rows without features, for systems that read what lies in them off the pixels."""
    none = np.zeros(len(boxes), np.int64)
    feats = np.zeros((len(boxes), 0), np.float32)
    return RegionRows(feats, np.array(boxes, np.float32), none, none, none, none.astype(np.bool_))


def clip_rows(sample: Sample, numbers: Array, clusters: int = 0, width: int = 0) -> ClipRows:
    """Clips of a sample's film by number, in segment 0 and at position 0; none without a film.

    Args:
        sample: its film.
        numbers: (V) which clips.
        clusters: how many visual words a system reads; 0 = none.
        width: F, numbers of a feature; 0 = it reads none.

    Raises:
        BadInput: features of another width; visual words are needed and the film has none, or one that is not below `clusters`.
    """
    film, count = sample.film, len(numbers)
    none = np.zeros(count, np.int64)
    ids = none - 1
    if film is None or not count:
        feats = np.zeros((count, width), np.float32)
        return ClipRows(feats, np.zeros(count, np.float32), none, none, none.astype(np.bool_), ids)
    if clusters:
        if film.ids is None:
            raise BadInput(
                f"sample {sample.key}: its clips have no visual words; run `intarsia data cluster` and name the file with --centroids"
            )
        ids = film.ids[numbers].astype(np.int64)
        if ids.max() >= clusters:
            raise BadInput(f"sample {sample.key}: visual word {int(ids.max())}, the system knows {clusters}")
    feats = film.features[numbers].astype(np.float32) if width else np.zeros((count, 0), np.float32)
    if feats.shape[1] != width:
        raise BadInput(f"sample {sample.key}: clips have {feats.shape[1]} numbers, the system takes {width}")
    return ClipRows(feats, film.seconds[numbers], none, none, none.astype(np.bool_), ids)


def code_row(sample: Sample, codes: int, length: int) -> Array:
    """(length) int64 codes of a sample's first picture; none without a picture.

    Args:
        sample: its picture.
        codes: how many codes a system knows.
        length: how many a picture has.

    Raises:
        BadInput: the picture has no codes, or others.
    """
    if not sample.pictures:
        return np.zeros(0, np.int64)
    found = sample.pictures[0].codes
    if found is None or not codes:
        raise BadInput(
            f"sample {sample.key}: its picture has no codes; run `intarsia data codes` and name the file with --codes"
        )
    if found.shape != (length,) or found.max(initial=0) >= codes:
        raise BadInput(
            f"sample {sample.key}: {len(found)} codes up to {found.max(initial=0)}, the system takes {length} below {codes}"
        )
    return found.astype(np.int64)


def grid_boxes(cells: int) -> Array:
    """(cells * cells, 4) the cells of a grid over the picture, from the left column to the right one, each downwards."""
    edges = np.arange(cells + 1) / cells
    (left, upper), (right, lower) = (np.meshgrid(x, x, indexing="ij") for x in (edges[:-1], edges[1:]))
    return np.stack([left, upper, right, lower], -1).reshape(-1, 4)


def cells(boxes: Array, count: int) -> Array:
    """(R) int64: the cell of a square grid of at most `count` cells, row by row, that the centre of each box (R, 4) lies in."""
    side = isqrt(count)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    across, down = np.clip(np.floor(centres * side), 0, side - 1).astype(np.int64).T
    return np.asarray(down * side + across)


def cell_rows(height: int, width: int, cell: int, image: int = 0) -> RegionRows:
    """The cells of a picture's last map as region rows without features, row by row: positions count them from 0, boxes are the pixels below them.

    Args:
        height: of the picture, in pixels.
        width: the same.
        cell: pixels a side of a cell; those at the right and lower edge may be cut.
        image: which picture of the document this is.
    """
    down, across = -(-height // cell), -(-width // cell)
    y, x = np.divmod(np.arange(down * across), across)
    edges = np.stack([x, y, x + 1, y + 1], 1) * cell / np.array([width, height, width, height])
    rows = bare_rows(edges.clip(0, 1))
    return replace(rows, position_ids=np.arange(len(rows)), image=np.full(len(rows), image))


def filled(text: Text, length: int, filler: int) -> Text:
    """Packed text with every document filled up to one length by a piece in segment 0; positions go on. For systems whose encoder sees padding."""
    ids = pad(text.ids, text.packing, length, filler).flatten()
    documents = text.packing.documents
    rows = torch.arange(len(ids), device=ids.device)
    starts = torch.arange(documents + 1, device=ids.device, dtype=torch.int32) * length
    packing = Packing(starts, round_up(length), rows // length, rows % length)
    return Text(ids, torch.zeros_like(ids), packing.pos, torch.full_like(ids, -1), packing)
